package workflow

import (
	"bytes"
	"encoding/json"
	"time"

	"github.com/google/uuid"
)

// Run is what is known of one workflow, its jobs apart.
type Run struct {
	ID uuid.UUID
	// Attempt is the highest attempt heard of, from 1. What follows speaks of
	// this attempt only; messages of lower ones still reach jobs, logs and history.
	Attempt int
	// StatusAt holds, by status number, the earliest time at which a message
	// of this attempt claimed the status; zero if none did. A deletion is kept
	// through all attempts. Status, StartedAt and FinishedAt follow from it.
	StatusAt [NumStatuses]time.Time
	// Planned is the largest total any message announced, 0 if none did.
	Planned int
	// Jobs counts the known jobs of this attempt by their status now.
	Jobs JobCounts
	// Claims are the counts of messages that carried counts but no ids, by
	// section. They stand in for Jobs as long as no job is known.
	Claims Claims
	// Engine that runs it, such as "cwl".
	Engine string
	// EngineSpecific is the latest such JSON by event time, and when it was said.
	EngineSpecific   json.RawMessage
	EngineSpecificAt time.Time
	// LastEventAt is the latest event time of any message about this run.
	LastEventAt time.Time
	// Submission that registered the run, nil if none has arrived.
	Submission *Submission
}

// JobCounts counts jobs by status.
type JobCounts struct {
	Created, Queued, Running, Finished, Failed, Stopped int
	// Cached counts those of Finished whose result came from a cache.
	Cached int
}

// Known is the number of jobs counted.
func (c JobCounts) Known() int {
	return c.Created + c.Queued + c.Running + c.Finished + c.Failed + c.Stopped
}

// count adds n to the count of status s.
func (c *JobCounts) count(j *Job, n int) {
	switch j.Status {
	case JobCreated:
		c.Created += n
	case JobQueued:
		c.Queued += n
	case JobRunning:
		c.Running += n
	case JobFinished:
		c.Finished += n
	case JobFailed:
		c.Failed += n
	case JobStopped:
		c.Stopped += n
	}
	if j.cachedNow() {
		c.Cached += n
	}
}

// Claim is a count that a message gave without naming jobs.
type Claim struct {
	Count int       `json:"n"`
	At    time.Time `json:"at"`
}

// Claims holds the latest claim of each section.
type Claims struct {
	Running  Claim `json:"running,omitzero"`
	Finished Claim `json:"finished,omitzero"`
	Failed   Claim `json:"failed,omitzero"`
	Cached   Claim `json:"cached,omitzero"`
}

// join keeps the later of two claims, and of two at once the greater.
func (c *Claim) join(n int, at time.Time) bool {
	if at.Before(c.At) || (at.Equal(c.At) && n <= c.Count) {
		return false
	}
	*c = Claim{Count: n, At: at}
	return true
}

// Status is the run's status: deleted if it ever was deleted, else the
// earliest end of this attempt, else the highest rank a message claimed.
func (r *Run) Status() Status {
	if !r.StatusAt[StatusDeleted].IsZero() {
		return StatusDeleted
	}
	if s, ended := r.end(); ended {
		return s
	}
	for _, s := range [...]Status{StatusRunning, StatusPending, StatusQueued} {
		if !r.StatusAt[s].IsZero() {
			return s
		}
	}
	return StatusCreated
}

// ends lists the ends of a run, first the one that wins of two at one moment: a
// doubtful success is none.
var ends = [...]Status{StatusFailed, StatusStopped, StatusFinished}

// end is how and whether this attempt ended, deletion aside.
func (r *Run) end() (end Status, ended bool) {
	for _, s := range ends {
		at := r.StatusAt[s]
		if !at.IsZero() && (!ended || at.Before(r.StatusAt[end])) {
			end, ended = s, true
		}
	}
	return end, ended
}

// FinishedAt is when this attempt ended, zero if it has not.
func (r *Run) FinishedAt() time.Time {
	if s, ended := r.end(); ended {
		return r.StatusAt[s]
	}
	return time.Time{}
}

// StartedAt is the earliest time this attempt was said to run, never later
// than its end; zero if it never was.
func (r *Run) StartedAt() time.Time {
	started, finished := r.StatusAt[StatusRunning], r.FinishedAt()
	if !started.IsZero() && !finished.IsZero() && finished.Before(started) {
		return finished
	}
	return started
}

// Counts is the progress of a run as people read it. None is negative, and
// Created to Stopped never add up to more than Total.
type Counts struct {
	// Total is the number of jobs of the run: the largest announced, or the
	// known ones if they are more. It may grow while the run goes on.
	Total int `json:"total"`
	// Created jobs are known and have not been queued.
	Created int `json:"created"`
	// Queued jobs wait for a machine.
	Queued int `json:"queued"`
	// Running jobs run now. (REANA's "running" counts all that ever ran.)
	Running int `json:"running"`
	// Finished jobs ended well, cached ones included.
	Finished int `json:"finished"`
	// Failed jobs ended badly.
	Failed int `json:"failed"`
	// Stopped jobs were ended by a person or with their run.
	Stopped int `json:"stopped"`
	// Cached are those of Finished whose result came from a cache.
	Cached int `json:"cached"`
}

// Counts derives the run's progress from its jobs or, while no message of
// this attempt has named one, from the latest counts claimed.
func (r *Run) Counts() Counts { return CountsOf(r.Planned, r.Jobs, r.Claims) }

// CountsOf is [Run.Counts] for a run of which only these are at hand.
func CountsOf(planned int, jobs JobCounts, claims Claims) Counts {
	if jobs.Known() == 0 {
		jobs = JobCounts{Running: claims.Running.Count, Finished: max(claims.Finished.Count, claims.Cached.Count), Failed: claims.Failed.Count, Cached: claims.Cached.Count}
	}
	return Counts{
		Total:   max(planned, jobs.Known()),
		Created: jobs.Created, Queued: jobs.Queued, Running: jobs.Running,
		Finished: jobs.Finished, Failed: jobs.Failed, Stopped: jobs.Stopped, Cached: jobs.Cached,
	}
}

// restart makes r the state of a higher attempt, of which nothing is known yet.
func (r *Run) restart(attempt int) {
	deleted := r.StatusAt[StatusDeleted]
	r.Attempt = attempt
	r.StatusAt = [NumStatuses]time.Time{StatusDeleted: deleted}
	r.Planned, r.Jobs, r.Claims = 0, JobCounts{}, Claims{}
	r.EngineSpecific, r.EngineSpecificAt = nil, time.Time{}
}

// specify keeps the later of two engine-specific documents, and of two at once
// the greater.
func (r *Run) specify(doc json.RawMessage, at time.Time) bool {
	if len(doc) == 0 || at.Before(r.EngineSpecificAt) ||
		(at.Equal(r.EngineSpecificAt) && bytes.Compare(doc, r.EngineSpecific) <= 0) {
		return false
	}
	r.EngineSpecific, r.EngineSpecificAt = doc, at
	return true
}
