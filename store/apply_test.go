package store_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"

	"waymark/internal/servicetest"
	"waymark/store"
	"waymark/workflow"
)

func TestMain(m *testing.M) { servicetest.Main(m) }

var noon = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

func at(second int) time.Time { return noon.Add(time.Duration(second) * time.Second) }

// open returns a migrated store in a schema of its own.
func open(t *testing.T, change ...func(*store.Config)) *store.DB {
	t.Helper()
	d := servicetest.Database(t)
	cfg := store.Config{URL: d.URL, Schema: d.Schema}
	for _, c := range change {
		c(&cfg)
	}
	db, err := store.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if _, err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return db
}

// another opens a second store on the schema of the first.
func another(t *testing.T, d servicetest.DB) *store.DB {
	t.Helper()
	db, err := store.Open(t.Context(), store.Config{URL: d.URL, Schema: d.Schema})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// applier applies batches as one consumer does.
type applier struct {
	db       *store.DB
	consumer uuid.UUID
	session  uuid.UUID
	number   int64
}

func newApplier(db *store.DB) *applier {
	return &applier{db: db, consumer: uuid.New(), session: uuid.New()}
}

func (a *applier) batch(deliveries ...workflow.Delivery) *workflow.Batch {
	a.number++
	return &workflow.Batch{Queue: "jobs-status", Consumer: a.consumer, Number: a.number, Session: a.session, Deliveries: deliveries}
}

func (a *applier) apply(t *testing.T, deliveries ...workflow.Delivery) []workflow.Outcome {
	t.Helper()
	outcomes, err := a.db.Apply(t.Context(), a.batch(deliveries...))
	if err != nil {
		t.Fatal(err)
	}
	return outcomes
}

func status(m workflow.StatusMessage) workflow.Delivery {
	return workflow.Delivery{MessageID: uuid.NewString(), Status: &m}
}

func wantOutcomes(t *testing.T, got []workflow.Outcome, want ...workflow.Outcome) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("outcomes (-want, +got):\n%s", d)
	}
}

// trace is what an engine says about one run: three jobs, one of them retried.
func trace(id uuid.UUID) []workflow.Delivery {
	code := 7
	say := func(second int, s workflow.Status, p workflow.Progress, jobs ...workflow.JobReport) workflow.Delivery {
		return status(workflow.StatusMessage{WorkflowID: id, Status: s, EventTime: at(second), Progress: p, Jobs: jobs, Engine: "serial"})
	}
	const running = workflow.StatusRunning
	d := []workflow.Delivery{
		{MessageID: uuid.NewString(), Submission: &workflow.Submission{User: "ada", Workflow: id.String(), Name: "fit", Engine: "serial", Priority: 7,
			Parameters: []byte(`{"events": 5}`), Labels: map[string]string{"site": "a"}, EventTime: at(0)}},
		say(1, running, workflow.Progress{Total: workflow.Count(2)}),
		say(2, running, workflow.Progress{Running: workflow.JobIDs("gen"), EngineSpecific: []byte(`{"dag": 1}`)}),
		say(3, running, workflow.Progress{Finished: workflow.JobIDs("gen"), Total: workflow.Count(3)}),
		say(4, running, workflow.Progress{}, workflow.JobReport{ID: "fit", Status: workflow.JobRunning, Name: "fit", Command: "root fit.C"}),
		say(5, running, workflow.Progress{}, workflow.JobReport{ID: "fit", Status: workflow.JobFailed, ExitCode: &code, Diagnostics: "no input"}),
		say(6, running, workflow.Progress{}, workflow.JobReport{ID: "fit", Attempt: 2, Status: workflow.JobRunning, Logs: "again"}),
		say(7, running, workflow.Progress{Running: workflow.JobIDs("plot"), EngineSpecific: []byte(`{"dag": 2}`)}, workflow.JobReport{ID: "fit", Attempt: 2, Status: workflow.JobFinished, Result: []byte(`{"chi2": 1.5}`)}),
		say(8, workflow.StatusFinished, workflow.Progress{Finished: workflow.JobIDs("gen", "plot")}),
	}
	d[1].Status.Logs = "started"
	d[8].Status.Logs = "done"
	return d
}

// final is everything a reader can learn of a run but what depends on arrival.
type final struct {
	Details workflow.Details
	Jobs    []workflow.Job
	Logs    []string
	History []workflow.StatusChange
}

func read(t *testing.T, db *store.DB, id uuid.UUID) final {
	t.Helper()
	var f final
	var err error
	if f.Details, err = db.Workflow(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	jobs, err := db.Jobs(t.Context(), id, workflow.JobFilter{})
	if err != nil {
		t.Fatal(err)
	}
	f.Jobs = jobs.Items
	logs, err := db.Logs(t.Context(), id, workflow.LogFilter{AllJobs: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range logs.Items {
		f.Logs = append(f.Logs, l.JobID+"|"+l.At.Format(time.TimeOnly)+"|"+l.Text)
	}
	slices.Sort(f.Logs)
	history, err := db.History(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range history {
		f.History = append(f.History, h.StatusChange)
	}
	return f
}

var ignoreArrival = cmp.Options{
	cmpopts.IgnoreFields(workflow.Summary{}, "ID", "CreatedAt", "UpdatedAt", "Revision", "RunNumber"),
	cmpopts.IgnoreUnexported(workflow.Job{}), cmpopts.EquateEmpty(),
}

func TestApplyTrace(t *testing.T) {
	t.Parallel()
	db := open(t)
	id := uuid.New()
	a := newApplier(db)
	for _, d := range trace(id) {
		wantOutcomes(t, a.apply(t, d), workflow.Applied)
	}
	got := read(t, db, id)
	want := final{
		Details: workflow.Details{
			Summary: workflow.Summary{Name: "fit", Owner: "ada", Engine: "serial", Labels: map[string]string{"site": "a"}, Priority: 7, Attempt: 1,
				Status: workflow.StatusFinished, Counts: workflow.Counts{Total: 3, Finished: 3},
				SubmittedAt: at(0), StartedAt: at(1), FinishedAt: at(8), LastEventAt: at(8)},
			Parameters: []byte(`{"events": 5}`), EngineSpecific: []byte(`{"dag": 2}`),
		},
		Jobs: []workflow.Job{
			{ID: "fit", RunAttempt: 1, Attempt: 2, Status: workflow.JobFinished, StartedAt: at(6), FinishedAt: at(7), Result: []byte(`{"chi2": 1.5}`)},
			{ID: "gen", RunAttempt: 1, Attempt: 1, Status: workflow.JobFinished, StartedAt: at(2), FinishedAt: at(3)},
			{ID: "plot", RunAttempt: 1, Attempt: 1, Status: workflow.JobFinished, StartedAt: at(7), FinishedAt: at(8)},
		},
		Logs: []string{"fit|12:00:06|again", "|12:00:01|started", "|12:00:08|done"},
		History: []workflow.StatusChange{{Attempt: 1, Status: workflow.StatusQueued, At: at(0)}, {Attempt: 1, Status: workflow.StatusRunning, At: at(1)},
			{Attempt: 1, Status: workflow.StatusFinished, At: at(8)}},
	}
	slices.Sort(want.Logs)
	if d := cmp.Diff(want, got, ignoreArrival); d != "" {
		t.Errorf("final rows (-want, +got):\n%s", d)
	}
	if got.Details.RunNumber != 1 || got.Details.Revision < 2 {
		t.Errorf("run number %d at revision %d, want the first run and a revision that grew", got.Details.RunNumber, got.Details.Revision)
	}
}

// Several stores on one database, each delivering the same messages of many
// runs in its own order and batches, give the rows of one store in order.
func TestApplyConverges(t *testing.T) {
	t.Parallel()
	d := servicetest.Database(t)
	db := another(t, d)
	if _, err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	reference := uuid.New()
	a := newApplier(db)
	a.apply(t, trace(reference)...)
	want := read(t, db, reference)

	const runs, stores = 12, 4
	var ids []uuid.UUID
	var all []workflow.Delivery
	for range runs {
		ids = append(ids, uuid.New())
		all = append(all, trace(ids[len(ids)-1])...)
	}
	var wg sync.WaitGroup
	for i := range stores {
		a := newApplier(another(t, d))
		random := rand.New(rand.NewPCG(1, uint64(i)))
		mine := slices.Clone(all)
		random.Shuffle(len(mine), func(i, j int) { mine[i], mine[j] = mine[j], mine[i] })
		wg.Go(func() {
			for len(mine) > 0 {
				n := min(1+random.IntN(20), len(mine))
				if _, err := a.db.Apply(t.Context(), a.batch(mine[:n]...)); err != nil {
					t.Errorf("store %d: %v", i, err)
					return
				}
				mine = mine[n:]
			}
		})
	}
	wg.Wait()
	numbers := map[int]bool{}
	for _, id := range ids {
		got := read(t, db, id)
		if d := cmp.Diff(want, got, ignoreArrival); d != "" {
			t.Fatalf("run %s (-in order, +scrambled by %d stores):\n%s", id, stores, d)
		}
		numbers[got.Details.RunNumber] = true
	}
	if len(numbers) != runs {
		t.Errorf("%d different run numbers for %d runs of one name", len(numbers), runs)
	}
	ledger, err := db.Ledger(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	n := int64(len(trace(reference)))
	l := ledger[0]
	if l.Received != n+n*runs*stores || l.Received != l.Applied+l.Duplicate+l.Stale+l.Dead || l.Duplicate != n*runs*(stores-1) {
		t.Errorf("ledger %+v, want %d received of which %d duplicates", l, n+n*runs*stores, n*runs*(stores-1))
	}
}

func TestDuplicates(t *testing.T) {
	t.Parallel()
	db := open(t)
	a := newApplier(db)
	id := uuid.New()
	line := func(text string) *workflow.StatusMessage {
		return &workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, Logs: text, EventTime: at(1)}
	}
	withID := workflow.Delivery{MessageID: "not a uuid", Status: line("with id")}
	digest, other := uuid.New(), uuid.New()
	bare := workflow.Delivery{Digest: digest, Status: line("bare")}
	redelivered := bare
	redelivered.Redelivered = true

	wantOutcomes(t, a.apply(t, withID, withID), workflow.Applied, workflow.Duplicate)
	wantOutcomes(t, a.apply(t, withID), workflow.Duplicate)
	// Two equal lines of one session are two lines.
	wantOutcomes(t, a.apply(t, bare, bare), workflow.Applied, workflow.Applied)
	// The broker's word alone does not make a duplicate within a session, nor of a text never stored.
	wantOutcomes(t, a.apply(t, workflow.Delivery{Digest: other, Redelivered: true, Status: line("other")}), workflow.Applied)
	// A new session brings both again, and one that had not been stored.
	a.session = uuid.New()
	wantOutcomes(t, a.apply(t, redelivered, redelivered, redelivered), workflow.Duplicate, workflow.Duplicate, workflow.Applied)
	// And the next session all three.
	a.session = uuid.New()
	wantOutcomes(t, a.apply(t, redelivered, redelivered, redelivered), workflow.Duplicate, workflow.Duplicate, workflow.Duplicate)
	if got := read(t, db, id).Logs; len(got) != 5 {
		t.Errorf("stored %q, want one line with id, three bare, one other", got)
	}
	outcomes, err := db.Outcomes(t.Context(), []string{"not a uuid", "never seen"})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]workflow.Outcome{"not a uuid": workflow.Applied}, outcomes); d != "" {
		t.Errorf("Outcomes (-want, +got):\n%s", d)
	}
}

// What was acknowledged a while ago says nothing about an equal message that is
// delivered again now: that one has not had its effect.
func TestDuplicatesOfTheSettled(t *testing.T) {
	t.Parallel()
	d := servicetest.Database(t)
	db, sql := another(t, d), raw(t, d)
	if _, err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	a := newApplier(db)
	id := uuid.New()
	tick := workflow.Delivery{Digest: uuid.New(), Status: &workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, Logs: "tick", EventTime: at(1)}}
	tock := workflow.Delivery{Digest: uuid.New(), Status: &workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, Logs: "tock", EventTime: at(1)}}
	again := func(d workflow.Delivery) workflow.Delivery { d.Redelivered = true; return d }
	settled := func(n int64, deliveries ...workflow.Delivery) {
		t.Helper()
		b := a.batch(deliveries...)
		b.Settled = n
		if _, err := db.Apply(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	a.apply(t, tick, tick) // 1
	settled(1, tock)       // 2: 1 is acknowledged
	settled(1, tick)       // 3: 2 may be
	old := a.session
	a.session = uuid.New()
	wantOutcomes(t, a.apply(t, again(tock), again(tick), again(tick), again(tock)), workflow.Duplicate, workflow.Duplicate, workflow.Applied, workflow.Applied)
	// What was recognised is now of that session, and only of that.
	a.session = uuid.New()
	wantOutcomes(t, a.apply(t, again(tick), again(tick), again(tick)), workflow.Duplicate, workflow.Duplicate, workflow.Applied)
	var left int
	if err := sql.QueryRow(`SELECT coalesce(sum(cardinality(digests)), 0) FROM recent_deliveries WHERE session = $1`, old).Scan(&left); err != nil || left != 0 {
		t.Errorf("of the first session %d digests are left (%v), want none", left, err)
	}
	if got := len(read(t, db, id).Logs); got != 7 {
		t.Errorf("%d lines are stored, want 3 ticks and a tock of the first session, a tick and a tock of the second, a tick of the third", got)
	}
}

// Ids of large batches are packed; they are known all the same, to whoever
// delivers them again, in whatever company.
func TestDuplicatesOfLargeBatches(t *testing.T) {
	t.Parallel()
	db := open(t)
	next := load(10, 20)
	var all []workflow.Delivery
	var ids []string
	for range 300 {
		all = append(all, next())
		ids = append(ids, all[len(all)-1].MessageID)
	}
	all[7].MessageID, ids[7] = "not a uuid", "not a uuid"
	all[8].MessageID = uuid.NewString()
	ids[8] = all[8].MessageID
	a := newApplier(db)
	for _, o := range a.apply(t, all...) {
		if o == workflow.Duplicate {
			t.Fatal("a new message is said to be a duplicate")
		}
	}
	outcomes, err := db.Outcomes(t.Context(), ids)
	if err != nil || len(outcomes) != len(ids) {
		t.Errorf("%d outcomes of %d ids, %v", len(outcomes), len(ids), err)
	}
	other := newApplier(db)
	random := rand.New(rand.NewPCG(2, 2))
	random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for part := range slices.Chunk(all, 7) {
		mixed := append(slices.Clone(part), next())
		outcomes := other.apply(t, mixed...)
		for i := range part {
			if outcomes[i] != workflow.Duplicate {
				t.Fatalf("message %s came again and was %v", part[i].MessageID, outcomes[i])
			}
		}
		if outcomes[len(part)] != workflow.Applied {
			t.Fatalf("a new message beside repeated ones was %v", outcomes[len(part)])
		}
	}
	if n, err := db.Prune(t.Context(), time.Now().Add(time.Hour)); err != nil || n < int64(len(all)) {
		t.Errorf("Prune forgot %d ids, %v; want at least %d", n, err, len(all))
	}
	if outcomes, err := db.Outcomes(t.Context(), ids); err != nil || len(outcomes) != 0 {
		t.Errorf("after Prune %d ids are known, %v", len(outcomes), err)
	}
}

// Two messages of one id for different workflows, at once: no lock is common to
// them, yet one of them is the duplicate.
func TestOneIDForTwoWorkflows(t *testing.T) {
	t.Parallel()
	d := servicetest.Database(t)
	if _, err := another(t, d).Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		id := uuid.NewString()
		var wg sync.WaitGroup
		results := make([]workflow.Outcome, 2)
		for i := range results {
			a := newApplier(another(t, d))
			wg.Go(func() {
				m := &workflow.StatusMessage{WorkflowID: uuid.New(), Status: workflow.StatusRunning, EventTime: noon}
				outcomes, err := a.db.Apply(t.Context(), a.batch(workflow.Delivery{MessageID: id, Status: m}))
				if err != nil {
					t.Error(err)
					return
				}
				results[i] = outcomes[0]
			})
		}
		wg.Wait()
		slices.Sort(results)
		wantOutcomes(t, results, workflow.Applied, workflow.Duplicate)
	}
}

// A batch whose commit was not answered is tried again under its number.
func TestBatchIsAppliedOnce(t *testing.T) {
	t.Parallel()
	db := open(t)
	a := newApplier(db)
	id := uuid.New()
	b := a.batch(workflow.Delivery{Digest: uuid.New(), Status: &workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, Logs: "once", EventTime: at(1)}})
	b.Dead = 2
	for range 2 {
		if _, err := db.Apply(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	if got := read(t, db, id).Logs; len(got) != 1 {
		t.Errorf("stored %q, want the line once", got)
	}
	want := []workflow.LedgerEntry{{Queue: "jobs-status", Received: 3, Applied: 1, Dead: 2}}
	if got, err := db.Ledger(t.Context()); err != nil || cmp.Diff(want, got) != "" {
		t.Errorf("ledger %v, %v; want %v", got, err, want)
	}
}

// A consumer whose session has ended, and which does not know yet, must not give
// messages without an id their effect: another has them.
func TestHeld(t *testing.T) {
	t.Parallel()
	db := open(t)
	id := uuid.New()
	m := &workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, Logs: "once", EventTime: at(1)}
	digest := uuid.New()
	old, other := newApplier(db), newApplier(db)

	lost := errors.New("the session is over")
	b := old.batch(workflow.Delivery{Digest: digest, Status: m})
	b.Held = func(context.Context) error { return lost }
	if _, err := db.Apply(t.Context(), b); !errors.Is(err, lost) {
		t.Errorf("applying what is not held: %v, want %v", err, lost)
	}
	if _, err := db.Workflow(t.Context(), id); !errors.Is(err, workflow.ErrNotFound) {
		t.Errorf("the run that is not held: %v, want %v", err, workflow.ErrNotFound)
	}

	// Ids are recognised without that, and the broker is not asked.
	b = old.batch(workflow.Delivery{MessageID: "with id", Status: &workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, EventTime: at(1)}})
	b.Held = func(context.Context) error { t.Error("asked about a message with an id"); return nil }
	if _, err := db.Apply(t.Context(), b); err != nil {
		t.Fatal(err)
	}

	// While it is asked, whoever gets the message next has to wait for the commit.
	next := other.batch(workflow.Delivery{Digest: digest, Redelivered: true, Status: m})
	reached := make(chan struct{})
	next.Held = func(context.Context) error { close(reached); return nil }
	answered := make(chan []workflow.Outcome, 1)
	b = old.batch(workflow.Delivery{Digest: digest, Status: m})
	b.Held = func(context.Context) error {
		go func() {
			outcomes, err := db.Apply(t.Context(), next)
			if err != nil {
				t.Error(err)
			}
			answered <- outcomes
		}()
		select {
		case <-reached:
			t.Error("the run was not locked when its consumer was asked")
		case <-time.After(100 * time.Millisecond): // nothing is to happen
		}
		return nil
	}
	outcomes, err := db.Apply(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	wantOutcomes(t, outcomes, workflow.Applied)
	wantOutcomes(t, <-answered, workflow.Duplicate)
	if got := read(t, db, id).Logs; len(got) != 1 {
		t.Errorf("stored %q, want the line once", got)
	}
}

func TestUnknownWorkflows(t *testing.T) {
	t.Parallel()
	db := open(t, func(c *store.Config) { c.UnknownWorkflows = store.DeadLetterUnknown })
	a := newApplier(db)
	known, unknown := uuid.New(), uuid.New()
	submission := workflow.Delivery{Submission: &workflow.Submission{User: "ada", Workflow: known.String(), EventTime: at(0)}}
	running := func(id uuid.UUID) workflow.Delivery {
		return status(workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, EventTime: at(1)})
	}
	outcomes, err := db.Apply(t.Context(), a.batch(running(unknown), submission, running(known)))
	if !errors.Is(err, workflow.ErrUnknownWorkflow) {
		t.Fatalf("Apply = %v, %v; want ErrUnknownWorkflow", outcomes, err)
	}
	wantOutcomes(t, outcomes, workflow.Unknown, workflow.Applied, workflow.Applied)
	if _, err := db.Workflow(t.Context(), known); !errors.Is(err, workflow.ErrNotFound) {
		t.Errorf("the batch was refused, yet its other workflow: %v, want ErrNotFound", err)
	}
	wantOutcomes(t, a.apply(t, submission, running(known)), workflow.Applied, workflow.Applied)
}

// What the codec would never let through is refused as data, not as an outage.
func TestRejected(t *testing.T) {
	t.Parallel()
	db := open(t)
	a := newApplier(db)
	id := uuid.New()
	for name, m := range map[string]workflow.StatusMessage{
		"NUL in logs":     {Logs: "a\x00b"},
		"invalid UTF-8":   {Logs: "\xff"},
		"empty job id":    {Progress: workflow.Progress{Running: workflow.JobIDs("")}},
		"result not JSON": {Jobs: []workflow.JobReport{{ID: "a", Result: []byte("{")}}},
		"job id of NULs":  {Progress: workflow.Progress{Running: workflow.JobIDs("\x00\x00")}},
	} {
		m.WorkflowID, m.Status, m.EventTime = id, workflow.StatusRunning, at(1)
		if _, err := db.Apply(t.Context(), a.batch(status(m))); !errors.Is(err, workflow.ErrRejected) {
			t.Errorf("%s: %v, want ErrRejected", name, err)
		}
	}
	if _, err := db.Workflow(t.Context(), id); !errors.Is(err, workflow.ErrNotFound) {
		t.Errorf("after refused messages: %v, want ErrNotFound", err)
	}
}

func TestApplyEndsWithItsContext(t *testing.T) {
	t.Parallel()
	db := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := db.Apply(ctx, newApplier(db).batch(trace(uuid.New())...)); !errors.Is(err, context.Canceled) {
		t.Errorf("Apply = %v, want context.Canceled", err)
	}
}

func BenchmarkApply(b *testing.B) {
	for _, size := range []int{1, 100, 500, 2000} {
		b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) {
			d := servicetest.Database(b)
			db, err := store.Open(b.Context(), store.Config{URL: d.URL, Schema: d.Schema})
			if err != nil {
				b.Fatal(err)
			}
			defer db.Close()
			if _, err := db.Migrate(b.Context()); err != nil {
				b.Fatal(err)
			}
			a := newApplier(db)
			next := load(1000, 20)
			for b.Loop() {
				batch := a.batch()
				for range size {
					batch.Deliveries = append(batch.Deliveries, next())
				}
				if _, err := db.Apply(b.Context(), batch); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "msg/s")
		})
	}
}

// load returns the messages of so many runs at once, round-robin: total, then
// running and finished of each job, then the end; and so on with new runs.
func load(runs, jobs int) func() workflow.Delivery {
	ids := make([]uuid.UUID, runs)
	turn, step := 0, 0
	return func() workflow.Delivery {
		if step == 0 {
			ids[turn] = uuid.Must(uuid.NewV7())
		}
		m := workflow.StatusMessage{WorkflowID: ids[turn], Status: workflow.StatusRunning, EventTime: noon}
		job := uuid.NewSHA1(ids[turn], []byte{byte(step / 2)}).String()
		switch {
		case step == 0:
			m.Progress.Total = workflow.Count(jobs)
		case step == 2*jobs+1:
			m.Status = workflow.StatusFinished
		case step%2 == 1:
			m.Progress.Running = workflow.JobIDs(job)
		default:
			m.Progress.Finished = workflow.JobIDs(uuid.NewSHA1(ids[turn], []byte{byte(step/2 - 1)}).String())
		}
		if turn++; turn == runs {
			turn, step = 0, step+1
			if step == 2*jobs+2 {
				step = 0
			}
		}
		return workflow.Delivery{MessageID: uuid.Must(uuid.NewV7()).String(), Status: &m}
	}
}
