//go:build linux

package faults

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"waymark/internal/wire"
	"waymark/workflow"
)

// message is one message of the trace.
type message struct {
	submission bool   // which of the two queues
	id         string // message-id; empty as in REANA's
	body       []byte
	// dead: it belongs into the dead-letter queue. Poison is dead for what the
	// database says of it, see poisonName.
	dead, poison bool
	at           float64 // place in the trace, from 0 to 1
}

// poisonName is the name of a job that the databases of the suite refuse, by a
// constraint that the suite adds: the schema lets nothing through that an
// ordinary database would refuse.
const poisonName = "refused by the database"

// trace is what every scenario publishes, in this order.
type trace struct {
	messages []message
	// arrival lists the runs whose events carry no time: theirs is the time at
	// which they arrived, which no two runs of the suite share.
	arrival []uuid.UUID
	valid   int // messages that are not dead, repetitions not counted
	dead    []string
}

var space = uuid.NewSHA1(uuid.NameSpaceURL, []byte("waymark:faults"))

func named(format string, args ...any) uuid.UUID {
	return uuid.NewSHA1(space, fmt.Appendf(nil, format, args...))
}

// epoch is when the trace began, by its engines' clocks.
var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

const (
	runs      = 4  // with ids and times, as our publishers write them
	reanaRuns = 2  // without either, as REANA's do
	jobs      = 16 // of each run
)

// newTrace makes the same trace each time. Each message that can carries a line
// of log of its own, so that a loss and a doubling of any one of them shows.
func newTrace() *trace {
	b := &builder{}
	mixed := b.mixed(12,
		func() { b.run(0) }, func() { b.run(1) }, func() { b.run(2) }, func() { b.run(3) },
		func() { b.reana(0) }, func() { b.reana(1) }, b.malformed,
	)
	t := &trace{messages: mixed, arrival: b.arrival}
	t.count()
	return t
}

// mixed returns what each of adds adds, all at the same time, and again of some
// of it: repetitions times at most.
func (b *builder) mixed(repetitions int, adds ...func()) []message {
	random := rand.New(rand.NewPCG(1, 2))
	// Some messages are late or early.
	for _, add := range adds {
		first := len(b.messages)
		add()
		for i := range b.messages[first:] {
			b.messages[first+i].at = (float64(i) + 6*random.Float64()) / float64(len(b.messages)-first+5)
		}
	}
	slices.SortStableFunc(b.messages, func(a, b message) int { return cmp.Compare(a.at, b.at) })
	// And some come twice.
	mixed := make([]message, 0, len(b.messages)+repetitions)
	every := len(b.messages) / repetitions
	for i, m := range b.messages {
		mixed = append(mixed, m)
		if i%every == every-1 {
			if again := b.messages[random.IntN(i)]; again.id != "" && !again.dead {
				mixed = append(mixed, again)
			}
		}
	}
	return mixed
}

// count fills in what follows from the messages.
func (t *trace) count() {
	t.valid, t.dead = 0, nil
	seen := make(map[string]bool)
	for i := range t.messages {
		switch m := &t.messages[i]; {
		case m.dead:
			t.dead = append(t.dead, m.letterID())
		case m.id == "" || !seen[m.id]:
			t.valid++
			seen[m.id] = true
		}
	}
	slices.Sort(t.dead)
}

// letterID is the id that m's dead letter has; where m has none it is derived
// from the body, a contract with those who replay dead letters.
func (m *message) letterID() string {
	if m.id != "" {
		return m.id
	}
	digest := wire.Digest(m.body)
	return uuid.NewSHA1(uuid.NewSHA1(uuid.NameSpaceURL, []byte("waymark:dead-letter")), digest[:]).String()
}

// without returns the trace without the messages that drop names.
func (t *trace) without(drop func(*message) bool) *trace {
	less := &trace{arrival: t.arrival}
	for _, m := range t.messages {
		if !drop(&m) {
			less.messages = append(less.messages, m)
		}
	}
	less.count()
	return less
}

type builder struct {
	messages []message
	arrival  []uuid.UUID
	tick     int
}

// next is a second later than the last.
func (b *builder) next() time.Time {
	b.tick++
	return epoch.Add(time.Duration(b.tick) * time.Second)
}

func (b *builder) add(m message) { b.messages = append(b.messages, m) }

// status adds a message with an id, a time and a line of log.
func (b *builder) status(m *workflow.StatusMessage) {
	m.EventTime = b.next()
	m.Logs = fmt.Sprintf("line %d of %s\n", b.tick, m.WorkflowID)
	b.quiet(m)
}

// quiet adds a message with an id as it is.
func (b *builder) quiet(m *workflow.StatusMessage) {
	b.add(message{id: named("message %d", len(b.messages)).String(), body: must(wire.EncodeStatus(m))})
}

func must(body []byte, err error) []byte {
	if err != nil {
		panic(fmt.Sprintf("making the trace: %v", err))
	}
	return body
}

func (b *builder) run(n int) {
	id := named("run %d", n)
	b.add(message{submission: true, id: named("submission %d", n).String(), body: must(wire.EncodeSubmission(&workflow.Submission{
		User: "ada", Workflow: id.String(), Name: fmt.Sprintf("fit-%d", n), Engine: "serial", Priority: 10 * n,
		Parameters: json.RawMessage(`{"events":20000}`), Labels: map[string]string{"site": "cern"}, EventTime: b.next(),
	}))})
	attempts := 1
	if n == 1 {
		attempts = 2
	}
	for attempt := 1; attempt <= attempts; attempt++ {
		said := func(m workflow.StatusMessage) *workflow.StatusMessage {
			m.WorkflowID, m.Attempt, m.Engine = id, attempt, "serial"
			return &m
		}
		b.status(said(workflow.StatusMessage{Status: workflow.StatusPending}))
		b.status(said(workflow.StatusMessage{Status: workflow.StatusRunning, Progress: workflow.Progress{
			Total: workflow.Count(jobs), EngineSpecific: json.RawMessage(`{"attempt":` + fmt.Sprint(attempt) + `}`)}}))
		for j := range jobs {
			job := fmt.Sprintf("job-%d", j)
			start := b.tick
			b.status(said(workflow.StatusMessage{Status: workflow.StatusRunning, Progress: workflow.Progress{Running: workflow.JobIDs(job)}}))
			switch {
			case j%5 == 3: // fails, and is repeated
				code := 7
				b.status(said(workflow.StatusMessage{Status: workflow.StatusRunning, Jobs: []workflow.JobReport{{
					ID: job, Status: workflow.JobFailed, Attempt: 1, ExitCode: &code, Diagnostics: "out of memory", Name: "fit", Command: "root -b fit.C"}}}))
				b.status(said(workflow.StatusMessage{Status: workflow.StatusRunning, Jobs: []workflow.JobReport{{
					ID: job, Status: workflow.JobRunning, Attempt: 2, StartedAt: b.next(), Logs: fmt.Sprintf("job log %d of %s\n", start, id)}}}))
				b.status(said(workflow.StatusMessage{Status: workflow.StatusRunning, Jobs: []workflow.JobReport{{
					ID: job, Status: workflow.JobFinished, Attempt: 2, FinishedAt: b.next(), Result: json.RawMessage(`{"chi2":1.5}`)}}}))
			case j%5 == 4:
				b.status(said(workflow.StatusMessage{Status: workflow.StatusRunning, Progress: workflow.Progress{Finished: workflow.JobIDs(job), Cached: workflow.JobIDs(job)}}))
			default:
				b.status(said(workflow.StatusMessage{Status: workflow.StatusRunning, Progress: workflow.Progress{Finished: workflow.JobIDs(job)}}))
			}
			if j%6 == 5 { // says nothing new, under an id of its own
				m := said(workflow.StatusMessage{Status: workflow.StatusRunning, EventTime: epoch.Add(time.Duration(b.tick) * time.Second)})
				m.Progress.Running = workflow.JobIDs(job)
				b.quiet(m)
			}
		}
		last := workflow.StatusFinished
		if n == 1 && attempt == 1 {
			last = workflow.StatusFailed
		}
		if n == 2 {
			last = workflow.StatusStopped
		}
		b.status(said(workflow.StatusMessage{Status: last}))
	}
	if n == 2 {
		b.status(&workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusDeleted})
	}
}

// reana adds a run as REANA's engines report one: no ids, no times, JSON in JSON.
func (b *builder) reana(n int) {
	id := named("REANA run %d", n)
	b.arrival = append(b.arrival, id)
	say := func(status workflow.Status, logs string, p workflow.Progress) {
		b.add(message{body: wire.Reana(must(wire.EncodeStatus(&workflow.StatusMessage{WorkflowID: id, Status: status, Logs: logs, Progress: p})))})
	}
	say(workflow.StatusRunning, "", workflow.Progress{Total: workflow.Count(jobs)})
	for j := range jobs {
		job := named("REANA job %d of %d", j, n).String()
		say(workflow.StatusRunning, fmt.Sprintf("started %s\n", job), workflow.Progress{Running: workflow.JobIDs(job)})
		say(workflow.StatusRunning, fmt.Sprintf("finished %s\n", job), workflow.Progress{Finished: workflow.JobIDs(job)})
	}
	// The same words twice are two lines, not a repetition.
	for range 2 {
		say(workflow.StatusRunning, "still alive\n", workflow.Progress{})
	}
	say(workflow.StatusFinished, "that is all\n", workflow.Progress{})
}

// malformed adds what nobody can apply.
func (b *builder) malformed() {
	id := named("nobody's run").String()
	for i, body := range []string{
		`not JSON`,
		``,
		`{"workflow_uuid": "` + id + `", "status": 99, "logs": "", "message": {}}`,
		`{"workflow_uuid": "` + id + `"`,
		`{"status": 1, "logs": "", "message": {}}`,
		`{"workflow_uuid": "` + id + `", "status": 1, "message": {"progress": {"running": {"total": 1, "job_ids": "one"}}}}`,
		"\xff\xfe{\x00}\x00",
		strings.Repeat(`[`, 500),
		`{"workflow_uuid": "` + id + `", "status": "perhaps", "logs": "", "message": {}}`,
	} {
		m := message{body: []byte(body), dead: true}
		if i%3 != 0 {
			m.id = named("malformed %d", i).String()
		}
		b.add(m)
	}
	b.add(message{
		id: named("poison").String(), dead: true, poison: true,
		body: must(wire.EncodeStatus(&workflow.StatusMessage{WorkflowID: named("run 0"), Status: workflow.StatusRunning, EventTime: epoch, Attempt: 1,
			Jobs: []workflow.JobReport{{ID: "poison", Name: poisonName}}, Logs: "never seen\n"})),
	})
	b.add(message{submission: true, id: named("malformed submission").String(), dead: true, body: []byte(`{"user": "ada", "workflow_id_or_name": 7}`)})
}
