package engines

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/cenkalti/backoff/v5"
	"github.com/google/uuid"

	"waymark/workflow"
)

// Bounds of one message and of what waits for the broker. They keep a message
// far below what consumers accept, and a run of any length in little memory.
const (
	maxMessageJobs  = 1000    // job details of one message
	maxMessageText  = 1 << 20 // bytes of text of one message
	maxSnapshotJobs = 50_000  // job ids of the terminal message; beyond, the deltas have said it all
	maxJobLog       = 2 * TailSize
	maxRunLog       = 4 * TailSize
	maxPendingText  = 16 << 20 // bytes of text about jobs that wait for the broker
	maxCommand      = TailSize // characters of a command, and of diagnostics
	maxResult       = 1 << 20  // bytes of the result of a job
	maxResultDepth  = 60       // of its objects and arrays: readers allow 64, the message's own included
	// specificPause is for each byte of engine_specific: a graph of thousands
	// of jobs that grows with each of them would be most of the traffic.
	specificPause = time.Second / (64 << 10)
)

// spoolPatience is how long Finish waits for the broker before it leaves the
// details to a publisher that spools. Until the end of the run is on disk, it
// could be lost with this process.
const spoolPatience = time.Second

// quietWait is how long Finish waits for the broker before it says that it does.
const quietWait = 2 * time.Second

// Config says what a Reporter reports, and how.
type Config struct {
	// Attempt counts explicit restarts of the run. Default 1, at most
	// [workflow.MaxAttempt].
	Attempt int
	// Engine names the engine, such as "serial". Required.
	Engine string
	// FinalTimeout is how long Finish tries to deliver the end of the run.
	// Default 30 s.
	FinalTimeout time.Duration
	// Interval is the least time between the beginnings of two progress
	// messages; what happens in between travels together. A failed job does
	// not wait for it. Default 100 ms; negative means none.
	Interval time.Duration
	// Logger hears of trouble with the broker, and of what is refused, each
	// kind once, and of an end that has to wait. Default: none.
	Logger *slog.Logger
	// Publisher takes the messages. Default: none, and nothing is reported.
	Publisher Publisher
	// WorkflowID names the run. Required.
	WorkflowID uuid.UUID
}

// Report says what became of the messages of a run.
// Published = Confirmed + Spooled + Unsent.
type Report struct {
	// Published counts the messages that were handed to the publisher, the
	// submission included, each once however often it was tried.
	Published int
	// Confirmed counts those that are safe at the broker.
	Confirmed int
	// Spooled counts those that the publisher keeps on disk, see [ErrSpooled].
	// It may have delivered some of them since.
	Spooled int
	// Unsent counts those that are neither. Some of them may have reached the
	// broker all the same.
	Unsent int
	// Coalesced counts changes of jobs that were not told one by one, because
	// a later change of the same job overtook them on the way. Nothing is lost by it.
	Coalesced int
	// Dropped counts pieces of detail (logs, details of jobs) that were left
	// out for want of memory, or of time at the end, or because no message may
	// hold them.
	Dropped int
	// Terminal is the message that says how the run ended, if it is among the
	// unsent: nobody knows the end of this run unless it is published later.
	Terminal *workflow.StatusMessage
	// Err is why the last message that is unsent is; nil if none is.
	Err error
}

// A Reporter tells a run's story to a Publisher. Its methods may be called
// from several goroutines, return at once, and do nothing after Finish has
// been called.
//
//	r := engines.NewReporter(ctx, engines.Config{…})
//	r.Submit(&workflow.Submission{…})
//	r.Total(3)
//	r.Begin()
//	r.Job(workflow.JobReport{ID: id, Status: workflow.JobRunning, …})
//	r.Job(workflow.JobReport{ID: id, Status: workflow.JobFinished, …})
//	report := r.Finish(ctx, workflow.StatusFinished, "")
type Reporter struct {
	cfg       Config
	wake      chan struct{} // holds a token while there is something to send
	finishing chan struct{} // closed by Finish
	done      chan struct{} // closed when the goroutine has ended

	last time.Time // when the goroutine began the last progress message

	mu         sync.Mutex
	began      bool // Begin was called
	begun      time.Time
	announced  bool // that the run began is told, and safe
	clock      time.Time
	submission *workflow.Submission // not confirmed yet
	submitting bool                 // it has been handed to the publisher
	total      int                  // -1 while it is not known
	specific   func() json.RawMessage
	heavy      time.Time // when engine_specific may be sent again
	waiting    bool      // a timer runs until then
	news       news      // of the run as a whole
	jobs       map[string]*job
	order      []*job // all jobs, in the order in which they were heard of
	pending    []*job // those with something unsent, oldest first
	text       int    // bytes of text in pending, see weight
	most       int    // jobs in the next message
	suspects   int    // of the oldest pending jobs, one of which was refused
	parts      parts  // what the next message may carry
	apart      bool   // the end was refused with details: it goes without
	urgent     bool
	final      *ending
	report     Report
	again      bool // the next status message repeats one that was not confirmed
	logged     map[string]bool
}

// news is what is unsent about the run itself.
type news struct {
	any      bool
	total    bool
	specific bool
	logs     string
	at       time.Time // of the latest thing to be told
}

// beginTolerance is how much later than the beginning of the run news may be
// that travel with it, under its time.
const beginTolerance = 100 * time.Millisecond

// parts says what a message may carry. After one was refused, news of the run
// and of its jobs go apart until it is known which of them nobody takes.
type parts int

const (
	all parts = iota
	onlyNews
	onlyJobs
)

// job is what a Reporter remembers of a job: enough for the last snapshot.
type job struct {
	id      string
	attempt int
	status  workflow.JobStatus
	cached  bool
	unsent  *workflow.JobReport
}

type ending struct {
	left   bool // by this Reporter: the run has not ended
	status workflow.Status
	logs   string
	at     time.Time
	// details is when what is not the end itself must be through, deadline
	// when everything must.
	details, deadline context.Context
}

// NewReporter starts a Reporter. Only Finish ends it: the end of ctx does not,
// because a run that is stopped has an end to report. It panics if the
// configuration lacks what is required.
func NewReporter(ctx context.Context, cfg Config) *Reporter {
	if cfg.Engine == "" || cfg.WorkflowID == uuid.Nil {
		panic("engines: a Reporter needs an engine and a workflow id")
	}
	cfg.Attempt = min(max(cfg.Attempt, 1), workflow.MaxAttempt)
	if cfg.FinalTimeout <= 0 {
		cfg.FinalTimeout = 30 * time.Second
	}
	if cfg.Interval == 0 {
		cfg.Interval = 100 * time.Millisecond
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Reporter{
		total:     -1,
		most:      maxMessageJobs,
		cfg:       cfg,
		wake:      make(chan struct{}, 1),
		finishing: make(chan struct{}),
		done:      make(chan struct{}),
		jobs:      make(map[string]*job),
		logged:    make(map[string]bool),
	}
	if cfg.Publisher == nil {
		close(r.done)
	} else {
		go r.run(context.WithoutCancel(ctx))
	}
	return r
}

// Submit registers the run. It is published before everything else; s must
// not change afterwards. A zero EventTime becomes the present, a zero Attempt
// the run's. One that is refused ([ErrInvalid]) is left out, and stays among the
// unsent.
func (r *Reporter) Submit(s *workflow.Submission) {
	r.change(false, func(at time.Time) {
		submission := *s
		submission.Name, submission.User = fit(s.Name, workflow.MaxName), fit(s.User, workflow.MaxName)
		if submission.EventTime.IsZero() {
			submission.EventTime = at
		}
		if submission.Attempt == 0 {
			submission.Attempt = r.cfg.Attempt
		}
		r.submission = &submission
	})
}

// Begin says that the engine runs. No status is published before: set what is
// known from the start (Total, EngineSpecific, Log), then begin.
func (r *Reporter) Begin() { r.BeginAt(time.Time{}) }

// BeginAt is Begin for an engine that has run since a time that is known. A zero
// time, and one to come, are the present.
func (r *Reporter) BeginAt(since time.Time) {
	r.change(false, func(at time.Time) {
		r.began, r.begun = true, at
		if since = since.UTC().Truncate(time.Microsecond); !since.IsZero() && since.Before(at) {
			r.begun = since
		}
		if !r.news.any {
			r.news.at = r.begun // of this news itself
		}
		r.news.any = true
	})
}

// Total announces how many jobs the run has, or has by now, at most
// [workflow.MaxTotal]. Say nothing while it is not known.
func (r *Reporter) Total(n int) {
	n = min(n, workflow.MaxTotal)
	r.change(false, func(at time.Time) {
		if n != r.total {
			r.total = n
			r.news.any, r.news.total, r.news.at = true, true, at
		}
	})
}

// EngineSpecific publishes a JSON document for people who know the engine, by
// convention an object whose "dag" has the keys "edges" and "nodes". It
// replaces an earlier one. doc is called when a message is made of it, perhaps
// by another goroutine and with the Reporter locked. One that is refused
// ([ErrInvalid]) is left out. A large document is not
// sent with every message, but each 64 KiB of it cost a second's pause; the
// terminal message has the latest in any case.
func (r *Reporter) EngineSpecific(doc func() json.RawMessage) {
	r.change(false, func(at time.Time) {
		r.specific = doc
		r.news.specific, r.news.at = true, at
		if wait := time.Until(r.heavy); wait > 0 {
			if !r.waiting {
				r.waiting = true
				time.AfterFunc(wait, r.nudge)
			}
			return
		}
		r.news.any = true
	})
}

// nudge has what was held back of engine_specific sent.
func (r *Reporter) nudge() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting = false
	if r.final == nil && r.news.specific {
		r.news.any = true
		r.signal()
	}
}

// Log appends text to the log of the run. Of more than 256 KiB that wait to
// be published the beginning is left out.
func (r *Reporter) Log(text string) {
	r.change(false, func(at time.Time) {
		logs := r.news.logs + Text(text)
		if len(logs) > maxRunLog {
			logs = shorten(logs, maxRunLog)
			r.report.Dropped++
		}
		r.news.any, r.news.logs, r.news.at = true, logs, at
	})
}

// Job says what is new of one job: its ID and status, and any details that are
// known now. Logs are appended to those reported before. Within one attempt of
// a job an end stands: later calls may only add details to it. Report a failed
// job only when the engine will not try it again. It is told as [Bounded] makes it.
func (r *Reporter) Job(news workflow.JobReport) {
	news, dropped := Bounded(r.cfg.WorkflowID, r.cfg.Engine, news)
	r.change(news.Status == workflow.JobFailed, func(at time.Time) {
		r.report.Dropped += dropped
		j, known := r.jobs[news.ID]
		if !known {
			j = &job{id: news.ID}
			r.jobs[news.ID] = j
			r.order = append(r.order, j)
		}
		switch {
		case news.Attempt < j.attempt:
			return // superseded
		case news.Attempt > j.attempt:
			j.attempt, j.status, j.cached = news.Attempt, news.Status, news.Cached
		case !j.status.Terminal():
			j.status, j.cached = max(j.status, news.Status), news.Cached
		}
		news.Status, news.Cached = j.status, j.cached
		if j.unsent == nil {
			j.unsent = &workflow.JobReport{}
			r.pending = append(r.pending, j)
		} else {
			r.report.Coalesced++
		}
		r.join(j, *j.unsent, news)
		r.news.at = at
		r.shed()
	})
}

// Bounded makes of news of a job what messages may hold, and counts what that
// left out. Texts that are too long are cut: names at 1024 characters, paths at
// 4096, commands and diagnostics at 64 Ki; attempts and exit codes become the
// nearest that a message may hold, and an id that none may hold becomes a
// [JobID]. A Result is left out if it is not JSON, larger than 1 MiB, or nested
// more than 60 deep, as are times that are not in the years 1 to 9999.
func Bounded(workflowID uuid.UUID, engine string, news workflow.JobReport) (bounded workflow.JobReport, dropped int) {
	news.Name, news.Path = fit(news.Name, workflow.MaxJobName), fit(news.Path, workflow.MaxJobPath)
	news.Command, news.Diagnostics = fit(news.Command, maxCommand), fit(news.Diagnostics, maxCommand)
	news.Logs = Text(news.Logs)
	if !validJobID(news.ID) { // which nobody could take, cut or whole
		news.ID = JobID(workflowID, engine, news.ID)
	}
	news.Attempt = min(max(news.Attempt, 1), workflow.MaxAttempt)
	if news.ExitCode != nil {
		news.ExitCode = new(min(max(*news.ExitCode, math.MinInt32), math.MaxInt32))
	}
	if news.Result != nil && !validResult(news.Result) {
		news.Result = nil
		dropped++
	}
	for _, at := range [...]*time.Time{&news.StartedAt, &news.FinishedAt} {
		if year := at.UTC().Year(); year < 1 || year > 9999 {
			*at = time.Time{}
			dropped++
		}
	}
	return news, dropped
}

// validJobID reports whether messages may name a job so.
func validJobID(id string) bool {
	return id != "" && len(id) <= workflow.MaxJobID && utf8.ValidString(id) && !strings.ContainsFunc(id, unicode.IsControl)
}

// validResult reports whether a job may give back doc.
func validResult(doc json.RawMessage) bool {
	return len(doc) <= maxResult && json.Valid(doc) && depth(doc) <= maxResultDepth
}

// depth is how deep the objects and arrays of valid JSON are nested.
func depth(doc json.RawMessage) (deepest int) {
	for i, now := 0, 0; i < len(doc); i++ {
		switch doc[i] {
		case '{', '[':
			now++
			deepest = max(deepest, now)
		case '}', ']':
			now--
		case '"':
			for i++; doc[i] != '"'; i++ {
				if doc[i] == '\\' {
					i++
				}
			}
		}
	}
	return deepest
}

// join makes what is unsent of j of older and newer news. The caller holds r.mu.
func (r *Reporter) join(j *job, older, newer workflow.JobReport) {
	joined, cut := join(older, newer)
	if cut {
		r.report.Dropped++
	}
	r.text += weight(&joined) - weight(j.unsent)
	*j.unsent = joined
}

// weight is the bytes of text that a report holds.
func weight(u *workflow.JobReport) int {
	return len(u.Name) + len(u.Path) + len(u.Command) + len(u.Logs) + len(u.Diagnostics) + len(u.Result)
}

// shed drops text about jobs that waits, until what is left is within bounds:
// logs first, which are most of it, and names last, each the oldest first.
func (r *Reporter) shed() {
	if r.text <= maxPendingText {
		return
	}
	for _, empty := range [...]func(*workflow.JobReport){
		func(u *workflow.JobReport) { u.Logs = "" },
		func(u *workflow.JobReport) { u.Result = nil },
		func(u *workflow.JobReport) { u.Command = "" },
		func(u *workflow.JobReport) { u.Diagnostics = "" },
		func(u *workflow.JobReport) { u.Path = "" },
		func(u *workflow.JobReport) { u.Name = "" },
	} {
		for _, j := range r.pending {
			before := weight(j.unsent)
			empty(j.unsent)
			freed := before - weight(j.unsent)
			if freed == 0 {
				continue
			}
			r.text -= freed
			r.report.Dropped++
			if r.text <= maxPendingText/2 { // make room at once, not for each job anew
				return
			}
		}
	}
}

// change applies one change of what is to be told, and wakes the goroutine.
func (r *Reporter) change(urgent bool, apply func(at time.Time)) {
	if r.cfg.Publisher == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.final != nil {
		return
	}
	apply(r.now())
	r.urgent = r.urgent || urgent
	r.signal()
}

// signal wakes the goroutine.
func (r *Reporter) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// now is the present in UTC, in microseconds, and never earlier than before:
// the event times of one run keep their order when the clock is set back.
func (r *Reporter) now() time.Time {
	if now := time.Now().UTC().Truncate(time.Microsecond); now.After(r.clock) {
		r.clock = now
	}
	return r.clock
}

// Finish says how the run ended, a terminal status, with text for its log, and
// waits until the broker has it, FinalTimeout is over or ctx ends. The report
// says which. Half of the time is for what else is unsent; then that is left
// behind, so that the end is told even if nothing else can be. What is refused
// ([ErrInvalid]) is left behind at once. A [Spooler] has
// all that is unsent after a second at the latest, and then the end.
//
// Finish returns in time even if the publisher never does; its goroutine then
// ends when the publisher returns.
func (r *Reporter) Finish(ctx context.Context, status workflow.Status, logs string) Report {
	patience := r.cfg.FinalTimeout / 2
	if r.spools() {
		patience = min(patience, spoolPatience)
	}
	return r.finish(ctx, &ending{status: status, logs: shorten(Text(logs), maxRunLog)}, patience)
}

// Leave ends the Reporter and leaves the run as it is: whoever goes on telling
// of it will say how it ends, or nobody. It waits until all that is unsent is at
// the broker, FinalTimeout is over or ctx ends.
func (r *Reporter) Leave(ctx context.Context) Report {
	return r.finish(ctx, &ending{left: true}, r.cfg.FinalTimeout)
}

// finish is Finish and Leave. patience is for all but the end itself.
func (r *Reporter) finish(ctx context.Context, final *ending, patience time.Duration) Report {
	if r.cfg.Publisher == nil {
		return Report{}
	}
	details, cancelDetails := context.WithTimeout(ctx, patience)
	defer cancelDetails()
	deadline, cancelDeadline := context.WithTimeout(ctx, r.cfg.FinalTimeout)
	defer cancelDeadline()

	r.mu.Lock()
	if r.final == nil {
		final.at, final.details, final.deadline = r.now(), details, deadline
		r.final = final
		close(r.finishing)
	}
	r.mu.Unlock()

	r.await(deadline)
	select {
	case <-r.done:
	case <-deadline.Done():
		// A publisher that honours its context is back at once.
		patience := time.NewTimer(time.Second)
		defer patience.Stop()
		select {
		case <-r.done:
		case <-patience.C:
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	report := r.report
	report.Unsent = report.Published - report.Confirmed - report.Spooled
	if report.Unsent == 0 {
		report.Err = nil // what went wrong was put right
	}
	select {
	case <-r.done:
	default: // the publisher hangs, and so the end was not even tried
		if report.Terminal == nil && !r.final.left {
			report.Terminal, _, _ = r.terminal(true)
			report.Published++
			report.Unsent++
		}
		report.Err = fmt.Errorf("the publisher did not return in %v", r.cfg.FinalTimeout)
	}
	return report
}

// await waits until all is told or deadline ends, and says so if that takes long:
// people see that the engine has ended, and wonder.
func (r *Reporter) await(deadline context.Context) {
	quiet := time.NewTimer(quietWait)
	defer quiet.Stop()
	select {
	case <-r.done:
		return
	case <-deadline.Done():
		return
	case <-quiet.C:
	}
	ends, _ := deadline.Deadline() // it has one: FinalTimeout
	attrs := []any{"workflow", r.cfg.WorkflowID, "engine", r.cfg.Engine, "at_most", time.Until(ends).Round(time.Second)}
	if r.spools() {
		attrs = append(attrs, "then", "what is not confirmed is kept on disk")
	}
	r.cfg.Logger.Warn("waiting for the broker to confirm the end of the run", attrs...)
	select {
	case <-r.done:
	case <-deadline.Done():
	}
}

// run is the goroutine that publishes.
func (r *Reporter) run(ctx context.Context) {
	defer close(r.done)
	sending, cancel := context.WithCancel(ctx)
	defer cancel()
	// What is being sent when Finish is called may go on until the details'
	// time is over, and no longer.
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-r.finishing:
		case <-stop:
			return
		}
		select {
		case <-r.final.details.Done():
			cancel()
		case <-stop:
		}
	}()

	r.runProgress(sending)
	r.runEnd()
}

// runProgress publishes what there is until Finish is called.
func (r *Reporter) runProgress(ctx context.Context) {
	retry := newBackOff()
	for {
		select {
		case <-r.wake:
		case <-r.finishing:
			return
		}
		for more := true; more; {
			if !r.pace() {
				return
			}
			var err error
			more, err = r.sendNext(ctx)
			if err == nil {
				retry.Reset()
				continue
			}
			if !r.rest(retry.NextBackOff()) {
				return
			}
			more = true
		}
	}
}

// pace waits until the next message may begin. It is false if Finish was called.
func (r *Reporter) pace() bool {
	for {
		r.mu.Lock()
		urgent := r.urgent
		r.mu.Unlock()
		wait := r.cfg.Interval - time.Since(r.last)
		if urgent || wait <= 0 {
			select {
			case <-r.finishing:
				return false
			default:
				return true
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-r.wake: // perhaps something urgent
		case <-r.finishing:
			timer.Stop()
			return false
		}
		timer.Stop()
	}
}

// rest waits for d after an error. It is false if Finish was called.
func (r *Reporter) rest(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.finishing:
		return false
	}
}

// runEnd publishes what is left, then the end, then a submission that the
// broker would not take before.
func (r *Reporter) runEnd() {
	r.runDetails()
	if r.final.left {
		return
	}
	r.sendEnd()

	retry := newBackOff()
	for r.final.deadline.Err() == nil {
		r.mu.Lock()
		submission := r.submission
		r.mu.Unlock()
		if submission == nil || r.sendSubmission(r.final.deadline, submission) == nil {
			return
		}
		pause(r.final.deadline, retry.NextBackOff())
	}
}

// runDetails publishes what need not, or cannot, travel with the end.
func (r *Reporter) runDetails() {
	retry := newBackOff()
	for more := true; more && (r.final.left || !r.fitsTerminal()); {
		// A publisher that spools keeps what comes late, if it can.
		late := r.final.details.Err() != nil
		if late && !r.spools() {
			break
		}
		var err error
		if more, err = r.sendNext(r.final.details); err != nil {
			if late {
				break
			}
			pause(r.final.details, retry.NextBackOff())
		}
	}
}

// sendEnd publishes the end. If it is refused it is tried with less, at last
// with nothing that could be refused.
func (r *Reporter) sendEnd() {
	retry := newBackOff()
	message, batch, carried := r.takeTerminal()
	for plain := false; ; {
		err := r.cfg.Publisher.Status(r.final.deadline, message)
		if r.settled(err) {
			r.mu.Lock()
			r.report.Terminal = nil
			r.mu.Unlock()
			return
		}
		invalid, late := errors.Is(err, ErrInvalid), r.final.details.Err() != nil
		switch {
		case invalid && plain:
			r.leftOut("the end of the run", err)
			return
		case invalid && carried > 0 && !late:
			// Most of the details are good: they go before the end.
			r.detach(message, batch)
			r.runDetails()
			message, batch, carried = r.takeTerminal()
			continue
		case invalid && carried > 0:
			r.leftOut("the last details", err)
			message, carried = r.bareTerminal(carried), 0
			continue
		case invalid:
			r.leftOut("how the jobs ended", err)
			message, plain = r.plainTerminal(), true
			continue
		}
		r.failed(err)
		if r.final.deadline.Err() != nil {
			return
		}
		// If it is the details that cannot be sent, the end must not fail with them.
		if carried > 0 && late {
			message, carried = r.bareTerminal(carried), 0
		}
		pause(r.final.deadline, retry.NextBackOff())
	}
}

func newBackOff() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = 100*time.Millisecond, 5*time.Second
	b.Reset()
	return b
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// sendNext publishes the oldest of what is unsent, and reports whether there
// was any and may be more.
func (r *Reporter) sendNext(ctx context.Context) (more bool, err error) {
	r.mu.Lock()
	submission := r.submission
	r.mu.Unlock()
	if submission != nil {
		return true, r.sendSubmission(ctx, submission)
	}

	message, batch, ok := r.take()
	if !ok {
		return false, nil
	}
	r.last = time.Now()
	err = r.cfg.Publisher.Status(ctx, message)
	switch {
	case r.settled(err):
		r.accepted(len(batch))
		return true, nil
	case errors.Is(err, ErrInvalid):
		r.refused(message, batch, err)
		return true, nil
	}
	r.mu.Lock()
	r.restore(message, batch)
	r.mu.Unlock()
	r.failed(err)
	return true, err
}

// accepted has the next message carry more again, unless one of the suspects is
// among the jobs that it would carry.
func (r *Reporter) accepted(jobs int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.parts == onlyNews {
		r.parts = onlyJobs
		return
	}
	if r.suspects -= jobs; r.suspects > 0 {
		r.most = (r.suspects + 1) / 2
		return
	}
	r.suspects, r.most = 0, min(2*r.most, maxMessageJobs)
	if len(r.pending) == 0 || r.most == maxMessageJobs {
		r.parts, r.most = all, maxMessageJobs
	}
}

// refused puts back what a message held that nobody takes, and has the next one
// carry less of it, until it is known what is wrong, which is left out.
func (r *Reporter) refused(m *workflow.StatusMessage, batch []*workflow.JobReport, err error) {
	out := "" // what is left out
	r.mu.Lock()
	p := &m.Progress
	switch {
	case len(batch) > 0 && carriesNews(m):
		r.parts = onlyNews
	case len(batch) > 1:
		r.parts, r.most, r.suspects = onlyJobs, len(batch)/2, len(batch)
	case len(batch) == 1:
		r.parts, r.most, r.suspects = onlyJobs, 1, 0
		bare := workflow.JobReport{ID: batch[0].ID, Status: batch[0].Status, Attempt: batch[0].Attempt, Cached: batch[0].Cached}
		out = "details of job " + bare.ID
		if reflect.DeepEqual(*batch[0], bare) {
			batch, out = nil, "job "+bare.ID
		} else {
			*batch[0] = bare
		}
	case p.EngineSpecific != nil:
		p.EngineSpecific, out = nil, "engine_specific"
	case m.Logs != "":
		m.Logs, out = "", "log of the run"
	case p.Total != nil:
		p.Total, out = nil, "number of jobs"
	default: // not even that the run began can be told, which must not hold up the rest
		r.announced = true
		out = "beginning of the run"
	}
	if out != "" {
		r.report.Dropped++
	}
	if len(batch) > 0 || carriesNews(m) || !r.announced {
		r.restore(m, batch)
	}
	switch {
	case r.parts == onlyNews && !r.news.any:
		r.parts = onlyJobs
	case len(r.pending) == 0 && !r.news.any && r.again:
		r.again = false // nothing takes its place
		r.report.Published--
	}
	r.urgent = true // the good must not wait for each step
	r.mu.Unlock()
	if out != "" {
		r.leftOut(out, err)
	}
}

// carriesNews reports whether m holds more of the run than its status.
func carriesNews(m *workflow.StatusMessage) bool {
	return m.Logs != "" || m.Progress.Total != nil || m.Progress.EngineSpecific != nil
}

func (r *Reporter) sendSubmission(ctx context.Context, s *workflow.Submission) error {
	r.mu.Lock()
	if !r.submitting {
		r.submitting = true
		r.report.Published++
	}
	r.mu.Unlock()
	err := r.cfg.Publisher.Submission(ctx, s)
	r.mu.Lock()
	safe := r.count(err)
	invalid := errors.Is(err, ErrInvalid)
	if safe || invalid {
		r.submission = nil
	}
	r.mu.Unlock()
	switch {
	case safe:
		return nil
	case invalid:
		r.leftOut("the submission", err)
		return nil // the statuses need not wait for it
	}
	r.failed(err)
	return err
}

// settled reports whether err, of publishing a status message, means that the
// message is safe.
func (r *Reporter) settled(err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.count(err) {
		return false
	}
	r.again, r.announced = false, true
	return true
}

// count counts a message that is safe, and reports whether it is. The caller
// holds r.mu.
func (r *Reporter) count(err error) bool {
	switch {
	case err == nil:
		r.report.Confirmed++
	case errors.Is(err, ErrSpooled):
		r.report.Spooled++
	default:
		return false
	}
	return true
}

// spools reports whether what the broker does not take is kept on disk.
func (r *Reporter) spools() bool {
	s, ok := r.cfg.Publisher.(Spooler)
	return ok && s.Spools()
}

// failed remembers err, and logs each kind of it once.
func (r *Reporter) failed(err error) { r.warn("reporting the run has to wait", err) }

// leftOut remembers err, because of which something is not told, and logs each
// kind of it once.
func (r *Reporter) leftOut(what string, err error) {
	r.warn("a detail of the run is left out", err, "what", what)
}

func (r *Reporter) warn(text string, err error, more ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Err = err
	if key := err.Error(); !r.logged[key] && len(r.logged) < 100 {
		r.logged[key] = true
		r.cfg.Logger.Warn(text, append([]any{"workflow", r.cfg.WorkflowID, "engine", r.cfg.Engine, "err", err}, more...)...)
	}
}

// take makes a message of the oldest news, within the bounds of one message.
//
// The run began when it did, however late that can be told: the broker may have
// been away for the night. So what has come since does not travel with it, unless
// that came at once.
func (r *Reporter) take() (m *workflow.StatusMessage, batch []*workflow.JobReport, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case !r.began || (!r.news.any && len(r.pending) == 0):
		return nil, nil, false
	case r.parts == onlyNews && !r.news.any:
		r.parts = onlyJobs
	case r.parts == onlyJobs && len(r.pending) == 0:
		r.parts, r.most, r.suspects = all, maxMessageJobs, 0
	}
	at, alone := r.news.at, false
	if !r.announced {
		at, alone = r.begun, at.Sub(r.begun) > beginTolerance && r.parts == all
	}
	m = r.message(workflow.StatusRunning, at)
	if !alone {
		batch = r.takeNews(m)
	}
	r.urgent = r.urgent && (len(r.pending) > 0 || r.parts != all)
	if !r.again {
		r.report.Published++
		r.again = true // until it is confirmed
	}
	return m, batch, true
}

// message is a status message with what all messages of the run have.
func (r *Reporter) message(status workflow.Status, at time.Time) *workflow.StatusMessage {
	return &workflow.StatusMessage{
		WorkflowID: r.cfg.WorkflowID,
		Status:     status,
		EventTime:  at,
		Attempt:    r.cfg.Attempt,
		Engine:     r.cfg.Engine,
	}
}

// takeNews moves the oldest news into m: ids by state, and details.
func (r *Reporter) takeNews(m *workflow.StatusMessage) []*workflow.JobReport {
	if r.parts != onlyJobs {
		r.takeRunNews(m)
	}
	if r.parts != onlyNews {
		return r.takeJobs(m)
	}
	return nil
}

// takeRunNews moves what is unsent about the run itself into m.
func (r *Reporter) takeRunNews(m *workflow.StatusMessage) {
	if r.news.total {
		m.Progress.Total = workflow.Count(r.total)
	}
	held := r.news.specific && r.final == nil && time.Now().Before(r.heavy)
	if r.news.specific && !held {
		m.Progress.EngineSpecific = r.specific()
		r.heavy = time.Now().Add(time.Duration(len(m.Progress.EngineSpecific)) * specificPause)
	}
	m.Logs = r.news.logs
	r.news = news{at: r.news.at, specific: held}
}

// takeJobs moves what is unsent about the oldest pending jobs into m.
func (r *Reporter) takeJobs(m *workflow.StatusMessage) []*workflow.JobReport {
	n := min(fitting(r.pending), r.most)
	batch := make([]*workflow.JobReport, n)
	ids := make(map[workflow.JobStatus][]string)
	var cached []string
	for i, j := range r.pending[:n] {
		batch[i], j.unsent = j.unsent, nil
		r.text -= weight(batch[i])
		ids[batch[i].Status] = append(ids[batch[i].Status], j.id)
		if batch[i].Cached {
			cached = append(cached, j.id)
		}
		m.Jobs = append(m.Jobs, *batch[i])
	}
	r.pending = slices.Delete(r.pending, 0, n)
	m.Progress.Running = section(ids[workflow.JobRunning])
	m.Progress.Finished = section(ids[workflow.JobFinished])
	m.Progress.Failed = section(ids[workflow.JobFailed])
	m.Progress.Cached = section(cached)
	return batch
}

// fitting is how many of the pending jobs fit into one message: at least one.
func fitting(pending []*job) (n int) {
	for text := 0; n < min(len(pending), maxMessageJobs); n++ {
		text += weight(pending[n].unsent)
		if n > 0 && text > maxMessageText {
			break
		}
	}
	return n
}

// section names jobs, or says nothing if there are none.
func section(ids []string) *workflow.Section {
	if len(ids) == 0 {
		return nil
	}
	return workflow.JobIDs(ids...)
}

// restore puts back what take took, below what has happened since. The caller
// holds r.mu.
func (r *Reporter) restore(m *workflow.StatusMessage, batch []*workflow.JobReport) {
	r.news.any = r.news.any || len(batch) == 0 || carriesNews(m)
	if m.Progress.EngineSpecific != nil {
		r.heavy = time.Time{} // it was not sent, so it costs no pause
	}
	r.news.total = r.news.total || m.Progress.Total != nil
	r.news.specific = r.news.specific || m.Progress.EngineSpecific != nil
	logs := m.Logs + r.news.logs
	if len(logs) > maxRunLog {
		logs = shorten(logs, maxRunLog)
		r.report.Dropped++
	}
	r.news.logs = logs

	var front []*job
	for _, taken := range batch {
		j := r.jobs[taken.ID]
		if j.unsent == nil {
			j.unsent = taken
			front = append(front, j)
			r.text += weight(taken)
			continue
		}
		r.report.Coalesced++
		r.join(j, *taken, *j.unsent)
	}
	r.pending = append(front, r.pending...)
	r.shed()
}

// fitsTerminal reports whether what is left can travel with the terminal message.
func (r *Reporter) fitsTerminal() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.submission != nil || !r.announced && r.began || len(r.pending) > maxMessageJobs {
		return false
	}
	if r.apart || r.parts != all {
		return len(r.pending) == 0 && !r.news.any
	}
	return fitting(r.pending) == len(r.pending)
}

// takeTerminal makes the terminal message of all that is left, and says how
// many pieces of detail it carries, those of jobs in batch. What is suspected
// to be refused is left behind.
func (r *Reporter) takeTerminal() (m *workflow.StatusMessage, batch []*workflow.JobReport, carried int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	bare := r.apart || r.parts != all
	m, batch, carried = r.terminal(bare)
	r.report.Dropped += len(r.pending)
	if bare && (r.news.logs != "" || r.news.specific) {
		r.report.Dropped++
	}
	r.pending, r.text = nil, 0
	if !r.again {
		r.report.Published++
	}
	r.again = true
	r.report.Terminal = m
	return m, batch, carried
}

// detach puts back the details of a terminal message that was refused, to go
// before it.
func (r *Reporter) detach(m *workflow.StatusMessage, batch []*workflow.JobReport) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m.Logs = strings.TrimSuffix(m.Logs, r.final.logs)
	m.Progress.Total = nil // the end says it anyway
	r.apart, r.parts = true, onlyNews
	r.report.Terminal = nil
	r.restore(m, batch)
}

// bareTerminal makes the terminal message without the details, which carried
// counts.
func (r *Reporter) bareTerminal(carried int) *workflow.StatusMessage {
	r.mu.Lock()
	defer r.mu.Unlock()
	m, _, _ := r.terminal(true)
	r.report.Dropped += carried
	r.report.Terminal = m
	return m
}

// plainTerminal makes the terminal message without the jobs.
func (r *Reporter) plainTerminal() *workflow.StatusMessage {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.message(r.final.status, r.final.at)
	m.Logs = r.final.logs
	m.Progress.Total = r.finalTotal()
	r.report.Dropped++
	r.report.Terminal = m
	return m
}

// finalTotal is how many jobs there were in the end.
func (r *Reporter) finalTotal() *workflow.Section {
	return workflow.Count(max(r.total, len(r.order)))
}

// terminal makes the message that ends the run: every job by its state, the
// details that fit unless it is to be bare, and the last words.
func (r *Reporter) terminal(bare bool) (m *workflow.StatusMessage, batch []*workflow.JobReport, carried int) {
	m = r.message(r.final.status, r.final.at)
	if !bare {
		batch = r.takeNews(m)
		carried = len(batch)
		if m.Logs != "" || m.Progress.EngineSpecific != nil {
			carried++
		}
	}
	m.Logs += r.final.logs
	r.finalStates(m)
	m.Progress.Total = r.finalTotal()
	if len(r.order) > maxSnapshotJobs {
		return m, batch, carried
	}
	ids := make(map[workflow.JobStatus][]string)
	cached := []string{}
	for _, j := range r.order {
		ids[j.status] = append(ids[j.status], j.id)
		if j.cached && j.status == workflow.JobFinished {
			cached = append(cached, j.id)
		}
	}
	m.Progress.Running = workflow.JobIDs(ids[workflow.JobRunning]...)
	m.Progress.Finished = workflow.JobIDs(ids[workflow.JobFinished]...)
	m.Progress.Failed = workflow.JobIDs(ids[workflow.JobFailed]...)
	m.Progress.Cached = workflow.JobIDs(cached...)
	return m, batch, carried
}

// finalStates adds to the terminal message what its sections cannot say, and
// its details do not: that a job was stopped, or how a repetition of it ended.
func (r *Reporter) finalStates(m *workflow.StatusMessage) {
	said := make(map[string]bool, len(m.Jobs))
	for i := range m.Jobs {
		said[m.Jobs[i].ID] = true
	}
	for _, j := range r.order {
		if (j.attempt > 1 || j.status == workflow.JobStopped || j.status == workflow.JobQueued) && !said[j.id] && len(m.Jobs) < maxSnapshotJobs {
			m.Jobs = append(m.Jobs, workflow.JobReport{ID: j.id, Status: j.status, Attempt: j.attempt, Cached: j.cached})
		}
	}
}

// join puts newer news of a job on top of older, and reports whether some of its
// log was cut. The logs of all attempts are one text wherever they are kept, so
// they stay together here as well: how an earlier attempt failed is worth the most.
func join(older, newer workflow.JobReport) (out workflow.JobReport, cut bool) {
	out = newer
	out.Logs = older.Logs + newer.Logs
	if cut = len(out.Logs) > maxJobLog; cut {
		out.Logs = shorten(out.Logs, maxJobLog)
	}
	if newer.Attempt > older.Attempt {
		return out, cut // the other details are those of another attempt
	}
	out.Status = max(older.Status, newer.Status)
	out.Cached = older.Cached || newer.Cached
	for _, field := range [...]struct{ to, from *string }{
		{&out.Name, &older.Name}, {&out.Path, &older.Path}, {&out.Command, &older.Command}, {&out.Diagnostics, &older.Diagnostics},
	} {
		if *field.to == "" {
			*field.to = *field.from
		}
	}
	if out.ExitCode == nil {
		out.ExitCode = older.ExitCode
	}
	if out.StartedAt.IsZero() {
		out.StartedAt = older.StartedAt
	}
	if out.FinishedAt.IsZero() {
		out.FinishedAt = older.FinishedAt
	}
	if out.Result == nil {
		out.Result = older.Result
	}
	return out, cut
}
