package store

import (
	"cmp"
	"encoding/binary"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"waymark/workflow"
)

// A message without an id that is delivered again is recognised by the digest of
// its body, but only among the deliveries whose acknowledgement may have been
// lost: equal messages are no rarity, and one that was acknowledged long ago says
// nothing about one that comes now. So the store keeps, by session, the digests
// of each batch until the consumer knows that the broker has its acknowledgement,
// and those of the last seconds of a session that has ended: a broker that is
// killed may forget what it was told shortly before. The session itself forgets
// them, with whatever its later batches bring; what it could not, since it ended
// or had no more batches, [DB.Prune] forgets after recentKept.

// recentKept is how long the digests of a session that has ended are kept at
// least, from when a call of Prune has found them to another. What a broker
// delivers again only later, because it was away for so long, is taken for new.
// A minute less than the hour between two calls, so that the next call counts.
const recentKept = time.Hour - time.Minute

// leftovers knows since when which rows of recent_deliveries are there. The zero
// value is ready.
type leftovers struct {
	mu    sync.Mutex
	since map[recentBatch]time.Time
}

// old returns those of the rows found that were found recentKept ago already.
func (l *leftovers) old(found []recentBatch, now time.Time) (expired []recentBatch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	since := make(map[recentBatch]time.Time, len(found))
	for _, row := range found {
		first, known := l.since[row]
		if !known {
			first = now
		}
		since[row] = first
		if now.Sub(first) >= recentKept {
			expired = append(expired, row)
		}
	}
	l.since = since
	return expired
}

// sqlForgetSettled forgets the batches of a session whose acknowledgements the
// broker has. It waits for nobody: a row from which another session takes
// something is left to the next time, and sqlLeftSettled knows of it.
const (
	sqlForgetSettled = `
DELETE FROM recent_deliveries WHERE session = $1 AND batch = ANY (ARRAY(
    SELECT batch FROM recent_deliveries WHERE session = $1 AND batch <= $2 FOR UPDATE SKIP LOCKED))`
	sqlLeftSettled = `SELECT EXISTS (SELECT FROM recent_deliveries WHERE session = $1 AND batch <= $2)`
)

// recentSessions knows which sessions may have rows in recent_deliveries, so that
// the others are spared the statement that forgets them. The zero value is ready.
type recentSessions struct {
	mu   sync.Mutex
	last map[uuid.UUID]recentRow
}

// recentRow is the last row that a session wrote, or tried to.
type recentRow struct {
	batch int64
	at    time.Time
}

// wrote notes that a session writes a row with its batch.
func (r *recentSessions) wrote(session uuid.UUID, batch int64, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.last[session]; !known {
		maps.DeleteFunc(r.last, func(_ uuid.UUID, row recentRow) bool { return now.Sub(row.at) > recentKept })
	}
	if r.last == nil {
		r.last = make(map[uuid.UUID]recentRow)
	}
	r.last[session] = recentRow{batch, now}
}

// may reports whether a session may have rows.
func (r *recentSessions) may(session uuid.UUID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.last[session]
	return ok
}

// forgot notes that all rows of what was settled are gone.
func (r *recentSessions) forgot(session uuid.UUID, settled int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if row, ok := r.last[session]; ok && row.batch <= settled {
		delete(r.last, session)
	}
}

// digestKey is the half of a digest that is stored: among the deliveries of some
// seconds it is enough, and every message without an id pays for it.
func digestKey(d *workflow.Delivery) int64 { return int64(binary.BigEndian.Uint64(d.Digest[:8])) }

// recentBatch names a row of recent_deliveries.
type recentBatch struct {
	session uuid.UUID
	batch   int64
}

// recent holds, by digest, the batches in which deliveries of other sessions
// were that a redelivered message may repeat.
type recent map[int64][]recentBatch

const sqlFindRecent = `
SELECT r.session, r.batch, d.digest FROM recent_deliveries AS r CROSS JOIN LATERAL unnest(r.digests) AS d(digest)
WHERE r.session <> $2 AND d.digest = ANY($1) ORDER BY r.at, r.session, r.batch`

func (a *application) scanRecent(rows pgx.Rows) error {
	a.recent = make(recent)
	var digest int64
	var in recentBatch
	_, err := pgx.ForEachRow(rows, []any{&in.session, &in.batch, &digest}, func() error {
		a.recent[digest] = append(a.recent[digest], in)
		return nil
	})
	return err
}

// repeats reports whether a redelivered message without an id was applied
// before. Each delivery of the past stands for one of now, so that of several
// equal messages none is lost.
func (a *application) repeats(d *workflow.Delivery) bool {
	digest := digestKey(d)
	before := a.recent[digest]
	if len(before) == 0 {
		return false
	}
	a.recent[digest] = before[1:]
	if a.repeated == nil {
		a.repeated = make(map[recentBatch][]int64)
	}
	a.repeated[before[0]] = append(a.repeated[before[0]], digest)
	return true
}

// Of each digest as many are taken away as were recognised. The lock of the run
// keeps others from the same digests, not from the same row.
const sqlTakeRecent = `
UPDATE recent_deliveries AS r SET digests = (
    SELECT coalesce(array_agg(e.digest), '{}') FROM (
        SELECT d.digest, row_number() OVER (PARTITION BY d.digest) AS n FROM unnest(r.digests) AS d(digest)) AS e
    WHERE e.n > (SELECT count(*) FROM unnest($3::bigint[]) AS t(digest) WHERE t.digest = e.digest))
WHERE r.session = $1 AND r.batch = $2`

// writeRecent moves what was recognised from the batches it was in before to
// this one, and forgets what is settled.
func (a *application) writeRecent(q *pgx.Batch) {
	var digests []int64
	for i := range a.batch.Deliveries {
		if d := &a.batch.Deliveries[i]; onlyDigest(*d) && a.outcomes[i] != workflow.Unknown {
			digests = append(digests, digestKey(d))
		}
	}
	// In one order, so that two consumers that take from the same batches do not
	// wait in a circle.
	batches := slices.SortedFunc(maps.Keys(a.repeated), func(x, y recentBatch) int {
		return cmp.Or(compareIDs(x.session, y.session), cmp.Compare(x.batch, y.batch))
	})
	for _, in := range batches {
		q.Queue(sqlTakeRecent, in.session, in.batch, a.repeated[in])
	}
	if len(digests) > 0 {
		// There is a row already if the batch was committed before; the ledger knows.
		q.Queue(`INSERT INTO recent_deliveries (session, batch, digests) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, a.batch.Session, a.batch.Number, digests)
		a.db.recent.wrote(a.batch.Session, a.batch.Number, time.Now())
	}
	if a.forgets = a.batch.Settled > 0 && a.db.recent.may(a.batch.Session); a.forgets {
		q.Queue(sqlForgetSettled, a.batch.Session, a.batch.Settled)
		q.Queue(sqlLeftSettled, a.batch.Session, a.batch.Settled).QueryRow(func(row pgx.Row) error {
			var left bool
			err := row.Scan(&left)
			a.forgets = !left
			return err
		})
	}
}
