package engines

import (
	"context"
	"sync"
	"testing"

	"github.com/google/uuid"

	"waymark/workflow"
)

// kept is a Publisher that keeps all, and fails the first times.
type kept struct {
	mu       sync.Mutex
	failures int
	messages []*workflow.StatusMessage
}

func (k *kept) Status(_ context.Context, m *workflow.StatusMessage) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failures > 0 {
		k.failures--
		return context.DeadlineExceeded
	}
	k.messages = append(k.messages, m)
	return nil
}

func (k *kept) Submission(context.Context, *workflow.Submission) error { return nil }

// Whoever leaves a run says all that is known of it, and not that it ended.
func TestLeave(t *testing.T) {
	p := &kept{failures: 2}
	r := NewReporter(t.Context(), Config{Engine: "test", WorkflowID: uuid.New(), Publisher: p, Interval: -1})
	r.Begin()
	for _, id := range []string{"a", "b"} {
		r.Job(workflow.JobReport{ID: id, Status: workflow.JobRunning})
	}
	report := r.Leave(t.Context())
	if report.Unsent != 0 || report.Confirmed == 0 || report.Terminal != nil {
		t.Errorf("the report is %+v, wanted all confirmed and no terminal message", report)
	}
	told := make(map[string]bool)
	for _, m := range p.messages {
		if m.Status != workflow.StatusRunning {
			t.Errorf("a message says that the run is %v", m.Status)
		}
		for _, j := range m.Jobs {
			told[j.ID] = true
		}
	}
	if len(told) != 2 {
		t.Errorf("the jobs that were told are %v, wanted a and b", told)
	}
	r.Job(workflow.JobReport{ID: "c"}) // does nothing
	if again := r.Leave(t.Context()); again.Published != report.Published {
		t.Errorf("leaving again published %d messages, wanted the %d of before", again.Published, report.Published)
	}
}
