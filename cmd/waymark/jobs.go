package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"waymark/store"
	"waymark/workflow"
)

func (a *app) jobsCommand() *cobra.Command {
	var statuses []string
	paging := &paging{what: "job", most: 10_000}
	cmd := &cobra.Command{
		Use:   "jobs WORKFLOW",
		Short: "List the jobs of a workflow",
		Long: `List the jobs of a workflow in the order of their ids, which stays the same while
they run.

` + workflowHelp,
		Example: `  waymark jobs fit --status failed
  waymark jobs fit --all --output jsonl`,
		Args: args(1, 1, workflowArgument),
		RunE: func(cmd *cobra.Command, refs []string) error {
			filter := workflow.JobFilter{Limit: paging.limit}
			for _, list := range statuses {
				for w := range strings.SplitSeq(list, ",") {
					status, err := workflow.ParseJobStatus(strings.TrimSpace(w))
					if err != nil {
						return usage("--status: %w", err)
					}
					filter.Statuses = append(filter.Statuses, status)
				}
			}
			o := a.output(cmd)
			return a.withStore(cmd, func(ctx context.Context, _ *config, db *store.DB) error {
				id, err := db.Find(ctx, refs[0])
				if err != nil {
					return err
				}
				l := listing[workflow.Job]{
					key:     "jobs",
					columns: columns("JOB", "NAME", "STATUS", ">EXIT", ">ATTEMPT", "STARTED", ">DURATION", "COMMAND"),
					view:    func(j *workflow.Job) any { return viewJob(j) },
					row: func(j *workflow.Job) []string {
						status, exit, duration := o.status(j.Status.String()), "", ""
						if j.Cached && j.Status == workflow.JobFinished {
							status += " (cached)"
						}
						if j.ExitCode != nil {
							exit = strconv.Itoa(*j.ExitCode)
						}
						switch {
						case j.StartedAt.IsZero():
						case j.Status.Terminal():
							duration = elapsed(j.FinishedAt.Sub(j.StartedAt))
						default:
							duration = elapsed(max(a.now().Sub(j.StartedAt), 0))
						}
						name := j.Name
						if j.Path != "" {
							name = j.Path + "/" + name
						}
						return []string{clip(harmless(j.ID), 40), clip(harmless(name), 40), status, exit,
							strconv.Itoa(j.Attempt), clock(j.StartedAt), duration, clip(harmless(j.Command), 60)}
					},
					page: func(cursor string) (workflow.Page[workflow.Job], error) {
						filter.Cursor = cursor
						page, err := db.Jobs(ctx, id, filter)
						if cursor == "" && page.Next == "" {
							byStart(page.Items)
						}
						return page, err
					},
				}
				return l.write(a, cmd, o, paging)
			})
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&statuses, "status", nil, "only jobs in this `status`; may be repeated, or hold several with commas")
	paging.addFlags(f)
	addOutputFlags(cmd, formatTable, formatJSON, formatJSONL)
	addConfigFlags(cmd, "database", "log")
	return cmd
}

// byStart puts jobs in the order in which they started, those that have not at
// the end. Pages come in the order of ids, which does not change between them;
// a list that fits on one page can have the order that people expect.
func byStart(jobs []workflow.Job) {
	slices.SortStableFunc(jobs, func(a, b workflow.Job) int {
		switch {
		case a.StartedAt.IsZero() != b.StartedAt.IsZero():
			if a.StartedAt.IsZero() {
				return 1
			}
			return -1
		default:
			return a.StartedAt.Compare(b.StartedAt)
		}
	})
}

// findJob returns the id of the job that a person means by ref: an id, the
// beginning of one (four characters or more), or the name of a job.
func findJob(ctx context.Context, db *store.DB, id uuid.UUID, ref string) (string, error) {
	var fits []string
	for filter := (workflow.JobFilter{Limit: 10_000}); ; {
		page, err := db.Jobs(ctx, id, filter)
		if err != nil {
			return "", err
		}
		for i := range page.Items {
			switch j := &page.Items[i]; {
			case j.ID == ref:
				return j.ID, nil
			case j.Name == ref, len(ref) >= 4 && strings.HasPrefix(j.ID, ref):
				fits = append(fits, j.ID)
			}
		}
		if filter.Cursor = page.Next; page.Next == "" {
			break
		}
	}
	switch len(fits) {
	case 0:
		return "", fmt.Errorf("job %q: %w; see waymark jobs %s", ref, workflow.ErrNotFound, id)
	case 1:
		return fits[0], nil
	}
	shown := strings.Join(fits[:min(len(fits), 5)], ", ")
	if len(fits) > 5 {
		shown += ", …"
	}
	return "", fmt.Errorf("job %q: %w: it fits %s", ref, workflow.ErrAmbiguous, shown)
}
