package nextflow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"waymark/engines"
	"waymark/engines/enginetest"
	"waymark/workflow"
)

func TestMain(m *testing.M) { enginetest.Main(m) }

// live is the stand-in under supervision.
type live struct {
	engines.Supervision
	console *enginetest.Console
	run     *enginetest.Run
}

func newLive(t *testing.T, recording string, options ...string) *live {
	t.Helper()
	folder, id := t.TempDir(), uuid.New()
	l := &live{run: enginetest.NewRun(id), console: enginetest.NewConsole(t)}
	l.Supervision = engines.Supervision{
		Adapter: Adapter{},
		Args:    append([]string{enginetest.Path(t, recordings+"/fake/nextflow"), "run", enginetest.Path(t, filepath.Join(recordings, recording))}, options...),
		Dir:     folder, Env: append(os.Environ(), "NXF_HOME="+filepath.Join(folder, "home")),
		Grace: 20 * time.Second, Interval: -1, Publisher: l.run, WorkflowID: id,
	}
	l.console.Attach(&l.Supervision)
	return l
}

func (l *live) supervise(ctx context.Context, t *testing.T) (engines.Outcome, enginetest.View) {
	t.Helper()
	out, err := engines.Supervise(ctx, l.Supervision)
	if err != nil {
		t.Fatalf("supervising: %v", err)
	}
	return out, l.run.View()
}

func want(t *testing.T, out engines.Outcome, v enginetest.View, status workflow.Status, code int, counts workflow.Counts) {
	t.Helper()
	if out.Status != status || v.Status() != status || v.Ends != 1 {
		t.Errorf("the run ended as %v (%s), and for a consumer as %v with %d ends; wanted %v", out.Status, out.Reason, v.Status(), v.Ends, status)
	}
	if out.ExitCode != code {
		t.Errorf("the exit code is %d, wanted %d", out.ExitCode, code)
	}
	if diff := cmp.Diff(counts, v.Counts()); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
}

func TestLive(t *testing.T) {
	t.Parallel()
	l := newLive(t, "error", "--exit", "7", "--work", filepath.Join(t.TempDir(), "work"))
	out, v := l.supervise(t.Context(), t)
	want(t, out, v, workflow.StatusFailed, 7, workflow.Counts{Total: 2, Finished: 1, Failed: 1})
	if log := v.JobLogs["FIT"]; log != "printed by task 2 \uFFFD\n" {
		t.Errorf("the log of the failed task is %q, wanted what it printed", log)
	}
	if !strings.Contains(out.Reason, "terminated with an error exit status (7)") {
		t.Errorf("the reason is %q, wanted what Nextflow says", out.Reason)
	}
}

func TestLiveRetry(t *testing.T) {
	t.Parallel()
	out, v := newLive(t, "retry").supervise(t.Context(), t)
	want(t, out, v, workflow.StatusFinished, 0, workflow.Counts{Total: 2, Finished: 2})
	if got := v.ByName["GENERATE (ttbar)"]; got.Attempt != 2 || got.Path != "" || got.StartedAt.IsZero() {
		t.Errorf("the job that was repeated is %+v, wanted attempt 2", got)
	}
}

// Tasks from the cache are only in the trace file, ours or the user's own.
func TestLiveCached(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	script := filepath.Join(folder, "main.nf")
	if err := os.WriteFile(script, []byte("process FIT { 'true' }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, options := range [][]string{{"-resume", script}, {"-resume", "-with-trace", filepath.Join(folder, "mine.txt")}} {
		t.Run(strings.Join(options[:len(options)-1], " "), func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(folder, "mine.txt"), []byte("task_id\tstatus\tname\n9\tCACHED\tof another run\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			out, v := newLive(t, "resume-cached", options...).supervise(t.Context(), t)
			want(t, out, v, workflow.StatusFinished, 0, workflow.Counts{Total: 3, Finished: 3, Cached: 2})
		})
	}
}

// A receiver of the user's own gets every post, in order, and what it answers.
func TestLiveForwards(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var got []string
	users := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if p, e := parsePost(body); err == nil && e == nil {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, string(p.Event))
			if len(got) == 2 {
				w.WriteHeader(http.StatusTeapot)
			}
		}
	}))
	defer users.Close()
	for _, how := range []string{"option", "configuration"} {
		got = nil
		l := newLive(t, "retry")
		if how == "option" {
			l.Args = append(l.Args, "-with-weblog", users.URL)
		} else if err := os.WriteFile(filepath.Join(l.Dir, "nextflow.config"), []byte("// weblog.url = 'x'\nweblog {\n  enabled = true\n  url = '"+users.URL+"'\n}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		out, v := l.supervise(t.Context(), t)
		want(t, out, v, workflow.StatusFinished, 0, workflow.Counts{Total: 2, Finished: 2})
		wanted := []string{"started", "process_submitted", "process_started", "process_completed", "process_submitted", "process_started",
			"process_completed", "process_submitted", "process_started", "process_completed", "completed"}
		if diff := cmp.Diff(wanted, got); diff != "" {
			t.Errorf("%s: the posts that the user's receiver got (-want +got):\n%s", how, diff)
		}
		if text := l.console.Stderr(); strings.Count(text, "WARN") != 1 || !strings.Contains(text, "418") {
			t.Errorf("%s: standard error is %q, wanted one warning of what the receiver answered", how, text)
		}
	}
}

func TestLiveStopped(t *testing.T) {
	t.Parallel()
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		l := newLive(t, "ok", "--hold")
		out, v := l.run.SuperviseUntil(t, l.Supervision, "running", func(v enginetest.View) bool { return v.Counts().Running == 1 }, func(stop context.CancelCauseFunc) {
			stop(&engines.StopError{Signal: signal})
		})
		if out.Status != workflow.StatusStopped || v.Status() != workflow.StatusStopped || v.Counts().Stopped != 1 {
			t.Errorf("%v: the run ended as %v with %+v, wanted stopped with one job stopped", signal, out.Status, v.Counts())
		}
	}
}

// What cannot be watched runs as it would without us.
func TestLiveUnwatched(t *testing.T) {
	t.Parallel()
	l := newLive(t, "ok", "--exit", "3")
	l.Args = []string{"sh", "-c", strings.Join(l.Args, " ")}
	out, v := l.supervise(t.Context(), t)
	want(t, out, v, workflow.StatusFailed, 3, workflow.Counts{})
	if !strings.Contains(l.console.Logged(), "runs unwatched") {
		t.Errorf("the log is %q, wanted a warning", l.console.Logged())
	}
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("main.nf", "process A { 'true' }")
	write("contained.nf", "process A {\n  container 'x'\n}")
	traced := write("traced.config", "trace { enabled = true; file = 'x' }")
	weblog := write("weblog.config", "weblog { enabled = true; url = \"${params.url}\" }")
	disabled := write("disabled.config", "weblog { enabled = false; url = \"${params.url}\" }")
	write("home/assets/nf-core/hla/nextflow.config", "trace { enabled = true }")
	write("home/assets/nf-core/hla/main.nf", "")

	const url = "URL"
	for _, tc := range []struct {
		args []string
		want []string // nil: not reported
		err  string
	}{
		{[]string{"nextflow", "run", "main.nf"}, []string{"nextflow", "run", "-with-weblog", url, "main.nf"}, ""},
		{[]string{"nextflow", "main.nf", "--x", "1"}, []string{"nextflow", "main.nf", "-with-weblog", url, "--x", "1"}, ""},
		{[]string{"/opt/nextflow-24.10.0-all", "-log", "run", "run", "-"}, []string{"/opt/nextflow-24.10.0-all", "-log", "run", "run", "-", "-with-weblog", url}, ""},
		{[]string{"srun", "nextflow", "-q", "run", "nf-core/hla", "-resume"}, []string{"srun", "nextflow", "-q", "run", "-with-weblog", url, "nf-core/hla", "-resume"}, ""},
		{[]string{"nextflow", "run", "main.nf", "-with-weblog", "http://mine:1/x", "-ansi-log", "false"}, []string{"nextflow", "run", "main.nf", "-with-weblog", url, "-ansi-log", "false"}, ""},
		{[]string{"nextflow", "run", "main.nf", "-with-weblog", "-resume", "-with-docker"}, []string{"nextflow", "run", "main.nf", "-with-weblog", url, "-resume", "-with-docker"}, ""},
		{[]string{"nextflow", "run", "main.nf", "-resume"}, []string{"nextflow", "run", "-with-trace", "TRACE", "-with-weblog", url, "main.nf", "-resume"}, ""},
		{[]string{"nextflow", "run", "contained.nf", "-resume"}, []string{"nextflow", "run", "-with-weblog", url, "contained.nf", "-resume"}, ""},
		{[]string{"nextflow", "-c", traced, "run", "main.nf", "-resume"}, []string{"nextflow", "-c", traced, "run", "-with-weblog", url, "main.nf", "-resume"}, ""},
		{[]string{"nextflow", "run", "main.nf", "-resume", "-profile", "x"}, []string{"nextflow", "run", "-with-weblog", url, "main.nf", "-resume", "-profile", "x"}, ""},
		{[]string{"nextflow", "run", "main.nf", "-c", disabled}, []string{"nextflow", "run", "-with-weblog", url, "main.nf", "-c", disabled}, ""},
		{[]string{"nextflow", "run", "main.nf", "-c", weblog}, nil, "a weblog of its own"},
		{[]string{"nextflow", "run", "main.nf", "-with-weblog", "mine"}, nil, "expected an http"},
		{[]string{"srun", "nextflow", "run", "main.nf", "-with-weblog", "http://mine:1/x"}, nil, "stay as they are"},
		{[]string{"nextflow", "run", "main.nf", "-offline"}, nil, "offline"},
		{[]string{"nextflow", "kuberun", "x"}, nil, "cluster"},
		{[]string{"sh", "-c", "nextflow run main.nf"}, nil, "command line of nextflow"},
		{[]string{"make", "run"}, nil, "command line of nextflow"},
		{[]string{"nextflow", "pull", "x"}, nil, ""},
		{[]string{"nextflow", "-version"}, nil, ""},
		{[]string{"nextflow", "run", "main.nf", "-preview"}, nil, ""},
		{[]string{"nextflow", "-bg", "run", "main.nf"}, nil, ""},
	} {
		l := &engines.Launch{
			Args: tc.args, Dir: folder, Temp: t.TempDir(), Env: []string{"NXF_HOME=" + filepath.Join(folder, "home"), "no_proxy=x"},
			WorkflowID: uuid.New(), Logger: slog.New(slog.DiscardHandler),
		}
		w, err := Adapter{}.Prepare(t.Context(), l)
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) || !slices.Equal(l.Args, tc.args) {
				t.Errorf("%q: the error is %v with %q, wanted %q and nothing changed", tc.args, err, l.Args, tc.err)
			}
			continue
		}
		if err != nil || (w.Reducer != nil) != (tc.want != nil) {
			t.Errorf("%q: watched is %v (%v), wanted %v", tc.args, w.Reducer != nil, err, tc.want != nil)
			continue
		}
		if tc.want == nil {
			if !slices.Equal(l.Args, tc.args) {
				t.Errorf("%q became %q, and nothing is watched", tc.args, l.Args)
			}
			continue
		}
		got := slices.Clone(l.Args)
		for i, a := range got {
			if strings.HasPrefix(a, "http://127.0.0.1:") {
				got[i] = url
			} else if strings.HasPrefix(a, l.Temp) {
				got[i] = "TRACE"
			}
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", tc.args, diff)
		}
		if l.Getenv("no_proxy") != "x,127.0.0.1" {
			t.Errorf("%q: no_proxy is %q, wanted this machine in it", tc.args, l.Getenv("no_proxy"))
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		for _, s := range w.Sources { // gives the port back
			_ = s(ended, func(engines.Event) {})
		}
	}
}

func TestTaskLogs(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	log := filepath.Join(folder, ".command.log")
	secret := filepath.Join(folder, "secret")
	for name, make := range map[string]func() error{
		"link": func() error { return os.Symlink(secret, log) },
		"pipe": func() error { return syscall.Mkfifo(log, 0o600) },
		"dir":  func() error { return os.Mkdir(log, 0o700) },
		"none": func() error { return nil },
	} {
		if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := make(); err != nil {
			t.Fatal(err)
		}
		if got := taskLog(&trace{TaskID: "1", Workdir: text(folder)}); got != nil {
			t.Errorf("with a %s for a log %q was read", name, got)
		}
		_ = os.Remove(log)
	}
	if err := os.WriteFile(log, []byte(strings.Repeat("x", 1<<20)+"\nend\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for status, most := range map[text]int{"FAILED": failedLog, "COMPLETED": otherLog} {
		got := taskLog(&trace{TaskID: "1", Workdir: text(folder), Status: status})
		if !strings.HasSuffix(string(got), `\nend\n","task_id":"1"}`) || len(got) > most+200 {
			t.Errorf("the log of a task that is %s has %d bytes and ends with %.40q", status, len(got), fmt.Sprint(string(got[max(0, len(got)-40):])))
		}
	}
}

// A trace file of an earlier run is not that of this one, however Nextflow
// replaces it.
func TestFollow(t *testing.T) {
	t.Parallel()
	const old = "task_id\tstatus\n9\tCACHED\n"
	for name, replace := range map[string]func(path string) error{
		"not at all": func(string) error { return nil },
		"moves it": func(path string) error {
			return errors.Join(os.Rename(path, path+".1"), os.WriteFile(path, []byte("new\nha"), 0o600))
		},
		"overwrites": func(path string) error { return os.WriteFile(path, []byte("new\nha"), 0o600) },
		"makes it new": func(path string) error {
			return errors.Join(os.Remove(path), os.WriteFile(path, []byte("new\nha"), 0o600))
		},
	} {
		path := filepath.Join(t.TempDir(), "trace.txt")
		if err := os.WriteFile(path, []byte(old), 0o600); err != nil {
			t.Fatal(err)
		}
		source := follow(path)
		if err := replace(path); err != nil {
			t.Fatal(err)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		var got []string
		if err := source(ended, func(e engines.Event) { got = append(got, string(e.Line)) }); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var want []string
		if name != "not at all" {
			want = []string{"new", "ha"}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("when Nextflow replaces the file (%s) its lines are (-want +got):\n%s", name, diff)
		}
	}
}
