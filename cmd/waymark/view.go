package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"waymark/workflow"
)

// The JSON views are what programs read. Every key is always there; what is
// not known is null. Statuses are words, times RFC 3339 in UTC.

type workflowView struct {
	ID              string            `json:"id"`
	Name            *string           `json:"name"`
	RunNumber       *int              `json:"run_number"`
	Owner           *string           `json:"owner"`
	Engine          *string           `json:"engine"`
	Labels          map[string]string `json:"labels"`
	Priority        int               `json:"priority"`
	Attempt         int               `json:"attempt"`
	Status          string            `json:"status"`
	Progress        workflow.Counts   `json:"progress"`
	CreatedAt       *time.Time        `json:"created_at"`
	SubmittedAt     *time.Time        `json:"submitted_at"`
	StartedAt       *time.Time        `json:"started_at"`
	FinishedAt      *time.Time        `json:"finished_at"`
	DeletedAt       *time.Time        `json:"deleted_at"`
	DurationSeconds *float64          `json:"duration_seconds"`
	LastEventAt     *time.Time        `json:"last_event_at"`
	UpdatedAt       *time.Time        `json:"updated_at"`
	Revision        int64             `json:"revision"`
}

func viewWorkflow(s *workflow.Summary, now time.Time) workflowView {
	v := workflowView{
		ID: s.ID.String(), Name: known(s.Name), RunNumber: known(s.RunNumber), Owner: known(s.Owner), Engine: known(s.Engine),
		Labels: s.Labels, Priority: s.Priority, Attempt: s.Attempt, Status: s.Status.String(), Progress: s.Counts,
		CreatedAt: moment(s.CreatedAt), SubmittedAt: moment(s.SubmittedAt), StartedAt: moment(s.StartedAt),
		FinishedAt: moment(s.FinishedAt), DeletedAt: moment(s.DeletedAt), LastEventAt: moment(s.LastEventAt),
		UpdatedAt: moment(s.UpdatedAt), Revision: s.Revision,
	}
	if v.Labels == nil {
		v.Labels = map[string]string{}
	}
	if !s.StartedAt.IsZero() {
		v.DurationSeconds = new(seconds(s.StartedAt, runEnd(s, now)))
	}
	return v
}

type detailsView struct {
	workflowView
	Parameters     json.RawMessage `json:"parameters"`
	Specification  json.RawMessage `json:"specification"`
	EngineSpecific json.RawMessage `json:"engine_specific"`
	MinJobMemory   *float64        `json:"min_job_memory"`
	RetryCount     int             `json:"retry_count"`
	FailedJobs     []failedJobView `json:"failed_jobs"`
	AsOf           time.Time       `json:"as_of"`
}

type failedJobView struct {
	jobView
	LastLogLines []string `json:"last_log_lines"`
}

type jobView struct {
	ID              string          `json:"id"`
	Name            *string         `json:"name"`
	Path            *string         `json:"path"`
	Status          string          `json:"status"`
	Cached          bool            `json:"cached"`
	RunAttempt      int             `json:"run_attempt"`
	Attempt         int             `json:"attempt"`
	Command         *string         `json:"command"`
	ExitCode        *int            `json:"exit_code"`
	QueuedAt        *time.Time      `json:"queued_at"`
	StartedAt       *time.Time      `json:"started_at"`
	FinishedAt      *time.Time      `json:"finished_at"`
	DurationSeconds *float64        `json:"duration_seconds"`
	Result          json.RawMessage `json:"result"`
	Diagnostics     *string         `json:"diagnostics"`
}

func viewJob(j *workflow.Job) jobView {
	v := jobView{
		ID: j.ID, Name: known(j.Name), Path: known(j.Path), Status: j.Status.String(), Cached: j.Cached,
		RunAttempt: j.RunAttempt, Attempt: j.Attempt, Command: known(j.Command), ExitCode: j.ExitCode,
		QueuedAt: moment(j.QueuedAt), StartedAt: moment(j.StartedAt), FinishedAt: moment(j.FinishedAt),
		Result: j.Result, Diagnostics: known(j.Diagnostics),
	}
	if !j.StartedAt.IsZero() && !j.FinishedAt.IsZero() {
		v.DurationSeconds = new(seconds(j.StartedAt, j.FinishedAt))
	}
	return v
}

type logView struct {
	Seq     int64     `json:"seq"`
	JobID   *string   `json:"job_id"`
	Attempt int       `json:"attempt"`
	At      time.Time `json:"at"`
	Text    string    `json:"text"`
	Cut     int64     `json:"cut_bytes,omitempty"` // a mark: so many bytes were left out here
}

func viewLog(e *workflow.LogEntry) logView {
	return logView{Seq: e.Seq, JobID: known(e.JobID), Attempt: e.Attempt, At: e.At.UTC(), Text: e.Text, Cut: e.Cut}
}

type historyView struct {
	At         time.Time `json:"at"`
	Attempt    int       `json:"attempt"`
	Status     string    `json:"status"`
	RecordedAt time.Time `json:"recorded_at"`
	Superseded bool      `json:"superseded"`
}

func viewHistory(e *workflow.HistoryEntry) historyView {
	return historyView{At: e.At.UTC(), Attempt: e.Attempt, Status: e.Status.String(), RecordedAt: e.RecordedAt.UTC(), Superseded: e.Superseded}
}

// known is nil for a zero value, which says that nothing is known.
func known[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// The rest is what people read.

// shortID is enough of an id to tell runs apart, and to find one by.
func shortID(id fmt.Stringer) string { return id.String()[:8] }

// displayName is name#N where the run has a name, else its short id.
func displayName(s *workflow.Summary) string {
	if s.Name == "" {
		return shortID(s.ID)
	}
	if s.RunNumber == 0 {
		return harmless(s.Name)
	}
	return fmt.Sprintf("%s#%d", harmless(s.Name), s.RunNumber)
}

// clock is a time in a table, empty if there is none.
func clock(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05Z")
}

// runName is name#N, empty for a run without a name.
func runName(s *workflow.Summary) string {
	if s.Name == "" {
		return ""
	}
	return displayName(s)
}

// minute is a time in a table that has little room.
func minute(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04Z")
}

// span is the time from start to end, 0 if by the clocks of those who said so
// the end came first. Messages may hold any time of the years 1 to 9999, which
// are more nanoseconds than a time.Duration holds.
func span(start, end time.Time) (seconds int64, nanos int) {
	seconds, nanos = end.Unix()-start.Unix(), end.Nanosecond()-start.Nanosecond()
	if nanos < 0 {
		seconds, nanos = seconds-1, nanos+1e9
	}
	if seconds < 0 {
		return 0, 0
	}
	return seconds, nanos
}

// seconds is the time from start to end for programs.
func seconds(start, end time.Time) float64 {
	s, nanos := span(start, end)
	return float64(s) + float64(nanos)/1e9
}

// elapsed is the time from start to end as people say it: 0.3s, 42s, 3m05s,
// 2h10m, 3d4h.
func elapsed(start, end time.Time) string {
	s, nanos := span(start, end)
	switch {
	case s < 10:
		return fmt.Sprintf("%d.%ds", s, nanos/1e8)
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%dm%02ds", s/60, s%60)
	case s < 48*3600:
		return fmt.Sprintf("%dh%02dm", s/3600, s/60%60)
	}
	return fmt.Sprintf("%dd%dh", s/(24*3600), s/3600%24)
}

// runEnd is when a run ended, or now.
func runEnd(s *workflow.Summary, now time.Time) time.Time {
	if s.FinishedAt.IsZero() {
		return now
	}
	return s.FinishedAt
}

func runTime(s *workflow.Summary, now time.Time) string {
	if s.StartedAt.IsZero() {
		return ""
	}
	return elapsed(s.StartedAt, runEnd(s, now))
}

// progressText is how far a run is: "3/5", and what a person should know beyond.
func progressText(c workflow.Counts) string {
	if c.Total == 0 {
		return ""
	}
	text := fmt.Sprintf("%d/%d", c.Finished, c.Total)
	for _, extra := range []struct {
		n    int
		word string
	}{{c.Failed, "failed"}, {c.Stopped, "stopped"}} {
		if extra.n > 0 {
			text += fmt.Sprintf(", %d %s", extra.n, extra.word)
		}
	}
	return text
}

// bar draws progress: # ended well, ! ended badly, > running.
func bar(c workflow.Counts, width int) string {
	if c.Total == 0 {
		return "[" + strings.Repeat(".", width) + "]"
	}
	var b strings.Builder
	done, drawn := 0, 0
	for _, part := range []struct {
		n    int
		mark string
	}{{c.Finished, "#"}, {c.Failed + c.Stopped, "!"}, {c.Running, ">"}} {
		done += part.n
		upto := done * width / c.Total
		if part.n > 0 && upto == drawn && drawn < width && part.mark != "#" {
			upto++ // what goes wrong must be seen, however small its part
		}
		upto = min(max(upto, drawn), width)
		b.WriteString(strings.Repeat(part.mark, upto-drawn))
		drawn = upto
	}
	return "[" + b.String() + strings.Repeat(".", width-drawn) + "]"
}

// clip shortens one line of text to n characters.
func clip(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}

// lastLines returns the last n lines of a log, without control characters.
func lastLines(text string, n int) []string {
	text = strings.TrimRight(harmlessLog(text), "\n")
	if text == "" {
		return nil
	}
	lines := strings.Split(text, "\n")
	return lines[max(0, len(lines)-n):]
}
