package engines

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"pgregory.net/rapid"

	"waymark/workflow"
)

var runID = uuid.MustParse("11111111-2222-4333-8444-555555555555")

// recorder is a broker that keeps what it confirms. Its hook decides, before
// each message, whether it does.
type recorder struct {
	hook func(ctx context.Context) error

	mu          sync.Mutex
	submissions []*workflow.Submission
	statuses    []*workflow.StatusMessage
}

func (r *recorder) Submission(ctx context.Context, s *workflow.Submission) error {
	if r.hook != nil {
		if err := r.hook(ctx); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.statuses) > 0 && !r.statuses[len(r.statuses)-1].Status.Terminal() {
		return errors.New("the submission came after a status")
	}
	r.submissions = append(r.submissions, s)
	return nil
}

func (r *recorder) Status(ctx context.Context, m *workflow.StatusMessage) error {
	if r.hook != nil {
		if err := r.hook(ctx); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.statuses = append(r.statuses, m)
	return nil
}

// fold applies all messages to a run.
func (r *recorder) fold() *workflow.State {
	state := workflow.NewState(workflow.Run{ID: runID})
	for _, s := range r.submissions {
		state.Submit(s)
	}
	for _, m := range r.statuses {
		state.Apply(m)
	}
	return state
}

func (r *recorder) last(t *testing.T) *workflow.StatusMessage {
	t.Helper()
	if len(r.statuses) == 0 {
		t.Fatal("no status message was published")
	}
	return r.statuses[len(r.statuses)-1]
}

func start(t *testing.T, p Publisher) *Reporter {
	return NewReporter(t.Context(), Config{Engine: "test", WorkflowID: runID, Publisher: p})
}

// hang is a broker that is away: it confirms nothing until the caller gives up.
func hang(ctx context.Context) error {
	<-ctx.Done()
	return fmt.Errorf("not confirmed: %w", context.Cause(ctx))
}

func TestReporterTellsARunInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &recorder{}
		r := start(t, broker)
		r.Submit(&workflow.Submission{User: "ada", Workflow: runID.String(), Name: "demo"})
		r.Total(2)
		r.EngineSpecific(func() json.RawMessage { return json.RawMessage(`{"dag":{}}`) })
		r.Log("going\n")
		r.Begin()
		synctest.Wait()
		if len(broker.submissions) != 1 || len(broker.statuses) != 1 {
			t.Fatalf("at once there were %d submissions and %d statuses; want 1 and 1", len(broker.submissions), len(broker.statuses))
		}
		code := 0
		begin := time.Now().UTC()
		r.Job(workflow.JobReport{ID: "a", Status: workflow.JobRunning, Name: "first", StartedAt: begin})
		time.Sleep(time.Second) // the fake clock of synctest
		r.Job(workflow.JobReport{ID: "a", Status: workflow.JobFinished, ExitCode: &code, FinishedAt: time.Now().UTC(), Logs: "ok\n"})
		time.Sleep(50 * time.Millisecond) // within the interval: it will travel with the end
		r.Job(workflow.JobReport{ID: "b", Status: workflow.JobFinished, Cached: true})
		report := r.Finish(t.Context(), workflow.StatusFinished, "done\n")

		want := []*workflow.StatusMessage{
			{Status: workflow.StatusRunning, Logs: "going\n", Progress: workflow.Progress{
				Total: workflow.Count(2), EngineSpecific: json.RawMessage(`{"dag":{}}`)}},
			{Status: workflow.StatusRunning, Progress: workflow.Progress{Running: workflow.JobIDs("a")},
				Jobs: []workflow.JobReport{{ID: "a", Attempt: 1, Status: workflow.JobRunning, Name: "first", StartedAt: begin}}},
			{Status: workflow.StatusRunning, Progress: workflow.Progress{Finished: workflow.JobIDs("a")},
				Jobs: []workflow.JobReport{{ID: "a", Attempt: 1, Status: workflow.JobFinished, ExitCode: &code, FinishedAt: begin.Add(time.Second), Logs: "ok\n"}}},
			{Status: workflow.StatusFinished, Logs: "done\n", Progress: workflow.Progress{
				Total: workflow.Count(2), Running: workflow.JobIDs(), Finished: workflow.JobIDs("a", "b"), Failed: workflow.JobIDs(), Cached: workflow.JobIDs("b")},
				Jobs: []workflow.JobReport{{ID: "b", Attempt: 1, Status: workflow.JobFinished, Cached: true}}},
		}
		for i, at := range []time.Duration{0, 0, time.Second, time.Second + 50*time.Millisecond} {
			want[i].WorkflowID, want[i].Attempt, want[i].Engine, want[i].EventTime = runID, 1, "test", begin.Add(at)
		}
		if diff := cmp.Diff(want, broker.statuses); diff != "" {
			t.Errorf("messages (-want +got):\n%s", diff)
		}
		if want := (Report{Published: 5, Confirmed: 5}); !cmp.Equal(want, report) {
			t.Errorf("report: %+v, want %+v", report, want)
		}
		run := broker.fold().Run
		if run.Status() != workflow.StatusFinished || run.Counts() != (workflow.Counts{Total: 2, Finished: 2, Cached: 1}) {
			t.Errorf("folded: %v %+v, want finished, 2 of 2, 1 of them cached", run.Status(), run.Counts())
		}
	})
}

func TestReporterNeverWaitsForTheBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &recorder{hook: hang}
		r := start(t, broker)
		begin := time.Now()
		r.Submit(&workflow.Submission{User: "ada", Workflow: runID.String()})
		r.Begin()
		for i := range 20_000 {
			id := fmt.Sprint(i)
			r.Job(workflow.JobReport{ID: id, Status: workflow.JobRunning})
			r.Job(workflow.JobReport{ID: id, Status: workflow.JobFinished, Logs: strings.Repeat("x", 4096)})
			r.Log("a line of the run's log\n")
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("the engine waited %v for the broker", took)
		}
		r.mu.Lock()
		if r.text > maxPendingText || len(r.news.logs) > maxRunLog+len("[…]\n") {
			t.Errorf("%d bytes of job logs and %d of the run's wait for the broker: more than allowed", r.text, len(r.news.logs))
		}
		r.mu.Unlock()

		report := r.Finish(t.Context(), workflow.StatusFailed, "it broke")
		if took := time.Since(begin); took != 30*time.Second {
			t.Errorf("Finish tried for %v, want the final timeout of 30 s", took)
		}
		if report.Confirmed != 0 || report.Unsent != report.Published || report.Terminal == nil || report.Err == nil {
			t.Fatalf("report hides that nothing arrived: %+v", report)
		}
		if report.Terminal.Status != workflow.StatusFailed || !strings.HasSuffix(report.Terminal.Logs, "it broke") {
			t.Errorf("the unsent end is %v with logs ending %q", report.Terminal.Status, report.Terminal.Logs[max(0, len(report.Terminal.Logs)-20):])
		}
		if report.Coalesced < 20_000 || report.Dropped == 0 {
			t.Errorf("report: %d coalesced, %d dropped; want at least 20000 and 1", report.Coalesced, report.Dropped)
		}
	})
}

func TestReporterRecoversWhenTheBrokerReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		back := make(chan struct{})
		broker := &recorder{hook: func(ctx context.Context) error {
			select {
			case <-back:
				return nil
			default:
				return errors.New("connection refused")
			}
		}}
		r := start(t, broker)
		r.Submit(&workflow.Submission{User: "ada", Workflow: runID.String()})
		r.Total(5000)
		r.Begin()
		for i := range 5000 {
			r.Job(workflow.JobReport{ID: fmt.Sprint(i), Status: workflow.JobRunning, Logs: "one "})
		}
		time.AfterFunc(7*time.Second, func() { close(back) })
		for i := range 5000 {
			r.Job(workflow.JobReport{ID: fmt.Sprint(i), Status: workflow.JobFinished, Logs: "two"})
		}
		report := r.Finish(t.Context(), workflow.StatusFinished, "")
		if report.Unsent != 0 || report.Terminal != nil || report.Dropped != 0 || report.Err != nil {
			t.Errorf("report: %+v, want everything confirmed", report)
		}
		if broker.statuses[0].Status != workflow.StatusRunning {
			t.Errorf("the first status is %v: observers of REANA need running before an end", broker.statuses[0].Status)
		}
		logs := 0
		for _, m := range broker.statuses {
			if len(m.Jobs) > maxMessageJobs {
				t.Errorf("a message has %d job details, more than %d", len(m.Jobs), maxMessageJobs)
			}
			for _, j := range m.Jobs {
				if j.Logs == "one two" {
					logs++
				}
			}
		}
		if logs != 5000 {
			t.Errorf("%d of 5000 jobs have their log whole and in order", logs)
		}
		run := broker.fold().Run
		if got := run.Counts(); got != (workflow.Counts{Total: 5000, Finished: 5000}) {
			t.Errorf("folded: %+v, want 5000 finished", got)
		}
	})
}

// However late it is told, the run began when it did.
func TestReporterTellsWhenTheRunBegan(t *testing.T) {
	for _, c := range []struct {
		name string
		away time.Duration // the broker, from the start
		ago  time.Duration // the run began before it was told to the Reporter
		want time.Duration // the beginning as it is told, after the Reporter's
		most int           // messages
	}{
		{"the broker is there", 0, 0, 0, 4},
		{"the broker comes in the middle", 7 * time.Second, 0, 0, 4},
		{"the broker comes after the end", 15 * time.Second, 0, 0, 2},
		{"it began long ago", 0, 26 * time.Hour, -26 * time.Hour, 4},
		{"it began long ago, and the broker is away", 7 * time.Second, time.Hour, -time.Hour, 4},
		{"it begins tomorrow", 0, -24 * time.Hour, 0, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now().UTC()
				broker := &recorder{hook: func(context.Context) error {
					if time.Since(began) < c.away {
						return errors.New("connection refused")
					}
					return nil
				}}
				r := start(t, broker)
				r.BeginAt(began.Add(-c.ago))
				for i := range 2 {
					id := fmt.Sprint("job ", i)
					r.Job(workflow.JobReport{ID: id, Status: workflow.JobRunning, StartedAt: time.Now().UTC()})
					time.Sleep(5 * time.Second)
					r.Job(workflow.JobReport{ID: id, Status: workflow.JobFinished, FinishedAt: time.Now().UTC()})
					r.Log("line\n")
				}
				report := r.Finish(t.Context(), workflow.StatusFinished, "")
				if report.Unsent != 0 || report.Confirmed != len(broker.statuses) {
					t.Errorf("report: %+v, want all of %d messages confirmed", report, len(broker.statuses))
				}
				run := broker.fold().Run
				if got := run.StartedAt().Sub(began); got != c.want {
					t.Errorf("the run is told to have begun %v after it did, want %v", got, c.want)
				}
				if got := run.FinishedAt().Sub(began); got != 10*time.Second {
					t.Errorf("the run is told to have ended %v after it began, want 10s", got)
				}
				if run.Counts() != (workflow.Counts{Total: 2, Finished: 2}) {
					t.Errorf("folded: %+v, want 2 of 2", run.Counts())
				}
				for i, m := range broker.statuses {
					if m.Logs != "" && m.EventTime.Before(began.Add(5*time.Second)) {
						t.Errorf("message %d has a line that was written after 5 s, and the time of %v", i, m.EventTime.Sub(began))
					}
				}
				if len(broker.statuses) > c.most {
					t.Errorf("%d messages, want at most %d", len(broker.statuses), c.most)
				}
			})
		})
	}
}

func TestReporterKeepsOrderWhenAMessageComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trouble, calls := make(chan error), 0
		broker := &recorder{hook: func(context.Context) error {
			if calls++; calls == 2 { // the one after the first message
				return <-trouble
			}
			return nil
		}}
		r := start(t, broker)
		r.Begin()
		time.Sleep(time.Second)
		r.Job(workflow.JobReport{ID: "a", Status: workflow.JobRunning, Name: "old", Logs: "one "})
		r.Log("first ")
		synctest.Wait() // on its way
		r.Job(workflow.JobReport{ID: "a", Status: workflow.JobFinished, Name: "new", Logs: "two"})
		r.Log("second")
		trouble <- errors.New("connection lost")
		time.Sleep(time.Minute)
		report := r.Finish(t.Context(), workflow.StatusFinished, "")

		if len(broker.statuses) != 3 {
			t.Fatalf("%d messages arrived, want 3", len(broker.statuses))
		}
		m := broker.statuses[1]
		want := []workflow.JobReport{{ID: "a", Attempt: 1, Status: workflow.JobFinished, Name: "new", Logs: "one two"}}
		if diff := cmp.Diff(want, m.Jobs); diff != "" || m.Logs != "first second" || m.Progress.Running != nil {
			t.Errorf("the message that was tried again has logs %q, running %v, jobs (-want +got):\n%s", m.Logs, m.Progress.Running, diff)
		}
		if want := (Report{Published: 3, Confirmed: 3, Coalesced: 1}); !cmp.Equal(want, report) {
			t.Errorf("report: %+v, want %+v", report, want)
		}
	})
}

func TestReporterEndIsToldWhenDetailsCannotBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// A broker that refuses, for ever, whatever carries the poisoned detail.
		poison := &poisoned{}
		r := start(t, poison)
		r.Begin()
		synctest.Wait()
		r.Job(workflow.JobReport{ID: "a", Status: workflow.JobFailed, Diagnostics: "poison"})
		time.Sleep(time.Minute)
		report := r.Finish(t.Context(), workflow.StatusFailed, "the reason")
		end := poison.last(t)
		if end.Status != workflow.StatusFailed || end.Logs != "the reason" || !cmp.Equal(end.Progress.Failed, workflow.JobIDs("a")) {
			t.Errorf("the end came as %v, logs %q, failed %v", end.Status, end.Logs, end.Progress.Failed)
		}
		if report.Dropped != 1 || report.Terminal != nil || report.Unsent != 0 {
			t.Errorf("report: %+v, want one detail dropped and the end confirmed", report)
		}
	})
}

type poisoned struct{ recorder }

func (p *poisoned) Status(ctx context.Context, m *workflow.StatusMessage) error {
	for _, j := range m.Jobs {
		if j.Diagnostics == "poison" {
			return errors.New("invalid message")
		}
	}
	return p.recorder.Status(ctx, m)
}

func TestReporterFinishReturnsThoughThePublisherHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		r := start(t, &recorder{hook: func(context.Context) error { <-release; return nil }}) // deaf to its context
		r.Begin()
		synctest.Wait()
		begin := time.Now()
		report := r.Finish(t.Context(), workflow.StatusFinished, "")
		if took := time.Since(begin); took > 32*time.Second {
			t.Errorf("Finish took %v", took)
		}
		if report.Terminal == nil || report.Unsent != 2 || report.Err == nil {
			t.Errorf("report: %+v, want the end and the first message unsent", report)
		}
		close(release)
	})
}

func TestReporterFinishIsCutShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, &recorder{hook: hang})
		r.Begin()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		begin := time.Now()
		report := r.Finish(ctx, workflow.StatusStopped, "")
		if took := time.Since(begin); took != 2*time.Second || report.Terminal == nil {
			t.Errorf("took %v with report %+v, want 2 s and the end unsent", took, report)
		}
	})
}

func TestReporterPacesProgressButNotFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &recorder{}
		r := NewReporter(t.Context(), Config{Engine: "test", WorkflowID: runID, Publisher: broker, Interval: time.Minute})
		r.Begin()
		synctest.Wait()
		for i := range 10 {
			r.Job(workflow.JobReport{ID: fmt.Sprint(i), Status: workflow.JobRunning})
			synctest.Wait()
		}
		if n := len(broker.statuses); n != 1 {
			t.Errorf("%d messages within the interval, want 1", n)
		}
		r.Job(workflow.JobReport{ID: "5", Status: workflow.JobFailed})
		synctest.Wait()
		if n := len(broker.statuses); n != 2 {
			t.Fatalf("%d messages after a failure, want 2: it must not wait", n)
		}
		if got := broker.statuses[1].Progress; !cmp.Equal(got.Failed, workflow.JobIDs("5")) || got.Running.Total != 9 {
			t.Errorf("the failure came with %+v", got)
		}
		r.Finish(t.Context(), workflow.StatusFailed, "")
	})
}

func TestReporterWithoutPublisher(t *testing.T) {
	r := start(t, nil)
	r.Begin()
	r.Job(workflow.JobReport{ID: "a", Status: workflow.JobFinished})
	if got := r.Finish(t.Context(), workflow.StatusFinished, ""); !cmp.Equal(got, Report{}) {
		t.Errorf("report %+v, want nothing", got)
	}
}

func TestReporterIgnoresWhatComesAfterTheEnd(t *testing.T) {
	broker := &recorder{}
	r := start(t, broker)
	r.Begin()
	r.Finish(t.Context(), workflow.StatusStopped, "")
	r.Job(workflow.JobReport{ID: "late", Status: workflow.JobRunning})
	r.Log("late")
	if end := broker.last(t); end.Status != workflow.StatusStopped || len(broker.fold().Jobs) != 0 {
		t.Errorf("after the end came %+v", end)
	}
}

// TestReporterConverges drives a reporter with any sequence of changes over a
// broker that fails at random, and compares what observers arrive at.
func TestReporterConverges(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		script := rapid.SliceOfN(rapid.IntRange(0, 5), 0, 20).Draw(rt, "outcomes")
		calls := 0
		broker := &recorder{hook: func(context.Context) error {
			if calls++; calls <= len(script) && script[calls-1] == 0 {
				return errors.New("broker trouble")
			}
			return nil
		}}
		changes := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) workflow.JobReport {
			return workflow.JobReport{
				ID:      rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "id"),
				Attempt: rapid.IntRange(1, 2).Draw(rt, "attempt"),
				Status:  rapid.SampledFrom(workflow.JobStatuses()).Draw(rt, "status"),
				Logs:    rapid.SampledFrom([]string{"", "x"}).Draw(rt, "logs"),
			}
		}), 0, 30).Draw(rt, "changes")

		type known struct {
			Attempt int
			Status  workflow.JobStatus
		}
		want := map[string]known{}
		wantLogs, gotLogs := map[string]string{}, map[string]string{}
		synctest.Test(t, func(t *testing.T) {
			r := start(t, broker)
			r.Begin()
			for i, c := range changes {
				if c.Logs != "" {
					c.Logs = fmt.Sprintf("%d ", i) // to see their order
				}
				old, ok := want[c.ID]
				switch {
				case !ok || c.Attempt > old.Attempt:
					want[c.ID] = known{c.Attempt, c.Status}
				case c.Attempt == old.Attempt && !old.Status.Terminal():
					want[c.ID] = known{c.Attempt, max(old.Status, c.Status)}
				}
				if c.Attempt >= old.Attempt {
					wantLogs[c.ID] += c.Logs
				}
				r.Job(c)
				time.Sleep(50 * time.Millisecond)
			}
			r.Finish(t.Context(), workflow.StatusFinished, "")
		})

		state := broker.fold()
		got := map[string]known{}
		for id, j := range state.Jobs {
			got[id] = known{j.Attempt, j.Status}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			rt.Errorf("jobs (-told +folded):\n%s", diff)
		}
		for i, m := range broker.statuses {
			for _, j := range m.Jobs {
				gotLogs[j.ID] += j.Logs
			}
			if m.Status.Terminal() != (i == len(broker.statuses)-1) {
				rt.Errorf("message %d of %d has status %v", i+1, len(broker.statuses), m.Status)
			}
		}
		if diff := cmp.Diff(wantLogs, gotLogs); diff != "" {
			rt.Errorf("logs (-told +arrived):\n%s", diff)
		}
		if !slices.IsSortedFunc(broker.statuses, func(a, b *workflow.StatusMessage) int { return a.EventTime.Compare(b.EventTime) }) {
			rt.Error("event times run backwards")
		}
	})
}
