package cwl

import (
	"strings"

	"waymark/engines"
)

const (
	// maxNodes is how many steps a graph shows.
	maxNodes = 5000
	// maxDepth is how deep workflows are followed into each other. Those that
	// cwltool runs end; what came damaged may not.
	maxDepth = 100
)

// graph is the graph of the steps that do something, those of nested workflows
// among them: a node for each, however often it runs.
type graph struct {
	nodes []*node
	byID  map[string]*node
	edges [][2]string
	drawn map[[2]string]bool
}

// node is a step.
type node struct {
	id          string
	class       string
	scattered   bool
	conditional bool
	skipped     bool
	jobs        int
	jobID       string // of its job, if it has one
}

// newGraph draws a workflow.
func newGraph(p *process) *graph {
	g := &graph{byID: make(map[string]*node), drawn: make(map[[2]string]bool)}
	if p != nil && p.Class == "Workflow" {
		g.draw(&scope{process: p}, false, false, 0)
	}
	return g
}

// scope is a workflow where it stands in others.
type scope struct {
	process *process
	prefix  string
	outer   *scope
	step    *step // of outer
}

func (g *graph) draw(in *scope, scattered, conditional bool, depth int) {
	for _, s := range in.process.Steps {
		if s == nil || s.Run == nil || len(g.nodes) >= maxNodes || depth > maxDepth {
			continue
		}
		scattered, conditional := scattered || len(s.Scatter) > 0 || s.Loop, conditional || s.When
		id := in.prefix + s.ID
		if s.Run.Class == "Workflow" {
			g.draw(&scope{process: s.Run, prefix: id + "/", outer: in, step: s}, scattered, conditional, depth+1)
			continue
		}
		g.node(id).class = s.Run.Class
		g.node(id).scattered, g.node(id).conditional = scattered, conditional
		for _, e := range s.In {
			for _, source := range e.Source {
				for _, from := range in.resolve(source, 0) {
					g.edge(from, id)
				}
			}
		}
	}
}

// resolve names the steps that make what a source holds.
func (in *scope) resolve(source string, depth int) (ids []string) {
	if depth > maxDepth {
		return nil
	}
	name, output, ofStep := strings.Cut(source, "/")
	if !ofStep {
		if in.outer == nil {
			return nil
		}
		for _, e := range in.step.In {
			if e.ID == name {
				for _, s := range e.Source {
					ids = append(ids, in.outer.resolve(s, depth+1)...)
				}
			}
		}
		return ids
	}
	for _, s := range in.process.Steps {
		switch {
		case s == nil || s.ID != name || s.Run == nil:
		case s.Run.Class != "Workflow":
			ids = append(ids, in.prefix+s.ID)
		default:
			inner := &scope{process: s.Run, prefix: in.prefix + s.ID + "/", outer: in, step: s}
			for _, from := range s.Run.Outputs[output] {
				ids = append(ids, inner.resolve(from, depth+1)...)
			}
		}
	}
	return ids[:min(len(ids), maxNodes)]
}

func (g *graph) node(id string) *node {
	n := g.byID[id]
	if n == nil {
		n = &node{id: id}
		g.byID[id] = n
		g.nodes = append(g.nodes, n)
	}
	return n
}

func (g *graph) edge(from, to string) {
	e := [2]string{from, to}
	if from != to && !g.drawn[e] && len(g.edges) < 10*maxNodes {
		g.drawn[e] = true
		g.edges = append(g.edges, e)
	}
}

// ran says that a step has a job, and whether that is news for who looks at it.
func (g *graph) ran(id, jobID string) bool {
	n := g.byID[id]
	if n == nil {
		if len(g.nodes) >= maxNodes {
			return false
		}
		n = g.node(id)
		n.class = "CommandLineTool"
	}
	n.jobs++
	n.jobID = jobID
	return n.jobs <= 2
}

// story is the graph as it is told.
func (g *graph) story() *engines.Graph {
	told := &engines.Graph{Edges: append([][2]string(nil), g.edges...)}
	for _, n := range g.nodes {
		t := engines.Node{ID: n.id, Name: n.id[strings.LastIndex(n.id, "/")+1:], More: map[string]any{"class": n.class, "jobs": n.jobs}}
		if n.jobs == 1 && !n.scattered {
			t.JobID = n.jobID
		}
		for _, flag := range []struct {
			key string
			set bool
		}{{"scattered", n.scattered}, {"conditional", n.conditional}, {"skipped", n.skipped && n.jobs == 0}} {
			if flag.set {
				t.More[flag.key] = true
			}
		}
		told.Nodes = append(told.Nodes, t)
	}
	return told
}

// skip says that a step, or all of a nested workflow, is skipped.
func (g *graph) skip(id string) {
	for _, n := range g.nodes {
		if n.id == id || strings.HasPrefix(n.id, id+"/") {
			n.skipped = true
		}
	}
}
