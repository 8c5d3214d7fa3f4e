package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"waymark/store"
)

// root is the tree of commands.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "waymark",
		Short: "Tell people what their workflows are doing, and never lose the answer",
		Long: `Waymark tells people what their workflows are doing, and never loses the answer.

Engines publish status messages to RabbitMQ; "waymark serve" applies them to
PostgreSQL; everything else reads from there. Nothing is installed yet? Then
"waymark dev" starts private servers and all the rest with one command.

Configuration: flags, then environment (WAYMARK_BROKER_URL, …), then the file
(--config, else waymark.yaml, else /etc/waymark/waymark.yaml), then defaults.
"waymark config print" shows what is in effect and where it came from.`,
		Example: `  waymark dev                          # try everything on this machine
  waymark run serial -f reana.yaml     # run a workflow and report it
  waymark list                         # what ran, and what runs
  waymark watch                        # live`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs, // group says what is wrong with them
		RunE:          group,
	}
	version := buildVersion()
	root.Version = version.line()
	root.SetVersionTemplate("{{.Version}}\n")
	root.Flags().Bool("version", false, "print the version") // without a short form
	root.SetUsageTemplate(usageTemplate)
	root.SetFlagErrorFunc(flagError)
	root.CompletionOptions.HiddenDefaultCmd = true
	root.PersistentFlags().String("config", "", "configuration `file` (default: the first of waymark.yaml, /etc/waymark/waymark.yaml)")
	addFunctions()
	root.AddGroup(
		&cobra.Group{ID: "run", Title: "Run and publish:"},
		&cobra.Group{ID: "read", Title: "Read:"},
		&cobra.Group{ID: "operate", Title: "Operate:"},
		&cobra.Group{ID: "contract", Title: "The message contract:"},
	)
	add := func(id string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = id
			root.AddCommand(c)
		}
	}
	add("run", a.runCommand(), a.attachCommand(), a.replayCommand(), a.publishCommand())
	add("read", a.listCommand(), a.statusCommand(), a.jobsCommand(), a.logsCommand(), a.historyCommand(), a.watchCommand())
	add("operate", a.serveCommand(), a.migrateCommand(), a.deadLettersCommand(), a.endCommand(), a.ledgerCommand(), a.devCommand(), a.benchCommand(), a.configCommand(), a.versionCommand())
	add("contract", a.validateCommand(), a.conformanceCommand(), a.schemasCommand())
	root.AddCommand(relayCommand(), &cobra.Command{
		Use: "exit-codes", Short: "What the exit codes mean", Long: exitCodesHelp,
		Example: "  waymark help exit-codes",
	})
	return root
}

// group is the action of a command that only holds others.
func group(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	cmd.SuggestionsMinimumDistance = 2
	err := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return usage("%s; did you mean %s?", err, strings.Join(near, " or "))
	}
	return usage("%s; see %s --help", err, cmd.CommandPath())
}

// args checks the number of arguments, and says what is missing in words. A
// most below 0 means any number.
func args(least, most int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch n := len(args); {
		case n < least:
			return usage("missing %s; see %s --help", what, cmd.CommandPath())
		case most == 0 && n > 0:
			return usage("unexpected argument %q; see %s --help", args[0], cmd.CommandPath())
		case most > 0 && n > most:
			return usage("unexpected argument %q after %s; see %s --help", args[most], what, cmd.CommandPath())
		}
		return nil
	}
}

// flagError makes an error of the flags one of usage. It does not repeat the
// value, which may be a URL with a password; the reason says what matters.
func flagError(cmd *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	if invalid, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		return usage("--%s: %w", invalid.GetFlag().Name, plainly(errors.Unwrap(invalid)))
	}
	return usage("%w; see %s --help", err, cmd.CommandPath())
}

// plainly words what Go says of a number that it cannot read.
func plainly(err error) error {
	number, ok := errors.AsType[*strconv.NumError](err)
	switch {
	case !ok:
		return err
	case errors.Is(number.Err, strconv.ErrRange):
		return errors.New("the number is too large")
	case number.Func == "ParseBool":
		return errors.New("expected true or false")
	case number.Func == "ParseFloat":
		return errors.New("expected a number")
	}
	return errors.New("expected a whole number")
}

// withStore calls do with a database that answers and whose schema is ours.
func (a *app) withStore(cmd *cobra.Command, do func(context.Context, *config, *store.DB) error) error {
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
	if err := db.Ping(ctx); err != nil {
		return unreachable(err)
	}
	return unreachable(do(ctx, c, db))
}

// usageTemplate is cobra's, with the flags that stand for settings apart from
// the command's own, which are the ones people look for.
const usageTemplate = `Usage:{{if .Runnable}}
  {{.UseLine}}{{end}}{{if .HasAvailableSubCommands}}
  {{.CommandPath}} COMMAND{{end}}{{if .HasExample}}

Examples:
{{.Example}}{{end}}{{if .HasAvailableSubCommands}}{{$commands := .Commands}}{{if eq (len .Groups) 0}}

Commands:{{range $commands}}{{if .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{else}}{{range $group := .Groups}}

{{.Title}}{{range $commands}}{{if and (eq .GroupID $group.ID) .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}{{end}}{{end}}{{with ownFlags .}}

Flags:
{{.}}{{end}}{{with settingFlags .}}

Flags for settings (see "waymark config print" for other places to put them):
{{.}}{{end}}{{if .HasAvailableSubCommands}}

"{{.CommandPath}} COMMAND --help" says more about a command{{if not .HasParent}},
"waymark help exit-codes" about exit codes{{end}}.{{end}}
`

const (
	helpWidth  = 80
	helpIndent = 8 // of what is below a long name
)

var flagLine = regexp.MustCompile(`^( +(?:-\w, )?--\S+(?: \S+)?) {3,}(.*)$`)

// hung makes lines of pflag's usages fit for a terminal: what a flag is for hangs
// beside its name or, where names are long, below. pflag wraps by itself, but
// no longer after a word that is too long, such as a URL.
func hung(usages string) string {
	var b strings.Builder
	for line := range strings.SplitSeq(usages, "\n") {
		m := flagLine.FindStringSubmatchIndex(line)
		if m == nil {
			b.WriteString(line + "\n")
			continue
		}
		indent, column := m[4], m[3]
		if indent > helpWidth*2/5 {
			indent = helpIndent
		}
		b.WriteString(line[:column])
		if indent == helpIndent {
			b.WriteString("\n")
			column = 0
		}
		for word := range strings.FieldsSeq(line[m[4]:m[5]]) {
			width := utf8.RuneCountInString(word)
			switch {
			case column < indent:
				b.WriteString(strings.Repeat(" ", indent-column))
				column = indent
			case column > indent && column+1+width > helpWidth:
				b.WriteString("\n" + strings.Repeat(" ", indent))
				column = indent
			default:
				b.WriteByte(' ')
				column++
			}
			b.WriteString(word)
			column += width
		}
		b.WriteString("\n")
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// addFunctions gives cobra's templates the functions that usageTemplate needs.
// Cobra keeps them for the whole process, and adding them again is harmless.
var addFunctions = sync.OnceFunc(func() {
	usages := func(cmd *cobra.Command, settings bool) string {
		chosen := pflag.NewFlagSet("", pflag.ContinueOnError)
		chosen.SortFlags = false
		for _, set := range []*pflag.FlagSet{cmd.LocalFlags(), cmd.InheritedFlags()} {
			set.VisitAll(func(f *pflag.Flag) {
				if _, is := f.Annotations[settingAnnotation]; is == settings && chosen.Lookup(f.Name) == nil {
					chosen.AddFlag(f)
				}
			})
		}
		return hung(strings.TrimRight(chosen.FlagUsages(), "\n"))
	}
	cobra.AddTemplateFunc("ownFlags", func(cmd *cobra.Command) string { return usages(cmd, false) })
	cobra.AddTemplateFunc("settingFlags", func(cmd *cobra.Command) string { return usages(cmd, true) })
})
