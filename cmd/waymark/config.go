package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/spf13/viper"
	"go.yaml.in/yaml/v3"

	"waymark/internal/broker"
	"waymark/internal/crashpoint"
	"waymark/publisher"
	"waymark/schemas"
	"waymark/store"
)

// config is the effective configuration. Its fields mirror the table of settings.
type config struct {
	Broker struct {
		URL             string `mapstructure:"url"`
		PasswordFile    string `mapstructure:"password_file"`
		Topology        string `mapstructure:"topology"`
		StatusQueue     string `mapstructure:"status_queue"`
		SubmissionQueue string `mapstructure:"submission_queue"`
		TLSCA           string `mapstructure:"tls_ca"`
		TLSCert         string `mapstructure:"tls_cert"`
		TLSKey          string `mapstructure:"tls_key"`
	} `mapstructure:"broker"`
	Database struct {
		URL            string        `mapstructure:"url"`
		PasswordFile   string        `mapstructure:"password_file"`
		Schema         string        `mapstructure:"schema"`
		MaxConnections int           `mapstructure:"max_connections"`
		KeepRuns       time.Duration `mapstructure:"keep_runs"`
		TLSCA          string        `mapstructure:"tls_ca"`
		TLSCert        string        `mapstructure:"tls_cert"`
		TLSKey         string        `mapstructure:"tls_key"`
	} `mapstructure:"database"`
	Consumer struct {
		BatchSize        int           `mapstructure:"batch_size"`
		Prefetch         int           `mapstructure:"prefetch"`
		Linger           time.Duration `mapstructure:"linger"`
		DrainTimeout     time.Duration `mapstructure:"drain_timeout"`
		Submissions      string        `mapstructure:"submissions"`
		UnknownWorkflows string        `mapstructure:"unknown_workflows"`
		MaxMessageBytes  int           `mapstructure:"max_message_bytes"`
		MaxHeldBytes     int           `mapstructure:"max_held_bytes"`
		MaxLogBytes      int           `mapstructure:"max_log_bytes"`
		MaxRunLogBytes   int64         `mapstructure:"max_run_log_bytes"`
		Remember         time.Duration `mapstructure:"remember"`
	} `mapstructure:"consumer"`
	Publisher struct {
		Encoding      string        `mapstructure:"encoding"`
		Window        int           `mapstructure:"window"`
		SpoolDir      string        `mapstructure:"spool_dir"`
		SpoolMaxBytes int           `mapstructure:"spool_max_bytes"`
		Timeout       time.Duration `mapstructure:"timeout"`
	} `mapstructure:"publisher"`
	HTTP struct {
		Listen string `mapstructure:"listen"`
		Weblog string `mapstructure:"weblog"`
	} `mapstructure:"http"`
	Log struct {
		Level  string `mapstructure:"level"`
		Format string `mapstructure:"format"`
	} `mapstructure:"log"`

	// values holds each setting's text and origin, by key.
	values map[string]value
	// file that was read, empty if none was.
	file string
}

// value is the effective value of a setting and where it came from.
type value struct {
	text   string
	origin origin
}

// origin is where a value came from.
type origin struct {
	kind string // "flag", "env", "file" or "default"
	name string // --broker-url, WAYMARK_BROKER_URL, the file's path
	line int    // in the file
}

// String is the origin as people read it: "env WAYMARK_BROKER_URL".
func (o origin) String() string {
	switch o.kind {
	case "default":
		return "default"
	case "file":
		return o.name + ":" + strconv.Itoa(o.line)
	}
	return o.kind + " " + o.name
}

// The files that are read if --config names none: the first that exists.
var standardFiles = []string{"waymark.yaml", "/etc/waymark/waymark.yaml"}

// addConfigFlags gives cmd the flags of the settings in the sections it uses.
// A name with a dot is a single setting.
func addConfigFlags(cmd *cobra.Command, sections ...string) {
	for i := range settings {
		s := &settings[i]
		section, _, _ := strings.Cut(s.key, ".")
		if !slices.Contains(sections, section) && !slices.Contains(sections, s.key) {
			continue
		}
		f := &pflag.Flag{
			Name:  s.flag(),
			Usage: strings.ReplaceAll(s.doc, "`", ""),
			Value: &settingFlag{setting: s, text: s.preset},
			// DefValue only shows in the help; viper has the default.
			DefValue:    s.preset,
			Annotations: map[string][]string{settingAnnotation: {s.key}},
		}
		cmd.Flags().AddFlag(f)
	}
}

// settingAnnotation marks the flags that stand for settings, so that the help
// shows them apart.
const settingAnnotation = "waymark-setting"

// settingFlag is the flag of a setting, checked when it is parsed.
type settingFlag struct {
	setting *setting
	text    string
}

func (f *settingFlag) String() string { return f.text }
func (f *settingFlag) Type() string   { return f.setting.kind.String() }
func (f *settingFlag) Set(text string) error {
	f.text = text
	return f.setting.validate(text)
}

// config works out the configuration for cmd: flags, then environment, then
// file, then defaults. Every error has exit code 2 and names the place of the
// mistake.
func (a *app) config(cmd *cobra.Command) (*config, error) {
	path, _ := cmd.Flags().GetString("config")
	file, err := readConfigFile(path)
	if err != nil {
		return nil, &exitError{code: exitUsage, err: err}
	}

	// Viper decides which value counts. The environment is laid over the file
	// here, rather than bound, because viper would read that of the process.
	v := viper.New()
	origins := make(map[string]origin)
	for i := range settings {
		s := &settings[i]
		v.SetDefault(s.key, s.preset)
		origins[s.key] = origin{kind: "default"}
		if set, ok := file.values[s.key]; ok {
			merge(v, s.key, set.text)
			origins[s.key] = set.origin
		}
		if env := a.getenv(s.env()); env != "" {
			at := origin{kind: "env", name: s.env()}
			if err := s.validate(env); err != nil {
				return nil, usage("%s (%s): %w", s.key, at, err)
			}
			merge(v, s.key, env)
			origins[s.key] = at
		}
		if f := cmd.Flags().Lookup(s.flag()); f != nil {
			if err := v.BindPFlag(s.key, f); err != nil {
				return nil, fmt.Errorf("binding flag --%s: %w", f.Name, err)
			}
			if f.Changed {
				origins[s.key] = origin{kind: "flag", name: "--" + f.Name}
			}
		}
	}
	c := &config{file: file.path, values: make(map[string]value)}
	if err := v.UnmarshalExact(c, viper.DecodeHook(decodeDuration)); err != nil {
		return nil, usage("reading the configuration: %w", err)
	}
	for _, s := range settings {
		c.values[s.key] = value{text: v.GetString(s.key), origin: origins[s.key]}
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	for _, exposure := range c.exposures() {
		a.logger(c, true).Warn(exposure)
	}
	return c, nil
}

// decodeDuration has viper read durations as the table of settings does.
func decodeDuration(_, to reflect.Type, value any) (any, error) {
	if text, ok := value.(string); ok && to == reflect.TypeFor[time.Duration]() {
		return parseDuration(text)
	}
	return value, nil
}

func merge(v *viper.Viper, key, text string) {
	section, name, _ := strings.Cut(key, ".")
	// It can only fail for a map that viper cannot read.
	_ = v.MergeConfigMap(map[string]any{section: map[string]any{name: text}})
}

// check looks at what concerns several settings at once.
func (c *config) check() error {
	if err := c.queues().Validate(); err != nil {
		return usage("broker.status_queue, broker.submission_queue: %w", err)
	}
	if (c.Broker.TLSCert == "") != (c.Broker.TLSKey == "") {
		return usage("broker.tls_cert and broker.tls_key belong together: set both or neither")
	}
	if (c.Database.TLSCert == "") != (c.Database.TLSKey == "") {
		return usage("database.tls_cert and database.tls_key belong together: set both or neither")
	}
	if _, err := c.databaseURL(); c.Database.URL != "" && err != nil {
		return usage("database.url: %w", err)
	}
	if c.Consumer.Prefetch < c.Consumer.BatchSize {
		return usage("consumer.prefetch is %d (%s) and consumer.batch_size %d (%s): a batch that large would never be full",
			c.Consumer.Prefetch, c.values["consumer.prefetch"].origin, c.Consumer.BatchSize, c.values["consumer.batch_size"].origin)
	}
	return nil
}

// configFile is what a configuration file says.
type configFile struct {
	path   string
	values map[string]value
}

// maxConfigFile is far beyond any real one.
const maxConfigFile = 1 << 20

// readConfigFile reads the file at path or, if path is empty, the first
// standard one there is.
func readConfigFile(path string) (configFile, error) {
	candidates := standardFiles
	if path != "" {
		candidates = []string{path}
	}
	for _, candidate := range candidates {
		f, err := os.Open(candidate)
		if errors.Is(err, fs.ErrNotExist) && path == "" {
			continue
		}
		if err != nil {
			return configFile{}, fmt.Errorf("reading the configuration: %w", err)
		}
		defer f.Close()
		content, err := io.ReadAll(io.LimitReader(f, maxConfigFile+1))
		if err != nil {
			return configFile{}, fmt.Errorf("reading the configuration: %w", err)
		}
		if len(content) > maxConfigFile {
			return configFile{}, fmt.Errorf("reading the configuration: %s is larger than %d bytes", candidate, maxConfigFile)
		}
		values, err := parseConfig(candidate, content)
		return configFile{path: candidate, values: values}, err
	}
	return configFile{}, nil
}

// parseConfig reads a configuration text. It works on YAML's nodes rather than
// on decoded values, for the sake of line numbers, and of mistakes that
// decoding would forgive.
func parseConfig(path string, content []byte) (map[string]value, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	var document yaml.Node
	if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("%s: not YAML: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	at := func(n *yaml.Node) string { return path + ":" + strconv.Itoa(n.Line) }
	var second yaml.Node
	if err := decoder.Decode(&second); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: expected one YAML document, found more", path)
	}
	root := document.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return nil, nil
	}
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%s: expected sections such as broker: and database:, found %s", at(root), describe(root))
	}

	values := make(map[string]value)
	seen := make(map[string]int)
	for i := 0; i < len(root.Content); i += 2 {
		section, body := root.Content[i], resolved(root.Content[i+1])
		if !isSection(section.Value) {
			return nil, fmt.Errorf("%s: unknown key %q%s", at(section), section.Value, suggestion(section.Value))
		}
		if body.Kind == yaml.ScalarNode && body.Tag == "!!null" {
			continue // a section whose lines are all commented out
		}
		if body.Kind != yaml.MappingNode {
			return nil, fmt.Errorf("%s: %s: expected keys, indented below it, found %s", at(body), section.Value, describe(body))
		}
		for j := 0; j < len(body.Content); j += 2 {
			name, node := body.Content[j], resolved(body.Content[j+1])
			key := section.Value + "." + name.Value
			s := find(key)
			if s == nil {
				return nil, fmt.Errorf("%s: unknown key %q%s", at(name), key, suggestion(key))
			}
			if first, twice := seen[key]; twice {
				return nil, fmt.Errorf("%s: %s was set in line %d already", at(name), key, first)
			}
			seen[key] = name.Line
			text, err := s.scalar(node)
			if err == nil {
				err = s.validate(text)
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %s: %w", at(node), key, err)
			}
			values[key] = value{text: text, origin: origin{kind: "file", name: path, line: name.Line}}
		}
	}
	return values, nil
}

// scalar returns the text of a YAML value of s's type, or says what it is instead.
func (s *setting) scalar(n *yaml.Node) (string, error) {
	wrong := func() (string, error) {
		if s.redact != nil {
			return "", fmt.Errorf("expected %s", s.expected())
		}
		return "", fmt.Errorf("expected %s, found %s", s.expected(), describe(n))
	}
	if n.Kind != yaml.ScalarNode {
		return wrong()
	}
	switch {
	case n.Tag == "!!null":
		return "", fmt.Errorf("expected %s, found nothing; remove the line to use the default", s.expected())
	case s.kind == word && n.Tag == "!!bool" && slices.Contains(s.choices, "yes"):
		// YAML 1.1's yes and no are true and false to some tools that write YAML.
		if b, _ := strconv.ParseBool(n.Value); b {
			return "yes", nil
		}
		return "no", nil
	case s.kind == number && n.Tag == "!!int":
		var i int
		if err := n.Decode(&i); err != nil {
			return wrong()
		}
		return strconv.Itoa(i), nil
	case s.kind == number, n.Tag != "!!str":
		return wrong()
	}
	return n.Value, nil
}

func (s *setting) expected() string {
	switch s.kind {
	case word:
		return alternatives(s.choices)
	case number:
		return "a whole number"
	case duration:
		return "a duration such as " + someDurations
	}
	return "text"
}

func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "keys and values"
	case yaml.SequenceNode:
		return "a list"
	}
	if n.Tag == "!!null" {
		return "nothing"
	}
	if r := []rune(n.Value); len(r) > 40 {
		return strconv.Quote(string(r[:40])) + "…"
	}
	return strconv.Quote(n.Value)
}

func resolved(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func isSection(name string) bool {
	return slices.ContainsFunc(settings, func(s setting) bool { return strings.HasPrefix(s.key, name+".") })
}

// suggestion names the key that is nearest to an unknown one.
func suggestion(unknown string) string {
	best, distance := "", len(unknown)/2+1
	consider := func(key string) {
		if d := editDistance(strings.ToLower(unknown), key); d < distance {
			best, distance = key, d
		}
	}
	for _, s := range settings {
		section, name, _ := strings.Cut(s.key, ".")
		consider(s.key)
		if !strings.Contains(unknown, ".") {
			consider(section)
			if editDistance(unknown, name) == 0 {
				best, distance = s.key, 0
			}
		}
	}
	if best == "" {
		return "; see waymark config print"
	}
	return "; did you mean " + best + "?"
}

// editDistance is Levenshtein's, over bytes.
func editDistance(a, b string) int {
	if len(a) > 100 {
		a = a[:100]
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// require says which of the servers' URLs is not set.
func (c *config) require(keys ...string) error {
	for _, key := range keys {
		if s := find(key); c.values[key].text == "" {
			return usage("%s is not set: give --%s, %s or the key in waymark.yaml, or try everything with waymark dev", key, s.flag(), s.env())
		}
	}
	return nil
}

func (c *config) topology() broker.Topology { return broker.Topology(c.Broker.Topology) }

func (c *config) queues() broker.Queues {
	return broker.Queues{Status: c.Broker.StatusQueue, Submission: c.Broker.SubmissionQueue}.WithDefaults()
}

func (c *config) limits() schemas.Limits { return schemas.Limits{MaxBytes: c.Consumer.MaxMessageBytes} }

// consumesSubmissions answers consumer.submissions.
func (c *config) consumesSubmissions() bool {
	return c.Consumer.Submissions == "yes" || (c.Consumer.Submissions == "auto" && c.topology() != broker.Reana)
}

// brokerURL is broker.url with the files of the other settings, which each
// connect reads anew. They are read here too, so that a mistake is told at once.
func (c *config) brokerURL() (string, error) {
	whole, err := broker.WithFiles(c.Broker.URL, c.passwordFile("broker", c.Broker.URL, c.Broker.PasswordFile), c.Broker.TLSCA, c.Broker.TLSCert, c.Broker.TLSKey)
	if err == nil {
		err = broker.CheckFiles(whole)
	}
	if err != nil {
		return "", &exitError{code: exitUsage, err: err}
	}
	return whole, nil
}

// passwordFile is the password file of a section, empty where the URL has a
// password and comes from where it counts more: a variable of the environment
// replaces what a file says of the server, the password with it.
func (c *config) passwordFile(section, server, file string) string {
	rank := func(key string) int {
		return slices.Index([]string{"default", "file", "env", "flag"}, c.values[key].origin.kind)
	}
	u, err := url.Parse(server)
	if err != nil || u.User == nil || rank(section+".url") <= rank(section+".password_file") {
		return file
	}
	if _, ok := u.User.Password(); !ok {
		return file
	}
	return ""
}

// databaseURL is database.url with the files of the other settings, which each
// connect reads anew.
func (c *config) databaseURL() (string, error) {
	return store.WithFiles(c.Database.URL, c.passwordFile("database", c.Database.URL, c.Database.PasswordFile), c.Database.TLSCA, c.Database.TLSCert, c.Database.TLSKey)
}

// publisher returns the publisher's configuration.
func (c *config) publisher(logger *slog.Logger) (publisher.Config, error) {
	url, err := c.brokerURL()
	if err != nil {
		return publisher.Config{}, err
	}
	return publisher.Config{
		Encoding: publisher.Encoding(c.Publisher.Encoding),
		Logger:   logger,
		Queues:   c.queues(),
		Topology: c.topology(),
		URL:      url,
		Window:   c.Publisher.Window,
	}, nil
}

// store returns the database's configuration.
func (c *config) store(logger *slog.Logger) store.Config {
	url, err := c.databaseURL()
	if err != nil {
		url = c.Database.URL // check has said what is wrong
	}
	return store.Config{
		ApplicationName:  "waymark",
		Logger:           logger,
		MaxConnections:   c.Database.MaxConnections,
		MaxRunLogBytes:   c.Consumer.MaxRunLogBytes,
		Now:              crashpoint.Now,
		Schema:           c.Database.Schema,
		URL:              url,
		UnknownWorkflows: store.UnknownPolicy(c.Consumer.UnknownWorkflows),
	}
}

// openStore opens the configured database. It does not connect.
func (c *config) openStore(ctx context.Context, logger *slog.Logger) (*store.DB, error) {
	db, err := store.Open(ctx, c.store(logger))
	if err != nil {
		return nil, &exitError{code: exitUsage, err: err}
	}
	return db, nil
}

// logger returns the logger of a command. One that ends by itself is brief: it
// speaks of what went wrong, unless the level was chosen.
func (a *app) logger(c *config, brief bool) *slog.Logger { return a.loggerTo(a.stderr, c, brief) }

func (a *app) loggerTo(w io.Writer, c *config, brief bool) *slog.Logger {
	var level slog.Level
	// The table of settings allows no other words than slog's.
	_ = level.UnmarshalText([]byte(c.Log.Level))
	if brief && c.values["log.level"].origin.kind == "default" {
		level = slog.LevelWarn
	}
	options := &slog.HandlerOptions{Level: level}
	if c.Log.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
