package consumer

import (
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
	"pgregory.net/rapid"
)

// TestIntakeStaysWithinBudget plays a broker that sends whatever it has been
// allowed to, and a gatherer and an applier of any speed: what is held stays
// below two budgets and one message, nothing waits for ever, and where
// messages are small the full prefetch is reached again.
func TestIntakeStaysWithinBudget(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		const budget, most = 1 << 20, 200
		in := newIntake(budget, most)
		sizes := rapid.SliceOfN(rapid.SampledFrom([]int{0, 100, 5_000, 100_000, 600_000, 3 << 20}), 1, 300).Draw(t, "sizes")
		for range 2000 {
			sizes = append(sizes, 100)
		}
		queue, largest := sizes, int64(0)
		var unacked []int // as the broker knows
		var gathered []amqp.Delivery
		credit, stopping, sessions := in.begin(), false, 1
		restart := func() {
			queue = append(append([]int(nil), unacked...), queue...)
			unacked, gathered = nil, nil
			in.end()
			credit, stopping = in.begin(), false
			if sessions++; sessions > 2000 {
				t.Fatal("the session is cut again and again")
			}
		}
		steps := 0
		for len(queue)+len(unacked) > 0 {
			if steps++; steps > 200_000 {
				t.Fatalf("no end: %d messages in the queue, %d unacknowledged, prefetch %d", len(queue), len(unacked), in.prefetch)
			}
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0, 1: // what is allowed comes, all at once
				cut := false
				for credit > 0 && len(queue) > 0 && !cut {
					d := amqp.Delivery{Body: make([]byte, queue[0])}
					largest = max(largest, weigh(&d))
					unacked, queue, credit = append(unacked, queue[0]), queue[1:], credit-1
					var stop bool
					stop, cut = in.take(d)
					if stop && stopping {
						t.Fatal("consuming is stopped twice")
					}
					stopping = stopping || stop
					if _, bytes, _, _ := in.held(); bytes > 2*budget+largest {
						t.Fatalf("%d bytes are held, want at most two budgets of %d and a message of %d", bytes, budget, largest)
					}
				}
				if cut {
					restart()
				}
			case 2:
				gathered = in.next(gathered, rapid.IntRange(1, 50).Draw(t, "messages"), 1<<19)
			case 3:
				var weight int64
				for i := range gathered {
					weight += weigh(&gathered[i])
				}
				if len(gathered) > 0 {
					stopping = in.settle(len(gathered), weight) || stopping
					unacked = unacked[len(gathered):]
					if !stopping {
						credit += len(gathered)
					}
					gathered = nil
				}
			}
			if stopping {
				if prefetch, ok := in.resume(); ok {
					stopping, credit = false, prefetch
				}
			}
		}
		if messages, bytes, prefetch, age := in.held(); messages != 0 || bytes != 0 || age != 0 || prefetch != most {
			t.Fatalf("at the end %d messages, %d bytes and an age of %v are held, and the prefetch is %d; want none, and %d", messages, bytes, age, prefetch, most)
		}
	})
}

func TestIntakeHandsOverInOrder(t *testing.T) {
	t.Parallel()
	in := newIntake(1<<30, 2000)
	in.begin()
	next, want := uint64(0), uint64(0)
	var got []amqp.Delivery
	for round := range 100 {
		for range 50 {
			next++
			in.take(amqp.Delivery{DeliveryTag: next})
		}
		got = in.next(got[:0], round, 1<<20)
		for _, d := range got {
			if want++; d.DeliveryTag != want {
				t.Fatalf("delivery %d came where %d was due", d.DeliveryTag, want)
			}
		}
	}
	if want != 99*100/2 {
		t.Errorf("%d deliveries were handed over, want %d", want, 99*100/2)
	}
	if cap(in.waiting) > 4*(int(next)) {
		t.Errorf("room for %d deliveries is kept for %d", cap(in.waiting), int(next-want))
	}
}

func TestIntakeEndsChunksByBytes(t *testing.T) {
	t.Parallel()
	in := newIntake(1<<30, 2000)
	in.begin()
	for range 3 {
		in.take(amqp.Delivery{Body: make([]byte, 1000)})
	}
	for _, want := range []int{2, 1, 0} {
		if got := in.next(nil, 10, 2500); len(got) != want {
			t.Errorf("%d messages of 1000 bytes were handed over where 2500 bytes had room, want %d", len(got), want)
		}
	}
	in.take(amqp.Delivery{Body: make([]byte, 1000)})
	if got := in.next(nil, 10, 1); len(got) != 1 {
		t.Errorf("%d messages were handed over, want one although it is larger than the room", len(got))
	}
}
