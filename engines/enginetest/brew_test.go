package enginetest_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"waymark/engines"
	"waymark/engines/enginetest"
	"waymark/workflow"
)

// brew runs recipes and says on standard error what it does:
//
//	brew: plan malt mash boil
//	brew: start malt (try 1)
//	brew: done malt
//	brew: fail mash: too hot
type brew struct{}

func (brew) Engine() string { return "brew" }

// Prepare is called before the engine starts. brew needs nothing: its standard
// error will do.
func (brew) Prepare(_ context.Context, l *engines.Launch) (engines.Watch, error) {
	return engines.Watch{Reducer: newBrewReducer(l.WorkflowID), Stderr: true}, nil
}

func newBrewReducer(id uuid.UUID) engines.Reducer { return &brewReducer{id: id, try: map[string]int{}} }

type brewReducer struct {
	id  uuid.UUID
	try map[string]int
}

// Apply takes one line. It reports whether it could be read.
func (r *brewReducer) Apply(e engines.Event, to engines.Story) bool {
	line, ours := strings.CutPrefix(string(e.Line), "brew: ")
	if e.Source != engines.Stderr || !ours {
		return false
	}
	verb, rest, _ := strings.Cut(line, " ")
	if verb == "plan" {
		jobs := strings.Fields(rest)
		to.Total(len(jobs))
		for _, name := range jobs {
			to.Job(workflow.JobReport{ID: r.jobID(name), Name: name})
		}
		return true
	}
	name, detail, _ := strings.Cut(rest, " ")
	name = strings.TrimSuffix(name, ":")
	if name == "" {
		return false
	}
	job := workflow.JobReport{ID: r.jobID(name), Name: name, Attempt: r.try[name]}
	switch verb {
	case "start":
		r.try[name] = max(r.try[name], 1)
		if strings.HasPrefix(detail, "(try 2") {
			r.try[name] = 2
		}
		job.Attempt, job.Status, job.StartedAt = r.try[name], workflow.JobRunning, e.At
	case "done":
		job.Status, job.FinishedAt = workflow.JobFinished, e.At
	case "fail":
		job.Status, job.FinishedAt, job.Diagnostics = workflow.JobFailed, e.At, detail
	default:
		return false
	}
	to.Job(job)
	return true
}

// End is called when brew has ended. Its exit code says all there is to say.
func (r *brewReducer) End(engines.Exit, engines.Story) engines.Ending { return engines.Ending{} }

// jobID is the same whenever the recipe runs.
func (r *brewReducer) jobID(name string) string { return engines.JobID(r.id, "brew", name) }

// The guide shows the adapter as it is here.
func TestGuideShowsTheAdapter(t *testing.T) {
	cut := func(path string) string {
		t.Helper()
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_, rest, found := strings.Cut(string(text), "// brew runs recipes")
		code, _, ended := strings.Cut(rest, `engines.JobID(r.id, "brew", name) }`)
		if !found || !ended {
			t.Fatalf("%s does not hold the adapter", path)
		}
		return code
	}
	if diff := cmp.Diff(cut("brew_test.go"), cut("../../docs/adapters.md")); diff != "" {
		t.Errorf("docs/adapters.md shows another adapter than the one that is tested (-tested +shown):\n%s", diff)
	}
}

func TestBrew(t *testing.T) {
	var adapter engines.Adapter = brew{}
	watch, err := adapter.Prepare(t.Context(), &engines.Launch{Args: []string{"brew", "ale.txt"}, WorkflowID: enginetest.WorkflowID})
	if err != nil || watch.Reducer == nil || !watch.Stderr || adapter.Engine() != "brew" {
		t.Errorf("%s is watched by %+v (%v), want its standard error and a reducer", adapter.Engine(), watch, err)
	}
	enginetest.Contract(t, enginetest.Config{New: newBrewReducer, Recordings: enginetest.Recordings(t, "../../testdata/engines/brew")})
}

func TestBrewRetries(t *testing.T) {
	r := enginetest.Read(t, "../../testdata/engines/brew/burnt")
	told := enginetest.Tell(newBrewReducer(enginetest.WorkflowID), r.Events, r.Exit)
	if told.Status != workflow.StatusFailed || told.Counts != (engines.Counts{Total: 3, Finished: 1, Failed: 1}) {
		t.Errorf("the burnt brew is %v with %+v", told.Status, told.Counts)
	}
	if mash, _ := told.Job("mash"); mash.Attempt != 2 || mash.Diagnostics != "too hot" {
		t.Errorf("mash is %+v, want its second try, too hot", mash)
	}
}

// The contract finds what is wrong with an adapter: each of these breaks one of
// its rules.
func TestContractFindsFaults(t *testing.T) {
	r := enginetest.Read(t, "../../testdata/engines/brew/burnt")
	good := enginetest.Tell(newBrewReducer(enginetest.WorkflowID), r.Events, r.Exit)
	faults := map[string]func(*brewReducer, engines.Event, engines.Story) bool{
		"counts events": func(b *brewReducer, e engines.Event, to engines.Story) bool {
			b.try["n"]++
			to.Job(workflow.JobReport{ID: engines.JobID(b.id, "brew", strings.Repeat("x", b.try["n"])), Name: "n", Status: workflow.JobFinished})
			return true
		},
		"panics": func(*brewReducer, engines.Event, engines.Story) bool { panic("a mistake") },
	}
	for name, apply := range faults {
		var twice []engines.Event
		for _, e := range r.Events {
			twice = append(twice, e, e)
		}
		bad := func() engines.Reducer {
			return &faulty{brewReducer: newBrewReducer(enginetest.WorkflowID).(*brewReducer), apply: apply}
		}
		once, again := enginetest.Tell(bad(), r.Events, r.Exit), enginetest.Tell(bad(), twice, r.Exit)
		if once.Broken == "" && cmp.Equal(once.Jobs, again.Jobs) {
			t.Errorf("%s: nothing tells this adapter from a good one, which tells %+v", name, good.Counts)
		}
	}
}

type faulty struct {
	*brewReducer
	apply func(*brewReducer, engines.Event, engines.Story) bool
}

func (f *faulty) Apply(e engines.Event, to engines.Story) bool {
	return f.apply(f.brewReducer, e, to)
}
