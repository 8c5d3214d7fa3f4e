package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"waymark/internal/broker"
	"waymark/publisher"
	"waymark/store"
	"waymark/workflow"
)

// LatencyLoad is what Latency sends.
type LatencyLoad struct {
	// Rates in messages a second, each a case.
	Rates []float64
	// Duration of each run; a fifth of it goes before as warm-up.
	Duration time.Duration
	Runs     int
	// Jobs of a workflow, and workflows under way at once; see [Load].
	Jobs, Workflows int
}

// mostTimed is how many messages one run may time: each is kept until its end.
const mostTimed = 10_000_000

// validate returns a *LoadError if l cannot be measured.
func (l LatencyLoad) validate() error {
	if l.Duration <= 0 {
		return invalid("duration", "%s: expected more than 0", l.Duration)
	}
	for i, rate := range l.Rates {
		if err := validRate("rate", rate); err != nil {
			return err
		}
		if slices.Contains(l.Rates[:i], rate) {
			return invalid("rate", "%v is given twice", rate)
		}
		switch n := rate * l.Duration.Seconds(); {
		case n < 1:
			return invalid("duration", "in %s not one message is due at %v a second", l.Duration, rate)
		case n > mostTimed:
			return invalid("duration", "in %s more than %d messages are due at %v a second", l.Duration, mostTimed, rate)
		}
	}
	return l.load().validate()
}

// load is l as other benchmarks know it.
func (l LatencyLoad) load() Load {
	return Load{Messages: 1, Runs: l.Runs, Jobs: l.Jobs, Workflows: l.Workflows}
}

// CaseRate is the case of Latency at so many messages a second.
func CaseRate(rate float64) string { return Number(rate) + " msg/s" }

// visibleWithin bounds the wait for the last messages of a run.
const visibleWithin = 30 * time.Second

// Latency measures from the publisher's call until another connection to the
// database reads the row with the effect of the message.
//
// The load is open: message i is due at start + i/rate whatever became of those
// before, and its time runs from when it was due. A publisher that is held up
// thus makes the latency longer; a loop that waited for it would leave out just
// the slow ones. The due time travels in the message as its event time.
//
// The reader does what "waymark watch" does: it listens for notifications and
// reads the workflows they name. A message is visible when the row's
// last_event_at has reached its event time; the clock stops when the row has
// been read. With one queue and one consumer, messages of a workflow are
// applied in their order, so none is counted before it is there.
//
// Generator, publisher, consumer and reader share this process: at high rates
// on a small machine they compete with the servers for the CPUs, which makes
// the latency longer than on machines of their own.
func (b *Bench) Latency(ctx context.Context, l LatencyLoad) (*Result, error) {
	if err := l.validate(); err != nil {
		return nil, err
	}
	p, r, err := b.start(ctx, "latency", l.load(), true, true)
	if err != nil {
		return nil, err
	}
	return finish(ctx, p, r, b.latency(ctx, p, r, l))
}

func (b *Bench) latency(ctx context.Context, p *place, r *Result, l LatencyLoad) error {
	r.set("duration", l.Duration)
	r.set("jobs", l.Jobs)
	r.set("workflows", l.Workflows)
	r.set("encoding", b.cfg.Encoding)
	r.set("window", b.cfg.Window)
	r.set("topology", b.cfg.Topology)
	r.set("batch_size", b.cfg.BatchSize)
	r.set("linger", b.linger())
	r.note("From the moment a message was due to be published until another connection has read the row with its effect, by notification and query.")
	r.note("Open loop: a late publisher counts as latency. All of it shares this machine's CPUs with the servers.")
	db, schema, err := p.database(ctx)
	if err != nil {
		return err
	}
	for run := range l.Runs {
		for _, rate := range l.Rates {
			b.progress("latency: run %d of %d, %s", run+1, l.Runs, CaseRate(rate))
			if err := b.latencyOnce(ctx, p, r.of(CaseRate(rate)), db, schema, rate, l); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *Bench) latencyOnce(ctx context.Context, p *place, c *Case, db *store.DB, schema string, rate float64, l LatencyLoad) error {
	queues := broker.Queues{Status: p.newQueue(), Submission: p.newQueue()}
	pub, err := publisher.New(publisher.Config{ConnectionName: "waymark bench publish", Encoding: b.cfg.Encoding, Queues: queues,
		TLS: b.cfg.TLS, Topology: b.cfg.Topology, URL: b.cfg.BrokerURL, Window: b.cfg.Window})
	if err != nil {
		return err
	}
	defer giveUp(pub)
	if err := whileWell(ctx, b.patience, pub.LastError, pub.Ready); err != nil {
		return err
	}
	reader, err := p.store(ctx, schema)
	if err != nil {
		return err
	}
	defer reader.Close()
	warm := max(int(rate*l.Duration.Seconds()/5), 1)
	total := warm + max(int(rate*l.Duration.Seconds()), 1)
	w := newWatcher(reader, total)
	settle()

	done := make(chan struct{})
	g, working := errgroup.WithContext(ctx)
	g.Go(func() error { return b.consumeUntil(working, queues.Status, db, 1, done) })
	watching, stop := context.WithCancel(working)
	defer stop()
	listening := make(chan struct{})
	g.Go(func() error { return w.listen(watching, sync.OnceFunc(func() { close(listening) })) })
	g.Go(func() error { return w.read(watching) })
	g.Go(func() error {
		defer close(done)
		defer stop()
		select {
		case <-listening:
		case <-working.Done():
			return context.Cause(working)
		}
		var began time.Time
		err := whileWell(working, b.patience, pub.LastError, func(ctx context.Context) (err error) {
			began, err = send(ctx, pub, w, newTraffic(l.Workflows, l.Jobs), rate, total, func(sent int, late time.Duration) {
				b.progress("latency: %s of %s messages sent, %s late: more than is carried", Number(float64(sent)), Number(float64(total)), late.Round(time.Second))
			})
			return err
		})
		if err != nil {
			return err
		}
		c.add("sent", "msg/s", float64(total)/time.Since(began).Seconds())
		select {
		case <-w.all:
			return nil
		case <-working.Done():
			return context.Cause(working)
		case <-time.After(visibleWithin):
			return fmt.Errorf("at %s: %d of %d messages did not become visible within %s", CaseRate(rate), total-w.count(), total, visibleWithin)
		}
	})
	if err := g.Wait(); err != nil {
		return err
	}
	c.addLatencies(w.times(warm))
	return errors.Join(p.deleteQueue(queues.Status), p.deleteQueue(queues.Submission))
}

// lateEvery is how often it is told that messages are sent later than they are
// due, by as much at least: a run then takes longer than was asked for.
const lateEvery = 3 * time.Second

// send publishes total messages, each when it is due. It tells if it is late.
func send(ctx context.Context, pub *publisher.Publisher, w *watcher, t *traffic, rate float64, total int, tell func(sent int, late time.Duration)) (began time.Time, err error) {
	began = time.Now()
	told := began
	for i := range total {
		due := began.Add(time.Duration(float64(i) / rate * float64(time.Second)))
		if wait := time.Until(due); wait > 0 {
			if err := pause(ctx, wait); err != nil {
				return began, err
			}
		} else if -wait >= lateEvery && time.Since(told) >= lateEvery {
			told = time.Now()
			tell(i, -wait)
		}
		// Event times are kept to the microsecond.
		m := t.next().message(due.UTC().Truncate(time.Microsecond))
		w.expect(m.WorkflowID, i, due, m.EventTime)
		if _, err := pub.SendStatus(ctx, m); err != nil {
			return began, err
		}
	}
	return began, pub.Flush(ctx)
}

// watcher learns when messages become visible.
type watcher struct {
	db  *store.DB
	all chan struct{} // closed when every message is visible

	mu      sync.Mutex
	pending map[uuid.UUID][]sent // by workflow, in the order of their event times
	latency []time.Duration      // by number; 0 until visible
	seen    int
	changed map[uuid.UUID]struct{} // notified, not read yet
	wake    chan struct{}
}

type sent struct {
	number    int
	due       time.Time
	eventTime time.Time
}

func newWatcher(db *store.DB, total int) *watcher {
	return &watcher{db: db, all: make(chan struct{}), pending: make(map[uuid.UUID][]sent), latency: make([]time.Duration, total),
		changed: make(map[uuid.UUID]struct{}), wake: make(chan struct{}, 1)}
}

// expect tells the watcher of a message before it is sent.
func (w *watcher) expect(id uuid.UUID, number int, due, eventTime time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pending[id] = append(w.pending[id], sent{number, due, eventTime})
}

// listen notes which workflows have changed, so that a slow read does not hold
// up the notifications. It calls ready once it hears them.
func (w *watcher) listen(ctx context.Context, ready func()) error {
	return w.db.Listen(ctx, func(_ context.Context, ids []uuid.UUID) error {
		ready()
		w.mu.Lock()
		defer w.mu.Unlock()
		if ids == nil { // connected, maybe again: anything may have changed
			for id := range w.pending {
				w.changed[id] = struct{}{}
			}
		}
		for _, id := range ids {
			w.changed[id] = struct{}{}
		}
		select {
		case w.wake <- struct{}{}:
		default:
		}
		return nil
	})
}

// read reads what has changed until ctx ends.
func (w *watcher) read(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.wake:
		}
		w.mu.Lock()
		ids := make([]uuid.UUID, 0, len(w.changed))
		for id := range w.changed {
			ids = append(ids, id)
		}
		clear(w.changed)
		w.mu.Unlock()
		if len(ids) == 0 {
			continue
		}
		rows, err := w.db.Summaries(ctx, ids)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		w.visible(time.Now(), rows)
	}
}

// visible notes the messages whose effect is in rows, read at a time.
func (w *watcher) visible(at time.Time, rows []workflow.Summary) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range rows {
		waiting := w.pending[rows[i].ID]
		n := 0
		for n < len(waiting) && !waiting[n].eventTime.After(rows[i].LastEventAt) {
			w.latency[waiting[n].number] = at.Sub(waiting[n].due)
			n++
		}
		if w.seen += n; n == len(waiting) {
			delete(w.pending, rows[i].ID)
		} else {
			w.pending[rows[i].ID] = waiting[n:]
		}
		if n > 0 && w.seen == len(w.latency) {
			close(w.all)
		}
	}
}

func (w *watcher) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen
}

// times are the latencies of the messages after the first skip.
func (w *watcher) times(skip int) []time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.latency[skip:])
}
