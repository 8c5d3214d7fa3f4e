package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"waymark/store"
	"waymark/workflow"
)

// Apply measures the store alone: messages that are decoded already, in batches
// of the sizes given, each one transaction, one after the other. Of each batch
// size the runs share a schema, so that tables are not empty after the first.
func (b *Bench) Apply(ctx context.Context, l Load, batches []int) (*Result, error) {
	if err := listed("batch", batches, 1, mostBatch); err != nil {
		return nil, err
	}
	p, r, err := b.start(ctx, "apply", l, false, true)
	if err != nil {
		return nil, err
	}
	return finish(ctx, p, r, b.apply(ctx, p, r, l, batches))
}

// Batches of one are limited to so many messages a run: they take a hundred
// times as long as large ones.
const mostSingles = 2000

func (b *Bench) apply(ctx context.Context, p *place, r *Result, l Load, batches []int) error {
	r.set("messages", l.Messages)
	r.set("warm_up", l.WarmUp)
	r.set("jobs", l.Jobs)
	r.set("workflows", l.Workflows)
	r.note("No broker, no decoding: messages with ids, from memory. CPU and allocations are of this process and include making the messages.")
	r.note("WAL and commits are the whole server's, over the measured batches; right after a checkpoint WAL also holds images of whole pages.")
	type target struct {
		size   int
		db     *store.DB
		schema string
		feed   *feed
	}
	targets := make([]target, len(batches))
	for i, size := range batches {
		db, schema, err := p.database(ctx)
		if err != nil {
			return err
		}
		targets[i] = target{size, db, schema, newFeed(newTraffic(l.Workflows, l.Jobs), size)}
	}
	for run := range l.Runs {
		for _, t := range targets {
			b.progress("apply: run %d of %d, batches of %d", run+1, l.Runs, t.size)
			warm, n := l.WarmUp, l.Messages
			if t.size == 1 {
				warm, n = min(warm, mostSingles/10), min(n, mostSingles)
			}
			c := r.of(fmt.Sprintf("batches of %d", t.size))
			if err := b.applyOnce(ctx, p, c, t.db, t.feed, warm, n); err != nil {
				return err
			}
		}
	}
	for _, t := range targets {
		if err := b.checkLedger(ctx, t.db, t.feed.sent); err != nil {
			return err
		}
		_ = t.db.Close() // so that the server reports what its backends did
		list, err := p.tableUpdates(ctx, t.schema)
		if err != nil {
			return err
		}
		r.of(fmt.Sprintf("batches of %d", t.size)).addHot(list)
	}
	return nil
}

// applyOnce applies warm messages and then measures n more, rounded up to whole
// batches.
func (b *Bench) applyOnce(ctx context.Context, p *place, c *Case, db *store.DB, f *feed, warm, n int) error {
	for done := 0; done < warm; done += f.size {
		if _, err := db.Apply(ctx, f.next()); err != nil {
			return err
		}
	}
	settle()
	wal, err := p.written(ctx)
	if err != nil {
		return err
	}
	from, done, transactions := now(), 0, 0
	for ; done < n; done += f.size {
		if _, err := db.Apply(ctx, f.next()); err != nil {
			return err
		}
		transactions++
	}
	to := now()
	written, err := p.written(ctx)
	if err != nil {
		return err
	}
	c.record(done, from, to)
	c.add("wal", "B/msg", float64(written-wal)/float64(done))
	c.add("commits", "/msg", float64(transactions)/float64(done))
	return nil
}

// checkLedger makes sure that what was measured did happen: every message had
// its effect.
func (b *Bench) checkLedger(ctx context.Context, db *store.DB, want int64) error {
	entries, err := db.Ledger(ctx)
	if err != nil {
		return err
	}
	var got workflow.LedgerEntry
	for _, e := range entries {
		got.Received += e.Received
		got.Applied += e.Applied
		got.Dead += e.Dead
		got.Duplicate += e.Duplicate
		got.Stale += e.Stale
	}
	// With several consumers a job may be heard of as finished before it was
	// heard of as running, which is then stale.
	if got.Received != want || got.Dead != 0 || got.Duplicate != 0 || got.Applied+got.Stale != want {
		return fmt.Errorf("the measurement is void: of %d messages sent the ledger says %d received, %d applied, %d stale, %d duplicate, %d dead", want, got.Received, got.Applied, got.Stale, got.Duplicate, got.Dead)
	}
	return nil
}

// feed makes batches of a traffic.
type feed struct {
	t        *traffic
	size     int
	consumer uuid.UUID
	session  uuid.UUID
	number   int64
	sent     int64 // messages in all batches made
}

func newFeed(t *traffic, size int) *feed {
	return &feed{t: t, size: size, consumer: uuid.New(), session: uuid.New()}
}

func (f *feed) next() *workflow.Batch {
	at := time.Now().UTC().Truncate(time.Microsecond)
	deliveries := make([]workflow.Delivery, f.size)
	for i := range deliveries {
		deliveries[i] = f.t.next().delivery(at)
	}
	return f.batch(deliveries...)
}

// batch numbers deliveries as the next batch.
func (f *feed) batch(deliveries ...workflow.Delivery) *workflow.Batch {
	f.number++
	f.sent += int64(len(deliveries))
	return &workflow.Batch{Queue: "bench", Consumer: f.consumer, Session: f.session, Number: f.number, Deliveries: deliveries}
}
