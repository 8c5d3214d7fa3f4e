package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"waymark/store"
	"waymark/workflow"
)

// CaseJobs is the case of Wide for workflows of so many jobs.
func CaseJobs(jobs int) string { return fmt.Sprintf("%d jobs", jobs) }

// Wide measures what a message costs the store as a workflow grows. Of a
// workflow with more jobs than the measured messages speak of, the last ones
// are measured: the others were done before, outside the clock. Workflows come
// one after the other, so that the number of jobs is all that differs.
//
// Only the store is measured. What broker and codec add is the same for every
// message, and would only hide a growth.
func (b *Bench) Wide(ctx context.Context, l Load, jobs []int) (*Result, error) {
	if err := listed("jobs", jobs, 1, 10*mostJobs); err != nil {
		return nil, err
	}
	l.Jobs, l.Workflows = 1, 1
	p, r, err := b.start(ctx, "wide", l, false, true)
	if err != nil {
		return nil, err
	}
	return finish(ctx, p, r, b.wide(ctx, p, r, l, jobs))
}

func (b *Bench) wide(ctx context.Context, p *place, r *Result, l Load, jobs []int) error {
	r.set("messages", l.Messages)
	r.set("warm_up", l.WarmUp)
	r.set("batch_size", b.cfg.BatchSize)
	r.note("The store alone, workflows one after the other; of one that is larger than what is measured, the last messages are.")
	// A schema for each width: the index of one must not be the burden of another.
	dbs := make([]*store.DB, len(jobs))
	for i := range jobs {
		var err error
		if dbs[i], _, err = p.database(ctx); err != nil {
			return err
		}
	}
	for run := range l.Runs {
		for i, n := range jobs {
			b.progress("wide: run %d of %d, %s", run+1, l.Runs, CaseJobs(n))
			f := newFeed(newTraffic(1, n), b.cfg.BatchSize)
			if known := n - (l.WarmUp+l.Messages)/2 - b.cfg.BatchSize; known > 0 {
				if err := grow(ctx, dbs[i], f, known); err != nil {
					return err
				}
			}
			c := r.of(CaseJobs(n))
			if err := b.applyOnce(ctx, p, c, dbs[i], f, l.WarmUp, l.Messages); err != nil {
				return err
			}
			rate := c.Metric("rate").Values[run]
			c.add("cost", "µs/msg", 1e6/rate)
			if i > 0 {
				c.addRatio("cost of "+CaseJobs(jobs[0]), "cost", r.of(CaseJobs(jobs[0])))
			}
		}
	}
	return nil
}

// growBy is how many jobs a message names while a workflow is made large.
const growBy = 5000

// grow begins the workflow of f and finishes its first jobs.
func grow(ctx context.Context, db *store.DB, f *feed, jobs int) error {
	f.t.ids[0], f.t.step = uuid.New(), 2*jobs+1
	for first := 0; first < jobs; first += growBy {
		ids := make([]string, 0, growBy)
		for j := first; j < min(first+growBy, jobs); j++ {
			ids = append(ids, jobID(f.t.ids[0], j))
		}
		at := time.Now().UTC().Truncate(time.Microsecond)
		m := &workflow.StatusMessage{WorkflowID: f.t.ids[0], Status: workflow.StatusRunning, EventTime: at, Progress: workflow.Progress{
			Total: workflow.Count(f.t.jobs), Running: workflow.JobIDs(ids...), Finished: workflow.JobIDs(ids...)}}
		if _, err := db.Apply(ctx, f.batch(workflow.Delivery{MessageID: uuid.NewString(), Status: m})); err != nil {
			return err
		}
	}
	return nil
}
