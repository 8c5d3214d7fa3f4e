package store

import (
	"hash/crc32"

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
	q.Queue(sqlLockRuns, int32(crc32.ChecksumIEEE([]byte("waymark "+db.cfg.Schema))), hashes)
}
