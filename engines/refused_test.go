package engines

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"waymark/workflow"
)

// judge is a broker that refuses what bad says, for ever, and takes the rest.
type judge struct {
	recorder
	bad           func(m *workflow.StatusMessage) bool
	badSubmission bool
	refusals      int
}

func (j *judge) Status(ctx context.Context, m *workflow.StatusMessage) error {
	if j.bad(m) {
		j.refusals++
		return fmt.Errorf("%w: invalid status message", ErrInvalid)
	}
	return j.recorder.Status(ctx, m)
}

func (j *judge) Submission(ctx context.Context, s *workflow.Submission) error {
	if j.badSubmission {
		return fmt.Errorf("%w: invalid submission", ErrInvalid)
	}
	return j.recorder.Submission(ctx, s)
}

// has returns what refuses messages with one of these jobs, if they say more
// than its state.
func has(ids ...string) func(*workflow.StatusMessage) bool {
	return func(m *workflow.StatusMessage) bool {
		return slices.ContainsFunc(m.Jobs, func(u workflow.JobReport) bool { return slices.Contains(ids, u.ID) && u.Name != "" })
	}
}

// One bad report costs its own details and a few tries, wherever it is.
func TestReporterIsolatesWhatIsRefused(t *testing.T) {
	const jobs = 900
	for _, bad := range []int{0, 437, jobs - 1} {
		for _, atEnd := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				broker := &judge{bad: has(fmt.Sprint(bad))}
				var log bytes.Buffer
				r := NewReporter(t.Context(), Config{Engine: "test", WorkflowID: runID, Publisher: broker, Logger: slog.New(slog.NewTextHandler(&log, nil))})
				r.Begin()
				synctest.Wait()
				r.Log("a line\n")
				r.Total(jobs)
				r.EngineSpecific(func() json.RawMessage { return json.RawMessage(`{"dag":{}}`) })
				for i := range jobs {
					r.Job(workflow.JobReport{ID: fmt.Sprint(i), Status: workflow.JobFinished, Name: "n", Logs: "x"})
				}
				if !atEnd {
					time.Sleep(time.Second)
				}
				began := time.Now()
				report := r.Finish(t.Context(), workflow.StatusFinished, "done\n")
				if took := time.Since(began); took > time.Second {
					t.Errorf("job %d: the end took %v", bad, took)
				}
				named, specific := map[string]bool{}, 0
				var logs strings.Builder
				for _, m := range broker.statuses {
					logs.WriteString(m.Logs)
					if m.Progress.EngineSpecific != nil {
						specific++
					}
					for _, u := range m.Jobs {
						if u.Name != "" && u.Logs == "x" {
							named[u.ID] = true
						}
					}
				}
				if len(named) != jobs-1 || named[fmt.Sprint(bad)] {
					t.Errorf("job %d of %d is refused, and %d arrived with details", bad, jobs, len(named))
				}
				if logs.String() != "a line\ndone\n" || specific != 1 {
					t.Errorf("job %d: the log is %q and the graph arrived %d times, want each once", bad, logs.String(), specific)
				}
				if report.Dropped != 1 || report.Unsent != 0 || report.Published != len(broker.statuses) || report.Terminal != nil || report.Err != nil {
					t.Errorf("job %d: the report is %+v of %d messages, want one detail dropped", bad, report, len(broker.statuses))
				}
				if broker.refusals > 14 {
					t.Errorf("job %d was found after %d refusals", bad, broker.refusals)
				}
				if n := strings.Count(log.String(), "left out"); n != 1 {
					t.Errorf("job %d: said %d times, want once: %s", bad, n, log.String())
				}
				if run := broker.fold().Run; run.Status() != workflow.StatusFinished || run.Counts().Finished != jobs {
					t.Errorf("job %d: folded to %v, %+v", bad, run.Status(), run.Counts())
				}
			})
		}
	}
}

// Whatever is refused, the end is told, all that is good arrives, and the balance is right.
func TestReporterSurvivesRefusals(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		badJobs := rapid.SliceOfDistinct(rapid.IntRange(0, 30), rapid.ID).Draw(rt, "bad jobs")
		badLogs, badSpecific, badTotal := rapid.Bool().Draw(rt, "bad logs"), rapid.Bool().Draw(rt, "bad graph"), rapid.Bool().Draw(rt, "bad total")
		pauses := rapid.SliceOfN(rapid.IntRange(0, 60), 31, 31).Draw(rt, "pauses")
		var ids []string
		for _, n := range badJobs {
			ids = append(ids, fmt.Sprint(n))
		}
		job := has(ids...)
		broker := &judge{bad: func(m *workflow.StatusMessage) bool {
			return job(m) || badLogs && strings.Contains(m.Logs, "bad") || badSpecific && m.Progress.EngineSpecific != nil ||
				badTotal && m.Progress.Total != nil && !m.Status.Terminal()
		}}
		var report Report
		synctest.Test(t, func(t *testing.T) {
			r := start(t, broker)
			r.Total(31)
			r.EngineSpecific(func() json.RawMessage { return json.RawMessage(`{}`) })
			r.Log("bad\n")
			r.Begin()
			for i := range 31 {
				r.Job(workflow.JobReport{ID: fmt.Sprint(i), Status: workflow.JobFinished, Name: "n"})
				time.Sleep(time.Duration(pauses[i]) * time.Millisecond)
			}
			report = r.Finish(t.Context(), workflow.StatusFailed, "why")
		})
		want := len(badJobs)
		for _, bad := range []bool{badLogs, badSpecific, badTotal} {
			if bad {
				want++
			}
		}
		// Of the run's own news the graph is suspected first, and the log next:
		// what is not refused itself may go with what is.
		more := 0
		if badLogs || badTotal {
			more = 2
		}
		if report.Dropped < want || report.Dropped > want+more || report.Unsent != 0 || report.Published != len(broker.statuses) || report.Terminal != nil {
			rt.Errorf("report %+v of %d messages, want %d to %d dropped and none unsent", report, len(broker.statuses), want, want+more)
		}
		named := map[string]bool{}
		for _, m := range broker.statuses {
			for _, u := range m.Jobs {
				named[u.ID] = named[u.ID] || u.Name != ""
			}
		}
		for i := range 31 {
			if id := fmt.Sprint(i); named[id] == slices.Contains(badJobs, i) {
				rt.Errorf("job %s: its details arrived: %v", id, named[id])
			}
		}
		if run := broker.fold().Run; run.Status() != workflow.StatusFailed || run.Counts().Finished != 31 {
			rt.Errorf("folded to %v, %+v", run.Status(), run.Counts())
		}
		if broker.statuses[0].Status != workflow.StatusRunning {
			rt.Errorf("the first status is %v", broker.statuses[0].Status)
		}
	})
}

// If it is the states of the jobs that are refused, the end is told without.
func TestReporterEndIsToldWithoutJobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &judge{bad: func(m *workflow.StatusMessage) bool { return m.Progress.Finished != nil }}
		r := start(t, broker)
		r.Begin()
		r.Job(workflow.JobReport{ID: "a", Status: workflow.JobFinished, Name: "n"})
		began := time.Now()
		report := r.Finish(t.Context(), workflow.StatusFinished, "done\n")
		end := broker.last(t)
		if end.Status != workflow.StatusFinished || end.Logs != "done\n" || end.Progress.Total.Total != 1 {
			t.Errorf("the end is %+v, want it told", end)
		}
		if report.Dropped == 0 || report.Unsent != 0 || report.Terminal != nil || time.Since(began) > time.Second {
			t.Errorf("after %v the report is %+v, want nothing unsent", time.Since(began), report)
		}
	})
}

// Whoever refuses everything is not asked for half a minute.
func TestReporterGivesUpIfTheEndIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &judge{bad: func(*workflow.StatusMessage) bool { return true }, badSubmission: true}
		r := start(t, broker)
		r.Submit(&workflow.Submission{User: "ada", Workflow: runID.String()})
		r.Begin()
		r.Log("x")
		r.Job(workflow.JobReport{ID: "a", Status: workflow.JobFinished, Name: "n"})
		began := time.Now()
		report := r.Finish(t.Context(), workflow.StatusFinished, "")
		if report.Terminal == nil || report.Unsent != report.Published || report.Confirmed != 0 || !errors.Is(report.Err, ErrInvalid) {
			t.Errorf("report %+v, want the end unsent and why", report)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// A refused submission does not hold up the statuses.
func TestReporterGoesOnWithoutSubmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &judge{bad: func(*workflow.StatusMessage) bool { return false }, badSubmission: true}
		r := start(t, broker)
		r.Submit(&workflow.Submission{User: "a\nda", Workflow: runID.String()})
		r.Begin()
		synctest.Wait()
		if len(broker.statuses) != 1 {
			t.Errorf("%d statuses arrived at once, want 1", len(broker.statuses))
		}
		report := r.Finish(t.Context(), workflow.StatusFinished, "")
		if report.Published != 3 || report.Confirmed != 2 || report.Unsent != 1 || report.Terminal != nil || !errors.Is(report.Err, ErrInvalid) {
			t.Errorf("report %+v, want the submission unsent and why", report)
		}
	})
}

// What nobody would take does not get into a message.
func TestReporterBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &recorder{}
		r := start(t, broker)
		r.Begin()
		r.Total(5_000_000_000_000)
		far := time.Date(12026, 1, 1, 0, 0, 0, 0, time.UTC)
		nested := func(n int) json.RawMessage {
			return json.RawMessage(strings.Repeat(`[{"]":`, n/2) + `"\"["` + strings.Repeat(`}]`, n/2))
		}
		results := map[string]json.RawMessage{
			"huge":      json.RawMessage(`"` + strings.Repeat("x", 20<<20) + `"`),
			"too deep":  nested(2000),
			"invalid":   json.RawMessage(`{"a":`),
			"deep":      nested(60),
			"deep, bad": nested(62),
		}
		for id, result := range results {
			r.Job(workflow.JobReport{ID: id, Status: workflow.JobFinished, Result: result})
		}
		r.Job(workflow.JobReport{ID: "far", Attempt: 2_000_000, Status: workflow.JobFailed, ExitCode: new(5_000_000_000), StartedAt: far})
		r.Job(workflow.JobReport{ID: "low", Attempt: -1, Status: workflow.JobFailed, ExitCode: new(math.MinInt64)})
		for _, id := range []string{"", "a\nb", "\xff", strings.Repeat("x", 257)} {
			r.Job(workflow.JobReport{ID: id, Status: workflow.JobFinished})
		}
		report := r.Finish(t.Context(), workflow.StatusFailed, strings.Repeat("x", 9<<20))
		if report.Dropped != 5 {
			t.Errorf("%d details were dropped, want four results and a time", report.Dropped)
		}
		for _, m := range broker.statuses {
			if m.Progress.Total != nil && m.Progress.Total.Total != workflow.MaxTotal || len(m.Logs) > 1<<20 {
				t.Errorf("a message has the total %+v and a log of %d bytes", m.Progress.Total, len(m.Logs))
			}
			for _, u := range m.Jobs {
				if !validJobID(u.ID) {
					t.Errorf("a message names job %q", u.ID)
				}
				if (u.Result != nil) != (u.ID == "deep") {
					t.Errorf("job %q has a result of %d bytes", u.ID, len(u.Result))
				}
			}
		}
		jobs := broker.fold().Jobs
		if j := jobs["far"]; j == nil || j.Attempt != workflow.MaxAttempt || j.ExitCode == nil || *j.ExitCode != math.MaxInt32 || !j.StartedAt.IsZero() {
			t.Errorf("job far is %+v", j)
		}
		if j := jobs["low"]; j == nil || j.Attempt != 1 || j.ExitCode == nil || *j.ExitCode != math.MinInt32 {
			t.Errorf("job low is %+v", j)
		}
		if len(jobs) != len(results)+6 {
			t.Errorf("%d jobs arrived, want %d", len(jobs), len(results)+6)
		}
	})
}

// While the broker is away, text of all kinds is kept within bounds; logs go
// first, names last.
func TestReporterShedsAllText(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &recorder{hook: func(context.Context) error { return errors.New("connection refused") }}
		r := start(t, broker)
		r.Begin()
		big := strings.Repeat("x", 60<<10)
		for i := range 2000 {
			r.Job(workflow.JobReport{ID: fmt.Sprint(i), Status: workflow.JobFailed, Name: "n", Logs: "log", Command: big, Diagnostics: big, Result: json.RawMessage(`"` + big + `"`)})
			time.Sleep(10 * time.Millisecond) // now and then a message comes back
			synctest.Wait()
			r.mu.Lock()
			sum := 0
			for _, j := range r.pending {
				sum += weight(j.unsent)
			}
			if r.text != sum || sum > maxPendingText {
				t.Fatalf("after job %d, %d bytes wait, of which %d are known: want at most %d", i, sum, r.text, maxPendingText)
			}
			r.mu.Unlock()
		}
		r.mu.Lock()
		for _, j := range r.pending {
			if j.unsent.Name == "" || j.unsent.Result != nil && j.unsent.Command == "" {
				t.Errorf("job %s was left with name %q, a result of %d bytes and a command of %d", j.id, j.unsent.Name, len(j.unsent.Result), len(j.unsent.Command))
			}
		}
		r.mu.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if report := r.Finish(ctx, workflow.StatusFailed, ""); report.Dropped < 2000 {
			t.Errorf("%d details were dropped, want thousands", report.Dropped)
		}
	})
}

// A log that is cut is counted, and attempts share one, as they do where logs
// are kept.
func TestReporterCountsCutLogs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &recorder{}
		r := start(t, broker)
		r.Job(workflow.JobReport{ID: "a", Status: workflow.JobRunning, Logs: strings.Repeat("x", maxJobLog)})
		r.Job(workflow.JobReport{ID: "a", Status: workflow.JobFinished, Logs: "end"})
		r.Job(workflow.JobReport{ID: "b", Attempt: 1, Status: workflow.JobRunning, Name: "first", Logs: "one "})
		r.Job(workflow.JobReport{ID: "b", Attempt: 2, Status: workflow.JobFinished, Logs: "two"})
		r.Begin()
		if report := r.Finish(t.Context(), workflow.StatusFinished, ""); report.Dropped != 1 {
			t.Errorf("%d details were dropped, want one log that was cut", report.Dropped)
		}
		said := map[string]workflow.JobReport{}
		for _, m := range broker.statuses {
			for _, u := range m.Jobs {
				if u.Logs != "" {
					said[u.ID] = u
				}
			}
		}
		if a, b := said["a"], said["b"]; !strings.HasSuffix(a.Logs, "xend") || b.Logs != "one two" || b.Attempt != 2 || b.Name != "" {
			t.Errorf("told were a log that ends in %.20q and job %+v", a.Logs[max(0, len(a.Logs)-20):], b)
		}
	})
}

// A graph that could not be sent is sent as soon as the broker is back.
func TestReporterSendsTheGraphAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		broker := &recorder{hook: func(context.Context) error {
			if calls++; calls == 1 {
				return errors.New("connection lost")
			}
			return nil
		}}
		r := start(t, broker)
		r.EngineSpecific(func() json.RawMessage { return json.RawMessage(`"` + strings.Repeat("x", 1<<20) + `"`) })
		r.Begin()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if len(broker.statuses) != 1 || broker.statuses[0].Progress.EngineSpecific == nil {
			t.Errorf("%d messages arrived, want one with the graph", len(broker.statuses))
		}
		r.Finish(t.Context(), workflow.StatusFinished, "")
	})
}

func TestReporterSaysThatItWaits(t *testing.T) {
	for _, tc := range []struct {
		what      string
		publisher Publisher
		want      []string
		not       string
	}{
		{"a broker that is away", &recorder{hook: hang}, []string{"waiting for the broker", "at_most=28s"}, "kept on disk"},
		{"one that is away, and a disk", &keeper{full: true}, []string{"waiting for the broker", "at_most=28s", "kept on disk"}, "nothing else"},
		{"one that answers", &recorder{}, nil, "waiting"},
	} {
		synctest.Test(t, func(t *testing.T) {
			var log bytes.Buffer
			r := NewReporter(t.Context(), Config{Engine: "test", WorkflowID: runID, Publisher: tc.publisher, Logger: slog.New(slog.NewTextHandler(&log, nil))})
			r.Begin()
			synctest.Wait()
			r.Finish(t.Context(), workflow.StatusFinished, "")
			for _, want := range tc.want {
				if strings.Count(log.String(), want) != 1 {
					t.Errorf("%s: the log does not say %q once: %s", tc.what, want, log.String())
				}
			}
			if strings.Contains(log.String(), tc.not) {
				t.Errorf("%s: the log says %q: %s", tc.what, tc.not, log.String())
			}
		})
	}
}
