package cwl

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func readPacked(t *testing.T, name string) *process {
	t.Helper()
	doc, err := os.ReadFile(filepath.Join(recordings, "packed", name))
	if err != nil {
		t.Fatal(err)
	}
	p, err := unpack(doc)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestPackedTotals counts the jobs of packed workflows with the inputs of a
// command line: what surely runs, and no more.
func TestPackedTotals(t *testing.T) {
	for _, c := range []struct {
		document string
		words    []string
		want     int
	}{
		{"analysis.packed.json", []string{"analysis.yml"}, 6}, // the seventh is conditional
		{"analysis.packed.json", []string{"analysis.yml#inputs"}, 6},
		{"analysis.packed.json", []string{"--n", "40", "--samples", "a", "--samples=b"}, 4},
		{"analysis.packed.json", []string{"--draw"}, 0}, // nobody knows over what it scatters
		{"analysis.packed.json", []string{"not-there.yml"}, 0},
		{"scatter.packed.json", []string{"scatter-ok.yml"}, 4},
		{"scatter.packed.json", []string{"scatter-empty.yml"}, 2},
	} {
		t.Run(c.document+" "+strings.Join(c.words, " "), func(t *testing.T) {
			p := readPacked(t, c.document)
			if got := p.jobs(given(p, c.words, filepath.Join(recordings, "workflows"))); got != c.want {
				t.Errorf("%d jobs, want %d", got, c.want)
			}
		})
	}
}

func TestUnpackRefuses(t *testing.T) {
	for _, doc := range []string{"", "null", "[]", "{}", `{"$graph": []}`, `{"$graph": [1]}`, `{"class": 3}`} {
		if p, err := unpack([]byte(doc)); err == nil {
			t.Errorf("%q is packed as %+v, want an error", doc, p)
		}
	}
	// A workflow that runs itself ends somewhere.
	p, err := unpack([]byte(`{"$graph": [{"class": "Workflow", "id": "#main", "inputs": [], "outputs": [], "steps": [{"id": "#main/a", "run": "#main", "in": [], "out": []}]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if got := p.jobs(nil); got != 0 {
		t.Errorf("a workflow that runs itself has %d jobs", got)
	}
	newGraph(p)
}

func TestGraphOfAPackedWorkflow(t *testing.T) {
	g := newGraph(readPacked(t, "analysis.packed.json")).story()
	doc, err := json.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"nodes":[` +
		`{"class":"CommandLineTool","id":"per_sample/count","jobid":null,"jobs":0,"metadata":{"name":"count"},"scattered":true},` +
		`{"class":"CommandLineTool","id":"per_sample/gen","jobid":null,"jobs":0,"metadata":{"name":"gen"},"scattered":true},` +
		`{"class":"CommandLineTool","conditional":true,"id":"plot","jobid":null,"jobs":0,"metadata":{"name":"plot"}},` +
		`{"class":"ExpressionTool","id":"total","jobid":null,"jobs":0,"metadata":{"name":"total"}}],` +
		`"edges":[["per_sample/gen","per_sample/count"],["total","plot"],["per_sample/count","total"]]}`
	if diff := cmp.Diff(want, string(doc)); diff != "" {
		t.Errorf("the graph (-want +drawn):\n%s", diff)
	}
}

// A tool runs once, or once for each element of what it is scattered over.
func TestElements(t *testing.T) {
	tool := &process{Class: "CommandLineTool"}
	inner := &process{Class: "Workflow", Steps: []*step{
		{ID: "each", Run: tool, Scatter: []string{"x"}, In: []input{{ID: "x", Source: []string{"numbers"}}}},
		{ID: "one", Run: tool},
	}}
	wide := &shape{n: maxJobs}
	for _, c := range []struct {
		name  string
		step  step
		given string
		want  int
	}{
		{"dot product", step{Run: tool, Scatter: []string{"a", "b"}, Method: "dotproduct"}, `{"a": null, "b": 3}`, 3},
		{"flat", step{Run: tool, Scatter: []string{"a", "b"}, Method: "flat_crossproduct"}, `{"a": 2, "b": 3}`, 6},
		{"nested", step{Run: tool, Scatter: []string{"a", "b"}, Method: "nested_crossproduct"}, `{"a": 2, "b": 3}`, 6},
		{"half known", step{Run: tool, Scatter: []string{"a", "b"}, Method: "nested_crossproduct"}, `{"a": 2}`, 0},
		{"empty", step{Run: tool, Scatter: []string{"a"}}, `{"a": 0}`, 0},
		{"unknown", step{Run: tool, Scatter: []string{"a"}}, `{}`, 0},
		{"conditional", step{Run: tool, When: true}, `{}`, 0},
		{"loop", step{Run: tool, Loop: true}, `{}`, 0},
		{"merged", step{Run: tool, Scatter: []string{"c"}}, `{"a": 2}`, 0},
		{"default", step{Run: tool, Scatter: []string{"d"}}, `{}`, 5},
		{"workflow over arrays", step{Run: inner, Scatter: []string{"numbers"}}, `{"numbers": [2, 1, 0, null]}`, 2 + 1 + 0 + 0 + 4},
		{"workflow over what is computed", step{Run: inner, Scatter: []string{"computed"}}, `{"computed": [2, 1]}`, 2},
		{"expression", step{Run: &process{Class: "ExpressionTool"}}, `{}`, 0},
		{"nothing", step{}, `{}`, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.step.In = []input{
				{ID: "a", Source: []string{"a"}}, {ID: "b", Source: []string{"b"}}, {ID: "numbers", Source: []string{"numbers"}},
				{ID: "c", Source: []string{"a", "b"}, Merged: true}, {ID: "d", Default: &shape{n: 5}},
				{ID: "computed", Source: []string{"computed"}, Computed: true},
			}
			var given shapes
			if err := json.Unmarshal([]byte(c.given), &given); err != nil {
				t.Fatal(err)
			}
			if got := c.step.jobs(given); got != c.want {
				t.Errorf("%d jobs, want %d", got, c.want)
			}
		})
	}
	s := step{ID: "s", Run: tool, Scatter: []string{"a", "b"}, Method: "flat_crossproduct", In: []input{{ID: "a", Source: []string{"a"}}, {ID: "b", Source: []string{"a"}}}}
	if got := s.jobs(shapes{"a": wide}); got != maxJobs {
		t.Errorf("the most there can be is %d jobs, got %d", maxJobs, got)
	}
}

// TestTree follows a run from place to place.
func TestTree(t *testing.T) {
	tool := &process{Class: "CommandLineTool"}
	inner := &process{Class: "Workflow", Steps: []*step{
		{ID: "split", Run: tool},
		{ID: "each", Run: tool, Scatter: []string{"x"}, In: []input{{ID: "x", Source: []string{"split/parts"}}}},
	}}
	root := newWorkflowNode(&process{Class: "Workflow", Steps: []*step{
		{ID: "group", Run: inner, Scatter: []string{"g"}, In: []input{{ID: "g", Source: []string{"groups"}}}},
		{ID: "maybe", Run: inner, When: true},
	}}, shapes{"groups": {n: 2}}, nil)
	step := func(what string, want int) {
		t.Helper()
		if root.jobs != want {
			t.Errorf("%s: %d jobs, want %d", what, root.jobs, want)
		}
	}
	at := func(doc string) *stepNode {
		t.Helper()
		var way []place
		if err := json.Unmarshal([]byte(doc), &way); err != nil {
			t.Fatal(err)
		}
		n := root.find(way)
		if n == nil {
			t.Fatalf("nothing is at %s", doc)
		}
		return n
	}
	step("two splits", 2)
	at(`[["group"]]`).start(shapes{"g": {n: 3}})
	step("three groups after all", 3)
	at(`[["group", 1], ["each"]]`).start(shapes{"x": {n: 5}})
	at(`[["group", 1], ["each"]]`).start(shapes{"x": {n: 5}})
	step("five in a group", 8)
	at(`[["group", 1], ["each", 4]]`).saw("each_5")
	step("one of them runs", 8)
	at(`[["group", 2], ["each"]]`).start(shapes{"x": {n: 0}})
	step("none in another", 8)
	at(`[["maybe"], ["split"]]`).saw("split_4")
	step("it may indeed", 9)
	at(`[["maybe"], ["each", 0]]`).saw("each_6")
	step("and goes on", 10)
	for _, doc := range []string{`[["nothing"]]`, `[["group", 0], ["nothing"]]`, `[["group", 0], ["each", 1], ["deeper"]]`, `[]`} {
		var way []place
		if err := json.Unmarshal([]byte(doc), &way); err != nil {
			t.Fatal(err)
		}
		if root.find(way) != nil {
			t.Errorf("something is at %s", doc)
		}
	}
}
