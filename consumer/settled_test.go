package consumer

import (
	"testing"
	"time"
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
