package yadage

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"waymark/engines"
	"waymark/engines/enginetest"
	"waymark/workflow"
)

const recordings = "../../testdata/engines/yadage"

func TestContract(t *testing.T) {
	enginetest.Contract(t, enginetest.Config{New: NewReducer, Recordings: enginetest.Recordings(t, recordings)})
}

// expected is expected.json of a recording. Jobs have their stable names.
type expected struct {
	Status, Total             int
	Finished, Failed, Pending []string
	// CountsOverTime are [total, running, finished, failed].
	CountsOverTime [][4]int `json:"counts_over_time"`
}

func idsIn(told enginetest.Told, status workflow.JobStatus) []string {
	all := []string{}
	for _, j := range told.Jobs {
		if j.Status == status {
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
			if int(told.Status) != want.Status {
				t.Errorf("the run ended as %v (%s), wanted status %d", told.Status, told.Reason, want.Status)
			}
			if told.Counts.Total != want.Total {
				t.Errorf("the total is %d, wanted %d", told.Counts.Total, want.Total)
			}
			for _, state := range []struct {
				status workflow.JobStatus
				names  []string
			}{{workflow.JobFinished, want.Finished}, {workflow.JobFailed, want.Failed}, {workflow.JobCreated, want.Pending}} {
				if diff := cmp.Diff(enginetest.IDs(Engine, state.names), idsIn(told, state.status)); diff != "" {
					t.Errorf("the %v jobs (-want +got):\n%s", state.status, diff)
				}
			}
			// The recording's counts, from which its own last step of a killed
			// engine, where running jobs become failed, is missing.
			var steps [][4]int
			for _, s := range told.Steps {
				steps = append(steps, [4]int{s.Total, s.Running, s.Finished, s.Failed})
			}
			if n := len(want.CountsOverTime); n > 0 {
				if len(steps) < n {
					t.Fatalf("the counts are %v, wanted %v", steps, want.CountsOverTime)
				}
				if diff := cmp.Diff(want.CountsOverTime, steps[:n]); diff != "" {
					t.Errorf("the counts over time (-want +got):\n%s", diff)
				}
			}
		})
	}
}

// Without the tracker what Yadage logs tells the same jobs.
func TestTextOfRecordings(t *testing.T) {
	r := enginetest.Read(t, filepath.Join(recordings, "dynamic-ok"))
	events := slices.DeleteFunc(r.Events, func(e engines.Event) bool { return e.Source == engines.Hook })
	told := enginetest.Tell(newReducer(enginetest.WorkflowID), events, r.Exit)
	want := enginetest.Expected[expected](t, filepath.Join(recordings, "dynamic-ok"))
	if diff := cmp.Diff(enginetest.IDs(Engine, want.Finished), idsIn(told, workflow.JobFinished)); diff != "" {
		t.Errorf("the finished jobs (-want +got):\n%s", diff)
	}
	if told.Status != workflow.StatusFinished || told.Counts.Total != 5 || told.Specific["mode"] != "text" {
		t.Errorf("the run ended as %v with %+v in mode %v, wanted finished with 5 jobs in mode text", told.Status, told.Counts, told.Specific["mode"])
	}
}

// What a person reads of a job, and of the graph.
func TestDetails(t *testing.T) {
	r := enginetest.Read(t, filepath.Join(recordings, "analysis-ok"))
	told := enginetest.Tell(newReducer(enginetest.WorkflowID), r.Events, r.Exit)
	var got []string
	for _, j := range told.Jobs {
		got = append(got, fmt.Sprintf("%s | %s | %s | %d | timed %v", j.Name, j.Path, j.Command, j.ExitCode, j.Timed))
	}
	slices.Sort(got)
	work := "/srv/wf/yad/work"
	want := []string{
		"generate_0 | generate | echo generating ttbar; sleep 1; seq 1 20 > " + work + "/generate_0/events.txt | 0 | timed true",
		"merge |  | cat ",
		"skim | select/0 | cp " + work + "/generate_0/events.txt " + work + "/select_0/skim/skim.txt | 0 | timed true",
	}
	for _, w := range want {
		if !slices.ContainsFunc(got, func(g string) bool { return strings.HasPrefix(g, w) }) {
			t.Errorf("no job is told as %q; the jobs:\n%s", w, strings.Join(got, "\n"))
		}
	}
	dag, _ := told.Specific["dag"].(map[string]any)
	nodes, _ := dag["nodes"].([]any)
	edges, _ := dag["edges"].([]any)
	if len(nodes) != 14 || len(edges) == 0 {
		t.Errorf("the graph has %d nodes and %d edges, wanted 14 nodes (10 jobs, 4 that run nothing) and some edges", len(nodes), len(edges))
	}
	jobs := 0
	for _, n := range nodes {
		if n := n.(map[string]any); n["jobid"] != nil {
			jobs++
		} else if n["norun"] != true {
			t.Errorf("node %v has no job, and norun is not said", n)
		}
	}
	if jobs != 10 {
		t.Errorf("%d nodes of the graph have jobs, wanted 10", jobs)
	}
}

func hook(lines ...string) (events []engines.Event) {
	for _, l := range lines {
		events = append(events, engines.Event{Source: engines.Hook, Line: []byte(l)})
	}
	return events
}

func stderr(lines ...string) (events []engines.Event) {
	for _, l := range lines {
		events = append(events, engines.Event{Source: engines.Stderr, Line: []byte(l)})
	}
	return events
}

func TestEnds(t *testing.T) {
	const (
		hello   = `{"waymark": 1, "engine": "yadage", "version": "0.21.0", "pid": 7}`
		begin   = `{"event": "initialize", "pid": 7, "time": 1.5, "rules": 3, "applied": 0, "open_stages": ["a", "b", "init"], "nodes": [], "edges": []}`
		defined = `{"event": "track", "pid": 7, "rules": 0, "applied": 3, "nodes": [{"id": "1", "name": "init", "state": "DEFINED", "stage": "init", "offset": "", "index": 0, "purepub": true},
			{"id": "2", "name": "a", "state": "DEFINED", "stage": "a", "offset": "", "index": 0}, {"id": "3", "name": "b", "state": "DEFINED", "stage": "b", "offset": "/x/0", "index": 1}], "edges": [["1", "2"], ["2", "3"]]}`
		failed = `{"event": "track", "pid": 7, "rules": 0, "applied": 3, "nodes": [{"id": "2", "state": "FAILED", "submitted": 10.5, "ready": 11.25,
			"log": "2026-11-21 | pack.a.step |  ERROR | subprocess failed. code: 7,  command false\n"}]}`
		last = `{"event": "finalize", "pid": 7, "rules": 0, "applied": 3, "nodes": [], "edges": []}`
	)
	for _, tc := range []struct {
		name   string
		events []engines.Event
		exit   engines.Exit
		status workflow.Status
		reason string
		counts engines.Counts
	}{
		{"stages that never apply", hook(hello, begin, `{"event": "finalize", "pid": 7, "rules": 3, "applied": 0, "open_stages": ["a", "b", "c"]}`), engines.Exit{},
			workflow.StatusFailed, "Yadage ended well, but 3 of 3 stages were never applied: a, b, c", engines.Counts{}},
		{"no stages at all", hook(hello, `{"event": "initialize", "pid": 7}`, `{"event": "finalize", "pid": 7}`), engines.Exit{},
			workflow.StatusFinished, "", engines.Counts{}},
		{"a job fails", hook(hello, begin, defined, failed, last), engines.Exit{Code: 1, Reason: "exit code 1"},
			workflow.StatusFailed, "1 of 2 jobs failed: a", engines.Counts{Total: 2, Failed: 1}},
		{"jobs that never ran", hook(hello, begin, defined, last), engines.Exit{},
			workflow.StatusFailed, "Yadage ended well, but 2 of 2 jobs never ran: a, b", engines.Counts{Total: 2}},
		{"the graph is wrong", hook(hello, begin), engines.Exit{Code: 1, Reason: "exit code 1", Stderr: "noise\n\x1b[31mError: Workflow failed: 'workdir'\x1b[0m\n"},
			workflow.StatusFailed, "Workflow failed: 'workdir'", engines.Counts{}},
		{"a recording without an exit code", hook(begin, last), engines.Exit{Code: 1, Unknown: true}, workflow.StatusFinished, "", engines.Counts{}},
		{"the tracker gave up", hook(hello, begin), engines.Exit{}, workflow.StatusFinished, "", engines.Counts{}},
		{"stopped", hook(hello, begin, defined), engines.Exit{Code: 143, Stop: &engines.StopError{Signal: 15}},
			workflow.StatusStopped, "stopped by SIGTERM", engines.Counts{Total: 2}},
		{"a run within the run", hook(hello, begin, `{"waymark": 1, "pid": 8}`, strings.ReplaceAll(defined, `"pid": 7`, `"pid": 8`), `{"event": "finalize", "pid": 7}`), engines.Exit{},
			workflow.StatusFinished, "", engines.Counts{}},
		{"two nodes of one name", hook(hello, strings.ReplaceAll(strings.ReplaceAll(defined, `"b"`, `"a"`), `"offset": "/x/0", "index": 1`, `"offset": "", "index": 0`)), engines.Exit{Code: 1},
			workflow.StatusFailed, "exit code 1", engines.Counts{Total: 2}},
		{"what is logged", stderr(
			"2026-11-21 22:47:36,177 |     yadage.wflowview |   INFO | added </init:0|defined|unknown>",
			"2026-11-21 22:47:36,382 |     yadage.wflowview |   INFO | added </slow:0|defined|unknown>",
			"2026-11-21 22:47:36,382 |     yadage.wflowview |   INFO | added </select/1/slow:0|defined|unknown>",
			"2026-11-21 22:47:36,961 |    adage.pollingexec |   INFO | submitting nodes [</slow:0|defined|known>, </select/1/slow:0|defined|known>]",
			"2026-11-21 22:47:36,958 |           adage.node |   INFO | node ready </slow:0|success|known>",
			"2026-11-21 22:47:36,958 |           adage.node |   INFO | node ready </select/1/slow:0|failed|known>"),
			engines.Exit{Code: 1, Reason: "exit code 1"}, workflow.StatusFailed, "1 of 2 jobs failed: slow[0]", engines.Counts{Total: 2, Finished: 1, Failed: 1}},
		{"a line overtakes the tracker", slices.Concat(stderr("x | yadage.wflowview | INFO | added </a:0|defined|unknown>"), hook(hello, begin, defined, failed)), engines.Exit{Code: 1},
			workflow.StatusFailed, "1 of 2 jobs failed: a", engines.Counts{Total: 2, Failed: 1}},
		{"the tracker knows better than what is logged", append(hook(hello), stderr("x | yadage.wflowview | INFO | added </slow:0|defined|unknown>")...), engines.Exit{},
			workflow.StatusFinished, "", engines.Counts{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			told := enginetest.Tell(newReducer(enginetest.WorkflowID), tc.events, tc.exit)
			if told.Broken != "" {
				t.Fatalf("the reducer panicked: %s", told.Broken)
			}
			if told.Status != tc.status || told.Reason != tc.reason {
				t.Errorf("the run ended as %v for %q, wanted %v for %q", told.Status, told.Reason, tc.status, tc.reason)
			}
			if diff := cmp.Diff(tc.counts, told.Counts); diff != "" {
				t.Errorf("counts (-want +got):\n%s", diff)
			}
			if n := told.Specific["unreadable_events"]; n != nil {
				t.Errorf("%v events could not be read", n)
			}
		})
	}
	t.Run("a line overtakes the tracker", func(t *testing.T) {
		events := slices.Concat(stderr("x | yadage.wflowview | INFO | added </a:0|defined|unknown>", "x | adage.pollingexec | INFO | submitting nodes [</b:0|defined|known>]"), hook(hello, begin, defined))
		told := enginetest.Tell(newReducer(enginetest.WorkflowID), events, engines.Exit{Code: 1})
		if a, known := told.Job("a"); !known || len(told.Jobs) != 2 {
			t.Errorf("the jobs are %+v, wanted a and b as the tracker calls them, and not %+v", told.Jobs, a)
		}
	})
	t.Run("the tracker is late", func(t *testing.T) {
		lines := stderr("x | yadage.wflowview | INFO | added </a:0|defined|unknown>", "x | adage.pollingexec | INFO | submitting nodes [</a:0|defined|known>]")
		lines[0].At = time.Unix(1000, 0)
		lines[1].At = lines[0].At.Add(textPatience + 1)
		told := enginetest.Tell(newReducer(enginetest.WorkflowID), slices.Concat(lines, hook(hello, begin, defined)), engines.Exit{Code: 1})
		if len(told.Jobs) != 2 || told.Counts.Failed != 1 {
			t.Errorf("the jobs are %+v, wanted a as it was read, and b", told.Jobs)
		}
	})
	t.Run("the failed job", func(t *testing.T) {
		told := enginetest.Tell(newReducer(enginetest.WorkflowID), hook(hello, begin, defined, failed, last), engines.Exit{Code: 1})
		got, _ := told.Job("a")
		want := enginetest.Job{
			ID: engines.JobID(enginetest.WorkflowID, Engine, "/a[0]"), Name: "a", Status: workflow.JobFailed, Attempt: 1, ExitCode: 7, Timed: true,
			Logs: "2026-11-21 | pack.a.step |  ERROR | subprocess failed. code: 7,  command false\n", Diagnostics: "subprocess failed. code: 7,  command false",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("job (-want +got):\n%s", diff)
		}
	})
}

func TestCommand(t *testing.T) {
	for _, tc := range []struct{ process, parameters, want string }{
		{`{"cmd": "cp {in} {out}"}`, `{"in": ["a", "b"], "out": "{workdir}/c"}`, "cp a b /w/c"},
		{`{"cmd": "awk '{{print}}' {missing} {n} {ok} {none}"}`, `{"n": 3, "ok": true, "none": null}`, "awk '{print}' {missing} 3 True None"},
		{`{"script": "echo {x:>3} { }\n", "interpreter": "sh"}`, `{"x": 1.5}`, "echo {x:>3} { }\n"},
		{`{"cmd": 3}`, `[]`, ""},
		{`null`, `null`, ""},
		{`{"cmd": "} {"}`, `{}`, "} {"},
	} {
		n := node{Workdir: []string{"/w"}}
		for text, to := range map[string]any{tc.process: &n.Process, tc.parameters: &n.Parameters} {
			if err := json.Unmarshal([]byte(text), to); err != nil {
				t.Fatalf("%s: %v", text, err)
			}
		}
		if got := command(&n); got != tc.want {
			t.Errorf("the command of %s with %s = %q, wanted %q", tc.process, tc.parameters, got, tc.want)
		}
	}
	many := node{Process: map[string]any{"cmd": strings.Repeat("{x}", 10_000)}, Parameters: map[string]any{"x": strings.Repeat("y", 10_000)}}
	if n := len(command(&many)); n > maxCommand+100 {
		t.Errorf("a command that would be of 100 MB has %d bytes, wanted %d or so", n, maxCommand)
	}
}

// The same job has the same id in every run of a workflow.
func TestIDs(t *testing.T) {
	id := uuid.MustParse("c0ffee00-0000-4000-8000-000000000001")
	r := enginetest.Read(t, filepath.Join(recordings, "dynamic-ok"))
	first := enginetest.Tell(newReducer(id), r.Events, r.Exit)
	again := slices.Clone(r.Events)
	for i := range again { // Yadage's own ids are new in each run
		again[i].Line = []byte(strings.ReplaceAll(string(again[i].Line), `"id": "`, `"id": "x`))
	}
	second := enginetest.Tell(newReducer(id), again, r.Exit)
	if diff := cmp.Diff(idsIn(first, workflow.JobFinished), idsIn(second, workflow.JobFinished)); diff != "" {
		t.Errorf("ids of another run (-first +second):\n%s", diff)
	}
	if len(first.Jobs) != 5 {
		t.Errorf("the run has %d jobs, wanted 5", len(first.Jobs))
	}
}
