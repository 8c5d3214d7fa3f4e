package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"waymark/store"
	"waymark/workflow"
)

func (a *app) listCommand() *cobra.Command {
	var statuses, labels []string
	var owner, engine, name, since, until, stale string
	paging := &paging{what: "workflow", most: 1000}
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List workflows, the newest first",
		Long: `List workflows, the newest first; deleted ones only if asked for by status.
All filters must fit. When more workflows follow, the last line says what to
type to see them.

--stale 1h lists those that have not ended, and of which nothing new has come
for an hour: the engine, or what reported it, may have been killed, or a job
simply takes so long. "waymark end" ends what will not be heard of again.`,
		Example: `  waymark list --status running,failed --since 24h
  waymark list --stale 12h
  waymark list --name 'fit*' --label experiment=atlas --json
  waymark list --all --output jsonl | jq -r .id`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			limit, err := paging.rows(cmd)
			if err != nil {
				return err
			}
			filter := workflow.Filter{Owner: owner, Engine: engine, Name: name, Limit: limit}
			for _, list := range statuses {
				for w := range strings.SplitSeq(list, ",") {
					status, err := workflow.ParseStatus(strings.TrimSpace(w))
					if err != nil {
						return usage("--status: %w", err)
					}
					filter.Statuses = append(filter.Statuses, status)
				}
			}
			if filter.Labels, err = parsePairs("--label", labels); err != nil {
				return err
			}
			if filter.Since, err = parseTime("--since", since, a.now()); err != nil {
				return err
			}
			if filter.Until, err = parseTime("--until", until, a.now()); err != nil {
				return err
			}
			if filter.QuietSince, err = parseTime("--stale", stale, a.now()); err != nil {
				return err
			}
			last, length := ">DURATION", runTime
			if stale != "" {
				last, length = ">SILENT", silence
				if len(filter.Statuses) == 0 {
					filter.Statuses = activeStatuses
				}
			}
			o := a.output(cmd)
			return a.withStore(cmd, func(ctx context.Context, _ *config, db *store.DB) error {
				l := listing[workflow.Summary]{
					key:     "workflows",
					columns: columns("~NAME", "ID", "~OWNER", "~ENGINE", "STATUS", "PROGRESS", "STARTED", last),
					view:    func(s *workflow.Summary) any { return viewWorkflow(s, a.now()) },
					row: func(s *workflow.Summary) []string {
						return []string{clip(runName(s), 40), shortID(s.ID), clip(harmless(s.Owner), 40), clip(harmless(s.Engine), 40),
							o.status(s.Status.String()), progressText(s.Counts), minute(s.StartedAt), length(s, a.now())}
					},
					page: func(cursor string) (workflow.Page[workflow.Summary], error) {
						filter.Cursor = cursor
						return db.Workflows(ctx, filter)
					},
				}
				return l.write(a, cmd, o, paging)
			})
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&statuses, "status", nil, "only workflows in this `status`; may be repeated, or hold several with commas")
	f.StringVar(&owner, "owner", "", "only workflows of this `owner`")
	f.StringVar(&engine, "engine", "", "only workflows of this `engine`, such as serial")
	f.StringVar(&name, "name", "", "only workflows of this `name`; a * at its beginning or end stands for anything")
	f.StringArrayVar(&labels, "label", nil, "only workflows with this label, as `KEY=VALUE`; may be repeated")
	f.StringVar(&since, "since", "", "only workflows first heard of at or after this `time`: 24h or 7d ago, or RFC 3339")
	f.StringVar(&until, "until", "", "only workflows first heard of before this `time`")
	f.StringVar(&stale, "stale", "", "only workflows that have not ended and are silent since this `time`: 1h or 7d ago, or RFC 3339")
	paging.addFlags(f)
	addOutputFlags(cmd, formatTable, formatJSON, formatJSONL)
	addConfigFlags(cmd, "database", "log")
	return cmd
}

// silence is for how long nothing new was heard of a run.
func silence(s *workflow.Summary, now time.Time) string { return elapsed(s.UpdatedAt, now) }

// paging is how much of a long list is shown.
type paging struct {
	what   string // in the singular
	most   int    // rows of one page
	limit  int
	cursor string
	all    bool
}

func (p *paging) addFlags(f *pflag.FlagSet) {
	f.IntVar(&p.limit, "limit", 50, fmt.Sprintf("show at most so many, 1 to %d", p.most))
	f.StringVar(&p.cursor, "cursor", "", "go on where an earlier page ended, as that page says")
	f.BoolVar(&p.all, "all", false, "show all, however many")
}

// allRows is how many rows of a list that is shown whole are read at once.
const allRows = 500

// rows is how many rows are read at once.
func (p *paging) rows(cmd *cobra.Command) (int, error) {
	switch {
	case p.limit < 1 || p.limit > p.most:
		return 0, usage("--limit: expected 1 to %d, found %d; --all shows everything", p.most, p.limit)
	case p.all && !cmd.Flags().Changed("limit"):
		return allRows, nil
	}
	return p.limit, nil
}

// listing is a long list, read and shown a page at a time.
type listing[T any] struct {
	key     string // of the array in JSON
	columns []column
	view    func(*T) any
	row     func(*T) []string
	page    func(cursor string) (workflow.Page[T], error)
}

func (l *listing[T]) write(a *app, cmd *cobra.Command, o *output, p *paging) error {
	cursor, shown := p.cursor, 0
	var page workflow.Page[T]
	for first := true; first || (p.all && page.Next != ""); first = false {
		var err error
		if page, err = l.page(cursor); err != nil {
			if errors.Is(err, store.ErrCursor) {
				return &exitError{code: exitUsage, err: fmt.Errorf("--cursor: %w", err)}
			}
			return err
		}
		cursor = page.Next
		if err := l.writePage(o, page, first, shown); err != nil {
			return err
		}
		shown += len(page.Items)
	}
	switch o.format {
	case formatJSON:
		next := "null"
		if page.Next != "" {
			next = strconv.Quote(page.Next)
		}
		_, err := fmt.Fprintf(o.w, "\n  ],\n  \"next_cursor\": %s,\n  \"as_of\": %q\n}\n", next, page.AsOf.UTC().Format(time.RFC3339Nano))
		return err
	case formatJSONL:
		if page.Next != "" {
			fmt.Fprintf(a.stderr, "more follow: %s\n", moreCommand(cmd, page.Next))
		}
		return nil
	}
	switch {
	case shown == 0:
		fmt.Fprintf(a.stderr, "no %s fits\n", p.what)
	case page.Next != "":
		fmt.Fprintf(o.w, "\nmore follow: %s\n", moreCommand(cmd, page.Next))
	}
	return nil
}

func (l *listing[T]) writePage(o *output, page workflow.Page[T], first bool, shown int) error {
	switch o.format {
	case formatJSON:
		// Written piece by piece: a list may be larger than memory.
		if first {
			if _, err := fmt.Fprintf(o.w, "{\n  %q: [", l.key); err != nil {
				return err
			}
		}
		for i := range page.Items {
			text, err := encode(l.view(&page.Items[i]))
			if err != nil {
				return err
			}
			separator := ",\n    "
			if shown+i == 0 {
				separator = "\n    "
			}
			if _, err := fmt.Fprintf(o.w, "%s%s", separator, text); err != nil {
				return err
			}
		}
		return nil
	case formatJSONL:
		for i := range page.Items {
			if err := o.line(l.view(&page.Items[i])); err != nil {
				return err
			}
		}
		return nil
	}
	if len(page.Items) == 0 {
		return nil
	}
	rows := make([][]string, len(page.Items))
	for i := range page.Items {
		rows[i] = l.row(&page.Items[i])
	}
	return o.table(l.columns, rows, first)
}

// moreCommand is what to type for the page at cursor. Flags that may hold a
// password are left out: whoever typed them knows.
func moreCommand(cmd *cobra.Command, cursor string) string {
	words := []string{cmd.CommandPath()}
	for _, arg := range cmd.Flags().Args() {
		words = append(words, shellQuote(arg))
	}
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if keys, ok := f.Annotations[settingAnnotation]; ok && find(keys[0]).redact != nil || f.Name == "cursor" {
			return
		}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			for _, v := range list.GetSlice() {
				words = append(words, "--"+f.Name, shellQuote(v))
			}
			return
		}
		if f.Value.Type() == "bool" {
			words = append(words, "--"+f.Name+"="+f.Value.String())
			return
		}
		words = append(words, "--"+f.Name, shellQuote(f.Value.String()))
	})
	return harmless(strings.Join(append(words, "--cursor", cursor), " "))
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./#-]+$`)

// shellQuote quotes a word for a POSIX shell where it needs that.
func shellQuote(word string) string {
	if plainWord.MatchString(word) && word[0] != '#' {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// parsePairs reads KEY=VALUE words of a repeatable flag.
func parsePairs(flag string, words []string) (map[string]string, error) {
	if len(words) == 0 {
		return nil, nil
	}
	pairs := make(map[string]string, len(words))
	for _, w := range words {
		key, value, ok := strings.Cut(w, "=")
		if !ok || key == "" {
			return nil, usage("%s: %q: expected KEY=VALUE", flag, w)
		}
		if _, twice := pairs[key]; twice {
			return nil, usage("%s: %q is given twice", flag, key)
		}
		pairs[key] = value
	}
	return pairs, nil
}

// parseTime reads a time as people say it: how long ago, or RFC 3339, or a day.
func parseTime(flag, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if ago, err := parseDuration(text); err == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	for _, layout := range []string{time.RFC3339Nano, time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			if t.IsZero() { // which would be no time at all
				t = t.Add(time.Microsecond)
			}
			return t, nil
		}
	}
	return time.Time{}, usage("%s: %q is not a time: expected how long ago, such as 30m, 24h or 7d, or a time such as 2026-01-31 or 2026-01-31T12:00:00Z", flag, text)
}

// indented is a JSON text for people to read below a heading.
func indented(text json.RawMessage) string {
	b, err := json.MarshalIndent(text, "  ", "  ")
	if err != nil {
		return string(harmlessJSON(text))
	}
	return string(harmlessJSON(b))
}
