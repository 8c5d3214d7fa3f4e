package bench

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"waymark/store"
	"waymark/workflow"
)

// ReadLoad is what Read loads and asks.
type ReadLoad struct {
	// Workflows that are there, each with Jobs.
	Workflows, Jobs int
	// Queries of each kind in a run.
	Queries int
	Runs    int
	// Rate of messages, in messages a second, that are applied while the
	// queries are asked a second time. 0 leaves that out.
	Rate float64
	// Messages applied, in each run, to the full tables and to empty ones, to
	// compare. 0 leaves that out.
	Messages int
}

// mostRows bounds the jobs of a population: they are written at some 100,000 a
// second, and take 300 bytes each.
const mostRows = 1_000_000_000

// validate returns a *LoadError if l cannot be measured.
func (l ReadLoad) validate() error {
	err := cmp.Or(
		within("workflows", l.Workflows, 1, 50_000_000),
		within("jobs", l.Jobs, 1, mostJobs),
		within("queries", l.Queries, 1, 1_000_000),
		within("runs", l.Runs, 1, mostRuns),
		within("messages", l.Messages, 0, mostMessages),
	)
	switch {
	case err != nil:
		return err
	case l.Workflows*l.Jobs > mostRows:
		return invalid("jobs", "%d workflows of %d jobs have too many: the most is %d in all", l.Workflows, l.Jobs, mostRows)
	case l.Rate != 0:
		return validRate("rate", l.Rate)
	}
	return nil
}

// Cases of Read that compare applying.
const (
	CaseEmptyTables = "apply to empty tables"
	CaseFullTables  = "apply to full tables"
)

// CaseQuery is the case of Read of one kind of query, while messages are
// applied or not.
func CaseQuery(name string, applying bool) string {
	if applying {
		return name + ", while applying"
	}
	return name
}

// queries of Read by name, each for a random workflow of the population.
var queries = []struct {
	name string
	ask  func(ctx context.Context, db *store.DB, p population, i int) (rows int, err error)
}{
	{"status by id", func(ctx context.Context, db *store.DB, p population, i int) (int, error) {
		d, err := db.Workflow(ctx, p.id(i))
		if err == nil && d.Name != p.name(i) {
			err = fmt.Errorf("workflow %s has name %q, want %q", d.ID, d.Name, p.name(i))
		}
		return 1, err
	}},
	{"newest 50", func(ctx context.Context, db *store.DB, _ population, _ int) (int, error) {
		return list(ctx, db, workflow.Filter{})
	}},
	{"50 failed", func(ctx context.Context, db *store.DB, _ population, _ int) (int, error) {
		return list(ctx, db, workflow.Filter{Statuses: []workflow.Status{workflow.StatusFailed}})
	}},
	{"50 of an owner", func(ctx context.Context, db *store.DB, p population, i int) (int, error) {
		return list(ctx, db, workflow.Filter{Owner: p.owner(i)})
	}},
	{"running of an owner", func(ctx context.Context, db *store.DB, p population, i int) (int, error) {
		return list(ctx, db, workflow.Filter{Owner: p.owner(i), Statuses: []workflow.Status{workflow.StatusRunning}})
	}},
	{"finished of an owner and engine", func(ctx context.Context, db *store.DB, p population, i int) (int, error) {
		return list(ctx, db, workflow.Filter{Owner: p.owner(i), Engine: p.engine(i), Statuses: []workflow.Status{workflow.StatusFinished}})
	}},
	{"50 from the middle", func(ctx context.Context, db *store.DB, p population, i int) (int, error) {
		return list(ctx, db, workflow.Filter{Until: time.Now().AddDate(0, 0, -(i % 365))})
	}},
	{"50 with a label", func(ctx context.Context, db *store.DB, _ population, i int) (int, error) {
		return list(ctx, db, workflow.Filter{Labels: map[string]string{"experiment": fmt.Sprintf("e%d", i%40)}})
	}},
	{"name, exact", func(ctx context.Context, db *store.DB, p population, i int) (int, error) {
		return list(ctx, db, workflow.Filter{Name: p.name(i)})
	}},
	{"name, beginning", func(ctx context.Context, db *store.DB, p population, i int) (int, error) {
		return list(ctx, db, workflow.Filter{Name: p.name(i)[:len("analysis-")+2] + "*"})
	}},
	{"name, part", func(ctx context.Context, db *store.DB, p population, i int) (int, error) {
		return list(ctx, db, workflow.Filter{Name: "*" + p.name(i)[len("analysis-"):][1:5] + "*"})
	}},
	{"page of jobs", func(ctx context.Context, db *store.DB, p population, i int) (int, error) {
		page, err := db.Jobs(ctx, p.id(i), workflow.JobFilter{})
		if err == nil && len(page.Items) != min(p.jobs, 100) {
			err = fmt.Errorf("workflow %s has %d jobs on the first page, want %d", p.id(i), len(page.Items), min(p.jobs, 100))
		}
		return len(page.Items), err
	}},
}

func list(ctx context.Context, db *store.DB, f workflow.Filter) (int, error) {
	page, err := db.Workflows(ctx, f)
	return len(page.Items), err
}

// Read measures what readers ask of a database that holds many workflows, one
// query after the other, first in peace and then while messages are applied.
// And it measures what applying costs when the tables are full: in alternation
// with tables that hold nothing but what is being measured.
func (b *Bench) Read(ctx context.Context, l ReadLoad) (*Result, error) {
	if err := l.validate(); err != nil {
		return nil, err
	}
	p, r, err := b.start(ctx, "read", Load{Messages: 1, Runs: l.Runs, Jobs: 1, Workflows: 1}, false, true)
	if err != nil {
		return nil, err
	}
	return finish(ctx, p, r, b.read(ctx, p, r, l))
}

func (b *Bench) read(ctx context.Context, p *place, r *Result, l ReadLoad) error {
	r.set("workflows", l.Workflows)
	r.set("jobs", l.Jobs)
	r.set("queries", l.Queries)
	r.set("rate", l.Rate)
	r.set("messages", l.Messages)
	r.set("batch_size", b.cfg.BatchSize)
	r.note("Times are of the Go call: the query, its transfer and the decoding of the rows; one query after the other, for workflows chosen at random.")
	r.note("The tables were filled by SQL, in the order of the ids, and vacuumed.")
	db, schema, err := p.database(ctx)
	if err != nil {
		return err
	}
	people := population{l.Workflows, l.Jobs}
	b.progress("read: loading %d workflows of %d jobs", l.Workflows, l.Jobs)
	began := time.Now()
	err = people.load(ctx, p.sql, schema, func(done int) {
		if done == l.Workflows || time.Since(began) > 2*time.Second {
			b.progress("read: %d of %d workflows loaded", done, l.Workflows)
			began = time.Now()
		}
	})
	if err != nil {
		return err
	}
	if l.Messages > 0 {
		if err := b.compareTables(ctx, p, r, db, l); err != nil {
			return err
		}
	}
	for run := range l.Runs {
		b.progress("read: run %d of %d", run+1, l.Runs)
		if err := ask(ctx, db, r, people, l.Queries, false); err != nil {
			return err
		}
		if l.Rate == 0 {
			continue
		}
		b.progress("read: run %d of %d, while applying %s msg/s", run+1, l.Runs, Number(l.Rate))
		g, working := errgroup.WithContext(ctx)
		applying, stop := context.WithCancel(working)
		underWay := make(chan struct{})
		g.Go(func() error { return applyAt(applying, db, r.of("applying meanwhile"), l.Rate, underWay) })
		g.Go(func() error {
			defer stop()
			select {
			case <-underWay:
				return ask(working, db, r, people, l.Queries, true)
			case <-working.Done():
				return context.Cause(working)
			}
		})
		err := g.Wait()
		stop()
		if err != nil {
			return err
		}
	}
	return nil
}

// ask times every kind of query.
func ask(ctx context.Context, db *store.DB, r *Result, p population, n int, applying bool) error {
	for _, q := range queries {
		c := r.of(CaseQuery(q.name, applying))
		times, rows := make([]time.Duration, n), 0
		for k := range times {
			i := 1 + rand.IntN(p.workflows)
			began := time.Now()
			found, err := q.ask(ctx, db, p, i)
			if err != nil {
				return fmt.Errorf("asking for %s: %w", q.name, err)
			}
			times[k] = time.Since(began)
			rows += found
		}
		c.addLatencies(times)
		c.add("rows", "", float64(rows)/float64(n))
	}
	return nil
}

// compareTables applies the same to full tables and to empty ones.
func (b *Bench) compareTables(ctx context.Context, p *place, r *Result, full *store.DB, l ReadLoad) error {
	empty, _, err := p.database(ctx)
	if err != nil {
		return err
	}
	targets := []struct {
		name string
		db   *store.DB
		feed *feed
	}{{CaseEmptyTables, empty, nil}, {CaseFullTables, full, nil}}
	for i := range targets {
		targets[i].feed = newFeed(newTraffic(1000, 20), b.cfg.BatchSize)
	}
	for run := range l.Runs {
		for _, t := range targets {
			b.progress("read: run %d of %d, %s", run+1, l.Runs, t.name)
			if err := b.applyOnce(ctx, p, r.of(t.name), t.db, t.feed, l.Messages/10, l.Messages); err != nil {
				return err
			}
			r.of(t.name).add("cost", "µs/msg", 1e6/r.of(t.name).Metric("rate").Values[run])
		}
		r.of(CaseFullTables).addRatio("cost of empty tables", "cost", r.of(CaseEmptyTables))
	}
	return nil
}

// applyEvery is how often applyAt applies what has become due.
const applyEvery = 5 * time.Millisecond

// applyAt applies messages at a rate until ctx ends, in the small batches that
// a consumer makes at such a rate. It closes underWay after the first, which
// pays for the connection and the plans.
func applyAt(ctx context.Context, db *store.DB, c *Case, rate float64, underWay chan<- struct{}) error {
	f := newFeed(newTraffic(1000, 20), 1)
	if _, err := db.Apply(ctx, f.next()); err != nil {
		return err
	}
	close(underWay)
	f.sent = 0
	began := time.Now()
	for {
		if err := pause(ctx, applyEvery); err != nil {
			break
		}
		due := int(time.Since(began).Seconds()*rate) - int(f.sent)
		// A database that cannot keep up is given no more than a batch at once.
		if f.size = min(due, 500); f.size < 1 {
			continue
		}
		if _, err := db.Apply(ctx, f.next()); err != nil && ctx.Err() == nil {
			return err
		}
	}
	c.add("rate", "msg/s", float64(f.sent)/time.Since(began).Seconds())
	return nil
}
