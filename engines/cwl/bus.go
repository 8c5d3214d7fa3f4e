package cwl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"waymark/engines"
	"waymark/workflow"
)

const (
	// busSource is the source of the lines of Toil's message bus.
	busSource = "toil"
	// busPoll is how often the file of the bus is looked at.
	busPoll = 200 * time.Millisecond
	// localBatchSystem runs what it accepts at once; with others a job waits.
	localBatchSystem = "SingleMachineBatchSystem"
)

// bus makes a story of the messages of Toil's leader, tab-separated lines of a
// kind and its fields, and of what the hook tells of the leader's workers. A job
// is one of the kind CWLJob; scatter, gather and resolve are Toil's own.
//
// The bus knows of the first job of a worker alone. The hook knows of those that
// are chained to it, and of what they run, but only on the leader's machine, and
// not whether Toil is going to repeat what failed.
type bus struct {
	workflowID uuid.UUID
	slots      map[string]*slot
	byBatch    map[string]*slot
	jobs       []*toilJob
	skipped    []string
}

// slot is an id in Toil's job store: a job, and after it those that are chained
// to it, which take its id over.
type slot struct {
	id, name  string // of what was issued first
	jobs      []*toilJob
	issued    int // workers for it, by the bus
	completed int // those that ended
	exit      int // of the last of them
	heard     int // workers for it, by the hook
	pid       int // of the last of them
}

// toilJob is a CWLJob.
type toilJob struct {
	name, id string
	node     string // in the graph
	attempt  int
	pid      int  // of its worker, if the hook was heard
	ended    bool // this attempt
	exit     int
	failed   bool // for good
	code     *int // of its process
	why      []string
	class    string // of the tool, if the hook was heard
	ran      bool   // a command
}

func newBus(workflowID uuid.UUID) *bus {
	return &bus{workflowID: workflowID, slots: make(map[string]*slot), byBatch: make(map[string]*slot)}
}

func (b *bus) seen() bool { return len(b.jobs) > 0 }

func (b *bus) apply(e engines.Event, to engines.Story) {
	field := strings.Split(strings.TrimRight(engines.Text(string(e.Line)), "\r\n"), "\t")
	kind := strings.TrimSuffix(field[0][strings.LastIndex(field[0], ".")+1:], "Message")
	at := func(i int) string {
		if i < len(field) {
			return field[i]
		}
		return ""
	}
	switch kind {
	case "JobIssued":
		if at(2) == "" {
			return
		}
		if s := b.slot(at(2)); b.byBatch[at(3)] != s {
			b.byBatch[at(3)] = s
			b.issued(s, at(1), e.At, to)
		}
	case "ExternalBatchId":
		if s := b.byBatch[at(1)]; s != nil && s.issued > s.heard && at(3) == localBatchSystem {
			if j := s.last(); j != nil && !j.ended {
				to.Job(j.report(workflow.JobRunning, workflow.JobReport{StartedAt: e.At}))
			}
		}
	case "JobCompleted":
		exit, err := strconv.Atoi(at(3))
		if s := b.slots[at(2)]; s != nil && err == nil {
			s.complete(exit, e.At, to)
		}
	case "JobFailed":
		if s := b.slots[at(2)]; s != nil {
			b.fail(s, at(1), e.At, to)
		}
	}
}

func (b *bus) slot(id string) *slot {
	s := b.slots[id]
	if s == nil {
		s = &slot{id: id}
		b.slots[id] = s
	}
	return s
}

// last is the job that has the id by now, nil if that is Toil's own.
func (s *slot) last() *toilJob {
	if len(s.jobs) == 0 {
		return nil
	}
	return s.jobs[len(s.jobs)-1]
}

// generated is what cwltool calls a tool without an id of its own, anew in each run.
var generated = regexp.MustCompile(`(^|\.)_:[0-9a-f-]{36}(\.|$)`)

// take makes the job that takes the id over.
func (b *bus) take(s *slot, name string) *toilJob {
	node := s.id
	if len(s.jobs) > 0 || !strings.HasPrefix(s.id, "kind-CWLJob/") {
		same := 1
		for _, j := range s.jobs {
			if j.name == name {
				same++
			}
		}
		if node += "/" + name; same > 1 {
			node += fmt.Sprintf("#%d", same)
		}
	}
	j := &toilJob{name: name, node: node, id: engines.JobID(b.workflowID, "toil", node)}
	s.jobs = append(s.jobs, j)
	b.jobs = append(b.jobs, j)
	return j
}

func (j *toilJob) report(status workflow.JobStatus, news workflow.JobReport) workflow.JobReport {
	news.ID, news.Status, news.Attempt = j.id, status, max(j.attempt, 1)
	news.Name = j.label()
	return news
}

// label is the name without what is new in each run.
func (j *toilJob) label() string {
	if name := strings.Trim(generated.ReplaceAllString(j.name, "."), "."); name != "" {
		return name
	}
	return j.node
}

// begin is another attempt.
func (j *toilJob) begin() {
	j.attempt++
	j.ended, j.exit, j.pid, j.code, j.why, j.ran = false, 0, 0, nil, nil, false
}

func (j *toilJob) finish(at time.Time, to engines.Story) {
	j.ended, j.exit = true, 0
	if j.code == nil {
		j.code = new(int)
	}
	to.Job(j.report(workflow.JobFinished, workflow.JobReport{FinishedAt: at, ExitCode: j.code}))
}

// end ends an attempt that failed. It may be repeated, and only Toil knows.
func (j *toilJob) end(exit int) {
	j.ended, j.exit = true, exit
	if j.code != nil && *j.code != 0 {
		j.exit = *j.code
	}
}

func (j *toilJob) fail(at time.Time, why string, to engines.Story) {
	j.failed, j.ended = true, true
	news := workflow.JobReport{FinishedAt: at, Diagnostics: why, ExitCode: j.code}
	if j.pid == 0 && j.exit != 0 { // of the worker, which is all that the bus knows
		news.ExitCode = &j.exit
		news.Diagnostics = fmt.Sprintf("exit code %d, and %s", j.exit, why)
	}
	if len(j.why) > 0 {
		news.Diagnostics = strings.Join(j.why, "\n")
	}
	to.Job(j.report(workflow.JobFailed, news))
}

func (b *bus) issued(s *slot, name string, at time.Time, to engines.Story) {
	if s.issued++; s.issued == 1 {
		s.name = name
	}
	if s.issued <= s.heard {
		return // the hook has told of its worker
	}
	j := s.last()
	switch {
	case j == nil && !strings.HasPrefix(s.id, "kind-CWLJob/") && s.own(name):
		return
	case j == nil:
		j = b.take(s, name)
	case j.name != name && s.own(name):
		return
	case j.name != name: // chained to it
		if !j.failed && !(j.ended && j.exit == 0) {
			j.finish(at, to)
		}
		if j = b.take(s, name); s.exit != 0 {
			j.attempt = 1 // nobody told of the first
		}
	case j.failed, !j.ended && j.attempt > 0, j.ended && j.exit == 0:
		return // said before, or what is left to be cleaned up
	}
	j.begin()
	to.Job(j.report(workflow.JobQueued, workflow.JobReport{}))
}

// own reports whether a name is of what Toil has made of the workflow.
func (s *slot) own(name string) bool {
	return name == s.name && !strings.HasPrefix(s.id, "kind-CWLJob/") || name == "CWLScatter" || name == "CWLGather" || strings.HasSuffix(name, "._resolve")
}

// complete is the end of a worker.
func (s *slot) complete(exit int, at time.Time, to engines.Story) {
	s.completed++
	s.exit = exit
	j := s.last()
	switch {
	case j == nil || j.ended || s.completed < s.heard:
	case exit == 0:
		j.finish(at, to)
	default:
		j.end(exit)
	}
}

// fail is what Toil gives up.
func (b *bus) fail(s *slot, name string, at time.Time, to engines.Story) {
	j := s.last()
	if (j == nil || j.name != name) && !s.own(name) && s.heard == 0 { // chained to it
		if j != nil && !j.failed && !(j.ended && j.exit == 0) {
			j.finish(at, to)
		}
		j = b.take(s, name)
		j.begin()
		j.end(s.exit)
	}
	if j != nil && j.name == name && !j.failed && !(j.ended && j.exit == 0) {
		j.fail(at, "Toil gave it up", to)
	}
}

// hear takes what the hook tells of a job in a worker, and reports whether it
// means something.
func (b *bus) hear(rec *record, to engines.Story) bool {
	s := b.slot(rec.Toil.ID)
	j := s.last()
	if rec.PID != s.pid {
		s.pid = rec.PID
		s.heard++
	}
	if *rec.Message == "begin" {
		b.began(s, j, rec, to)
		return true
	}
	if j == nil || j.name != rec.Toil.Name || j.ended {
		return false
	}
	switch m := *rec.Message; m {
	case "end":
		if rec.Good {
			j.finish(rec.at, to)
			if j.class == "CommandLineTool" && !j.ran {
				b.skip(j, to)
			}
		} else {
			j.end(1)
		}
	case msgRuns:
		j.ran = true
		to.Job(j.report(workflow.JobRunning, workflow.JobReport{Command: command(rec.arg(2))}))
	case msgCompleted:
		if rec.Exit != nil {
			j.code = shellExit(*rec.Exit)
		}
		if logs := rec.output(); logs != "" {
			to.Job(workflow.JobReport{ID: j.id, Attempt: j.attempt, Logs: logs})
		}
		if rec.arg(1) != "success" {
			j.end(1)
		}
	case msgExited, msgKilled, msgJobError, msgNotFound, msgException:
		why, code := rec.cause()
		if code != nil {
			j.code = code
		}
		if why = clip(why, maxText); !slices.Contains(j.why, why) && len(j.why) < 10 {
			j.why = append(j.why, why)
		}
	default:
		return false
	}
	return true
}

func (b *bus) began(s *slot, j *toilJob, rec *record, to engines.Story) {
	switch name, another := rec.Toil.Name, j != nil && j.pid != 0 && j.pid != rec.PID; {
	case j == nil:
		j = b.take(s, name)
	case j.name != name: // chained to it
		if !j.ended {
			j.finish(rec.at, to)
		}
		j = b.take(s, name)
	case another || j.ended && j.exit != 0: // repeated
		j.ended = true
	case j.ended: // chained to its namesake
		j = b.take(s, name)
	}
	if j.failed {
		return
	}
	if j.ended || j.attempt == 0 {
		j.begin()
	}
	j.pid, j.class = rec.PID, rec.Class
	to.Job(j.report(workflow.JobRunning, workflow.JobReport{StartedAt: rec.at}))
}

// skip names a job whose condition did not hold. To Toil it is a job all the same.
func (b *bus) skip(j *toilJob, to engines.Story) {
	if len(b.skipped) < maxSkipped {
		b.skipped = append(b.skipped, j.label())
		to.Detail("skipped", slices.Clone(b.skipped))
	}
}

// end says why the run failed, if a job did.
func (b *bus) end(at time.Time, to engines.Story) (reason string) {
	failed := 0
	for _, j := range b.jobs {
		if j.ended && j.exit != 0 && !j.failed {
			j.fail(at, "Toil ended before it was repeated", to)
		}
		if !j.failed {
			continue
		}
		if failed++; failed == 1 {
			why := "Toil gave it up"
			switch {
			case len(j.why) > 0:
				why = oneLine(strings.Join(j.why, "; "))
			case j.exit != 0:
				why = fmt.Sprintf("exit code %d", j.exit)
			}
			reason = fmt.Sprintf("job %s failed: %s", j.label(), why)
		}
	}
	if failed > 1 {
		reason += fmt.Sprintf(" (and %d more failed)", failed-1)
	}
	graph := &engines.Graph{}
	for _, j := range b.jobs {
		graph.Nodes = append(graph.Nodes, engines.Node{ID: j.node, Name: j.label(), JobID: j.id})
	}
	to.Graph(graph)
	return reason
}

// follow is a Source that brings the lines of a file as it grows. What it holds
// at the start is an earlier run's. Each line waits for a look at the file: what a
// worker's hook has sent before it was written shall come first.
func follow(path string) engines.Source {
	from := int64(0)
	if info, err := os.Stat(path); err == nil {
		from = info.Size()
	}
	return func(ctx context.Context, emit func(engines.Event)) error {
		var file *os.File
		defer func() {
			if file != nil {
				file.Close()
			}
		}()
		var waiting []engines.Event
		lines := engines.Lines{Max: 64 << 10, Emit: func(line []byte) {
			waiting = append(waiting, engines.Event{At: time.Now(), Source: busSource, Line: bytes.Clone(line)})
		}}
		pass := func() {
			for _, e := range waiting {
				emit(e)
			}
			waiting = nil
		}
		poll := time.NewTicker(busPoll)
		defer poll.Stop()
		for last := false; ; {
			pass()
			if err := read(path, &file, &from, &lines); err != nil {
				pass()
				return fmt.Errorf("reading Toil's messages: %w", err)
			}
			if last {
				<-poll.C
				pass()
				return nil // half a line at the end is none
			}
			select {
			case <-poll.C:
			case <-ctx.Done():
				last = true
			}
		}
	}
}

// read reads what is new in a file, which may not be there yet.
func read(path string, file **os.File, from *int64, lines *engines.Lines) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	if *file != nil {
		if open, err := (*file).Stat(); err != nil || !os.SameFile(open, info) {
			(*file).Close()
			*file, *from = nil, -1
		}
	}
	if info.Size() < *from || *from < 0 { // begun anew, and half a line is lost
		*from, *lines = 0, engines.Lines{Max: lines.Max, Emit: lines.Emit}
	}
	if *file == nil {
		if *file, err = os.Open(path); err != nil {
			return err
		}
	}
	n, err := io.Copy(lines, io.NewSectionReader(*file, *from, info.Size()-*from))
	*from += n
	return err
}
