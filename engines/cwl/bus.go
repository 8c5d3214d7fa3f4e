package cwl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
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

// bus makes a story of the messages of Toil's leader: tab-separated lines, a
// kind and its fields. A job is one of the kind CWLJob; scatter, gather and
// resolve are Toil's own.
type bus struct {
	workflowID uuid.UUID
	jobs       map[string]*toilJob
	order      []*toilJob
	byBatch    map[string]*toilJob
}

// toilJob is a CWLJob. Toil keeps its id in the job store when it repeats it.
type toilJob struct {
	name, id string
	store    string // its id in Toil's job store
	attempt  int
	ended    bool // this attempt
	exit     int
	failed   bool // for good
}

func newBus(workflowID uuid.UUID) *bus {
	return &bus{workflowID: workflowID, jobs: make(map[string]*toilJob), byBatch: make(map[string]*toilJob)}
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
		if j := b.job(at(2), at(1)); j != nil {
			b.byBatch[at(3)] = j
			b.issued(j, to)
		}
	case "ExternalBatchId":
		if j := b.byBatch[at(1)]; j != nil && !j.ended && at(3) == localBatchSystem {
			to.Job(j.report(workflow.JobRunning, workflow.JobReport{StartedAt: e.At}))
		}
	case "JobCompleted":
		if j := b.job(at(2), at(1)); j != nil {
			b.completed(j, at(3), e.At, to)
		}
	case "JobFailed":
		if j := b.job(at(2), at(1)); j != nil && !j.failed && !(j.ended && j.exit == 0) {
			j.failed, j.ended = true, true
			news := workflow.JobReport{FinishedAt: e.At, Diagnostics: "Toil gave it up"}
			if j.exit != 0 {
				news.ExitCode = &j.exit
				news.Diagnostics = fmt.Sprintf("exit code %d, and Toil gave it up", j.exit)
			}
			to.Job(j.report(workflow.JobFailed, news))
		}
	}
}

// job is the one with an id of Toil's job store, nil if it is Toil's own.
func (b *bus) job(id, name string) *toilJob {
	if !strings.HasPrefix(id, "kind-CWLJob/") {
		return nil
	}
	j := b.jobs[id]
	if j == nil {
		if name == "" {
			name = id
		}
		j = &toilJob{name: name, store: id, id: engines.JobID(b.workflowID, "toil", id)}
		b.jobs[id] = j
		b.order = append(b.order, j)
	}
	return j
}

func (j *toilJob) report(status workflow.JobStatus, news workflow.JobReport) workflow.JobReport {
	news.ID, news.Name, news.Status, news.Attempt = j.id, j.name, status, max(j.attempt, 1)
	return news
}

func (b *bus) issued(j *toilJob, to engines.Story) {
	switch {
	case j.failed, j.attempt > 0 && !j.ended, j.ended && j.exit == 0:
		return // said before
	}
	j.attempt++
	j.ended, j.exit = false, 0
	to.Job(j.report(workflow.JobQueued, workflow.JobReport{}))
}

// completed ends an attempt. One that failed may be repeated, and only Toil
// knows.
func (b *bus) completed(j *toilJob, code string, at time.Time, to engines.Story) {
	exit, err := strconv.Atoi(code)
	if err != nil || j.ended || j.failed {
		return
	}
	j.ended, j.exit = true, exit
	if exit == 0 {
		to.Job(j.report(workflow.JobFinished, workflow.JobReport{FinishedAt: at, ExitCode: &j.exit}))
	}
}

// end says why the run failed, if a job did.
func (b *bus) end(to engines.Story) (reason string) {
	failed := 0
	for _, j := range b.order {
		if j.failed {
			if failed++; failed == 1 {
				reason = fmt.Sprintf("job %s failed: exit code %d", j.name, j.exit)
			}
		}
	}
	if failed > 1 {
		reason += fmt.Sprintf(" (and %d more failed)", failed-1)
	}
	graph := &engines.Graph{}
	for _, j := range b.order {
		graph.Nodes = append(graph.Nodes, engines.Node{ID: j.store, Name: j.name, JobID: j.id})
	}
	to.Graph(graph)
	return reason
}

// follow is a Source that brings the lines of a file as it grows. What it holds
// at the start is an earlier run's.
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
		lines := engines.Lines{Max: 64 << 10, Emit: func(line []byte) { emit(engines.Event{Source: busSource, Line: line}) }}
		poll := time.NewTicker(busPoll)
		defer poll.Stop()
		for last := false; ; {
			if err := read(path, &file, &from, &lines); err != nil {
				return fmt.Errorf("reading Toil's messages: %w", err)
			}
			if last {
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
