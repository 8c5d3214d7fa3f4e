package yadage

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
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

// interpreter is Debian's, as old or new as the tests' machine has it.
const interpreter = "/usr/bin/python3"

// live is the stand-in under supervision.
type live struct {
	engines.Supervision
	console *enginetest.Console
	run     *enginetest.Run
	work    string
}

func newLive(t *testing.T, scenario string) *live {
	t.Helper()
	folder, id := t.TempDir(), uuid.New()
	l := &live{run: enginetest.NewRun(id), work: filepath.Join(folder, "work"), console: enginetest.NewConsole(t)}
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "PYTHON") || strings.HasPrefix(v, "YADAGE") || strings.HasPrefix(v, "WAYMARK")
	})
	l.Supervision = engines.Supervision{
		Adapter: Adapter{},
		// Warnings would be errors, in the tracker too.
		Args: []string{interpreter, "-W", "error", enginetest.Path(t, recordings+"/fake/yadage_stub.py"), scenario, l.work},
		Dir:  folder, Env: append(env, "PYTHONDONTWRITEBYTECODE=1"),
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
	v := l.run.View()
	if out.Watched && v.Ends != 1 {
		t.Errorf("the run has %d ends for a consumer, wanted 1", v.Ends)
	}
	return out, v
}

func (l *live) want(t *testing.T, out engines.Outcome, status workflow.Status, code int, counts workflow.Counts) {
	t.Helper()
	v := l.run.View()
	if out.Status != status || v.Status() != status {
		t.Errorf("the run ended as %v (%s), and for a consumer as %v; wanted %v", out.Status, out.Reason, v.Status(), status)
	}
	if out.ExitCode != code {
		t.Errorf("the exit code is %d, wanted %d", out.ExitCode, code)
	}
	if diff := cmp.Diff(counts, v.Counts()); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
}

func TestLiveGrowth(t *testing.T) {
	t.Parallel()
	l := newLive(t, "ok")
	out, v := l.supervise(t.Context(), t)
	l.want(t, out, workflow.StatusFinished, 0, workflow.Counts{Total: 5, Finished: 5})
	merge := v.ByName["merge"]
	if merge.Path != "" || !strings.HasPrefix(merge.Command, "printf 'merged") || merge.ExitCode == nil || *merge.ExitCode != 0 ||
		merge.StartedAt.IsZero() || merge.FinishedAt.Before(merge.StartedAt) {
		t.Errorf("the job merge is %+v, wanted a path, a command, exit code 0 and its times", merge)
	}
	if got := v.JobLogs["merge"]; !strings.Contains(got, "merged \uFFFD\uFFFD\n") {
		t.Errorf("the log of merge is %q, wanted what it printed", got)
	}
	if got := v.ByName["skim"].Path; got != "select/0" {
		t.Errorf("the path of a job in a sub-workflow is %q", got)
	}
	if doc := string(v.EngineSpecific); !strings.Contains(doc, `"mode":"tracker"`) || !strings.Contains(doc, `"dag"`) {
		t.Errorf("engine_specific is %s, wanted the mode and the graph", doc)
	}
}

func TestLiveFailure(t *testing.T) {
	t.Parallel()
	l := newLive(t, "failing")
	out, v := l.supervise(t.Context(), t)
	l.want(t, out, workflow.StatusFailed, 1, workflow.Counts{Total: 3, Created: 1, Finished: 1, Failed: 1})
	bad := v.ByName["bad"]
	if bad.ExitCode == nil || *bad.ExitCode != 7 || !strings.Contains(bad.Diagnostics, "subprocess failed. code: 7") {
		t.Errorf("the failed job is %+v, wanted exit code 7 and why", bad)
	}
	if log := v.JobLogs["bad"]; !strings.Contains(log, "cannot open tree events") {
		t.Errorf("the log of the failed job is %q, wanted what it printed", log)
	}
	if out.Reason != "1 of 3 jobs failed: bad" {
		t.Errorf("the reason is %q", out.Reason)
	}
	if !strings.Contains(v.Log, "Error: Workflow failed") {
		t.Errorf("the log of the run is %q, wanted the end of standard error", v.Log)
	}
}

func TestLiveRulesThatNeverApply(t *testing.T) {
	t.Parallel()
	l := newLive(t, "noinit")
	out, _ := l.supervise(t.Context(), t)
	l.want(t, out, workflow.StatusFailed, 0, workflow.Counts{})
	if want := "5 of 5 stages were never applied: /init, /split, /process, /select, /merge"; !strings.Contains(out.Reason, want) {
		t.Errorf("the reason is %q, wanted %q in it", out.Reason, want)
	}
}

func TestLiveHostile(t *testing.T) {
	t.Parallel()
	l := newLive(t, "hostile")
	out, v := l.supervise(t.Context(), t)
	l.want(t, out, workflow.StatusFinished, 0, workflow.Counts{Total: 2, Finished: 2})
	for name := range v.ByName {
		if strings.ContainsAny(name, "\x00") {
			t.Errorf("a job has the name %q", name)
		}
	}
	if _, fake := v.ByName["fake[0]"]; fake {
		t.Error("what a job printed became a job")
	}
}

// A pipe in the place of a log must not hold up the engine, a large log not fill
// the message.
func TestLiveLogs(t *testing.T) {
	t.Parallel()
	l := newLive(t, "log")
	out, v := l.supervise(t.Context(), t)
	l.want(t, out, workflow.StatusFailed, 1, workflow.Counts{Total: 1, Failed: 1})
	if log := v.JobLogs["odd"]; len(log) != 64<<10 || !strings.HasSuffix(log, "the end\n") {
		t.Errorf("the log of the job has %d bytes and ends with %.20q, wanted the last 65536", len(log), log[max(len(log)-20, 0):])
	}
}

func TestLiveSignals(t *testing.T) {
	t.Parallel()
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(engines.SignalName(signal), func(t *testing.T) {
			t.Parallel()
			l := newLive(t, "slow")
			out, v := l.run.SuperviseUntil(t, l.Supervision, "running", func(v enginetest.View) bool { return v.Counts().Running == 2 }, func(stop context.CancelCauseFunc) {
				stop(&engines.StopError{Signal: signal})
			})
			if out.Status != workflow.StatusStopped || v.Status() != workflow.StatusStopped || out.ExitCode == 0 {
				t.Errorf("the run ended as %v with %d, and for a consumer as %v; wanted stopped", out.Status, out.ExitCode, v.Status())
			}
			if c := v.Counts(); c.Running != 0 || c.Stopped+c.Failed != 2 {
				t.Errorf("the counts are %+v, wanted two jobs that were stopped or failed", c)
			}
		})
	}
}

func TestLiveKilled(t *testing.T) {
	t.Parallel()
	l := newLive(t, "slow")
	pid := 0
	out, v := l.run.SuperviseUntil(t, l.Supervision, "running", func(v enginetest.View) bool { return v.Counts().Running == 2 }, func(context.CancelCauseFunc) {
		pid = engineOf(t, l.work+".0")
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Errorf("killing the engine: %v", err)
		}
	})
	_ = syscall.Kill(-pid, syscall.SIGKILL) // what it left
	l.want(t, out, workflow.StatusFailed, 137, workflow.Counts{Total: 2, Failed: 2})
	if !strings.Contains(string(v.EngineSpecific), `"inferred"`) {
		t.Errorf("engine_specific is %s, wanted the jobs whose end is inferred", v.EngineSpecific)
	}
}

// engineOf finds the engine of a job by what the job wrote: its process group.
func engineOf(t *testing.T, file string) int {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		text, err := os.ReadFile(file)
		if pid, e := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && e == nil {
			group, err := syscall.Getpgid(pid)
			if err != nil {
				t.Fatalf("finding the group of the job: %v", err)
			}
			return group
		}
		if time.Now().After(deadline) {
			t.Fatalf("the job did not write %s: %v", file, err)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// A step that runs Yadage itself is not the run.
func TestLiveNested(t *testing.T) {
	t.Parallel()
	l := newLive(t, "nested")
	out, v := l.supervise(t.Context(), t)
	l.want(t, out, workflow.StatusFinished, 0, workflow.Counts{Total: 1, Finished: 1})
	if !strings.Contains(string(v.EngineSpecific), `"other_runs":1`) {
		t.Errorf("engine_specific is %s, wanted the other run mentioned", v.EngineSpecific)
	}
}

const usersTracker = `
import sys
class Mine(object):
    def __init__(self): self.n = 0
    def initialize(self, obj): print("mine initialize", file=sys.stderr)
    def track(self, obj): self.n += 1
    def finalize(self, obj): print("mine finalize", self.n > 0, file=sys.stderr)
class Broken(object):
    def initialize(self, obj): raise RuntimeError("my own mistake")
    track = finalize = initialize
`

func TestLiveUsersTracker(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, tracker, stderr string
		code                  int
	}{
		{"works", "mine:Mine", "mine finalize True", 0},
		{"raises", "mine:Broken", "my own mistake", 1},
		{"is not there", "nothing:Mine", "No module named 'nothing'", 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			l := newLive(t, "ok")
			users := filepath.Join(l.Dir, "mine.py")
			if err := os.WriteFile(users, []byte(usersTracker), 0o600); err != nil {
				t.Fatal(err)
			}
			// A sitecustomize of the site's own runs as ever.
			if err := os.WriteFile(filepath.Join(l.Dir, "sitecustomize.py"), []byte("import sys; print('the site', file=sys.stderr)"), 0o600); err != nil {
				t.Fatal(err)
			}
			l.Env = append(l.Env, "YADAGE_CUSTOM_TRACKER="+tc.tracker, "PYTHONPATH="+l.Dir)
			bare := exec.Command(l.Args[0], append(slices.Clone(l.Args[1:5]), l.work+"-bare")...)
			bare.Env = l.Env
			_ = bare.Run()
			out, _ := l.supervise(t.Context(), t)
			if out.ExitCode != tc.code || bare.ProcessState.ExitCode() != tc.code {
				t.Errorf("the exit code is %d, of the bare run %d, wanted %d", out.ExitCode, bare.ProcessState.ExitCode(), tc.code)
			}
			if text := l.console.Stderr(); !strings.Contains(text, tc.stderr) || !strings.Contains(text, "the site") {
				t.Errorf("standard error is %q, wanted %q and the site's own line in it", text, tc.stderr)
			}
		})
	}
}

// Whatever is wrong with the hook, the run is as it is without us, and told from
// what Yadage logs.
func TestLiveWithoutTracker(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		prepare func(*live)
	}{
		{"Python ignores the environment", func(l *live) { l.Args = slices.Insert(l.Args, 1, "-E") }},
		{"the socket is gone", func(l *live) {
			l.Adapter = changed{func(launch *engines.Launch) { launch.Setenv("WAYMARK_SOCKET", filepath.Join(l.Dir, "nothing")) }}
		}},
		{"the folder is not there", func(l *live) {
			l.Adapter = changed{func(launch *engines.Launch) { _ = os.RemoveAll(filepath.Join(launch.Temp, "yadage")) }}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			l := newLive(t, "failing")
			tc.prepare(l)
			out, v := l.supervise(t.Context(), t)
			l.want(t, out, workflow.StatusFailed, 1, workflow.Counts{Total: 3, Created: 1, Finished: 1, Failed: 1})
			if !strings.Contains(string(v.EngineSpecific), `"mode":"text"`) {
				t.Errorf("engine_specific is %s, wanted the mode text", v.EngineSpecific)
			}
		})
	}
}

// changed is the Adapter with something broken after Prepare.
type changed struct{ how func(*engines.Launch) }

func (changed) Engine() string { return Engine }

func (c changed) Prepare(ctx context.Context, l *engines.Launch) (engines.Watch, error) {
	w, err := Adapter{}.Prepare(ctx, l)
	c.how(l)
	return w, err
}

// A socket that nobody reads holds the engine up once, for two seconds.
func TestTrackerGivesUp(t *testing.T) {
	t.Parallel()
	l := newLive(t, "many")
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	l.Adapter = changed{func(launch *engines.Launch) { launch.Setenv("WAYMARK_SOCKET", listener.Addr().String()) }}
	began := time.Now()
	out, _ := l.supervise(t.Context(), t)
	if out.ExitCode != 0 {
		t.Errorf("the engine ended with %d, wanted 0", out.ExitCode)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("the engine took %v", took)
	}
}

// Looking at five thousand nodes costs the engine a few percent of its time.
func TestTrackerIsCheap(t *testing.T) {
	t.Parallel()
	l := newLive(t, "many")
	out, v := l.supervise(t.Context(), t)
	l.want(t, out, workflow.StatusFinished, 0, workflow.Counts{Total: 5000, Finished: 5000})
	share, err := strconv.ParseFloat(strings.TrimSpace(l.console.Stdout()), 64)
	if err != nil {
		t.Fatalf("reading which share of the time the tracker took: %v", err)
	}
	if share > 0.1 {
		t.Errorf("looking at the graph took %.0f %% of the engine's time, wanted 5 %% or so", 100*share)
	}
	var dag struct{ Dag struct{ Nodes []any } }
	if err := json.Unmarshal(v.EngineSpecific, &dag); err != nil || len(dag.Dag.Nodes) != 5000 {
		t.Errorf("the graph has %d nodes (%v), wanted 5000", len(dag.Dag.Nodes), err)
	}
}

func TestPrepare(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"yadage-validate", "workflow.yml"}, {"yadage-run", "--help"}, {"sh", "-c", "x", "--version"}} {
		l := &engines.Launch{Args: args, Temp: t.TempDir(), Socket: "/s", WorkflowID: uuid.New()}
		w, err := Adapter{}.Prepare(t.Context(), l)
		if err != nil || w.Reducer != nil || len(l.Env) > 0 {
			t.Errorf("%v is watched (%v, %v), and runs no workflow", args, l.Env, err)
		}
	}
	l := &engines.Launch{Args: []string{"yadage-run", "w", "workflow.yml"}, Temp: filepath.Join(t.TempDir(), "nothing"), Socket: "/s", Env: []string{"PYTHONPATH=/mine"}}
	if _, err := (Adapter{}).Prepare(t.Context(), l); err == nil || fmt.Sprint(l.Env) != "[PYTHONPATH=/mine]" {
		t.Errorf("without a folder for the tracker the error is %v and the environment %v, wanted an error and nothing changed", err, l.Env)
	}
}
