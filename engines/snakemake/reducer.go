package snakemake

import (
	"bytes"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"

	"waymark/engines"
	"waymark/workflow"
)

// The modes, in which Snakemake is watched.
const (
	modeHook = "hook" // its logger and scheduler
	modeText = "text" // its standard error
	modeLog  = "log"  // its log file
)

const (
	maxErrors      = 20      // errors of the run that are told
	maxDiagnostics = 4 << 10 // bytes of the reason of one failure
	undecided      = 2 * time.Second
)

// reducer makes a story of what Snakemake says.
//
// Messages may come twice (8 says everything twice to a handler, 9 repeats
// errors at the end), so it keeps states and counts nothing. A job that failed
// may be tried again: it has failed once the scheduler says so, or goes on to
// something else.
type reducer struct {
	id      uuid.UUID
	mode    string
	version string
	runs    map[runKey]*run
	order   []*run
	jobs    map[string]*job // by stable name
	known   []*job          // in the order in which they became known
	parser  textParser
	errors  []string
	told    int       // the total that was announced
	now     time.Time // the engine's clock
	graph   bool      // somebody knows the graph
	paths   map[place]string
	begun   bool // a workflow that is no subworkflow has its path
}

// runKey names one call of the scheduler: a command may start Snakemake several
// times, and Snakemake itself schedules subworkflows first.
type runKey struct{ pid, number int }

// place is what tells one workflow from another.
type place struct{ workdir, snakefile string }

type run struct {
	place
	start string // where Snakemake began
	base  string // where the command began, empty if it is a single Snakemake
	sub   bool   // it is a subworkflow

	number   int // from 1, in the order of their jobs
	jobs     map[int]*job
	total    int  // jobs as last announced, with those that run nothing
	table    int  // the same, from the table of the jobs, until what follows is seen
	listed   int  // the same, as the table said at first
	cut      int  // jobs that the progress counts, and that --until left out
	stepped  bool // there was progress
	counted  bool // the graph has named the jobs, so they are the total
	norun    int  // of these, those that run nothing
	live     bool // it is no dry run
	dry      bool
	decides  bool // the scheduler says what becomes of failed jobs
	over     bool // the scheduler is done
	success  bool
	last     *job            // the job whose command may come next
	group    []*job          // the jobs of the group that is being described
	rounds   int             // how often the scheduler chose jobs
	failing  []*job          // jobs that failed and may be tried again
	byThread map[string]*job // the job that failed last in each thread
	causes   map[string]string
	edges    [][2]*job
	edge     map[[2]*job]bool
}

type job struct {
	name, id string
	rule     string
	path     string
	node     string // its id in the graph
	number   int    // Snakemake's own id

	wildcards  map[string]string
	norun      bool
	checkpoint bool
	external   string // its id in a batch system
	command    string

	run     *run // which runs it
	status  workflow.JobStatus
	failing bool
	attempt int
	since   time.Time // when it failed, while nobody knows whether for good,
	round   int       // and after which choice of the scheduler
	ended   time.Time
	why     string
	exit    *int
}

func newReducer(id uuid.UUID) *reducer {
	return &reducer{id: id, runs: make(map[runKey]*run), jobs: make(map[string]*job), paths: make(map[place]string)}
}

// Apply takes an event.
func (r *reducer) Apply(e engines.Event, to engines.Story) bool {
	switch e.Source {
	case engines.Hook:
		m := parseEvent(e.Line)
		if m == nil {
			return false
		}
		if m["waymark"] == nil && m.kind() == "" {
			return false
		}
		r.setMode(modeHook, to)
		r.clock(m.at(), e.At)
		r.event(m, to)
	case engines.Stderr:
		if r.mode != modeHook {
			r.clock(time.Time{}, e.At)
			r.line(string(e.Line), modeText, to)
		}
	case Log:
		r.clock(e.At, e.At)
		r.line(string(e.Line), modeLog, to)
	}
	return true
}

// clock takes the engine's time, or that of the arrival if it never says one.
func (r *reducer) clock(engine, arrival time.Time) {
	switch {
	case !engine.IsZero():
		r.now = engine
	case r.now.IsZero() || arrival.After(r.now):
		r.now = arrival
	}
}

func (r *reducer) setMode(mode string, to engines.Story) {
	if r.mode == mode || r.mode == modeHook {
		return
	}
	if r.mode == modeText {
		r.forgetText()
	}
	r.mode = mode
	to.Detail("mode", mode)
}

// forgetText drops what was read from the text once the hook is heard, which
// may happen on a busy machine. Jobs keep what was told of them.
func (r *reducer) forgetText() {
	p := r.runs[ofText]
	delete(r.runs, ofText)
	r.order = slices.DeleteFunc(r.order, func(other *run) bool { return other == p })
	for i, other := range r.order {
		other.number = i + 1
	}
	for _, j := range r.known {
		if j.run == p {
			j.run, j.failing = nil, false
		}
	}
}

func (r *reducer) run(key runKey) *run {
	p := r.runs[key]
	if p == nil {
		p = &run{
			jobs: make(map[int]*job), byThread: make(map[string]*job), causes: make(map[string]string), edge: make(map[[2]*job]bool),
		}
		r.runs[key] = p
	}
	return p
}

// number gives a run its place among those that have jobs.
func (r *reducer) number(p *run) {
	if p.number == 0 {
		r.order = append(r.order, p)
		p.number = len(r.order)
	}
}

func (r *reducer) event(m event, to engines.Story) {
	if m["waymark"] != nil {
		r.setVersion(m.text("version"), to)
		return
	}
	pid, _ := m.number("pid")
	number, _ := m.number("run")
	p := r.run(runKey{pid, number})
	kind := m.kind()
	if kind == "x_run" {
		r.setVersion(m.text("version"), to)
		p.snakefile, p.workdir, p.start, p.dry = m.text("snakefile"), m.text("workdir"), m.text("start"), m.flag("dryrun")
		p.base = m.text("base")
		depth, _ := m.number("depth")
		p.sub = depth > 1
		p.live = !p.dry
		return
	}
	if p.dry {
		return
	}
	if kind != "run_info" {
		// What the table says is only true until the graph tells which jobs run
		// nothing, and that may come next.
		if kind != "x_dag" {
			r.list(p, p.table, to)
		}
		p.table = 0
	}
	switch kind {
	case "x_dag":
		p.live, p.decides = true, true
		r.dag(p, m, to)
	case "x_finished":
		p.decides = true
		if j := p.job(m, "jobid"); j != nil {
			r.finished(j, to)
		}
	case "x_failed":
		p.decides = true
		r.decided(p, m, to)
	case "x_error":
		if j := p.job(m, "jobid"); j != nil && !j.norun {
			r.explain(j, m.text("msg"), to)
		}
	case "x_end":
		p.over, p.success = true, m.flag("success")
		r.settle(p, to)
	case "x_unpatched", "x_broken":
		p.decides = false
		to.Detail("hook_error", m.first("error", "msg"))
	case "run_info":
		n, ok := m.object("stats").number("total")
		if !ok {
			n, ok = statedTotal(m.text("msg"))
		}
		if ok {
			p.table = n
		}
	case "progress":
		p.live = true
		if n, ok := m.number("total"); ok {
			r.stepped(p, n, to)
		}
	case "job_started", "resources_info":
		p.live = true
	case "group_info":
		p.group = nil
	case "job_info":
		r.started(p, m, to)
	case "shellcmd":
		// The command of a script comes from the thread that runs it, and
		// belongs to none of the jobs announced last.
		if t := m.text("thread"); p.last != nil && (t == "" || t == "MainThread") {
			keys := []string{"msg"}
			if m["event"] != nil { // where it is a sentence
				keys = []string{"shellcmd", "cmd"}
			}
			r.command(p.last, m.first(keys...), to)
			p.last = nil
		}
	case "job_finished":
		j := p.job(m, "jobid")
		if j == nil {
			j = p.job(m, "job_id")
		}
		if j != nil {
			r.finished(j, to)
		}
	case "job_error":
		r.erred(p, m, to)
	case "group_error":
		for _, member := range m.objects("job_error_info") {
			member["thread"] = m["thread"]
			r.erred(p, member, to)
		}
	case "error":
		r.failure(p, m.text("msg"), m.text("thread"), to)
	case "info", "warning":
		r.remark(p, m.text("msg"), to)
	}
	if len(p.failing) > 0 && !p.decides && r.now.Sub(p.failing[0].since) >= undecided {
		r.settle(p, to)
	}
}

func (r *reducer) setVersion(version string, to engines.Story) {
	if version != "" && version != r.version {
		r.version = version
		to.Detail("version", version)
	}
}

func (p *run) job(m event, key string) *job {
	if n, ok := m.number(key); ok {
		return p.jobs[n]
	}
	return nil
}

var total = regexp.MustCompile(`(?m)^total\s+(\d+)\b`)

// statedTotal finds the total in the table of the jobs.
func statedTotal(table string) (int, bool) {
	if found := total.FindStringSubmatch(table); found != nil {
		n, err := strconv.Atoi(found[1])
		return n, err == nil && n < 1<<31
	}
	return 0, false
}

// list takes how many jobs the table of a run has.
func (r *reducer) list(p *run, n int, to engines.Story) {
	if p.listed == 0 && n > 0 {
		p.listed = n
	}
	r.announce(p, n, to)
}

// stepped takes of how many jobs the progress speaks. That counts jobs that
// --until left out, unlike the table: what is too much at the first step, before
// any checkpoint, is too much ever after.
func (r *reducer) stepped(p *run, n int, to engines.Story) {
	if !p.stepped && p.listed > 0 {
		p.cut = max(n-p.listed, 0)
	}
	p.stepped = true
	r.announce(p, n-p.cut, to)
}

// announce takes how many jobs a run has, with those that run nothing.
func (r *reducer) announce(p *run, n int, to engines.Story) {
	if !p.live || p.counted || n <= 0 {
		return
	}
	p.total = max(p.total, n)
	r.sayTotal(to)
}

// sayTotal announces what surely runs: the jobs known, or as many as one run
// said. Of two runs nobody knows which jobs they share before their graphs come.
func (r *reducer) sayTotal(to engines.Story) {
	n := 0
	for _, j := range r.known {
		if !j.norun {
			n++
		}
	}
	for _, p := range r.runs {
		n = max(n, p.total-p.norun)
	}
	if n > r.told {
		r.told = n
		to.Total(n)
	}
}

// define makes a job known to a run. Jobs of one name are one job, that a later
// run repeats; unless they are of another workflow, or one graph has both.
func (r *reducer) define(p *run, number int, rule string, wildcards map[string]string) *job {
	r.number(p)
	if j := p.jobs[number]; j != nil {
		return j
	}
	name, path := stableName(rule, wildcards), r.path(p)
	if path != "" {
		name = path + "/" + name
	}
	j := r.jobs[name]
	if j != nil && j.run == p && j.status != workflow.JobFinished {
		name += "#" + strconv.Itoa(number)
		j = r.jobs[name]
	}
	if j == nil {
		j = &job{name: name, id: engines.JobID(r.id, Engine, name), rule: rule, path: path, number: number, wildcards: wildcards, attempt: 1}
		j.node = strconv.Itoa(number)
		if p.number > 1 {
			j.node = fmt.Sprintf("%d/%d", p.number, number)
		}
		r.jobs[name] = j
		r.known = append(r.known, j)
	}
	if j.run == nil {
		j.run = p
	}
	p.jobs[number] = j
	return j
}

// path is where the workflow of a run is among others: its folder, and its
// Snakefile if that is not where Snakemake looks for it, as seen from where the
// command began. That depends on no other workflow, so it is the same whichever
// of two parallel ones is heard first. A single Snakemake is its own place,
// wherever it works: the path is empty for the first that is no subworkflow.
func (r *reducer) path(p *run) string {
	if p.place == (place{}) {
		return ""
	}
	if path, ok := r.paths[p.place]; ok {
		return path
	}
	path := ""
	if p.base != "" || p.sub || r.begun {
		base := p.base
		if base == "" {
			base = r.order[0].start
		}
		path = p.seenFrom(base)
	}
	r.begun = r.begun || !p.sub
	taken := slices.Collect(maps.Values(r.paths))
	if slices.Contains(taken, path) {
		path = strings.TrimPrefix(path+"/"+engines.Text(filepath.Base(p.snakefile)), "/")
	}
	for name, n := path, 2; slices.Contains(taken, path); n++ {
		path = name + "#" + strconv.Itoa(n)
	}
	r.paths[p.place] = path
	return path
}

// seenFrom is the place of a workflow as seen from a folder.
func (p *run) seenFrom(base string) string {
	path := relative(base, p.workdir)
	if !p.usual() {
		file := relative(p.workdir, p.snakefile)
		if strings.HasPrefix(file, "..") {
			file = relative(base, p.snakefile)
		}
		if path != "" {
			path += "/" + strings.TrimPrefix(file, "/")
		} else {
			path = file
		}
	}
	return engines.Text(path)
}

// usual reports whether the Snakefile is where Snakemake looks for it.
func (p *run) usual() bool {
	for _, folder := range [...]string{p.workdir, p.start} {
		for _, name := range [...]string{"Snakefile", "snakefile", "workflow/Snakefile", "workflow/snakefile"} {
			if p.snakefile == filepath.Join(folder, name) {
				return true
			}
		}
	}
	return p.snakefile == ""
}

// relative is a path as seen from a folder, empty for the folder itself, and the
// path if that is shorter.
func relative(folder, path string) string {
	rel, err := filepath.Rel(folder, path)
	switch {
	case err != nil || len(rel) > len(path):
		return path
	case rel == ".":
		return ""
	}
	return rel
}

// dag takes a graph: the jobs that remain to be run.
func (r *reducer) dag(p *run, m event, to engines.Story) {
	if _, p.counted = m["nodes"].([]any); p.counted {
		p.total, p.norun = 0, 0
	}
	for _, n := range m.objects("nodes") {
		number, ok := n.number("jobid")
		rule := n.text("name")
		if !ok || rule == "" {
			continue
		}
		known := p.jobs[number] != nil
		j := r.define(p, number, rule, n.object("wildcards").words())
		if !known && n.flag("norun") && j.status == workflow.JobCreated {
			j.norun = true
		}
		j.checkpoint = j.checkpoint || n.flag("checkpoint")
		if what := n.first("script", "notebook", "wrapper", "cwl"); what != "" && j.command == "" {
			j.command = what
		}
	}
	if n, ok := m.number("norun"); ok {
		p.norun = max(p.norun, n)
	}
	for _, e := range m.list("edges") {
		pair, _ := e.([]any)
		if len(pair) != 2 {
			continue
		}
		from, ok1 := pair[0].(float64)
		into, ok2 := pair[1].(float64)
		if a, b := p.jobs[int(from)], p.jobs[int(into)]; ok1 && ok2 && a != nil && b != nil {
			p.connect(a, b)
		}
	}
	if n, ok := m.number("total"); ok && !p.counted {
		p.total = max(p.total, n)
	}
	r.sayTotal(to)
	r.graph = r.graph || len(p.jobs) > 0
	r.sayGraph(to)
}

func (p *run) connect(a, b *job) {
	pair := [2]*job{a, b}
	if a != b && !p.edge[pair] {
		p.edge[pair] = true
		p.edges = append(p.edges, pair)
	}
}

// sayGraph tells the graph of all runs. The story owns it, so it is a new one.
func (r *reducer) sayGraph(to engines.Story) {
	if !r.graph {
		return
	}
	g := &engines.Graph{Nodes: make([]engines.Node, 0, len(r.known))}
	for _, j := range r.known {
		n := engines.Node{ID: j.node, Name: j.name, JobID: j.id, More: map[string]any{"rule": j.rule}}
		if j.norun {
			n.JobID = ""
			n.More["norun"] = true
		}
		if len(j.wildcards) > 0 {
			n.More["wildcards"] = j.wildcards
		}
		if j.checkpoint {
			n.More["checkpoint"] = true
		}
		if j.external != "" {
			n.More["external_id"] = j.external
		}
		g.Nodes = append(g.Nodes, n)
	}
	for _, p := range r.order {
		for _, e := range p.edges {
			g.Edges = append(g.Edges, [2]string{e[0].node, e[1].node})
		}
	}
	to.Graph(g)
}

// started takes the announcement of a job that begins.
func (r *reducer) started(p *run, m event, to engines.Story) {
	number, ok := m.number("jobid")
	rule := m.first("rule_name", "name")
	p.last = nil
	if !ok || rule == "" || !p.live {
		return
	}
	j := r.define(p, number, rule, m.object("wildcards").words())
	if j.norun {
		return
	}
	if m.flag("is_checkpoint") {
		j.checkpoint = true
	}
	p.last = j
	if m.flag("indent") {
		p.group = append(p.group, j)
	}
	r.begin(p, j, to)
	r.command(j, m.text("shellcmd"), to)
}

func (r *reducer) begin(p *run, j *job, to engines.Story) {
	switch {
	case j.failing: // nobody said so, and yet it is tried again
		r.again(j, to)
	case j.status.Terminal() && j.run != p: // another run repeats it
		j.again()
	case j.status >= workflow.JobRunning:
		return
	}
	j.run = p
	j.status = workflow.JobRunning
	to.Job(workflow.JobReport{ID: j.id, Name: j.name, Path: j.path, Attempt: j.attempt, Status: j.status, Command: j.command, StartedAt: r.now})
}

// again makes a job ready for its next attempt.
func (j *job) again() {
	j.attempt++
	j.failing = false
	j.status = workflow.JobQueued
	j.why, j.exit, j.since, j.ended = "", nil, time.Time{}, time.Time{}
}

// again takes that a job is tried again.
func (r *reducer) again(j *job, to engines.Story) {
	if j.status != workflow.JobRunning && j.status != workflow.JobFailed {
		return
	}
	to.Log(fmt.Sprintf("%s: attempt %d failed%s, trying again\n", j.name, j.attempt, j.ending()))
	j.run.drop(j)
	j.again()
	to.Job(workflow.JobReport{ID: j.id, Name: j.name, Path: j.path, Attempt: j.attempt, Status: workflow.JobQueued, Command: j.command})
}

// ending says how a job ended, as far as it is known.
func (j *job) ending() string {
	if j.exit != nil {
		return fmt.Sprintf(" (exit code %d)", *j.exit)
	}
	return ""
}

func (r *reducer) command(j *job, command string, to engines.Story) {
	command = strings.TrimSpace(command)
	if command == "" || command == j.command || command == "None" || j.status != workflow.JobRunning {
		return
	}
	j.command = command
	to.Job(workflow.JobReport{ID: j.id, Name: j.name, Path: j.path, Attempt: j.attempt, Status: j.status, Command: command})
}

func (r *reducer) finished(j *job, to engines.Story) {
	if j.norun || j.status.Terminal() {
		return
	}
	j.run.drop(j)
	j.failing, j.status, j.ended = false, workflow.JobFinished, r.now
	zero := 0
	report := workflow.JobReport{ID: j.id, Name: j.name, Path: j.path, Attempt: j.attempt, Status: j.status, Command: j.command, FinishedAt: r.now}
	if j.command != "" {
		report.ExitCode = &zero // what Snakemake runs for it has
	}
	to.Job(report)
}

// erred takes that an attempt of a job failed.
func (r *reducer) erred(p *run, m event, to engines.Story) {
	j := p.job(m, "jobid")
	if j == nil {
		number, ok := m.number("jobid")
		rule := m.first("rule_name", "name")
		if !ok || rule == "" || !p.live {
			return
		}
		j = r.define(p, number, rule, nil)
	}
	if j.norun || j.status.Terminal() {
		return
	}
	if c := strings.TrimSpace(m.text("shellcmd")); c != "" {
		j.command = c
	}
	for k, v := range m.object("aux").words() {
		j.note(k + ": " + v)
	}
	thread := m.text("thread")
	if cause := p.causes[thread]; cause != "" {
		r.explain(j, cause, to)
		delete(p.causes, thread)
	}
	p.byThread[thread] = j
	r.fail(p, j)
}

// fail marks a job as failed, for now.
func (r *reducer) fail(p *run, j *job) {
	if !j.failing {
		j.failing, j.since, j.ended = true, r.now, r.now
		j.run, j.round = p, p.rounds
		p.failing = append(p.failing, j)
	}
}

// drop takes a job from those that are failing.
func (p *run) drop(j *job) {
	p.failing = slices.DeleteFunc(p.failing, func(f *job) bool { return f == j })
}

// decided takes what the scheduler says of a failed job.
func (r *reducer) decided(p *run, m event, to engines.Story) {
	j := p.job(m, "jobid")
	if j == nil || j.norun {
		return
	}
	logs := engines.Text(m.text("logs"))
	switch final, known := m["final"].(bool); {
	case j.status.Terminal():
	case !known:
		r.fail(p, j)
	case final:
		r.fail(p, j)
		if m.flag("stopping") && j.exit != nil && *j.exit == 128+int(syscall.SIGTERM) {
			r.ended(p, j, workflow.JobStopped, logs, to) // by the signal that somebody sent to all of Snakemake
			return
		}
		r.failed(p, j, logs, to)
	default:
		r.again(j, to)
	}
}

// failed takes that a job has failed for good.
func (r *reducer) failed(p *run, j *job, logs string, to engines.Story) {
	r.ended(p, j, workflow.JobFailed, logs, to)
}

// ended takes that a job has ended, and not well.
func (r *reducer) ended(p *run, j *job, status workflow.JobStatus, logs string, to engines.Story) {
	p.drop(j)
	j.failing, j.status = false, status
	if j.why == "" {
		j.why = "the job failed"
	}
	to.Job(workflow.JobReport{
		ID: j.id, Name: j.name, Path: j.path, Attempt: j.attempt, Status: j.status, Command: j.command,
		FinishedAt: j.ended, ExitCode: j.exit, Logs: logs, Diagnostics: j.why,
	})
}

// settle takes all that failed as failed.
func (r *reducer) settle(p *run, to engines.Story) {
	for _, j := range slices.Clone(p.failing) {
		r.failed(p, j, "", to)
	}
}

var (
	restart    = regexp.MustCompile(`^Trying to restart job (\d+)\.`)
	submitted  = regexp.MustCompile(`^Submitted (?:group )?job (\S+) with external jobid '(.*)'\.`)
	missing    = regexp.MustCompile(`Job (\d+)\s+completed successfully, but some output files are missing`)
	exitStatus = regexp.MustCompile(`returned non-zero exit status (\d+)|died with <Signals\.\w+: (\d+)>`)
)

// remark takes an information for people.
func (r *reducer) remark(p *run, text string, to engines.Story) {
	switch {
	case strings.HasPrefix(text, "Using shell:"):
		p.live = true
	case strings.HasPrefix(text, "Select jobs"):
		p.live = true
		p.rounds++
		if !p.decides {
			// A job that fails while the scheduler makes its choice is only
			// looked at before the next.
			for _, j := range slices.Clone(p.failing) {
				if p.rounds-j.round >= 2 {
					r.failed(p, j, "", to)
				}
			}
		}
	case strings.HasPrefix(text, "Shutting down"):
		if !p.decides {
			r.settle(p, to)
		}
	default:
		if found := restart.FindStringSubmatch(text); found != nil {
			if j := p.numbered(found[1]); j != nil {
				r.again(j, to)
			}
		}
		if found := submitted.FindStringSubmatch(text); found != nil {
			members := p.group // of a group, whose id is no number
			if j := p.numbered(found[1]); j != nil {
				members = []*job{j}
			}
			for _, j := range members {
				j.external = found[2]
			}
		}
	}
}

func (p *run) numbered(digits string) *job {
	n, err := strconv.Atoi(digits)
	if err != nil {
		return nil
	}
	return p.jobs[n]
}

// failure takes an error, of a job or of the run.
func (r *reducer) failure(p *run, text, thread string, to engines.Story) {
	if strings.TrimSpace(text) == "" {
		return
	}
	if found := missing.FindStringSubmatch(text); found != nil {
		if j := p.numbered(found[1]); j != nil && !j.norun && !j.status.Terminal() {
			j.note(text)
			r.fail(p, j)
		}
	} else if exitStatus.MatchString(text) {
		if j := p.cause(text, thread); j != nil {
			r.explain(j, text, to)
		} else if thread != "" && thread != "MainThread" {
			p.causes[thread] = text
		}
	}
	if strings.HasPrefix(text, "Exiting because") {
		if !p.decides {
			r.settle(p, to)
		}
		return
	}
	if strings.Contains(text, "At least one job did not complete successfully") {
		return
	}
	if len(r.errors) < maxErrors && !slices.Contains(r.errors, text) {
		r.errors = append(r.errors, text)
	}
}

// cause finds the job that an error is about: the one whose command it quotes,
// or the last that failed in the thread.
func (p *run) cause(text, thread string) *job {
	for _, j := range p.failing {
		if j.command != "" && strings.Contains(text, j.command) {
			return j
		}
	}
	for _, j := range p.jobs {
		if j.status == workflow.JobRunning && j.run == p && len(j.command) > 3 && strings.Contains(text, j.command) && p.alone(j) {
			return j
		}
	}
	if j := p.byThread[thread]; j != nil && j.failing && j.exit == nil && thread != "" {
		return j
	}
	return nil
}

// alone reports whether no other job runs the command of j.
func (p *run) alone(j *job) bool {
	for _, other := range p.jobs {
		if other != j && other.status == workflow.JobRunning && strings.Contains(j.command, other.command) {
			return false
		}
	}
	return true
}

// explain takes why a job failed.
func (r *reducer) explain(j *job, text string, to engines.Story) {
	if j.status.Terminal() && j.status != workflow.JobFailed {
		return
	}
	j.note(text)
	if j.exit == nil {
		if found := exitStatus.FindStringSubmatch(text); found != nil {
			code, err := strconv.Atoi(found[1])
			if found[1] == "" {
				code, err = strconv.Atoi(found[2])
				code += 128
			}
			if err == nil && code > 0 && code < 1<<16 {
				j.exit = &code
			}
		}
	}
	if j.status == workflow.JobFailed {
		to.Job(workflow.JobReport{ID: j.id, Name: j.name, Path: j.path, Attempt: j.attempt, Status: j.status, FinishedAt: j.ended, ExitCode: j.exit, Diagnostics: j.why})
	}
}

// note adds to the reasons of a failure.
func (j *job) note(text string) {
	text = strings.TrimSpace(text)
	if text == "" || strings.Contains(j.why, text) {
		return
	}
	if j.why != "" {
		j.why += "\n"
	}
	j.why += text
	if len(j.why) > maxDiagnostics {
		j.why = strings.ToValidUTF8(j.why[:maxDiagnostics], "") + "…"
	}
}

// End takes the end of the engine.
func (r *reducer) End(x engines.Exit, to engines.Story) engines.Ending {
	r.parser.flush(r, to)
	if r.mode == modeLog {
		to.Detail("mode", modeLog)
	}
	if !x.At.IsZero() {
		r.clock(time.Time{}, x.At)
	}
	for _, p := range r.runs {
		r.list(p, p.table, to)
	}
	for _, p := range r.order {
		r.settle(p, to)
		if p.over && !p.success && x.Stop == nil {
			for _, j := range r.known {
				if j.run == p && j.status == workflow.JobRunning {
					j.note("Snakemake ended while this job ran")
					j.ended = r.now
					r.failed(p, j, "", to)
				}
			}
		}
	}
	for _, j := range r.known {
		if j.external != "" {
			r.graph = true
		}
	}
	r.sayGraph(to)
	return r.ending(x)
}

// ending says why the run did not finish, and what Snakemake said of it.
func (r *reducer) ending(x engines.Exit) engines.Ending {
	var e engines.Ending
	if r.mode == modeLog {
		e.Status = r.parser.status()
	}
	var failed []string
	for _, j := range r.known {
		if j.status == workflow.JobFailed {
			failed = append(failed, j.name+j.ending())
		}
	}
	switch {
	case x.Stop != nil:
	case len(failed) == 1:
		e.Reason = failed[0] + " failed"
	case len(failed) > 1:
		e.Reason = fmt.Sprintf("%d jobs failed: %s", len(failed), strings.Join(failed[:min(len(failed), 5)], ", "))
		if len(failed) > 5 {
			e.Reason += ", …"
		}
	case len(r.errors) > 0:
		// Of a job that Snakemake forgets to try again, the first error would be why
		// it failed at first.
		lost := slices.IndexFunc(r.errors, func(text string) bool { return strings.Contains(text, "Out of jobs ready to be started") })
		e.Reason = oneLine(r.errors[max(lost, 0)])
	case r.mode == modeLog && e.Status != workflow.StatusFinished:
		e.Reason = "Snakemake went away before its jobs were done"
	}
	for _, text := range r.errors {
		if !strings.Contains(x.Stderr, strings.TrimSpace(text)) {
			e.Logs += strings.TrimRight(text, "\n") + "\n"
		}
	}
	return e
}

// oneLine makes one short line of a text.
func oneLine(text string) string {
	line := string(bytes.Join(bytes.Fields([]byte(text)), []byte(" ")))
	if len(line) > 300 {
		line = strings.ToValidUTF8(line[:300], "") + "…"
	}
	return line
}
