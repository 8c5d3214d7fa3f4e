package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"waymark/store"
	"waymark/workflow"
)

// What comes before the last lines may be deleted while they are looked for: then
// the lines are those that are left.
func TestTailOfALogThatIsDeleted(t *testing.T) {
	t.Parallel()
	a := newApplied(t)
	id := uuid.New()
	for second := range 8 { // a page has room for four of them
		line := string(rune('a'+second)) + strings.Repeat("x", 1<<20)
		a.say(t, workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusFailed, EventTime: time.Unix(int64(second), 0), Logs: line})
	}
	conn := connectTo(t, a.database.URL)
	looks := 0
	reading, err := store.Open(t.Context(), store.Config{URL: a.database.URL, Schema: a.database.Schema, Now: func() time.Time {
		if looks++; looks == 2 {
			execute(t, conn, "DELETE FROM log_chunks WHERE event_time < to_timestamp(5)")
		}
		return time.Now()
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer reading.Close()
	var got []string
	err = eachOfTail(t.Context(), reading, id, workflow.LogFilter{}, 6, func(chunks []workflow.LogEntry) error {
		for i := range chunks {
			got = append(got, chunks[i].Text[:1])
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"f", "g", "h"}, got); d != "" {
		t.Errorf("the last lines, after %d looks at the log (-want, +got):\n%s", looks, d)
	}
}
