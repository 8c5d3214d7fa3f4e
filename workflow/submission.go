package workflow

import (
	"encoding/json"
	"time"

	"github.com/google/uuid"
)

// Submission is one workflow-submission message: a platform asks for a run.
// It registers the workflow as queued. Only User and Workflow are required.
type Submission struct {
	// User owns the run; in REANA a UUID.
	User string
	// Workflow is the run's UUID or, in some platforms, its name
	// (wire: workflow_id_or_name). See ID.
	Workflow string
	// Parameters as the user gave them: a JSON object.
	Parameters json.RawMessage
	// Priority in the submission queue, 0 to 100; higher goes first.
	Priority int
	// MinJobMemory is the least memory, in bytes, that a job needs to start.
	// 0 means unknown.
	MinJobMemory float64
	// RetryCount says how often a scheduler has put the submission back.
	RetryCount int
	// Name of the workflow as people call it. Empty means Workflow, if that
	// is not a UUID.
	Name string
	// Engine that will run it, such as "serial".
	Engine string
	// Specification of the workflow: any JSON.
	Specification json.RawMessage
	// Labels are free keys and values to find runs by.
	Labels map[string]string
	// Attempt counts explicit restarts, from 1. 0 means 1.
	Attempt int
	// EventTime is when the run was submitted. The consumer puts the time of
	// arrival where a submission carries none.
	EventTime time.Time
}

// submissionSpace is the namespace of the ids of runs that were submitted by name.
var submissionSpace = uuid.NewSHA1(uuid.NameSpaceURL, []byte("waymark:workflow-submission"))

// ID is the id of the run. A submission that names the run by UUID has that
// one. REANA's field may hold a name as well; then the id is derived from user
// and name, so that the same submission always means the same run.
func (s *Submission) ID() uuid.UUID {
	if id, err := uuid.Parse(s.Workflow); err == nil {
		return id
	}
	return uuid.NewSHA1(submissionSpace, []byte(s.User+"/"+s.Workflow))
}

// DisplayName is the name people know the run by: Name, else Workflow if that
// is a name and not a UUID, else empty.
func (s *Submission) DisplayName() string {
	if s.Name != "" {
		return s.Name
	}
	if _, err := uuid.Parse(s.Workflow); err != nil {
		return s.Workflow
	}
	return ""
}

func (s *Submission) attempt() int { return max(s.Attempt, 1) }

// supersedes reports whether s is the one to keep of two submissions of one
// run: that of the higher attempt, then of the higher retry count (REANA's
// scheduler puts a submission back with the count raised), then the later.
// Of two that agree in all of these the greater text is kept, so that the
// order of arrival does not matter.
func (s *Submission) supersedes(o *Submission) bool {
	if o == nil {
		return true
	}
	if a, b := s.attempt(), o.attempt(); a != b {
		return a > b
	}
	if s.RetryCount != o.RetryCount {
		return s.RetryCount > o.RetryCount
	}
	if !s.EventTime.Equal(o.EventTime) {
		return s.EventTime.After(o.EventTime)
	}
	return s.text() > o.text()
}

// text is s in a form in which equal submissions are equal.
func (s *Submission) text() string {
	c := *s
	c.Attempt, c.EventTime = s.attempt(), s.EventTime.UTC()
	if len(c.Labels) == 0 {
		c.Labels = nil
	}
	b, _ := json.Marshal(c) // cannot fail but for invalid raw JSON, which the codec refuses
	return string(b)
}
