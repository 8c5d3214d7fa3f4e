package store

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// pruneRows is how many rows one statement of Prune takes: few enough that it
// holds nothing up.
const pruneRows = 5000

// Prune forgets the ids of messages that had their effect before then, and the
// digests of those that have none, these an hour after an earlier call has found
// them, and folds the ledger rows of consumers not heard of since into one. It
// returns how many ids it forgot.
//
// A message that comes again later than that is no longer known by its id. The
// fold makes it harmless all the same, but for its log lines, which are stored
// again. It may be called by several at once, and interrupted.
func (db *DB) Prune(ctx context.Context, before time.Time) (forgotten int64, err error) {
	for {
		// A consumer that inserts an id meanwhile does not wait, and neither does
		// another Prune: rows that are locked are somebody else's to delete.
		result, err := db.reads.ExecContext(ctx, `
			DELETE FROM seen_messages WHERE id IN (
				SELECT id FROM seen_messages WHERE seen_at < $1 LIMIT $2 FOR UPDATE SKIP LOCKED)`, before, pruneRows)
		if err != nil {
			return forgotten, fmt.Errorf("forgetting message ids: %w", translate(err))
		}
		n, err := result.RowsAffected()
		if err != nil {
			return forgotten, fmt.Errorf("forgetting message ids: %w", err)
		}
		if forgotten += n; n < pruneRows {
			break
		}
	}
	for {
		var rows, ids int64
		err := db.reads.QueryRowContext(ctx, `
			WITH gone AS (
				DELETE FROM seen_batches WHERE ctid = ANY (ARRAY(
					SELECT ctid FROM seen_batches WHERE seen_at < $1 LIMIT $2 FOR UPDATE SKIP LOCKED)) RETURNING length(ids) / $3 AS n)
			SELECT count(*), coalesce(sum(n), 0)::bigint FROM gone`, before, pruneRows, packedSize).Scan(&rows, &ids)
		if err != nil {
			return forgotten, fmt.Errorf("forgetting message ids: %w", translate(err))
		}
		if forgotten += ids; rows < pruneRows {
			break
		}
	}
	if err := db.pruneRecent(ctx, before); err != nil {
		return forgotten, fmt.Errorf("forgetting recent deliveries: %w", err)
	}
	// One statement, so that the sums are the same at every moment.
	_, err = db.reads.ExecContext(ctx, `
		WITH gone AS (
			DELETE FROM ledger WHERE updated_at < $1 AND consumer <> '00000000-0000-0000-0000-000000000000' RETURNING *),
		sums AS (
			SELECT queue, sum(received) AS received, sum(applied) AS applied, sum(duplicate) AS duplicate, sum(stale) AS stale, sum(dead) AS dead
			FROM gone GROUP BY queue)
		INSERT INTO ledger AS l (queue, consumer, received, applied, duplicate, stale, dead, batch, updated_at)
		SELECT queue, '00000000-0000-0000-0000-000000000000', received, applied, duplicate, stale, dead, 0, $2 FROM sums
		ON CONFLICT (queue, consumer) DO UPDATE SET received = l.received + excluded.received, applied = l.applied + excluded.applied,
			duplicate = l.duplicate + excluded.duplicate, stale = l.stale + excluded.stale, dead = l.dead + excluded.dead, updated_at = excluded.updated_at`,
		before, db.now())
	if err != nil {
		return forgotten, fmt.Errorf("folding the ledger: %w", translate(err))
	}
	return forgotten, nil
}

// pruneRecent forgets the digests that nobody else has forgotten. Their age is
// taken by the clock of this process, which does not step: by that of the server
// it may seem an hour and be a second.
func (db *DB) pruneRecent(ctx context.Context, before time.Time) error {
	rows, err := db.reads.QueryContext(ctx, `SELECT session, batch FROM recent_deliveries`)
	if err != nil {
		return translate(err)
	}
	defer rows.Close()
	var found []recentBatch
	for rows.Next() {
		var one recentBatch
		if err := rows.Scan(&one.session, &one.batch); err != nil {
			return translate(err)
		}
		found = append(found, one)
	}
	if err := rows.Err(); err != nil {
		return translate(err)
	}
	for chunk := range slices.Chunk(db.leftovers.old(found, time.Now()), pruneRows) {
		var sessions []uuid.UUID
		var batches []int64
		for _, one := range chunk {
			sessions, batches = append(sessions, one.session), append(batches, one.batch)
		}
		if _, err := db.reads.ExecContext(ctx, `
			DELETE FROM recent_deliveries WHERE (session, batch) IN (
				SELECT session, batch FROM recent_deliveries WHERE (session, batch) IN (SELECT * FROM unnest($1::uuid[], $2::bigint[])) FOR UPDATE SKIP LOCKED)`,
			uuids(sessions), batches); err != nil {
			return translate(err)
		}
	}
	// What processes have left behind that never lived for so long.
	_, err = db.reads.ExecContext(ctx, `DELETE FROM recent_deliveries WHERE at < $1`, before)
	return translate(err)
}

// pruneRuns is how many runs PruneRuns looks for at once.
const pruneRuns = 100

// sqlEnded chooses runs that have ended and of which nothing was heard since.
const sqlEnded = `status IN (2, 3, 4, 5) AND updated_at < $1`

// PruneRuns deletes the runs that have ended and of which nothing was heard
// since before, with their jobs, logs and histories, and returns how many, also
// beside an error. It calls each, unless that is nil, after each of them: there may
// be many. It may be called by several at once, and interrupted.
//
// Each run is deleted in a transaction of its own, a large one in several, jobs
// and logs first: a batch for a run of the same lock waits for no more than some
// thousand rows. At every moment the run's numbers are those of its rows, so a
// message that comes in the middle finds a smaller run, which then stays.
//
// A message that comes for such a run still later makes it anew, with only what
// the message says; one that was applied before is known by its id, if that was
// not forgotten. A name of which every run is gone is numbered from 1 again.
func (db *DB) PruneRuns(ctx context.Context, before time.Time, each func()) (deleted int64, err error) {
	for {
		ids, err := db.oldRuns(ctx, before)
		if err != nil {
			return deleted, fmt.Errorf("looking for old runs: %w", translate(err))
		}
		for _, id := range ids {
			for more := true; more; {
				var gone bool
				if gone, more, err = db.pruneRun(ctx, id, before); err != nil {
					return deleted, fmt.Errorf("deleting the old run %s: %w", id, translate(err))
				}
				if !gone {
					continue
				}
				deleted++
				if each != nil {
					each()
				}
			}
		}
		if len(ids) < pruneRuns {
			return deleted, nil
		}
	}
}

// oldRuns returns the oldest of the runs that are to be deleted.
func (db *DB) oldRuns(ctx context.Context, before time.Time) (ids []uuid.UUID, err error) {
	err = withPgx(ctx, db.applies, func(conn *pgx.Conn) error {
		// What was last heard of is not older than what was first.
		rows, err := conn.Query(ctx, `SELECT id FROM workflows WHERE `+sqlEnded+` AND created_at < $1 ORDER BY created_at, id LIMIT $2`, before, pruneRuns)
		if err != nil {
			return err
		}
		ids, err = pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
		return err
	})
	return ids, err
}

const (
	// Only the jobs of the run's attempt are in its numbers.
	sqlPruneJobs = `
WITH gone AS (
    DELETE FROM jobs WHERE ctid = ANY (ARRAY(SELECT ctid FROM jobs WHERE workflow_id = $1 LIMIT $2))
    RETURNING status, cached, run_attempt = (SELECT attempt FROM workflows WHERE id = $1) AS counted)
SELECT count(*), count(*) FILTER (WHERE counted AND status = 0), count(*) FILTER (WHERE counted AND status = 1),
       count(*) FILTER (WHERE counted AND status = 2), count(*) FILTER (WHERE counted AND status = 3),
       count(*) FILTER (WHERE counted AND status = 4), count(*) FILTER (WHERE counted AND status = 5),
       count(*) FILTER (WHERE counted AND status = 3 AND cached)
FROM gone`
	sqlPruneLogs = `
WITH gone AS (
    DELETE FROM log_chunks WHERE ctid = ANY (ARRAY(SELECT ctid FROM log_chunks WHERE workflow_id = $1 LIMIT $2))
    RETURNING octet_length(body) AS n)
SELECT count(*), coalesce(sum(n), 0)::bigint FROM gone`
	// Numbers that did not fit the rows before do not keep a run from being deleted.
	sqlPruneNumbers = `
UPDATE workflows SET revision = revision + 1,
    jobs_created = greatest(jobs_created - $2, 0), jobs_queued = greatest(jobs_queued - $3, 0), jobs_running = greatest(jobs_running - $4, 0),
    jobs_finished = greatest(jobs_finished - $5, 0), jobs_failed = greatest(jobs_failed - $6, 0), jobs_stopped = greatest(jobs_stopped - $7, 0),
    jobs_cached = least(greatest(jobs_cached - $8, 0), greatest(jobs_finished - $5, 0)), log_bytes = greatest(log_bytes - $9, 0)
WHERE id = $1`
)

// pruneRun deletes, in one transaction, a run that is old still, or the first
// rows of one that has many. It reports whether the run is gone by it, and
// whether there is more to delete.
func (db *DB) pruneRun(ctx context.Context, id uuid.UUID, before time.Time) (gone, more bool, err error) {
	err = withPgx(ctx, db.applies, func(conn *pgx.Conn) error {
		defer endTransaction(ctx, conn)
		var old bool
		var q pgx.Batch
		q.Queue(sqlBegin)
		db.lockRuns(&q, []uuid.UUID{id})
		// Somebody may have been faster, or a message come, until it was locked.
		q.Queue(`SELECT EXISTS (SELECT FROM workflows WHERE `+sqlEnded+` AND id = $2)`, before, id).QueryRow(func(row pgx.Row) error {
			return row.Scan(&old)
		})
		if err := conn.SendBatch(ctx, &q).Close(); err != nil || !old {
			return err
		}

		var jobs, chunks, logBytes int64
		var counts [7]int64 // by status, then the cached
		q = pgx.Batch{}
		q.Queue(sqlPruneJobs, id, pruneRows).QueryRow(func(row pgx.Row) error {
			return row.Scan(&jobs, &counts[0], &counts[1], &counts[2], &counts[3], &counts[4], &counts[5], &counts[6])
		})
		q.Queue(sqlPruneLogs, id, pruneRows).QueryRow(func(row pgx.Row) error { return row.Scan(&chunks, &logBytes) })
		if err := conn.SendBatch(ctx, &q).Close(); err != nil {
			return err
		}

		q = pgx.Batch{}
		more = jobs == pruneRows || chunks == pruneRows
		if more {
			q.Queue(sqlPruneNumbers, id, counts[0], counts[1], counts[2], counts[3], counts[4], counts[5], counts[6], logBytes)
		} else {
			for _, table := range []string{"log_cuts", "status_changes", "submissions", "engine_documents"} {
				q.Queue(`DELETE FROM `+table+` WHERE workflow_id = $1`, id)
			}
			q.Queue(`DELETE FROM workflows WHERE id = $1`, id)
		}
		if err := conn.SendBatch(ctx, &q).Close(); err != nil {
			return err
		}
		if err := commit(ctx, conn); err != nil {
			return err
		}
		gone = !more
		return nil
	})
	return gone, more, err
}
