package nextflow

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/google/uuid"

	"waymark/engines"
	"waymark/workflow"
)

const (
	// maxHeld bounds the bytes of posts whose news the broker does not have yet.
	maxHeld = 64 << 20
	// maxEnded is how many ended runs are remembered, so that a post that comes
	// twice does not begin them anew.
	maxEnded = 10_000
	// evictable is how long nothing must have been heard of a run before it makes
	// room for another.
	evictable = 10 * time.Minute
	// maxParameters bounds the parameters of a run, in bytes.
	maxParameters = 256 << 10
)

// ReceiverConfig says how a [Receiver] works. Only Publisher is required.
type ReceiverConfig struct {
	// FinalTimeout is how long the end of a run is tried to be delivered.
	// Default 5 min.
	FinalTimeout time.Duration
	// Idle is how long nothing may be heard of a run before it is left: it stays
	// running for readers, and its next post goes on with it. Default 24 h.
	Idle time.Duration
	// Logger hears of runs that begin and end, and of trouble. Default: none.
	Logger *slog.Logger
	// Now is the present. Default time.Now.
	Now func() time.Time
	// Publisher returns where a run is reported to. Required.
	Publisher func(workflowID uuid.UUID) (engines.Publisher, error)
	// Runs is how many runs may be open at once. Beyond, one that was silent for
	// ten minutes is left, or the new one refused with 503. Default 1000.
	Runs int
}

// A Receiver takes what any number of runs of Nextflow post, and reports them.
// It knows of a run what it was told since it was started: after a restart it
// goes on with the runs that go on posting, and what was posted meanwhile is
// lost, since Nextflow posts once. It must be closed.
type Receiver struct {
	cfg     ReceiverConfig
	handler http.Handler
	stop    chan struct{}   // closed when Close begins
	hurry   context.Context // ends when Close has no more time
	cut     context.CancelFunc
	running sync.WaitGroup // the ends of runs, and sweep

	mu     sync.Mutex
	closed bool
	runs   map[uuid.UUID]*run
	ended  map[uuid.UUID]time.Time
	held   int // bytes of all runs
	unsaid int // runs of which something was not delivered
}

// run is one run of Nextflow.
type run struct {
	id       uuid.UUID
	receiver *Receiver

	// Guarded by the receiver's mutex. held is the bytes of the posts whose news
	// the broker does not have yet. owed divides what the Reporter was told of
	// them by the job whose next message brings it; "" is the run's own news,
	// which any message brings.
	heard time.Time
	held  int
	owed  map[string]int

	mu       sync.Mutex // one post after the other
	untold   int        // bytes of the post that is being applied
	began    bool
	over     bool // ended, or left
	reporter *engines.Reporter
	narrator *engines.Narrator
}

// NewReceiver returns a Receiver. It panics without a publisher.
func NewReceiver(cfg ReceiverConfig) *Receiver {
	if cfg.Publisher == nil {
		panic("nextflow: a Receiver needs a publisher")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.FinalTimeout = cmp.Or(cfg.FinalTimeout, 5*time.Minute)
	cfg.Idle = cmp.Or(cfg.Idle, 24*time.Hour)
	cfg.Runs = cmp.Or(cfg.Runs, 1000)
	r := &Receiver{cfg: cfg, stop: make(chan struct{}), runs: make(map[uuid.UUID]*run), ended: make(map[uuid.UUID]time.Time)}
	r.hurry, r.cut = context.WithCancel(context.Background())
	r.handler = Handler(r.take)
	r.running.Go(r.sweep)
	return r
}

// WorkflowID is the id of the run that Nextflow calls by a session and a name. A
// resumed run has the session of the one before, and a name of its own: it is
// another run.
func WorkflowID(runID, runName string) uuid.UUID {
	session, err := uuid.Parse(runID)
	if err != nil {
		session = uuid.NewSHA1(uuid.NameSpaceURL, []byte("nextflow:"+runID))
	}
	return uuid.NewSHA1(session, []byte(Engine+":"+runName))
}

// ServeHTTP takes a post; see [Handler]. It is answered at once, before the
// broker has the news: with 204, or with 503 if too much waits for the broker or
// too many runs are open.
func (r *Receiver) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	r.handler.ServeHTTP(w, request)
}

func (r *Receiver) take(_ *http.Request, body []byte) int {
	p, err := parsePost(body)
	if err != nil || strings.TrimSpace(string(p.RunID)) == "" {
		return http.StatusBadRequest
	}
	for size := len(body); ; size = 0 {
		one, status := r.open(p, size)
		if one == nil {
			return status
		}
		if r.tell(one, p, body, size) {
			return http.StatusNoContent
		}
	}
}

// tell applies a post, of which size bytes are held, unless the run was left
// meanwhile.
func (r *Receiver) tell(one *run, p *post, body []byte, size int) bool {
	one.mu.Lock()
	defer one.mu.Unlock()
	if one.over {
		return false
	}
	one.untold = size
	if p.Event == runStarted {
		one.owe("")
		one.reporter.Submit(submission(one.id, p))
	}
	if !one.began {
		one.began = true
		one.reporter.Begin()
	}
	one.narrator.Apply(engines.Event{At: r.cfg.Now().UTC(), Source: Weblog, Line: body})
	one.unowed()
	if p.Event == runCompleted {
		one.over = true
		r.end(one, p)
	}
	return true
}

// open returns the run of a post, nil with the answer if it is not taken.
func (r *Receiver) open(p *post, size int) (*run, int) {
	id := WorkflowID(string(p.RunID), string(p.RunName))
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.cfg.Now()
	if _, ended := r.ended[id]; ended {
		return nil, http.StatusNoContent
	}
	if r.closed || r.held+size > maxHeld {
		return nil, http.StatusServiceUnavailable
	}
	one := r.runs[id]
	if one == nil {
		if len(r.runs) >= r.cfg.Runs && !r.evict(now) {
			return nil, http.StatusServiceUnavailable
		}
		to, err := r.cfg.Publisher(id)
		if err != nil {
			r.cfg.Logger.Warn("a run of nextflow is not reported", "workflow", id, "err", err)
			return nil, http.StatusServiceUnavailable
		}
		one = &run{id: id, receiver: r, owed: make(map[string]int)}
		one.reporter = engines.NewReporter(context.Background(), engines.Config{
			Engine: Engine, FinalTimeout: r.cfg.FinalTimeout, Logger: r.cfg.Logger, Publisher: accounted{to, one}, WorkflowID: id,
		})
		one.narrator = engines.NewNarrator(newReducer(id), accountant{one.reporter, one})
		r.runs[id] = one
		r.cfg.Logger.Info("a run of nextflow", "workflow", id, "name", clip(string(p.RunName)))
	}
	one.heard = now
	one.held += size
	r.held += size
	return one, 0
}

// evict leaves the run that was silent for longest, if that is long enough. The
// caller holds the mutex.
func (r *Receiver) evict(now time.Time) bool {
	var silent *run
	for _, one := range r.runs {
		if silent == nil || one.heard.Before(silent.heard) {
			silent = one
		}
	}
	if silent == nil || now.Sub(silent.heard) < evictable {
		return false
	}
	r.leave(silent)
	return true
}

// leave forgets a run that goes on. The caller holds the mutex.
func (r *Receiver) leave(one *run) {
	delete(r.runs, one.id)
	r.running.Go(func() {
		one.mu.Lock()
		over := one.over
		one.over = true
		one.mu.Unlock()
		if !over { // else its end is being told
			report := one.reporter.Leave(r.hurry)
			one.release()
			r.account(report)
		}
	})
}

// end tells the end of a run, in a goroutine: the broker may be away. The caller
// holds the mutex of the run.
func (r *Receiver) end(one *run, p *post) {
	x := engines.Exit{At: r.cfg.Now().UTC()}
	if at := p.at(); !at.IsZero() {
		x.At = at
	}
	if ok := p.Metadata.success(); ok == nil || !*ok {
		x.Code, x.Reason = 1, "Nextflow says that the run failed"
		if code := p.Metadata.Workflow.ExitStatus.exitCode(); code != nil && *code > 0 {
			x.Code = *code
		}
		if ok == nil {
			x.Reason = "Nextflow does not say how the run ended"
		}
	}
	ending := one.narrator.End(x)
	logs := ""
	if ending.Reason != "" {
		logs = ending.Reason + "\n" + ending.Logs
	}
	// Close waits for what runs and for the open runs: this one is never neither.
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.runs, one.id)
	r.remember(one.id)
	r.running.Go(func() {
		report := one.reporter.Finish(r.hurry, ending.Status, logs)
		one.release()
		if r.account(report); report.Unsent > 0 {
			r.cfg.Logger.Error("the end of a run of nextflow was not delivered", "workflow", one.id, "status", ending.Status, "err", report.Err)
			return
		}
		r.cfg.Logger.Info("a run of nextflow has ended", "workflow", one.id, "status", ending.Status)
	})
}

func (r *Receiver) account(report engines.Report) {
	if report.Unsent > 0 {
		r.mu.Lock()
		r.unsaid++
		r.mu.Unlock()
	}
}

// remember that a run has ended. The caller holds the mutex.
func (r *Receiver) remember(id uuid.UUID) {
	if len(r.ended) >= maxEnded {
		var oldest uuid.UUID
		for id, at := range r.ended {
			if oldest == uuid.Nil || at.Before(r.ended[oldest]) {
				oldest = id
			}
		}
		delete(r.ended, oldest)
	}
	r.ended[id] = r.cfg.Now()
}

// sweep leaves the runs that have been silent for too long, until Close.
func (r *Receiver) sweep() {
	tick := time.NewTicker(max(min(r.cfg.Idle/4, time.Minute), time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-r.stop:
			return
		case <-tick.C:
		}
		r.mu.Lock()
		now := r.cfg.Now()
		for _, one := range r.runs {
			if now.Sub(one.heard) >= r.cfg.Idle {
				r.cfg.Logger.Warn("nothing was heard of a run of nextflow; it stays running until it posts again", "workflow", one.id, "for", r.cfg.Idle)
				r.leave(one)
			}
		}
		r.mu.Unlock()
	}
}

// Close takes no more posts, and waits until all that is known is at the broker,
// or ctx ends. Runs that go on stay running. The error says that something was
// left unsaid.
func (r *Receiver) Close(ctx context.Context) error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	close(r.stop)
	for _, one := range r.runs {
		r.leave(one)
	}
	r.mu.Unlock()
	done := make(chan struct{})
	go func() {
		r.running.Wait()
		close(done)
	}()
	defer r.cut()
	select {
	case <-done:
	case <-ctx.Done():
		r.cut()
		<-done // soon: a Reporter that is hurried waits for a second at most
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.unsaid > 0 {
		return fmt.Errorf("%d runs of nextflow: not all that was posted has been delivered", r.unsaid)
	}
	return nil
}

// submission registers a run with what Nextflow says of it.
func submission(id uuid.UUID, p *post) *workflow.Submission {
	m := &p.Metadata
	of := func(pick func(*state) text) string { return clip(first(pick(&m.Workflow), pick(&m.state))) }
	manifest := m.Workflow.Manifest
	if len(manifest) == 0 {
		manifest = m.state.Manifest
	}
	name := short(first(member[text](manifest, "name"), text(of(func(s *state) text { return s.ProjectName })),
		text(of(func(s *state) text { return s.Repository })), text(of(func(s *state) text { return s.ScriptName })), p.RunName))
	parameters := m.Parameters
	if len(parameters) == 0 {
		parameters = m.Params
	}
	var object map[string]any
	if len(parameters) > maxParameters || json.Unmarshal(parameters, &object) != nil {
		parameters = nil
	}
	s := &workflow.Submission{
		User: cmp.Or(short(of(func(s *state) text { return s.UserName })), Engine), Workflow: id.String(), Name: name, Engine: Engine, EventTime: p.at(),
		Labels: map[string]string{"nextflow.run": short(string(p.RunName)), "nextflow.session": short(string(p.RunID))},
	}
	if parameters != nil {
		s.Parameters = slices.Clone(parameters)
	}
	return s
}

// short makes a name fit for a submission.
func short(s string) string {
	s = strings.TrimSpace(strings.Map(func(c rune) rune {
		if unicode.IsControl(c) {
			return ' '
		}
		return c
	}, engines.Text(s)))
	if len(s) > 250 {
		s = strings.ToValidUTF8(s[:250], "")
	}
	return s
}

// accountant is the Teller of a run. It notes which job a post is about, before
// the Reporter can send it.
type accountant struct {
	engines.Teller
	run *run
}

func (a accountant) Job(news workflow.JobReport) {
	a.run.owe(news.ID)
	a.Teller.Job(news)
}

func (a accountant) Log(text string) {
	a.run.owe("")
	a.Teller.Log(text)
}

func (a accountant) EngineSpecific(doc func() json.RawMessage) {
	a.run.owe("")
	a.Teller.EngineSpecific(doc)
}

// accounted is a Publisher that frees the room of what it has delivered: of the
// posts that a message tells of, and none that came since it was made.
type accounted struct {
	engines.Publisher
	run *run
}

func (a accounted) Status(ctx context.Context, m *workflow.StatusMessage) error {
	told := a.run.told(m.Jobs)
	err := a.Publisher.Status(ctx, m)
	a.run.delivered(told, err)
	return err
}

func (a accounted) Submission(ctx context.Context, s *workflow.Submission) error {
	told := a.run.told(nil)
	err := a.Publisher.Submission(ctx, s)
	a.run.delivered(told, err)
	return err
}

// Spools passes on whether the publisher does.
func (a accounted) Spools() bool {
	s, ok := a.Publisher.(engines.Spooler)
	return ok && s.Spools()
}

// owe has the post that is being applied held until a message with the job is
// delivered, unless something else of it was told before.
func (o *run) owe(job string) {
	if o.untold == 0 {
		return
	}
	o.receiver.mu.Lock()
	defer o.receiver.mu.Unlock()
	o.owed[job] += o.untold
	o.untold = 0
}

// unowed frees a post that has been applied and of which there is nothing to tell.
func (o *run) unowed() {
	o.receiver.mu.Lock()
	defer o.receiver.mu.Unlock()
	o.free(o.untold)
	o.untold = 0
}

// told returns how much is owed for the jobs of a message and for the run itself.
func (o *run) told(jobs []workflow.JobReport) map[string]int {
	o.receiver.mu.Lock()
	defer o.receiver.mu.Unlock()
	told := map[string]int{"": o.owed[""]}
	for i := range jobs {
		if n := o.owed[jobs[i].ID]; n > 0 {
			told[jobs[i].ID] = n
		}
	}
	return told
}

// delivered frees what a message told of, if err says that it is safe.
func (o *run) delivered(told map[string]int, err error) {
	if err != nil && !errors.Is(err, engines.ErrSpooled) {
		return
	}
	o.receiver.mu.Lock()
	defer o.receiver.mu.Unlock()
	for job, n := range told {
		n = min(n, o.owed[job]) // nothing, if a publisher was too late for the end of the run
		if o.owed[job] -= n; o.owed[job] == 0 {
			delete(o.owed, job)
		}
		o.free(n)
	}
}

// release frees all that is held of a run that is over.
func (o *run) release() {
	o.receiver.mu.Lock()
	defer o.receiver.mu.Unlock()
	o.free(o.held)
	clear(o.owed)
}

// free makes room for n bytes. The caller holds the receiver's mutex.
func (o *run) free(n int) {
	o.held -= n
	o.receiver.held -= n
}
