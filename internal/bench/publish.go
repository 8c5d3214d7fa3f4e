package bench

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/broker"
	"waymark/internal/wire"
	"waymark/publisher"
	"waymark/workflow"
)

// Cases of Publish.
const (
	CasePublisher = "publisher"
	CaseRawBodies = "publisher, ready bodies"
	CaseBareLoop  = "bare loop"
)

// Publish measures confirmed publishing: the publisher; the publisher with
// bodies that are encoded already, which leaves out encoding and validation;
// and, for comparison, the client library alone with the same window and the
// same properties. Of the Load it uses Messages, WarmUp, Runs and Size.
func (b *Bench) Publish(ctx context.Context, l Load) (*Result, error) {
	l.Jobs, l.Workflows = 1, 1
	p, r, err := b.start(ctx, "publish", l, true, false)
	if err != nil {
		return nil, err
	}
	return finish(ctx, p, r, b.publish(ctx, p, r, l))
}

func (b *Bench) publish(ctx context.Context, p *place, r *Result, l Load) error {
	msg, body, err := b.statusMessage(l.Size)
	if err != nil {
		return err
	}
	r.set("messages", l.Messages)
	r.set("warm_up", l.WarmUp)
	r.set("body_bytes", len(body))
	r.set("window", b.cfg.Window)
	r.set("encoding", b.cfg.Encoding)
	r.set("topology", b.cfg.Topology)
	r.note("A rate is of confirmed messages: the clock stops when the last confirm has come. The messages are persistent.")
	r.note("CPU and allocations are of this process; those of the publisher include making and validating the body.")
	for run := range l.Runs {
		b.progress("publish: run %d of %d", run+1, l.Runs)
		bare, err := b.publishBare(ctx, p, r, l, body)
		if err != nil {
			return err
		}
		for _, name := range [...]string{CasePublisher, CaseRawBodies} {
			c, err := b.publishOurs(ctx, p, r.of(name), l, func(ctx context.Context, pub *publisher.Publisher, queue string) error {
				if name == CasePublisher {
					_, err := pub.SendStatus(ctx, msg)
					return err
				}
				_, err := pub.SendRaw(ctx, queue, body, publisher.Properties{})
				return err
			})
			if err != nil {
				return err
			}
			c.addRatio("of the bare loop", "rate", bare)
		}
	}
	return nil
}

// publishOurs measures one run of the publisher with send.
func (b *Bench) publishOurs(ctx context.Context, p *place, c *Case, l Load, send func(context.Context, *publisher.Publisher, string) error) (*Case, error) {
	queues := broker.Queues{Status: p.newQueue(), Submission: p.newQueue()}
	pub, err := publisher.New(publisher.Config{ConnectionName: "waymark bench publish", Encoding: b.cfg.Encoding, Queues: queues,
		TLS: b.cfg.TLS, Topology: b.cfg.Topology, URL: b.cfg.BrokerURL, Window: b.cfg.Window})
	if err != nil {
		return nil, err
	}
	defer giveUp(pub) // everything is flushed below, or has failed
	err = whileWell(ctx, b.patience, pub.LastError, func(ctx context.Context) error {
		return b.publishWith(ctx, c, l, pub, func() error { return send(ctx, pub, queues.Status) })
	})
	if err != nil {
		return nil, err
	}
	return c, p.deleteQueue(queues.Status)
}

func (b *Bench) publishWith(ctx context.Context, c *Case, l Load, pub *publisher.Publisher, send func() error) error {
	if err := pub.Ready(ctx); err != nil {
		return err
	}
	burst := func(n int) error {
		for range n {
			if err := send(); err != nil {
				return err
			}
		}
		return pub.Flush(ctx)
	}
	if err := burst(l.WarmUp); err != nil {
		return err
	}
	settle()
	from := now()
	if err := burst(l.Messages); err != nil {
		return err
	}
	c.record(l.Messages, from, now())
	if report := pub.Report(); report.Confirmed != int64(l.WarmUp+l.Messages) {
		return fmt.Errorf("the publisher reports %+v, want %d confirmed", report, l.WarmUp+l.Messages)
	}
	return nil
}

// giveUp ends a publisher. What is not confirmed by then is of no use.
func giveUp(pub *publisher.Publisher) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	_ = pub.Close(ended)
}

// publishBare measures one run of the client library alone.
func (b *Bench) publishBare(ctx context.Context, p *place, r *Result, l Load, body []byte) (*Case, error) {
	queue, err := p.declare(kindOf(b.cfg.Topology))
	if err != nil {
		return nil, err
	}
	conn, err := p.dial(ctx, "waymark bench bare loop")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	fault := blocked(conn)
	publishing := func() amqp.Publishing {
		return amqp.Publishing{
			AppId: "waymark", Body: body, ContentEncoding: "utf-8", ContentType: "application/json", DeliveryMode: amqp.Persistent,
			MessageId: uuid.Must(uuid.NewV7()).String(), Timestamp: time.Now(),
		}
	}
	if l.WarmUp > 0 {
		if err := confirmLoop(ctx, conn, b.patience, fault, queue, l.WarmUp, b.cfg.Window, publishing); err != nil {
			return nil, err
		}
	}
	settle()
	from := now()
	if err := confirmLoop(ctx, conn, b.patience, fault, queue, l.Messages, b.cfg.Window, publishing); err != nil {
		return nil, err
	}
	c := r.of(CaseBareLoop)
	c.record(l.Messages, from, now())
	return c, p.deleteQueue(queue)
}

func (c *Case) record(n int, from, to moment) {
	c.addRate(n, from, to)
	c.addUsage(n, from, to)
}

// statusMessage is a message whose body has the size, and that body.
func (b *Bench) statusMessage(size int) (*workflow.StatusMessage, []byte, error) {
	m := event{workflow: uuid.New(), status: workflow.StatusRunning, section: "finished", job: uuid.NewString(), jobs: 20}.message(time.Now().UTC().Truncate(time.Microsecond))
	m.Engine = "serial"
	encode := func() ([]byte, error) {
		body, err := wire.EncodeStatus(m)
		if err == nil && b.cfg.Encoding == publisher.EncodingReana {
			body = wire.Reana(body)
		}
		return body, err
	}
	body, err := encode()
	if err != nil {
		return nil, nil, err
	}
	if missing := size - len(body); missing > 0 {
		m.Logs = strings.Repeat(logText, missing/len(logText)+1)[:missing]
		if body, err = encode(); err != nil {
			return nil, nil, err
		}
	}
	return m, body, nil
}
