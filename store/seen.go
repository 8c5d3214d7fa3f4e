package store

import (
	"bytes"
	"encoding/binary"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"waymark/workflow"
)

// The ids of messages that had their effect are remembered in two ways. Ids of
// version 7 begin with the time at which they were made, so those of a busy
// batch lie close together: they are packed into one row of seen_batches, which
// is found by the span it covers. A message then costs 17 bytes instead of a
// row and an entry in an index. All others, those of small batches and of other
// versions, have a row each in seen_messages.
const (
	// packFrom is how many ids a row of seen_batches holds at least: below, a
	// row each costs no more.
	packFrom = 32
	// packSpan is how much time a row of seen_batches covers at most. It bounds
	// how many rows a lookup must look at.
	packSpan = 10 * time.Second
	// packedSize is the size of an id and the outcome behind it.
	packedSize = 17
)

const (
	sqlFindSeen   = `SELECT id, outcome FROM seen_messages WHERE id = ANY($1)`
	sqlFindPacked = `SELECT b.ids FROM unnest($1::uuid[], $2::uuid[], $3::uuid[]) AS r(early, low, high)
		JOIN seen_batches AS b ON b.low BETWEEN r.early AND r.high AND b.high >= r.low`
	// Two messages of one id for two workflows, at the same time in two batches,
	// meet here, and one batch is folded anew and knows the id: see retryAtOnce.
	// In packed rows they do not meet, and both have their effect. Such ids are
	// their publisher's fault, and nothing is lost by it.
	sqlRemember = `INSERT INTO seen_messages (id, seen_at, outcome) SELECT id, $3, outcome FROM unnest($1::uuid[], $2::smallint[]) AS m(id, outcome)`
	sqlPack     = `INSERT INTO seen_batches (low, high, seen_at, ids) VALUES ($1, $2, $3, $4)`
)

// seenID is a message id and what became of the message.
type seenID struct {
	id      uuid.UUID
	outcome workflow.Outcome
}

// timed returns when a version 7 id was made.
func timed(id uuid.UUID) (made time.Time, ok bool) {
	if id.Version() != 7 {
		return time.Time{}, false
	}
	return time.UnixMilli(int64(binary.BigEndian.Uint64(id[:8]) >> 16)), true
}

// earliestAt is not above any version 7 id made at that time or later.
func earliestAt(t time.Time) (id uuid.UUID) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(max(t.UnixMilli(), 0))<<16)
	copy(id[:6], b[:6])
	return id
}

// clusters splits ids of version 7 into runs that span no more than packSpan,
// each sorted. The others are returned apart.
func clusters(ids []seenID) (runs [][]seenID, others []seenID) {
	timely := make([]seenID, 0, len(ids))
	for _, s := range ids {
		if _, ok := timed(s.id); ok {
			timely = append(timely, s)
		} else {
			others = append(others, s)
		}
	}
	slices.SortFunc(timely, func(a, b seenID) int { return compareIDs(a.id, b.id) })
	for len(timely) > 0 {
		first, _ := timed(timely[0].id)
		end := 1
		for end < len(timely) {
			if made, _ := timed(timely[end].id); made.Sub(first) > packSpan {
				break
			}
			end++
		}
		runs = append(runs, timely[:end])
		timely = timely[end:]
	}
	return runs, others
}

// findSeen queues the statements that tell which of keys are known, and calls
// found for those that are. It may call it for others, too: rows of
// seen_batches come whole.
func findSeen(q *pgx.Batch, keys []uuid.UUID, found func(seenID)) {
	q.Queue(sqlFindSeen, uuids(keys)).Query(func(rows pgx.Rows) error {
		var id pgtype.UUID
		var outcome int16
		_, err := pgx.ForEachRow(rows, []any{&id, &outcome}, func() error {
			found(seenID{id.Bytes, workflow.Outcome(outcome)})
			return nil
		})
		return err
	})
	asked := make([]seenID, len(keys))
	for i, k := range keys {
		asked[i].id = k
	}
	runs, _ := clusters(asked)
	if len(runs) == 0 {
		return
	}
	var early, low, high uuidArray
	for _, run := range runs {
		made, _ := timed(run[0].id)
		early = append(early, uuidValue(earliestAt(made.Add(-packSpan))))
		low, high = append(low, uuidValue(run[0].id)), append(high, uuidValue(run[len(run)-1].id))
	}
	q.Queue(sqlFindPacked, early, low, high).Query(func(rows pgx.Rows) error {
		var packed []byte
		_, err := pgx.ForEachRow(rows, []any{&packed}, func() error {
			for _, key := range keys {
				if outcome, ok := unpack(packed, key); ok {
					found(seenID{key, outcome})
				}
			}
			return nil
		})
		return err
	})
}

// remember queues the statements that make ids known.
func remember(q *pgx.Batch, ids []seenID, now time.Time) {
	runs, others := clusters(ids)
	for _, run := range runs {
		if len(run) < packFrom {
			others = append(others, run...)
			continue
		}
		q.Queue(sqlPack, uuidValue(run[0].id), uuidValue(run[len(run)-1].id), now, pack(run))
	}
	if len(others) == 0 {
		return
	}
	keys, said := make(uuidArray, len(others)), make([]int16, len(others))
	for i, s := range others {
		keys[i], said[i] = uuidValue(s.id), int16(s.outcome)
	}
	q.Queue(sqlRemember, keys, said, now)
}

// pack writes sorted ids, each with its outcome behind it.
func pack(run []seenID) []byte {
	packed := make([]byte, 0, len(run)*packedSize)
	for _, s := range run {
		packed = append(append(packed, s.id[:]...), byte(s.outcome))
	}
	return packed
}

// unpack looks for an id in what pack wrote.
func unpack(packed []byte, id uuid.UUID) (workflow.Outcome, bool) {
	low, high := 0, len(packed)/packedSize
	for low < high {
		middle := (low + high) / 2
		entry := packed[middle*packedSize:][:packedSize]
		switch bytes.Compare(entry[:16], id[:]) {
		case 0:
			return workflow.Outcome(entry[16]), true
		case -1:
			low = middle + 1
		default:
			high = middle
		}
	}
	return 0, false
}
