package consumer_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/broker"
	"waymark/internal/wire"
	"waymark/schemas"
	"waymark/workflow"
)

// goldenCase is what the original consumer was seen to do.
type goldenCase struct {
	Case     string
	Before   reanaRow
	Messages []json.RawMessage
	After    reanaRow
}

type reanaRow struct {
	Status      string
	Logs        *string
	JobProgress map[string]reanaSection `json:"job_progress"`
}

type reanaSection struct {
	Total  any   `json:"total"`
	JobIDs []any `json:"job_ids"`
}

// differences says for each golden case whose row differs from REANA's which
// row of the README's table tells why.
var differences = map[string]string{
	"total_first_wins":              "total",
	"total_string":                  "refused",
	"job_ids_string":                "refused",
	"logs_dropped_when_status_same": "logs",
	"logs_appended_on_change":       "side-effects",
	"logs_null_on_change":           "side-effects",
	"logs_nul_char":                 "nul",
	"db_logs_null":                  "side-effects",
	"finish_with_progress":          "side-effects",
	"failed_while_pending":          "transitions",
	"finished_while_pending":        "transitions",
	"delete_job_api_exception":      "side-effects",
	"podlog_other_exception":        "half-applied",
	"uuid_uppercase_and_braces":     "side-effects",
	"duplicate_keys":                "side-effects",
	"db_job_progress_null":          "half-applied",
	"db_job_progress_jsonnull":      "half-applied",
	"spec_without_workflow_key":     "half-applied",
	"job_cache_bad_job_id":          "half-applied",
}

func TestGoldenCasesOfREANA(t *testing.T) {
	t.Parallel()
	readme := readmeTable(t)
	s := newSite(t)
	s.cfg.Topology = broker.Reana
	s.declare()
	s.start()
	dead := 0
	published := int64(0)
	for _, g := range lines[goldenCase](t, "reana-golden.jsonl") {
		id := uuid.New()
		var all []amqp.Publishing
		send := func(body []byte) { all = append(all, amqp.Publishing{Body: body}) }
		for _, m := range before(t, id, g.Before) {
			send(wire.Reana(m))
		}
		for _, m := range g.Messages {
			body := strings.ReplaceAll(string(m), "@WF@", id.String())
			var text string
			if json.Unmarshal([]byte(body), &text) == nil {
				send([]byte(text)) // the body itself, malformed on purpose
			} else {
				send(wire.Reana([]byte(body)))
			}
		}
		s.publish(all...)
		published += int64(len(all))
		l := s.wait(published)
		refused := int(l.Dead) - dead
		dead = int(l.Dead)

		got, want := s.reanaRow(id), normal(g.After)
		diff := cmp.Diff(want, got)
		row := differences[g.Case]
		switch {
		case diff == "" && row != "":
			t.Errorf("%s: gives REANA's row after all, yet is listed as different (%s)", g.Case, row)
		case diff != "" && row == "":
			t.Errorf("%s: differs from REANA and the README does not say why (-REANA, +ours):\n%s", g.Case, diff)
		case diff != "" && !readme[row]:
			t.Errorf("%s: differs for reason %q, which is no row of the README's table of differences", g.Case, row)
		}
		if refused > len(g.Messages) {
			t.Errorf("%s: %d dead letters of %d messages", g.Case, refused, len(g.Messages))
		}
	}
}

// before are messages that lead to the row a golden case begins with.
func before(t *testing.T, id uuid.UUID, row reanaRow) (messages [][]byte) {
	t.Helper()
	status, err := workflow.ParseStatus(row.Status)
	if err != nil {
		t.Fatal(err)
	}
	logs := ""
	if row.Logs != nil {
		logs = strings.TrimSuffix(*row.Logs, "\n")
	}
	body, err := json.Marshal(map[string]any{"workflow_uuid": id, "status": status, "logs": logs, "message": map[string]any{"progress": row.JobProgress}})
	if err != nil {
		t.Fatal(err)
	}
	return [][]byte{body}
}

// plainRow is what can be compared of a row of REANA's and one of ours.
type plainRow struct {
	Status, Logs string
	Total        string
	Jobs         map[string][]string
}

func normal(r reanaRow) plainRow {
	p := plainRow{Status: r.Status, Jobs: map[string][]string{}, Total: "0"}
	if r.Logs != nil {
		p.Logs = *r.Logs
	}
	for name, section := range r.JobProgress {
		if name == "total" {
			// A total that is not known is stored by REANA as it came.
			if p.Total = fmt.Sprint(section.Total); section.Total == nil || p.Total == "-1" {
				p.Total = "0"
			}
			continue
		}
		var ids []string
		for _, id := range section.JobIDs {
			ids = append(ids, fmt.Sprint(id))
		}
		slices.Sort(ids)
		if len(ids) > 0 {
			p.Jobs[name] = ids
		}
	}
	// With REANA a total below the number of jobs stays; ours is never less.
	for _, ids := range p.Jobs {
		if n := fmt.Sprint(len(ids)); p.Total == "0" {
			p.Total = n
		}
	}
	return p
}

// reanaRow reads the row of a workflow from the view in REANA's shape.
func (s *site) reanaRow(id uuid.UUID) plainRow {
	s.t.Helper()
	w, err := s.db.Workflow(s.t.Context(), id)
	if err != nil {
		s.t.Fatal(err)
	}
	p := plainRow{Status: w.Status.String(), Jobs: map[string][]string{}, Total: fmt.Sprint(w.Counts.Total)}
	jobs, err := s.db.Jobs(s.t.Context(), id, workflow.JobFilter{})
	if err != nil {
		s.t.Fatal(err)
	}
	add := func(section, id string) { p.Jobs[section] = append(p.Jobs[section], id) }
	for _, j := range jobs.Items {
		if !j.StartedAt.IsZero() {
			add("running", j.ID) // REANA's running: all that ever were said to run
		}
		switch j.Status {
		case workflow.JobFinished:
			add("finished", j.ID)
		case workflow.JobFailed:
			add("failed", j.ID)
		}
	}
	logs, err := s.db.Logs(s.t.Context(), id, workflow.LogFilter{})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, l := range logs.Items {
		p.Logs += l.Text + "\n"
	}
	return p
}

// The original's answer to each stored status and status sent: where ours is
// another, the README's row on transitions, or on refused messages, tells why.
func TestMatrixOfREANA(t *testing.T) {
	t.Parallel()
	readme := readmeTable(t)
	for _, row := range []string{"transitions", "refused"} {
		if !readme[row] {
			t.Errorf("the README's table of differences has no row %q", row)
		}
	}
	type cell struct {
		Before     string
		StatusSent string `json:"status_sent"`
		After      reanaRow
	}
	allowed := 0
	for _, c := range lines[cell](t, "reana-matrix.jsonl") {
		from, err := workflow.ParseStatus(c.Before)
		if err != nil {
			t.Fatal(err)
		}
		sent := map[string]string{"absent": ""}[c.StatusSent]
		if c.StatusSent != "absent" {
			sent = fmt.Sprintf(`, "status": %s`, c.StatusSent)
		}
		id := uuid.New()
		m, err := wire.DecodeStatus(wire.Reana(fmt.Appendf(nil, `{"workflow_uuid": %q, "logs": "", "message": null%s}`, id, sent)), schemas.Limits{})
		if err != nil {
			// Whatever we refuse changed nothing with REANA either, but that Python
			// takes true for 1.
			if c.After.Status != c.Before && c.StatusSent != "true" {
				t.Errorf("%s, sent %s: REANA goes to %s, we refuse it: %v", c.Before, c.StatusSent, c.After.Status, err)
			}
			continue
		}
		state := workflow.NewState(workflow.Run{ID: id})
		state.Apply(&workflow.StatusMessage{WorkflowID: id, Status: from, EventTime: time.Unix(1, 0)})
		m.EventTime = time.Unix(2, 0)
		state.Apply(m)
		ours := state.Run.Status()
		// Ours allows what REANA does, and every way up that it refuses.
		if ours.String() == c.After.Status {
			allowed++
			continue
		}
		if c.After.Status != c.Before || ours != m.Status || m.Status.Rank() <= from.Rank() {
			t.Errorf("%s, sent %s: %v, with REANA %s", c.Before, c.StatusSent, ours, c.After.Status)
		}
	}
	if allowed < 40 {
		t.Errorf("only %d pairs agree with REANA", allowed)
	}
}

// Every message REANA's components were seen to send is consumed from REANA's
// queues, and none is dead-lettered but those that name no workflow or status.
func TestMessagesOfREANA(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.cfg.Topology = broker.Reana
	s.declare()
	s.start()
	type recorded struct {
		Queue, Producer, Note string
		Body                  json.RawMessage
	}
	var all []amqp.Publishing
	var dead []string
	for _, r := range lines[recorded](t, "reana-messages.jsonl") {
		if r.Queue != "jobs-status" {
			continue
		}
		all = append(all, amqp.Publishing{Body: wire.Reana(r.Body), ContentType: "application/json", ContentEncoding: "utf-8"})
		var body struct {
			ID     any `json:"workflow_uuid"`
			Status any
		}
		if err := json.Unmarshal(r.Body, &body); err != nil {
			t.Fatal(err)
		}
		if _, err := uuid.Parse(fmt.Sprint(body.ID)); err != nil || body.Status == nil {
			dead = append(dead, r.Note)
		}
	}
	s.publish(all...)
	if l := s.wait(int64(len(all))); l.Dead != int64(len(dead)) {
		t.Errorf("ledger %+v, want %d dead: %q", l, len(dead), dead)
	}

	// Whole runs of the engines end as they ended, with every job where it was.
	for _, engine := range []string{"serial", "yadage"} {
		files, err := filepath.Glob("../testdata/reana/" + engine + "/*.jsonl")
		if err != nil || len(files) == 0 {
			t.Fatalf("recordings of %s: %d files, %v", engine, len(files), err)
		}
		for _, file := range files {
			s.replay(t, file)
		}
	}
}

// replay publishes a recorded run under an id of its own and compares the
// final row with what its messages say together.
func (s *site) replay(t *testing.T, file string) {
	t.Helper()
	type recorded struct {
		WireBody string `json:"wire_body"`
		Decoded  json.RawMessage
	}
	type decoded struct {
		ID      string `json:"workflow_uuid"`
		Status  workflow.Status
		Message *struct{ Progress map[string]json.RawMessage }
	}
	id := uuid.New()
	sets := map[string]map[string]bool{"finished": {}, "failed": {}}
	end := workflow.StatusCreated
	var all []amqp.Publishing
	for _, r := range linesOf[recorded](t, file) {
		if r.Decoded == nil {
			continue // the first line describes the case
		}
		var m decoded
		if err := json.Unmarshal(r.Decoded, &m); err != nil {
			t.Fatal(err)
		}
		body := r.WireBody
		if body == "" {
			body = string(wire.Reana(r.Decoded))
		}
		all = append(all, amqp.Publishing{Body: []byte(strings.ReplaceAll(body, m.ID, id.String()))})
		if !end.Terminal() {
			end = m.Status
		}
		if m.Message == nil {
			continue
		}
		for name, set := range sets {
			var section reanaSection
			if raw, ok := m.Message.Progress[name]; ok {
				if err := json.Unmarshal(raw, &section); err != nil {
					t.Fatal(err)
				}
			}
			for _, job := range section.JobIDs {
				set[fmt.Sprint(job)] = true
			}
		}
	}
	before := s.ledger()
	s.publish(all...)
	l := s.wait(before.Received + int64(len(all)))
	if l.Dead != before.Dead {
		t.Errorf("%s: %d of its messages were dead-lettered", file, l.Dead-before.Dead)
	}
	w, err := s.db.Workflow(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	if w.Status != end || w.Counts.Finished != len(sets["finished"]) || w.Counts.Failed != len(sets["failed"]) || w.Counts.Total < w.Counts.Finished+w.Counts.Failed {
		t.Errorf("%s: %v with %+v, want %v with %d finished and %d failed", file, w.Status, w.Counts, end, len(sets["finished"]), len(sets["failed"]))
	}
}

func lines[T any](t *testing.T, name string) []T {
	t.Helper()
	return linesOf[T](t, "../testdata/reana/"+name)
}

// linesOf reads a file of JSON Lines.
func linesOf[T any](t *testing.T, path string) (all []T) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	scanner := bufio.NewScanner(f)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		var v T
		if err := json.Unmarshal(scanner.Bytes(), &v); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		all = append(all, v)
	}
	if err := scanner.Err(); err != nil || len(all) == 0 {
		t.Fatalf("%s: %d lines, %v", path, len(all), err)
	}
	return all
}

// readmeTable returns the names of the rows of the README's table of
// differences from REANA.
func readmeTable(t *testing.T) map[string]bool {
	t.Helper()
	b, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(b), "## Differences from REANA")
	if !found {
		t.Fatal("the README has no section on differences from REANA")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	rows := map[string]bool{}
	for line := range strings.Lines(section) {
		if name, ok := strings.CutPrefix(line, "| `"); ok {
			name, _, _ = strings.Cut(name, "`")
			rows[name] = true
		}
	}
	return rows
}
