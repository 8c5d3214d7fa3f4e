package store

import (
	"context"
	"fmt"
	"time"

	"waymark/workflow"
)

// Active counts the runs that have one status and have not ended.
type Active struct {
	Status workflow.Status
	Runs   int
	// QuietSince is when the one of them last changed that has been silent for
	// longest, by the consumer's clock; zero if there are none.
	QuietSince time.Time
}

// Active counts the runs that have not ended, for each status in which a run may
// be that has not, in the order of their numbers. It reads the rows of all such
// runs: it is for once in a while.
func (db *DB) Active(ctx context.Context) ([]Active, error) {
	var rows []Active
	var words []string // by which the rows are indexed
	for s := range workflow.Status(workflow.NumStatuses) {
		if !s.Terminal() {
			rows, words = append(rows, Active{Status: s}), append(words, s.String())
		}
	}
	var counted []Active
	err := db.gorm.WithContext(ctx).Raw(`SELECT status, count(*) AS runs, min(updated_at) AS quiet_since
		FROM workflows WHERE run_status_word(status) IN ? GROUP BY status`, words).Scan(&counted).Error
	if err != nil {
		return nil, fmt.Errorf("counting the runs that have not ended: %w", translate(err))
	}
	for _, c := range counted {
		for i := range rows {
			if rows[i].Status == c.Status {
				rows[i].Runs, rows[i].QuietSince = c.Runs, c.QuietSince.UTC()
			}
		}
	}
	return rows, nil
}
