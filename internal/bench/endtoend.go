package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"waymark/consumer"
	"waymark/store"
	"waymark/workflow"
)

// CaseRawDrain is the case of EndToEnd in which nothing is done to the messages.
const CaseRawDrain = "raw drain"

// CaseConsumers is the case of EndToEnd with so many consumers in this process.
func CaseConsumers(n int) string {
	if n == 1 {
		return "1 consumer"
	}
	return fmt.Sprintf("%d consumers", n)
}

// EndToEnd measures from a prefilled queue to committed rows: delivery,
// decoding, validation, folding and the transaction, all at once. In every run
// each number of consumers empties a queue of its own, each in its turn first,
// and one more queue is drained raw; all were filled alike.
//
// With serve a "waymark serve" process does it as well: see [Bench.serve].
func (b *Bench) EndToEnd(ctx context.Context, l Load, consumers []int, serve bool) (*Result, error) {
	if err := cmp.Or(listed("consumers", consumers, 1, mostConsumers), b.moreThanABatch(l)); err != nil {
		return nil, err
	}
	if serve && b.cfg.Serve == nil {
		return nil, errors.New("there is no command to serve with")
	}
	p, r, err := b.start(ctx, "end-to-end", l, true, true)
	if err != nil {
		return nil, err
	}
	return finish(ctx, p, r, b.endToEnd(ctx, p, r, l, consumers, serve))
}

// moreThanABatch returns a *LoadError if the clock of a consumer could start and
// stop with one batch.
func (b *Bench) moreThanABatch(l Load) error {
	if l.WarmUp > 0 && l.Messages >= 1 && l.Messages < b.cfg.BatchSize {
		return invalid("messages", "%d is too small: the least is a batch, %d", l.Messages, b.cfg.BatchSize)
	}
	return nil
}

func (b *Bench) endToEnd(ctx context.Context, p *place, r *Result, l Load, consumers []int, serve bool) error {
	r.set("messages", l.Messages)
	r.set("warm_up", l.WarmUp)
	r.set("jobs", l.Jobs)
	r.set("workflows", l.Workflows)
	r.set("body_bytes", l.Size)
	r.set("encoding", b.cfg.Encoding)
	r.set("topology", b.cfg.Topology)
	r.set("batch_size", b.cfg.BatchSize)
	r.set("prefetch", b.cfg.Prefetch)
	r.set("linger", b.linger())
	r.set("gc_percent", b.gcPercent())
	r.note("Rates are of committed messages: a message counts when the transaction that holds its effect has committed. Every message is decoded and validated.")
	r.note("The raw drain takes the same messages from the same kind of queue with the same prefetch and does nothing with them.")
	r.note("CPU and allocations are of this process: the consumer's side of everything, not the broker's nor the database's. WAL is the whole server's.")
	r.note("While it consumes, or drains, this process collects garbage as waymark serve does.")
	// One schema for all runs: tables that grow, as they do in life.
	db, schema, err := p.database(ctx)
	if err != nil {
		return err
	}
	sent := int64(0)
	for run := range l.Runs {
		b.progress("end-to-end: run %d of %d, raw drain", run+1, l.Runs)
		raw, size, err := b.drainOnce(ctx, p, r.of(CaseRawDrain), kindOf(b.cfg.Topology), l)
		if err != nil {
			return err
		}
		raw.add("body", "B", size)
		// Each case comes first, second and so on in turn: tables that grow, and
		// checkpoints that come due, are not always the same one's.
		first := 0
		if len(consumers) > 0 {
			first = run % len(consumers)
		}
		for _, n := range slices.Concat(consumers[first:], consumers[:first]) {
			b.progress("end-to-end: run %d of %d, %s", run+1, l.Runs, CaseConsumers(n))
			c := r.of(CaseConsumers(n))
			if err := b.consumeOnce(ctx, p, c, db, l, n); err != nil {
				return err
			}
			sent += int64(l.WarmUp + l.Messages + b.tail(n))
			c.addRatio("of the raw drain", "rate", raw)
		}
		for i, n := range consumers {
			if i > 0 {
				r.of(CaseConsumers(n)).addRatio("of "+CaseConsumers(consumers[0]), "rate", r.of(CaseConsumers(consumers[0])))
			}
		}
		if serve {
			b.progress("end-to-end: run %d of %d, waymark serve", run+1, l.Runs)
			c := r.of(CaseServe)
			if err := b.serve(ctx, p, c, db, schema, l); err != nil {
				return err
			}
			sent += int64(l.WarmUp + l.Messages + b.tail(1))
			c.addRatio("of the raw drain", "rate", raw)
		}
	}
	if err := b.checkLedger(ctx, db, sent); err != nil {
		return err
	}
	_ = db.Close() // so that the server reports what its backends did
	list, err := p.tableUpdates(ctx, schema)
	if err != nil {
		return err
	}
	r.of("all cases").addHot(list)
	return nil
}

// consumeOnce lets so many consumers, in this process, empty a queue.
func (b *Bench) consumeOnce(ctx context.Context, p *place, c *Case, db *store.DB, l Load, consumers int) error {
	k := kindOf(b.cfg.Topology)
	queue, err := p.declare(k)
	if err != nil {
		return err
	}
	total := l.WarmUp + l.Messages + b.tail(consumers)
	if _, err := p.fill(ctx, queue, k.mode, l, total); err != nil {
		return err
	}
	settle()
	wal, err := p.written(ctx)
	if err != nil {
		return err
	}
	m := newMeter(db, l.WarmUp, l.Messages, total)
	if err := b.consumeUntil(ctx, queue, m, consumers, m.done); err != nil {
		return err
	}
	written, err := p.written(ctx)
	if err != nil {
		return err
	}
	from, to, n, batches := m.window()
	if n == 0 {
		return fmt.Errorf("the %d messages were applied at once: measure more of them", l.Messages)
	}
	c.record(n, from, to)
	c.add("wal", "B/msg", float64(written-wal)/float64(total))
	c.add("commits", "/msg", float64(batches)/float64(total))
	return p.deleteQueue(queue)
}

// consumeUntil runs consumers until done is closed, and waits for their end.
func (b *Bench) consumeUntil(ctx context.Context, queue string, s consumer.Store, consumers int, done <-chan struct{}) error {
	defer b.collectAsServed()()
	consuming, stop := context.WithCancel(ctx)
	defer stop()
	var wait sync.WaitGroup
	var running []*consumer.Consumer
	errs := make(chan error, consumers)
	for range consumers {
		c, err := consumer.New(consumer.Config{
			BatchSize: b.cfg.BatchSize, ConnectionName: "waymark bench consumer", DrainTimeout: drainTimeout, Linger: b.cfg.Linger, Prefetch: b.cfg.Prefetch, Queue: queue,
			Store: s, TLS: b.cfg.TLS, Topology: b.cfg.Topology, URL: b.cfg.BrokerURL,
		})
		if err != nil {
			stop()
			wait.Wait()
			return err
		}
		running = append(running, c)
		wait.Go(func() {
			if err := c.Run(consuming); err != nil {
				errs <- err
			}
		})
	}
	fault := func() error {
		for _, c := range running {
			h := c.Health()
			if err := cmp.Or(h.Broker, h.Store, h.DeadLetters); err != nil {
				return fmt.Errorf("consuming from %q: %w", queue, err)
			}
		}
		return nil
	}
	err := whileWell(ctx, b.patience, fault, func(ctx context.Context) error {
		select {
		case <-done:
			return nil
		case err := <-errs:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	stop()
	wait.Wait()
	return err
}

// drainTimeout bounds how long a consumer is waited for that has been stopped.
// Whatever it still holds is of no use.
const drainTimeout = time.Second

// meter is a store that counts what another one has committed.
type meter struct {
	consumer.Store
	skip, n, total int
	done           chan struct{} // closed when total messages are committed

	mu        sync.Mutex
	committed int
	batches   int
	from, to  moment
	// first and last are how many were committed when the clock started and
	// stopped: batches do not end just where the clock should.
	first, last int
}

// newMeter runs its clock while n messages are committed, after the first skip.
func newMeter(s consumer.Store, skip, n, total int) *meter {
	m := &meter{Store: s, skip: skip, n: n, total: total, done: make(chan struct{})}
	if skip == 0 {
		m.from = now()
	}
	return m
}

// Apply hands the batch on and counts it.
func (m *meter) Apply(ctx context.Context, b *workflow.Batch) ([]workflow.Outcome, error) {
	outcomes, err := m.Store.Apply(ctx, b)
	if err != nil {
		return outcomes, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.committed
	m.committed += len(b.Deliveries) + b.Dead
	m.batches++
	if m.from.at.IsZero() && m.committed >= m.skip {
		m.from, m.first = now(), m.committed
	}
	if m.to.at.IsZero() && m.committed >= m.skip+m.n {
		m.to, m.last = now(), m.committed
	}
	if before < m.total && m.committed >= m.total {
		close(m.done)
	}
	return outcomes, nil
}

// window is what was measured: n messages between two moments, and how many
// batches there were in all.
func (m *meter) window() (from, to moment, n, batches int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.from, m.to, m.last - m.first, m.batches
}

// gcPercent as it is shown.
func (b *Bench) gcPercent() string {
	if b.cfg.GCPercent == 0 {
		return cmp.Or(os.Getenv("GOGC"), "default")
	}
	return strconv.Itoa(b.cfg.GCPercent)
}

// linger as it is shown.
func (b *Bench) linger() string {
	switch {
	case b.cfg.Linger < 0:
		return "off"
	case b.cfg.Linger == 0:
		return "default"
	}
	return b.cfg.Linger.String()
}
