package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"waymark/workflow"
)

// A run may store Config.MaxRunLogBytes of logs. Half of it is its head: what
// came first, and stays. What comes beyond is marked; when the run has more than
// it may, the oldest of that is deleted in the same transaction. Each chunk is
// deleted at most once, by those that take its place, so that a message costs
// the same however much the run has written; and everything is done under the
// lock of the run, so that what is stored, what was cut and how much that was
// agree at every moment.

type storedChunk struct {
	workflow.LogChunk
	workflowID uuid.UUID
	beyond     bool // behind the head
}

// log keeps a chunk of s to be stored.
func (a *application) log(s *runState, chunk workflow.LogChunk) {
	a.logs = append(a.logs, storedChunk{LogChunk: chunk, workflowID: s.Run.ID, beyond: s.logBytes >= a.db.cfg.MaxRunLogBytes/2})
	s.logBytes += int64(len(chunk.Text))
	s.logged, s.RunChanged = true, true
}

func (a *application) writeLogs(q *pgx.Batch) {
	if len(a.logs) == 0 {
		return
	}
	n := len(a.logs)
	ids, times := make(uuidArray, n), make([]time.Time, n)
	attempts, jobs, texts, beyond := make([]int32, n), make([]string, n), make([]string, n), make([]bool, n)
	added := make(map[uuid.UUID]int)
	for i, chunk := range a.logs {
		ids[i], times[i], attempts[i], jobs[i], texts[i] = uuidValue(chunk.workflowID), chunk.At, int32(chunk.Attempt), chunk.JobID, chunk.Text
		beyond[i] = chunk.beyond
		added[chunk.workflowID]++
	}
	q.Queue(`INSERT INTO log_chunks (workflow_id, event_time, attempt, beyond, job_id, body)
		SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::integer[], $4::boolean[], $5::text[], $6::text[])`,
		ids, times, attempts, beyond, jobs, texts)
	for _, id := range a.order {
		if s := a.states[id]; s != nil && added[id] > 0 {
			if excess := s.logBytes - a.db.cfg.MaxRunLogBytes; excess > 0 {
				q.Queue(sqlCutLogs, id, excess, min(2*int64(added[id])+excess/128+16, mostCut))
			}
		}
	}
}

// mostCut is how many chunks a batch deletes of one run at most. Where a few
// large chunks push out very many small ones, the next batches go on.
const mostCut = 5000

// The last chunk always stays. What was cut before is passed over by its number
// and not looked for again, as the index still holds it until the next vacuum. What
// is cut now is deleted where it was found: by its key, a plan that was made while
// the table was small looks through all chunks of the run for each.
const sqlCutLogs = `
WITH before AS (
    SELECT coalesce(max(last_seq), 0) AS seq FROM log_cuts WHERE workflow_id = $1),
oldest AS (
    SELECT c.*, sum(n) OVER (ORDER BY seq) AS through, lead(seq) OVER (ORDER BY seq) IS NOT NULL AS followed
    FROM (SELECT ctid AS row, seq, octet_length(body) AS n FROM log_chunks
          WHERE workflow_id = $1 AND beyond AND seq > (SELECT seq FROM before) ORDER BY seq LIMIT $3) AS c),
gone AS (
    DELETE FROM log_chunks AS l USING oldest AS o
    WHERE l.ctid = o.row AND o.through - o.n < $2 AND o.followed
    RETURNING l.seq, l.job_id, l.event_time, o.n),
noted AS (
    INSERT INTO log_cuts AS c (workflow_id, job_id, bytes, chunks, first_at, first_seq, last_seq)
    SELECT $1, job_id, sum(n), count(*), min(event_time), min(seq), max(seq) FROM gone GROUP BY job_id
    ON CONFLICT (workflow_id, job_id) DO UPDATE SET bytes = c.bytes + excluded.bytes, chunks = c.chunks + excluded.chunks,
        first_at = least(c.first_at, excluded.first_at), first_seq = least(c.first_seq, excluded.first_seq), last_seq = excluded.last_seq)
UPDATE workflows SET log_bytes = log_bytes - (SELECT coalesce(sum(n), 0) FROM gone) WHERE id = $1`

// logCuts returns the marks of what was left out of the logs that f chooses, in
// the order of the log.
func (db *DB) logCuts(ctx context.Context, id uuid.UUID, f workflow.LogFilter) ([]workflow.LogEntry, error) {
	q := db.gorm.WithContext(ctx).Table("log_cuts").Select("job_id, bytes, first_at, first_seq").Where("workflow_id = ?", id)
	if !f.AllJobs {
		q = q.Where("job_id = ?", f.JobID)
	}
	var rows []struct {
		JobID    string
		Bytes    int64
		FirstAt  time.Time
		FirstSeq int64
	}
	if err := q.Find(&rows).Error; err != nil {
		return nil, fmt.Errorf("reading what was cut from the logs of %s: %w", id, translate(err))
	}
	marks := make([]workflow.LogEntry, len(rows))
	for i, r := range rows {
		marks[i] = workflow.LogEntry{Seq: r.FirstSeq, Cut: r.Bytes, LogChunk: workflow.LogChunk{JobID: r.JobID, At: r.FirstAt.UTC()}}
	}
	slices.SortFunc(marks, inLog)
	return marks, nil
}

// inLog compares two entries by their places in the log.
func inLog(a, b workflow.LogEntry) int { return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Seq, b.Seq)) }

// withMarks puts marks into a page of the log: those that lie between from and
// to, of which nil is the beginning or the end of the log.
func withMarks(entries, marks []workflow.LogEntry, from, to *workflow.LogEntry) []workflow.LogEntry {
	marks = slices.DeleteFunc(marks, func(m workflow.LogEntry) bool {
		return (from != nil && inLog(m, *from) <= 0) || (to != nil && inLog(m, *to) > 0)
	})
	if len(marks) == 0 {
		return entries
	}
	entries = append(entries, marks...)
	slices.SortStableFunc(entries, inLog)
	return entries
}
