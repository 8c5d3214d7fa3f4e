package store_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"waymark/store"
	"waymark/workflow"
)

func TestActive(t *testing.T) {
	t.Parallel()
	db := open(t, func(c *store.Config) { c.Now = ticking() })
	a := newApplier(db)
	want := []store.Active{
		{Status: workflow.StatusCreated}, {Status: workflow.StatusRunning}, {Status: workflow.StatusQueued}, {Status: workflow.StatusPending},
	}
	check := func(when string) {
		t.Helper()
		got, err := db.Active(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("active runs %s (-want +got):\n%s", when, diff)
		}
	}
	check("of no runs at all")

	minute := func(n int) time.Time { return noon.Add(time.Duration(n) * time.Minute) }
	runs := []uuid.UUID{runID(), runID(), runID(), runID()}
	say := func(run int, s workflow.Status) {
		a.apply(t, status(workflow.StatusMessage{WorkflowID: runs[run], Status: s, EventTime: at(run)}))
	}
	say(0, workflow.StatusRunning) // at minute 1
	say(1, workflow.StatusRunning)
	say(2, workflow.StatusQueued)
	say(3, workflow.StatusFinished)
	want[1].Runs, want[1].QuietSince = 2, minute(1)
	want[2].Runs, want[2].QuietSince = 1, minute(3)
	check("of two that run, one that is queued and one that has ended")

	say(0, workflow.StatusFailed)
	say(2, workflow.StatusRunning) // at minute 6
	want[1].Runs, want[1].QuietSince = 2, minute(2)
	want[2] = store.Active{Status: workflow.StatusQueued}
	check("after one has ended and another has begun")
}
