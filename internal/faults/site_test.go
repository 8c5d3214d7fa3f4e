//go:build linux

package faults

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/broker"
	"waymark/internal/devstack"
	"waymark/internal/servicetest"
)

// suite is the servers, and what the trace gives when nothing fails.
type suite struct {
	*devstack.Stack
	t     *testing.T // of all of it
	trace *trace
	want  rows
	// wide is another trace, see wide_test.go, and what that gives.
	wide struct {
		trace *trace
		want  rows
	}
	sites atomic.Int64
	tls   secured
	// authority, if the servers speak TLS, is the file of whom to trust.
	authority string

	mu      sync.Mutex
	results []result
}

// site is a scenario's own queues, schema and role on the servers.
type site struct {
	*suite
	testing.TB
	trace              *trace
	want               rows
	status, submission string
	schema             string
	role, password     string
	processes          []*process
	settings           []string // more environment of every process

	published int       // messages that the broker has confirmed
	mended    time.Time // when the fault was over

	mu    sync.Mutex
	admin *pgx.Conn // a superuser's, beside every fault but the server's own
}

func newSite(t testing.TB, s *suite) *site {
	t.Helper()
	n := s.sites.Add(1)
	w := &site{
		suite: s, TB: t, trace: s.trace, want: s.want, mended: time.Now(),
		status: fmt.Sprintf("site-%d-status", n), submission: fmt.Sprintf("site-%d-submission", n),
		role: fmt.Sprintf("site_%d", n), password: fmt.Sprintf("secret of site %d", n),
	}
	t.Cleanup(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.admin != nil {
			w.admin.Close(context.Background())
		}
	})
	w.sql(fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s'", w.role, w.password))
	w.schema = servicetest.DatabaseOf(t, s.DatabaseURL()).Schema
	w.sql(fmt.Sprintf("ALTER SCHEMA %s OWNER TO %s", w.schema, w.role))
	return w
}

// do runs use with a superuser's connection, and with a new one if that broke.
func (w *site) do(use func(context.Context, *pgx.Conn) error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if w.admin == nil || w.admin.IsClosed() {
		var err error
		if w.admin, err = pgx.Connect(ctx, w.DatabaseURL()); err != nil {
			w.admin = nil
			return err
		}
	}
	return use(ctx, w.admin)
}

// sql runs statements as a superuser.
func (w *site) sql(statements ...string) {
	w.Helper()
	for _, statement := range statements {
		statement = w.names(statement)
		if err := w.do(func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, statement)
			return err
		}); err != nil {
			w.Fatalf("%s: %v", statement, err)
		}
	}
}

// number is the answer to a query of one number.
func (w *site) number(query string, args ...any) (n int, err error) {
	err = w.do(func(ctx context.Context, conn *pgx.Conn) error { return conn.QueryRow(ctx, query, args...).Scan(&n) })
	return n, err
}

// Small batches, so that the trace has a middle.
const (
	batchSize = 20
	prefetch  = 60
)

// environment is that of a process of the site, behind proxies of its own.
func (w *site) environment(amqpAddress, databaseAddress string, more ...string) []string {
	rawAMQP, rawDatabase := w.servers()
	amqpURL, err := url.Parse(rawAMQP)
	if err != nil {
		w.Fatalf("the URL of RabbitMQ cannot be parsed")
	}
	databaseURL, err := url.Parse(rawDatabase)
	if err != nil {
		w.Fatalf("the URL of PostgreSQL cannot be parsed")
	}
	amqpURL.Host, databaseURL.Host = amqpAddress, databaseAddress
	databaseURL.User = url.UserPassword(w.role, w.password)
	return slices.Concat([]string{
		"WAYMARK_BROKER_URL=" + amqpURL.String(), "WAYMARK_DATABASE_URL=" + databaseURL.String(), "WAYMARK_DATABASE_SCHEMA=" + w.schema,
		"WAYMARK_BROKER_STATUS_QUEUE=" + w.status, "WAYMARK_BROKER_SUBMISSION_QUEUE=" + w.submission,
		"WAYMARK_HTTP_LISTEN=127.0.0.1:0",
		fmt.Sprintf("WAYMARK_CONSUMER_BATCH_SIZE=%d", batchSize), fmt.Sprintf("WAYMARK_CONSUMER_PREFETCH=%d", prefetch),
	}, w.trusting(), w.settings, more)
}

// waymark starts the program behind proxies of its own.
func (w *site) waymark(more []string, args ...string) *process {
	w.Helper()
	amqpURL, databaseURL := w.servers()
	b, d := newProxy(w, host(amqpURL)), newProxy(w, host(databaseURL))
	p := start(w, "waymark", w.environment(b.address(), d.address(), more...), "", args...)
	p.broker, p.database = b, d
	return p
}

// serve starts a consumer, with an environment of its own.
func (w *site) serve(more ...string) *process {
	w.Helper()
	p := w.waymark(more, "serve")
	w.processes = append(w.processes, p)
	return p
}

// migrate makes the tables, and has them refuse the poison.
func (w *site) migrate() {
	w.Helper()
	if p := w.waymark(nil, "migrate"); p.wait(w) != nil {
		w.Fatalf("waymark migrate: %v; standard error:\n%s", p.err, p.stderr.String())
	}
	w.sql("ALTER TABLE SCHEMA_.jobs ADD CONSTRAINT poison CHECK (name <> '" + poisonName + "')")
}

// dial connects to RabbitMQ beside every proxy.
func (w *site) dial() *amqp.Connection {
	w.Helper()
	var conn *amqp.Connection
	servicetest.Eventually(w, patience, "RabbitMQ answers", func() (err error) {
		conn, err = amqp.DialConfig(w.AMQPURL(), amqp.Config{Dial: amqp.DefaultDial(10 * time.Second)})
		return err
	})
	return conn
}

// publish puts messages of the trace that choose wants into their queues, with
// the bare client library: no fault is under way.
func (w *site) publish(choose func(*message) bool) {
	w.Helper()
	conn := w.dial()
	defer conn.Close()
	durable := broker.Durable
	if err := broker.Declare(conn, durable.Status(w.status), durable.Submission(w.submission)); err != nil {
		w.Fatalf("declaring the queues: %v", err)
	}
	ch, err := conn.Channel()
	if err == nil {
		err = ch.Confirm(false)
	}
	if err != nil {
		w.Fatalf("opening a channel: %v", err)
	}
	var confirms []*amqp.DeferredConfirmation
	for i := range w.trace.messages {
		m := &w.trace.messages[i]
		if !choose(m) {
			continue
		}
		confirm, err := ch.PublishWithDeferredConfirm("", w.queue(m), true, false, amqp.Publishing{MessageId: m.id, Body: m.body, DeliveryMode: amqp.Persistent})
		if err != nil {
			w.Fatalf("publishing: %v", err)
		}
		confirms = append(confirms, confirm)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, confirm := range confirms {
		if ok, err := confirm.WaitContext(ctx); err != nil || !ok {
			w.Fatalf("publishing: confirmed %v, %v", ok, err)
		}
	}
	w.published += len(confirms)
}

func everything(*message) bool     { return true }
func withoutID(m *message) bool    { return m.id == "" }
func isSubmission(m *message) bool { return m.submission }
func isStatus(m *message) bool     { return !m.submission }
func (w *site) queue(m *message) string {
	if m.submission {
		return w.submission
	}
	return w.status
}

// lines is the input of publishtrace: the messages with an id but for those of
// which it is known that they were confirmed.
func (w *site) lines(confirmed map[string]bool) string {
	var b strings.Builder
	for i := range w.trace.messages {
		m := &w.trace.messages[i]
		if m.id == "" || confirmed[m.id] {
			continue
		}
		line, err := json.Marshal(map[string]string{"queue": w.queue(m), "id": m.id, "body": base64.StdEncoding.EncodeToString(m.body)})
		if err != nil {
			w.Fatal(err)
		}
		b.Write(append(line, '\n'))
	}
	return b.String()
}

// publisher starts a process that publishes the messages with an id.
func (w *site) publisher(confirmed map[string]bool, more ...string) *process {
	w.Helper()
	b := newProxy(w, host(w.AMQPURL()))
	more = append(more, "WAYMARK_BROKER_URL="+at(w.AMQPURL(), b.address())) // TLS is for others to try
	p := start(w, "publishtrace", w.environment(b.address(), "", more...), w.lines(confirmed), w.status, w.submission)
	p.broker = b
	return p
}

// ids are the lines that a publisher has written: what was confirmed.
func ids(p *process, into map[string]bool) {
	text := p.stdout.String()
	// A line cut short says nothing.
	text = text[:strings.LastIndexByte(text, '\n')+1]
	for line := range strings.Lines(text) {
		into[strings.TrimSpace(line)] = true
	}
}

// rows counts rows of the views by their text.
type rows map[string]int

// views lists what is compared: everything that does not depend on when, or in
// which order, messages arrived.
var views = []struct {
	name    string
	columns []string
	times   []string // whose values, in runs without times, say when the trace was published
}{
	{"workflow_status", []string{"workflow_id", "name", "run_number", "owner", "engine", "status", "attempt", "jobs_total", "jobs_created", "jobs_queued",
		"jobs_running", "jobs_finished", "jobs_failed", "jobs_stopped", "jobs_cached", "priority", "labels"},
		[]string{"submitted_at", "started_at", "finished_at", "deleted_at", "last_event_at"}},
	{"job_status", []string{"workflow_id", "job_id", "name", "path", "status", "cached", "run_attempt", "attempt", "command", "exit_code", "diagnostics", "result"},
		[]string{"queued_at", "started_at", "finished_at"}},
	{"workflow_logs", []string{"workflow_id", "job_id", "attempt", "body"}, []string{"event_time"}},
	{"status_history", []string{"workflow_id", "attempt", "status"}, []string{"event_time"}},
	{"reana_workflow_status", []string{"id_ AS workflow_id", "name", "status", "type_", "job_progress", "engine_specific"}, nil},
}

// read reads all that the views show.
func (w *site) read() (rows, error) {
	all := make(rows)
	err := w.do(func(ctx context.Context, conn *pgx.Conn) error {
		for _, v := range views {
			columns := slices.Clone(v.columns)
			for _, c := range v.times {
				columns = append(columns, fmt.Sprintf("CASE WHEN workflow_id <> ALL($1) THEN to_char(%s AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') WHEN %[1]s IS NOT NULL THEN 'some time' END AS %[1]s", c))
			}
			query := fmt.Sprintf("SELECT to_json(v)::text FROM (SELECT %s FROM %s.%s WHERE $1::uuid[] IS NOT NULL) v", strings.Join(columns, ", "), w.schema, v.name)
			result, err := conn.Query(ctx, query, w.trace.arrival)
			if err != nil {
				return fmt.Errorf("reading %s: %w", v.name, err)
			}
			texts, err := pgx.CollectRows(result, pgx.RowTo[string])
			if err != nil {
				return fmt.Errorf("reading %s: %w", v.name, err)
			}
			for _, text := range texts {
				all[v.name+" "+text]++
			}
		}
		return nil
	})
	return all, err
}

// minus lists the rows that r has more often than other.
func (r rows) minus(other rows) (more []string) {
	for _, text := range slices.Sorted(maps.Keys(r)) {
		for range r[text] - other[text] {
			more = append(more, text)
		}
	}
	return more
}

// ledger is the balance of both queues.
type ledger struct {
	received, applied, duplicate, stale, dead int
	balanced                                  bool
}

func (w *site) ledger() (l ledger, err error) {
	err = w.do(func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, fmt.Sprintf(`SELECT coalesce(sum(received), 0), coalesce(sum(applied), 0), coalesce(sum(duplicate), 0), coalesce(sum(stale), 0),
			coalesce(sum(dead), 0), coalesce(bool_and(balanced), true) FROM %s.ledger_balance`, w.schema)).
			Scan(&l.received, &l.applied, &l.duplicate, &l.stale, &l.dead, &l.balanced)
	})
	return l, err
}

// received says whether all that was published has been dealt with.
func (w *site) received() error {
	l, err := w.ledger()
	if err == nil && l.received < w.published {
		err = fmt.Errorf("of %d messages %d were received", w.published, l.received)
	}
	return err
}

// waiting counts the messages in the two queues that no consumer holds.
func (w *site) waiting() (n int, err error) {
	conn, err := amqp.DialConfig(w.AMQPURL(), amqp.Config{Dial: amqp.DefaultDial(5 * time.Second)})
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	for _, name := range []string{w.status, w.submission} {
		ch, err := conn.Channel()
		if err != nil {
			return 0, err
		}
		q, err := ch.QueueDeclarePassive(name, true, false, false, false, nil)
		if err != nil {
			return 0, err
		}
		n += q.Messages
	}
	return n, nil
}

// quiet says why the site is not, or not yet, as if nothing had failed.
func (w *site) quiet() error {
	if err := w.received(); err != nil {
		return err
	}
	got, err := w.read()
	if err != nil {
		return err
	}
	missing, extra := w.want.minus(got), got.minus(w.want)
	if len(missing)+len(extra) > 0 {
		return fmt.Errorf("the views differ from those of a run without faults:\n%s", difference(missing, extra))
	}
	n, err := w.waiting()
	if err == nil && n > 0 {
		err = fmt.Errorf("%d messages wait", n)
	}
	return err
}

func difference(missing, extra []string) string {
	var b strings.Builder
	for i, text := range missing {
		if i == 8 {
			fmt.Fprintf(&b, "… %d rows are missing\n", len(missing))
			break
		}
		fmt.Fprintln(&b, "-", text)
	}
	for i, text := range extra {
		if i == 8 {
			fmt.Fprintf(&b, "… %d rows are too many\n", len(extra))
			break
		}
		fmt.Fprintln(&b, "+", text)
	}
	return b.String()
}

// takeRest has what came again, and was on its way to a consumer when that was
// stopped, dealt with: it is back in the queue, and could still double something.
func (w *site) takeRest() {
	w.Helper()
	for range 5 {
		n, err := w.waiting()
		if err == nil && n == 0 {
			return
		}
		p := w.serve()
		servicetest.Eventually(w, patience, "the rest is taken", func() error {
			n, err := w.waiting()
			if err == nil && n > 0 {
				err = fmt.Errorf("%d messages wait", n)
			}
			return err
		})
		p.stop(w)
	}
	w.Errorf("messages come back to the queue again and again")
}

// letters takes all ids from the dead-letter queues.
func (w *site) letters() []string {
	w.Helper()
	conn := w.dial()
	defer conn.Close()
	var all []string
	for _, name := range []string{broker.DeadLetter(w.status), broker.DeadLetter(w.submission)} {
		ch, err := conn.Channel()
		if err != nil {
			w.Fatalf("opening a channel: %v", err)
		}
		for {
			d, ok, err := ch.Get(name, true)
			if refusal, is := errors.AsType[*amqp.Error](err); is && refusal.Code == amqp.NotFound {
				break // never declared, as nothing died
			}
			if err != nil {
				w.Fatalf("reading %s: %v", name, err)
			}
			if !ok {
				break
			}
			all = append(all, d.MessageId)
		}
	}
	slices.Sort(all)
	return all
}

// settle waits until the site is as if nothing had failed, stops what runs,
// and compares everything.
func (w *site) settle() (r result) {
	w.Helper()
	deadline := time.Now().Add(patience)
	var err error
	for err = w.quiet(); err != nil && time.Now().Before(deadline) && !w.Failed(); err = w.quiet() {
		time.Sleep(50 * time.Millisecond) // as Eventually does, which would end the test without telling the numbers
	}
	if err != nil {
		w.Errorf("not quiet within %v: %v", patience, err)
	}
	r.recovered = time.Since(w.mended)
	for _, p := range w.processes {
		select {
		case <-p.done:
		default:
			p.stop(w)
		}
	}
	w.takeRest()
	got, err := w.read()
	if err != nil {
		w.Errorf("reading the views: %v", err)
	}
	missing, extra := w.want.minus(got), got.minus(w.want)
	if len(missing)+len(extra) > 0 {
		w.Errorf("the views differ from those of a run without faults (- missing, + too many):\n%s", difference(missing, extra))
	}
	letters := w.letters()
	distinct := slices.Compact(slices.Clone(letters))
	for _, id := range w.trace.dead {
		if _, found := slices.BinarySearch(distinct, id); !found {
			missing = append(missing, "dead letter "+id)
			w.Errorf("dead letter %s is missing", id)
		}
	}
	for _, id := range distinct {
		if _, found := slices.BinarySearch(w.trace.dead, id); !found {
			extra = append(extra, "dead letter "+id)
			w.Errorf("message %s is in the dead-letter queue, and should have been applied", id)
		}
	}
	l, err := w.ledger()
	switch {
	case err != nil:
		w.Errorf("reading the ledger: %v", err)
	case !l.balanced || l.received != l.applied+l.duplicate+l.stale+l.dead:
		w.Errorf("the ledger does not balance: %+v", l)
	case l.applied+l.stale < w.trace.valid, l.dead < len(w.trace.dead):
		w.Errorf("the ledger knows of too few: %+v; of the trace %d messages are valid and %d are not", l, w.trace.valid, len(w.trace.dead))
	}
	r.published, r.ledger, r.lost, r.doubled = w.published, l, len(missing), len(extra)
	return r
}

// names puts the site's own names into a statement.
func (w *site) names(statement string) string {
	return strings.NewReplacer("SCHEMA_", w.schema, "ROLE_", w.role).Replace(statement)
}
