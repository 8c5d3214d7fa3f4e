package store_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"waymark/internal/servicetest"
	"waymark/workflow"
)

// What many new jobs are copied as is what a few are inserted as.
func TestCopiedAsInserted(t *testing.T) {
	t.Parallel()
	d := servicetest.Database(t)
	a := newApplier(another(t, d))
	if _, err := a.db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	code := func(n int) *int { return &n }
	year := func(y int) time.Time { return time.Date(y, time.March, 4, 5, 6, 7, 8_009_000, time.UTC) }
	reports := []workflow.JobReport{
		{ID: "bare", Status: workflow.JobCreated},
		{ID: "queued", Status: workflow.JobQueued},
		{ID: "whole", Status: workflow.JobFailed, Attempt: 3, Name: "fit", Path: "outer/inner", Command: "fit --to 'a\tb' \\N \\. ", ExitCode: code(137),
			StartedAt: at(2), FinishedAt: at(3), Diagnostics: "out of memory\nand \"more\", ÿ\U0001f600", Result: []byte(`{"a": [1,  2.50, "\u00e9"]}`)},
		{ID: "cached", Status: workflow.JobFinished, Cached: true, FinishedAt: at(3), ExitCode: code(0)},
		{ID: "négative, \t\r\n odd id", Status: workflow.JobFailed, ExitCode: code(-11), FinishedAt: at(3)},
		{ID: "old", Status: workflow.JobFinished, StartedAt: year(1970), FinishedAt: year(1999)},
		{ID: "very old", Status: workflow.JobRunning, StartedAt: year(1)},
		{ID: "of the future", Status: workflow.JobRunning, StartedAt: year(9999)},
		{ID: "long", Status: workflow.JobStopped, Command: strings.Repeat("x", 20_000), FinishedAt: at(2)},
	}
	for len(reports) < 200 {
		reports = append(reports, workflow.JobReport{ID: fmt.Sprintf("more-%d", len(reports)), Status: workflow.JobStatus(len(reports) % int(workflow.NumJobStatuses))})
	}
	message := func(id uuid.UUID, reports ...workflow.JobReport) workflow.Delivery {
		return status(workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, EventTime: at(5), Jobs: reports})
	}
	copied, inserted := uuid.New(), uuid.New()
	a.apply(t, message(copied, reports...))
	for _, r := range reports {
		a.apply(t, message(inserted, r))
	}
	rows := func(id uuid.UUID) (rows []string) {
		t.Helper()
		r, err := raw(t, d).Query(`SELECT (to_jsonb(j) - 'workflow_id')::text || coalesce(result::text, '') FROM jobs AS j WHERE workflow_id = $1 ORDER BY job_id`, id)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for r.Next() {
			var row string
			if err := r.Scan(&row); err != nil {
				t.Fatal(err)
			}
			rows = append(rows, row)
		}
		if err := r.Err(); err != nil {
			t.Fatal(err)
		}
		return rows
	}
	want := rows(inserted)
	if len(want) != len(reports) {
		t.Fatalf("%d jobs were inserted, want %d", len(want), len(reports))
	}
	if diff := cmp.Diff(want, rows(copied)); diff != "" {
		t.Errorf("rows (-inserted, +copied):\n%s", diff)
	}
}
