package store

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"waymark/internal/crashpoint"
	"waymark/workflow"
)

// applyTries bounds how often a batch that lost a race (a deadlock, a
// serialization failure) is tried again before its caller is told.
const applyTries = 5

// Apply gives a batch its effect in one transaction and returns what became of
// each delivery, in their order.
//
// Tried again with the same number after an error, a batch that had been
// committed all the same is not applied twice: then the outcomes are nil and
// the error is too.
//
// Errors: workflow.ErrRejected if the data of some message cannot be stored;
// workflow.ErrUnknownWorkflow, with outcomes that name the messages, if unknown
// workflows are to be dead-lettered and the batch holds some. In both cases
// nothing was written and a smaller batch may succeed. If b.Held returns an
// error, nothing was written either, and that error is wrapped. Any other error
// is the database's trouble, and the batch may be tried again as it is.
func (db *DB) Apply(ctx context.Context, b *workflow.Batch) ([]workflow.Outcome, error) {
	for try := 1; ; try++ {
		outcomes, err := db.applyOnce(ctx, b)
		if err == nil || try == applyTries || !retryAtOnce(err) {
			return outcomes, wrapApply(b, err)
		}
	}
}

func wrapApply(b *workflow.Batch, err error) error {
	if err == nil || errors.Is(err, workflow.ErrUnknownWorkflow) {
		return err
	}
	return fmt.Errorf("applying %d messages of %s: %w", len(b.Deliveries), b.Queue, translate(err))
}

// errApplied ends the transaction of a batch that was committed before.
var errApplied = errors.New("the batch was applied before")

func (db *DB) applyOnce(ctx context.Context, b *workflow.Batch) (outcomes []workflow.Outcome, err error) {
	// A server that has gone silent must not hold the batch for ever.
	trying, cancel := context.WithTimeout(ctx, db.cfg.ApplyTimeout)
	defer cancel()
	err = withPgx(trying, db.applies, func(conn *pgx.Conn) error {
		outcomes, err = db.applyOn(trying, conn, b)
		return err
	})
	switch {
	case errors.Is(err, errApplied):
		return nil, nil
	case err != nil && trying.Err() != nil && ctx.Err() == nil:
		db.endStalled(ctx)
	}
	return outcomes, err
}

// applyOn applies a batch in one transaction of conn.
func (db *DB) applyOn(ctx context.Context, conn *pgx.Conn, b *workflow.Batch) ([]workflow.Outcome, error) {
	defer endTransaction(ctx, conn)
	a := &application{db: db, conn: conn, batch: b, now: db.now()}
	if err := a.load(ctx); err != nil {
		return nil, err
	}
	if b.Held != nil && slices.ContainsFunc(b.Deliveries, onlyDigest) {
		if err := b.Held(ctx); err != nil {
			return nil, err
		}
	}
	if err := a.fold(); err != nil {
		return a.outcomes, err
	}
	if err := a.write(ctx); err != nil {
		return nil, err
	}
	crashpoint.Hit("store.written")
	err := commit(ctx, conn)
	crashpoint.Hit("store.committed")
	if err == nil && a.forgets {
		db.recent.forgot(b.Session, b.Settled)
	}
	return a.outcomes, err
}

// sqlBegin travels with the first statements of a transaction: a round trip less
// while others wait. Each statement must see what the locks before it have waited
// for, whatever the role's default is.
const sqlBegin = `BEGIN ISOLATION LEVEL READ COMMITTED`

// commit commits the transaction of conn. A transaction in which a statement has
// failed is rolled back by it, which the server does not call an error.
func commit(ctx context.Context, conn *pgx.Conn) error {
	tag, err := conn.Exec(ctx, `COMMIT`)
	if err == nil && tag.String() != "COMMIT" {
		return pgx.ErrTxCommitRollback
	}
	return err
}

// endTransaction rolls back what was not committed. A context that has ended
// must not keep the rollback from being sent; a connection that does not take it
// is closed.
func endTransaction(ctx context.Context, conn *pgx.Conn) {
	const idle = 'I'
	if conn.IsClosed() || conn.PgConn().TxStatus() == idle {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if _, err := conn.Exec(ctx, `ROLLBACK`); err != nil {
		_ = conn.Close(ctx)
	}
}

// onlyDigest reports whether a repetition of d is recognised by nothing but its
// digest.
func onlyDigest(d workflow.Delivery) bool { return d.MessageID == "" && d.Digest != uuid.Nil }

// application is one try to apply a batch.
type application struct {
	db    *DB
	conn  *pgx.Conn // in a transaction
	batch *workflow.Batch
	now   time.Time

	states map[uuid.UUID]*runState
	// order holds the ids of the states, sorted: all who write do it in this order.
	order []uuid.UUID
	// stored holds the jobs that have a row, and where it is.
	stored map[*workflow.Job]pgtype.TID
	// seen holds the known outcome of message ids; ids those of the deliveries.
	seen map[uuid.UUID]workflow.Outcome
	ids  []uuid.UUID
	// recent holds what a redelivered message without an id may repeat, repeated
	// what such messages did repeat.
	recent   recent
	repeated map[recentBatch][]int64
	forgets  bool // all that its session had settled

	outcomes []workflow.Outcome
	logs     []storedChunk
	news     []seenID
}

// runState is the state of one run with what the batch does to it.
type runState struct {
	*workflow.State
	fresh    bool       // has no row yet
	created  time.Time  // if it is fresh
	row      pgtype.TID // where the row is
	logged   bool
	logBytes int64 // what is stored of its logs, with those of the batch
}

// messageSpace is the namespace of message ids that are no UUIDs.
var messageSpace = uuid.NewSHA1(uuid.NameSpaceURL, []byte("waymark:message-id"))

// messageKey is the key under which a message id is remembered; zero for none.
func messageKey(id string) uuid.UUID {
	if id == "" {
		return uuid.Nil
	}
	if key, err := uuid.Parse(id); err == nil && key != uuid.Nil {
		return key
	}
	return uuid.NewSHA1(messageSpace, []byte(id))
}

// load begins the transaction, and locks and loads what the fold of the batch
// needs, in one round trip.
func (a *application) load(ctx context.Context) error {
	n := len(a.batch.Deliveries)
	a.outcomes = make([]workflow.Outcome, n)
	a.ids = make([]uuid.UUID, n)
	a.states = make(map[uuid.UUID]*runState)
	a.seen = make(map[uuid.UUID]workflow.Outcome)
	a.stored = make(map[*workflow.Job]pgtype.TID)
	if n == 0 {
		_, err := a.conn.Exec(ctx, sqlBegin)
		return err
	}
	var keys, submitted []uuid.UUID
	var digests []int64
	type jobKey struct {
		workflow uuid.UUID
		id       string
	}
	mentioned := make(map[jobKey]struct{})
	for i := range a.batch.Deliveries {
		d := &a.batch.Deliveries[i]
		id := d.WorkflowID()
		if _, ok := a.states[id]; !ok {
			a.states[id] = nil
			a.order = append(a.order, id)
		}
		if a.ids[i] = messageKey(d.MessageID); a.ids[i] != uuid.Nil {
			keys = append(keys, a.ids[i])
		} else if d.Redelivered && d.Digest != uuid.Nil {
			digests = append(digests, digestKey(d))
		}
		if d.Submission != nil {
			submitted = append(submitted, id)
			continue
		}
		for job := range d.Status.MentionedJobs() {
			mentioned[jobKey{id, job}] = struct{}{}
		}
	}
	slices.SortFunc(a.order, compareIDs)
	// In the order of the index, as all that follows: neighbours are found on the
	// pages that were just read.
	jobs := slices.SortedFunc(maps.Keys(mentioned), func(x, y jobKey) int {
		return cmp.Or(compareIDs(x.workflow, y.workflow), strings.Compare(x.id, y.id))
	})

	// The statements run one after the other, each with a snapshot of its own:
	// what follows the lock sees what the lock waited for.
	var q pgx.Batch
	q.Queue(sqlBegin)
	a.db.lockRuns(&q, a.order)
	q.Queue(sqlLoadRuns, uuids(a.order)).Query(a.scanRuns)
	if len(keys) > 0 {
		findSeen(&q, keys, func(s seenID) { a.seen[s.id] = s.outcome })
	}
	if len(digests) > 0 {
		q.Queue(sqlFindRecent, digests, a.batch.Session).Query(a.scanRecent)
	}
	if len(jobs) > 0 {
		of, ids := make(uuidArray, len(jobs)), make([]string, len(jobs))
		for i, job := range jobs {
			of[i], ids[i] = uuidValue(job.workflow), job.id
		}
		q.Queue(sqlLoadJobs, of, ids).Query(a.scanJobs)
	}
	if len(submitted) > 0 {
		q.Queue(sqlLoadSubmissions, uuids(submitted)).Query(a.scanSubmissions)
	}
	if err := a.conn.SendBatch(ctx, &q).Close(); err != nil {
		return err
	}
	fresh := a.missing()
	for i, id := range fresh {
		// A microsecond apart: the newest is listed first, also of those that came at once.
		created := a.now.Add(-time.Duration(len(fresh)-1-i) * time.Microsecond)
		a.states[id] = &runState{State: workflow.NewState(workflow.Run{ID: id}), fresh: true, created: created}
	}
	crashpoint.Hit("store.locked")
	return nil
}

// missing are the ids of workflows that have no row and are to get one, in the
// order of arrival: a repeated message makes none, nor does a status where unknown
// workflows are refused.
func (a *application) missing() (ids []uuid.UUID) {
	found := make(map[uuid.UUID]bool)
	for i := range a.batch.Deliveries {
		d := &a.batch.Deliveries[i]
		id := d.WorkflowID()
		if a.states[id] != nil || found[id] || a.isSeen(a.ids[i]) || (d.Submission == nil && a.db.cfg.UnknownWorkflows == DeadLetterUnknown) {
			continue
		}
		ids, found[id] = append(ids, id), true
	}
	return ids
}

func (a *application) isSeen(key uuid.UUID) bool {
	_, seen := a.seen[key]
	return seen && key != uuid.Nil
}

func compareIDs(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) }

// fold applies every delivery to the states, in the order of arrival.
func (a *application) fold() error {
	unknown := false
	for i := range a.batch.Deliveries {
		d := &a.batch.Deliveries[i]
		a.outcomes[i] = a.foldOne(d, a.ids[i])
		unknown = unknown || a.outcomes[i] == workflow.Unknown
	}
	if unknown {
		return workflow.ErrUnknownWorkflow
	}
	return nil
}

func (a *application) foldOne(d *workflow.Delivery, key uuid.UUID) workflow.Outcome {
	if a.isSeen(key) {
		return workflow.Duplicate
	}
	s := a.states[d.WorkflowID()]
	if s == nil {
		return workflow.Unknown
	}
	if key == uuid.Nil && d.Redelivered && a.repeats(d) {
		return workflow.Duplicate
	}
	var outcome workflow.Outcome
	if d.Submission != nil {
		outcome = s.Submit(d.Submission)
	} else {
		outcome = s.Apply(d.Status)
		for chunk := range d.Status.LogChunks() {
			a.log(s, chunk)
		}
	}
	if key != uuid.Nil {
		a.seen[key] = outcome
		a.news = append(a.news, seenID{key, outcome})
	}
	return outcome
}

// write queues every statement that the fold asks for and sends them in one
// round trip, or in two where there are many new jobs.
func (a *application) write(ctx context.Context) error {
	var q pgx.Batch
	fresh := a.writeJobs(&q)
	if len(fresh) > 0 {
		if err := a.copyJobs(ctx, fresh); err != nil {
			return err
		}
	}
	a.lockNames(&q)
	touched := a.writeRuns(&q)
	a.writeSubmissions(&q)
	a.writeDocuments(&q)
	a.writeLogs(&q)
	a.writeRecent(&q)
	a.writeHistory(&q)
	remember(&q, a.news, a.now)
	for chunk := range slices.Chunk(touched, idsPerNotification) {
		q.Queue(`SELECT pg_notify($1, $2)`, a.db.channel(), joinIDs(chunk))
	}
	a.writeLedger(&q)
	return a.conn.SendBatch(ctx, &q).Close()
}

func (a *application) writeLedger(q *pgx.Batch) {
	var count [5]int64
	for _, o := range a.outcomes {
		count[o]++
	}
	dead := int64(a.batch.Dead)
	q.Queue(`INSERT INTO ledger AS l (queue, consumer, received, applied, duplicate, stale, dead, batch, updated_at)
		VALUES ($1, $2, $3::bigint, $4, $5, $6, $7, $8, $9)
		ON CONFLICT (queue, consumer) DO UPDATE SET received = l.received + excluded.received, applied = l.applied + excluded.applied,
			duplicate = l.duplicate + excluded.duplicate, stale = l.stale + excluded.stale, dead = l.dead + excluded.dead,
			batch = excluded.batch, updated_at = excluded.updated_at
		WHERE l.batch < excluded.batch`,
		a.batch.Queue, a.batch.Consumer, int64(len(a.outcomes))+dead,
		count[workflow.Applied], count[workflow.Duplicate], count[workflow.Stale], dead, a.batch.Number, a.now,
	).Exec(func(tag pgconn.CommandTag) error {
		if tag.RowsAffected() == 0 {
			return errApplied
		}
		return nil
	})
}

// errMoved says that somebody who does not hold the locks has changed a row
// after it was loaded.
var errMoved error = movedError{}

type movedError struct{}

func (movedError) Error() string {
	return "rows of runs or jobs were changed by somebody else, who does not hold the locks of the runs"
}

// SQLState is that of a serialization failure, which it is.
func (movedError) SQLState() string { return "40001" }

// all makes sure that a statement has updated every row that it should.
func all(rows int) func(pgconn.CommandTag) error {
	return func(tag pgconn.CommandTag) error {
		if tag.RowsAffected() != int64(rows) {
			return errMoved
		}
		return nil
	}
}

// writeJobs returns the new jobs if there are so many that they are to be copied.
func (a *application) writeJobs(q *pgx.Batch) (copied []newJob) {
	changed := 0
	for _, id := range a.order {
		if s := a.states[id]; s != nil {
			changed += len(s.ChangedJobs)
		}
	}
	if changed == 0 {
		return nil
	}
	fresh, known, rows := make([]newJob, 0, changed), newJobColumns(min(changed, len(a.stored))), rowArray(nil)
	for _, id := range a.order {
		s := a.states[id]
		if s == nil {
			continue
		}
		for _, j := range s.ChangedJobs {
			if row, ok := a.stored[j]; ok {
				known.add(id, j)
				rows = append(rows, row)
			} else {
				fresh = append(fresh, newJob{id, j})
			}
		}
	}
	if len(rows) > 0 {
		q.Queue(sqlUpdateJobs, append(known.args(), rows)...).Exec(all(len(rows)))
	}
	if len(fresh) >= copyFrom {
		return fresh
	}
	if len(fresh) > 0 {
		columns := newJobColumns(len(fresh))
		for _, j := range fresh {
			columns.add(j.run, j.Job)
		}
		q.Queue(sqlInsertJobs, columns.args()...)
	}
	return nil
}

// writeRuns returns the ids of the runs that readers should look at again.
func (a *application) writeRuns(q *pgx.Batch) (touched []uuid.UUID) {
	fresh, known := &freshColumns{runColumns: newRunColumns(0)}, newRunColumns(len(a.order))
	for _, id := range a.order {
		s := a.states[id]
		if s == nil {
			continue
		}
		switch {
		case s.RunChanged && s.fresh:
			fresh.add(s)
		case s.RunChanged:
			known.add(s)
		}
		if s.RunChanged || s.logged {
			touched = append(touched, id)
		}
	}
	if len(fresh.id) > 0 {
		q.Queue(sqlInsertRuns, fresh.args(a.now)...)
	}
	if len(known.id) > 0 {
		q.Queue(sqlUpdateRuns, append(known.args(), a.now, known.row)...).Exec(all(len(known.row)))
	}
	return touched
}

// submitted calls fn for each run of which the batch brings the submission.
func (a *application) submitted(fn func(s *runState, sub *workflow.Submission)) {
	for _, id := range a.order {
		if s := a.states[id]; s != nil && s.SubmissionChanged {
			fn(s, s.Run.Submission)
		}
	}
}

// lockNames locks the names that submissions bring: runs of one owner and name
// are numbered one after the other. The locks come after those of all runs, in
// one order, so nobody waits in a circle.
func (a *application) lockNames(q *pgx.Batch) {
	var names []string
	a.submitted(func(_ *runState, sub *workflow.Submission) {
		if name := sub.DisplayName(); name != "" {
			names = append(names, sub.User+"/"+name)
		}
	})
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		q.Queue(`SELECT pg_advisory_xact_lock(hashtextextended($1, 0))`, a.db.cfg.Schema+" "+name)
	}
}

func (a *application) writeSubmissions(q *pgx.Batch) {
	var known []uuid.UUID // with a row before this batch
	var names []string
	a.submitted(func(s *runState, sub *workflow.Submission) {
		id, name, labels := s.Run.ID, sub.DisplayName(), labelsOf(sub)
		args := []any{id, max(sub.Attempt, 1), sub.RetryCount, sub.EventTime, sub.Priority, sub.MinJobMemory, sub.User, sub.Workflow, sub.Name,
			sub.Engine, labels, document(sub.Parameters), document(sub.Specification)}
		q.Queue(sqlUpsertSubmission, args...)
		if name != "" {
			names = append(names, name)
		}
		if s.fresh {
			return // its row has it all
		}
		known = append(known, id)
		q.Queue(sqlDescribeRun, id, sub.User, name, sub.Priority, labels, sub.EventTime)
	})
	if len(known) > 0 {
		q.Queue(sqlNumberRuns, uuids(known))
	}
	if len(names) > 0 {
		slices.Sort(names)
		q.Queue(`INSERT INTO run_names (name) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING`, slices.Compact(names))
	}
}

func (a *application) writeDocuments(q *pgx.Batch) {
	for _, id := range a.order {
		if s := a.states[id]; s != nil && s.SpecificChanged && len(s.Run.EngineSpecific) > 0 {
			q.Queue(sqlUpsertDocument, id, s.Run.Attempt, s.Run.EngineSpecificAt, document(s.Run.EngineSpecific))
		}
	}
}

func (a *application) writeHistory(q *pgx.Batch) {
	var ids uuidArray
	var attempts []int32
	var statuses []int16
	var times []time.Time
	for _, id := range a.order {
		s := a.states[id]
		if s == nil {
			continue
		}
		for _, h := range s.History {
			ids, attempts = append(ids, uuidValue(id)), append(attempts, int32(h.Attempt))
			statuses, times = append(statuses, int16(h.Status)), append(times, h.At)
		}
	}
	if len(ids) == 0 {
		return
	}
	q.Queue(`INSERT INTO status_changes AS h (workflow_id, attempt, status, event_time, recorded_at)
		SELECT id, attempt, status, at, $5 FROM unnest($1::uuid[], $2::integer[], $3::smallint[], $4::timestamptz[]) AS c(id, attempt, status, at)
		ON CONFLICT (workflow_id, attempt, status) DO UPDATE SET event_time = excluded.event_time WHERE excluded.event_time < h.event_time`,
		ids, attempts, statuses, times, a.now)
}

// document is raw JSON as a parameter; NULL if there is none.
func document(raw json.RawMessage) any {
	if len(raw) == 0 {
		return nil
	}
	return string(raw)
}

// idsPerNotification keeps a payload below Postgres' limit of 8000 bytes.
const idsPerNotification = 200

func joinIDs(ids []uuid.UUID) string {
	var b strings.Builder
	for i, id := range ids {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(id.String())
	}
	return b.String()
}

// channel is the name of the notification channel. Channels belong to the
// database, not to a schema, hence the prefix.
func (db *DB) channel() string { return db.cfg.Schema + "_changes" }
