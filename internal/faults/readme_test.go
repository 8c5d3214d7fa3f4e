//go:build linux

package faults

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// promises maps each row of the README's table of faults, by the words of its
// first cell, to scenarios that make that fault, by patterns of their names.
var promises = map[string][]string{
	"the database is stopped, unreachable, read-only, full, or lacks a right": {
		"^database, stopped", "^database, unreachable", "^database, read-only", "^database, disk full, before", "^database, role loses",
	},
	"the commit's answer is lost": {"^database, answer lost", "^database, many runs: answer lost"},
	"RabbitMQ restarts, the connection is cut, or acks take longer than its `consumer_timeout`": {
		"^broker, restarted", "^broker, kill -9", "^broker, connections cut", "^broker, TLS: connections cut", "^broker, closes the channel",
	},
	"a queue is purged, deleted, or declared otherwise by somebody": {"^broker, a queue is purged", "^broker, a queue is deleted and declared again", "^broker, .* declared otherwise"},
	"`waymark dead-letters edit`, `replay` or `discard` is killed":  {"^edit, kill -9", "^replay, kill -9", "^discard, kill -9"},
	"`waymark serve` is killed":                                     {"^consumer, kill -9", "^consumer, many runs: kill -9"},
	"a consumer is cut off from the broker and does not know yet":   {"^consumer, partitioned"},
	"a machine vanishes in the middle of a transaction":             {"^consumer, its machine vanishes", "^consumer, many runs: its machine vanishes with the turn.* locked$", "^consumer, many runs: its machine vanishes with the turn.* COPY$"},
	"a message cannot be read or fails the schema":                  {"^publisher, three thousand malformed"},
	"messages are huge":                          {"^publisher, huge messages"},
	"the database refuses one message's data":    {"while a refused batch is split"},
	"messages come twice, late, or out of order": {"^consumer, frozen until another has its messages", "several faults at once"},
	"the broker is away while a workflow runs, even for all of it": {
		"^engine, broker: unreachable until after its end", "^engine, kill -9 of one of three that deliver the spool",
	},
	"`waymark run` is killed after its end":        {"^engine, kill -9, .*, after its end"},
	"the spool is full":                            {"^engine, spool full"},
	"the disk of the spool is full, or fails":      {"^engine, disk of the spool full"},
	"the spool was torn by a crash, or is damaged": {"^engine, spool torn", "^engine, spool damaged"},
}

// TestEveryPromiseHasScenarios keeps the README from promising what no scenario
// shows.
func TestEveryPromiseHasScenarios(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(text), "| fault | what happens | what you see |\n| --- | --- | --- |\n")
	if !found {
		t.Fatal("README.md has no table of faults")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	rows := make(map[string]bool)
	for row := range strings.Lines(table) {
		cells := strings.Split(strings.TrimSpace(row), " | ")
		if len(cells) != 3 {
			t.Errorf("row of %d cells, not 3: %s", len(cells), row)
			continue
		}
		fault := strings.TrimPrefix(cells[0], "| ")
		rows[fault] = true
		if len(promises[fault]) == 0 {
			t.Errorf("README.md makes a promise about %q, and no scenario is named that shows it", fault)
		}
	}
	all := scenarios()
	for fault, patterns := range promises {
		if !rows[fault] {
			t.Errorf("README.md has no row %q any more", fault)
		}
		for _, pattern := range patterns {
			is := regexp.MustCompile(pattern)
			shown := false
			for _, s := range all {
				shown = shown || is.MatchString(s.name())
			}
			if !shown {
				t.Errorf("no scenario's name matches %q, which is to show what README.md says of %q", pattern, fault)
			}
		}
	}
}
