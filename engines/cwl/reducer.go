package cwl

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"waymark/engines"
	"waymark/workflow"
)

const (
	// maxText is how much of one text of the engine is told, in bytes.
	maxText = 8 << 10
	// maxLog is how much of what the engine says goes into the run's log. A
	// workflow of a million steps may well give a million warnings.
	maxLog = 256 << 10
	// maxErrors is how many of its last errors are remembered, to say why it
	// ended.
	maxErrors = 5
	// maxSkipped is how many skipped steps are named.
	maxSkipped = 1000
	// graphPatience is how large a graph may be and still be told whenever a
	// step gets its first job.
	graphPatience = 500
)

// NewReducer returns the reducer of one run, of cwltool or Toil.
func NewReducer(workflowID uuid.UUID) engines.Reducer { return newReducer(workflowID) }

func newReducer(workflowID uuid.UUID) *reducer {
	r := &reducer{workflowID: workflowID, engines: make(map[int]*engine), toil: make(map[int]bool), bus: newBus(workflowID)}
	r.text.other = r.output.line
	r.turns.tell = r.tellLog
	return r
}

// reducer makes a story of what cwltool logs. See [Adapter].
type reducer struct {
	workflowID uuid.UUID
	mode       string
	hooked     bool         // something came over the hook, and so text means nothing
	toil       map[int]bool // processes of Toil
	worker     bool         // one of them was heard that runs jobs
	engines    map[int]*engine
	order      []*engine
	text       textParser
	output     output
	turns      turns
	to         engines.Story // of the event that is applied
	ahead      time.Duration // how far the engine's clock is ahead, in a recording
	bus        *bus

	announced int
	logged    int
	errors    []string
	skipped   []string
}

// engine is one process of cwltool. A run has several if a script calls it
// again and again.
type engine struct {
	ordinal  int
	jobs     map[string]*job
	order    []*job
	byThread map[string]*job
	before   int    // jobs of what this process ran before
	name     string // of the workflow, empty if only cwltool --pack has told of it
	root     *workflowNode
	planned  bool
	graph    *graph
	guess    guess
	status   string
}

// job is an invocation of a CommandLineTool.
type job struct {
	name, id string
	done     bool
	failed   bool
	exit     *int
	why      []string
	heard    map[string]bool
}

// record is what the hook tells of a log record.
type record struct {
	Waymark int             `json:"waymark"` // of the hello
	Engine  string          `json:"engine"`
	Created float64         `json:"created"`
	Level   json.RawMessage `json:"level"`
	Func    string          `json:"func"`
	Message *string         `json:"msg"`
	Args    []any           `json:"args"`
	Thread  string          `json:"thread"`
	PID     int             `json:"pid"`
	Error   string          `json:"error"`

	Job    string  `json:"job"`
	Path   []place `json:"path"`
	Exit   *int    `json:"exit"`
	Stderr string  `json:"stderr"`
	Stdout string  `json:"stdout"`

	Toil    *toilName `json:"toil"` // in a worker of Toil, the CWLJob
	Class   string    `json:"class"`
	Good    bool      `json:"good"`
	Version string    `json:"version"`

	At       []place  `json:"at"`
	Step     string   `json:"step"`
	In       shapes   `json:"in"`
	Inputs   shapes   `json:"inputs"`
	Workflow *process `json:"workflow"`

	at    time.Time
	level string
}

// toilName is what Toil calls a job: its id in the job store and its name.
type toilName struct{ ID, Name string }

// arg is an argument as text.
func (r *record) arg(i int) string {
	if i < 0 || i >= len(r.Args) || r.Args[i] == nil {
		return ""
	}
	return fmt.Sprint(r.Args[i])
}

// verb is what a template has for an argument.
var verb = regexp.MustCompile(`%(?:[-#0 +]*\d*(?:\.\d+)?[srdifa]|%)`)

// String is the record as the engine would have written it.
func (r *record) String() string {
	n := -1
	if len(r.Args) == 0 {
		return *r.Message
	}
	return verb.ReplaceAllStringFunc(*r.Message, func(v string) string {
		if v == "%%" {
			return "%"
		}
		n++
		return r.arg(n)
	})
}

func (r *reducer) Apply(e engines.Event, to engines.Story) bool {
	r.to = to
	switch e.Source {
	case engines.Hook:
		return r.hook(e, to)
	case engines.Stderr:
		r.turns.line(e.At, uncoloured(e.Line))
		if !r.hooked {
			r.text.line(e, func(rec record) { r.written(&rec, to) })
		}
	case packSource:
		r.pack(e, to)
	case busSource:
		if !r.worker {
			r.speak("bus", to)
		}
		r.bus.apply(e, to)
	}
	return true
}

// written takes what cwltool wrote to its standard error, without the hook.
func (r *reducer) written(rec *record, to engines.Story) {
	r.speak("text", to)
	r.record(r.engine(0), rec, to)
	r.wrote(r.output.record(rec))
}

// wrote tells what a job has written, without the hook.
func (r *reducer) wrote(name, text string) {
	if j := r.latest(name); j != nil && text != "" {
		r.tellLog(j, text)
	}
}

func (r *reducer) tellLog(j *job, text string) { r.to.Job(workflow.JobReport{ID: j.id, Logs: text}) }

// latest is the last job of a name.
func (r *reducer) latest(name string) *job {
	for _, p := range slices.Backward(r.order) {
		if j := p.jobs[name]; j != nil {
			return j
		}
	}
	return nil
}

func (r *reducer) hook(e engines.Event, to engines.Story) bool {
	var rec record
	if err := json.Unmarshal(e.Line, &rec); err != nil {
		return false
	}
	if rec.Waymark > 0 {
		if rec.Engine == "toil" {
			r.toil[rec.PID] = true
		}
		r.hear(&rec, to)
		return true
	}
	if rec.Message == nil {
		return false
	}
	r.hear(&rec, to)
	rec.level = strings.Trim(string(rec.Level), `"`)
	rec.at = e.At
	if s := rec.Created; s > 0 && s < 1<<33 {
		rec.at = time.UnixMicro(int64(s * 1e6)).UTC()
		r.ahead = max(r.ahead, rec.at.Sub(e.At)) // nothing arrives before it is sent
	}
	switch {
	case rec.Toil != nil && r.bus.hear(&rec, to):
		if rec.Version != "" {
			to.Detail("version", rec.Version)
		}
	case r.toil[rec.PID]:
		r.warns(&rec, to)
	default:
		r.record(r.engine(rec.PID), &rec, to)
	}
	return true
}

// hear is called for what came over the hook: from then on text means nothing.
// Toil's leader is heard also where its workers are not.
func (r *reducer) hear(rec *record, to engines.Story) {
	r.hooked = true
	if rec.Toil != nil {
		r.worker = true
	}
	if r.worker || !r.toil[rec.PID] {
		r.speak("hook", to)
	}
}

// speak says how the run is watched.
func (r *reducer) speak(mode string, to engines.Story) {
	if r.mode != mode {
		r.mode = mode
		to.Detail("mode", mode)
	}
}

// engine is the one of a process. What text told before the hook was heard is
// the first one's.
func (r *reducer) engine(pid int) *engine {
	p := r.engines[pid]
	if p == nil {
		if text := r.engines[0]; text != nil {
			delete(r.engines, 0)
			r.engines[pid] = text
			return text
		}
		p = &engine{ordinal: len(r.order) + 1, jobs: make(map[string]*job), byThread: make(map[string]*job), graph: newGraph(nil)}
		p.guess.init()
		r.engines[pid] = p
		r.order = append(r.order, p)
	}
	return p
}

// job is the one of a name, made if need be. Names are unique in a process.
func (r *reducer) job(p *engine, name string) *job {
	j := p.jobs[name]
	if j == nil {
		stable := name
		if p.ordinal > 1 {
			stable = fmt.Sprintf("%d:%s", p.ordinal, name)
		}
		j = &job{name: name, id: engines.JobID(r.workflowID, "cwl", stable), heard: make(map[string]bool)}
		p.jobs[name] = j
		p.order = append(p.order, j)
	}
	return j
}

// The templates of cwltool's log that mean something.
const (
	msgRuns      = "[job %s] %s$ %s%s%s%s"
	msgCompleted = "[job %s] completed %s"
	msgExited    = "[job %s] exited with status: %d"
	msgKilled    = "[job %s] was terminated by signal: %s"
	msgJobError  = "[job %s] Job error:\n%s"
	msgCached    = "[job %s] Using cached output in %s"
	msgNotFound  = "'%s' not found: %s"
	msgException = "Exception while running job"
	msgTooLarge  = `Job "%s" cannot be run, requests more resources (%s) `
	msgStart     = "[%s] start"
	msgStarting  = "[%s] starting %s"
	msgSkipped   = "[%s] will be skipped"
	msgStepDone  = "[%s] completed %s"
	msgFinal     = "Final process status is %s"
)

var versionLine = regexp.MustCompile(`^(\S*/)?\S+ (\d+\.\d\S*)$`)

// record takes one record, from the hook or made of text.
func (r *reducer) record(p *engine, rec *record, to engines.Story) {
	r.overhear(p, rec)
	switch m := *rec.Message; {
	case m == msgRuns:
		r.runs(p, rec, to)
	case m == msgCompleted:
		r.completed(p, rec, to)
	case m == msgExited, m == msgKilled, m == msgJobError, m == msgNotFound, m == msgException:
		r.because(p, rec)
	case m == msgCached:
		r.cached(p, rec, to)
	case strings.HasPrefix(m, msgTooLarge):
		r.tooLarge(p, rec, to)
	case m == msgStart:
		p.guess.start(rec.arg(0))
	case m == msgStarting:
		p.guess.starting(rec.arg(0), rec.arg(1))
		r.starting(p, rec, to)
	case m == msgSkipped:
		r.skip(p, rec, to)
	case m == msgStepDone:
	case m == msgFinal:
		p.status = rec.arg(0)
	case r.warns(rec, to):
	case versionLine.MatchString(m) && (rec.Func == "main" || rec.Func == ""):
		to.Detail("version", versionLine.FindStringSubmatch(m)[2])
	}
}

// overhear notes what cwltool writes beside what its jobs write.
func (r *reducer) overhear(p *engine, rec *record) {
	if m := *rec.Message; !r.hooked || m == msgRuns || m == msgCompleted {
		return
	}
	j := p.jobs[rec.Job]
	if j == nil && strings.HasPrefix(*rec.Message, "[job ") {
		j = p.jobs[rec.arg(0)]
	}
	if j != nil && j.done {
		j = nil
	}
	r.turns.says(j, rec.level+" "+rec.String())
}

// warns passes a record on if it is a warning or an error.
func (r *reducer) warns(rec *record, to engines.Story) bool {
	if rec.level != "WARNING" && rec.level != "ERROR" && rec.level != "CRITICAL" {
		return false
	}
	r.said(rec, to)
	return true
}

// said passes a warning or an error on.
func (r *reducer) said(rec *record, to engines.Story) {
	text := rec.String()
	if rec.Error != "" && !strings.Contains(text, rec.Error) {
		text += ": " + rec.Error
	}
	text = clip(text, maxText)
	if rec.level != "WARNING" && strings.TrimSpace(text) != "" {
		r.errors = append(r.errors[max(len(r.errors)-maxErrors+1, 0):], text)
	}
	switch before := r.logged; {
	case before >= maxLog:
	case before+len(text) >= maxLog:
		r.logged = maxLog
		to.Log("Further warnings of cwltool are left out.\n")
	default:
		r.logged += len(text) + len(rec.level) + 2
		to.Log(rec.level + " " + text + "\n")
	}
}

// path is where a job stands: as the hook says, or as well as one can guess.
func (p *engine) path(rec *record, name string) (way, id string) {
	if rec.Path == nil {
		way = p.guess.path(name)
		return way, way
	}
	steps := make([]string, len(rec.Path))
	for i, s := range rec.Path {
		steps[i] = s.step
	}
	return path(rec.Path), strings.Join(steps, "/")
}

// place takes a job that is new where it stands.
func (r *reducer) place(p *engine, j *job, rec *record, to engines.Story) (way string) {
	way, id := p.path(rec, j.name)
	if id == "" {
		id = j.name
	}
	if p.root != nil && len(rec.Path) > 0 {
		if n := p.root.find(rec.Path); n != nil {
			n.saw(j.name)
		}
	}
	if rec.Path != nil && len(rec.Path) == 0 {
		p.planned = true // a tool alone is all there is
	}
	r.announce(to)
	if p.graph.ran(id, j.id) && len(p.graph.nodes) <= graphPatience {
		r.draw(to)
	}
	return way
}

func (r *reducer) runs(p *engine, rec *record, to engines.Story) {
	name := rec.arg(0)
	if name == "" {
		return
	}
	known := p.jobs[name] != nil
	j := r.job(p, name)
	p.byThread[rec.Thread] = j
	report := workflow.JobReport{ID: j.id, Name: name, Status: workflow.JobRunning, StartedAt: rec.at, Command: command(rec.arg(2))}
	if j.done {
		return
	}
	if !known {
		report.Path = r.place(p, j, rec, to)
		if r.hooked {
			r.turns.begin(p, j, rec.at.Add(-r.ahead), rec.level+" "+rec.String())
		}
	}
	to.Job(report)
}

// command is a command line without cwltool's line breaks.
func command(s string) string {
	return clip(strings.ReplaceAll(s, " \\\n    ", " "), engines.TailSize)
}

// because remembers why a job is going to fail.
func (r *reducer) because(p *engine, rec *record) {
	var j *job
	switch m := *rec.Message; {
	case rec.Job != "":
		j = p.jobs[rec.Job]
	case m == msgNotFound || m == msgException:
		j = p.byThread[rec.Thread]
	default:
		j = p.jobs[rec.arg(0)]
	}
	if j == nil || j.done {
		return
	}
	why, code := rec.cause()
	if code != nil {
		j.exit = code
	}
	if why = clip(why, maxText); !j.heard[why] && len(j.why) < 10 {
		j.heard[why] = true
		j.why = append(j.why, why)
	}
}

// cause is why a job is going to fail, and the exit code of its process if it
// says one.
func (r *record) cause() (why string, exit *int) {
	switch *r.Message {
	case msgExited:
		if code, ok := number(r.Args, 1); ok {
			exit = &code
		}
		return "exited with status: " + r.arg(1), exit
	case msgKilled:
		if code, ok := signals[r.arg(1)]; ok {
			code += 128
			exit = &code
		}
		return "was terminated by signal: " + r.arg(1), exit
	case msgJobError:
		return r.arg(1), nil
	case msgException:
		if r.Error != "" {
			return r.String() + ": " + r.Error, nil
		}
	}
	return r.String(), nil
}

// shellExit is the exit code as a shell has it, of one that is negative for a
// signal.
func shellExit(code int) *int {
	if code < 0 {
		code = 128 - code
	}
	return &code
}

// output is the end of what a job wrote.
func (r *record) output() string {
	if r.Stdout != "" && r.Stderr != "" && !strings.HasSuffix(r.Stderr, "\n") {
		return r.Stderr + "\n" + r.Stdout
	}
	return r.Stderr + r.Stdout
}

// number is an argument that is a whole number.
func number(args []any, i int) (int, bool) {
	if i >= len(args) {
		return 0, false
	}
	f, ok := args[i].(float64)
	return int(f), ok && f == float64(int(f)) && f >= -1<<20 && f < 1<<32
}

// signals that end jobs, by name; what else there is has no number in the log.
var signals = map[string]int{
	"SIGHUP": 1, "SIGINT": 2, "SIGQUIT": 3, "SIGILL": 4, "SIGTRAP": 5, "SIGABRT": 6, "SIGBUS": 7, "SIGFPE": 8,
	"SIGKILL": 9, "SIGUSR1": 10, "SIGSEGV": 11, "SIGUSR2": 12, "SIGPIPE": 13, "SIGALRM": 14, "SIGTERM": 15,
	"SIGXCPU": 24, "SIGXFSZ": 25,
}

func (r *reducer) completed(p *engine, rec *record, to engines.Story) {
	name := rec.arg(0)
	if name == "" {
		return
	}
	known := p.jobs[name] != nil
	if !known && !r.hooked {
		return // a job's own output, most likely
	}
	j := r.job(p, name)
	if j.done {
		return
	}
	j.done = true
	r.turns.end(j, rec.at.Add(-r.ahead), rec.level+" "+rec.String())
	report := workflow.JobReport{ID: j.id, Name: name, Status: workflow.JobFinished, FinishedAt: rec.at, ExitCode: j.exit}
	if !known {
		report.Path = r.place(p, j, rec, to)
	}
	if rec.Exit != nil {
		report.ExitCode = shellExit(*rec.Exit)
	}
	if status := rec.arg(1); status != "success" {
		j.failed = true
		report.Status = workflow.JobFailed
		if len(j.why) == 0 {
			j.why = []string{"completed " + clip(status, maxText)}
		}
		report.Diagnostics = strings.Join(j.why, "\n")
	}
	report.Logs = rec.output()
	to.Job(report)
}

func (r *reducer) cached(p *engine, rec *record, to engines.Story) {
	name := rec.arg(0)
	if name == "" {
		return
	}
	j := r.job(p, name)
	if j.done {
		return
	}
	j.done = true
	to.Job(workflow.JobReport{
		ID: j.id, Name: name, Path: r.place(p, j, rec, to), Status: workflow.JobFinished, Cached: true,
		StartedAt: rec.at, FinishedAt: rec.at,
	})
}

// tooLarge is a job that needs more than the machine has.
func (r *reducer) tooLarge(p *engine, rec *record, to engines.Story) {
	name := rec.arg(0)
	if name == "" {
		return
	}
	j := r.job(p, name)
	if j.done {
		return
	}
	j.done, j.failed = true, true
	why := "requests more resources than available on this host: " + clip(rec.arg(1), maxText)
	j.why = append(j.why, why)
	to.Job(workflow.JobReport{
		ID: j.id, Name: name, Path: r.place(p, j, rec, to), Status: workflow.JobFailed,
		FinishedAt: rec.at, Diagnostics: why,
	})
}

// starting is a step that has its inputs.
func (r *reducer) starting(p *engine, rec *record, to engines.Story) {
	if rec.Workflow != nil && len(rec.At) == 0 && (p.root == nil || p.name != rec.arg(0)) {
		if p.root != nil && p.name != "" { // the same process runs another workflow
			p.before += p.root.jobs
		}
		if p.root == nil || p.name != "" {
			p.before = max(p.before, len(p.jobs))
		}
		p.name, p.planned = rec.arg(0), true
		p.root = newWorkflowNode(rec.Workflow, rec.Inputs, nil)
		p.graph = newGraph(rec.Workflow)
		r.draw(to)
	}
	if p.root == nil || rec.Step == "" || rec.In == nil {
		return
	}
	if n := p.root.find(append(slices.Clone(rec.At), place{step: rec.Step})); n != nil {
		n.start(rec.In)
	}
	r.announce(to)
}

func (r *reducer) skip(p *engine, rec *record, to engines.Story) {
	name := strings.TrimPrefix(rec.arg(0), "step ")
	if rec.Step != "" {
		way := append(slices.Clone(rec.At), place{step: rec.Step})
		name = path(way)
		id := make([]string, len(way))
		for i, s := range way {
			id[i] = s.step
		}
		p.graph.skip(strings.Join(id, "/"))
		if p.root != nil {
			if n := p.root.find(way); n != nil {
				n.skip()
			}
		}
	}
	if !slices.Contains(r.skipped, name) && len(r.skipped) < maxSkipped {
		r.skipped = append(r.skipped, name)
		to.Detail("skipped", slices.Clone(r.skipped))
	}
}

// pack takes the structure that cwltool --pack told.
func (r *reducer) pack(e engines.Event, to engines.Story) {
	var doc plan
	if json.Unmarshal(e.Line, &doc) != nil || doc.Workflow == nil {
		return
	}
	if len(r.order) == 0 {
		r.engine(0)
	}
	p := r.order[0]
	if p.root != nil || p.planned {
		return
	}
	p.planned = true
	if doc.Workflow.Class == "Workflow" {
		p.root = newWorkflowNode(doc.Workflow, doc.Inputs, nil)
		seen := p.graph
		p.graph = newGraph(doc.Workflow)
		for _, n := range seen.nodes {
			for range n.jobs {
				p.graph.ran(n.id, n.jobID)
			}
		}
	}
	to.Detail("total_from", "cwltool --pack")
	r.announce(to)
	r.draw(to)
}

// needsPlan reports whether jobs run and nobody knows of how many.
func (r *reducer) needsPlan() bool {
	return len(r.order) > 0 && !r.order[0].planned && len(r.order[0].jobs) > 0
}

// announce tells the total, once it is known, and when it has grown.
func (r *reducer) announce(to engines.Story) {
	total := 0
	for _, p := range r.order {
		if !p.planned {
			return
		}
		surely := p.before
		if p.root != nil {
			surely += p.root.jobs
		}
		total += max(surely, len(p.jobs))
	}
	if total > r.announced {
		r.announced = total
		to.Total(total)
	}
}

// draw tells the graph.
func (r *reducer) draw(to engines.Story) {
	if len(r.order) == 1 {
		to.Graph(r.order[0].graph.story())
		return
	}
	all := &engines.Graph{}
	for _, p := range r.order {
		one, prefix := p.graph.story(), fmt.Sprintf("%d:", p.ordinal)
		for _, n := range one.Nodes {
			n.ID = prefix + n.ID
			all.Nodes = append(all.Nodes, n)
		}
		for _, e := range one.Edges {
			all.Edges = append(all.Edges, [2]string{prefix + e[0], prefix + e[1]})
		}
	}
	to.Graph(all)
}

func (r *reducer) End(x engines.Exit, to engines.Story) engines.Ending {
	r.to = to
	if r.hooked {
		r.turns.finish(len(r.turns.all))
	} else {
		r.text.flush(func(rec record) { r.written(&rec, to) })
		r.wrote(r.output.last())
	}
	var ending engines.Ending
	if r.bus.seen() {
		ending.Reason = r.bus.end(x.At, to)
	}
	if ending.Reason == "" {
		ending.Reason = r.reason()
	}
	if x.Stop != nil || x.Code > 128 {
		ending.Reason = "" // what cwltool said before is not why it ended
	}
	good, bad, jobs := 0, 0, 0
	for _, p := range r.order {
		jobs += len(p.jobs)
		switch p.status {
		case "":
		case "success":
			good++
		default:
			bad++
		}
	}
	switch {
	case x.Code != 0:
	case bad > 0: // of a script that does not look at what cwltool says
		ending.Status = workflow.StatusFailed
		if ending.Reason == "" {
			ending.Reason = "cwltool says: permanentFail"
		}
	case good > 0 && good == len(r.order):
		ending.Status = workflow.StatusFinished
	}
	if jobs > 0 {
		if jobs > r.announced && x.Code == 0 && bad == 0 {
			to.Total(jobs)
		}
		r.draw(to)
	}
	return ending
}

// reason is why the run failed, if it did.
func (r *reducer) reason() string {
	var failed []*job
	for _, p := range r.order {
		for _, j := range p.order {
			if j.failed {
				failed = append(failed, j)
			}
		}
	}
	if len(failed) > 0 {
		reason := fmt.Sprintf("job %s failed: %s", failed[0].name, oneLine(strings.Join(failed[0].why, "; ")))
		if more := len(failed) - 1; more > 0 {
			reason += fmt.Sprintf(" (and %d more failed)", more)
		}
		return reason
	}
	if n := len(r.errors); n > 0 {
		return oneLine(strings.Replace(r.errors[n-1], ", try again with --debug for more information", "", 1))
	}
	return ""
}

// oneLine is the beginning of a text, without line breaks.
func oneLine(s string) string {
	return clip(strings.Join(strings.Fields(s), " "), 500)
}

// clip is a text of n bytes at most. What is left out is in the middle.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n/2], "") + " […] " + strings.ToValidUTF8(s[len(s)-n/2:], "")
}

// A guess knows where jobs stand from the order of the log alone. Without the
// hook's own word scatter indices are unknown, and with --parallel a step may be
// taken for its namesake in another workflow.
type guess struct {
	bases  map[string]bool
	within map[string]string // the workflow of a step
	parent map[string]string // the step that a workflow runs as
	last   map[string]string // the last step of a name without its number that began
}

func (g *guess) init() {
	g.bases, g.within = make(map[string]bool), make(map[string]string)
	g.parent, g.last = make(map[string]string), make(map[string]string)
}

var numbered = regexp.MustCompile(`^(.+)_\d+$`)

// base is a name without the number that makes it unique.
func (g *guess) base(name string) string {
	if m := numbered.FindStringSubmatch(name); m != nil && g.bases[m[1]] {
		return m[1]
	}
	return name
}

func (g *guess) starting(of, name string) {
	if s, ok := strings.CutPrefix(name, "step "); ok {
		g.within[s] = strings.TrimPrefix(of, "workflow ")
	}
}

func (g *guess) start(name string) {
	if s, ok := strings.CutPrefix(name, "step "); ok {
		b := g.base(s)
		g.bases[b] = true
		g.last[b] = s
		return
	}
	if w, ok := strings.CutPrefix(name, "workflow "); ok && w != "" {
		if _, known := g.parent[w]; !known {
			g.parent[w] = g.last[g.base(w)]
		}
	}
}

func (g *guess) path(job string) string {
	var steps []string
	for s := g.last[g.base(job)]; s != "" && len(steps) < maxDepth; s = g.parent[g.within[s]] {
		steps = append(steps, g.base(s))
	}
	slices.Reverse(steps)
	return strings.Join(steps, "/")
}
