package serial

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"waymark/engines"
	"waymark/workflow"
)

// recorder is a publisher that keeps all it is given, and appends it to a file
// if it has one.
type recorder struct {
	mu          sync.Mutex
	submissions []*workflow.Submission
	statuses    []*workflow.StatusMessage
	file        string
}

type recorded struct {
	Submission *workflow.Submission    `json:",omitempty"`
	Status     *workflow.StatusMessage `json:",omitempty"`
}

func (r *recorder) Submission(_ context.Context, s *workflow.Submission) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.submissions = append(r.submissions, s)
	return r.append(recorded{Submission: s})
}

func (r *recorder) Status(_ context.Context, m *workflow.StatusMessage) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.statuses = append(r.statuses, m)
	return r.append(recorded{Status: m})
}

func (r *recorder) append(line recorded) error {
	if r.file == "" {
		return nil
	}
	text, err := json.Marshal(line)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(r.file, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, '\n'))
	return errors.Join(err, f.Close())
}

// load adds the messages that another process recorded in a file.
func (r *recorder) load(t *testing.T, file string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		var message recorded
		if err := json.Unmarshal(line, &message); err != nil {
			t.Fatalf("recorded line %q: %v", line, err)
		}
		if message.Submission != nil {
			r.submissions = append(r.submissions, message.Submission)
		} else {
			r.statuses = append(r.statuses, message.Status)
		}
	}
}

// fold is the run as observers see it.
func (r *recorder) fold() *workflow.State {
	state := workflow.NewState(workflow.Run{})
	for _, s := range r.submissions {
		state.Submit(s)
	}
	for _, m := range r.statuses {
		state.Apply(m)
	}
	return state
}

// check reports what must hold of the messages of any run that has ended.
func (r *recorder) check(t *testing.T, result Result) {
	t.Helper()
	if len(r.submissions) == 0 || len(r.statuses) < 2 {
		t.Fatalf("%d submissions and %d statuses were published", len(r.submissions), len(r.statuses))
	}
	s := r.submissions[len(r.submissions)-1]
	if s.ID() != result.WorkflowID || s.User == "" || s.DisplayName() == "" || s.Engine != "serial" || !json.Valid(s.Parameters) || !json.Valid(s.Specification) {
		t.Errorf("the submission lacks something: %+v", s)
	}
	first, last := r.statuses[0], r.statuses[len(r.statuses)-1]
	if first.Status != workflow.StatusRunning || first.Progress.Total == nil || !strings.Contains(string(first.Progress.EngineSpecific), `"dag"`) {
		t.Errorf("the first message has status %v, total %v, engine specific %s", first.Status, first.Progress.Total, first.Progress.EngineSpecific)
	}
	if last.Status != result.Status || last.Progress.Finished == nil || len(last.Progress.Finished.JobIDs) != result.Finished {
		t.Errorf("the last message has status %v and %v finished; the result has %v and %d", last.Status, last.Progress.Finished, result.Status, result.Finished)
	}
	for i, m := range r.statuses {
		if m.WorkflowID != result.WorkflowID || m.Engine != "serial" || m.EventTime.IsZero() {
			t.Errorf("message %d lacks something: %+v", i, m)
		}
	}
	if result.Report.Unsent != 0 || result.Report.Published != result.Report.Confirmed {
		t.Errorf("not all was published: %+v", result.Report)
	}
	run := r.fold().Run
	if run.Status() != result.Status || run.Attempt != result.Attempt {
		t.Errorf("observers see attempt %d %v, the result is attempt %d %v", run.Attempt, run.Status(), result.Attempt, result.Status)
	}
	if why := reason(t, run.EngineSpecific); why != result.Reason {
		t.Errorf("observers see the reason %q, the result is %q", why, result.Reason)
	}
	counts := run.Counts()
	if counts.Total != result.Total || counts.Finished != result.Finished || counts.Cached != result.Cached || counts.Running != 0 {
		t.Errorf("observers count %+v, the result %d of %d, %d cached", counts, result.Finished, result.Total, result.Cached)
	}
}

// reason is why a run did not finish, as readers find it.
func reason(t *testing.T, document json.RawMessage) string {
	t.Helper()
	var said struct{ Reason string }
	if err := json.Unmarshal(document, &said); err != nil {
		t.Errorf("engine specific %s: %v", document, err)
	}
	return said.Reason
}

// repeats are the events of commands that ended well and run again.
func (tr *trial) repeats() (events []Event) {
	for _, e := range tr.events {
		if e.Kind == RunRepeats {
			events = append(events, e)
		}
	}
	return events
}

// trial is one run under test.
type trial struct {
	recorder
	result Result
	err    error
	output bytes.Buffer
	log    bytes.Buffer
	events []Event
}

// try runs the file at path in a new workspace, unless cfg names one.
func try(t *testing.T, ctx context.Context, path string, cfg RunConfig) *trial {
	t.Helper()
	w, err := Load(path, Overrides{})
	if err != nil {
		t.Fatal(err)
	}
	return w.try(t, ctx, cfg)
}

func (w *Workflow) try(t *testing.T, ctx context.Context, cfg RunConfig) *trial {
	t.Helper()
	tr := &trial{}
	if cfg.Workspace == "" {
		cfg.Workspace = filepath.Join(t.TempDir(), "workspace")
	}
	if cfg.Publisher == nil {
		cfg.Publisher = &tr.recorder
	}
	if cfg.Output == nil {
		cfg.Output = &tr.output
	}
	if cfg.Interval == 0 {
		cfg.Interval = -1 // every change that can have a message of its own has one
	}
	observe := cfg.Observe
	cfg.Observe = func(e Event) {
		tr.events = append(tr.events, e)
		if observe != nil {
			observe(e)
		}
	}
	cfg.Logger = slog.New(slog.NewTextHandler(&tr.log, nil))
	tr.result, tr.err = w.Run(ctx, cfg)
	return tr
}

// steps writes a workflow of unnamed steps with one command each.
func steps(t *testing.T, commands ...string) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("workflow: {type: serial, specification: {steps: [")
	for _, c := range commands {
		text, err := json.Marshal(strings.ReplaceAll(c, "$", "$$"))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "{commands: [%s]},", text)
	}
	b.WriteString("]}}\n")
	return writeSpec(t, b.String())
}

// eventually waits for a condition outside this process's control.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-deadline:
			t.Fatalf("within 20 s it did not happen that %s", what)
		case <-tick.C:
		}
	}
}

// alive reports whether the process whose id is in the file runs, and not only
// waits to be buried.
func alive(t *testing.T, pidFile string) bool {
	t.Helper()
	s := state(t, pidFile)
	return s != "" && s != "Z" && s != "X"
}

// state is the state of the process whose id is in the file, as ps names it;
// empty if there is none.
func state(t *testing.T, pidFile string) string {
	t.Helper()
	text, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatalf("%s holds no process id: %v", pidFile, err)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, fields, _ := strings.Cut(string(stat), ") ")
	return fields[:1]
}

func TestRunTellsEverything(t *testing.T) {
	path := writeSpec(t, `
inputs: {parameters: {who: world}}
workflow:
  type: serial
  specification:
    steps:
    - {name: greet, environment: debian:12, commands: ['echo "Hello ${who}"; echo oops >&2', 'echo $who > out.txt']}
    - {name: check, commands: ['test -s out.txt']}
`)
	tr := try(t, t.Context(), path, RunConfig{Name: "demo", Owner: "ada", Version: "1.2.3", Labels: map[string]string{"k": "v"}})
	if tr.err != nil || tr.result.Status != workflow.StatusFinished || tr.result.ExitCode != 0 || tr.result.Finished != 3 || tr.result.Total != 3 {
		t.Fatalf("result %+v, error %v", tr.result, tr.err)
	}
	tr.check(t, tr.result)

	s := tr.submissions[0]
	if s.User != "ada" || s.Name != "demo" || s.Labels["k"] != "v" || string(s.Parameters) != `{"input_parameters":{"who":"world"},"operational_options":{}}` {
		t.Errorf("submission: %+v", s)
	}
	id := JobID(tr.result.WorkflowID, 0, 0)
	if want := uuid.NewSHA1(tr.result.WorkflowID, []byte("serial:0/0")).String(); id != want {
		t.Errorf("the job's id is %s, want %s", id, want)
	}
	state := tr.fold()
	job := state.Jobs[id]
	if job == nil || job.Status != workflow.JobFinished || job.Name != "greet" || job.Command != `echo "Hello world"; echo oops >&2` || job.ExitCode == nil || *job.ExitCode != 0 || job.StartedAt.IsZero() || job.FinishedAt.Before(job.StartedAt) {
		t.Errorf("the first job is %+v", job)
	}
	logs := map[string]string{}
	for _, m := range tr.statuses {
		for _, j := range m.Jobs {
			logs[j.ID] += j.Logs
		}
	}
	if logs[id] != "Hello world\noops\n" {
		t.Errorf("the first job's log is %q", logs[id])
	}
	file, err := os.ReadFile(filepath.Join(tr.result.Workspace, ".waymark/logs/1-1.log"))
	if err != nil || string(file) != logs[id] || tr.output.String() != logs[id] {
		t.Errorf("the log file has %q (%v), the terminal %q", file, err, tr.output.String())
	}
	var specific struct {
		Engine, Version string
		Dag             struct {
			Edges [][2]string
			Nodes []struct {
				ID       string
				Metadata struct{ Name string }
				JobID    struct {
					JobID string `json:"job_id"`
				}
			}
		}
	}
	if err := json.Unmarshal(state.Run.EngineSpecific, &specific); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([][2]string{{"0/0", "0/1"}, {"0/1", "1/0"}}, specific.Dag.Edges); diff != "" {
		t.Errorf("edges (-want +got):\n%s", diff)
	}
	if specific.Engine != "serial" || specific.Version != "1.2.3" || specific.Dag.Nodes[0].JobID.JobID != id || specific.Dag.Nodes[2].Metadata.Name != "check" {
		t.Errorf("engine specific: %+v", specific)
	}
	if n := strings.Count(tr.log.String(), "not in the container images"); n != 1 {
		t.Errorf("%d warnings that images are not used, want 1:\n%s", n, tr.log.String())
	}
	var kinds []EventKind
	for _, e := range tr.events {
		kinds = append(kinds, e.Kind)
	}
	if want := []EventKind{RunStarted, JobStarted, JobFinished, JobStarted, JobFinished, JobStarted, JobFinished, RunEnded}; !slices.Equal(kinds, want) {
		t.Errorf("events %v, want %v", kinds, want)
	}
	if last := tr.events[len(tr.events)-1]; last.Done != 3 || last.Total != 3 {
		t.Errorf("the last event has %d of %d done", last.Done, last.Total)
	}
}

func TestRunStopsAtTheFirstFailure(t *testing.T) {
	tests := []struct {
		command string
		code    int
		reason  string
	}{
		{"echo going wrong >&2; exit 7", 7, "exit code 7"},
		{"echo going wrong >&2; kill -KILL $$", 137, "killed by SIGKILL"},
		{"echo going wrong >&2; sh -c 'kill -TERM $$'", 143, "exit code 143, as after SIGTERM"},
		{"echo going wrong >&2; no-such-program-at-all", 127, "exit code 127"},
		{"echo going wrong >&2; if then", 2, "exit code 2"},
	}
	for _, tt := range tests {
		t.Run(tt.command, func(t *testing.T) {
			t.Parallel()
			tr := try(t, t.Context(), steps(t, "echo fine", tt.command, "echo never"), RunConfig{})
			if tr.err != nil || tr.result.Status != workflow.StatusFailed || tr.result.ExitCode != tt.code {
				t.Fatalf("result %+v, error %v; want failed with %d", tr.result, tr.err, tt.code)
			}
			tr.check(t, tr.result)
			if f := tr.result.Failed; f == nil || f.Where() != "step 2, command 1" || f.Reason != tt.reason || f.ExitCode != tt.code {
				t.Errorf("failure %+v, want %q", f, tt.reason)
			}
			if strings.Contains(tr.output.String(), "never") {
				t.Error("the run went on after the failure")
			}
			end := tr.statuses[len(tr.statuses)-1]
			for _, want := range []string{"step 2, command 1: " + tt.reason, "going wrong"} {
				if tt.command != "echo going wrong >&2; if then" && !strings.Contains(end.Logs, want) {
					t.Errorf("the run's last words %q do not say %q", end.Logs, want)
				}
			}
			job := tr.fold().Jobs[tr.result.Failed.JobID]
			if job.Status != workflow.JobFailed || *job.ExitCode != tt.code || job.Diagnostics != tt.reason {
				t.Errorf("observers see the job %v, exit code %d, %q", job.Status, *job.ExitCode, job.Diagnostics)
			}
		})
	}
}

// The recorded runs of REANA's own engine: ours arrives at the same jobs, except
// where the table says why not.
func TestRunAsREANA(t *testing.T) {
	tests := []struct {
		name, spec string
		options    map[string]string
		status     workflow.Status
		total      int    // 0: as REANA
		difference string // why it is not as REANA
	}{
		{name: "hello", spec: "hello", status: workflow.StatusFinished},
		{name: "analysis", spec: "analysis", status: workflow.StatusFinished},
		{name: "failing", spec: "failing", status: workflow.StatusFailed},
		{name: "cache-on-but-CACHE-off", spec: "analysis", options: map[string]string{"CACHE": "off"}, status: workflow.StatusFinished},
		{name: "from-fitdata", spec: "analysis", options: map[string]string{"FROM": "fitdata"}, status: workflow.StatusFailed, total: 2},
		{name: "target-fitdata", spec: "analysis", options: map[string]string{"TARGET": "fitdata"}, status: workflow.StatusFinished, total: 3},
		{name: "missing-parameter", spec: "missing-parameter", status: workflow.StatusFailed},
		{name: "from-after-target", spec: "analysis", difference: "FROM=plot is step 3 and comes after TARGET=gendata"},
		{name: "unknown-target", spec: "analysis", difference: "TARGET=nosuch names no step: the steps are gendata, fitdata, plot"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			options, total, finished, failed := reanaRun(t, tt.name)
			if tt.options != nil && !maps.Equal(tt.options, options) {
				t.Fatalf("the recording was made with %v, the test has %v", options, tt.options)
			}
			spec, err := os.ReadFile(filepath.Join(testdata, "specs", tt.spec+".yaml"))
			if err != nil {
				t.Fatal(err)
			}
			path := writeFiles(t, map[string]string{
				"reana.yaml": string(spec), "code/gen.sh": "seq 3\n", "data/raw.txt": "1\n", "data/names.txt": "Ada\nEmmy\n",
			})
			w, err := Load(path, Overrides{Options: options})
			if tt.difference != "" {
				if err == nil || !strings.Contains(err.Error(), tt.difference) {
					t.Fatalf("error %v, want %q", err, tt.difference)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			tr := w.try(t, t.Context(), RunConfig{})
			tr.check(t, tr.result)
			if tt.total != 0 {
				total = tt.total // REANA counts what FROM and TARGET leave out
			}
			counts := tr.fold().Run.Counts()
			if want := (workflow.Counts{Total: total, Finished: finished, Failed: failed}); tr.result.Status != tt.status || counts != want {
				t.Errorf("%v with %+v; REANA has %v with %+v", tr.result.Status, counts, tt.status, want)
			}
			var commands []string
			for _, e := range tr.events {
				if e.Kind == JobStarted {
					commands = append(commands, e.Text)
				}
			}
			if diff := cmp.Diff(reanaCommands(t, tt.name), commands); diff != "" {
				t.Errorf("commands (-REANA +ours):\n%s", diff)
			}
		})
	}
}

// reanaRun is what a recorded run of REANA announced and arrived at.
func reanaRun(t *testing.T, name string) (options map[string]string, total, finished, failed int) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(testdata, "reana-wire", name+".jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var run workflow.Run
	state := workflow.NewState(run)
	for line := range bytes.Lines(data) {
		var message struct {
			Options map[string]string
			Decoded *struct {
				Status  workflow.Status
				Message struct {
					Progress struct{ Total, Running, Finished, Failed *workflow.Section }
				}
			}
		}
		if err := json.Unmarshal(line, &message); err != nil {
			t.Fatal(err)
		}
		if message.Decoded == nil {
			options = message.Options
			continue
		}
		p := message.Decoded.Message.Progress
		state.Apply(&workflow.StatusMessage{Status: message.Decoded.Status, EventTime: time.Now(),
			Progress: workflow.Progress{Total: p.Total, Running: p.Running, Finished: p.Finished, Failed: p.Failed}})
	}
	c := state.Run.Counts()
	return options, c.Total, c.Finished, c.Failed
}

// reanaCommands are the commands that REANA's engine submitted.
func reanaCommands(t *testing.T, name string) (commands []string) {
	t.Helper()
	var submitted []struct {
		Command string `json:"prettified_cmd"`
	}
	readJSON(t, filepath.Join("reana-wire", name+".submitted.json"), &submitted)
	for _, s := range submitted {
		commands = append(commands, s.Command)
	}
	return commands
}

func TestRunRepeatedLastCommand(t *testing.T) {
	// REANA takes the first of two equal commands for the last one, and ends.
	path := writeSpec(t, "workflow: {type: serial, specification: {steps: [{name: a, commands: [echo x, echo y, echo x]}, {name: a, commands: [echo x, echo y, echo x]}]}}\n")
	tr := try(t, t.Context(), path, RunConfig{})
	tr.check(t, tr.result)
	if tr.result.Finished != 6 || tr.output.String() != "x\ny\nx\nx\ny\nx\n" {
		t.Errorf("%d commands ran, printing %q", tr.result.Finished, tr.output.String())
	}
}

func TestRunWithoutSteps(t *testing.T) {
	// REANA never says that such a workflow has ended.
	tr := try(t, t.Context(), writeSpec(t, "workflow: {type: serial, specification: {steps: []}}\n"), RunConfig{})
	tr.check(t, tr.result)
	if tr.err != nil || tr.result.Status != workflow.StatusFinished || tr.result.Total != 0 {
		t.Errorf("result %+v, error %v; want finished with total 0", tr.result, tr.err)
	}
}

func TestRunSubstitutionFails(t *testing.T) {
	path := writeSpec(t, `
workflow:
  type: serial
  specification:
    steps:
    - {name: touch, commands: [touch ran]}
    - name: first
      commands:
      - "true"
      - awk '{print $1}'
    - commands: [echo $undefined]
`)
	tr := try(t, t.Context(), path, RunConfig{})
	if tr.err == nil || tr.result.Status != workflow.StatusFailed || tr.result.ExitCode != 1 {
		t.Fatalf("result %+v, error %v", tr.result, tr.err)
	}
	tr.check(t, tr.result)
	for _, want := range []string{
		"step 2 (first), command 2 (reana.yaml:10): invalid placeholder at line 1, column 13: write $$ for a dollar sign",
		`step 3, command 1 (reana.yaml:11): no parameter is named "undefined" (at line 1, column 6)`, "write $$undefined",
	} {
		if end := tr.statuses[len(tr.statuses)-1]; !strings.Contains(end.Logs, want) || !strings.Contains(tr.err.Error(), want) {
			t.Errorf("neither the last message %q nor the error %q may lack %q", end.Logs, tr.err, want)
		}
	}
	if _, err := os.Stat(filepath.Join(tr.result.Workspace, "ran")); err == nil {
		t.Error("a command ran although another could not be substituted")
	}
}

func TestRunStopped(t *testing.T) {
	tests := []struct {
		name    string
		command string
		grace   time.Duration
		haste   bool
		code    int
	}{
		{name: "ends at once", command: "sleep 1000 & echo $! > child; echo ready; wait", grace: time.Minute, code: 143},
		{name: "exits well when asked to", command: "trap 'exit 0' TERM; sleep 1000 & echo $! > child; echo ready; wait", grace: time.Minute},
		{name: "deaf", command: "trap '' TERM; sleep 1000 & echo $! > child; echo ready; wait", grace: 50 * time.Millisecond, code: 137},
		{name: "deaf child", command: "(trap '' TERM; exec sleep 1000) & echo $! > child; echo ready; wait", grace: 50 * time.Millisecond, code: 143},
		{name: "deaf, with haste", command: "trap '' TERM; sleep 1000 & echo $! > child; echo ready; wait", grace: time.Hour, haste: true, code: 137},
		{name: "asleep", command: "sleep 1000 & echo $! > child; echo $$ > shell; echo ready; kill -STOP $$", grace: time.Minute, code: 143},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			hurry := make(chan struct{})
			workspace := filepath.Join(t.TempDir(), "w")
			out := &watcher{text: "ready", then: func() {
				if tt.name == "asleep" {
					for state(t, filepath.Join(workspace, "shell")) != "T" { // a moment
						runtime.Gosched()
					}
				}
				cancel(&engines.StopError{Signal: syscall.SIGINT})
				if tt.haste {
					close(hurry)
				}
			}}
			tr := try(t, ctx, steps(t, "true", tt.command, "echo never"), RunConfig{Workspace: workspace, Grace: tt.grace, Hurry: hurry, Output: out})
			tr.check(t, tr.result)
			if tr.err != nil || tr.result.Status != workflow.StatusStopped || tr.result.Reason != "stopped by SIGINT" || tr.result.ExitCode != 130 {
				t.Fatalf("result %+v, error %v", tr.result, tr.err)
			}
			if alive(t, filepath.Join(tr.result.Workspace, "child")) {
				t.Error("a child of the command lives on")
			}
			job := tr.fold().Jobs[JobID(tr.result.WorkflowID, 1, 0)]
			if job.Status != workflow.JobStopped || *job.ExitCode != tt.code || job.Diagnostics != "stopped by SIGINT" {
				t.Errorf("observers see the job %v, exit code %d (want %d), %q", job.Status, *job.ExitCode, tt.code, job.Diagnostics)
			}
			if end := tr.statuses[len(tr.statuses)-1]; !strings.HasPrefix(end.Logs, "stopped by SIGINT\n") {
				t.Errorf("the run's last words are %q", end.Logs)
			}
		})
	}
}

// watcher is an output that calls then once when it has seen text.
type watcher struct {
	text string
	then func()
	seen bytes.Buffer
	done bool
}

func (w *watcher) Write(p []byte) (int, error) {
	w.seen.Write(p)
	if !w.done && strings.Contains(w.seen.String(), w.text) {
		w.done = true
		w.then()
	}
	return len(p), nil
}

func TestRunStoppedBetweenCommands(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	tr := try(t, ctx, steps(t, "echo one", "echo two"), RunConfig{Observe: func(e Event) {
		if e.Kind == JobFinished {
			cancel(errors.New("no more electricity"))
		}
	}})
	tr.check(t, tr.result)
	if tr.result.Status != workflow.StatusStopped || tr.result.Finished != 1 || tr.result.Reason != "stopped: no more electricity" || tr.result.ExitCode != 1 {
		t.Errorf("result %+v", tr.result)
	}
}

func TestRunTimeout(t *testing.T) {
	path := writeSpec(t, "workflow: {type: serial, specification: {steps: [{name: slow, kubernetes_job_timeout: 0.2, commands: ['true', 'echo begun; sleep 1000']}]}}\n")
	tr := try(t, t.Context(), path, RunConfig{})
	tr.check(t, tr.result)
	if tr.result.Status != workflow.StatusFailed || tr.result.ExitCode != 124 || tr.result.Reason != "step 1 (slow), command 2: timed out after 0.2 s" {
		t.Errorf("result %+v", tr.result)
	}
	if job := tr.fold().Jobs[tr.result.Failed.JobID]; job.Status != workflow.JobFailed || *job.ExitCode != 143 || job.Diagnostics != "timed out after 0.2 s" {
		t.Errorf("observers see the job %v, exit code %d, %q", job.Status, *job.ExitCode, job.Diagnostics)
	}
}

func TestRunLeavesNothingBehind(t *testing.T) {
	for name, command := range map[string]string{
		"holding the output": "sleep 1000 & echo $! > child; echo done",
		"detached":           "sleep 1000 > /dev/null 2>&1 & echo $! > child; echo done",
		"deaf":               "(trap '' TERM; exec sleep 1000) > /dev/null 2>&1 & echo $! > child; echo done",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			begin := time.Now()
			tr := try(t, t.Context(), steps(t, command, "echo next"), RunConfig{})
			tr.check(t, tr.result)
			if tr.result.Status != workflow.StatusFinished || tr.output.String() != "done\nnext\n" {
				t.Errorf("result %+v, output %q", tr.result, tr.output.String())
			}
			if took := time.Since(begin); took > 30*time.Second {
				t.Errorf("the run waited %v for a process in the background", took)
			}
			if alive(t, filepath.Join(tr.result.Workspace, "child")) {
				t.Error("the process in the background lives on")
			}
		})
	}
}

func TestRunTakesAnyOutput(t *testing.T) {
	const size = 20 << 20
	tr := try(t, t.Context(), steps(t,
		`printf 'a\000b\377\r\033[1mno newline'`,
		fmt.Sprintf("head -c %d /dev/zero; echo; echo the end", size),
	), RunConfig{Output: io.Discard})
	tr.check(t, tr.result)
	logs := map[string]string{}
	for _, m := range tr.statuses {
		for _, j := range m.Jobs {
			logs[j.ID] += j.Logs
		}
	}
	if got, want := logs[JobID(tr.result.WorkflowID, 0, 0)], "a\uFFFDb\uFFFD\r\x1b[1mno newline"; got != want {
		t.Errorf("the first job's log is %q, want %q", got, want)
	}
	log := logs[JobID(tr.result.WorkflowID, 1, 0)]
	if !strings.HasSuffix(log, "\nthe end\n") || !strings.HasPrefix(log, "[") || len(log) > 3*engines.TailSize+100 {
		t.Errorf("the second job's log has %d bytes, from %.60q to %q", len(log), log, log[max(0, len(log)-20):])
	}
	for name, want := range map[string]int64{"1-1.log": 19, "2-1.log": size + 9} {
		info, err := os.Stat(filepath.Join(tr.result.Workspace, ".waymark/logs", name))
		if err != nil || info.Size() != want {
			t.Errorf("%s: %v, error %v; want %d bytes", name, info.Size(), err, want)
		}
	}
}

func TestRunSurvivesTroubleWithLogs(t *testing.T) {
	workspace := t.TempDir()
	if err := os.MkdirAll(filepath.Join(workspace, ".waymark/logs"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"1-1.log", "2-1.log"} { // a disk that is always full
		if err := os.Symlink("/dev/full", filepath.Join(workspace, ".waymark/logs", name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(workspace, ".waymark/logs/3-1.log"), 0o755); err != nil {
		t.Fatal(err)
	}
	tr := try(t, t.Context(), steps(t, "echo a; echo b", "echo c", "echo d"), RunConfig{Workspace: workspace, Output: brokenPipe{}})
	tr.check(t, tr.result)
	if tr.result.Status != workflow.StatusFinished {
		t.Errorf("result %+v", tr.result)
	}
	if n := strings.Count(tr.log.String(), "cannot be written to its log"); n != 1 {
		t.Errorf("the trouble was told %d times, want 1:\n%s", n, tr.log.String())
	}
	if n := strings.Count(tr.log.String(), "no longer shown"); n != 1 {
		t.Errorf("the trouble with the terminal was told %d times, want 1:\n%s", n, tr.log.String())
	}
	logs := ""
	for _, m := range tr.statuses {
		for _, j := range m.Jobs {
			logs += j.Logs
		}
	}
	if logs != "a\nb\nc\nd\n" {
		t.Errorf("the jobs' logs are %q: they must not depend on the disk", logs)
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, syscall.EPIPE }

// gate is a publisher that confirms nothing until it is opened.
type gate struct {
	recorder
	open chan struct{}
}

func (g *gate) Submission(ctx context.Context, s *workflow.Submission) error {
	if err := g.wait(ctx); err != nil {
		return err
	}
	return g.recorder.Submission(ctx, s)
}

func (g *gate) Status(ctx context.Context, m *workflow.StatusMessage) error {
	if err := g.wait(ctx); err != nil {
		return err
	}
	return g.recorder.Status(ctx, m)
}

func (g *gate) wait(ctx context.Context) error {
	select {
	case <-g.open:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func TestRunDoesNotWaitForTheBroker(t *testing.T) {
	path := steps(t, "echo a", "echo b", "echo c")
	t.Run("back at the end", func(t *testing.T) {
		g := &gate{open: make(chan struct{})}
		tr := try(t, t.Context(), path, RunConfig{Publisher: g, Observe: func(e Event) {
			if e.Kind == RunEnded { // all commands have run, and nothing was confirmed
				if n := len(g.submissions); n != 0 {
					t.Errorf("%d submissions passed the closed gate", n)
				}
				close(g.open)
			}
		}})
		g.recorder.check(t, tr.result)
		if tr.result.Finished != 3 {
			t.Errorf("result %+v", tr.result)
		}
	})
	t.Run("away", func(t *testing.T) {
		g := &gate{open: make(chan struct{})}
		tr := try(t, t.Context(), path, RunConfig{Publisher: g, FinalTimeout: 100 * time.Millisecond})
		if tr.err != nil || tr.result.Status != workflow.StatusFinished || tr.result.Finished != 3 {
			t.Errorf("result %+v, error %v: the run is not to blame", tr.result, tr.err)
		}
		if tr.result.Report.Unsent == 0 || tr.result.Report.Err == nil {
			t.Errorf("the report hides that nobody knows: %+v", tr.result.Report)
		}
	})
	t.Run("refusing", func(t *testing.T) {
		tr := try(t, t.Context(), path, RunConfig{Publisher: refuser{}, FinalTimeout: 300 * time.Millisecond})
		if tr.result.Status != workflow.StatusFinished || tr.result.Report.Terminal == nil || tr.result.Report.Confirmed != 0 {
			t.Errorf("result %+v", tr.result)
		}
		if n := strings.Count(tr.log.String(), "access refused"); n != 1 {
			t.Errorf("the trouble was told %d times, want 1:\n%s", n, tr.log.String())
		}
	})
}

type refuser struct{}

func (refuser) Submission(context.Context, *workflow.Submission) error {
	return errors.New("access refused")
}
func (refuser) Status(context.Context, *workflow.StatusMessage) error {
	return errors.New("access refused")
}

func TestRunCopiesInputs(t *testing.T) {
	spec := "inputs: {files: [code/run.sh], directories: [data, .]}\n" +
		"workflow: {type: serial, specification: {steps: [{commands: ['code/run.sh > out.txt']}]}}\n"
	path := writeFiles(t, map[string]string{"reana.yaml": spec, "code/run.sh": "#!/bin/sh\ncat data/*.txt data/link\n", "data/a.txt": "A", "other": "B"})
	base := filepath.Dir(path)
	for _, err := range []error{
		os.Chmod(filepath.Join(base, "code/run.sh"), 0o755),
		os.Symlink("../other", filepath.Join(base, "data/link")),
		os.Symlink("nowhere", filepath.Join(base, "data/broken")),
		os.Chmod(filepath.Join(base, "other"), 0o400),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	workspace := filepath.Join(base, "work", "space") // within an input
	for i := range 2 {                                // the second finds the copies of the first
		tr := try(t, t.Context(), path, RunConfig{Workspace: workspace})
		tr.check(t, tr.result)
		out, err := os.ReadFile(filepath.Join(workspace, "out.txt"))
		if tr.result.Status != workflow.StatusFinished || string(out) != "AB" {
			t.Fatalf("run %d: %+v, error %v, output %q (%v)", i+1, tr.result, tr.err, out, err)
		}
	}
	if _, err := os.Stat(filepath.Join(workspace, "work/space")); err == nil {
		t.Error("the workspace was copied into itself")
	}
	if link, err := os.Readlink(filepath.Join(workspace, "data/broken")); err != nil || link != "nowhere" {
		t.Errorf("a link to nothing became %q, error %v", link, err)
	}

	tr := try(t, t.Context(), path, RunConfig{Workspace: base}) // where the inputs are
	tr.check(t, tr.result)
	if data, err := os.ReadFile(filepath.Join(base, "data/a.txt")); err != nil || string(data) != "A" {
		t.Errorf("an input that was in place became %q, error %v", data, err)
	}
}

func TestRunRefusesInputs(t *testing.T) {
	tests := []struct{ name, inputs, want string }{
		{"missing file", "files: [gone.txt]", `inputs.files names "gone.txt", which is not there`},
		{"missing directory", "directories: [gone]", `inputs.directories names "gone", which is not there`},
		{"directory as file", "files: [dir]", "it is a directory: list it below inputs.directories"},
		{"file as directory", "directories: [dir/a]", "it is a file: list it below inputs.files"},
		{"pipe", "files: [pipe]", "is neither a file nor a directory"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := writeFiles(t, map[string]string{"dir/a": "", "reana.yaml": "inputs: {" + tt.inputs + "}\nworkflow: {type: serial, specification: {steps: [{commands: [touch ran]}]}}\n"})
			if err := syscall.Mkfifo(filepath.Join(filepath.Dir(path), "pipe"), 0o644); err != nil {
				t.Fatal(err)
			}
			tr := try(t, t.Context(), path, RunConfig{})
			tr.check(t, tr.result)
			if tr.err == nil || !strings.Contains(tr.err.Error(), tt.want) || tr.result.Status != workflow.StatusFailed || tr.result.Finished != 0 {
				t.Errorf("result %+v, error %v; want %q", tr.result, tr.err, tt.want)
			}
		})
	}
}

func TestRunResumes(t *testing.T) {
	// Each command notes that it ran; the second fails until there is a file "go".
	text := func(third string) string {
		return "workflow: {type: serial, specification: {steps: [{name: a, commands: ['echo 1 >> ran', 'test -e go && echo 2 >> ran']}, {name: b, commands: ['" + third + "', 'echo 4 >> ran']}]}}\n"
	}
	path := writeSpec(t, text("echo 3 >> ran"))
	workspace := filepath.Join(t.TempDir(), "w")
	ran := func() string {
		data, err := os.ReadFile(filepath.Join(workspace, "ran"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.ReplaceAll(strings.TrimSpace(string(data)), "\n", " ")
	}
	all := &recorder{}
	resume := func(wantRan string, want Result) *trial {
		t.Helper()
		tr := try(t, t.Context(), path, RunConfig{Workspace: workspace, Resume: true})
		all.submissions, all.statuses = append(all.submissions, tr.submissions...), append(all.statuses, tr.statuses...)
		all.check(t, tr.result)
		got := Result{Attempt: tr.result.Attempt, Status: tr.result.Status, Finished: tr.result.Finished, Cached: tr.result.Cached}
		if !cmp.Equal(got, want) || ran() != wantRan {
			t.Errorf("ran %q with %+v, want %q with %+v", ran(), got, wantRan, want)
		}
		return tr
	}
	quiet := func(tr *trial) {
		t.Helper()
		if again := tr.repeats(); again != nil {
			t.Errorf("nothing has changed, and yet it says that something runs again: %+v", again)
		}
	}

	first := try(t, t.Context(), path, RunConfig{Workspace: workspace})
	all.submissions, all.statuses = first.submissions, first.statuses
	all.check(t, first.result)
	if first.result.Status != workflow.StatusFailed || ran() != "1" {
		t.Fatalf("the first run: %+v, ran %q", first.result, ran())
	}

	quiet(resume("1", Result{Attempt: 2, Status: workflow.StatusFailed, Finished: 1, Cached: 1}))
	if err := os.WriteFile(filepath.Join(workspace, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	tr := resume("1 2 3 4", Result{Attempt: 3, Status: workflow.StatusFinished, Finished: 4, Cached: 1})
	if tr.result.WorkflowID != first.result.WorkflowID {
		t.Errorf("the workflow's id changed from %v to %v", first.result.WorkflowID, tr.result.WorkflowID)
	}
	if job := all.fold().Jobs[JobID(tr.result.WorkflowID, 0, 1)]; job.Status != workflow.JobFinished || job.Cached {
		t.Errorf("observers see the repeated job as %+v", job)
	}
	quiet(resume("1 2 3 4", Result{Attempt: 4, Status: workflow.StatusFinished, Finished: 4, Cached: 4}))

	// A changed command runs again, and what follows it: that is said before.
	if err := os.WriteFile(path, []byte(text("echo three >> ran")), 0o644); err != nil {
		t.Fatal(err)
	}
	tr = resume("1 2 3 4 three 4", Result{Attempt: 5, Status: workflow.StatusFinished, Finished: 4, Cached: 2})
	if again := tr.repeats(); len(again) != 1 || again[0].Step != 1 || again[0].Command != 0 || again[0].Name != "b" || again[0].Again != 2 {
		t.Errorf("before command 1 of step b and the one behind it run again it says %+v", again)
	}
	if said := slices.IndexFunc(tr.events, func(e Event) bool { return e.Kind == RunRepeats }); said > slices.IndexFunc(tr.events, func(e Event) bool { return e.Kind == JobStarted }) {
		t.Errorf("that commands run again is said after they do: %+v", tr.events)
	}
	if logs := tr.statuses[0].Logs + tr.statuses[1].Logs; !strings.Contains(logs, "step 2 (b), command 1 is not what it was when it ended well") {
		t.Errorf("the run's log does not say what runs again: %q", logs)
	}

	// A torn last line has not happened.
	journal := filepath.Join(workspace, ".waymark/journal.jsonl")
	data, err := os.ReadFile(journal)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(journal, data[:len(data)-3], 0o644); err != nil {
		t.Fatal(err)
	}
	tr = resume("1 2 3 4 three 4 4", Result{Attempt: 6, Status: workflow.StatusFinished, Finished: 4, Cached: 3})

	quiet(tr)

	// Nor has what follows a line that cannot be read.
	lines := strings.SplitAfter(string(data), "\n")
	if err := os.WriteFile(journal, []byte(lines[0]+"\x00\xff not JSON\n"+lines[1]+lines[2]), 0o644); err != nil {
		t.Fatal(err)
	}
	resume("1 2 3 4 three 4 4 2 three 4", Result{Attempt: 7, Status: workflow.StatusFinished, Finished: 4, Cached: 1})

	// Without resuming it is another workflow, and everything runs.
	fresh := try(t, t.Context(), path, RunConfig{Workspace: workspace})
	fresh.check(t, fresh.result)
	if fresh.result.WorkflowID == first.result.WorkflowID || fresh.result.Attempt != 1 || fresh.result.Cached != 0 {
		t.Errorf("a fresh run: %+v", fresh.result)
	}
}

// A run that cannot begin is told all the same, with the reason.
func TestRefuse(t *testing.T) {
	to := &recorder{}
	id := uuid.New()
	why := errors.New("reana.yaml:3: two things:\none\x00, another")
	result := Refuse(t.Context(), "/data/fit/reana.yaml", why, RunConfig{WorkflowID: id, Owner: "ada", Labels: map[string]string{"k": "v"}, Publisher: to})
	if result.Status != workflow.StatusFailed || result.WorkflowID != id || result.Reason != why.Error() || result.Report.Confirmed != 2 || result.Report.Unsent != 0 {
		t.Errorf("result %+v, want a run that failed, and all of it confirmed", result)
	}
	if s := to.submissions; len(s) != 1 || s[0].Name != "fit" || s[0].User != "ada" || s[0].Labels["k"] != "v" || s[0].Parameters != nil {
		t.Errorf("submissions %+v, want one, under the name of the folder", s)
	}
	if len(to.statuses) == 0 || to.statuses[0].WorkflowID != id {
		t.Fatalf("it is told as %+v", to.statuses)
	}
	run := to.fold().Run
	if run.Status() != workflow.StatusFailed || reason(t, run.EngineSpecific) != "reana.yaml:3: two things:\none\ufffd, another" {
		t.Errorf("observers see %v with %s", run.Status(), run.EngineSpecific)
	}
	if logs := to.statuses[len(to.statuses)-1].Logs; !strings.HasPrefix(logs, "reana.yaml:3: two things:\n") {
		t.Errorf("the run's log says %q, want the reason", logs)
	}
}

// What is typed wrongly is told apart from what is wrong with the file.
func TestOverrideError(t *testing.T) {
	good := writeSpec(t, "inputs: {parameters: {n: 1}}\nworkflow: {type: serial, specification: {steps: [{name: a, commands: [ls]}]}}\n")
	bad := writeSpec(t, "inputs: {options: {FROM: nowhere}}\nworkflow: {type: serial, specification: {steps: [{name: a, commands: [ls]}]}}\n")
	for _, test := range []struct {
		name, path string
		overrides  Overrides
		typed      bool
	}{
		{"an unknown parameter", good, Overrides{Parameters: map[string]string{"m": "2"}}, true},
		{"an unknown option", good, Overrides{Options: map[string]string{"TO": "a"}}, true},
		{"an unknown step", good, Overrides{Options: map[string]string{"TARGET": "b"}}, true},
		{"an unknown step in the file", bad, Overrides{}, false},
		{"a file that is not there", good + ".none", Overrides{Parameters: map[string]string{"m": "2"}}, false},
	} {
		_, err := Load(test.path, test.overrides)
		if _, typed := errors.AsType[*OverrideError](err); err == nil || typed != test.typed {
			t.Errorf("%s: error %v, the command line's: %v; want %v", test.name, err, typed, test.typed)
		}
	}
}

func TestRunResumeWithFromAndTarget(t *testing.T) {
	path := writeSpec(t, "workflow: {type: serial, specification: {steps: [{name: a, commands: [echo a]}, {name: b, commands: [echo b]}, {name: c, commands: [echo c]}]}}\n")
	workspace := filepath.Join(t.TempDir(), "w")
	run := func(resume bool, options map[string]string, output string, cached int) {
		t.Helper()
		w, err := Load(path, Overrides{Options: options})
		if err != nil {
			t.Fatal(err)
		}
		tr := w.try(t, t.Context(), RunConfig{Workspace: workspace, Resume: resume})
		tr.check(t, tr.result)
		if tr.output.String() != output || tr.result.Cached != cached {
			t.Errorf("with %v it printed %q, %d cached; want %q, %d", options, tr.output.String(), tr.result.Cached, output, cached)
		}
	}
	run(false, map[string]string{"TARGET": "a"}, "a\n", 0)
	run(true, map[string]string{"FROM": "c"}, "c\n", 0)
	run(true, map[string]string{"FROM": "c"}, "", 1)
	run(true, nil, "b\nc\n", 1) // b has not run: what came after it is void
	run(true, nil, "", 3)
}

func TestRunResumeRefused(t *testing.T) {
	path := steps(t, "true")
	w, err := Load(path, Overrides{})
	if err != nil {
		t.Fatal(err)
	}
	workspace := filepath.Join(t.TempDir(), "w")
	if _, err := w.Run(t.Context(), RunConfig{Resume: true, Workspace: workspace}); err == nil || !strings.Contains(err.Error(), "there is no run to resume in "+workspace) {
		t.Errorf("resuming nothing: %v", err)
	}
	t.Chdir(t.TempDir())
	result, err := w.Run(t.Context(), RunConfig{})
	if err != nil {
		t.Fatal(err)
	}
	want := ".waymark/runs/" + result.WorkflowID.String()
	if !strings.HasSuffix(result.Workspace, want) {
		t.Errorf("the default workspace is %s", result.Workspace)
	}
	if _, err := w.Run(t.Context(), RunConfig{Resume: true}); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("resuming without a workspace: %v, want it to name %s", err, want)
	}
	if again, err := w.Run(t.Context(), RunConfig{Resume: true, WorkflowID: result.WorkflowID}); err != nil || again.Attempt != 2 || again.Cached != 1 {
		t.Errorf("resuming by id: %+v, error %v", again, err)
	}
	if _, err := w.Run(t.Context(), RunConfig{Resume: true, WorkflowID: uuid.New(), Workspace: want}); err == nil || !strings.Contains(err.Error(), "belongs to the workflow "+result.WorkflowID.String()) {
		t.Errorf("resuming another workflow: %v", err)
	}
	if again, err := w.Run(t.Context(), RunConfig{WorkflowID: result.WorkflowID}); err != nil || again.Attempt != 3 || again.Cached != 0 {
		t.Errorf("the same workflow once more: %+v, error %v; want attempt 3", again, err)
	}
	if err := os.WriteFile(filepath.Join(want, ".waymark/run.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Run(t.Context(), RunConfig{Resume: true, Workspace: want}); err == nil || !strings.Contains(err.Error(), "run.json to begin anew") {
		t.Errorf("an unreadable identity: %v", err)
	}
}

func TestRunRefusesASecondRunInOneWorkspace(t *testing.T) {
	path := steps(t, "true")
	workspace := filepath.Join(t.TempDir(), "w")
	second := &trial{}
	first := try(t, t.Context(), path, RunConfig{Workspace: workspace, Observe: func(e Event) {
		if e.Kind == JobStarted {
			second = try(t, t.Context(), path, RunConfig{Workspace: workspace})
		}
	}})
	first.check(t, first.result)
	if second.err == nil || !strings.Contains(second.err.Error(), "is in use by another run (process "+strconv.Itoa(os.Getpid())+")") {
		t.Errorf("the second run: %v", second.err)
	}
	if len(second.submissions)+len(second.statuses) != 0 {
		t.Error("a run that was refused has been reported")
	}
	third := try(t, t.Context(), path, RunConfig{Workspace: workspace})
	third.check(t, third.result)
}

func TestRunWorkspaceCannotBeMade(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	tr := try(t, t.Context(), steps(t, "true"), RunConfig{Workspace: filepath.Join(file, "w")})
	if tr.err == nil || !strings.Contains(tr.err.Error(), "making the workspace") {
		t.Errorf("error %v", tr.err)
	}
}

// childSpec makes the test binary run one workflow and exit as a program would.
const childSpec = "WAYMARK_SERIAL_TEST_SPEC"

func TestMain(m *testing.M) {
	path := os.Getenv(childSpec)
	if path == "" {
		os.Exit(m.Run())
	}
	ctx, hurry, stop := engines.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	w, err := Load(path, Overrides{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	dir := filepath.Dir(path)
	result, err := w.Run(ctx, RunConfig{
		Workspace: filepath.Join(dir, "w"), Publisher: &recorder{file: filepath.Join(dir, "messages")},
		Resume: os.Getenv(childSpec+"_RESUME") != "", Hurry: hurry, Interval: -1,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(result.ExitCode)
}

// startChild runs the workflow at path in a process of its own.
func startChild(t *testing.T, path string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), childSpec+"="+path), env...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	return cmd
}

func TestRunKilled(t *testing.T) {
	// The second command has a child and a grandchild, one of them deaf.
	path := steps(t, "echo 1 >> ran", "test -e go || { (trap '' TERM; sh -c 'echo $$ > grandchild; exec sleep 1000'; :) & echo $! > child; wait; }", "echo 3 >> ran")
	w := filepath.Join(filepath.Dir(path), "w")
	cmd := startChild(t, path)
	pids := []string{filepath.Join(w, "child"), filepath.Join(w, "grandchild")}
	eventually(t, "the commands run", func() bool {
		for _, pid := range pids {
			if text, err := os.ReadFile(pid); err != nil || !bytes.HasSuffix(text, []byte("\n")) {
				return false
			}
		}
		return true
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() // "signal: killed"
	for _, pid := range pids {
		eventually(t, "the "+filepath.Base(pid)+" of the command dies with the engine", func() bool { return !alive(t, pid) })
	}

	if err := os.WriteFile(filepath.Join(w, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	cmd = startChild(t, path, childSpec+"_RESUME=1")
	if err := cmd.Wait(); err != nil {
		t.Fatalf("resuming: %v", err)
	}
	if ran, err := os.ReadFile(filepath.Join(w, "ran")); err != nil || string(ran) != "1\n3\n" {
		t.Errorf("ran %q, error %v; want 1 once, then 3", ran, err)
	}
	all := &recorder{}
	all.load(t, filepath.Join(filepath.Dir(path), "messages"))
	run := all.fold().Run
	if got := run.Counts(); run.Attempt != 2 || run.Status() != workflow.StatusFinished || got != (workflow.Counts{Total: 3, Finished: 3, Cached: 1}) {
		t.Errorf("observers see attempt %d %v with %+v", run.Attempt, run.Status(), got)
	}
}

func TestRunSignalled(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(engines.SignalName(signal), func(t *testing.T) {
			t.Parallel()
			path := steps(t, "sleep 1000 & echo $! > child; wait")
			pid := filepath.Join(filepath.Dir(path), "w", "child")
			cmd := startChild(t, path)
			eventually(t, "the command runs", func() bool {
				text, err := os.ReadFile(pid)
				return err == nil && bytes.HasSuffix(text, []byte("\n"))
			})
			if err := cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			cmd.Wait()
			if got, want := cmd.ProcessState.ExitCode(), 128+int(signal); got != want {
				t.Errorf("exit code %d, want %d", got, want)
			}
			if alive(t, pid) {
				t.Error("a child of the command lives on")
			}
			all := &recorder{}
			all.load(t, filepath.Join(filepath.Dir(path), "messages"))
			last := all.statuses[len(all.statuses)-1]
			if want := "stopped by " + engines.SignalName(signal); last.Status != workflow.StatusStopped || !strings.HasPrefix(last.Logs, want) {
				t.Errorf("the end was told as %v, %q; want stopped, %q", last.Status, last.Logs, want)
			}
		})
	}
}

func TestLastLines(t *testing.T) {
	for _, tt := range []struct {
		text string
		n    int
		want string
	}{
		{"", 3, ""}, {"a", 1, "a"}, {"a\nb\nc\n", 2, "b\nc"}, {"a\nb", 5, "a\nb"}, {"\n\na", 2, "\na"}, {"\n", 1, ""},
	} {
		if got := lastLines(tt.text, tt.n); got != tt.want {
			t.Errorf("lastLines(%q, %d) = %q, want %q", tt.text, tt.n, got, tt.want)
		}
	}
}
