package wire

import (
	"encoding/json"
	"math"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"waymark/schemas"
	"waymark/workflow"
)

// The JSON Schema is the authority on what is accepted, and its validator the
// largest cost of a message. statusReader spares it for the messages that make
// up nearly all traffic: it reads them in one pass and accepts only what, after
// Upcast, the schema surely accepts, as the same message. It says nothing of
// any other, and never refuses.
//
// It covers what REANA's serial, CWL and Snakemake engines, its wrapper and its
// scheduler send, and most of what EncodeStatus writes. It does not cover
// Yadage's snapshots, whose graph Upcast reads; job ids and kept JSON with
// escapes; kept JSON that is not canonical, or without an engine's name; more
// than one layer of string; and forms that only experiments have sent.
//
// So a change that makes the schema or Upcast stricter needs one here; the
// differential tests find it. One that makes them more tolerant does not.

// statusReader reads the text of a status message.
type statusReader struct {
	scanner
	jobs int // how many more job ids and details the message may hold
}

// fastStatus is a message with room for its sections, to allocate them at once.
type fastStatus struct {
	workflow.StatusMessage
	sections [5]workflow.Section
}

var readers = sync.Pool{New: func() any { return new(statusReader) }}

// maxScratch is the largest buffer that is kept for other messages.
const maxScratch = 1 << 20

// readStatus returns the message that body holds, or nil if in doubt. The
// strings of the message share one copy of the text.
func readStatus(body []byte, lim schemas.Limits) *workflow.StatusMessage {
	lim = lim.WithDefaults()
	if len(body) > lim.MaxBytes || !utf8.Valid(body) {
		return nil
	}
	r := readers.Get().(*statusReader)
	defer func() {
		r.text = ""
		if cap(r.buf) > maxScratch {
			r.buf = nil
		}
		readers.Put(r)
	}()
	r.scanner = scanner{
		buf: r.buf,
		// A greater depth than the default could be one that encoding/json refuses.
		room: min(lim.MaxDepth, schemas.DefaultMaxDepth),
	}
	r.jobs = lim.MaxJobs
	r.unwrap(body)
	if schemas.MoreValuesThan(r.text, lim.MaxValues) {
		return nil
	}
	var m fastStatus
	r.status(&m)
	r.end()
	if r.doubt {
		return nil
	}
	return &m.StatusMessage
}

// unwrap makes the object in body, or in the string in body, the text to read.
func (r *statusReader) unwrap(body []byte) {
	start := 0
	for start < len(body) && isBlank(body[start]) {
		start++
	}
	if start == len(body) || body[start] != '"' {
		r.text = string(body) // what is no object fails as one
		return
	}
	var n int
	r.buf, n = unescape(r.buf[:0], body[start+1:])
	if n < 0 {
		r.giveUp()
		return
	}
	for _, c := range body[start+1+n:] {
		if !isBlank(c) {
			r.giveUp()
			return
		}
	}
	r.text = string(r.buf)
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

// keys is the set of those properties of an object that were met. Of a
// property that is given twice the last counts; rather than to undo the first,
// the readers doubt.
type keys uint

func (r *statusReader) once(met *keys, key keys) {
	if *met&key != 0 {
		r.giveUp()
	}
	*met |= key
}

func (r *statusReader) status(m *fastStatus) {
	const (
		workflowUUID keys = 1 << iota
		logs
		status
		message
		eventTime
		attempt
		engine
		required = workflowUUID | status
	)
	var met keys
	r.open('{')
	for n := 0; r.more(n, '}'); n++ {
		switch r.key() {
		case "workflow_uuid":
			r.once(&met, workflowUUID)
			m.WorkflowID = r.uuid()
		case "logs":
			r.once(&met, logs)
			m.Logs = r.optional()
		case "status":
			r.once(&met, status)
			m.Status = workflow.Status(r.integer(0, workflow.NumStatuses-1))
		case "message":
			r.once(&met, message)
			if !r.null() {
				r.message(m)
			}
		case "event_time":
			r.once(&met, eventTime)
			m.EventTime = r.time()
		case "attempt":
			r.once(&met, attempt)
			m.Attempt = r.attempt()
		case "engine":
			r.once(&met, engine)
			if !r.null() {
				if m.Engine = r.string(); m.Engine == "" || len(m.Engine) > maxEngine {
					r.giveUp()
				}
			}
		default:
			r.skip()
		}
	}
	if met&required != required {
		r.giveUp()
	}
	if m.Progress.EngineSpecific != nil && m.Engine == "" {
		r.giveUp() // perhaps a snapshot of Yadage's
	}
}

func (r *statusReader) message(m *fastStatus) {
	const (
		progress keys = 1 << iota
		jobs
	)
	var met keys
	r.open('{')
	for n := 0; r.more(n, '}'); n++ {
		switch r.key() {
		case "progress":
			r.once(&met, progress)
			if !r.null() {
				r.progress(m)
			}
		case "jobs":
			r.once(&met, jobs)
			if !r.null() {
				m.Jobs = r.reports()
			}
		default:
			r.skip()
		}
	}
}

func (r *statusReader) progress(m *fastStatus) {
	const (
		total keys = 1 << iota
		running
		finished
		failed
		cached
		engineSpecific
	)
	p := &m.Progress
	var met keys
	r.open('{')
	for n := 0; r.more(n, '}'); n++ {
		switch r.key() {
		case "total":
			r.once(&met, total)
			p.Total = r.section(&m.sections[0])
		case "running":
			r.once(&met, running)
			p.Running = r.section(&m.sections[1])
		case "finished":
			r.once(&met, finished)
			p.Finished = r.section(&m.sections[2])
		case "failed":
			r.once(&met, failed)
			p.Failed = r.section(&m.sections[3])
		case "cached":
			r.once(&met, cached)
			p.Cached = r.section(&m.sections[4])
		case "engine_specific":
			r.once(&met, engineSpecific)
			p.EngineSpecific = r.raw()
		default:
			r.skip()
		}
	}
}

// section reads into s, and returns it, or nil for null.
func (r *statusReader) section(s *workflow.Section) *workflow.Section {
	const (
		total keys = 1 << iota
		jobIDs
	)
	if r.null() {
		return nil
	}
	counted := false
	var met keys
	r.open('{')
	for n := 0; r.more(n, '}'); n++ {
		switch r.key() {
		case "total":
			r.once(&met, total)
			if !r.null() {
				// REANA's CWL engine sends -1.
				s.Total = max(r.integer(math.MinInt32, math.MaxInt32), 0)
				counted = true
			}
		case "job_ids":
			r.once(&met, jobIDs)
			if !r.null() {
				s.JobIDs = r.jobIDs()
			}
		default:
			r.skip()
		}
	}
	if !counted {
		s.Total = len(s.JobIDs)
	}
	return s
}

// jobIDs reads ids, and drops the null and empty ones as Upcast does.
func (r *statusReader) jobIDs() (ids []string) {
	r.open('[')
	for n := 0; r.more(n, ']'); n++ {
		if r.null() {
			continue
		}
		id := r.jobID()
		if id == "" {
			continue
		}
		if ids == nil {
			ids = make([]string, 0, 1+min(r.jobs, r.commas()))
		}
		ids = append(ids, id)
		r.count()
	}
	return ids
}

// commas counts those before the end of the array that is being read. Where
// ids hold commas or brackets it is wrong, and good enough to reserve memory.
func (r *statusReader) commas() int {
	rest := r.text[r.at:]
	return strings.Count(rest[:max(strings.IndexByte(rest, ']'), 0)], ",")
}

// count counts a job id or job details.
func (r *statusReader) count() {
	if r.jobs--; r.jobs < 0 {
		r.giveUp()
	}
}

// The schema counts characters, these bytes, which are never fewer.
const (
	maxEngine = 64
	maxJobID  = 256
	maxName   = 1024
	maxPath   = 4096
	maxText   = 1 << 20
)

func (r *statusReader) jobID() string {
	id := r.plain(special | unfit)
	if len(id) > maxJobID {
		r.giveUp()
		return ""
	}
	return id
}

func (r *statusReader) reports() (reports []workflow.JobReport) {
	// A report is large, and so is the cost of a wrong guess.
	const most = 256
	r.open('[')
	for n := 0; r.more(n, ']'); n++ {
		if reports == nil {
			reports = make([]workflow.JobReport, 0, max(1, min(r.jobs, most, strings.Count(r.text[r.at:], `"job_id"`))))
		}
		reports = append(reports, workflow.JobReport{})
		r.report(&reports[n])
		r.count()
	}
	return reports
}

func (r *statusReader) report(j *workflow.JobReport) {
	const (
		jobID keys = 1 << iota
		name
		path
		status
		attempt
		command
		exitCode
		startedAt
		finishedAt
		logs
		result
		diagnostics
	)
	var met keys
	r.open('{')
	for n := 0; r.more(n, '}'); n++ {
		switch r.key() {
		case "job_id":
			r.once(&met, jobID)
			j.ID = r.jobID()
		case "name":
			r.once(&met, name)
			j.Name = r.short(maxName)
		case "path":
			r.once(&met, path)
			j.Path = r.short(maxPath)
		case "status":
			r.once(&met, status)
			if !r.null() {
				j.Status, j.Cached = r.jobStatus()
			}
		case "attempt":
			r.once(&met, attempt)
			j.Attempt = r.attempt()
		case "command":
			r.once(&met, command)
			j.Command = r.short(maxText)
		case "exit_code":
			r.once(&met, exitCode)
			if !r.null() {
				j.ExitCode = new(r.integer(math.MinInt32, math.MaxInt32))
			}
		case "started_at":
			r.once(&met, startedAt)
			j.StartedAt = r.time()
		case "finished_at":
			r.once(&met, finishedAt)
			j.FinishedAt = r.time()
		case "logs":
			r.once(&met, logs)
			j.Logs = r.optional()
		case "result":
			r.once(&met, result)
			j.Result = r.raw()
		case "diagnostics":
			r.once(&met, diagnostics)
			j.Diagnostics = r.short(maxText)
		default:
			r.skip()
		}
	}
	if j.ID == "" {
		r.giveUp()
	}
}

// uuid reads the form with dashes, in any case. Upcast takes several others.
func (r *statusReader) uuid() uuid.UUID {
	text := r.plain(special)
	id, err := uuid.Parse(text)
	if len(text) != 36 || err != nil {
		r.giveUp()
	}
	return id
}

// optional reads text or null, which means none.
func (r *statusReader) optional() string {
	if r.null() {
		return ""
	}
	return r.string()
}

// short is optional for text that the schema bounds.
func (r *statusReader) short(most int) string {
	text := r.optional()
	if len(text) > most {
		r.giveUp()
	}
	return text
}

// maxAttempt is the schema's bound.
const maxAttempt = 1_000_000

func (r *statusReader) attempt() int {
	if r.null() {
		return 0
	}
	return r.integer(1, maxAttempt)
}

// jobStatus reads one of the words of the schema.
func (r *statusReader) jobStatus() (status workflow.JobStatus, isCached bool) {
	switch r.plain(special) {
	case "created":
		return workflow.JobCreated, false
	case "queued":
		return workflow.JobQueued, false
	case "running":
		return workflow.JobRunning, false
	case "finished":
		return workflow.JobFinished, false
	case "failed":
		return workflow.JobFailed, false
	case "stopped":
		return workflow.JobStopped, false
	case cached:
		return workflow.JobFinished, true
	}
	r.giveUp()
	return 0, false
}

// time reads a time in UTC, or null.
func (r *statusReader) time() time.Time {
	if r.null() {
		return time.Time{}
	}
	text := r.plain(special)
	if !plainTime(text) {
		r.giveUp()
		return time.Time{}
	}
	t := moment(text)
	// moment gives the zero time for what is none, such as a 30th of February.
	if year := t.Year(); t.IsZero() || year < 1 || year > 9999 {
		r.giveUp()
	}
	return t
}

// plainTime reports whether text has the form 2026-01-31T12:00:00.123Z; the
// fraction may be absent, and the zone be +00:00 as Python has it. Whether it
// is a time is for package time to say, which is kinder in form than the schema.
func plainTime(text string) bool {
	const form = "dddd-dd-ddTdd:dd:dd"
	if len(text) < len(form) {
		return false
	}
	for i := range len(form) {
		if form[i] != 'd' && form[i] != text[i] || form[i] == 'd' && !isDigit(text[i]) {
			return false
		}
	}
	rest := text[len(form):]
	if fraction, ok := strings.CutPrefix(rest, "."); ok {
		rest = strings.TrimLeft(fraction, "0123456789")
	}
	return rest == "Z" || rest == "+00:00"
}

// raw reads a value to be kept as it is, nil for null.
func (r *statusReader) raw() json.RawMessage {
	if r.null() {
		return nil
	}
	text := r.canonical()
	if r.doubt {
		return nil
	}
	return json.RawMessage(text)
}
