package workflow

import (
	"encoding/json"
	"iter"
	"time"

	"github.com/google/uuid"
)

// StatusMessage is one jobs-status message: what an engine says about a run
// at one moment. Only WorkflowID and Status are required; a zero field says
// nothing.
type StatusMessage struct {
	// WorkflowID names the run (wire: workflow_uuid).
	WorkflowID uuid.UUID
	// Status of the run as the engine sees it.
	Status Status
	// Logs is text to append to the run's log. It may hold many lines.
	Logs string
	// EventTime is when it happened, by the engine's clock. The consumer puts
	// the time of arrival where a message carries none.
	EventTime time.Time
	// Attempt counts explicit restarts of the run, from 1. 0 means 1.
	Attempt int
	// Engine names the engine, such as "serial" or "cwl".
	Engine string
	// Progress holds job ids by state, and totals.
	Progress Progress
	// Jobs holds details of single jobs.
	Jobs []JobReport
}

// Progress is the progress part of a message. A nil section says nothing
// about its state. Sections may be deltas (serial, CWL, Snakemake) or
// snapshots (Yadage): the fold treats both alike.
type Progress struct {
	// Total announces how many jobs the run has; its ids, if any, are jobs
	// that exist and may not have started.
	Total *Section
	// Running names jobs that run, or ran: a job that has ended does not
	// come back by being named here.
	Running *Section
	// Finished names jobs that ended well.
	Finished *Section
	// Failed names jobs that ended badly and will not be repeated.
	Failed *Section
	// Cached names finished jobs whose results came from a cache.
	Cached *Section
	// EngineSpecific is any JSON the engine wants kept, by convention an
	// object whose "dag" holds edges and nodes. The latest by event time is kept.
	EngineSpecific json.RawMessage
}

// Section is a set of jobs in one state. It speaks of the first attempt of
// each job: an engine that repeats jobs under the same id names them in
// [StatusMessage.Jobs], with their attempt.
type Section struct {
	// Total counts the jobs. With JobIDs it is redundant; without, it is a
	// claim that the run keeps until a later one. In Progress.Total, values
	// below 1 mean unknown.
	Total int `json:"total"`
	// JobIDs are the ids of the jobs, unique within the run.
	JobIDs []string `json:"job_ids"`
}

// JobIDs returns a section that names jobs.
func JobIDs(ids ...string) *Section { return &Section{Total: len(ids), JobIDs: ids} }

// Count returns a section that only counts, such as Progress.Total at the
// start of a run.
func Count(n int) *Section { return &Section{Total: n} }

// JobReport is what a message says of one job beyond its id. Every field but
// ID may be zero. Details of one attempt of a job do not change: if two
// messages disagree about one, the greater value is kept, so that their order
// does not matter.
type JobReport struct {
	// ID of the job, unique within the run.
	ID string
	// Status of the job. The zero value, created, only makes the job known.
	Status JobStatus
	// Cached marks a finished job whose result came from a cache.
	Cached bool
	// Attempt counts repetitions of the job by the engine, from 1. 0 means 1.
	// A higher attempt replaces a lower one.
	Attempt int
	// Name as the workflow's author knows it: step, rule or process.
	Name string
	// Path of the job in nested workflows, separated by "/".
	Path string
	// Command line of the job.
	Command string
	// ExitCode of the job's process, nil if unknown.
	ExitCode *int
	// StartedAt is when the job began, by the engine's clock.
	StartedAt time.Time
	// FinishedAt is when it ended, however it ended.
	FinishedAt time.Time
	// Logs is text to append to the job's log.
	Logs string
	// Result is any JSON the job gives back.
	Result json.RawMessage
	// Diagnostics says in words why the job failed.
	Diagnostics string
}

// MentionedJobs yields the id of every job m names, some of them more than once.
// The store uses it to know which jobs to load before it folds m.
func (m *StatusMessage) MentionedJobs() iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, s := range [...]*Section{m.Progress.Total, m.Progress.Running, m.Progress.Finished, m.Progress.Failed, m.Progress.Cached} {
			if s == nil {
				continue
			}
			for _, id := range s.JobIDs {
				if !yield(id) {
					return
				}
			}
		}
		for i := range m.Jobs {
			if !yield(m.Jobs[i].ID) {
				return
			}
		}
	}
}

// LogChunks yields the pieces of log that m carries: the run's, then the jobs'.
func (m *StatusMessage) LogChunks() iter.Seq[LogChunk] {
	return func(yield func(LogChunk) bool) {
		if m.Logs != "" && !yield(LogChunk{Attempt: m.attempt(), At: m.EventTime, Text: m.Logs}) {
			return
		}
		for i := range m.Jobs {
			if j := &m.Jobs[i]; j.Logs != "" && !yield(LogChunk{JobID: j.ID, Attempt: m.attempt(), At: m.EventTime, Text: j.Logs}) {
				return
			}
		}
	}
}

func (m *StatusMessage) hasLogs() bool {
	for range m.LogChunks() {
		return true
	}
	return false
}

// attempt is the attempt of the run that m speaks of.
func (m *StatusMessage) attempt() int { return max(m.Attempt, 1) }
