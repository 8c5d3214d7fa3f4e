package bench

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"waymark/internal/wire"
	"waymark/publisher"
	"waymark/workflow"
)

// traffic is what engines would send: for each workflow its total, then running
// and finished of each job, then its end. The messages of several workflows
// alternate; when all have ended, as many new ones begin.
type traffic struct {
	jobs int
	ids  []uuid.UUID
	turn int // whose message is next
	step int // and which of its messages
}

func newTraffic(workflows, jobs int) *traffic {
	return &traffic{jobs: jobs, ids: make([]uuid.UUID, workflows)}
}

// event is one message before it is decided how it looks.
type event struct {
	workflow uuid.UUID
	status   workflow.Status
	section  string // "total", "running", "finished", or empty for the end
	job      string
	jobs     int
}

// messages is how many messages a workflow of so many jobs sends.
func messages(jobs int) int { return 2*jobs + 2 }

func (t *traffic) next() event {
	if t.step == 0 {
		t.ids[t.turn] = uuid.New() // random, as REANA's are: rows of neighbours lie apart
	}
	e := event{workflow: t.ids[t.turn], status: workflow.StatusRunning, jobs: t.jobs}
	switch {
	case t.step == 0:
		e.section = "total"
	case t.step == messages(t.jobs)-1:
		e.status = workflow.StatusFinished
	case t.step%2 == 1:
		e.section, e.job = "running", jobID(e.workflow, t.step/2)
	default:
		e.section, e.job = "finished", jobID(e.workflow, t.step/2-1)
	}
	if t.turn++; t.turn == len(t.ids) {
		t.turn = 0
		if t.step++; t.step == messages(t.jobs) {
			t.step = 0
		}
	}
	return e
}

// jobID is a UUID, as REANA's job ids are.
func jobID(id uuid.UUID, job int) string {
	return uuid.NewSHA1(id, binary.BigEndian.AppendUint32(nil, uint32(job))).String()
}

// message is e as the consumer hands it to the store.
func (e event) message(at time.Time) *workflow.StatusMessage {
	m := &workflow.StatusMessage{WorkflowID: e.workflow, Status: e.status, EventTime: at}
	switch e.section {
	case "total":
		m.Progress.Total = workflow.Count(e.jobs)
	case "running":
		m.Progress.Running = workflow.JobIDs(e.job)
	case "finished":
		m.Progress.Finished = workflow.JobIDs(e.job)
	}
	return m
}

// delivery is e with an id, as a publisher of ours would have sent it.
func (e event) delivery(at time.Time) workflow.Delivery {
	return workflow.Delivery{MessageID: uuid.Must(uuid.NewV7()).String(), Status: e.message(at)}
}

// logText fills large bodies.
const logText = "INFO step 3 has read 4096 events, 17 were selected. "

// fillWithSpaces is up to how many bytes are filled with spaces, which have to
// be read and ask nothing more of the database.
const fillWithSpaces = 256

// body is e as bytes, brought up to size. Small bodies have the form that
// REANA's engines write. Larger ones also carry event time, engine and attempt,
// as ours do, and then spaces; of very large ones the rest is log text, which is
// stored, as in life large messages are large for their logs.
func (e event) body(size int, encoding publisher.Encoding, at time.Time) []byte {
	b := e.encode("", "", "", encoding)
	if len(b) >= size {
		return b
	}
	more := fmt.Sprintf(`"event_time": %q, "engine": "serial", "attempt": 1, `, at.UTC().Format("2006-01-02T15:04:05.000000Z07:00"))
	if longer := e.encode(more, "", "", encoding); len(longer) <= size {
		b = longer
	} else {
		more = ""
	}
	switch missing := size - len(b); {
	case missing == 0:
		return b
	case missing <= fillWithSpaces:
		return e.encode(more, "", strings.Repeat(" ", missing), encoding)
	default:
		return e.encode(more, strings.Repeat(logText, missing/len(logText)+1)[:missing], "", encoding)
	}
}

// encode writes e with more keys, a log and spaces, none of which hold what
// JSON would have to escape but for the quotes of the keys.
func (e event) encode(more, logs, spaces string, encoding publisher.Encoding) []byte {
	b := make([]byte, 0, 512+len(logs))
	b = fmt.Appendf(b, `{"workflow_uuid": %q, "logs": %q, "status": %d, %s"message": {"progress": {%s`, e.workflow, logs, e.status, more, spaces)
	switch e.section {
	case "total":
		b = fmt.Appendf(b, `"total": {"total": %d, "job_ids": []}`, e.jobs)
	case "running", "finished":
		b = fmt.Appendf(b, `%q: {"total": 1, "job_ids": [%q]}`, e.section, e.job)
	}
	b = append(b, "}}}"...)
	if encoding == publisher.EncodingReana {
		return wire.Reana(b)
	}
	return b
}
