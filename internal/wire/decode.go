package wire

import (
	"bytes"
	"encoding/json"
	"strconv"
	"time"

	"github.com/google/uuid"

	"waymark/schemas"
	"waymark/workflow"
)

// DecodeStatus returns the status message that body holds, within the limits.
// The error is a *schemas.Error; see Describe.
//
// JSON that is kept as it is (EngineSpecific, Result) comes back compact, its
// keys sorted. Times come back in UTC, to the microsecond. The strings may share
// one copy of the body's text: clone what is to outlive the message.
func DecodeStatus(body []byte, lim schemas.Limits) (*workflow.StatusMessage, error) {
	if m := readStatus(body, lim); m != nil {
		return m, nil
	}
	return parseStatus(body, lim)
}

// parseStatus is DecodeStatus by way of the schema, which has the last word.
func parseStatus(body []byte, lim schemas.Limits) (*workflow.StatusMessage, error) {
	doc, err := schemas.Parse(schemas.StatusKind, body, lim)
	if err != nil {
		return nil, err
	}
	return statusOf(doc), nil
}

// DecodeSubmission returns the submission that body holds, within the limits.
// Parameters that are absent come back as {}. All else is as in DecodeStatus.
func DecodeSubmission(body []byte, lim schemas.Limits) (*workflow.Submission, error) {
	doc, err := schemas.Parse(schemas.SubmissionKind, body, lim)
	if err != nil {
		return nil, err
	}
	return submissionOf(doc), nil
}

// The functions below read documents that conform to the schema, so a value is
// either of its type or absent, and absent gives the zero value.

func statusOf(doc map[string]any) *workflow.StatusMessage {
	// The schema has judged the format.
	id, _ := uuid.Parse(text(doc["workflow_uuid"]))
	m := &workflow.StatusMessage{
		WorkflowID: id,
		Status:     workflow.Status(integer(doc["status"])),
		Logs:       text(doc["logs"]),
		EventTime:  moment(text(doc["event_time"])),
		Attempt:    integer(doc["attempt"]),
		Engine:     text(doc["engine"]),
	}
	message, _ := doc["message"].(map[string]any)
	progress, _ := message["progress"].(map[string]any)
	m.Progress = workflow.Progress{
		Total:          section(progress["total"]),
		Running:        section(progress["running"]),
		Finished:       section(progress["finished"]),
		Failed:         section(progress["failed"]),
		Cached:         section(progress["cached"]),
		EngineSpecific: raw(progress["engine_specific"]),
	}
	if details, _ := message["jobs"].([]any); len(details) > 0 {
		m.Jobs = make([]workflow.JobReport, len(details))
		for i, detail := range details {
			job, _ := detail.(map[string]any)
			m.Jobs[i] = report(job)
		}
	}
	return m
}

func section(v any) *workflow.Section {
	object, ok := v.(map[string]any)
	if !ok {
		return nil
	}
	s := &workflow.Section{Total: integer(object["total"])}
	if ids, _ := object["job_ids"].([]any); len(ids) > 0 {
		s.JobIDs = make([]string, len(ids))
		for i, id := range ids {
			s.JobIDs[i] = text(id)
		}
	}
	return s
}

func report(job map[string]any) workflow.JobReport {
	r := workflow.JobReport{
		ID:          text(job["job_id"]),
		Attempt:     integer(job["attempt"]),
		Name:        text(job["name"]),
		Path:        text(job["path"]),
		Command:     text(job["command"]),
		StartedAt:   moment(text(job["started_at"])),
		FinishedAt:  moment(text(job["finished_at"])),
		Logs:        text(job["logs"]),
		Result:      raw(job["result"]),
		Diagnostics: text(job["diagnostics"]),
	}
	switch word := text(job["status"]); word {
	case "":
	case cached:
		r.Status, r.Cached = workflow.JobFinished, true
	default:
		// The schema lists the words.
		r.Status, _ = workflow.ParseJobStatus(word)
	}
	if _, ok := job["exit_code"]; ok {
		r.ExitCode = new(integer(job["exit_code"]))
	}
	return r
}

func submissionOf(doc map[string]any) *workflow.Submission {
	s := &workflow.Submission{
		User:          text(doc["user"]),
		Workflow:      text(doc["workflow_id_or_name"]),
		Parameters:    raw(doc["parameters"]),
		Priority:      integer(doc["priority"]),
		RetryCount:    integer(doc["retry_count"]),
		Name:          text(doc["name"]),
		Engine:        text(doc["engine"]),
		Specification: raw(doc["specification"]),
		Attempt:       integer(doc["attempt"]),
		EventTime:     moment(text(doc["event_time"])),
	}
	if s.Parameters == nil {
		s.Parameters = json.RawMessage("{}")
	}
	if memory, ok := doc["min_job_memory"].(json.Number); ok {
		s.MinJobMemory, _ = memory.Float64() // the schema has judged the range
	}
	if labels, _ := doc["labels"].(map[string]any); len(labels) > 0 {
		s.Labels = make(map[string]string, len(labels))
		for key, value := range labels {
			s.Labels[key] = text(value)
		}
	}
	return s
}

func text(v any) string {
	s, _ := v.(string)
	return s
}

func integer(v any) int {
	number, _ := v.(json.Number)
	n, _ := strconv.Atoi(string(number))
	return n
}

// moment reads a time. Postgres keeps microseconds; what is finer would make a
// message differ from what was stored of it. Text that is no time gives the
// zero time.
func moment(text string) time.Time {
	t, _ := time.Parse(time.RFC3339Nano, text)
	return t.UTC().Truncate(time.Microsecond)
}

// raw returns v as JSON text, nil for null. It is canonical: equal values give
// equal text, and text it returned comes back unchanged.
func raw(v any) json.RawMessage {
	if v == nil {
		return nil
	}
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return nil // not reached: v was decoded from JSON
	}
	return bytes.TrimRight(b.Bytes(), "\n")
}
