// Package enginetest holds the tests that every adapter of an engine has to
// pass, [Contract], and what they are made of. An adapter's own tests begin with
// recordings of real runs:
//
//	func TestContract(t *testing.T) {
//		enginetest.Contract(t, enginetest.Config{
//			New:        func(id uuid.UUID) engines.Reducer { return newReducer(id) },
//			Recordings: enginetest.Recordings(t, "../../testdata/engines/mine"),
//		})
//	}
package enginetest

import (
	"encoding/json"
	"maps"
	"slices"

	"github.com/google/uuid"

	"waymark/engines"
	"waymark/workflow"
)

// WorkflowID is the workflow of the tests.
var WorkflowID = uuid.MustParse("256b25f4-4cfb-4684-b7a8-73872ef455a1")

// Told is what was told of a run.
type Told struct {
	// Status and Reason say how it ended.
	Status workflow.Status
	Reason string
	// Counts are how many jobs ended in which state.
	Counts engines.Counts
	// Jobs are the jobs by name, and those of one name by id.
	Jobs []Job
	// Log is the run's log.
	Log string
	// Specific is engine_specific as it was last.
	Specific map[string]any
	// Steps are the counts after each event that changed them.
	Steps []engines.Counts
	// Broken is what the reducer panicked with, empty if it did not.
	Broken string
}

// Job is what was told of a job in its last attempt, all reports joined.
type Job struct {
	ID, Name, Path, Command, Logs, Diagnostics string

	Status   workflow.JobStatus
	Attempt  int
	Cached   bool
	ExitCode int // -1 if nobody said
	Timed    bool
}

// Tell has a reducer tell a story.
func Tell(reducer engines.Reducer, events []engines.Event, exit engines.Exit) Told {
	r := &listener{jobs: make(map[string]*Job)}
	n := engines.NewNarrator(reducer, r)
	var steps []engines.Counts
	step := func() {
		if c := n.Counts(); len(steps) == 0 || steps[len(steps)-1] != c {
			steps = append(steps, c)
		}
	}
	for _, e := range events {
		n.Apply(e)
		step()
	}
	end := n.End(exit)
	step()
	told := Told{Status: end.Status, Reason: end.Reason, Counts: n.Counts(), Log: r.log, Steps: steps, Broken: n.Broken()}
	if r.doc != nil {
		if err := json.Unmarshal(r.doc(), &told.Specific); err != nil {
			told.Broken = "engine_specific is not an object: " + err.Error()
		}
	}
	for _, id := range slices.Sorted(maps.Keys(r.jobs)) {
		told.Jobs = append(told.Jobs, *r.jobs[id])
	}
	slices.SortStableFunc(told.Jobs, func(a, b Job) int { return compare(a.Name, b.Name) })
	return told
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// In returns the names of the jobs in a state, sorted.
func (t Told) In(status workflow.JobStatus) []string {
	names := []string{}
	for _, j := range t.Jobs {
		if j.Status == status {
			names = append(names, j.Name)
		}
	}
	return names
}

// Job returns the first job of a name.
func (t Told) Job(name string) (Job, bool) {
	for _, j := range t.Jobs {
		if j.Name == name {
			return j, true
		}
	}
	return Job{}, false
}

// listener joins what it is told, as a Reporter and a consumer would.
type listener struct {
	jobs map[string]*Job
	log  string
	doc  func() json.RawMessage
}

func (l *listener) Total(int)                                 {}
func (l *listener) Log(text string)                           { l.log += text }
func (l *listener) EngineSpecific(doc func() json.RawMessage) { l.doc = doc }

func (l *listener) Job(news workflow.JobReport) {
	attempt := max(news.Attempt, 1)
	j := l.jobs[news.ID]
	switch {
	case j == nil, attempt > j.Attempt:
		j = &Job{ID: news.ID, Attempt: attempt, ExitCode: -1}
		l.jobs[news.ID] = j
	case attempt < j.Attempt:
		return
	}
	if !j.Status.Terminal() {
		j.Status = max(j.Status, news.Status)
	}
	j.Cached = j.Cached || news.Cached
	j.Timed = j.Timed || !news.FinishedAt.IsZero() || !news.StartedAt.IsZero()
	for _, field := range []struct {
		to   *string
		from string
	}{{&j.Name, news.Name}, {&j.Path, news.Path}, {&j.Command, news.Command}, {&j.Diagnostics, news.Diagnostics}} {
		*field.to = max(*field.to, field.from)
	}
	j.Logs += news.Logs
	if news.ExitCode != nil {
		j.ExitCode = max(j.ExitCode, *news.ExitCode)
	}
}
