package cwl

import (
	"path/filepath"
	"slices"
	"strings"
)

// commandLine is what a command line says that runs cwltool or Toil.
type commandLine struct {
	// program is the index of the engine's program, -1 if it is not named.
	program int
	toil    bool
	// plain says that the words before it run it here, once more if need be,
	// and that nothing else is run by them.
	plain bool
	// loading are the options that say how the document is to be read.
	loading []string
	// document is what is run, empty if it is not named; rest what follows it.
	document string
	rest     []string
	// prints is whether nothing is going to run.
	prints bool
	// part is whether only a part of the document runs.
	part bool
}

// options of cwltool, and how each matters here.
const (
	optIgnored = iota
	optPrints
	optLoading
	optPart
	optValue        // takes a value
	optLoadingValue // takes a value, and says how the document is to be read
	optPartValue
)

var options = map[string]int{
	"--help": optPrints, "--tool-help": optPrints, "--version": optPrints, "--validate": optPrints, "--pack": optPrints,
	"--print-rdf": optPrints, "--print-dot": optPrints, "--print-pre": optPrints, "--print-deps": optPrints,
	"--print-input-deps": optPrints, "--print-supported-versions": optPrints, "--print-subgraph": optPrints,
	"--print-targets": optPrints, "--make-template": optPrints,

	"--strict": optLoading, "--non-strict": optLoading, "--skip-schemas": optLoading, "--no-doc-cache": optLoading,
	"--doc-cache": optLoading, "--enable-dev": optLoading, "--enable-ext": optLoading, "--relax-path-checks": optLoading,
	"--fast-parser": optLoading, "--disable-validate": optLoading, "--disable-js-validation": optLoading,
	"--enable-ga4gh-tool-registry": optLoading, "--disable-ga4gh-tool-registry": optLoading,
	"--add-ga4gh-tool-registry": optLoadingValue,

	"--target": optPartValue, "--single-step": optPartValue, "--single-process": optPartValue,

	"--basedir": optValue, "--outdir": optValue, "--log-dir": optValue, "--preserve-environment": optValue,
	"--cidfile-dir": optValue, "--cidfile-prefix": optValue, "--tmpdir-prefix": optValue, "--tmp-outdir-prefix": optValue,
	"--cachedir": optValue, "--rdf-serializer": optValue, "--eval-timeout": optValue, "--provenance": optValue,
	"--orcid": optValue, "--full-name": optValue, "--write-summary": optValue, "--js-hint-options-file": optValue,
	"--user-space-docker-cmd": optValue, "--relative-deps": optValue, "--default-container": optValue,
	"--parallel-max": optValue, "--singularity-sandbox-path": optValue,
	"--custom-net": optValue, "--on-error": optValue, "--overrides": optValue, "--mpi-config-file": optValue,
	"--beta-dependency-resolvers-configuration": optValue, "--beta-dependencies-directory": optValue,

	"--parallel": optIgnored, "--preserve-entire-environment": optIgnored, "--rm-container": optIgnored,
	"--leave-container": optIgnored, "--record-container-id": optIgnored, "--rm-tmpdir": optIgnored,
	"--leave-tmpdir": optIgnored, "--move-outputs": optIgnored, "--leave-outputs": optIgnored, "--copy-outputs": optIgnored,
	"--enable-pull": optIgnored, "--disable-pull": optIgnored, "--verbose": optIgnored, "--quiet": optIgnored, "--no-warnings": optIgnored,
	"--debug": optIgnored, "--strict-memory-limit": optIgnored, "--strict-cpu-limit": optIgnored,
	"--timestamps": optIgnored, "--js-console": optIgnored, "--udocker": optIgnored, "--singularity": optIgnored,
	"--podman": optIgnored, "--no-container": optIgnored, "--beta-use-biocontainers": optIgnored,
	"--beta-conda-dependencies": optIgnored, "--enable-color": optIgnored, "--disable-color": optIgnored,
	"--no-match-user": optIgnored, "--compute-checksum": optIgnored, "--no-compute-checksum": optIgnored,
	"--force-docker-pull": optIgnored, "--no-read-only": optIgnored, "--enable-user-provenance": optIgnored,
	"--disable-user-provenance": optIgnored, "--enable-host-provenance": optIgnored, "--disable-host-provenance": optIgnored,
}

// shortOptions are those of one letter.
var shortOptions = map[byte]string{'h': "--help", 't': "--target", 'w': "--write-summary"}

// parse reads a command line, and the options that cwltool takes from its
// environment.
func parse(args []string, environment string) commandLine {
	c := commandLine{program: -1}
	for i, a := range args {
		base := strings.TrimSuffix(filepath.Base(a), ".py")
		if base != "cwltool" && base != "cwl-runner" && base != "toil-cwl-runner" {
			if c.program >= 0 {
				break // what follows is its
			}
			continue
		}
		if c.program >= 0 && c.program != i-1 {
			break
		}
		c.program, c.toil = i, base == "toil-cwl-runner"
	}
	if c.program < 0 {
		return c
	}
	c.plain = plain(args[:c.program])
	if c.toil {
		for _, a := range args[c.program+1:] {
			c.prints = c.prints || a == "--help" || a == "-h" || a == "--version"
		}
		return c
	}
	c.read(append(strings.Fields(environment), args[c.program+1:]...))
	return c
}

// read takes cwltool's own words. Its options end with the document.
func (c *commandLine) read(words []string) {
	for i := 0; i < len(words); i++ {
		name, _, joined := strings.Cut(words[i], "=")
		switch {
		case words[i] == "--":
			if i+1 < len(words) {
				c.document, c.rest = words[i+1], words[i+2:]
			}
			return
		case len(name) < 2 || name[0] != '-':
			c.document, c.rest = words[i], words[i+1:]
			c.prints = c.prints || slices.Contains(c.rest, "--help") || slices.Contains(c.rest, "-h")
			return
		case name[1] != '-': // of one letter
			joined = len(words[i]) > 2
			name = shortOptions[name[1]]
		default:
			name = unabbreviated(name)
		}
		kind := options[name]
		word := words[i : i+1]
		if kind >= optValue && !joined && i+1 < len(words) {
			i++
			word = words[i-1 : i+1]
		}
		switch kind {
		case optPrints:
			c.prints = true
		case optLoading, optLoadingValue:
			c.loading = append(c.loading, word...)
		case optPart, optPartValue:
			c.part = true
		}
	}
}

// unabbreviated is the option that a name begins, as argparse takes it.
func unabbreviated(name string) string {
	if _, exact := options[name]; exact {
		return name
	}
	found := ""
	for o := range options {
		if strings.HasPrefix(o, name) {
			if found != "" {
				return name // it could be two
			}
			found = o
		}
	}
	return found
}

// plain reports whether the words before the program only prepare its
// environment, so that it does no harm to run it once more. A queue, a container
// or a shell may do much else.
func plain(words []string) bool {
	if len(words) == 0 {
		return true
	}
	switch base := filepath.Base(words[0]); {
	case strings.HasPrefix(base, "python") || strings.HasPrefix(base, "pypy"):
	case slices.Contains([]string{"env", "nice", "ionice", "nohup", "stdbuf", "time"}, base):
	case slices.Contains([]string{"conda", "mamba", "micromamba", "pixi", "uv", "poetry", "pipenv"}, base):
		return len(words) > 1 && words[1] == "run"
	default:
		return false
	}
	return true
}
