package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/broker"
	"waymark/internal/servicetest"
	"waymark/publisher"
	"waymark/workflow"
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
	needed := map[string][]string{
		"publish": {"messages", "warm_up", "body_bytes", "window", "encoding", "topology"}, "drain": {"messages", "warm_up", "jobs", "workflows", "body_bytes", "prefetch", "ack_every", "encoding", "gc_percent"},
		"apply": {"messages", "warm_up", "jobs", "workflows"}, "end-to-end": {"messages", "warm_up", "jobs", "workflows", "body_bytes", "encoding", "topology", "batch_size", "prefetch", "linger", "gc_percent"},
		"latency": {"duration", "jobs", "workflows", "encoding", "window", "topology", "batch_size", "linger"},
		"wide":    {"messages", "warm_up", "batch_size"}, "read": {"workflows", "jobs", "queries", "rate", "messages", "batch_size"},
	}[r.Benchmark]
	for _, name := range append(needed, "runs") {
		if !slices.ContainsFunc(r.Settings, func(s Setting) bool { return s.Name == name && s.Value != "" }) {
			t.Errorf("bench %s does not say with which %s it ran: %v", r.Benchmark, name, r.Settings)
		}
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
		"too many":         with(func(l *Load) { l.Messages = math.MaxInt }),
		"too long warm-up": with(func(l *Load) { l.WarmUp = math.MaxInt }),
		"too many runs":    with(func(l *Load) { l.Runs = 1e12 }),
		"too many jobs":    with(func(l *Load) { l.Jobs = 1e12 }),
		"too many at once": with(func(l *Load) { l.Workflows = 1e12 }),
	} {
		_, err := b.Drain(t.Context(), l)
		wantLoadError(t, name, err)
	}
	ctx := t.Context()
	for _, batches := range [][]int{{100, 0}, {1e9}, {100, 100}} {
		_, err = b.Apply(ctx, small, batches)
		wantLoadError(t, fmt.Sprintf("batches of %v", batches), err)
	}
	for _, consumers := range [][]int{{0}, {1000}, {1, 2, 1}} {
		_, err = b.EndToEnd(ctx, small, consumers, false)
		wantLoadError(t, fmt.Sprintf("%v consumers", consumers), err)
	}
	_, err = b.EndToEnd(ctx, with(func(l *Load) { l.Messages = 499 }), []int{1}, false)
	wantLoadError(t, "less than a batch", err)
	for _, jobs := range [][]int{{-1}, {1e12}, {20, 20}} {
		_, err = b.Wide(ctx, small, jobs)
		wantLoadError(t, fmt.Sprintf("%v jobs", jobs), err)
	}
	for _, rate := range []float64{0, -3, 1e9, math.NaN(), math.Inf(1), 0.5, 1e-300} {
		_, err = b.Latency(ctx, LatencyLoad{Rates: []float64{rate}, Duration: time.Second, Runs: 1, Jobs: 1, Workflows: 1})
		wantLoadError(t, fmt.Sprintf("rate %v for a second", rate), err)
	}
	for _, duration := range []time.Duration{0, -time.Second, 1, math.MaxInt64} {
		_, err = b.Latency(ctx, LatencyLoad{Rates: []float64{100}, Duration: duration, Runs: 1, Jobs: 1, Workflows: 1})
		wantLoadError(t, fmt.Sprintf("duration %s", duration), err)
	}
	_, err = b.Latency(ctx, LatencyLoad{Rates: []float64{5, 5}, Duration: time.Second, Runs: 1, Jobs: 1, Workflows: 1})
	wantLoadError(t, "a rate twice", err)
	for name, change := range map[string]func(*ReadLoad){
		"0 workflows":     func(l *ReadLoad) { l.Workflows = 0 },
		"jobs beyond all": func(l *ReadLoad) { l.Workflows, l.Jobs = 50_000_000, 1_000_000 },
		"0 queries":       func(l *ReadLoad) { l.Queries = 0 },
		"many queries":    func(l *ReadLoad) { l.Queries = 1e12 },
		"rate -1":         func(l *ReadLoad) { l.Rate = -1 },
		"rate NaN":        func(l *ReadLoad) { l.Rate = math.NaN() },
		"messages -1":     func(l *ReadLoad) { l.Messages = -1 },
	} {
		l := ReadLoad{Workflows: 1, Jobs: 1, Queries: 1, Runs: 1}
		change(&l)
		_, err = b.Read(ctx, l)
		wantLoadError(t, name, err)
	}
	for name, change := range map[string]func(*ReportLoad){
		"0 messages":         func(l *ReportLoad) { l.Messages = 0 },
		"0 runs":             func(l *ReportLoad) { l.Runs = 0 },
		"no duration":        func(l *ReportLoad) { l.Duration = 0 },
		"too long":           func(l *ReportLoad) { l.Duration = time.Hour },
		"less than a batch":  func(l *ReportLoad) { l.Messages = 499 },
		"too many workflows": func(l *ReportLoad) { l.Workflows = 60_000_000 },
	} {
		l := ReportLoad{Messages: 1, Runs: 1, Duration: time.Second, Workflows: 1}
		change(&l)
		_, err = b.Report(ctx, l)
		wantLoadError(t, "report of "+name, err)
	}
	_, err = New(Config{BatchSize: 500, Prefetch: 10})
	wantLoadError(t, "prefetch below the batch size", err)
}

func wantLoadError(t *testing.T, name string, err error) {
	t.Helper()
	if load, ok := errors.AsType[*LoadError](err); !ok || load.Parameter == "" || load.Problem == "" {
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

// killed makes a queue and a schema as a benchmark would, and is then gone
// without a word, as after SIGKILL.
func killed(t *testing.T, b *Bench) *place {
	t.Helper()
	p, err := b.open(t.Context(), true, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.declare(queueKinds[0]); err != nil {
		t.Fatal(err)
	}
	db, _, err := p.database(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, end := range []func() error{db.Close, p.conn.Close, func() error { return p.sql.Close(t.Context()) }} {
		if err := end(); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// unlock lets the journal of a place go, as the end of its process does.
func unlock(t *testing.T, p *place) {
	t.Helper()
	if err := p.journal.close(false); err != nil {
		t.Fatal(err)
	}
}

// exist counts the queues and schemas of a place that are there.
func exist(t *testing.T, p *place) (n int) {
	t.Helper()
	conn, err := broker.Dial(t.Context(), broker.Config{URL: p.cfg.BrokerURL})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, queue := range p.queues {
		ch, err := conn.Channel()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil); err == nil {
			n++
		}
	}
	db, err := pgx.Connect(t.Context(), p.cfg.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(t.Context())
	var schemas int
	if err := db.QueryRow(t.Context(), `SELECT count(*) FROM pg_namespace WHERE nspname = ANY($1)`, p.schemas).Scan(&schemas); err != nil {
		t.Fatal(err)
	}
	return n + schemas
}

// What a benchmark leaves that was killed the next one removes, and nothing else.
func TestNextRemovesWhatIsLeft(t *testing.T) {
	t.Parallel()
	b := testBench(t)
	b.cfg.Journals = filepath.Join(t.TempDir(), "made", "when needed")
	var told []string
	b.cfg.Progress = func(line string) { told = append(told, line) }

	living, dead := killed(t, b), killed(t, b)
	unlock(t, dead)
	stranger, _ := servicetest.Queues(t)
	conn, err := broker.Dial(t.Context(), broker.Config{URL: b.cfg.BrokerURL})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ch.QueueDeclare(stranger, true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	elsewhere := `{"kind":"schema","server":"other:5432/there","name":"waymark_bench_x_1"}`
	forged := filepath.Join(b.cfg.Journals, "forged"+journalSuffix())
	lines := fmt.Sprintf("%s\n{\"kind\":\"queue\",\"server\":%q,\"name\":%q}\nnonsense\n{\"kind\":\"queue\",\"ser", elsewhere, dead.onBroker, stranger)
	if err := os.WriteFile(forged, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}

	// One that does not use the database removes the queue, and leaves the schema to others.
	if _, err := b.Publish(t.Context(), small); err != nil {
		t.Fatal(err)
	}
	if n := exist(t, dead); n != 1 {
		t.Errorf("after a benchmark without the database %d things of the dead one are there, want its schema", n)
	}
	if _, err := b.Apply(t.Context(), small, []int{100}); err != nil {
		t.Fatal(err)
	}
	if n := exist(t, dead); n != 0 {
		t.Errorf("%d things of the dead benchmark are left", n)
	}
	if n := exist(t, living); n != 2 {
		t.Errorf("%d things of the living benchmark are there, want its queue and its schema", n)
	}
	if _, err := ch.QueueDeclarePassive(stranger, true, false, false, false, nil); err != nil {
		t.Errorf("a queue that no benchmark made: %v", err)
	}
	if got, err := os.ReadFile(forged); err != nil || strings.TrimSpace(string(got)) != elsewhere {
		t.Errorf("the journal of another server's things is now %q, %v; want that they are kept", got, err)
	}
	if !slices.Contains(told, fmt.Sprintf("cleared up after a benchmark that was killed (%s)", dead.name)) {
		t.Errorf("nobody was told that something was removed: %q", told)
	}
	unlock(t, living)
	told = nil
	if _, err := b.EndToEnd(t.Context(), small, nil, false); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(b.cfg.Journals, "*")); len(left) != 1 || left[0] != forged {
		t.Errorf("journals left: %q, want that of another server alone", left)
	}
}

// A folder that cannot be written to keeps nobody from measuring.
func TestNoJournal(t *testing.T) {
	t.Parallel()
	b := testBench(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.cfg.Journals = filepath.Join(file, "folder")
	var told []string
	b.cfg.Progress = func(line string) { told = append(told, line) }
	if _, err := b.Publish(t.Context(), Load{Messages: 1, Runs: 1}); err != nil {
		t.Fatal(err)
	}
	if len(told) == 0 || !strings.HasPrefix(told[0], "if this benchmark is killed, what it made stays: ") {
		t.Errorf("told %q, want a warning first", told)
	}
}

// A database that takes nothing ends a measurement instead of halting it.
func TestStoreThatIsAway(t *testing.T) {
	t.Parallel()
	b := testBench(t)
	p, err := b.open(t.Context(), true, false)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close(t.Context())
	queue, err := p.declare(queueKinds[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.fill(t.Context(), queue, amqp.Persistent, small, 10); err != nil {
		t.Fatal(err)
	}
	away := errors.New("the database is away")
	b.patience = 200 * time.Millisecond
	err = b.consumeUntil(t.Context(), queue, storeFunc(func(*workflow.Batch) error { return away }), 1, make(chan struct{}))
	if !errors.Is(err, away) {
		t.Errorf("consuming for a store that is away: %v, want %q", err, away)
	}
}

// A refusal is said in the broker's words, not as a connection that was lost.
func TestReasonOfAClosedChannel(t *testing.T) {
	t.Parallel()
	b := testBench(t)
	p, err := b.open(t.Context(), true, false)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close(t.Context())
	// RabbitMQ refuses an expiration that is no number, with PRECONDITION_FAILED.
	err = confirmLoop(t.Context(), p.conn, b.patience, p.blocked, p.newQueue(), 100, 10, func() amqp.Publishing { return amqp.Publishing{Expiration: "soon"} })
	refusal, ok := errors.AsType[*amqp.Error](err)
	if !ok || refusal.Code != amqp.PreconditionFailed {
		t.Errorf("publishing what the broker refuses: %v, want its reason", err)
	}
}
