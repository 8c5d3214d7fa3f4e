package bench

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os/exec"
	"runtime/debug"
	"time"

	"waymark/internal/broker"
	"waymark/publisher"
)

// Config says where to measure and with which settings.
type Config struct {
	// BatchSize of the consumers. Default 500.
	BatchSize int
	// BrokerURL is required but for Apply, Wide and Read.
	BrokerURL string
	// DatabaseURL is required but for Publish and Drain.
	DatabaseURL string
	// Encoding of the bodies. Default publisher.EncodingJSON.
	Encoding publisher.Encoding
	// GCPercent of this process while it consumes: what "waymark serve" has. 0
	// leaves it as it is.
	GCPercent int
	// Linger of the consumers; see consumer.Config. 0 means its default.
	Linger time.Duration
	// Prefetch of the consumers and of the raw drain beside them. Default 2000.
	Prefetch int
	// Progress is told in one line what is being measured, as it may take
	// minutes. Default: nobody is.
	Progress func(line string)
	// Serve returns the command that serves on a queue and a schema, not yet
	// started. Only EndToEnd with Serve needs it.
	Serve func(ServePlace) (*exec.Cmd, error)
	// TLS settings for amqps URLs. Default: those of package broker.
	TLS *tls.Config
	// Topology of the queues. Default broker.Durable.
	Topology broker.Topology
	// Version of waymark, for the results.
	Version string
	// Window of the publisher and of the bare loop beside it. Default 1000.
	Window int
}

// ServePlace is where a serving process is to work.
type ServePlace struct {
	StatusQueue, SubmissionQueue string
	Schema                       string
	// Listen is the address for its endpoints.
	Listen string
}

func (c Config) withDefaults() Config {
	if c.BatchSize == 0 {
		c.BatchSize = 500
	}
	if c.Encoding == "" {
		c.Encoding = publisher.EncodingJSON
	}
	if c.Prefetch == 0 {
		c.Prefetch = max(2000, 4*c.BatchSize)
	}
	if c.Progress == nil {
		c.Progress = func(string) {}
	}
	if c.Topology == "" {
		c.Topology = broker.Durable
	}
	if c.Window == 0 {
		c.Window = 1000
	}
	return c
}

// collectAsServed has this process collect garbage as "waymark serve" does, until
// the function that it returns is called.
func (b *Bench) collectAsServed() (restore func()) {
	if b.cfg.GCPercent == 0 {
		return func() {}
	}
	before := debug.SetGCPercent(b.cfg.GCPercent)
	return func() { debug.SetGCPercent(before) }
}

// Load is what is sent through, how often.
type Load struct {
	// Messages measured in each run.
	Messages int
	// WarmUp messages precede them in each run and do not count.
	WarmUp int
	// Runs of each case; the result is their median.
	Runs int
	// Size of a body in bytes. Bodies that are larger without any filling, and
	// 0, mean as large as they are.
	Size int
	// Jobs of a workflow.
	Jobs int
	// Workflows under way at once, whose messages alternate. One at a time
	// means that neighbouring messages speak of the same workflow, which is
	// cheaper: a batch then changes few rows of workflows.
	Workflows int
}

// LoadError says that what was asked for cannot be measured. Nothing was done.
type LoadError struct {
	// Problem names the number that is wrong and what it should be.
	Problem string
}

// Error returns the problem.
func (e *LoadError) Error() string { return e.Problem }

func invalid(format string, args ...any) error { return &LoadError{fmt.Sprintf(format, args...)} }

// validate returns a *LoadError if l cannot be measured.
func (l Load) validate() error {
	switch {
	case l.Messages < 1:
		return invalid("%d messages: expected at least 1", l.Messages)
	case l.WarmUp < 0:
		return invalid("%d messages of warm-up: expected 0 or more", l.WarmUp)
	case l.Runs < 1:
		return invalid("%d runs: expected at least 1", l.Runs)
	case l.Size < 0 || l.Size > 8<<20:
		return invalid("bodies of %d bytes: expected 0 to %d", l.Size, 8<<20)
	case l.Jobs < 1:
		return invalid("%d jobs a workflow: expected at least 1", l.Jobs)
	case l.Workflows < 1:
		return invalid("%d workflows at once: expected at least 1", l.Workflows)
	}
	return nil
}

// Bench measures. Its methods may be called one after the other.
type Bench struct {
	cfg Config
	// opened is told of each place; for tests.
	opened func(*place)
}

// New returns a Bench. It does not connect. The error is a *LoadError. Other
// methods return one, too, for a load that cannot be measured.
func New(cfg Config) (*Bench, error) {
	cfg = cfg.withDefaults()
	if cfg.Prefetch < cfg.BatchSize {
		return nil, invalid("prefetch %d is below the batch size %d: a batch would never be full", cfg.Prefetch, cfg.BatchSize)
	}
	return &Bench{cfg: cfg}, nil
}

func (b *Bench) progress(format string, args ...any) { b.cfg.Progress(fmt.Sprintf(format, args...)) }

// start checks what every benchmark needs and makes its place on the servers.
// The caller closes the place.
func (b *Bench) start(ctx context.Context, name string, l Load, onBroker, onDatabase bool) (*place, *Result, error) {
	if err := l.validate(); err != nil {
		return nil, nil, err
	}
	p, err := b.open(ctx, onBroker, onDatabase)
	if err != nil {
		return nil, nil, err
	}
	r := &Result{Benchmark: name, Environment: b.environment(ctx, p)}
	r.set("runs", l.Runs)
	return p, r, nil
}

// finish removes the place and returns the result unless something failed.
func finish(ctx context.Context, p *place, r *Result, err error) (*Result, error) {
	if err = errors.Join(err, p.close(ctx)); err != nil {
		return nil, err
	}
	r.At = time.Now().UTC()
	return r, nil
}
