package store

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"waymark/internal/servicetest"
	"waymark/workflow"
)

// migrated returns a store in a schema of its own.
func migrated(t *testing.T) *DB {
	t.Helper()
	d := servicetest.Database(t)
	db, err := Open(t.Context(), Config{URL: d.URL, Schema: d.Schema})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if _, err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return db
}

// A large run is deleted some rows at a time. Interrupted, its numbers are those
// of the rows that are left, and a message that comes finds a run that is whole.
func TestPruneRunInterrupted(t *testing.T) {
	t.Parallel()
	db := migrated(t)
	id, noon := uuid.New(), time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	number := int64(0)
	apply := func(m workflow.StatusMessage) {
		t.Helper()
		number++
		m.WorkflowID, m.Attempt = id, 2
		b := &workflow.Batch{Queue: "jobs-status", Consumer: uuid.UUID{1}, Number: number, Session: uuid.UUID{2}, Deliveries: []workflow.Delivery{{MessageID: uuid.NewString(), Status: &m}}}
		if _, err := db.Apply(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	// One of the attempt before, which does not count. It is the first to be deleted.
	if _, err := db.reads.ExecContext(t.Context(), `INSERT INTO jobs (workflow_id, run_attempt, attempt, status, cached, job_id) VALUES ($1, 1, 1, 2, false, '!')`, id); err != nil {
		t.Fatal(err)
	}
	var jobs []workflow.JobReport
	const many = pruneRows + 600
	for i := range many {
		// Of each status some, all three kinds of end among them.
		j := workflow.JobReport{ID: fmt.Sprint(i), Status: workflow.JobStatus(i % 6), Logs: "a line"}
		j.Cached = j.Status == workflow.JobFinished && i%4 == 0
		jobs = append(jobs, j)
	}
	apply(workflow.StatusMessage{Status: workflow.StatusRunning, Jobs: jobs[:many/2], EventTime: noon})
	apply(workflow.StatusMessage{Status: workflow.StatusFinished, Jobs: jobs[many/2:], EventTime: noon})
	type numbers struct{ Created, Queued, Running, Finished, Failed, Stopped, Cached, LogBytes int64 }
	check := func(when string, rows int64) {
		t.Helper()
		var said, counted numbers
		var n int64
		scan := func(query string, to *numbers, also ...any) {
			t.Helper()
			columns := append([]any{&to.Created, &to.Queued, &to.Running, &to.Finished, &to.Failed, &to.Stopped, &to.Cached, &to.LogBytes}, also...)
			if err := db.reads.QueryRowContext(t.Context(), query, id).Scan(columns...); err != nil {
				t.Fatalf("%s: %v", when, err)
			}
		}
		scan(`SELECT jobs_created, jobs_queued, jobs_running, jobs_finished, jobs_failed, jobs_stopped, jobs_cached, log_bytes FROM workflows WHERE id = $1`, &said)
		scan(`SELECT count(*) FILTER (WHERE status = 0), count(*) FILTER (WHERE status = 1), count(*) FILTER (WHERE status = 2),
			count(*) FILTER (WHERE status = 3), count(*) FILTER (WHERE status = 4), count(*) FILTER (WHERE status = 5), count(*) FILTER (WHERE status = 3 AND cached),
			(SELECT coalesce(sum(octet_length(body)), 0) FROM log_chunks WHERE workflow_id = $1), count(*) + (SELECT count(*) FROM jobs WHERE workflow_id = $1 AND run_attempt < 2)
			FROM jobs WHERE workflow_id = $1 AND run_attempt = 2`, &counted, &n)
		if diff := cmp.Diff(counted, said); diff != "" {
			t.Errorf("%s the numbers of the run are not those of its rows (-rows, +run):\n%s", when, diff)
		}
		if n != rows {
			t.Errorf("%s the run has %d jobs, want %d", when, n, rows)
		}
	}
	check("before", many+1)
	later := time.Now().Add(time.Hour)
	if gone, more, err := db.pruneRun(t.Context(), id, later); err != nil || gone || !more {
		t.Fatalf("the first part: gone %v, more %v, %v; want only more", gone, more, err)
	}
	check("after the first part", many+1-pruneRows)

	// A message comes, and the run is not old any more.
	heard := time.Now()
	apply(workflow.StatusMessage{Status: workflow.StatusFinished, Jobs: jobs[:100], EventTime: noon.Add(time.Second)})
	if gone, more, err := db.pruneRun(t.Context(), id, heard); err != nil || gone || more {
		t.Errorf("a run that was heard of: gone %v, more %v, %v; want neither", gone, more, err)
	}
	var n int64
	if err := db.reads.QueryRowContext(t.Context(), `SELECT count(*) FROM jobs WHERE workflow_id = $1`, id).Scan(&n); err != nil || n < 100 {
		t.Errorf("the run has %d jobs, %v; want at least the 100 of the message", n, err)
	}
	check("after a message", n)

	if n, err := db.PruneRuns(t.Context(), later, nil); err != nil || n != 1 {
		t.Errorf("PruneRuns deleted %d, %v; want the one run", n, err)
	}
	for _, table := range []string{"jobs", "log_chunks", "status_changes"} {
		if err := db.reads.QueryRowContext(t.Context(), `SELECT count(*) FROM `+table).Scan(&n); err != nil || n > 0 {
			t.Errorf("%s has %d rows, %v; want none", table, n, err)
		}
	}
}
