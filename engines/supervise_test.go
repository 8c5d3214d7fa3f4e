package engines

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/creack/pty"
	"golang.org/x/term"

	"waymark/workflow"
)

// The test program is the relay and the supervisor too, where a test needs them
// as processes of their own.
const roleVariable = "ENGINES_TEST_ROLE"

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleVariable); {
	case len(os.Args) > 1 && os.Args[1] == "relay":
		Relay()
	case role == "supervise":
		os.Unsetenv(roleVariable)
		out, err := Supervise(context.Background(), Supervision{Adapter: lineAdapter{}, Args: os.Args[1:], Relay: relayProgram()})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(99)
		}
		os.Exit(out.ExitCode)
	case role == "hook":
		c, err := net.Dial("unix", os.Getenv("HOOK"))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(98)
		}
		if _, err := c.Write([]byte(strings.Join(os.Args[1:], "\n") + "\n")); err != nil {
			os.Exit(97)
		}
		c.Close()
	default:
		os.Exit(m.Run())
	}
}

func relayProgram() []string { return []string{os.Args[0], "relay"} }

// lineAdapter reads lines such as "a running" and "a failed 3".
type lineAdapter struct {
	prepare func(*Launch) (Watch, error)
	stderr  bool
}

func (lineAdapter) Engine() string { return "lines" }

func (a lineAdapter) Prepare(_ context.Context, l *Launch) (Watch, error) {
	if a.prepare != nil {
		return a.prepare(l)
	}
	l.Setenv("HOOK", l.Socket)
	return Watch{Reducer: lineReducer{}, Stderr: a.stderr}, nil
}

type lineReducer struct{}

func (lineReducer) Apply(e Event, to Story) bool {
	name, state, ok := strings.Cut(string(e.Line), " ")
	if name == "panic" {
		panic("a mistake")
	}
	job := workflow.JobReport{ID: name, Name: name}
	state, text, coded := strings.Cut(state, " ")
	if coded {
		if code, err := strconv.Atoi(text); err == nil {
			job.ExitCode = &code
		}
	}
	status, err := workflow.ParseJobStatus(state)
	if !ok || err != nil {
		return false
	}
	job.Status = status
	to.Job(job)
	return true
}

func (lineReducer) End(Exit, Story) Ending { return Ending{} }

// folder is a Publisher that folds.
type folder struct {
	mu         sync.Mutex
	state      *workflow.State
	log        string
	submission *workflow.Submission
	changed    chan struct{}
}

func newFolder() *folder {
	return &folder{state: workflow.NewState(workflow.Run{ID: runID, Attempt: 1}), changed: make(chan struct{}, 1)}
}

func (f *folder) Status(_ context.Context, m *workflow.StatusMessage) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := *m
	f.state.Apply(&c)
	f.log += m.Logs
	select {
	case f.changed <- struct{}{}:
	default:
	}
	return nil
}

func (f *folder) Submission(_ context.Context, s *workflow.Submission) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.submission = s
	return nil
}

// until waits for something to be told.
func (f *folder) until(t *testing.T, what string, is func(*workflow.State) bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		f.mu.Lock()
		ok := is(f.state)
		f.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-f.changed:
		case <-deadline:
			t.Fatalf("%s: never told", what)
		}
	}
}

// supervision is a run whose outputs are files of the test.
type supervision struct {
	Supervision
	published      *folder
	stdout, stderr string // paths
	logged         *bytes.Buffer
}

func supervise(t *testing.T, args ...string) *supervision {
	t.Helper()
	dir := t.TempDir()
	s := &supervision{published: newFolder(), stdout: filepath.Join(dir, "stdout"), stderr: filepath.Join(dir, "stderr"), logged: &bytes.Buffer{}}
	open := func(path string) *os.File {
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { null.Close() })
	s.Supervision = Supervision{
		Adapter: lineAdapter{}, Args: args, Dir: dir, Interval: -1, Grace: 20 * time.Second,
		Env:       append(os.Environ(), "TELL="+roleVariable+"=hook "+os.Args[0]),
		Logger:    slog.New(slog.NewTextHandler(s.logged, nil)),
		Publisher: s.published, Relay: relayProgram(),
		Stdin: null, Stdout: open(s.stdout), Stderr: open(s.stderr), WorkflowID: runID,
	}
	return s
}

func (s *supervision) run(ctx context.Context, t *testing.T) Outcome {
	t.Helper()
	out, err := Supervise(ctx, s.Supervision)
	if err != nil {
		t.Fatalf("supervising %q: %v", s.Args, err)
	}
	return out
}

func (s *supervision) want(t *testing.T, out Outcome, status workflow.Status, code int) {
	t.Helper()
	if out.Status != status || out.ExitCode != code {
		t.Errorf("the run ended as %v with %d (%s), want %v with %d\nlog: %s", out.Status, out.ExitCode, out.Reason, status, code, s.logged)
	}
	if got := s.published.state.Run.Status(); got != status {
		t.Errorf("published was %v, want %v", got, status)
	}
	if out.Report.Unsent+out.Report.Dropped > 0 {
		t.Errorf("unsent or dropped messages: %+v", out.Report)
	}
}

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestSuperviseTellsJobs(t *testing.T) {
	s := supervise(t, "sh", "-c", `env $TELL "a running" "b running" "a finished"; printf 'out\0\377'; printf 'err\0\377\r' >&2; env $TELL "b failed"; exit 3`)
	out := s.run(t.Context(), t)
	s.want(t, out, workflow.StatusFailed, 3)
	if want := (Counts{Total: 2, Finished: 1, Failed: 1}); out.Counts != want {
		t.Errorf("the counts are %+v, want %+v", out.Counts, want)
	}
	if got := content(t, s.stdout); got != "out\x00\xff" {
		t.Errorf("standard output is %q, changed on the way", got)
	}
	if got := content(t, s.stderr); got != "err\x00\xff\r" {
		t.Errorf("standard error is %q, changed on the way", got)
	}
	if !strings.Contains(s.published.log, "exit code 3") || !strings.Contains(s.published.log, "err\uFFFD\uFFFD\r") {
		t.Errorf("the log of the run lacks the reason or the end of standard error:\n%s", s.published.log)
	}
	if s.published.submission == nil || s.published.submission.User == "" || s.published.submission.Engine != "lines" {
		t.Errorf("the submission is %+v", s.published.submission)
	}
	var doc map[string]any
	if err := json.Unmarshal(s.published.state.Run.EngineSpecific, &doc); err != nil || doc["exit_code"] != 3.0 {
		t.Errorf("engine_specific is %s (%v), want the exit code in it", s.published.state.Run.EngineSpecific, err)
	}
}

func TestSuperviseEndsJobsWithTheEngine(t *testing.T) {
	tests := []struct {
		name, script string
		status       workflow.Status
		code         int
		counts       Counts
	}{
		{"well", `env $TELL "a running"`, workflow.StatusFinished, 0, Counts{Total: 1, Finished: 1}},
		{"badly", `env $TELL "a running"; exit 1`, workflow.StatusFailed, 1, Counts{Total: 1, Failed: 1}},
		{"killed", `env $TELL "a running"; kill -9 $$`, workflow.StatusFailed, 137, Counts{Total: 1, Failed: 1}},
		{"well though a job failed", `env $TELL "a failed"`, workflow.StatusFailed, 0, Counts{Total: 1, Failed: 1}},
		{"half a line", `env $TELL "a running" "nonsense" "a finished"`, workflow.StatusFinished, 0, Counts{Total: 1, Finished: 1}},
		{"an adapter that panics", `env $TELL "a running" "panic now" "b running"`, workflow.StatusFinished, 0, Counts{Total: 1, Finished: 1}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := supervise(t, "sh", "-c", test.script)
			out := s.run(t.Context(), t)
			s.want(t, out, test.status, test.code)
			if out.Counts != test.counts {
				t.Errorf("the counts are %+v, want %+v", out.Counts, test.counts)
			}
			if strings.Contains(test.name, "panics") && !strings.Contains(s.logged.String(), "a mistake") {
				t.Errorf("nobody hears of the panic: %s", s.logged)
			}
		})
	}
}

func TestSuperviseStops(t *testing.T) {
	tests := []struct {
		name, script string
		hurry        bool
		graceful     bool
		code         int
	}{
		{"at once", `env $TELL "a running"; sleep 100`, false, false, 143},
		{"with an exit code", `trap 'exit 7' TERM; env $TELL "a running"; sleep 100 & wait`, false, false, 7},
		{"the engine alone", `trap 'kill $!; exit 8' TERM; env $TELL "a running"; sleep 100 & wait`, false, true, 8},
		{"deaf, in haste", `trap '' TERM; env $TELL "a running"; while :; do sleep 1; done`, true, false, 137},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := supervise(t, "sh", "-c", test.script)
			hurry := make(chan struct{})
			s.Hurry, s.Graceful = hurry, test.graceful
			ctx, cancel := context.WithCancelCause(t.Context())
			go func() {
				s.published.until(t, "that job a runs", func(state *workflow.State) bool { return state.Run.Jobs.Running == 1 })
				cancel(&StopError{Signal: syscall.SIGTERM})
				if test.hurry {
					close(hurry)
				}
			}()
			out := s.run(ctx, t)
			s.want(t, out, workflow.StatusStopped, test.code)
			if out.Counts.Stopped != 1 || out.Reason != "stopped by SIGTERM" {
				t.Errorf("ended with %+v, %q; want one stopped job and the signal's name", out.Counts, out.Reason)
			}
		})
	}
}

// What a killed engine leaves behind holds the outputs open, and must hold up
// nobody.
func TestSuperviseDoesNotWaitForLeftovers(t *testing.T) {
	s := supervise(t, "sh", "-c", `sleep 300 & echo $! >pid; env $TELL "a running"; kill -9 $$`)
	began := time.Now()
	out := s.run(t.Context(), t)
	took := time.Since(began)
	pid := 0
	fmt.Sscan(content(t, filepath.Join(s.Dir, "pid")), &pid)
	process, err := os.FindProcess(pid)
	if err != nil || process.Signal(syscall.Signal(0)) != nil {
		t.Error("what the engine left running was ended: it would have gone on without us")
	} else {
		process.Kill()
	}
	s.want(t, out, workflow.StatusFailed, 137)
	if took > 60*time.Second {
		t.Errorf("it took %v to see the end of an engine that ended at once", took)
	}
}

// What the signal did to the jobs is no failure of theirs; what they did before
// it is.
func TestSuperviseTellsStoppedJobsFromFailed(t *testing.T) {
	s := supervise(t, "sh", "-c", `trap 'env $TELL "b failed 143" "c failed" "d failed 7"; exit 1' TERM
		env $TELL "a failed 143" "b running" "c running" "d running"; sleep 100 & wait`)
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		s.published.until(t, "that job d runs", func(state *workflow.State) bool { return state.Run.Jobs.Running == 3 })
		cancel(&StopError{Signal: syscall.SIGTERM})
	}()
	out := s.run(ctx, t)
	s.want(t, out, workflow.StatusStopped, 1)
	if want := (Counts{Total: 4, Failed: 2, Stopped: 2}); out.Counts != want {
		t.Errorf("the counts are %+v, want %+v: a failed before, d of itself", out.Counts, want)
	}
}

func TestSuperviseTellsOfUnreadableEvents(t *testing.T) {
	s := supervise(t, "sh", "-c", `env $TELL "nonsense of mine" "more"`)
	s.want(t, s.run(t.Context(), t), workflow.StatusFinished, 0)
	if log := s.logged.String(); !strings.Contains(log, "events=2") || !strings.Contains(log, "nonsense of mine") {
		t.Errorf("the warning is %q, want how many there were and the first", log)
	}
}

func TestSuperviseProgramThatIsNotThere(t *testing.T) {
	s := supervise(t, "no-such-engine", "-j4")
	_, err := Supervise(t.Context(), s.Supervision)
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "no-such-engine") {
		t.Errorf("the error is %v, want one that names the program", err)
	}
	if s.published.submission != nil || s.published.log != "" {
		t.Error("a run that never began was reported")
	}
}

func TestSuperviseUnwatched(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(*Launch) (Watch, error)
		watched bool
	}{
		{"a dry run", func(l *Launch) (Watch, error) { return Watch{}, nil }, false},
		{"an adapter that cannot", func(l *Launch) (Watch, error) {
			l.Args = []string{"false"}
			l.Setenv("X", "changed")
			return Watch{}, errors.New("no python")
		}, true},
		{"an adapter that panics", func(*Launch) (Watch, error) { panic("a mistake") }, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := supervise(t, "sh", "-c", `test -z "$X" && echo done`)
			s.Adapter = lineAdapter{prepare: test.prepare}
			out := s.run(t.Context(), t)
			if got := content(t, s.stdout); out.ExitCode != 0 || got != "done\n" {
				t.Errorf("the engine ended with %d and %q, want as without an adapter", out.ExitCode, got)
			}
			if out.Watched != test.watched || (s.published.submission != nil) != test.watched {
				t.Errorf("watched: %v, submitted: %v; want %v", out.Watched, s.published.submission != nil, test.watched)
			}
			if test.watched {
				s.want(t, out, workflow.StatusFinished, 0)
				if !strings.Contains(s.logged.String(), "unwatched") {
					t.Errorf("nobody is told that jobs are missing: %s", s.logged)
				}
			}
		})
	}
}

func TestSuperviseLinesOfStandardError(t *testing.T) {
	s := supervise(t, "sh", "-c", `printf 'a run' >&2; printf 'ning\nb finished' >&2; printf '\na finished' >&2`)
	s.Adapter = lineAdapter{stderr: true}
	out := s.run(t.Context(), t)
	s.want(t, out, workflow.StatusFinished, 0)
	if want := (Counts{Total: 2, Finished: 2}); out.Counts != want {
		t.Errorf("the counts are %+v, want %+v", out.Counts, want)
	}
}

// An engine whose standard error would be a terminal has one, of the same size.
func TestSuperviseOnATerminal(t *testing.T) {
	s := supervise(t, "sh", "-c", `test -t 2 && stty size <&2 >&2; printf 'a\nb' >&2`)
	ours, theirs, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	defer theirs.Close()
	if _, err := term.MakeRaw(int(theirs.Fd())); err != nil {
		t.Fatal(err)
	}
	if err := pty.Setsize(ours, &pty.Winsize{Rows: 33, Cols: 77}); err != nil {
		t.Fatal(err)
	}
	s.Stderr = theirs
	s.want(t, s.run(t.Context(), t), workflow.StatusFinished, 0)
	const want = "33 77\na\nb"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(ours, got); err != nil || string(got) != want {
		t.Errorf("the terminal shows %q (%v), want %q", got, err, want)
	}
}

// Killed, the supervisor leaves an engine that can still write and end well.
func TestEngineOutlivesItsSupervisor(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "sh", "-c", `echo $$; read go <fifo; for i in $(seq 1000); do echo "line $i of what a chatty engine says" >&2 || exit 9; done; echo ended >end`)
	cmd.Env = append(os.Environ(), roleVariable+"=supervise")
	cmd.Dir = dir
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	stderr, err := os.Create(filepath.Join(dir, "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	cmd.Stderr = stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatalf("the engine never began: %v", err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if err := os.WriteFile(filepath.Join(dir, "fifo"), []byte("go\n"), 0); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for last := ""; !strings.Contains(last, "line 1000"); last = content(t, stderr.Name()) {
		if time.Now().After(deadline) {
			t.Fatalf("the engine could not write all after its supervisor was killed; standard error has %d bytes", len(last))
		}
		pause(t.Context(), 10*time.Millisecond)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "end")); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the engine did not end well after its supervisor was killed")
		}
		pause(t.Context(), 10*time.Millisecond)
	}
}

// stuck is a copy that nobody reads.
type stuck struct{ deadline time.Time }

func (s *stuck) SetWriteDeadline(at time.Time) error { s.deadline = at; return nil }
func (s *stuck) Write(p []byte) (int, error)         { return 0, os.ErrDeadlineExceeded }

type nowhere struct{}

func (nowhere) Write([]byte) (int, error) { return 0, syscall.EPIPE }

func TestRelayHoldsUpNobody(t *testing.T) {
	text := strings.Repeat("line\n", 100_000)
	var out bytes.Buffer
	relay(strings.NewReader(text), &out, &stuck{})
	if out.String() != text {
		t.Errorf("of %d bytes %d came through beside a copy that nobody reads", len(text), out.Len())
	}
	in := strings.NewReader(text)
	relay(in, nowhere{}, nil)
	if in.Len() > 0 {
		t.Errorf("%d bytes were left unread when the output was gone: the engine would hang", in.Len())
	}
}

func TestRecordIsARecording(t *testing.T) {
	s := supervise(t, "sh", "-c", `env $TELL "a running" '{"b": 1}' "a finished"; exit 4`)
	s.Record = filepath.Join(t.TempDir(), "rec")
	s.run(t.Context(), t)
	r, err := ReadRecording(s.Record)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, e := range r.Events {
		lines = append(lines, string(e.Line))
	}
	if got, want := strings.Join(lines, "|"), `a running|{"b":1}|a finished`; got != want {
		t.Errorf("the recording has %s, want %s", got, want)
	}
	if r.Exit.Code != 4 || len(r.Command) != 3 || r.Program() != "sh" {
		t.Errorf("the recording ends with %+v of %q", r.Exit, r.Command)
	}
}

func TestLines(t *testing.T) {
	text := "one\n\ntwo\r\n\x00\xff\nlast"
	for size := 1; size <= len(text); size++ {
		var got []string
		l := Lines{Emit: func(b []byte) { got = append(got, string(b)) }, Max: 4}
		for rest := text; rest != ""; rest = rest[min(size, len(rest)):] {
			_, _ = io.WriteString(&l, rest[:min(size, len(rest))])
		}
		if err := l.Close(); err != nil {
			t.Errorf("in pieces of %d: %v", size, err)
		}
		if all := strings.Join(got, "|"); all != "one||two\r|\x00\xff|last" {
			t.Errorf("in pieces of %d the lines are %q", size, all)
		}
	}
	var got []string
	l := Lines{Emit: func(b []byte) { got = append(got, string(b)) }, Max: 4}
	_, _ = io.WriteString(&l, "ok\nmuch too")
	_, _ = io.WriteString(&l, " long\nfine\n")
	if err := l.Close(); strings.Join(got, "|") != "ok|fine" || err == nil {
		t.Errorf("of a line that is too long the others are %q, the error %v", got, err)
	}
}

func TestPlay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		second := func(n int) time.Time { return time.Time{}.Add(time.Duration(n) * time.Second) }
		rec := &Recording{
			Command: []string{"engine", "-j 4"},
			Events: []Event{
				{At: second(2), Source: Hook, Line: []byte("a running")},
				{At: second(10), Source: Hook, Line: []byte("a finished")},
				{At: second(12), Source: Hook, Line: []byte("b running")},
			},
			Exit: Exit{Code: 1, Reason: "exit code 1"},
		}
		play := func(ctx context.Context, speed float64) (*folder, Outcome, time.Duration) {
			to, began := newFolder(), time.Now()
			out, err := Play(ctx, Playback{
				Engine: "lines", Publisher: to, Recording: rec, Reducer: lineReducer{}, Speed: speed,
				Submission: &workflow.Submission{User: "ada", Workflow: runID.String()},
			})
			if err != nil {
				t.Fatal(err)
			}
			return to, out, time.Since(began)
		}
		for speed, want := range map[float64]time.Duration{1: 12 * time.Second, 4: 3 * time.Second, 0: 0} {
			to, out, took := play(t.Context(), speed)
			if took != want {
				t.Errorf("at speed %v it took %v, want %v", speed, took, want)
			}
			if out.Status != workflow.StatusFailed || out.Counts != (Counts{Total: 2, Finished: 1, Failed: 1}) || to.state.Run.Status() != workflow.StatusFailed {
				t.Errorf("at speed %v it ended as %+v", speed, out)
			}
			if !strings.HasPrefix(to.log, "engine '-j 4'\n") {
				t.Errorf("the log begins with %q, want the command line", to.log)
			}
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(5*time.Second, func() { cancel(&StopError{Signal: syscall.SIGINT}) })
		_, out, took := play(ctx, 1)
		if out.Status != workflow.StatusStopped || out.Counts.Stopped != 1 || took != 5*time.Second {
			t.Errorf("stopped after 5 s it ended as %+v after %v", out, took)
		}
	})
}
