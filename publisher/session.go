package publisher

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/broker"
	"waymark/internal/crashpoint"
)

const (
	// closeTimeout bounds the farewell to the broker, when all is settled.
	closeTimeout = 2 * time.Second
	// steady is how long a session that confirms nothing must last to be
	// thought sound; if it ends sooner, the delay before the next one grows.
	steady = 10 * time.Second
)

// run keeps one session after the other until the publisher is closed.
func (p *Publisher) run(ctx context.Context) {
	defer close(p.stopped)
	delay := broker.NewBackoff()
	for {
		s, err := p.connect(ctx)
		if err == nil {
			began := time.Now()
			p.setConnected()
			err = s.run(ctx)
			p.unsetConnected()
			p.accuse(s.lost, err)
			if s.confirmed > 0 || time.Since(began) > steady {
				delay.Reset()
			}
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		// A session on which nothing was ever confirmed may have been ended by
		// what it publishes, for want of the write permission for instance. Its
		// fault must not be forgotten because connecting works.
		useless := s != nil && s.written > 0 && s.confirmed == 0
		p.setFault(err, useless)
		select {
		case <-time.After(delay.NextBackOff()):
		case <-p.quit:
			return
		case <-ctx.Done():
			return
		}
	}
}

// setFault records what is wrong, and logs it. A fault that is kept is not
// forgotten on a new connection, only by a confirm.
func (p *Publisher) setFault(err error, keep bool) {
	p.mu.Lock()
	news := p.setFaultLocked(err, keep)
	p.mu.Unlock()
	if news {
		p.logFault(err)
	}
}

// setFaultLocked reports whether err is to be logged: it is not if it was the
// last, since the same refusal comes with every attempt.
func (p *Publisher) setFaultLocked(err error, keep bool) (news bool) {
	news = p.logged != err.Error()
	p.fault, p.faultKept, p.logged = err, keep, err.Error()
	p.announce()
	return news
}

func (p *Publisher) logFault(err error) {
	p.cfg.Logger.Warn("broker does not take messages", "err", err)
}

// clearFault forgets the fault, but not what was logged: a queue that is full
// now and then is not worth a line each time. The caller holds p.mu.
func (p *Publisher) clearFault() {
	p.fault, p.faultKept = nil, false
	p.announce()
}

func (p *Publisher) setConnected() {
	p.mu.Lock()
	p.connected = true
	sound := !p.faultKept || len(p.unsettled) == 0
	if sound {
		p.clearFault()
		p.logged = ""
	}
	p.announce()
	p.mu.Unlock()
	if sound {
		p.cfg.Logger.Info("connected to the broker", "url", broker.Redact(p.cfg.URL), "topology", p.cfg.Topology)
	}
}

func (p *Publisher) unsetConnected() {
	p.mu.Lock()
	p.connected = false
	p.announce()
	p.mu.Unlock()
}

// announce wakes those who wait for connected or fault to change. The caller
// holds p.mu.
func (p *Publisher) announce() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// accuse finds the message for which the broker ended a session: it does so
// with PRECONDITION_FAILED when a message is over its limit of size, which may
// be lower than ours. Sent again, the message would end every session, and
// keep back everything behind it. The messages that were on their way are
// suspects, and tried one at a time until the culprit is alone.
func (p *Publisher) accuse(lost []*Receipt, err error) {
	refusal, ok := errors.AsType[*amqp.Error](err)
	if !ok || !refusal.Server || refusal.Code != amqp.PreconditionFailed || len(lost) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	culprit := lost[len(lost)-1]
	if len(lost) > 1 {
		p.suspects = culprit.seq
		return
	}
	if i, ok := p.position(culprit); ok { // else its caller has given it up
		p.queue = slices.Delete(p.queue, i, i+1)
		p.settle(culprit, &InvalidError{Message: "message " + culprit.id, Err: err})
	}
}

// session is one connection with one channel in confirm mode. Any fault ends
// it; what it had not confirmed goes back into the queue.
//
// Two goroutines share the work. The writer owns the channel: it publishes and
// declares. The settler never blocks for long: it takes confirms, returns and
// notices, and decides what becomes of each message. The reader of the library
// hands a return over before the confirm of the same message, so the settler
// looks at the returns first.
type session struct {
	p    *Publisher
	conn *amqp.Connection
	ch   *amqp.Channel
	link *link

	sent    chan *Receipt // from writer to settler, in the order of publishing
	closed  chan *amqp.Error
	returns chan amqp.Return
	blocks  chan amqp.Blocking

	// Guarded by p.mu.
	blocked   bool      // the broker asked to wait
	unblocked time.Time // when it last ceased to
	redeclare bool      // a message was returned: the queues may be gone
	holdUntil time.Time // a message was refused: wait before trying it again
	refusals  *backoff.ExponentialBackOff
	written   int        // messages, of which
	decided   int        // so many got their confirm, or will not in this session, of which
	confirmed int        // so many were confirmed
	lost      []*Receipt // decided for want of a confirm
	cause     error      // why the settler ended the session
}

func (p *Publisher) connect(ctx context.Context) (*session, error) {
	var l *link
	conn, err := broker.Dial(ctx, broker.Config{
		ConnectionName: p.cfg.ConnectionName,
		TLS:            p.cfg.TLS,
		URL:            p.cfg.URL,
		Wrap: func(c net.Conn) net.Conn {
			l = newLink(c, p.cfg.ConfirmTimeout)
			return l
		},
	})
	if err != nil {
		return nil, err
	}
	// The library's calls have no context.
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	s, err := p.open(conn, l)
	if err != nil {
		_ = l.Close()
		return nil, err
	}
	return s, nil
}

func (p *Publisher) open(conn *amqp.Connection, l *link) (*session, error) {
	blocks := conn.NotifyBlocked(make(chan amqp.Blocking, 8))
	if err := broker.Declare(conn, p.queues...); err != nil {
		return nil, err
	}
	ch, err := conn.Channel()
	if err != nil {
		return nil, broker.Explain(err)
	}
	s := &session{
		p:        p,
		conn:     conn,
		ch:       ch,
		link:     l,
		sent:     make(chan *Receipt, p.cfg.Window), // no more can be on their way, so the writer never waits
		closed:   ch.NotifyClose(make(chan *amqp.Error, 1)),
		returns:  ch.NotifyReturn(make(chan amqp.Return, 64)),
		blocks:   blocks,
		refusals: broker.NewBackoff(),
	}
	if err := ch.Confirm(false); err != nil {
		return nil, broker.Explain(err)
	}
	return s, nil
}

// run works until a fault, which it returns, or until the publisher is closed:
// nil if all was settled, else ctx's cause.
func (s *session) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.link.Close() })
	defer stop()
	settled := make(chan struct{})
	go func() {
		defer close(settled)
		s.settle()
	}()
	err := s.write(ctx)
	if err == nil {
		_ = s.conn.CloseDeadline(time.Now().Add(closeTimeout))
	}
	_ = s.link.Close()
	for reason := range s.closed { // which the library closes when every confirm is decided
		if err != nil {
			err = broker.Explain(reason) // rather than that the channel was found closed
		}
	}
	close(s.sent)
	<-settled

	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	if err != nil && s.cause != nil {
		return s.cause
	}
	return err
}

// write publishes what comes. It returns nil when the publisher was closed
// with nothing left to do.
func (s *session) write(ctx context.Context) error {
	for {
		if err := s.burst(); err != nil {
			return broker.Explain(err)
		}
		redeclare, hold := s.todo()
		if redeclare {
			if err := broker.Declare(s.conn, s.p.queues...); err != nil {
				return err
			}
			continue
		}
		var held <-chan time.Time
		if hold > 0 {
			held = time.After(hold)
		}
		select {
		case <-s.p.wake:
		case <-held:
		case err := <-s.closed:
			if err == nil {
				return broker.Explain(amqp.ErrClosed)
			}
			return broker.Explain(err)
		case <-s.p.quit:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// burst publishes all that waits.
func (s *session) burst() error {
	r := s.next()
	if r == nil {
		return nil
	}
	s.link.cork()
	for ; r != nil; r = s.next() {
		confirm, err := s.ch.PublishWithDeferredConfirm("", r.queue, true, false, r.publishing())
		if err != nil {
			s.p.mu.Lock()
			s.p.requeue(r)
			s.p.mu.Unlock()
			return err
		}
		r.confirm, r.written = confirm, time.Now()
		s.sent <- r
	}
	if err := s.link.uncork(); err != nil {
		return err
	}
	crashpoint.Hit("publisher.published")
	return nil
}

// next takes the next message to publish, nil if there is none, or a reason to
// wait.
func (s *session) next() *Receipt {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	if s.blocked || s.redeclare || (!s.holdUntil.IsZero() && time.Now().Before(s.holdUntil)) {
		return nil
	}
	if len(s.p.queue) == 0 || s.p.queue[0].seq <= s.p.suspects && s.written > s.decided {
		return nil
	}
	s.written++
	return s.p.pop()
}

// todo says what the writer has to do before it can publish more. A return
// that comes while it declares the queues makes it declare them again.
func (s *session) todo() (redeclare bool, hold time.Duration) {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	redeclare, s.redeclare = s.redeclare, false
	if !s.holdUntil.IsZero() && len(s.p.queue) > 0 && !s.blocked {
		hold = max(time.Until(s.holdUntil), time.Microsecond)
	}
	return redeclare, hold
}

// returnedKey names a message as a return does.
type returnedKey struct{ queue, id string }

// settle decides what becomes of each message that was written, in order,
// until the writer closes sent.
func (s *session) settle() {
	returned := make(map[returnedKey]int)
	note := func(r amqp.Return) { returned[returnedKey{r.RoutingKey, r.MessageId}]++ }

	patience := time.NewTicker(max(s.p.cfg.ConfirmTimeout/8, time.Millisecond))
	defer patience.Stop()

	var head *Receipt // the oldest that waits for its confirm
	for {
		sent, confirmed := s.sent, (<-chan struct{})(nil)
		if head != nil {
			sent, confirmed = nil, head.confirm.Done()
		}
		select {
		case r, ok := <-sent:
			if !ok {
				return
			}
			head = r
		case <-confirmed:
			for drained := false; !drained; {
				select {
				case r, ok := <-s.returns:
					if ok {
						note(r)
					} else {
						s.returns = nil
					}
				default:
					drained = true
				}
			}
			key := returnedKey{head.queue, head.id}
			wasReturned := len(returned) > 0 && returned[key] > 0
			if wasReturned {
				if returned[key]--; returned[key] == 0 {
					delete(returned, key)
				}
			}
			s.decide(head, wasReturned)
			head = nil
		case r, ok := <-s.returns:
			if ok {
				note(r)
			} else {
				s.returns = nil
			}
		case b, ok := <-s.blocks:
			if ok {
				s.block(b)
			} else {
				s.blocks = nil
			}
		case <-patience.C:
			if head != nil && s.overdue(head) {
				s.end(&broker.Error{
					Problem: fmt.Sprintf("the broker did not confirm a message within %s", s.p.cfg.ConfirmTimeout),
					Remedy:  "look at its load and its disk",
				})
			}
		}
	}
}

// decide settles r, whose confirm has come, or will not come in this session.
func (s *session) decide(r *Receipt, returned bool) {
	p := s.p
	acked := r.confirm.Acked()
	lost := !acked && s.ch.IsClosed()

	p.mu.Lock()
	s.decided++
	if acked {
		s.confirmed++
	}
	news, recovered, again := false, false, true
	switch {
	case acked && !returned:
		again = !s.holdUntil.IsZero() || r.seq <= p.suspects
		if !s.holdUntil.IsZero() {
			s.holdUntil = time.Time{}
			s.refusals.Reset()
		}
		if p.fault != nil && !s.blocked {
			if recovered = p.faultKept; recovered {
				p.logged = ""
			}
			p.clearFault()
		}
		crashpoint.Hit("publisher.confirmed")
		p.settle(r, nil)
	case acked && r.redeclared:
		p.settle(r, fmt.Errorf("publishing message %s: %w: the broker has no queue %q", r.id, ErrUnroutable, r.queue))
	case acked:
		r.redeclared, s.redeclare = true, true
		p.requeue(r)
	case lost:
		s.lost = append(s.lost, r)
		p.requeue(r)
	default:
		// The broker could not, or would not, keep the message, as when a queue
		// is full: go slower. Many that were on their way count as one.
		if now := time.Now(); now.After(s.holdUntil) {
			s.holdUntil = now.Add(s.refusals.NextBackOff())
		}
		news = p.setFaultLocked(errRefused, false)
		p.requeue(r)
	}
	p.mu.Unlock()
	if news {
		p.logFault(errRefused)
	}
	if recovered {
		p.cfg.Logger.Info("broker takes messages again")
	}
	if again { // else the writer need not be woken
		p.signal()
	}
}

var errRefused = &broker.Error{
	Problem: "the broker refuses messages (negative confirm)",
	Remedy:  "see whether a queue is full, and the broker's log",
}

// block follows the broker's wish that publishers wait, while it is short of
// memory or disk.
func (s *session) block(b amqp.Blocking) {
	if b.Active {
		s.p.mu.Lock()
		s.blocked = true
		s.p.mu.Unlock()
		s.p.setFault(&broker.Error{
			Problem: fmt.Sprintf("the broker takes no messages for now: %s", b.Reason),
			Remedy:  "free memory or disk on it; messages wait until then",
		}, false)
		return
	}
	s.p.mu.Lock()
	s.blocked, s.unblocked = false, time.Now()
	s.p.clearFault()
	s.p.logged = ""
	s.p.mu.Unlock()
	s.p.signal()
	s.p.cfg.Logger.Info("broker takes messages again")
}

func (s *session) overdue(r *Receipt) bool {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	since := r.written
	if s.unblocked.After(since) {
		since = s.unblocked
	}
	return !s.blocked && time.Since(since) > s.p.cfg.ConfirmTimeout
}

// end makes the session end because of err.
func (s *session) end(err error) {
	s.p.mu.Lock()
	if s.cause == nil {
		s.cause = err
	}
	s.p.mu.Unlock()
	_ = s.link.Close()
}
