package main

import (
	"bytes"
	"compress/zlib"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"
	"golang.org/x/sys/unix"

	"waymark/consumer"
	"waymark/internal/broker"
	"waymark/internal/servicetest"
	"waymark/internal/wire"
	"waymark/workflow"
)

// bury puts a letter beside the status queue, as the consumer would.
func (s *site) bury(t testing.TB, ch *amqp.Channel, id, reason, pointer string, body []byte) {
	t.Helper()
	now := time.Now().UTC().Format(time.RFC3339Nano)
	if err := ch.PublishWithContext(t.Context(), "", broker.DeadLetter(s.status), false, false, amqp.Publishing{
		MessageId: id, Body: body,
		Headers: amqp.Table{consumer.HeaderReason: reason, consumer.HeaderPointer: pointer, consumer.HeaderError: "it is wrong", consumer.HeaderCount: int64(1),
			consumer.HeaderFirstSeen: now, consumer.HeaderLastSeen: now, consumer.HeaderQueue: s.status},
	}); err != nil {
		t.Fatal(err)
	}
}

// declare makes the status queue and its dead-letter queue.
func (s *site) declare(t testing.TB, ch *amqp.Channel) {
	t.Helper()
	for _, queue := range []string{s.status, broker.DeadLetter(s.status)} {
		if _, err := ch.QueueDeclare(queue, true, false, false, false, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// with is the environment with other values.
func (e environment) with(pairs ...string) environment {
	other := environment{}
	for name, text := range e {
		other[name] = text
	}
	for i := 0; i < len(pairs); i += 2 {
		other[pairs[i]] = pairs[i+1]
	}
	return other
}

// deadDatabase is where no database answers.
const deadDatabase = "postgres://nobody:s3cret@127.0.0.1:1/none"

func statusBody(id uuid.UUID, status string) []byte {
	return fmt.Appendf(nil, `{"workflow_uuid": %q, "status": %s, "logs": "", "message": {}}`, id, status)
}

// editor is a shell script that edits the file $1.
func editor(t testing.TB, script string) string {
	t.Helper()
	path := writeFile(t, "editor", "#!/bin/sh\nset -e\n"+script+"\n")
	if err := os.Chmod(path, 0o700); err != nil {
		t.Fatal(err)
	}
	return path + " --wait" // editors come with flags
}

// The script's arguments are --wait and the file.
const fixStatus = `sed -i 's/"runing"/1/' "$2"`

type replayAnswer struct {
	Replayed []verdict
	Tally    map[string]int
}

type auditAnswer struct{ Audit []auditView }

var keptFile = regexp.MustCompile(`the edited text is in (\S+)`)

func TestEditDeadLetter(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(t)
	ch := s.channel(t)
	workflow := uuid.New()
	wrong := statusBody(workflow, `"runing"`)
	id := uuid.NewString()
	sendRaw(t, ch, s.status, id, wire.Reana(wrong)) // as REANA's engines send it
	letters := s.deadLetters(t, 1)
	if got := letters[0]; got.Workflow == nil || *got.Workflow != workflow.String() || got.Pointer == nil || *got.Pointer != "/status" {
		t.Fatalf("the letter is %+v, want the workflow %s and the pointer /status", got, workflow)
	}
	// Whatever goes wrong, the letter stays as it was.
	untouched := func(what string) {
		t.Helper()
		if diff := cmp.Diff(letters, s.deadLetters(t, 1)); diff != "" {
			t.Errorf("%s has touched the letter (-want, +got):\n%s", what, diff)
		}
	}

	seen := filepath.Join(t.TempDir(), "seen")
	for _, test := range []struct {
		name, editor string
		code         int
		want         string
		kept         bool
	}{
		{"no editor", "", exitUsage, "no editor: set VISUAL or EDITOR, or give --file", false},
		{"an editor that is missing", "/nonexistent/editor", exitFailed, "nothing was sent: editor", false},
		{"an editor that fails", editor(t, `echo half > "$2"; exit 3`), exitFailed, "exit status 3", true},
		{"an editor that is killed", editor(t, `kill -9 $$`), exitFailed, "nothing was sent: editor", false},
		{"an editor that removes the file", editor(t, `rm "$2"`), exitFailed, "no such file", false},
		{"an editor that changes nothing", editor(t, `stat -c %a "$2" > `+seen+`; cat "$2" >> `+seen), exitOK, "", false},
		{"only white space", editor(t, `tr -d ' \n' < "$2" > "$2.new"; mv "$2.new" "$2"`), exitOK, "", false},
		{"not valid", editor(t, `sed -i 's/"runing"/9/' "$2"`), exitFailed, "the edited message is not valid: schema: /status: ", true},
		{"not JSON", editor(t, `printf '{"half' > "$2"`), exitFailed, "the edited message is not valid: ", true},
		{"empty", editor(t, `: > "$2"`), exitFailed, "the edited message is not valid: ", true},
	} {
		got := s.with("EDITOR", test.editor).run(t, "dead-letters", "edit", id).want(t, test.code)
		if !strings.Contains(got.stderr, test.want) {
			t.Errorf("%s: standard error %q, want %q in it", test.name, got.stderr, test.want)
		}
		if test.code == exitOK && got.stdout != "unchanged: nothing was sent\n" {
			t.Errorf("%s: says %q", test.name, got.stdout)
		}
		kept := keptFile.FindStringSubmatch(got.stderr)
		if (kept != nil) != test.kept {
			t.Errorf("%s: standard error %q; the text is kept: %t, want %t", test.name, got.stderr, kept != nil, test.kept)
		}
		if kept != nil {
			if info, err := os.Stat(kept[1]); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: the file %s: %v, %v; want it there, for its owner only", test.name, kept[1], info, err)
			}
			os.Remove(kept[1])
		}
		untouched(test.name)
	}
	// What the editor was shown: indented, unwrapped, and private.
	shown, err := os.ReadFile(seen)
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("600\n{\n  \"workflow_uuid\": %q,\n  \"status\": \"runing\",\n  \"logs\": \"\",\n  \"message\": {}\n}\n", workflow); string(shown) != want {
		t.Errorf("the editor was shown\n%s\nwant\n%s", shown, want)
	}

	// VISUAL comes before EDITOR. The edited message has its effect under its id.
	var replayed replayAnswer
	decodeJSON(t, s.with("VISUAL", editor(t, fixStatus), "EDITOR", "false").run(t, "dead-letters", "edit", id[:8], "--json").want(t, exitOK).stdout, &replayed)
	if diff := cmp.Diff([]verdict{{ID: id, Queue: s.status, Outcome: "applied"}}, replayed.Replayed); diff != "" {
		t.Errorf("the verdict on the edited message (-want, +got):\n%s", diff)
	}
	s.deadLetters(t, 0)
	s.awaitStatus(t, workflow.String(), "running")

	// Another message under the same id would be taken for a copy.
	ended := statusBody(workflow, `"finishd"`)
	s.bury(t, ch, id, "schema", "/status", ended)
	s.bury(t, ch, id, "schema", "/status", ended) // as a crash may leave it
	s.deadLetters(t, 2)
	fixed := string(statusBody(workflow, "2"))
	got := s.runWith(t.Context(), fixed, "dead-letters", "edit", id, "--file", "-").want(t, exitFailed)
	kept := keptFile.FindStringSubmatch(got.stderr)
	if kept == nil || !strings.Contains(got.stderr, "was applied before") || !strings.Contains(got.stderr, "--new-id") {
		t.Fatalf("an edit under an id that had its effect says %q, want why not, and where the text is", got.stderr)
	}
	if text, err := os.ReadFile(kept[1]); err != nil || string(text) != fixed {
		t.Errorf("the text that was kept is %q, %v; want %q", text, err, fixed)
	}
	decodeJSON(t, s.run(t, "dead-letters", "edit", id, "--file", kept[1], "--new-id", "--json").want(t, exitOK).stdout, &replayed)
	if v := replayed.Replayed; len(v) != 1 || v[0].Outcome != "applied" || v[0].ID == id {
		t.Errorf("the verdict on the message with a new id: %+v, want applied, and another id than %s", v, id)
	}
	s.deadLetters(t, 0)
	s.awaitStatus(t, workflow.String(), "finished")
	if err := os.Remove(kept[1]); err != nil {
		t.Error("the file that the edit was told to read is gone:", err)
	}
	s.run(t, "dead-letters", "edit", id, "--file", os.DevNull).want(t, exitNotFound)

	var audit auditAnswer
	s.json(t, &audit, "dead-letters", "audit")
	var done []string
	for _, e := range audit.Audit {
		done = append(done, fmt.Sprintf("%s %s %d", e.Action, e.Reason, e.BodyBytes))
	}
	if diff := cmp.Diff([]string{fmt.Sprint("edit schema ", len(ended)), fmt.Sprint("edit schema ", len(wire.Reana(wrong)))}, done); diff != "" {
		t.Errorf("the audit (-want, +got):\n%s", diff)
	}
}

// A letter that goes elsewhere while it is edited is not sent a second time.
func TestEditOfLetterThatGoes(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ch := s.channel(t)
	s.declare(t, ch)
	s.run(t, "migrate").want(t, exitOK)
	id := uuid.NewString()
	s.bury(t, ch, id, "schema", "/status", statusBody(uuid.New(), `"runing"`))
	s.deadLetters(t, 1)
	opened, proceed := filepath.Join(t.TempDir(), "opened"), filepath.Join(t.TempDir(), "proceed")
	slow := editor(t, fixStatus+"\n: > "+opened+"\nwhile [ ! -e "+proceed+" ]; do sleep 0.05; done")
	editing := s.with("EDITOR", slow).start(t, "dead-letters", "edit", id)
	servicetest.Eventually(t, patience, "the editor is open", func() error { _, err := os.Stat(opened); return err })
	// Meanwhile the letter is there for others.
	s.deadLetters(t, 1)
	s.run(t, "dead-letters", "discard", id, "--yes").want(t, exitOK)
	if err := os.WriteFile(proceed, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if code := editing.wait(t); code != exitNotFound {
		t.Errorf("the edit of a letter that is gone ended with %d, want %d: %s", code, exitNotFound, editing.stderr.String())
	}
	kept := keptFile.FindStringSubmatch(editing.stderr.String())
	if kept == nil || !strings.Contains(editing.stderr.String(), "nothing was sent") {
		t.Fatalf("the edit of a letter that is gone says %q, want that nothing was sent, and where the text is", editing.stderr.String())
	}
	os.Remove(kept[1])
	if q, err := ch.QueueDeclarePassive(s.status, true, false, false, false, nil); err != nil || q.Messages != 0 {
		t.Errorf("the queue holds %d messages, %v; want none", q.Messages, err)
	}
}

// Two replays of letters that die again: each hears of its own.
func TestTwoReplaysThatDieAgain(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(t)
	ch := s.channel(t)
	const each = 40
	for i := range each {
		sendRaw(t, ch, s.status, fmt.Sprintf("json-%d", i), []byte("no json"))
		sendRaw(t, ch, s.status, fmt.Sprintf("pointer-%d", i), statusBody(uuid.New(), `"runing"`))
	}
	s.deadLetters(t, 2*each)
	var wg sync.WaitGroup
	answers := make([]outcome, 2)
	for i, args := range [][]string{{"--reason", "not-json"}, {"--pointer", "/status"}} {
		wg.Go(func() {
			answers[i] = s.run(t, append([]string{"dead-letters", "replay", "--wait", "2m", "--json"}, args...)...)
		})
	}
	began := time.Now()
	wg.Wait()
	for i, prefix := range []string{"json-", "pointer-"} {
		var replayed replayAnswer
		decodeJSON(t, answers[i].want(t, exitFailed).stdout, &replayed)
		if replayed.Tally["dead"] != each || len(replayed.Replayed) != each {
			t.Errorf("replay %d: %v, want %d dead", i, replayed.Tally, each)
		}
		for _, v := range replayed.Replayed {
			if !strings.HasPrefix(v.ID, prefix) {
				t.Errorf("replay %d tells of %s, which is the other's", i, v.ID)
			}
		}
	}
	if took := time.Since(began); took > 90*time.Second {
		t.Errorf("the replays took %s: they have waited for what had happened", took)
	}
	for _, l := range s.deadLetters(t, 2*each) {
		if l.Count != 2 {
			t.Errorf("letter %s died %d times, want 2", l.ID, l.Count)
		}
	}
}

func TestReplayGroups(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ch := s.channel(t)
	s.declare(t, ch)
	one, other := uuid.New(), uuid.New()
	for i := range 3 {
		s.bury(t, ch, fmt.Sprintf("status-%d", i), "schema", "/status", statusBody(one, `"x"`))
		s.bury(t, ch, fmt.Sprintf("logs-%d", i), "schema", "/logs", statusBody(other, "1"))
		s.bury(t, ch, fmt.Sprintf("json-%d", i), "not-json", "", fmt.Appendf(nil, `{"workflow_uuid": "%s", "half`, other))
	}
	s.deadLetters(t, 9)
	var groups struct{ Groups []letterGroup }
	s.json(t, &groups, "dead-letters", "list", "--reason", "schema")
	if len(groups.Groups) != 2 || groups.Groups[0].Messages != 3 {
		t.Errorf("list --reason schema = %+v, want two groups of 3", groups.Groups)
	}
	without := s.with("WAYMARK_DATABASE_URL", "")
	ids := func(args ...string) (ids []string) {
		t.Helper()
		var list struct {
			Letters []letterView `json:"dead_letters"`
		}
		decodeJSON(t, without.run(t, append([]string{"dead-letters", "list", "--each", "--json"}, args...)...).want(t, exitOK).stdout, &list)
		for _, l := range list.Letters {
			ids = append(ids, l.ID)
		}
		slices.Sort(ids)
		return ids
	}
	for _, test := range []struct {
		args []string
		want []string
	}{
		{[]string{"--pointer", "/status"}, []string{"status-0", "status-1", "status-2"}},
		{[]string{"--pointer", ""}, []string{"json-0", "json-1", "json-2"}},
		{[]string{"--workflow", strings.ToUpper(one.String()[:8])}, []string{"status-0", "status-1", "status-2"}},
		{[]string{"--workflow", other.String(), "--reason", "not-json"}, []string{"json-0", "json-1", "json-2"}},
		{[]string{"--workflow", other.String()}, []string{"json-0", "json-1", "json-2", "logs-0", "logs-1", "logs-2"}},
		{[]string{"--reason", "too-large"}, nil},
	} {
		if diff := cmp.Diff(test.want, ids(test.args...)); diff != "" {
			t.Errorf("list %q (-want, +got):\n%s", test.args, diff)
		}
	}
	without.run(t, "dead-letters", "replay", "--workflow", "ab").want(t, exitUsage)
	without.run(t, "dead-letters", "replay", "--all", "--pointer", "/x").want(t, exitUsage)
	without.run(t, "dead-letters", "replay", "--all", "--rate", "1/h").want(t, exitUsage)
	got := without.run(t, "dead-letters", "replay", "--reason", "schema", "--workflow", uuid.NewString()).want(t, exitNotFound)
	if !strings.Contains(got.stderr, `dead letters with reason "schema", workflow "`) {
		t.Errorf("a replay of nothing says %q, want what was asked for", got.stderr)
	}

	// At a rate, and no other than was asked for.
	began := time.Now()
	var replayed replayAnswer
	decodeJSON(t, without.run(t, "dead-letters", "replay", "--reason", "schema", "--pointer", "/status", "--rate", "240/m", "--json").want(t, exitOK).stdout, &replayed)
	if took := time.Since(began); took < 500*time.Millisecond {
		t.Errorf("three messages at four a second took %s, want half a second or more", took)
	}
	if replayed.Tally["unknown"] != 3 {
		t.Errorf("replay: %v, want 3 unknown", replayed.Tally)
	}
	if diff := cmp.Diff([]string{"json-0", "json-1", "json-2", "logs-0", "logs-1", "logs-2"}, ids()); diff != "" {
		t.Errorf("after the replay (-want, +got):\n%s", diff)
	}
}

func TestReplayTooLarge(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	server := s.serve(t, "--consumer-max-message-bytes", "4096")
	ch := s.channel(t)
	workflow, id := uuid.New(), uuid.NewString()
	body := bytes.Replace(statusBody(workflow, "1"), []byte(`"logs": ""`), []byte(`"logs": "`+strings.Repeat("x", 8000)+`"`), 1)
	sendRaw(t, ch, s.status, id, body)
	if l := s.deadLetters(t, 1)[0]; l.Reason != "too-large" || l.Workflow == nil || *l.Workflow != workflow.String() {
		t.Fatalf("the letter is %+v, want too-large, and its workflow", l)
	}
	var replayed replayAnswer
	decodeJSON(t, s.run(t, "dead-letters", "replay", id, "--consumer-max-message-bytes", "4096", "--json").want(t, exitFailed).stdout, &replayed)
	if v := replayed.Replayed[0]; v.Outcome != outcomeNotPublished || !strings.Contains(*v.Error, fmt.Sprintf("its body is %d bytes long, and consumer.max_message_bytes is 4096; raise it", len(body))) {
		t.Errorf("the replay of a letter that is too large: %+v, want it not published, and told what to do", v)
	}
	if l := s.deadLetters(t, 1)[0]; l.Count != 1 {
		t.Errorf("the letter died %d times, want 1: it was to stay", l.Count)
	}
	server.stop(t, exitOK)
	s.serve(t)
	decodeJSON(t, s.run(t, "dead-letters", "replay", id, "--json").want(t, exitOK).stdout, &replayed)
	if replayed.Tally["applied"] != 1 {
		t.Errorf("the replay at a higher limit: %+v, want it applied", replayed)
	}
}

// All but a discard works while the database is away, and a discard is recorded
// in a file.
func TestDeadLettersWhileTheDatabaseIsDown(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ch := s.channel(t)
	s.declare(t, ch)
	down := s.with("WAYMARK_DATABASE_URL", deadDatabase, "EDITOR", editor(t, fixStatus))
	workflow := uuid.New()
	body := statusBody(workflow, `"runing"`)
	for _, id := range []string{"first", "second", "third"} {
		s.bury(t, ch, id, "schema", "/status", body)
	}
	s.deadLetters(t, 3)
	if table := down.run(t, "dead-letters", "list").want(t, exitOK).stdout; !strings.Contains(table, "/status") {
		t.Errorf("list shows\n%s", table)
	}
	if raw := down.run(t, "dead-letters", "show", "first", "--raw").want(t, exitOK).stdout; raw != string(body) {
		t.Errorf("show --raw = %q, want %q", raw, body)
	}
	for _, args := range [][]string{{"replay", "first"}, {"edit", "second"}} {
		got := down.run(t, append([]string{"dead-letters"}, args...)...).want(t, exitOK)
		if !strings.Contains(got.stdout, "1 unknown") || !strings.Contains(got.stderr, "the outcomes are unknown: ") || !strings.Contains(got.stderr, "the audit lacks this: ") || strings.Contains(got.stderr, "s3cret") {
			t.Errorf("%q says\n%s%s\nwant an unknown outcome, and that the audit lacks it", args, got.stdout, got.stderr)
		}
	}
	for _, want := range []string{string(body), `{"workflow_uuid":"` + workflow.String() + `","status":1,"logs":"","message":{}}`} {
		d, ok, err := ch.Get(s.status, true)
		if err != nil || !ok || string(d.Body) != want || d.Headers[consumer.HeaderReason] != nil || d.Headers[consumer.HeaderCount] != int64(1) {
			t.Errorf("published again: %q with %v, %v, %v; want %q with its history and not its reason", d.Body, d.Headers, ok, err, want)
		}
	}

	got := down.run(t, "dead-letters", "discard", "--all", "--yes").want(t, exitUnreachable)
	if !strings.Contains(got.stderr, "nothing was discarded, as it cannot be recorded") || !strings.Contains(got.stderr, "--audit-file") {
		t.Errorf("a discard without the database says %q, want why not, and what to do", got.stderr)
	}
	got = down.with("WAYMARK_DATABASE_URL", "").run(t, "dead-letters", "discard", "--all", "--yes").want(t, exitUsage)
	if !strings.Contains(got.stderr, "database.url is not set") || !strings.Contains(got.stderr, "--audit-file") {
		t.Errorf("a discard without a database configured says %q, want why not, and what to do", got.stderr)
	}
	down.run(t, "dead-letters", "discard", "--all", "--yes", "--audit-file", "/nonexistent/audit").want(t, exitFailed)
	s.deadLetters(t, 1)

	file := filepath.Join(t.TempDir(), "audit.jsonl")
	if err := os.WriteFile(file, []byte("{\"before\": true}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := down.run(t, "dead-letters", "discard", "third", "--yes", "--audit-file", file).want(t, exitOK); got.stdout != "discarded 1\n" {
		t.Errorf("discard with a file for the record says %q", got.stdout)
	}
	s.deadLetters(t, 0)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	var entry auditView
	decodeJSON(t, lines[len(lines)-1], &entry)
	if len(lines) != 2 || lines[0] != `{"before": true}` || entry.Action != "discard" || *entry.MessageID != "third" || *entry.Workflow != workflow.String() ||
		entry.BodyBytes != int64(len(body)) || len(entry.BodySHA256) != 64 || !strings.Contains(entry.Actor, "@") || time.Since(entry.At) > time.Hour {
		t.Errorf("the file for the record holds\n%s\nwant a line more, about the letter third", text)
	}
}

// What a discard records, and that it asks.
func TestDiscardAsks(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ch := s.channel(t)
	s.declare(t, ch)
	s.run(t, "migrate").want(t, exitOK)
	hostile := "\x1b]0;title\x07'; DROP TABLE ledger; --"
	s.bury(t, ch, "hostile\x00\xff", hostile, "", []byte("{}"))
	s.bury(t, ch, "plain", "schema", "/status", statusBody(uuid.New(), `"x"`))
	s.deadLetters(t, 2)

	onTerminal := func(keys string, args ...string) (code int, stdout, stderr string) {
		t.Helper()
		master, slave := terminal(t)
		if _, err := master.WriteString(keys); err != nil {
			t.Fatal(err)
		}
		var out, complaints buffer
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		code = run(ctx, append([]string{"dead-letters"}, args...), s.getenv, slave, &out, &complaints)
		return code, out.String(), complaints.String()
	}
	for _, keys := range []string{"n\n", "\n", "\x04", "perhaps\n"} {
		code, _, stderr := onTerminal(keys, "discard", "--all")
		if code != exitFailed || !strings.Contains(stderr, "discard 2 dead letters for good? [y/N]") || !strings.Contains(stderr, "nothing was discarded") {
			t.Errorf("answered with %q, discard ends with %d and %q", keys, code, stderr)
		}
		s.deadLetters(t, 2)
	}
	var audit auditAnswer
	s.json(t, &audit, "dead-letters", "audit")
	if len(audit.Audit) != 0 {
		t.Errorf("the audit tells of %+v, and nothing was done", audit.Audit)
	}
	if code, stdout, stderr := onTerminal("Yes\n", "discard", "--reason", hostile); code != exitOK || stdout != "discarded 1\n" {
		t.Errorf("answered with yes, discard ends with %d, %q and %q", code, stdout, stderr)
	}
	s.json(t, &audit, "dead-letters", "audit")
	if len(audit.Audit) != 1 || audit.Audit[0].Action != "discard" || audit.Audit[0].Reason != hostile || *audit.Audit[0].MessageID != "hostile\ufffd\ufffd" {
		t.Errorf("the audit tells of %+v, want the one with the hostile reason", audit.Audit)
	}
	table := s.run(t, "dead-letters", "audit").want(t, exitOK).stdout
	if strings.Contains(table, "\x1b") || !strings.Contains(table, "discard") {
		t.Errorf("the table of the audit is not harmless, or empty:\n%q", table)
	}
	s.run(t, "dead-letters", "audit", "--limit", "0").want(t, exitUsage)
	s.with("WAYMARK_DATABASE_URL", deadDatabase).run(t, "dead-letters", "audit").want(t, exitUnreachable)

	// On a terminal an edit that is not valid may be edited again.
	tries := filepath.Join(t.TempDir(), "tries")
	s.environment = s.with("EDITOR", editor(t, `echo >> `+tries+`; sed -i 's/"x"/9/' "$2"`))
	code, _, stderr := onTerminal("y\nn\n", "edit", "plain")
	count, _ := os.ReadFile(tries)
	kept := keptFile.FindStringSubmatch(stderr)
	if code != exitFailed || len(count) != 2 || strings.Count(stderr, "/status: ") != 2 || kept == nil {
		t.Fatalf("an edit that stays invalid ends with %d after %d tries and says\n%s\nwant 2 tries, the fault each time, and where the text is", code, len(count), stderr)
	}
	os.Remove(kept[1])
	s.deadLetters(t, 1)
}

// What cannot be recorded is not discarded, even if the database answers.
func TestDiscardThatCannotBeRecorded(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ch := s.channel(t)
	s.declare(t, ch)
	s.run(t, "migrate").want(t, exitOK)
	s.bury(t, ch, "plain", "schema", "/status", []byte("{}"))
	letters := s.deadLetters(t, 1)
	db, err := pgx.Connect(t.Context(), s.database.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(context.WithoutCancel(t.Context()))
	if _, err := db.Exec(t.Context(), "ALTER TABLE "+s.database.Schema+".dead_letter_actions ADD CONSTRAINT nobody CHECK (actor = 'nobody')"); err != nil {
		t.Fatal(err)
	}
	got := s.run(t, "dead-letters", "discard", "--all", "--yes")
	if got.code == exitOK || !strings.Contains(got.stderr, "nothing was discarded, as it cannot be recorded") {
		t.Errorf("a discard that cannot be recorded ends with %d and %q, want an error", got.code, got.stderr)
	}
	if diff := cmp.Diff(letters, s.deadLetters(t, 1)); diff != "" {
		t.Errorf("the letter (-want, +got):\n%s", diff)
	}
}

// A letter of the submission queue is judged as a submission.
func TestEditSubmission(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(t)
	sendRaw(t, s.channel(t), s.submission, "submission", []byte(`{"user": "ada", "workflow_id_or_name": 7}`))
	s.deadLetters(t, 1)
	got := s.runWith(t.Context(), goodStatus, "dead-letters", "edit", "submission", "--file", "-").want(t, exitFailed)
	if kept := keptFile.FindStringSubmatch(got.stderr); kept == nil || !strings.Contains(got.stderr, "not valid") {
		t.Errorf("a status message in place of a submission: %q, want it refused, and kept", got.stderr)
	} else {
		os.Remove(kept[1])
	}
	id := uuid.NewString()
	s.runWith(t.Context(), fmt.Sprintf(`{"user": "ada", "workflow_id_or_name": %q, "name": "mended"}`, id), "dead-letters", "edit", "submission", "--file", "-").want(t, exitOK)
	s.awaitStatus(t, "mended", "queued")
	s.deadLetters(t, 0)
}

// terminal is a pseudo terminal.
func terminal(t testing.TB) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

// A body is shown so that it does nothing to a terminal or its reader, and
// programs get it exactly.
func TestShowHostileLetter(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ch := s.channel(t)
	s.declare(t, ch)
	hostile := "\x1b[2J\x1b]8;;http://evil\x07link\x1b]52;c;YQ==\x07 \u202egnp.exe\u202c \u009b31m \u2066x\u2069 a\rb\bc \x00 \xff\xfe \u200b\u2028 \U000e0041 tab\tline\n"
	long := strings.Repeat("é", 100_000)
	s.bury(t, ch, "hostile\x1b[2J", "schema\x1b[2J", "/\u202e", []byte(hostile))
	s.bury(t, ch, "long-body", "too-large", "", []byte("x"+long))
	s.deadLetters(t, 2)
	forbidden := func(what, text string) {
		t.Helper()
		for _, r := range []string{"\x1b", "\x07", "\u202e", "\u2066", "\u009b", "\r", "\b", "\x00", "\xff", "\u200b", "\u2028", "\U000e0041"} {
			if strings.Contains(text, r) {
				t.Errorf("%s holds %q:\n%q", what, r, text)
			}
		}
	}
	shown := s.run(t, "dead-letters", "show", "hostile").want(t, exitOK).stdout
	forbidden("show", shown)
	for _, want := range []string{`\x1b[2J`, `\u202egnp.exe`, `\xff\xfe`, "tab\tline\n", `a\rb\x08c`} {
		if !strings.Contains(shown, want) {
			t.Errorf("show lacks %q:\n%s", want, shown)
		}
	}
	document := s.run(t, "dead-letters", "show", "hostile", "--json").want(t, exitOK).stdout
	forbidden("show --json", document)
	var letter struct {
		ID         string
		Body       string
		BodyBase64 string `json:"body_base64"`
	}
	decodeJSON(t, document, &letter)
	if exact, err := base64.StdEncoding.DecodeString(letter.BodyBase64); err != nil || string(exact) != hostile || letter.ID != "hostile\x1b[2J" {
		t.Errorf("show --json has id %q and the body %q, %v; want them exactly", letter.ID, exact, err)
	}
	if raw := s.run(t, "dead-letters", "show", "hostile", "--raw").want(t, exitOK).stdout; raw != hostile {
		t.Errorf("show --raw = %q, want %q", raw, hostile)
	}
	forbidden("list", s.run(t, "dead-letters", "list").want(t, exitOK).stdout)
	forbidden("list --each", s.run(t, "dead-letters", "list", "--each").want(t, exitOK).stdout)
	forbidden("list --json", s.run(t, "dead-letters", "list", "--each", "--output", "jsonl").want(t, exitOK).stdout)

	// A large body is cut between characters, and its size is told.
	shown = s.run(t, "dead-letters", "show", "long-body").want(t, exitOK).stdout
	if !strings.HasSuffix(shown, "é\n\n(the first 65535 of 200001 bytes; --raw writes all)\n") {
		t.Errorf("the end of a large body is shown as %q", shown[max(0, len(shown)-80):])
	}
	decodeJSON(t, s.run(t, "dead-letters", "show", "long-body", "--json").want(t, exitOK).stdout, &letter)
	if letter.Body != "x"+long {
		t.Errorf("show --json has a body of %d bytes, want %d", len(letter.Body), len(long)+1)
	}
}

// The beginning of an id stands for it if it is long enough, and a whole id
// always does.
func TestWantedIDs(t *testing.T) {
	t.Parallel()
	ids := []string{"7", "77", "abcd", "abcde", "abcdef", "other"}
	for _, test := range []struct {
		ref  string
		want []string
		err  string
	}{
		{"7", []string{"7"}, ""},
		{"abcd", []string{"abcd"}, ""},
		{"abcde", []string{"abcde"}, ""},
		{"othe", []string{"other"}, ""},
		{"oth", nil, "too short: give at least four characters"},
		{"nobody", nil, "not found"},
	} {
		w, err := parseIDs([]string{test.ref})
		if err != nil {
			t.Fatal(err)
		}
		var matched []string
		for _, id := range ids {
			if w.match(id) {
				matched = append(matched, id)
			}
		}
		err = w.check(len(ids), false)
		if (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
			t.Errorf("%q: %v, want %q", test.ref, err, test.err)
		}
		matched = slices.DeleteFunc(matched, func(id string) bool { return !w.resolved(id) })
		if diff := cmp.Diff(test.want, matched, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%q stands for (-want, +got):\n%s", test.ref, diff)
		}
	}
	w, err := parseIDs([]string{"abcd"})
	if err != nil {
		t.Fatal(err)
	}
	if !w.match("abcd-1") || !w.match("abcd-2") || !errors.Is(w.check(2, false), workflow.ErrAmbiguous) {
		t.Errorf("the beginning of two ids: %v, want it ambiguous", w.check(2, false))
	}
	if _, err := parseIDs([]string{""}); err == nil {
		t.Error("an empty id is accepted")
	}
}

func TestNamedWorkflow(t *testing.T) {
	t.Parallel()
	id := "2fb6b2f0-7c94-4ddc-9a5d-5d2b8b6e1f6c"
	for _, test := range []struct{ body, want string }{
		{`{"workflow_uuid": "` + id + `"}`, id},
		{`{"user": "a", "workflow_id_or_name": "fit"}`, "fit"},
		{string(wire.Reana([]byte(`{"workflow_uuid": "` + id + `"}`))), id},
		{`{"logs": "\"workflow_uuid\": \"other\"", "workflow_uuid": "` + id + `"}`, id},
		{`{"workflow_uuid" : "` + id + `", "half`, id},
		{string(wire.Reana([]byte(`{"workflow_uuid": "` + id + `", "logs": "xyz"}`))[:75]), id},
		{`{"workflow_uuid": 7}`, ""},
		{`{"workflow_uuid": "` + id + `", "logs": "` + strings.Repeat("x", 1<<20), id},
		{strings.Repeat("[", 1<<20), ""},
		{"\xff\xfe", ""},
		{"", ""},
	} {
		if got := namedWorkflow([]byte(test.body)); got != test.want {
			t.Errorf("%.80q names workflow %q, want %q", test.body, got, test.want)
		}
	}
}

func TestParseRate(t *testing.T) {
	t.Parallel()
	for rate, want := range map[string]time.Duration{"": 0, "50/s": 20 * time.Millisecond, "50": 20 * time.Millisecond, "600/m": 100 * time.Millisecond, "0.5/s": 2 * time.Second, "100/h": 36 * time.Second} {
		if got, err := parseRate(rate); err != nil || got != want {
			t.Errorf("parseRate(%q) = %s, %v; want %s", rate, got, err, want)
		}
	}
	for _, rate := range []string{"0", "-1/s", "x", "1/d", "/s", "1/s/s", "NaN", "Inf", "1e9/s"} {
		if got, err := parseRate(rate); err == nil {
			t.Errorf("parseRate(%q) = %s, want an error", rate, got)
		}
	}
}

// A draft that was not changed is the letter, whatever that is.
func TestDraft(t *testing.T) {
	t.Parallel()
	object := []byte(`{"a": 1.0, "a": 12345678901234567890, "b": "\u202e"}`)
	compact := `{"a":1.0,"a":12345678901234567890,"b":"\u202e"}`
	for _, test := range []struct {
		name, body  string
		headers     amqp.Table
		text, again string
	}{
		{"JSON", string(object), nil, "{\n  \"a\": 1.0,\n  \"a\": 12345678901234567890,\n  \"b\": \"\\u202e\"\n}\n", compact},
		{"wrapped", string(wire.Reana(object)), nil, "{\n  \"a\": 1.0,\n  \"a\": 12345678901234567890,\n  \"b\": \"\\u202e\"\n}\n", string(wire.Reana([]byte(compact)))},
		{"with a byte order mark", "\ufeff{}", nil, "{}\n", "{}"},
		{"not JSON", "half {\x00\xff", nil, "half {\x00\xff", "half {\x00\xff"},
		{"an array", " [1]", nil, " [1]", " [1]"},
		{"empty", "", nil, "", ""},
		{"compressed", string(deflate(t, object)), amqp.Table{"compression": "application/x-gzip"}, "{\n  \"a\": 1.0,\n  \"a\": 12345678901234567890,\n  \"b\": \"\\u202e\"\n}\n", compact},
		{"not compressed, though it says so", "plain", amqp.Table{"compression": "application/x-gzip"}, "plain", "plain"},
	} {
		d := draftOf(&deadLetter{delivery: amqp.Delivery{Body: []byte(test.body), Headers: test.headers}}, 1<<20)
		if string(d.text) != test.text {
			t.Errorf("%s: the draft is %q, want %q", test.name, d.text, test.text)
		}
		if again := d.body(d.text); string(again) != test.again {
			t.Errorf("%s: the body of the draft is %q, want %q", test.name, again, test.again)
		}
		if !d.same(d.text) || d.same([]byte(`{"changed": true}`)) {
			t.Errorf("%s: the draft does not know whether it was changed", test.name)
		}
		if json.Valid(d.text) && test.headers == nil && !d.same([]byte(test.body)) {
			t.Errorf("%s: the body that the letter came with counts as changed", test.name)
		}
	}
}

func deflate(t testing.TB, body []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zlib.NewWriter(&b)
	if _, err := z.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// An operator who may not have a queue of their own hears of deaths too, by
// looking into the dead-letter queue from time to time.
func TestReplayWithFewRights(t *testing.T) {
	t.Parallel()
	r := servicetest.RabbitMQ(t)
	s := newSite(t)
	s.amqp = r.URL()
	s.environment = s.with("WAYMARK_BROKER_URL", s.amqp)
	s.serve(t)
	sendRaw(t, s.channel(t), s.status, "hopeless", []byte("no json"))
	s.deadLetters(t, 1)
	for _, args := range [][]string{
		{"add_user", "limited", "secret"},
		{"set_permissions", "limited", "^$", `^amq\.default$`, "^" + regexp.QuoteMeta(broker.DeadLetter(s.status)) + "$"},
	} {
		if said, err := r.Ctl(t.Context(), args...); err != nil {
			t.Fatalf("rabbitmqctl %q: %v\n%s", args, err, said)
		}
	}
	u, err := url.Parse(s.amqp)
	if err != nil {
		t.Fatal("the URL of the server cannot be read")
	}
	u.User = url.UserPassword("limited", "secret")
	limited := s.with("WAYMARK_BROKER_URL", u.String())
	var replayed replayAnswer
	decodeJSON(t, limited.run(t, "dead-letters", "replay", "hopeless", "--queue", "status", "--wait", "1m", "--json").want(t, exitFailed).stdout, &replayed)
	if v := replayed.Replayed; len(v) != 1 || v[0].Outcome != "dead" || *v[0].Reason != "not-json" {
		t.Errorf("the verdict on a letter that died again: %+v, want dead because of not-json", v)
	}
}
