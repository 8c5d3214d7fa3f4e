package nextflow

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"waymark/engines"
	"waymark/workflow"
)

// The sources of events. Lines of a hook are taken for posts: a file with a post
// a line is a recording.
const (
	// Weblog marks the body of a post.
	Weblog = "weblog"
	// Trace marks a line of the trace file.
	Trace = "trace"
	// TaskLog marks what a task printed: {"task_id", "log"}.
	TaskLog = "log"
)

const (
	// maxTasks is how many tasks of a run are told. Posts come from the network.
	maxTasks = 100_000
	// maxScript bounds the command of a task, in bytes.
	maxScript = 16 << 10
	// maxReport bounds Nextflow's report of an error.
	maxReport = 64 << 10
	// maxName bounds names, in bytes.
	maxName = 1000
)

// reducer makes a story of posts and rows.
type reducer struct {
	id      uuid.UUID
	header  []string // of the trace file
	session string   // whose posts are told

	tasks  map[string]*task   // by Nextflow's id, new for each attempt
	named  map[string][]*task // jobs by name, in the order in which they were heard of
	jobs   []*task            // by job: the task of its last attempt
	extra  int                // tasks beyond maxTasks
	other  int                // posts of other sessions
	failed []string           // names of jobs that failed, and were not ignored

	ended   bool
	success *bool
	message string
	report  string
	stats   json.RawMessage
}

// task is a job: what retries of it have in common.
type task struct {
	job      string // its id in messages
	name     string
	path     string
	taskID   string // of the last attempt
	attempt  int
	status   workflow.JobStatus
	retrying bool   // the last attempt failed and will be repeated
	doubt    *trace // a row says that it failed, and not whether it will be repeated
}

// NewReducer returns the reducer of a run, for events with the sources [Weblog]
// (or [engines.Hook]), [Trace] and [TaskLog].
func NewReducer(workflowID uuid.UUID) engines.Reducer { return newReducer(workflowID) }

func newReducer(id uuid.UUID) *reducer {
	return &reducer{id: id, tasks: make(map[string]*task), named: make(map[string][]*task)}
}

// Apply takes an event.
func (r *reducer) Apply(e engines.Event, to engines.Story) bool {
	switch e.Source {
	case Weblog, engines.Hook:
		p, err := parsePost(e.Line)
		if err != nil {
			return false
		}
		if at := p.at(); !at.IsZero() {
			e.At = at
		}
		r.post(p, e.At, to)
	case Trace:
		return r.row(string(e.Line), e.At, to)
	case TaskLog:
		return r.log(e.Line, to)
	}
	return true
}

func (r *reducer) post(p *post, at time.Time, to engines.Story) {
	if r.session == "" {
		r.session = string(p.RunID)
		to.Detail("mode", "weblog")
		to.Detail("session", engines.Text(clip(r.session)))
		to.Detail("run_name", engines.Text(clip(string(p.RunName))))
	}
	if string(p.RunID) != r.session { // Nextflow within a task
		r.other++
		to.Detail("other_runs_posts", r.other)
		return
	}
	m := &p.Metadata
	switch p.Event {
	case runStarted, runCompleted:
		if v := first(member[text](m.Workflow.Nextflow, "version"), member[text](m.state.Nextflow, "version")); v != "" {
			to.Detail("version", engines.Text(clip(v)))
		}
		if v := first(m.Workflow.Revision, m.Workflow.CommitID); v != "" {
			to.Detail("revision", engines.Text(clip(v)))
		}
		if m.Workflow.Resume != nil {
			to.Detail("resume", *m.Workflow.Resume)
		}
		if p.Event == runCompleted {
			r.ended = true
			r.success = m.success()
			r.message = first(m.Workflow.ErrorMessage, m.state.ErrorMessage)
			r.report = first(m.Workflow.ErrorReport, m.state.ErrorReport)
			if r.stats = m.Workflow.Stats; len(r.stats) == 0 {
				r.stats = m.state.Stats
			}
		}
	case taskSubmitted:
		r.task(p.Trace, workflow.JobQueued, at, to)
	case taskStarted:
		r.task(p.Trace, workflow.JobRunning, at, to)
	case taskCompleted, runError:
		if p.Trace != nil {
			r.task(p.Trace, ended(p.Trace), at, to)
		}
	}
}

// ended is the status of a task that is said to have ended.
func ended(t *trace) workflow.JobStatus {
	switch strings.ToUpper(string(t.Status)) {
	case "COMPLETED", "CACHED":
		return workflow.JobFinished
	case "FAILED", "ABORTED":
		return workflow.JobFailed
	case "RUNNING":
		return workflow.JobRunning
	}
	return workflow.JobQueued
}

// row takes a line of the trace file, of which Nextflow writes one when a task
// has ended, and for those that still run one when the run has.
func (r *reducer) row(line string, at time.Time, to engines.Story) bool {
	if cells := strings.Split(line, "\t"); slices.Contains(cells, "task_id") && slices.Contains(cells, "status") {
		r.header = cells
		return true
	}
	if r.header == nil {
		return strings.TrimSpace(line) == ""
	}
	t := row(r.header, line)
	if t.TaskID == "" {
		return false
	}
	switch status := ended(t); {
	case status == workflow.JobFinished:
		r.task(t, status, at, to)
	case status == workflow.JobFailed:
		// Whether it will be repeated only the post tells, as a rule.
		known := r.tasks[string(t.TaskID)]
		if known == nil {
			known = r.task(t, workflow.JobQueued, at, to)
		}
		if known != nil && known.taskID == string(t.TaskID) {
			known.doubt = t
		}
	}
	return true
}

// log takes what a task printed.
func (r *reducer) log(line []byte, to engines.Story) bool {
	var l struct {
		TaskID text   `json:"task_id"`
		Log    string `json:"log"`
	}
	if json.Unmarshal(line, &l) != nil {
		return false
	}
	// Of a task that has been repeated meanwhile the log is that of its last attempt.
	if t := r.tasks[string(l.TaskID)]; t != nil && t.taskID == string(l.TaskID) {
		to.Job(workflow.JobReport{ID: t.job, Attempt: t.attempt, Status: t.status, Logs: l.Log})
	}
	return true
}

// task takes what is said of a task. It returns its job, nil if there is none.
func (r *reducer) task(t *trace, status workflow.JobStatus, at time.Time, to engines.Story) *task {
	if t == nil || t.TaskID == "" {
		return nil
	}
	k := r.jobOf(t, to)
	if k == nil || k.taskID != string(t.TaskID) {
		return k // an attempt that has been repeated
	}
	retry := status == workflow.JobFailed && strings.EqualFold(string(t.ErrorAction), "RETRY")
	if k.status.Terminal() || k.retrying && !status.Terminal() {
		return k // said before
	}
	if retry {
		// The next attempt, which may have been submitted already, is not known by
		// an id yet.
		k.retrying = true
		to.Job(workflow.JobReport{
			ID: k.job, Attempt: k.attempt + 1, Status: workflow.JobQueued, Name: engines.Text(k.name), Path: engines.Text(k.path), Command: script(t),
		})
		return k
	}
	k.status = max(k.status, status)
	news := workflow.JobReport{
		ID: k.job, Attempt: k.attempt, Status: k.status, Name: engines.Text(k.name), Path: engines.Text(k.path), Command: script(t),
		Cached: strings.EqualFold(string(t.Status), "CACHED"), StartedAt: t.Start.time(),
	}
	if status == workflow.JobRunning && news.StartedAt.IsZero() {
		news.StartedAt = at
	}
	if status.Terminal() {
		if news.FinishedAt = t.Complete.time(); news.FinishedAt.IsZero() {
			news.FinishedAt = at
		}
		news.ExitCode = t.Exit.exitCode()
		if news.Cached {
			news.StartedAt, news.FinishedAt = time.Time{}, at // its times are those of another run
		}
	}
	if status == workflow.JobFailed {
		news.Diagnostics = why(t)
		if !strings.EqualFold(string(t.ErrorAction), "IGNORE") {
			r.failed = append(r.failed, k.name)
		}
	}
	to.Job(news)
	return k
}

// why says why a task failed.
func why(t *trace) string {
	switch {
	case strings.EqualFold(string(t.Status), "ABORTED"):
		return "Nextflow aborted this task with the run"
	case strings.EqualFold(string(t.ErrorAction), "IGNORE"):
		return "failed, and the workflow ignores it (errorStrategy)"
	case t.Exit.exitCode() != nil && t.Exit.value != 0:
		return fmt.Sprintf("exit code %d", t.Exit.value)
	}
	return ""
}

// jobOf finds the job of a task, or makes one. A repeated task has a new id, the
// same name, and an attempt of one more.
func (r *reducer) jobOf(t *trace, to engines.Story) *task {
	if k := r.tasks[string(t.TaskID)]; k != nil {
		return k
	}
	name := cmp.Or(clip(strings.TrimSpace(string(t.Name))), clip(strings.TrimSpace(string(t.Process))), "task "+clip(string(t.TaskID)))
	attempt := 1
	if t.Attempt.known && t.Attempt.value > 1 && t.Attempt.value < 1e6 {
		attempt = int(t.Attempt.value)
	}
	if attempt > 1 && len(r.tasks) < 4*maxTasks {
		for _, sure := range []bool{true, false} {
			for _, k := range r.named[name] {
				// Nextflow may submit the next attempt before it says that the last failed.
				if k.attempt < attempt && (k.retrying || !sure && !k.status.Terminal()) {
					k.attempt, k.taskID, k.status, k.retrying, k.doubt = attempt, string(t.TaskID), 0, false, nil
					r.tasks[k.taskID] = k
					return k
				}
			}
		}
	}
	if len(r.jobs) >= maxTasks || len(r.tasks) >= 4*maxTasks {
		r.extra++
		to.Detail("tasks_left_out", r.extra)
		return nil
	}
	stable := name
	if n := len(r.named[name]); n > 0 { // a tag that several tasks share
		stable = fmt.Sprintf("%s#%d", name, n+1)
	}
	path, inside := place(name)
	k := &task{job: engines.JobID(r.id, Engine, stable), name: inside, path: path, taskID: string(t.TaskID), attempt: attempt}
	r.tasks[k.taskID] = k
	r.named[name] = append(r.named[name], k)
	r.jobs = append(r.jobs, k)
	to.Total(len(r.jobs))
	return k
}

// End judges the run by what Nextflow says of it.
func (r *reducer) End(x engines.Exit, to engines.Story) engines.Ending {
	for _, k := range r.jobs {
		switch {
		case k.status.Terminal():
		case k.doubt != nil && !k.retrying:
			k.doubt.ErrorAction = cmp.Or(k.doubt.ErrorAction, "TERMINATE")
			r.task(k.doubt, workflow.JobFailed, x.At, to)
		case k.retrying:
			r.failed = append(r.failed, k.name)
			to.Job(workflow.JobReport{
				ID: k.job, Attempt: k.attempt + 1, Status: workflow.JobFailed, Name: engines.Text(k.name), Path: engines.Text(k.path), FinishedAt: x.At,
				Diagnostics: fmt.Sprintf("attempt %d failed, and the run ended before the next", k.attempt),
			})
		}
	}
	if n := member[int](r.stats, "cachedCount"); n > 0 {
		to.Detail("cached_tasks", n)
	}
	if n := member[int](r.stats, "ignoredCount"); n > 0 {
		to.Detail("ignored_tasks", n)
	}
	if r.session == "" {
		to.Detail("mode", "none")
	}
	var e engines.Ending
	switch {
	case r.success != nil && *r.success:
		e.Status = workflow.StatusFinished // failures that are ignored are none
	case r.success != nil, len(r.failed) > 0:
		e.Status = workflow.StatusFailed
	case x.Code == 0:
		e.Status = workflow.StatusFinished
	}
	if x.Stop == nil {
		e.Reason = engines.Text(clip(strings.TrimSpace(r.message)))
		if e.Reason == "" && len(r.failed) > 0 {
			e.Reason = fmt.Sprintf("%d of %d jobs failed: %s", len(r.failed), len(r.jobs), engines.Text(few(r.failed)))
		}
	}
	if report := r.report; report != "" && report != r.message {
		e.Logs = engines.Text(report[max(len(report)-maxReport, 0):])
	}
	return e
}

// place splits what Nextflow calls a task, WORKFLOW:PROCESS (tag), into the
// workflows around it and its name there.
func place(name string) (path, inside string) {
	process, _, _ := strings.Cut(name, " (")
	end := strings.LastIndexByte(process, ':')
	if end < 0 || strings.TrimSpace(name[end+1:]) == "" {
		return "", name
	}
	return strings.ReplaceAll(name[:end], ":", "/"), name[end+1:]
}

// script is the command of a task, without what surrounds it.
func script(t *trace) string {
	s := strings.TrimSpace(string(t.Script))
	if len(s) > maxScript {
		s = s[:maxScript] + "[…]"
	}
	return engines.Text(s)
}

func clip(s string) string {
	if len(s) > maxName {
		return strings.ToValidUTF8(s[:maxName], "") + "…"
	}
	return s
}

// few names a few of many.
func few(names []string) string {
	const most = 5
	if len(names) > most {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
	}
	return strings.Join(names, ", ")
}
