package store_test

import (
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
		if n, err := db.PruneRuns(t.Context(), clock.Add(-time.Hour)); err != nil || n != want {
			t.Errorf("PruneRuns, time %d: deleted %d, %v; want %d", i+1, n, err, want)
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
