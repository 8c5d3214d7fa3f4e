package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"waymark/store"
	"waymark/workflow"
)

// A run that began anew and went well does not show the failures of the attempt
// before.
func TestStatusShowsTheFailuresOfTheAttempt(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.run(t, "migrate").want(t, exitOK)
	db, err := store.Open(t.Context(), store.Config{URL: s.database.URL, Schema: s.database.Schema})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	id := uuid.New()
	say := func(number int64, attempt int, status workflow.Status, progress workflow.Progress) {
		t.Helper()
		_, err := db.Apply(t.Context(), &workflow.Batch{Queue: s.status, Consumer: id, Number: number, Session: id, Deliveries: []workflow.Delivery{{
			Status: &workflow.StatusMessage{WorkflowID: id, Status: status, Attempt: attempt, EventTime: time.Unix(number, 0), Progress: progress}}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	say(1, 1, workflow.StatusFailed, workflow.Progress{Failed: workflow.JobIDs("first-try")})
	var got statusAnswer
	s.json(t, &got, "status", id.String())
	if got.Status != "failed" || len(got.Failed) != 1 {
		t.Errorf("status after the first attempt: %+v, want failed with one failed job", got)
	}
	say(2, 2, workflow.StatusFinished, workflow.Progress{Finished: workflow.JobIDs("second-try")})
	got = statusAnswer{}
	s.json(t, &got, "status", id.String())
	if got.Status != "finished" || got.Attempt != 2 || len(got.Failed) != 0 {
		t.Errorf("status after the second attempt: %+v, want finished without failed jobs", got)
	}
}

// Parameters that hold nothing are not shown.
func TestEmpty(t *testing.T) {
	for text, want := range map[string]bool{
		``: true, `null`: true, `{}`: true, `{"input_parameters": {}, "operational_options": {}}`: true,
		`{"input_parameters": {"n": 1}, "operational_options": {}}`: false, `[]`: false, `{"command": ["true"]}`: false,
	} {
		if got := empty([]byte(text)); got != want {
			t.Errorf("empty(%s) = %v, want %v", text, got, want)
		}
	}
}

// A job that failed twice shows what it wrote the second time, and says once
// with what exit code.
func TestStatusShowsTheLogOfTheAttempt(t *testing.T) {
	t.Parallel()
	a := newApplied(t)
	id := uuid.New()
	for attempt, line := range map[int]string{1: "the first time\n", 2: "the second time\n"} {
		a.say(t, workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusFailed, Attempt: attempt, EventTime: time.Unix(int64(attempt), 0),
			Jobs: []workflow.JobReport{{ID: "fit", Status: workflow.JobFailed, ExitCode: new(3), Diagnostics: "exit code 3", Logs: line}}})
	}
	card := a.run(t, "status", id.String()).want(t, exitOK).stdout
	if strings.Contains(card, "the first time") || !strings.Contains(card, "  failed  fit, exit code 3\n    | the second time\n") {
		t.Errorf("the card of a job that failed in two attempts:\n%s", card)
	}
}

// The worker of an attempt that was given up may write for a long time yet: its
// lines, however late and many, keep none of this attempt's from the card.
func TestStatusShowsTheLogOfTheAttemptBesideALateOne(t *testing.T) {
	t.Parallel()
	a := newApplied(t)
	id := uuid.New()
	say := func(attempt, second int, line string) {
		a.say(t, workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, Attempt: attempt, EventTime: time.Unix(int64(second), 0),
			Jobs: []workflow.JobReport{{ID: "fit", Status: workflow.JobFailed, Logs: line}}})
	}
	var want []string
	for second := range 2 * shownLogLines {
		say(2, second, fmt.Sprintf("this time, %d", second))
		want = append(want, fmt.Sprintf("this time, %d", second))
		for range second / shownLogLines { // none beside the first, one beside each of the last
			say(1, second, "the time before")
		}
	}
	for second := range 3 * shownLogLines {
		say(1, 1000+second, "the time before")
	}
	var got statusAnswer
	if a.json(t, &got, "status", id.String()); len(got.Failed) != 1 {
		t.Fatalf("status: %+v, want one failed job", got)
	}
	if d := cmp.Diff(want[shownLogLines:], got.Failed[0].LastLogLines); d != "" {
		t.Errorf("the last lines of the attempt (-want, +got):\n%s", d)
	}
}
