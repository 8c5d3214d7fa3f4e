package main

import (
	"strings"
	"testing"
	"unicode/utf8"

	prettytext "github.com/jedib0t/go-pretty/v6/text"
	"pgregory.net/rapid"
)

func TestTableFitsTheTerminal(t *testing.T) {
	long := strings.Repeat("a long name ", 8)
	for _, test := range []struct {
		name  string
		width int
		row   []string
		want  string
	}{
		{"no terminal", 0, []string{long, "1", long}, "NAME" + strings.Repeat(" ", len(long)-4) + "  N  COMMAND\n" + long + "  1  " + strings.TrimSpace(long) + "\n"},
		{"wide enough", 80, []string{"fit", "1", "true"}, "NAME  N  COMMAND\nfit   1  true\n"},
		{"the longest is cut", 24, []string{"fit", "1", long}, "NAME  N  COMMAND\nfit   1  a long name a …\n"},
		{"both are cut alike", 26, []string{long, "1", long}, "NAME        N  COMMAND\na long na…  1  a long nam…\n"},
		{"closer together", 24, []string{long, "1234567", long}, "NAME           N COMMAND\na long … 1234567 a long …\n"},
		{"no terminal is so narrow", 5, []string{long, "12345", long}, "NAME         N COMMAND\na long … 12345 a long …\n"},
		{"colours take no room", 26, []string{"\x1b[31mfailed\x1b[0m", "1", "true"}, "NAME    N  COMMAND\n\x1b[31mfailed\x1b[0m  1  true\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var b strings.Builder
			o := &output{w: &b, width: test.width}
			if err := o.table(columns("~NAME", ">N", "~COMMAND"), [][]string{test.row}, true); err != nil {
				t.Fatal(err)
			}
			if b.String() != test.want {
				t.Errorf("table %d wide:\n%s\nwant:\n%s", test.width, b.String(), test.want)
			}
		})
	}
}

// Numbers are never cut: where there is no room for a table each row is a card.
func TestCardsOnANarrowTerminal(t *testing.T) {
	heads := columns("QUEUE", ">RECEIVED", ">DEAD", "BALANCED", ">READY")
	row := []string{"jobs-status", "1234567890", "7", "yes", ""}
	table := "QUEUE          RECEIVED  DEAD  BALANCED  READY\njobs-status  1234567890     7  yes           -\n"
	cards := "jobs-status\n  received  1234567890\n  dead               7\n  balanced  yes\n  ready              -\n"
	for width, want := range map[int]string{0: table, 46: table, 45: cards, 20: cards} {
		var b strings.Builder
		if err := (&output{w: &b, width: width}).tableOrCards(heads, [][]string{row}); err != nil {
			t.Fatal(err)
		}
		if b.String() != want {
			t.Errorf("%d columns wide:\n%s\nwant:\n%s", width, b.String(), want)
		}
	}
}

func TestTableFitsAnyTerminal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		width := rapid.IntRange(37, 120).Draw(t, "width")
		text := rapid.StringOf(rapid.RuneFrom([]rune("ab é数…-👩")))
		rows := make([][]string, rapid.IntRange(1, 5).Draw(t, "rows"))
		for i := range rows {
			rows[i] = []string{text.Draw(t, "name"), "123", text.Draw(t, "command"), "[####]", "4.5s"}
		}
		cut := rapid.Bool().Draw(t, "cut")
		var b strings.Builder
		if err := (&output{w: &b, width: width, cut: cut}).table(columns("~NAME", ">N", "~COMMAND", "", ">DURATION"), rows, true); err != nil {
			t.Fatal(err)
		}
		if !utf8.ValidString(b.String()) {
			t.Fatalf("the table is not UTF-8: %q", b.String())
		}
		for line := range strings.SplitSeq(b.String(), "\n") {
			if n := prettytext.StringWidthWithoutEscSequences(line); n > width {
				t.Fatalf("a line is %d wide, want %d at most: %q", n, width, line)
			}
			if line != "" && width >= 40 && !strings.HasSuffix(line, "DURATION") && !strings.HasSuffix(line, "4.5s") {
				t.Fatalf("at a width of %d a number is cut: %q", width, line)
			}
		}
	})
}
