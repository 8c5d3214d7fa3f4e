package cwl

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

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
	for i := range 5_000 {
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

// TestOutput has jobs write to cwltool's standard error, alone and at once, where
// the hook is not heard.
func TestOutput(t *testing.T) {
	told := enginetest.Tell(newReducer(enginetest.WorkflowID), written(
		"INFO [job a] /tmp/a$ sh \\", "    -c \\", "    'echo", "it'", "of a", "INFO also of a", "WARNING [job a] exited with status: 3", "WARNING [job a] completed permanentFail", "of nobody",
		"INFO [job b] /tmp/b$ true", "of b or c", "\x1b[1;30mINFO\x1b[0m [job c] /tmp/c$ true > /tmp/c/out", "of b or c", "half a lineINFO [job b] completed success", "of b or c",
		"[2026-01-01 00:00:00] INFO [job c] completed success",
		"INFO [job d] /tmp/d$ true", "half of d[2026-01-01 00:00:00] INFO [job d] completed success",
		"INFO [job e] /tmp/e$ true", "of e, until the end",
	), engines.Exit{Code: 137})
	for name, want := range map[string]string{"a": "of a\nINFO also of a\n", "b": "", "c": "", "d": "half of d\n", "e": "of e, until the end\n"} {
		if j, ok := told.Job(name); !ok || j.Logs != want {
			t.Errorf("the log of job %s is %q, want %q", name, j.Logs, want)
		}
	}
	if j, _ := told.Job("a"); j.Command != "sh -c 'echo\nit'" || j.ExitCode != 3 {
		t.Errorf("job a is %+v", j)
	}
	if j, _ := told.Job("c"); j.Command != "true" {
		t.Errorf("job c runs %q", j.Command)
	}
}

// play makes the events of a run with the hook, as the engine's clock goes on.
// What is written and what the hook tells arrive by themselves.
type play struct {
	t      *testing.T
	clock  time.Time
	quiet  bool
	stderr []engines.Event
	hook   []engines.Event
	last   string // half a line
}

func newPlay(t *testing.T, quiet bool) *play {
	return &play{t: t, clock: time.Unix(1_700_000_000, 0).UTC(), quiet: quiet}
}

// write has somebody write to standard error.
func (p *play) write(text string, late time.Duration) {
	lines := strings.Split(p.last+text, "\n")
	p.last = lines[len(lines)-1]
	for _, l := range lines[:len(lines)-1] {
		p.stderr = append(p.stderr, engines.Event{Source: engines.Stderr, Line: []byte(l), At: p.arrives(p.stderr, late)})
	}
	p.clock = p.clock.Add(time.Millisecond)
}

func (p *play) arrives(before []engines.Event, late time.Duration) time.Time {
	at := p.clock.Add(late)
	if n := len(before); n > 0 && at.Before(before[n-1].At) {
		at = before[n-1].At
	}
	return at
}

// log has cwltool log something.
func (p *play) log(late time.Duration, level, message string, more map[string]any, args ...any) {
	p.t.Helper()
	if more == nil {
		more = map[string]any{}
	}
	more["created"] = float64(p.clock.UnixMicro()) / 1e6
	e := say(p.t, 1, level, message, more, args...)
	e.At = p.arrives(p.hook, late)
	p.hook = append(p.hook, e)
	if !p.quiet || level != "INFO" {
		rec := record{Message: &message, Args: args}
		p.write(level+" "+rec.String()+"\n", late)
	}
	p.clock = p.clock.Add(time.Millisecond)
}

// job has a job run from its beginning to its end.
func (p *play) job(name string, code int, text string, late func() time.Duration) {
	p.t.Helper()
	p.log(late(), "INFO", "[%s] start", nil, "step "+name)
	p.log(late(), "INFO", msgRuns, map[string]any{"path": []any{}}, name, "/tmp/of-"+name, "sh \\\n    -c 'it'", "", "", "")
	for text != "" {
		n := strings.IndexByte(text, '\n') + 1
		if n == 0 {
			n = len(text)
		}
		p.write(text[:n], late())
		text = text[n:]
	}
	level, status := "INFO", "success"
	if code != 0 {
		level, status = "WARNING", "permanentFail"
		p.log(late(), level, msgExited, map[string]any{"job": name}, name, code)
		p.log(late(), "ERROR", msgJobError, map[string]any{"job": name}, name, "it\nfailed")
	}
	p.log(late(), level, msgCompleted, map[string]any{"job": name, "exit": code}, name, status)
	p.log(late(), level, "[%s] completed %s", nil, "step "+name, status)
}

func (p *play) events() []engines.Event {
	all := slices.Concat(p.hook, p.stderr)
	slices.SortStableFunc(all, func(a, b engines.Event) int { return a.At.Compare(b.At) })
	return all
}

// Jobs write what cwltool would, and the hook and standard error arrive late:
// each job has its own log all the same.
func TestImitations(t *testing.T) {
	names := []string{"st", "st_2", "st_3", "other"}
	lies := []string{"plain\n", "\n", "half", "INFO said by a job\n"}
	for _, name := range names {
		lies = append(lies,
			"INFO [job "+name+"] completed success\n", "[2026-01-01 00:00:00] ERROR [job "+name+"] completed permanentFail\n",
			"WARNING [job "+name+"] exited with status: 3\n", "INFO [job "+name+"] /tmp/elsewhere$ sh 'never closed\n", "INFO [step "+name+"] start\n")
	}
	rapid.Check(t, func(r *rapid.T) {
		p := newPlay(t, false)
		late := func() time.Duration { return time.Duration(rapid.IntRange(0, 50).Draw(r, "late")) * time.Millisecond }
		want := make(map[string]string)
		for _, name := range names {
			text := strings.Join(rapid.SliceOfN(rapid.SampledFrom(lies), 0, 6).Draw(r, "text"), "")
			p.job(name, rapid.SampledFrom([]int{0, 3}).Draw(r, "code"), text, late)
			if want[name] = text; text != "" && !strings.HasSuffix(text, "\n") {
				want[name] += "\n"
			}
		}
		told := enginetest.Tell(newReducer(enginetest.WorkflowID), p.events(), engines.Exit{At: p.clock})
		for name, log := range want {
			if j, _ := told.Job(name); j.Logs != log {
				r.Errorf("the log of job %s is %q, want %q", name, j.Logs, log)
			}
		}
	})
}

// With --quiet nothing says where a job begins, but the hook does.
func TestQuietLogs(t *testing.T) {
	for what, late := range map[string]time.Duration{"the hook first": 0, "standard error first": 3 * time.Millisecond} {
		p := newPlay(t, true)
		p.write("of a script\n", 0)
		p.clock = p.clock.Add(time.Second)
		p.job("a", 0, "of a\n", func() time.Duration { return 0 })
		p.job("b", 3, "of b\nINFO [job b] completed success\nalso of b\n", func() time.Duration { return 0 })
		p.clock = p.clock.Add(time.Hour)
		p.write("of the script again\n", 0)
		p.job("c", 0, "of c\n", func() time.Duration { return 0 })
		p.clock = p.clock.Add(time.Hour)
		p.write("the script's last words\n", 0)
		for i := range p.hook {
			p.hook[i].At = p.hook[i].At.Add(late)
		}
		told := enginetest.Tell(newReducer(enginetest.WorkflowID), p.events(), engines.Exit{At: p.clock})
		for name, want := range map[string]string{"a": "of a\n", "b": "of b\nINFO [job b] completed success\nalso of b\n", "c": "of c\n"} {
			if j, _ := told.Job(name); j.Logs != want {
				t.Errorf("%s: the log of job %s is %q, want %q", what, name, j.Logs, want)
			}
		}
	}
}

// A job writes more than is kept, and several write at once.
func TestLongAndSharedOutput(t *testing.T) {
	p := newPlay(t, false)
	soon := func() time.Duration { return 0 }
	p.job("long", 3, strings.Repeat(strings.Repeat("x", 999)+"\n", 2000)+"the end\n", soon)
	for _, name := range []string{"b", "c"} {
		p.log(0, "INFO", msgRuns, map[string]any{"path": []any{}}, name, "/tmp/"+name, "true", "", "", "")
		p.write("of b or c\n", 0)
	}
	for _, name := range []string{"b", "c"} {
		p.log(0, "INFO", msgCompleted, nil, name, "success")
	}
	p.job("d", 0, "of d", soon)
	p.log(0, "INFO", msgRuns, map[string]any{"path": []any{}}, "e", "/tmp/e", "true", "", "", "")
	p.write("of e, until the end\n", 0)
	told := enginetest.Tell(newReducer(enginetest.WorkflowID), p.events(), engines.Exit{At: p.clock, Code: 137})
	if j, _ := told.Job("long"); !strings.HasPrefix(j.Logs, "[193") || len(j.Logs) > maxFailedOutput+100 || !strings.HasSuffix(j.Logs, "x\nthe end\n") {
		t.Errorf("the log of the long job has %d bytes: %.100q", len(j.Logs), j.Logs)
	}
	for name, want := range map[string]string{"b": "", "c": "", "d": "of d\n", "e": "of e, until the end\n"} {
		if j, _ := told.Job(name); j.Logs != want {
			t.Errorf("the log of job %s is %q, want %q", name, j.Logs, want)
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
