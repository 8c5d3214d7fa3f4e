package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/broker"
	"waymark/internal/servicetest"
	"waymark/publisher"
)

func TestMain(m *testing.M) { servicetest.Main(m) }

// The tests run every benchmark, on the real servers, as small as it goes, and
// ask whether what it says can be true. How fast it was is no test's business.

// testBench is a Bench on the servers of the tests. After the test nothing of
// what it made may be left.
func testBench(t *testing.T) *Bench {
	t.Helper()
	b, err := New(Config{
		BatchSize: 50, Prefetch: 100, BrokerURL: servicetest.AMQP(t), DatabaseURL: servicetest.Database(t).URL,
		Encoding: publisher.EncodingReana, Version: "test", Window: 100,
	})
	if err != nil {
		t.Fatal(err)
	}
	var places []*place
	b.opened = func(p *place) { places = append(places, p) }
	t.Cleanup(func() {
		if len(places) == 0 {
			t.Error("nothing was measured: no place was opened")
		}
		for _, p := range places {
			wantGone(t, p)
		}
	})
	return b
}

func wantGone(t *testing.T, p *place) {
	t.Helper()
	conn, err := broker.Dial(context.WithoutCancel(t.Context()), broker.Config{URL: p.cfg.BrokerURL})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, name := range p.queues {
		for _, queue := range []string{name, broker.DeadLetter(name)} {
			ch, err := conn.Channel()
			if err != nil {
				t.Fatal(err)
			}
			_, err = ch.QueueDeclarePassive(queue, false, false, false, false, nil)
			if refusal, _ := errors.AsType[*amqp.Error](err); refusal == nil || refusal.Code != amqp.NotFound {
				t.Errorf("queue %s after the benchmark: %v, want that it does not exist", queue, err)
			}
		}
		if !strings.HasPrefix(name, "waymark-bench-") {
			t.Errorf("queue %q does not bear the name of a benchmark", name)
		}
	}
	db, err := pgx.Connect(context.WithoutCancel(t.Context()), p.cfg.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(context.WithoutCancel(t.Context()))
	var left []string
	if err := db.QueryRow(context.WithoutCancel(t.Context()), `SELECT coalesce(array_agg(nspname), '{}') FROM pg_namespace WHERE nspname = ANY($1)`, p.schemas).Scan(&left); err != nil {
		t.Fatal(err)
	}
	if len(left) > 0 {
		t.Errorf("schemas left after the benchmark: %q", left)
	}
	for _, schema := range p.schemas {
		if !strings.HasPrefix(schema, "waymark_bench_") {
			t.Errorf("schema %q does not bear the name of a benchmark", schema)
		}
	}
}

var small = Load{Messages: 400, WarmUp: 60, Runs: 2, Size: 300, Jobs: 3, Workflows: 10}

// want is what a metric must look like: its unit, one value a run, and bounds.
type want struct {
	metric, unit string
	least, most  float64
}

const anything = 1e12

func wantMetrics(t *testing.T, r *Result, name string, runs int, wants ...want) {
	t.Helper()
	c := r.Case(name)
	if c == nil {
		var names []string
		for _, c := range r.Cases {
			names = append(names, c.Name)
		}
		t.Fatalf("bench %s has no case %q, only %q", r.Benchmark, name, names)
	}
	for _, w := range wants {
		m := c.Metric(w.metric)
		if m == nil {
			t.Errorf("bench %s, %s: no %q", r.Benchmark, name, w.metric)
			continue
		}
		if m.Unit != w.unit || len(m.Values) != runs {
			t.Errorf("bench %s, %s, %s: %d values in %q, want %d in %q", r.Benchmark, name, w.metric, len(m.Values), m.Unit, runs, w.unit)
		}
		if m.Min < w.least || m.Max > w.most || m.Median < m.Min || m.Median > m.Max {
			t.Errorf("bench %s, %s, %s: median %v of %v, want %v to %v", r.Benchmark, name, w.metric, m.Median, m.Values, w.least, w.most)
		}
	}
}

var usage = []want{{"rate", "msg/s", 1, 1e7}, {"cpu", "µs/msg", 0.01, 1e6}, {"allocations", "/msg", 1, 1e6}, {"allocated", "B/msg", 10, 1e8}}

func wantEnvironment(t *testing.T, r *Result, onBroker, onDatabase bool) {
	t.Helper()
	e := r.Environment
	if e.Waymark != "test" || !strings.HasPrefix(e.Go, "go") || e.CPUs < 1 {
		t.Errorf("environment %+v: want the versions of waymark and Go, and CPUs", e)
	}
	if (e.RabbitMQ != "") != onBroker || (e.PostgreSQL != "") != onDatabase {
		t.Errorf("RabbitMQ %q, PostgreSQL %q: want the versions of those that are used", e.RabbitMQ, e.PostgreSQL)
	}
	if onDatabase && !slices.ContainsFunc(e.PostgreSQLSettings, func(s Setting) bool { return s.Name == "synchronous_commit" && s.Value != "" }) {
		t.Errorf("PostgreSQL's settings %v: want synchronous_commit among them", e.PostgreSQLSettings)
	}
	if r.At.IsZero() {
		t.Error("the result does not say when it was found")
	}
	if len(r.Settings) == 0 || len(r.Notes) == 0 {
		t.Errorf("settings %v, notes %q: want both", r.Settings, r.Notes)
	}
}

func TestPublish(t *testing.T) {
	t.Parallel()
	r, err := testBench(t).Publish(t.Context(), small)
	if err != nil {
		t.Fatal(err)
	}
	wantEnvironment(t, r, true, false)
	wantMetrics(t, r, CaseBareLoop, 2, usage...)
	for _, name := range []string{CasePublisher, CaseRawBodies} {
		wantMetrics(t, r, name, 2, append(usage, want{"of the bare loop", "", 0.001, 1000})...)
		rate, bare := r.Case(name).Metric("rate"), r.Case(CaseBareLoop).Metric("rate")
		for i, ratio := range r.Case(name).Metric("of the bare loop").Values {
			if got := rate.Values[i] / bare.Values[i]; got != ratio {
				t.Errorf("%s, run %d: ratio %v, want that of the same run: %v", name, i+1, ratio, got)
			}
		}
	}
}

func TestDrain(t *testing.T) {
	t.Parallel()
	r, err := testBench(t).Drain(t.Context(), small)
	if err != nil {
		t.Fatal(err)
	}
	wantEnvironment(t, r, true, false)
	for _, k := range queueKinds {
		wantMetrics(t, r, k.name, 2, append(usage, want{"body", "B", 300, 300})...)
	}
}

func TestApply(t *testing.T) {
	t.Parallel()
	r, err := testBench(t).Apply(t.Context(), small, []int{1, 100})
	if err != nil {
		t.Fatal(err)
	}
	wantEnvironment(t, r, false, true)
	// Others write to the same server: WAL has no upper bound here.
	wantMetrics(t, r, "batches of 1", 2, append(usage, want{"wal", "B/msg", 50, anything}, want{"commits", "/msg", 1, 1})...)
	wantMetrics(t, r, "batches of 100", 2, append(usage, want{"wal", "B/msg", 50, anything}, want{"commits", "/msg", 0.01, 0.01})...)
	wantMetrics(t, r, "batches of 100", 1, want{"hot updates of workflows", "", 0, 1})
}

func TestEndToEnd(t *testing.T) {
	t.Parallel()
	r, err := testBench(t).EndToEnd(t.Context(), small, []int{1, 2}, false)
	if err != nil {
		t.Fatal(err)
	}
	wantEnvironment(t, r, true, true)
	wantMetrics(t, r, CaseRawDrain, 2, usage...)
	common := append(usage, want{"wal", "B/msg", 50, anything}, want{"commits", "/msg", 1.0 / 50, 1}, want{"of the raw drain", "", 1e-6, 1000})
	wantMetrics(t, r, CaseConsumers(1), 2, common...)
	wantMetrics(t, r, CaseConsumers(2), 2, append(common, want{"of 1 consumer", "", 0.001, 1000})...)
}

func TestLatency(t *testing.T) {
	t.Parallel()
	r, err := testBench(t).Latency(t.Context(), LatencyLoad{Rates: []float64{50, 200}, Duration: 500 * time.Millisecond, Runs: 2, Jobs: 3, Workflows: 5})
	if err != nil {
		t.Fatal(err)
	}
	wantEnvironment(t, r, true, true)
	for _, rate := range []float64{50, 200} {
		// Nothing is visible before it was sent, and all of it soon.
		wantMetrics(t, r, CaseRate(rate), 2, want{"sent", "msg/s", 1, 2 * rate}, want{"p50", "ms", 0.01, 30_000}, want{"p99", "ms", 0.01, 30_000}, want{"max", "ms", 0.01, 30_000})
		c := r.Case(CaseRate(rate))
		for i := range 2 {
			if p50, p99, most := c.Metric("p50").Values[i], c.Metric("p99").Values[i], c.Metric("max").Values[i]; p50 > p99 || p99 > most {
				t.Errorf("%s: p50 %v, p99 %v, max %v are not in order", c.Name, p50, p99, most)
			}
		}
	}
}

func TestWide(t *testing.T) {
	t.Parallel()
	// 2,000 jobs are more than the messages speak of: most are made before.
	r, err := testBench(t).Wide(t.Context(), Load{Messages: 200, WarmUp: 50, Runs: 2}, []int{3, 2000})
	if err != nil {
		t.Fatal(err)
	}
	wantEnvironment(t, r, false, true)
	wantMetrics(t, r, CaseJobs(3), 2, append(usage, want{"cost", "µs/msg", 0.1, 1e7})...)
	wantMetrics(t, r, CaseJobs(2000), 2, append(usage, want{"cost of 3 jobs", "", 0.001, 1000})...)
}

func TestRead(t *testing.T) {
	t.Parallel()
	r, err := testBench(t).Read(t.Context(), ReadLoad{Workflows: 1200, Jobs: 4, Queries: 5, Runs: 2, Rate: 200, Messages: 100})
	if err != nil {
		t.Fatal(err)
	}
	wantEnvironment(t, r, false, true)
	for _, q := range queries {
		for _, applying := range []bool{false, true} {
			wantMetrics(t, r, CaseQuery(q.name, applying), 2, want{"p50", "ms", 0.001, 60_000}, want{"p99", "ms", 0.001, 60_000}, want{"rows", "", 0, 100})
		}
	}
	wantMetrics(t, r, CaseQuery("page of jobs", false), 2, want{"rows", "", 4, 4})
	wantMetrics(t, r, CaseQuery("newest 50", false), 2, want{"rows", "", 50, 50})
	wantMetrics(t, r, CaseEmptyTables, 2, usage...)
	wantMetrics(t, r, CaseFullTables, 2, append(usage, want{"cost of empty tables", "", 0.001, 1000})...)
}

// A benchmark that is interrupted in the middle leaves nothing behind either;
// testBench looks.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	for name, measure := range map[string]func(context.Context, *Bench) error{
		"publish": func(ctx context.Context, b *Bench) error { _, err := b.Publish(ctx, small); return err },
		"drain":   func(ctx context.Context, b *Bench) error { _, err := b.Drain(ctx, small); return err },
		"end-to-end": func(ctx context.Context, b *Bench) error {
			_, err := b.EndToEnd(ctx, Load{Messages: 100_000, Runs: 1, Jobs: 20, Workflows: 10}, []int{1}, false)
			return err
		},
		"latency": func(ctx context.Context, b *Bench) error {
			_, err := b.Latency(ctx, LatencyLoad{Rates: []float64{10}, Duration: time.Hour, Runs: 1, Jobs: 3, Workflows: 5})
			return err
		},
		"read": func(ctx context.Context, b *Bench) error {
			_, err := b.Read(ctx, ReadLoad{Workflows: 1_000_000, Jobs: 20, Queries: 1, Runs: 1})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := testBench(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			// The first line of progress says that it has begun.
			b.cfg.Progress = func(string) { time.AfterFunc(50*time.Millisecond, cancel) }
			if name == "read" {
				opened := b.opened
				b.opened = func(p *place) { opened(p); time.AfterFunc(300*time.Millisecond, cancel) }
			}
			if err := measure(ctx, b); !errors.Is(err, context.Canceled) {
				t.Errorf("interrupted: %v, want context.Canceled", err)
			}
		})
	}
}

// A measurement in which messages were lost or refused is no measurement.
func TestLostMessagesVoidTheMeasurement(t *testing.T) {
	t.Parallel()
	b := testBench(t)
	p, err := b.open(t.Context(), false, true)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close(t.Context())
	db, _, err := p.database(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f := newFeed(newTraffic(2, 3), 10)
	if _, err := db.Apply(t.Context(), f.next()); err != nil {
		t.Fatal(err)
	}
	if err := b.checkLedger(t.Context(), db, 10); err != nil {
		t.Errorf("all messages were applied, yet: %v", err)
	}
	if err := b.checkLedger(t.Context(), db, 11); err == nil || !strings.Contains(err.Error(), "of 11 messages sent the ledger says 10 received") {
		t.Errorf("one message of 11 is missing: %v, want an error that says so", err)
	}
	batch := f.next()
	batch.Dead = 1
	if _, err := db.Apply(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	if err := b.checkLedger(t.Context(), db, 21); err == nil {
		t.Error("a message was dead-lettered: want an error")
	}
}

func TestServersThatAreAway(t *testing.T) {
	t.Parallel()
	b, err := New(Config{BrokerURL: "amqp://guest:secret@127.0.0.1:1/", DatabaseURL: "postgres://nobody:secret@127.0.0.1:1/none?sslmode=disable"})
	if err != nil {
		t.Fatal(err)
	}
	for name, measure := range map[string]func() error{
		"publish":    func() error { _, err := b.Publish(t.Context(), small); return err },
		"apply":      func() error { _, err := b.Apply(t.Context(), small, []int{1}); return err },
		"end-to-end": func() error { _, err := b.EndToEnd(t.Context(), small, []int{1}, false); return err },
	} {
		err := measure()
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s without servers: %v, want an error without the password", name, err)
		}
	}
}

func TestWrongLoads(t *testing.T) {
	t.Parallel()
	b, err := New(Config{BrokerURL: servicetest.AMQP(t), DatabaseURL: servicetest.Database(t).URL})
	if err != nil {
		t.Fatal(err)
	}
	b.opened = func(*place) { t.Error("a place was made on the servers for a load that is wrong") }
	with := func(change func(*Load)) Load { l := small; change(&l); return l }
	for name, l := range map[string]Load{
		"no messages":      with(func(l *Load) { l.Messages = 0 }),
		"negative warm-up": with(func(l *Load) { l.WarmUp = -1 }),
		"no runs":          with(func(l *Load) { l.Runs = 0 }),
		"negative size":    with(func(l *Load) { l.Size = -1 }),
		"huge size":        with(func(l *Load) { l.Size = 1 << 30 }),
		"no jobs":          with(func(l *Load) { l.Jobs = 0 }),
		"no workflows":     with(func(l *Load) { l.Workflows = -3 }),
	} {
		_, err := b.Drain(t.Context(), l)
		wantLoadError(t, name, err)
	}
	ctx := t.Context()
	_, err = b.Apply(ctx, small, []int{100, 0})
	wantLoadError(t, "batch of 0", err)
	_, err = b.EndToEnd(ctx, small, []int{0}, false)
	wantLoadError(t, "0 consumers", err)
	_, err = b.Wide(ctx, small, []int{-1})
	wantLoadError(t, "-1 jobs", err)
	_, err = b.Latency(ctx, LatencyLoad{Rates: []float64{0}, Duration: time.Second, Runs: 1, Jobs: 1, Workflows: 1})
	wantLoadError(t, "rate 0", err)
	_, err = b.Latency(ctx, LatencyLoad{Rates: []float64{1}, Runs: 1, Jobs: 1, Workflows: 1})
	wantLoadError(t, "duration 0", err)
	_, err = b.Read(ctx, ReadLoad{Workflows: 0, Jobs: 1, Queries: 1, Runs: 1})
	wantLoadError(t, "0 workflows", err)
	_, err = b.Read(ctx, ReadLoad{Workflows: 1, Jobs: 1, Queries: 1, Runs: 1, Rate: -1})
	wantLoadError(t, "rate -1", err)
	_, err = New(Config{BatchSize: 500, Prefetch: 10})
	wantLoadError(t, "prefetch below the batch size", err)
}

func wantLoadError(t *testing.T, name string, err error) {
	t.Helper()
	if load, ok := errors.AsType[*LoadError](err); !ok || load.Problem == "" {
		t.Errorf("%s: %v, want a *LoadError that says what is wrong", name, err)
	}
}

// What is loaded by SQL is what the Go side asks for.
func TestPopulation(t *testing.T) {
	t.Parallel()
	b := testBench(t)
	p, err := b.open(t.Context(), false, true)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close(t.Context())
	db, schema, err := p.database(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	people := population{workflows: 1000, jobs: 3}
	loaded := 0
	if err := people.load(t.Context(), p.sql, schema, func(done int) { loaded = done }); err != nil {
		t.Fatal(err)
	}
	if loaded != people.workflows {
		t.Errorf("progress ended at %d, want %d", loaded, people.workflows)
	}
	words := make(map[string]int)
	for i := 1; i <= people.workflows; i++ {
		d, err := db.Workflow(t.Context(), people.id(i))
		if err != nil {
			t.Fatalf("workflow %d: %v", i, err)
		}
		got := fmt.Sprintf("%s of %s by %s, %d of %d jobs finished", d.Name, d.Owner, d.Engine, d.Counts.Finished, d.Counts.Total)
		want := fmt.Sprintf("%s of %s by %s, 3 of 3 jobs finished", people.name(i), people.owner(i), people.engine(i))
		if got != want {
			t.Fatalf("workflow %d is %s, want %s", i, got, want)
		}
		words[d.Status.String()]++
	}
	if got := fmt.Sprint(words); got != "map[failed:50 finished:900 queued:10 running:20 stopped:20]" {
		t.Errorf("statuses %s, want 90 %% finished and so on", got)
	}
	var jobs, runs int
	if err := p.sql.QueryRow(t.Context(), "SELECT count(*), count(DISTINCT workflow_id) FROM job_status").Scan(&jobs, &runs); err != nil || jobs != 3000 || runs != 1000 {
		t.Errorf("%d jobs of %d workflows, %v; want 3000 of 1000", jobs, runs, err)
	}
}
