package store_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"waymark/internal/servicetest"
	"waymark/store"
	"waymark/workflow"
)

func TestPrune(t *testing.T) {
	t.Parallel()
	d := servicetest.Database(t)
	clock := noon
	db, err := store.Open(t.Context(), store.Config{URL: d.URL, Schema: d.Schema, Now: func() time.Time { return clock }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if _, err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	old, id := trace(runID()), runID()
	for range 3 { // three consumers that are gone
		newApplier(db).apply(t, old...)
	}
	clock = noon.Add(24 * time.Hour)
	recent := trace(id)
	a := newApplier(db)
	a.apply(t, recent...)
	before, err := db.Ledger(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []int64{int64(len(old)), 0} {
		if n, err := db.Prune(t.Context(), clock.Add(-time.Hour)); err != nil || n != want {
			t.Errorf("Prune, time %d: forgot %d, %v; want %d", i+1, n, err, want)
		}
		after, err := db.Ledger(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("the ledger changed (-before, +after):\n%s", diff)
		}
	}
	var consumers int
	if err := raw(t, d).QueryRow(`SELECT count(*) FROM ledger`).Scan(&consumers); err != nil || consumers != 2 {
		t.Errorf("%d ledger rows, %v; want that of the living consumer and one for all others", consumers, err)
	}
	wantOutcomes(t, a.apply(t, recent[0]), workflow.Duplicate)
	// What is forgotten is harmless all the same, but for logs.
	wantOutcomes(t, a.apply(t, old[0], old[2]), workflow.Stale, workflow.Stale)
}

// Only runs that have ended, and were not heard of since, are deleted, with all
// that belongs to them.
func TestPruneRuns(t *testing.T) {
	t.Parallel()
	d := servicetest.Database(t)
	clock := noon
	db, err := store.Open(t.Context(), store.Config{URL: d.URL, Schema: d.Schema, MaxRunLogBytes: 10, Now: func() time.Time { return clock }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if _, err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	a := newApplier(db)
	var old []uuid.UUID
	for range 230 { // more than one transaction deletes
		id := runID()
		old = append(old, id)
		a.apply(t, trace(id)...)
	}
	running, late, recent := runID(), runID(), runID()
	a.apply(t, trace(running)[:5]...)
	first := trace(late)
	a.apply(t, first[:5]...)
	clock = noon.Add(24 * time.Hour)
	a.apply(t, first[5:]...)
	a.apply(t, trace(recent)...)

	for i, want := range []int64{int64(len(old)), 0} {
		told := int64(0)
		if n, err := db.PruneRuns(t.Context(), clock.Add(-time.Hour), func() { told++ }); err != nil || n != want || told != want {
			t.Errorf("PruneRuns, time %d: deleted %d and told of %d, %v; want %d", i+1, n, told, err, want)
		}
	}
	for _, id := range []uuid.UUID{running, late, recent} {
		if _, err := db.Workflow(t.Context(), id); err != nil {
			t.Errorf("a run that is to stay: %v", err)
		}
	}
	for _, table := range []string{"workflows", "jobs", "log_chunks", "log_cuts", "status_changes", "submissions", "engine_documents"} {
		column := "workflow_id"
		if table == "workflows" {
			column = "id"
		}
		var left, stay int
		err := raw(t, d).QueryRow(`SELECT count(*) FILTER (WHERE `+column+` = ANY($1)), count(*) FILTER (WHERE `+column+` = $2) FROM `+table, old, recent).Scan(&left, &stay)
		if err != nil || left != 0 || stay == 0 {
			t.Errorf("%s holds %d rows of runs that were deleted and %d of one that was not, %v; want none and some", table, left, stay, err)
		}
	}
	// Its messages are known, so it does not come back by a redelivery.
	wantOutcomes(t, a.apply(t, first[0]), workflow.Duplicate)
	// What is new about it makes it anew.
	wantOutcomes(t, a.apply(t, trace(old[0])[1]), workflow.Applied)
}

// A run that is being deleted holds up nobody but who needs its lock, and those
// only while some thousand of its rows are deleted.
func TestPruneRunsHoldsUpNobody(t *testing.T) {
	t.Parallel()
	d := servicetest.Database(t)
	db, sql := another(t, d), raw(t, d)
	if _, err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	a := newApplier(db)
	first, second := runID(), runID()
	for _, id := range []uuid.UUID{first, second} {
		a.apply(t, trace(id)...)
	}
	// Many jobs of the first, and a batch that has the second locked.
	execute(t, sql, `INSERT INTO jobs (workflow_id, run_attempt, attempt, finished_at, status, cached, job_id)
		SELECT $1, 1, 1, now(), 3, false, 'more ' || n FROM generate_series(1, 12000) AS n`, first)
	execute(t, sql, `UPDATE workflows SET jobs_finished = jobs_finished + 12000 WHERE id = $1`, first)
	locked, release := make(chan struct{}), make(chan struct{})
	applied, pruned := make(chan error, 1), make(chan error, 1)
	errLost := errors.New("held no longer")
	holder := newApplier(another(t, d))
	b := holder.batch(workflow.Delivery{Digest: uuid.New(), Status: &workflow.StatusMessage{WorkflowID: second, Status: workflow.StatusFinished, Logs: "late", EventTime: at(9)}})
	b.Held = func(ctx context.Context) error {
		close(locked)
		select {
		case <-release:
			return errLost
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	go func() {
		_, err := holder.db.Apply(t.Context(), b)
		applied <- err
	}()
	<-locked
	go func() {
		n, err := db.PruneRuns(t.Context(), time.Now().Add(time.Hour), nil)
		if err == nil && n != 2 {
			err = fmt.Errorf("%d runs were deleted, want 2", n)
		}
		pruned <- err
	}()
	servicetest.Eventually(t, time.Minute, "the first run is gone while the second is locked", func() error {
		_, err := db.Workflow(t.Context(), first)
		if !errors.Is(err, workflow.ErrNotFound) {
			return fmt.Errorf("reading it: %v, want %v", err, workflow.ErrNotFound)
		}
		return nil
	})
	// Its lock is free, too.
	wantOutcomes(t, a.apply(t, status(workflow.StatusMessage{WorkflowID: first, Status: workflow.StatusRunning, EventTime: at(20)})), workflow.Applied)
	if _, err := db.Workflow(t.Context(), second); err != nil {
		t.Errorf("the second run while it is locked: %v", err)
	}
	close(release)
	if err := <-applied; !errors.Is(err, errLost) {
		t.Errorf("the batch that held the lock: %v, want %v", err, errLost)
	}
	if err := <-pruned; err != nil {
		t.Errorf("pruning: %v", err)
	}
}
