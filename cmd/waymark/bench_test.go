package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"waymark/internal/bench"
	"waymark/internal/broker"
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

// Certificates and password files serve a benchmark, and the process that it
// measures, as they do any other command.
func TestBenchTLS(t *testing.T) {
	t.Parallel()
	s := newSecureSite(t, newAuthority(t, "bench"))
	e := s.but("CONSUMER_BATCH_SIZE=20", "CONSUMER_PREFETCH=40")
	state := t.TempDir()
	e["XDG_STATE_HOME"] = state
	got := e.run(t, "bench", "end-to-end", "--messages", "400", "--warm-up", "20", "--runs", "1", "--consumers", "1", "--workflows", "10", "--serve", "--json").want(t, exitOK)
	var r bench.Result
	decodeJSON(t, got.stdout, &r)
	if r.Case(bench.CaseServe) == nil || r.Environment.RabbitMQ == "" || r.Environment.PostgreSQL == "" {
		t.Errorf("over TLS not everything was measured:\n%s", got.stdout)
	}
	if left, err := filepath.Glob(filepath.Join(state, "waymark", "bench", "*")); err != nil || len(left) > 0 {
		t.Errorf("its journal says that something is left: %q, %v\n%s", left, err, got.stderr)
	}
}

// unread is standard error whose reader has gone after some lines, as in
// "2>&1 | head -2".
type unread struct{ lines atomic.Int32 }

func (w *unread) Write(p []byte) (int, error) {
	if w.lines.Add(-1) < 0 {
		return 0, &os.PathError{Op: "write", Path: os.Stderr.Name(), Err: syscall.EPIPE}
	}
	return len(p), nil
}

// A benchmark whose progress nobody reads any more ends, after it has removed
// what it made, though SIGPIPE would end it at once.
func TestBenchUnread(t *testing.T) {
	t.Parallel()
	e := benchSite(t)
	state := t.TempDir()
	e["XDG_STATE_HOME"] = state
	stderr := &unread{}
	stderr.lines.Store(1)
	var stdout bytes.Buffer
	code := run(t.Context(), []string{"bench", "end-to-end", "--messages", "400", "--runs", "100", "--consumers", "1"}, e.getenv, strings.NewReader(""), &stdout, stderr)
	if code != 128+int(syscall.SIGPIPE) || stdout.Len() > 0 {
		t.Errorf("it ended with %d and wrote %q, want the code of SIGPIPE and no result", code, stdout.String())
	}
	if left, err := filepath.Glob(filepath.Join(state, "waymark", "bench", "*")); err != nil || len(left) > 0 {
		t.Errorf("its journal says that something is left: %q, %v", left, err)
	}
}

// What a role may not do is said with what it would need.
func TestBenchWithoutRights(t *testing.T) {
	t.Parallel()
	e := benchSite(t)
	ctx := t.Context()
	conn, err := pgx.Connect(ctx, e["WAYMARK_DATABASE_URL"])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	role := "bench_" + strings.ToLower(rand.Text())[:10]
	if _, err := conn.Exec(ctx, "CREATE ROLE "+role+" LOGIN PASSWORD 'x'"); err != nil {
		t.Fatal(err)
	}
	defer conn.Exec(context.WithoutCancel(ctx), "DROP ROLE "+role)
	u, err := url.Parse(e["WAYMARK_DATABASE_URL"])
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, "x")
	e["WAYMARK_DATABASE_URL"] = u.String()
	got := e.run(t, "bench", "apply", "--messages", "1", "--runs", "1").want(t, exitUnreachable)
	if !strings.Contains(got.stderr, "GRANT CREATE ON DATABASE") || got.stdout != "" {
		t.Errorf("without the right to create a schema it says %q and writes %q, want what is needed and nothing", got.stderr, got.stdout)
	}
}

func TestBenchExitCodes(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		err  error
		code int
	}{
		{&bench.LoadError{Parameter: "messages", Problem: "too many"}, exitUsage},
		{fmt.Errorf("applying: %w", &net.OpError{Op: "write", Err: net.ErrClosed}), exitUnreachable},
		{fmt.Errorf("asking: %w", io.ErrUnexpectedEOF), exitUnreachable},
		{fmt.Errorf("creating: %w", &pgconn.PgError{Code: "25006"}), exitUnreachable},
		{&broker.Error{Problem: "away"}, exitUnreachable},
		// Neither what a process of ours does nor what a database cannot is the servers' absence.
		{&os.PathError{Op: "open", Path: "/proc/1/stat", Err: syscall.ENOENT}, exitFailed},
		{&pgconn.PgError{Code: "53100"}, exitFailed},
	} {
		a := &app{stderr: io.Discard}
		if got := a.exitCode(t.Context(), benchError(test.err)); got != test.code {
			t.Errorf("%v ends with %d, want %d", test.err, got, test.code)
		}
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
		{[]string{"bench", "publish", "--messages", "0"}, exitUsage, "waymark: --messages: 0 is too small: the least is 1"},
		{[]string{"bench", "apply", "--batch", "100,-1"}, exitUsage, "waymark: --batch: -1 is too small: the least is 1"},
		{[]string{"bench", "end-to-end", "--consumers", "0"}, exitUsage, "waymark: --consumers: 0 is too small: the least is 1"},
		{[]string{"bench", "latency", "--rate", "-3"}, exitUsage, "waymark: --rate: -3 messages a second: expected more than 0, and at most 1000000"},
		{[]string{"bench", "drain", "--warm-up", "1000000000000"}, exitUsage, "waymark: --warm-up: 1000000000000 is too large: the most is 1000000000"},
		{[]string{"bench", "report", "--workflows", "0"}, exitUsage, "waymark: --workflows: 0 is too small: the least is 1"},
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
