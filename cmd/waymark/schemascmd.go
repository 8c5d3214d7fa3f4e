package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"waymark/schemas"
)

func (a *app) schemasCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "schemas [NAME]",
		Short: "List the JSON Schemas of messages, or print one",
		Long: `List the JSON Schemas that messages must conform to or, with a name, print one.
The suffix .schema.json may be left out.`,
		Example: `  waymark schemas
  waymark schemas jobs-status-message`,
		Args: args(0, 1, "NAME"),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return schemas.Names(), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, names []string) error {
			if len(names) == 0 {
				for _, name := range schemas.Names() {
					if _, err := fmt.Fprintln(a.stdout, name); err != nil {
						return err
					}
				}
				return nil
			}
			text, err := schemas.Source(names[0])
			if err != nil {
				return &exitError{code: exitNotFound, err: err}
			}
			_, err = a.stdout.Write(text)
			return err
		},
	}
}
