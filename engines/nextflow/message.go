package nextflow

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// The names of events in a post.
const (
	runStarted    = "started"
	runCompleted  = "completed"
	runError      = "error"
	taskSubmitted = "process_submitted"
	taskStarted   = "process_started"
	taskCompleted = "process_completed"
)

// post is what Nextflow posts. Which fields there are depends on its version.
type post struct {
	RunName text `json:"runName"`
	// RunID is the session: a resumed run has the one of the run it resumes.
	RunID    text     `json:"runId"`
	Event    text     `json:"event"`
	UTCTime  text     `json:"utcTime"`
	Trace    *trace   `json:"trace"`
	Metadata metadata `json:"metadata"`
}

// trace is a task, from a post or from a row of the trace file.
type trace struct {
	TaskID      text   `json:"task_id"`
	Hash        text   `json:"hash"`
	Name        text   `json:"name"`
	Process     text   `json:"process"`
	Tag         text   `json:"tag"`
	Status      text   `json:"status"`
	Exit        number `json:"exit"`
	Submit      number `json:"submit"` // these are milliseconds since 1970
	Start       number `json:"start"`
	Complete    number `json:"complete"`
	Attempt     number `json:"attempt"`
	Script      text   `json:"script"`
	Workdir     text   `json:"workdir"`
	ErrorAction text   `json:"error_action"`
}

// metadata is the run. Versions differ in what stands in "workflow" and what
// beside it.
type metadata struct {
	state
	Workflow   state           `json:"workflow"`
	Parameters json.RawMessage `json:"parameters"`
	Params     json.RawMessage `json:"params"` // before 19.04
}

type state struct {
	Success      *bool           `json:"success"`
	Resume       *bool           `json:"resume"`
	ExitStatus   number          `json:"exitStatus"`
	ErrorMessage text            `json:"errorMessage"`
	ErrorReport  text            `json:"errorReport"`
	UserName     text            `json:"userName"`
	ScriptName   text            `json:"scriptName"`
	ProjectName  text            `json:"projectName"`
	Repository   text            `json:"repository"`
	Revision     text            `json:"revision"`
	CommitID     text            `json:"commitId"`
	Manifest     json.RawMessage `json:"manifest"`
	Nextflow     json.RawMessage `json:"nextflow"`
	Stats        json.RawMessage `json:"stats"`
}

// text is a string, or what was put in the place of one: a number is its digits,
// anything else nothing.
type text string

// UnmarshalJSON never fails: a field of another type than expected must not lose
// the others.
func (t *text) UnmarshalJSON(b []byte) error {
	var s string
	var n json.Number
	switch {
	case json.Unmarshal(b, &s) == nil:
		*t = text(s)
	case json.Unmarshal(b, &n) == nil:
		*t = text(n)
	}
	return nil
}

// number is a whole number, also one written as text, or none.
type number struct {
	value int64
	known bool
}

// UnmarshalJSON never fails, as that of text.
func (n *number) UnmarshalJSON(b []byte) error {
	*n = parseNumber(strings.Trim(string(b), `"`))
	return nil
}

func parseNumber(s string) number {
	f, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	if err != nil || math.IsNaN(f) || math.Abs(f) > 1<<53 {
		return number{}
	}
	return number{int64(f), true}
}

// time reads a number of milliseconds.
func (n number) time() time.Time {
	if !n.known || n.value <= 0 || n.value > 1e14 {
		return time.Time{}
	}
	return time.UnixMilli(n.value).UTC()
}

// exitCode is that of a task, nil if it is not known: the largest int stands for
// a task that still runs.
func (n number) exitCode() *int {
	if !n.known || n.value == math.MaxInt32 || n.value < 0 || n.value > 255 {
		return nil
	}
	code := int(n.value)
	return &code
}

// parsePost reads a post; the error says what it is instead.
func parsePost(body []byte) (*post, error) {
	var p post
	if trimmed := bytes.TrimSpace(body); len(trimmed) == 0 || trimmed[0] != '{' {
		return nil, errors.New("expected a JSON object")
	}
	if err := json.Unmarshal(body, &p); err != nil {
		return nil, fmt.Errorf("reading JSON: %w", err)
	}
	switch p.Event {
	case runStarted, runCompleted, runError, taskSubmitted, taskStarted, taskCompleted:
	case "":
		return nil, errors.New(`expected the fields "runId" and "event"`)
	default:
		return nil, fmt.Errorf("unknown event %.40q", string(p.Event))
	}
	return &p, nil
}

// at is when the event happened, zero if nobody says.
func (p *post) at() time.Time {
	at, err := time.Parse(time.RFC3339, string(p.UTCTime))
	if err != nil {
		return time.Time{}
	}
	return at.UTC()
}

// success is whether the run succeeded, nil if nobody says.
func (m *metadata) success() *bool {
	if m.Workflow.Success != nil {
		return m.Workflow.Success
	}
	return m.state.Success
}

// first is the first text that is one.
func first(all ...text) string {
	for _, t := range all {
		if t != "" {
			return string(t)
		}
	}
	return ""
}

// member reads a key of an object, the zero value if there is none.
func member[T any](object json.RawMessage, key string) (v T) {
	var all map[string]json.RawMessage
	if json.Unmarshal(object, &all) == nil {
		var read T
		if json.Unmarshal(all[key], &read) == nil {
			v = read
		}
	}
	return v
}

// traceTimes are the forms of times in a trace file.
var traceTimes = []string{"2006-01-02 15:04:05.000", "2006-01-02 15:04:05"}

// row reads a row of a trace file with the fields of its header.
func row(header []string, line string) *trace {
	cells := make(map[string]string)
	for i, cell := range strings.Split(line, "\t") {
		if cell != "-" && i < len(header) { // what is not known is "-"
			cells[header[i]] = cell
		}
	}
	moment := func(cell string) number {
		for _, form := range traceTimes {
			// Local times, of a zone that the file does not tell: the one of
			// the machine that runs Nextflow, which is this one.
			if t, err := time.ParseInLocation(form, cell, time.Local); err == nil {
				return number{t.UnixMilli(), true}
			}
		}
		return parseNumber(cell)
	}
	return &trace{
		TaskID: text(cells["task_id"]), Hash: text(cells["hash"]), Name: text(cells["name"]), Process: text(cells["process"]), Tag: text(cells["tag"]),
		Status: text(cells["status"]), Exit: parseNumber(cells["exit"]), Submit: moment(cells["submit"]), Start: moment(cells["start"]),
		Complete: moment(cells["complete"]), Attempt: parseNumber(cells["attempt"]), Script: text(cells["script"]), Workdir: text(cells["workdir"]),
		ErrorAction: text(cells["error_action"]),
	}
}
