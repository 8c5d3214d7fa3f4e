package main

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"waymark/store"
)

func (a *app) historyCommand() *cobra.Command {
	var owner string
	cmd := &cobra.Command{
		Use:   "history WORKFLOW",
		Short: "Show each change of a workflow's status",
		Long: `Show each status that was claimed for a workflow: when it happened by the
engine's clock, when the database learned of it, and whether it counted.

` + workflowHelp,
		Example: `  waymark history fit
  waymark history fit --json`,
		Args: args(1, 1, workflowArgument),
		RunE: func(cmd *cobra.Command, refs []string) error {
			o := a.output(cmd)
			return a.withStore(cmd, func(ctx context.Context, _ *config, db *store.DB) error {
				id, err := findRun(ctx, db, refs[0], owner)
				if err != nil {
					return err
				}
				changes, err := db.History(ctx, id)
				if err != nil {
					return err
				}
				views := []historyView{}
				var rows [][]string
				for i := range changes {
					c := &changes[i]
					views = append(views, viewHistory(c))
					note := "counted"
					if c.Superseded {
						note = "superseded"
					}
					rows = append(rows, []string{clock(c.At), strconv.Itoa(c.Attempt), o.status(c.Status.String()), clock(c.RecordedAt), note})
				}
				switch o.format {
				case formatJSON:
					return o.document(struct {
						ID      string        `json:"id"`
						History []historyView `json:"history"`
					}{id.String(), views})
				case formatJSONL:
					for _, v := range views {
						if err := o.line(v); err != nil {
							return err
						}
					}
					return nil
				}
				return o.table(columns("TIME", ">ATTEMPT", "STATUS", "RECORDED", "NOTE"), rows, true)
			})
		},
	}
	addOwnerFlag(cmd.Flags(), &owner)
	addOutputFlags(cmd, formatTable, formatJSON, formatJSONL)
	addConfigFlags(cmd, "database", "log")
	return cmd
}
