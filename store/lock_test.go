package store_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"waymark/internal/servicetest"
	"waymark/store"
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

// wantWaiting waits until somebody waits for the transaction of the server
// process pid.
func wantWaiting(t *testing.T, conn *sql.DB, pid int) {
	t.Helper()
	servicetest.Eventually(t, time.Minute, "the batch waits for the other's row", func() error {
		var n int
		err := conn.QueryRow(`SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))`, pid).Scan(&n)
		if err == nil && n == 0 {
			err = errors.New("nobody waits")
		}
		return err
	})
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
	wantWaiting(t, conn, pid)
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

// What somebody who locks no runs does to rows between the loading and the writing
// of a batch is not undone by it: the batch is folded anew, and the rows are those
// of one after the other. That is so whether the other has ended when the batch
// writes, or the batch waits for it; and for jobs that are inserted, and copied.
func TestRowsChangedByAnother(t *testing.T) {
	t.Parallel()
	d := servicetest.Database(t)
	a := newApplier(another(t, d))
	if _, err := a.db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn := raw(t, d)
	for name, other := range map[string]struct {
		statement string
		folded    int
	}{
		"a run, changed":  {`UPDATE workflows SET planned = 777 WHERE id = $1`, 2},
		"a run, replaced": {`WITH w AS (DELETE FROM workflows WHERE id = $1 RETURNING *) INSERT INTO workflows SELECT * FROM w`, 2},
		"a run, locked":   {`SELECT FROM workflows WHERE id = $1 FOR UPDATE`, 1},
		"a job, changed":  {`UPDATE jobs SET command = 'true' WHERE workflow_id = $1 AND job_id = 'old'`, 2},
		"a job, replaced": {`WITH j AS (DELETE FROM jobs WHERE workflow_id = $1 AND job_id = 'old' RETURNING *) INSERT INTO jobs SELECT * FROM j`, 2},
		"a job, made": {`WITH j AS (INSERT INTO jobs (workflow_id, job_id, run_attempt, attempt, status, cached, started_at, command)
				VALUES ($1, 'new-0', 1, 1, 2, false, '2026-03-04T12:00:01Z', 'true'))
			UPDATE workflows SET jobs_running = jobs_running + 1 WHERE id = $1`, 2},
	} {
		for news, n := range map[string]int{"inserted": 1, "copied": 100} {
			var jobs []string
			for i := range n {
				jobs = append(jobs, fmt.Sprintf("new-%d", i))
			}
			first := func(id uuid.UUID) workflow.Delivery {
				return status(workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, EventTime: at(1), Progress: workflow.Progress{Running: workflow.JobIDs("old")}})
			}
			// Without an id, so that the session is asked for between loading and writing.
			last := func(id uuid.UUID) workflow.Delivery {
				return workflow.Delivery{Digest: uuid.New(), Status: &workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, EventTime: at(2), Logs: "once",
					Progress: workflow.Progress{Finished: workflow.JobIDs("old"), Running: workflow.JobIDs(jobs...)}}}
			}
			reference := uuid.New()
			a.apply(t, first(reference))
			execute(t, conn, other.statement, reference)
			a.apply(t, last(reference))
			want := read(t, a.db, reference)

			for when, waited := range map[string]bool{"before": false, "while it waits": true} {
				t.Run(name+", "+news+", "+when, func(t *testing.T) {
					id := uuid.New()
					a.apply(t, first(id))
					tx, err := conn.BeginTx(t.Context(), nil)
					if err != nil {
						t.Fatal(err)
					}
					defer tx.Rollback()
					folded, loaded, goOn := 0, make(chan struct{}), make(chan struct{})
					b := a.batch(last(id))
					b.Held = func(context.Context) error {
						if folded++; folded == 1 {
							close(loaded)
							<-goOn
						}
						return nil
					}
					type answer struct {
						outcomes []workflow.Outcome
						err      error
					}
					answered := make(chan answer, 1)
					go func() {
						outcomes, err := a.db.Apply(t.Context(), b)
						answered <- answer{outcomes, err}
					}()
					select {
					case <-loaded:
					case got := <-answered:
						t.Fatalf("the batch ended before it was asked whether it is held: %v, %v", got.outcomes, got.err)
					}
					var pid int
					_, err = tx.Exec(other.statement, id)
					if err == nil {
						err = tx.QueryRow(`SELECT pg_backend_pid()`).Scan(&pid)
					}
					if err == nil && !waited {
						err = tx.Commit()
					}
					close(goOn)
					if err == nil && waited {
						wantWaiting(t, conn, pid)
						err = tx.Commit()
					}
					if err != nil {
						t.Fatal(err)
					}
					got := <-answered
					if got.err != nil {
						t.Fatal(got.err)
					}
					wantOutcomes(t, got.outcomes, workflow.Applied)
					if folded != other.folded {
						t.Errorf("the batch was folded %d times, want %d", folded, other.folded)
					}
					if d := cmp.Diff(want, read(t, a.db, id), ignoreArrival); d != "" {
						t.Errorf("rows (-one after the other, +at once):\n%s", d)
					}
				})
			}
		}
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

// A consumer that stands still in the middle of what it sends holds the others up
// for no longer than one that stands between two statements. Whoever else stands
// there, and holds no lock of ours, is left alone.
func TestStalledConsumerIsEnded(t *testing.T) {
	t.Parallel()
	d := servicetest.Database(t)
	var said strings.Builder
	db, err := store.Open(t.Context(), store.Config{ApplyTimeout: 2 * time.Second, Logger: slog.New(slog.NewTextHandler(&said, nil)), Schema: d.Schema, URL: d.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	// stall leaves a session in the middle of COPY, after other statements, and
	// returns how that ends.
	stall := func(before, columns string) (pid uint32, ended chan error) {
		conn, err := pgx.Connect(t.Context(), d.URL)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Exec(t.Context(), `SET search_path = `+d.Schema+`; BEGIN; `+before); err != nil {
			t.Fatal(err)
		}
		rest, more := io.Pipe()
		ended = make(chan error, 1)
		var copying sync.WaitGroup
		copying.Go(func() {
			_, err := conn.PgConn().CopyFrom(context.Background(), rest, `COPY `+columns+` FROM STDIN`)
			ended <- err
		})
		t.Cleanup(func() {
			more.Close()
			copying.Wait()
			conn.Close(context.Background())
		})
		return conn.PgConn().PID(), ended
	}
	locks := fmt.Sprintf(`SELECT count(pg_advisory_xact_lock(%d, stripe)) FROM generate_series(0, current_setting('max_locks_per_transaction')::integer *
		current_setting('max_connections')::integer / 4) AS stripe`, int32(crc32.ChecksumIEEE([]byte("waymark "+d.Schema))))
	bystander, other := stall(`CREATE TEMP TABLE mine (a text)`, `mine`)
	a := newApplier(db)
	next := load(64, 1)
	for holds, before := range map[string]string{"locks of runs": locks, "the turn": `LOCK TABLE apply_turns IN EXCLUSIVE MODE`} {
		said.Reset()
		pid, stalled := stall(before, `jobs (workflow_id, job_id)`)
		var many []workflow.Delivery
		for range 64 {
			many = append(many, next())
		}
		b := a.batch(many...)
		servicetest.Eventually(t, time.Minute, "the batch is applied", func() error {
			_, err := db.Apply(t.Context(), b)
			return err
		})
		select {
		case err := <-stalled:
			if pg, is := errors.AsType[*pgconn.PgError](err); is && pg.Code != "57P01" || err == nil {
				t.Errorf("the session %d that stood still with %s ended with %v, want it ended by somebody", pid, holds, err)
			}
		case <-time.After(time.Minute):
			t.Errorf("the session %d that stood still with %s goes on", pid, holds)
		}
		if !strings.Contains(said.String(), "stood still") {
			t.Errorf("that it ended a session that held %s is not logged: %q", holds, said.String())
		}
	}
	var alive int
	if err := raw(t, d).QueryRow(`SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'ClientRead'`, bystander).Scan(&alive); err != nil || alive != 1 {
		t.Errorf("a session that holds no lock of ours is gone (%v)", err)
	}
	select {
	case err := <-other:
		t.Errorf("the COPY of somebody else ended with %v", err)
	default:
	}
}
