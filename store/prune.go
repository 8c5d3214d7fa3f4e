package store

import (
	"context"
	"fmt"
	"time"
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
