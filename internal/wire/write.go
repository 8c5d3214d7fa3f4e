package wire

import (
	"encoding/json"
	"math"
	"strconv"
	"time"
	"unicode/utf8"

	"waymark/schemas"
	"waymark/workflow"
)

// statusWriter is to encoding what statusReader is to decoding: it writes the
// messages that are common, checks each field against the schema's bounds as
// it writes, and leaves all others to the way through the validator, which has
// the same result, byte for byte.
type statusWriter struct {
	body  []byte
	doubt bool
}

// writeStatus returns the body of m, or nil if in doubt.
func writeStatus(m *workflow.StatusMessage) []byte {
	if !m.Status.Valid() {
		return nil
	}
	size, jobs := sizeOf(m)
	if jobs > schemas.DefaultMaxJobs || size > schemas.DefaultMaxBytes {
		return nil
	}
	w := statusWriter{body: make([]byte, 0, size)}
	w.body = append(w.body, `{"workflow_uuid":"`...)
	w.body = appendUUID(w.body, m.WorkflowID)
	w.body = append(w.body, `","logs":`...)
	w.text(m.Logs)
	w.body = append(w.body, `,"status":`...)
	w.body = strconv.AppendInt(w.body, int64(m.Status), 10)
	w.message(m)
	w.time("event_time", m.EventTime)
	w.attempt(m.Attempt)
	if utf8.RuneCountInString(m.Engine) > maxEngine {
		return nil
	}
	w.optional("engine", m.Engine)
	w.body = append(w.body, '}')
	if w.doubt || len(w.body) > schemas.DefaultMaxBytes || schemas.MoreValuesThan(w.body, schemas.DefaultMaxValues) {
		return nil
	}
	return w.body
}

// sizeOf estimates the size of the body of m, and counts the job ids and
// details in it.
func sizeOf(m *workflow.StatusMessage) (size, jobs int) {
	// Logs grow by their line ends. The constants are the size of the names,
	// the punctuation and the values that have a bound.
	size = 192 + len(m.Logs) + len(m.Logs)/16 + len(m.Progress.EngineSpecific)
	for _, s := range [...]*workflow.Section{m.Progress.Total, m.Progress.Running, m.Progress.Finished, m.Progress.Failed, m.Progress.Cached} {
		if s == nil {
			continue
		}
		size += 48
		jobs += len(s.JobIDs)
		for _, id := range s.JobIDs {
			size += len(id) + len(`"",`)
		}
	}
	jobs += len(m.Jobs)
	for i := range m.Jobs {
		j := &m.Jobs[i]
		size += 256 + len(j.ID) + len(j.Name) + len(j.Path) + len(j.Command) + len(j.Logs) + len(j.Logs)/16 + len(j.Result) + len(j.Diagnostics)
	}
	return size, jobs
}

func (w *statusWriter) message(m *workflow.StatusMessage) {
	p := &m.Progress
	progress := p.Total != nil || p.Running != nil || p.Finished != nil || p.Failed != nil || p.Cached != nil || len(p.EngineSpecific) > 0
	if !progress && len(m.Jobs) == 0 {
		return
	}
	w.key("message")
	w.body = append(w.body, '{')
	if progress {
		w.key("progress")
		w.body = append(w.body, '{')
		w.section("total", p.Total)
		w.section("running", p.Running)
		w.section("finished", p.Finished)
		w.section("failed", p.Failed)
		w.section("cached", p.Cached)
		w.raw("engine_specific", p.EngineSpecific)
		w.body = append(w.body, '}')
	}
	if len(m.Jobs) > 0 {
		w.key("jobs")
		w.body = append(w.body, '[')
		for i := range m.Jobs {
			if i > 0 {
				w.body = append(w.body, ',')
			}
			w.report(&m.Jobs[i])
		}
		w.body = append(w.body, ']')
	}
	w.body = append(w.body, '}')
}

func (w *statusWriter) section(name string, s *workflow.Section) {
	if s == nil {
		return
	}
	if s.Total > math.MaxInt32 {
		w.doubt = true
	}
	w.key(name)
	w.body = append(w.body, `{"total":`...)
	w.body = strconv.AppendInt(w.body, int64(max(s.Total, 0)), 10)
	w.body = append(w.body, `,"job_ids":[`...)
	for i, id := range s.JobIDs {
		if i > 0 {
			w.body = append(w.body, ',')
		}
		w.jobID(id)
	}
	w.body = append(w.body, ']', '}')
}

func (w *statusWriter) report(j *workflow.JobReport) {
	if len(j.Name) > maxName || len(j.Path) > maxPath || len(j.Command) > maxText || len(j.Diagnostics) > maxText {
		w.doubt = true
	}
	w.body = append(w.body, `{"job_id":`...)
	w.jobID(j.ID)
	w.optional("name", j.Name)
	w.optional("path", j.Path)
	switch {
	case j.Cached:
		w.optional("status", cached)
	case !j.Status.Valid():
		w.doubt = true
	case j.Status != workflow.JobCreated:
		w.optional("status", j.Status.String())
	}
	w.attempt(j.Attempt)
	w.optional("command", j.Command)
	if j.ExitCode != nil {
		if *j.ExitCode < math.MinInt32 || *j.ExitCode > math.MaxInt32 {
			w.doubt = true
		}
		w.key("exit_code")
		w.body = strconv.AppendInt(w.body, int64(*j.ExitCode), 10)
	}
	w.time("started_at", j.StartedAt)
	w.time("finished_at", j.FinishedAt)
	w.optional("logs", j.Logs)
	w.raw("result", j.Result)
	w.optional("diagnostics", j.Diagnostics)
	w.body = append(w.body, '}')
}

// key writes the name of a property, and a comma if it is not the first.
func (w *statusWriter) key(name string) {
	if w.body[len(w.body)-1] != '{' {
		w.body = append(w.body, ',')
	}
	w.body = append(w.body, '"')
	w.body = append(w.body, name...)
	w.body = append(w.body, '"', ':')
}

// optional writes a property, unless its text is empty.
func (w *statusWriter) optional(name, text string) {
	if text == "" {
		return
	}
	w.key(name)
	w.text(text)
}

func (w *statusWriter) attempt(n int) {
	if n == 0 {
		return
	}
	if n < 1 || n > maxAttempt {
		w.doubt = true
	}
	w.key("attempt")
	w.body = strconv.AppendInt(w.body, int64(n), 10)
}

func (w *statusWriter) time(name string, t time.Time) {
	if t.IsZero() {
		return
	}
	t = t.UTC().Truncate(time.Microsecond)
	if year := t.Year(); year < 1 || year > 9999 {
		w.doubt = true
		return
	}
	w.key(name)
	w.body = append(w.body, '"')
	w.body = t.AppendFormat(w.body, time.RFC3339Nano) // for which package time has a fast way
	w.body = append(w.body, '"')
}

// raw writes a property whose JSON text is as canonical makes it.
func (w *statusWriter) raw(name string, text json.RawMessage) {
	if len(text) == 0 {
		return
	}
	// The room for what it may hold is less deep within a message; whether it
	// is within a report or not does not matter enough to tell them apart.
	const above = 4
	if !utf8.Valid(text) {
		w.doubt = true
		return
	}
	s := scanner{text: string(text), room: schemas.DefaultMaxDepth - above}
	if s.null() {
		w.doubt = true // to be left out, with what is then empty
		return
	}
	s.canonical()
	if s.end(); s.doubt || s.blanks > 0 {
		w.doubt = true
		return
	}
	w.key(name)
	w.body = append(w.body, text...)
}

// jobID writes an id, which must be fit as it is.
func (w *statusWriter) jobID(id string) {
	var met uint8
	for i := range len(id) {
		met |= class[id[i]]
	}
	switch {
	case id == "", len(id) > maxJobID, met&(special|unfit) != 0, met&wide != 0 && !utf8.ValidString(id):
		w.doubt = true
	case met&wide != 0:
		w.text(id)
	default:
		w.body = append(w.body, '"')
		w.body = append(w.body, id...)
		w.body = append(w.body, '"')
	}
}

// text writes a string as encoding/json does, but a NUL as U+FFFD.
func (w *statusWriter) text(text string) {
	const hex = "0123456789abcdef"
	b := append(w.body, '"')
	start := 0 // of what is yet to be written
	for i := 0; i < len(text); {
		c := text[i]
		if class[c]&(special|wide) == 0 {
			i++
			continue
		}
		size := 1
		var r rune
		if c >= utf8.RuneSelf {
			r, size = utf8.DecodeRuneInString(text[i:])
			if (r != utf8.RuneError || size > 1) && r != '\u2028' && r != '\u2029' {
				i += size
				continue
			}
		}
		b = append(b, text[start:i]...)
		switch {
		case c == '"', c == '\\':
			b = append(b, '\\', c)
		case c == '\n':
			b = append(b, '\\', 'n')
		case c == '\r':
			b = append(b, '\\', 'r')
		case c == '\t':
			b = append(b, '\\', 't')
		case c == '\b':
			b = append(b, '\\', 'b')
		case c == '\f':
			b = append(b, '\\', 'f')
		case c == 0:
			b = utf8.AppendRune(b, utf8.RuneError)
		case c < ' ':
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&0xf])
		default: // not UTF-8, or one of the line ends that JavaScript knew
			b = append(b, '\\', 'u', hex[r>>12], hex[r>>8&0xf], hex[r>>4&0xf], hex[r&0xf])
		}
		i += size
		start = i
	}
	b = append(b, text[start:]...)
	w.body = append(b, '"')
}

func appendUUID(b []byte, id [16]byte) []byte {
	const hex = "0123456789abcdef"
	for i, c := range id {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			b = append(b, '-')
		}
		b = append(b, hex[c>>4], hex[c&0xf])
	}
	return b
}
