package workflow

import (
	"cmp"
	"encoding/json"
	"slices"
	"time"

	"github.com/google/uuid"
)

// Summary is one workflow as people and programs read it. It is what a list
// shows in a row, and what is told of a run first.
type Summary struct {
	ID uuid.UUID
	// Name and Owner come from the submission; empty until it arrives.
	Name, Owner string
	// RunNumber counts the runs of one owner and name, from 1 in the order in
	// which they were registered; 0 while the run has no name.
	RunNumber int
	Engine    string
	Labels    map[string]string
	Priority  int
	Attempt   int
	Status    Status
	Counts    Counts
	// CreatedAt is when the run was first heard of, by the consumer's clock.
	CreatedAt time.Time
	// SubmittedAt, StartedAt and FinishedAt are event times of this attempt;
	// zero if there was no such event.
	SubmittedAt, StartedAt, FinishedAt time.Time
	// DeletedAt is when the run was deleted, zero if it was not.
	DeletedAt time.Time
	// LastEventAt is the latest event time of any message about the run.
	LastEventAt time.Time
	// UpdatedAt is when its row last changed, by the consumer's clock.
	UpdatedAt time.Time
	// Revision grows by one with every change of the row. A reader that holds
	// a higher one has the newer picture.
	Revision int64
}

// Duration is how long this attempt has run: to its end, or until now. It is
// zero for a run that has not started.
func (s *Summary) Duration(now time.Time) time.Duration {
	if s.StartedAt.IsZero() {
		return 0
	}
	if !s.FinishedAt.IsZero() {
		return s.FinishedAt.Sub(s.StartedAt)
	}
	return max(now.Sub(s.StartedAt), 0)
}

// Details is what is known of a workflow beyond its summary.
type Details struct {
	Summary
	// Parameters and Specification are the submission's JSON, nil if none.
	Parameters, Specification json.RawMessage
	// EngineSpecific is the latest such document of this attempt.
	EngineSpecific json.RawMessage
	MinJobMemory   float64
	RetryCount     int
}

// Filter chooses workflows. Zero fields choose all.
type Filter struct {
	// Statuses to choose from; empty means all but deleted.
	Statuses []Status
	Owner    string
	Engine   string
	// Name chooses by name. A "*" at its end, at its beginning or at both stands
	// for anything.
	Name string
	// Labels must all be there.
	Labels map[string]string
	// Since and Until bound CreatedAt: Since <= CreatedAt < Until.
	Since, Until time.Time
	// QuietSince chooses workflows of which nothing new was heard at or after
	// this time, by the consumer's clock: UpdatedAt < QuietSince.
	QuietSince time.Time
	// Limit is the number of rows of a page. 0 means 50; the most is 1000.
	Limit int
	// Cursor continues after an earlier page; see [Page].
	Cursor string
}

// Page is one page of a list.
type Page[T any] struct {
	Items []T
	// Next is the cursor of the page that follows, empty on the last.
	Next string
	// AsOf is when the database was asked, by the reader's clock: the page has
	// everything that was committed before.
	AsOf time.Time
}

// JobFilter chooses jobs of a workflow. Zero fields choose all.
type JobFilter struct {
	Statuses []JobStatus
	// RunAttempt chooses the jobs that the run last spoke of in this attempt.
	// 0 means all: those of earlier attempts, which it no longer counts, too.
	RunAttempt int
	// IDs chooses these jobs; empty means all.
	IDs []string
	// Limit is the number of rows of a page. 0 means 100; the most is 10000.
	Limit  int
	Cursor string
}

// LogFilter chooses log chunks of a workflow, which come in the order of
// event time, then of arrival.
type LogFilter struct {
	// JobID chooses the log of one job; AllJobs those of the run and of all
	// jobs. With neither it is the log of the run alone.
	JobID   string
	AllJobs bool
	// RunAttempt chooses what was written in this attempt of the run. 0 means all.
	// Marks of what was cut come with every attempt: they are of none.
	RunAttempt int
	// Tail chooses the last chunks, at most this many on a page, and makes pages
	// go from the end of the log to its beginning. 0 means from the beginning.
	Tail int
	// Limit is the number of chunks of a page without Tail. 0 means 1000; the most is 50000.
	Limit  int
	Cursor string
}

// LogEntry is a log chunk as it is stored.
type LogEntry struct {
	LogChunk
	// Cut is not 0 for the mark of a place where so many bytes were left out,
	// as the run had written more than it may store. A mark has no text.
	Cut int64
	// Seq is unique and grows in the order of arrival. A mark has that of the
	// first chunk that was left out.
	Seq int64
}

// HistoryEntry is a status change as it is stored.
type HistoryEntry struct {
	StatusChange
	// RecordedAt is when the database first learned of it, by the consumer's clock.
	RecordedAt time.Time
	// Superseded tells that the claim had no effect on the run: a lower status
	// than one claimed for an earlier time, or a second end.
	Superseded bool
}

// LedgerEntry counts what became of the deliveries of one queue.
// Received = Applied + Duplicate + Stale + Dead holds at every moment.
type LedgerEntry struct {
	Queue                                     string
	Received, Applied, Duplicate, Stale, Dead int64
}

// MarkSuperseded sorts a run's history by attempt, event time and rank, and
// marks the entries that had no effect when told in this order.
func MarkSuperseded(history []HistoryEntry) {
	slices.SortFunc(history, func(a, b HistoryEntry) int {
		return cmp.Or(cmp.Compare(a.Attempt, b.Attempt), a.At.Compare(b.At), cmp.Compare(a.Status.Rank(), b.Status.Rank()), cmp.Compare(endPreference(a.Status), endPreference(b.Status)))
	})
	var at, best int
	deleted := false
	for i := range history {
		h := &history[i]
		if i == 0 || h.Attempt != at {
			at, best = h.Attempt, -1
		}
		h.Superseded = deleted || h.Status.Rank() <= best
		best = max(best, h.Status.Rank())
		deleted = deleted || h.Status == StatusDeleted
	}
}

// endPreference is lower for the end that wins where a run ended twice at one
// moment; see [Run.Status].
func endPreference(s Status) int { return slices.Index(ends[:], s) }
