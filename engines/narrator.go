package engines

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"syscall"

	"waymark/workflow"
)

// Teller takes what a run does, and tells it. *[Reporter] is the real one.
type Teller interface {
	// Total, Job and Log are those of [Reporter].
	Total(n int)
	Job(news workflow.JobReport)
	Log(text string)
	// EngineSpecific is that of [Reporter].
	EngineSpecific(doc func() json.RawMessage)
}

// Counts are how many jobs of a run are in which state.
type Counts struct {
	// Total is how many jobs the run has: as announced, or as many as are known
	// if they are more.
	Total int
	// Running, Finished, Failed and Stopped count jobs in that state; Cached
	// those of the finished whose results came from a cache.
	Running, Finished, Failed, Stopped, Cached int
}

// A Narrator stands between a [Reducer] and a [Teller]: it keeps the rules that
// are the same for all engines, and keeps a mistake of an adapter from harming
// the run. Like a Reducer it is pure, and so recordings test it. Only one
// goroutine may call its methods.
type Narrator struct {
	reducer Reducer
	to      Teller
	broken  string // what the reducer panicked with
	planned int
	jobs    map[string]*told
	order   []string
	counts  Counts
	missed  int    // events that could not be read
	first   string // the first of them, its beginning
	stop    syscall.Signal

	mu       sync.Mutex // guards what follows: a Teller asks for it later
	graph    *Graph
	specific map[string]any
}

// told is what was told of a job.
type told struct {
	attempt int
	status  workflow.JobStatus
	cached  bool
}

// NewNarrator returns a Narrator for one run.
func NewNarrator(reducer Reducer, to Teller) *Narrator {
	return &Narrator{reducer: reducer, to: to, jobs: make(map[string]*told), specific: make(map[string]any)}
}

// Apply gives an event to the Reducer.
func (n *Narrator) Apply(e Event) {
	n.guard(func() {
		if !n.reducer.Apply(e, story{n}) && e.Source == Hook {
			if n.missed++; n.missed == 1 {
				n.first = fit(string(e.Line[:min(len(e.Line), 1000)]), 200)
			}
		}
	})
}

// guard calls the reducer. One that panics is not called again: the run is then
// told by its exit code alone.
func (n *Narrator) guard(call func()) {
	if n.broken != "" {
		return
	}
	defer func() {
		if p := recover(); p != nil {
			n.broken = fmt.Sprint(p)
			story{n}.Detail("adapter_error", n.broken)
		}
	}()
	call()
}

// Stopping says that the engine has been sent a signal that is to stop it. A job
// that fails from then on, with what the signal makes of its exit code or with
// none, was stopped.
func (n *Narrator) Stopping(signal syscall.Signal) { n.stop = signal }

// Unreadable returns how many events of a hook could not be read, and the
// beginning of the first.
func (n *Narrator) Unreadable() (count int, first string) { return n.missed, n.first }

// Broken is what the Reducer panicked with, empty if it did not.
func (n *Narrator) Broken() string { return n.broken }

// Counts returns how many jobs are in which state.
func (n *Narrator) Counts() Counts {
	c := n.counts
	c.Total = max(n.planned, len(n.jobs))
	return c
}

// End tells the end of the engine, and says how the run ended:
//
//   - stopped, if somebody stopped it and it did not end well all the same;
//   - failed, if the engine ended badly or, unless the Reducer knows better, a
//     job failed;
//   - finished otherwise.
//
// Of the jobs that still run nobody will hear again: they finished with the run
// if it did, and else failed or were stopped with it. Jobs that had not begun
// stay what they are. Reason is never empty for a run that did not finish.
func (n *Narrator) End(x Exit) Ending {
	var e Ending
	n.guard(func() { e = n.reducer.End(x, story{n}) })
	e.Status = n.judge(e.Status, x)
	if e.Status == workflow.StatusFinished {
		e.Reason = ""
	} else if e.Reason == "" {
		e.Reason = n.reason(x)
	}

	end, why := workflow.JobFinished, ""
	switch e.Status {
	case workflow.StatusFailed:
		end, why = workflow.JobFailed, "the engine ended while this job ran: "+n.reason(x)
	case workflow.StatusStopped:
		end, why = workflow.JobStopped, n.reason(x)
	}
	var inferred []string
	for _, id := range n.order {
		if j := n.jobs[id]; j.status == workflow.JobRunning {
			inferred = append(inferred, id)
			story{n}.Job(workflow.JobReport{ID: id, Attempt: j.attempt, Status: end, FinishedAt: x.At, Diagnostics: why})
		}
	}
	if len(inferred) > 0 {
		story{n}.Detail("inferred", inferred)
	}
	if n.missed > 0 {
		story{n}.Detail("unreadable_events", n.missed)
	}
	if e.Reason != "" {
		story{n}.Detail("reason", e.Reason)
	}
	story{n}.Detail("exit_code", x.Code)
	return e
}

func (n *Narrator) judge(said workflow.Status, x Exit) workflow.Status {
	switch {
	case x.Stop != nil && (x.Code != 0 || said == workflow.StatusStopped):
		return workflow.StatusStopped
	case x.Code != 0 && !(x.Unknown && said.Terminal()):
		return workflow.StatusFailed
	case said.Terminal():
		return said
	case n.counts.Failed > 0:
		return workflow.StatusFailed
	}
	return workflow.StatusFinished
}

// reason says why a run did not finish, when the reducer does not.
func (n *Narrator) reason(x Exit) string {
	switch {
	case x.Stop != nil:
		return x.Stop.Error()
	case x.Reason != "":
		return x.Reason
	case x.Code != 0:
		return fmt.Sprintf("exit code %d", x.Code)
	case n.counts.Failed == 1:
		return "a job failed"
	case n.counts.Failed > 0:
		return fmt.Sprintf("%d jobs failed", n.counts.Failed)
	}
	return "the engine said so"
}

// document is engine_specific as it is now.
func (n *Narrator) document() json.RawMessage {
	n.mu.Lock()
	defer n.mu.Unlock()
	doc := make(map[string]any, len(n.specific)+1)
	for k, v := range n.specific {
		doc[k] = v
	}
	if n.graph != nil {
		doc["dag"] = n.graph
		if len(n.graph.Nodes) > maxGraphNodes {
			doc["dag"] = &Graph{}
			doc["dag_nodes_left_out"] = len(n.graph.Nodes)
		}
	}
	return Specific(doc)()
}

// story is the Narrator as its Reducer sees it.
type story struct{ *Narrator }

func (s story) Total(total int) {
	total = min(total, workflow.MaxTotal)
	s.planned = total
	s.to.Total(total)
}

func (s story) Log(text string) { s.to.Log(text) }

func (s story) Job(news workflow.JobReport) {
	if strings.TrimSpace(news.ID) == "" {
		return
	}
	news.Attempt = max(news.Attempt, 1)
	if news.Status == workflow.JobFailed && s.stop != 0 && (news.ExitCode == nil || *news.ExitCode == 128+int(s.stop)) {
		news.Status = workflow.JobStopped
	}
	j := s.jobs[news.ID]
	if j == nil {
		j = &told{attempt: news.Attempt}
		s.jobs[news.ID] = j
		s.order = append(s.order, news.ID)
	}
	switch {
	case news.Attempt < j.attempt:
		return
	case news.Attempt > j.attempt:
		s.count(j, -1)
		*j = told{attempt: news.Attempt, status: news.Status, cached: news.Cached}
	case j.status.Terminal():
		s.count(j, -1)
	default:
		s.count(j, -1)
		j.status, j.cached = max(j.status, news.Status), j.cached || news.Cached
	}
	s.count(j, 1)
	s.to.Job(news)
}

// count adds a job to the counts, or takes it out.
func (n *Narrator) count(j *told, by int) {
	switch j.status {
	case workflow.JobRunning:
		n.counts.Running += by
	case workflow.JobFinished:
		n.counts.Finished += by
		if j.cached {
			n.counts.Cached += by
		}
	case workflow.JobFailed:
		n.counts.Failed += by
	case workflow.JobStopped:
		n.counts.Stopped += by
	}
}

func (s story) Graph(g *Graph) {
	s.mu.Lock()
	s.graph = g
	s.mu.Unlock()
	s.to.EngineSpecific(s.document)
}

func (s story) Detail(key string, v any) {
	s.mu.Lock()
	s.specific[key] = v
	s.mu.Unlock()
	s.to.EngineSpecific(s.document)
}
