package store

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"gorm.io/gorm"

	"waymark/workflow"
)

// workflowRow is a row of workflows as readers want it.
type workflowRow struct {
	ID                                   uuid.UUID
	Name, Owner, Engine                  string
	RunNumber, Priority, Attempt         int
	Labels                               map[string]string `gorm:"serializer:json"`
	Status                               int16
	Planned                              int
	JobsCreated, JobsQueued, JobsRunning int
	JobsFinished, JobsFailed             int
	JobsStopped, JobsCached              int
	Claims                               workflow.Claims `gorm:"serializer:json"`
	CreatedAt, UpdatedAt, LastEventAt    time.Time
	SubmittedAt                          *time.Time
	AtRunning, AtFinished                *time.Time
	AtFailed, AtStopped, AtDeleted       *time.Time
	Revision                             int64
}

// TableName tells gorm where the rows are; the connection's search_path says
// in which schema.
func (workflowRow) TableName() string { return "workflows" }

const workflowColumns = `id, name, owner, engine, run_number, priority, attempt, labels, status, planned,
	jobs_created, jobs_queued, jobs_running, jobs_finished, jobs_failed, jobs_stopped, jobs_cached, claims,
	created_at, updated_at, last_event_at, submitted_at, at_running, at_finished, at_failed, at_stopped, at_deleted, revision`

func (r *workflowRow) summary() workflow.Summary {
	run := workflow.Run{StatusAt: [workflow.NumStatuses]time.Time{
		workflow.StatusRunning: deref(r.AtRunning), workflow.StatusFinished: deref(r.AtFinished),
		workflow.StatusFailed: deref(r.AtFailed), workflow.StatusStopped: deref(r.AtStopped),
	}}
	return workflow.Summary{
		ID: r.ID, Name: r.Name, Owner: r.Owner, RunNumber: r.RunNumber, Engine: r.Engine, Labels: r.Labels, Priority: r.Priority,
		Attempt: r.Attempt, Status: workflow.Status(r.Status),
		Counts: workflow.CountsOf(r.Planned, workflow.JobCounts{Created: r.JobsCreated, Queued: r.JobsQueued, Running: r.JobsRunning,
			Finished: r.JobsFinished, Failed: r.JobsFailed, Stopped: r.JobsStopped, Cached: r.JobsCached}, r.Claims),
		CreatedAt: r.CreatedAt.UTC(), SubmittedAt: deref(r.SubmittedAt), StartedAt: run.StartedAt(), FinishedAt: run.FinishedAt(),
		DeletedAt: deref(r.AtDeleted), LastEventAt: r.LastEventAt.UTC(), UpdatedAt: r.UpdatedAt.UTC(), Revision: r.Revision,
	}
}

func deref(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

// Workflow returns what is known of one workflow; workflow.ErrNotFound if nothing is.
func (db *DB) Workflow(ctx context.Context, id uuid.UUID) (workflow.Details, error) {
	summaries, err := db.Summaries(ctx, []uuid.UUID{id})
	if err != nil {
		return workflow.Details{}, err
	}
	if len(summaries) == 0 {
		return workflow.Details{}, fmt.Errorf("workflow %s: %w", id, workflow.ErrNotFound)
	}
	d := workflow.Details{Summary: summaries[0]}
	var row struct {
		Parameters, Specification, Document *string
		MinJobMemory                        *float64
		RetryCount                          *int
	}
	err = db.gorm.WithContext(ctx).Raw(`
		SELECT s.parameters::text, s.specification::text, s.min_job_memory, s.retry_count, d.document::text
		FROM (SELECT $1::uuid AS id, $2::integer AS attempt) w
		LEFT JOIN submissions s ON s.workflow_id = w.id
		LEFT JOIN engine_documents d ON d.workflow_id = w.id AND d.attempt = w.attempt`, id, d.Attempt).Scan(&row).Error
	if err != nil {
		return workflow.Details{}, fmt.Errorf("reading workflow %s: %w", id, translate(err))
	}
	d.Parameters, d.Specification, d.EngineSpecific = raw(row.Parameters), raw(row.Specification), raw(row.Document)
	if row.MinJobMemory != nil {
		d.MinJobMemory, d.RetryCount = *row.MinJobMemory, *row.RetryCount
	}
	return d, nil
}

func raw(s *string) json.RawMessage {
	if s == nil {
		return nil
	}
	return json.RawMessage(*s)
}

// Summaries returns those of ids that are known, in no particular order.
func (db *DB) Summaries(ctx context.Context, ids []uuid.UUID) ([]workflow.Summary, error) {
	var rows []workflowRow
	err := db.gorm.WithContext(ctx).Select(workflowColumns).Where("id IN ?", ids).Find(&rows).Error
	if err != nil {
		return nil, fmt.Errorf("reading %d workflows: %w", len(ids), translate(err))
	}
	return summaries(rows), nil
}

func summaries(rows []workflowRow) []workflow.Summary {
	all := make([]workflow.Summary, len(rows))
	for i := range rows {
		all[i] = rows[i].summary()
	}
	return all
}

// Workflows returns one page of the workflows that f chooses, the newest
// first. The order is that of CreatedAt and id, which never change, so that
// pages neither skip nor repeat a workflow while others come and go.
func (db *DB) Workflows(ctx context.Context, f workflow.Filter) (workflow.Page[workflow.Summary], error) {
	var page workflow.Page[workflow.Summary]
	limit, err := pageSize(f.Limit, 50, 1000)
	if err != nil {
		return page, err
	}
	q := db.gorm.WithContext(ctx).Select(workflowColumns).Order("created_at DESC, id DESC").Limit(limit + 1)
	if len(f.Statuses) == 0 {
		q = q.Where("status <> ?", int16(workflow.StatusDeleted))
	} else {
		words := make([]string, len(f.Statuses))
		for i, s := range f.Statuses {
			words[i] = s.String()
		}
		q = q.Where("run_status_word(status) IN ?", words) // as the index has it
	}
	if f.Owner != "" {
		q = q.Where("owner = ?", f.Owner)
	}
	if f.Engine != "" {
		q = q.Where("engine = ?", f.Engine)
	}
	prefix, ok := strings.CutSuffix(f.Name, "*")
	part, within := strings.CutPrefix(f.Name, "*")
	if within && strings.Trim(part, "*") != "" {
		if q, err = db.withNamePart(ctx, q, part); err != nil {
			return page, err
		}
	} else if ok && strings.Trim(prefix, "*") != "" {
		// A range instead of LIKE: names sort by their bytes, and "%" is no wildcard in them.
		q = q.Where("name >= ? AND name < ?", prefix, prefix+"\U0010FFFF")
	} else if strings.Trim(f.Name, "*") != "" {
		q = q.Where("name = ?", f.Name)
	}
	if len(f.Labels) > 0 {
		labels, err := json.Marshal(f.Labels)
		if err != nil {
			return page, fmt.Errorf("labels: %w", err)
		}
		q = q.Where("labels @> ?::jsonb", string(labels))
	}
	if !f.Since.IsZero() {
		q = q.Where("created_at >= ?", f.Since)
	}
	if !f.Until.IsZero() {
		q = q.Where("created_at < ?", f.Until)
	}
	if !f.QuietSince.IsZero() {
		q = q.Where("updated_at < ?", f.QuietSince)
	}
	if f.Cursor != "" {
		var after workflowCursor
		if err := parseCursor(f.Cursor, &after); err != nil {
			return page, err
		}
		q = q.Where("(created_at, id) < (?, ?)", after.CreatedAt, after.ID)
	}
	var rows []workflowRow
	page.AsOf = db.now()
	if err := q.Find(&rows).Error; err != nil {
		return page, fmt.Errorf("listing workflows: %w", translate(err))
	}
	if len(rows) > limit {
		rows = rows[:limit]
		last := rows[limit-1]
		page.Next = cursor(workflowCursor{last.CreatedAt.UTC(), last.ID})
	}
	page.Items = summaries(rows)
	return page, nil
}

// fewNames is up to how many names a part is looked for by name.
const fewNames = 1000

var likeEscape = strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`)

// withNamePart chooses the runs whose names have part in them, or at their end
// unless part ends with "*".
func (db *DB) withNamePart(ctx context.Context, q *gorm.DB, part string) (*gorm.DB, error) {
	pattern := "%" + likeEscape.Replace(part)
	if rest, ok := strings.CutSuffix(part, "*"); ok {
		pattern = "%" + likeEscape.Replace(rest) + "%"
	}
	var names []string
	if err := db.gorm.WithContext(ctx).Table("run_names").Where("name LIKE ?", pattern).Limit(fewNames+1).Pluck("name", &names).Error; err != nil {
		return nil, fmt.Errorf("searching the names of workflows: %w", translate(err))
	}
	if len(names) > fewNames {
		// What so many are called is found among the newest runs, too.
		return q.Where("name LIKE ?", pattern), nil
	}
	return q.Where("name IN ?", names), nil
}

type workflowCursor struct {
	CreatedAt time.Time
	ID        uuid.UUID
}

// Jobs returns one page of a workflow's jobs in the order of their ids, which
// stays the same while the jobs change. It does not tell a workflow without
// jobs from one that is not known.
func (db *DB) Jobs(ctx context.Context, id uuid.UUID, f workflow.JobFilter) (workflow.Page[workflow.Job], error) {
	var page workflow.Page[workflow.Job]
	limit, err := pageSize(f.Limit, 100, 10000)
	if err != nil {
		return page, err
	}
	q := db.gorm.WithContext(ctx).Table("jobs").
		Select(`job_id, run_attempt, attempt, status, cached, exit_code, queued_at, started_at, finished_at, name, path, command, diagnostics, result::text AS result`).
		Where("workflow_id = ?", id).Order("job_id").Limit(limit + 1)
	if len(f.Statuses) > 0 {
		q = q.Where("status IN ?", f.Statuses)
	}
	if f.RunAttempt != 0 {
		q = q.Where("run_attempt = ?", f.RunAttempt)
	}
	if len(f.IDs) > 0 {
		q = q.Where("job_id IN ?", f.IDs)
	}
	if f.Cursor != "" {
		var after string
		if err := parseCursor(f.Cursor, &after); err != nil {
			return page, err
		}
		q = q.Where("job_id > ?", after)
	}
	var rows []struct {
		JobID                           string
		RunAttempt, Attempt             int
		Status                          int16
		Cached                          bool
		ExitCode                        *int
		QueuedAt, StartedAt, FinishedAt *time.Time
		Name, Path, Command             string
		Diagnostics                     string
		Result                          *string
	}
	page.AsOf = db.now()
	if err := q.Find(&rows).Error; err != nil {
		return page, fmt.Errorf("listing the jobs of %s: %w", id, translate(err))
	}
	if len(rows) > limit {
		rows = rows[:limit]
		page.Next = cursor(rows[limit-1].JobID)
	}
	page.Items = make([]workflow.Job, len(rows))
	for i, r := range rows {
		page.Items[i] = workflow.Job{
			ID: r.JobID, RunAttempt: r.RunAttempt, Attempt: r.Attempt, Status: workflow.JobStatus(r.Status), Cached: r.Cached, ExitCode: r.ExitCode,
			QueuedAt: deref(r.QueuedAt), StartedAt: deref(r.StartedAt), FinishedAt: deref(r.FinishedAt),
			Name: r.Name, Path: r.Path, Command: r.Command, Diagnostics: r.Diagnostics, Result: raw(r.Result),
		}
	}
	return page, nil
}

type logCursor struct {
	At  time.Time
	Seq int64
}

// LogCursor is the cursor of what follows e in a log or, with a
// workflow.LogFilter that has Tail, of what precedes it.
func LogCursor(e workflow.LogEntry) string { return cursor(logCursor{e.At.UTC(), e.Seq}) }

// logPageBytes is how much text a page of a log holds, and its last chunk: a
// run may have thousands of chunks of a mebibyte.
const logPageBytes = 4 << 20

// logPage is the text of one page of a log. The places are sorted without the
// texts, by the primary key alone: an index of all jobs' chunks by time would
// add a third to what each chunk writes to the database's log, for a list that
// people seldom ask for. The texts are found one by one (OFFSET 0 keeps it so):
// else large runs are joined by reading all of their log again.
const logPage = `
SELECT seq, event_time, attempt, job_id, body, followed FROM (
    SELECT l.seq, l.event_time, l.attempt, l.job_id, l.body, row_number() OVER page AS place,
           lead(l.seq) OVER page IS NOT NULL AS followed, sum(octet_length(l.body)) OVER page - octet_length(l.body) AS bytes_before
    FROM (SELECT job_id, event_time, seq FROM log_chunks WHERE %[1]s ORDER BY event_time %[2]s, seq %[2]s LIMIT @limit + 1) AS k
    CROSS JOIN LATERAL (
        SELECT * FROM log_chunks AS l WHERE l.workflow_id = @id AND l.job_id = k.job_id AND l.event_time = k.event_time AND l.seq = k.seq OFFSET 0) AS l
    WINDOW page AS (ORDER BY l.event_time %[2]s, l.seq %[2]s ROWS UNBOUNDED PRECEDING)) AS c
WHERE place <= @limit AND bytes_before < @bytes ORDER BY place`

// Logs returns one page of the log that f chooses, in the order of event time
// and then of arrival. Page.Next is the cursor of the page that follows or, with
// f.Tail, that precedes. A page ends before it has all that f allows once its
// texts take 4 MiB.
func (db *DB) Logs(ctx context.Context, id uuid.UUID, f workflow.LogFilter) (workflow.Page[workflow.LogEntry], error) {
	var page workflow.Page[workflow.LogEntry]
	limit, err := pageSize(f.Limit, 1000, 50_000)
	if err != nil {
		return page, err
	}
	if f.Tail < 0 {
		return page, fmt.Errorf("tail %d: expected a positive number", f.Tail)
	}
	where, direction, beyond := "workflow_id = @id", "ASC", ">"
	if f.Tail > 0 {
		limit, direction, beyond = f.Tail, "DESC", "<"
	}
	if !f.AllJobs {
		where += " AND job_id = @job"
	}
	if f.RunAttempt != 0 {
		where += " AND attempt = @attempt"
	}
	var from, to *workflow.LogEntry // what the page lies between, if there is anything
	var c logCursor
	if f.Cursor != "" {
		if err := parseCursor(f.Cursor, &c); err != nil {
			return page, err
		}
		where += " AND (event_time, seq) " + beyond + " (@at, @seq)"
		from = &workflow.LogEntry{Seq: c.Seq, LogChunk: workflow.LogChunk{At: c.At}}
	}
	var rows []struct {
		Seq       int64
		EventTime time.Time
		Attempt   int
		JobID     string
		Body      string
		Followed  bool
	}
	page.AsOf = db.now()
	err = db.gorm.WithContext(ctx).Raw(fmt.Sprintf(logPage, where, direction), map[string]any{
		"id": id, "job": f.JobID, "attempt": f.RunAttempt, "at": c.At, "seq": c.Seq, "limit": int64(limit), "bytes": logPageBytes}).Scan(&rows).Error
	if err != nil {
		return page, fmt.Errorf("reading the logs of %s: %w", id, translate(err))
	}
	page.Items = make([]workflow.LogEntry, len(rows))
	for i, r := range rows {
		page.Items[i] = workflow.LogEntry{Seq: r.Seq, LogChunk: workflow.LogChunk{JobID: r.JobID, Attempt: r.Attempt, At: r.EventTime.UTC(), Text: r.Body}}
	}
	if n := len(rows); n > 0 && rows[n-1].Followed {
		to = &page.Items[n-1]
		page.Next = LogCursor(*to)
	}
	if f.Tail > 0 {
		slices.Reverse(page.Items)
		if from, to = to, from; from != nil {
			from = &page.Items[0]
		}
	}
	marks, err := db.logCuts(ctx, id, f)
	if err != nil {
		return page, err
	}
	page.Items = withMarks(page.Items, marks, from, to)
	return page, nil
}

// History returns the status changes of a workflow by attempt, then by event
// time, then by rank.
func (db *DB) History(ctx context.Context, id uuid.UUID) ([]workflow.HistoryEntry, error) {
	var rows []struct {
		Attempt               int
		Status                int16
		EventTime, RecordedAt time.Time
	}
	err := db.gorm.WithContext(ctx).Raw(`SELECT attempt, status, event_time, recorded_at FROM status_changes WHERE workflow_id = $1`, id).Scan(&rows).Error
	if err != nil {
		return nil, fmt.Errorf("reading the history of %s: %w", id, translate(err))
	}
	changes := make([]workflow.HistoryEntry, len(rows))
	for i, r := range rows {
		changes[i] = workflow.HistoryEntry{
			StatusChange: workflow.StatusChange{Attempt: r.Attempt, Status: workflow.Status(r.Status), At: r.EventTime.UTC()},
			RecordedAt:   r.RecordedAt.UTC(),
		}
	}
	workflow.MarkSuperseded(changes)
	return changes, nil
}

// Ledger returns what became of the deliveries of each queue.
func (db *DB) Ledger(ctx context.Context) ([]workflow.LedgerEntry, error) {
	var entries []workflow.LedgerEntry
	err := db.gorm.WithContext(ctx).Raw(`SELECT queue, received, applied, duplicate, stale, dead FROM ledger_balance ORDER BY queue`).Scan(&entries).Error
	if err != nil {
		return nil, fmt.Errorf("reading the ledger: %w", translate(err))
	}
	return entries, nil
}

// Outcomes tells what became of messages with these ids. Those that have not
// had their effect (yet) are missing from the answer.
func (db *DB) Outcomes(ctx context.Context, messageIDs []string) (map[string]workflow.Outcome, error) {
	keys := make([]uuid.UUID, len(messageIDs))
	for i, id := range messageIDs {
		keys[i] = messageKey(id)
	}
	known := make(map[uuid.UUID]workflow.Outcome)
	err := withPgx(ctx, db.reads, func(conn *pgx.Conn) error {
		var q pgx.Batch
		findSeen(&q, keys, func(s seenID) { known[s.id] = s.outcome })
		return conn.SendBatch(ctx, &q).Close()
	})
	if err != nil {
		return nil, fmt.Errorf("looking up %d message ids: %w", len(messageIDs), translate(err))
	}
	outcomes := make(map[string]workflow.Outcome)
	for i, id := range messageIDs {
		if o, ok := known[keys[i]]; ok {
			outcomes[id] = o
		}
	}
	return outcomes, nil
}

var (
	hexPrefix = regexp.MustCompile(`^[0-9a-fA-F-]{4,36}$`)
	numbered  = regexp.MustCompile(`^(.+)[#.]([1-9][0-9]{0,8})$`)
)

// Find returns the workflow that a person means by ref: an id, the beginning
// of one (four characters or more), a name (its latest run), or a name with
// the number of a run, as name#2 or, like REANA's, name.2. Names and numbers
// count for each owner: unless owner is empty, only its runs are looked at.
//
// Errors wrap workflow.ErrNotFound, or workflow.ErrAmbiguous and list what
// would have fitted.
func (db *DB) Find(ctx context.Context, ref, owner string) (uuid.UUID, error) {
	what := fmt.Sprintf("workflow %q", ref)
	if owner != "" {
		what += fmt.Sprintf(" of %q", owner)
	}
	if ref == "" || !utf8.ValidString(ref) || !utf8.ValidString(owner) { // no name of anything, but that of all who have none
		return uuid.Nil, fmt.Errorf("%s: %w", what, workflow.ErrNotFound)
	}
	searches := []func(context.Context, string, string) ([]found, error){db.findName, db.findNumbered, db.findPrefix}
	if id, err := uuid.Parse(ref); err == nil {
		ref, searches = id.String(), searches[2:]
	}
	for _, search := range searches {
		rows, err := search(ctx, ref, owner)
		if err != nil {
			return uuid.Nil, fmt.Errorf("looking for %s: %w", what, translate(err))
		}
		switch {
		case len(rows) == 1:
			return rows[0].ID, nil
		case len(rows) > 1:
			return uuid.Nil, fmt.Errorf("%s: %w: it fits %s", what, workflow.ErrAmbiguous, describe(rows))
		}
	}
	return uuid.Nil, fmt.Errorf("%s: %w", what, workflow.ErrNotFound)
}

type found struct {
	ID          uuid.UUID
	Name, Owner string
	RunNumber   int
}

func describe(rows []found) string {
	var all []string
	for i, r := range rows {
		if i == 5 {
			all = append(all, "…")
			break
		}
		if r.Name == "" {
			all = append(all, r.ID.String())
			continue
		}
		all = append(all, fmt.Sprintf("%s (%s#%d of %s)", r.ID, r.Name, r.RunNumber, r.Owner))
	}
	return strings.Join(all, ", ")
}

// sqlOwners is the latest run of each owner's workflow of the name $1, or only
// of the owner $2. A name such as "workflow" may have a million runs: this goes
// from owner to owner by the index, and looks at one run of each.
const sqlOwners = `
WITH RECURSIVE latest AS (
    (SELECT id, name, owner, run_number FROM workflows
     WHERE name = $1 AND run_number > 0 AND owner >= $2 ORDER BY owner, run_number DESC LIMIT 1)
    UNION ALL
    SELECT next.* FROM latest CROSS JOIN LATERAL (
        SELECT w.id, w.name, w.owner, w.run_number FROM workflows AS w
        WHERE w.name = $1 AND w.run_number > 0 AND w.owner > latest.owner AND $2 = '' ORDER BY w.owner, w.run_number DESC LIMIT 1) AS next)`

// findName finds the latest run of each owner's workflow of that name.
func (db *DB) findName(ctx context.Context, name, owner string) (rows []found, err error) {
	err = db.gorm.WithContext(ctx).Raw(sqlOwners+` SELECT * FROM latest WHERE $2 IN ('', owner) LIMIT 10`, name, owner).Scan(&rows).Error
	return rows, err
}

func (db *DB) findNumbered(ctx context.Context, ref, owner string) (rows []found, err error) {
	m := numbered.FindStringSubmatch(ref)
	if m == nil {
		return nil, nil
	}
	number, err := strconv.Atoi(m[2])
	if err != nil {
		return nil, nil
	}
	err = db.gorm.WithContext(ctx).Raw(sqlOwners+`
		SELECT w.id, w.name, w.owner, w.run_number FROM latest JOIN workflows AS w ON w.name = $1 AND w.owner = latest.owner AND w.run_number = $3
		WHERE $2 IN ('', w.owner) LIMIT 10`, m[1], owner, number).Scan(&rows).Error
	return rows, err
}

func (db *DB) findPrefix(ctx context.Context, ref, owner string) (rows []found, err error) {
	if !hexPrefix.MatchString(ref) {
		return nil, nil
	}
	digits := strings.ToLower(strings.ReplaceAll(ref, "-", ""))
	if len(digits) < 4 || len(digits) > 32 {
		return nil, nil
	}
	low, err := uuid.Parse(digits + strings.Repeat("0", 32-len(digits)))
	if err != nil {
		return nil, nil
	}
	high := uuid.MustParse(digits + strings.Repeat("f", 32-len(digits)))
	err = db.gorm.WithContext(ctx).Raw(`SELECT id, name, owner, run_number FROM workflows WHERE id BETWEEN $1 AND $2 AND $3 IN ('', owner) ORDER BY id LIMIT 10`,
		low, high, owner).Scan(&rows).Error
	return rows, err
}

// AmbiguousJobError says that a word fits several jobs of a workflow. It wraps
// workflow.ErrAmbiguous.
type AmbiguousJobError struct {
	Ref string
	// Jobs are the first of those that fit, in the order of their ids.
	Jobs []workflow.Job
	// More says that others fit, too.
	More bool
}

func (e *AmbiguousJobError) Error() string {
	var fits []string
	for _, j := range e.Jobs {
		fits = append(fits, j.ID)
	}
	if e.More {
		fits = append(fits, "…")
	}
	return fmt.Sprintf("job %q: %v: it fits %s", e.Ref, workflow.ErrAmbiguous, strings.Join(fits, ", "))
}

func (e *AmbiguousJobError) Unwrap() error { return workflow.ErrAmbiguous }

// shownFits is how many jobs an [AmbiguousJobError] holds.
const shownFits = 10

// FindJob returns the id of the job of a workflow that a person means by ref:
// an id, the name of a job, alone or with its path before it (of those of the
// latest attempt of the run that has one), or the beginning of an id (four
// characters or more). Errors wrap workflow.ErrNotFound, or are an
// *[AmbiguousJobError].
func (db *DB) FindJob(ctx context.Context, id uuid.UUID, ref string) (string, error) {
	if ref == "" || !utf8.ValidString(ref) {
		return "", fmt.Errorf("job %q: %w", ref, workflow.ErrNotFound)
	}
	for _, search := range []string{
		`job_id = @ref`,
		`name = @ref AND run_attempt = (SELECT max(run_attempt) FROM jobs WHERE workflow_id = @id AND name = @ref)`,
		`path || '/' || name = @ref AND run_attempt = (SELECT max(run_attempt) FROM jobs WHERE workflow_id = @id AND path || '/' || name = @ref)`,
		`length(@ref) >= 4 AND job_id >= @ref AND job_id < @beyond`,
	} {
		var fits []string
		err := db.gorm.WithContext(ctx).Raw(`SELECT job_id FROM jobs WHERE workflow_id = @id AND `+search+` ORDER BY job_id LIMIT @limit`,
			map[string]any{"id": id, "ref": ref, "beyond": ref + "\U0010FFFF", "limit": shownFits + 1}).Scan(&fits).Error
		switch {
		case err != nil:
			return "", fmt.Errorf("looking for job %q: %w", ref, translate(err))
		case len(fits) == 1:
			return fits[0], nil
		case len(fits) > 1:
			page, err := db.Jobs(ctx, id, workflow.JobFilter{IDs: fits[:min(len(fits), shownFits)]})
			if err != nil {
				return "", err
			}
			return "", &AmbiguousJobError{Ref: ref, Jobs: page.Items, More: len(fits) > shownFits}
		}
	}
	return "", fmt.Errorf("job %q: %w", ref, workflow.ErrNotFound)
}

func pageSize(limit, standard, most int) (int, error) {
	switch {
	case limit == 0:
		return standard, nil
	case limit < 0 || limit > most:
		return 0, fmt.Errorf("limit %d: expected 1 to %d", limit, most)
	}
	return limit, nil
}

// ErrCursor says that a cursor is not one that this list gave.
var ErrCursor = errors.New("not a cursor of this list: take it from the page before")

func cursor(at any) string {
	b, err := json.Marshal(at)
	if err != nil { // of times, ids and numbers: only a year beyond 9999, which no row has
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func parseCursor(text string, at any) error {
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err == nil {
		decoder := json.NewDecoder(bytes.NewReader(b))
		decoder.DisallowUnknownFields() // those of another list
		err = decoder.Decode(at)
	}
	if err != nil || reflect.ValueOf(at).Elem().IsZero() {
		return fmt.Errorf("cursor %q: %w", text, ErrCursor)
	}
	return nil
}
