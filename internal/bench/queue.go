package bench

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/broker"
)

// queueKind is a way to declare a queue for the raw drain.
type queueKind struct {
	name      string
	durable   bool
	arguments amqp.Table
	mode      uint8 // of its messages
}

var queueKinds = []queueKind{
	{name: "classic durable", durable: true, mode: amqp.Persistent},
	{name: "classic transient", mode: amqp.Transient},
	{name: "quorum", durable: true, arguments: amqp.Table{"x-queue-type": "quorum"}, mode: amqp.Persistent},
}

// kindOf is how the topology declares its status queue: the raw drain beside a
// consumer is of the same kind.
func kindOf(t broker.Topology) queueKind {
	if t.Status("").Durable {
		return queueKinds[0]
	}
	k := queueKinds[1]
	k.mode = amqp.Persistent // REANA's publishers say so, though the queue is not
	return k
}

// declare makes a queue of the kind.
func (p *place) declare(k queueKind) (name string, err error) {
	name = p.newQueue()
	ch, err := p.conn.Channel()
	if err != nil {
		return "", fmt.Errorf("declaring queue %q: %w", name, broker.Explain(err))
	}
	if _, err := ch.QueueDeclare(name, k.durable, false, false, false, k.arguments); err != nil {
		return "", fmt.Errorf("declaring queue %q (%s): %w", name, k.name, broker.Explain(err))
	}
	return name, ch.Close()
}

// blocked returns a function that tells whether the broker takes no messages, as
// it is low on memory or disk: it says so, and reads no more of what it is sent.
func blocked(conn *amqp.Connection) (fault func() error) {
	said := conn.NotifyBlocked(make(chan amqp.Blocking, 16))
	var last amqp.Blocking
	return func() error {
		for {
			select {
			case b, open := <-said:
				if !open {
					return nil // the connection is lost, of which others hear
				}
				last = b
				continue
			default:
			}
			if last.Active {
				return &broker.Error{Problem: "the broker takes no messages: " + last.Reason, Remedy: "free memory or disk on it"}
			}
			return nil
		}
	}
}

// confirmLoop publishes n messages and returns when all are confirmed, with up
// to a window of them unconfirmed. It is the least that can be done to publish
// safely with the client library: no watch for returned messages, no retry.
// fault is what blocked returned for the connection.
func confirmLoop(ctx context.Context, conn *amqp.Connection, patience time.Duration, fault func() error, queue string, n, window int, publishing func() amqp.Publishing) error {
	return whileWell(ctx, patience, fault, func(ctx context.Context) error {
		// A message that cannot be written is waited for by nothing else.
		defer context.AfterFunc(ctx, func() { _ = conn.CloseDeadline(time.Now().Add(time.Second)) })()
		return confirmAll(ctx, conn, queue, n, window, publishing)
	})
}

func confirmAll(ctx context.Context, conn *amqp.Connection, queue string, n, window int, publishing func() amqp.Publishing) error {
	ch, err := conn.Channel()
	if err != nil {
		return fmt.Errorf("publishing to %q: %w", queue, broker.Explain(err))
	}
	defer ch.Close()
	if err := ch.Confirm(false); err != nil {
		return fmt.Errorf("publishing to %q: %w", queue, broker.Explain(err))
	}
	// Why the channel was closed says more than that a confirm did not come.
	closed := ch.NotifyClose(make(chan *amqp.Error, 1))
	failed := func(err error) error {
		if ctx.Err() != nil {
			return fmt.Errorf("publishing to %q: %w", queue, context.Cause(ctx))
		}
		select {
		case reason := <-closed:
			if reason != nil {
				err = reason
			}
			return fmt.Errorf("publishing to %q: %w", queue, broker.Explain(err))
		case <-time.After(reasonWithin):
			return fmt.Errorf("publishing to %q: the broker refused a message: %w", queue, err)
		}
	}
	open := make([]*amqp.DeferredConfirmation, min(window, n))
	for i := range n + len(open) {
		slot := &open[i%len(open)]
		if *slot != nil {
			if ok, err := (*slot).WaitContext(ctx); err != nil || !ok {
				return failed(cmp.Or(err, fmt.Errorf("message %d of %d was not confirmed", i-len(open)+1, n)))
			}
			*slot = nil
		}
		if i < n {
			*slot, err = ch.PublishWithDeferredConfirmWithContext(ctx, "", queue, true, false, publishing())
			if err != nil {
				return failed(err)
			}
		}
	}
	return nil
}

// reasonWithin is how long the reason for which a channel was closed may take
// to come after what it caused.
const reasonWithin = time.Second

// fillEvery is how often it is told how far a queue is filled.
const fillEvery = 3 * time.Second

// fill puts n messages of the traffic into a queue and returns their average size.
func (p *place) fill(ctx context.Context, queue string, mode uint8, l Load, n int) (size float64, err error) {
	t, bytes := newTraffic(l.Workflows, l.Jobs), 0
	sent, told := 0, time.Now()
	err = confirmLoop(ctx, p.conn, p.patience, p.blocked, queue, n, p.cfg.Window, func() amqp.Publishing {
		at := time.Now()
		if at.Sub(told) >= fillEvery {
			told = at
			p.cfg.Progress(fmt.Sprintf("filling the queue: %s of %s messages", Number(float64(sent)), Number(float64(n))))
		}
		sent++
		body := t.next().body(l.Size, p.cfg.Encoding, at)
		bytes += len(body)
		return amqp.Publishing{
			AppId: "waymark", Body: body, ContentEncoding: "utf-8", ContentType: "application/json", DeliveryMode: mode,
			MessageId: uuid.Must(uuid.NewV7()).String(), Timestamp: at,
		}
	})
	return float64(bytes) / float64(n), err
}

// drainRaw takes n messages from a queue with the settings of the consumer and
// does nothing with them: the broker's and the client library's share of the
// work, and so what a consumer could reach at most. The clock runs while n
// messages are taken, after the first skip of them and before the last tail.
func (p *place) drainRaw(ctx context.Context, queue string, skip, n, tail int) (from, to moment, err error) {
	fail := func(err error) (moment, moment, error) {
		return moment{}, moment{}, fmt.Errorf("draining queue %q: %w", queue, err)
	}
	conn, err := p.dial(ctx, "waymark bench drain")
	if err != nil {
		return fail(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		return fail(broker.Explain(err))
	}
	if err := ch.Qos(p.cfg.Prefetch, 0, false); err != nil {
		return fail(broker.Explain(err))
	}
	settle()
	from = now()
	total := skip + n + tail
	deliveries, err := ch.Consume(queue, "", false, false, false, false, nil)
	if err != nil {
		return fail(broker.Explain(err))
	}
	for i := 1; i <= total; i++ {
		var d amqp.Delivery
		var ok bool
		select {
		case d, ok = <-deliveries:
		case <-ctx.Done():
			return fail(context.Cause(ctx))
		}
		if !ok {
			return fail(fmt.Errorf("the broker ended the session after %d of %d messages", i-1, total))
		}
		// One ack for as many messages as the consumer puts into a transaction.
		if i%p.cfg.BatchSize == 0 || i == total {
			if err := d.Ack(true); err != nil {
				return fail(broker.Explain(err))
			}
		}
		switch i {
		case skip:
			from = now()
		case skip + n:
			to = now()
		}
	}
	return from, to, nil
}
