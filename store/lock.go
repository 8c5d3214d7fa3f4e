package store

import (
	"context"
	"hash/crc32"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Who writes what belongs to a run holds the lock of the run until the end of
// the transaction. It is an advisory lock and not one of the row: that of a row
// is written to the log of the database, which made up a tenth of it, and a new
// run has no row yet.
//
// Locks of this kind have room for max_locks_per_transaction × max_connections
// in the whole server, so runs share a quarter as many, 1600 with Postgres'
// defaults. Two runs of one lock only wait for each other now and then. The
// number is the server's own and does not change while it runs: all who lock
// agree on it. The locks are taken in one order, so nobody waits in a circle.
const sqlLockRuns = `
SELECT count(*) FROM (
    SELECT pg_advisory_xact_lock($1, stripe) FROM (
        SELECT DISTINCT (hash % (SELECT greatest(16, current_setting('max_locks_per_transaction')::bigint *
               (current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint) / 4)))::integer AS stripe
        FROM unnest($2::bigint[]) AS hash ORDER BY stripe) AS s) AS locked`

// Batches of many runs take turns. They share locks with nearly every other such
// batch, so they would wait for each other anyway, but in a query: its snapshot
// keeps the server from clearing away what the batches before it have outdated,
// the pages of the runs fill up with it, and the updates are no longer HOT. That
// made four consumers slower than one. LOCK TABLE is no query and has no
// snapshot while it waits.
const (
	sqlTakeTurn = `LOCK TABLE apply_turns IN EXCLUSIVE MODE`
	// turnFrom is how many runs a batch that takes turns has at least: two of 32
	// share one of 1600 locks about every second time, two of 64 nearly always.
	turnFrom = 32
)

// lockRuns queues the statements that lock runs. A statement behind them in q
// has a snapshot of its own: it sees what the locks have waited for.
func (db *DB) lockRuns(q *pgx.Batch, ids []uuid.UUID) {
	if len(ids) >= turnFrom {
		q.Queue(sqlTakeTurn)
	}
	hashes := make([]int64, len(ids))
	for i, id := range ids {
		hashes[i] = int64(crc32.ChecksumIEEE(id[:]))
	}
	q.Queue(sqlLockRuns, db.lockClass(), hashes)
}

// lockClass is the first of the two numbers of a lock, the same for all runs of a
// schema.
func (db *DB) lockClass() int32 {
	return int32(crc32.ChecksumIEEE([]byte("waymark " + db.cfg.Schema)))
}

// A consumer that stops or vanishes in the middle of what it sends, a COPY or a
// batch of statements, keeps its locks: the server waits for the rest, and no
// timeout of it counts there. So who has waited for the locks in vain ends such a
// session, if it is of the same role and what it sends began longer ago than
// idle_in_transaction_session_timeout lets one stand. A COPY that is merely so
// slow is ended, too, and its batch tried again.
const sqlEndStalled = `
SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity AS a
WHERE datname = current_database() AND usename = current_user AND state = 'active' AND wait_event = 'ClientRead'
  AND query_start < clock_timestamp() - make_interval(secs => $1)
  AND EXISTS (SELECT FROM pg_locks AS l WHERE l.pid = a.pid AND l.database = a.datid AND l.granted
              AND (l.locktype = 'advisory' AND l.objsubid = 2 AND l.classid = $2
                   OR l.locktype = 'relation' AND l.relation = 'apply_turns'::regclass AND l.mode = 'ExclusiveLock'))`

// endStalled ends the sessions that hold locks of runs and wait for their client.
func (db *DB) endStalled(ctx context.Context) {
	patience := db.cfg.ApplyTimeout / 2
	// If it is the server that stands still, the caller is to hear of it soon.
	ctx, cancel := context.WithTimeout(ctx, min(patience, 2*time.Second))
	defer cancel()
	var ended int
	err := withPgx(ctx, db.applies, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, sqlEndStalled, patience.Seconds(), uint32(db.lockClass())).Scan(&ended)
	})
	if err == nil && ended > 0 { // otherwise the batch, which is tried again, tells what is wrong
		db.cfg.Logger.Warn("ended sessions of consumers that stood still while they held locks", "schema", db.cfg.Schema, "sessions", ended)
	}
}
