package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"waymark/engines"
	"waymark/engines/serial"
	"waymark/workflow"
)

// serialFlags are the flags of "run serial".
type serialFlags struct {
	reportFlags
	file, workspace     string
	parameters, options []string
	resume, quiet       bool
	grace               time.Duration
}

func (a *app) runSerialCommand() *cobra.Command {
	var f serialFlags
	cmd := &cobra.Command{
		Use:   "serial",
		Short: "Run a serial workflow of REANA",
		Long: `Run a serial workflow of REANA on this machine, one command after the other, and
report it. The id of the run is printed first, on standard error, with its name and
how to follow it.

Commands run with /bin/sh in a workspace folder, as this user and without
containers: run only what you trust. The inputs that reana.yaml declares are
copied there from beside it. Their output goes to files in .waymark/logs of the
workspace and, the last 64 KiB of each command's, to the database; with --quiet it
is not shown here.

A file that is not there, or cannot be used, is a run that failed: it is reported,
with the reason, if there is a broker. What is typed wrongly begins none, nor does
--resume with such a file.

Reporting never harms the run: while the broker is away the run goes on, and how
it ended is tried to be delivered for --final-timeout. What is not confirmed by
then is kept on disk (publisher.spool_dir; not with --no-spool), and delivered by
the next run, by "waymark publish --spool", or by a "waymark serve" that is told
the folder. Without broker.url nothing is reported. With --require-broker nothing
is run unless the broker can be reached.

Ends like the workflow: with 0 if it finished, else with the exit code of the
command that failed, or 128 plus the number of the signal that stopped it. The
first Ctrl-C stops the command, the second kills it.`,
		Example: `  waymark run serial -f reana.yaml -p sleeptime=0
  waymark run serial -o TARGET=gendata --workspace /tmp/fit
  waymark run serial --workspace /tmp/fit --resume`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usage("unexpected argument %q: a file is given with -f, a parameter with -p", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runSerial(cmd, &f) },
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.file, "file", "f", "reana.yaml", "the workflow: a reana.yaml `file`")
	flags.StringArrayVarP(&f.parameters, "parameter", "p", nil, "an input parameter, as `KEY=VALUE`; may be repeated")
	flags.StringArrayVarP(&f.options, "option", "o", nil, "an operational option: `FROM=STEP`, TARGET=STEP or CACHE=off; may be repeated")
	flags.StringVarP(&f.workspace, "workspace", "w", "", "`folder` to work in (default .waymark/runs/ID)")
	flags.BoolVar(&f.resume, "resume", false, "go on where the latest run in the workspace ended: what finished is not run again, up to the first command that has changed; give -p and -o as before")
	f.add(flags, "that of the folder of the file")
	flags.DurationVar(&f.grace, "grace", 10*time.Second, "how long a command may take to end when it is stopped, before it is killed")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "do not show the output of the commands")
	addConfigFlags(cmd, "broker", "publisher", "log")
	return cmd
}

func (a *app) runSerial(cmd *cobra.Command, f *serialFlags) error {
	c, err := a.config(cmd)
	if err != nil {
		return err
	}
	parameters, err := parsePairs("--parameter", f.parameters)
	if err != nil {
		return err
	}
	options, err := parsePairs("--option", f.options)
	if err != nil {
		return err
	}
	labels, err := parseIdentity(f.name, f.owner, f.labels)
	if err != nil {
		return err
	}
	id, err := f.workflowID()
	if err != nil {
		return err
	}
	w, unusable := serial.Load(f.file, serial.Overrides{Parameters: parameters, Options: options})
	if unusable != nil {
		unusable = &exitError{code: exitUsage, err: unusable}
		// What was typed wrongly is put right at once, and begins no run; nor is a
		// run that is there already to be told anew, as failed.
		_, typed := errors.AsType[*serial.OverrideError](unusable)
		if typed || f.resume || c.Broker.URL == "" {
			return unusable
		}
	}
	if id == uuid.Nil && !f.resume {
		id = uuid.New()
	}

	// The signals are the engine's from here on: the first stops the run, the
	// second cuts short the time that its command has for ending.
	ctx, hurry, stop := engines.NotifyContext(cmd.Context(), stopSignals()...)
	defer stop()
	view := a.serialView(f.quiet)
	to, closePublisher, err := a.reporting(ctx, cmd, c, &f.reportFlags, hurry, view)
	switch {
	case err != nil && unusable != nil:
		return unusable
	case err != nil:
		return err
	}
	name := f.name
	if name == "" {
		name = serial.DefaultName(f.file)
	}
	announced := &announcer{say: func(id uuid.UUID) { announce(view.line, id, name, to != nil) }}
	if to != nil {
		announced.next = to
	}
	if id != uuid.Nil {
		announced.announce(id)
	}
	config := serial.RunConfig{
		Env:          withoutSettings(os.Environ()),
		FinalTimeout: f.finalTimeout,
		Grace:        f.grace,
		Hurry:        hurry,
		Labels:       labels,
		Logger:       a.loggerTo(view, c, true),
		Name:         f.name,
		Observe:      view.event,
		Output:       view.output,
		Owner:        f.owner,
		Publisher:    announced.publisher(),
		Resume:       f.resume,
		Version:      buildVersion().Version,
		WorkflowID:   id,
		Workspace:    f.workspace,
	}
	if unusable != nil {
		// Who asked for the run may look for it elsewhere than here. Who has mistyped
		// a name is here, and waits.
		if !cmd.Flags().Changed("final-timeout") {
			config.FinalTimeout = min(config.FinalTimeout, refusalTimeout)
		}
		report := serial.Refuse(ctx, f.file, unusable, config).Report
		closePublisher()
		a.sayReport(view.line, to, report)
		return unusable
	}
	result, runErr := w.Run(ctx, config)
	view.close()
	closePublisher()
	return a.sayResult(view, to, &result, runErr)
}

// refusalTimeout is how long it is tried to be told that a run could not begin.
const refusalTimeout = 3 * time.Second

// announcer says the id of a run, once: before it begins if it is known then,
// else, of a resumed one, as soon as its first message tells.
type announcer struct {
	next engines.Publisher
	say  func(uuid.UUID)
	once sync.Once
}

func (p *announcer) announce(id uuid.UUID) { p.once.Do(func() { p.say(id) }) }

// publisher is p, or nil if nothing is reported.
func (p *announcer) publisher() engines.Publisher {
	if p.next == nil {
		return nil
	}
	return p
}

// Spools passes on what the next publisher can do.
func (p *announcer) Spools() bool {
	s, ok := p.next.(engines.Spooler)
	return ok && s.Spools()
}

func (p *announcer) Status(ctx context.Context, m *workflow.StatusMessage) error {
	p.announce(m.WorkflowID)
	return p.next.Status(ctx, m)
}

func (p *announcer) Submission(ctx context.Context, s *workflow.Submission) error {
	p.announce(s.ID())
	return p.next.Submission(ctx, s)
}

// sayResult says how the run ended and what became of its messages.
func (a *app) sayResult(view *serialView, to *runPublisher, result *serial.Result, runErr error) error {
	if result.WorkflowID != uuid.Nil {
		switch {
		case result.Failed != nil:
			f := result.Failed
			view.line("%s failed: %s", harmless(f.Where()), harmless(f.Reason))
			view.line("  command  %s", clip(harmless(f.Text), 200))
			for _, l := range lastLines(f.Tail, shownLogLines) {
				view.line("  | %s", l)
			}
			if f.Log != "" {
				view.line("  all its output is in %s", harmless(f.Log))
			}
		case result.Reason != "" && runErr == nil:
			view.line("%s", harmless(result.Reason))
		}
		view.line("run %s %s: %d of %s finished (%d from the cache), workspace %s", result.WorkflowID, view.colour(result.Status.String()),
			result.Finished, count(result.Total, "command"), result.Cached, harmless(result.Workspace))
		a.sayReport(view.line, to, result.Report)
	}
	switch {
	case runErr != nil && result.WorkflowID == uuid.Nil:
		return &exitError{code: exitUsage, err: runErr}
	case runErr != nil:
		return &exitError{code: max(result.ExitCode, exitFailed), err: runErr}
	}
	return exit(result.ExitCode)
}

// serialView shows a run: with a progress bar on a terminal, in lines elsewhere.
type serialView struct {
	app      *app
	o        *output
	terminal bool
	output   io.Writer // of the commands; nil if not shown
	bar      *mpb.Bar  // the engine's goroutine's alone

	mu      sync.Mutex // guards what follows
	bars    *mpb.Progress
	current string
}

func (a *app) serialView(quiet bool) *serialView {
	v := &serialView{app: a, o: &output{w: a.stderr}, terminal: isTerminal(a.stderr)}
	v.o.colour = v.terminal && a.getenv("NO_COLOR") == "" && a.getenv("TERM") != "dumb"
	if !quiet {
		v.output = a.stdout
		if v.terminal && isTerminal(a.stdout) {
			v.output = &lineWriter{w: v}
		}
	}
	return v
}

// Write writes whole lines above the bar, if there is one by now.
func (v *serialView) Write(p []byte) (int, error) {
	v.mu.Lock()
	bars := v.bars
	v.mu.Unlock()
	if bars != nil {
		if n, err := bars.Write(p); !errors.Is(err, mpb.ErrDone) {
			return n, err
		}
	}
	return v.app.stderr.Write(p)
}

func (v *serialView) colour(word string) string { return v.o.status(word) }

// line writes a line of ours.
func (v *serialView) line(format string, args ...any) {
	// Whether anybody can read it must not matter to the run.
	_, _ = fmt.Fprintf(v, format+"\n", args...)
}

func (v *serialView) event(e serial.Event) {
	name := fmt.Sprintf("step %d", e.Step+1)
	if e.Name != "" {
		name = harmless(e.Name)
	}
	switch e.Kind {
	case serial.RunStarted:
		if v.terminal && e.Total > 0 {
			bars := mpb.New(mpb.WithOutput(v.app.stderr), mpb.WithWidth(30), mpb.WithAutoRefresh())
			v.mu.Lock()
			v.bars = bars
			v.mu.Unlock()
			v.bar = bars.AddBar(int64(e.Total),
				mpb.PrependDecorators(decor.CountersNoUnit("%d/%d ")),
				mpb.AppendDecorators(decor.Elapsed(decor.ET_STYLE_GO), decor.Any(func(decor.Statistics) string {
					v.mu.Lock()
					defer v.mu.Unlock()
					return "  " + v.current
				})))
		}
		return
	case serial.RunEnded:
		return
	case serial.RunRepeats:
		v.line("%s, command %d, is not what it was when it finished: %s run again, from there. Parameters (-p) have to be given again", name, e.Command+1, count(e.Again, "finished command"))
		return
	case serial.JobStarted:
		v.mu.Lock()
		v.current = clip(name, 40)
		v.mu.Unlock()
		v.line("%s  started: %s", name, clip(harmless(e.Text), 100))
	case serial.JobFinished:
		v.line("%s  %s  %d/%d", name, v.colour("finished"), e.Done, e.Total)
	case serial.JobCached:
		v.line("%s  %s, finished in an earlier run  %d/%d", name, v.colour("finished"), e.Done, e.Total)
	case serial.JobFailed:
		v.line("%s  %s: %s", name, v.colour("failed"), harmless(e.Reason))
	case serial.JobStopped:
		v.line("%s  %s: %s", name, v.colour("stopped"), harmless(e.Reason))
	}
	if v.bar != nil {
		v.bar.SetCurrent(int64(e.Done))
	}
}

// close ends the bar where it stands.
func (v *serialView) close() {
	if w, ok := v.output.(*lineWriter); ok {
		w.flush()
	}
	if v.bars == nil {
		return
	}
	if v.bar != nil && !v.bar.Completed() {
		v.bar.Abort(false)
	}
	v.bars.Wait()
}

// lineWriter passes whole lines on: a bar is drawn below the last of them, and
// would be drawn over half a line. It makes them harmless to the bar, too.
type lineWriter struct {
	w    io.Writer
	rest []byte
}

// maxHeldLine is when a line without end is passed on all the same.
const maxHeldLine = 16 << 10

func (l *lineWriter) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	end := strings.LastIndexByte(string(l.rest), '\n') + 1
	if end == 0 && len(l.rest) > maxHeldLine {
		end = len(l.rest)
	}
	if end > 0 {
		// What the terminal cannot take must not end the command that wrote it.
		_, _ = io.WriteString(l.w, wholeLines(harmlessLog(string(l.rest[:end]))))
		l.rest = append(l.rest[:0], l.rest[end:]...)
	}
	return len(p), nil
}

func (l *lineWriter) flush() {
	if len(l.rest) > 0 {
		_, _ = io.WriteString(l.w, wholeLines(harmlessLog(string(l.rest))))
		l.rest = nil
	}
}
