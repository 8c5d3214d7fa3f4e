package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"waymark/store"
)

func (a *app) migrateCommand() *cobra.Command {
	var dry bool
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Bring the database's schema up to date",
		Long: `Apply the migrations that the database lacks, each in a transaction, and create
the schema if it is not there. "waymark serve" does this by itself. Of several
at once one does the work and the others wait.`,
		Example: `  waymark migrate --dry-run
  waymark migrate --database-url postgres://admin@db/waymark`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.config(cmd)
			if err != nil {
				return err
			}
			if err := c.require("database.url"); err != nil {
				return err
			}
			ctx := cmd.Context()
			db, err := c.openStore(ctx, a.logger(c, true))
			if err != nil {
				return err
			}
			defer db.Close()
			return a.migrate(ctx, db, c, dry)
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only list the migrations that would be applied")
	addConfigFlags(cmd, "database", "log")
	return cmd
}

func (a *app) migrate(ctx context.Context, db *store.DB, c *config, dry bool) error {
	do, verb := db.Migrate, "applied"
	if dry {
		do, verb = db.Pending, "pending"
	}
	list, err := do(ctx)
	// What was applied before an error is told all the same: it has happened.
	for _, m := range list {
		if _, err := fmt.Fprintf(a.stdout, "%s %s\n", verb, m.Name); err != nil {
			return err
		}
	}
	if err != nil {
		return unreachable(err)
	}
	if len(list) == 0 {
		_, err = fmt.Fprintf(a.stdout, "schema %s is up to date\n", c.Database.Schema)
	}
	return err
}
