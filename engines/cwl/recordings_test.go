package cwl

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"waymark/engines"
	"waymark/engines/enginetest"
	"waymark/workflow"
)

const recordings = "../../testdata/engines/cwl"

func TestContract(t *testing.T) {
	t.Parallel() // with the live tests, which wait a lot
	enginetest.Contract(t, enginetest.Config{
		New:        func(id uuid.UUID) engines.Reducer { return newReducer(id) },
		Recordings: enginetest.Recordings(t, recordings),
	})
}

// expected is what a recording tells, written down beside it.
type expected struct {
	Status   workflow.Status `json:"status"`
	Total    int             `json:"total"`
	Finished []string        `json:"finished"`
	Failed   []string        `json:"failed"`
	Running  []string        `json:"still_running"`
	Skipped  []string        `json:"skipped_steps"`
	Cached   int             `json:"cached"`
	Reason   string          `json:"reason"`
	Jobs     map[string]struct {
		Name     string `json:"name"`
		Command  string `json:"command"`
		Path     string `json:"path"`
		Logs     string `json:"logs"` // a part of them
		Attempts int    `json:"attempts"`
		Exit     *int   `json:"exit"`
	} `json:"jobs"`
}

// TestRecordings compares what each recording tells with what was written down
// of it by people who looked at the run.
func TestRecordings(t *testing.T) {
	for _, folder := range enginetest.Recordings(t, recordings) {
		t.Run(filepath.Base(filepath.Dir(folder))+"/"+filepath.Base(folder), func(t *testing.T) {
			want := enginetest.Expected[expected](t, folder)
			r := enginetest.Read(t, folder)
			told := enginetest.Tell(newReducer(enginetest.WorkflowID), r.Events, r.Exit)
			toil := filepath.Base(filepath.Dir(folder)) == "toil"

			if told.Status != want.Status {
				t.Errorf("the run is %v, want %v (%s)", told.Status, want.Status, told.Reason)
			}
			if told.Counts.Total != want.Total || told.Counts.Cached != want.Cached {
				t.Errorf("%d jobs of which %d are cached, want %d and %d", told.Counts.Total, told.Counts.Cached, want.Total, want.Cached)
			}
			if want.Reason != "" && told.Reason != want.Reason {
				t.Errorf("the reason is %q, want %q", told.Reason, want.Reason)
			}
			id := func(j enginetest.Job) string { return j.Name }
			if toil {
				stores := make(map[string]string)
				for store := range want.Jobs {
					stores[engines.JobID(enginetest.WorkflowID, "toil", store)] = store
				}
				id = func(j enginetest.Job) string { return stores[j.ID] }
			}
			in := func(status workflow.JobStatus) []string {
				names := []string{}
				for _, j := range told.Jobs {
					if j.Status == status {
						names = append(names, id(j))
					}
				}
				slices.Sort(names)
				return names
			}
			slices.Sort(want.Finished)
			if diff := cmp.Diff(want.Finished, in(workflow.JobFinished)); diff != "" {
				t.Errorf("the jobs that finished (-want +told):\n%s", diff)
			}
			slices.Sort(want.Failed)
			if diff := cmp.Diff(want.Failed, in(workflow.JobFailed)); diff != "" {
				t.Errorf("the jobs that failed (-want +told):\n%s", diff)
			}
			skipped := []string{}
			for _, s := range want.Skipped {
				skipped = append(skipped, strings.TrimPrefix(s, "step "))
			}
			got := []string{}
			if s, ok := told.Specific["skipped"].([]any); ok {
				for _, name := range s {
					got = append(got, name.(string))
				}
			}
			if diff := cmp.Diff(skipped, got); diff != "" && !toil {
				t.Errorf("the steps that were skipped (-want +told):\n%s", diff)
			}
			for name, w := range want.Jobs {
				i := slices.IndexFunc(told.Jobs, func(j enginetest.Job) bool { return id(j) == name })
				if i < 0 {
					t.Errorf("nothing is told of job %s", name)
					continue
				}
				j := told.Jobs[i]
				if w.Command != "" && j.Command != w.Command {
					t.Errorf("job %s runs %q, want %q", name, j.Command, w.Command)
				}
				if w.Path != "" && j.Path != w.Path {
					t.Errorf("job %s stands at %q, want %q", name, j.Path, w.Path)
				}
				if !strings.Contains(j.Logs, w.Logs) || strings.Contains(j.Logs, "[job "+name+"] completed") && name != "noisy" {
					t.Errorf("the log of job %s is %q, want %q in it", name, j.Logs, w.Logs)
				}
				if w.Attempts > 0 && j.Attempt != w.Attempts {
					t.Errorf("job %s had %d attempts, want %d", name, j.Attempt, w.Attempts)
				}
				if w.Exit != nil && j.ExitCode != *w.Exit {
					t.Errorf("job %s ended with %d, want %d", name, j.ExitCode, *w.Exit)
				}
			}
		})
	}
}
