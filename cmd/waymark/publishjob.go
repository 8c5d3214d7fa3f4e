package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"waymark/engines"
	"waymark/engines/script"
	"waymark/workflow"
)

// tellTimeout is how long a program that reports itself waits for the broker,
// by default, before what it says is kept on disk.
const tellTimeout = 2 * time.Second

// tellFlags are the flags of commands by which a program reports its own run.
type tellFlags struct {
	workflow string
	engine   string
	timeout  time.Duration
	noSpool  bool
}

func (f *tellFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVarP(&f.workflow, "workflow", "w", "", "`UUID` of the run (default $"+script.WorkflowVariable+")")
	flags.StringVar(&f.engine, "engine", script.Engine, "`name` of the engine in messages")
	flags.DurationVar(&f.timeout, "timeout", tellTimeout, "how long to wait for the broker before the message is kept on disk")
	flags.BoolVar(&f.noSpool, "no-spool", false, "keep nothing on disk while the broker is away")
	addConfigFlags(cmd, "broker", "publisher", "log")
}

const tellHelp = `

Within "waymark run script" this tells the run around it; elsewhere it publishes
to the broker, about the run in --workflow or ` + script.WorkflowVariable + `. While the broker is
away what is said is kept on disk, and delivered by the next run, by "waymark
publish --spool", or by a "waymark serve" that is told the folder.`

// jobFlags are the flags of "publish job".
type jobFlags struct {
	tellFlags
	line     script.Line
	exitCode int
	log      string
}

func (a *app) publishJobCommand() *cobra.Command {
	var f jobFlags
	cmd := &cobra.Command{
		Use:   "job JOB [flags] [-- COMMAND]",
		Short: "Say what a job of a run of your own does",
		Long: `Say that a job is in a status and, with flags, more of it. JOB is what you call
it: the same word means the same job. With a COMMAND the job is that command: it
is run, and reported as running, then as finished or failed with its exit code
and the end of its standard error. The command is run, and its exit code is this
one's, whether it can be reported or not. Texts that are too long for a message
are cut.

A job that runs again is the next attempt of it. "waymark run script" counts
them; elsewhere nobody remembers, and a job that has ended does not begin again:
say --attempt 2 with each line about its second try.` + tellHelp,
		Example: `  waymark publish job gen -- ./gen.sh --events 1000
  waymark publish job fit --status running --command 'root fit.C'
  waymark publish job fit --status failed --exit-code 2 --log fit.log`,
		Args: args(1, -1, "JOB"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("exit-code") {
				f.line.ExitCode = &f.exitCode
			}
			return a.publishJob(cmd, &f, args[0], args[1:])
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.line.Status, "status", "s", "", "queued, running, finished, failed or stopped")
	flags.StringVar(&f.line.Name, "name", "", "`name` for people (default JOB)")
	flags.StringVar(&f.line.Path, "path", "", "`path` of the job in nested workflows, such as reconstruction/tracks")
	flags.StringVar(&f.line.Command, "command", "", "the `command` line of the job")
	flags.IntVar(&f.line.Attempt, "attempt", 0, "which repetition of the job this is (default: within waymark run script the next one, if a job runs again that has ended; elsewhere 1)")
	flags.BoolVar(&f.line.Cached, "cached", false, "the result came from a cache")
	flags.IntVar(&f.exitCode, "exit-code", 0, "exit code of the job")
	flags.StringVar(&f.line.Diagnostics, "diagnostics", "", "why it failed, in words")
	flags.StringVar(&f.log, "log", "", "a `file` whose end goes to the job's log; - is standard input")
	f.add(cmd)
	return cmd
}

// progressFlags are the flags of "publish progress".
type progressFlags struct {
	tellFlags
	status, name, owner, log string
	total                    int
	labels                   []string
}

func (a *app) publishProgressCommand() *cobra.Command {
	var f progressFlags
	cmd := &cobra.Command{
		Use:   "progress",
		Short: "Say how a run of your own is doing",
		Long: `Say how many jobs a run has, that it began, or how it ended. With --name the run
is registered under a name first.` + tellHelp,
		Example: `  export ` + script.WorkflowVariable + `=$(cat /proc/sys/kernel/random/uuid)
  waymark publish progress --name nightly --total 2
  waymark publish job gen -- ./gen.sh
  waymark publish progress --status finished`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.publishProgress(cmd, &f) },
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.status, "status", "s", "running", "`status` of the run: queued, pending, running, finished, failed or stopped")
	flags.IntVar(&f.total, "total", 0, "how many jobs the run has")
	flags.StringVar(&f.log, "log", "", "`text` for the log of the run")
	flags.StringVarP(&f.name, "name", "n", "", "register the run under this `name`")
	flags.StringVar(&f.owner, "owner", "", "`owner` of the run (default the name of this user)")
	flags.StringArrayVar(&f.labels, "label", nil, "a label to find the run by, as `KEY=VALUE`; may be repeated")
	f.add(cmd)
	return cmd
}

func (a *app) publishJob(cmd *cobra.Command, f *jobFlags, job string, command []string) error {
	f.line.Job = job
	switch {
	case job == "":
		return usage("JOB: a job needs a name")
	case f.line.Attempt < 0 || f.line.Attempt > workflow.MaxAttempt || f.line.Attempt == 0 && cmd.Flags().Changed("attempt"):
		return usage("--attempt: expected 1 to %d, found %d", workflow.MaxAttempt, f.line.Attempt)
	case f.exitCode < math.MinInt32 || f.exitCode > math.MaxInt32:
		return usage("--exit-code: expected %d to %d, found %d", math.MinInt32, math.MaxInt32, f.exitCode)
	}
	if len(command) > 0 && cmd.ArgsLenAtDash() != 1 {
		return usage("unexpected argument %q: put -- before a command", command[0])
	}
	if f.line.Status != "" {
		if _, err := workflow.ParseJobStatus(f.line.Status); err != nil {
			return usage("--status: %w", err)
		}
	}
	if len(command) > 0 {
		var clash []string
		for _, name := range []string{"status", "command", "exit-code", "diagnostics", "log", "cached"} {
			if cmd.Flags().Changed(name) {
				clash = append(clash, "--"+name)
			}
		}
		if len(clash) > 0 {
			return usage("%s: the command itself says that", strings.Join(clash, ", "))
		}
	}
	if f.log != "" {
		tail, err := a.tailOf(cmd.Context(), f.log)
		if err != nil {
			return err
		}
		f.line.Log = tail
	}
	to, err := a.teller(cmd, &f.tellFlags)
	if err != nil && len(command) > 0 && !cmd.Flags().Changed("workflow") && !settingsGiven(cmd) {
		// The script that this stands in must work where nothing is reported.
		a.say("waymark: the job is not reported: %s", harmless(oneLine.Replace(err.Error())))
		to, err = &teller{}, nil
	}
	if err != nil {
		return err
	}
	defer to.close()
	if len(command) == 0 {
		return to.tell(cmd.Context(), f.line)
	}
	return a.runJob(cmd, to, f.line, command)
}

// runJob runs a command as a job. Whatever becomes of the report, the command
// runs and its exit code counts.
func (a *app) runJob(cmd *cobra.Command, to *teller, line script.Line, command []string) error {
	tell := func() {
		if err := to.tell(context.WithoutCancel(cmd.Context()), line); err != nil {
			a.say("waymark: the job is not reported: %s", harmless(oneLine.Replace(err.Error())))
		}
	}
	program := exec.Command(command[0], command[1:]...)
	program.Stdin, program.Stdout = files(a.stdin, os.Stdin), a.stdout
	end := a.tapStderr(program)

	line.Status, line.Command, line.StartedAt = "running", strings.Join(command, " "), a.now().UTC()
	err := program.Start()
	logs := end()
	if err == nil {
		// Ctrl-C reaches the command from the terminal; a signal that is sent to
		// this process alone does not.
		defer context.AfterFunc(cmd.Context(), func() {
			if stop, ok := errors.AsType[*engines.StopError](context.Cause(cmd.Context())); ok && stop.Signal == syscall.SIGTERM {
				_ = program.Process.Signal(stop.Signal)
			}
		})()
	}
	tell()
	if err == nil {
		err = program.Wait()
	}
	code := 0
	line.Status, line.FinishedAt, line.Log = "finished", a.now().UTC(), logs()
	if exited, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exited.ExitCode()
		line.Status, line.Diagnostics = "failed", fmt.Sprintf("exit code %d", code)
		if status, ok := exited.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			code = 128 + int(status.Signal())
			line.Diagnostics = "killed by " + engines.SignalName(status.Signal())
		}
		err = nil
	} else if err != nil && program.ProcessState == nil {
		code = notStarted(err)
		line.Status, line.Diagnostics = "failed", err.Error()
		err = fmt.Errorf("starting %s: %w", command[0], err)
	} else {
		err = nil // the output was still held open by what the command left running
	}
	line.ExitCode = &code
	tell()
	if err != nil {
		return &exitError{code: code, err: err}
	}
	return exit(code)
}

// tapStderr gives a program our standard error, and keeps the end of what it
// writes. What it returns is to be called once it has been started, and what that
// returns once it has ended.
func (a *app) tapStderr(program *exec.Cmd) (started func() (ended func() string)) {
	if stderr, ok := a.stderr.(*os.File); ok {
		// What the command leaves running must be able to write after its end.
		if tap, err := engines.NewTap(relayArgs(), stderr); err == nil {
			program.Stderr = tap.Stderr()
			return func() func() string {
				tap.Started()
				return tap.End
			}
		}
	}
	var tail engines.Tail
	program.Stderr, program.WaitDelay = io.MultiWriter(a.stderr, &tail), 2*time.Second
	return func() func() string { return tail.String }
}

// files is r as a file, so that a command gets it as it is.
func files(r io.Reader, otherwise *os.File) *os.File {
	if f, ok := r.(*os.File); ok {
		return f
	}
	return otherwise
}

// tailOf reads the end of a file.
func (a *app) tailOf(ctx context.Context, path string) (string, error) {
	r, name, err := a.input(ctx, path)
	if err != nil {
		return "", err
	}
	defer r.Close()
	var tail engines.Tail
	if _, err := io.Copy(&tail, r); err != nil {
		return "", fmt.Errorf("reading %s: %w", name, err)
	}
	return tail.String(), nil
}

func (a *app) publishProgress(cmd *cobra.Command, f *progressFlags) error {
	status, err := workflow.ParseStatus(f.status)
	if err != nil {
		return usage("--status: %w", err)
	}
	labels, err := parseIdentity(f.name, f.owner, f.labels)
	if err != nil {
		return err
	}
	if f.total < 0 {
		return usage("--total: %d is less than none", f.total)
	}
	to, err := a.teller(cmd, &f.tellFlags)
	if err != nil {
		return err
	}
	defer to.close()
	if to.socket != nil {
		if cmd.Flags().Changed("status") && status != workflow.StatusRunning || f.name != "" || f.owner != "" || len(labels) > 0 {
			return usage(`"waymark run" around this says the name, owner, labels and end of the run: give them there`)
		}
		return to.tell(cmd.Context(), script.Line{Total: f.total, Log: f.log})
	}
	if f.name != "" {
		owner := f.owner
		if owner == "" {
			owner = engines.ProcessUser()
		}
		err := to.submit(cmd.Context(), &workflow.Submission{User: owner, Workflow: to.id.String(), Name: f.name, Engine: f.engine, Labels: labels, EventTime: a.now().UTC()})
		if err != nil {
			return err
		}
	}
	return to.say(cmd.Context(), status, script.Line{Total: f.total, Log: f.log})
}

// teller is where a program that reports its own run is heard: the run around
// it, or the broker.
type teller struct {
	id      uuid.UUID
	engine  string
	timeout time.Duration
	now     func() time.Time
	socket  net.Conn      // of the run around
	to      *runPublisher // else
}

func (a *app) teller(cmd *cobra.Command, f *tellFlags) (*teller, error) {
	if n := utf8.RuneCountInString(f.engine); n < 1 || n > workflow.MaxEngine || !utf8.ValidString(f.engine) {
		return nil, usage("--engine: expected a name of 1 to %d characters, found %q", workflow.MaxEngine, clip(f.engine, 80))
	}
	t := &teller{engine: f.engine, timeout: f.timeout, now: a.now}
	if path := a.getenv(script.SocketVariable); path != "" && f.workflow == "" {
		c, err := net.DialTimeout("unix", path, f.timeout)
		if err != nil {
			// The run around has gone; who asked for it must not fail for that.
			return nil, &exitError{code: exitUnreachable, err: fmt.Errorf("telling the run around: %w", err)}
		}
		t.socket = c
		return t, nil
	}
	ref := f.workflow
	if ref == "" {
		ref = a.getenv(script.WorkflowVariable)
	}
	if ref == "" {
		return nil, usage("say which run: give --workflow or %s, or work within waymark run script", script.WorkflowVariable)
	}
	id, err := uuid.Parse(ref)
	if err != nil || id == uuid.Nil {
		return nil, usage("--workflow: %q is not a UUID", ref)
	}
	t.id = id
	c, err := a.config(cmd)
	if err != nil {
		return nil, err
	}
	if t.to, err = a.runPublisher(cmd, c, f.noSpool, a.stderr); err != nil {
		return nil, err
	}
	return t, nil
}

func (t *teller) close() {
	switch {
	case t.socket != nil:
		t.socket.Close()
		return
	case t.to == nil:
		return
	}
	closing, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = t.to.p.Close(closing) // what it was asked to publish it has, or has said
}

// tell says a line about a run that goes on.
func (t *teller) tell(ctx context.Context, l script.Line) error {
	return t.say(ctx, workflow.StatusRunning, l)
}

func (t *teller) say(ctx context.Context, status workflow.Status, l script.Line) error {
	if t.socket == nil && t.to == nil {
		return nil // there is nobody, which has been said
	}
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if t.socket != nil {
		_ = t.socket.SetWriteDeadline(t.now().Add(t.timeout))
		if _, err := t.socket.Write(append(b, '\n')); err != nil {
			return &exitError{code: exitUnreachable, err: fmt.Errorf("telling the run around: %w", err)}
		}
		return nil
	}
	now := t.now().UTC().Truncate(time.Microsecond)
	m := &oneMessage{workflow.StatusMessage{WorkflowID: t.id, Status: status, EventTime: now, Engine: t.engine}}
	n := engines.NewNarrator(script.NewReducer(t.id), m)
	n.Apply(engines.Event{At: now, Source: engines.Hook, Line: b})
	return t.publish(ctx, func(ctx context.Context) error { return t.to.Status(ctx, &m.StatusMessage) })
}

func (t *teller) submit(ctx context.Context, s *workflow.Submission) error {
	return t.publish(ctx, func(ctx context.Context) error { return t.to.Submission(ctx, s) })
}

// publish has something published or, failing that, kept on disk.
func (t *teller) publish(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	err := do(ctx)
	if errors.Is(err, engines.ErrSpooled) {
		t.timeout = min(t.timeout, 100*time.Millisecond) // there is no use in waiting again
		return nil
	}
	return sendError(err)
}

// oneMessage is a Teller that makes one message of what it is told.
type oneMessage struct{ workflow.StatusMessage }

func (m *oneMessage) Total(n int) { m.Progress.Total = workflow.Count(min(n, workflow.MaxTotal)) }

func (m *oneMessage) Log(text string) { m.Logs += engines.Text(text) }

func (m *oneMessage) EngineSpecific(func() json.RawMessage) {}

func (m *oneMessage) Job(news workflow.JobReport) {
	// As within a run: a name that is too long must not lose the job.
	news, _ = engines.Bounded(m.WorkflowID, m.Engine, news)
	m.Jobs = append(m.Jobs, news)
	if news.Attempt > 1 {
		return // sections speak of first attempts
	}
	ids := workflow.JobIDs(news.ID)
	switch news.Status {
	case workflow.JobRunning:
		m.Progress.Running = ids
	case workflow.JobFinished:
		m.Progress.Finished = ids
	case workflow.JobFailed:
		m.Progress.Failed = ids
	}
	if news.Cached {
		m.Progress.Cached = ids
	}
}
