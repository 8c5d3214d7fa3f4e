package main

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"waymark/internal/bench"
	"waymark/internal/servicetest"
)

// "bench end-to-end --serve" starts this program again, which in a test is the
// test binary. Nothing else calls that with such an argument.
func init() {
	if len(os.Args) == 2 && os.Args[1] == "serve" {
		main()
	}
}

// benchSite is an environment with the servers and with small batches, so that
// a benchmark of few messages has some.
func benchSite(t *testing.T) environment {
	t.Helper()
	return environment{
		"WAYMARK_BROKER_URL": servicetest.AMQP(t), "WAYMARK_DATABASE_URL": servicetest.Database(t).URL,
		"WAYMARK_CONSUMER_BATCH_SIZE": "20", "WAYMARK_CONSUMER_PREFETCH": "40",
	}
}

func TestBenchTable(t *testing.T) {
	t.Parallel()
	got := benchSite(t).run(t, "bench", "publish", "--messages", "200", "--warm-up", "20", "--runs", "3", "--size", "300", "--publisher-window", "50").want(t, exitOK)
	for _, want := range []string{"machine: ", "RabbitMQ ", "runs=3 messages=200 warm_up=20 body_bytes=300 window=50", "MEDIAN", "of the bare loop", "msg/s"} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("bench publish does not say %q:\n%s", want, got.stdout)
		}
	}
	if !strings.Contains(got.stderr, "publish: run 3 of 3") {
		t.Errorf("progress on standard error: %q, want the runs", got.stderr)
	}
}

func TestBenchServe(t *testing.T) {
	t.Parallel()
	got := benchSite(t).run(t, "bench", "end-to-end", "--messages", "400", "--warm-up", "20", "--runs", "1", "--consumers", "1", "--workflows", "10", "--serve", "--json").want(t, exitOK)
	var r bench.Result
	decodeJSON(t, got.stdout, &r)
	// The kernel counts a process's time in ticks of 10 ms, which few messages do not fill.
	for metric, most := range map[string]float64{"ready after": 30, "idle cpu": 200, "idle memory": 1000, "peak memory": 1000, "rate": 1e6, "cpu": 1e6} {
		m := r.Case(bench.CaseServe).Metric(metric)
		if m == nil {
			t.Errorf("nothing of waymark serve's %s", metric)
			continue
		}
		if m.Median > most || m.Median < 0 || (m.Median == 0 && !strings.HasSuffix(metric, "cpu")) {
			t.Errorf("waymark serve: %s is %v %s, want a plausible value", metric, m.Median, m.Unit)
		}
	}
}

func TestBenchReport(t *testing.T) {
	t.Parallel()
	e := benchSite(t)
	got := e.run(t, "bench", "report", "--messages", "200", "--runs", "1", "--duration", "200ms", "--workflows", "600").want(t, exitOK)
	if strings.Contains(got.stdout, "not measured") {
		t.Errorf("some goals were not measured:\n%s", got.stdout)
	}
	for _, want := range []string{"# Performance\n", "| End to end: rate |", "| Reads: p99 of status by id |", "## waymark bench latency", "## waymark bench read"} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("the report lacks %q:\n%s", want, got.stdout)
		}
	}
	if host, err := os.Hostname(); err == nil && len(host) > 3 && strings.Contains(got.stdout, host) {
		t.Errorf("the report names the machine, %q:\n%s", host, got.stdout)
	}
	for _, secret := range []string{"amqp://", "postgres://"} {
		if strings.Contains(got.stdout+got.stderr, secret) {
			t.Errorf("the report or its progress shows a URL:\n%s\n%s", got.stdout, got.stderr)
		}
	}
}

// Ctrl-C ends a benchmark with the code of an interruption, after it has
// removed what it made.
func TestBenchInterrupted(t *testing.T) {
	t.Parallel()
	// A server of its own: on a shared one, others may be measuring too.
	e := environment{"WAYMARK_DATABASE_URL": servicetest.Postgres(t).URL()}
	p := e.start(t, "bench", "apply", "--messages", "10000000", "--runs", "1")
	servicetest.Eventually(t, patience, "bench begins", func() error {
		if !strings.Contains(p.stderr.String(), "apply: run 1 of 1") {
			return os.ErrNotExist
		}
		return nil
	})
	conn, err := pgx.Connect(t.Context(), e["WAYMARK_DATABASE_URL"])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	schemas := func() (names []string) {
		if err := conn.QueryRow(t.Context(), `SELECT coalesce(array_agg(nspname::text), '{}') FROM pg_namespace WHERE nspname LIKE 'waymark\_bench\_%'`).Scan(&names); err != nil {
			t.Fatal(err)
		}
		return names
	}
	if len(schemas()) == 0 {
		t.Error("while it measures there is no schema of a benchmark")
	}
	began := time.Now()
	p.stop(t, exitInterrupted)
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %s to end", took)
	}
	if left := schemas(); len(left) > 0 {
		t.Errorf("left after the interruption: %q", left)
	}
	if p.stdout.String() != "" {
		t.Errorf("an interrupted benchmark writes a result: %q", p.stdout.String())
	}
}

func TestBenchUsage(t *testing.T) {
	t.Parallel()
	e := environment{"WAYMARK_BROKER_URL": "amqp://guest:secret@127.0.0.1:1/", "WAYMARK_DATABASE_URL": "postgres://nobody:secret@127.0.0.1:1/none"}
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"bench", "publish", "--messages", "0"}, exitUsage, "waymark: 0 messages: expected at least 1"},
		{[]string{"bench", "apply", "--batch", "100,-1"}, exitUsage, "waymark: a batch of -1 messages: expected at least 1"},
		{[]string{"bench", "end-to-end", "--consumers", "0"}, exitUsage, "waymark: 0 consumers: expected at least 1"},
		{[]string{"bench", "latency", "--rate", "-3"}, exitUsage, "waymark: -3.00 messages a second: expected more than 0, up to 1,000,000"},
		{[]string{"bench", "wide", "--jobs", "many"}, exitUsage, "waymark: --jobs: "},
		{[]string{"bench", "pblish"}, exitUsage, `waymark: unknown command "pblish" for "waymark bench"; did you mean publish?`},
		{[]string{"bench", "publish"}, exitUnreachable, "waymark: broker at 127.0.0.1:1 refused the connection"},
		{[]string{"bench", "wide"}, exitUnreachable, "waymark: connecting to the database: "},
	} {
		got := e.run(t, test.args...).want(t, test.code)
		if !strings.HasPrefix(got.stderr, test.want) || strings.Contains(got.stderr, "secret") {
			t.Errorf("waymark %q says %q, want %q… and no password", test.args, got.stderr, test.want)
		}
	}
	got := environment{}.run(t, "bench", "drain").want(t, exitUsage)
	if !strings.HasPrefix(got.stderr, "waymark: broker.url is not set") {
		t.Errorf("bench drain without a broker says %q, want that broker.url is not set", got.stderr)
	}
}
