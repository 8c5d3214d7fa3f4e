package consumer_test

import (
	"bytes"
	"compress/zlib"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/consumer"
	"waymark/internal/broker"
	"waymark/internal/servicetest"
	"waymark/internal/wire"
	"waymark/schemas"
	"waymark/store"
	"waymark/workflow"
)

func TestMain(m *testing.M) { servicetest.Main(m) }

const patience = 30 * time.Second

// site is a queue and a schema of a test's own.
type site struct {
	t      *testing.T
	url    string
	queue  string
	db     *store.DB
	cfg    consumer.Config
	server servicetest.DB
}

func newSite(t *testing.T, change ...func(*store.Config)) *site {
	t.Helper()
	queue, _ := servicetest.Queues(t)
	s := &site{t: t, url: servicetest.AMQP(t), queue: queue, server: servicetest.Database(t)}
	s.db = s.open(change...)
	s.cfg = consumer.Config{URL: s.url, Queue: queue, Store: s.db}
	return s
}

func (s *site) open(change ...func(*store.Config)) *store.DB {
	s.t.Helper()
	cfg := store.Config{URL: s.server.URL, Schema: s.server.Schema}
	for _, c := range change {
		c(&cfg)
	}
	db, err := store.Open(s.t.Context(), cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { db.Close() })
	if _, err := db.Migrate(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	return db
}

// channel is a channel of a connection that the test owns.
func (s *site) channel() *amqp.Channel {
	s.t.Helper()
	conn, err := broker.Dial(s.t.Context(), broker.Config{URL: s.url})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	ch, err := conn.Channel()
	if err != nil {
		s.t.Fatal(err)
	}
	return ch
}

// declare makes the queues, so that messages can be published before a consumer runs.
func (s *site) declare() {
	s.t.Helper()
	conn, err := broker.Dial(s.t.Context(), broker.Config{URL: s.url})
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	topology := s.cfg.Topology
	if topology == "" {
		topology = broker.Durable
	}
	if err := broker.Declare(conn, topology.Status(s.queue), topology.DeadLetter(s.queue)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) publish(messages ...amqp.Publishing) {
	s.t.Helper()
	ch := s.channel()
	defer ch.Close()
	if err := ch.Confirm(false); err != nil {
		s.t.Fatal(err)
	}
	confirms := make([]*amqp.DeferredConfirmation, len(messages))
	for i, m := range messages {
		var err error
		if confirms[i], err = ch.PublishWithDeferredConfirm("", s.queue, true, false, m); err != nil {
			s.t.Fatal(err)
		}
	}
	for _, c := range confirms {
		if ok, err := c.WaitContext(s.t.Context()); err != nil || !ok {
			s.t.Fatalf("publishing: confirmed %v, %v", ok, err)
		}
	}
}

// start runs a consumer until the returned function stops it, or the test ends.
func (s *site) start(change ...func(*consumer.Config)) (c *consumer.Consumer, stop func()) {
	s.t.Helper()
	cfg := s.cfg
	for _, f := range change {
		f(&cfg)
	}
	c, err := consumer.New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				s.t.Errorf("Run = %v, want nil after a clean stop", err)
			}
		case <-time.After(patience):
			s.t.Error("Run did not end after its context")
		}
	})
	s.t.Cleanup(stop)
	return c, stop
}

func (s *site) ledger() workflow.LedgerEntry {
	s.t.Helper()
	entries, err := s.db.Ledger(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	if len(entries) == 0 {
		return workflow.LedgerEntry{}
	}
	if l := entries[0]; l.Received != l.Applied+l.Duplicate+l.Stale+l.Dead {
		s.t.Fatalf("the ledger does not balance: %+v", l)
	}
	return entries[0]
}

// wait waits until the ledger says that n messages are dealt with.
func (s *site) wait(n int64) workflow.LedgerEntry {
	s.t.Helper()
	var l workflow.LedgerEntry
	servicetest.Eventually(s.t, patience, fmt.Sprintf("%d messages are dealt with", n), func() error {
		if l = s.ledger(); l.Received < n {
			return fmt.Errorf("%d received: %+v", l.Received, l)
		}
		return nil
	})
	return l
}

// depth waits until the queue holds n messages that nobody has taken.
func (s *site) depth(queue string, n int) {
	s.t.Helper()
	ch := s.channel()
	servicetest.Eventually(s.t, patience, fmt.Sprintf("%s holds %d messages", queue, n), func() error {
		q, err := ch.QueueDeclarePassive(queue, false, false, false, false, nil)
		if err == nil && q.Messages != n {
			err = fmt.Errorf("it holds %d", q.Messages)
		}
		return err
	})
}

func message(id string, m *workflow.StatusMessage) amqp.Publishing {
	body, err := wire.EncodeStatus(m)
	if err != nil {
		panic(err)
	}
	return amqp.Publishing{MessageId: id, Body: body, ContentType: "application/json", DeliveryMode: amqp.Persistent}
}

func running(id uuid.UUID, jobs ...string) *workflow.StatusMessage {
	return &workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, Progress: workflow.Progress{Running: workflow.JobIDs(jobs...)}}
}

// conversation is what engines say of some runs, all in one queue.
func conversation(runs, jobs int) (ids []uuid.UUID, all []amqp.Publishing) {
	for range runs {
		ids = append(ids, uuid.New())
	}
	base := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	say := func(step int, m *workflow.StatusMessage) {
		m.EventTime = base.Add(time.Duration(step) * time.Second)
		all = append(all, message(uuid.NewString(), m))
	}
	for j := range jobs {
		for _, id := range ids {
			m := running(id, fmt.Sprint("job", j))
			m.Progress.Total = workflow.Count(jobs)
			m.Logs = fmt.Sprint("line ", j)
			say(2*j, m)
			say(2*j+1, &workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, Progress: workflow.Progress{Finished: workflow.JobIDs(fmt.Sprint("job", j))}})
		}
	}
	for _, id := range ids {
		say(2*jobs, &workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusFinished, Logs: "end"})
	}
	return ids, all
}

func (s *site) wantFinished(ids []uuid.UUID, jobs int) {
	s.t.Helper()
	for _, id := range ids {
		w, err := s.db.Workflow(s.t.Context(), id)
		if err != nil {
			s.t.Fatal(err)
		}
		want := workflow.Counts{Total: jobs, Finished: jobs}
		if w.Status != workflow.StatusFinished || w.Counts != want {
			s.t.Errorf("workflow %s: %v with %+v, want finished with %+v", id, w.Status, w.Counts, want)
		}
		logs, err := s.db.Logs(s.t.Context(), id, workflow.LogFilter{})
		if err != nil {
			s.t.Fatal(err)
		}
		if len(logs.Items) != jobs+1 {
			s.t.Errorf("workflow %s: %d log chunks, want %d", id, len(logs.Items), jobs+1)
		}
	}
}

func TestConsume(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	registry := prometheus.NewRegistry()
	s.cfg.Registerer = registry
	s.declare()
	ids, all := conversation(20, 10)
	s.publish(all...)
	c, stop := s.start()
	l := s.wait(int64(len(all)))
	if l.Applied != int64(len(all)) {
		t.Errorf("ledger %+v, want all %d applied", l, len(all))
	}
	s.wantFinished(ids, 10)
	if h := c.Health(); h.Broker != nil || h.Store != nil {
		t.Errorf("health %+v, want none of both amiss", h)
	}
	s.publish(all[:50]...)
	if l = s.wait(int64(len(all) + 50)); l.Duplicate != 50 {
		t.Errorf("ledger %+v after 50 messages again, want 50 duplicates", l)
	}
	stop()
	s.depth(s.queue, 0)
	want := fmt.Sprintf(`
# HELP waymark_deliveries_total Deliveries dealt with, by outcome: applied, duplicate, stale, dead.
# TYPE waymark_deliveries_total counter
waymark_deliveries_total{outcome="applied",queue=%[1]q} %[2]d
waymark_deliveries_total{outcome="dead",queue=%[1]q} 0
waymark_deliveries_total{outcome="duplicate",queue=%[1]q} 50
waymark_deliveries_total{outcome="stale",queue=%[1]q} 0
`, s.queue, len(all))
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "waymark_deliveries_total"); err != nil {
		t.Error(err)
	}
}

func TestReplicas(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.cfg.BatchSize, s.cfg.Prefetch = 20, 50
	s.declare()
	for range 3 {
		s.start(func(c *consumer.Config) { c.Store = s.open() })
	}
	ids, all := conversation(10, 30)
	s.publish(all...)
	if l := s.wait(int64(len(all))); l.Applied != int64(len(all)) {
		t.Errorf("ledger %+v, want all %d applied", l, len(all))
	}
	s.wantFinished(ids, 30)
}

func TestPoison(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.declare()
	id := uuid.New()
	good := message(uuid.NewString(), running(id, "a"))
	deep := strings.Repeat(`{"a":`, 100_000)
	bad := []struct {
		body            string
		reason, pointer string
	}{
		{"this is not json", "not-json", ""},
		{"", "not-json", ""},
		{"\xff\xfe", "not-json", ""},
		{`{"workflow_uuid": "roofit.3", "status": 3}`, "schema", "/workflow_uuid"},
		{fmt.Sprintf(`{"workflow_uuid": %q}`, id), "schema", "/status"},
		{fmt.Sprintf(`{"workflow_uuid": %q, "status": 1, "message": {"progress": {"running": {"total": "3"}}}}`, id), "schema", "/message/progress/running/total"},
		{deep, "too-deep", ""},
	}
	var all []amqp.Publishing
	for _, b := range bad {
		all = append(all, good, amqp.Publishing{Body: []byte(b.body), ContentType: "text/odd", Headers: amqp.Table{"kept": "yes"}, Priority: 3})
	}
	s.publish(all...)
	s.start()
	l := s.wait(int64(len(all)))
	if l.Dead != int64(len(bad)) || l.Applied != 1 {
		t.Errorf("ledger %+v, want %d dead and 1 applied", l, len(bad))
	}
	s.depth(broker.DeadLetter(s.queue), len(bad))
	ch := s.channel()
	for i, b := range bad {
		d, ok, err := ch.Get(broker.DeadLetter(s.queue), true)
		if err != nil || !ok {
			t.Fatalf("dead letter %d: %v, %v", i, ok, err)
		}
		got := []any{string(d.Body), d.Headers[consumer.HeaderReason], d.Headers[consumer.HeaderPointer], d.Headers[consumer.HeaderQueue], d.Headers[consumer.HeaderCount], d.Headers["kept"], d.ContentType, d.Priority, d.DeliveryMode}
		want := []any{b.body, b.reason, b.pointer, s.queue, int64(1), "yes", "text/odd", uint8(3), uint8(amqp.Persistent)}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("dead letter of %.60q (-want, +got):\n%s", b.body, diff)
		}
		if d.MessageId == "" || d.Headers[consumer.HeaderError] == "" {
			t.Errorf("dead letter of %.60q: id %q, error %q; want both", b.body, d.MessageId, d.Headers[consumer.HeaderError])
		}
		if first, err := time.Parse(time.RFC3339Nano, fmt.Sprint(d.Headers[consumer.HeaderFirstSeen])); err != nil || time.Since(first) > time.Hour {
			t.Errorf("dead letter of %.60q: first seen %v, %v", b.body, first, err)
		}
	}
}

// TestHeadersFillTheFrame makes dead letters of messages whose headers leave no
// room for the reason. They must neither end the session nor hold up others.
func TestHeadersFillTheFrame(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.declare()
	full := strings.Repeat("h", 130_900) // of the 131072 bytes of RabbitMQ's frames
	many := amqp.Table{"compression": "application/x-gzip"}
	for i := range 500 {
		many[fmt.Sprintf("%03d", i)] = amqp.Table{"in": []any{strings.Repeat("h", 230)}}
	}
	for _, headers := range []amqp.Table{{"small": "kept", "large": full}, {consumer.HeaderFirstSeen: full}, many} {
		s.publish(amqp.Publishing{Body: []byte("not json"), MessageId: uuid.NewString(), Headers: headers})
	}
	s.publish(message(uuid.NewString(), running(uuid.New(), "a")))
	s.start()
	if l := s.wait(4); l.Dead != 3 || l.Applied != 1 {
		t.Errorf("ledger %+v, want 3 dead and 1 applied", l)
	}
	ch := s.channel()
	var got []amqp.Table
	for range 3 {
		d, ok, err := ch.Get(broker.DeadLetter(s.queue), true)
		if err != nil || !ok {
			t.Fatalf("dead letter %d: %v, %v", len(got), ok, err)
		}
		got = append(got, d.Headers)
		if _, err := time.Parse(time.RFC3339Nano, fmt.Sprint(d.Headers[consumer.HeaderFirstSeen])); err != nil || d.Headers[consumer.HeaderReason] != "not-json" {
			t.Errorf("dead letter: reason %v, first seen: %v; want not-json and a time", d.Headers[consumer.HeaderReason], err)
		}
	}
	if problem := fmt.Sprint(got[0][consumer.HeaderError]); got[0]["small"] != "kept" || got[0]["large"] != nil || !strings.Contains(problem, "1 of its headers") {
		t.Errorf("of a small and a large header the letter has small = %v and error %q; want it kept, and told that the other was not", got[0]["small"], problem)
	}
	if len(got[2]) < 200 || got[2]["compression"] == nil {
		t.Errorf("of 501 headers the letter has %d, compression = %v; want as many as a replay can carry, the small ones first", len(got[2]), got[2]["compression"])
	}
}

// refuser is the real store, but that some workflow's data is refused and that
// it can be told to fail.
type refuser struct {
	consumer.Store
	poison uuid.UUID
	down   atomic.Pointer[error]
	tries  atomic.Int64
}

func (r *refuser) Apply(ctx context.Context, b *workflow.Batch) ([]workflow.Outcome, error) {
	r.tries.Add(1)
	if err := r.down.Load(); err != nil {
		return nil, *err
	}
	for i := range b.Deliveries {
		if b.Deliveries[i].WorkflowID() == r.poison {
			return nil, fmt.Errorf("value out of range: %w", workflow.ErrRejected)
		}
	}
	return r.Store.Apply(ctx, b)
}

func TestOnePoisonMessageCostsOnlyItself(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	poison := uuid.New()
	s.cfg.Store = &refuser{Store: s.db, poison: poison}
	s.declare()
	ids, all := conversation(5, 20)
	for _, i := range []int{0, 77, len(all)} {
		all = slices.Insert(all, i, message(uuid.NewString(), running(poison, "a")))
	}
	s.publish(all...)
	s.start()
	if l := s.wait(int64(len(all))); l.Dead != 3 || l.Applied != int64(len(all)-3) {
		t.Errorf("ledger %+v, want 3 dead and %d applied", l, len(all)-3)
	}
	s.wantFinished(ids, 20)
	s.depth(broker.DeadLetter(s.queue), 3)
	d, _, err := s.channel().Get(broker.DeadLetter(s.queue), false)
	if err != nil || d.Headers[consumer.HeaderReason] != consumer.ReasonRejected {
		t.Errorf("dead letter with headers %v, %v; want reason %q", d.Headers, err, consumer.ReasonRejected)
	}
}

func TestUnknownWorkflowsAreDeadLettered(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(c *store.Config) { c.UnknownWorkflows = store.DeadLetterUnknown })
	s.declare()
	known, unknown := uuid.New(), uuid.New()
	_, err := s.db.Apply(t.Context(), &workflow.Batch{Queue: "elsewhere", Number: 1, Deliveries: []workflow.Delivery{
		{Submission: &workflow.Submission{User: "ada", Workflow: known.String(), EventTime: time.Now()}}}})
	if err != nil {
		t.Fatal(err)
	}
	s.publish(message("1", running(known, "a")), message("2", running(unknown, "a")), message("3", running(known, "b")))
	s.start()
	s.depth(broker.DeadLetter(s.queue), 1)
	servicetest.Eventually(t, patience, "the known workflow has both jobs", func() error {
		w, err := s.db.Workflow(t.Context(), known)
		if err == nil && w.Counts.Running != 2 {
			err = fmt.Errorf("counts %+v", w.Counts)
		}
		return err
	})
	d, _, err := s.channel().Get(broker.DeadLetter(s.queue), false)
	if err != nil || d.Headers[consumer.HeaderReason] != consumer.ReasonUnknownWorkflow || d.MessageId != "2" {
		t.Errorf("dead letter %q with headers %v, %v; want message 2 for reason %q", d.MessageId, d.Headers, err, consumer.ReasonUnknownWorkflow)
	}
}

func TestPausesWhileTheStoreIsAway(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	r := &refuser{Store: s.db}
	away := errors.New("connection refused")
	r.down.Store(&away)
	s.cfg.Store = r
	s.cfg.BatchSize, s.cfg.Prefetch = 10, 25
	s.declare()
	ids, all := conversation(3, 20)
	s.publish(all...)
	c, _ := s.start()
	servicetest.Eventually(t, patience, "the consumer has tried more than once", func() error {
		if n := r.tries.Load(); n < 3 {
			return fmt.Errorf("%d tries", n)
		}
		return nil
	})
	if h := c.Health(); h.Broker != nil || h.Store == nil {
		t.Errorf("health %+v, want the store amiss and the broker well", h)
	}
	// All but a prefetch waits in the broker, and nothing was acknowledged.
	s.depth(s.queue, len(all)-25)
	r.down.Store(nil)
	if l := s.wait(int64(len(all))); l.Applied != int64(len(all)) {
		t.Errorf("ledger %+v, want all %d applied", l, len(all))
	}
	s.wantFinished(ids, 20)
	s.depth(s.queue, 0)
}

// While the database is away nothing is dead-lettered: the sessions of an
// outage would each leave the same letters.
func TestPoisonWaitsForTheStore(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	r := &refuser{Store: s.db}
	away := errors.New("connection refused")
	r.down.Store(&away)
	s.cfg.Store = r
	s.declare()
	s.publish(amqp.Publishing{Body: []byte("poison")})
	for range 3 {
		before := r.tries.Load()
		_, stop := s.start(func(c *consumer.Config) { c.DrainTimeout = time.Millisecond })
		servicetest.Eventually(t, patience, "the store was tried", func() error {
			if r.tries.Load() == before {
				return errors.New("not yet")
			}
			return nil
		})
		stop()
	}
	s.depth(broker.DeadLetter(s.queue), 0)
	r.down.Store(nil)
	s.start()
	if l := s.wait(1); l.Dead != 1 {
		t.Errorf("ledger %+v, want 1 dead", l)
	}
	s.depth(broker.DeadLetter(s.queue), 1)
}

// Every connection of the broker is cut again and again under load.
func TestSessionsAreCut(t *testing.T) {
	t.Parallel()
	rabbit := servicetest.RabbitMQ(t)
	s := newSite(t)
	s.url, s.cfg.URL = rabbit.URL(), rabbit.URL()
	s.cfg.BatchSize, s.cfg.Prefetch = 50, 100
	s.declare()
	ids, all := conversation(10, 40)
	s.publish(all...)
	s.start()
	s.start(func(c *consumer.Config) { c.Store = s.open() })
	for cut := int64(1); cut <= 4; cut++ {
		s.wait(cut * int64(len(all)) / 6)
		if out, err := rabbit.Ctl(t.Context(), "close_all_connections", "test"); err != nil {
			t.Fatalf("closing the connections: %v\n%s", err, out)
		}
	}
	servicetest.Eventually(t, patience, "every message is dealt with", func() error {
		if l := s.ledger(); l.Received-l.Duplicate < int64(len(all)) {
			return fmt.Errorf("ledger %+v", l)
		}
		return nil
	})
	if l := s.ledger(); l.Applied != int64(len(all)) || l.Dead != 0 || l.Stale != 0 {
		t.Errorf("ledger %+v, want %d applied, none dead or stale", l, len(all))
	}
	s.wantFinished(ids, 40)
}

func TestDrains(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	gate := make(chan struct{})
	entered := make(chan struct{}, 100)
	s.cfg.Store = storeFunc(func(ctx context.Context, b *workflow.Batch) ([]workflow.Outcome, error) {
		entered <- struct{}{}
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		return s.db.Apply(ctx, b)
	})
	s.cfg.BatchSize, s.cfg.Prefetch = 10, 40
	s.declare()
	_, all := conversation(1, 30)
	s.publish(all...)
	_, stop := s.start()
	<-entered // a transaction is under way
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	close(gate)
	<-stopped
	l := s.ledger()
	if l.Received < 1 || l.Received == int64(len(all)) {
		t.Fatalf("ledger %+v, want what was gathered before the stop, and not all %d", l, len(all))
	}
	s.depth(s.queue, len(all)-int(l.Received))
	// What had been fetched ahead and not applied is no duplicate when it comes again.
	s.cfg.Store = s.db
	s.start()
	if l = s.wait(int64(len(all))); l.Applied != int64(len(all)) {
		t.Errorf("ledger %+v, want all %d applied", l, len(all))
	}
}

type storeFunc func(context.Context, *workflow.Batch) ([]workflow.Outcome, error)

func (f storeFunc) Apply(ctx context.Context, b *workflow.Batch) ([]workflow.Outcome, error) {
	return f(ctx, b)
}

// REANA's queue, REANA's bytes, no message ids.
func TestReanaTopology(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.cfg.Topology = broker.Reana
	s.declare()
	// An unmodified engine declares like this, and would be refused otherwise.
	if _, err := s.channel().QueueDeclare(s.queue, false, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	id := uuid.New()
	body := func(text string) []byte {
		return wire.Reana(fmt.Appendf(nil, `{"workflow_uuid": %q, %s}`, id, text))
	}
	plain := body(`"logs": "[workflow ] start", "status": 1, "message": null`)
	var squeezed bytes.Buffer
	z := zlib.NewWriter(&squeezed)
	if _, err := io.Copy(z, bytes.NewReader(body(`"logs": null, "status": 1, "message": {"progress": {"total": {"total": -1, "job_ids": []}, "running": {"total": 2, "job_ids": ["a", null]}}}`))); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	s.publish(
		amqp.Publishing{Body: plain}, amqp.Publishing{Body: plain, ContentType: "application/json"},
		amqp.Publishing{Body: squeezed.Bytes(), Headers: amqp.Table{"compression": "application/x-gzip"}},
		amqp.Publishing{Body: body(`"logs": "Final process status is success", "status": 2, "message": {"progress": {"finished": {"total": 1, "job_ids": ["a"]}}}`)},
	)
	s.start()
	if l := s.wait(4); l.Applied != 4 {
		t.Errorf("ledger %+v, want 4 applied", l)
	}
	w, err := s.db.Workflow(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if want := (workflow.Counts{Total: 1, Finished: 1}); w.Status != workflow.StatusFinished || w.Counts != want {
		t.Errorf("%v with %+v, want finished with %+v", w.Status, w.Counts, want)
	}
	logs, err := s.db.Logs(t.Context(), id, workflow.LogFilter{})
	if err != nil {
		t.Fatal(err)
	}
	if len(logs.Items) != 3 {
		t.Errorf("logs %+v, want both equal lines and the last", logs.Items)
	}
}

func TestSubmissions(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	_, submissions := servicetest.Queues(t)
	s.queue, s.cfg.Queue, s.cfg.Kind = submissions, submissions, schemas.SubmissionKind
	s.start()
	ch := s.channel()
	servicetest.Eventually(t, patience, "the queue is declared", func() error {
		ch := s.channel()
		_, err := ch.QueueDeclarePassive(submissions, true, false, false, false, nil)
		return err
	})
	if _, err := ch.QueueDeclare(submissions, true, false, false, false, amqp.Table{"x-max-priority": int32(100)}); err != nil {
		t.Fatalf("declaring the queue as REANA does: %v", err)
	}
	id := uuid.New()
	body, err := json.Marshal(map[string]any{"user": "ada", "workflow_id_or_name": id, "parameters": map[string]any{"input_parameters": map[string]any{"n": 1}}, "priority": 87, "min_job_memory": 1073741824.0, "retry_count": 3})
	if err != nil {
		t.Fatal(err)
	}
	s.publish(amqp.Publishing{Body: wire.Reana(body)})
	s.wait(1)
	w, err := s.db.Workflow(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if w.Status != workflow.StatusQueued || w.Owner != "ada" || w.Priority != 87 || w.MinJobMemory != 1<<30 || w.RetryCount != 3 {
		t.Errorf("%+v, want ada's workflow queued with priority 87, 1 GiB, 3 retries", w)
	}
}

func TestNewRefuses(t *testing.T) {
	good := consumer.Config{URL: "amqp://guest:guest@localhost/", Queue: "q", Store: storeFunc(nil)}
	if _, err := consumer.New(good); err != nil {
		t.Fatalf("New = %v for a good configuration", err)
	}
	for name, change := range map[string]func(*consumer.Config){
		"no queue":                  func(c *consumer.Config) { c.Queue = "" },
		"no store":                  func(c *consumer.Config) { c.Store = nil },
		"URL of a web page":         func(c *consumer.Config) { c.URL = "http://localhost" },
		"unknown topology":          func(c *consumer.Config) { c.Topology = "mesh" },
		"prefetch below batch size": func(c *consumer.Config) { c.Prefetch = 10 },
		"prefetch beyond AMQP":      func(c *consumer.Config) { c.Prefetch = 100_000 },
		"negative batch":            func(c *consumer.Config) { c.BatchSize = -1 },
	} {
		cfg := good
		change(&cfg)
		if _, err := consumer.New(cfg); err == nil {
			t.Errorf("%s: New accepted it", name)
		}
	}
}

// Under a memory alarm RabbitMQ stops reading from connections that publish.
// Dead letters wait; what was applied is acknowledged all the same, and nothing
// comes twice once the alarm is over.
func TestAlarm(t *testing.T) {
	t.Parallel()
	rabbit := servicetest.RabbitMQ(t)
	s := newSite(t)
	s.url, s.cfg.URL = rabbit.URL(), rabbit.URL()
	s.declare()
	good := message(uuid.NewString(), running(uuid.New(), "a"))
	s.publish(good, amqp.Publishing{Body: []byte("poison")}, amqp.Publishing{Body: []byte("poison too")})
	alarm := func(watermark string) {
		t.Helper()
		if out, err := rabbit.Ctl(t.Context(), "set_vm_memory_high_watermark", watermark); err != nil {
			t.Fatalf("setting the watermark: %v\n%s", err, out)
		}
	}
	alarm("0.0000001")
	c, _ := s.start()
	servicetest.Eventually(t, patience, "the good message is applied", func() error {
		if l := s.ledger(); l.Applied != 1 {
			return fmt.Errorf("ledger %+v", l)
		}
		return nil
	})
	if h := c.Health(); h.Broker != nil {
		t.Errorf("health %+v: the session ended because of an alarm", h)
	}
	alarm("0.9")
	if l := s.wait(3); l.Dead != 2 || l.Duplicate != 0 {
		t.Errorf("ledger %+v after the alarm, want 2 dead and no duplicates", l)
	}
	s.depth(broker.DeadLetter(s.queue), 2)
}
