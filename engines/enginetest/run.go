package enginetest

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"waymark/engines"
	"waymark/workflow"
)

// Run is a Publisher that makes of the messages of a run what a consumer would:
// for tests of real engines under engines.Supervise.
type Run struct {
	mu         sync.Mutex
	state      *workflow.State
	submission *workflow.Submission
	log        string
	jobLogs    map[string]string
	statuses   []workflow.Status
	changed    chan struct{} // holds a token after a change
}

var _ engines.Publisher = (*Run)(nil)

// NewRun returns a run of which nothing is known.
func NewRun(id uuid.UUID) *Run {
	return &Run{
		state: workflow.NewState(workflow.Run{ID: id, Attempt: 1}), jobLogs: make(map[string]string), changed: make(chan struct{}, 1),
	}
}

// Status applies a message.
func (r *Run) Status(_ context.Context, m *workflow.StatusMessage) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := *m
	r.state.Apply(&c)
	r.log += m.Logs
	for i := range m.Jobs {
		r.jobLogs[m.Jobs[i].ID] += m.Jobs[i].Logs
	}
	r.statuses = append(r.statuses, m.Status)
	select {
	case r.changed <- struct{}{}:
	default:
	}
	return nil
}

// Submission keeps the submission.
func (r *Run) Submission(_ context.Context, s *workflow.Submission) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := *s
	r.submission = &c
	r.state.Submit(&c)
	return nil
}

// View is what is known of a run.
type View struct {
	workflow.Run
	// Jobs by name.
	ByName map[string]workflow.Job
	// JobLogs are the logs of the jobs, by their names.
	JobLogs map[string]string
	// Log is the log of the run.
	Log string
	// Messages counts status messages, and Ends those of them that end the run.
	Messages, Ends int
}

// View returns what is known by now.
func (r *Run) View() View {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := View{Run: r.state.Run, ByName: make(map[string]workflow.Job), JobLogs: make(map[string]string), Log: r.log, Messages: len(r.statuses)}
	v.Run.Submission = r.submission
	for id, j := range r.state.Jobs {
		v.ByName[j.Name] = *j
		v.JobLogs[j.Name] = r.jobLogs[id]
	}
	for _, s := range r.statuses {
		if s.Terminal() {
			v.Ends++
		}
	}
	return v
}

// Until waits until the run is as wanted, and fails the test after three
// minutes.
func (r *Run) Until(t testing.TB, what string, is func(View) bool) View {
	t.Helper()
	v, _ := r.until(t, what, is, nil)
	return v
}

// until is Until, but for a run that is over: it reports whether it was ever as
// wanted.
func (r *Run) until(t testing.TB, what string, is func(View) bool, over <-chan struct{}) (View, bool) {
	t.Helper()
	deadline := time.After(3 * time.Minute)
	for last := false; ; {
		v := r.View()
		if is(v) || last {
			return v, is(v)
		}
		select {
		case <-r.changed:
		case <-over:
			last = true
		case <-deadline:
			t.Fatalf("after three minutes the run is not %s: it is %v with %+v", what, v.Status(), v.Counts())
		}
	}
}
