package nextflow

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"waymark/engines"
)

// commandLine is "nextflow run" with what Waymark has to know of it.
type commandLine struct {
	launch     *engines.Launch
	args       []string
	at         int // where options may be put
	background bool
	resume     bool
	elsewhere  bool // maybe: another program starts it
}

// parseCommandLine reads a command line; it returns nil for one that runs no
// workflow, and an error for one that cannot be given options.
func parseCommandLine(l *engines.Launch) (*commandLine, error) {
	c := &commandLine{launch: l, args: slices.Clone(l.Args)}
	program := slices.IndexFunc(c.args, func(a string) bool {
		return strings.Contains(filepath.Base(a), "nextflow") && !strings.ContainsAny(a, " \t\n")
	})
	if program < 0 {
		// Such as sh -c: what it runs cannot be seen from here.
		return nil, errors.New("expected a command line of nextflow, to set its options: run it with -with-weblog, and have waymark serve receive it")
	}
	c.elsewhere = program > 0
	for i := program + 1; i < len(c.args) && c.at == 0; i++ {
		switch a := c.args[i]; {
		case a == "run":
			c.at = i + 1
			if c.at < len(c.args) && c.args[c.at] == "-" { // a script on standard input
				c.at++
			}
		case a == "kuberun":
			return nil, errors.New("nextflow kuberun runs in a cluster, which cannot reach this machine's ports")
		case a == "-bg":
			c.background = true
		case slices.Contains([]string{"-log", "-c", "-config", "-C", "-D", "-syslog", "-remote-debug", "-trace"}, a):
			i++ // its value
		case !strings.HasPrefix(a, "-"):
			if info, err := os.Stat(c.path(a)); i != program+1 || err != nil || info.IsDir() {
				return nil, nil // another command
			}
			c.at = i + 1 // a script alone means that it is run
		}
	}
	if c.at == 0 {
		return nil, nil // -version, -help
	}
	for _, a := range c.args[c.at:] {
		switch a {
		case "-h", "-help", "-preview", "-test":
			return nil, nil
		case "-bg":
			c.background = true
		case "-resume":
			c.resume = true
		}
	}
	return c, nil
}

// path makes a path of the command line absolute.
func (c *commandLine) path(p string) string {
	if filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(c.launch.Dir, p)
}

func (c *commandLine) insert(words ...string) { c.args = slices.Insert(c.args, c.at, words...) }

// option finds an option whose value may be left out. index is -1 if it is not there.
func (c *commandLine) option(name string) (index int, value string) {
	for i := c.at; i < len(c.args); i++ {
		if c.args[i] == name {
			if i+1 < len(c.args) && !strings.HasPrefix(c.args[i+1], "-") {
				return i, c.args[i+1]
			}
			return i, ""
		}
	}
	return -1, ""
}

// offline reports whether Nextflow is told not to download anything.
func (c *commandLine) offline() bool {
	return c.launch.Getenv("NXF_OFFLINE") == "true" || slices.Contains(c.args[c.at:], "-offline")
}

// hasPlugin reports whether the plugin that posts is there.
func (c *commandLine) hasPlugin() bool {
	folder := c.launch.Getenv("NXF_PLUGINS_DIR")
	if folder == "" {
		folder = filepath.Join(c.home(), "plugins")
	}
	found, _ := filepath.Glob(filepath.Join(folder, "nf-weblog-*"))
	return len(found) > 0
}

// home is Nextflow's own folder.
func (c *commandLine) home() string {
	if home := c.launch.Getenv("NXF_HOME"); home != "" {
		return home
	}
	return filepath.Join(c.launch.Getenv("HOME"), ".nextflow")
}

// setReceiver has Nextflow post to an address.
func (c *commandLine) setReceiver(address string) {
	switch i, value := c.option("-with-weblog"); {
	case i < 0:
		c.insert("-with-weblog", address)
	case value == "":
		c.args = slices.Insert(c.args, i+1, address)
	default:
		c.args[i+1] = address
	}
}

// traceFile is where the user has Nextflow write a trace, empty if that is not
// known.
func (c *commandLine) traceFile() string {
	if _, value := c.option("-with-trace"); value != "" {
		return c.path(value)
	}
	return ""
}

var (
	ownContainer = regexp.MustCompile(`(?m)^\s*container\b`)
	comments     = regexp.MustCompile(`(?m)(?:^|[^:])//.*$|(?s:/\*.*?\*/)`)
	weblogURL    = regexp.MustCompile(`(?s)\bweblog\s*(?:\{[^}]*?\burl|\.\s*url)\s*=\s*['"]([^'"$]+)['"]`)
	weblogWord   = regexp.MustCompile(`\bweblog\s*[.{]`)
	weblogOff    = regexp.MustCompile(`(?s)\bweblog\s*(?:\{[^}]*?\benabled|\.\s*enabled)\s*=\s*false`)
	traceMatters = regexp.MustCompile(`(?i)\b(?:trace|container|docker|singularity|podman|apptainer|charliecloud|shifter|sarus|wave|kubernetes|k8s|aws|azure|google|includeConfig)\b`)
)

// usersReceiver is where the user has Nextflow post, empty if nowhere. The error
// says that this cannot be found out: our option would take its place.
func (c *commandLine) usersReceiver() (string, error) {
	const standard = "http://localhost"
	index, value := c.option("-with-weblog")
	if value != "" {
		if !postable(value) {
			return "", errors.New("-with-weblog: expected an http or https address")
		}
		return value, nil
	}
	found := ""
	for _, text := range c.configurations() {
		switch all := weblogURL.FindAllStringSubmatch(text, -1); {
		case !weblogWord.MatchString(text):
		case weblogOff.MatchString(text) && index < 0:
		case len(all) == 0 || !postable(all[len(all)-1][1]):
			return "", errors.New("the configuration of nextflow has a weblog of its own, at an address that cannot be read there; give it as -with-weblog URL")
		default:
			found = all[len(all)-1][1]
		}
	}
	if found == "" && index >= 0 {
		return standard, nil
	}
	return found, nil
}

// mayTrace reports whether -with-trace can be added without harm. It takes the
// place of a trace that the configuration asks for, and it makes every task
// measure itself with ps, which not every container has. So it is added only
// where nothing speaks of either.
func (c *commandLine) mayTrace() bool {
	if i, _ := c.option("-with-trace"); i >= 0 {
		return false
	}
	for _, a := range c.args[c.at:] {
		if traceMatters.MatchString(strings.TrimPrefix(a, "-with-")) && strings.HasPrefix(a, "-") || a == "-profile" {
			return false
		}
	}
	local := false
	for _, script := range c.projects() {
		if text, err := os.ReadFile(script); err == nil {
			local = true
			if ownContainer.Match(text) {
				return false
			}
		}
	}
	return local && !slices.ContainsFunc(c.configurations(), traceMatters.MatchString)
}

// words are those of the command line that could name a project or a file.
func (c *commandLine) words() (all []string) {
	for _, a := range c.args[c.at:] {
		if !strings.HasPrefix(a, "-") {
			all = append(all, a)
		}
	}
	return all
}

// projects are the scripts that may be the one that is run.
func (c *commandLine) projects() (scripts []string) {
	for _, w := range c.words() {
		if strings.HasSuffix(w, ".nf") {
			scripts = append(scripts, c.path(w))
		} else {
			scripts = append(scripts, filepath.Join(c.path(w), "main.nf"))
		}
	}
	return scripts
}

// configurations are the texts of the configuration that Nextflow may read, as
// far as it is on this machine, without comments.
func (c *commandLine) configurations() (texts []string) {
	home := c.home()
	assets := c.launch.Getenv("NXF_ASSETS")
	if assets == "" {
		assets = filepath.Join(home, "assets")
	}
	files := []string{filepath.Join(home, "config"), c.path("nextflow.config")}
	for i, a := range c.args {
		if slices.Contains([]string{"-c", "-config", "-C"}, a) && i+1 < len(c.args) {
			for _, f := range strings.Split(c.args[i+1], ",") {
				files = append(files, c.path(f))
			}
		}
	}
	for _, w := range c.words() {
		files = append(files, filepath.Join(c.path(w), "nextflow.config"), filepath.Join(filepath.Dir(c.path(w)), "nextflow.config"),
			filepath.Join(assets, w, "nextflow.config"))
	}
	slices.Sort(files)
	for _, f := range slices.Compact(files) {
		if info, err := os.Stat(f); err != nil || !info.Mode().IsRegular() || info.Size() > 4<<20 {
			continue
		}
		if text, err := os.ReadFile(f); err == nil {
			texts = append(texts, comments.ReplaceAllString(string(text), " "))
		}
	}
	return texts
}
