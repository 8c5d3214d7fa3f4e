package consumer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/broker"
	"waymark/internal/crashpoint"
)

// errClosed says that the broker took the consume away, such as by deleting
// the queue, or that the connection went without a reason.
var errClosed = errors.New("the broker ended the session")

// session is one connection, one channel, one consume at a time.
type session struct {
	id    uuid.UUID
	queue string
	conn  *amqp.Connection
	link  net.Conn // under conn, to be closed without a word
	ch    *amqp.Channel
	dead  *deadLetters
	// rpc is held while the broker is asked something over ch: the library gives
	// an answer to anybody who waits.
	rpc  sync.Mutex
	turn int // counts the consumes
	// settled knows the batches that will not come again.
	settled settled
	// background is what else runs until the connection is closed.
	background sync.WaitGroup
	// gone is closed when the connection or the channel is.
	gone chan struct{}
	err  error // why; valid once gone is closed
	// prefetch it began with.
	prefetch int
}

// session opens a session and works until it ends or ctx does; then it drains.
func (c *Consumer) session(ctx context.Context) (err error) {
	s, deliveries, err := c.open(ctx)
	if err != nil {
		return err
	}
	c.brokerIs(nil)
	if c.overrun {
		c.overrun = false
		c.cfg.Logger.Info("asking for fewer messages at a time: they are large", "queue", c.cfg.Queue, "prefetch", s.prefetch)
	} else {
		c.cfg.Logger.Info("consuming", "queue", c.cfg.Queue, "topology", c.cfg.Topology, "prefetch", s.prefetch)
	}
	received := make(chan struct{})
	go func() {
		defer close(received)
		c.receive(s, deliveries)
	}()
	s.background.Go(func() { c.watchDepth(s) })
	defer func() {
		s.farewell()
		<-received
		s.background.Wait()
		c.intake.end()
	}()
	defer s.dead.close()

	ready := make(chan *batch)
	used := make(chan *batch, 2) // one being gathered, one being applied
	gathered := make(chan struct{})
	gathering, stop := context.WithCancel(ctx)
	go func() {
		defer close(gathered)
		c.gather(gathering, received, ready, used)
	}()
	// Draining may outlive ctx, but not for ever.
	applying, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	defer context.AfterFunc(applying, s.farewell)() // the library's calls have no context
	unwatch := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(c.cfg.DrainTimeout, func() { cancel(errors.New("the drain timeout has passed")) })
		context.AfterFunc(applying, func() { timer.Stop() })
	})
	defer unwatch()
	go func() {
		// Without its session a batch cannot be settled: it will come again.
		select {
		case <-s.gone:
			cancel(s.err)
		case <-applying.Done():
		}
	}()
	for b := range ready {
		if err = c.process(applying, s, b); err != nil {
			break
		}
		if c.intake.settle(len(b.items), b.weight) {
			s.pause()
		}
		b.reset()
		used <- b
	}
	stop()
	for range ready { // the gatherer may be about to hand over a last batch
	}
	<-gathered
	switch {
	case ctx.Err() == nil && (err == nil || errors.Is(err, amqp.ErrClosed)): // which says nothing of why
		<-s.gone
		if err == nil || !errors.Is(s.err, errClosed) { // which says no more
			err = s.err
		}
		fallthrough
	case ctx.Err() == nil:
		if c.intake.cut() {
			c.metrics.overruns.Inc()
			c.overrun, err = true, errOverrun
		}
	case err != nil:
		c.cfg.Logger.Warn("draining was cut short; what is not acknowledged will be delivered again", "queue", c.cfg.Queue, "err", err)
	}
	return err
}

// farewellTimeout is how long a broker that has gone silent may keep a session
// from ending.
const farewellTimeout = 2 * time.Second

// farewell closes the connection, which gives unacknowledged deliveries back to
// the broker.
func (s *session) farewell() { _ = s.conn.CloseDeadline(time.Now().Add(farewellTimeout)) }

func (c *Consumer) open(ctx context.Context) (_ *session, _ <-chan amqp.Delivery, err error) {
	var link net.Conn
	conn, err := broker.Dial(ctx, broker.Config{URL: c.cfg.URL, TLS: c.cfg.TLS, ConnectionName: c.cfg.ConnectionName, Wrap: func(l net.Conn) net.Conn {
		link = l
		return l
	}})
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	// Whatever blocks here ends with ctx.
	unwatch := context.AfterFunc(ctx, func() { conn.CloseDeadline(time.Now().Add(time.Second)) })
	defer unwatch()
	if err := broker.Declare(conn, c.queue, c.cfg.Topology.DeadLetter(c.cfg.Queue)); err != nil {
		return nil, nil, err
	}
	ch, err := conn.Channel()
	if err != nil {
		return nil, nil, broker.Explain(err)
	}
	s := &session{id: uuid.New(), queue: c.cfg.Queue, conn: conn, link: link, ch: ch, prefetch: c.intake.begin(), gone: make(chan struct{})}
	s.dead = &deadLetters{
		dial:  broker.Config{URL: c.cfg.URL, TLS: c.cfg.TLS, ConnectionName: c.cfg.ConnectionName + " dead letters"},
		queue: c.cfg.Topology.DeadLetter(c.cfg.Queue),
	}
	connClosed := conn.NotifyClose(make(chan *amqp.Error, 1))
	chClosed := ch.NotifyClose(make(chan *amqp.Error, 1))
	cancelled := ch.NotifyCancel(make(chan string, 1))
	deliveries, err := s.consume(s.prefetch)
	if err != nil {
		return nil, nil, broker.Explain(err)
	}
	go func() {
		defer close(s.gone)
		s.err = errClosed
		var reason *amqp.Error
		for {
			select {
			case reason = <-connClosed:
			case reason = <-chClosed:
			case _, ok := <-cancelled:
				if !ok { // the channel is closing, which the others tell more of
					cancelled = nil
					continue
				}
				s.err = fmt.Errorf("%w: queue %q was deleted or moved", errClosed, c.cfg.Queue)
			}
			if reason != nil {
				s.err = broker.Explain(reason)
			}
			return
		}
	}()
	return s, deliveries, nil
}

// gather decodes what is received and hands it over in batches, until ctx ends
// or nothing more is received. It closes ready.
//
// While the last batch is being applied the next one grows. An idle applier
// gets what there is at once, unless messages come fast: then a short wait
// saves many small transactions.
//
// It takes the batches that have been dealt with from used, for their room.
func (c *Consumer) gather(ctx context.Context, received <-chan struct{}, ready chan<- *batch, used <-chan *batch) {
	defer close(ready)
	chunk := make([]amqp.Delivery, 0, c.cfg.BatchSize)
	next := new(batch)
	last := 0 // size of the batch before
	linger := time.NewTimer(0)
	<-linger.C
	for {
		in, out, size := c.intake.some, ready, len(next.items)
		if size >= c.cfg.BatchSize || next.bytes >= c.batchBytes {
			in = nil
		}
		if size == 0 {
			out = nil
		} else if in != nil && next.lingering {
			out = nil
		}
		select {
		case <-ctx.Done():
			crashpoint.Hit("consumer.draining")
			if len(next.items) > 0 {
				// Gathered is as good as promised: the applier drains it.
				next.lingering = false
				ready <- next
			}
			return
		case <-linger.C:
			next.lingering = false
		case out <- next:
			last = size
			select {
			case next = <-used:
			default:
				next = new(batch)
			}
		case <-received:
			return // the session is over, nothing gathered can be settled
		case <-in:
			if chunk = c.intake.next(chunk[:0], c.cfg.BatchSize-len(next.items), c.batchBytes-next.bytes); len(chunk) == 0 {
				continue
			}
			if len(next.items) == 0 && c.cfg.Linger > 0 && last+len(chunk) >= lingerFrom {
				next.lingering = true
				linger.Reset(c.cfg.Linger)
			}
			c.decode(next, chunk)
			crashpoint.Hit("consumer.decoded")
			clear(chunk) // the bodies are done with
		}
	}
}

const (
	// maxBatchBytes ends a batch of large bodies early: a transaction of a
	// hundred megabytes helps nobody, and delays the small messages in it. A
	// quarter of what may be held, if that is less: the next batch is gathered
	// meanwhile.
	maxBatchBytes = 8 << 20
	// lingerFrom is how many messages, in the last batch and at once, count as
	// coming fast.
	lingerFrom = 8
)
