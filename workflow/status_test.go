package workflow_test

import (
	"strings"
	"testing"
	"time"

	"waymark/workflow"
)

// transitions is the state diagram of the README as a table: what becomes of
// a run in one status when a message of the same attempt, later by event time,
// claims another. A dot keeps the status.
const transitions = `
from      created running finished failed deleted stopped queued pending
created   .       running finished failed deleted stopped queued pending
running   .       .       finished failed deleted stopped .      .
finished  .       .       .        .      deleted .       .      .
failed    .       .       .        .      deleted .       .      .
deleted   .       .       .        .      .       .       .      .
stopped   .       .       .        .      deleted .       .      .
queued    .       running finished failed deleted stopped .      pending
pending   .       running finished failed deleted stopped .      .
`

func TestTransitions(t *testing.T) {
	lines := strings.Split(strings.TrimSpace(transitions), "\n")
	heads := strings.Fields(lines[0])[1:]
	if len(heads) != workflow.NumStatuses || len(lines) != workflow.NumStatuses+1 {
		t.Fatalf("the table has %d columns and %d rows, want %d of each", len(heads), len(lines)-1, workflow.NumStatuses)
	}
	noon := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	for _, line := range lines[1:] {
		cells := strings.Fields(line)
		from := mustStatus(t, cells[0])
		for i, cell := range cells[1:] {
			to := mustStatus(t, heads[i])
			want := from
			if cell != "." {
				want = mustStatus(t, cell)
			}
			claims := []*workflow.StatusMessage{{Status: from, EventTime: noon}, {Status: to, EventTime: noon.Add(time.Second)}}
			for _, order := range [][]int{{0, 1}, {1, 0}} {
				s := workflow.NewState(workflow.Run{})
				for _, k := range order {
					s.Apply(claims[k])
				}
				if got := s.Run.Status(); got != want {
					t.Errorf("%v then %v, applied in order %v: status %v, want %v", from, to, order, got, want)
				}
			}
			s := workflow.NewState(workflow.Run{})
			s.Apply(claims[0])
			s.Apply(&workflow.StatusMessage{Status: to, Attempt: 2, EventTime: noon.Add(time.Second)})
			want = to
			if from == workflow.StatusDeleted {
				want = from
			}
			if got := s.Run.Status(); got != want || s.Run.Attempt != 2 {
				t.Errorf("%v then %v of attempt 2: status %v of attempt %d, want %v of attempt 2", from, to, got, s.Run.Attempt, want)
			}
		}
	}
}

// The numbers are on the wire and in databases: whoever changes one breaks REANA.
func TestStatusNumbers(t *testing.T) {
	want := map[string]workflow.Status{"created": 0, "running": 1, "finished": 2, "failed": 3, "deleted": 4, "stopped": 5, "queued": 6, "pending": 7}
	for word, number := range want {
		got, err := workflow.ParseStatus(strings.ToUpper(word))
		if err != nil || got != number || got.String() != word {
			t.Errorf("ParseStatus(%q) = %d (%v), %v; want %d", word, got, got, err, number)
		}
	}
	if _, err := workflow.ParseStatus("done"); err == nil || !strings.Contains(err.Error(), "finished") {
		t.Errorf(`ParseStatus("done") = %v; want an error that lists the words`, err)
	}
	if workflow.Status(-1).Valid() || workflow.Status(8).Valid() || workflow.Status(8).Terminal() {
		t.Error("-1 or 8 counts as a status")
	}
	wantJobs := map[string]workflow.JobStatus{"created": 0, "queued": 1, "running": 2, "finished": 3, "failed": 4, "stopped": 5}
	for word, number := range wantJobs {
		if got, err := workflow.ParseJobStatus(word); err != nil || got != number || got.String() != word {
			t.Errorf("ParseJobStatus(%q) = %d, %v; want %d", word, got, err, number)
		}
	}
}

func mustStatus(t *testing.T, word string) workflow.Status {
	t.Helper()
	s, err := workflow.ParseStatus(word)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
