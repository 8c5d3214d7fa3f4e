// Package script watches programs that no adapter knows: shell scripts, Makefiles,
// engines of one's own. What runs tells its jobs itself, a line of JSON each to
// the Unix socket whose path is in the environment; "waymark publish job" and
// "waymark publish progress" write such lines. That the run began, and how it
// ended, is seen from outside.
//
// It is also the smallest adapter there can be, and an example for others.
package script

import (
	"context"
	"encoding/json"
	"time"

	"github.com/google/uuid"

	"waymark/engines"
	"waymark/workflow"
)

// Engine is the default name of the engine in messages.
const Engine = "script"

// Variables of the environment of what runs.
const (
	// SocketVariable holds the path of the socket.
	SocketVariable = "WAYMARK_SOCKET"
	// WorkflowVariable holds the id of the run.
	WorkflowVariable = "WAYMARK_WORKFLOW"
)

// Adapter implements [engines.Adapter]. The zero value is ready.
type Adapter struct {
	// Name of the engine in messages. Default [Engine].
	Name string
}

// Engine is the name of the engine in messages.
func (a Adapter) Engine() string {
	if a.Name == "" {
		return Engine
	}
	return a.Name
}

// Prepare tells the program where to report.
func (a Adapter) Prepare(_ context.Context, l *engines.Launch) (engines.Watch, error) {
	l.Setenv(SocketVariable, l.Socket)
	l.Setenv(WorkflowVariable, l.WorkflowID.String())
	return engines.Watch{Reducer: NewReducer(l.WorkflowID)}, nil
}

// Line is what a program writes: any of these, in one JSON object on one line.
type Line struct {
	// Job is what the program calls a job, the same name each time it speaks of
	// it. The job's id follows from it: see [engines.JobID].
	Job string `json:"job,omitempty"`
	// Status of the job: "queued", "running", "finished", "failed" or "stopped".
	// Default "created", which only says that there is one.
	Status string `json:"status,omitempty"`
	// Total is how many jobs the run has. 0 says nothing.
	Total int `json:"total,omitempty"`
	// Log is text for the log of the job or, without a job, of the run.
	Log string `json:"log,omitempty"`

	// The rest describes the job: see [workflow.JobReport].

	Name        string          `json:"name,omitempty"`
	Path        string          `json:"path,omitempty"`
	Command     string          `json:"command,omitempty"`
	Attempt     int             `json:"attempt,omitempty"`
	Cached      bool            `json:"cached,omitempty"`
	ExitCode    *int            `json:"exit_code,omitempty"`
	StartedAt   time.Time       `json:"started_at,omitzero"`
	FinishedAt  time.Time       `json:"finished_at,omitzero"`
	Diagnostics string          `json:"diagnostics,omitempty"`
	Result      json.RawMessage `json:"result,omitempty"`
}

// NewReducer returns the reducer of a run.
func NewReducer(workflowID uuid.UUID) engines.Reducer {
	return &reducer{workflowID: workflowID, jobs: make(map[string]*attempt)}
}

type reducer struct {
	workflowID uuid.UUID
	jobs       map[string]*attempt
}

// attempt is the latest attempt of a job. Who says nothing of attempts means it,
// and begins another by running a job again that has ended.
type attempt struct {
	number int
	begun  time.Time // as was said; a hook may say a thing twice
	ended  bool
}

// attempt returns the attempt that a line speaks of.
func (r *reducer) attempt(l *Line, status workflow.JobStatus) int {
	j := r.jobs[l.Job]
	if j == nil {
		j = &attempt{number: 1}
		r.jobs[l.Job] = j
	}
	switch {
	case l.Attempt > j.number:
		*j = attempt{number: l.Attempt}
	case l.Attempt > 0 && l.Attempt < j.number:
		return l.Attempt
	case l.Attempt == 0 && status == workflow.JobRunning && j.ended && (l.StartedAt.IsZero() || !l.StartedAt.Equal(j.begun)):
		*j = attempt{number: j.number + 1}
	}
	if status == workflow.JobRunning {
		j.begun = l.StartedAt
	}
	j.ended = j.ended || status.Terminal()
	return j.number
}

func (r *reducer) Apply(e engines.Event, to engines.Story) bool {
	if e.Source != engines.Hook {
		return false
	}
	var l Line
	if json.Unmarshal(e.Line, &l) != nil {
		return false
	}
	status, err := workflow.JobCreated, error(nil)
	if l.Status != "" {
		if status, err = workflow.ParseJobStatus(l.Status); err != nil {
			return false
		}
	}
	if l.Total > 0 {
		to.Total(l.Total)
	}
	if l.Job == "" {
		if l.Log != "" {
			to.Log(l.Log)
		}
		return l.Total > 0 || l.Log != ""
	}
	news := workflow.JobReport{
		ID:     engines.JobID(r.workflowID, Engine, l.Job),
		Status: status, Name: l.Name, Path: l.Path, Command: l.Command,
		Attempt: r.attempt(&l, status), Cached: l.Cached, ExitCode: l.ExitCode,
		StartedAt: l.StartedAt, FinishedAt: l.FinishedAt,
		Logs: l.Log, Diagnostics: l.Diagnostics, Result: l.Result,
	}
	if news.Name == "" {
		news.Name = l.Job
	}
	switch {
	case status == workflow.JobRunning && news.StartedAt.IsZero():
		news.StartedAt = e.At
	case status.Terminal() && news.FinishedAt.IsZero():
		news.FinishedAt = e.At
	}
	to.Job(news)
	return true
}

// End leaves the judgement to the program: one that ends well has made up for
// the jobs that failed.
func (r *reducer) End(x engines.Exit, _ engines.Story) engines.Ending {
	if x.Code == 0 {
		return engines.Ending{Status: workflow.StatusFinished}
	}
	return engines.Ending{}
}
