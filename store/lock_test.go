package store_test

import (
	"sync"
	"testing"

	"github.com/google/uuid"

	"waymark/internal/servicetest"
	"waymark/workflow"
)

// Batches of more runs than there are locks for them, several at once and
// each in an order of its own, go through all the same, and none of their
// messages is lost.
func TestManyRunsAtOnce(t *testing.T) {
	t.Parallel()
	const runs, consumers = 10_000, 3
	steps := [consumers]int{1, 3, 7} // have no divisor in common with runs
	d := servicetest.Database(t)
	db := another(t, d)
	if _, err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	ids := make([]uuid.UUID, runs)
	for i := range ids {
		ids[i] = uuid.New()
	}
	var wg sync.WaitGroup
	for n := range consumers {
		a := newApplier(another(t, d))
		wg.Go(func() {
			deliveries := make([]workflow.Delivery, runs)
			for i := range deliveries {
				id := ids[(i*steps[n]+n*777)%runs]
				deliveries[i] = status(workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, EventTime: at(n),
					Progress: workflow.Progress{Running: workflow.JobIDs(string(rune('a' + n)))}})
			}
			if _, err := a.db.Apply(t.Context(), a.batch(deliveries...)); err != nil {
				t.Errorf("consumer %d: %v", n, err)
			}
		})
	}
	wg.Wait()
	var complete int
	if err := raw(t, d).QueryRow(`SELECT count(*) FROM workflows WHERE jobs_running = $1`, consumers).Scan(&complete); err != nil || complete != runs {
		t.Errorf("%d of %d runs have a job of each of %d consumers, %v", complete, runs, consumers, err)
	}
}
