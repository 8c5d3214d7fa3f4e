package bench

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// written is the position of the write-ahead log, in bytes. It is the whole
// server's, so the difference of two also holds what others wrote in between,
// and, after a checkpoint, full images of pages.
func (p *place) written(ctx context.Context) (int64, error) {
	var bytes int64
	err := p.sql.QueryRow(ctx, "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint").Scan(&bytes)
	if err != nil {
		return 0, fmt.Errorf("reading the position of the write-ahead log: %w", err)
	}
	return bytes, nil
}

// updates of one table since its schema was made.
type updates struct {
	table             string
	all, hot, inserts int64
}

// tableUpdates reads how many updates of a schema's tables were HOT: a new
// version on the same page, which no index hears of and which the next visitor
// of the page cleans up. A low share on a hot table means that it will grow.
//
// Backends report what they did with a delay, at the latest when they end. So
// the stores should be closed, and it is asked until the answer stands still.
func (p *place) tableUpdates(ctx context.Context, schema string) ([]updates, error) {
	const quiet = 300 * time.Millisecond
	var last []updates
	stable := time.Now()
	for deadline := time.Now().Add(5 * time.Second); ; {
		rows, err := p.sql.Query(ctx, `SELECT relname, n_tup_upd, n_tup_hot_upd, n_tup_ins FROM pg_stat_user_tables WHERE schemaname = $1 ORDER BY relname`, schema)
		if err != nil {
			return nil, fmt.Errorf("reading the statistics of schema %q: %w", schema, err)
		}
		found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (u updates, err error) {
			return u, row.Scan(&u.table, &u.all, &u.hot, &u.inserts)
		})
		if err != nil {
			return nil, fmt.Errorf("reading the statistics of schema %q: %w", schema, err)
		}
		if !slices.Equal(found, last) {
			last, stable = found, time.Now()
		}
		if time.Since(stable) > quiet && total(found) > 0 || time.Now().After(deadline) {
			return found, nil
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

func total(list []updates) (n int64) {
	for _, u := range list {
		n += u.all + u.inserts
	}
	return n
}

// addHot enters for each table that was updated the share of HOT updates.
func (c *Case) addHot(list []updates) {
	for _, u := range list {
		if u.all > 0 {
			c.add("hot updates of "+u.table, "", float64(u.hot)/float64(u.all))
		}
	}
}

// pause waits for d, or for the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
