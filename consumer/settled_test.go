package consumer

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/servicetest"
	"waymark/store"
)

func TestSettled(t *testing.T) {
	begun := time.Now()
	at := func(d time.Duration) time.Time { return begun.Add(d) }
	var s settled
	check := func(what string, now time.Duration, want int64, unheard bool) {
		t.Helper()
		if got := s.last(at(now)); got != want {
			t.Errorf("%s: batch %d is settled, want %d", what, got, want)
		}
		if got := s.unheard(); got != unheard {
			t.Errorf("%s: acks that nobody is known to have heard: %v, want %v", what, got, unheard)
		}
	}
	check("at first", 0, 0, false)
	s.ack(1)
	check("acked long ago, and nothing heard", time.Hour, 0, true)
	asked := s.asking()
	s.ack(2)
	s.answered(asked, at(time.Hour))
	check("heard just now", time.Hour, 0, true)
	check("heard a while ago", time.Hour+brokerForgets, 1, true)

	begun = begun.Add(2 * time.Hour)
	s.answered(s.asking(), at(0))
	check("the second heard", 0, 1, false)
	s.answered(s.asking(), at(time.Second))
	check("heard again, which makes it no younger", brokerForgets, 2, false)
	s.answered(s.asking(), at(time.Minute))
	if len(s.heard) != 0 {
		t.Errorf("what is settled already is kept as heard again: %v", s.heard)
	}
}

// TestSettledKeepsLittle: a busy session asks with every batch.
func TestSettledKeepsLittle(t *testing.T) {
	begun := time.Now()
	var s settled
	const batches, kept = 20_000, int(brokerForgets/hearingEvery) + 1
	for n := int64(1); n <= batches; n++ {
		now := begun.Add(time.Duration(n) * time.Millisecond)
		s.ack(n)
		s.answered(s.asking(), now)
		behind := n - s.last(now)
		if most := (brokerForgets + 2*hearingEvery).Milliseconds(); behind > most || len(s.heard) > kept {
			t.Fatalf("at batch %d, one each millisecond, what is settled lies %d behind, want at most %d; %d hearings are kept, want at most %d",
				n, behind, most, len(s.heard), kept)
		}
	}
}

// TestSettledWhileIdle: nothing but the batch itself is in the queue, and its
// messages have ids, so that nobody asks the broker on its account. What is
// acknowledged is settled all the same, once the broker was asked in passing.
func TestSettledWhileIdle(t *testing.T) {
	t.Parallel()
	queue, _ := servicetest.Queues(t)
	d := servicetest.Database(t)
	db, err := store.Open(t.Context(), store.Config{URL: d.URL, Schema: d.Schema})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	c, err := New(Config{URL: servicetest.AMQP(t), Queue: queue, Store: db})
	if err != nil {
		t.Fatal(err)
	}
	s, deliveries, err := c.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.background.Wait()
	defer s.farewell()

	body := fmt.Appendf(nil, `{"workflow_uuid": %q, "status": 1}`, uuid.New())
	if err := s.ch.Publish("", queue, true, false, amqp.Publishing{MessageId: uuid.NewString(), Body: body}); err != nil {
		t.Fatal(err)
	}
	var b batch
	select {
	case delivery := <-deliveries:
		c.decode(&b, []amqp.Delivery{delivery})
	case <-time.After(30 * time.Second):
		t.Fatal("the message does not come within 30 s")
	}
	if err := c.process(t.Context(), s, &b); err != nil {
		t.Fatal(err)
	}
	if last := s.settled.last(time.Now()); last != 0 || !s.settled.unheard() {
		t.Errorf("batch %d is settled as soon as it is acknowledged, though nobody has asked the broker", last)
	}
	s.background.Go(func() { c.watchDepth(s) })
	servicetest.Eventually(t, 30*time.Second, "the batch is settled", func() error {
		if last := s.settled.last(time.Now()); last != c.number {
			return fmt.Errorf("batch %d is, and %d was acknowledged; not yet heard: %v", last, c.number, s.settled.unheard())
		}
		return nil
	})
}
