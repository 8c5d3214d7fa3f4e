package main

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/servicetest"
)

type cardAnswer struct {
	Messages int
	Runs     []struct{ Status, Name string }
	Checks   []struct{ Name, Verdict, Detail string }
}

func (c cardAnswer) verdicts() map[string]string {
	m := make(map[string]string)
	for _, check := range c.Checks {
		m[check.Name] = check.Verdict
	}
	return m
}

func TestConformanceOfOurOwn(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	cmd := program(t, s.environment, "conformance", "--strict", "--json", "--settle", "500ms", "--", "sh",
		fiveLines(t, "waymark run script --name card -- sh -c '"+fiveLinesProgram(t)+" publish progress --total 2; "+fiveLinesProgram(t)+" publish job gen -- true; "+fiveLinesProgram(t)+" publish job fit -- true'"))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("conformance: %v\n%s\n%s", err, out, &stderr)
	}
	var card cardAnswer
	if err := json.Unmarshal(out, &card); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if len(card.Runs) != 1 || card.Runs[0].Status != "finished" || card.Runs[0].Name != "card" || card.Messages < 3 {
		t.Errorf("the card is of %+v with %d messages; want one finished run", card.Runs, card.Messages)
	}
	for name, verdict := range card.verdicts() {
		if verdict != "pass" {
			t.Errorf("our own adapter: %s: %s\n%s", name, verdict, out)
		}
	}
}

func fiveLinesProgram(t testing.TB) string {
	t.Helper()
	return program(t, nil).Path
}

func TestConformanceOfAQueue(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	conn, err := amqp.Dial(s.amqp)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	const queue = "wm-test-conformance"
	if got := s.run(t, "conformance", "--queue", queue).want(t, exitNotFound); !strings.Contains(got.stderr, queue) {
		t.Errorf("of a queue that is not there the error is %q", got.stderr)
	}
	if _, err := ch.QueueDeclare(queue, false, true, false, false, nil); err != nil {
		t.Fatal(err)
	}
	publish := func(body string) {
		t.Helper()
		if err := ch.PublishWithContext(t.Context(), "", queue, true, false, amqp.Publishing{Body: []byte(body)}); err != nil {
			t.Fatal(err)
		}
	}
	// What is there already is somebody's.
	publish("{}")
	servicetest.Eventually(t, patience, "the message is in the queue", func() error {
		q, err := ch.QueueDeclarePassive(queue, false, true, false, false, nil)
		if err == nil && q.Messages != 1 {
			return errors.New("not yet")
		}
		return err
	})
	s.run(t, "conformance", "--queue", queue).want(t, exitUsage)
	if _, err := ch.QueuePurge(queue, false); err != nil {
		t.Fatal(err)
	}

	p := s.start(t, "conformance", "--queue", queue, "--settle", "300ms")
	servicetest.Eventually(t, patience, "it consumes", func() error {
		q, err := ch.QueueDeclarePassive(queue, false, true, false, false, nil)
		if err == nil && q.Consumers == 0 {
			return errors.New("nobody does")
		}
		return err
	})
	publish(`{"workflow_uuid": "256b25f4-4cfb-4684-b7a8-73872ef455a1", "status": 1, "message": {"progress": {"running": {"total": 1, "job_ids": ["a"]}}}}`)
	publish(`nonsense`)
	publish(`{"workflow_uuid": "256b25f4-4cfb-4684-b7a8-73872ef455a1", "status": 2}`)
	if code := p.wait(t); code != exitFailed {
		t.Errorf("of a bad adapter it ends with %d, want %d", code, exitFailed)
	}
	for _, want := range []string{"fail     schema", "message 2: not-json", "fail     complete", "1 jobs run", "warn     message-ids", "pass     order"} {
		if !strings.Contains(p.stdout.String(), want) {
			t.Errorf("the card lacks %q:\n%s", want, p.stdout.String())
		}
	}
}
