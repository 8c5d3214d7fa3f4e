package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"waymark/engines"
	"waymark/workflow"
)

// replayFlags are the flags of "replay".
type replayFlags struct {
	reportFlags
	engine string
	speed  float64
	fast   bool
}

func (a *app) replayCommand() *cobra.Command {
	var f replayFlags
	cmd := &cobra.Command{
		Use:   "replay RECORDING",
		Short: "Publish a recorded run as if it happened now",
		Long: `Publish what an engine was seen to do, at its own pace or faster: for
demonstrations, for tests, and for those who write an adapter. A recording is a
folder that "waymark run --record" has made, or a file with the lines of JSON that
a hook sent. The engine is known from the recorded command line; --engine says it
where there is none.

Ends like "waymark run" with the exit code of the recorded engine.`,
		Example: "  waymark replay recordings/fit --speed 10\n  waymark replay events.jsonl --engine snakemake --fast",
		Args:    args(1, 1, "RECORDING"),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.play(cmd, &f, args[0]) },
	}
	flags := cmd.Flags()
	f.add(flags, "that of the recording")
	flags.StringVar(&f.engine, "engine", "", "the `engine` that was recorded: "+strings.Join(engineNames(), ", "))
	flags.Float64Var(&f.speed, "speed", 1, "how much faster than it happened")
	flags.BoolVar(&f.fast, "fast", false, "without any pause")
	addConfigFlags(cmd, "broker", "publisher", "log")
	return cmd
}

func engineNames() (names []string) {
	for _, e := range watchedEngines {
		names = append(names, e.name)
	}
	return names
}

// recorded finds the engine of a recording.
func recorded(r *engines.Recording, name string) (watchedEngine, error) {
	for _, e := range watchedEngines {
		if e.name == name || name == "" && slices.ContainsFunc(r.Command, func(word string) bool {
			return slices.Contains(e.programs, filepath.Base(word))
		}) {
			return e, nil
		}
	}
	if name != "" {
		return watchedEngine{}, usage("--engine: unknown engine %q: expected one of %s", name, strings.Join(engineNames(), ", "))
	}
	return watchedEngine{}, usage("the recording does not tell its engine: give --engine, one of %s", strings.Join(engineNames(), ", "))
}

func (a *app) play(cmd *cobra.Command, f *replayFlags, path string) error {
	c, err := a.config(cmd)
	if err != nil {
		return err
	}
	if err := c.require("broker.url"); err != nil {
		return err
	}
	if f.speed <= 0 {
		return usage("--speed: %v is not above 0; --fast is without any pause", f.speed)
	}
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
	r, err := engines.ReadRecording(path)
	if err != nil {
		return &exitError{code: exitUsage, err: err}
	}
	e, err := recorded(r, f.engine)
	if err != nil {
		return err
	}
	if f.name == "" {
		f.name = strings.TrimSuffix(filepath.Base(filepath.Clean(path)), ".jsonl")
	}
	if f.owner == "" {
		f.owner = engines.ProcessUser()
	}

	ctx, hurry, stop := engines.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	to, closePublisher, err := a.reporting(ctx, cmd, c, &f.reportFlags, hurry, a.stderr)
	if err != nil {
		return err
	}
	announce(a.say, id, f.name, true)
	p := engines.Playback{
		Engine: e.adapter.Engine(), FinalTimeout: f.finalTimeout, Publisher: to, Recording: r, Reducer: e.reducer(id), Speed: f.speed,
		Submission: &workflow.Submission{User: f.owner, Workflow: id.String(), Name: f.name, Engine: e.adapter.Engine(), Labels: labels},
	}
	if f.fast {
		p.Speed = 0
	}
	out, err := engines.Play(ctx, p)
	closePublisher()
	if err != nil {
		return err
	}
	a.sayOutcome(to, &out)
	return exit(out.ExitCode)
}
