package consumer_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/consumer"
	"waymark/internal/broker"
	"waymark/internal/servicetest"
	"waymark/internal/wire"
	"waymark/store"
	"waymark/workflow"
)

// BenchmarkDrain measures from a prefilled queue to committed rows and settled
// deliveries: b.N messages in REANA's double encoding, with ids, of workflows
// of 20 jobs, a thousand workflows at a time. Beside it the same queue drained
// with nothing done to it, which is the broker's and the client library's share.
func BenchmarkDrain(b *testing.B) {
	b.Run("raw", func(b *testing.B) {
		queue := fill(b)
		conn, ch := dial(b)
		defer conn.Close()
		if err := ch.Qos(2000, 0, false); err != nil {
			b.Fatal(err)
		}
		deliveries, err := ch.Consume(queue, "", false, false, false, false, nil)
		if err != nil {
			b.Fatal(err)
		}
		b.ResetTimer()
		for i := 1; i <= b.N; i++ {
			d := <-deliveries
			if i%500 == 0 || i == b.N {
				if err := d.Ack(true); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
	})
	b.Run("applied", func(b *testing.B) {
		queue := fill(b)
		place := servicetest.Database(b)
		db, err := store.Open(b.Context(), store.Config{URL: place.URL, Schema: place.Schema})
		if err != nil {
			b.Fatal(err)
		}
		defer db.Close()
		if _, err := db.Migrate(b.Context()); err != nil {
			b.Fatal(err)
		}
		done := make(chan struct{})
		left := b.N
		c, err := consumer.New(consumer.Config{URL: servicetest.AMQP(b), Queue: queue, Store: storeFunc(func(ctx context.Context, batch *workflow.Batch) ([]workflow.Outcome, error) {
			outcomes, err := db.Apply(ctx, batch)
			if left -= len(outcomes); left <= 0 && err == nil {
				close(done)
			}
			return outcomes, err
		})})
		if err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithCancel(b.Context())
		ended := make(chan error, 1)
		b.ResetTimer()
		go func() { ended <- c.Run(ctx) }()
		<-done
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
		b.StopTimer()
		cancel()
		if err := <-ended; err != nil {
			b.Fatal(err)
		}
		ledger, err := db.Ledger(b.Context())
		if err != nil || len(ledger) != 1 || ledger[0].Applied < int64(b.N)-int64(b.N)/20 {
			b.Fatalf("ledger %+v, %v; want %d messages applied", ledger, err, b.N)
		}
	})
}

func dial(b *testing.B) (*amqp.Connection, *amqp.Channel) {
	b.Helper()
	conn, err := broker.Dial(b.Context(), broker.Config{URL: servicetest.AMQP(b)})
	if err != nil {
		b.Fatal(err)
	}
	ch, err := conn.Channel()
	if err != nil {
		b.Fatal(err)
	}
	return conn, ch
}

// fill puts b.N messages into a queue of its own.
func fill(b *testing.B) (queue string) {
	b.Helper()
	queue, _ = servicetest.Queues(b)
	conn, ch := dial(b)
	defer conn.Close()
	if err := broker.Declare(conn, broker.Durable.Status(queue)); err != nil {
		b.Fatal(err)
	}
	if err := ch.Confirm(false); err != nil {
		b.Fatal(err)
	}
	next := traffic(1000, 20)
	var last *amqp.DeferredConfirmation
	for range b.N {
		var err error
		last, err = ch.PublishWithDeferredConfirm("", queue, false, false, amqp.Publishing{
			MessageId: uuid.Must(uuid.NewV7()).String(), Body: wire.Reana(next()), ContentType: "application/json", DeliveryMode: amqp.Persistent})
		if err != nil {
			b.Fatal(err)
		}
	}
	if ok, err := last.WaitContext(b.Context()); err != nil || !ok {
		b.Fatalf("filling the queue: %v, %v", ok, err)
	}
	return queue
}

// traffic returns the bodies of so many runs at once, round-robin: the total,
// running and finished of each job, the end; then new runs.
func traffic(runs, jobs int) func() []byte {
	ids := make([]uuid.UUID, runs)
	turn, step := 0, 0
	return func() []byte {
		if step == 0 {
			ids[turn] = uuid.New()
		}
		id := ids[turn]
		section := func(name string, job int) string {
			return fmt.Sprintf(`{"progress": {%q: {"total": 1, "job_ids": [%q]}}}`, name, uuid.NewSHA1(id, []byte{byte(job)}))
		}
		status, message := 1, "null"
		switch {
		case step == 0:
			message = fmt.Sprintf(`{"progress": {"total": {"total": %d, "job_ids": []}}}`, jobs)
		case step == 2*jobs+1:
			status = 2
		case step%2 == 1:
			message = section("running", step/2)
		default:
			message = section("finished", step/2-1)
		}
		if turn++; turn == runs {
			if turn, step = 0, step+1; step == 2*jobs+2 {
				step = 0
			}
		}
		return fmt.Appendf(nil, `{"workflow_uuid": %q, "logs": "", "status": %d, "message": %s}`, id, status, message)
	}
}
