package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"waymark/store"
	"waymark/workflow"
)

const (
	workflowArgument = "WORKFLOW"
	workflowHelp     = `WORKFLOW is a name (its latest run), a name with the number of a run (fit#2), an
id, or the beginning of one (at least four characters). Names and numbers count
for each owner: --owner chooses, where one fits runs of several.`

	shownFailures = 10 // failed jobs that a status tells of
	shownLogLines = 10 // of each of them
)

// addOwnerFlag adds --owner to a command that takes a WORKFLOW.
func addOwnerFlag(f *pflag.FlagSet, owner *string) {
	f.StringVar(owner, "owner", "", "only workflows of this `owner`")
}

// findRun returns the workflow that a person means.
func findRun(ctx context.Context, db *store.DB, ref, owner string) (uuid.UUID, error) {
	id, err := db.Find(ctx, ref, owner)
	switch {
	case errors.Is(err, workflow.ErrNotFound):
		err = fmt.Errorf("%w; see waymark list", err)
	case owner == "" && errors.Is(err, workflow.ErrAmbiguous):
		err = fmt.Errorf("%w; give an id, or --owner", err)
	}
	return id, err
}

func (a *app) statusCommand() *cobra.Command {
	var owner string
	cmd := &cobra.Command{
		Use:   "status WORKFLOW",
		Short: "Show how a workflow is doing",
		Long: `Show how a workflow is doing: status, progress, times and, if jobs failed,
which, why and their last log lines.

` + workflowHelp,
		Example: `  waymark status fit
  waymark status fit#2 --json | jq .progress`,
		Args: args(1, 1, workflowArgument),
		RunE: func(cmd *cobra.Command, refs []string) error {
			o := a.output(cmd)
			return a.withStore(cmd, func(ctx context.Context, _ *config, db *store.DB) error {
				id, err := findRun(ctx, db, refs[0], owner)
				if err != nil {
					return err
				}
				details, err := db.Workflow(ctx, id)
				if err != nil {
					return err
				}
				failures, asOf, more, err := failures(ctx, db, id, details.Attempt)
				if err != nil {
					return err
				}
				if o.format == formatJSON {
					return o.document(detailsView{
						workflowView: viewWorkflow(&details.Summary, a.now()), Parameters: details.Parameters,
						Specification: details.Specification, EngineSpecific: details.EngineSpecific,
						MinJobMemory: known(details.MinJobMemory), RetryCount: details.RetryCount,
						FailedJobs: failures, AsOf: asOf.UTC(),
					})
				}
				_, err = o.w.Write([]byte(a.card(o, &details, failures, asOf, more)))
				return err
			})
		},
	}
	addOwnerFlag(cmd.Flags(), &owner)
	addOutputFlags(cmd, formatTable, formatJSON)
	addConfigFlags(cmd, "database", "log")
	return cmd
}

// failures reads the jobs that failed in this attempt of the run, with the end
// of their logs, and says how fresh that is and whether there are more.
func failures(ctx context.Context, db *store.DB, id uuid.UUID, attempt int) (list []failedJobView, asOf time.Time, more bool, err error) {
	page, err := db.Jobs(ctx, id, workflow.JobFilter{Statuses: []workflow.JobStatus{workflow.JobFailed}, RunAttempt: attempt, Limit: shownFailures})
	if err != nil {
		return nil, asOf, false, err
	}
	list = []failedJobView{}
	for i := range page.Items {
		job := &page.Items[i]
		var text strings.Builder
		// What it wrote in another attempt is no reason.
		err := eachOfTail(ctx, db, id, workflow.LogFilter{JobID: job.ID, RunAttempt: attempt}, shownLogLines, func(chunks []workflow.LogEntry) error {
			for i := range chunks {
				text.WriteString(wholeLines(chunks[i].Text))
			}
			return nil
		})
		if err != nil {
			return nil, asOf, false, err
		}
		lines := lastLines(text.String(), shownLogLines)
		if lines == nil {
			lines = []string{}
		}
		list = append(list, failedJobView{jobView: viewJob(job), LastLogLines: lines})
	}
	return list, page.AsOf, page.Next != "", nil
}

// card is a workflow on one screen.
func (a *app) card(o *output, d *workflow.Details, failures []failedJobView, asOf time.Time, more bool) string {
	var b strings.Builder
	field := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "  %-10s %s\n", name, fmt.Sprintf(format, args...))
	}
	s, c := &d.Summary, d.Counts
	fmt.Fprintf(&b, "%s  %s\n", o.bold(displayName(s)), o.status(s.Status.String()))
	field("id", "%s", s.ID)
	for _, f := range []struct{ name, value string }{{"owner", s.Owner}, {"engine", s.Engine}} {
		if f.value != "" {
			field(f.name, "%s", harmless(f.value))
		}
	}
	if len(s.Labels) > 0 {
		var labels []string
		for key, value := range s.Labels {
			labels = append(labels, harmless(key+"="+value))
		}
		slices.Sort(labels)
		field("labels", "%s", strings.Join(labels, ", "))
	}
	if s.Attempt > 1 {
		field("attempt", "%d", s.Attempt)
	}
	if c.Total > 0 {
		field("progress", "%s %d%%  %s", bar(c, 30), c.Finished*100/c.Total, counts(c))
	}
	for _, f := range []struct {
		name string
		at   time.Time
	}{{"submitted", s.SubmittedAt}, {"started", s.StartedAt}, {"finished", s.FinishedAt}, {"deleted", s.DeletedAt}} {
		if !f.at.IsZero() {
			field(f.name, "%s", clock(f.at))
		}
	}
	if run := runTime(s, a.now()); run != "" {
		field("duration", "%s", run)
	}
	if why := reason(d); why != "" {
		field("because", "%s", clip(harmless(oneLine.Replace(strings.TrimSpace(why))), 400))
	}
	if !empty(d.Parameters) {
		field("parameters", "%s", indented(d.Parameters))
	}
	for i := range failures {
		b.WriteString("\n")
		writeFailure(&b, o, &failures[i])
	}
	if more {
		fmt.Fprintf(&b, "\n  more jobs failed: waymark jobs %s --status failed\n", s.ID)
	}
	fresh := "  as of " + clock(asOf)
	if !s.LastEventAt.IsZero() {
		fresh += ", last heard of the run at " + clock(s.LastEventAt)
	}
	fmt.Fprintf(&b, "\n%s\n", o.dim(fresh))
	return b.String()
}

// empty reports whether a JSON text holds nothing, at most empty objects.
func empty(text json.RawMessage) bool {
	var members map[string]json.RawMessage
	if len(text) == 0 || string(text) == "null" {
		return true
	}
	if json.Unmarshal(text, &members) != nil {
		return false
	}
	for _, member := range members {
		if string(member) != "{}" {
			return false
		}
	}
	return true
}

// reason is why a run did not finish, as its adapter says.
func reason(d *workflow.Details) string {
	var said struct {
		Reason string `json:"reason"`
	}
	if s := d.Status; s != workflow.StatusFailed && s != workflow.StatusStopped || json.Unmarshal(d.EngineSpecific, &said) != nil {
		return ""
	}
	return said.Reason
}

func writeFailure(b *strings.Builder, o *output, f *failedJobView) {
	name := f.ID
	if f.Name != nil {
		name = *f.Name
	}
	line := o.status("failed") + "  " + harmless(name)
	if f.ExitCode != nil {
		line += fmt.Sprintf(", exit code %d", *f.ExitCode)
	}
	fmt.Fprintf(b, "  %s\n", line)
	if f.Name != nil {
		fmt.Fprintf(b, "    job      %s\n", harmless(f.ID))
	}
	if f.Command != nil {
		fmt.Fprintf(b, "    command  %s\n", clip(harmless(*f.Command), 200))
	}
	if f.Diagnostics != nil && (f.ExitCode == nil || *f.Diagnostics != fmt.Sprintf("exit code %d", *f.ExitCode)) { // which stands there already
		fmt.Fprintf(b, "    because  %s\n", clip(harmless(strings.Join(strings.Fields(*f.Diagnostics), " ")), 400))
	}
	for _, l := range f.LastLogLines {
		fmt.Fprintf(b, "    | %s\n", clip(l, 400))
	}
}

// counts lists what is not zero, in words.
func counts(c workflow.Counts) string {
	text := fmt.Sprintf("%d of %d finished", c.Finished, c.Total)
	for _, part := range []struct {
		n    int
		word string
	}{{c.Cached, "from the cache"}, {c.Failed, "failed"}, {c.Stopped, "stopped"}, {c.Running, "running"}, {c.Queued, "queued"}} {
		if part.n > 0 {
			text += fmt.Sprintf(", %d %s", part.n, part.word)
		}
	}
	return text
}
