package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"

	"waymark/internal/servicetest"
)

// A run whose engine was killed is ended by hand, with the jobs that ran.
func TestEnd(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(t)
	id := uuid.NewString()
	var running []string
	for i := range endedAtOnce + 1 {
		running = append(running, fmt.Sprintf("job%04d", i))
	}
	ids, err := json.Marshal(running)
	if err != nil {
		t.Fatal(err)
	}
	messages := fmt.Sprintf(`{"workflow_uuid": %[1]q, "status": 1, "message": {"progress": {"finished": {"total": 1, "job_ids": ["done"]}, "total": {"total": 1, "job_ids": ["waits"]}, "engine_specific": {"dag": {"nodes": [], "edges": []}}}}}
{"workflow_uuid": %[1]q, "status": 1, "message": {"progress": {"running": {"total": %d, "job_ids": %s}}}}
`, id, len(running), ids)
	s.runWith(t.Context(), messages, "publish", "status").want(t, exitOK)
	servicetest.Eventually(t, patience, "the jobs run", func() error {
		got := s.run(t, "status", id, "--json")
		if !strings.Contains(got.stdout, fmt.Sprintf(`"running": %d`, len(running))) {
			return fmt.Errorf("%s%s", got.stdout, got.stderr)
		}
		return nil
	})

	if got := s.run(t, "end", id).want(t, exitUsage).stderr; !strings.Contains(got, "may go on: wait, or say --force") {
		t.Errorf("ending what was heard of a moment ago says %q", got)
	}
	s.run(t, "end", id, "--force", "--status", "finished").want(t, exitUsage)
	s.run(t, "end", "nobody").want(t, exitNotFound)
	said := s.run(t, "end", id, "--force", "--reason", "node12 was \x1brebooted").want(t, exitOK).stdout
	if want := fmt.Sprintf("%s is published as failed, with %d jobs that ran: waymark status %s\n", id[:8], len(running), id[:8]); said != want {
		t.Errorf("end says %q, want %q", said, want)
	}
	s.awaitStatus(t, id, "failed")
	card := s.run(t, "status", id).want(t, exitOK).stdout
	for _, want := range []string{`because    node12 was \x1brebooted`, fmt.Sprintf("1 of %d finished, %d stopped", len(running)+2, len(running))} {
		if !strings.Contains(card, want) {
			t.Errorf("the card lacks %q:\n%s", want, card)
		}
	}
	var status struct {
		Specific map[string]json.RawMessage `json:"engine_specific"`
	}
	if s.json(t, &status, "status", id); status.Specific["dag"] == nil {
		t.Errorf("what the engine said of itself is now %s, want its graph still there", status.Specific)
	}
	if got := s.run(t, "logs", id).want(t, exitOK).stdout; got != "node12 was \\x1brebooted\n" {
		t.Errorf("the log of the run is %q, want the reason", got)
	}
	if got := s.run(t, "end", id).want(t, exitFailed).stderr; !strings.Contains(got, "has ended already: it is failed") {
		t.Errorf("ending it again says %q", got)
	}
}

func TestWithReason(t *testing.T) {
	for document, want := range map[string]string{
		`null`:                 `{"reason":"lost"}`,
		`{"a":[1],"reason":2}`: `{"a":[1],"reason":"lost"}`,
		`[1]`:                  ``,
	} {
		if got := string(withReason(json.RawMessage(document), "lost")); got != want {
			t.Errorf("withReason(%s) = %s, want %s", document, got, want)
		}
	}
	if got := string(withReason(nil, "lost")); got != `{"reason":"lost"}` {
		t.Errorf("withReason of nothing = %s", got)
	}
}
