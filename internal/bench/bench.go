package bench

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os/exec"
	"runtime/debug"
	"slices"
	"strconv"
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
	// Journals is the folder where each benchmark writes down what it makes on
	// the servers, for the next one to remove if it is killed. Benchmarks that run
	// at once may share it. Default: nothing is written down.
	Journals string
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
	// Parameter is what is wrong, by the name of its flag, such as "warm-up".
	Parameter string
	// Problem says what is wrong with it.
	Problem string
}

// Error is one line: the parameter, then the problem.
func (e *LoadError) Error() string { return e.Parameter + ": " + e.Problem }

func invalid(parameter, format string, args ...any) error {
	return &LoadError{parameter, fmt.Sprintf(format, args...)}
}

// The most that can be asked for. It is more than anybody would wait for, and
// less than this process would die of.
const (
	mostMessages  = 1_000_000_000
	mostRuns      = 1000
	mostSize      = 8 << 20
	mostJobs      = 1_000_000
	mostWorkflows = 1_000_000
	mostBatch     = 10_000 // as consumer.batch_size
	mostConsumers = 64
	mostRate      = 1_000_000
)

// within returns a *LoadError if n is not from least to most.
func within(parameter string, n, least, most int) error {
	switch {
	case n < least:
		return invalid(parameter, "%d is too small: the least is %d", n, least)
	case n > most:
		return invalid(parameter, "%d is too large: the most is %d", n, most)
	}
	return nil
}

// listed returns a *LoadError if one of the list, each of which is a case, is
// not from least to most, or is there twice.
func listed(parameter string, list []int, least, most int) error {
	for i, n := range list {
		if err := within(parameter, n, least, most); err != nil {
			return err
		}
		if slices.Contains(list[:i], n) {
			return invalid(parameter, "%d is given twice", n)
		}
	}
	return nil
}

// validRate returns a *LoadError if nobody can send so many messages a second.
func validRate(parameter string, rate float64) error {
	if !(rate > 0 && rate <= mostRate) { // nor is it NaN
		return invalid(parameter, "%s messages a second: expected more than 0, and at most %d", strconv.FormatFloat(rate, 'f', -1, 64), mostRate)
	}
	return nil
}

// validate returns a *LoadError if l cannot be measured.
func (l Load) validate() error {
	return cmp.Or(
		within("messages", l.Messages, 1, mostMessages),
		within("warm-up", l.WarmUp, 0, mostMessages),
		within("runs", l.Runs, 1, mostRuns),
		within("size", l.Size, 0, mostSize),
		within("jobs", l.Jobs, 1, mostJobs),
		within("workflows", l.Workflows, 1, mostWorkflows),
	)
}

// Bench measures. Its methods may be called one after the other.
type Bench struct {
	cfg      Config
	patience time.Duration // with servers that are away
	// opened is told of each place; for tests.
	opened func(*place)
}

// New returns a Bench. It does not connect. The error is a *LoadError. Other
// methods return one, too, for a load that cannot be measured.
func New(cfg Config) (*Bench, error) {
	cfg = cfg.withDefaults()
	if cfg.Prefetch < cfg.BatchSize {
		return nil, invalid("consumer-prefetch", "%d is below the batch size %d: a batch would never be full", cfg.Prefetch, cfg.BatchSize)
	}
	return &Bench{cfg: cfg, patience: faultPatience}, nil
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
	p.close(ctx)
	if err == nil {
		err = r.check()
	}
	if err != nil && ctx.Err() != nil {
		// Whatever it looks like where it was noticed.
		err = errors.Join(context.Cause(ctx), err)
	}
	if err != nil {
		return nil, err
	}
	r.At = time.Now().UTC()
	return r, nil
}
