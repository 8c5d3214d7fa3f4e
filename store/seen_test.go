package store

import (
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"waymark/workflow"
)

// idAt is a version 7 id made at a time.
func idAt(t *rapid.T, made time.Time) uuid.UUID {
	id := earliestAt(made)
	for i := 6; i < 16; i++ {
		id[i] = rapid.Byte().Draw(t, "byte")
	}
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	return id
}

// Every id is in one cluster or apart; a cluster is sorted and short in time;
// what is packed is found again, and nothing else.
func TestClusters(t *testing.T) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		var ids []seenID
		for range rapid.IntRange(0, 60).Draw(t, "n") {
			id := uuid.UUID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "any"))
			if rapid.IntRange(0, 9).Draw(t, "other") > 0 {
				id = idAt(t, start.Add(time.Duration(rapid.IntRange(0, 30_000).Draw(t, "ms"))*time.Millisecond))
			}
			ids = append(ids, seenID{id, rapid.SampledFrom([]workflow.Outcome{workflow.Applied, workflow.Stale}).Draw(t, "outcome")})
		}
		runs, others := clusters(ids)
		n := len(others)
		for _, s := range others {
			if _, ok := timed(s.id); ok {
				t.Fatalf("%s of version 7 is in no cluster", s.id)
			}
		}
		for _, run := range runs {
			n += len(run)
			if !slices.IsSortedFunc(run, func(a, b seenID) int { return compareIDs(a.id, b.id) }) {
				t.Fatalf("cluster %v is not sorted", run)
			}
			first, _ := timed(run[0].id)
			last, _ := timed(run[len(run)-1].id)
			if last.Sub(first) > packSpan {
				t.Fatalf("cluster from %v to %v spans more than %v", first, last, packSpan)
			}
			if early := earliestAt(first); compareIDs(early, run[0].id) > 0 {
				t.Fatalf("earliestAt(%v) = %s is above %s", first, early, run[0].id)
			}
			packed := pack(run)
			for _, s := range run {
				if got, ok := unpack(packed, s.id); !ok || (got != s.outcome && countID(run, s.id) == 1) {
					t.Fatalf("unpack(%s) = %v, %v; want %v", s.id, got, ok, s.outcome)
				}
				strange := s.id
				strange[15] ^= 0xff
				if _, ok := unpack(packed, strange); ok && countID(run, strange) == 0 {
					t.Fatalf("unpack found %s, which was not packed", strange)
				}
			}
		}
		if n != len(ids) {
			t.Fatalf("%d ids went in, %d came out", len(ids), n)
		}
	})
}

func countID(run []seenID, id uuid.UUID) (n int) {
	for _, s := range run {
		if s.id == id {
			n++
		}
	}
	return n
}
