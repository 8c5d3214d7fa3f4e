package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"waymark/consumer"
	"waymark/internal/crashpoint"
	"waymark/schemas"
	"waymark/store"
)

func (a *app) serveCommand() *cobra.Command {
	var noMigrate bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Apply messages to the database until stopped",
		Long: `Bring the schema up to date, then consume status messages and submissions and
apply them to the database, until SIGINT or SIGTERM. What has been received is
then finished within consumer.drain_timeout; a second signal ends the program at
once, and the broker delivers the rest again.

Servers that cannot be reached are waited for, at the start and at any time.
Several may run at once on the same queues and database.

If database.keep_runs is set, runs that ended longer ago are deleted: it looks at
its start and every hour, and deletes one run after the other, a large one in
pieces, so that no message waits long behind it.

If publisher.spool_dir is set, what runs on this machine kept there while the
broker was away is delivered.

On http.listen: /healthz says that the process lives, /readyz (200 or 503, with
the reason) that it can work, /metrics speaks to Prometheus. What nextflow run
-with-weblog posts to /weblog/nextflow becomes runs, without any wrapper: see
http.weblog.`,
		Example: `  waymark serve
  waymark serve --broker-topology reana --http-listen 127.0.0.1:9465`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.config(cmd)
			if err != nil {
				return err
			}
			s, err := a.server(cmd.Context(), c)
			if err != nil {
				return err
			}
			s.migrate, s.drains = !noMigrate, c.Publisher.SpoolDir != ""
			if a.getenv("GOGC") == "" {
				debug.SetGCPercent(serveGCPercent)
			}
			if a.getenv("GOMEMLIMIT") == "" {
				debug.SetMemoryLimit(serveBaseBytes + int64(len(s.consumers))*serveHeldTimes*int64(c.Consumer.MaxHeldBytes))
			}
			return s.Run(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&noMigrate, "no-migrate", false, "do not change the schema: wait until somebody else has brought it up to date")
	addConfigFlags(cmd, "broker", "database", "consumer", "publisher.spool_dir", "http", "log")
	return cmd
}

// serveGCPercent lets garbage grow to four times what lives. What lives is a few
// megabytes, and a batch makes several: with Go's 100 a tenth of the processor
// goes into collecting. GOGC in the environment has precedence.
const serveGCPercent = 300

// Where garbage would grow beyond this it is collected more often: what the
// program takes by itself, and what is held, that again for the moment when it
// is on its way, and again for what is being decoded. GOMEMLIMIT in the
// environment has precedence.
const (
	serveBaseBytes = 128 << 20
	serveHeldTimes = 3
)

// server is the consumers and the operator's endpoints in one process.
type server struct {
	config   *config
	logger   *slog.Logger
	db       *store.DB
	registry *prometheus.Registry
	listener net.Listener // nil: no endpoints
	migrate  bool
	drains   bool    // the spool, too
	weblog   *weblog // nil: posts are not taken

	consumers []*consumer.Consumer

	mu     sync.Mutex
	schema error // why consuming has not begun; nil once it has

	pings  sync.Mutex
	pinged time.Time // when health was found
	health readiness
	begun  bool // it was ready once

	active activeCounts

	prunedRuns    prometheus.Counter
	pruneFailures prometheus.Counter
}

var errStarting = errors.New("starting: the schema has not been looked at yet")

// server checks all that can be checked without the servers, and opens the
// address of the endpoints.
func (a *app) server(ctx context.Context, c *config) (*server, error) {
	if err := c.require("broker.url", "database.url"); err != nil {
		return nil, err
	}
	s := &server{config: c, logger: a.logger(c, false), registry: prometheus.NewRegistry(), migrate: true, schema: errStarting}
	s.prunedRuns = prometheus.NewCounter(prometheus.CounterOpts{Name: "waymark_pruned_runs_total",
		Help: "Runs that ended longer than database.keep_runs ago and were deleted."})
	s.pruneFailures = prometheus.NewCounter(prometheus.CounterOpts{Name: "waymark_prune_failures_total",
		Help: "Times that old runs could not be deleted, or old message ids not be forgotten; an hour later it is tried again."})
	s.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), s, s.prunedRuns, s.pruneFailures)
	brokerURL, err := c.brokerURL()
	if err != nil {
		return nil, err
	}
	if s.db, err = c.openStore(ctx, s.logger); err != nil {
		return nil, err
	}
	kinds := map[schemas.Kind]string{schemas.StatusKind: c.queues().Status}
	if c.consumesSubmissions() {
		kinds[schemas.SubmissionKind] = c.queues().Submission
	}
	linger := c.Consumer.Linger
	if linger == 0 {
		linger = -1 // none, as 0 would mean the default
	}
	for _, kind := range []schemas.Kind{schemas.SubmissionKind, schemas.StatusKind} {
		queue, wanted := kinds[kind]
		if !wanted {
			continue
		}
		one, err := consumer.New(consumer.Config{
			BatchSize:      c.Consumer.BatchSize,
			ConnectionName: "waymark serve " + queue,
			DrainTimeout:   max(c.Consumer.DrainTimeout, time.Nanosecond), // 0 would mean the default
			Kind:           kind,
			Limits:         c.limits(),
			Linger:         linger,
			Logger:         s.logger,
			MaxHeldBytes:   c.Consumer.MaxHeldBytes,
			MaxLogBytes:    c.Consumer.MaxLogBytes,
			Now:            crashpoint.Now,
			Prefetch:       c.Consumer.Prefetch,
			Queue:          queue,
			Registerer:     s.registry,
			Store:          s.db,
			Topology:       c.topology(),
			URL:            brokerURL,
		})
		if err != nil {
			return nil, errors.Join(&exitError{code: exitUsage, err: err}, s.db.Close())
		}
		s.consumers = append(s.consumers, one)
	}
	if s.listener, err = listenHTTP(ctx, c.HTTP.Listen); err != nil {
		return nil, errors.Join(err, s.db.Close())
	}
	if s.listener != nil && c.takesWeblog(s.listener.Addr()) {
		s.weblog = newWeblog(c, s.logger)
	}
	return s, nil
}

// Run serves until ctx ends, and then returns nil after what has been received
// is finished. The error says why it cannot serve, which waiting would not mend.
func (s *server) Run(ctx context.Context) error {
	defer s.db.Close()
	// The endpoints answer until the consumers have drained: an operator who
	// looks then wants to see why it takes so long.
	endpoints, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, working := errgroup.WithContext(ctx)
	var weblog http.Handler
	if s.weblog != nil {
		weblog = s.weblog.receiver
	}
	if s.listener != nil {
		g.Go(func() error { return serveHTTP(endpoints, s.listener, s.logger, s.registry, s.ready, weblog) })
	}
	if s.weblog != nil {
		g.Go(func() error { s.weblog.Run(working); return nil })
	}
	if s.drains {
		g.Go(func() error { return s.drainSpool(working) })
	}
	g.Go(func() error {
		defer stop()
		if err := s.prepare(working); err != nil {
			return err
		}
		consuming, ctx := errgroup.WithContext(working)
		for _, c := range s.consumers {
			consuming.Go(func() error { return c.Run(ctx) })
		}
		consuming.Go(func() error { s.prune(ctx); return nil })
		return consuming.Wait()
	})
	err := g.Wait()
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.Cause(ctx))) {
		s.logger.Info("stopped")
		return nil
	}
	return err
}

// prepare brings the schema up to date, or waits until it is. A database that
// cannot be used yet is waited for; each reason is logged once.
func (s *server) prepare(ctx context.Context) error {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 200*time.Millisecond, 3*time.Second
	said := ""
	for {
		err := s.checkSchema(ctx)
		if err == nil {
			s.note(nil)
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, store.ErrSchemaNewer) {
			return unreachable(err)
		}
		s.note(err)
		if err.Error() != said {
			said = err.Error()
			s.logger.Warn("waiting for the database", "err", err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait.NextBackOff()):
		}
	}
}

func (s *server) checkSchema(ctx context.Context) error {
	if !s.migrate {
		if err := s.db.Ping(ctx); err != nil {
			return err
		}
		return s.db.CheckRights(ctx)
	}
	applied, err := s.db.Migrate(ctx)
	for _, m := range applied {
		s.logger.Info("migrated", "migration", m.Name)
	}
	if err != nil {
		return err
	}
	return s.db.CheckRights(ctx)
}

// pruneInterval is how often what is too old to be remembered is forgotten.
const pruneInterval = time.Hour

// prune forgets the ids of old messages, and deletes old runs if it is to, now
// and then every hour, until ctx ends. A fault is logged, and the next hour tries
// again: nothing hangs on it.
func (s *server) prune(ctx context.Context) {
	tick := time.NewTicker(pruneInterval)
	defer tick.Stop()
	for {
		switch n, err := s.db.Prune(ctx, crashpoint.Now().Add(-s.config.Consumer.Remember)); {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.pruneFailures.Inc()
			s.logger.Warn("old message ids were not forgotten", "err", err)
		case n > 0:
			s.logger.Info("forgot old message ids", "count", n)
		}
		if keep := s.config.Database.KeepRuns; keep > 0 {
			switch n, err := s.db.PruneRuns(ctx, time.Now().Add(-keep), s.prunedRuns.Inc); {
			case ctx.Err() != nil:
				return
			case err != nil:
				s.pruneFailures.Inc()
				s.logger.Warn("old runs were not deleted", "deleted", n, "err", err)
			case n > 0:
				s.logger.Info("deleted old runs", "count", n)
			}
		}
		// What the start has left behind, too, is of no more use.
		debug.FreeOSMemory()
		unmapCode()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *server) note(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.schema = err
}

const (
	// pingTimeout is how long /readyz waits for the servers.
	pingTimeout = time.Second
	// pingEvery is how long its answer holds, however often it is asked for.
	pingEvery = time.Second
)

// ready says whether this process can do its work, and if not, whose fault it
// is. It asks the servers, as a consumer without messages does not know how the
// database is, and one that is frozen keeps its connections.
func (s *server) ready() readiness {
	s.pings.Lock()
	defer s.pings.Unlock()
	keep := pingEvery
	if !s.begun {
		keep = pingEvery / 20 // who starts it waits for it
	}
	if time.Since(s.pinged) >= keep {
		s.health, s.pinged = s.look(), time.Now()
		s.begun = s.begun || s.health.Ready
	}
	return s.health
}

// awaitReady waits until the server is ready, and reports whether it is before
// ctx ends.
func (s *server) awaitReady(ctx context.Context) bool {
	t := time.NewTicker(pingEvery / 20)
	defer t.Stop()
	for !s.ready().Ready {
		select {
		case <-ctx.Done():
			return false
		case <-t.C:
		}
	}
	return true
}

func (s *server) look() readiness {
	s.mu.Lock()
	schema := s.schema
	s.mu.Unlock()
	if schema != nil {
		return readiness{Broker: healthOf(errors.New("not connected before the database is ready")), Database: healthOf(schema)}
	}
	ctx, cancel := context.WithTimeout(context.Background(), pingTimeout)
	defer cancel()
	late := time.After(pingTimeout * 3 / 2) // the driver takes its time to give a connection up
	pinged := make(chan error, 1)
	go func() { pinged <- s.db.Ping(ctx) }()
	var brokerErr, databaseErr error
	for _, c := range s.consumers {
		brokerErr = firstError(brokerErr, c.Probe(ctx))
		h := c.Health()
		brokerErr = firstError(brokerErr, h.DeadLetters)
		databaseErr = firstError(databaseErr, h.Store)
	}
	select {
	case err := <-pinged:
		databaseErr = firstError(databaseErr, err)
	case <-late:
		databaseErr = firstError(databaseErr, errNoAnswer)
	}
	return readiness{Ready: brokerErr == nil && databaseErr == nil, Broker: healthOf(brokerErr), Database: healthOf(databaseErr)}
}

var errNoAnswer = fmt.Errorf("no answer within %s", pingTimeout)

// firstError is the first of two that is an error.
func firstError(a, b error) error {
	if a != nil {
		return a
	}
	return b
}
