package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"waymark/engines"
	"waymark/engines/cwl"
	"waymark/engines/nextflow"
	"waymark/engines/script"
	"waymark/engines/snakemake"
	"waymark/engines/yadage"
	"waymark/workflow"
)

// watchedEngine is an engine that runs as the user runs it, and is watched.
type watchedEngine struct {
	name, short, long, example string
	adapter                    engines.Adapter
	// reducer makes the story of a recording.
	reducer func(uuid.UUID) engines.Reducer
	// programs are the base names by which a recording is known.
	programs []string
}

// watchedEngines are all of them but serial, which Waymark runs itself.
var watchedEngines = []watchedEngine{
	{
		name: "snakemake", adapter: snakemake.Adapter{}, reducer: snakemake.NewReducer, programs: []string{"snakemake"},
		short: "Run Snakemake and report its jobs",
		long: `Run Snakemake 5 to 9 and report its jobs, through a hook that its Python loads;
your profiles, log handlers and plugins work as before. Dry runs and queries
report nothing. The text of standard error is read instead where Python does not
load the hook; engine_specific says so.`,
		example: "  waymark run snakemake -- snakemake -j4\n  waymark run snakemake --name fit --record rec -- snakemake -j4 --keep-going",
	},
	{
		name: "cwl", adapter: cwl.Adapter{}, reducer: cwl.NewReducer, programs: []string{"cwltool", "cwl-runner"},
		short: "Run cwltool and report its jobs",
		long: `Run a CWL workflow with cwltool and report its jobs, through a hook in its
logger. The text of standard error is read instead where Python does not load the
hook; engine_specific says so.`,
		example: "  waymark run cwl -- cwltool --parallel analysis.cwl analysis.yml",
	},
	{
		name: "toil", adapter: cwl.Toil{}, reducer: cwl.NewReducer, programs: []string{"toil-cwl-runner"},
		short:   "Run a CWL workflow with Toil and report its jobs",
		long:    "Run a CWL workflow with toil-cwl-runner and report its jobs, by a hook in its\nworkers on this machine and by the message bus of its leader: the option\n--writeMessages is added, unless it is there.",
		example: "  waymark run toil -- toil-cwl-runner analysis.cwl analysis.yml",
	},
	{
		name: yadage.Engine, adapter: yadage.Adapter{}, reducer: yadage.NewReducer, programs: []string{"yadage-run", "yadage.steering"},
		short:   "Run Yadage and report its jobs",
		long:    "Run Yadage and report its jobs, through the tracker that it loads from its\nenvironment; a tracker of yours still works.",
		example: "  waymark run yadage -- yadage-run work workflow.yml -b multiproc:4",
	},
	{
		name: nextflow.Engine, adapter: nextflow.Adapter{}, reducer: nextflow.NewReducer, programs: []string{"nextflow"},
		short: "Run Nextflow and report it",
		long: `Run Nextflow and report its tasks. It is told to post its events to a port of
this machine (-with-weblog); an address that you have given gets them as well.
Written after Nextflow's documentation, and not tried with the program itself:
see docs/engines/nextflow.md.`,
		example: "  waymark run nextflow -- nextflow run main.nf -resume",
	},
	{
		name: script.Engine, adapter: script.Adapter{}, reducer: script.NewReducer,
		short: "Run any program, which reports its jobs itself",
		long: `Run any program and report it as a run: that it began, how it ended, the end of
its standard error. Its jobs it reports itself, with "waymark publish job" and
"waymark publish progress", or by writing lines of JSON to the Unix socket in
WAYMARK_SOCKET.`,
		example: "  waymark run script -- ./analysis.sh --events 1000\n  waymark run script --name nightly -- make -j4",
	},
}

func (a *app) runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run a workflow and report it",
		Long: `Run a workflow on this machine and report what it does. Each engine has a
subcommand. Except for serial, which is Waymark's own, the engine's command line
follows after --, just as it would be typed without Waymark.`,
		Example: "  waymark run serial -f reana.yaml\n  waymark run snakemake -- snakemake -j4\n  waymark run script -- ./analysis.sh",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && (filepath.Ext(args[0]) != "" || strings.ContainsRune(args[0], filepath.Separator)) {
				return usage("%q is no engine: say which runs it, as in waymark run serial -f %s, or waymark run script -- %[2]s", args[0], shellQuote(args[0]))
			}
			return group(cmd, args)
		},
	}
	cmd.AddCommand(a.runSerialCommand())
	for _, e := range watchedEngines {
		cmd.AddCommand(a.runWatchedCommand(e))
	}
	return cmd
}

// reportFlags are the flags of all that reports a run.
type reportFlags struct {
	id, name, owner        string
	labels                 []string
	requireBroker, noSpool bool
	finalTimeout           time.Duration
}

func (f *reportFlags) add(flags *pflag.FlagSet, nameDefault string) {
	flags.StringVar(&f.id, "id", "", "`UUID` of the run (default a new one)")
	flags.StringVarP(&f.name, "name", "n", "", "`name` of the workflow (default "+nameDefault+")")
	flags.StringVar(&f.owner, "owner", "", "`owner` of the run (default the name of this user)")
	flags.StringArrayVar(&f.labels, "label", nil, "a label to find the run by, as `KEY=VALUE`; may be repeated")
	flags.DurationVar(&f.finalTimeout, "final-timeout", 30*time.Second, "how long the end of the run is tried to be delivered")
	flags.BoolVar(&f.requireBroker, "require-broker", false, "run nothing unless the broker can be reached")
	flags.BoolVar(&f.noSpool, "no-spool", false, "keep nothing on disk while the broker is away, and deliver nothing that earlier runs kept")
}

// workflowID is the id that was asked for, or uuid.Nil.
func (f *reportFlags) workflowID() (uuid.UUID, error) {
	if f.id == "" {
		return uuid.Nil, nil
	}
	id, err := uuid.Parse(f.id)
	if err != nil || id == uuid.Nil {
		return uuid.Nil, usage("--id: %q is not a UUID", f.id)
	}
	return id, nil
}

// watchedFlags are the flags of "run" for a watched engine.
type watchedFlags struct {
	reportFlags
	grace    time.Duration
	graceful bool
	record   string
}

const watchedHelp = `

The engine runs as it would without Waymark: same arguments, same output, same
exit code. The id of the run is printed first, on standard error, with its name and
how to follow it; what became of it is printed last. Nothing that happens to
Waymark or the broker harms the run: how it ended is tried to be delivered for
--final-timeout, and what is not confirmed by then is kept on disk
(publisher.spool_dir; not with --no-spool), and delivered by the next run, by
"waymark publish --spool", or by a "waymark serve" that is told the folder.
Without broker.url nothing is reported.

A setting in the environment or in a file that cannot be used is said, and the run
is not reported; with --require-broker nothing is run then.

The first Ctrl-C or SIGTERM is passed to the engine and its jobs, the second
kills what is left of them; "waymark help exit-codes" says with what engines end
then. An engine cannot read from a terminal here.`

func (a *app) runWatchedCommand(e watchedEngine) *cobra.Command {
	var f watchedFlags
	cmd := &cobra.Command{
		Use:     e.name + " [flags] -- COMMAND",
		Short:   e.short,
		Long:    e.long + watchedHelp,
		Example: e.example,
		Args:    args(1, -1, "the command line of the engine, after --"),
		RunE:    func(cmd *cobra.Command, command []string) error { return a.runWatched(cmd, e, &f, command) },
	}
	flags := cmd.Flags()
	// What follows the program's name is the engine's, with or without --.
	flags.SetInterspersed(false)
	f.add(flags, "that of this folder")
	flags.DurationVar(&f.grace, "grace", 30*time.Second, "how long the engine may take to end when it is stopped, before it is killed")
	flags.BoolVar(&f.graceful, "graceful", false, "stop the engine alone, which may let its jobs end")
	flags.StringVar(&f.record, "record", "", "keep a recording of the engine's events in this new `folder`, for waymark replay")
	addConfigFlags(cmd, "broker", "publisher", "log")
	return cmd
}

func (a *app) runWatched(cmd *cobra.Command, e watchedEngine, f *watchedFlags, command []string) error {
	labels, err := parseIdentity(f.name, f.owner, f.labels)
	if err != nil {
		return err
	}
	id, err := f.workflowID()
	if err != nil {
		return err
	}
	if id == uuid.Nil {
		id = uuid.New()
	}
	if f.name == "" {
		f.name = folderName()
	}
	ctx, hurry, stop := engines.NotifyContext(cmd.Context(), stopSignals()...)
	defer stop()
	logger := slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	var to *runPublisher
	closePublisher := func() {}
	c, err := a.config(cmd)
	if err == nil {
		logger = a.loggerTo(a.stderr, c, true)
		to, closePublisher, err = a.reporting(ctx, cmd, c, &f.reportFlags, hurry, a.stderr)
	}
	if err != nil {
		// What is wrong on the command line can be put right at once. What a
		// site has set must not keep everybody's workflows from running.
		if f.requireBroker || settingsGiven(cmd) || ctx.Err() != nil {
			return err
		}
		a.say("waymark: the run is not reported: %s", harmless(oneLine.Replace(err.Error())))
		closePublisher = func() {}
	}
	s := engines.Supervision{
		Adapter: e.adapter,
		Announce: func(watched bool) {
			if watched {
				announce(a.say, id, f.name, to != nil)
			}
		},
		Args:         command,
		FinalTimeout: f.finalTimeout,
		Grace:        f.grace,
		Graceful:     f.graceful,
		Hurry:        hurry,
		Labels:       labels,
		Logger:       logger,
		Name:         f.name,
		Owner:        f.owner,
		Record:       f.record,
		Relay:        relayArgs(),
		WorkflowID:   id,
	}
	if to != nil {
		s.Publisher = to
	}
	out, err := engines.Supervise(ctx, s)
	closePublisher()
	if err != nil {
		return &exitError{code: notStarted(err), err: fmt.Errorf("%w; nothing of it is reported", err)}
	}
	if out.Watched {
		if out.Events == 0 && e.name != script.Engine {
			a.say("nothing was heard of %s: did the command run it?", e.name)
		}
		a.sayOutcome(to, &out)
	}
	return exit(out.ExitCode)
}

// settingsGiven reports whether a setting is given as a flag.
func settingsGiven(cmd *cobra.Command) (given bool) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		_, setting := f.Annotations[settingAnnotation]
		given = given || setting || f.Name == "config"
	})
	return given
}

// stopSignals are what stops a run. A program that nohup started is not told
// that the terminal is gone.
func stopSignals() []os.Signal {
	all := []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT}
	return slices.DeleteFunc(all, func(s os.Signal) bool { return signal.Ignored(s) })
}

// notStarted is what a shell ends with if a program cannot be started.
func notStarted(err error) int {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
		return 127
	}
	return 126
}

// folderName is that of the folder that this program works in, empty if that is gone.
func folderName() string {
	dir, err := os.Getwd()
	if err != nil {
		return ""
	}
	return filepath.Base(dir)
}

// announce says which run begins and, if it is reported, how to follow it. The
// id stands alone, so that programs find it.
func announce(say func(string, ...any), id uuid.UUID, name string, reported bool) {
	say("run %s", id)
	if !reported {
		return
	}
	if name != "" {
		name = "name " + clip(harmless(name), 80) + "; "
	}
	say("%sto follow it: waymark watch %s", name, shortID(id))
}

// say says a line on standard error.
func (a *app) say(format string, args ...any) {
	// Whether anybody can read it must not matter to the run.
	_, _ = fmt.Fprintf(a.stderr, format+"\n", args...)
}

// sayOutcome says how the run ended and what became of its messages.
func (a *app) sayOutcome(to *runPublisher, out *engines.Outcome) {
	n := out.Counts
	jobs := "no job"
	if n.Total > 0 {
		jobs = fmt.Sprintf("%d of %s finished", n.Finished, count(n.Total, "job"))
	}
	for _, more := range []struct {
		n    int
		what string
	}{{n.Cached, "from the cache"}, {n.Failed, "failed"}, {n.Stopped, "stopped"}} {
		if more.n > 0 {
			jobs += fmt.Sprintf(", %d %s", more.n, more.what)
		}
	}
	why := ""
	if out.Status != workflow.StatusFinished {
		why = ": " + clip(harmless(out.Reason), 200)
	}
	a.say("run %s %s: %s%s", out.WorkflowID, out.Status, jobs, why)
	a.sayReport(a.say, to, out.Report)
}

// sayReport says what became of a run's messages.
func (a *app) sayReport(say func(string, ...any), to *runPublisher, r engines.Report) {
	if to == nil {
		return
	}
	d := to.delivery(r)
	say("published %d, confirmed %d, spooled %d, dropped %d", d.published, d.confirmed, d.spooled, d.dropped)
	if r.Dropped > 0 {
		say("%s left out", count(r.Dropped, "detail"))
	}
	if d.spooled > 0 {
		say("%s kept in %s, for the next run or waymark publish --spool to deliver", count(d.spooled, "message"), harmless(to.spool))
	}
	if r.Terminal != nil {
		say("nobody was told how the run ended: %s", harmless(errorText(r.Err)))
	}
}

// withoutSettings is an environment without ours. The commands of a serial
// workflow have no business with the servers' URLs, which may hold passwords, and
// what they print is published. Other engines run as they would without us, and
// so in the environment that they would have.
func withoutSettings(env []string) []string {
	return slices.DeleteFunc(env, func(v string) bool { return strings.HasPrefix(v, envPrefix) })
}

// reporting returns where the run is reported to, nil if nowhere, and what
// closes it.
func (a *app) reporting(ctx context.Context, cmd *cobra.Command, c *config, f *reportFlags, hurry <-chan struct{}, log io.Writer) (to *runPublisher, closeIt func(), err error) {
	if c.Broker.URL == "" {
		if f.requireBroker {
			return nil, nil, c.require("broker.url")
		}
		fmt.Fprintln(a.stderr, "broker.url is not set: the run is not reported")
		return nil, func() {}, nil
	}
	to, err = a.runPublisher(cmd, c, f.noSpool, log)
	if err != nil {
		return nil, nil, err
	}
	if f.requireBroker {
		if err := ready(ctx, to.p, c); err != nil {
			return nil, nil, errors.Join(err, to.p.Close(cancelled()))
		}
	}
	stopDraining := a.drainBeside(ctx, cmd, c, to.spool, hurry, log)
	return to, func() {
		// The engine has waited for every confirm that it wanted, and says what
		// it did not get; this disconnects, and gives the spool back.
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = to.p.Close(closing)
		stopDraining()
	}, nil
}

func errorText(err error) string {
	if err == nil {
		return "the broker did not confirm it"
	}
	return err.Error()
}
