package consumer

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"waymark/internal/broker"
	"waymark/schemas"
	"waymark/workflow"
)

// Store gives batches their effect. *store.DB is one.
type Store interface {
	// Apply gives the batch its effect in one transaction and returns what
	// became of each delivery; nil outcomes without an error mean that the
	// batch, by its number, had been committed by an earlier try.
	//
	// An error that wraps workflow.ErrRejected or workflow.ErrUnknownWorkflow
	// says that nothing was written and that trying the same again is in vain;
	// the latter comes with outcomes that name the messages. After any other
	// error the batch is tried again until it succeeds.
	Apply(context.Context, *workflow.Batch) ([]workflow.Outcome, error)
}

// Config of a consumer. Queue, Store and URL are required.
type Config struct {
	// BatchSize is the greatest number of messages of one transaction. Default 500.
	BatchSize int
	// ConnectionName is what the broker shows. Default "waymark consumer".
	ConnectionName string
	// DrainTimeout is how long Run goes on with what it has gathered after its
	// context has ended. Default 10 s.
	DrainTimeout time.Duration
	// Kind of the messages in the queue. Default schemas.StatusKind.
	Kind schemas.Kind
	// Limits of a message's size. Defaults of package schemas.
	Limits schemas.Limits
	// Linger is how long a batch that is not full waits for more while
	// messages come fast. It never delays a single message. Default 2 ms; a
	// negative value turns it off.
	Linger time.Duration
	// Logger for faults, one record each. Default: nothing is logged.
	Logger *slog.Logger
	// MaxHeldBytes is about how much memory deliveries may take between their
	// arrival and their acknowledgement. Where messages are large fewer are sent
	// ahead; what was on its way when the limit was reached may come on top, up to
	// as much again, and so may one message. Default 64 MiB.
	MaxHeldBytes int
	// MaxLogBytes is the greatest size of one piece of log. Of a longer one head
	// and tail are kept; see workflow.CutLog. Default workflow.DefaultMaxLogBytes.
	MaxLogBytes int
	// Now is the clock that stamps messages without a time. Default time.Now.
	Now func() time.Time
	// Prefetch is the number of unacknowledged messages the broker sends
	// ahead, while they are small. Default 2000, or 4 batches if that is more.
	Prefetch int
	// Queue to consume. Required.
	Queue string
	// Registerer takes the metrics. Default: none are kept.
	Registerer prometheus.Registerer
	// Store that applies the batches. Required.
	Store Store
	// TLS settings for amqps URLs. Default: those of package broker.
	TLS *tls.Config
	// Topology the queue is declared in. Default broker.Durable.
	Topology broker.Topology
	// URL of the broker. Required.
	URL string
}

func (c Config) withDefaults() Config {
	if c.BatchSize == 0 {
		c.BatchSize = 500
	}
	if c.ConnectionName == "" {
		c.ConnectionName = "waymark consumer"
	}
	if c.DrainTimeout == 0 {
		c.DrainTimeout = 10 * time.Second
	}
	if c.Linger == 0 {
		c.Linger = 2 * time.Millisecond
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.MaxHeldBytes == 0 {
		c.MaxHeldBytes = 64 << 20
	}
	if c.MaxLogBytes == 0 {
		c.MaxLogBytes = workflow.DefaultMaxLogBytes
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Prefetch == 0 {
		c.Prefetch = max(2000, 4*c.BatchSize)
	}
	if c.Topology == "" {
		c.Topology = broker.Durable
	}
	return c
}

// Consumer consumes one queue. Several, here or elsewhere, may share it.
type Consumer struct {
	cfg     Config
	queue   broker.Queue
	id      uuid.UUID
	number  int64 // of the last batch; the applying goroutine's alone
	metrics *metrics
	intake  *intake
	probes  chan chan<- struct{} // whoever wants an answer of the broker
	workers int
	// batchBytes ends a batch.
	batchBytes int
	overrun    bool // the session before was cut for what it held

	mu     sync.Mutex
	health Health
}

// Health says what a consumer is waiting for. Nil errors mean all is well.
type Health struct {
	// Broker is why no session with the broker is open.
	Broker error
	// DeadLetters is why a message could not be dead-lettered yet.
	DeadLetters error
	// Store is why the last batch could not be applied yet.
	Store error
}

var errStarting = errors.New("not connected yet")

// New checks cfg and returns a consumer. It does not connect.
func New(cfg Config) (*Consumer, error) {
	cfg = cfg.withDefaults()
	if err := broker.CheckURL(cfg.URL); err != nil {
		return nil, err
	}
	if _, err := broker.ParseTopology(string(cfg.Topology)); err != nil {
		return nil, err
	}
	switch {
	case cfg.Queue == "":
		return nil, errors.New("consumer: no queue to consume")
	case cfg.Store == nil:
		return nil, errors.New("consumer: no store")
	case cfg.BatchSize < 1:
		return nil, fmt.Errorf("consumer: batches of %d messages: expected at least 1", cfg.BatchSize)
	case cfg.Prefetch < cfg.BatchSize:
		return nil, fmt.Errorf("consumer: prefetch %d is below the batch size %d: a batch would never be full; raise one or lower the other", cfg.Prefetch, cfg.BatchSize)
	case cfg.Prefetch > 65535:
		return nil, fmt.Errorf("consumer: prefetch %d: AMQP allows at most 65535", cfg.Prefetch)
	case cfg.MaxHeldBytes < minHeldBytes:
		return nil, fmt.Errorf("consumer: %d bytes to hold: expected at least %d", cfg.MaxHeldBytes, minHeldBytes)
	case cfg.MaxLogBytes < workflow.MinLogBytes:
		return nil, fmt.Errorf("consumer: pieces of log of %d bytes: expected at least %d", cfg.MaxLogBytes, workflow.MinLogBytes)
	}
	queue := cfg.Topology.Status(cfg.Queue)
	if cfg.Kind == schemas.SubmissionKind {
		queue = cfg.Topology.Submission(cfg.Queue)
	}
	in := newIntake(int64(cfg.MaxHeldBytes), cfg.Prefetch)
	return &Consumer{
		cfg: cfg, queue: queue, id: uuid.New(), metrics: newMetrics(cfg.Registerer, cfg.Queue, in), intake: in, probes: make(chan chan<- struct{}),
		workers: runtime.GOMAXPROCS(0), batchBytes: min(maxBatchBytes, cfg.MaxHeldBytes/4), health: Health{Broker: errStarting},
	}, nil
}

// minHeldBytes has room for the messages of ordinary traffic, 4 KiB each.
const minHeldBytes = 1 << 20

// Health tells what the consumer is waiting for at this moment.
func (c *Consumer) Health() Health {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.health
}

// errSilent says that the broker, over a connection that is open, does not answer.
var errSilent = errors.New("the broker does not answer, though the connection is open")

// Probe asks the broker for an answer until ctx ends. Unlike Health it also
// finds one that is frozen, before its heartbeats are missed.
func (c *Consumer) Probe(ctx context.Context) error {
	if err := c.Health().Broker; err != nil {
		return err
	}
	answered := make(chan struct{})
	select {
	case c.probes <- answered:
	case <-ctx.Done():
		return cmp.Or(c.Health().Broker, errSilent)
	}
	select {
	case <-answered:
		return nil
	case <-ctx.Done():
		return cmp.Or(c.Health().Broker, errSilent)
	}
}

func (c *Consumer) brokerIs(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.health.Broker = err
	c.metrics.connected(err == nil)
}

// storeIs notes how the store answered and reports whether that is news.
func (c *Consumer) storeIs(err error) (news bool) { return c.note(&c.health.Store, err) }

// lettersAre notes how the broker took dead letters and reports whether that is news.
func (c *Consumer) lettersAre(err error) (news bool) { return c.note(&c.health.DeadLetters, err) }

func (c *Consumer) note(what *error, err error) (news bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	news = (err == nil) != (*what == nil) || (err != nil && err.Error() != (*what).Error())
	*what = err
	return news
}

// Run consumes until ctx ends; then it drains and returns nil. Faults of
// broker and store are waited out for ever, with backoff, and logged once for
// each reason: a server that is mended is found again.
func (c *Consumer) Run(ctx context.Context) error {
	pause := broker.NewBackoff()
	var logged string
	for {
		began := c.cfg.Now()
		err := c.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, errOverrun) {
			continue // nothing is wrong with the broker
		}
		c.brokerIs(err)
		// What the session waited for is another's to wait for now.
		c.storeIs(nil)
		c.lettersAre(nil)
		// A session that lasted has shown that the broker works.
		if c.cfg.Now().Sub(began) > 10*time.Second {
			pause.Reset()
			logged = ""
		}
		wait := pause.NextBackOff()
		if text := fmt.Sprint(err); text != logged {
			c.cfg.Logger.Warn("session with the broker ended", "queue", c.cfg.Queue, "err", err, "retry_in", wait)
			logged = text
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}
