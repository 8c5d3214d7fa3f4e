package store

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"waymark/workflow"
)

// Two consumers that take from the same batches do it in one order.
func TestRecentIsTakenInOrder(t *testing.T) {
	t.Parallel()
	a := &application{db: &DB{}, batch: &workflow.Batch{}, repeated: make(map[recentBatch][]int64)}
	var want []recentBatch
	for s := range byte(5) {
		for n := range int64(5) {
			in := recentBatch{uuid.UUID{s + 1}, n + 8}
			want = append(want, in)
			a.repeated[in] = []int64{9}
		}
	}
	var q pgx.Batch
	a.writeRecent(&q)
	var got []recentBatch
	for _, s := range q.QueuedQueries {
		got = append(got, recentBatch{s.Arguments[0].(uuid.UUID), s.Arguments[1].(int64)})
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(recentBatch{})); diff != "" {
		t.Errorf("taken from (-want, +got):\n%s", diff)
	}
}

// A batch without digests forgets what its session has settled, and nothing once
// that is done: sessions that never have digests are not asked for.
func TestSettledIsForgottenByAnyBatch(t *testing.T) {
	t.Parallel()
	db := migrated(t)
	id := uuid.New()
	session, number := uuid.New(), int64(0)
	apply := func(settled int64, d workflow.Delivery) []workflow.Outcome {
		t.Helper()
		number++
		d.Status = &workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, Logs: "tick", EventTime: time.Now()}
		outcomes, err := db.Apply(t.Context(), &workflow.Batch{
			Queue: "jobs-status", Consumer: uuid.UUID{1}, Number: number, Session: session, Settled: settled, Deliveries: []workflow.Delivery{d},
		})
		if err != nil {
			t.Fatal(err)
		}
		return outcomes
	}
	rows := func() (n int) {
		t.Helper()
		if err := db.reads.QueryRowContext(t.Context(), `SELECT count(*) FROM recent_deliveries`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	age := func(by time.Duration) {
		t.Helper()
		if _, err := db.reads.ExecContext(t.Context(), `UPDATE recent_deliveries SET at = at - $1::interval`, by.String()); err != nil {
			t.Fatal(err)
		}
		for s, row := range db.recent.last {
			row.at = row.at.Add(-by)
			db.recent.last[s] = row
		}
	}
	withID := func() workflow.Delivery { return workflow.Delivery{MessageID: uuid.NewString()} }
	apply(0, withID())
	if db.recent.may(session) {
		t.Error("a session without digests is said to have some")
	}
	bare := workflow.Delivery{Digest: uuid.New()}
	apply(1, bare) // 2
	apply(1, withID())
	if rows() != 1 || !db.recent.may(session) {
		t.Errorf("of what is not settled %d rows are kept, want 1", rows())
	}
	age(-time.Hour) // whatever the server's clock says
	apply(2, withID())
	if rows() != 0 || db.recent.may(session) {
		t.Errorf("when it is settled %d rows are kept, want none, and that nothing more is to be forgotten: %v", rows(), db.recent.may(session))
	}
	// So an equal message that another session was given before, and lost, is new.
	session = uuid.New()
	bare.Redelivered = true
	if got := apply(0, bare); got[0] != workflow.Applied {
		t.Errorf("an equal message that comes later is %v, want %v", got[0], workflow.Applied)
	}

	// What nobody forgets, as its session has ended, Prune does, an hour after it has
	// found it. The server's clock may step: to it a row of a second ago is old.
	for _, test := range []struct {
		step, passes time.Duration
		want         int
	}{{step: 48 * time.Hour, want: 1}, {passes: recentKept - time.Minute, want: 1}, {step: -96 * time.Hour, passes: 2 * time.Minute, want: 0}} {
		age(test.step)
		for row, since := range db.leftovers.since {
			db.leftovers.since[row] = since.Add(-test.passes)
		}
		if _, err := db.Prune(t.Context(), time.Now().Add(-30*24*time.Hour)); err != nil {
			t.Fatal(err)
		}
		if got := rows(); got != test.want {
			t.Errorf("after the server's clock has stepped by %v, another %v, and Prune, there are %d rows, want %d", test.step, test.passes, got, test.want)
		}
	}
	if _, err := db.Prune(t.Context(), time.Now()); err != nil || len(db.leftovers.since) != 0 {
		t.Errorf("of rows that are gone %d are remembered (%v), want none", len(db.leftovers.since), err)
	}
}

// Sessions that end with something to forget are not remembered for ever.
func TestRecentSessionsAreBounded(t *testing.T) {
	t.Parallel()
	var r recentSessions
	now := time.Now()
	for i := range 100 {
		r.wrote(uuid.New(), 1, now.Add(time.Duration(i)*recentKept))
	}
	if n := len(r.last); n > 2 {
		t.Errorf("of 100 sessions, one an hour, %d are remembered, want 2 at most", n)
	}
}
