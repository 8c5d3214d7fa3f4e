package cwl

import (
	"encoding/json"
	"fmt"
	"strings"
)

// maxJobs bounds what a plan can announce, so that no input overflows.
const maxJobs = 1 << 30

// process is the structure of a CWL process, as the hook describes it.
type process struct {
	Class   string              `json:"class"`
	Inputs  map[string]*shape   `json:"inputs,omitempty"`  // defaults that are arrays
	Outputs map[string][]string `json:"outputs,omitempty"` // where a workflow's outputs come from
	Steps   []*step             `json:"steps,omitempty"`
}

// step is a step of a workflow. A source is the name of one of the workflow's
// inputs, or "step/output".
type step struct {
	ID      string   `json:"id"`
	In      []input  `json:"in,omitempty"`
	When    bool     `json:"when,omitempty"`
	Loop    bool     `json:"loop,omitempty"`
	Scatter []string `json:"scatter,omitempty"`
	Method  string   `json:"method,omitempty"`
	Run     *process `json:"run,omitempty"`
}

// input is an input of a step.
type input struct {
	ID       string   `json:"id"`
	Source   []string `json:"source,omitempty"`
	Default  *shape   `json:"default,omitempty"`
	Computed bool     `json:"computed,omitempty"` // by valueFrom, after scattering
	Merged   bool     `json:"merged,omitempty"`   // by linkMerge or pickValue
}

// shape is what is known of a value: nil if nothing, or that it is no array.
// In JSON it is the length of an array without arrays in it, or the shapes of
// its elements.
type shape struct {
	n        int
	elements []*shape // nil if none is an array
}

func (s *shape) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '[' {
		if err := json.Unmarshal(b, &s.elements); err != nil {
			return err
		}
		s.n = len(s.elements)
		return nil
	}
	if err := json.Unmarshal(b, &s.n); err != nil {
		return err
	}
	s.n = min(max(s.n, 0), maxJobs)
	return nil
}

func (s *shape) MarshalJSON() ([]byte, error) {
	if s.elements != nil {
		return json.Marshal(s.elements)
	}
	return json.Marshal(s.n)
}

func (s *shape) element(i int) *shape {
	if s == nil || i < 0 || i >= len(s.elements) {
		return nil
	}
	return s.elements[i]
}

// shapes are what is known of a process's inputs.
type shapes map[string]*shape

// jobs counts the jobs that a process surely runs. What depends on values that
// nobody knows yet, such as a scatter over what a step makes, or a condition,
// is not counted: totals never shrink.
func (p *process) jobs(given shapes) int {
	if p == nil {
		return 0
	}
	switch p.Class {
	case "CommandLineTool":
		return 1
	case "Workflow":
		n := 0
		for _, s := range p.Steps {
			n = min(n+s.jobs(given), maxJobs)
		}
		return n
	}
	return 0 // an expression makes no job; of others nobody knows
}

func (s *step) sure() bool { return s != nil && s.Run != nil && !s.When && !s.Loop }

// jobs counts the jobs that the step surely runs.
func (s *step) jobs(given shapes) int {
	if !s.sure() {
		return 0
	}
	return s.scattered(s.inputs(given))
}

// inputs are what is known of the step's inputs before it starts.
func (s *step) inputs(given shapes) shapes {
	known := make(shapes, len(s.In))
	for _, in := range s.In {
		switch {
		case in.Merged || len(in.Source) > 1: // nobody knows
		case len(in.Source) == 1:
			known[in.ID] = given[in.Source[0]]
		default:
			known[in.ID] = in.Default
		}
	}
	return known
}

// elements is how many elements the step is scattered to: 1 if it is not, 0 as
// long as nobody knows.
func (s *step) elements(in shapes) int {
	n := 1
	for _, key := range s.Scatter {
		v := in[key]
		switch cross := s.cross(); {
		case !cross && v != nil: // all have the same length
			return v.n
		case cross && v == nil:
			return 0
		case cross:
			n = min(n*v.n, maxJobs)
		}
	}
	if len(s.Scatter) > 0 && !s.cross() {
		return 0
	}
	return n
}

func (s *step) cross() bool { return strings.HasSuffix(s.Method, "_crossproduct") }

// element is what is known of the inputs of the i-th instance of the step's
// process. in are those of the step.
func (s *step) element(in shapes, i int) shapes {
	known := make(shapes, len(in))
	for k, v := range in {
		known[k] = v
	}
	for _, key := range s.Scatter {
		known[key] = nil
		if !s.cross() {
			known[key] = in[key].element(i)
		}
	}
	connected := make(map[string]bool, len(s.In))
	for _, e := range s.In {
		connected[e.ID] = true
		if e.Computed {
			known[e.ID] = nil
		}
	}
	for k, v := range s.Run.Inputs {
		if !connected[k] {
			known[k] = v
		}
	}
	return known
}

// nested reports whether the elements that the step is scattered to differ in
// what is known of them.
func (s *step) nested(in shapes) bool {
	for _, key := range s.Scatter {
		if v := in[key]; v != nil && v.elements != nil && !s.cross() {
			return true
		}
	}
	return false
}

// scattered counts the jobs of the step, all of whose instances run.
func (s *step) scattered(in shapes) int {
	n := s.elements(in)
	if !s.nested(in) || s.Run.Class != "Workflow" {
		return min(n*min(s.Run.jobs(s.element(in, 0)), maxJobs), maxJobs)
	}
	all := 0
	for i := range n {
		all = min(all+s.Run.jobs(s.element(in, i)), maxJobs)
	}
	return all
}

// A workflowNode is a workflow that runs, or surely will, and a stepNode a step
// of one. Each knows how many jobs it surely has, and tells its parent when
// they become more.
type workflowNode struct {
	process *process
	given   shapes
	parent  *stepNode
	jobs    int
	steps   map[string]*stepNode
}

type stepNode struct {
	step      *step
	workflow  *workflowNode
	in        shapes // since it started
	started   bool
	jobs      int
	seen      map[string]bool // jobs of its own, by name
	instances map[int]*workflowNode
}

func newWorkflowNode(p *process, given shapes, parent *stepNode) *workflowNode {
	w := &workflowNode{process: p, given: given, parent: parent, steps: make(map[string]*stepNode, len(p.Steps))}
	for _, s := range p.Steps {
		n := &stepNode{step: s, workflow: w, jobs: s.jobs(given)}
		w.steps[s.ID] = n
		w.jobs = min(w.jobs+n.jobs, maxJobs)
	}
	return w
}

// add adds jobs to the node and to all around it. by may be negative where
// something turned out to be less than was counted; what is announced is not.
func (n *stepNode) add(by int) {
	for n != nil && by != 0 {
		n.jobs += by
		n.workflow.jobs += by
		n = n.workflow.parent
	}
}

// start takes the step's inputs as they are.
func (n *stepNode) start(in shapes) {
	if n.started {
		return
	}
	n.started, n.in = true, in
	if n.step.sure() {
		n.add(n.step.scattered(in) - n.jobs)
	}
}

// skip takes back what was expected of the step.
func (n *stepNode) skip() { n.add(-n.jobs) }

// saw counts a job of the step's own.
func (n *stepNode) saw(name string) {
	if n.seen == nil {
		n.seen = make(map[string]bool)
	}
	n.seen[name] = true
	if more := len(n.seen) - n.jobs; more > 0 {
		n.add(more)
	}
}

// instance is the i-th workflow that runs as the step.
func (n *stepNode) instance(i int) *workflowNode {
	w := n.instances[i]
	if w == nil {
		in := n.in
		if !n.started {
			in = n.step.inputs(n.workflow.given)
		}
		w = newWorkflowNode(n.step.Run, n.step.element(in, i), n)
		if n.instances == nil {
			n.instances = make(map[int]*workflowNode)
		}
		n.instances[i] = w
		if !n.step.sure() || len(n.instances) > max(n.step.elements(in), 1) {
			n.add(w.jobs)
		}
	}
	return w
}

// find is the step at the end of a way of places, nil if there is none.
func (w *workflowNode) find(way []place) *stepNode {
	for i, p := range way {
		n := w.steps[p.step]
		if n == nil || n.step.Run == nil {
			return nil
		}
		if i == len(way)-1 {
			return n
		}
		if n.step.Run.Class != "Workflow" {
			return nil
		}
		w = n.instance(p.element(n.step, n.in))
	}
	return nil
}

// place is a step and, if it is scattered, the index of the element in each
// dimension. In JSON it is [step, index...].
type place struct {
	step  string
	index []int
}

func (p *place) UnmarshalJSON(b []byte) error {
	var parts []json.RawMessage
	if err := json.Unmarshal(b, &parts); err != nil {
		return err
	}
	if len(parts) == 0 {
		return fmt.Errorf("a place without a step")
	}
	if err := json.Unmarshal(parts[0], &p.step); err != nil {
		return err
	}
	p.index = make([]int, len(parts)-1)
	for i := range p.index {
		if err := json.Unmarshal(parts[i+1], &p.index[i]); err != nil {
			return err
		}
	}
	return nil
}

// element is a number for the element of the place, unique within the step.
func (p place) element(s *step, in shapes) int {
	if len(p.index) == 1 {
		return p.index[0]
	}
	n := 0
	for i, x := range p.index { // nested: one index for each dimension
		size := 1 << 15
		if i < len(s.Scatter) && in[s.Scatter[i]] != nil {
			size = in[s.Scatter[i]].n
		}
		n = (n*size + x) % maxJobs
	}
	return n
}

// String is, for example, "align[3]".
func (p place) String() string {
	s := p.step
	for _, i := range p.index {
		s += fmt.Sprintf("[%d]", i)
	}
	return s
}

// path joins places with slashes.
func path(way []place) string {
	parts := make([]string, len(way))
	for i, p := range way {
		parts[i] = p.String()
	}
	return strings.Join(parts, "/")
}
