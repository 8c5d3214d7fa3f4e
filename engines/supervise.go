package engines

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
	"golang.org/x/term"

	"waymark/workflow"
)

const (
	// drainDelay is how long events may still come after the engine has ended:
	// what it forked may hold the socket open for as long as it likes.
	drainDelay = time.Second
	// leftoverGrace is how long a process group may take to be gone after it
	// has been killed.
	leftoverGrace = time.Second
	// A process group that is to end is looked at often at first.
	firstPoll, lastPoll = 5 * time.Millisecond, 200 * time.Millisecond
)

// Supervision says how [Supervise] runs and reports an engine.
type Supervision struct {
	// Adapter knows the engine. Required.
	Adapter Adapter
	// Args is the engine's command line, program first. Required.
	Args []string
	// Announce is called before the engine is started, and told whether there
	// is anything to report. Default: nobody wants to know.
	Announce func(watched bool)
	// Attempt counts explicit restarts of the workflow. Default 1.
	Attempt int
	// Env is the engine's environment, as in os.Environ. Default: that of this
	// process.
	Env []string
	// Dir is the folder the engine works in. Default: the current one.
	Dir string
	// FinalTimeout is how long the end of the run is tried to be delivered.
	// Default 30 s.
	FinalTimeout time.Duration
	// Grace is how long the engine may take to end after a signal, before its
	// process group gets SIGKILL. Default 30 s.
	Grace time.Duration
	// Graceful sends the signal to the engine alone and not to its jobs.
	Graceful bool
	// Hurry, when closed, cuts short the grace and, to 2 s, the final timeout:
	// see [NotifyContext]. Default: no haste.
	Hurry <-chan struct{}
	// Interval is the least time between two progress messages. Default 100 ms;
	// negative means none.
	Interval time.Duration
	// Labels are free keys and values to find the run by. Default none.
	Labels map[string]string
	// Logger hears of what deserves attention, each kind once. Default: none.
	Logger *slog.Logger
	// Name of the workflow as people call it. Default: that of the folder.
	Name string
	// Owner of the run. Default: [ProcessUser].
	Owner string
	// Publisher takes the messages. Default: none, and nothing is reported.
	Publisher Publisher
	// Record is a folder for a [Recording] of the run, made if it is not there.
	// Default: none.
	Record string
	// Relay is the command line of a program that calls [Relay]. It passes the
	// engine's standard error on, so that the engine outlives this process.
	// Default: none, and the end of standard error is not reported.
	Relay []string
	// Stdin, Stdout and Stderr are the engine's. Default: those of this process.
	// A Stdin that is a terminal is not passed on: see [Supervise].
	Stdin, Stdout, Stderr *os.File
	// WorkflowID names the run. Default: a new one.
	WorkflowID uuid.UUID
}

// Outcome says how an engine ended.
type Outcome struct {
	WorkflowID uuid.UUID
	// Watched is false if there was nothing to report, such as in a dry run.
	// Of what follows only ExitCode then means something.
	Watched bool
	// Status is finished, failed or stopped, Reason why the run did not finish.
	Status workflow.Status
	Reason string
	// ExitCode is the engine's: 128 and the signal's number for a signal.
	ExitCode int
	// Counts are how many jobs ended in which state.
	Counts Counts
	// Events is how many events of the engine there were.
	Events int
	// Report says what became of the messages.
	Report Report
}

// Supervise runs an engine as the user would, and reports what it does.
//
// The engine keeps its arguments, its standard output and, passed through
// unchanged, its standard error. It has a process group of its own, which is
// not that of the terminal: an engine that read from the terminal would be
// stopped by it, and so it reads the end of file there. Nothing that
// happens to this process or to the broker harms it; if it cannot be watched it
// runs unwatched, with a warning.
//
// The end of ctx stops the run. If its cause is a [*StopError], as with
// [NotifyContext], that signal is sent to the process group, else SIGTERM; what
// is left after Grace is killed. What the engine leaves running when it ends by
// itself is left alone.
//
// An engine that fails is an Outcome, not an error. The error is not nil if the
// engine could not be started; nothing has been reported then.
func Supervise(ctx context.Context, s Supervision) (Outcome, error) {
	s, err := s.withDefaults()
	if err != nil {
		return Outcome{}, err
	}
	r := &supervisor{Supervision: s, events: make(chan Event, 256)}
	return r.run(ctx)
}

func (s Supervision) withDefaults() (Supervision, error) {
	if s.Adapter == nil || len(s.Args) == 0 || s.Args[0] == "" {
		panic("engines: supervising needs an adapter and a command line")
	}
	if s.Logger == nil {
		s.Logger = slog.New(slog.DiscardHandler)
	}
	if s.Env == nil {
		s.Env = os.Environ()
	}
	if s.Grace <= 0 {
		s.Grace = 30 * time.Second
	}
	if s.WorkflowID == uuid.Nil {
		s.WorkflowID = uuid.New()
	}
	if s.Owner == "" {
		s.Owner = ProcessUser()
	}
	dir, err := filepath.Abs(s.Dir)
	if err != nil {
		return s, fmt.Errorf("finding the working folder: %w", err)
	}
	s.Dir = dir
	if s.Name == "" {
		s.Name = filepath.Base(dir)
	}
	for _, f := range []struct {
		file **os.File
		std  *os.File
	}{{&s.Stdin, os.Stdin}, {&s.Stdout, os.Stdout}, {&s.Stderr, os.Stderr}} {
		if *f.file == nil {
			*f.file = f.std
		}
	}
	return s, nil
}

// supervisor is one engine under supervision.
type supervisor struct {
	Supervision
	events chan Event // to the narrator

	watch    Watch
	reporter *Reporter
	narrator *Narrator
	tape     *tape
	heard    int // events
	tail     Tail
}

func (r *supervisor) run(ctx context.Context) (Outcome, error) {
	out := Outcome{WorkflowID: r.WorkflowID}
	launch, hook, err := r.prepare(ctx)
	defer func() {
		if hook != nil {
			hook.close()
		}
		if launch.Temp != "" {
			os.RemoveAll(launch.Temp) // nobody else knows of it
		}
	}()
	if err != nil {
		r.Logger.Warn("the engine runs unwatched: only its end is reported", "engine", r.Adapter.Engine(), "err", err)
	}

	cmd, err := r.command(launch)
	if err != nil {
		return out, err
	}
	out.Watched = r.watch.Reducer != nil
	if r.Announce != nil {
		r.Announce(out.Watched)
	}
	errs := &errorTap{direct: r.Stderr}
	lines := Lines{Max: 64 << 10, Emit: func(line []byte) { r.emit(Event{Source: Stderr, Line: line}) }}
	if out.Watched && len(r.Relay) > 0 {
		errs, err = newErrorTap(r.Relay, r.Stderr, func(b []byte) {
			_, _ = r.tail.Write(b)
			if r.watch.Stderr {
				_, _ = lines.Write(b)
			}
		})
		if err != nil {
			r.Logger.Warn("the end of the engine's standard error is not reported", "err", err)
		}
	}
	cmd.Stderr = errs.engine()
	began := time.Now()
	err = cmd.Start()
	errs.started()
	if err != nil {
		errs.wait(time.Millisecond)
		return out, fmt.Errorf("starting %s: %w", r.Args[0], err)
	}

	if out.Watched {
		r.begin(ctx, launch, began)
	}
	ended := make(chan struct{})
	var told sync.WaitGroup
	told.Go(func() { r.narrate() })
	sources := r.startSources(ctx, hook, ended)

	exit := r.wait(ctx, cmd)
	close(ended)
	sources.Wait()
	errs.wait(drainDelay)
	_ = lines.Close() // one that is too long is no event, and of nobody's concern
	close(r.events)
	told.Wait()
	exit.Stderr = r.tail.String()
	out.ExitCode = exit.Code
	r.tape.close(exit)
	if !out.Watched {
		return out, nil
	}

	ending := r.narrator.End(exit)
	if broken := r.narrator.Broken(); broken != "" {
		r.Logger.Error("the adapter has a mistake: jobs may be missing; please report it", "engine", r.Adapter.Engine(), "err", broken)
	}
	if n, first := r.narrator.Unreadable(); n > 0 {
		r.Logger.Warn("events of the engine could not be read", "engine", r.Adapter.Engine(), "events", n, "first", first)
	}
	out.Status, out.Reason, out.Counts, out.Events = ending.Status, ending.Reason, r.narrator.Counts(), r.heard
	finishing, cancel := r.finishing(ctx)
	defer cancel()
	out.Report = r.reporter.Finish(finishing, ending.Status, lastWords(ending, exit))
	return out, nil
}

// lastWords are the end of the run's log.
func lastWords(e Ending, x Exit) string {
	if e.Status == workflow.StatusFinished {
		return ""
	}
	parts := []string{e.Reason}
	if e.Logs != "" {
		parts = append(parts, strings.TrimRight(e.Logs, "\n"))
	}
	if x.Stderr != "" {
		parts = append(parts, "The end of standard error:\n"+strings.TrimRight(colours.ReplaceAllString(x.Stderr, ""), "\n"))
	}
	return strings.Join(parts, "\n") + "\n"
}

// colours are what engines put around words for a terminal.
var colours = regexp.MustCompile("\x1b\\[[0-9;]*m")

// finishing is the context of the last report: the run's without its end, but
// in haste.
func (r *supervisor) finishing(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		select {
		case <-r.Hurry:
			time.AfterFunc(hasteTimeout, cancel)
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// hasteTimeout is how long the end of the run may still take to be reported
// once somebody has lost patience.
const hasteTimeout = 2 * time.Second

// prepare has the adapter get ready. On an error the launch is as it was, and
// nothing but the end of the run is going to be known.
func (r *supervisor) prepare(ctx context.Context) (*Launch, *hookListener, error) {
	bare := &Launch{Args: r.Args, Env: r.Env, Dir: r.Dir, WorkflowID: r.WorkflowID, Logger: r.Logger}
	r.watch = Watch{Reducer: silent{}}
	temp, err := os.MkdirTemp("", "waymark-run-") // 0700
	if err != nil {
		temp, err = os.MkdirTemp("/tmp", "waymark-run-") // $TMPDIR may be what is wrong
	}
	if err != nil {
		return bare, nil, fmt.Errorf("making a folder for the hook: %w", err)
	}
	bare.Temp = temp
	hook, err := listenHook(temp)
	if err != nil {
		return bare, nil, err
	}
	launch := *bare
	launch.Socket = hook.path
	launch.Args = append([]string(nil), bare.Args...)
	launch.Env = append([]string(nil), bare.Env...)
	watch, err := r.prepareAdapter(ctx, &launch)
	if err != nil {
		return bare, hook, err
	}
	r.watch = watch
	return &launch, hook, nil
}

// prepareAdapter makes an error of a panic: a mistake of an adapter must not
// keep the engine from running.
func (r *supervisor) prepareAdapter(ctx context.Context, l *Launch) (w Watch, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the adapter has a mistake: %v", p)
		}
	}()
	return r.Adapter.Prepare(ctx, l)
}

// silent is the Reducer of a run that is not watched.
type silent struct{}

func (silent) Apply(Event, Story) bool { return true }
func (silent) End(Exit, Story) Ending  { return Ending{} }

func (r *supervisor) command(l *Launch) (*exec.Cmd, error) {
	cmd := exec.Command(l.Args[0], l.Args[1:]...)
	cmd.Path = l.Args[0]
	if !strings.Contains(cmd.Path, "/") {
		path, err := lookPath(l.Args[0], l)
		if err != nil {
			return nil, fmt.Errorf("there is no program %q: %w", l.Args[0], err)
		}
		cmd.Path = path
	}
	cmd.Err = nil
	cmd.Env, cmd.Dir = l.Env, l.Dir
	cmd.Stdin, cmd.Stdout = r.Stdin, r.Stdout
	if isTerminal(r.Stdin) {
		cmd.Stdin = nil
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd, nil
}

// lookPath finds a program in the PATH that the engine will have.
func lookPath(name string, l *Launch) (string, error) {
	for _, folder := range filepath.SplitList(l.Getenv("PATH")) {
		if folder == "" {
			folder = "."
		}
		path := filepath.Join(folder, name)
		if !filepath.IsAbs(path) {
			path = filepath.Join(l.Dir, path)
		}
		if info, err := os.Stat(path); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fs.ErrNotExist
}

// begin starts the story.
func (r *supervisor) begin(ctx context.Context, l *Launch, at time.Time) {
	r.reporter = NewReporter(ctx, Config{
		Attempt:      r.Attempt,
		Engine:       r.Adapter.Engine(),
		FinalTimeout: r.FinalTimeout,
		Interval:     r.Interval,
		Logger:       r.Logger,
		Publisher:    r.Publisher,
		WorkflowID:   r.WorkflowID,
	})
	if r.Record != "" {
		var err error
		if r.tape, err = newTape(r.Record, r.Args, at, r.Logger); err != nil {
			r.Logger.Warn("the run is not recorded", "err", err)
		}
	}
	parameters := map[string]any{"command": r.Args, "dir": r.Dir}
	for k, v := range r.watch.Parameters {
		parameters[k] = v
	}
	r.reporter.Submit(&workflow.Submission{
		User:       r.Owner,
		Workflow:   r.WorkflowID.String(),
		Name:       r.Name,
		Engine:     r.Adapter.Engine(),
		Labels:     r.Labels,
		Parameters: jsonObject(parameters),
	})
	r.reporter.Log(quoted(r.Args) + "\n")
	r.reporter.Begin()
	r.narrator = NewNarrator(r.watch.Reducer, r.reporter)
}

// narrate takes the events, in the order in which they arrive.
func (r *supervisor) narrate() {
	for e := range r.events {
		if r.narrator == nil {
			continue
		}
		if e.Source == stopping {
			r.narrator.Stopping(syscall.Signal(e.Line[0]))
			continue
		}
		r.heard++
		r.tape.event(e)
		r.narrator.Apply(e)
	}
}

// stopping is the source of the event that the engine is being stopped, which
// has its place among the others. Its line is the signal.
const stopping = "stopping"

// emit passes an event on. The line is copied: it is only its owner's.
func (r *supervisor) emit(e Event) {
	if e.At.IsZero() {
		e.At = time.Now()
	}
	e.At = e.At.UTC()
	e.Line = append([]byte(nil), e.Line...)
	r.events <- e
}

// startSources starts whatever brings events. They are waited for after ended
// is closed.
func (r *supervisor) startSources(ctx context.Context, hook *hookListener, ended <-chan struct{}) *sync.WaitGroup {
	var all sync.WaitGroup
	if hook != nil {
		all.Go(func() {
			if oversized := hook.serve(ended, func(line []byte) { r.emit(Event{Source: Hook, Line: line}) }); oversized > 0 {
				r.Logger.Warn("events of the engine were too large and are left out", "events", oversized)
			}
		})
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		<-ended
		cancel()
	}()
	for _, source := range r.watch.Sources {
		all.Go(func() {
			if err := source(running, r.emit); err != nil && !errors.Is(err, context.Canceled) {
				r.Logger.Warn("some events of the engine are missing", "engine", r.Adapter.Engine(), "err", err)
			}
		})
	}
	return &all
}

// wait waits for the engine, and stops it when ctx ends.
func (r *supervisor) wait(ctx context.Context, cmd *exec.Cmd) Exit {
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // ProcessState says it all
		close(ended)
	}()
	select {
	case <-ended:
		return exitOf(cmd.ProcessState)
	case <-ctx.Done():
	}
	stop := context.Cause(ctx)
	number := syscall.SIGTERM
	var byUser *StopError
	if errors.As(stop, &byUser) && byUser.Signal > 0 {
		number = byUser.Signal
	}
	group := cmd.Process.Pid
	r.emit(Event{Source: stopping, Line: []byte{byte(number)}})
	if r.Graceful {
		_ = cmd.Process.Signal(number)
	} else {
		_ = syscall.Kill(-group, number)
	}
	_ = syscall.Kill(-group, syscall.SIGCONT) // a stopped process could not react
	select {
	case <-ended:
	case <-r.Hurry:
	case <-time.After(r.Grace):
	}
	// What the engine has not ended itself would go on working for nobody.
	if !gone(group, firstPoll, nil) {
		_ = syscall.Kill(-group, syscall.SIGTERM)
		select {
		case <-ended:
			gone(group, leftoverGrace, r.Hurry)
		default:
		}
		_ = syscall.Kill(-group, syscall.SIGKILL)
		gone(group, leftoverGrace, nil)
	}
	<-ended
	x := exitOf(cmd.ProcessState)
	x.Stop = stop
	return x
}

// gone waits for a process group to end, for d or until there is haste.
func gone(group int, d time.Duration, hurry <-chan struct{}) bool {
	deadline := time.NewTimer(d)
	defer deadline.Stop()
	for wait := firstPoll; !errors.Is(syscall.Kill(-group, 0), syscall.ESRCH); wait = min(2*wait, lastPoll) {
		poll := time.NewTimer(wait)
		select {
		case <-poll.C:
		case <-deadline.C:
			return false
		case <-hurry:
			return false
		}
	}
	return true
}

// exitOf says how a process that has been waited for ended.
func exitOf(state *os.ProcessState) Exit {
	x := Exit{At: time.Now().UTC()}
	if state == nil {
		x.Code, x.Reason = 1, "nobody knows how the engine ended"
		return x
	}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		at := x.At
		x = exitOfSignal(int(status.Signal()))
		x.At = at
		return x
	}
	if x.Code = state.ExitCode(); x.Code != 0 {
		x.Reason = fmt.Sprintf("exit code %d", x.Code)
	}
	return x
}

// exitOfSignal is the end of an engine that a signal ended.
func exitOfSignal(number int) Exit {
	return Exit{Code: 128 + number, Signal: syscall.Signal(number), Reason: "the engine was killed by " + SignalName(syscall.Signal(number))}
}

// quoted is a command line as a shell would take it.
func quoted(args []string) string {
	words := make([]string, len(args))
	for i, a := range args {
		words[i] = a
		if a == "" || strings.ContainsFunc(a, func(c rune) bool {
			return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-_./=:,@%+", c))
		}) {
			words[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Join(words, " ")
}

// ProcessUser is the name of the user of this process, by which runs are owned
// unless somebody says otherwise.
func ProcessUser() string {
	if u, err := user.Current(); err == nil && u.Username != "" {
		return u.Username
	}
	return fmt.Sprintf("uid-%d", os.Getuid())
}

func isTerminal(f *os.File) bool {
	return f != nil && term.IsTerminal(int(f.Fd()))
}

// ignoreSignals leaves all that ends a program to others.
func ignoreSignals() {
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGPIPE)
}
