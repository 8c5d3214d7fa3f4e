package workflow_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"waymark/workflow"
)

// Messages without a time that arrive together have one time. Their history
// must then tell the same story as the run.
func TestMarkSupersededAtOneMoment(t *testing.T) {
	noon := time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	entry := func(s workflow.Status, second int) workflow.HistoryEntry {
		return workflow.HistoryEntry{StatusChange: workflow.StatusChange{Attempt: 1, Status: s, At: noon.Add(time.Duration(second) * time.Second)}}
	}
	for name, test := range map[string]struct {
		history []workflow.HistoryEntry
		want    []string
	}{
		"by rank, not by number": {
			[]workflow.HistoryEntry{entry(workflow.StatusRunning, 0), entry(workflow.StatusFinished, 0), entry(workflow.StatusQueued, 0), entry(workflow.StatusPending, 0)},
			[]string{"queued false", "pending false", "running false", "finished false"},
		},
		"a doubtful success is none": {
			[]workflow.HistoryEntry{entry(workflow.StatusFinished, 1), entry(workflow.StatusStopped, 1), entry(workflow.StatusFailed, 1)},
			[]string{"failed false", "stopped true", "finished true"},
		},
		"deleted is the end": {
			[]workflow.HistoryEntry{entry(workflow.StatusDeleted, 1), entry(workflow.StatusStopped, 1), entry(workflow.StatusFailed, 2)},
			[]string{"stopped false", "deleted false", "failed true"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			workflow.MarkSuperseded(test.history)
			var got []string
			for _, h := range test.history {
				got = append(got, fmt.Sprint(h.Status, " ", h.Superseded))
			}
			if d := cmp.Diff(test.want, got); d != "" {
				t.Errorf("history (-want, +got):\n%s", d)
			}
		})
	}
}

// Of one attempt, the last entry that counted is the status of the run.
func TestHistoryTellsTheStatus(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := workflow.NewState(workflow.Run{})
		for range rapid.IntRange(1, 8).Draw(t, "messages") {
			s.Apply(&workflow.StatusMessage{
				Status:    rapid.SampledFrom(workflow.Statuses()).Draw(t, "status"),
				EventTime: time.Unix(rapid.Int64Range(1, 3).Draw(t, "second"), 0),
			})
		}
		var history []workflow.HistoryEntry
		for _, c := range s.History {
			history = append(history, workflow.HistoryEntry{StatusChange: c})
		}
		workflow.MarkSuperseded(history)
		last := workflow.StatusCreated
		for _, h := range history {
			if !h.Superseded {
				last = h.Status
			}
		}
		if status := s.Run.Status(); last != status {
			t.Errorf("history %+v ends with %v, the run is %v", history, last, status)
		}
	})
}
