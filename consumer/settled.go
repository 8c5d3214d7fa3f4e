package consumer

import (
	"sync"
	"time"
)

// settled knows which batches of a session will surely not be delivered again. An
// ack has no answer: it was heard if what was asked after it, on the same channel,
// is answered. And a broker that is killed may forget what it has heard shortly
// before. The zero value knows of none.
type settled struct {
	mu    sync.Mutex
	acked int64
	heard []hearing // oldest first
	sure  int64
}

// hearing says that the broker had the acks of all batches up to a number by then.
type hearing struct {
	batch int64
	at    time.Time
}

const (
	// brokerForgets is how long a broker that is killed may not yet have on disk
	// what it has heard.
	brokerForgets = 2 * time.Second
	// hearingEvery is the least time between two hearings that are kept.
	hearingEvery = brokerForgets / 20
)

// ack notes that a batch was acknowledged.
func (s *settled) ack(batch int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acked = batch
}

// asking returns what an answer to a question that is put now will settle.
func (s *settled) asking() (batch int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.acked
}

// answered notes the answer to a question that was put when asking returned batch.
func (s *settled) answered(batch int64, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.heard); n > 0 {
		if last := s.heard[n-1]; batch <= last.batch || now.Sub(last.at) < hearingEvery {
			return // the next answer will say so, too
		}
	} else if batch <= s.sure {
		return
	}
	s.heard = append(s.heard, hearing{batch, now})
}

// last returns the number of the last batch that is settled, 0 for none.
func (s *settled) last(now time.Time) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.heard) > 0 && now.Sub(s.heard[0].at) >= brokerForgets {
		s.sure = s.heard[0].batch
		s.heard = s.heard[1:]
	}
	return s.sure
}

// unheard reports whether there are acks of which nothing is known.
func (s *settled) unheard() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.heard); n > 0 {
		return s.acked > s.heard[n-1].batch
	}
	return s.acked > s.sure
}
