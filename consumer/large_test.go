package consumer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/consumer"
	"waymark/internal/servicetest"
	"waymark/workflow"
)

// Large messages must not fill the memory while the database is away, although
// the prefetch would allow two thousand of them; and once it is back each has
// its effect once, and small ones are sent ahead by the thousand again.
func TestLargeMessagesAreHeldWithinBounds(t *testing.T) {
	t.Parallel()
	const budget, size, count = 2 << 20, 512 << 10, 32
	s := newSite(t)
	registry := prometheus.NewRegistry()
	s.cfg.Registerer = registry
	s.cfg.MaxHeldBytes = budget
	r := &refuser{Store: s.db}
	away := errors.New("connection refused")
	r.down.Store(&away)
	s.cfg.Store = r
	s.declare()

	id := uuid.New()
	var all []amqp.Publishing
	for i := range count {
		m := running(id, fmt.Sprintf("job-%d", i))
		m.Logs = fmt.Sprintf("%d\n", i) + strings.Repeat("x", size)
		all = append(all, message(uuid.NewString(), m))
	}
	s.publish(all...)
	var log lockedBuffer
	s.start(func(c *consumer.Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })

	// Until it has settled for a prefetch that fits.
	most, quiet := 0.0, time.Time{}
	servicetest.Eventually(t, patience, "the consumer holds what it may, and no more comes", func() error {
		held, tries := value(t, registry, "waymark_held_bytes"), r.tries.Load()
		most = max(most, held)
		if held > budget || held == 0 || tries < 2 {
			quiet = time.Time{}
			return fmt.Errorf("%.0f bytes are held after %d tries", held, tries)
		}
		if quiet.IsZero() {
			quiet = time.Now()
		}
		if time.Since(quiet) < time.Second {
			return errors.New("not for long yet")
		}
		return nil
	})
	if limit := float64(2*budget + 2*size); most > limit {
		t.Errorf("at most %.0f bytes were held, want no more than two budgets and a message, %.0f", most, limit)
	}
	if prefetch := value(t, registry, "waymark_prefetch_messages"); prefetch > budget/size {
		t.Errorf("the prefetch is %.0f, want at most %d for messages of %d bytes", prefetch, budget/size, size)
	}
	if age := value(t, registry, "waymark_oldest_unacked_seconds"); age <= 0 {
		t.Errorf("the oldest delivery is said to be %v s old", age)
	}
	if n := value(t, registry, "waymark_broker_overruns_total"); n < 1 || n > 12 {
		t.Errorf("%.0f sessions were given up, want a few: the prefetch halves each time", n)
	}
	if text := log.String(); strings.Contains(text, "session with the broker ended") || strings.Count(text, "consumption is paused") != 1 {
		t.Errorf("the log speaks of a fault of the broker, or not once of the database:\n%s", text)
	}

	r.down.Store(nil)
	if l := s.wait(count); l.Applied != count || l.Received != count {
		t.Errorf("ledger %+v, want all %d applied, and none twice", l, count)
	}
	var small []amqp.Publishing
	for range 3000 {
		small = append(small, message("", running(id, "a")))
	}
	s.publish(small...)
	s.wait(count + 3000)
	servicetest.Eventually(t, patience, "small messages are sent ahead in numbers again", func() error {
		// A budget of this size has room for so many of them.
		if prefetch := value(t, registry, "waymark_prefetch_messages"); prefetch < 250 {
			return fmt.Errorf("the prefetch is %.0f", prefetch)
		}
		if held := value(t, registry, "waymark_held_messages"); held != 0 {
			return fmt.Errorf("%.0f messages are held", held)
		}
		return nil
	})
}

// A message that is larger than all that may be held is dealt with
// nevertheless, and so are those around it.
func TestOneMessageLargerThanAllThatMayBeHeld(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.cfg.MaxHeldBytes = 1 << 20
	s.declare()
	id := uuid.New()
	huge := running(id, "huge")
	huge.Logs = strings.Repeat("x", 5<<20)
	s.publish(message("a", running(id, "a")), message("b", huge), message("c", huge), message("d", running(id, "d")))
	s.start()
	if l := s.wait(4); l.Applied != 4 || l.Received != 4 {
		t.Errorf("ledger %+v, want all 4 applied", l)
	}
}

// Of a long piece of log head and tail are kept, and nothing is dead-lettered.
func TestLongLogsAreCut(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	registry := prometheus.NewRegistry()
	s.cfg.Registerer = registry
	s.cfg.MaxLogBytes = 2000
	s.declare()
	m := running(uuid.New(), "a")
	m.Logs = "begin\n" + strings.Repeat("é", 5000) + "\nend"
	m.Jobs = []workflow.JobReport{{ID: "a", Logs: strings.Repeat("short\n", 100)}}
	s.publish(message("", m))
	s.start()
	if l := s.wait(1); l.Applied != 1 {
		t.Fatalf("ledger %+v, want it applied", l)
	}
	var run, job string
	page, err := s.db.Logs(t.Context(), m.WorkflowID, workflow.LogFilter{AllJobs: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, chunk := range page.Items {
		if chunk.JobID == "" {
			run += chunk.Text
		} else {
			job += chunk.Text
		}
	}
	if want, _ := workflow.CutLog(m.Logs, 2000); run != want || len(run) > 2000 || !strings.HasSuffix(run, "\nend") {
		t.Errorf("of the run's log are kept %d bytes, %q, want head and tail, %q", len(run), run, want)
	}
	if job != m.Jobs[0].Logs {
		t.Errorf("the job's log is %q, want it whole", job)
	}
	if cut := value(t, registry, "waymark_log_cut_bytes_total"); cut < 8000 || cut > 8100 {
		t.Errorf("waymark_log_cut_bytes_total = %v, want some 8030", cut)
	}
}

// One record for each reason, with its count.
func TestDeadLettersAreLoggedByReason(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.declare()
	broken, invalid := amqp.Publishing{Body: []byte("{")}, amqp.Publishing{Body: []byte(`{"status": 99}`)}
	s.publish(broken, invalid, broken, broken, invalid)
	registry := prometheus.NewRegistry()
	var log lockedBuffer
	_, stop := s.start(func(c *consumer.Config) {
		c.Logger, c.Registerer = slog.New(slog.NewTextHandler(&log, nil)), registry
		c.Linger = 50 * time.Millisecond
	})
	s.wait(5)
	stop()
	counted := map[string]int{}
	for line := range strings.Lines(log.String()) {
		for _, reason := range []string{"not-json", "schema"} {
			if strings.Contains(line, "dead-lettered") && strings.Contains(line, "reason="+reason) {
				var n int
				if _, err := fmt.Sscanf(line[strings.Index(line, "count="):], "count=%d", &n); err != nil {
					t.Fatalf("no count in %q", line)
				}
				counted[reason] += n
			}
		}
	}
	if counted["not-json"] != 3 || counted["schema"] != 2 {
		t.Errorf("logged are %v, want 3 not-json and 2 schema:\n%s", counted, log.String())
	}
	if dead := value(t, registry, "waymark_dead_letters_total"); dead != 5 {
		t.Errorf("waymark_dead_letters_total = %v over all reasons, want 5", dead)
	}
}

// stated is an error of a database.
type stated string

func (s stated) Error() string    { return "the database says " + string(s) }
func (s stated) SQLState() string { return string(s) }

// Each reason to try again is counted as what it is.
func TestRetriesAreCountedByReason(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	registry := prometheus.NewRegistry()
	s.cfg.Registerer = registry
	s.cfg.DrainTimeout = time.Millisecond
	r := &refuser{Store: s.db}
	s.cfg.Store = r
	s.declare()
	s.publish(message("", running(uuid.New(), "a")))
	for i, try := range []struct {
		reason string
		fault  error
	}{
		{"connection", errors.New("connection refused")},
		{"timeout", fmt.Errorf("applying: %w", context.DeadlineExceeded)},
		{"conflict", fmt.Errorf("applying: %w", stated("40P01"))},
		{"read-only", stated("25006")},
		{"rights", stated("42501")},
		{"resources", stated("53100")},
		{"timeout", stated("57014")},
		{"shutdown", stated("57P01")},
		{"other", stated("XX000")},
	} {
		before := retries(t, registry)[try.reason]
		r.down.Store(&try.fault)
		if i == 0 {
			s.start()
		}
		servicetest.Eventually(t, patience, fmt.Sprintf("%q is counted as %q", try.fault, try.reason), func() error {
			if now := retries(t, registry); now[try.reason] <= before {
				return fmt.Errorf("counted are %v", now)
			}
			return nil
		})
	}
}

// retries are the failures of transactions by reason.
func retries(t *testing.T, r *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if f.GetName() == "waymark_apply_failures_total" && l.GetName() == "reason" {
					counts[l.GetValue()] = m.GetCounter().GetValue()
				}
			}
		}
	}
	return counts
}

// lockedBuffer takes a log while others read it.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
