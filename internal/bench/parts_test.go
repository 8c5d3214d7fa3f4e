package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"waymark/internal/broker"
	"waymark/internal/wire"
	"waymark/publisher"
	"waymark/schemas"
	"waymark/workflow"
)

func TestBodies(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 600_000, time.UTC)
	for _, encoding := range []publisher.Encoding{publisher.EncodingJSON, publisher.EncodingReana} {
		for _, size := range []int{0, 208, 260, 400, 700, 5000} {
			traffic := newTraffic(1, 2)
			for n := range messages(2) {
				e := traffic.next()
				body := e.body(size, encoding, at)
				if len(body) != max(size, len(e.body(0, encoding, at))) {
					t.Errorf("%s body %d: %d bytes, want %d: %s", encoding, n, len(body), size, body)
				}
				got, err := wire.DecodeStatus(body, schemas.Limits{})
				if err != nil {
					t.Errorf("%s body %d of %d bytes is not valid: %v\n%s", encoding, n, size, err, body)
					continue
				}
				// The filling says nothing about the run.
				want := e.message(got.EventTime)
				want.Engine, want.Attempt, want.Logs = got.Engine, got.Attempt, got.Logs
				if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b []string) bool { return fmt.Sprint(a) == fmt.Sprint(b) })); diff != "" {
					t.Errorf("%s body %d of %d bytes (-want +got):\n%s", encoding, n, size, diff)
				}
				if hasLogs := got.Logs != ""; hasLogs != (size >= 700) {
					t.Errorf("%s body %d of %d bytes has logs: %v", encoding, n, size, hasLogs)
				}
			}
		}
	}
}

// Folded, the traffic is complete workflows, and alternates as was asked for.
func TestTraffic(t *testing.T) {
	const workflows, jobs, rounds = 3, 4, 2
	traffic := newTraffic(workflows, jobs)
	states := make(map[uuid.UUID]*workflow.State)
	var last []uuid.UUID
	for n := range rounds * workflows * messages(jobs) {
		e := traffic.next()
		if states[e.workflow] == nil {
			states[e.workflow] = workflow.NewState(workflow.Run{ID: e.workflow})
		}
		for _, id := range last {
			if id == e.workflow {
				t.Fatalf("message %d is of a workflow that had one of the last %d", n, workflows-1)
			}
		}
		if last = append(last, e.workflow); len(last) == workflows {
			last = last[1:]
		}
		if outcome := states[e.workflow].Apply(e.message(time.Now())); outcome != workflow.Applied {
			t.Errorf("message %d is %s, want that each message has an effect", n, outcome)
		}
	}
	if len(states) != workflows*rounds {
		t.Errorf("%d workflows, want %d", len(states), workflows*rounds)
	}
	for id, s := range states {
		if c := s.Run.Counts(); s.Run.Status() != workflow.StatusFinished || c.Finished != jobs || c.Total != jobs {
			t.Errorf("workflow %s is %s with %+v, want finished with %d jobs", id, s.Run.Status(), c, jobs)
		}
	}
}

func TestMedianAndSpread(t *testing.T) {
	r := &Result{}
	c := r.of("x")
	for i, want := range []struct{ median, min, max float64 }{{5, 5, 5}, {3, 1, 5}, {5, 1, 9}, {4, 1, 9}} {
		c.add("rate", "msg/s", []float64{5, 1, 9, 3}[i])
		if m := c.Metric("rate"); m.Median != want.median || m.Min != want.min || m.Max != want.max {
			t.Errorf("after %v: median %v, min %v, max %v; want %+v", m.Values, m.Median, m.Min, m.Max, want)
		}
	}
	if r.of("x") != c || r.Case("y") != nil || r.Case("y").Metric("rate") != nil {
		t.Error("a case is not found by its name, or one is that does not exist")
	}
}

func TestWhatIsNoNumberVoidsTheMeasurement(t *testing.T) {
	r := &Result{}
	r.of("x").add("rate", "msg/s", 1)
	if err := r.check(); err != nil {
		t.Errorf("of numbers: %v", err)
	}
	for _, v := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
		r := &Result{}
		r.of("x").add("rate", "msg/s", v)
		if err := r.check(); err == nil {
			t.Errorf("a rate of %v: want an error, as JSON cannot say it", v)
		}
	}
}

func TestWhileWell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fault := errors.New("fault")
		wait := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		began := time.Now()
		if err := whileWell(t.Context(), 10*time.Second, func() error { return fault }, wait); !errors.Is(err, fault) || time.Since(began) < 10*time.Second || time.Since(began) > 11*time.Second {
			t.Errorf("a fault that stays: %v after %s, want it after 10 s", err, time.Since(began))
		}
		began = time.Now()
		lasting := &broker.Error{Problem: "no right", Permanent: true}
		if err := whileWell(t.Context(), 10*time.Second, func() error { return lasting }, wait); !errors.Is(err, lasting) || time.Since(began) > time.Second {
			t.Errorf("a fault that only a person can mend: %v after %s, want it at once", err, time.Since(began))
		}
		// A fault that comes and goes is none.
		n := 0
		flicker := func() error {
			if n++; n%50 != 0 {
				return fault
			}
			return nil
		}
		if err := whileWell(t.Context(), 10*time.Second, flicker, func(ctx context.Context) error { return pause(ctx, time.Minute) }); err != nil {
			t.Errorf("a fault that comes and goes: %v", err)
		}
		if err := whileWell(t.Context(), time.Second, func() error { return nil }, func(context.Context) error { return fault }); !errors.Is(err, fault) {
			t.Errorf("an error of the work: %v, want that", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := whileWell(ctx, time.Second, func() error { return fault }, wait); !errors.Is(err, context.Canceled) {
			t.Errorf("interrupted: %v, want that", err)
		}
	})
}

// What a benchmark here calls an allocation is what one of Go's does.
func TestAllocationsAreThoseOfGoBenchmarks(t *testing.T) {
	const n = 100_000
	keep := make([]any, n)
	from := now()
	for i := range keep {
		keep[i] = [2]int32{int32(i), 1} // small, without pointers
	}
	to := now()
	runtime.KeepAlive(keep)
	// The runtime counts the last few hundred later; other tests allocate, too.
	if got := to.allocations - from.allocations; got < n*9/10 {
		t.Errorf("%d allocations of a few bytes were counted as %d", n, got)
	}
	c := (&Result{}).of("x")
	c.addUsage(n, from, to)
	if got := c.Metric("allocated").Median; got < 7 {
		t.Errorf("%v bytes for each of 8", got)
	}
}

func TestPercentile(t *testing.T) {
	times := make([]time.Duration, 200)
	for i := range times {
		times[i] = time.Duration(i + 1)
	}
	for p, want := range map[float64]time.Duration{50: 100, 90: 180, 99: 198, 100: 200, 0: 1} {
		if got := percentile(times, p); got != want {
			t.Errorf("percentile %v of 1…200 is %d, want %d", p, got, want)
		}
	}
	if got := percentile(times[:1], 99); got != 1 {
		t.Errorf("percentile 99 of one value is %d, want that value", got)
	}
	if got := percentile(nil, 99); got != 0 {
		t.Errorf("percentile 99 of nothing is %d, want 0", got)
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 0.00012: "0.00012", 0.002: "0.002", 0.1: "0.10", 0.5: "0.50", 9.994: "9.99", 12.34: "12.3", 99.96: "100", 123.4: "123",
		999.6: "1,000", 12345.6: "12,346", 1234567: "1,234,567", -1234: "-1,234", math.Inf(1): "–",
	} {
		if got := Number(v); got != want {
			t.Errorf("Number(%v) = %q, want %q", v, got, want)
		}
	}
}

// storeFunc is a store that only counts.
type storeFunc func(*workflow.Batch) error

func (f storeFunc) Apply(_ context.Context, b *workflow.Batch) ([]workflow.Outcome, error) {
	return make([]workflow.Outcome, len(b.Deliveries)), f(b)
}

func TestMeter(t *testing.T) {
	broken := errors.New("broken")
	var fail error
	m := newMeter(storeFunc(func(*workflow.Batch) error { return fail }), 10, 20, 40)
	apply := func(n int) {
		t.Helper()
		if _, err := m.Apply(t.Context(), &workflow.Batch{Deliveries: make([]workflow.Delivery, n)}); !errors.Is(err, fail) {
			t.Fatal(err)
		}
	}
	done := func() bool {
		select {
		case <-m.done:
			return true
		default:
			return false
		}
	}
	apply(7)
	fail = broken
	apply(100) // was not committed: does not count
	fail = nil
	apply(7)  // 14: the clock starts
	apply(17) // 31: it stops
	apply(8)
	if done() {
		t.Error("39 of 40 are committed and the meter is done")
	}
	apply(5)
	if !done() {
		t.Error("44 of 40 are committed and the meter is not done")
	}
	apply(5) // closing twice would panic
	from, to, n, batches := m.window()
	if n != 17 || batches != 6 || !to.at.After(from.at) {
		t.Errorf("measured %d messages of %d batches in %s, want 17 of 6", n, batches, to.at.Sub(from.at))
	}
}

func TestVisible(t *testing.T) {
	w := newWatcher(nil, 4)
	a, b := uuid.New(), uuid.New()
	began := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(ms int) time.Time { return began.Add(time.Duration(ms) * time.Millisecond) }
	row := func(id uuid.UUID, ms int) workflow.Summary { return workflow.Summary{ID: id, LastEventAt: at(ms)} }
	for i, id := range []uuid.UUID{a, b, a, a} {
		w.expect(id, i, at(i), at(i))
	}
	w.visible(at(10), []workflow.Summary{row(a, 2)}) // 0 and 2
	w.visible(at(11), []workflow.Summary{row(a, 2), row(uuid.New(), 99), row(b, 0)})
	if w.count() != 2 {
		t.Errorf("%d messages are visible, want 2", w.count())
	}
	select {
	case <-w.all:
		t.Error("all are visible after 2 of 4")
	default:
	}
	w.visible(at(20), []workflow.Summary{row(b, 1), row(a, 3)})
	<-w.all
	want := []time.Duration{8 * time.Millisecond, 17 * time.Millisecond}
	if diff := cmp.Diff(want, []time.Duration{w.times(2)[0], w.times(2)[1]}); diff != "" {
		t.Errorf("latencies of messages 2 and 3 (-want +got):\n%s", diff)
	}
}

func TestReportPage(t *testing.T) {
	r := &Result{Benchmark: "end-to-end", Environment: Environment{Waymark: "1.2", Go: "go1", CPUs: 2, RabbitMQ: "3.10"}}
	r.set("runs", 2)
	r.note("a note")
	r.of("1 consumer").add("rate", "msg/s", 12000)
	r.of("1 consumer").add("rate", "msg/s", 14000)
	three, one := 3.0, 0.4
	report := Report{Results: []*Result{r, {Environment: Environment{PostgreSQL: "15.1"}}}, Goals: []Goal{
		{Group: "A", Name: "enough", Limit: 2, Unit: "msg/s", Measured: &three, Min: &three, Max: &three, How: "so"},
		{Group: "A", Name: "too much", Limit: 2, AtMost: true, Measured: &three, Min: &three, Max: &three},
		{Group: "A", Name: "too little", Limit: 0.5, Measured: &one, Min: &one, Max: &one},
		{Group: "A", Name: "unknown", Limit: 2, AtMost: true},
	}}
	var b strings.Builder
	if err := report.Markdown(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| A: enough | ≥ 2.00 msg/s | 3.00 | 3.00 – 3.00 | 1.50 | met | so |",
		"| A: too much | ≤ 2.00  | 3.00 | 3.00 – 3.00 | 1.50 | **missed** |  |",
		"| A: too little | ≥ 0.50  | 0.40 | 0.40 – 0.40 | 0.80 | **missed** |  |",
		"| A: unknown | ≤ 2.00  | not measured |  |  |  |  |",
		"RabbitMQ 3.10, PostgreSQL 15.1",
		"`runs=2`", "- a note",
		"| 1 consumer | rate | 13,000 | 12,000 | 14,000 | msg/s |",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the page lacks %q:\n%s", want, b.String())
		}
	}
	if _, err := json.Marshal(report); err != nil {
		t.Errorf("as JSON: %v", err)
	}
}
