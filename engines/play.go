package engines

import (
	"context"
	"slices"
	"time"

	"waymark/workflow"
)

// Playback says how [Play] plays a recording.
type Playback struct {
	// Engine is the name of the engine in messages. Required.
	Engine string
	// FinalTimeout and Interval are those of [Config].
	FinalTimeout, Interval time.Duration
	// Publisher takes the messages. Required.
	Publisher Publisher
	// Recording to play. Required.
	Recording *Recording
	// Reducer makes a story of it. Required.
	Reducer Reducer
	// Speed is how much faster than it happened the run is played. 0 means
	// without any pause.
	Speed float64
	// Submission registers the run. Its Workflow is the run's id. Required.
	Submission *workflow.Submission
}

// Play publishes a recorded run as if it happened now. Jobs begin and end when
// it is told. The end of ctx stops the run, which is then reported stopped.
func Play(ctx context.Context, p Playback) (Outcome, error) {
	id := p.Submission.ID()
	r := NewReporter(ctx, Config{
		Engine: p.Engine, FinalTimeout: p.FinalTimeout, Interval: p.Interval,
		Publisher: p.Publisher, WorkflowID: id,
	})
	began := time.Now()
	r.Submit(p.Submission)
	if len(p.Recording.Command) > 0 {
		r.Log(quoted(p.Recording.Command) + "\n")
	}
	r.Begin()
	n := NewNarrator(p.Reducer, present{r})
	x := p.Recording.Exit
	for _, e := range p.Recording.Events {
		if err := p.await(ctx, began, e.At); err != nil {
			x.Stop, x.Code, x.Unknown = err, max(x.Code, 1), false
			break
		}
		e.At = time.Now().UTC()
		e.Line = slices.Clone(e.Line)
		n.Apply(e)
	}
	x.At = time.Now().UTC()
	end := n.End(x)
	if x.Unknown && end.Status == workflow.StatusFinished {
		x.Code = 0
	}
	out := Outcome{
		WorkflowID: id, Watched: true, Status: end.Status, Reason: end.Reason, ExitCode: x.Code, Counts: n.Counts(),
		Report: r.Finish(context.WithoutCancel(ctx), end.Status, lastWords(end, x)),
	}
	return out, nil
}

// await waits until something happens that happened at a time of the recording.
func (p *Playback) await(ctx context.Context, began, at time.Time) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if p.Speed <= 0 || at.IsZero() {
		return nil
	}
	due := began.Add(time.Duration(float64(at.Sub(time.Time{})) / p.Speed))
	timer := time.NewTimer(time.Until(due))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// present is a Teller for whom all happens when it is told.
type present struct{ *Reporter }

func (p present) Job(news workflow.JobReport) {
	now := time.Now().UTC().Truncate(time.Microsecond)
	if !news.StartedAt.IsZero() {
		news.StartedAt = now
	}
	if !news.FinishedAt.IsZero() {
		news.FinishedAt = now
		news.StartedAt = time.Time{} // which the job's beginning told
	}
	p.Reporter.Job(news)
}

var _ Teller = present{}
