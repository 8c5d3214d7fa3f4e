package conformance

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"waymark/schemas"
)

const id = "256b25f4-4cfb-4684-b7a8-73872ef455a1"

var noon = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

// status is a message of a run, a second after the one before it.
func status(second int, number int, message string) Message {
	at := noon.Add(time.Duration(second) * time.Second)
	return Message{
		Kind: schemas.StatusKind, ID: fmt.Sprint("m", second), ContentType: "application/json", Persistent: true, At: at,
		Body: fmt.Appendf(nil, `{"workflow_uuid": %q, "status": %d, "logs": "", "event_time": %q, "message": %s}`, id, number, at.Format(time.RFC3339), message),
	}
}

// good is a run without a fault.
func good() []Message {
	return []Message{
		status(1, 1, `{"progress": {"total": {"total": 2, "job_ids": []}}}`),
		status(2, 1, `{"progress": {"running": {"total": 1, "job_ids": ["a"]}}}`),
		status(3, 1, `{"progress": {"finished": {"total": 1, "job_ids": ["a"]}, "running": {"total": 1, "job_ids": ["b"]}}}`),
		status(4, 2, `{"progress": {"finished": {"total": 2, "job_ids": ["a", "b"]}}}`),
	}
}

func judged(messages []Message) Card {
	var j Judge
	for _, m := range messages {
		j.Observe(m)
	}
	return j.Card()
}

func TestAGoodRun(t *testing.T) {
	card := judged(good())
	if card.Worst() != Pass || len(card.Checks) != len(checks) {
		t.Errorf("a run without fault gets %+v", card.Checks)
	}
	want := Run{WorkflowID: card.Runs[0].WorkflowID, Status: "finished", Messages: 4, Total: 2, Finished: 2}
	if diff := cmp.Diff(want, card.Runs[0]); diff != "" {
		t.Errorf("the run (-want +got):\n%s", diff)
	}
}

func TestFaults(t *testing.T) {
	replace := func(n int, m Message) func([]Message) []Message {
		return func(all []Message) []Message { all[n] = m; return all }
	}
	add := func(m ...Message) func([]Message) []Message {
		return func(all []Message) []Message { return append(all, m...) }
	}
	edit := func(n int, change func(*Message)) func([]Message) []Message {
		return func(all []Message) []Message { change(&all[n]); return all }
	}
	tests := []struct {
		name    string
		change  func([]Message) []Message
		check   string
		verdict Verdict
		detail  string
	}{
		{"no JSON", edit(1, func(m *Message) { m.Body = []byte("{") }), "schema", Fail, "message 2: not-json"},
		{"no status", edit(1, func(m *Message) { m.Body = []byte(`{"workflow_uuid": "` + id + `"}`) }), "schema", Fail, "/status"},
		{"nothing at all", func([]Message) []Message { return nil }, "schema", Fail, "no message"},
		{"no id", edit(1, func(m *Message) { m.ID = "" }), "message-ids", Warn, "message 2 has no message-id"},
		{"an id twice", edit(1, func(m *Message) { m.ID = "m1" }), "message-ids", Fail, "m1"},
		{"a message twice", func(all []Message) []Message { return append([]Message{all[0]}, all...) }, "message-ids", Warn, "message 2 was published before"},
		{"transient", edit(1, func(m *Message) { m.Persistent = false }), "properties", Warn, "not persistent"},
		{"text", edit(1, func(m *Message) { m.ContentType = "text/plain" }), "properties", Warn, `"text/plain"`},
		{"late", edit(2, func(m *Message) { m.Body = []byte(strings.Replace(string(m.Body), "12:00:03", "12:00:01", 1)) }), "event-times", Warn, "message 3 happened before"},
		{"of the future", edit(2, func(m *Message) { m.Body = []byte(strings.Replace(string(m.Body), "12:00:03", "12:10:03", 1)) }), "event-times", Warn, "from the future, by 10m"},
		{"of the past", edit(0, func(m *Message) { m.Body = []byte(strings.Replace(string(m.Body), "T12", "T09", 1)) }), "event-times", Warn, "3h0m"},
		{"only an end", func(all []Message) []Message { return all[3:] }, "beginning", Warn, "message 1 ends a run"},
		{"no total", replace(0, status(1, 1, `{}`)), "totals", Warn, "never announces a total"},
		{"21 of 18", replace(0, status(1, 1, `{"progress": {"total": {"total": 1, "job_ids": []}}}`)), "totals", Fail, "has 2 jobs and announced 1"},
		{"a total that shrinks", replace(1, status(2, 1, `{"progress": {"total": {"total": 1, "job_ids": []}}}`)), "totals", Warn, "announces 1 jobs after 2"},
		{"a job with two ends", replace(3, status(4, 3, `{"progress": {"failed": {"total": 1, "job_ids": ["a"]}}}`)), "job-ids", Fail, `job "a" failed, and it had finished before`},
		{"counts without ids", replace(2, status(3, 1, `{"progress": {"finished": {"total": 1, "job_ids": []}}}`)), "job-ids", Warn, "counts 1 finished jobs and names none"},
		{"late progress", add(status(5, 1, `{}`)), "order", Warn, "message 5 comes after the end"},
		{"no end", func(all []Message) []Message { return all[:3] }, "final-status", Fail, "never says how it ended"},
		{"two ends", add(status(5, 3, `{}`)), "final-status", Fail, "says failed of a run that was finished"},
		{"an end twice", add(status(5, 2, `{}`)), "final-status", Warn, "once more"},
		{"a job left running", replace(3, status(4, 2, `{"progress": {"finished": {"total": 1, "job_ids": ["a"]}}}`)), "complete", Fail, "is finished, and 1 jobs run"},
		{"finished with a failed job", replace(3, status(4, 2, `{"progress": {"finished": {"total": 1, "job_ids": ["a"]}, "failed": {"total": 1, "job_ids": ["b"]}}}`)), "complete", Warn, "1 jobs failed"},
		{"deltas alone", replace(3, status(4, 2, `{"progress": {"finished": {"total": 1, "job_ids": ["b"]}}}`)), "final-snapshot", Warn, "leaves out 1 of 2 jobs"},
		{"huge", edit(1, func(m *Message) { m.Body = append(m.Body, make([]byte, 2<<20)...) }), "size", Warn, "message 2 has"},
		{"a flood", func(all []Message) []Message {
			for range 200 {
				all = append(all[:1:1], append([]Message{all[1]}, all[1:]...)...)
			}
			return all
		}, "rate", Warn, "more than 100 messages in a second"},
		{"no job", func(all []Message) []Message {
			return []Message{status(1, 1, `{}`), status(2, 2, `{}`)}
		}, "totals", Warn, "tells of no job"},
		{"a repetition in the sections", func(all []Message) []Message {
			all[2] = status(3, 1, `{"progress": {"failed": {"total": 1, "job_ids": ["a"]}}, "jobs": [{"job_id": "b", "status": "finished"}]}`)
			all[3] = status(4, 2, `{"progress": {"finished": {"total": 2, "job_ids": ["a", "b"]}}, "jobs": [{"job_id": "a", "status": "finished", "attempt": 2}]}`)
			return all
		}, "job-ids", Pass, "jobs keep their ids"},
		{"a repetition of a job", func(all []Message) []Message {
			all[1] = status(2, 1, `{"jobs": [{"job_id": "a", "status": "failed"}]}`)
			all[2] = status(3, 1, `{"jobs": [{"job_id": "a", "status": "running", "attempt": 2}, {"job_id": "b", "status": "finished"}]}`)
			all[3] = status(4, 2, `{"progress": {"finished": {"total": 2, "job_ids": ["a", "b"]}}, "jobs": [{"job_id": "a", "status": "finished", "attempt": 2}]}`)
			return all
		}, "job-ids", Pass, "jobs keep their ids"},
	}
	if card := judged(nil); len(card.Checks) != 1 {
		t.Errorf("of nothing the card says %+v, want only that there was nothing", card.Checks)
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			card := judged(test.change(good()))
			for _, c := range card.Checks {
				if c.Name != test.check {
					continue
				}
				if c.Verdict != test.verdict || !strings.Contains(c.Detail, test.detail) {
					t.Errorf("%s: %s: %s; want %s: …%s…", c.Name, c.Verdict, c.Detail, test.verdict, test.detail)
				}
				if c.Verdict != Pass && card.Worst() == Pass {
					t.Error("the card as a whole passes")
				}
			}
		})
	}
}

// A card may be asked for at any time, and says the same when asked again.
func TestCardChangesNothing(t *testing.T) {
	var j Judge
	for i, m := range good() {
		if j.Ended() {
			t.Errorf("the run has ended before message %d", i+1)
		}
		j.Observe(m)
		if diff := cmp.Diff(j.Card(), j.Card()); diff != "" {
			t.Errorf("after message %d two cards differ:\n%s", i+1, diff)
		}
	}
	if !j.Ended() || j.Card().Worst() != Pass {
		t.Errorf("in the end: ended %v, %+v", j.Ended(), j.Card().Checks)
	}
}
