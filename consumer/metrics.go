package consumer

import (
	"context"
	"errors"
	"math"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"waymark/schemas"
	"waymark/workflow"
)

// metrics of one queue. The nil registerer keeps them to itself.
type metrics struct {
	deliveries *prometheus.CounterVec
	dead       *prometheus.CounterVec
	batch      prometheus.Histogram
	seconds    prometheus.Histogram
	failures   *prometheus.CounterVec
	cutLogs    prometheus.Counter
	lag        prometheus.Gauge
	up         prometheus.Gauge
	sessions   prometheus.Counter
	overruns   prometheus.Counter
	answers    prometheus.Gauge
	ready      prometheus.Gauge
	letters    prometheus.Gauge
	consumers  prometheus.Gauge
}

func newMetrics(r prometheus.Registerer, queue string, in *intake) *metrics {
	if r == nil {
		r = prometheus.NewRegistry()
	}
	f := promauto.With(prometheus.WrapRegistererWith(prometheus.Labels{"queue": queue}, r))
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	counters := func(name, help, label string, values ...string) *prometheus.CounterVec {
		vec := f.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
		// What has not happened yet is 0, not absent: rates need a start.
		for _, v := range values {
			vec.WithLabelValues(v)
		}
		return vec
	}
	gauge := func(name, help string) prometheus.Gauge {
		return f.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	var outcomes []string
	for _, o := range []workflow.Outcome{workflow.Applied, workflow.Duplicate, workflow.Stale, workflow.Dead} {
		outcomes = append(outcomes, o.String())
	}
	m := &metrics{
		deliveries: counters("waymark_deliveries_total", "Deliveries dealt with, by outcome: applied, duplicate, stale, dead.", "outcome", outcomes...),
		dead: counters("waymark_dead_letters_total", "Messages put into the dead-letter queue, by reason.", "reason",
			schemas.ReasonNotJSON, schemas.ReasonTooLarge, schemas.ReasonTooDeep, schemas.ReasonSchema, ReasonRejected, ReasonUnknownWorkflow),
		batch:    f.NewHistogram(prometheus.HistogramOpts{Name: "waymark_batch_messages", Help: "Messages in a transaction.", Buckets: prometheus.ExponentialBuckets(1, 2, 12)}),
		seconds:  f.NewHistogram(prometheus.HistogramOpts{Name: "waymark_apply_seconds", Help: "Time of a transaction, from begin to commit.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 15)}),
		failures: counters("waymark_apply_failures_total", "Transactions that failed and are tried again, by reason: connection, timeout, conflict, read-only, rights, resources, shutdown, other.", "reason", retryReasons...),
		cutLogs:  counter("waymark_log_cut_bytes_total", "Bytes cut out of pieces of log that were longer than consumer.max_log_bytes."),
		lag:      gauge("waymark_lag_seconds", "How old the newest event of the last transaction was when it was committed."),
		up:       gauge("waymark_broker_connected", "1 while a session with the broker is open."),
		sessions: counter("waymark_broker_sessions_total", "Sessions opened with the broker."),
		overruns: counter("waymark_broker_overruns_total", "Sessions given up because more bytes were on their way than may be held."),
		answers:  gauge("waymark_database_answers", "0 while the database does not take messages."),

		ready:     gauge("waymark_queue_messages", "Messages ready in the queue, as the broker said within the last seconds. NaN while it cannot be asked."),
		consumers: gauge("waymark_queue_consumers", "Consumers of the queue, of all programs. NaN while the broker cannot be asked."),
		letters:   gauge("waymark_dead_letter_queue_messages", "Messages ready in the dead-letter queue. NaN while the broker cannot be asked."),
	}
	m.answers.Set(1)
	m.depth(math.NaN(), math.NaN(), math.NaN())

	now := func(name, help string, value func(messages int, bytes int64, prefetch int, age time.Duration) float64) {
		f.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return value(in.held()) })
	}
	now("waymark_held_messages", "Messages received and not yet acknowledged.",
		func(n int, _ int64, _ int, _ time.Duration) float64 { return float64(n) })
	now("waymark_held_bytes", "Memory that held messages take, about; consumer.max_held_bytes bounds it.",
		func(_ int, bytes int64, _ int, _ time.Duration) float64 { return float64(bytes) })
	now("waymark_prefetch_messages", "Messages the broker is asked to send ahead: fewer than consumer.prefetch while they are large.",
		func(_ int, _ int64, prefetch int, _ time.Duration) float64 { return float64(prefetch) })
	now("waymark_oldest_unacked_seconds", "Age of the oldest delivery that is not acknowledged; 0 if there is none.",
		func(_ int, _ int64, _ int, age time.Duration) float64 { return age.Seconds() })
	return m
}

func (m *metrics) connected(yes bool) {
	if yes {
		m.sessions.Inc()
		m.up.Set(1)
	} else {
		m.up.Set(0)
	}
}

// depth notes what the broker said of the queues.
func (m *metrics) depth(ready, consumers, letters float64) {
	m.ready.Set(ready)
	m.consumers.Set(consumers)
	m.letters.Set(letters)
}

// answered notes a transaction that the database took or, with an error,
// refused for what it holds.
func (m *metrics) answered(b *workflow.Batch, took time.Duration, refusal error) {
	m.answers.Set(1)
	if refusal != nil {
		return
	}
	m.batch.Observe(float64(len(b.Deliveries)))
	m.seconds.Observe(took.Seconds())
	var newest time.Time
	for i := range b.Deliveries {
		switch d := &b.Deliveries[i]; {
		case d.Status != nil && d.Status.EventTime.After(newest):
			newest = d.Status.EventTime
		case d.Submission != nil && d.Submission.EventTime.After(newest):
			newest = d.Submission.EventTime
		}
	}
	if !newest.IsZero() {
		m.lag.Set(max(0, time.Since(newest).Seconds())) // clocks differ
	}
}

// failed notes a transaction that is to be tried again.
func (m *metrics) failed(err error) {
	m.failures.WithLabelValues(retryReason(err)).Inc()
	m.answers.Set(0)
}

func (m *metrics) applied(outcomes []workflow.Outcome, dead int) {
	var count [workflow.Unknown + 1]int
	for _, o := range outcomes {
		count[o]++
	}
	count[workflow.Dead] += dead
	for o := workflow.Applied; o <= workflow.Dead; o++ {
		if count[o] > 0 {
			m.deliveries.WithLabelValues(o.String()).Add(float64(count[o]))
		}
	}
}

func (m *metrics) deadLettered(reason string, n int) { m.dead.WithLabelValues(reason).Add(float64(n)) }

// Reasons for which a transaction is tried again.
const (
	retryConnection = "connection" // no connection, or it broke
	retryTimeout    = "timeout"    // no answer, a lock held too long, or a statement cancelled
	retryConflict   = "conflict"   // deadlock or serialization failure
	retryReadOnly   = "read-only"  // a standby, or a failover
	retryRights     = "rights"     // a right or a table is missing, or the login is refused
	retryResources  = "resources"  // a full disk, or too many connections
	retryShutdown   = "shutdown"   // the server starts or stops
	retryOther      = "other"
)

var retryReasons = []string{retryConnection, retryTimeout, retryConflict, retryReadOnly, retryRights, retryResources, retryShutdown, retryOther}

// retryReason puts the error of a store into one of a few classes. It knows
// databases by their SQLSTATE only.
func retryReason(err error) string {
	var stated interface{ SQLState() string }
	if errors.As(err, &stated) && len(stated.SQLState()) == 5 {
		switch state := stated.SQLState(); state[:2] {
		case "08":
			return retryConnection
		case "40":
			return retryConflict
		case "25":
			return retryReadOnly
		case "28", "42", "3D", "3F":
			return retryRights
		case "53", "58":
			return retryResources
		case "55":
			return retryTimeout
		case "57":
			if state == "57014" {
				return retryTimeout
			}
			return retryShutdown
		}
		return retryOther
	}
	if timeout, ok := errors.AsType[net.Error](err); errors.Is(err, context.DeadlineExceeded) || ok && timeout.Timeout() {
		return retryTimeout
	}
	return retryConnection
}

// depthEvery is how often the broker is asked how long the queues are.
const depthEvery = 5 * time.Second

// watchDepth asks the broker for the lengths of the queues, now and then and
// when somebody wants an answer, until the session is over. It has a channel of
// its own, as a queue that is missing costs it. Now and then it also asks on the
// session's, where that alone tells of acks that were heard.
func (c *Consumer) watchDepth(s *session) {
	defer c.metrics.depth(math.NaN(), math.NaN(), math.NaN())
	letters := c.cfg.Topology.DeadLetter(c.cfg.Queue).Name
	tick := time.NewTicker(depthEvery)
	defer tick.Stop()
	var answered chan<- struct{}
	for {
		if ch, err := s.conn.Channel(); err == nil {
			queue, err1 := ch.QueueDeclarePassive(s.queue, false, false, false, false, nil)
			dead, err2 := ch.QueueDeclarePassive(letters, false, false, false, false, nil)
			if errors.Join(err1, err2) == nil {
				c.metrics.depth(float64(queue.Messages), float64(queue.Consumers), float64(dead.Messages))
			} else {
				c.metrics.depth(math.NaN(), math.NaN(), math.NaN())
			}
			_ = ch.Close()
			if answered != nil {
				close(answered) // whatever the answer was
			}
		}
		answered = nil
		select {
		case <-s.gone:
			return
		case <-tick.C:
			if s.settled.unheard() {
				_ = s.ask() // what is wrong with the channel ends the session
			}
		case answered = <-c.probes:
		}
	}
}
