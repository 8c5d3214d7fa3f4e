package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"waymark/engines"
	"waymark/publisher"
	"waymark/publisher/spool"
	"waymark/workflow"
)

const (
	// drainGrace is how long a run that has ended still delivers what earlier
	// runs left, if the broker takes it.
	drainGrace = 5 * time.Second
	// drainInterval is how often serve looks into the spool.
	drainInterval = 5 * time.Second
)

// spoolDir is the folder of the spool: the configured one, else this user's,
// empty if that cannot be known.
func (a *app) spoolDir(c *config) string {
	if c.Publisher.SpoolDir != "" {
		return c.Publisher.SpoolDir
	}
	return a.stateDir("spool")
}

// stateDir is a folder of this user's for what outlives a command, empty if
// none can be known.
func (a *app) stateDir(name string) string {
	// The environment may say so, and must be absolute to count (XDG Base
	// Directory Specification).
	if state := a.getenv("XDG_STATE_HOME"); filepath.IsAbs(state) {
		return filepath.Join(state, "waymark", name)
	}
	if home := a.getenv("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, ".local", "state", "waymark", name)
	}
	return ""
}

// runPublisher returns a publisher with a spool. If the user's own folder cannot
// be used the run is reported without one: it was not asked for.
func (a *app) runPublisher(cmd *cobra.Command, c *config, noSpool bool, log io.Writer) (*runPublisher, error) {
	dir := a.spoolDir(c)
	if noSpool {
		dir = ""
	}
	if dir != "" && c.Publisher.SpoolDir == "" {
		if err := spool.Prepare(dir); err != nil {
			a.loggerTo(log, c, true).Warn("nothing is kept on disk while the broker is away", "err", err)
			dir = ""
		}
	}
	p, err := a.publisherWith(cmd, c, log, publisher.Spool{Dir: dir, MaxBytes: int64(c.Publisher.SpoolMaxBytes)})
	if err != nil {
		return nil, err
	}
	return &runPublisher{p: p, spool: dir}, nil
}

// runPublisher is where a run is reported to.
type runPublisher struct {
	p     *publisher.Publisher
	spool string // folder; empty if there is none
}

func (r *runPublisher) Spools() bool { return r.spool != "" }

func (r *runPublisher) Status(ctx context.Context, m *workflow.StatusMessage) error {
	return became(r.p.Status(ctx, m))
}

func (r *runPublisher) Submission(ctx context.Context, s *workflow.Submission) error {
	return became(r.p.Submission(ctx, s))
}

// became says in the words of engines what became of a message.
func became(err error) error {
	if errors.Is(err, publisher.ErrSpooled) {
		return fmt.Errorf("%w: %w", engines.ErrSpooled, err)
	}
	if _, invalid := errors.AsType[*publisher.InvalidError](err); invalid {
		return fmt.Errorf("%w: %w", engines.ErrInvalid, err)
	}
	return err
}

// delivery says what became of the messages of a run in the end.
// published = confirmed + spooled + dropped.
type delivery struct{ published, confirmed, spooled, dropped int }

// delivery puts together what the engine and its publisher, which is closed, know.
func (r *runPublisher) delivery(told engines.Report) delivery {
	d := delivery{published: told.Published, confirmed: told.Confirmed}
	if r != nil {
		// The publisher may have delivered what it had put on disk before.
		now := r.p.Report()
		d.spooled = min(told.Spooled, int(now.Spooled))
		d.confirmed = min(told.Confirmed+told.Spooled-d.spooled, max(told.Confirmed, int(now.Confirmed)))
	}
	d.dropped = d.published - d.confirmed - d.spooled
	return d
}

// drainBeside delivers what earlier runs left, on a connection of its own, and
// returns what ends that. It makes itself heard only if something is wrong with
// the spool: that the broker is away is the run's to say.
func (a *app) drainBeside(ctx context.Context, cmd *cobra.Command, c *config, dir string, hurry <-chan struct{}, log io.Writer) (stop func()) {
	if left, err := spool.Segments(dir); dir == "" || err == nil && len(left) == 0 {
		return func() {}
	}
	logger := a.loggerTo(log, c, true)
	pc, err := c.publisher(slog.New(slog.DiscardHandler))
	if err != nil {
		return func() {} // which the run's own publisher has said
	}
	pc.ConnectionName = cmd.CommandPath() + " (spool)"
	p, err := publisher.New(pc)
	if err != nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	reached, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer func() { _ = p.Close(cancelled()) }()
		if p.Ready(ctx) != nil {
			return
		}
		close(reached)
		_, err := p.Drain(ctx, publisher.DrainConfig{Dir: dir, Own: true})
		if err != nil && ctx.Err() == nil {
			logger.Warn("not all that earlier runs left is delivered", "spool", dir, "err", err)
		}
	}()
	return func() {
		defer cancel()
		select {
		case <-reached:
			select {
			case <-done:
			case <-hurry:
			case <-time.After(drainGrace):
			}
		default:
		}
		cancel()
		<-done
	}
}

// spoolFlag is --spool, which may name a folder.
type spoolFlag struct {
	set bool
	dir string
}

func (f *spoolFlag) String() string { return f.dir }

// Type is what the help shows nothing of.
func (f *spoolFlag) Type() string { return "bool" }

func (f *spoolFlag) Set(text string) error {
	f.set = true
	if text != "true" {
		f.dir = text
	}
	return nil
}

// publishSpool delivers what is in a spool.
func (a *app) publishSpool(cmd *cobra.Command, dir string) error {
	c, err := a.config(cmd)
	if err != nil {
		return err
	}
	if dir == "" {
		dir = a.spoolDir(c)
	} else if _, err := os.Stat(dir); err != nil {
		return usage("the spool: %w", err)
	}
	if dir == "" {
		return usage("there is no folder to look for the spool in: name it, as in waymark publish --spool DIR")
	}
	segments, err := spool.Segments(dir)
	if err != nil {
		return err
	}
	if len(segments) == 0 {
		fmt.Fprintf(a.stdout, "nothing is in the spool %s\n", harmless(dir))
		return nil
	}
	p, err := a.publisher(cmd, c, a.stderr)
	if err != nil {
		return err
	}
	defer func() { _ = p.Close(cancelled()) }() // what is not confirmed is still in the spool
	if err := ready(cmd.Context(), p, c); err != nil {
		return err
	}
	report, err := p.Drain(cmd.Context(), publisher.DrainConfig{Dir: dir, Patience: c.Publisher.Timeout})
	fmt.Fprintf(a.stdout, "spool %s: found %d, confirmed %d, left %d\n", harmless(dir), report.Found, report.Confirmed, report.Left)
	if report.Busy > 0 {
		fmt.Fprintf(a.stdout, "%s in use by other processes\n", count(report.Busy, "segment"))
	}
	switch {
	case errors.Is(err, publisher.ErrNotConfirmed):
		return unreachable(err)
	case err != nil:
		return err
	case report.Left > 0 || len(report.Damaged) > 0:
		return exit(exitFailed)
	}
	return nil
}

// drainSpool delivers what is in the spool, and whatever comes there, until ctx
// ends.
func (s *server) drainSpool(ctx context.Context) error {
	dir := s.config.Publisher.SpoolDir
	pc, err := s.config.publisher(s.logger)
	if err != nil {
		return err
	}
	pc.ConnectionName = "waymark serve (spool)"
	var p *publisher.Publisher // from when there is something to deliver
	defer func() {
		if p != nil {
			_ = p.Close(cancelled())
		}
	}()
	said := ""
	say := func(err error) {
		if err == nil {
			said = ""
		} else if ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			s.logger.Warn("the spool is not drained", "spool", dir, "err", err)
		}
	}
	for {
		segments, err := spool.Segments(dir)
		if len(segments) > 0 && p == nil {
			if p, err = publisher.New(pc); err != nil {
				return &exitError{code: exitUsage, err: err}
			}
		}
		if len(segments) > 0 && p.Ready(ctx) == nil {
			var report publisher.DrainReport
			report, err = p.Drain(ctx, publisher.DrainConfig{Dir: dir})
			if report.Found > 0 {
				s.logger.Info("drained the spool", "spool", dir, "confirmed", report.Confirmed, "left", report.Left)
			}
		}
		say(err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(drainInterval):
		}
	}
}
