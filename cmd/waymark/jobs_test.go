package main

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"waymark/workflow"
)

func TestByStart(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	jobs := []workflow.Job{{ID: "a", StartedAt: at(3)}, {ID: "b"}, {ID: "c", StartedAt: at(1)}, {ID: "d"}, {ID: "e", StartedAt: at(1)}}
	byStart(jobs)
	var got []string
	for _, j := range jobs {
		got = append(got, j.ID)
	}
	if d := cmp.Diff([]string{"c", "e", "a", "b", "d"}, got); d != "" {
		t.Errorf("order (-want, +got):\n%s", d)
	}
}

func TestWithoutSettings(t *testing.T) {
	got := withoutSettings([]string{"HOME=/x", "WAYMARK_BROKER_URL=amqp://u:p@h/", "WAYMARKET=1"})
	if want := []string{"HOME=/x", "WAYMARKET=1"}; !slices.Equal(got, want) {
		t.Errorf("withoutSettings = %q, want %q", got, want)
	}
}
