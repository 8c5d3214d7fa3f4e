package store

import (
	"encoding/json"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"waymark/workflow"
)

// The bulk statements move rows as one array a column (unnest), so that their
// number and text do not depend on the size of the batch. Statement, columns
// and scan of one table stand together here.
//
// What was loaded is updated where it was found, by its ctid: to go down the
// index of a large table once more is what a message costs most there. A row has
// not moved as long as all who write hold the lock of the run; whether it has is
// checked, by the number of rows and by its key, in words for which there is no
// index that the planner might prefer. The place is compared twice: the first is
// how the row is found, and not every Postgres looks at that again if the row was
// waited for.

const sqlLoadRuns = `
SELECT id, attempt, planned, jobs_created, jobs_queued, jobs_running, jobs_finished, jobs_failed, jobs_stopped, jobs_cached,
       at_created, at_running, at_finished, at_failed, at_deleted, at_stopped, at_queued, at_pending,
       specified_at, last_event_at, engine, claims, log_bytes, ctid
FROM workflows WHERE id = ANY($1)`

func (a *application) scanRuns(rows pgx.Rows) error {
	var (
		id                      pgtype.UUID
		lastEventAt             time.Time
		engine                  string
		at                      [workflow.NumStatuses]pgtype.Timestamptz
		specifiedAt             pgtype.Timestamptz
		claims                  []byte
		attempt, planned        int32
		created, queued, runs   int32
		finished, failed, stops int32
		cached                  int32
		logBytes                int64
		row                     pgtype.TID
	)
	columns := []any{&id, &attempt, &planned, &created, &queued, &runs, &finished, &failed, &stops, &cached,
		&at[0], &at[1], &at[2], &at[3], &at[4], &at[5], &at[6], &at[7], &specifiedAt, &lastEventAt, &engine, &claims, &logBytes, &row}
	_, err := pgx.ForEachRow(rows, columns, func() error {
		r := workflow.Run{
			ID: id.Bytes, Attempt: int(attempt), Planned: int(planned), Engine: engine,
			LastEventAt: lastEventAt.UTC(), EngineSpecificAt: timeOf(specifiedAt),
			Jobs: workflow.JobCounts{Created: int(created), Queued: int(queued), Running: int(runs), Finished: int(finished),
				Failed: int(failed), Stopped: int(stops), Cached: int(cached)},
		}
		for i := range at {
			r.StatusAt[i] = timeOf(at[i])
		}
		if claims != nil {
			if err := json.Unmarshal(claims, &r.Claims); err != nil {
				return err
			}
		}
		a.states[r.ID] = &runState{State: workflow.NewState(r), row: row, logBytes: logBytes}
		return nil
	})
	return err
}

// A run's row is written once a batch, and a new one in the form in which it is
// to stay: a change of what is indexed costs an entry in every index.
const (
	runParameters = `$1::uuid[], $2::integer[], $3::integer[], $4::integer[], $5::integer[], $6::integer[], $7::integer[], $8::integer[], $9::integer[],
            $10::integer[], $11::smallint[], $12::timestamptz[], $13::timestamptz[], $14::timestamptz[], $15::timestamptz[], $16::timestamptz[],
            $17::timestamptz[], $18::timestamptz[], $19::timestamptz[], $20::timestamptz[], $21::timestamptz[], $22::text[], $23::text[], $24::bigint[]`
	runNames = `id, attempt, planned, jobs_created, jobs_queued, jobs_running, jobs_finished, jobs_failed, jobs_stopped, jobs_cached, status,
          at_created, at_running, at_finished, at_failed, at_deleted, at_stopped, at_queued, at_pending,
          specified_at, last_event_at, engine, claims, log_bytes`
	sqlInsertRuns = `
INSERT INTO workflows (created_at, updated_at, id, attempt, planned, jobs_created, jobs_queued, jobs_running, jobs_finished, jobs_failed, jobs_stopped,
    jobs_cached, status, at_created, at_running, at_finished, at_failed, at_deleted, at_stopped, at_queued, at_pending,
    specified_at, last_event_at, engine, claims, log_bytes, owner, name, priority, labels, submitted_at, run_number)
SELECT created_at, $25, id, attempt, planned, jobs_created, jobs_queued, jobs_running, jobs_finished, jobs_failed, jobs_stopped,
    jobs_cached, status, at_created, at_running, at_finished, at_failed, at_deleted, at_stopped, at_queued, at_pending,
    specified_at, last_event_at, engine, claims::jsonb, log_bytes, owner, name, priority, labels::jsonb, submitted_at,
    CASE WHEN name = '' THEN 0 ELSE row_number() OVER (PARTITION BY owner, name ORDER BY submitted_at, created_at, id) +
        (SELECT coalesce(max(x.run_number), 0) FROM workflows AS x WHERE x.owner = u.owner AND x.name = u.name AND x.run_number > 0) END
FROM unnest(` + runParameters + `, $26::text[], $27::text[], $28::integer[], $29::text[], $30::timestamptz[], $31::timestamptz[])
     AS u(` + runNames + `, owner, name, priority, labels, submitted_at, created_at)`
	sqlUpdateRuns = `
UPDATE workflows AS w SET
    updated_at = $25, revision = w.revision + 1,
    attempt = u.attempt, planned = u.planned, jobs_created = u.jobs_created, jobs_queued = u.jobs_queued, jobs_running = u.jobs_running,
    jobs_finished = u.jobs_finished, jobs_failed = u.jobs_failed, jobs_stopped = u.jobs_stopped, jobs_cached = u.jobs_cached, status = u.status,
    at_created = u.at_created, at_running = u.at_running, at_finished = u.at_finished, at_failed = u.at_failed,
    at_deleted = u.at_deleted, at_stopped = u.at_stopped, at_queued = u.at_queued, at_pending = u.at_pending,
    specified_at = u.specified_at, last_event_at = u.last_event_at, engine = u.engine, claims = u.claims::jsonb, log_bytes = u.log_bytes
FROM unnest(` + runParameters + `, $26::tid[]) AS u(` + runNames + `, row)
WHERE w.ctid = u.row AND w.ctid IS NOT DISTINCT FROM u.row AND w.id IS NOT DISTINCT FROM u.id`
)

// runColumns are the parameters of sqlUpdateRuns but the last two, the time and
// the rows.
type runColumns struct {
	id                                                          uuidArray
	attempt, planned                                            []int32
	created, queued, running, finished, failed, stopped, cached []int32
	status                                                      []int16
	at                                                          [workflow.NumStatuses]timeArray
	specifiedAt                                                 timeArray
	lastEventAt                                                 []time.Time
	engine                                                      []string
	claims                                                      textArray
	logBytes                                                    []int64
	row                                                         rowArray
}

func newRunColumns(n int) *runColumns {
	c := &runColumns{
		id: make(uuidArray, 0, n), attempt: make([]int32, 0, n), planned: make([]int32, 0, n), created: make([]int32, 0, n),
		queued: make([]int32, 0, n), running: make([]int32, 0, n), finished: make([]int32, 0, n), failed: make([]int32, 0, n),
		stopped: make([]int32, 0, n), cached: make([]int32, 0, n), status: make([]int16, 0, n), specifiedAt: make(timeArray, 0, n),
		lastEventAt: make([]time.Time, 0, n), engine: make([]string, 0, n), claims: make(textArray, 0, n), logBytes: make([]int64, 0, n),
	}
	for i := range c.at {
		c.at[i] = make(timeArray, 0, n)
	}
	return c
}

func (c *runColumns) add(s *runState) {
	r := &s.Run
	c.id = append(c.id, uuidValue(r.ID))
	c.attempt, c.planned = append(c.attempt, int32(r.Attempt)), append(c.planned, int32(r.Planned))
	c.created, c.queued = append(c.created, int32(r.Jobs.Created)), append(c.queued, int32(r.Jobs.Queued))
	c.running, c.finished = append(c.running, int32(r.Jobs.Running)), append(c.finished, int32(r.Jobs.Finished))
	c.failed, c.stopped = append(c.failed, int32(r.Jobs.Failed)), append(c.stopped, int32(r.Jobs.Stopped))
	c.cached, c.status = append(c.cached, int32(r.Jobs.Cached)), append(c.status, int16(r.Status()))
	for i := range r.StatusAt {
		c.at[i] = append(c.at[i], nullable(r.StatusAt[i]))
	}
	c.specifiedAt, c.lastEventAt = append(c.specifiedAt, nullable(r.EngineSpecificAt)), append(c.lastEventAt, r.LastEventAt)
	c.engine, c.claims = append(c.engine, r.Engine), append(c.claims, claimsOf(r.Claims))
	c.logBytes, c.row = append(c.logBytes, s.logBytes), append(c.row, s.row)
}

func (c *runColumns) args() []any {
	return []any{c.id, c.attempt, c.planned, c.created, c.queued, c.running, c.finished, c.failed, c.stopped, c.cached, c.status,
		c.at[0], c.at[1], c.at[2], c.at[3], c.at[4], c.at[5], c.at[6], c.at[7], c.specifiedAt, c.lastEventAt, c.engine, c.claims, c.logBytes}
}

// freshColumns are the parameters of sqlInsertRuns but the time, which stands
// between those of runColumns and the others: what submissions say.
type freshColumns struct {
	*runColumns
	owner, name []string
	priority    []int32
	labels      []string
	submittedAt timeArray
	createdAt   []time.Time
}

func (c *freshColumns) add(s *runState) {
	c.runColumns.add(s)
	sub := s.Run.Submission
	if sub == nil {
		sub = new(workflow.Submission)
	}
	c.owner, c.name = append(c.owner, sub.User), append(c.name, sub.DisplayName())
	c.priority, c.labels = append(c.priority, int32(sub.Priority)), append(c.labels, labelsOf(sub))
	c.submittedAt, c.createdAt = append(c.submittedAt, nullable(sub.EventTime)), append(c.createdAt, s.created)
}

func (c *freshColumns) args(now time.Time) []any {
	return append(c.runColumns.args(), now, c.owner, c.name, c.priority, c.labels, c.submittedAt, c.createdAt)
}

// labelsOf are the labels of a submission as JSON.
func labelsOf(sub *workflow.Submission) string {
	if len(sub.Labels) == 0 {
		return "{}"
	}
	text, err := json.Marshal(sub.Labels) // strings: it cannot fail
	if err != nil {
		return "{}"
	}
	return string(text)
}

func claimsOf(c workflow.Claims) pgtype.Text {
	if c == (workflow.Claims{}) {
		return pgtype.Text{}
	}
	text, err := json.Marshal(c)
	if err != nil { // only a time outside the years 0 to 9999, which the codec refuses
		return pgtype.Text{}
	}
	return pgtype.Text{String: string(text), Valid: true}
}

const sqlLoadJobs = `
SELECT j.workflow_id, j.job_id, j.run_attempt, j.attempt, j.status, j.cached, j.exit_code, j.queued_at, j.started_at, j.finished_at,
       j.name, j.path, j.command, j.diagnostics, j.result::text, j.ctid
FROM unnest($1::uuid[], $2::text[]) AS k(workflow_id, job_id)
JOIN jobs AS j ON j.workflow_id = k.workflow_id AND j.job_id = k.job_id`

func (a *application) scanJobs(rows pgx.Rows) error {
	for rows.Next() {
		var id pgtype.UUID
		var row pgtype.TID
		j := new(workflow.Job)
		if err := scanJob(rows, &id, j, &row); err != nil {
			return err
		}
		if s := a.states[id.Bytes]; s != nil {
			s.Jobs[j.ID] = j
			a.stored[j] = row
		}
	}
	return rows.Err()
}

// scanJob scans the columns of sqlLoadJobs.
func scanJob(rows pgx.Rows, id *pgtype.UUID, j *workflow.Job, row *pgtype.TID) error {
	var (
		runAttempt, attempt       int32
		status                    int16
		exit                      pgtype.Int4
		queued, started, finished pgtype.Timestamptz
		result                    []byte
	)
	err := rows.Scan(id, &j.ID, &runAttempt, &attempt, &status, &j.Cached, &exit, &queued, &started, &finished,
		&j.Name, &j.Path, &j.Command, &j.Diagnostics, &result, row)
	if err != nil {
		return err
	}
	j.RunAttempt, j.Attempt, j.Status = int(runAttempt), int(attempt), workflow.JobStatus(status)
	j.QueuedAt, j.StartedAt, j.FinishedAt = timeOf(queued), timeOf(started), timeOf(finished)
	if exit.Valid {
		code := int(exit.Int32)
		j.ExitCode = &code
	}
	if len(result) > 0 {
		j.Result = result
	}
	return nil
}

// The lock of the run makes sure that what was not there when the jobs were loaded
// is not there now. So new jobs are inserted and known ones updated: INSERT … ON
// CONFLICT would write half as much again to the log of the database, for a
// conflict that only somebody can bring about who does not take the lock. The
// batch is then folded anew.
const (
	jobParameters = `$1::uuid[], $2::text[], $3::integer[], $4::integer[], $5::smallint[], $6::boolean[], $7::integer[],
            $8::timestamptz[], $9::timestamptz[], $10::timestamptz[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[]`
	jobNames = `workflow_id, job_id, run_attempt, attempt, status, cached, exit_code, queued_at, started_at, finished_at,
          name, path, command, diagnostics, result`
	sqlInsertJobs = `
INSERT INTO jobs (` + jobNames + `)
SELECT u.workflow_id, u.job_id, u.run_attempt, u.attempt, u.status, u.cached, u.exit_code, u.queued_at, u.started_at, u.finished_at,
       u.name, u.path, u.command, u.diagnostics, u.result::json
FROM unnest(` + jobParameters + `) AS u(` + jobNames + `)`
	sqlUpdateJobs = `
UPDATE jobs AS j SET
    run_attempt = u.run_attempt, attempt = u.attempt, status = u.status, cached = u.cached, exit_code = u.exit_code,
    queued_at = u.queued_at, started_at = u.started_at, finished_at = u.finished_at,
    name = u.name, path = u.path, command = u.command, diagnostics = u.diagnostics, result = u.result::json
FROM unnest(` + jobParameters + `, $16::tid[]) AS u(` + jobNames + `, row)
WHERE j.ctid = u.row AND j.ctid IS NOT DISTINCT FROM u.row AND j.workflow_id IS NOT DISTINCT FROM u.workflow_id AND j.job_id IS NOT DISTINCT FROM u.job_id`
)

// jobColumns are the parameters of sqlInsertJobs, and of sqlUpdateJobs but the
// last, the rows.
type jobColumns struct {
	workflowID                       uuidArray
	jobID                            []string
	runAttempt, attempt              []int32
	status                           []int16
	cached                           []bool
	exitCode                         pgtype.FlatArray[pgtype.Int4]
	queued, started, finished        timeArray
	name, path, command, diagnostics []string
	result                           textArray
}

func newJobColumns(n int) *jobColumns {
	return &jobColumns{
		workflowID: make(uuidArray, 0, n), jobID: make([]string, 0, n), runAttempt: make([]int32, 0, n), attempt: make([]int32, 0, n),
		status: make([]int16, 0, n), cached: make([]bool, 0, n), exitCode: make(pgtype.FlatArray[pgtype.Int4], 0, n),
		queued: make(timeArray, 0, n), started: make(timeArray, 0, n), finished: make(timeArray, 0, n),
		name: make([]string, 0, n), path: make([]string, 0, n), command: make([]string, 0, n), diagnostics: make([]string, 0, n),
		result: make(textArray, 0, n),
	}
}

func (c *jobColumns) add(id uuid.UUID, j *workflow.Job) {
	c.workflowID, c.jobID = append(c.workflowID, uuidValue(id)), append(c.jobID, j.ID)
	c.runAttempt, c.attempt = append(c.runAttempt, int32(j.RunAttempt)), append(c.attempt, int32(j.Attempt))
	c.status, c.cached = append(c.status, int16(j.Status)), append(c.cached, j.Cached)
	var exit pgtype.Int4
	if j.ExitCode != nil {
		exit = pgtype.Int4{Int32: int32(*j.ExitCode), Valid: true}
	}
	c.exitCode = append(c.exitCode, exit)
	c.queued, c.started, c.finished = append(c.queued, nullable(j.QueuedAt)), append(c.started, nullable(j.StartedAt)), append(c.finished, nullable(j.FinishedAt))
	c.name, c.path = append(c.name, j.Name), append(c.path, j.Path)
	c.command, c.diagnostics = append(c.command, j.Command), append(c.diagnostics, j.Diagnostics)
	c.result = append(c.result, pgtype.Text{String: string(j.Result), Valid: len(j.Result) > 0})
}

func (c *jobColumns) args() []any {
	return []any{c.workflowID, c.jobID, c.runAttempt, c.attempt, c.status, c.cached, c.exitCode, c.queued, c.started, c.finished,
		c.name, c.path, c.command, c.diagnostics, c.result}
}

const sqlLoadSubmissions = `
SELECT workflow_id, attempt, retry_count, event_time, priority, min_job_memory, "user", workflow, name, engine, labels,
       parameters::text, specification::text
FROM submissions WHERE workflow_id = ANY($1)`

func (a *application) scanSubmissions(rows pgx.Rows) error {
	for rows.Next() {
		var id uuid.UUID
		var parameters, specification []byte
		sub := new(workflow.Submission)
		err := rows.Scan(&id, &sub.Attempt, &sub.RetryCount, &sub.EventTime, &sub.Priority, &sub.MinJobMemory, &sub.User, &sub.Workflow,
			&sub.Name, &sub.Engine, &sub.Labels, &parameters, &specification)
		if err != nil {
			return err
		}
		sub.EventTime = sub.EventTime.UTC()
		sub.Parameters, sub.Specification = parameters, specification
		if s := a.states[id]; s != nil {
			s.Run.Submission = sub
		}
	}
	return rows.Err()
}

const sqlUpsertSubmission = `
INSERT INTO submissions (workflow_id, attempt, retry_count, event_time, priority, min_job_memory, "user", workflow, name, engine, labels, parameters, specification)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
ON CONFLICT (workflow_id) DO UPDATE SET attempt = excluded.attempt, retry_count = excluded.retry_count, event_time = excluded.event_time,
    priority = excluded.priority, min_job_memory = excluded.min_job_memory, "user" = excluded."user", workflow = excluded.workflow,
    name = excluded.name, engine = excluded.engine, labels = excluded.labels, parameters = excluded.parameters, specification = excluded.specification`

// A run that had a row before its submission is described by it, and numbered if
// that changed its name.
const (
	sqlDescribeRun = `
UPDATE workflows SET owner = $2, name = $3, priority = $4, labels = $5, submitted_at = $6,
    run_number = CASE WHEN owner = $2 AND name = $3 THEN run_number ELSE 0 END
WHERE id = $1`
	sqlNumberRuns = `
UPDATE workflows AS w SET run_number = n.base + n.ord
FROM (SELECT s.id, row_number() OVER (PARTITION BY s.owner, s.name ORDER BY s.submitted_at, s.created_at, s.id) AS ord,
             (SELECT coalesce(max(x.run_number), 0) FROM workflows AS x WHERE x.owner = s.owner AND x.name = s.name AND x.run_number > 0) AS base
      FROM workflows AS s WHERE s.id = ANY($1) AND s.run_number = 0 AND s.name <> '') AS n
WHERE w.id = n.id`
)

// The document of a higher attempt, or of a later time, or of two at once the
// greater one is kept, as the fold has it: it does not load documents, which
// may be large, only to compare them.
const sqlUpsertDocument = `
INSERT INTO engine_documents AS d (workflow_id, attempt, event_time, document) VALUES ($1, $2, $3, $4)
ON CONFLICT (workflow_id) DO UPDATE SET attempt = excluded.attempt, event_time = excluded.event_time, document = excluded.document
WHERE (excluded.attempt, excluded.event_time, excluded.document::text COLLATE "C") > (d.attempt, d.event_time, d.document::text COLLATE "C")`

// uuidArray is an array of ids as a parameter. pgx would encode a []uuid.UUID
// by reflection, and each id by way of its text: a third of a batch's CPU time.
type uuidArray = pgtype.FlatArray[pgtype.UUID]

type (
	timeArray = pgtype.FlatArray[pgtype.Timestamptz]
	textArray = pgtype.FlatArray[pgtype.Text]
	rowArray  = pgtype.FlatArray[pgtype.TID]
)

func uuidValue(id uuid.UUID) pgtype.UUID { return pgtype.UUID{Bytes: id, Valid: true} }

func uuids(ids []uuid.UUID) uuidArray {
	array := make(uuidArray, len(ids))
	for i, id := range ids {
		array[i] = uuidValue(id)
	}
	return array
}

func nullable(t time.Time) pgtype.Timestamptz { return pgtype.Timestamptz{Time: t, Valid: !t.IsZero()} }

func timeOf(t pgtype.Timestamptz) time.Time {
	if !t.Valid {
		return time.Time{}
	}
	return t.Time.UTC()
}
