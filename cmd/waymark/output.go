package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	prettytext "github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// format is a form of a command's answer.
type format string

const (
	formatTable format = "table" // for people
	formatJSON  format = "json"  // one document
	formatJSONL format = "jsonl" // one document a line
)

// addOutputFlags gives cmd --output, and --json as a short word for the first
// of the formats that is JSON.
func addOutputFlags(cmd *cobra.Command, formats ...format) {
	words := make([]string, len(formats))
	for i, f := range formats {
		words[i] = string(f)
	}
	cmd.Flags().String("output", words[0], "form of the answer: "+strings.Join(words, ", "))
	short := formatJSON
	if !slices.Contains(formats, formatJSON) {
		short = formatJSONL // of a command whose answer has no end
	}
	if slices.Contains(formats, short) {
		cmd.Flags().Bool("json", false, "short for --output "+string(short))
		_ = cmd.Flags().SetAnnotation("json", shortAnnotation, []string{string(short)}) // the flag is there
	}
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		chosen, _ := cmd.Flags().GetString("output")
		if !slices.Contains(words, chosen) {
			return usage("--output: unknown format %q: expected %s", chosen, alternatives(words))
		}
		if short, given := shortFormat(cmd); given && cmd.Flags().Changed("output") && chosen != string(short) {
			return usage("--json and --output %s: give one of them", chosen)
		}
		return nil
	}
}

// shortAnnotation marks the flag --json with the format it is short for.
const shortAnnotation = "waymark_format"

// shortFormat is what --json is short for, if it is given.
func shortFormat(cmd *cobra.Command) (short format, given bool) {
	f := cmd.Flags().Lookup("json")
	if f == nil || f.Annotations[shortAnnotation] == nil {
		return "", false
	}
	given, err := cmd.Flags().GetBool("json")
	return format(f.Annotations[shortAnnotation][0]), given && err == nil
}

// output is where a command's answer goes, and in which form.
type output struct {
	w      io.Writer
	format format
	// terminal: a person looks at it, and may be shown changes in place.
	terminal bool
	// colour is on for terminals whose owner has not set NO_COLOR.
	colour bool
	// width of the terminal, for which the texts of tables are cut; 0 if there is none.
	width int
	// cut lines that are too long even so, rather than to let them wrap.
	cut bool
}

func (a *app) output(cmd *cobra.Command) *output {
	o := &output{w: a.stdout, format: formatTable, terminal: isTerminal(a.stdout)}
	if o.terminal {
		o.width = terminalWidth(a.stdout)
	}
	o.colour = o.terminal && a.getenv("NO_COLOR") == "" && a.getenv("TERM") != "dumb"
	if chosen, err := cmd.Flags().GetString("output"); err == nil {
		o.format = format(chosen)
	}
	if short, given := shortFormat(cmd); given {
		o.format = short
	}
	return o
}

func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// terminalWidth is the number of columns of a terminal, 0 if that is unknown.
func terminalWidth(w any) int {
	if f, ok := w.(*os.File); ok {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil {
			return width
		}
	}
	return 0
}

// document writes v as one JSON document, indented.
func (o *output) document(v any) error {
	text, err := encode(v)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := json.Indent(&b, text, "", "  "); err != nil {
		return err
	}
	b.WriteByte('\n')
	_, err = o.w.Write(b.Bytes())
	return err
}

// line writes v as JSON on one line.
func (o *output) line(v any) error {
	text, err := encode(v)
	if err != nil {
		return err
	}
	_, err = o.w.Write(append(text, '\n'))
	return err
}

// encode returns v as compact JSON that does nothing to a terminal.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return nil, err
	}
	return harmlessJSON(bytes.TrimSuffix(b.Bytes(), []byte("\n"))), nil
}

// column of a table.
type column struct {
	head  string
	right bool // for numbers
	text  bool // may be cut where the terminal is narrow
}

// columns makes columns of their heads; a leading ">" aligns to the right, and
// "~" is before one whose text may be cut.
func columns(heads ...string) []column {
	list := make([]column, len(heads))
	for i, head := range heads {
		head, list[i].text = strings.CutPrefix(head, "~")
		list[i].head, list[i].right = strings.CutPrefix(head, ">")
	}
	return list
}

const (
	columnGap   = "  "
	narrowGap   = " "
	leastColumn = 8 // characters that a column keeps at least
)

// fit cuts the texts of rows where the table is wider than width, the longest
// columns first. Statuses and numbers stay: they are what people look for. It
// returns the space to put between columns, less if that is not enough, and
// whether the table fits now.
func fit(columns []column, rows [][]string, width int) (gap string, fits bool) {
	if width <= 0 {
		return columnGap, true
	}
	gap = columnGap
	widths, total := make([]int, len(columns)), -len(columnGap)
	for i, c := range columns {
		widths[i] = prettytext.StringWidthWithoutEscSequences(c.head)
		for _, row := range rows {
			widths[i] = max(widths[i], prettytext.StringWidthWithoutEscSequences(row[i]))
		}
		total += widths[i] + len(columnGap)
	}
	for total > width {
		widest := -1
		for i, c := range columns {
			if c.text && widths[i] > leastColumn && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			if gap == narrowGap {
				break
			}
			gap = narrowGap
			total -= len(columns) - 1
			continue
		}
		widths[widest]--
		total--
	}
	for i, c := range columns {
		for _, row := range rows {
			if c.text && prettytext.StringWidthWithoutEscSequences(row[i]) > widths[i] {
				row[i] = prettytext.Trim(row[i], widths[i]-1) + "…"
			}
		}
	}
	return gap, total <= width
}

// table writes rows below heads: columns two spaces apart, no lines. The cells
// must be harmless.
func (o *output) table(columns []column, rows [][]string, withHead bool) error {
	gap, fits := fit(columns, rows, o.width)
	t := table.NewWriter()
	style := table.StyleDefault
	style.Options = table.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft, style.Box.PaddingRight = "", gap
	style.Format.Header = prettytext.FormatDefault
	if o.cut && !fits { // what fits seems too wide to it, by the gap behind the last column
		style.Size.WidthMax = o.width
	}
	t.SetStyle(style)
	t.SuppressTrailingSpaces()
	var heads table.Row
	var configs []table.ColumnConfig
	for i, c := range columns {
		heads = append(heads, c.head)
		if c.right {
			configs = append(configs, table.ColumnConfig{Number: i + 1, Align: prettytext.AlignRight, AlignHeader: prettytext.AlignRight})
		}
	}
	t.SetColumnConfigs(configs)
	if withHead {
		t.AppendHeader(heads)
	}
	for _, row := range rows {
		cells := make(table.Row, len(row))
		for i, cell := range row {
			if cell == "" {
				cell = "-"
			}
			cells[i] = cell
		}
		t.AppendRow(cells)
	}
	_, err := fmt.Fprintln(o.w, t.Render())
	return err
}

// tableOrCards writes a table or, on a terminal that is too narrow for it, a card
// for each row: its first cell and, below it, each of the others on a line. For
// tables of which nothing may be cut.
func (o *output) tableOrCards(columns []column, rows [][]string) error {
	total, names, numbers := -len(columnGap), 0, 0
	for i, c := range columns {
		head := prettytext.StringWidthWithoutEscSequences(c.head)
		width := head
		for _, row := range rows {
			width = max(width, prettytext.StringWidthWithoutEscSequences(row[i]))
			if c.right {
				numbers = max(numbers, prettytext.StringWidthWithoutEscSequences(row[i]))
			}
		}
		total += width + len(columnGap)
		names = max(names, head)
	}
	if o.width <= 0 || total <= o.width {
		return o.table(columns, rows, true)
	}
	var b strings.Builder
	for n, row := range rows {
		if n > 0 {
			b.WriteString("\n")
		}
		fmt.Fprintln(&b, o.bold(cmp.Or(row[0], "-")))
		for i, cell := range row[1:] {
			c := columns[i+1]
			if cell == "" {
				cell = "-"
			}
			if c.right {
				cell = prettytext.AlignRight.Apply(cell, numbers)
			}
			fmt.Fprintf(&b, "%s%s%s%s\n", columnGap, prettytext.Pad(strings.ToLower(c.head), names, ' '), columnGap, cell)
		}
	}
	_, err := io.WriteString(o.w, b.String())
	return err
}

// colours of statuses, of runs and of jobs alike.
var statusColours = map[string]string{
	"running": "36", "finished": "32", "failed": "31", "stopped": "33", "deleted": "90",
	"queued": "34", "pending": "34",
}

// status colours a status where colours are wanted.
func (o *output) status(word string) string { return o.paint(statusColours[word], word) }

func (o *output) bold(s string) string { return o.paint("1", s) }
func (o *output) dim(s string) string  { return o.paint("90", s) }

func (o *output) paint(code, s string) string {
	if !o.colour || code == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}
