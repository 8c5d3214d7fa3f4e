package workflow

import (
	"bytes"
	"encoding/json"
	"time"
)

// Job is what is known of one job of a run.
type Job struct {
	// ID as the engine gave it, unique within the run.
	ID string
	// RunAttempt is the attempt of the run that last spoke of the job, Attempt
	// the engine's own repetition within it; both count from 1. A message of a
	// higher (RunAttempt, Attempt) replaces all that is known of a lower one.
	RunAttempt, Attempt int
	// Status is the highest reached in this attempt. A job that has ended does
	// not start again; between two ends the earlier event wins.
	Status JobStatus
	// Cached marks a finished job whose result came from a cache.
	Cached bool
	// QueuedAt, StartedAt and FinishedAt are the earliest times at which the
	// job was said to be queued, running and ended; zero if it never was.
	QueuedAt, StartedAt, FinishedAt time.Time

	Name, Path, Command string
	ExitCode            *int
	Result              json.RawMessage
	Diagnostics         string

	changedIn *State // the state whose ChangedJobs lists the job
}

// mention is one statement about a job: it is (or was) in a status at a time.
type mention struct {
	runAttempt, attempt int
	status              JobStatus
	cached              bool
	at                  time.Time
}

// apply joins m into j and reports whether j changed.
func (j *Job) apply(m mention) bool {
	switch {
	case m.runAttempt < j.RunAttempt, m.runAttempt == j.RunAttempt && m.attempt < j.Attempt:
		return false // superseded
	case m.runAttempt > j.RunAttempt || m.attempt > j.Attempt:
		*j = Job{ID: j.ID, RunAttempt: m.runAttempt, Attempt: m.attempt, changedIn: j.changedIn}
		j.claim(m)
		return true
	}
	return j.claim(m)
}

// claim joins a mention of j's own attempt.
func (j *Job) claim(m mention) (changed bool) {
	switch {
	case m.status == JobQueued:
		changed = earliest(&j.QueuedAt, m.at)
	case m.status == JobRunning:
		changed = earliest(&j.StartedAt, m.at)
	case m.status.Terminal():
		if !j.Status.Terminal() || endsBefore(m.status, m.at, j.Status, j.FinishedAt) {
			j.Status, j.FinishedAt = m.status, m.at
			changed = true
		}
	}
	if m.status > j.Status && !j.Status.Terminal() {
		j.Status = m.status
		changed = true
	}
	if m.cached && !j.Cached {
		j.Cached = true
		changed = true
	}
	return j.order() || changed
}

// order keeps the three times in their order, as clocks of several machines
// may not: what comes first is never later than what comes after. Being a
// minimum, this keeps the result independent of the order of messages.
func (j *Job) order() (changed bool) {
	if !j.StartedAt.IsZero() && !j.FinishedAt.IsZero() && j.StartedAt.After(j.FinishedAt) {
		j.StartedAt, changed = j.FinishedAt, true
	}
	if !j.QueuedAt.IsZero() {
		for _, later := range [...]time.Time{j.StartedAt, j.FinishedAt} {
			if !later.IsZero() && j.QueuedAt.After(later) {
				j.QueuedAt, changed = later, true
			}
		}
	}
	return changed
}

// describe joins the details of r, which speak of j's own attempt.
func (j *Job) describe(r *JobReport) (changed bool) {
	changed = greater(&j.Name, r.Name)
	changed = greater(&j.Path, r.Path) || changed
	changed = greater(&j.Command, r.Command) || changed
	changed = greater(&j.Diagnostics, r.Diagnostics) || changed
	if bytes.Compare(r.Result, j.Result) > 0 {
		j.Result, changed = r.Result, true
	}
	if r.ExitCode != nil && (j.ExitCode == nil || *r.ExitCode > *j.ExitCode) {
		code := *r.ExitCode
		j.ExitCode, changed = &code, true
	}
	return changed
}

// cachedNow reports whether j counts as cached: the mark may come before the end.
func (j *Job) cachedNow() bool { return j.Cached && j.Status == JobFinished }

// endsBefore reports whether end a at time at wins over end b at time bt: the
// earlier event wins. Of two at once failed wins over stopped, and stopped over
// finished, so that a job in both sections of one message has failed: a
// doubtful success is none.
func endsBefore(a JobStatus, at time.Time, b JobStatus, bt time.Time) bool {
	if !at.Equal(bt) {
		return at.Before(bt)
	}
	return gravity[a] > gravity[b]
}

var gravity = [NumJobStatuses]int{JobFinished: 1, JobStopped: 2, JobFailed: 3}

// earliest lowers *t to at, if that is earlier or *t is not set.
func earliest(t *time.Time, at time.Time) bool {
	if at.IsZero() || (!t.IsZero() && !at.Before(*t)) {
		return false
	}
	*t = at
	return true
}

// greater raises *s to v, if that is greater. The empty string is the least.
func greater(s *string, v string) bool {
	if v <= *s {
		return false
	}
	*s = v
	return true
}
