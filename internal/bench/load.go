package bench

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// population is a number of workflows with jobs that are there already. They
// are written with SQL by their numbers, from 1: a million workflows through
// the store would take half an hour. What the store would write is written:
// rows of runs, jobs, submissions and histories.
//
// Ids grow with the number, so that the indexes are built from left to right,
// and are spread over all possible ids: those that arrive later, which are
// random, fall between them everywhere.
type population struct {
	workflows, jobs int
}

// The columns of a run, as functions of its number i. Of a hundred runs 90 are
// finished, 5 failed, 2 stopped, 2 run and 1 is queued; they began over a year.
const (
	owners       = 499 // prime, so that an owner's runs are in every status
	sqlRunOwner  = `'user-' || i % 499`
	sqlRunEngine = `('{serial,cwl,yadage,snakemake,nextflow}'::text[])[i / 100 % 5 + 1]`
	sqlRunID     = `(lpad(to_hex(i * $3), 8, '0') || substr(md5(i::text), 9))::uuid`
	sqlRunStatus = `(CASE WHEN i % 100 < 90 THEN 2 WHEN i % 100 < 95 THEN 3 WHEN i % 100 < 97 THEN 5 WHEN i % 100 < 99 THEN 1 ELSE 6 END)::smallint`
	// A hundred runs, of a hundred owners, have one name.
	sqlRunName = `'analysis-' || substr(md5((i / 100)::text), 1, 6) || '-' || i / 100`
	// $4 is the number of runs: they began evenly over the last year.
	sqlRunTime = `now() - interval '365 days' * (1 - i::float8 / $4)`
)

// step between the first 32 bits of two ids.
func (p population) step() int64 { return max(1<<32/int64(p.workflows+1), 1) }

// id of workflow i: sqlRunID.
func (p population) id(i int) uuid.UUID {
	sum := md5.Sum([]byte(strconv.Itoa(i)))
	return uuid.MustParse(fmt.Sprintf("%08x", int64(i)*p.step()) + hex.EncodeToString(sum[:])[8:])
}

// owner of workflow i: sqlRunOwner.
func (p population) owner(i int) string { return fmt.Sprintf("user-%d", i%owners) }

// engine of workflow i: sqlRunEngine.
func (p population) engine(i int) string {
	return [...]string{"serial", "cwl", "yadage", "snakemake", "nextflow"}[i/100%5]
}

// name of workflow i: sqlRunName.
func (p population) name(i int) string {
	sum := md5.Sum([]byte(strconv.Itoa(i / 100)))
	return fmt.Sprintf("analysis-%s-%d", hex.EncodeToString(sum[:])[:6], i/100)
}

// rowsAtOnce bounds a statement of load, so that progress shows and Ctrl-C is
// felt.
const rowsAtOnce = 200_000

// load writes the population into a schema and brings the planner's statistics
// up to date.
func (p population) load(ctx context.Context, conn *pgx.Conn, schema string, progress func(done int)) error {
	exec := func(sql string, args ...any) error {
		_, err := conn.Exec(ctx, sql, args...)
		if err != nil {
			return fmt.Errorf("loading %d workflows of %d jobs: %w", p.workflows, p.jobs, err)
		}
		return nil
	}
	if err := exec(`SELECT set_config('search_path', $1, false)`, schema); err != nil {
		return err
	}
	chunk := max(rowsAtOnce/p.jobs, 1)
	for first := 1; first <= p.workflows; first += chunk {
		last := min(first+chunk-1, p.workflows)
		for _, sql := range []string{sqlLoadRuns, sqlLoadSubmissions, sqlLoadHistory, sqlLoadJobs} {
			args := []any{first, last, p.step(), p.workflows, p.jobs}
			if err := exec(sql, args[:parameters(sql)]...); err != nil {
				return err
			}
		}
		progress(last)
	}
	if err := exec(sqlLoadNames); err != nil {
		return err
	}
	for _, table := range []string{"workflows", "run_names", "jobs", "submissions", "status_changes"} {
		if err := exec("VACUUM (ANALYZE) " + table); err != nil {
			return err
		}
	}
	return nil
}

// parameters is how many of the five parameters a statement has.
func parameters(sql string) int {
	if strings.Contains(sql, "$5") {
		return 5
	}
	return 4
}

const (
	// With OFFSET a column is computed once a run, not once for each of its jobs.
	sqlRuns = `SELECT i, ` + sqlRunID + ` AS id, ` + sqlRunStatus + ` AS status, ` + sqlRunName + ` AS name, ` + sqlRunTime + ` AS at,
		` + sqlRunOwner + ` AS owner, ` + sqlRunEngine + ` AS engine
		FROM generate_series($1::bigint, $2::bigint) AS i OFFSET 0`

	sqlLoadRuns = `
INSERT INTO workflows (id, created_at, updated_at, last_event_at, revision, planned, jobs_running, jobs_finished, jobs_failed,
                       run_number, status, at_running, at_finished, at_failed, at_stopped, at_queued, submitted_at, engine, name, owner, labels)
SELECT id, at, at, at, 42, $5, 0, $5, 0, 1, status,
       CASE WHEN status <> 6 THEN at END, CASE status WHEN 2 THEN at + interval '1 hour' END, CASE status WHEN 3 THEN at + interval '1 hour' END,
       CASE status WHEN 5 THEN at + interval '1 hour' END, at, at, engine, name, owner, jsonb_build_object('experiment', 'e' || i % 40)
FROM (` + sqlRuns + `) AS r`

	sqlLoadNames = `INSERT INTO run_names SELECT DISTINCT name FROM workflows ON CONFLICT DO NOTHING`

	sqlLoadSubmissions = `
INSERT INTO submissions (workflow_id, attempt, retry_count, event_time, priority, min_job_memory, "user", workflow, name, engine, labels, parameters)
SELECT id, 1, 0, at, 0, 0, owner, id::text, name, engine, '{}', '{"events": 20000}'
FROM (` + sqlRuns + `) AS r`

	sqlLoadHistory = `
INSERT INTO status_changes (workflow_id, event_time, recorded_at, attempt, status)
SELECT id, at, at, 1, s FROM (` + sqlRuns + `) AS r, unnest(ARRAY[6, status]::smallint[]) AS s GROUP BY id, at, s`

	sqlLoadJobs = `
INSERT INTO jobs (workflow_id, job_id, queued_at, started_at, finished_at, run_attempt, attempt, status, cached, name)
SELECT id, md5(i || '-' || j)::uuid::text, NULL, at, at + interval '1 minute' * j, 1, 1, 3, false, 'step-' || j
FROM (` + sqlRuns + `) AS r, generate_series(1, $5::integer) AS j`
)
