package serial

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"

	"waymark/engines"
	"waymark/workflow"
)

// engineName is what messages say of the engine.
const engineName = "serial"

// hasteTimeout is how long the end of the run may still take to be reported
// once somebody has lost patience.
const hasteTimeout = 2 * time.Second

// RunConfig says how to run a workflow. The zero value runs it in a folder of
// its own and reports it to nobody.
type RunConfig struct {
	// Attempt counts explicit restarts of the workflow. Default 1, or one more
	// than the workspace remembers of the same workflow.
	Attempt int
	// Env is the environment of the commands, as in os.Environ. Default: that
	// of this process. Whatever is in it may end in the logs.
	Env []string
	// FinalTimeout is how long the end of the run is tried to be delivered.
	// Default 30 s.
	FinalTimeout time.Duration
	// Grace is how long a command may take to end after SIGTERM, before
	// SIGKILL. Default 10 s.
	Grace time.Duration
	// Hurry, when closed, cuts short the grace and, to 2 s, the final
	// timeout: see engines.NotifyContext. Default: no haste.
	Hurry <-chan struct{}
	// Interval is the least time between two progress messages. Default
	// 100 ms; negative means none.
	Interval time.Duration
	// Labels are free keys and values to find the run by. Default none.
	Labels map[string]string
	// Logger hears of what deserves attention, each kind once. Default: none.
	Logger *slog.Logger
	// Name of the workflow as people call it. Default: [DefaultName].
	Name string
	// Observe is called with each event, in order, by the goroutine that
	// called Run, which waits for it. Default: nobody watches.
	Observe func(Event)
	// Output takes stdout and stderr of the commands, unchanged and in the
	// order of writing; one that blocks holds the command up. Default: they
	// go to the log files only.
	Output io.Writer
	// Owner of the run. Default: the name of this process's user.
	Owner string
	// Publisher takes the messages. Default: none, and nothing is reported.
	Publisher engines.Publisher
	// Resume continues the latest run in the workspace: commands that ended
	// well and have not changed are not run again, but reported as finished
	// from the cache. The workflow keeps its id. Default false.
	Resume bool
	// Version of the program, for the record. Default "unknown".
	Version string
	// WorkflowID names the run. Default: a new one, or with Resume that of
	// the workspace.
	WorkflowID uuid.UUID
	// Workspace is the folder to work in, made if it does not exist. The
	// declared inputs are copied there from beside the reana.yaml; outputs stay
	// there. Default .waymark/runs/<workflow id> in the current folder.
	Workspace string
}

// EventKind says what happened.
type EventKind int

const (
	// RunStarted: the workspace is ready. Total is set.
	RunStarted EventKind = iota + 1
	// JobStarted: a command runs.
	JobStarted
	// JobFinished: a command ended well.
	JobFinished
	// JobCached: a command ended well in an earlier run, and is not repeated.
	JobCached
	// JobFailed: a command ended badly. Reason is set.
	JobFailed
	// JobStopped: a command was ended with its run. Reason is set.
	JobStopped
	// RunEnded: nothing runs any more; the end is about to be reported.
	RunEnded
	// RunRepeats: of a resumed run commands that had ended well are about to
	// run again, as one of them is not what it was. It is the one that the event
	// describes; Again is how many they are.
	RunRepeats
)

// Event is something that happened in a run.
type Event struct {
	Kind EventKind
	At   time.Time
	// Total is how many commands the run has, Done how many have ended well.
	Total, Done int
	// JobID, Step, Command, Name and Text describe the job of a job event:
	// its id, the indexes of step and command, the name of the step, which
	// may be empty, and the command as it runs.
	JobID         string
	Step, Command int
	Name, Text    string
	// ExitCode and Reason say how a job that ended badly did.
	ExitCode int
	Reason   string
	// Again is how many commands that had ended well run again.
	Again int
}

// Result says how a run ended.
type Result struct {
	WorkflowID uuid.UUID
	Attempt    int
	// Workspace is the absolute path of the folder with the outputs.
	Workspace string
	// Status is finished, failed or stopped.
	Status workflow.Status
	// Reason is why the run did not finish; empty if it did.
	Reason string
	// ExitCode for the shell: 0 if the run finished; that of the command that
	// failed, or 124 if it timed out; 128 and the number of the signal if one
	// stopped the run; else 1.
	ExitCode int
	// Total is how many commands the run has; Finished how many have ended
	// well, Cached those of them that ended in an earlier run.
	Total, Finished, Cached int
	// Failed is the command that failed or was stopped, nil if none was.
	Failed *Failure
	// Report says what became of the messages.
	Report engines.Report
}

// Failure describes a command that did not end well.
type Failure struct {
	// Step and Command are indexes in the workflow, from 0.
	Step, Command int
	// Name of the step; may be empty.
	Name string
	// Text of the command, substituted.
	Text string
	// JobID of the command's job.
	JobID string
	// ExitCode of the command; 128 and its number for a signal.
	ExitCode int
	// Reason in words, such as "exit code 7" or "timed out after 60 s".
	Reason string
	// Log is the path of the file with all output, Tail the end of it.
	Log, Tail string
}

// Where names the command for people: "step 2 (fitdata), command 1".
func (f *Failure) Where() string { return where(f.Step, f.Name, f.Command) }

// JobID is the id of the job of a command, by the indexes of step and command.
// It is the same whenever the workflow runs.
func JobID(workflowID uuid.UUID, step, command int) string {
	return engines.JobID(workflowID, engineName, fmt.Sprintf("%d/%d", step, command))
}

// run is one run of a workflow.
type run struct {
	*Workflow
	cfg      RunConfig
	ws       *workspace
	once     *onceWarning
	reporter *engines.Reporter
	specific map[string]any // what is known of the run besides
	result   Result
}

// Run runs w: it reports the submission, brings the inputs to the workspace,
// runs the commands and reports how each and all of them ended. It returns when
// the end is reported, or FinalTimeout over.
//
// A command that fails is a Result, not an error. The error is not nil if no
// command could run at all: the workspace is in use or cannot be made, an input
// is not there, or a command needs a parameter that nobody gave. If the run had
// got as far as being reported, Result says so and observers see it failed.
//
// The end of ctx stops the run: the command gets SIGTERM, after Grace SIGKILL,
// and the run is reported stopped. If the cause of ctx is a
// [*engines.StopError], as with engines.NotifyContext, its signal is named.
func (w *Workflow) Run(ctx context.Context, cfg RunConfig) (Result, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Grace <= 0 {
		cfg.Grace = 10 * time.Second
	}
	if cfg.Observe == nil {
		cfg.Observe = func(Event) {}
	}
	if cfg.Env == nil {
		cfg.Env = os.Environ()
	}
	if cfg.Version == "" {
		cfg.Version = "unknown"
	}
	r := &run{Workflow: w, cfg: cfg, once: &onceWarning{logger: cfg.Logger, said: make(map[string]bool)}}
	if err := r.open(); err != nil {
		return Result{}, err
	}
	defer r.ws.close()

	r.report(ctx)
	err := r.execute(ctx)
	r.observe(Event{Kind: RunEnded, Reason: r.result.Reason})
	r.finish(ctx)
	return r.result, err
}

// Refuse reports a run whose file, at path, cannot be used for the reason why:
// that it was asked for, and that it failed. Nothing runs. Of cfg it takes what
// says which run it is, and how it is reported; WorkflowID is required.
func Refuse(ctx context.Context, path string, why error, cfg RunConfig) Result {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	r := &run{Workflow: &Workflow{Path: path}, cfg: cfg, specific: map[string]any{"engine": engineName}}
	r.result = Result{WorkflowID: cfg.WorkflowID, Attempt: max(cfg.Attempt, 1)}
	r.fail(why.Error(), 1)
	r.report(ctx)
	r.finish(ctx)
	return r.result
}

// report begins to report the run, by what asks for it.
func (r *run) report(ctx context.Context) {
	r.reporter = engines.NewReporter(ctx, engines.Config{
		Attempt:      r.result.Attempt,
		Engine:       engineName,
		FinalTimeout: r.cfg.FinalTimeout,
		Interval:     r.cfg.Interval,
		Logger:       r.cfg.Logger,
		Publisher:    r.cfg.Publisher,
		WorkflowID:   r.result.WorkflowID,
	})
	r.reporter.Submit(r.submission())
}

// open finds and locks the workspace, and settles which run this is.
func (r *run) open() error {
	id, dir := r.cfg.WorkflowID, r.cfg.Workspace
	runs := filepath.Join(hidden, "runs")
	if dir == "" {
		if id == uuid.Nil && r.cfg.Resume {
			return fmt.Errorf("resuming needs to know the run: give its workspace (%s)", runsIn(runs))
		}
		if id == uuid.Nil {
			id = uuid.New()
		}
		dir = filepath.Join(runs, id.String())
	}
	if r.cfg.Resume {
		if _, err := os.Stat(filepath.Join(dir, hidden, "run.json")); err != nil {
			return fmt.Errorf("there is no run to resume in %s: run it without resuming first: %w", dir, err)
		}
	}
	ws, err := openWorkspace(dir)
	if err != nil {
		return err
	}
	attempt := max(r.cfg.Attempt, 1)
	switch known := ws.run.WorkflowID; {
	case id == uuid.Nil && r.cfg.Resume:
		id = known
	case id == uuid.Nil:
		id = uuid.New()
	case id != known && r.cfg.Resume:
		ws.close()
		return fmt.Errorf("the workspace %s belongs to the workflow %s, not to %s: resume that one, or choose another workspace", ws.dir, known, id)
	}
	if id == ws.run.WorkflowID {
		attempt = max(attempt, ws.run.Attempt+1)
	}
	if err := ws.writeIdentity(identity{WorkflowID: id, Attempt: attempt}); err != nil {
		ws.close()
		return err
	}
	r.ws = ws
	r.result = Result{WorkflowID: id, Attempt: attempt, Workspace: ws.dir, Total: r.Total()}
	return nil
}

func (r *run) submission() *workflow.Submission {
	s := &workflow.Submission{
		User:          r.cfg.Owner,
		Workflow:      r.result.WorkflowID.String(),
		Name:          r.cfg.Name,
		Engine:        engineName,
		Specification: r.specification,
		Labels:        r.cfg.Labels,
	}
	if r.specification != nil { // else the file could not be read
		s.Parameters = r.submitted()
	}
	if s.User == "" {
		s.User = engines.ProcessUser()
	}
	if s.Name == "" {
		s.Name = DefaultName(r.Path)
	}
	return s
}

// DefaultName is what people call a workflow that has no other name: the folder
// of its file.
func DefaultName(file string) string {
	if path, err := filepath.Abs(file); err == nil && len(filepath.Dir(path)) > 1 {
		return filepath.Base(filepath.Dir(path))
	}
	return "workflow"
}

// execute runs the commands and leaves in result how that went.
func (r *run) execute(ctx context.Context) error {
	jobs, err := r.jobs()
	r.begin(jobs)
	if err != nil {
		err = fmt.Errorf("substituting the parameters:\n%w", err)
		r.fail(err.Error(), 1)
		return err
	}
	r.observe(Event{Kind: RunStarted})
	if err := r.ws.copyInputs(ctx, r.Workflow, r.cfg.Resume); err != nil {
		if ctx.Err() != nil {
			r.stop(ctx)
			return nil
		}
		r.fail(err.Error(), 1)
		return err
	}
	journal, done, err := openJournal(r.ws.path("journal.jsonl"), jobs, r.cfg.Resume)
	if err != nil {
		r.fail(err.Error(), 1)
		return err
	}
	defer journal.close()
	if journal.forgotten > 0 {
		j := jobs[len(done)]
		r.reporter.Log(fmt.Sprintf("%s is not what it was when it ended well: it runs again, and all that follows it\n", where(j.step, j.name, j.command)))
		event := r.event(RunRepeats, j)
		event.Again = journal.forgotten
		r.observe(event)
	}
	guard := startGuard(r.cfg.Logger)
	defer guard.close()

	for i, j := range jobs {
		if e, ok := done[i]; ok {
			r.reuse(j, e)
			continue
		}
		if ctx.Err() != nil {
			r.stop(ctx)
			return nil
		}
		if !r.command(ctx, j, journal, guard) {
			return nil
		}
	}
	r.result.Status = workflow.StatusFinished
	return nil
}

// begin reports that the run runs, and all that is known from the start.
func (r *run) begin(jobs []job) {
	images, steps := 0, max(r.Last+1-r.First, 0)
	for s := r.First; s <= r.Last; s++ {
		if r.Steps[s].Environment != "" {
			images++
		}
	}
	if images > 0 {
		r.once.warn("commands run on this machine, not in the container images that their steps name", "steps", images)
	}
	r.reporter.Total(len(jobs))
	r.specific = map[string]any{"engine": engineName, "version": r.cfg.Version, "dag": r.dag(jobs)}
	r.reporter.EngineSpecific(engines.Specific(r.specific))
	r.reporter.Log(fmt.Sprintf("serial workflow: %d steps, %d commands, attempt %d, workspace %s\n", steps, len(jobs), r.result.Attempt, r.ws.dir))
	r.reporter.Begin()
}

// dag is the chain of jobs.
func (r *run) dag(jobs []job) *engines.Graph {
	var g engines.Graph
	for i, j := range jobs {
		id := fmt.Sprintf("%d/%d", j.step, j.command)
		g.Nodes = append(g.Nodes, engines.Node{ID: id, Name: engines.Text(j.name), JobID: r.jobID(j)})
		if i > 0 {
			g.Edges = append(g.Edges, [2]string{g.Nodes[i-1].ID, id})
		}
	}
	return &g
}

func (r *run) jobID(j job) string { return JobID(r.result.WorkflowID, j.step, j.command) }

// reuse reports a command that an earlier run of the workflow has done.
func (r *run) reuse(j job, e entry) {
	r.result.Finished++
	r.result.Cached++
	code := 0
	r.reporter.Job(workflow.JobReport{
		ID: r.jobID(j), Status: workflow.JobFinished, Cached: true,
		Name: j.name, Command: j.text, ExitCode: &code,
		StartedAt: e.StartedAt, FinishedAt: e.FinishedAt,
	})
	r.observe(r.event(JobCached, j))
}

// command runs one command and reports whether the run goes on.
func (r *run) command(ctx context.Context, j job, journal *journal, guard *guard) bool {
	id := r.jobID(j)
	log := r.ws.path("logs", fmt.Sprintf("%d-%d.log", j.step+1, j.command+1))
	output := newCapture(log, r.cfg.Output, r.once)
	p := &process{
		command: j.text, dir: r.ws.dir, env: r.cfg.Env, output: output,
		timeout: j.timeout, grace: r.cfg.Grace, hurry: r.cfg.Hurry, guard: guard,
	}

	started := time.Now().UTC().Truncate(time.Microsecond)
	// The line that REANA's own engine logs, and its users look for.
	r.reporter.Log(fmt.Sprintf("Publishing step:%d, cmd: %s, total steps %d\n", j.step, j.text, len(r.Steps)))
	r.reporter.Job(workflow.JobReport{ID: id, Status: workflow.JobRunning, Name: j.name, Command: j.text, StartedAt: started})
	r.observe(r.event(JobStarted, j))
	out := p.run(ctx)
	output.close()
	finished := time.Now().UTC().Truncate(time.Microsecond)

	report := workflow.JobReport{
		ID: id, Status: workflow.JobFinished, Name: j.name, Command: j.text, ExitCode: &out.code,
		StartedAt: started, FinishedAt: finished, Logs: output.tail.String(), Diagnostics: out.reason,
	}
	event := r.event(JobFinished, j)
	event.ExitCode, event.Reason = out.code, out.reason
	switch {
	case out.stopped:
		report.Status, event.Kind = workflow.JobStopped, JobStopped
	case out.reason != "":
		report.Status, event.Kind = workflow.JobFailed, JobFailed
	default:
		if err := journal.add(entry{j.step, j.command, digest(j.text), started, finished}); err != nil {
			r.once.warn("this run cannot be resumed from here", "err", err)
		}
		r.result.Finished++
	}
	r.reporter.Job(report)
	r.observe(event)
	if report.Status == workflow.JobFinished {
		return true
	}

	r.result.Failed = &Failure{
		Step: j.step, Command: j.command, Name: j.name, Text: j.text, JobID: id,
		ExitCode: out.code, Reason: out.reason, Log: log, Tail: report.Logs,
	}
	switch {
	case out.stopped:
		r.stop(ctx)
	case out.timedOut:
		r.fail(r.result.Failed.Where()+": "+out.reason, 124) // as timeout(1) does
	default:
		r.fail(r.result.Failed.Where()+": "+out.reason, out.code)
	}
	return false
}

func (r *run) fail(reason string, code int) {
	r.result.Status, r.result.Reason, r.result.ExitCode = workflow.StatusFailed, reason, code
}

// stop notes by what ctx, which has ended, stopped the run.
func (r *run) stop(ctx context.Context) {
	cause := context.Cause(ctx)
	r.result.Status, r.result.Reason, r.result.ExitCode = workflow.StatusStopped, "stopped: "+cause.Error(), 1
	if signal, ok := errors.AsType[*engines.StopError](cause); ok {
		r.result.Reason, r.result.ExitCode = signal.Error(), signal.ExitCode()
	}
}

// finish reports the end: why, and the last words of the command to blame.
func (r *run) finish(ctx context.Context) {
	// A run that is stopped has an end to report; only haste cuts that short.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-r.cfg.Hurry: // never, if it is nil
			timer := time.AfterFunc(hasteTimeout, cancel)
			defer timer.Stop()
			<-ctx.Done()
		case <-ctx.Done():
		}
	}()
	defer func() { cancel(); <-ended }()

	var logs strings.Builder
	if r.result.Reason != "" {
		fmt.Fprintln(&logs, r.result.Reason)
		specific := maps.Clone(r.specific) // the other may be being written
		specific["reason"] = r.result.Reason
		r.reporter.EngineSpecific(engines.Specific(specific))
	}
	if f := r.result.Failed; f != nil && f.Tail != "" {
		fmt.Fprintf(&logs, "The end of its output:\n%s\n", strings.TrimRight(lastLines(f.Tail, 50), "\n"))
	}
	r.result.Report = r.reporter.Finish(ctx, r.result.Status, logs.String())
}

func (r *run) event(kind EventKind, j job) Event {
	return Event{Kind: kind, JobID: r.jobID(j), Step: j.step, Command: j.command, Name: j.name, Text: j.text}
}

func (r *run) observe(e Event) {
	e.At = time.Now()
	e.Total, e.Done = r.result.Total, r.result.Finished
	r.cfg.Observe(e)
}
