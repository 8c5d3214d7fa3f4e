package consumer_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/consumer"
	"waymark/internal/broker"
	"waymark/internal/servicetest"
	"waymark/workflow"
)

// nested is a header so many levels deep.
func nested(levels int) amqp.Table {
	headers := amqp.Table{}
	for range levels {
		headers = amqp.Table{"in": headers}
	}
	return headers
}

// TestUnreadableHeaders: the library ends the session at such a message, and the
// broker would send it again with each. What is good is applied, what is not is
// dead, without the headers that cannot be read.
func TestUnreadableHeaders(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.declare()
	array := make([]any, 9000)
	good, bad := message(uuid.NewString(), running(uuid.New(), "a")), amqp.Publishing{Body: []byte("{}")}
	good.Headers, bad.Headers = nested(40), nested(40)
	deepest, deeper := bad, bad
	// The innermost table is the 32nd below the headers, and the 33rd.
	deepest.Headers = amqp.Table{"deepest": nested(31), "kept": "yes"}
	deeper.Headers = amqp.Table{"deeper": nested(32), "long": array, "kept": "yes"}
	after := message(uuid.NewString(), running(uuid.New(), "a"))
	s.publish(good, bad, deepest, deeper, after)
	s.start()
	if l := s.wait(5); l.Dead != 3 || l.Applied != 2 {
		t.Errorf("ledger %+v, want 3 dead and 2 applied", l)
	}
	ch := s.channel()
	var got []string
	for range 3 {
		d, ok, err := ch.Get(broker.DeadLetter(s.queue), true)
		if err != nil || !ok {
			t.Fatalf("dead letter %d: %v, %v", len(got), ok, err)
		}
		got = append(got, fmt.Sprintf("deepest %t, deeper %t, long %t, kept %v, dropped %v",
			d.Headers["deepest"] != nil, d.Headers["deeper"] != nil, d.Headers["long"] != nil, d.Headers["kept"], d.Headers[broker.HeaderDropped]))
	}
	want := []string{
		"deepest false, deeper false, long false, kept <nil>, dropped 1",
		"deepest true, deeper false, long false, kept yes, dropped <nil>",
		"deepest false, deeper false, long false, kept yes, dropped 2",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("headers of the letters (-want, +got):\n%s", diff)
	}
}

// TestPoisonDoesNotStarve: thousands of bad messages in a row keep nothing from
// the good ones behind them, and one bad one in a batch costs only itself.
func TestPoisonDoesNotStarve(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.declare()
	const poison, mixed = 3000, 500
	var all []amqp.Publishing
	wanted := make(map[string]bool)
	bad := func(i int) amqp.Publishing {
		bodies := []string{"not json %d", `{"status": %d}`, `{"workflow_uuid": "2fb6b2f0-7c94-4ddc-9a5d-5d2b8b6e1f6c", "status": "%d"`, `"%d"`}
		id := uuid.NewString()
		wanted[id] = true
		return amqp.Publishing{MessageId: id, Body: fmt.Appendf(nil, bodies[i%len(bodies)], i), DeliveryMode: amqp.Persistent}
	}
	for i := range poison {
		all = append(all, bad(i))
	}
	ids, good := conversation(5, 9) // 95 messages
	all = append(all, good...)
	// A batch of 500, and one in the middle of it.
	moreIDs, more := conversation(25, 9)
	all = append(all, more[:len(more)/2]...)
	all = append(all, bad(1))
	all = append(all, more[len(more)/2:]...)
	if len(more) < mixed-100 {
		t.Fatalf("the mixed batch has %d messages, want about %d", len(more), mixed)
	}
	s.publish(all...)
	s.start(func(c *consumer.Config) { c.BatchSize = mixed })
	l := s.wait(int64(len(all)))
	want := workflow.LedgerEntry{Queue: s.queue, Received: int64(len(all)), Applied: int64(len(good) + len(more)), Dead: poison + 1}
	if diff := cmp.Diff(want, l); diff != "" {
		t.Errorf("ledger (-want, +got):\n%s", diff)
	}
	s.wantFinished(ids, 9)
	s.wantFinished(moreIDs, 9)
	s.depth(broker.DeadLetter(s.queue), poison+1)
	s.depth(s.queue, 0)
	ch := s.channel()
	for {
		d, ok, err := ch.Get(broker.DeadLetter(s.queue), true)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		if !wanted[d.MessageId] {
			t.Errorf("letter %s is no bad message, or there twice", d.MessageId)
		}
		delete(wanted, d.MessageId)
	}
	if len(wanted) > 0 {
		t.Errorf("%d bad messages are not among the dead letters", len(wanted))
	}
}

// TestReplayNotice: whoever replayed a message hears of its death, if they asked
// to be told by a queue that the broker named, and by no other.
func TestReplayNotice(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.declare()
	ch := s.channel()
	mine, err := ch.QueueDeclare("", false, true, true, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, other := servicetest.Queues(t)
	if _, err := ch.QueueDeclare(other, true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	var all []amqp.Publishing
	for _, to := range []any{mine.Name, other, "amq.gen-nobody", 7, nil} {
		all = append(all, amqp.Publishing{MessageId: fmt.Sprint(to), Body: []byte(`{"status": 1}`), Headers: amqp.Table{consumer.HeaderReplay: to, consumer.HeaderCount: int64(3)}})
	}
	s.publish(all...)
	s.start()
	s.wait(int64(len(all)))
	s.depth(broker.DeadLetter(s.queue), len(all))
	s.depth(other, 0)
	notice, ok, err := ch.Get(mine.Name, true)
	if err != nil || !ok {
		t.Fatalf("no notice: %v", err)
	}
	want := amqp.Table{consumer.HeaderReason: "schema", consumer.HeaderPointer: "/workflow_uuid"}
	got := amqp.Table{consumer.HeaderReason: notice.Headers[consumer.HeaderReason], consumer.HeaderPointer: notice.Headers[consumer.HeaderPointer]}
	if diff := cmp.Diff(want, got); diff != "" || notice.MessageId != mine.Name || notice.Headers[consumer.HeaderError] == "" {
		t.Errorf("notice of %q (-want, +got):\n%s\nwith error %q", notice.MessageId, diff, notice.Headers[consumer.HeaderError])
	}
	for range all {
		d, ok, err := ch.Get(broker.DeadLetter(s.queue), true)
		if err != nil || !ok {
			t.Fatalf("dead letter: %v, %v", ok, err)
		}
		if _, kept := d.Headers[consumer.HeaderReplay]; kept || d.Headers[consumer.HeaderCount] != int64(4) {
			t.Errorf("letter %s: replay header %v, died %v times; want none, and 4", d.MessageId, d.Headers[consumer.HeaderReplay], d.Headers[consumer.HeaderCount])
		}
	}
}
