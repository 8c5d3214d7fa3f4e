package consumer

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"waymark/workflow"
)

// metrics of one queue. The zero registerer keeps them to itself.
type metrics struct {
	deliveries *prometheus.CounterVec
	dead       *prometheus.CounterVec
	batch      prometheus.Histogram
	seconds    prometheus.Histogram
	failures   prometheus.Counter
	up         prometheus.Gauge
	sessions   prometheus.Counter
	answers    prometheus.Gauge
}

func newMetrics(r prometheus.Registerer, queue string) *metrics {
	if r == nil {
		r = prometheus.NewRegistry()
	}
	f := promauto.With(prometheus.WrapRegistererWith(prometheus.Labels{"queue": queue}, r))
	m := &metrics{
		deliveries: f.NewCounterVec(prometheus.CounterOpts{Name: "waymark_deliveries_total", Help: "Deliveries dealt with, by outcome: applied, duplicate, stale, dead."}, []string{"outcome"}),
		dead:       f.NewCounterVec(prometheus.CounterOpts{Name: "waymark_dead_letters_total", Help: "Messages put into the dead-letter queue, by reason."}, []string{"reason"}),
		batch:      f.NewHistogram(prometheus.HistogramOpts{Name: "waymark_batch_messages", Help: "Messages in a transaction.", Buckets: prometheus.ExponentialBuckets(1, 2, 12)}),
		seconds:    f.NewHistogram(prometheus.HistogramOpts{Name: "waymark_apply_seconds", Help: "Time of a transaction, from begin to commit.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 15)}),
		failures:   f.NewCounter(prometheus.CounterOpts{Name: "waymark_apply_failures_total", Help: "Transactions that failed and are tried again."}),
		up:         f.NewGauge(prometheus.GaugeOpts{Name: "waymark_broker_connected", Help: "1 while a session with the broker is open."}),
		sessions:   f.NewCounter(prometheus.CounterOpts{Name: "waymark_broker_sessions_total", Help: "Sessions opened with the broker."}),
		answers:    f.NewGauge(prometheus.GaugeOpts{Name: "waymark_database_answers", Help: "0 while the database does not take messages."}),
	}
	m.answers.Set(1)
	// Outcomes that have not happened yet are 0, not absent: rates need a start.
	for _, o := range []workflow.Outcome{workflow.Applied, workflow.Duplicate, workflow.Stale, workflow.Dead} {
		m.deliveries.WithLabelValues(o.String())
	}
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

// answered notes a transaction that the database took or, with an error,
// refused for what it holds.
func (m *metrics) answered(size int, took time.Duration, refusal error) {
	m.answers.Set(1)
	if refusal == nil {
		m.batch.Observe(float64(size))
		m.seconds.Observe(took.Seconds())
	}
}

// failed notes a transaction that is to be tried again.
func (m *metrics) failed() {
	m.failures.Inc()
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

func (m *metrics) deadLettered(reason string) { m.dead.WithLabelValues(reason).Inc() }
