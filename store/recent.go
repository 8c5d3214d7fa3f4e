package store

import (
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
// killed may forget what it was told shortly before.

// sqlForgetSettled forgets the batches of a session whose acknowledgements the
// broker has, but for those of the last seconds.
const sqlForgetSettled = `DELETE FROM recent_deliveries WHERE session = $1 AND batch <= $2 AND at < now() - interval '2 seconds'`

// recentBatch names a row of recent_deliveries.
type recentBatch struct {
	session uuid.UUID
	batch   int64
}

// recent holds, by digest, the batches in which deliveries of other sessions
// were that a redelivered message may repeat.
type recent map[uuid.UUID][]recentBatch

const sqlFindRecent = `
SELECT r.session, r.batch, d.digest FROM recent_deliveries AS r CROSS JOIN LATERAL unnest(r.digests) AS d(digest)
WHERE r.session <> $2 AND d.digest = ANY($1) ORDER BY r.at, r.session, r.batch`

func (a *application) scanRecent(rows pgx.Rows) error {
	a.recent = make(recent)
	var digest uuid.UUID
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
func (a *application) repeats(digest uuid.UUID) bool {
	before := a.recent[digest]
	if len(before) == 0 {
		return false
	}
	a.recent[digest] = before[1:]
	if a.repeated == nil {
		a.repeated = make(map[recentBatch][]uuid.UUID)
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
    WHERE e.n > (SELECT count(*) FROM unnest($3::uuid[]) AS t(digest) WHERE t.digest = e.digest))
WHERE r.session = $1 AND r.batch = $2`

// writeRecent moves what was recognised from the batches it was in before to
// this one, and forgets what is settled.
func (a *application) writeRecent(q *pgx.Batch) {
	var digests uuidArray
	for i := range a.batch.Deliveries {
		if d := &a.batch.Deliveries[i]; onlyDigest(*d) && a.outcomes[i] != workflow.Unknown {
			digests = append(digests, uuidValue(d.Digest))
		}
	}
	if len(digests) == 0 {
		return
	}
	for in, taken := range a.repeated {
		q.Queue(sqlTakeRecent, in.session, in.batch, uuids(taken))
	}
	// There is a row already if the batch was committed before; the ledger knows.
	q.Queue(`INSERT INTO recent_deliveries (session, batch, digests) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, a.batch.Session, a.batch.Number, digests)
	if a.batch.Settled > 0 {
		q.Queue(sqlForgetSettled, a.batch.Session, a.batch.Settled)
	}
}
