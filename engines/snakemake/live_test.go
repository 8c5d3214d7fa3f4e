package snakemake

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"waymark/engines"
	"waymark/engines/enginetest"
	"waymark/workflow"
)

// The tests of this file run the real Snakemake. deploy/install-deps installs it.

func TestMain(m *testing.M) { enginetest.Main(m) }

const program = "snakemake"

// live is a run of the real engine.
type live struct {
	t      *testing.T
	dir    string
	args   []string
	env    []string // added
	adapt  func(*engines.Launch)
	run    *enginetest.Run
	record string
	hurry  chan struct{}

	console *enginetest.Console // of the last run
}

func newLive(t *testing.T, snakefile string, args ...string) *live {
	t.Helper()
	t.Parallel()
	l := &live{t: t, dir: t.TempDir(), args: append([]string{program}, args...), run: enginetest.NewRun(enginetest.WorkflowID)}
	l.write("Snakefile", snakefile)
	l.record = os.Getenv("SNAKEMAKE_TEST_RECORD")
	if l.record != "" {
		l.record = filepath.Join(l.record, strings.ReplaceAll(t.Name(), "/", "-"))
	}
	return l
}

func (l *live) write(name, text string) {
	l.t.Helper()
	path := filepath.Join(l.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		l.t.Fatal(err)
	}
}

// waitFor waits until there are two files of a pattern. It reports an error, and
// returns all the same, after two minutes.
func (l *live) waitFor(pattern string) {
	deadline := time.After(2 * time.Minute)
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		if found, _ := filepath.Glob(filepath.Join(l.dir, pattern)); len(found) >= 2 {
			return
		}
		select {
		case <-poll.C:
		case <-deadline:
			l.t.Errorf("after two minutes there are not two of %s", pattern)
			return
		}
	}
}

// adapter is the Adapter, with the chance to change the launch after it.
type adapter struct {
	Adapter
	after func(*engines.Launch)
}

func (a adapter) Prepare(ctx context.Context, l *engines.Launch) (engines.Watch, error) {
	w, err := a.Adapter.Prepare(ctx, l)
	if a.after != nil {
		a.after(l)
	}
	return w, err
}

// watch runs the engine until it ends.
func (l *live) watch(ctx context.Context) engines.Outcome {
	l.t.Helper()
	l.console = enginetest.NewConsole(l.t)
	s := engines.Supervision{
		Adapter: adapter{after: l.adapt}, Args: l.args, Dir: l.dir, Env: l.environment(), Publisher: l.run, WorkflowID: enginetest.WorkflowID,
		Record: l.record, Grace: 20 * time.Second, Hurry: l.hurry,
	}
	l.console.Attach(&s)
	out, err := engines.Supervise(ctx, s)
	if err != nil {
		l.t.Fatalf("supervising: %v", err)
	}
	if l.t.Failed() || testing.Verbose() {
		l.t.Logf("%s: %+v", strings.Join(l.args, " "), out)
	}
	return out
}

func (l *live) environment() []string {
	// Each test has the cache of Snakemake to itself, and nobody's profile.
	return slices.Concat(os.Environ(), []string{"SNAKEMAKE_PROFILE=", "PYTHONPATH=", "XDG_CACHE_HOME=" + filepath.Join(l.dir, ".cache")}, l.env)
}

// bare runs the engine without us, in a folder of its own, and returns its exit
// code.
func (l *live) bare() int {
	l.t.Helper()
	dir := l.t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(l.dir)); err != nil {
		l.t.Fatal(err)
	}
	cmd := exec.Command(l.args[0], l.args[1:]...)
	cmd.Dir, cmd.Env = dir, l.environment()
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		l.t.Fatalf("running %s: %v", strings.Join(l.args, " "), err)
	}
	return cmd.ProcessState.ExitCode()
}

// want compares the counts of the run with those of the text, such as
// "finished 5: running 0, finished 4, failed 0, stopped 0".
func (l *live) want(out engines.Outcome, status workflow.Status, code, total, finished, failed, stopped int) enginetest.View {
	l.t.Helper()
	v := l.run.View()
	c := v.Counts()
	if out.Status != status || v.Status() != status || out.ExitCode != code {
		l.t.Errorf("the run ended as %v (%s) with %d, for readers as %v; want %v with %d", out.Status, out.Reason, out.ExitCode, v.Status(), status, code)
	}
	if c.Total != total || c.Finished != finished || c.Failed != failed || c.Stopped != stopped || c.Running != 0 {
		l.t.Errorf("the counts are %+v; want total %d, finished %d, failed %d, stopped %d", c, total, finished, failed, stopped)
	}
	if v.Ends != 1 {
		l.t.Errorf("%d messages end the run, want 1", v.Ends)
	}
	if l.t.Failed() {
		l.t.Logf("jobs: %+v\nlog: %s\nstderr: %s", v.ByName, v.Log, l.console.Stderr())
	}
	return v
}

const growing = `
rule all:
    input: "summary.txt"

checkpoint split:
    output: directory("chunks")
    shell: "mkdir -p chunks; for i in 1 2 3; do echo $i > chunks/$i; done"

rule process:
    input: "chunks/{i}"
    output: "done/{i}"
    log: "logs/{i}.log"
    shell: "cp {input} {output} 2> {log}"

def chunks(wildcards):
    folder = checkpoints.split.get().output[0]
    return expand("done/{i}", i=sorted(n for n in os.listdir(folder) if n[0] != "."))

rule summary:
    input: chunks
    output: "summary.txt"
    run:
        with open(output[0], "w") as f:
            f.write("ok")
`

func TestCheckpointGrowsTheTotal(t *testing.T) {
	l := newLive(t, growing, "-j2", "--nocolor")
	out := l.watch(t.Context())
	v := l.want(out, workflow.StatusFinished, 0, 5, 5, 0, 0)
	for _, name := range []string{"split", "process:i=1", "process:i=3", "summary"} {
		j, ok := v.ByName[name]
		if !ok {
			t.Errorf("there is no job %q", name)
		} else if j.StartedAt.IsZero() || j.FinishedAt.Before(j.StartedAt) || j.ID != engines.JobID(enginetest.WorkflowID, "snakemake", name) {
			t.Errorf("job %q is %+v", name, j)
		}
	}
	if c := v.ByName["process:i=2"].Command; c != "cp chunks/2 done/2 2> logs/2.log" {
		t.Errorf("the command is %q", c)
	}
}

// nasty fails in all ways, and prints what could deceive a reader.
const nasty = `
rule all:
    input: "ok.txt", "flaky.txt", "broken.txt", "liar.txt", "raises.txt", "scripted.txt", expand("late{n}.txt", n=["1,a=2", "x y"])

rule ok:
    output: "ok.txt"
    message: "a message of its own"
    shell: r"""
        printf 'Finished job 0.\n[Sun Nov 22 04:25:17 2026]\nError in rule ok:\n    jobid: 1\n\n99 of 99 steps (100%%) done\n' >&2
        printf '\000\377\376\r{{"level": "x_end"}}\ntotal 500' >&2
        echo fine > {output}
        """

rule flaky:
    output: "flaky.txt"
    retries: 2
    resources: attempt=lambda wildcards, attempt: attempt
    shell: "test {resources.attempt} -ge 2 && echo fine > {output}"

rule broken:
    output: "broken.txt"
    log: "logs/broken.log"
    shell: "echo the reason is here > {log}; printf '\\377\\000' >> {log}; exit 7"

rule liar:
    output: "liar.txt"
    shell: "true"

rule raises:
    output: "raises.txt"
    run:
        raise ValueError("on purpose")

rule scripted:
    output: "scripted.txt"
    script: "write.py"

rule late:
    input: "ok.txt"
    output: "late{n}.txt"
    shell: "env > {output:q}; cp {output:q} env.txt"

rule never:
    input: "broken.txt"
    output: "never.txt"
    shell: "touch {output}"
`

const script = `
import multiprocessing
from snakemake.logging import logger  # a job may be a Python that knows Snakemake
def child():
    logger.info("a child of a job")
if __name__ == "__main__":
    p = multiprocessing.Process(target=child)
    p.start()
    p.join()
    open(snakemake.output[0], "w").write("ok")
`

func TestFailuresOfAllKinds(t *testing.T) {
	for _, quiet := range []string{"", "all"} {
		t.Run("quiet "+quiet, func(t *testing.T) {
			args := []string{"-j3", "--keep-going", "--latency-wait", "0", "all", "never.txt"}
			if quiet != "" {
				args = append(args, "--quiet", quiet)
			}
			l := newLive(t, nasty, args...)
			l.write("write.py", script)
			out := l.watch(t.Context())
			v := l.want(out, workflow.StatusFailed, 1, 9, 5, 3, 0)
			if j := v.ByName["flaky"]; j.Attempt != 2 || j.Status != workflow.JobFinished {
				t.Errorf("the job that is tried again is %+v", j)
			}
			if j := v.ByName["broken"]; j.ExitCode == nil || *j.ExitCode != 7 || !strings.Contains(v.JobLogs["broken"], "the reason is here") {
				t.Errorf("the failed job is %+v with the log %q", j, v.JobLogs["broken"])
			}
			if j := v.ByName["liar"]; j.Status != workflow.JobFailed || !strings.Contains(j.Diagnostics, "output files are missing") {
				t.Errorf("the job without output is %+v", j)
			}
			if j := v.ByName["raises"]; j.Status != workflow.JobFailed {
				t.Errorf("the job that raises is %+v", j)
			}
			if j := v.ByName["late:n=1,a=2"]; j.Status != workflow.JobFinished || !strings.HasPrefix(j.Command, "env >") {
				t.Errorf("the job with odd wildcards is %+v", j)
			}
			if j := v.ByName["scripted"]; !strings.Contains(j.Command, "write.py") {
				t.Errorf("the job with a script is %+v", j)
			}
			for _, want := range []string{`"mode":"hook"`, `"version":"7.`, `"name":"never"`, `"rule":"late"`} {
				if !strings.Contains(string(v.EngineSpecific), want) {
					t.Errorf("engine_specific lacks %s: %.500s", want, v.EngineSpecific)
				}
			}
			if !strings.Contains(out.Reason, "3 jobs failed") || !strings.Contains(out.Reason, "broken (exit code 7)") {
				t.Errorf("the reason is %q", out.Reason)
			}
			env, err := os.ReadFile(filepath.Join(l.dir, "env.txt"))
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(env), "WAYMARK_SOCKET") || strings.Contains(string(env), "PYTHONPATH") {
				t.Errorf("jobs have our environment:\n%s", env)
			}
		})
	}
}

// TestHowItIsStarted fails by default at the first failure, however Snakemake is
// started, and ends as it would without us.
func TestHowItIsStarted(t *testing.T) {
	const failing = `
rule all:
    input: "a2.txt", "b2.txt"
rule first:
    output: "{n}1.txt"
    shell: "touch {output}"
rule second:
    input: "{n}1.txt"
    output: "{n}2.txt"
    shell: "test {wildcards.n} = a && exit 3; touch {output}"
`
	for name, args := range map[string][]string{
		"python -m": {"/usr/bin/python3", "-m", "snakemake", "-j1"},
		"a shell":   {"sh", "-c", "true; snakemake -j1; exit $?"},
		"a library": {"/usr/bin/python3", "-c", "import snakemake, sys; sys.exit(snakemake.main(['-j1']))"},
		"a wrapper": {"/usr/bin/python3", "-c", "import subprocess, sys, snakemake.logging; sys.exit(subprocess.call(['snakemake', '-j1']))"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLive(t, failing)
			l.args = args
			code := 1
			if name == "a shell" {
				code = l.bare()
			}
			out := l.watch(t.Context())
			v := l.run.View()
			if c := v.Counts(); out.ExitCode != code || c.Failed != 1 || c.Total != 4 || c.Finished < 1 || !strings.Contains(string(v.EngineSpecific), `"hook"`) {
				t.Errorf("the run ended with %d, want %d; the counts are %+v, engine_specific is %.300s", out.ExitCode, code, c, v.EngineSpecific)
			}
			if j := v.ByName["second:n=a"]; j.ExitCode == nil || *j.ExitCode != 3 {
				t.Errorf("the failed job is %+v", j)
			}
		})
	}
}

// TestOneCommandSeveralRuns tries a workflow again until it is done, and then
// has nothing to do.
func TestOneCommandSeveralRuns(t *testing.T) {
	l := newLive(t, `
rule all:
    input: "done.txt", "other.txt"
rule done:
    output: "done.txt"
    shell: "test -e marker && touch {output} || {{ touch marker; exit 1; }}"
rule other:
    output: "other.txt"
    shell: "touch {output}"
`)
	l.args = []string{"sh", "-c", "snakemake -k -j1 || snakemake -j1 && snakemake -j1 && snakemake -j1 -n"}
	out := l.watch(t.Context())
	v := l.want(out, workflow.StatusFinished, 0, 2, 2, 0, 0)
	if j := v.ByName["done"]; j.Attempt != 2 {
		t.Errorf("the job of two runs is %+v", j)
	}
	if strings.Contains(string(v.EngineSpecific), "hook_error") {
		t.Errorf("the hook made a mistake: %s", v.EngineSpecific)
	}
}

// TestOneCommandSeveralWorkflows has the same jobs in several folders, one of
// which fails, one after the other and at once.
func TestOneCommandSeveralWorkflows(t *testing.T) {
	const workflows = `
rule all:
    input: "a.txt"
rule a:
    output: "a.txt"
    shell: "test $(basename $PWD) != p2 && touch {output}"
`
	for name, command := range map[string]string{
		"cd":       "for d in p1 p2 p3; do (cd $d; snakemake -j1); done; true",
		"-d":       "for d in p1 p2 p3; do snakemake -j1 -d $d; done; true",
		"parallel": "for d in p1 p2 p3; do (cd $d; snakemake -j1) & done; wait",
	} {
		t.Run(name, func(t *testing.T) {
			l := newLive(t, workflows)
			l.args = []string{"sh", "-c", command}
			for _, d := range []string{"p1", "p2", "p3"} {
				l.write(d+"/Snakefile", workflows)
			}
			out := l.watch(t.Context())
			v := l.want(out, workflow.StatusFailed, 0, 3, 2, 1, 0)
			for d, want := range map[string]workflow.JobStatus{"p1": workflow.JobFinished, "p2": workflow.JobFailed, "p3": workflow.JobFinished} {
				if j := v.ByName[d+"/a"]; j.Status != want || j.Path != d || j.ID != engines.JobID(enginetest.WorkflowID, Engine, d+"/a") {
					t.Errorf("the job of %s is %+v, want it %v", d, j, want)
				}
			}
		})
	}
}

// TestUntil leaves a part of the workflow out, of which the progress that
// Snakemake shows still speaks.
func TestUntil(t *testing.T) {
	for name, args := range map[string][]string{
		"hook": {program, "-j1", "--until", "a"},
		"text": {"/usr/bin/python3", "-I", "-m", "snakemake", "-j1", "--until", "a"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLive(t, two)
			l.args = args
			v := l.want(l.watch(t.Context()), workflow.StatusFinished, 0, 1, 1, 0, 0)
			if !strings.Contains(l.console.Stderr(), "1 of 3 steps") || !strings.Contains(string(v.EngineSpecific), `"mode":"`+name+`"`) {
				t.Errorf("Snakemake says %q, and engine_specific is %s", l.console.Stderr(), v.EngineSpecific)
			}
		})
	}
}

// A rule without a command that touches its output is a job; one that gathers
// is none.
func TestRuleWithoutCommand(t *testing.T) {
	l := newLive(t, `
rule all:
    input: expand("{i}.done", i=["a", "b"])
rule mark:
    output: touch("{i}.done")
`, "--cores", "1", "--quiet")
	v := l.want(l.watch(t.Context()), workflow.StatusFinished, 0, 2, 2, 0, 0)
	if _, ok := v.ByName["mark:i=a"]; !ok {
		t.Errorf("the jobs are %v, want mark of a and b", v.ByName)
	}
}

// TestNothingToBeDone has a graph without any job.
func TestNothingToBeDone(t *testing.T) {
	l := newLive(t, two, "-j1", "b.txt")
	l.write("a.txt", "")
	l.write("b.txt", "")
	v := l.want(l.watch(t.Context()), workflow.StatusFinished, 0, 0, 0, 0, 0)
	if !strings.Contains(l.console.Stderr(), "Nothing to be done") || strings.Contains(string(v.EngineSpecific), "hook_error") {
		t.Errorf("Snakemake says %q, and engine_specific is %s", l.console.Stderr(), v.EngineSpecific)
	}
}

func TestWhatRunsNothingIsNotReported(t *testing.T) {
	l := newLive(t, growing, "-n", "-p")
	out := l.watch(t.Context())
	if v := l.run.View(); out.Watched || out.ExitCode != 0 || v.Messages != 0 || v.Submission != nil {
		t.Errorf("a dry run is reported: %+v with %d messages", out, v.Messages)
	}
	if !strings.Contains(l.console.Stdout(), "This was a dry-run") {
		t.Errorf("the dry run printed %q", l.console.Stdout())
	}
}

func TestBrokenWorkflow(t *testing.T) {
	l := newLive(t, "rule all:\n    input: 'never.txt'\n", "-j1", "-q")
	out := l.watch(t.Context())
	v := l.want(out, workflow.StatusFailed, 1, 0, 0, 0, 0)
	if !strings.Contains(out.Reason, "MissingInputException") || !strings.Contains(v.Log, "never.txt") {
		t.Errorf("the reason is %q, the log %q", out.Reason, v.Log)
	}
}

// slow is to be interrupted. Its jobs are one process, which itself says that it
// runs: a shell between two commands may miss an interrupt.
const slow = `
rule all:
    input: expand("s{n}.txt", n=range(4))
rule slow:
    output: "s{n}.txt"
    shell: "exec python3 -c 'import time; open(\"started{wildcards.n}\", \"w\"); time.sleep(60)'"
`

func TestSignals(t *testing.T) {
	for _, number := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(number.String(), func(t *testing.T) {
			l := newLive(t, slow, "-j2")
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			var stopped sync.WaitGroup
			stopped.Go(func() {
				l.waitFor("started*")
				cancel(&engines.StopError{Signal: number})
			})
			out := l.watch(ctx)
			stopped.Wait()
			v := l.run.View()
			c := v.Counts()
			if out.Status != workflow.StatusStopped || v.Status() != workflow.StatusStopped || out.ExitCode != 1 {
				t.Errorf("the run ended as %v with %d, want stopped with 1", out.Status, out.ExitCode)
			}
			if c.Total != 4 || c.Stopped != 2 || c.Failed+c.Finished+c.Running != 0 {
				t.Errorf("the counts are %+v, want 2 of 4 stopped", c)
			}
		})
	}
}

func TestKilledEngine(t *testing.T) {
	l := newLive(t, slow, "-j2")
	l.adapt = func(launch *engines.Launch) {
		launch.Args = []string{"sh", "-c", `echo $$ > pid; exec snakemake -j2`}
	}
	var killed sync.WaitGroup
	killed.Go(func() {
		l.waitFor("started*")
		text, err := os.ReadFile(filepath.Join(l.dir, "pid"))
		if err != nil {
			t.Error(err)
			return
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			t.Error(err)
			return
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Errorf("killing Snakemake: %v", err)
		}
		// What it leaves is left alone by us, and must not outlive the test.
		t.Cleanup(func() { _ = syscall.Kill(-pid, syscall.SIGKILL) })
	})
	out := l.watch(t.Context())
	killed.Wait()
	v := l.run.View()
	if c := v.Counts(); out.Status != workflow.StatusFailed || out.ExitCode != 137 || c.Failed < 1 || c.Running != 0 || c.Total != 4 {
		t.Errorf("the run ended as %v with %d and %+v", out.Status, out.ExitCode, c)
	}
	if !strings.Contains(out.Reason, "SIGKILL") {
		t.Errorf("the reason is %q", out.Reason)
	}
}

const two = `
rule all:
    input: "b.txt"
rule a:
    output: "a.txt"
    shell: "touch {output}"
rule b:
    input: "a.txt"
    output: "b.txt"
    shell: "env > env.txt; touch {output}"
`

// TestWhatIsTheUsers keeps the user's profile, log handler, PYTHONPATH and sitecustomize.
func TestWhatIsTheUsers(t *testing.T) {
	l := newLive(t, two)
	l.write("profile/config.yaml", "cores: 1\nquiet: all\nlog-handler-script: handler.py\n")
	l.write("handler.py", "def log_handler(msg):\n    open('handled.txt', 'a').write(msg['level'] + '\\n')\n")
	l.write("site/sitecustomize.py", "import os, sys\nopen(os.path.join(os.path.dirname(__file__), 'seen'), 'a').write(repr(sys.path[:2]) + '\\n')\n")
	site := filepath.Join(l.dir, "site")
	l.env = []string{"PYTHONPATH=" + site, "SNAKEMAKE_PROFILE=" + filepath.Join(l.dir, "profile")}
	out := l.watch(t.Context())
	l.want(out, workflow.StatusFinished, 0, 2, 2, 0, 0)
	handled, err := os.ReadFile(filepath.Join(l.dir, "handled.txt"))
	if err != nil || strings.Count(string(handled), "job_info") != 3 {
		t.Errorf("the user's handler saw %q (%v)", handled, err)
	}
	seen, err := os.ReadFile(filepath.Join(site, "seen"))
	if err != nil || strings.Contains(string(seen), "waymark") {
		t.Errorf("the user's sitecustomize saw %q (%v)", seen, err)
	}
	env, err := os.ReadFile(filepath.Join(l.dir, "env.txt"))
	if err != nil || !strings.Contains(string(env), "PYTHONPATH="+site+"\n") {
		t.Errorf("the jobs have another PYTHONPATH (%v):\n%s", err, env)
	}
	if text := strings.TrimSpace(l.console.Stderr()); text != "" && !strings.HasPrefix(text, "Using profile ") { // 7.32 says that
		t.Errorf("with --quiet all it printed %q", text)
	}
}

// TestWithoutHook reads standard error where the hook is not loaded, or reaches nobody.
func TestWithoutHook(t *testing.T) {
	t.Run("isolated", func(t *testing.T) {
		l := newLive(t, two)
		l.args = []string{"/usr/bin/python3", "-I", "-m", "snakemake", "-j1"}
		l.withoutHook()
	})
	t.Run("deaf", func(t *testing.T) {
		l := newLive(t, two, "-j1")
		l.adapt = func(launch *engines.Launch) { launch.Setenv("WAYMARK_SOCKET", filepath.Join(l.dir, "nobody")) }
		l.withoutHook()
	})
}

func (l *live) withoutHook() {
	l.t.Helper()
	out := l.watch(l.t.Context())
	v := l.want(out, workflow.StatusFinished, 0, 3, 3, 0, 0) // with all
	if !strings.Contains(string(v.EngineSpecific), `"mode":"text"`) {
		l.t.Errorf("engine_specific is %s", v.EngineSpecific)
	}
	if j := v.ByName["b"]; j.ID != engines.JobID(enginetest.WorkflowID, "snakemake", "b") || j.StartedAt.IsZero() {
		l.t.Errorf("job b is %+v", j)
	}
}
