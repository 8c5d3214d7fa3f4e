package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/broker"
)

// deadLetterQueues is an open look into the dead-letter queues. What was taken
// from them stays invisible to others until release or close, which put back,
// in its old place, whatever was not settled.
//
// One looks at a time: who looked while another holds half of the letters would
// not find what is there. The right to look is that of an exclusive consumer,
// which the broker grants to one, and takes back from one that was killed.
type deadLetterQueues struct {
	conn   *amqp.Connection
	ch     *amqp.Channel
	queues []*letterQueue
	taken  int
	limit  int
	more   bool // the limit was reached
}

// letterQueue is the dead letters beside one queue.
type letterQueue struct {
	beside string // the name of that queue
	// turn has the exclusive consumer, to whom the broker sends one letter, the
	// first there is; nobody needs it but to have the turn.
	turn  *amqp.Channel
	first <-chan amqp.Delivery
}

const (
	defaultLetters = 10_000
	// maxLetterBytes bounds the bodies that are fetched in one go.
	maxLetterBytes = 512 << 20
	// turnTimeout is how long to wait while others look: to read ten thousand
	// letters takes seconds.
	turnTimeout = 30 * time.Second
)

func (a *app) openDeadLetters(ctx context.Context, c *config, queue string, limit int) (_ *deadLetterQueues, err error) {
	if err := c.require("broker.url"); err != nil {
		return nil, err
	}
	if limit < 1 || limit > 1_000_000 {
		return nil, usage("--limit: expected 1 to 1000000, found %d", limit)
	}
	q := c.queues()
	names := []string{q.Status, q.Submission}
	switch queue {
	case "":
	case "status", q.Status:
		names = names[:1]
	case "submission", q.Submission:
		names = names[1:]
	default:
		return nil, usage("--queue: unknown queue %q: expected status or submission", queue)
	}
	conn, err := dial(ctx, c, "waymark dead-letters")
	if err != nil {
		return nil, err
	}
	d := &deadLetterQueues{conn: conn, limit: limit}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if d.ch, err = conn.Channel(); err != nil {
		return nil, broker.Explain(err)
	}
	for _, name := range names {
		// A queue that was never declared holds nothing.
		state, err := inspect(conn, broker.DeadLetter(name))
		if err != nil {
			return nil, fmt.Errorf("looking at queue %q: %w", broker.DeadLetter(name), err)
		}
		if state == nil {
			continue
		}
		mine, err := takeTurn(ctx, conn, name)
		if err != nil {
			return nil, fmt.Errorf("looking at queue %q: %w", broker.DeadLetter(name), err)
		}
		d.queues = append(d.queues, mine)
	}
	return d, nil
}

// takeTurn waits for the right to look at the dead letters beside a queue.
func takeTurn(ctx context.Context, conn *amqp.Connection, name string) (*letterQueue, error) {
	deadline := time.After(turnTimeout)
	for {
		// A refusal closes the channel.
		ch, err := conn.Channel()
		if err != nil {
			return nil, broker.Explain(err)
		}
		if err := ch.Qos(1, 0, false); err != nil {
			return nil, broker.Explain(err)
		}
		first, err := ch.Consume(broker.DeadLetter(name), turnTag, false, true, false, false, nil)
		if err == nil {
			return &letterQueue{beside: name, turn: ch, first: first}, nil
		}
		refusal, ok := errors.AsType[*amqp.Error](err)
		if !ok || refusal.Code != amqp.AccessRefused || !strings.Contains(refusal.Reason, "exclusive") {
			return nil, broker.Explain(err)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-deadline:
			return nil, &broker.Error{
				Problem: "somebody else consumes from it",
				Remedy:  "wait for the other waymark dead-letters to end, or stop the consumer (rabbitmqctl list_consumers)",
				Err:     err,
			}
		case <-time.After(poll):
		}
	}
}

const turnTag = "waymark dead-letters"

// head returns the letter that the broker sent for having the turn, if the
// queue held any.
func (q *letterQueue) head(ctx context.Context) (d amqp.Delivery, ok bool, err error) {
	// With a second letter behind it the first is surely on its way. Else it is,
	// if there is one, before the answer to the second of two questions: the
	// broker may answer the first before it sends on what it has.
	state, err := q.turn.QueueDeclarePassive(broker.DeadLetter(q.beside), false, false, false, false, nil)
	if err == nil {
		err = q.turn.Qos(1, 0, false)
	}
	if err != nil {
		return d, false, broker.Explain(err)
	}
	patience := 100 * time.Millisecond // the library hands it over in a goroutine
	if state.Messages > 0 {
		patience = 10 * time.Second
	}
	select {
	case d, ok = <-q.first:
		if !ok {
			return d, false, errors.New("the broker ended the session")
		}
		return d, true, nil
	case <-ctx.Done():
		return d, false, context.Cause(ctx)
	case <-time.After(patience):
		return d, false, nil
	}
}

// close puts back what was not settled.
func (d *deadLetterQueues) close() { d.conn.Close() }

// release ends the turn, and puts back the letters that are named.
func (d *deadLetterQueues) release(letters []amqp.Delivery) error {
	// The turn first, or it would be sent what is put back.
	for _, q := range d.queues {
		if err := q.turn.Cancel(turnTag, false); err != nil {
			return broker.Explain(err)
		}
		for unread := range q.first {
			letters = append(letters, unread)
		}
	}
	for i := range letters {
		if err := letters[i].Nack(false, true); err != nil {
			return broker.Explain(err)
		}
	}
	return nil
}

// settle returns once the broker has read all acks: they have no answers, but
// closing a channel has one.
func (d *deadLetterQueues) settle() error {
	for _, q := range d.queues {
		if err := q.turn.Close(); err != nil {
			return broker.Explain(err)
		}
	}
	if err := d.ch.Close(); err != nil {
		return broker.Explain(err)
	}
	return nil
}

// each calls visit with one letter after the other, until there are no more or
// the limit is reached; then d.more is true.
func (d *deadLetterQueues) each(ctx context.Context, visit func(deadLetter) error) error {
	bytes := 0
	for _, q := range d.queues {
		next := func() (amqp.Delivery, bool, error) { return q.head(ctx) }
		for {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if d.taken >= d.limit || bytes > maxLetterBytes {
				d.more = true
				return nil
			}
			delivery, ok, err := next()
			if err != nil {
				return fmt.Errorf("reading queue %q: %w", broker.DeadLetter(q.beside), broker.Explain(err))
			}
			if !ok {
				break
			}
			d.taken++
			bytes += len(delivery.Body)
			if err := visit(readDeadLetter(delivery, q.beside)); err != nil {
				return err
			}
			next = func() (amqp.Delivery, bool, error) { return d.ch.Get(broker.DeadLetter(q.beside), false) }
		}
	}
	return nil
}
