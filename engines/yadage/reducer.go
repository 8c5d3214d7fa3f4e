package yadage

import (
	"cmp"
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"waymark/engines"
	"waymark/workflow"
)

// message is a line of the tracker: a hello, or what is new of the graph.
type message struct {
	Waymark int    `json:"waymark"`
	Version string `json:"version"`
	PID     int    `json:"pid"`

	Event   string      `json:"event"`
	Time    float64     `json:"time"`
	Rules   int         `json:"rules"`   // stages that have not been applied
	Applied int         `json:"applied"` // those that have
	Open    []string    `json:"open_stages"`
	Nodes   []node      `json:"nodes"`
	Edges   [][2]string `json:"edges"`
	Error   string      `json:"error"`
}

// node is a node of the graph. All but ID and State may be missing when the
// node has been told before.
type node struct {
	ID         string         `json:"id"`
	Name       string         `json:"name"`
	State      string         `json:"state"`
	Stage      string         `json:"stage"`
	Offset     string         `json:"offset"` // of the sub-workflow: "/stage/index"
	Index      int            `json:"index"`
	PurePub    bool           `json:"purepub"` // runs nothing
	Submitted  float64        `json:"submitted"`
	Ready      float64        `json:"ready"`
	Process    map[string]any `json:"process"`
	Parameters any            `json:"parameters"`
	Workdir    []string       `json:"workdir"`
	Log        string         `json:"log"`
}

// reducer makes a story of a graph that grows.
type reducer struct {
	id uuid.UUID

	pid      int // of the process whose tracker is heard
	heard    bool
	others   map[int]bool // processes whose trackers are not: runs within the run
	applied  int
	open     int
	stages   []string
	finalize bool

	nodes   map[string]*known
	order   []*known
	names   map[string]*known // by their stable names
	edges   [][2]string
	edge    map[[2]string]bool
	total   int // jobs
	told    int // the total that was told
	failed  []*known
	drawn   int             // nodes of the graph when it was drawn last
	held    []engines.Event // lines of standard error, while the tracker may yet be heard
	textual bool            // it is not, and the lines count
	errs    int
}

// known is what is known of a node.
type known struct {
	node
	job    string // its job; empty if it runs nothing
	logged bool
	text   bool // known from standard error alone, as yet
}

func newReducer(id uuid.UUID) *reducer {
	return &reducer{
		id: id, others: make(map[int]bool), nodes: make(map[string]*known),
		names: make(map[string]*known), edge: make(map[[2]string]bool),
	}
}

// Apply takes an event. Lines of standard error count until the tracker is heard.
func (r *reducer) Apply(e engines.Event, to engines.Story) bool {
	switch e.Source {
	case engines.Hook:
		return r.applyHook(e, to)
	case engines.Stderr:
		if !r.heard {
			r.applyText(e, to)
		}
	}
	return true
}

func (r *reducer) applyHook(e engines.Event, to engines.Story) bool {
	var m message
	if err := json.Unmarshal(e.Line, &m); err != nil {
		return false
	}
	if m.Waymark == 0 && m.Event == "" {
		return false
	}
	switch {
	case !r.heard:
		r.heard, r.pid, r.held = true, m.PID, nil
	case m.PID != r.pid:
		r.others[m.PID] = true
		to.Detail("other_runs", len(r.others))
		return true
	}
	if m.Waymark != 0 {
		to.Detail("mode", "tracker")
		if m.Version != "" {
			to.Detail("version", engines.Text(m.Version))
		}
		return true
	}
	switch m.Event {
	case "tracker-error":
		if r.errs++; r.errs <= 10 {
			to.Detail("tracker_error", engines.Text(m.Error))
		}
		return true
	case "initialize", "track", "finalize":
	default:
		return false
	}
	r.open, r.applied, r.stages = m.Rules, m.Applied, m.Open
	r.finalize = r.finalize || m.Event == "finalize"
	at := e.At
	if t := seconds(m.Time); !t.IsZero() {
		at = t
	}
	for i := range m.Nodes {
		r.node(&m.Nodes[i], at, to)
	}
	for _, edge := range m.Edges {
		if !r.edge[edge] {
			r.edge[edge] = true
			r.edges = append(r.edges, edge)
		}
	}
	if m.Event != "initialize" {
		r.announce(to)
	}
	// Of a graph that grows node by node not every step is worth telling.
	if n := len(r.order); n > r.drawn+r.drawn/50 {
		r.draw(to)
	}
	return true
}

// announce tells the total, if it has grown.
func (r *reducer) announce(to engines.Story) {
	if r.total > r.told {
		r.told = r.total
		to.Total(r.total)
	}
}

// node takes what is told of a node.
func (r *reducer) node(n *node, at time.Time, to engines.Story) {
	if n.ID == "" {
		return
	}
	k, status := r.nodes[n.ID], jobStatus(n.State)
	if k == nil {
		k = r.add(n)
		if k.job != "" {
			to.Job(workflow.JobReport{ID: k.job, Status: workflow.JobCreated, Name: k.title(), Path: k.path(), Command: command(n)})
		}
	} else if rank(k.State) < rank(n.State) {
		k.State = n.State
	}
	if k.job == "" || status == workflow.JobCreated {
		return
	}
	news := workflow.JobReport{ID: k.job, Status: status, StartedAt: seconds(n.Submitted)}
	if news.StartedAt.IsZero() {
		news.StartedAt = seconds(k.Submitted)
	}
	if news.StartedAt.IsZero() && status == workflow.JobRunning {
		news.StartedAt = at
	}
	k.Submitted = max(k.Submitted, n.Submitted)
	if status.Terminal() {
		if news.FinishedAt = seconds(n.Ready); news.FinishedAt.IsZero() {
			news.FinishedAt = at
		}
		if n.Log != "" && !k.logged {
			k.logged = true
			news.Logs = n.Log
		}
		if status == workflow.JobFinished {
			news.ExitCode = new(int)
		} else {
			news.ExitCode = exitCode(n.Log)
			news.Diagnostics = lastError(n.Log)
			if !slices.Contains(r.failed, k) {
				r.failed = append(r.failed, k)
			}
		}
	}
	to.Job(news)
}

// add makes a node known.
func (r *reducer) add(n *node) *known {
	k := &known{node: *n}
	if k.Stage == "" {
		k.Stage = cmp.Or(n.Name, n.ID)
	}
	name := k.stableName()
	if read := r.names[name]; read != nil && read.text {
		// The line about it overtook the tracker.
		k.job = read.job
		*read = *k
		r.nodes[n.ID] = read
		return read
	}
	for base, i := name, 2; r.names[name] != nil; i++ {
		name = fmt.Sprintf("%s#%d", base, i)
	}
	r.names[name] = k
	r.nodes[n.ID] = k
	r.order = append(r.order, k)
	if !n.PurePub {
		r.total++
		k.job = engines.JobID(r.id, Engine, name)
	}
	return k
}

// stableName is what a node is called in every run: offset/stage[index].
func (k *known) stableName() string {
	return fmt.Sprintf("%s/%s[%d]", strings.TrimSuffix(k.Offset, "/"), k.Stage, k.Index)
}

// title is the name of a job for people.
func (k *known) title() string {
	return clip(cmp.Or(strings.TrimSpace(k.Name), fmt.Sprintf("%s[%d]", k.Stage, k.Index)), maxTitle)
}

// path is where the job stands: sub-workflows and, if the job is not called as
// it, stage.
func (k *known) path() string {
	if k.title() == k.Stage {
		return clip(strings.Trim(k.Offset, "/"), maxPath)
	}
	return clip(strings.TrimPrefix(path.Join("/", k.Offset, k.Stage), "/"), maxPath)
}

// End judges the run: what Yadage could not begin did not finish.
func (r *reducer) End(x engines.Exit, to engines.Story) engines.Ending {
	r.release(to)
	r.draw(to)
	if !r.heard {
		mode := "none"
		if r.textual {
			mode = "text"
		}
		to.Detail("mode", mode)
	}
	var waiting []string
	for _, k := range r.order {
		if k.job != "" && rank(k.State) == 0 {
			waiting = append(waiting, k.title())
		}
	}
	if r.finalize && r.open > 0 {
		to.Detail("stages_never_applied", r.stages)
	}
	var e engines.Ending
	switch {
	case len(r.failed) > 0:
		var names []string
		for _, k := range r.failed {
			names = append(names, k.title())
		}
		e.Status = workflow.StatusFailed
		e.Reason = fmt.Sprintf("%d of %d jobs failed: %s", len(names), r.total, list(names))
	case x.Code != 0 && !(x.Unknown && r.finalize):
		e.Reason = lastError(x.Stderr)
	case r.finalize && r.open > 0:
		e.Status = workflow.StatusFailed
		e.Reason = fmt.Sprintf("Yadage ended well, but %d of %d stages were never applied: %s", r.open, r.open+r.applied, list(r.stages))
	case r.finalize && len(waiting) > 0:
		e.Status = workflow.StatusFailed
		e.Reason = fmt.Sprintf("Yadage ended well, but %d of %d jobs never ran: %s", len(waiting), r.total, list(waiting))
	case x.Unknown && r.finalize:
		e.Status = workflow.StatusFinished // a recording without an exit code
	}
	if x.Stop != nil {
		e.Reason = ""
	}
	return e
}

// draw tells the graph as it is now.
func (r *reducer) draw(to engines.Story) {
	if len(r.order) == 0 {
		return
	}
	r.drawn = len(r.order)
	g := &engines.Graph{Edges: slices.Clone(r.edges)}
	for _, k := range r.order {
		more := map[string]any{"stage": k.Stage, "offset": k.Offset, "index": k.Index, "state": k.State}
		if k.job == "" {
			more["norun"] = true
		}
		g.Nodes = append(g.Nodes, engines.Node{ID: k.ID, Name: k.title(), JobID: k.job, More: more})
	}
	to.Graph(g)
}

// list names a few of many.
func list(names []string) string {
	const most = 5
	if len(names) > most {
		return engines.Text(strings.Join(names[:most], ", ")) + fmt.Sprintf(" and %d more", len(names)-most)
	}
	return engines.Text(strings.Join(names, ", "))
}

func jobStatus(state string) workflow.JobStatus {
	switch state {
	case "RUNNING":
		return workflow.JobRunning
	case "SUCCESS":
		return workflow.JobFinished
	case "FAILED":
		return workflow.JobFailed
	}
	return workflow.JobCreated
}

// rank orders the states of a node.
func rank(state string) int {
	switch state {
	case "RUNNING":
		return 1
	case "SUCCESS", "FAILED":
		return 2
	}
	return 0
}

// seconds is a time of Python, zero if it is none.
func seconds(s float64) time.Time {
	if !(s > 0 && s < 1e11) {
		return time.Time{}
	}
	return time.UnixMicro(int64(s * 1e6)).UTC()
}

// maxTitle and maxPath bound names, in bytes.
const (
	maxTitle = 1000
	maxPath  = 4000
)

func clip(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}

// maxCommand is how long a command may be, in bytes.
const maxCommand = 64 << 10

// command is what a step runs: the command or script of its process, with the
// parameters in their places, as packtivity puts them there.
func command(n *node) string {
	text, _ := n.Process["cmd"].(string)
	if text == "" {
		text, _ = n.Process["script"].(string)
	}
	values := make(map[string]string)
	if parameters, ok := n.Parameters.(map[string]any); ok {
		for name, v := range parameters {
			values[name] = value(v)
		}
	}
	if len(n.Workdir) > 0 {
		for name, v := range values {
			values[name] = strings.ReplaceAll(v, "{workdir}", n.Workdir[0])
		}
	}
	return engines.Text(interpolate(text, values))
}

// value is a parameter as it stands in a command.
func value(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case []any:
		words := make([]string, len(v))
		for i := range v {
			words[i] = value(v[i])
		}
		return strings.Join(words, " ")
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64)
	case bool:
		if v {
			return "True"
		}
		return "False"
	case nil:
		return "None"
	}
	text, _ := json.Marshal(v)
	return string(text)
}

// interpolate puts values where Python's str.format would. What it does not know
// stays as it is.
func interpolate(text string, values map[string]string) string {
	var b strings.Builder
	for len(text) > 0 && b.Len() < maxCommand {
		i := strings.IndexAny(text, "{}")
		if i < 0 {
			b.WriteString(text)
			break
		}
		b.WriteString(text[:i])
		bracket := text[i]
		text = text[i:]
		if len(text) > 1 && text[1] == bracket {
			b.WriteByte(bracket)
			text = text[2:]
			continue
		}
		end := strings.IndexByte(text, '}')
		if v, ok := values[text[1:max(end, 1)]]; ok && bracket == '{' && end > 0 {
			b.WriteString(v)
			text = text[end+1:]
			continue
		}
		b.WriteByte(bracket)
		text = text[1:]
	}
	if b.Len() > maxCommand {
		return b.String()[:maxCommand] + "[…]"
	}
	return b.String()
}

var (
	// failedCode is how packtivity logs the exit code of what a step ran.
	failedCode = regexp.MustCompile(`(?:subprocess failed\. code: |non-zero exit status )(-?\d{1,3})\b`)
	// clickError is how Yadage ends on an error.
	clickError = regexp.MustCompile(`(?m)^(?:\x1b\[[0-9;]*m)*Error: (.+)$`)
	logError   = regexp.MustCompile(`(?m)\|\s*(?:ERROR|CRITICAL) \| (.+)$`)
	colours    = regexp.MustCompile("\x1b\\[[0-9;]*m")
)

// exitCode is the exit code that a step's log tells last, nil if none does.
func exitCode(log string) *int {
	all := failedCode.FindAllStringSubmatch(log, -1)
	if len(all) == 0 {
		return nil
	}
	code, err := strconv.Atoi(all[len(all)-1][1])
	if err != nil {
		return nil
	}
	if code < 0 {
		code = 128 - code // a signal, as Python has it
	}
	return &code
}

// lastError is the last error that Yadage or packtivity logged.
func lastError(log string) string {
	const most = 1000
	for _, pattern := range []*regexp.Regexp{clickError, logError} {
		if all := pattern.FindAllStringSubmatch(log, -1); len(all) > 0 {
			text := strings.TrimSpace(colours.ReplaceAllString(all[len(all)-1][1], ""))
			if len(text) > most {
				text = text[:most] + "…"
			}
			return engines.Text(text)
		}
	}
	return ""
}

var (
	textLine = regexp.MustCompile(`\| +(added|submitting nodes|node ready|node finished) \[?(</.*>)`)
	textNode = regexp.MustCompile(`<(/(?:[^<>|]*/)?)([^<>|/:]+):(\d{1,9})\|(defined|running|success|failed)\|`)
)

const (
	// textPatience is how long after the first line about a node the tracker may
	// be heard. What it sends goes another way, and is overtaken at times.
	textPatience = 2 * time.Second
	maxHeld      = 10_000
)

// applyText takes a line that Yadage logs. What jobs print is mixed with it, and
// may look the same.
func (r *reducer) applyText(e engines.Event, to engines.Story) {
	line := textLine.FindSubmatch(e.Line)
	switch {
	case line == nil:
	case r.textual:
		r.line(line, e.At, to)
	default:
		e.Line = slices.Clone(e.Line)
		r.held = append(r.held, e)
		if e.At.Sub(r.held[0].At) > textPatience || len(r.held) >= maxHeld {
			r.release(to)
		}
	}
}

// release tells what was held back.
func (r *reducer) release(to engines.Story) {
	held := r.held
	r.held = nil
	for _, e := range held {
		r.textual = true
		r.line(textLine.FindSubmatch(e.Line), e.At, to)
	}
}

// line takes a match of textLine.
func (r *reducer) line(line [][]byte, at time.Time, to engines.Story) {
	for _, found := range textNode.FindAllSubmatch(line[2], -1) {
		index, _ := strconv.Atoi(string(found[3]))
		n := node{
			Stage: string(found[2]), Offset: strings.TrimSuffix(string(found[1]), "/"), Index: index,
			State: strings.ToUpper(string(found[4])),
		}
		if n.Stage == "init" { // by its name; nothing else tells that it runs nothing
			continue
		}
		n.ID = fmt.Sprintf("%s/%s[%d]", n.Offset, n.Stage, index)
		if string(line[1]) == "submitting nodes" {
			n.State = "RUNNING"
		}
		r.node(&n, at, to)
		r.nodes[n.ID].text = true
	}
	r.announce(to)
}
