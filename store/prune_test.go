package store_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

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
