// Package conformance judges what an adapter publishes during a run: a report
// card for people who write one, and a gate for those who accept one. It is
// pure, and judges messages in the order in which a queue gave them.
package conformance

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"waymark/internal/wire"
	"waymark/schemas"
	"waymark/workflow"
)

// Verdict says how a check went.
type Verdict string

// The verdicts. A warning is what Waymark copes with and others may not.
const (
	Pass Verdict = "pass"
	Warn Verdict = "warn"
	Fail Verdict = "fail"
)

// Limits of what is no cause for concern.
const (
	largeBody   = 1 << 20         // bytes of a message
	largeLogs   = 64 << 20        // bytes of logs of a run
	manyASecond = 100             // messages of a run
	clockSkew   = 5 * time.Second // that clocks of two machines differ
	maxAge      = time.Hour       // of an event when it is published
)

// Message is a message as it came from a queue.
type Message struct {
	Kind schemas.Kind
	Body []byte
	// ID, ContentType and Persistent are its properties.
	ID, ContentType string
	Persistent      bool
	// At is when it arrived.
	At time.Time
}

// Check is one line of the report card.
type Check struct {
	Name    string  `json:"name"`
	Verdict Verdict `json:"verdict"`
	// Detail says what was found. Of several faults it tells the first.
	Detail string `json:"detail"`
	// Messages are the numbers of the messages with a fault, from 1, the first
	// ten of them; Faults is how many faults there are.
	Messages []int `json:"messages,omitempty"`
	Faults   int   `json:"faults,omitempty"`
}

// Run is what was seen of one run.
type Run struct {
	WorkflowID uuid.UUID `json:"workflow_id"`
	Name       string    `json:"name,omitempty"`
	Engine     string    `json:"engine,omitempty"`
	Status     string    `json:"status"`
	Messages   int       `json:"messages"`
	Total      int       `json:"total"`
	Finished   int       `json:"finished"`
	Failed     int       `json:"failed"`
	Running    int       `json:"running"`
	Stopped    int       `json:"stopped"`
}

// Card is a report card.
type Card struct {
	Messages int     `json:"messages"`
	Runs     []Run   `json:"runs"`
	Checks   []Check `json:"checks"`
}

// Worst is the worst verdict on the card.
func (c Card) Worst() Verdict {
	worst := Pass
	for _, check := range c.Checks {
		switch {
		case check.Verdict == Fail:
			return Fail
		case check.Verdict == Warn:
			worst = Warn
		}
	}
	return worst
}

// Judge reads messages and makes a report card of them. The zero value is ready.
type Judge struct {
	// Limits of messages, those of the consumer.
	Limits schemas.Limits

	n      int
	faults map[string]*Check
	ids    map[string][sha256.Size]byte
	bodies map[[sha256.Size]byte]int // of messages without an id
	runs   map[uuid.UUID]*run
	order  []uuid.UUID
}

// run is what is remembered of a run.
type run struct {
	state     *workflow.State
	messages  int
	total     int
	claimed   bool // a total was announced
	last      time.Time
	ended     map[int]workflow.Status // by attempt
	final     map[int]*workflow.StatusMessage
	logs      int
	inSecond  int
	second    time.Time
	submitted bool
	name      string
	seen      map[string]jobSeen
}

type jobSeen struct {
	attempt int
	end     workflow.JobStatus
	ran     bool
}

// The checks, in the order of the card, with what is said when all is well.
var checks = []struct{ name, well string }{
	{"schema", "every message conforms to its schema"},
	{"message-ids", "every message has an id of its own"},
	{"properties", "messages are persistent and say that they are JSON"},
	{"event-times", "every message says when it happened, in order"},
	{"beginning", "the run begins before it ends"},
	{"totals", "the total is announced, and no smaller than the jobs"},
	{"job-ids", "jobs keep their ids and do not come back from their end"},
	{"order", "nothing comes after the end of the run"},
	{"final-status", "each run ends once"},
	{"complete", "the jobs agree with the end of the run"},
	{"final-snapshot", "the last message names every job"},
	{"size", "messages and logs are of a reasonable size"},
	{"rate", "progress is coalesced"},
}

func (j *Judge) note(name string, verdict Verdict, format string, args ...any) {
	c := j.faults[name]
	if c == nil {
		c = &Check{Name: name, Verdict: verdict}
		j.faults[name] = c
	}
	if c.Detail == "" || verdict == Fail && c.Verdict == Warn {
		c.Detail, c.Verdict = fmt.Sprintf(format, args...), verdict
	}
	c.Faults++
	if len(c.Messages) < 10 && !slices.Contains(c.Messages, j.n) && j.n > 0 {
		c.Messages = append(c.Messages, j.n)
	}
}

// Observe judges the next message.
func (j *Judge) Observe(m Message) {
	if j.runs == nil {
		j.faults, j.ids = make(map[string]*Check), make(map[string][sha256.Size]byte)
		j.bodies, j.runs = make(map[[sha256.Size]byte]int), make(map[uuid.UUID]*run)
	}
	j.n++
	j.properties(m)
	if len(m.Body) > largeBody {
		j.note("size", Warn, "message %d has %d bytes: send deltas, and the end of logs", j.n, len(m.Body))
	}
	if m.Kind == schemas.SubmissionKind {
		s, err := wire.DecodeSubmission(m.Body, j.Limits)
		if err != nil {
			j.note("schema", Fail, "message %d: %v", j.n, err)
			return
		}
		r := j.run(s.ID())
		r.submitted, r.name = true, cmp.Or(r.name, s.DisplayName())
		r.state.Submit(s)
		return
	}
	s, err := wire.DecodeStatus(m.Body, j.Limits)
	if err != nil {
		j.note("schema", Fail, "message %d: %v", j.n, err)
		return
	}
	j.status(s, m.At)
}

func (j *Judge) properties(m Message) {
	digest := sha256.Sum256(m.Body)
	switch before, known := j.ids[m.ID]; {
	case m.ID == "":
		j.note("message-ids", Warn, "message %d has no message-id: when it is delivered twice, only a digest can tell its log lines", j.n)
	case known && before != digest:
		j.note("message-ids", Fail, "message %d has the id of another message, %s, and would be taken for its repetition", j.n, m.ID)
	case known:
		j.note("message-ids", Warn, "message %d was published before, under the same id: harmless, and traffic", j.n)
	default:
		j.ids[m.ID] = digest
	}
	switch {
	case !m.Persistent:
		j.note("properties", Warn, "message %d is not persistent (delivery mode 2): a restart of the broker loses it", j.n)
	case m.ContentType != "application/json":
		j.note("properties", Warn, "message %d has the content type %q, expected application/json", j.n, m.ContentType)
	}
}

func (j *Judge) run(id uuid.UUID) *run {
	r := j.runs[id]
	if r == nil {
		r = &run{
			state: workflow.NewState(workflow.Run{ID: id, Attempt: 1}), seen: make(map[string]jobSeen),
			ended: make(map[int]workflow.Status), final: make(map[int]*workflow.StatusMessage),
		}
		j.runs[id] = r
		j.order = append(j.order, id)
	}
	return r
}

func (j *Judge) status(m *workflow.StatusMessage, at time.Time) {
	r := j.run(m.WorkflowID)
	r.messages++
	attempt := max(m.Attempt, 1)

	switch {
	case m.EventTime.IsZero():
		j.note("event-times", Warn, "message %d has no event_time: it happened when it arrives", j.n)
		m.EventTime = at
	case m.EventTime.After(at.Add(clockSkew)):
		j.note("event-times", Warn, "message %d is from the future, by %v", j.n, m.EventTime.Sub(at).Round(time.Second))
	case m.EventTime.Before(at.Add(-maxAge)):
		j.note("event-times", Warn, "message %d happened %v ago", j.n, at.Sub(m.EventTime).Round(time.Second))
	case m.EventTime.Before(r.last):
		j.note("event-times", Warn, "message %d happened before the one before it, by %v", j.n, r.last.Sub(m.EventTime))
	}
	r.last = m.EventTime

	if end, ended := r.ended[attempt]; ended {
		switch {
		case m.Status.Terminal() && m.Status != end && m.Status != workflow.StatusDeleted:
			j.note("final-status", Fail, "message %d says %v of a run that was %v", j.n, m.Status, end)
		case m.Status.Terminal():
			j.note("final-status", Warn, "message %d says once more that the run is %v", j.n, m.Status)
		default:
			j.note("order", Warn, "message %d comes after the end of the run: REANA would ignore it", j.n)
		}
	} else if m.Status.Terminal() {
		r.ended[attempt] = m.Status
		if r.messages == 1 {
			j.note("beginning", Warn, "message %d ends a run of which nothing was heard before", j.n)
		}
	}
	if m.Status.Terminal() {
		r.final[attempt] = m
	}

	j.totals(r, m)
	j.jobs(r, m)
	for c := range m.LogChunks() {
		r.logs += len(c.Text)
	}
	if r.logs > largeLogs {
		j.note("size", Warn, "run %s has logs of more than %d MiB by message %d: keep their end", m.WorkflowID, largeLogs>>20, j.n)
	}
	if second := at.Truncate(time.Second); !second.Equal(r.second) {
		r.second, r.inSecond = second, 0
	}
	if r.inSecond++; r.inSecond == manyASecond+1 {
		j.note("rate", Warn, "run %s publishes more than %d messages in a second (message %d): put what happens within 100 ms into one", m.WorkflowID, manyASecond, j.n)
	}
	clone := *m
	r.state.Apply(&clone)
}

func (j *Judge) totals(r *run, m *workflow.StatusMessage) {
	t := m.Progress.Total
	if t == nil || t.Total < 1 {
		return
	}
	if t.Total < r.total {
		j.note("totals", Warn, "message %d announces %d jobs after %d: readers keep the larger number", j.n, t.Total, r.total)
	}
	r.total, r.claimed = max(r.total, t.Total), true
}

// jobs follows the jobs of a message through their states: the details first, as
// they say which attempt it is.
func (j *Judge) jobs(r *run, m *workflow.StatusMessage) {
	for i := range m.Jobs {
		j.job(r, m.Jobs[i].ID, max(m.Jobs[i].Attempt, 1), m.Jobs[i].Status)
	}
	p := &m.Progress
	for _, s := range []struct {
		name    string
		section *workflow.Section
		status  workflow.JobStatus
	}{{"running", p.Running, workflow.JobRunning}, {"finished", p.Finished, workflow.JobFinished}, {"failed", p.Failed, workflow.JobFailed}} {
		if s.section == nil {
			continue
		}
		if n := len(s.section.JobIDs); n > 0 && s.section.Total != n && s.section.Total > 0 {
			j.note("job-ids", Warn, "message %d counts %d %s jobs and names %d", j.n, s.section.Total, s.name, n)
		}
		if s.section.Total > 0 && len(s.section.JobIDs) == 0 {
			j.note("job-ids", Warn, "message %d counts %d %s jobs and names none: nobody can tell which", j.n, s.section.Total, s.name)
		}
		for _, id := range s.section.JobIDs {
			if r.seen[id].attempt <= 1 { // sections speak of first attempts
				j.job(r, id, 1, s.status)
			}
		}
	}
}

func (j *Judge) job(r *run, id string, attempt int, status workflow.JobStatus) {
	known := r.seen[id]
	if attempt > known.attempt {
		known = jobSeen{attempt: attempt}
	}
	if attempt == known.attempt {
		switch {
		case status.Terminal() && known.end.Terminal() && status != known.end:
			j.note("job-ids", Fail, "message %d says that job %.80q %v, and it had %v before", j.n, id, status, known.end)
		case status.Terminal():
			known.end = status
		case status == workflow.JobRunning:
			known.ran = true
		}
	}
	r.seen[id] = known
}

// Ended reports whether there was a run and all of them have ended.
func (j *Judge) Ended() bool {
	for _, r := range j.runs {
		if r.messages == 0 || !r.state.Run.Status().Terminal() {
			return false
		}
	}
	return len(j.runs) > 0
}

// Card returns the report card of what was seen so far.
func (j *Judge) Card() Card {
	kept := j.faults
	j.faults = make(map[string]*Check, len(kept))
	for name, c := range kept {
		copied := *c
		copied.Messages = slices.Clone(c.Messages)
		j.faults[name] = &copied
	}
	defer func() { j.faults = kept }()

	card := Card{Messages: j.n, Runs: []Run{}}
	n := j.n
	j.n = 0 // what follows is no message's fault
	if len(j.runs) == 0 {
		j.note("schema", Fail, "no message of any run was seen")
	}
	for _, id := range j.order {
		r := j.runs[id]
		j.end(id, r)
		c := r.state.Run.Counts()
		card.Runs = append(card.Runs, Run{
			WorkflowID: id, Name: r.name, Engine: r.state.Run.Engine, Status: r.state.Run.Status().String(), Messages: r.messages,
			Total: c.Total, Finished: c.Finished, Failed: c.Failed, Running: c.Running, Stopped: c.Stopped,
		})
	}
	j.n = n
	for _, c := range checks {
		if found := j.faults[c.name]; found != nil {
			card.Checks = append(card.Checks, *found)
		} else if len(j.runs) > 0 { // of nothing, nothing can be said

			card.Checks = append(card.Checks, Check{Name: c.name, Verdict: Pass, Detail: c.well})
		}
	}
	return card
}

// end judges a run as a whole.
func (j *Judge) end(id uuid.UUID, r *run) {
	if r.messages == 0 {
		j.note("beginning", Warn, "run %s was submitted and never heard of again", id)
		return
	}
	state := &r.state.Run
	known := state.Jobs.Known()
	switch {
	case !r.claimed && known == 0:
		j.note("totals", Warn, "run %s tells of no job", id)
	case !r.claimed:
		j.note("totals", Warn, "run %s never announces a total: nobody can tell how far it is", id)
	case r.claimed && known > r.total:
		j.note("totals", Fail, "run %s has %d jobs and announced %d", id, known, r.total)
	}
	final := r.final[state.Attempt]
	if final == nil {
		j.note("final-status", Fail, "run %s never says how it ended", id)
		return
	}
	counts := state.Counts()
	switch status := state.Status(); {
	case counts.Running > 0:
		j.note("complete", Fail, "run %s is %v, and %d jobs run", id, status, counts.Running)
	case status == workflow.StatusFinished && counts.Failed > 0:
		j.note("complete", Warn, "run %s is finished, and %d jobs failed", id, counts.Failed)
	case status == workflow.StatusFinished && counts.Finished < counts.Total:
		j.note("complete", Warn, "run %s is finished, and %d of %d jobs are", id, counts.Finished, counts.Total)
	case status == workflow.StatusFailed && counts.Failed == 0 && strings.TrimSpace(final.Logs) == "":
		j.note("complete", Warn, "run %s failed, no job did, and the last message does not say why", id)
	}
	named := make(map[string]bool)
	for job := range final.MentionedJobs() {
		named[job] = true
	}
	if missing := known - len(named); missing > 0 {
		j.note("final-snapshot", Warn, "the last message of run %s leaves out %d of %d jobs: whoever missed a message never hears of them", id, missing, known)
	}
}
