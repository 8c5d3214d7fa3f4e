package workflow

import (
	"fmt"
	"strings"
)

// Status is the status of a run. The numbers are REANA's and travel on the
// wire; they are never renumbered.
type Status int16

const (
	// StatusCreated: the run is known and nothing has happened to it. Set by
	// the platform, or by the store when jobs are heard of before any status.
	// Any other status may follow.
	StatusCreated Status = 0
	// StatusRunning: the engine has started. Set by the engine's first
	// message. Finished, failed, stopped or deleted may follow.
	StatusRunning Status = 1
	// StatusFinished: the engine ended and all that had to run did. Set by the
	// engine's last message. Only deleted, or a higher attempt, may follow.
	StatusFinished Status = 2
	// StatusFailed: the run ended without its result. Set by the engine, by
	// its wrapper, or by a scheduler that gave up. Only deleted, or a higher
	// attempt, may follow.
	StatusFailed Status = 3
	// StatusDeleted: a person removed the run. A sink: nothing follows, not
	// even a higher attempt.
	StatusDeleted Status = 4
	// StatusStopped: a person ended the run. Only deleted, or a higher
	// attempt, may follow.
	StatusStopped Status = 5
	// StatusQueued: the run was submitted and waits for the scheduler. Set by
	// a submission. Anything but created may follow.
	StatusQueued Status = 6
	// StatusPending: the scheduler accepted the run and its engine is being
	// started. Running or an end may follow.
	StatusPending Status = 7
)

// NumStatuses is the number of statuses; the valid ones are 0 to NumStatuses-1.
const NumStatuses = 8

var statusNames = [NumStatuses]string{"created", "running", "finished", "failed", "deleted", "stopped", "queued", "pending"}

// statusRank orders the statuses: within one attempt a run only moves to a
// higher rank. The three ends share one; between them the earlier event wins.
var statusRank = [NumStatuses]int{
	StatusCreated: 0, StatusQueued: 1, StatusPending: 2, StatusRunning: 3,
	StatusFinished: 4, StatusFailed: 4, StatusStopped: 4,
	StatusDeleted: 5,
}

// Statuses lists every status in the order of its number.
func Statuses() []Status {
	all := make([]Status, NumStatuses)
	for i := range all {
		all[i] = Status(i)
	}
	return all
}

// Valid reports whether s is one of the eight statuses.
func (s Status) Valid() bool { return s >= 0 && s < NumStatuses }

// String returns REANA's word for s, such as "running".
func (s Status) String() string {
	if !s.Valid() {
		return fmt.Sprintf("status(%d)", int(s))
	}
	return statusNames[s]
}

// Terminal reports whether the engine has nothing more to say after s:
// finished, failed, stopped or deleted.
func (s Status) Terminal() bool { return s.Valid() && statusRank[s] >= statusRank[StatusFinished] }

// Rank is the height of s: a run moves only from lower to higher ranks within
// one attempt. Created is 0, deleted the highest.
func (s Status) Rank() int { return statusRank[s] }

// ParseStatus returns the status of a word such as "running", whatever its
// case. The error lists the words that would have been accepted.
func ParseStatus(word string) (Status, error) {
	for i, name := range statusNames {
		if strings.EqualFold(name, word) {
			return Status(i), nil
		}
	}
	return 0, fmt.Errorf("unknown status %q: expected one of %s", word, strings.Join(statusNames[:], ", "))
}

// JobStatus is the status of one job of a run.
type JobStatus int16

const (
	// JobCreated: the job is known to be part of the run. Set by a message
	// that names it among the total, or gives its details without a status.
	JobCreated JobStatus = 0
	// JobQueued: the job waits for a machine. Set by job details.
	JobQueued JobStatus = 1
	// JobRunning: the job runs now. Set by progress.running or job details.
	JobRunning JobStatus = 2
	// JobFinished: the job ended well, or its result came from a cache.
	JobFinished JobStatus = 3
	// JobFailed: the job ended badly and this attempt of it will not be repeated.
	JobFailed JobStatus = 4
	// JobStopped: the job was ended by a person or with its run.
	JobStopped JobStatus = 5
)

// NumJobStatuses is the number of job statuses.
const NumJobStatuses = 6

var jobStatusNames = [NumJobStatuses]string{"created", "queued", "running", "finished", "failed", "stopped"}

// JobStatuses lists every job status in the order of its number.
func JobStatuses() []JobStatus {
	all := make([]JobStatus, NumJobStatuses)
	for i := range all {
		all[i] = JobStatus(i)
	}
	return all
}

// Valid reports whether s is one of the six job statuses.
func (s JobStatus) Valid() bool { return s >= 0 && s < NumJobStatuses }

// String returns the word for s, such as "running".
func (s JobStatus) String() string {
	if !s.Valid() {
		return fmt.Sprintf("job-status(%d)", int(s))
	}
	return jobStatusNames[s]
}

// Terminal reports whether a job in s has ended.
func (s JobStatus) Terminal() bool { return s >= JobFinished && s.Valid() }

// ParseJobStatus returns the job status of a word such as "failed", whatever
// its case.
func ParseJobStatus(word string) (JobStatus, error) {
	for i, name := range jobStatusNames {
		if strings.EqualFold(name, word) {
			return JobStatus(i), nil
		}
	}
	return 0, fmt.Errorf("unknown job status %q: expected one of %s", word, strings.Join(jobStatusNames[:], ", "))
}
