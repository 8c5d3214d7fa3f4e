package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/servicetest"
)

// hostile holds what could do something: to a terminal (colours, title, link,
// clipboard, carriage return, backspace, C1 codes in UTF-8, direction marks), to
// a spreadsheet, to a shell, and to SQL.
const hostile = "=cmd|'/c calc'!A1\x1b[2J\x1b]0;owned\a\x1b]8;;http://evil.example\x1b\\link\x1b]52;c;cm0gLXJm\a\r\b\b\u009b31m\u0090q\u009c\u202etxt.exe\u2066\u200b" +
	"'; DROP TABLE workflows; -- \"$(touch /tmp/x)` \\' %s%n {{.}}"

// brief is the same for what may have 64 characters only.
const brief = "@\x1b[2J\x1b]52;c;x\a\r\b\u009b1m\u202e'; DROP TABLE jobs; -- $(x)"

// owned is the same for the owner, who may hold no control characters.
const owned = "+1\u202e\u2066'; DROP TABLE jobs; -- $(x) \" \\' %_"

// harmful says where an answer holds a character that could do something.
func harmful(answer string) error {
	for i, r := range answer {
		if r != '\n' && r != '\t' && controls(r) {
			return fmt.Errorf("byte %d is %U: …%q…", i, r, answer[max(0, i-30):min(len(answer), i+30)])
		}
	}
	return nil
}

func TestInjection(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(t)
	id := uuid.NewString()
	quoted := func(v any) string {
		t.Helper()
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	text := quoted(hostile)
	s.runWith(t.Context(), fmt.Sprintf(`{"user": %[4]s, "workflow_id_or_name": %[2]q, "name": %[1]s, "engine": %[3]s, "labels": {%[3]s: %[1]s}, "parameters": {"input_parameters": {%[1]s: %[1]s}}}`, text, id, quoted(brief), quoted(owned)),
		"publish", "submission").want(t, exitOK)
	job := fmt.Sprintf(`{"job_id": %[2]s, "name": %[1]s, "command": %[1]s, "status": "failed", "exit_code": 1, "logs": %[1]s}`, text, quoted(owned))
	for status, section := range map[int]string{1: "running", 3: "failed"} {
		jobs := job
		if status == 1 {
			jobs = strings.Replace(job, `"failed", "exit_code": 1`, `"running"`, 1)
		}
		s.runWith(t.Context(), fmt.Sprintf(`{"workflow_uuid": %q, "status": %d, "logs": %s, "message": {"progress": {%q: {"total": 1, "job_ids": [%s]}}, "jobs": [%s]}}`,
			id, status, text, section, quoted(owned), jobs), "publish", "status").want(t, exitOK)
	}
	awaitRun(t, s.environment, id, "failed")
	servicetest.Eventually(t, patience, "the submission is applied", func() error {
		if o := s.run(t, "list", "--owner", owned); !strings.Contains(o.stdout, id[:8]) {
			return errors.New(o.stdout + o.stderr)
		}
		return nil
	})

	conn, err := amqp.Dial(s.amqp)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	for _, body := range []string{hostile, `{"workflow_uuid": ` + text + `, "status": ` + text + `}`} {
		err := ch.PublishWithContext(t.Context(), "", s.status, false, false, amqp.Publishing{
			Body: []byte(body), MessageId: hostile[:60], AppId: "app\x1b[2J", ContentType: "\u009b2J", Headers: amqp.Table{"h\x1b[2J": "v\u202e" + hostile},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	servicetest.Eventually(t, patience, "both messages are dead", func() error {
		o := s.run(t, "dead-letters", "list", "--each")
		if o.code != exitOK || !strings.Contains(o.stdout, "not-json") || !strings.Contains(o.stdout, "schema") {
			return errors.New(o.stdout + o.stderr)
		}
		return nil
	})

	commands := [][]string{
		{"list"}, {"status", id}, {"jobs", id}, {"logs", id}, {"logs", id, "--all-jobs"}, {"logs", id, "--job", owned}, {"logs", id, "--job", hostile}, {"history", id}, {"watch", id}, {"ledger"},
		{"list", "--name", hostile, "--owner", owned, "--engine", brief, "--label", brief + "=" + hostile}, {"list", "--limit", "1", "--owner", owned},
		{"dead-letters", "list"}, {"dead-letters", "list", "--each"}, {"dead-letters", "show", hostile[:60]},
		// Errors repeat what they were given.
		{"status", hostile}, {"status", hostile + "#9"}, {"logs", id, "--job", hostile + "x"}, {"list", "--status", hostile}, {"list", "--since", hostile}, {"list", "--cursor", hostile},
		{"list", "--label", "\x1b[2J"}, {hostile}, {"list", "--" + hostile}, {"validate", hostile}, {"schemas", hostile}, {"serve", "--http-listen", hostile}, {"serve", "--database-schema", hostile},
		{"serve", "--broker-status-queue", hostile}, {"serve", "--config", hostile}, {"serve", "--broker-url", "amqp://u:p@h/" + hostile}, {"serve", "--broker-tls-ca", hostile},
		{"list", "--database-url", "postgres://" + hostile}, {"list", "--database-url", "host=" + hostile}, {"list", "--database-password-file", hostile},
		{"run", "serial", "-f", hostile}, {"run", "serial", "-f", reanaYAML(t, "printf 'x\\n'; exit 3"), "--name", hostile, "--owner", owned, "--label", "k=" + hostile, "--no-spool", "--workspace", t.TempDir()},
		{"dead-letters", "show", hostile}, {"dead-letters", "replay", hostile}, {"dead-letters", "discard", hostile, "--yes"},
	}
	for _, args := range commands {
		got := s.run(t, args...)
		for name, answer := range map[string]string{"standard output": got.stdout, "standard error": got.stderr} {
			if err := harmful(answer); err != nil {
				t.Errorf("waymark %.60q writes to %s what is not harmless: %v", args, name, err)
			}
		}
		if got.stdout+got.stderr == "" {
			t.Errorf("waymark %.60q says nothing", args)
		}
	}

	t.Run("json is exact", func(t *testing.T) {
		var list struct {
			Workflows []struct {
				ID, Name, Owner, Engine string
				Labels                  map[string]string
			}
		}
		s.json(t, &list, "list", "--owner", owned, "--name", hostile, "--engine", brief, "--label", brief+"="+hostile, "--status", "failed")
		if len(list.Workflows) != 1 {
			t.Errorf("list, with every filter, finds %d runs, want 1", len(list.Workflows))
		}
		s.json(t, &list, "list", "--owner", owned, "--engine", brief)
		if len(list.Workflows) != 1 {
			t.Fatalf("list --owner, by an exact name, finds %d runs, want 1: %+v", len(list.Workflows), list.Workflows)
		}
		w := list.Workflows[0]
		for what, got := range map[string]string{"name": w.Name, "label": w.Labels[brief]} {
			if got != hostile {
				t.Errorf("the %s in JSON is %q, want %q", what, got, hostile)
			}
		}
		if w.Engine != brief || w.Owner != owned {
			t.Errorf("engine and owner in JSON are %q and %q, want %q and %q", w.Engine, w.Owner, brief, owned)
		}
		var jobs struct {
			Jobs []struct{ Name, Command string }
		}
		s.json(t, &jobs, "jobs", id)
		if len(jobs.Jobs) != 1 || jobs.Jobs[0].Name != hostile || jobs.Jobs[0].Command != hostile {
			t.Errorf("the job in JSON is %+q, want it named %q", jobs.Jobs, hostile)
		}
		var logs struct{ Logs []logView }
		s.json(t, &logs, "logs", id)
		if !slices.ContainsFunc(logs.Logs, func(l logView) bool { return strings.Contains(l.Text, hostile) }) {
			t.Errorf("the log in JSON is %+v, want %q in it", logs.Logs, hostile)
		}
		raw := s.run(t, "logs", id, "--raw").want(t, exitOK).stdout
		if !strings.Contains(raw, hostile) {
			t.Errorf("the raw log is %q, want %q in it", raw, hostile)
		}
	})

	t.Run("a filter is no pattern", func(t *testing.T) {
		for _, name := range []string{"100%", "100x", "a_c", "abc", `back\slash`, `back\\slash`, "*", "star*"} {
			s.runWith(t.Context(), fmt.Sprintf(`{"user": "u", "workflow_id_or_name": %q, "name": %s}`, uuid.NewString(), quoted(name)), "publish", "submission").want(t, exitOK)
		}
		find := func(pattern string) (names []string) {
			var list struct{ Workflows []statusAnswer }
			s.json(t, &list, "list", "--owner", "u", "--name", pattern)
			for _, w := range list.Workflows {
				names = append(names, w.Name)
			}
			slices.Sort(names)
			return names
		}
		servicetest.Eventually(t, patience, "all runs are there", func() error {
			if got := find("*"); len(got) != 8 {
				return fmt.Errorf("%q", got)
			}
			return nil
		})
		for pattern, want := range map[string][]string{
			"100%": {"100%"}, "100%*": {"100%"}, "a_c": {"a_c"}, "a_*": {"a_c"}, "a%*": nil, "%": nil, "_": nil, "%*": nil,
			`back\slash`: {`back\slash`}, `back\*`: {`back\\slash`, `back\slash`}, `back\\*`: {`back\\slash`}, "star*": {"star*"}, "' OR '1'='1": nil, "'*": nil,
		} {
			if got := find(pattern); !slices.Equal(got, want) {
				t.Errorf("list --name %q finds %q, want %q", pattern, got, want)
			}
		}
		// A label is compared as data, too.
		for _, label := range []string{`k=" OR true`, `k\=%`, `k"}'::jsonb OR '{}=x`} {
			var list struct{ Workflows []statusAnswer }
			s.json(t, &list, "list", "--label", label)
			if len(list.Workflows) != 0 {
				t.Errorf("list --label %q finds %+v, want nothing", label, list.Workflows)
			}
		}
	})
	s.run(t, "ledger").want(t, exitOK) // the tables are still there
}
