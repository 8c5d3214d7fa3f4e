package consumer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"waymark/internal/broker"
	"waymark/internal/crashpoint"
	"waymark/internal/wire"
	"waymark/workflow"
)

// Reasons for which the consumer dead-letters what the codec has accepted. They
// travel in headers, so they are never renamed.
const (
	// ReasonRejected: the database refused the data.
	ReasonRejected = "rejected"
	// ReasonUnknownWorkflow: the workflow is not known, and only known ones
	// are accepted.
	ReasonUnknownWorkflow = "unknown-workflow"
)

// process gives a batch its effect and acknowledges it. An error means that
// the session is over, or the drain timeout: what is not acknowledged comes again.
func (c *Consumer) process(ctx context.Context, s *session, b *batch) error {
	good := make([]*item, 0, len(b.items))
	var bad []*item
	for i := range b.items {
		if it := &b.items[i]; it.refused != nil {
			bad = append(bad, it)
		} else {
			good = append(good, it)
		}
	}
	if err := c.apply(ctx, s, good, 0); err != nil {
		return err
	}
	if len(bad) > 0 {
		// The database has answered about this batch before anything is
		// dead-lettered: while it is away sessions may come and go, and each would
		// leave the same letters once more.
		if len(good) == 0 {
			if _, err := c.applyUntilAnswered(ctx, s, nil, 0); err != nil {
				return err
			}
		}
		if err := c.bury(ctx, s, bad); err != nil {
			return err
		}
		if err := c.apply(ctx, s, nil, len(bad)); err != nil {
			return err
		}
	}
	crashpoint.Hit("consumer.after-commit")
	if err := s.ch.Ack(b.items[len(b.items)-1].tag, true); err != nil {
		return broker.Explain(err)
	}
	s.settled.ack(c.number)
	crashpoint.Hit("consumer.acked")
	return nil
}

// bury dead-letters items that cannot be read.
func (c *Consumer) bury(ctx context.Context, s *session, items []*item) error {
	letters := make([]letter, len(items))
	for i, it := range items {
		letters[i] = letter{item: it}
		letters[i].reason, letters[i].pointer, letters[i].message = wire.Describe(it.refused)
	}
	return c.publishDead(ctx, s, letters)
}

func (c *Consumer) publishDead(ctx context.Context, s *session, letters []letter) error {
	if len(letters) == 0 {
		return nil
	}
	crashpoint.Hit("consumer.before-dead-letter")
	pause := broker.NewBackoff()
	for {
		err := s.dead.publish(ctx, c.cfg.Queue, letters)
		if c.lettersAre(err) && err != nil {
			c.cfg.Logger.Warn("consumption is paused: the broker does not take dead letters", "queue", c.cfg.Queue, "err", err)
		}
		if err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause.NextBackOff()):
		}
	}
	crashpoint.Hit("consumer.dead-letter-confirmed")
	c.tell(letters)
	return nil
}

// tell counts letters and logs them, one record for each reason.
func (c *Consumer) tell(letters []letter) {
	counts := map[string]int{}
	var first []letter // of each reason
	for _, l := range letters {
		if counts[l.reason]++; counts[l.reason] == 1 {
			first = append(first, l)
		}
	}
	for _, l := range first {
		c.metrics.deadLettered(l.reason, counts[l.reason])
		c.cfg.Logger.Warn("messages were dead-lettered", "queue", c.cfg.Queue, "count", counts[l.reason], "reason", l.reason, "pointer", l.pointer)
	}
}

// apply applies items in one transaction, or in several where the store
// refuses some for what they hold. dead is the number of dead letters to enter
// in the ledger with them.
func (c *Consumer) apply(ctx context.Context, s *session, items []*item, dead int) error {
	if len(items) == 0 && dead == 0 {
		return nil
	}
	outcomes, err := c.applyUntilAnswered(ctx, s, items, dead)
	switch {
	case err == nil:
		c.metrics.applied(outcomes, dead)
		return nil
	case errors.Is(err, workflow.ErrUnknownWorkflow):
		return c.withoutUnknown(ctx, s, items, outcomes, dead)
	case errors.Is(err, workflow.ErrRejected):
		return c.split(ctx, s, items, dead, err)
	default:
		return err
	}
}

// split looks for the message that the store refuses by halving the batch.
func (c *Consumer) split(ctx context.Context, s *session, items []*item, dead int, refusal error) error {
	if len(items) <= 1 {
		if len(items) == 0 {
			return refusal // an entry in the ledger alone was refused: no message is to blame
		}
		if err := c.publishDead(ctx, s, []letter{{item: items[0], reason: ReasonRejected, message: refusal.Error()}}); err != nil {
			return err
		}
		return c.apply(ctx, s, nil, dead+1)
	}
	half := len(items) / 2
	if err := c.apply(ctx, s, items[:half], dead); err != nil {
		return err
	}
	return c.apply(ctx, s, items[half:], 0)
}

// withoutUnknown dead-letters the messages for unknown workflows and applies
// the others.
func (c *Consumer) withoutUnknown(ctx context.Context, s *session, items []*item, outcomes []workflow.Outcome, dead int) error {
	var known []*item
	var letters []letter
	for i, it := range items {
		if outcomes[i] == workflow.Unknown {
			letters = append(letters, letter{item: it, reason: ReasonUnknownWorkflow, pointer: "/workflow_uuid",
				message: fmt.Sprintf("no submission of workflow %s has arrived", it.WorkflowID())})
		} else {
			known = append(known, it)
		}
	}
	if err := c.publishDead(ctx, s, letters); err != nil {
		return err
	}
	return c.apply(ctx, s, known, dead+len(letters))
}

// applyUntilAnswered tries until the store has answered about this batch, or
// the session is over. All tries have one number: if an answer was lost after
// a commit, the store recognises the batch.
func (c *Consumer) applyUntilAnswered(ctx context.Context, s *session, items []*item, dead int) ([]workflow.Outcome, error) {
	c.number++
	b := &workflow.Batch{Queue: c.cfg.Queue, Consumer: c.id, Number: c.number, Session: s.id, Settled: s.settled.last(time.Now()), Dead: dead, Deliveries: make([]workflow.Delivery, len(items)), Held: c.held(s)}
	for i, it := range items {
		b.Deliveries[i] = it.Delivery
	}
	pause := broker.NewBackoff()
	for {
		crashpoint.Hit("consumer.before-apply")
		began := time.Now()
		outcomes, err := c.cfg.Store.Apply(ctx, b)
		if err == nil || errors.Is(err, workflow.ErrRejected) || errors.Is(err, workflow.ErrUnknownWorkflow) {
			c.metrics.answered(b, time.Since(began), err)
			if c.storeIs(nil) {
				c.cfg.Logger.Info("the database answers again", "queue", c.cfg.Queue)
			}
			return outcomes, err
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if errors.Is(err, errNotHeld) {
			return nil, err
		}
		c.metrics.failed(err)
		wait := pause.NextBackOff()
		if c.storeIs(err) {
			c.cfg.Logger.Warn("consumption is paused: the database does not take messages", "queue", c.cfg.Queue, "err", err, "retry_in", wait)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

// errNotHeld says that the broker no longer answers in the session, and may
// have given its deliveries to others.
var errNotHeld = errors.New("the session with the broker does not answer")

// heldTimeout is how long the broker may take to answer while a transaction
// holds its locks.
const heldTimeout = 5 * time.Second

// held asks the broker whether the session is alive: deliveries go to others only
// after its channel has ended, and then it does not answer.
func (c *Consumer) held(s *session) func(context.Context) error {
	return func(context.Context) error {
		// The library's calls have no context; the end of ctx, too, closes the
		// connection.
		defer time.AfterFunc(heldTimeout, s.farewell).Stop()
		if err := s.ask(); err != nil {
			return fmt.Errorf("%w: %w", errNotHeld, broker.Explain(err))
		}
		return nil
	}
}
