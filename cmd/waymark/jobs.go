package main

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"waymark/store"
	"waymark/workflow"
)

// runColumn is the place of the column that tells attempts of the run apart.
const runColumn = 2

func (a *app) jobsCommand() *cobra.Command {
	var statuses []string
	var owner string
	var runAttempt int
	paging := &paging{what: "job", most: 10_000}
	cmd := &cobra.Command{
		Use:   "jobs WORKFLOW",
		Short: "List the jobs of a workflow",
		Long: `List the jobs of a workflow in the order of their ids, which stays the same
while they run; those that fit on one page in the order in which they started.
Where the run has begun anew, the column RUN says which attempt of it last spoke
of the job; "waymark status" counts the jobs of the latest.

` + workflowHelp,
		Example: `  waymark jobs fit --status failed
  waymark jobs fit --run-attempt 1
  waymark jobs fit --all --output jsonl`,
		Args: args(1, 1, workflowArgument),
		RunE: func(cmd *cobra.Command, refs []string) error {
			if runAttempt < 0 {
				return usage("--run-attempt: expected 1 or more, found %d", runAttempt)
			}
			limit, err := paging.rows(cmd)
			if err != nil {
				return err
			}
			filter := workflow.JobFilter{RunAttempt: runAttempt, Limit: limit}
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
				id, err := findRun(ctx, db, refs[0], owner)
				if err != nil {
					return err
				}
				runs, err := db.Summaries(ctx, []uuid.UUID{id})
				if err != nil {
					return err
				}
				again := len(runs) > 0 && runs[0].Attempt > 1
				l := listing[workflow.Job]{
					key:     "jobs",
					columns: columns("~JOB", "~NAME", "STATUS", ">EXIT", ">ATTEMPT", "STARTED", ">DURATION", "~COMMAND"),
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
						case j.StartedAt.IsZero(), j.Status.Terminal() && j.FinishedAt.IsZero():
						case j.Status.Terminal():
							duration = elapsed(j.StartedAt, j.FinishedAt)
						default:
							duration = elapsed(j.StartedAt, a.now())
						}
						row := []string{clip(harmless(j.ID), 40), clip(harmless(jobName(j)), 40), status, exit,
							strconv.Itoa(j.Attempt), clock(j.StartedAt), duration, clip(harmless(j.Command), 60)}
						if again {
							row = slices.Insert(row, runColumn, strconv.Itoa(j.RunAttempt))
						}
						return row
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
				if again {
					l.columns = slices.Insert(l.columns, runColumn, columns(">RUN")...)
				}
				return l.write(a, cmd, o, paging)
			})
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&statuses, "status", nil, "only jobs in this `status`; may be repeated, or hold several with commas")
	f.IntVar(&runAttempt, "run-attempt", 0, "only jobs that this `attempt` of the run last spoke of")
	paging.addFlags(f)
	addOwnerFlag(f, &owner)
	addOutputFlags(cmd, formatTable, formatJSON, formatJSONL)
	addConfigFlags(cmd, "database", "log")
	return cmd
}

// jobName is a job's name with its path before it.
func jobName(j *workflow.Job) string {
	if j.Path == "" {
		return j.Name
	}
	return j.Path + "/" + j.Name
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
