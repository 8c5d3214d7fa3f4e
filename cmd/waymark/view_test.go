package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"waymark/workflow"
)

func TestBar(t *testing.T) {
	tests := []struct {
		name   string
		counts workflow.Counts
		want   string
	}{
		{"nothing known", workflow.Counts{}, "[..........]"},
		{"nothing done", workflow.Counts{Total: 4}, "[..........]"},
		{"half", workflow.Counts{Total: 4, Finished: 2, Running: 1}, "[#####>>...]"},
		{"all", workflow.Counts{Total: 3, Finished: 3}, "[##########]"},
		{"failed", workflow.Counts{Total: 2, Finished: 1, Failed: 1}, "[#####!!!!!]"},
		{"one of many failed", workflow.Counts{Total: 1000, Finished: 500, Failed: 1}, "[#####!....]"},
	}
	for _, test := range tests {
		if got := bar(test.counts, 10); got != test.want {
			t.Errorf("%s: bar(%+v) = %s, want %s", test.name, test.counts, got, test.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 1000)
		c := workflow.Counts{Finished: n.Draw(t, "finished"), Failed: n.Draw(t, "failed"), Stopped: n.Draw(t, "stopped"), Running: n.Draw(t, "running")}
		c.Total = c.Finished + c.Failed + c.Stopped + c.Running + n.Draw(t, "rest")
		if got := bar(c, 20); len(got) != 22 {
			t.Fatalf("bar(%+v) = %q is %d wide, want 22", c, got, len(got))
		}
	})
}

func TestElapsed(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"0.0s": 0, "0.4s": 450 * time.Millisecond, "9.9s": 9990 * time.Millisecond, "42s": 42 * time.Second,
		"3m05s": 185 * time.Second, "2h10m": 2*time.Hour + 10*time.Minute, "47h59m": 48*time.Hour - time.Second, "3d4h": 76 * time.Hour,
	} {
		start := time.Date(2026, 3, 1, 12, 0, 0, 999_999_999, time.UTC)
		if got := elapsed(start, start.Add(d)); got != want {
			t.Errorf("elapsed of %v = %s, want %s", d, got, want)
		}
	}
	// Whatever the clocks of those who said so.
	first, last := time.Date(1, 1, 1, 0, 0, 1, 0, time.UTC), time.Date(9999, 12, 31, 23, 59, 59, 5e8, time.UTC)
	if got, want := elapsed(first, last), "3652058d23h"; got != want {
		t.Errorf("elapsed of years 1 to 9999 = %s, want %s", got, want)
	}
	if got, want := seconds(first, last), 315537897598.5; got != want {
		t.Errorf("seconds of years 1 to 9999 = %v, want %v", got, want)
	}
	if got, exact := elapsed(last, first), seconds(last, first); got != "0.0s" || exact != 0 {
		t.Errorf("elapsed of what ended before it began = %s, %v seconds; want none", got, exact)
	}
}

func TestParseTime(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"24h": now.Add(-24 * time.Hour), "7d": now.AddDate(0, 0, -7), "90m": now.Add(-90 * time.Minute),
		"2026-01-31": time.Date(2026, 1, 31, 0, 0, 0, 0, time.UTC), "2026-01-31T12:00:00+01:00": time.Date(2026, 1, 31, 11, 0, 0, 0, time.UTC),
		"106751d": now.AddDate(0, 0, -106_751), "030d": now.AddDate(0, 0, -30), "2562047h": now.Add(-2562047 * time.Hour), "9999-12-31": time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC),
		"0001-01-01": time.Date(1, 1, 1, 0, 0, 0, 1000, time.UTC), // all the same a time
	} {
		if got, err := parseTime("--since", text, now); err != nil || !got.Equal(want) {
			t.Errorf("parseTime(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"x", "-1h", "-1d", "1.5d", "d", "106752d", "99999999999999999999d", "2026-13-01", "1 day", "99999999999h", "10000-01-01", "٣d", "-0001-01-01"} {
		if got, err := parseTime("--since", text, now); err == nil {
			t.Errorf("parseTime(%q) = %v, want an error", text, got)
		}
	}
}

// What came in messages must not reach the terminal as it is, whatever part
// of a card it stands in.
func TestCardIsHarmless(t *testing.T) {
	const evil = "\x1b[2J\u202e\n\x9b"
	a := &app{now: time.Now}
	var b strings.Builder
	o := &output{w: &b}
	d := &workflow.Details{Parameters: []byte("{\"a\":\"\u009b\"}"), Summary: workflow.Summary{
		ID: uuid.New(), Name: evil, Owner: evil, Engine: evil, Labels: map[string]string{evil: evil}, RunNumber: 1,
		Status: workflow.StatusFailed, Counts: workflow.Counts{Total: 1, Failed: 1}, Attempt: 2,
	}}
	text := evil
	code := 7
	card := a.card(o, d, []failedJobView{{jobView: jobView{ID: evil, Name: &text, Command: &text, Diagnostics: &text, ExitCode: &code}, LastLogLines: lastLines(evil, 3)}}, time.Now(), true)
	for line := range strings.SplitSeq(card, "\n") {
		for _, r := range line {
			if controls(r) {
				t.Fatalf("the card holds %U in line %q", r, line)
			}
		}
	}
	if strings.Count(card, `\x1b[2J`) < 8 {
		t.Errorf("the card does not show the escapes:\n%s", card)
	}
}
