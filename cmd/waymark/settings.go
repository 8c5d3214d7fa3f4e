package main

import (
	"fmt"
	"math"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"waymark/internal/broker"
	"waymark/workflow"
)

// setting is one thing that can be configured. The table of settings is the
// only place that knows them: flags, environment variables, the check of the
// file, "config print" and the table in the README all follow from it.
type setting struct {
	// key as in the file, section first: "broker.url".
	key  string
	kind kind
	// preset is the default.
	preset string
	// choices are the words allowed, for kind word.
	choices []string
	// least and most bound numbers; a most of 0 means none.
	least, most int
	// check says what else is wrong with a value, nil if nothing can be.
	check func(text string) error
	// redact returns a value fit to be shown; nil if values hold no secrets.
	redact func(text string) string
	// doc says what it is for, as one or more sentences in Markdown.
	doc string
}

type kind int

const (
	text kind = iota
	word
	number
	duration
)

func (k kind) String() string { return [...]string{"text", "word", "number", "duration"}[k] }

// settings in the order in which they are shown.
var settings = []setting{
	{key: "broker.url", check: broker.CheckURL, redact: redactBroker,
		doc: "RabbitMQ: `amqp://user:password@host:5672/vhost`, or `amqps://…` for TLS."},
	{key: "broker.password_file", doc: "File that holds the password alone, in place of one in the URL. Read at each connect, as are the files below."},
	{key: "broker.topology", kind: word, choices: []string{string(broker.Durable), string(broker.Reana)}, preset: string(broker.Durable),
		doc: "How the queues are declared. `reana` is exactly what REANA's components declare: use it to share queues with them."},
	{key: "broker.status_queue", preset: "jobs-status", doc: "Queue of status messages."},
	{key: "broker.submission_queue", preset: "workflow-submission", doc: "Queue of submissions."},
	{key: "broker.tls_ca", doc: "File of certificate authorities (PEM) to trust for `amqps`. Empty: the system's."},
	{key: "broker.tls_cert", doc: "File of the client certificate (PEM), if the broker wants one."},
	{key: "broker.tls_key", doc: "File of the client certificate's key (PEM)."},

	{key: "database.url", check: checkDatabaseURL, redact: redactDatabase,
		doc: "PostgreSQL: `postgres://user:password@host:5432/database`, or `host=… user=… dbname=…`. Without an `sslmode`, servers on other machines are verified as with `verify-full`."},
	{key: "database.password_file", doc: "File that holds the password alone, in place of one in the URL. Read at each connect, as are the files below."},
	{key: "database.schema", preset: "waymark", doc: "Schema that holds Waymark's tables and views. Created by `waymark migrate`."},
	{key: "database.max_connections", kind: number, preset: "8", least: 2, most: 1000, doc: "Most connections for reading. `serve` opens one more for each queue it consumes, `watch` and `logs --follow` one more to listen."},
	{key: "database.keep_runs", kind: duration, preset: "0s", doc: "How long `serve` keeps runs that have ended, from when they were last heard of. Then it deletes them with their jobs, logs and histories, one after the other: it looks at its start and every hour. `0s`: for ever."},
	{key: "database.tls_ca", doc: "File of certificate authorities (PEM) to trust. Empty: the system's."},
	{key: "database.tls_cert", doc: "File of the client certificate (PEM), if the database wants one."},
	{key: "database.tls_key", doc: "File of the client certificate's key (PEM)."},

	{key: "consumer.batch_size", kind: number, preset: "500", least: 1, most: 10_000, doc: "Most messages applied in one transaction."},
	{key: "consumer.prefetch", kind: number, preset: "2000", least: 1, most: 65_535, doc: "Messages the broker sends ahead of their acknowledgement."},
	{key: "consumer.linger", kind: duration, preset: "2ms", doc: "How long a batch that is not full waits for more while messages come fast. It never delays a single message."},
	{key: "consumer.drain_timeout", kind: duration, preset: "10s", doc: "How long `serve` works on what it holds when it is told to stop."},
	{key: "consumer.submissions", kind: word, choices: []string{"auto", "yes", "no"}, preset: "auto",
		doc: "Whether to consume submissions. `auto`: with topology `durable`, but not with `reana`, where they are the platform's."},
	{key: "consumer.unknown_workflows", kind: word, choices: []string{"create", "dead-letter"}, preset: "create",
		doc: "What becomes of a status message of a workflow not seen before: its row is created, or the message is dead-lettered."},
	{key: "consumer.max_message_bytes", kind: number, preset: "16777216", least: 1024, most: 512 << 20, doc: "Larger messages are dead-lettered unread."},
	{key: "consumer.max_held_bytes", kind: number, preset: "67108864", least: 1 << 20, most: 64 << 30,
		doc: "Memory that messages of one queue may take until they are acknowledged, about. Where they are large, fewer are asked for ahead than `consumer.prefetch`. For a moment it may be twice as much, and one message more."},
	{key: "consumer.max_log_bytes", kind: number, preset: "1048576", least: workflow.MinLogBytes, most: 512 << 20,
		doc: "What is kept of one piece of log in a message. Of a longer one head and tail are kept, with a mark that says how many bytes were cut."},
	{key: "consumer.max_run_log_bytes", kind: number, preset: "67108864", least: 1 << 16, most: 1 << 40,
		doc: "What is kept of all logs of one run, about: half of it from their beginning, half from their end. What was cut between is said in its place."},
	{key: "consumer.remember", kind: duration, preset: "30d", doc: "How long the ids of messages are remembered, by which a repeated one is known. Looked at as `database.keep_runs` is."},

	{key: "publisher.encoding", kind: word, choices: []string{"json", "reana"}, preset: "json",
		doc: "Form of the bodies. `reana`: JSON within a JSON string, for queues that a REANA consumer reads."},
	{key: "publisher.window", kind: number, preset: "1000", least: 1, most: 100_000, doc: "Messages sent ahead of their confirmation."},
	{key: "publisher.spool_dir", doc: "Folder where messages are kept on disk until the broker confirms them. Default for `run`: `waymark/spool` in `$XDG_STATE_HOME`, else in `~/.local/state`. `serve` delivers what is in it, if it is set."},
	{key: "publisher.spool_max_bytes", kind: number, preset: "67108864", least: 1 << 20, most: 1 << 40,
		doc: "What the spool may take. Then progress and logs are dropped, oldest first; submissions and ends of runs never are, and may take half as much again."},
	{key: "publisher.timeout", kind: duration, preset: "30s", doc: "How long `publish` and `dead-letters replay` wait for the broker in all before they give up."},

	{key: "http.listen", preset: "127.0.0.1:9464", check: checkListen,
		doc: "Address of `/healthz`, `/readyz` and `/metrics`. `off`: none. A port of 0 takes a free one."},
	{key: "http.weblog", kind: word, choices: []string{"auto", "on", "off"}, preset: "auto",
		doc: "Whether `POST /weblog/nextflow` takes what `nextflow run -with-weblog` posts, from all who can reach it. `auto`: if `http.listen` is reached from this machine alone."},

	{key: "log.level", kind: word, choices: []string{"debug", "info", "warn", "error"}, preset: "info",
		doc: "Least severity that is logged. Commands that end by themselves log from `warn`, unless told otherwise."},
	{key: "log.format", kind: word, choices: []string{"text", "json"}, preset: "text", doc: "Form of the log, which goes to standard error."},
}

// find returns the setting of a key, nil if there is none.
func find(key string) *setting {
	i := slices.IndexFunc(settings, func(s setting) bool { return s.key == key })
	if i < 0 {
		return nil
	}
	return &settings[i]
}

// envPrefix begins the name of every environment variable of ours.
const envPrefix = "WAYMARK_"

// env is the environment variable of s, such as WAYMARK_BROKER_URL.
func (s *setting) env() string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(s.key, ".", "_"))
}

// flag is the command-line flag of s, such as broker-url.
func (s *setting) flag() string {
	return strings.NewReplacer(".", "-", "_", "-").Replace(s.key)
}

// validate says what is wrong with a value, in words that follow the name of
// the setting.
func (s *setting) validate(value string) error {
	switch s.kind {
	case word:
		if !slices.Contains(s.choices, value) {
			return fmt.Errorf("unknown value %q: expected %s", value, alternatives(s.choices))
		}
	case number:
		n, err := strconv.Atoi(value)
		switch {
		case err != nil:
			return fmt.Errorf("%q is not a whole number", value)
		case n < s.least:
			return fmt.Errorf("%d is too small: the least is %d", n, s.least)
		case s.most > 0 && n > s.most:
			return fmt.Errorf("%d is too large: the most is %d", n, s.most)
		}
	case duration:
		d, err := parseDuration(value)
		switch {
		case err != nil:
			return fmt.Errorf("%q is not a duration: expected a number and a unit, such as %s", value, someDurations)
		case d < 0:
			return fmt.Errorf("%s is negative", d)
		}
	}
	if s.check != nil && value != "" {
		return s.check(value)
	}
	return nil
}

// someDurations names the units of parseDuration that people need.
const someDurations = "500ms, 10s, 2m, 24h or 30d"

var days = regexp.MustCompile(`^[0-9]+d$`)

// parseDuration reads a duration as Go writes them, or a number of days of 24
// hours, such as 30d: what is kept for long is not counted in hours.
func parseDuration(text string) (time.Duration, error) {
	if !days.MatchString(text) {
		return time.ParseDuration(text)
	}
	n, err := strconv.ParseInt(strings.TrimSuffix(text, "d"), 10, 64)
	if err != nil || n > int64(math.MaxInt64/(24*time.Hour)) {
		return 0, fmt.Errorf("%s is too long: the most is %dd", text, math.MaxInt64/(24*time.Hour))
	}
	return time.Duration(n) * 24 * time.Hour, nil
}

// shown is a value as people may see it.
func (s *setting) shown(value string) string {
	if s.redact != nil && value != "" {
		return s.redact(value)
	}
	return value
}

// alternatives lists words as in: "a", "b" or "c".
func alternatives(words []string) string {
	var b strings.Builder
	for i, w := range words {
		switch {
		case i == 0:
		case i == len(words)-1:
			b.WriteString(" or ")
		default:
			b.WriteString(", ")
		}
		b.WriteString(strconv.Quote(w))
	}
	return b.String()
}

func checkListen(address string) error {
	if address == "off" {
		return nil
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%q is not an address: expected HOST:PORT, such as 127.0.0.1:9464, or off", address)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return fmt.Errorf("%q has a port that is not a number of 0 to 65535", address)
	}
	return nil
}
