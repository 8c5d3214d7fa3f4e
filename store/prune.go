package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// pruneRows is how many rows one statement of Prune takes: few enough that it
// holds nothing up.
const pruneRows = 5000

// Prune forgets the ids of messages that had their effect before then, and
// folds the ledger rows of consumers not heard of since into one. It returns
// how many ids it forgot.
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
	for {
		result, err := db.reads.ExecContext(ctx, `
			DELETE FROM recent_deliveries WHERE (session, batch) IN (
				SELECT session, batch FROM recent_deliveries WHERE at < $1 LIMIT $2 FOR UPDATE SKIP LOCKED)`, before, pruneRows)
		if err != nil {
			return forgotten, fmt.Errorf("forgetting recent deliveries: %w", translate(err))
		}
		n, err := result.RowsAffected()
		if err != nil {
			return forgotten, fmt.Errorf("forgetting recent deliveries: %w", err)
		}
		if n < pruneRows {
			break
		}
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

// pruneRuns is how many runs one transaction of PruneRuns deletes at most.
const pruneRuns = 100

// sqlEnded chooses runs that have ended and of which nothing was heard since.
const sqlEnded = `status IN (2, 3, 4, 5) AND updated_at < $1`

// PruneRuns deletes the runs that have ended and of which nothing was heard
// since before, with their jobs, logs and histories, some at a time, and returns
// how many. It may be called by several at once, and interrupted.
//
// A message that comes for such a run still later makes it anew, with only what
// the message says; one that was applied before is known by its id, if that was
// not forgotten. A name of which every run is gone is numbered from 1 again.
func (db *DB) PruneRuns(ctx context.Context, before time.Time) (deleted int64, err error) {
	for {
		n, more, err := db.pruneSomeRuns(ctx, before)
		if deleted += n; err != nil {
			return deleted, fmt.Errorf("deleting old runs: %w", translate(err))
		}
		if !more {
			return deleted, nil
		}
	}
}

func (db *DB) pruneSomeRuns(ctx context.Context, before time.Time) (deleted int64, more bool, err error) {
	err = withPgx(ctx, db.applies, func(conn *pgx.Conn) error {
		defer endTransaction(ctx, conn)
		if _, err := conn.Exec(ctx, sqlBegin); err != nil {
			return err
		}
		// What was last heard of is not older than what was first.
		rows, err := conn.Query(ctx, `SELECT id FROM workflows WHERE `+sqlEnded+` AND created_at < $1 ORDER BY created_at, id LIMIT $2`, before, pruneRuns)
		if err != nil {
			return err
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
		if err != nil || len(ids) == 0 {
			return err
		}
		more = len(ids) == pruneRuns
		var q pgx.Batch
		db.lockRuns(&q, ids)
		// Somebody may have been faster, or a message come, until they were locked.
		q.Queue(`SELECT id FROM workflows WHERE `+sqlEnded+` AND id = ANY($2)`, before, uuids(ids)).Query(func(rows pgx.Rows) error {
			ids, err = pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
			return err
		})
		if err := conn.SendBatch(ctx, &q).Close(); err != nil {
			return err
		}
		q = pgx.Batch{}
		for _, table := range []string{"jobs", "log_chunks", "log_cuts", "status_changes", "submissions", "engine_documents"} {
			q.Queue(`DELETE FROM `+table+` WHERE workflow_id = ANY($1)`, uuids(ids))
		}
		q.Queue(`DELETE FROM workflows WHERE id = ANY($1)`, uuids(ids)).Exec(func(tag pgconn.CommandTag) error {
			deleted = tag.RowsAffected()
			return nil
		})
		if err := conn.SendBatch(ctx, &q).Close(); err != nil {
			return err
		}
		return commit(ctx, conn)
	})
	if err != nil {
		deleted = 0
	}
	return deleted, more, err
}
