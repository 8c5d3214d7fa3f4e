package consumer_test

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"waymark/consumer"
	"waymark/internal/servicetest"
	"waymark/workflow"
)

// value is that of a metric, summed over all its labels.
func value(t *testing.T, r *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			sum := 0.0
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
			return sum
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// An answer that refuses data is an answer: nobody is to be woken because the
// database were away.
func TestRefusedDataIsNoOutage(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	registry := prometheus.NewRegistry()
	s.cfg.Registerer = registry
	r := &refuser{Store: s.db, poison: uuid.New()}
	s.cfg.Store = r
	s.declare()
	s.publish(message("", &workflow.StatusMessage{WorkflowID: r.poison, Status: workflow.StatusRunning}))
	s.start()
	if l := s.wait(1); l.Dead != 1 {
		t.Errorf("ledger %+v, want 1 dead", l)
	}
	if failed := value(t, registry, "waymark_apply_failures_total"); failed != 0 {
		t.Errorf("waymark_apply_failures_total = %v after a message was refused, want 0: nothing is tried again", failed)
	}
	away := errors.New("connection refused")
	r.down.Store(&away)
	s.publish(message("", running(uuid.New(), "a")))
	servicetest.Eventually(t, patience, "an outage is counted", func() error {
		if value(t, registry, "waymark_apply_failures_total") == 0 || value(t, registry, "waymark_database_answers") != 0 {
			return errors.New("not yet")
		}
		return nil
	})
	r.down.Store(nil)
	servicetest.Eventually(t, patience, "the end of the outage is told", func() error {
		if value(t, registry, "waymark_database_answers") != 1 {
			return errors.New("not yet")
		}
		return nil
	})
}

// What a consumer that is told to stop cannot finish comes again; its operator
// is told.
func TestCutShortDrainIsLogged(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	r := &refuser{Store: s.db}
	away := errors.New("connection refused")
	r.down.Store(&away)
	s.cfg.Store = r
	s.declare()
	s.publish(message("", running(uuid.New(), "a")))
	var log bytes.Buffer
	_, stop := s.start(func(c *consumer.Config) {
		c.DrainTimeout = time.Millisecond
		c.Logger = slog.New(slog.NewTextHandler(&log, nil))
	})
	servicetest.Eventually(t, patience, "the store was tried", func() error {
		if r.tries.Load() == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	stop()
	if got := log.String(); !strings.Contains(got, "draining was cut short") || !strings.Contains(got, "the drain timeout has passed") {
		t.Errorf("the log does not say that the drain was cut short, and why:\n%s", got)
	}
}
