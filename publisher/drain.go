package publisher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"waymark/publisher/spool"
)

// DrainConfig says what to drain.
type DrainConfig struct {
	// Dir is the folder of the spool. Required.
	Dir string
	// Own leaves alone what was meant for another broker, or for queues that
	// are not this publisher's: right for a spool that serves several, wrong
	// for one that is to be emptied by hand. Default false.
	Own bool
	// Patience is how long draining goes on without a confirm. Default 30 s.
	Patience time.Duration
}

// DrainReport counts what Drain found. Found = Confirmed + Left.
type DrainReport struct {
	// Found messages, in segments that nobody else has.
	Found int
	// Confirmed by the broker, and no longer in the spool.
	Confirmed int
	// Left in the spool: not confirmed, or refused.
	Left int
	// Elsewhere counts segments left alone because their messages are for
	// another broker.
	Elsewhere int
	// Busy counts segments that other processes write or drain at present.
	Busy int
	// Damaged names files with what could not be read, which were put aside.
	Damaged []string
}

// drainWindow is how many messages are on their way while draining. The body
// of each is in memory.
const drainWindow = 64

// Drain delivers what publishers that are gone, or have failed at their disk,
// left in a spool: oldest first, each message with its message-id, and removes
// it once it is confirmed. Segments of processes that live are theirs. Several
// may drain one folder at once.
//
// The error says what was left and why; it is [ErrNotConfirmed] if the broker
// took nothing for as long as cfg.Patience, or ctx ended. A segment that cannot
// be drained does not keep others from it. A folder that does not exist is empty.
func (p *Publisher) Drain(ctx context.Context, cfg DrainConfig) (DrainReport, error) {
	if cfg.Patience <= 0 {
		cfg.Patience = defaultConfirmTimeout
	}
	var report DrainReport
	spool.Sweep(cfg.Dir)
	paths, err := spool.Segments(cfg.Dir)
	if err != nil {
		return report, err
	}
	var faults []error
	for _, path := range paths {
		segment, err := spool.Open(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // somebody else was faster
		case errors.Is(err, spool.ErrBusy):
			report.Busy++
			continue
		case err != nil:
			faults = append(faults, err)
			continue
		}
		err = p.drain(ctx, cfg, segment, &report)
		if err := errors.Join(err, segment.Close()); err != nil {
			faults = append(faults, fmt.Errorf("draining %s: %w", path, err))
		}
		if errors.Is(err, ErrNotConfirmed) || errors.Is(err, ErrClosed) {
			break // what is behind would fare no better
		}
	}
	return report, errors.Join(faults...)
}

// drain delivers one segment.
func (p *Publisher) drain(ctx context.Context, cfg DrainConfig, segment *spool.Segment, report *DrainReport) error {
	if file := segment.Damaged(); file != "" {
		report.Damaged = append(report.Damaged, file)
		p.cfg.Logger.Warn("a part of the spool is damaged and was put aside", "file", file)
	}
	if segment.Left() == 0 {
		return nil
	}
	if cfg.Own && segment.Origin().Broker != place(p.cfg.URL) {
		report.Elsewhere++
		return nil
	}
	found := segment.Left()
	report.Found += found
	confirmed := 0
	defer func() {
		report.Confirmed += confirmed
		report.Left += found - confirmed
	}()

	type sent struct {
		at      int64
		receipt *Receipt
	}
	var flying []sent
	var faults []error
	// land waits for the oldest. The error is nil unless it is of no use to go on.
	land := func() error {
		waiting, cancel := context.WithTimeout(ctx, cfg.Patience)
		defer cancel()
		err := flying[0].receipt.Wait(waiting)
		at := flying[0].at
		flying = flying[1:]
		switch {
		case err == nil:
			confirmed++
			err = segment.Done(at) // a full disk must not keep the rest from being delivered
		case errors.Is(err, ErrNotConfirmed):
			return err
		}
		if err != nil && len(faults) == 0 {
			faults = append(faults, err) // one stands for all of them
		}
		return nil
	}
	for {
		at, r, err := segment.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return errors.Join(append(faults, err)...)
		}
		if cfg.Own && r.Queue != p.cfg.Queues.Status && r.Queue != p.cfg.Queues.Submission {
			continue
		}
		if len(flying) == drainWindow {
			if err := land(); err != nil {
				return errors.Join(append(faults, err)...)
			}
		}
		sending, cancel := context.WithTimeout(ctx, cfg.Patience)
		receipt, err := p.SendRaw(sending, r.Queue, r.Body, Properties{
			ContentType: r.ContentType, MessageID: r.MessageID, Priority: r.Priority, Timestamp: r.Timestamp,
		})
		cancel()
		switch {
		case err == nil:
			flying = append(flying, sent{at, receipt})
		case errors.Is(err, ErrNotConfirmed), errors.Is(err, ErrClosed):
			return errors.Join(append(faults, err)...)
		case len(faults) == 0:
			faults = append(faults, err)
		}
	}
	for len(flying) > 0 {
		if err := land(); err != nil {
			return errors.Join(append(faults, err)...)
		}
	}
	return errors.Join(faults...)
}
