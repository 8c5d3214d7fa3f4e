package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "config",
		Short:   "Show the configuration",
		Long:    "Show the configuration in effect. Its subcommand print does.",
		Example: "  waymark config print",
		RunE:    group,
	}
	cmd.AddCommand(a.configPrintCommand())
	return cmd
}

type settingView struct {
	Key    string     `json:"key"`
	Value  string     `json:"value"`
	Source sourceView `json:"source"`
}

type sourceView struct {
	Kind string  `json:"kind"`
	Name *string `json:"name"`
	Line *int    `json:"line"`
}

func (a *app) configPrintCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "print",
		Short: "Print each setting, its value, and where that came from",
		Long: `Print each setting, its value in effect, and where that came from: a flag, an
environment variable, a line of the configuration file, or the default.
Passwords are hidden.

With --docs it prints the table of all settings, in Markdown, and looks at no
configuration.`,
		Example: `  waymark config print
  WAYMARK_LOG_LEVEL=debug waymark config print --json
  waymark config print --docs`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o := a.output(cmd)
			if docs, _ := cmd.Flags().GetBool("docs"); docs {
				_, err := o.w.Write([]byte(settingsTable()))
				return err
			}
			c, err := a.config(cmd)
			if err != nil {
				return err
			}
			var views []settingView
			var rows [][]string
			for i := range settings {
				s := &settings[i]
				v := c.values[s.key]
				shown := s.shown(v.text)
				views = append(views, settingView{Key: s.key, Value: shown, Source: sourceView{Kind: v.origin.kind, Name: known(v.origin.name), Line: known(v.origin.line)}})
				rows = append(rows, []string{s.key, harmless(shown), harmless(v.origin.String())})
			}
			if o.format == formatJSON {
				return o.document(struct {
					File     *string       `json:"file"`
					Settings []settingView `json:"settings"`
				}{known(c.file), views})
			}
			return o.table(columns("KEY", "VALUE", "SOURCE"), rows, true)
		},
	}
	cmd.Flags().Bool("docs", false, "print the table of all settings in Markdown")
	addOutputFlags(cmd, formatTable, formatJSON)
	addConfigFlags(cmd, "broker", "database", "consumer", "publisher", "http", "log")
	return cmd
}

// settingsTable documents every setting, in Markdown. The README holds it.
func settingsTable() string {
	var b strings.Builder
	b.WriteString("| key | environment | type | default | what for |\n| --- | --- | --- | --- | --- |\n")
	for i := range settings {
		s := &settings[i]
		preset := "none"
		if s.preset != "" {
			preset = "`" + s.preset + "`"
		}
		allowed := s.kind.String()
		switch {
		case s.kind == word:
			allowed = "`" + strings.Join(s.choices, "` \\| `") + "`"
		case s.kind == number && s.most > 0:
			allowed = fmt.Sprintf("%d to %d", s.least, s.most)
		}
		fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s | %s |\n", s.key, s.env(), allowed, preset, s.doc)
	}
	return b.String()
}
