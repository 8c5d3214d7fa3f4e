package workflow_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
	"pgregory.net/rapid"

	"waymark/workflow"
)

var (
	noon  = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	runID = uuid.MustParse("11111111-2222-4333-8444-555555555555")
)

func at(second int) time.Time { return noon.Add(time.Duration(second) * time.Second) }

// A hundred cases, rapid's default, miss what needs three messages to agree.
func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		if err := f.Value.Set("3000"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// database keeps states as the store does: a batch loads the run and only the
// jobs its messages mention, and writes back what the fold says changed.
type database struct {
	run     workflow.Run
	jobs    map[string]workflow.Job
	history map[string]time.Time
}

func newDatabase() *database {
	return &database{run: workflow.Run{ID: runID, Attempt: 1}, jobs: map[string]workflow.Job{}, history: map[string]time.Time{}}
}

func (db *database) apply(batch []event) {
	s := workflow.NewState(db.run)
	for _, e := range batch {
		if e.status == nil {
			continue
		}
		for id := range e.status.MentionedJobs() {
			if j, ok := db.jobs[id]; ok {
				s.Jobs[id] = &j
			}
		}
	}
	for _, e := range batch {
		if e.status != nil {
			s.Apply(e.status)
		} else {
			s.Submit(e.submission)
		}
	}
	if s.RunChanged {
		db.run = s.Run
	}
	for _, j := range s.ChangedJobs {
		db.jobs[j.ID] = *j
	}
	for _, h := range s.History {
		key := fmt.Sprint(h.Attempt, h.Status)
		if old, ok := db.history[key]; !ok || h.At.Before(old) {
			db.history[key] = h.At
		}
	}
}

// diff compares final rows; what is derived is compared as well.
func (db *database) diff(o *database) string {
	return cmp.Diff(db.final(), o.final(), cmpopts.IgnoreUnexported(workflow.Job{}))
}

func (db *database) final() map[string]any {
	return map[string]any{
		"run": db.run, "jobs": db.jobs, "history": db.history,
		"status": db.run.Status(), "started": db.run.StartedAt(), "finished": db.run.FinishedAt(), "counts": db.run.Counts(),
	}
}

type event struct {
	status     *workflow.StatusMessage
	submission *workflow.Submission
}

// drawTrace draws what an engine might say about a run over several attempts:
// growing totals, retries of jobs, cached jobs, deltas and snapshots mixed,
// counts without ids, and late messages after the end.
func drawTrace(t *rapid.T) []event {
	var trace []event
	second := 0
	tick := func() time.Time {
		second += rapid.IntRange(0, 3).Draw(t, "tick")
		return at(second)
	}
	submissions := rapid.IntRange(0, 2).Draw(t, "submissions")
	for i := range submissions {
		trace = append(trace, event{submission: &workflow.Submission{
			User: "u", Workflow: runID.String(), Name: fmt.Sprint("w", i), RetryCount: i, EventTime: tick(), Engine: "cwl",
		}})
	}
	for attempt := 1; attempt <= rapid.IntRange(1, 3).Draw(t, "attempts"); attempt++ {
		say := func(status workflow.Status, p workflow.Progress, jobs ...workflow.JobReport) {
			trace = append(trace, event{status: &workflow.StatusMessage{
				WorkflowID: runID, Status: status, EventTime: tick(), Attempt: attempt, Progress: p, Jobs: jobs, Engine: "cwl",
			}})
		}
		if rapid.Bool().Draw(t, "pending") {
			say(workflow.StatusPending, workflow.Progress{})
		}
		n := rapid.IntRange(0, 5).Draw(t, "jobs")
		total := n
		say(workflow.StatusRunning, workflow.Progress{Total: workflow.Count(total)})
		countsOnly := rapid.Bool().Draw(t, "counts only")
		var running, finished, failed, cached []string
		snapshot := func() workflow.Progress {
			if countsOnly {
				return workflow.Progress{Total: workflow.Count(total), Running: workflow.Count(len(running)), Finished: workflow.Count(len(finished)), Failed: workflow.Count(len(failed))}
			}
			return workflow.Progress{Total: workflow.Count(total),
				Running: workflow.JobIDs(slices.Clone(running)...), Finished: workflow.JobIDs(slices.Clone(finished)...),
				Failed: workflow.JobIDs(slices.Clone(failed)...), Cached: workflow.JobIDs(slices.Clone(cached)...),
				EngineSpecific: json.RawMessage(fmt.Sprintf(`{"n":%d}`, second))}
		}
		for i := range n {
			id := fmt.Sprint("job", i)
			if rapid.Bool().Draw(t, "grow") {
				total++
			}
			switch rapid.SampledFrom([]string{"delta", "snapshot", "cached", "retry", "fail", "vanish"}).Draw(t, "job") {
			case "delta":
				if countsOnly {
					break
				}
				say(workflow.StatusRunning, workflow.Progress{Running: workflow.JobIDs(id)})
				say(workflow.StatusRunning, workflow.Progress{Finished: workflow.JobIDs(id)})
				finished = append(finished, id)
			case "snapshot":
				running = append(running, id)
				say(workflow.StatusRunning, snapshot())
				running = running[:len(running)-1]
				finished = append(finished, id)
				say(workflow.StatusRunning, snapshot())
			case "cached":
				finished, cached = append(finished, id), append(cached, id)
				say(workflow.StatusRunning, snapshot())
			case "retry":
				if countsOnly {
					break
				}
				code := 1
				say(workflow.StatusRunning, workflow.Progress{}, workflow.JobReport{ID: id, Status: workflow.JobRunning, Name: "fit"})
				say(workflow.StatusRunning, workflow.Progress{}, workflow.JobReport{ID: id, Status: workflow.JobFailed, ExitCode: &code, FinishedAt: tick()})
				say(workflow.StatusRunning, workflow.Progress{}, workflow.JobReport{ID: id, Attempt: 2, Status: workflow.JobQueued})
				say(workflow.StatusRunning, workflow.Progress{}, workflow.JobReport{ID: id, Attempt: 2, Status: workflow.JobRunning, StartedAt: tick(), Name: "fit"})
				say(workflow.StatusRunning, workflow.Progress{}, workflow.JobReport{ID: id, Attempt: 2, Status: workflow.JobFinished, Command: "true"})
			case "fail":
				failed = append(failed, id)
				say(workflow.StatusRunning, snapshot())
			case "vanish":
				if !countsOnly {
					say(workflow.StatusRunning, workflow.Progress{Running: workflow.JobIDs(id), Total: workflow.JobIDs(id, id+"b")})
				}
			}
		}
		say(rapid.SampledFrom([]workflow.Status{workflow.StatusFinished, workflow.StatusFailed, workflow.StatusStopped}).Draw(t, "end"), snapshot())
		if rapid.Bool().Draw(t, "late") {
			say(workflow.StatusRunning, workflow.Progress{Finished: workflow.JobIDs("late")})
			say(workflow.StatusFailed, workflow.Progress{})
		}
	}
	if rapid.Bool().Draw(t, "deleted") {
		trace = append(trace, event{status: &workflow.StatusMessage{WorkflowID: runID, Status: workflow.StatusDeleted, EventTime: tick()}})
	}
	return trace
}

// drawChaos draws messages that no engine would send in this sequence.
func drawChaos(t *rapid.T) []event {
	ids := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c", "d"}), 0, 3)
	section := rapid.Custom(func(t *rapid.T) *workflow.Section {
		if rapid.IntRange(0, 2).Draw(t, "absent") == 0 {
			return nil
		}
		return &workflow.Section{Total: rapid.IntRange(-3, 6).Draw(t, "total"), JobIDs: ids.Draw(t, "ids")}
	})
	when := rapid.Custom(func(t *rapid.T) time.Time {
		if rapid.IntRange(0, 2).Draw(t, "unset") == 0 {
			return time.Time{}
		}
		return at(rapid.IntRange(0, 9).Draw(t, "when"))
	})
	report := rapid.Custom(func(t *rapid.T) workflow.JobReport {
		r := workflow.JobReport{
			ID: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "id"), Status: rapid.SampledFrom(workflow.JobStatuses()).Draw(t, "status"),
			Attempt: rapid.IntRange(0, 3).Draw(t, "attempt"), Cached: rapid.Bool().Draw(t, "cached"),
			Name: rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "name"), StartedAt: when.Draw(t, "started"), FinishedAt: when.Draw(t, "finished"),
		}
		if rapid.Bool().Draw(t, "exited") {
			code := rapid.IntRange(-1, 2).Draw(t, "code")
			r.ExitCode = &code
		}
		return r
	})
	message := rapid.Custom(func(t *rapid.T) event {
		if rapid.IntRange(0, 9).Draw(t, "submission") == 0 {
			return event{submission: &workflow.Submission{User: rapid.SampledFrom([]string{"u", "v"}).Draw(t, "user"), Workflow: runID.String(),
				Attempt: rapid.IntRange(0, 3).Draw(t, "attempt"), RetryCount: rapid.IntRange(0, 2).Draw(t, "retries"), EventTime: at(rapid.IntRange(0, 9).Draw(t, "at"))}}
		}
		return event{status: &workflow.StatusMessage{
			WorkflowID: runID, Status: rapid.SampledFrom(workflow.Statuses()).Draw(t, "status"),
			EventTime: at(rapid.IntRange(0, 9).Draw(t, "at")), Attempt: rapid.IntRange(0, 3).Draw(t, "attempt"),
			Engine: rapid.SampledFrom([]string{"", "cwl", "serial"}).Draw(t, "engine"),
			Progress: workflow.Progress{Total: section.Draw(t, "total"), Running: section.Draw(t, "running"), Finished: section.Draw(t, "finished"),
				Failed: section.Draw(t, "failed"), Cached: section.Draw(t, "cached"),
				EngineSpecific: json.RawMessage(rapid.SampledFrom([]string{"", "1", "2"}).Draw(t, "specific"))},
			Jobs: rapid.SliceOfN(report, 0, 2).Draw(t, "reports"),
		}}
	})
	return rapid.SliceOfN(message, 1, 12).Draw(t, "messages")
}

// scramble permutes the trace, repeats some of it, and splits it into batches.
func scramble(t *rapid.T, trace []event) [][]event {
	again := rapid.SliceOfN(rapid.IntRange(0, len(trace)-1), 0, 6).Draw(t, "again")
	all := slices.Clone(trace)
	for _, i := range again {
		all = append(all, trace[i])
	}
	all = rapid.Permutation(all).Draw(t, "order")
	var batches [][]event
	for len(all) > 0 {
		n := rapid.IntRange(1, len(all)).Draw(t, "batch")
		batches = append(batches, all[:n])
		all = all[n:]
	}
	return batches
}

func testConverges(t *testing.T, draw func(*rapid.T) []event) {
	rapid.Check(t, func(t *rapid.T) {
		trace := draw(t)
		want := newDatabase()
		for _, e := range trace {
			want.apply([]event{e})
		}
		got := newDatabase()
		for _, batch := range scramble(t, trace) {
			got.apply(batch)
		}
		if d := want.diff(got); d != "" {
			t.Fatalf("order, repetition or batches changed the result (-in order, +scrambled):\n%s", d)
		}
	})
}

func TestTraceConverges(t *testing.T) { testConverges(t, drawTrace) }
func TestChaosConverges(t *testing.T) { testConverges(t, drawChaos) }

// After every single message of any sequence the state is one that can be shown.
func TestNothingIllegal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		db := newDatabase()
		for i, e := range drawChaos(t) {
			before := db.run
			db.apply([]event{e})
			checkLegal(t, i, before, db)
		}
	})
}

func checkLegal(t *rapid.T, i int, before workflow.Run, db *database) {
	c := db.run.Counts()
	for name, n := range map[string]int{"total": c.Total, "created": c.Created, "queued": c.Queued, "running": c.Running, "finished": c.Finished, "failed": c.Failed, "stopped": c.Stopped, "cached": c.Cached} {
		if n < 0 {
			t.Fatalf("after message %d: %s is %d", i, name, n)
		}
	}
	if sum := c.Created + c.Queued + c.Running + c.Finished + c.Failed + c.Stopped; sum > c.Total || c.Cached > c.Finished {
		t.Fatalf("after message %d: more than 100 %%: %+v", i, c)
	}
	var recount workflow.JobCounts
	for _, j := range db.jobs {
		if !j.Status.Valid() || j.RunAttempt < 1 || j.Attempt < 1 {
			t.Fatalf("after message %d: illegal job %+v", i, j)
		}
		if j.Status.Terminal() == j.FinishedAt.IsZero() || (!j.StartedAt.IsZero() && !j.FinishedAt.IsZero() && j.StartedAt.After(j.FinishedAt)) {
			t.Fatalf("after message %d: job with impossible times %+v", i, j)
		}
		if j.RunAttempt != db.run.Attempt {
			continue
		}
		switch j.Status {
		case workflow.JobCreated:
			recount.Created++
		case workflow.JobQueued:
			recount.Queued++
		case workflow.JobRunning:
			recount.Running++
		case workflow.JobFinished:
			recount.Finished++
			if j.Cached {
				recount.Cached++
			}
		case workflow.JobFailed:
			recount.Failed++
		case workflow.JobStopped:
			recount.Stopped++
		}
	}
	if d := cmp.Diff(recount, db.run.Jobs); d != "" {
		t.Fatalf("after message %d: counts differ from the jobs (-jobs, +counts):\n%s", i, d)
	}
	status := db.run.Status()
	if !status.Valid() || (status != workflow.StatusCreated && db.run.StatusAt[status].IsZero()) {
		t.Fatalf("after message %d: status %v, which no message claimed", i, status)
	}
	if db.run.Attempt == before.Attempt && status.Rank() < before.Status().Rank() {
		t.Fatalf("after message %d: status fell from %v to %v within attempt %d", i, before.Status(), status, db.run.Attempt)
	}
	if before.Status() == workflow.StatusDeleted && status != workflow.StatusDeleted {
		t.Fatalf("after message %d: a deleted run became %v", i, status)
	}
	started, finished := db.run.StartedAt(), db.run.FinishedAt()
	if !started.IsZero() && !finished.IsZero() && started.After(finished) {
		t.Fatalf("after message %d: started %v after it finished %v", i, started, finished)
	}
}

func TestApply(t *testing.T) {
	said := func(second int, s workflow.Status, p workflow.Progress, jobs ...workflow.JobReport) event {
		return event{status: &workflow.StatusMessage{WorkflowID: runID, Status: s, EventTime: at(second), Progress: p, Jobs: jobs}}
	}
	const running = workflow.StatusRunning
	for _, test := range []struct {
		name   string
		trace  []event
		status workflow.Status
		counts workflow.Counts
	}{
		{
			name: "REANA's 21 of 18: the total follows the known jobs",
			trace: []event{
				said(0, running, workflow.Progress{Total: workflow.Count(1)}),
				said(1, workflow.StatusFinished, workflow.Progress{Finished: workflow.JobIDs("a", "b", "c")}),
			},
			status: workflow.StatusFinished, counts: workflow.Counts{Total: 3, Finished: 3},
		},
		{
			name: "a finished job leaves running, and does not come back",
			trace: []event{
				said(0, running, workflow.Progress{Running: workflow.JobIDs("a", "b")}),
				said(1, running, workflow.Progress{Finished: workflow.JobIDs("a")}),
				said(2, running, workflow.Progress{Running: workflow.JobIDs("a", "b")}),
			},
			status: running, counts: workflow.Counts{Total: 2, Running: 1, Finished: 1},
		},
		{
			name: "pending to failed, which REANA refuses",
			trace: []event{
				said(0, workflow.StatusPending, workflow.Progress{}),
				said(1, workflow.StatusFailed, workflow.Progress{}),
			},
			status: workflow.StatusFailed,
		},
		{
			name: "jobs of a late message count after the end",
			trace: []event{
				said(0, running, workflow.Progress{Total: workflow.Count(2), Running: workflow.JobIDs("a", "b")}),
				said(2, workflow.StatusFinished, workflow.Progress{}),
				said(1, running, workflow.Progress{Finished: workflow.JobIDs("a", "b")}),
			},
			status: workflow.StatusFinished, counts: workflow.Counts{Total: 2, Finished: 2},
		},
		{
			name: "of two ends the earlier wins, though it arrives later",
			trace: []event{
				said(5, workflow.StatusFinished, workflow.Progress{}),
				said(4, workflow.StatusFailed, workflow.Progress{}),
			},
			status: workflow.StatusFailed,
		},
		{
			name: "a job in failed and finished of one message has failed",
			trace: []event{
				said(0, running, workflow.Progress{Failed: workflow.JobIDs("a"), Finished: workflow.JobIDs("a")}),
			},
			status: running, counts: workflow.Counts{Total: 1, Failed: 1},
		},
		{
			name: "counts without ids stand in until a job is known",
			trace: []event{
				said(0, running, workflow.Progress{Total: workflow.Count(9), Running: workflow.Count(2), Finished: workflow.Count(3)}),
				said(1, running, workflow.Progress{Running: workflow.Count(0), Finished: workflow.Count(5)}),
			},
			status: running, counts: workflow.Counts{Total: 9, Finished: 5},
		},
		{
			name: "a retried job is not failed",
			trace: []event{
				said(0, running, workflow.Progress{}, workflow.JobReport{ID: "a", Status: workflow.JobFailed}),
				said(1, running, workflow.Progress{}, workflow.JobReport{ID: "a", Status: workflow.JobRunning, Attempt: 2}),
			},
			status: running, counts: workflow.Counts{Total: 1, Running: 1},
		},
		{
			name: "a cached job is a finished one with a mark",
			trace: []event{
				said(0, running, workflow.Progress{Total: workflow.Count(2), Finished: workflow.JobIDs("a"), Cached: workflow.JobIDs("a")}),
			},
			status: running, counts: workflow.Counts{Total: 2, Finished: 1, Cached: 1},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			db := newDatabase()
			for _, e := range test.trace {
				db.apply([]event{e})
			}
			if got := db.run.Status(); got != test.status {
				t.Errorf("status %v, want %v", got, test.status)
			}
			if d := cmp.Diff(test.counts, db.run.Counts()); d != "" {
				t.Errorf("counts (-want, +got):\n%s", d)
			}
		})
	}
}

func TestOutcomes(t *testing.T) {
	m := &workflow.StatusMessage{WorkflowID: runID, Status: workflow.StatusRunning, EventTime: at(1), Progress: workflow.Progress{Running: workflow.JobIDs("a")}}
	s := workflow.NewState(workflow.Run{ID: runID})
	for i, want := range []workflow.Outcome{workflow.Applied, workflow.Stale} {
		if got := s.Apply(m); got != want {
			t.Errorf("time %d: outcome %v, want %v", i+1, got, want)
		}
	}
	if got := len(s.ChangedJobs); got != 1 {
		t.Errorf("%d changed jobs, want 1", got)
	}
	withLogs := *m
	withLogs.Logs = "again"
	if got := s.Apply(&withLogs); got != workflow.Applied {
		t.Errorf("a repeated status with logs: outcome %v, want applied", got)
	}
	sub := &workflow.Submission{User: "u", Workflow: runID.String(), EventTime: at(0)}
	for i, want := range []workflow.Outcome{workflow.Applied, workflow.Stale} {
		if got := s.Submit(sub); got != want {
			t.Errorf("submission, time %d: outcome %v, want %v", i+1, got, want)
		}
	}
}

func TestSubmissionID(t *testing.T) {
	byID := &workflow.Submission{User: "u", Workflow: runID.String()}
	if byID.ID() != runID || byID.DisplayName() != "" {
		t.Errorf("submission by id: %v named %q, want %v without a name", byID.ID(), byID.DisplayName(), runID)
	}
	byName := &workflow.Submission{User: "u", Workflow: "fit.1"}
	other := &workflow.Submission{User: "v", Workflow: "fit.1"}
	if byName.ID() == other.ID() || byName.ID() == uuid.Nil || byName.DisplayName() != "fit.1" {
		t.Errorf("submissions by name: %v and %v (%q), want two different ids and the name", byName.ID(), other.ID(), byName.DisplayName())
	}
}

// FuzzApply feeds the fold with sequences that a byte string chooses.
func FuzzApply(f *testing.F) {
	f.Add([]byte("waymark"))
	f.Fuzz(rapid.MakeFuzz(func(t *rapid.T) {
		trace := drawChaos(t)
		want, got := newDatabase(), newDatabase()
		for i, e := range trace {
			before := want.run
			want.apply([]event{e})
			checkLegal(t, i, before, want)
		}
		for _, batch := range scramble(t, trace) {
			got.apply(batch)
		}
		if d := want.diff(got); d != "" {
			t.Fatalf("(-in order, +scrambled):\n%s", d)
		}
	}))
}

func BenchmarkApply(b *testing.B) {
	ids := make([]string, 20)
	for i := range ids {
		ids[i] = uuid.NewString()
	}
	messages := []*workflow.StatusMessage{{Status: workflow.StatusRunning, EventTime: noon, Progress: workflow.Progress{Total: workflow.Count(20)}}}
	for _, id := range ids {
		messages = append(messages,
			&workflow.StatusMessage{Status: workflow.StatusRunning, EventTime: noon, Progress: workflow.Progress{Running: workflow.JobIDs(id)}},
			&workflow.StatusMessage{Status: workflow.StatusRunning, EventTime: noon, Progress: workflow.Progress{Finished: workflow.JobIDs(id)}})
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%len(messages) == 0 {
			s = workflow.NewState(workflow.Run{ID: runID})
		}
		s.Apply(messages[i%len(messages)])
	}
}

var s *workflow.State
