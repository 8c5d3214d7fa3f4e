package store_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

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

// A run that somebody has made meanwhile who locks no runs is no reason to
// refuse the messages of it.
func TestRunMadeByAnother(t *testing.T) {
	t.Parallel()
	d := servicetest.Database(t)
	a := newApplier(another(t, d))
	if _, err := a.db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	id := uuid.New()
	conn := raw(t, d)
	other, err := conn.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Rollback()
	var pid int
	if err := other.QueryRow(`INSERT INTO workflows (id, created_at, updated_at, last_event_at) VALUES ($1, now(), now(), now()) RETURNING pg_backend_pid()`, id).Scan(&pid); err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() {
		_, err := a.db.Apply(t.Context(), a.batch(trace(id)...))
		answered <- err
	}()
	servicetest.Eventually(t, time.Minute, "the batch waits for the other's row", func() error {
		var n int
		err := conn.QueryRow(`SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))`, pid).Scan(&n)
		if err == nil && n == 0 {
			err = errors.New("nobody waits")
		}
		return err
	})
	if err := other.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	if got, err := a.db.Workflow(t.Context(), id); err != nil || got.Status != workflow.StatusFinished {
		t.Errorf("the run is %v, %v; want it finished", got.Status, err)
	}
}

// What somebody who locks no runs does to rows that a batch has loaded is not
// taken for the batch's: it is folded anew.
func TestRowsChangedByAnother(t *testing.T) {
	t.Parallel()
	d := servicetest.Database(t)
	a := newApplier(another(t, d))
	if _, err := a.db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, statement := range map[string]string{
		"a run, changed":  `UPDATE workflows SET planned = 77 WHERE id = $1`,
		"a job, changed":  `UPDATE jobs SET command = 'true' WHERE workflow_id = $1`,
		"a run, replaced": `WITH w AS (DELETE FROM workflows WHERE id = $1 RETURNING *) INSERT INTO workflows SELECT * FROM w`,
	} {
		t.Run(name, func(t *testing.T) {
			id := uuid.New()
			step := func(p workflow.Progress, second int) workflow.Delivery {
				return status(workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, EventTime: at(second), Progress: p})
			}
			if _, err := a.db.Apply(t.Context(), a.batch(step(workflow.Progress{Running: workflow.JobIDs("j")}, 1))); err != nil {
				t.Fatal(err)
			}
			last := step(workflow.Progress{Finished: workflow.JobIDs("j")}, 2)
			last.MessageID, last.Digest = "", uuid.New() // so that the session is asked for, between loading and writing
			b := a.batch(last)
			tries := 0
			b.Held = func(ctx context.Context) error {
				if tries++; tries > 1 {
					return nil
				}
				_, err := raw(t, d).ExecContext(ctx, statement, id)
				return err
			}
			if outcomes, err := a.db.Apply(t.Context(), b); err != nil || !slices.Equal(outcomes, []workflow.Outcome{workflow.Applied}) {
				t.Fatalf("applied: %v, %v", outcomes, err)
			}
			if tries != 2 {
				t.Errorf("the batch was folded %d times, want 2", tries)
			}
			var planned, running, finished int
			var command string
			if err := raw(t, d).QueryRow(`SELECT planned, jobs_running, jobs_finished, command FROM workflows JOIN jobs ON workflow_id = id WHERE id = $1`, id).Scan(
				&planned, &running, &finished, &command); err != nil {
				t.Fatal(err)
			}
			if running != 0 || finished != 1 || (planned == 77) != (name == "a run, changed") || (command == "true") != (name == "a job, changed") {
				t.Errorf("planned %d, running %d, finished %d, command %q", planned, running, finished, command)
			}
		})
	}
}

// A batch of many runs that waits for its turn holds no snapshot, which would
// keep the server from clearing away what the others outdate. A batch of few
// runs does not wait.
func TestTurns(t *testing.T) {
	t.Parallel()
	d := servicetest.Database(t)
	large, small := newApplier(another(t, d)), newApplier(another(t, d))
	if _, err := large.db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	of := func(runs int) (deliveries []workflow.Delivery) {
		for range runs {
			deliveries = append(deliveries, trace(uuid.New())...)
		}
		return deliveries
	}
	conn := raw(t, d)
	// The first of a connection prepares the statements, which is no waiting.
	if _, err := large.db.Apply(t.Context(), large.batch(of(100)...)); err != nil {
		t.Fatal(err)
	}
	other, err := conn.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Rollback()
	if _, err := other.Exec(`LOCK TABLE apply_turns IN EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() {
		_, err := large.db.Apply(t.Context(), large.batch(of(100)...))
		answered <- err
	}()
	const waiting = `FROM pg_stat_activity AS a JOIN pg_locks AS l USING (pid) WHERE l.relation = 'apply_turns'::regclass AND NOT l.granted`
	servicetest.Eventually(t, time.Minute, "the large batch waits for its turn", func() error {
		var n int
		err := conn.QueryRow(`SELECT count(*) ` + waiting).Scan(&n)
		if err == nil && n != 1 {
			err = errors.New("nobody waits")
		}
		return err
	})
	var snapshots int
	if err := conn.QueryRow(`SELECT count(a.backend_xmin) ` + waiting).Scan(&snapshots); err != nil || snapshots != 0 {
		t.Errorf("the waiting batch holds %d snapshots, %v; want none", snapshots, err)
	}
	if _, err := small.db.Apply(t.Context(), small.batch(of(3)...)); err != nil {
		t.Errorf("a small batch beside it: %v", err)
	}
	select {
	case err := <-answered:
		t.Errorf("the large batch did not wait for its turn: %v", err)
	default:
	}
	if err := other.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Errorf("the large batch, when it had its turn: %v", err)
	}
}
