package cwl

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"waymark/engines"
	"waymark/engines/enginetest"
	"waymark/workflow"
)

// The tests of this file run the real cwltool. deploy/install-deps installs it.

func TestMain(m *testing.M) { enginetest.Main(m) }

// live is a run of the real engine in a copy of the workflows.
type live struct {
	t    *testing.T
	dir  string
	args []string
	env  []string // added
	run  *enginetest.Run
	runs int

	console *enginetest.Console // of the last run
}

func newLive(t *testing.T, args ...string) *live {
	t.Helper()
	t.Parallel()
	l := &live{t: t, dir: t.TempDir(), args: args, run: enginetest.NewRun(enginetest.WorkflowID)}
	if err := os.CopyFS(l.dir, os.DirFS(filepath.Join(recordings, "workflows"))); err != nil {
		t.Fatal(err)
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

// watch runs the engine until it ends.
func (l *live) watch(ctx context.Context) engines.Outcome {
	l.t.Helper()
	out, err := engines.Supervise(ctx, l.supervision())
	if err != nil {
		l.t.Fatalf("supervising: %v", err)
	}
	return out
}

// watchUntil runs the engine, and acts once the run is as wanted.
func (l *live) watchUntil(what string, is func(enginetest.View) bool, act func(stop context.CancelCauseFunc)) engines.Outcome {
	l.t.Helper()
	out, _ := l.run.SuperviseUntil(l.t, l.supervision(), what, is, act)
	return out
}

func (l *live) supervision() engines.Supervision {
	l.t.Helper()
	record := os.Getenv("CWL_TEST_RECORD") // a folder to make recordings in
	if record != "" {
		l.runs++
		record = filepath.Join(record, fmt.Sprintf("%s-%d", strings.ReplaceAll(l.t.Name(), "/", "-"), l.runs))
	}
	s := engines.Supervision{
		Adapter: Adapter{}, Args: l.args, Dir: l.dir, Publisher: l.run, WorkflowID: enginetest.WorkflowID,
		Env: slices.Concat(os.Environ(), []string{"PYTHONPATH="}, l.env), Record: record, Grace: 30 * time.Second,
	}
	l.console = enginetest.NewConsole(l.t)
	l.console.Attach(&s)
	l.t.Cleanup(func() {
		if v := l.run.View(); l.t.Failed() {
			l.t.Logf("%s: %v\njobs: %+v\nlog: %s\nengine_specific: %s", strings.Join(l.args, " "), v.Status(), v.ByName, v.Log, v.EngineSpecific)
		}
	})
	return s
}

// running is whether a job of a run does.
func running(v enginetest.View) bool { return v.Counts().Running == 1 }

// want compares how the run ended, and with how many jobs in which state.
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
	return v
}

func (l *live) specific(v enginetest.View, wants ...string) {
	l.t.Helper()
	for _, want := range wants {
		if !strings.Contains(string(v.EngineSpecific), want) {
			l.t.Errorf("engine_specific lacks %s: %.3000s", want, v.EngineSpecific)
		}
	}
}

func TestFailuresOfAllKinds(t *testing.T) {
	l := newLive(t, "cwltool", "--on-error", "continue", "--outdir", "out", "nasty.cwl")
	out := l.watch(t.Context())
	v := l.want(out, workflow.StatusFailed, 1, 20, 15, 4, 0)
	exits := map[string]int{"killed": 137, "tolerant": 3, "liar": 0}
	for name, code := range exits {
		if j := v.ByName[name]; j.ExitCode == nil || *j.ExitCode != code {
			t.Errorf("job %s ended with %v, want %d", name, j.ExitCode, code)
		}
	}
	if j := v.ByName["absent"]; !strings.Contains(j.Diagnostics, "'no-such-program-anywhere' not found") {
		t.Errorf("the job without a program is %+v", j)
	}
	if j := v.ByName["liar"]; !strings.Contains(j.Diagnostics, "Did not find output file") {
		t.Errorf("the job without its output is %+v", j)
	}
	paths, logs := []string{}, 0
	for name, j := range v.ByName {
		paths = append(paths, j.Path)
		if j.ID != engines.JobID(enginetest.WorkflowID, "cwl", name) || j.StartedAt.IsZero() || j.FinishedAt.Before(j.StartedAt) {
			t.Errorf("job %s is %+v", name, j)
		}
		if strings.HasPrefix(j.Path, "group[") && strings.Contains(v.JobLogs[name], "number ") {
			logs++
		}
		if j.Path == "pairs[1]" && (j.Status != workflow.JobFailed || *j.ExitCode != 7 || !strings.Contains(v.JobLogs[name], "ab is not liked")) {
			t.Errorf("the failed pair is %+v with the log %q", j, v.JobLogs[name])
		}
	}
	slices.Sort(paths)
	want := "absent group[0]/each[0] group[0]/each[1] group[0]/join group[1]/each[0] group[1]/join group[2]/join killed later[0] later[1] later[2] liar noisy pairs[0] pairs[1] pairs[2] pairs[3] some[0] tolerant"
	if got := strings.Join(paths, " "); got != want {
		t.Errorf("the jobs stand at\n%s, want\n%s", got, want)
	}
	if logs != 3 {
		t.Errorf("the standard error of %d jobs is told, want 3", logs)
	}
	l.specific(v, `"mode":"hook"`, `"version":"3.`, `"skipped":["picture"]`, `["group/each","group/join"]`, `["group/join","count"]`, `"conditional":true`)
	if said, _, _ := strings.Cut(v.Log, "The end of standard error"); strings.Contains(said, "INFO") || strings.Contains(said, "it is not true") {
		t.Errorf("the log has what it should not: %s", v.Log)
	}
	if !strings.Contains(out.Reason, "failed: ") || !strings.Contains(out.Reason, "3 more failed") {
		t.Errorf("the reason is %q", out.Reason)
	}
}

func TestParallelAndQuiet(t *testing.T) {
	l := newLive(t, "cwl-runner", "--parallel", "--quiet", "--outdir", "out", "analysis.cwl", "analysis.yml")
	v := l.want(l.watch(t.Context()), workflow.StatusFinished, 0, 7, 7, 0, 0)
	paths := []string{}
	for _, j := range v.ByName {
		paths = append(paths, j.Path)
	}
	slices.Sort(paths)
	want := "per_sample[0]/count per_sample[0]/gen per_sample[1]/count per_sample[1]/gen per_sample[2]/count per_sample[2]/gen plot"
	if got := strings.Join(paths, " "); got != want {
		t.Errorf("the jobs stand at\n%s, want\n%s", got, want)
	}
	l.specific(v, `"mode":"hook"`, `["per_sample/gen","per_sample/count"]`, `["per_sample/count","total"]`, `["total","plot"]`)
}

// TestTotalBeforeTheFirstJob has the only job of the run wait until the total is
// known, and then the steps after it.
func TestTotalBeforeTheFirstJob(t *testing.T) {
	l := newLive(t, "cwltool", "--outdir", "out", "grow.cwl#main", "--letters", "x", "--letters", "y")
	l.write("grow.cwl", `
cwlVersion: v1.2
$graph:
- id: main
  class: Workflow
  requirements: {ScatterFeatureRequirement: {}, InlineJavascriptRequirement: {}}
  inputs: {letters: 'string[]'}
  outputs: {}
  steps:
    wait:
      run: {class: CommandLineTool, baseCommand: [sh, -c, 'until test -e `+l.dir+`/go; do sleep 0.1; done; echo 3'], inputs: {}, stdout: n.txt, outputs: {n: {type: 'int[]', outputBinding: {glob: n.txt, loadContents: true, outputEval: '$([1,2,parseInt(self[0].contents)])'}}}}
      in: {}
      out: [n]
    known:
      run: "#tool"
      scatter: l
      in: {l: letters, n: wait/n}
      out: []
    unknown:
      run: {class: CommandLineTool, baseCommand: 'true', inputs: {i: int}, outputs: {}}
      scatter: i
      in: {i: wait/n}
      out: []
- id: tool
  class: CommandLineTool
  baseCommand: 'true'
  inputs: {l: string, n: 'int[]'}
  outputs: {}
`)
	out := l.watchUntil("waiting with a total", running, func(context.CancelCauseFunc) {
		v := l.run.View()
		if got := v.Counts().Total; got != 3 {
			t.Errorf("when the first job runs the total is %d, want 3: it, and one for each letter", got)
		}
		l.write("go", "")
	})
	l.want(out, workflow.StatusFinished, 0, 6, 6, 0, 0)
}

func TestCachedAndTheUsersOwnPython(t *testing.T) {
	l := newLive(t, "cwltool", "--cachedir", "cache", "--outdir", "out", "--preserve-entire-environment", "cached.cwl")
	l.write("cached.cwl", `
cwlVersion: v1.2
class: CommandLineTool
baseCommand: env
inputs: {}
stdout: env.txt
outputs: {env: stdout}
`)
	l.write("own/sitecustomize.py", "import os, pathlib\npathlib.Path('own.txt').write_text('mine')\nimport sitecustomize\nassert sitecustomize.__file__ == __file__\n")
	l.env = []string{"PYTHONPATH=" + filepath.Join(l.dir, "own"), "PYTHONWARNINGS=error::ResourceWarning"}
	v := l.want(l.watch(t.Context()), workflow.StatusFinished, 0, 1, 1, 0, 0)
	if v.ByName["cached.cwl"].Cached {
		t.Errorf("the first job is cached: %+v", v.ByName)
	}
	env, err := os.ReadFile(filepath.Join(l.dir, "out/env.txt"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "PYTHONPATH=" + filepath.Join(l.dir, "own") + "\n"; !strings.Contains(string(env), want) || strings.Contains(string(env), "WAYMARK_SOCKET") {
		t.Errorf("the job's environment is not what it is without us; want %s", want)
	}
	if own, err := os.ReadFile(filepath.Join(l.dir, "own.txt")); err != nil || string(own) != "mine" {
		t.Errorf("the user's own sitecustomize did not run: %q, %v", own, err)
	}
	if strings.Contains(l.console.Stderr(), "ResourceWarning") || strings.Contains(l.console.Stderr(), "sitecustomize") {
		t.Errorf("cwltool complains: %s", l.console.Stderr())
	}

	l.run = enginetest.NewRun(enginetest.WorkflowID)
	v = l.want(l.watch(t.Context()), workflow.StatusFinished, 0, 1, 1, 0, 0)
	if j := v.ByName["cached.cwl"]; !j.Cached {
		t.Errorf("the second job is %+v, want a cached one", j)
	}
}

// TestWithoutHook has Python ignore the hook, and then has the hook find nobody.
func TestWithoutHook(t *testing.T) {
	python, err := exec.LookPath("cwltool")
	if err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"isolated":  {"/usr/bin/python3", "-I", python},
		"no socket": {"env", "WAYMARK_SOCKET=/nowhere", "cwltool"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLive(t, slices.Concat(args, []string{"--enable-color", "--outdir", "out", "slowly.cwl", "slowly.yml"})...)
			l.write("slowly.cwl", `
cwlVersion: v1.2
class: Workflow
requirements: {ScatterFeatureRequirement: {}}
inputs: {numbers: 'int[]'}
outputs: {}
steps:
  step:
    run:
      class: CommandLineTool
      baseCommand: [sh, -c]
      arguments:
        - |
          until test -e `+l.dir+`/go; do sleep 0.1; done
          printf 'INFO [job other] completed success\n no newline' >&2
          echo "it's"
      inputs: {i: int}
      stdout: o.txt
      outputs: {}
    scatter: i
    in: {i: numbers}
    out: []
`)
			l.write("slowly.yml", "numbers: [1, 2, 3]\n")
			out := l.watchUntil("with a total", func(v enginetest.View) bool {
				c := v.Counts()
				return c.Running == 1 && c.Total == 3
			}, func(context.CancelCauseFunc) { l.write("go", "") })
			v := l.want(out, workflow.StatusFinished, 0, 3, 3, 0, 0)
			l.specific(v, `"mode":"text"`, `"total_from":"cwltool --pack"`)
			if j := v.ByName["step_3"]; j.Path != "step" || !strings.HasPrefix(j.Command, "sh -c 'until test") || strings.Contains(j.Command, "o.txt") {
				t.Errorf("the last job is %+v", j)
			}
		})
	}
}

func TestSignals(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(engines.SignalName(signal), func(t *testing.T) {
			l := newLive(t, "cwltool", "--outdir", "out", "sleeping.cwl")
			l.write("sleeping.cwl", sleeping)
			out := l.watchUntil("running", running, func(stop context.CancelCauseFunc) { stop(&engines.StopError{Signal: signal}) })
			if c := out.Counts; out.Status != workflow.StatusStopped || out.ExitCode == 0 || c.Finished+c.Running+c.Failed != 0 || c.Stopped != 1 || c.Total != 2 {
				t.Errorf("the run is %v with %d, %+v; want it stopped, and the job that ran", out.Status, out.ExitCode, c)
			}
			if out.Reason != "stopped by "+engines.SignalName(signal) {
				t.Errorf("the reason is %q", out.Reason)
			}
		})
	}
}

const sleeping = `
cwlVersion: v1.2
class: Workflow
inputs: {}
outputs: {}
steps:
  sleep:
    run: {class: CommandLineTool, baseCommand: [sh, -c, 'echo $PPID > PARENT; exec sleep 600'], inputs: {}, stdout: o.txt, outputs: {o: stdout}}
    in: {}
    out: [o]
  after:
    run: {class: CommandLineTool, baseCommand: 'true', inputs: {o: File}, outputs: {}}
    in: {o: sleep/o}
    out: []
`

// TestJobsLogs has jobs without a stderr: of their own, which write what cwltool
// would.
func TestJobsLogs(t *testing.T) {
	for _, option := range []string{"--quiet", "--debug"} {
		t.Run(option, func(t *testing.T) {
			l := newLive(t, "cwltool", option, "--timestamps", "--on-error", "continue", "--outdir", "out", "loud.cwl")
			end := "" // of the last line; only with --quiet nobody could tell it from the next job's first
			if option == "--quiet" {
				end = `\n`
			}
			l.write("loud.cwl", `
cwlVersion: v1.2
class: Workflow
requirements: {ScatterFeatureRequirement: {}}
inputs: {xs: {type: 'string[]', default: [a, b, c]}}
outputs: {}
steps:
  st:
    run:
      class: CommandLineTool
      baseCommand: [sh, -c]
      arguments: ['echo "INFO [job st] completed success" >&2; echo "WARNING [job st_2] completed permanentFail" >&2; echo "of $0" >&2; sleep 1.2; printf "end`+end+`" >&2; test $0 != b']
      inputs: {x: {type: string, inputBinding: {position: 1}}}
      outputs: {}
    scatter: x
    in: {x: xs}
    out: []
`)
			v := l.want(l.watch(t.Context()), workflow.StatusFailed, 1, 3, 2, 1, 0)
			for name, of := range map[string]string{"st": "a", "st_2": "b", "st_3": "c"} {
				want := "INFO [job st] completed success\nWARNING [job st_2] completed permanentFail\nof " + of + "\nend\n"
				if got := v.JobLogs[name]; got != want {
					t.Errorf("the log of job %s is %q, want %q", name, got, want)
				}
			}
		})
	}
}

func TestEngineIsKilled(t *testing.T) {
	l := newLive(t, "cwltool", "--outdir", "out", "sleeping.cwl")
	parent := filepath.Join(l.dir, "parent")
	l.write("sleeping.cwl", strings.ReplaceAll(strings.ReplaceAll(sleeping, "PARENT", parent), "sleep 600", "sleep 2"))
	out := l.watchUntil("running", running, func(context.CancelCauseFunc) { kill(t, processIn(t, parent)) })
	v := l.want(out, workflow.StatusFailed, 137, 2, 0, 1, 0)
	l.specific(v, `"inferred":[`)
}

// processIn is the number of the process that is written in a file, once it is.
func processIn(t *testing.T, file string) int {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); <-time.After(20 * time.Millisecond) {
		pid := 0
		if doc, _ := os.ReadFile(file); bytes.HasSuffix(doc, []byte("\n")) {
			_, _ = fmt.Sscan(string(doc), &pid)
		}
		if pid > 0 {
			return pid
		}
	}
	t.Fatalf("no process wrote its number into %s", file)
	return 0
}

// kill kills a process, or the group of a negative number.
func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("killing process %d: %v", pid, err)
	}
}

// TestScript has a script call cwltool twice, ignore that it failed, and write
// without end.
func TestScript(t *testing.T) {
	l := newLive(t, "sh", "./script.sh")
	l.write("script.sh", `
yes 'WARNING of a job that talks too much, again and again and again' | head -n 50000 >&2
cwltool --quiet --outdir out loud.cwl || true
cwltool --quiet --outdir out gen.cwl gen.yml
`)
	l.write("loud.cwl", `
cwlVersion: v1.2
class: CommandLineTool
baseCommand: [sh, -c, 'yes "[job loud.cwl] a line" | head -n 50000 >&2; exit 4']
inputs: {}
outputs: {}
`)
	out := l.watch(t.Context())
	v := l.want(out, workflow.StatusFailed, 0, 2, 1, 1, 0)
	if len(v.Log) > 1<<20 || v.Messages > 500 {
		t.Errorf("%d bytes of log in %d messages of a run that says the same thing again and again", len(v.Log), v.Messages)
	}
	if j := v.ByName["loud.cwl"]; j.ExitCode == nil || *j.ExitCode != 4 {
		t.Errorf("the loud job is %+v", j)
	}
	if v.ByName["gen.cwl"].ID != engines.JobID(enginetest.WorkflowID, "cwl", "2:gen.cwl") {
		t.Errorf("the second cwltool's job is %+v", v.ByName["gen.cwl"])
	}
}

func TestBrokenDocument(t *testing.T) {
	l := newLive(t, "cwltool", "broken.cwl")
	out := l.watch(t.Context())
	l.want(out, workflow.StatusFailed, 1, 0, 0, 0, 0)
	if !strings.Contains(out.Reason, "not-there.cwl") {
		t.Errorf("the reason is %q", out.Reason)
	}
}

func TestPrintingIsNoRun(t *testing.T) {
	l := newLive(t, "cwltool", "--validate", "gen.cwl")
	out := l.watch(t.Context())
	if v := l.run.View(); out.Watched || out.ExitCode != 0 || v.Messages != 0 || v.Submission != nil || !strings.Contains(l.console.Stdout(), "is valid CWL") {
		t.Errorf("%+v with %d messages, and on standard output: %s", out, v.Messages, l.console.Stdout())
	}
}
