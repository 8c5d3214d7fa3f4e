package bench

import (
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

// confirmLoop publishes n messages and returns when all are confirmed, with up
// to a window of them unconfirmed. It is the least that can be done to publish
// safely with the client library: no watch for returned messages, no retry.
func confirmLoop(ctx context.Context, conn *amqp.Connection, queue string, n, window int, publishing func() amqp.Publishing) error {
	ch, err := conn.Channel()
	if err != nil {
		return fmt.Errorf("publishing to %q: %w", queue, broker.Explain(err))
	}
	defer ch.Close()
	if err := ch.Confirm(false); err != nil {
		return fmt.Errorf("publishing to %q: %w", queue, broker.Explain(err))
	}
	open := make([]*amqp.DeferredConfirmation, min(window, n))
	for i := range n + len(open) {
		slot := &open[i%len(open)]
		if *slot != nil {
			if ok, err := (*slot).WaitContext(ctx); err != nil || !ok {
				return fmt.Errorf("publishing to %q: message %d of %d was not confirmed: %w", queue, i-len(open)+1, n, errorOr(err, "the broker refused it"))
			}
			*slot = nil
		}
		if i < n {
			*slot, err = ch.PublishWithDeferredConfirmWithContext(ctx, "", queue, true, false, publishing())
			if err != nil {
				return fmt.Errorf("publishing to %q: %w", queue, broker.Explain(err))
			}
		}
	}
	return nil
}

func errorOr(err error, text string) error {
	if err != nil {
		return err
	}
	return fmt.Errorf("%s", text)
}

// fill puts n messages of the traffic into a queue and returns their average size.
func (p *place) fill(ctx context.Context, queue string, mode uint8, l Load, n int) (size float64, err error) {
	t, bytes := newTraffic(l.Workflows, l.Jobs), 0
	err = confirmLoop(ctx, p.conn, queue, n, p.cfg.Window, func() amqp.Publishing {
		at := time.Now()
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
