package engines

import (
	"encoding/json"
	"regexp"
)

// maxGraphNodes is how many nodes of a graph are published. A larger one would
// be bigger than anything can show.
const maxGraphNodes = 10_000

// Graph is the graph of a run's jobs. It is published in the shape that REANA's
// Yadage engine made: {"nodes": [{"id", "metadata": {"name"}, "jobid":
// {"job_id"}}], "edges": [[from, to]]}, with further keys for each node.
type Graph struct {
	Nodes []Node
	// Edges lead from the id of a node to that of one that needs it.
	Edges [][2]string
}

// Node is a job, or a step that makes none.
type Node struct {
	// ID of the node within the graph.
	ID string
	// Name for people.
	Name string
	// JobID is the id of its job in messages; empty if it has none, or none yet.
	JobID string
	// More holds further keys, such as rule and wildcards. They must not be id,
	// metadata or jobid.
	More map[string]any
}

// MarshalJSON returns the node in REANA's shape.
func (n Node) MarshalJSON() ([]byte, error) {
	doc := make(map[string]any, len(n.More)+3)
	for k, v := range n.More {
		doc[k] = v
	}
	doc["id"] = n.ID
	doc["metadata"] = map[string]string{"name": n.Name}
	doc["jobid"] = nil
	if n.JobID != "" {
		doc["jobid"] = map[string]string{"job_id": n.JobID}
	}
	return json.Marshal(doc)
}

// MarshalJSON returns the graph in REANA's shape.
func (g *Graph) MarshalJSON() ([]byte, error) {
	shape := struct {
		Nodes []Node      `json:"nodes"`
		Edges [][2]string `json:"edges"`
	}{g.Nodes, g.Edges}
	if shape.Nodes == nil {
		shape.Nodes = []Node{}
	}
	if shape.Edges == nil {
		shape.Edges = [][2]string{}
	}
	return json.Marshal(shape)
}

// Specific makes a document for [Reporter.EngineSpecific].
func Specific(doc map[string]any) func() json.RawMessage {
	return func() json.RawMessage { return jsonObject(doc) }
}

// jsonObject is a JSON object fit for a message: without NUL, which databases
// refuse. What JSON cannot say is an object that says so.
func jsonObject(v map[string]any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		b, _ = json.Marshal(map[string]string{"adapter_error": err.Error()})
	}
	return json.RawMessage(nul.ReplaceAll(b, []byte(`$1\ufffd`)))
}

// nul finds NUL as encoding/json writes it; a backslash before it would be the
// character's own.
var nul = regexp.MustCompile(`((?:^|[^\\])(?:\\\\)*)\\u0000`)
