package cwl

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"waymark/engines"
	"waymark/engines/enginetest"
	"waymark/workflow"
)

// The tests of this file run the real Toil. It takes its time, and so one run
// serves several ends.

func newToil(t *testing.T, args ...string) *live {
	l := newLive(t, args...)
	l.write("tmp/own.txt", "Toil leaves here what it has not removed when it is killed")
	l.env = []string{"TMPDIR=" + filepath.Join(l.dir, "tmp")}
	return l
}

// chained are steps of which Toil has one worker do as many as it can: the second
// fails at first, the third for good.
func chained(folder string) string {
	return `
cwlVersion: v1.2
class: Workflow
inputs: {}
outputs: {}
steps:
  first:
    run: {class: CommandLineTool, baseCommand: [sh, -c, 'echo out; echo "of the first" >&2'], inputs: {}, stdout: o.txt, outputs: {o: stdout}}
    in: {}
    out: [o]
  second:
    run: {class: CommandLineTool, baseCommand: [sh, -c, 'echo tried; echo tried >&2; test -e ` + folder + `/tried || { touch ` + folder + `/tried; exit 5; }'], inputs: {i: File}, stdout: o.txt, outputs: {o: stdout}}
    in: {i: first/o}
    out: [o]
  third:
    run: {class: CommandLineTool, baseCommand: [sh, -c, 'echo "no more of it" >&2; kill -9 $$'], inputs: {i: File}, outputs: {}}
    in: {i: second/o}
    out: []
`
}

// TestToilChains hears of the steps by the hook. What the bus alone tells of them is
// in a recording.
func TestToilChains(t *testing.T) {
	l := newToil(t, "toil-cwl-runner", "--retryCount", "1", "--outdir", "out", "chained.cwl")
	l.write("chained.cwl", chained(l.dir))
	out := l.watch(t.Context())
	v := l.want(out, workflow.StatusFailed, 1, 3, 2, 1, 0)
	for name, want := range map[string]struct {
		status        workflow.JobStatus
		exit, attempt int
		log           string // of all attempts
	}{
		"first":  {workflow.JobFinished, 0, 1, "of the first\n"},
		"second": {workflow.JobFinished, 0, 2, "tried\ntried\ntried\n"},
		"third":  {workflow.JobFailed, 137, 2, "no more of it\nno more of it\n"},
	} {
		j := v.ByName["chained.cwl."+name]
		if j.Status != want.status || j.ExitCode == nil || *j.ExitCode != want.exit || j.Attempt != want.attempt || j.StartedAt.IsZero() || j.FinishedAt.Before(j.StartedAt) {
			t.Errorf("the %s job is %+v, want %v with %d after %d attempts", name, j, want.status, want.exit, want.attempt)
		}
		if got := v.JobLogs["chained.cwl."+name]; got != want.log {
			t.Errorf("the log of the %s job is %q, want %q", name, got, want.log)
		}
	}
	if third := v.ByName["chained.cwl.third"]; third.Diagnostics != "was terminated by signal: SIGKILL" || !strings.HasPrefix(third.Command, `sh -c 'echo "no more of it"`) {
		t.Errorf("the failed job is %+v", third)
	}
	if want := "job chained.cwl.third failed: was terminated by signal: SIGKILL"; out.Reason != want {
		t.Errorf("the reason is %q, want %q", out.Reason, want)
	}
	if strings.Contains(l.console.Stderr(), "waymark") {
		t.Errorf("what Toil writes tells of us: %s", l.console.Stderr())
	}
	l.specific(v, `"mode":"hook"`, `"version":"`)
}

// TestToilIsAsWithoutUs has a scatter over a subworkflow, a condition, and a job
// that shows its environment, and compares what comes out with a run without us.
func TestToilIsAsWithoutUs(t *testing.T) {
	l := newToil(t, "toil-cwl-runner", "--logError", "--preserve-entire-environment", "--outdir", "out", "many.cwl")
	l.write("many.cwl", `
cwlVersion: v1.2
class: Workflow
requirements: {ScatterFeatureRequirement: {}, SubworkflowFeatureRequirement: {}, InlineJavascriptRequirement: {}}
inputs: {numbers: {type: 'int[]', default: [1, 2]}, draw: {type: boolean, default: false}}
outputs:
  env: {type: File, outputSource: show/o}
  texts: {type: 'string[]', outputSource: each/text}
steps:
  each:
    run:
      class: Workflow
      id: inner
      inputs: {i: int}
      outputs: {text: {type: string, outputSource: cut/text}}
      steps:
        make:
          run: {class: CommandLineTool, id: maker, baseCommand: [sh, -c, 'echo "number $0"; echo "made $0" >&2'], inputs: {i: {type: int, inputBinding: {position: 1}}}, stdout: o.txt, outputs: {o: stdout}}
          in: {i: i}
          out: [o]
        cut:
          run: {class: ExpressionTool, id: cutter, inputs: {f: {type: File, loadContents: true}}, outputs: {text: string}, expression: '${return {text: inputs.f.contents.trim()};}'}
          in: {f: make/o}
          out: [text]
    scatter: i
    in: {i: numbers}
    out: [text]
  show:
    run: {class: CommandLineTool, id: shower, baseCommand: [sh, -c, 'env | grep -v ^SHLVL'], inputs: {}, stdout: env.txt, outputs: {o: stdout}}
    in: {}
    out: [o]
  picture:
    run: {class: CommandLineTool, id: draw, baseCommand: ['true'], inputs: {draw: boolean}, outputs: {}}
    when: $(inputs.draw)
    in: {draw: draw}
    out: []
`)
	l.write("own/sitecustomize.py", "import os\nopen(os.path.join(os.path.dirname(__file__), os.environ['WHO']), 'a').write('x')\n")
	own := filepath.Join(l.dir, "own")
	l.env = append(l.env, "PYTHONPATH="+own, "WHO=with")

	var written strings.Builder
	bare := exec.Command("toil-cwl-runner", "--logError", "--preserve-entire-environment", "--outdir", "bare", "many.cwl")
	bare.Dir, bare.Env, bare.Stdout = l.dir, slices.Concat(os.Environ(), l.env, []string{"WHO=without"}), &written
	if err := bare.Start(); err != nil {
		t.Fatal(err)
	}
	v := l.want(l.watch(t.Context()), workflow.StatusFinished, 0, 6, 6, 0, 0)
	if err := bare.Wait(); err != nil {
		t.Fatalf("Toil without us: %v", err)
	}
	environment := func(of string) (names []string) {
		text, err := os.ReadFile(filepath.Join(l.dir, of, "env.txt"))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			if name == "PYTHONPATH" {
				name += "=" + value
			}
			names = append(names, name)
		}
		slices.Sort(names)
		return names
	}
	want := strings.ReplaceAll(written.String(), "/bare/", "/out/")
	if diff := cmp.Diff(withoutChecksum(t, want), withoutChecksum(t, l.console.Stdout())); diff != "" {
		t.Errorf("what Toil writes on standard output (-without +with us):\n%s", diff)
	}
	if diff := cmp.Diff(environment("bare"), environment("out")); diff != "" {
		t.Errorf("what the job has in its environment (-without +with us):\n%s", diff)
	}
	for _, who := range []string{"without", "with"} { // the leader, and a worker or more
		if ran, err := os.ReadFile(filepath.Join(own, who)); err != nil || len(ran) < 2 {
			t.Errorf("the user's own sitecustomize ran %d times %s us (%v)", len(ran), who, err)
		}
	}
	if l.console.Stderr() != "" && !strings.HasPrefix(l.console.Stderr(), "You are using cwltool version") {
		t.Errorf("with --logError Toil writes %q", l.console.Stderr())
	}
	// Both jobs of the scatter have this name, and no text of the log was written.
	maker := v.ByName["many.cwl.inner.make.maker"]
	for name, j := range v.ByName {
		if strings.HasSuffix(name, "maker") {
			maker = j
		}
	}
	if log := v.JobLogs[maker.Name]; !strings.HasPrefix(log, "made ") || !strings.HasPrefix(maker.Command, "sh -c 'echo") {
		t.Errorf("the job is %+v with the log %q", maker, log)
	}
	l.specific(v, `"skipped":["many.cwl.picture.draw"]`)
}

// withoutChecksum is an output object without what depends on what a file holds.
func withoutChecksum(t *testing.T, text string) map[string]any {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatalf("Toil's output is %q: %v", text, err)
	}
	if env, ok := doc["env"].(map[string]any); ok {
		delete(env, "checksum")
		delete(env, "size")
	}
	return doc
}

func TestToilIsEnded(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(engines.SignalName(signal), func(t *testing.T) {
			l := newToil(t, "sh", "-c", `echo $$ > engine; exec "$@"`, "sh", "toil-cwl-runner", "--outdir", "out", "sleeping.cwl")
			l.write("sleeping.cwl", strings.Replace(sleeping, "echo $PPID > PARENT", "echo $PPID > "+filepath.Join(l.dir, "worker"), 1))
			began := func(v enginetest.View) bool { return v.ByName["sleeping.cwl.sleep"].Command != "" }
			out := l.watchUntil("running", began, func(stop context.CancelCauseFunc) {
				worker, err := syscall.Getpgid(processIn(t, filepath.Join(l.dir, "worker")))
				if err != nil {
					t.Errorf("finding the group of the worker: %v", err)
				}
				if signal == syscall.SIGKILL {
					kill(t, processIn(t, filepath.Join(l.dir, "engine")))
					kill(t, -worker) // has a session of its own, and is left alone by us
					return
				}
				t.Cleanup(func() {
					if err := syscall.Kill(-worker, 0); !errors.Is(err, syscall.ESRCH) {
						t.Errorf("the worker is not ended with Toil (%v)", err)
						_ = syscall.Kill(-worker, syscall.SIGKILL)
					}
				})
				stop(&engines.StopError{Signal: signal})
			})
			status, reason, counts := workflow.StatusStopped, "stopped by "+engines.SignalName(signal), engines.Counts{Total: 1, Stopped: 1}
			if signal == syscall.SIGKILL {
				status, reason, counts = workflow.StatusFailed, "the engine was killed by SIGKILL", engines.Counts{Total: 1, Failed: 1}
			}
			if out.Status != status || out.ExitCode == 0 || out.Reason != reason || out.Counts != counts {
				t.Errorf("the run is %v (%s) with %d, %+v; want it %v (%s), %+v", out.Status, out.Reason, out.ExitCode, out.Counts, status, reason, counts)
			}
		})
	}
}
