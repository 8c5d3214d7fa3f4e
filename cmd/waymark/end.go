package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"waymark/engines"
	"waymark/store"
	"waymark/workflow"
)

const (
	// recently is how long ago a run was heard of that is likely to go on.
	recently = time.Minute
	// endedAtOnce is how many jobs one message ends.
	endedAtOnce = 1000
)

// endFlags are the flags of "end".
type endFlags struct {
	owner, status, reason string
	force                 bool
}

func (a *app) endCommand() *cobra.Command {
	var f endFlags
	cmd := &cobra.Command{
		Use:   "end WORKFLOW",
		Short: "End a run that nobody reports any more",
		Long: `Say how a run ended that will not say so itself, because the engine and what
reported it were killed: "waymark list --stale 12h" finds such runs. The run is
reported as failed, or as --status says, and the jobs that ran in it as stopped,
all with the reason. Nothing is killed: a run that goes on all the same stays
ended here, unless it says that it had ended before. Only a new attempt begins
it anew.

Reads the database and publishes to the broker, as an adapter does; what it says
is seen once "waymark serve" has applied it.

` + workflowHelp,
		Example: `  waymark end fit#2 --reason reboot
  waymark end 256b25f4 --status stopped`,
		Args: args(1, 1, workflowArgument),
		RunE: func(cmd *cobra.Command, refs []string) error { return a.end(cmd, &f, refs[0]) },
	}
	flags := cmd.Flags()
	addOwnerFlag(flags, &f.owner)
	flags.StringVarP(&f.status, "status", "s", workflow.StatusFailed.String(), "how it ended: failed or stopped")
	flags.StringVar(&f.reason, "reason", "it was not heard of any more", "why, for people: a `text`")
	flags.BoolVar(&f.force, "force", false, "end it though it was heard of within the last minute")
	addConfigFlags(cmd, "database", "broker", "publisher.encoding", "publisher.window", "publisher.timeout", "log")
	return cmd
}

func (a *app) end(cmd *cobra.Command, f *endFlags, ref string) error {
	status, err := workflow.ParseStatus(f.status)
	if err != nil || status != workflow.StatusFailed && status != workflow.StatusStopped {
		return usage("--status: expected failed or stopped, found %q", f.status)
	}
	return a.withStore(cmd, func(ctx context.Context, c *config, db *store.DB) error {
		id, err := findRun(ctx, db, ref, f.owner)
		if err != nil {
			return err
		}
		run, err := db.Workflow(ctx, id)
		if err != nil {
			return err
		}
		now := a.now().UTC().Truncate(time.Microsecond)
		name := displayName(&run.Summary)
		switch {
		case run.Status.Terminal():
			return &exitError{code: exitFailed, err: fmt.Errorf("%s has ended already: it is %s", name, run.Status)}
		case now.Sub(run.UpdatedAt) < recently && !f.force:
			return usage("%s was heard of %s ago and may go on: wait, or say --force", name, silence(&run.Summary, now))
		}

		p, err := a.publisher(cmd, c, a.stderr)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, c.Publisher.Timeout)
		defer cancel()
		ended, err := endMessages(ctx, db, &run, status, engines.Text(f.reason), now, func(m *workflow.StatusMessage) error {
			return sendError(p.Status(ctx, m))
		})
		if err = errors.Join(err, p.Close(ctx)); err != nil {
			return unreachable(err)
		}
		_, err = fmt.Fprintf(a.stdout, "%s is published as %s, with %s that ran: waymark status %s\n", name, status, count(ended, "job"), shortID(id))
		return err
	})
}

// endMessages publishes that run ended, with the jobs that ran in it, and
// returns how many these were.
func endMessages(ctx context.Context, db *store.DB, run *workflow.Details, status workflow.Status, reason string, now time.Time, publish func(*workflow.StatusMessage) error) (ended int, err error) {
	filter := workflow.JobFilter{Statuses: []workflow.JobStatus{workflow.JobRunning}, RunAttempt: run.Attempt, Limit: endedAtOnce}
	for {
		page, err := db.Jobs(ctx, run.ID, filter)
		if err != nil {
			return ended, err
		}
		m := &workflow.StatusMessage{WorkflowID: run.ID, Attempt: run.Attempt, Status: workflow.StatusRunning, EventTime: now, Engine: run.Engine}
		for _, j := range page.Items {
			m.Jobs = append(m.Jobs, workflow.JobReport{ID: j.ID, Attempt: j.Attempt, Status: workflow.JobStopped, FinishedAt: now, Diagnostics: reason})
		}
		if len(m.Jobs) > 0 {
			if err := publish(m); err != nil {
				return ended, err
			}
			ended += len(m.Jobs)
		}
		if filter.Cursor = page.Next; page.Next == "" {
			break
		}
	}
	// A message of its own, as the document may be as large as a message can be.
	m := &workflow.StatusMessage{WorkflowID: run.ID, Attempt: run.Attempt, Status: status, EventTime: now, Engine: run.Engine, Logs: reason + "\n"}
	m.Progress.EngineSpecific = withReason(run.EngineSpecific, reason)
	return ended, publish(m)
}

// withReason is what an engine said of itself and, as adapters say it, why the
// run did not finish; nil if there is no place for that.
func withReason(document json.RawMessage, reason string) json.RawMessage {
	said := make(map[string]json.RawMessage)
	if document != nil && json.Unmarshal(document, &said) != nil {
		return nil // which leaves what it said as it is
	}
	if said == nil { // it said null
		said = make(map[string]json.RawMessage)
	}
	text, err := json.Marshal(reason)
	if err != nil {
		return nil
	}
	said["reason"] = text
	whole, err := json.Marshal(said)
	if err != nil {
		return nil
	}
	return whole
}
