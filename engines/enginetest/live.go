package enginetest

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"waymark/engines"
)

// Main runs the tests of a package that has live ones: it lets the test program
// be the relay of an engine's standard error, too, and engines be interrupted.
// Call it from TestMain.
func Main(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == relayArgument {
		engines.Relay()
		return
	}
	if signal.Ignored(os.Interrupt) {
		// As for what a script starts in the background. The engine would inherit it.
		signal.Notify(make(chan os.Signal, 1), os.Interrupt)
	}
	os.Exit(m.Run())
}

const relayArgument = "relay"

// Console is what a live run reads and writes instead of a terminal.
type Console struct {
	t              testing.TB
	null           *os.File
	stdout, stderr *os.File
	logged         buffer
}

// NewConsole returns a Console with nothing on it. If the test fails it shows
// what came to be there.
func NewConsole(t testing.TB) *Console {
	t.Helper()
	folder := t.TempDir()
	open := func(path string, flag int) *os.File {
		t.Helper()
		f, err := os.OpenFile(path, flag, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	const fresh = os.O_RDWR | os.O_CREATE | os.O_EXCL
	c := &Console{t: t, null: open(os.DevNull, os.O_RDONLY)}
	c.stdout, c.stderr = open(filepath.Join(folder, "stdout"), fresh), open(filepath.Join(folder, "stderr"), fresh)
	t.Cleanup(func() {
		if t.Failed() {
			text := c.Stderr()
			t.Logf("the log:\n%s\nthe end of standard error:\n%s", c.Logged(), text[max(len(text)-5000, 0):])
		}
	})
	return c
}

// Attach gives the console, and the relay that Main is, to a run.
func (c *Console) Attach(s *engines.Supervision) {
	s.Stdin, s.Stdout, s.Stderr = c.null, c.stdout, c.stderr
	s.Logger = slog.New(slog.NewTextHandler(&c.logged, nil))
	s.Relay = []string{os.Args[0], relayArgument}
}

// Stdout and Stderr are what was written so far; Logged is what the user was told.
func (c *Console) Stdout() string { return c.text(c.stdout) }

// Stderr is standard error; see [Console.Stdout].
func (c *Console) Stderr() string { return c.text(c.stderr) }

// Logged is what the user was told; see [Console.Stdout].
func (c *Console) Logged() string { return c.logged.String() }

func (c *Console) text(f *os.File) string {
	c.t.Helper()
	// By name: reading must not move the place at which the engine writes.
	b, err := os.ReadFile(f.Name())
	if err != nil {
		c.t.Errorf("reading what was written: %v", err)
	}
	return string(b)
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

// SuperviseUntil supervises an engine, acts once the run is as wanted, and waits
// for the end.
func (r *Run) SuperviseUntil(t testing.TB, s engines.Supervision, what string, is func(View) bool, act func(stop context.CancelCauseFunc)) (engines.Outcome, View) {
	t.Helper()
	ctx, stop := context.WithCancelCause(context.WithoutCancel(t.Context()))
	var out engines.Outcome
	var err error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		out, err = engines.Supervise(ctx, s)
	}()
	defer func() { // also if the wait below fails the test
		stop(nil)
		<-ended
	}()
	v, wanted := r.until(t, what, is, ended)
	if wanted {
		act(stop)
	}
	<-ended
	switch {
	case err != nil:
		t.Fatalf("supervising: %v", err)
	case !wanted:
		t.Fatalf("the run ended as %v (%s) with %+v, and was never %s", out.Status, out.Reason, v.Counts(), what)
	}
	return out, r.View()
}

// Path is the absolute path of a file that is named from the folder of the test,
// for engines that run in another one.
func Path(t testing.TB, name string) string {
	t.Helper()
	path, err := filepath.Abs(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Expected reads expected.json beside a recording.
func Expected[T any](t testing.TB, folder string) (want T) {
	t.Helper()
	path := filepath.Join(folder, "expected.json")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(content, &want); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return want
}

// IDs are the ids of an engine's jobs of these stable names, sorted.
func IDs(engine string, names []string) []string {
	all := []string{}
	for _, name := range names {
		all = append(all, engines.JobID(WorkflowID, engine, name))
	}
	slices.Sort(all)
	return all
}
