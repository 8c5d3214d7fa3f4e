package cwl

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"waymark/engines"
	"waymark/engines/enginetest"
	"waymark/workflow"
)

// say is a record as the hook sends it.
func say(t *testing.T, pid int, level, message string, more map[string]any, args ...any) engines.Event {
	t.Helper()
	doc := map[string]any{"created": 1.7e9, "level": level, "msg": message, "args": args, "pid": pid, "thread": "MainThread"}
	for k, v := range more {
		doc[k] = v
	}
	line, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	return engines.Event{Source: engines.Hook, Line: line}
}

func written(lines ...string) (all []engines.Event) {
	for _, l := range lines {
		all = append(all, engines.Event{Source: engines.Stderr, Line: []byte(l)})
	}
	return all
}

func TestLogIsBounded(t *testing.T) {
	var events []engines.Event
	for i := range 20_000 {
		events = append(events, say(t, 1, "WARNING", "warning %d of %s", nil, i, strings.Repeat("x", 100)), say(t, 1, "INFO", "chatter", nil))
	}
	events = append(events, say(t, 1, "ERROR", "Workflow error%s:\n%s", nil, ", try again with --debug for more information", "it is over"))
	told := enginetest.Tell(newReducer(enginetest.WorkflowID), events, engines.Exit{Code: 1})
	if len(told.Log) > maxLog+100 || strings.Contains(told.Log, "chatter") || !strings.HasPrefix(told.Log, "WARNING warning 0 of x") {
		t.Errorf("the log has %d bytes: %.200s", len(told.Log), told.Log)
	}
	if told.Reason != "Workflow error: it is over" {
		t.Errorf("the reason is %q", told.Reason)
	}
}

// Two processes of cwltool have jobs of the same name, and a job that asks for
// too much never begins.
func TestTwoEngines(t *testing.T) {
	runs := func(pid int) engines.Event {
		return say(t, pid, "INFO", msgRuns, map[string]any{"path": []any{}}, "a.cwl", "/tmp", "true", "", "", "")
	}
	told := enginetest.Tell(newReducer(enginetest.WorkflowID), []engines.Event{
		runs(1), say(t, 1, "INFO", msgCompleted, map[string]any{"exit": 0}, "a.cwl", "success"), say(t, 1, "INFO", msgFinal, nil, "success"),
		runs(2), say(t, 2, "WARNING", msgCompleted, map[string]any{"exit": -15, "stderr": "end", "stdout": "out"}, "a.cwl", "temporaryFail"),
		say(t, 2, "ERROR", msgTooLarge+"than available", map[string]any{"path": []any{[]any{"wide"}}}, "wide", "{'ram': 1e9}"),
		say(t, 2, "WARNING", msgFinal, nil, "permanentFail"),
	}, engines.Exit{})
	if told.Status != workflow.StatusFailed || told.Counts != (engines.Counts{Total: 3, Finished: 1, Failed: 2}) {
		t.Errorf("the run is %v with %+v", told.Status, told.Counts)
	}
	if j := told.Jobs[1]; j.Status == workflow.JobFailed && (j.ExitCode != 143 || j.Logs != "end\nout" || j.Diagnostics != "completed temporaryFail") {
		t.Errorf("the job that a signal ended is %+v", j)
	}
	if j, _ := told.Job("wide"); j.Path != "wide" || !strings.Contains(j.Diagnostics, "more resources") {
		t.Errorf("the job that is too large is %+v", j)
	}
}

// TestOutput has jobs write to cwltool's standard error, alone and at once.
func TestOutput(t *testing.T) {
	lines := written(
		"INFO [job a] /tmp/a$ sh \\", "    -c \\", "    'echo", "it'", "of a", "INFO also of a", "WARNING [job a] exited with status: 3", "WARNING [job a] completed permanentFail", "of nobody",
		"INFO [job b] /tmp/b$ true", "of b or c", "\x1b[1;30mINFO\x1b[0m [job c] /tmp/c$ true > /tmp/c/out", "of b or c", "half a lineINFO [job b] completed success", "of b or c",
		"[2026-01-01 00:00:00] INFO [job c] completed success",
		"INFO [job d] /tmp/d$ true", "half of d[2026-01-01 00:00:00] INFO [job d] completed success",
		"INFO [job e] /tmp/e$ true", "of e, until the end",
	)
	for _, hooked := range []bool{false, true} {
		events := lines
		if hooked {
			events = nil
			for i, name := range []string{"a", "b", "c", "d", "e"} {
				events = append(events, say(t, 1, "INFO", msgRuns, nil, name, "/tmp", fmt.Sprint("command ", i), "", "", ""))
				if name != "e" {
					events = append(events, say(t, 1, "INFO", msgCompleted, nil, name, "success"))
				}
			}
			events = append(events, lines...)
		}
		told := enginetest.Tell(newReducer(enginetest.WorkflowID), events, engines.Exit{Code: 137})
		for name, want := range map[string]string{"a": "of a\nINFO also of a\n", "b": "", "c": "", "d": "half of d\n", "e": "of e, until the end\n"} {
			if j, ok := told.Job(name); !ok || j.Logs != want {
				t.Errorf("hooked %v: the log of job %s is %q, want %q", hooked, name, j.Logs, want)
			}
		}
		if j, _ := told.Job("a"); !hooked && (j.Command != "sh -c 'echo\nit'" || j.ExitCode != 3) {
			t.Errorf("job a is %+v", j)
		}
		if j, _ := told.Job("c"); !hooked && j.Command != "true" {
			t.Errorf("job c runs %q", j.Command)
		}
	}
}

// What cwltool --pack says counts until the hook knows better.
func TestPackThenHook(t *testing.T) {
	pack := `{"workflow": {"class": "Workflow", "steps": [{"id": "a", "run": {"class": "CommandLineTool"}}, {"id": "b", "run": {"class": "CommandLineTool"}}]}, "inputs": {}}`
	events := append(written("INFO [job a] /tmp/a$ true"), engines.Event{Source: packSource, Line: []byte(pack)}, engines.Event{Source: packSource, Line: []byte("{")})
	told := enginetest.Tell(newReducer(enginetest.WorkflowID), events, engines.Exit{Code: 137})
	if told.Counts.Total != 2 || told.Specific["total_from"] == nil {
		t.Errorf("the counts are %+v, of %v; want a total of 2", told.Counts, told.Specific)
	}
	var workflow map[string]any
	if err := json.Unmarshal([]byte(pack), &workflow); err != nil {
		t.Fatal(err)
	}
	steps := workflow["workflow"].(map[string]any)
	steps["steps"] = append(steps["steps"].([]any), map[string]any{"id": "c", "run": map[string]any{"class": "CommandLineTool"}})
	events = append(events, say(t, 7, "INFO", msgStarting, map[string]any{"at": []any{}, "step": "a", "in": map[string]any{}, "workflow": steps, "inputs": map[string]any{}}, "workflow ", "step a"))
	told = enginetest.Tell(newReducer(enginetest.WorkflowID), events, engines.Exit{Code: 137})
	if told.Counts.Total != 3 {
		t.Errorf("the counts are %+v, want a total of 3", told.Counts)
	}
}
