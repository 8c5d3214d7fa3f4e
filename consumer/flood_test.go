package consumer_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/servicetest"
	"waymark/workflow"
)

// Log lines by the hundred thousand of one run, in pieces as an adapter makes of
// them, leave what others see of their runs about as fresh as it was: nothing
// waits but for the few pieces that are on their way.
func TestFloodOfLogsLeavesTheOthersAsTheyWere(t *testing.T) {
	t.Parallel()
	const lines, piece, ahead, others = 200_000, 5_000, 4, 300
	s := newSite(t)
	loud := uuid.New()
	room := make(chan struct{}, ahead) // for pieces on their way
	var mu sync.Mutex
	var delays []time.Duration // of the others
	flooded := 0
	s.cfg.Store = storeFunc(func(ctx context.Context, b *workflow.Batch) ([]workflow.Outcome, error) {
		outcomes, err := s.db.Apply(ctx, b)
		mu.Lock()
		defer mu.Unlock()
		for i := range outcomes {
			if m := b.Deliveries[i].Status; m.WorkflowID == loud {
				flooded++
				<-room
			} else {
				delays = append(delays, time.Since(m.EventTime))
			}
		}
		return outcomes, err
	})
	s.declare()
	s.start()

	report := func() (p50, p99 time.Duration) {
		ch := s.channel()
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for i := range others {
			<-tick.C
			m := running(uuid.New(), "a")
			m.EventTime = time.Now().UTC()
			if err := ch.Publish("", s.queue, true, false, message("", m)); err != nil {
				t.Fatalf("publishing message %d: %v", i, err)
			}
		}
		servicetest.Eventually(t, patience, "the others' messages are applied", func() error {
			mu.Lock()
			defer mu.Unlock()
			if len(delays) < others {
				return fmt.Errorf("%d of %d", len(delays), others)
			}
			return nil
		})
		mu.Lock()
		defer mu.Unlock()
		slices.Sort(delays)
		p50, p99 = delays[others/2], delays[others*99/100]
		delays = nil
		return p50, p99
	}
	p50, p99 := report()

	var wg sync.WaitGroup
	wg.Go(func() {
		ch := s.channel()
		text := strings.Repeat("[step fit] 2026-01-01 12:00:00 a line of log\n", piece)
		for i := range lines / piece {
			select {
			case room <- struct{}{}:
			case <-time.After(patience):
				t.Errorf("piece %d has no room: those before are not applied", i)
				return
			}
			m := &workflow.StatusMessage{WorkflowID: loud, Status: workflow.StatusRunning, Logs: fmt.Sprintf("%d\n", i) + text, EventTime: time.Now().UTC()}
			p := message("", m)
			p.DeliveryMode = amqp.Transient
			if err := ch.Publish("", s.queue, true, false, p); err != nil {
				t.Errorf("publishing piece %d: %v", i, err)
				return
			}
		}
	})
	p50f, p99f := report()
	wg.Wait()
	s.wait(2*others + lines/piece)
	mu.Lock()
	defer mu.Unlock()
	if flooded != lines/piece {
		t.Errorf("%d pieces of log were applied, want %d", flooded, lines/piece)
	}
	t.Logf("status latency of the others: median %v, 99 %% %v; beside the flood %v, %v", p50, p99, p50f, p99f)
	// The limits allow for machines with other things to do.
	if limit := 5*p50 + 2*time.Second; p50f > limit {
		t.Errorf("beside the flood the median is %v, without it %v; want at most %v", p50f, p50, limit)
	}
	if limit := 5*p99 + 10*time.Second; p99f > limit {
		t.Errorf("beside the flood 99 %% are within %v, without it %v; want at most %v", p99f, p99, limit)
	}
}
