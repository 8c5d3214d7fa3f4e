package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"waymark/schemas"
	"waymark/workflow"
)

// cached is the word on the wire for a job report that is finished and Cached.
const cached = "cached"

// The bodies fix the order of the properties: REANA's come first, in its order.
type (
	statusBody struct {
		WorkflowUUID string       `json:"workflow_uuid"`
		Logs         string       `json:"logs"`
		Status       int          `json:"status"`
		Message      *messageBody `json:"message,omitempty"`
		EventTime    string       `json:"event_time,omitempty"`
		Attempt      int          `json:"attempt,omitempty"`
		Engine       string       `json:"engine,omitempty"`
	}
	messageBody struct {
		Progress *progressBody `json:"progress,omitempty"`
		Jobs     []jobBody     `json:"jobs,omitempty"`
	}
	progressBody struct {
		Total          *sectionBody    `json:"total,omitempty"`
		Running        *sectionBody    `json:"running,omitempty"`
		Finished       *sectionBody    `json:"finished,omitempty"`
		Failed         *sectionBody    `json:"failed,omitempty"`
		Cached         *sectionBody    `json:"cached,omitempty"`
		EngineSpecific json.RawMessage `json:"engine_specific,omitempty"`
	}
	sectionBody struct {
		Total  int      `json:"total"`
		JobIDs []string `json:"job_ids"`
	}
	jobBody struct {
		JobID       string          `json:"job_id"`
		Name        string          `json:"name,omitempty"`
		Path        string          `json:"path,omitempty"`
		Status      string          `json:"status,omitempty"`
		Attempt     int             `json:"attempt,omitempty"`
		Command     string          `json:"command,omitempty"`
		ExitCode    *int            `json:"exit_code,omitempty"`
		StartedAt   string          `json:"started_at,omitempty"`
		FinishedAt  string          `json:"finished_at,omitempty"`
		Logs        string          `json:"logs,omitempty"`
		Result      json.RawMessage `json:"result,omitempty"`
		Diagnostics string          `json:"diagnostics,omitempty"`
	}
	submissionBody struct {
		User             string            `json:"user"`
		WorkflowIDOrName string            `json:"workflow_id_or_name"`
		Parameters       json.RawMessage   `json:"parameters"`
		Priority         int               `json:"priority"`
		MinJobMemory     float64           `json:"min_job_memory"`
		RetryCount       int               `json:"retry_count,omitempty"`
		Name             string            `json:"name,omitempty"`
		Engine           string            `json:"engine,omitempty"`
		Specification    json.RawMessage   `json:"specification,omitempty"`
		Labels           map[string]string `json:"labels,omitempty"`
		Attempt          int               `json:"attempt,omitempty"`
		EventTime        string            `json:"event_time,omitempty"`
	}
)

// EncodeStatus returns the body of m in the strict form: what it returns is
// accepted by every reader that keeps to the schema, and by DecodeStatus with
// the default limits.
//
// Text is made fit to store: NUL characters and bytes that are not UTF-8 become
// U+FFFD, as they occur in the output of any program. Ids are not touched, so
// an unfit one is an error. Totals below 0 are written as 0, a report that is
// Cached as a finished one, and times to the microsecond. The error names the
// field, or is a *schemas.Error.
//
// A message whose EngineSpecific holds a DAG should say its Engine: without
// it, a reader takes it for a snapshot of REANA's Yadage engine and corrects
// its total.
func EncodeStatus(m *workflow.StatusMessage) ([]byte, error) {
	if body := writeStatus(m); body != nil {
		return body, nil
	}
	return composeStatus(m)
}

// composeStatus is EncodeStatus by way of the schema, which has the last word.
func composeStatus(m *workflow.StatusMessage) ([]byte, error) {
	for id := range m.MentionedJobs() {
		if !utf8.ValidString(id) {
			// As U+FFFD it could be mistaken for another job.
			return nil, fmt.Errorf("encoding the status of workflow %s: job id %q is not valid UTF-8", m.WorkflowID, id)
		}
	}
	specific, err := canonical(m.Progress.EngineSpecific)
	if err != nil {
		return nil, fmt.Errorf("encoding the status of workflow %s: engine-specific data: %w", m.WorkflowID, err)
	}
	progress := progressBody{
		Total:          sectionOf(m.Progress.Total),
		Running:        sectionOf(m.Progress.Running),
		Finished:       sectionOf(m.Progress.Finished),
		Failed:         sectionOf(m.Progress.Failed),
		Cached:         sectionOf(m.Progress.Cached),
		EngineSpecific: specific,
	}
	var message messageBody
	if progress.Total != nil || progress.Running != nil || progress.Finished != nil || progress.Failed != nil || progress.Cached != nil || specific != nil {
		message.Progress = &progress
	}
	for i := range m.Jobs {
		job := &m.Jobs[i]
		result, err := canonical(job.Result)
		if err != nil {
			return nil, fmt.Errorf("encoding the status of workflow %s: result of job %q: %w", m.WorkflowID, job.ID, err)
		}
		message.Jobs = append(message.Jobs, jobBody{
			JobID:       job.ID,
			Name:        withoutNUL(job.Name),
			Path:        withoutNUL(job.Path),
			Status:      jobStatus(job),
			Attempt:     job.Attempt,
			Command:     withoutNUL(job.Command),
			ExitCode:    job.ExitCode,
			StartedAt:   timestamp(job.StartedAt),
			FinishedAt:  timestamp(job.FinishedAt),
			Logs:        withoutNUL(job.Logs),
			Result:      result,
			Diagnostics: withoutNUL(job.Diagnostics),
		})
	}
	body := statusBody{
		WorkflowUUID: m.WorkflowID.String(),
		Logs:         withoutNUL(m.Logs),
		Status:       int(m.Status),
		EventTime:    timestamp(m.EventTime),
		Attempt:      m.Attempt,
		Engine:       withoutNUL(m.Engine),
	}
	if message.Progress != nil || message.Jobs != nil {
		body.Message = &message
	}
	b, err := strict(schemas.StatusKind, body)
	if err != nil {
		return nil, fmt.Errorf("encoding the status of workflow %s: %w", m.WorkflowID, err)
	}
	return b, nil
}

// EncodeSubmission returns the body of s in the strict form, as EncodeStatus
// does for a status. Parameters that are nil are written as {}, as the readers
// of the original expect an object.
func EncodeSubmission(s *workflow.Submission) ([]byte, error) {
	for _, id := range []string{s.User, s.Workflow} {
		if !utf8.ValidString(id) {
			return nil, fmt.Errorf("encoding the submission of workflow %q by user %q: not valid UTF-8", s.Workflow, s.User)
		}
	}
	parameters, err := canonical(s.Parameters)
	if err != nil {
		return nil, fmt.Errorf("encoding the submission of workflow %q: parameters: %w", s.Workflow, err)
	}
	if parameters == nil {
		parameters = json.RawMessage("{}")
	}
	specification, err := canonical(s.Specification)
	if err != nil {
		return nil, fmt.Errorf("encoding the submission of workflow %q: specification: %w", s.Workflow, err)
	}
	body := submissionBody{
		User:             s.User,
		WorkflowIDOrName: s.Workflow,
		Parameters:       parameters,
		Priority:         s.Priority,
		MinJobMemory:     s.MinJobMemory,
		RetryCount:       s.RetryCount,
		Name:             withoutNUL(s.Name),
		Engine:           withoutNUL(s.Engine),
		Specification:    specification,
		Labels:           labels(s.Labels),
		Attempt:          s.Attempt,
		EventTime:        timestamp(s.EventTime),
	}
	b, err := strict(schemas.SubmissionKind, body)
	if err != nil {
		return nil, fmt.Errorf("encoding the submission of workflow %q: %w", s.Workflow, err)
	}
	return b, nil
}

// strict marshals body and lets the reader's own rules judge the bytes, so
// that nothing is ever sent that is refused at the other end.
func strict(kind schemas.Kind, body any) ([]byte, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(body); err != nil {
		return nil, err
	}
	text := bytes.TrimRight(b.Bytes(), "\n")
	if err := schemas.Check(kind, text, schemas.Limits{}); err != nil {
		return nil, err
	}
	return text, nil
}

func sectionOf(s *workflow.Section) *sectionBody {
	if s == nil {
		return nil
	}
	ids := s.JobIDs
	if ids == nil {
		ids = []string{} // a null breaks the readers of the original
	}
	return &sectionBody{Total: max(s.Total, 0), JobIDs: ids}
}

func jobStatus(job *workflow.JobReport) string {
	switch {
	case job.Cached:
		return cached
	case job.Status == workflow.JobCreated:
		return "" // what absence means
	default:
		return job.Status.String()
	}
}

func labels(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	clean := make(map[string]string, len(m))
	for key, value := range m {
		clean[withoutNUL(key)] = withoutNUL(value)
	}
	return clean
}

func timestamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05.999999Z07:00") // cuts what is finer
}

func withoutNUL(s string) string { return strings.ReplaceAll(s, "\x00", "\uFFFD") }

// canonical returns the JSON text that raw would be decoded to, nil if it is
// empty or null.
func canonical(text json.RawMessage) (json.RawMessage, error) {
	if len(text) == 0 {
		return nil, nil
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var v any
	if err := decoder.Decode(&v); err != nil {
		return nil, err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one JSON value")
	}
	return raw(schemas.ReplaceNUL(v)), nil
}
