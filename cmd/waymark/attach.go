package main

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"waymark/engines"
	"waymark/engines/snakemake"
	"waymark/workflow"
)

func (a *app) attachCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "attach",
		Short:   "Report a run that is already going",
		Long:    "Report a run that is already going, and was started without Waymark. Each engine\nthat lends itself to it has a subcommand.",
		Example: "  waymark attach snakemake",
		RunE:    group,
	}
	cmd.AddCommand(a.attachSnakemakeCommand())
	return cmd
}

func (a *app) attachSnakemakeCommand() *cobra.Command {
	var f reportFlags
	cmd := &cobra.Command{
		Use:   "snakemake [DIR]",
		Short: "Report a Snakemake that is already running",
		Long: `Report the Snakemake that is running in a folder, this one by default, by what it
writes to its log file. That is less than "waymark run snakemake" knows: jobs have
no commands, exit codes or logs, a rule with a message of its own has no name, and
with --quiet there is nothing. "mode" in engine_specific is "log".

Ends when the run has: with 0 if its log says that it is done, else with 1. Ctrl-C
leaves the run alone, and unreported from then on.`,
		Example: "  waymark attach snakemake\n  waymark attach snakemake /data/fit --name fit",
		Args:    args(0, 1, ""),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := "."
			if len(args) > 0 {
				dir = args[0]
			}
			return a.attachSnakemake(cmd, &f, dir)
		},
	}
	f.add(cmd.Flags(), "that of the folder")
	addConfigFlags(cmd, "broker", "publisher", "log")
	return cmd
}

func (a *app) attachSnakemake(cmd *cobra.Command, f *reportFlags, dir string) error {
	c, err := a.config(cmd)
	if err != nil {
		return err
	}
	if err := c.require("broker.url"); err != nil {
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
	if id == uuid.Nil {
		id = uuid.New()
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	run, err := snakemake.Attach(dir)
	if errors.Is(err, snakemake.ErrNotRunning) {
		return &exitError{code: exitUsage, err: err}
	}
	if err != nil {
		return err
	}
	if f.name == "" {
		f.name = filepath.Base(dir)
	}
	if f.owner == "" {
		f.owner = engines.ProcessUser()
	}

	ctx, hurry, stop := engines.NotifyContext(cmd.Context(), stopSignals()...)
	defer stop()
	to, closePublisher, err := a.reporting(ctx, cmd, c, f, hurry, a.stderr)
	if err != nil {
		return err
	}
	announce(a.say, id, f.name, to != nil)
	a.say("reading %s", harmless(run.Log))
	reporter := engines.NewReporter(ctx, engines.Config{
		Engine: snakemake.Engine, FinalTimeout: f.finalTimeout, Logger: a.loggerTo(a.stderr, c, true), Publisher: to, WorkflowID: id,
	})
	reporter.Submit(&workflow.Submission{User: f.owner, Workflow: id.String(), Name: f.name, Engine: snakemake.Engine, Labels: labels, EventTime: run.Began()})
	reporter.BeginAt(run.Began())
	narrator := engines.NewNarrator(run.Reducer(id), reporter)
	followErr := run.Events(ctx, narrator.Apply)

	// The end of it is told even if it is we who are stopped.
	finishing, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	if ctx.Err() != nil || followErr != nil {
		report := reporter.Leave(finishing)
		closePublisher()
		a.say("run %s goes on, and is not reported any more", id)
		a.sayReport(a.say, to, report)
		if followErr != nil {
			return followErr
		}
		return exit(signalCode(ctx))
	}
	end := narrator.End(engines.Exit{At: time.Now().UTC()})
	out := engines.Outcome{WorkflowID: id, Watched: true, Status: end.Status, Reason: end.Reason, Counts: narrator.Counts()}
	logs := ""
	if end.Status != workflow.StatusFinished {
		out.ExitCode, logs = exitFailed, end.Reason+"\n"+end.Logs
	}
	out.Report = reporter.Finish(finishing, end.Status, logs)
	closePublisher()
	a.sayOutcome(to, &out)
	return exit(out.ExitCode)
}
