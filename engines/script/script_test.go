package script

import (
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"waymark/engines"
	"waymark/engines/enginetest"
	"waymark/workflow"
)

func tell(code int, lines ...string) enginetest.Told {
	var events []engines.Event
	for i, l := range lines {
		events = append(events, engines.Event{At: time.Time{}.Add(time.Duration(i) * time.Second), Source: engines.Hook, Line: []byte(l)})
	}
	return enginetest.Tell(NewReducer(enginetest.WorkflowID), events, engines.Exit{Code: code})
}

func TestReducer(t *testing.T) {
	tests := []struct {
		name    string
		lines   []string
		code    int
		status  workflow.Status
		counts  engines.Counts
		attempt int
	}{
		{"a job", []string{`{"total": 2}`, `{"job": "fit", "status": "running"}`, `{"job": "fit", "status": "finished"}`}, 0, workflow.StatusFinished, engines.Counts{Total: 2, Finished: 1}, 1},
		{"a job that is run again", []string{`{"job": "fit", "status": "running"}`, `{"job": "fit", "status": "failed"}`, `{"job": "fit", "status": "running"}`, `{"job": "fit", "status": "finished"}`}, 0, workflow.StatusFinished, engines.Counts{Total: 1, Finished: 1}, 2},
		{"attempts by number", []string{`{"job": "fit", "status": "failed"}`, `{"job": "fit", "status": "running", "attempt": 2}`, `{"job": "fit", "status": "failed", "exit_code": 7}`}, 1, workflow.StatusFailed, engines.Counts{Total: 1, Failed: 1}, 2},
		{"a word of an attempt that is over", []string{`{"job": "fit", "status": "running", "attempt": 3}`, `{"job": "fit", "status": "failed", "attempt": 2}`}, 0, workflow.StatusFinished, engines.Counts{Total: 1, Finished: 1}, 3},
		{"a failure that was made up for", []string{`{"job": "fit", "status": "failed"}`, `{"job": "plan b", "status": "finished"}`}, 0, workflow.StatusFinished, engines.Counts{Total: 2, Finished: 1, Failed: 1}, 1},
		{"said twice", []string{`{"job": "fit", "status": "running", "started_at": "2026-03-04T12:00:00Z"}`, `{"job": "fit", "status": "failed"}`, `{"job": "fit", "status": "running", "started_at": "2026-03-04T12:00:00Z"}`}, 1, workflow.StatusFailed, engines.Counts{Total: 1, Failed: 1}, 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			told := tell(test.code, test.lines...)
			if told.Status != test.status || told.Counts != test.counts || told.Broken != "" {
				t.Errorf("it ends as %v with %+v (%s), want %v with %+v", told.Status, told.Counts, told.Broken, test.status, test.counts)
			}
			if fit, ok := told.Job("fit"); !ok || fit.Attempt != test.attempt {
				t.Errorf("the job is %+v, want attempt %d", fit, test.attempt)
			}
		})
	}
}

func TestReducerTakesNothingElse(t *testing.T) {
	bad := []string{"", "nonsense", "[]", `{"job": 3}`, `{"job": "a", "status": "done"}`, `{"job": "a", "started_at": "yesterday"}`, `{}`, `{"total": -1}`}
	for _, line := range bad {
		r := NewReducer(uuid.New())
		if r.Apply(engines.Event{Source: engines.Hook, Line: []byte(line)}, nil) {
			t.Errorf("%q is taken for a line", line)
		}
	}
	told := tell(1, bad...)
	if told.Specific["unreadable_events"] != float64(len(bad)) || len(told.Jobs) > 0 || !strings.Contains(told.Reason, "1") {
		t.Errorf("of nothing but bad lines it tells %+v", told)
	}
}
