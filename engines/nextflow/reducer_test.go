package nextflow

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"waymark/engines"
	"waymark/engines/enginetest"
	"waymark/workflow"
)

const recordings = "../../testdata/engines/nextflow"

func TestContract(t *testing.T) {
	enginetest.Contract(t, enginetest.Config{New: NewReducer, Recordings: enginetest.Recordings(t, recordings)})
}

// expected is expected.json of a recording. Jobs have their stable names.
type expected struct {
	Status, Total            int
	Finished, Failed, Cached []string
}

func idsOf(told enginetest.Told, is func(enginetest.Job) bool) []string {
	all := []string{}
	for _, j := range told.Jobs {
		if is(j) {
			all = append(all, j.ID)
		}
	}
	slices.Sort(all)
	return all
}

func TestRecordings(t *testing.T) {
	for _, folder := range enginetest.Recordings(t, recordings) {
		t.Run(filepath.Base(folder), func(t *testing.T) {
			r, want := enginetest.Read(t, folder), enginetest.Expected[expected](t, folder)
			told := enginetest.Tell(newReducer(enginetest.WorkflowID), r.Events, r.Exit)
			if int(told.Status) != want.Status || told.Counts.Total != want.Total {
				t.Errorf("the run ended as %v (%s) with %d jobs, wanted status %d with %d", told.Status, told.Reason, told.Counts.Total, want.Status, want.Total)
			}
			for _, some := range []struct {
				what  string
				names []string
				is    func(enginetest.Job) bool
			}{
				{"finished", want.Finished, func(j enginetest.Job) bool { return j.Status == workflow.JobFinished }},
				{"failed", want.Failed, func(j enginetest.Job) bool { return j.Status == workflow.JobFailed }},
				{"cached", want.Cached, func(j enginetest.Job) bool { return j.Cached }},
			} {
				if diff := cmp.Diff(enginetest.IDs(Engine, some.names), idsOf(told, some.is)); diff != "" {
					t.Errorf("the %s jobs (-want +got):\n%s", some.what, diff)
				}
			}
		})
	}
}

func TestDetails(t *testing.T) {
	r := enginetest.Read(t, filepath.Join(recordings, "ignored"))
	told := enginetest.Tell(newReducer(enginetest.WorkflowID), r.Events, r.Exit)
	got, _ := told.Job("MAP (s1)")
	want := enginetest.Job{
		ID: engines.JobID(enginetest.WorkflowID, Engine, "NFCORE_HLA:HLA:MAP (s1)"), Name: "MAP (s1)", Path: "NFCORE_HLA/HLA",
		Command: "run NFCORE_HLA:HLA:MAP", Status: workflow.JobFinished, Attempt: 2, Timed: true,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the job that was repeated (-want +got):\n%s", diff)
	}
	for key, want := range map[string]any{"version": "19.03.0-edge", "run_name": "sad_curie", "session": "7f344978-999c-480d-8439-741bc7520f6a", "ignored_tasks": 1.0, "mode": "weblog"} {
		if diff := cmp.Diff(want, told.Specific[key]); diff != "" {
			t.Errorf("engine_specific.%s (-want +got):\n%s", key, diff)
		}
	}
	r = enginetest.Read(t, filepath.Join(recordings, "error"))
	told = enginetest.Tell(newReducer(enginetest.WorkflowID), r.Events, r.Exit)
	if told.Reason != "Process `FIT` terminated with an error exit status (7)" {
		t.Errorf("the reason is %q, wanted what Nextflow says", told.Reason)
	}
	if fit, _ := told.Job("FIT"); fit.ExitCode != 7 || fit.Diagnostics != "exit code 7" {
		t.Errorf("the failed job is %+v, wanted exit code 7", fit)
	}
}

func posts(lines ...string) (events []engines.Event) {
	for _, l := range lines {
		if !strings.Contains(l, "runId") {
			l = `{"runId": "s", "runName": "n", ` + l[1:]
		}
		events = append(events, engines.Event{Source: Weblog, Line: []byte(l)})
	}
	return events
}

func rows(lines ...string) (events []engines.Event) {
	for _, l := range lines {
		events = append(events, engines.Event{Source: Trace, Line: []byte(strings.ReplaceAll(l, " ", "\t"))})
	}
	return events
}

func posted(event string, id int, name, status string, more string) string {
	return fmt.Sprintf(`{"event": %q, "trace": {"task_id": %d, "name": %q, "status": %q%s}}`, event, id, name, status, more)
}

func TestEnds(t *testing.T) {
	const header = "task_id status name exit"
	for _, tc := range []struct {
		name   string
		events []engines.Event
		exit   engines.Exit
		status workflow.Status
		counts engines.Counts
	}{
		{"nothing was posted", nil, engines.Exit{}, workflow.StatusFinished, engines.Counts{}},
		{"Nextflow ends well and says it did not", posts(`{"event": "completed", "metadata": {"workflow": {"success": false, "errorMessage": "no"}}}`), engines.Exit{},
			workflow.StatusFailed, engines.Counts{}},
		{"a failure that is ignored, and no end", posts(posted("process_completed", 1, "a", "FAILED", `, "error_action": "IGNORE"`)), engines.Exit{},
			workflow.StatusFinished, engines.Counts{Total: 1, Failed: 1}},
		{"a failure, and no end", posts(posted("process_completed", 1, "a", "FAILED", "")), engines.Exit{}, workflow.StatusFailed, engines.Counts{Total: 1, Failed: 1}},
		{"Nextflow within a task", posts(posted("process_started", 1, "a", "RUNNING", ""), `{"runId": "other", "event": "process_submitted", "trace": {"task_id": 1, "name": "b"}}`, posted("process_completed", 1, "a", "COMPLETED", "")),
			engines.Exit{}, workflow.StatusFinished, engines.Counts{Total: 1, Finished: 1}},
		{"a row says that a task failed that is repeated", slices.Concat(rows(header),
			posts(posted("process_started", 1, "a", "RUNNING", "")), rows("1 FAILED a 1"), posts(posted("process_completed", 1, "a", "FAILED", `, "error_action": "RETRY"`),
				posted("process_completed", 2, "a", "COMPLETED", `, "attempt": 2`)), rows("2 COMPLETED a 0")), engines.Exit{},
			workflow.StatusFinished, engines.Counts{Total: 1, Finished: 1}},
		{"only a row says that a task failed", slices.Concat(rows(header), posts(posted("process_started", 1, "a", "RUNNING", "")), rows("1 FAILED a 1")), engines.Exit{Code: 1},
			workflow.StatusFailed, engines.Counts{Total: 1, Failed: 1}},
		{"two tasks of one name", posts(posted("process_started", 1, "a", "RUNNING", ""), posted("process_started", 2, "a", "RUNNING", ""),
			posted("process_completed", 2, "a", "FAILED", `, "error_action": "RETRY"`), posted("process_submitted", 3, "a", "SUBMITTED", `, "attempt": 2`),
			posted("process_completed", 1, "a", "COMPLETED", ""), posted("process_completed", 3, "a", "COMPLETED", `, "attempt": 2`)), engines.Exit{},
			workflow.StatusFinished, engines.Counts{Total: 2, Finished: 2}},
		{"fields of other types", posts(`{"event": "process_completed", "trace": {"task_id": [], "name": {}}}`, `{"event": "process_completed", "trace": {"task_id": 1, "name": null, "exit": "x", "attempt": {}, "status": "COMPLETED", "tag": 7}}`,
			`{"event": "completed", "metadata": {"workflow": {"stats": [], "nextflow": 3, "manifest": "x", "success": true}}}`), engines.Exit{},
			workflow.StatusFinished, engines.Counts{Total: 1, Finished: 1}},
		{"a recording without an exit code", posts(posted("process_completed", 1, "a", "COMPLETED", ""), `{"event": "completed", "metadata": {"workflow": {"success": true}}}`),
			engines.Exit{Code: 1, Unknown: true}, workflow.StatusFinished, engines.Counts{Total: 1, Finished: 1}},
		{"killed", posts(posted("process_started", 1, "a", "RUNNING", "")), engines.Exit{Code: 137}, workflow.StatusFailed, engines.Counts{Total: 1, Failed: 1}},
		{"stopped", posts(posted("process_started", 1, "a", "RUNNING", "")), engines.Exit{Code: 143, Stop: &engines.StopError{Signal: 15}}, workflow.StatusStopped, engines.Counts{Total: 1, Stopped: 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			told := enginetest.Tell(newReducer(enginetest.WorkflowID), tc.events, tc.exit)
			if told.Broken != "" {
				t.Fatalf("the reducer panicked: %s", told.Broken)
			}
			if told.Status != tc.status {
				t.Errorf("the run ended as %v (%s), wanted %v", told.Status, told.Reason, tc.status)
			}
			if diff := cmp.Diff(tc.counts, told.Counts); diff != "" {
				t.Errorf("counts (-want +got):\n%s", diff)
			}
		})
	}
}

// Whoever posts cannot fill the memory with tasks.
func TestTasksAreBounded(t *testing.T) {
	r := newReducer(enginetest.WorkflowID)
	var events []engines.Event
	for i := range maxTasks + 10 {
		events = append(events, posts(posted("process_submitted", i+1, "a", "SUBMITTED", ""))...)
	}
	n := engines.NewNarrator(r, nobody{})
	for _, e := range events {
		n.Apply(e)
	}
	if got := n.Counts().Total; got != maxTasks || len(r.tasks) != maxTasks {
		t.Errorf("of %d tasks %d are told, and %d kept; wanted %d", len(events), got, len(r.tasks), maxTasks)
	}
}

// nobody hears what is told.
type nobody struct{}

func (nobody) Total(int)                             {}
func (nobody) Job(workflow.JobReport)                {}
func (nobody) Log(string)                            {}
func (nobody) EngineSpecific(func() json.RawMessage) {}

func FuzzPosts(f *testing.F) {
	f.Add([]byte(`{"runId": "s", "event": "process_started", "trace": {"task_id": 1, "name": "a (b)", "attempt": 2, "start": 1750000001500}}
{"runId": "s", "event": "process_completed", "trace": {"task_id": "1", "status": "FAILED", "error_action": "RETRY", "exit": 137}}
{"runId": "s", "event": "completed", "metadata": {"workflow": {"success": true, "stats": {"cachedCount": 2}}}}`), "task_id\tstatus\tcomplete\n1\tCACHED\t2025-06-15 15:06:41.000")
	f.Fuzz(func(t *testing.T, body []byte, table string) {
		var events []engines.Event
		for _, l := range strings.Split(string(body), "\n") {
			events = append(events, engines.Event{Source: Weblog, Line: []byte(l)})
		}
		for _, l := range strings.Split(table, "\n") {
			events = append(events, engines.Event{Source: Trace, Line: []byte(l)})
		}
		told := enginetest.Tell(newReducer(enginetest.WorkflowID), events, engines.Exit{Code: 1})
		if told.Broken != "" || told.Status != workflow.StatusFailed {
			t.Errorf("the reducer panicked with %q, the run ended as %v", told.Broken, told.Status)
		}
	})
}
