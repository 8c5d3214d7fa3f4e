package publisher_test

import (
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/broker"
	"waymark/internal/wire"
	"waymark/publisher"
	"waymark/workflow"
)

const benchWindow = 1000

func benchMessage(b *testing.B) (*workflow.StatusMessage, []byte) {
	b.Helper()
	msg := message("step 3 of 20 is done\n")
	msg.EventTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	msg.Engine = "serial"
	msg.Progress.Finished = workflow.JobIDs("0198a3c4-7a3e-7c1e-b2cf-0f6f8a9d1c55")
	body, err := wire.EncodeStatus(msg)
	if err != nil {
		b.Fatal(err)
	}
	return msg, body
}

// measured runs f and reports the CPU time of this process per message,
// beside the time that passed.
func measured(b *testing.B, f func()) {
	b.Helper()
	cpu := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	b.ReportAllocs()
	b.ResetTimer()
	before := cpu()
	f()
	used := cpu() - before
	b.StopTimer()
	b.ReportMetric(float64(used.Microseconds())/float64(b.N), "cpu-µs/op")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

// BenchmarkPublish is status messages from one goroutine, pipelined: encoding,
// validation, confirms, and all that Publisher promises.
func BenchmarkPublish(b *testing.B) {
	msg, _ := benchMessage(b)
	p := benchPublisher(b)
	measured(b, func() {
		for range b.N {
			if _, err := p.SendStatus(b.Context(), msg); err != nil {
				b.Fatal(err)
			}
		}
		if err := p.Flush(b.Context()); err != nil {
			b.Fatal(err)
		}
	})
}

// BenchmarkPublishRaw is the same without encoding and validation: what there
// is to compare with BenchmarkBareConfirmLoop.
func BenchmarkPublishRaw(b *testing.B) {
	_, body := benchMessage(b)
	cfg, p := benchPublisherWithConfig(b)
	measured(b, func() {
		for range b.N {
			if _, err := p.SendRaw(b.Context(), cfg.Queues.Status, body, publisher.Properties{}); err != nil {
				b.Fatal(err)
			}
		}
		if err := p.Flush(b.Context()); err != nil {
			b.Fatal(err)
		}
	})
}

// BenchmarkPublishAndWait is one message at a time: the latency of a confirm.
func BenchmarkPublishAndWait(b *testing.B) {
	msg, _ := benchMessage(b)
	p := benchPublisher(b)
	measured(b, func() {
		for range b.N {
			if err := p.Status(b.Context(), msg); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func benchPublisher(b *testing.B) *publisher.Publisher {
	_, p := benchPublisherWithConfig(b)
	return p
}

func benchPublisherWithConfig(b *testing.B) (publisher.Config, *publisher.Publisher) {
	b.Helper()
	cfg := configure(b)
	cfg.Window = benchWindow
	p := start(b, cfg)
	if err := p.Ready(soon(b)); err != nil {
		b.Fatal(err)
	}
	return cfg, p
}

// BenchmarkBareConfirmLoop is the library alone with the same window: publish,
// and when the window is full wait for the oldest confirm. The properties are
// those of Publisher, which the broker has to store; there is no watch for
// returns, no retry and no reconnect.
func BenchmarkBareConfirmLoop(b *testing.B) {
	_, body := benchMessage(b)
	cfg := configure(b)
	conn, err := broker.Dial(b.Context(), broker.Config{URL: cfg.URL})
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	if err := broker.Declare(conn, broker.Durable.Status(cfg.Queues.Status)); err != nil {
		b.Fatal(err)
	}
	ch, err := conn.Channel()
	if err != nil {
		b.Fatal(err)
	}
	if err := ch.Confirm(false); err != nil {
		b.Fatal(err)
	}
	var window [benchWindow]*amqp.DeferredConfirmation
	wait := func(c *amqp.DeferredConfirmation) {
		if c != nil && !c.Wait() {
			b.Fatal("not confirmed")
		}
	}
	measured(b, func() {
		for i := range b.N {
			slot := &window[i%benchWindow]
			wait(*slot)
			*slot, err = ch.PublishWithDeferredConfirm("", cfg.Queues.Status, true, false, amqp.Publishing{
				AppId:           "waymark",
				Body:            body,
				ContentEncoding: "utf-8",
				ContentType:     "application/json",
				DeliveryMode:    amqp.Persistent,
				MessageId:       "0198a3c4-7a3e-7c1e-b2cf-0f6f8a9d1c55",
				Timestamp:       time.Now(),
			})
			if err != nil {
				b.Fatal(err)
			}
		}
		for _, c := range window {
			wait(c)
		}
	})
}
