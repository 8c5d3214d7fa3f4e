package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"waymark/internal/servicetest"
)

func TestMain(m *testing.M) {
	if os.Getenv(programVariable) != "" || len(os.Args) > 1 && os.Args[1] == relayName {
		main()
	}
	// A configuration of the machine is none of the tests' business.
	standardFiles = []string{"waymark.yaml"}
	servicetest.Main(m)
}

// outcome is what a run of the program did.
type outcome struct {
	code           int
	args           []string
	stdout, stderr string
}

// environment is what the program under test sees of its environment.
type environment map[string]string

func (e environment) getenv(name string) string { return e[name] }

func (e environment) run(t testing.TB, args ...string) outcome {
	t.Helper()
	return e.runWith(t.Context(), "", args...)
}

func (e environment) runWith(ctx context.Context, stdin string, args ...string) outcome {
	var stdout, stderr buffer
	code := run(ctx, args, e.getenv, strings.NewReader(stdin), &stdout, &stderr)
	return outcome{code: code, args: args, stdout: stdout.String(), stderr: stderr.String()}
}

// want fails the test unless the program ended with code.
func (o outcome) want(t testing.TB, code int) outcome {
	t.Helper()
	if o.code != code {
		t.Fatalf("waymark %q ended with %d, want %d\nstdout: %s\nstderr: %s", o.args, o.code, code, o.stdout, o.stderr)
	}
	return o
}

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func writeFile(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestEveryCommandIsDocumented(t *testing.T) {
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		for what, text := range map[string]string{"Short": cmd.Short, "Long": cmd.Long, "Example": cmd.Example} {
			if text == "" {
				t.Errorf("%q has no %s", cmd.CommandPath(), what)
			}
		}
		if strings.HasSuffix(cmd.Short, ".") || len(cmd.Short) > 70 {
			t.Errorf("%q: Short %q ends with a full stop or is longer than 70 characters", cmd.CommandPath(), cmd.Short)
		}
		for line := range strings.SplitSeq(cmd.Long, "\n") {
			if len([]rune(line)) > 85 || cmd.GroupID == "read" && len([]rune(line)) > helpWidth {
				t.Errorf("%q: a line of Long does not fit a terminal: %q", cmd.CommandPath(), line)
			}
		}
		if cmd.RunE != nil && cmd.HasSubCommands() && cmd.Args == nil && cmd.HasParent() {
			// A group says itself what is wrong with arguments.
			if err := group(cmd, []string{"nonsense"}); err == nil {
				t.Errorf("%q accepts the subcommand nonsense", cmd.CommandPath())
			}
		}
		for line := range strings.SplitSeq(hung(strings.TrimRight(cmd.Flags().FlagUsages(), "\n")), "\n") {
			if len([]rune(line)) > helpWidth {
				t.Errorf("%q: the help of a flag does not fit a terminal: %q", cmd.CommandPath(), line)
			}
		}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if strings.TrimSpace(f.Usage) == "" {
				t.Errorf("%q: flag --%s is not documented", cmd.CommandPath(), f.Name)
			}
		})
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk((&app{}).root())
}

// The examples are what people copy: each must at least parse.
func TestExamplesParse(t *testing.T) {
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		for line := range strings.SplitSeq(cmd.Example, "\n") {
			_, command, found := strings.Cut(line, "waymark ")
			if !found {
				continue
			}
			for _, end := range []string{" |", " &&", " >", "  #"} {
				command, _, _ = strings.Cut(command, end)
			}
			words := strings.Fields(strings.ReplaceAll(command, "'", ""))
			sub, rest, err := (&app{}).root().Find(words)
			if err != nil {
				t.Errorf("example %q of %q: %v", line, cmd.CommandPath(), err)
				continue
			}
			if sub.Name() == "help" {
				continue
			}
			if err := sub.ParseFlags(rest); err != nil {
				t.Errorf("example %q of %q: %v", line, cmd.CommandPath(), err)
			}
			if err := sub.ValidateArgs(sub.Flags().Args()); err != nil {
				t.Errorf("example %q of %q: %v", line, cmd.CommandPath(), err)
			}
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk((&app{}).root())
}

func TestUsageErrors(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want string // all of standard error
	}{
		{"unknown command", []string{"statsu"}, `waymark: unknown command "statsu" for "waymark"; did you mean status?`},
		{"unknown subcommand", []string{"dead-letters", "replya"}, `waymark: unknown command "replya" for "waymark dead-letters"; did you mean replay?`},
		{"unknown flag", []string{"list", "--stat", "x"}, `waymark: unknown flag: --stat; see waymark list --help`},
		{"missing argument", []string{"status"}, `waymark: missing WORKFLOW; see waymark status --help`},
		{"a job without its flag", []string{"logs", "fit", "gendata"}, `waymark: unexpected argument "gendata" after WORKFLOW: a job is given with --job`},
		{"a workflow without its flag", []string{"run", "serial", "reana.yaml"}, `waymark: unexpected argument "reana.yaml": a file is given with -f, a parameter with -p`},
		{"a workflow without its engine", []string{"run", "my flow.yaml"}, `waymark: "my flow.yaml" is no engine: say which runs it, as in waymark run serial -f 'my flow.yaml', or waymark run script -- 'my flow.yaml'`},
		{"unknown engine", []string{"run", "serail"}, `waymark: unknown command "serail" for "waymark run"; did you mean serial?`},
		{"argument too many", []string{"status", "a", "b"}, `waymark: unexpected argument "b" after WORKFLOW; see waymark status --help`},
		{"hostile argument", []string{"version", "\x1b[2J"}, `waymark: unexpected argument "\x1b[2J"; see waymark version --help`},
		{"unknown status", []string{"list", "--status", "done"}, `waymark: --status: unknown status "done": expected one of created, running, finished, failed, deleted, stopped, queued, pending`},
		{"limit of none", []string{"list", "--limit", "0"}, `waymark: --limit: expected 1 to 1000, found 0; --all shows everything`},
		{"huge limit", []string{"list", "--limit", "99999999999999999999"}, `waymark: --limit: the number is too large`},
		{"negative limit", []string{"jobs", "fit", "--limit=-1"}, `waymark: --limit: expected 1 to 10000, found -1; --all shows everything`},
		{"huge tail", []string{"logs", "fit", "--tail", "99999999999999999999"}, `waymark: --tail: the number is too large`},
		{"tail of too many", []string{"logs", "fit", "--tail", "10001"}, `waymark: --tail: expected 1 to 10000 lines, found 10001`},
		{"tail of words", []string{"logs", "fit", "--tail", "few"}, `waymark: --tail: expected a whole number`},
		{"neither yes nor no", []string{"list", "--all=perhaps"}, `waymark: --all: expected true or false`},
		{"negative attempt", []string{"jobs", "fit", "--run-attempt=-1"}, `waymark: --run-attempt: expected 1 or more, found -1`},
		{"unknown format", []string{"list", "--output", "xml"}, `waymark: --output: unknown format "xml": expected "table", "json" or "jsonl"`},
		{"bad time", []string{"list", "--since", "yesterday"}, `waymark: --since: "yesterday" is not a time: expected how long ago, such as 30m, 24h or 7d, or a time such as 2026-01-31 or 2026-01-31T12:00:00Z`},
		{"bad label", []string{"list", "--label", "atlas"}, `waymark: --label: "atlas": expected KEY=VALUE`},
		{"setting that is no number", []string{"serve", "--consumer-batch-size", "many"}, `waymark: --consumer-batch-size: "many" is not a whole number`},
		{"database not set", []string{"list"}, `waymark: database.url is not set: give --database-url, WAYMARK_DATABASE_URL or the key in waymark.yaml, or try everything with waymark dev`},
		{"broker not set", []string{"dead-letters", "list"}, `waymark: broker.url is not set: give --broker-url, WAYMARK_BROKER_URL or the key in waymark.yaml, or try everything with waymark dev`},
		{"replay of nothing", []string{"dead-letters", "replay"}, `waymark: say which dead letters: by ID, with --reason, --pointer or --workflow, or with --all`},
		{"discard without a terminal", []string{"dead-letters", "discard", "--all"}, `waymark: discarding is for good: say --yes, as there is no terminal to ask on`},
		{"dev with a forgotten --", []string{"dev", "psql"}, `waymark: unexpected argument "psql": put -- before a command to run`},
		{"two formats", []string{"list", "--json", "--output", "table"}, `waymark: --json and --output table: give one of them`},
		{"logs of one job and of all", []string{"logs", "fit", "--job", "a", "--all-jobs"}, `waymark: --job and --all-jobs: give one of them`},
		{"wait for nothing", []string{"watch", "--wait"}, `waymark: --wait: name the workflows to wait for`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := environment{}.run(t, test.args...).want(t, exitUsage)
			if strings.TrimSuffix(got.stderr, "\n") != test.want {
				t.Errorf("waymark %q says on standard error\n  %swant\n  %s", test.args, got.stderr, test.want)
			}
			if got.stdout != "" {
				t.Errorf("waymark %q writes to standard output: %q", test.args, got.stdout)
			}
		})
	}
}

// A full disk under our output is not the database's fault.
func TestFullDisk(t *testing.T) {
	var stderr bytes.Buffer
	a := &app{stderr: &stderr}
	err := unreachable(fmt.Errorf("listing: %w", &fs.PathError{Op: "write", Path: os.Stdout.Name(), Err: syscall.ENOSPC}))
	if code := a.exitCode(t.Context(), err); code != exitFailed || !strings.Contains(stderr.String(), "no space left on device") {
		t.Errorf("a write to a full disk ends with %d and %q, want %d and the reason", code, stderr.String(), exitFailed)
	}
}

func TestErrorsAreOneLine(t *testing.T) {
	var stderr bytes.Buffer
	(&app{stderr: &stderr}).exitCode(t.Context(), errors.New("two things are wrong:\none\nanother"))
	if got, want := stderr.String(), "waymark: two things are wrong: one; another\n"; got != want {
		t.Errorf("an error of several lines is said as %q, want %q", got, want)
	}
}

func TestHelpGoesToStandardOutput(t *testing.T) {
	for _, args := range [][]string{{}, {"--help"}, {"help", "exit-codes"}, {"dead-letters"}, {"run", "serial", "--help"}, {"run", "script", "--help"}} {
		got := environment{}.run(t, args...).want(t, exitOK)
		if got.stdout == "" || got.stderr != "" {
			t.Errorf("waymark %q: help is on standard error, or missing: %q", args, got.stderr)
		}
	}
}

func TestVersion(t *testing.T) {
	text := environment{}.run(t, "version").want(t, exitOK).stdout
	if !strings.HasPrefix(text, "waymark ") || strings.Count(text, "\n") != 1 {
		t.Errorf("version = %q, want one line that begins with the name", text)
	}
	if got := (environment{}).run(t, "--version").want(t, exitOK); got.stdout != text || got.stderr != "" {
		t.Errorf("--version says %q and %q, want what version says, %q", got.stdout, got.stderr, text)
	}
	var v versionView
	decodeJSON(t, environment{}.run(t, "version", "--json").want(t, exitOK).stdout, &v)
	if v.Version == "" || !strings.HasPrefix(v.Go, "go") || !strings.Contains(v.Platform, "/") {
		t.Errorf("version --json = %+v, want version, Go and platform", v)
	}
}

func TestSchemas(t *testing.T) {
	names := strings.Fields(environment{}.run(t, "schemas").want(t, exitOK).stdout)
	if !slices.Contains(names, "jobs-status-message.schema.json") {
		t.Fatalf("schemas lists %q, want jobs-status-message.schema.json among them", names)
	}
	for _, name := range append(names, "jobs-status-message") {
		var schema map[string]any
		decodeJSON(t, environment{}.run(t, "schemas", name).want(t, exitOK).stdout, &schema)
		if schema["$schema"] == nil {
			t.Errorf("schemas %s prints no schema: %v", name, schema)
		}
	}
	got := environment{}.run(t, "schemas", "jobs").want(t, exitNotFound)
	if !strings.Contains(got.stderr, "workflow-submission-message") {
		t.Errorf("an unknown schema: stderr %q, want the names there are", got.stderr)
	}
}

func TestBrokenPipeIsNoError(t *testing.T) {
	a := &app{stderr: &buffer{}}
	pipe := &fs.PathError{Op: "write", Path: os.Stdout.Name(), Err: syscall.EPIPE}
	if code := a.exitCode(t.Context(), pipe); code != exitOK {
		t.Errorf("a reader that left: exit code %d, want 0", code)
	}
}
