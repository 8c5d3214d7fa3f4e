package publisher

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"waymark/internal/broker"
)

// Publisher keeps one connection to the broker and publishes on it. See the
// package comment for what it guarantees. Make one with [New].
type Publisher struct {
	cfg    Config
	queues []broker.Queue

	room    chan struct{} // holds one value per unsettled message, Window at most
	wake    chan struct{} // tells the writer that there may be something to do
	closing chan struct{} // closed when Close begins
	quit    chan struct{} // closed when all is settled and the session should end in good order
	stopped chan struct{} // closed when run has returned
	cancel  context.CancelCauseFunc
	spool   *spooler // nil if there is none

	closeOnce sync.Once
	closeErr  error

	mu        sync.Mutex
	closed    bool
	seq       uint64
	queue     []*Receipt // to be written, by seq
	buffer    []*Receipt // under queue, each time it has been empty
	suspects  uint64     // messages up to this seq are written one at a time; see accuse
	unsettled map[*Receipt]struct{}
	spooling  int // how many of them are on disk as well
	report    Report
	failed    int   // pipelined messages that failed since the last Flush
	failure   error // of the first of them
	connected bool
	fault     error         // what is wrong with the broker now, nil if nothing
	faultKept bool          // the fault outlives a new connection, until a confirm
	logged    string        // the fault that was logged last
	changed   chan struct{} // closed and replaced when connected or fault changes
}

// New checks the configuration and begins to connect. It does not wait for the
// broker, which may be away; messages are accepted at once, as many as the
// window holds. The error says what is wrong with the configuration.
func New(cfg Config) (*Publisher, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("configuring the publisher: %w", err)
	}
	spool, err := openSpool(cfg)
	if err != nil {
		return nil, fmt.Errorf("configuring the publisher: %w", err)
	}
	p := &Publisher{
		cfg:       cfg,
		spool:     spool,
		queues:    []broker.Queue{cfg.Topology.Status(cfg.Queues.Status), cfg.Topology.Submission(cfg.Queues.Submission)},
		room:      make(chan struct{}, cfg.Window),
		wake:      make(chan struct{}, 1),
		closing:   make(chan struct{}),
		quit:      make(chan struct{}),
		stopped:   make(chan struct{}),
		buffer:    make([]*Receipt, 0, cfg.Window),
		unsettled: make(map[*Receipt]struct{}),
		changed:   make(chan struct{}),
	}
	// The connection belongs to the publisher, not to whoever calls New; Close
	// ends it.
	ctx, cancel := context.WithCancelCause(context.Background())
	p.cancel = cancel
	go p.run(ctx)
	if p.spool != nil {
		go p.runSpool() // until closeSpool
	}
	return p, nil
}

// Ready waits until the broker is connected and the queues are declared. It
// returns at once if the last attempt failed for a reason that only a person
// can mend, such as a wrong password or a queue that is declared otherwise;
// the publisher goes on trying all the same. If ctx ends first, the error holds
// its cause and the last fault. There is no need to call it before publishing.
func (p *Publisher) Ready(ctx context.Context) error {
	for {
		p.mu.Lock()
		connected, fault, changed := p.connected, p.fault, p.changed
		p.mu.Unlock()
		switch {
		case broker.Permanent(fault):
			return fault
		case connected:
			return nil
		}
		select {
		case <-changed:
		case <-p.closing:
			return ErrClosed
		case <-ctx.Done():
			return withFault(fmt.Errorf("waiting for the broker: %w", context.Cause(ctx)), p.LastError())
		}
	}
}

// LastError is what is wrong with the broker at present: why it cannot be
// reached, or why it takes no messages. It is nil while all is well.
func (p *Publisher) LastError() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fault
}

// Report counts what became of the messages so far.
func (p *Publisher) Report() Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.report
	r.InFlight = int64(len(p.unsettled) - p.spooling)
	if p.spool != nil {
		r.Spooled = int64(len(p.spool.onDisk))
	}
	return r
}

// Flush waits until every message accepted before the call is settled. If ctx
// ends first the error is [ErrNotConfirmed] and says how many are not.
// Otherwise it returns the first failure among the messages sent with a
// receipt since the last Flush, so that receipts may be ignored.
func (p *Publisher) Flush(ctx context.Context) error {
	if left, err := p.wait(ctx); err != nil {
		return withFault(fmt.Errorf("flushing: %d messages %w: %w", left, ErrNotConfirmed, err), p.LastError())
	}
	if err := p.takeFailure(); err != nil {
		return fmt.Errorf("flushing: %w", err)
	}
	return nil
}

// Close accepts no more messages, waits as [Publisher.Flush] does until ctx
// ends, and disconnects. Messages that are not confirmed by then are kept in
// the spool, if there is one: their receipts and Close report [ErrSpooled].
// Otherwise they are given up, and [ErrNotConfirmed] is reported. Further calls
// wait for the first and return the same.
func (p *Publisher) Close(ctx context.Context) error {
	p.closeOnce.Do(func() { p.closeErr = p.close(ctx) })
	return p.closeErr
}

func (p *Publisher) close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	close(p.closing)

	_, err := p.wait(ctx)
	fault := p.LastError()
	p.mu.Lock()
	connected := p.connected
	p.mu.Unlock()
	if err == nil && connected {
		close(p.quit)
		// The connection may be lost at this very moment, and run about to
		// wait for a new one.
		defer time.AfterFunc(closeTimeout, func() { p.cancel(ErrClosed) }).Stop()
	} else {
		p.cancel(ErrClosed)
	}
	<-p.stopped
	p.cancel(ErrClosed)

	if p.spool != nil {
		p.closeSpool()
	}
	p.mu.Lock()
	left, spooled := len(p.unsettled)-p.spooling, 0
	for r := range p.unsettled {
		p.settle(r, p.notConfirmedLocked(r, ErrClosed, fault))
	}
	p.queue = nil
	if p.spool != nil {
		spooled = len(p.spool.onDisk)
	}
	p.mu.Unlock()

	if left > 0 || spooled > 0 {
		what := fmt.Errorf("%d messages %w", left, ErrNotConfirmed)
		switch {
		case left == 0:
			what = fmt.Errorf("%d messages %w", spooled, ErrSpooled)
		case spooled > 0:
			what = fmt.Errorf("%w, %d messages %w", what, spooled, ErrSpooled)
		}
		if err != nil {
			what = fmt.Errorf("%w: %w", what, err)
		}
		return withFault(fmt.Errorf("closing the publisher: %w", what), fault)
	}
	if err := p.takeFailure(); err != nil {
		return fmt.Errorf("closing the publisher: %w", err)
	}
	return nil
}

// wait waits for the messages that are unsettled now. If ctx ends first it
// says how many of them are left.
func (p *Publisher) wait(ctx context.Context) (left int, err error) {
	p.mu.Lock()
	waiting := slices.Collect(maps.Keys(p.unsettled))
	p.mu.Unlock()
	for i, r := range waiting {
		select {
		case <-r.done:
			continue
		default:
		}
		select {
		case <-r.done:
		case <-ctx.Done():
			for _, r := range waiting[i:] {
				select {
				case <-r.done:
				default:
					left++
				}
			}
			if left > 0 {
				return left, context.Cause(ctx)
			}
			return 0, nil
		}
	}
	return 0, nil
}

func (p *Publisher) takeFailure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, err := p.failed, p.failure
	p.failed, p.failure = 0, nil
	if n > 1 {
		return fmt.Errorf("%d messages failed, the first: %w", n, err)
	}
	return err
}

// accept puts r into the queue once there is room.
func (p *Publisher) accept(ctx context.Context, r *Receipt) error {
	if ctx.Err() != nil && !p.spools(r) {
		return p.notConfirmed(r, context.Cause(ctx))
	}
	select {
	case p.room <- struct{}{}:
	default:
		select {
		case p.room <- struct{}{}:
		case <-p.closing:
			return ErrClosed
		case <-ctx.Done():
			return p.notConfirmed(r, context.Cause(ctx))
		}
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		<-p.room
		return ErrClosed
	}
	p.report.Accepted++
	p.enqueue(r)
	keep := p.spools(r) && r.class.Keep()
	if keep {
		r.accepted = time.Now()
		p.spool.waiting = append(p.spool.waiting, r)
	}
	p.mu.Unlock()
	p.signal()
	if keep {
		p.signalSpool()
	}
	return nil
}

// enqueue makes r the last in the queue. The caller holds p.mu, and has room.
func (p *Publisher) enqueue(r *Receipt) {
	p.seq++
	r.seq = p.seq
	p.unsettled[r] = struct{}{}
	if len(p.queue) == 0 {
		p.queue = p.buffer[:0]
	}
	p.queue = append(p.queue, r)
}

func (p *Publisher) send(ctx context.Context, r *Receipt) (*Receipt, error) {
	err := p.accept(ctx, r)
	if errors.Is(err, ErrNotConfirmed) && p.spools(r) {
		if err = p.spoolOnly(r, context.Cause(ctx)); errors.Is(err, ErrSpooled) {
			r.err, err = err, nil
			close(r.done)
		}
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (p *Publisher) sendAndWait(ctx context.Context, r *Receipt) error {
	r.awaited = true
	if err := p.accept(ctx, r); err != nil {
		if errors.Is(err, ErrNotConfirmed) && p.spools(r) {
			return p.spoolOnly(r, context.Cause(ctx))
		}
		return err
	}
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		if p.spools(r) {
			return p.spoolNow(r, context.Cause(ctx))
		}
		return p.withdraw(r, context.Cause(ctx))
	}
}

// withdraw gives r up because of cause. If it is on its way, only its confirm
// is awaited any more.
func (p *Publisher) withdraw(r *Receipt, cause error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.unsettled[r]; !ok {
		return r.err
	}
	err := p.notConfirmedLocked(r, cause, p.fault)
	r.withdrawn = true
	if i, ok := p.position(r); ok {
		p.queue = slices.Delete(p.queue, i, i+1)
		p.settle(r, err)
	}
	return err
}

// pop takes the next message to write; there must be one.
func (p *Publisher) pop() *Receipt {
	r := p.queue[0]
	p.queue[0] = nil
	p.queue = p.queue[1:]
	r.attempts++
	if r.attempts > 1 {
		p.report.Retried++
	}
	return r
}

// requeue puts r back where it was: whatever is written is older than
// whatever is not, so that is near the front.
func (p *Publisher) requeue(r *Receipt) {
	if r.withdrawn {
		p.settle(r, p.notConfirmedLocked(r, errWithdrawn, p.fault))
		return
	}
	i, _ := p.position(r)
	p.queue = slices.Insert(p.queue, i, r)
}

var errWithdrawn = errors.New("its caller gave up")

// position is where r is, or would be, in the queue.
func (p *Publisher) position(r *Receipt) (int, bool) {
	return slices.BinarySearchFunc(p.queue, r, func(a, b *Receipt) int { return cmp.Compare(a.seq, b.seq) })
}

// settle ends r. The caller holds p.mu.
func (p *Publisher) settle(r *Receipt, err error) {
	delete(p.unsettled, r)
	if r.ref != 0 {
		err = p.settleOnDisk(r, err)
	}
	switch {
	case err == nil:
		p.report.Confirmed++
	case errors.Is(err, ErrSpooled):
		// Counted as long as it is there.
	case errors.Is(err, ErrUnroutable):
		p.report.Unroutable++
	case r.dropped:
		p.countDropped(r.class)
	default:
		p.report.NotConfirmed++
	}
	if err != nil && !r.awaited {
		p.failed++
		if p.failure == nil {
			p.failure = err
		}
	}
	r.err = err
	r.body, r.headers = nil, nil // a receipt may be kept for long
	close(r.done)
	<-p.room
}

// signal tells the writer to look again. It never blocks.
func (p *Publisher) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *Publisher) notConfirmed(r *Receipt, cause error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.notConfirmedLocked(r, cause, p.fault)
}

func (p *Publisher) notConfirmedLocked(r *Receipt, cause, fault error) error {
	fate := "it was not sent"
	if r.attempts > 0 {
		fate = "it may or may not have been delivered"
	}
	return withFault(fmt.Errorf("publishing message %s to queue %q: %w (%s): %w", r.id, r.queue, ErrNotConfirmed, fate, cause), fault)
}

func withFault(err, fault error) error {
	if fault == nil {
		return err
	}
	return fmt.Errorf("%w; last fault: %w", err, fault)
}
