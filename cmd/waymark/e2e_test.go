package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/consumer"
	"waymark/engines"
	"waymark/internal/broker"
	"waymark/internal/servicetest"
)

const patience = 60 * time.Second

// site is a place of a test's own on the real servers, and the environment of
// the programs that work there.
type site struct {
	environment
	amqp       string
	database   servicetest.DB
	status     string
	submission string
}

func newSite(t testing.TB) *site {
	t.Helper()
	s := &site{amqp: servicetest.AMQP(t), database: servicetest.Database(t)}
	s.status, s.submission = servicetest.Queues(t)
	s.environment = environment{
		"WAYMARK_BROKER_URL": s.amqp, "WAYMARK_BROKER_STATUS_QUEUE": s.status, "WAYMARK_BROKER_SUBMISSION_QUEUE": s.submission,
		"WAYMARK_DATABASE_URL": s.database.URL, "WAYMARK_DATABASE_SCHEMA": s.database.Schema, "WAYMARK_HTTP_LISTEN": "127.0.0.1:0",
	}
	return s
}

// process is a command that runs until it is told to stop.
type process struct {
	stdout, stderr buffer
	cancel         context.CancelFunc
	done           chan struct{}
	code           int
}

func (e environment) start(t testing.TB, args ...string) *process {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	p := &process{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.code = run(ctx, args, e.getenv, strings.NewReader(""), &p.stdout, &p.stderr)
	}()
	t.Cleanup(func() {
		cancel()
		<-p.done
		if t.Failed() {
			t.Logf("waymark %q ended with %d, standard error:\n%s", args, p.code, p.stderr.String())
		}
	})
	return p
}

// wait returns the exit code once the program has ended by itself.
func (p *process) wait(t testing.TB) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Fatalf("the program does not end; standard output:\n%s\nstandard error:\n%s", p.stdout.String(), p.stderr.String())
	}
	return p.code
}

// stop interrupts the program and fails the test if it did not end with code.
func (p *process) stop(t testing.TB, code int) {
	t.Helper()
	p.cancel()
	if got := p.wait(t); got != code {
		t.Errorf("the interrupted program ended with %d, want %d; standard error:\n%s", got, code, p.stderr.String())
	}
}

var address = regexp.MustCompile(`address(?:=|":")(http://[^\s"]+)`)

// url is where the program's endpoints answer.
func (p *process) url(t testing.TB) (url string) {
	t.Helper()
	servicetest.Eventually(t, patience, "serve says where it listens", func() error {
		m := address.FindStringSubmatch(p.stderr.String())
		if m == nil {
			return errors.New("no address in " + p.stderr.String())
		}
		url = m[1]
		return nil
	})
	return url
}

func httpGet(t testing.TB, url string) (code int, body string) {
	t.Helper()
	answer, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(text)
}

// serve starts "waymark serve" and waits until it is ready.
func (s *site) serve(t testing.TB, args ...string) *process {
	t.Helper()
	p := s.start(t, append([]string{"serve"}, args...)...)
	url := p.url(t)
	servicetest.Eventually(t, patience, "serve is ready", func() error {
		if code, body := httpGet(t, url+"/readyz"); code != http.StatusOK {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	return p
}

// json runs a command until it ends with 0 and decodes its JSON.
func (s *site) json(t testing.TB, v any, args ...string) {
	t.Helper()
	decodeJSON(t, s.run(t, append(args, "--json")...).want(t, exitOK).stdout, v)
}

type statusAnswer struct {
	ID       string
	Name     string
	Status   string
	Attempt  int
	Started  time.Time `json:"started_at"`
	Progress struct{ Total, Finished, Failed, Running int }
	Failed   []struct {
		Name         string
		ExitCode     int      `json:"exit_code"`
		LastLogLines []string `json:"last_log_lines"`
	} `json:"failed_jobs"`
}

// awaitStatus waits until a run has a status.
func (s *site) awaitStatus(t testing.TB, ref, status string) (got statusAnswer) {
	t.Helper()
	return s.await(t, ref, status, func(statusAnswer) bool { return true })
}

// awaitNamed waits until a run has a status and a name, which come by two queues.
func (s *site) awaitNamed(t testing.TB, ref, status, name string) (got statusAnswer) {
	t.Helper()
	return s.await(t, ref, status, func(got statusAnswer) bool { return got.Name == name })
}

func (s *site) await(t testing.TB, ref, status string, right func(statusAnswer) bool) (got statusAnswer) {
	t.Helper()
	servicetest.Eventually(t, patience, ref+" is "+status, func() error {
		o := s.run(t, "status", ref, "--json")
		if o.code != exitOK {
			return errors.New(o.stderr)
		}
		decodeJSON(t, o.stdout, &got)
		if got.Status != status || !right(got) {
			return fmt.Errorf("it is %+v", got)
		}
		return nil
	})
	return got
}

// reanaYAML is a serial workflow of commands, one a step.
func reanaYAML(t testing.TB, commands ...string) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("workflow:\n  type: serial\n  specification:\n    steps:\n")
	for i, command := range commands {
		quoted, err := json.Marshal(command)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "      - name: step%d\n        environment: any\n        commands: [%s]\n", i+1, quoted)
	}
	return writeFile(t, "reana.yaml", b.String())
}

func TestEndToEnd(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	server := s.serve(t)

	fit := uuid.NewString()
	watching := s.start(t, "watch", "--wait", fit, "--output", "jsonl")

	runs := []struct {
		name string
		code int
		args []string
	}{
		{"fit", 0, []string{"-f", reanaYAML(t, "echo hello", "printf 'a\\033[31mb\\n'", "echo done > out"), "--id", fit, "--label", "kind=good"}},
		{"plot", 0, []string{"-f", reanaYAML(t, "true", "true")}},
		{"bad", 7, []string{"-f", reanaYAML(t, "true", "echo no luck; exit 7", "true")}},
	}
	var wg sync.WaitGroup
	outcomes := make([]outcome, len(runs))
	for i, r := range runs {
		args := append([]string{"run", "serial", "--name", r.name, "--owner", "jane", "--workspace", t.TempDir()}, r.args...)
		wg.Go(func() { outcomes[i] = s.run(t, args...) })
	}
	wg.Wait()
	for i, r := range runs {
		got := outcomes[i].want(t, r.code)
		if !runLine.MatchString(got.stderr) || !strings.Contains(got.stderr, "name "+r.name+"; to follow it: waymark watch ") || !strings.Contains(got.stderr, ", spooled 0, dropped 0\n") {
			t.Errorf("%s: standard error does not begin with id and name, and end with what was published:\n%s", r.name, got.stderr)
		}
	}
	if got := outcomes[0].stdout; got != "hello\na\x1b[31mb\n" {
		t.Errorf("the output of the commands, in a pipe, is %q", got)
	}

	// The watcher was there before the run, and ends with it.
	if code := watching.wait(t); code != exitOK {
		t.Errorf("watch of a run that finished ended with %d: %s", code, watching.stderr.String())
	}
	lines := strings.Split(strings.TrimSpace(watching.stdout.String()), "\n")
	var last statusAnswer
	decodeJSON(t, lines[len(lines)-1], &last)
	// Its name comes by another queue, perhaps after its end.
	if last.Status != "finished" || last.Progress.Finished != 3 {
		t.Errorf("the last change that watch tells is %+v, want it finished, 3 of 3", last)
	}

	s.awaitStatus(t, "fit", "finished")
	s.awaitStatus(t, "plot#1", "finished")
	bad := s.awaitStatus(t, "bad", "failed")
	if len(bad.Failed) != 1 || bad.Failed[0].Name != "step2" || bad.Failed[0].ExitCode != 7 || !slices.Equal(bad.Failed[0].LastLogLines, []string{"no luck"}) {
		t.Errorf("status of the failed run tells of %+v, want step2 with exit code 7 and its log", bad.Failed)
	}
	if bad.Progress.Total != 3 || bad.Progress.Finished != 1 || bad.Progress.Failed != 1 {
		t.Errorf("progress of the failed run: %+v, want 1 of 3, 1 failed", bad.Progress)
	}
	card := s.run(t, "status", bad.ID[:8]).want(t, exitOK).stdout
	for _, want := range []string{"bad#1  failed", "step2, exit code 7", "| no luck", "as of 20"} {
		if !strings.Contains(card, want) {
			t.Errorf("the card lacks %q:\n%s", want, card)
		}
	}

	t.Run("list", func(t *testing.T) {
		var list struct {
			Workflows []statusAnswer
			Next      *string `json:"next_cursor"`
		}
		for _, test := range []struct {
			args []string
			want []string
		}{
			{nil, []string{"bad", "fit", "plot"}},
			{[]string{"--status", "finished"}, []string{"fit", "plot"}},
			{[]string{"--status", "failed,running"}, []string{"bad"}},
			{[]string{"--name", "f*"}, []string{"fit"}},
			{[]string{"--label", "kind=good", "--owner", "jane", "--engine", "serial", "--since", "1h"}, []string{"fit"}},
			{[]string{"--until", "1h"}, nil},
			{[]string{"--limit", "1", "--all"}, []string{"bad", "fit", "plot"}},
		} {
			s.json(t, &list, append([]string{"list"}, test.args...)...)
			var names []string
			for _, w := range list.Workflows {
				names = append(names, w.Name)
			}
			slices.Sort(names)
			if diff := cmp.Diff(test.want, names); diff != "" {
				t.Errorf("list %q (-want, +got):\n%s", test.args, diff)
			}
		}
		// The command that a page names leads through all of them.
		seen, args := map[string]bool{}, []string{"list", "--limit", "1", "--owner", "jane", "--output", "jsonl"}
		for range 4 {
			page := s.run(t, args...).want(t, exitOK)
			var w statusAnswer
			decodeJSON(t, page.stdout, &w)
			seen[w.Name] = true
			_, more, found := strings.Cut(page.stderr, "more follow: waymark ")
			if !found {
				break
			}
			args = strings.Fields(more)
		}
		if diff := cmp.Diff(map[string]bool{"bad": true, "fit": true, "plot": true}, seen); diff != "" {
			t.Errorf("following the pages (-want, +got):\n%s", diff)
		}
		s.run(t, "list", "--cursor", "nonsense").want(t, exitUsage)
		s.run(t, "list", "--name", "\xff").want(t, exitUsage)
		s.run(t, "status", "\xff").want(t, exitNotFound)
	})

	t.Run("jobs", func(t *testing.T) {
		var jobs struct {
			Jobs []struct {
				Name, Status string
				ExitCode     *int `json:"exit_code"`
			}
		}
		s.json(t, &jobs, "jobs", "bad")
		got := make(map[string]string)
		for _, j := range jobs.Jobs {
			got[j.Name] = j.Status
		}
		if diff := cmp.Diff(map[string]string{"step1": "finished", "step2": "failed"}, got); diff != "" && got["step3"] == "" {
			t.Errorf("jobs of the failed run (-want, +got):\n%s", diff)
		}
		if table := s.run(t, "jobs", "bad", "--status", "failed").want(t, exitOK).stdout; !strings.Contains(table, "step2") || strings.Contains(table, "step1") {
			t.Errorf("jobs --status failed:\n%s", table)
		}
	})

	t.Run("logs", func(t *testing.T) {
		all := s.run(t, "logs", "fit", "--all-jobs").want(t, exitOK).stdout
		if !strings.Contains(all, `a\x1b[31mb`+"\n") || strings.Contains(all, "\x1b") {
			t.Errorf("the logs are not harmless:\n%q", all)
		}
		raw := s.run(t, "logs", "fit", "--all-jobs", "--raw").want(t, exitOK).stdout
		if !strings.Contains(raw, "a\x1b[31mb\n") {
			t.Errorf("the raw logs are not:\n%q", raw)
		}
		for ref, want := range map[string]string{"step1": "hello\n", "step2": `a\x1b[31mb` + "\n"} {
			if got := s.run(t, "logs", "fit", "--job", ref).want(t, exitOK).stdout; got != want {
				t.Errorf("the log of job %s is %q, want %q", ref, got, want)
			}
		}
		if got := s.run(t, "logs", "fit", "--job", "step9").want(t, exitNotFound); !strings.Contains(got.stderr, `job "step9": not found`) {
			t.Errorf("the log of a job that is not there: %q", got.stderr)
		}
		if tail := s.run(t, "logs", "bad", "--tail", "1").want(t, exitOK).stdout; strings.Count(tail, "\n") != 1 {
			t.Errorf("the last line of the log is %q", tail)
		}
		var logs struct{ Logs []logView }
		s.json(t, &logs, "logs", "fit")
		if len(logs.Logs) == 0 || logs.Logs[0].Text == "" {
			t.Errorf("logs --json = %+v, want the chunks of the run", logs)
		}
		followed := s.run(t, "logs", "fit", "--all-jobs", "--follow").want(t, exitOK).stdout
		if followed != all {
			t.Errorf("the log of a run that has ended, followed (-want, +got):\n%s", cmp.Diff(all, followed))
		}
	})

	t.Run("history", func(t *testing.T) {
		var history struct{ History []historyView }
		s.json(t, &history, "history", "bad")
		var statuses []string
		for _, h := range history.History {
			statuses = append(statuses, h.Status)
		}
		if diff := cmp.Diff([]string{"queued", "running", "failed"}, statuses); diff != "" {
			t.Errorf("history (-want, +got):\n%s", diff)
		}
	})

	t.Run("watch", func(t *testing.T) {
		for ref, code := range map[string]int{"fit": exitOK, "bad": exitFailed, "nobody": exitNotFound} {
			s.run(t, "watch", ref).want(t, code)
		}
		s.run(t, "watch", "fit", "bad").want(t, exitFailed)
	})

	t.Run("ledger", func(t *testing.T) {
		var ledger struct {
			Balanced bool
			Queues   []ledgerView
		}
		s.json(t, &ledger, "ledger")
		if !ledger.Balanced || len(ledger.Queues) != 2 {
			t.Fatalf("ledger = %+v, want two queues in balance", ledger)
		}
		for _, q := range ledger.Queues {
			if q.Received == 0 || q.Dead != 0 || q.Waiting == nil || *q.Waiting.Ready != 0 || *q.Waiting.Consumers != 1 || *q.Waiting.DeadLetters != 0 {
				t.Errorf("ledger of %s = %+v, want all received, none dead or waiting, one consumer", q.Queue, q)
			}
		}
		s.environment["WAYMARK_BROKER_URL"] = "amqp://127.0.0.1:1/"
		defer func() { s.environment["WAYMARK_BROKER_URL"] = s.amqp }()
		if got := s.run(t, "ledger").want(t, exitOK); !strings.Contains(got.stderr, "queue depths are unknown: ") || !strings.Contains(got.stdout, "yes") {
			t.Errorf("ledger without the broker: %s%s", got.stdout, got.stderr)
		}
	})

	t.Run("endpoints", func(t *testing.T) {
		url := server.url(t)
		if code, body := httpGet(t, url+"/healthz"); code != http.StatusOK {
			t.Errorf("/healthz: %d %s", code, body)
		}
		if code, body := httpGet(t, url+"/metrics"); code != http.StatusOK || !strings.Contains(body, "waymark_") {
			t.Errorf("/metrics: %d, without metrics of ours", code)
		}
	})
	server.stop(t, exitOK)
}

// traces are the messages of many runs, in an order that mixes them.
func traces(runs int) string {
	var b strings.Builder
	began := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for step := range 6 {
		for n := range runs {
			id := uuid.NewSHA1(uuid.NameSpaceURL, fmt.Appendf(nil, "run %d", n))
			at := began.Add(time.Duration(step) * time.Second).Format(time.RFC3339)
			status, section, jobs := 1, "running", []string{fmt.Sprint("job", step)}
			switch {
			case step == 0:
				section, jobs = "total", []string{"job1", "job2", "job3", "job4"}
			case step == 5 && n%3 == 0:
				status, section, jobs = 3, "failed", []string{"job4"}
			case step == 5:
				status, section, jobs = 2, "finished", []string{"job1", "job2", "job3", "job4"}
			}
			ids, _ := json.Marshal(jobs) // strings always marshal
			fmt.Fprintf(&b, `{"workflow_uuid": %q, "status": %d, "logs": "step %d", "event_time": %q, "message": {"progress": {%q: {"total": %d, "job_ids": %s}}}}`+"\n",
				id, status, step, at, section, len(jobs), ids)
		}
	}
	return b.String()
}

// settled waits until everything published was received.
func (s *site) settled(t testing.TB, queue string, received int64) ledgerView {
	t.Helper()
	var entry ledgerView
	servicetest.Eventually(t, patience, fmt.Sprintf("%d messages of %s are received", received, queue), func() error {
		var ledger struct{ Queues []ledgerView }
		s.json(t, &ledger, "ledger")
		for _, q := range ledger.Queues {
			if q.Queue == queue {
				entry = q
			}
		}
		if entry.Received < received {
			return fmt.Errorf("%d so far", entry.Received)
		}
		return nil
	})
	return entry
}

// rows are all workflows and their jobs, without what the database's clock says.
func (s *site) rows(t testing.TB) (rows []map[string]any) {
	t.Helper()
	for line := range strings.SplitSeq(strings.TrimSpace(s.run(t, "list", "--all", "--limit", "1000", "--output", "jsonl").want(t, exitOK).stdout), "\n") {
		var row map[string]any
		decodeJSON(t, line, &row)
		for _, key := range []string{"created_at", "updated_at", "revision"} {
			delete(row, key)
		}
		var jobs struct{ Jobs []map[string]any }
		s.json(t, &jobs, "jobs", row["id"].(string))
		row["jobs"] = jobs.Jobs
		row["log"] = s.run(t, "logs", row["id"].(string)).want(t, exitOK).stdout
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b map[string]any) int { return strings.Compare(a["id"].(string), b["id"].(string)) })
	return rows
}

func TestTwoServersGiveTheRowsOfOne(t *testing.T) {
	t.Parallel()
	const runs = 40
	messages := writeFile(t, "messages.jsonl", traces(runs))
	var rows [][]map[string]any
	for servers := 1; servers <= 2; servers++ {
		s := newSite(t)
		for range servers {
			s.serve(t, "--consumer-batch-size", "7", "--consumer-prefetch", "10")
		}
		got := s.run(t, "publish", "status", messages).want(t, exitOK)
		if want := fmt.Sprintf("published %d, confirmed %d, invalid 0\n", 6*runs, 6*runs); got.stdout != want {
			t.Errorf("publish says %q, want %q", got.stdout, want)
		}
		if e := s.settled(t, s.status, 6*runs); e.Received != 6*runs || e.Dead != 0 || !e.Balanced {
			t.Errorf("%d servers: ledger %+v, want %d received, none dead", servers, e, 6*runs)
		}
		rows = append(rows, s.rows(t))
	}
	if len(rows[0]) != runs {
		t.Errorf("%d workflows, want %d", len(rows[0]), runs)
	}
	if diff := cmp.Diff(rows[0], rows[1]); diff != "" {
		t.Errorf("rows of one server and of two (-one, +two):\n%s", diff)
	}
}

// channel is a raw AMQP channel, as somebody else would use it.
func (s *site) channel(t testing.TB) *amqp.Channel {
	t.Helper()
	conn, err := amqp.Dial(s.amqp)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

func sendRaw(t testing.TB, ch *amqp.Channel, queue, id string, body []byte) {
	t.Helper()
	if err := ch.PublishWithContext(t.Context(), "", queue, false, false, amqp.Publishing{MessageId: id, Body: body}); err != nil {
		t.Fatal(err)
	}
}

// deadLetters waits until so many dead letters are there.
func (s *site) deadLetters(t testing.TB, n int) (letters []letterView) {
	t.Helper()
	servicetest.Eventually(t, patience, fmt.Sprintf("%d dead letters", n), func() error {
		var list struct {
			Letters []letterView `json:"dead_letters"`
		}
		s.json(t, &list, "dead-letters", "list", "--each")
		if letters = list.Letters; len(letters) != n {
			return fmt.Errorf("there are %d", len(letters))
		}
		return nil
	})
	return letters
}

func TestDeadLetters(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(t, "--consumer-unknown-workflows", "dead-letter")
	ch := s.channel(t)

	hostile := []byte("{\"status\": \"\x1b[2J\", \"half")
	broken, early := uuid.NewString(), uuid.NewString()
	sendRaw(t, ch, s.status, broken, hostile)
	sendRaw(t, ch, s.status, early, []byte(goodStatus))
	letters := s.deadLetters(t, 2)

	// It works without the database.
	without := environment{}
	for name, text := range s.environment {
		if !strings.HasPrefix(name, "WAYMARK_DATABASE") {
			without[name] = text
		}
	}
	var groups struct{ Groups []letterGroup }
	decodeJSON(t, without.run(t, "dead-letters", "list", "--json").want(t, exitOK).stdout, &groups)
	reasons := make(map[string]int)
	for _, g := range groups.Groups {
		reasons[g.Reason] = g.Messages
		if g.FirstSeen == nil || g.LastSeen == nil || g.Queue != s.status {
			t.Errorf("group %+v: want when it was seen, and the queue %s", g, s.status)
		}
	}
	if diff := cmp.Diff(map[string]int{"not-json": 1, consumer.ReasonUnknownWorkflow: 1}, reasons); diff != "" {
		t.Errorf("reasons (-want, +got):\n%s", diff)
	}
	for _, l := range letters {
		if l.Count != 1 || l.Error == nil {
			t.Errorf("dead letter %+v: want that it died once, and why", l)
		}
	}

	shown := without.run(t, "dead-letters", "show", broken[:13]).want(t, exitOK).stdout
	if !strings.Contains(shown, `\x1b[2J`) || strings.Contains(shown, "\x1b") || !strings.Contains(shown, "not-json") {
		t.Errorf("show is not harmless, or lacks the reason:\n%q", shown)
	}
	if raw := without.run(t, "dead-letters", "show", broken, "--raw").want(t, exitOK).stdout; raw != string(hostile) {
		t.Errorf("show --raw = %q, want the body %q", raw, hostile)
	}
	without.run(t, "dead-letters", "show", "ffff-no-such").want(t, exitNotFound)
	without.run(t, "dead-letters", "show", "ff").want(t, exitUsage)

	// A replay that cannot help says so, and the letter is back, once.
	var replayed struct{ Replayed []verdict }
	decodeJSON(t, s.run(t, "dead-letters", "replay", broken, "--json").want(t, exitFailed).stdout, &replayed)
	if v := replayed.Replayed; len(v) != 1 || v[0].Outcome != "dead" || v[0].Reason == nil || *v[0].Reason != "not-json" {
		t.Errorf("the verdict on a broken message: %+v, want dead again because of not-json", v)
	}
	for _, l := range s.deadLetters(t, 2) {
		if l.ID == broken && l.Count != 2 {
			t.Errorf("the broken message died %d times, want 2", l.Count)
		}
	}

	// One whose reason is gone is applied.
	s.runWith(t.Context(), `{"user": "jane", "workflow_id_or_name": "2fb6b2f0-7c94-4ddc-9a5d-5d2b8b6e1f6c", "name": "late"}`, "publish", "submission").want(t, exitOK)
	s.awaitStatus(t, "late", "queued")
	decodeJSON(t, s.run(t, "dead-letters", "replay", "--reason", consumer.ReasonUnknownWorkflow, "--json").want(t, exitOK).stdout, &replayed)
	if diff := cmp.Diff([]verdict{{ID: early, Queue: s.status, Outcome: "applied"}}, replayed.Replayed); diff != "" {
		t.Errorf("the verdict on a message whose reason is gone (-want, +got):\n%s", diff)
	}
	s.awaitStatus(t, "late", "running")

	// A second copy of it has no second effect.
	sendRaw(t, ch, broker.DeadLetter(s.status), early, []byte(goodStatus))
	s.deadLetters(t, 2)
	decodeJSON(t, s.run(t, "dead-letters", "replay", early, "--json").want(t, exitOK).stdout, &replayed)
	if v := replayed.Replayed; len(v) != 1 || v[0].Outcome != "duplicate" {
		t.Errorf("the verdict on a copy: %+v, want duplicate", v)
	}

	// Nor do a crash's several letters of one id keep a replay waiting.
	twice, hopeless := uuid.NewString(), uuid.NewString()
	for range 2 {
		sendRaw(t, ch, broker.DeadLetter(s.status), twice, []byte(strings.Replace(goodStatus, `"status": 1`, `"status": 2`, 1)))
		sendRaw(t, ch, broker.DeadLetter(s.status), hopeless, hostile)
	}
	s.deadLetters(t, 5)
	decodeJSON(t, s.run(t, "dead-letters", "replay", twice, hopeless, "--json").want(t, exitFailed).stdout, &replayed)
	ended := make(map[string]int)
	for _, v := range replayed.Replayed {
		ended[v.ID[:8]+" "+v.Outcome]++
	}
	if diff := cmp.Diff(map[string]int{twice[:8] + " applied": 1, twice[:8] + " duplicate": 1, hopeless[:8] + " dead": 2}, ended); diff != "" {
		t.Errorf("the verdicts on two letters of one id (-want, +got):\n%s", diff)
	}

	// What --limit keeps from being looked at is not said not to be there.
	if got := without.run(t, "dead-letters", "show", "ffff-no-such", "--limit", "1").want(t, exitNotFound); !strings.Contains(got.stderr, "among the first 1; raise --limit") {
		t.Errorf("show with a limit says %q, want that there are more", got.stderr)
	}
	if got := s.run(t, "dead-letters", "discard", hopeless, "--yes").want(t, exitOK); got.stdout != "discarded 2\n" {
		t.Errorf("discard of two letters of one id says %q", got.stdout)
	}
	if got := s.run(t, "dead-letters", "discard", broken, "--yes").want(t, exitOK); got.stdout != "discarded 1\n" {
		t.Errorf("discard says %q", got.stdout)
	}
	s.deadLetters(t, 0)
	s.run(t, "dead-letters", "replay", "--reason", "not-json").want(t, exitNotFound)
	s.run(t, "dead-letters", "replay", "--all").want(t, exitOK)

	if got := without.run(t, "dead-letters", "replay", "--all").want(t, exitOK); got.stdout != "" {
		t.Errorf("a replay of nothing says %q", got.stdout)
	}
}

// Two replays at once share the letters; none is published twice.
func TestTwoReplaysAtOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ch := s.channel(t)
	for _, queue := range []string{s.status, broker.DeadLetter(s.status)} {
		if _, err := ch.QueueDeclare(queue, true, false, false, false, nil); err != nil {
			t.Fatal(err)
		}
	}
	const letters = 200
	for range letters {
		sendRaw(t, ch, broker.DeadLetter(s.status), uuid.NewString(), []byte(goodStatus))
	}
	servicetest.Eventually(t, patience, "the letters are in the queue", func() error {
		q, err := ch.QueueDeclarePassive(broker.DeadLetter(s.status), true, false, false, false, nil)
		if err == nil && q.Messages != letters {
			err = fmt.Errorf("there are %d", q.Messages)
		}
		return err
	})
	delete(s.environment, "WAYMARK_DATABASE_URL")
	var wg sync.WaitGroup
	outcomes := make([]outcome, 2)
	for i := range outcomes {
		wg.Go(func() { outcomes[i] = s.run(t, "dead-letters", "replay", "--all", "--json") })
	}
	wg.Wait()
	total := 0
	for _, o := range outcomes {
		o.want(t, exitOK)
		var replayed struct{ Replayed []verdict }
		decodeJSON(t, o.stdout, &replayed)
		for _, v := range replayed.Replayed {
			if v.Outcome != "unknown" {
				t.Errorf("without the database the outcome of %s is %s, want unknown", v.ID, v.Outcome)
			}
		}
		total += len(replayed.Replayed)
	}
	seen := make(map[string]bool)
	for {
		d, ok, err := ch.Get(s.status, true)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		if seen[d.MessageId] {
			t.Errorf("message %s was replayed twice", d.MessageId)
		}
		seen[d.MessageId] = true
	}
	if total != letters || len(seen) != letters {
		t.Errorf("the two replays tell of %d messages and the queue holds %d, want %d", total, len(seen), letters)
	}
}

// The bytes of REANA's serial engine, on a queue as its components declare it.
func TestReanaTopology(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../testdata/reana/serial/*.jsonl")
	if err != nil || len(files) == 0 {
		t.Fatalf("no recordings of REANA's serial engine: %v", err)
	}
	s := newSite(t)
	s.environment["WAYMARK_BROKER_TOPOLOGY"] = "reana"
	ch := s.channel(t)
	declare := func() {
		// As kombu does before every publish; a 406 would close the channel.
		if _, err := ch.QueueDeclare(s.status, false, false, false, false, nil); err != nil {
			t.Fatalf("REANA's declaration of the queue: %v", err)
		}
	}
	declare()
	s.serve(t)

	sent, last := 0, make(map[string]int)
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		id := uuid.NewString() // all recordings have the same
		for line := range strings.Lines(string(content)) {
			var recorded struct {
				Body    string `json:"wire_body"`
				Decoded struct {
					ID     string `json:"workflow_uuid"`
					Status int
				}
			}
			decodeJSON(t, line, &recorded)
			if recorded.Body == "" {
				continue
			}
			declare()
			sendRaw(t, ch, s.status, "", []byte(strings.ReplaceAll(recorded.Body, recorded.Decoded.ID, id)))
			last[id] = recorded.Decoded.Status
			sent++
		}
	}
	if sent == 0 {
		t.Fatal("the recordings hold no messages")
	}
	if e := s.settled(t, s.status, int64(sent)); e.Dead != 0 || e.Received != int64(sent) {
		t.Errorf("ledger %+v, want %d received and none dead", e, sent)
	}
	words := map[int]string{1: "running", 2: "finished", 3: "failed", 5: "stopped"}
	for id, number := range last {
		var got statusAnswer
		s.json(t, &got, "status", id)
		if got.Status != words[number] {
			t.Errorf("run %s is %s, want %s", id, got.Status, words[number])
		}
	}
	// Submissions are the platform's there.
	if q, err := inspect(dialRaw(t, s.amqp), s.submission); err != nil || (q != nil && q.Consumers > 0) {
		t.Errorf("the submission queue is consumed: %+v, %v", q, err)
	}
}

func dialRaw(t testing.TB, url string) *amqp.Connection {
	t.Helper()
	conn, err := amqp.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestPublishReportsInvalid(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	reanas, err := json.Marshal(goodStatus)
	if err != nil {
		t.Fatal(err)
	}
	in := goodStatus + "\n" + badStatus + "\nnonsense\n" + string(reanas) + "\n"
	got := s.runWith(t.Context(), in, "publish", "status", "-").want(t, exitFailed)
	if got.stdout != "published 2, confirmed 2, invalid 2\n" {
		t.Errorf("publish says %q", got.stdout)
	}
	for _, want := range []string{"standard input:2: /status: ", "standard input:3: not-json: "} {
		if !strings.Contains(got.stderr, want) {
			t.Errorf("standard error lacks %q:\n%s", want, got.stderr)
		}
	}
	q, err := inspect(dialRaw(t, s.amqp), s.status)
	if err != nil || q == nil || q.Messages != 2 {
		t.Errorf("the queue holds %+v (%v), want the two valid messages", q, err)
	}
}

func TestServersOutOfReach(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	with := func(name, text string) environment {
		e := environment{"WAYMARK_PUBLISHER_TIMEOUT": "2s"}
		for n, v := range s.environment {
			e[n] = v
		}
		e[name] = text
		return e
	}
	marker := filepath.Join(t.TempDir(), "ran")
	wrong := strings.Replace(s.amqp, "@", "X@", 1)
	tests := []struct {
		name string
		env  environment
		args []string
		want string
	}{
		{"no database", with("WAYMARK_DATABASE_URL", "postgres://x:s3cret@127.0.0.1:1/x"), []string{"list"}, "refused"},
		{"schema not migrated", s.environment, []string{"list"}, "waymark migrate"},
		{"no broker", with("WAYMARK_BROKER_URL", "amqp://x:s3cret@127.0.0.1:1/"), []string{"dead-letters", "list"}, "refused"},
		{"no broker to publish to", with("WAYMARK_BROKER_URL", "amqp://x:s3cret@127.0.0.1:1/"), []string{"publish", "status"}, "refused"},
		{"wrong password", with("WAYMARK_BROKER_URL", wrong), []string{"publish", "status"}, "password"},
		{"no broker, and one required", with("WAYMARK_BROKER_URL", "amqp://127.0.0.1:1/"), []string{"run", "serial", "--require-broker", "-f", reanaYAML(t, "touch "+marker)}, "refused"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := test.env.run(t, test.args...).want(t, exitUnreachable)
			last := got.stderr[strings.LastIndex(strings.TrimSuffix(got.stderr, "\n"), "\n")+1:]
			if !strings.HasPrefix(last, "waymark: ") || !strings.Contains(last, test.want) {
				t.Errorf("standard error ends with %q, want one line that says %q", last, test.want)
			}
			if strings.Contains(got.stderr, "s3cret") || strings.Contains(got.stderr, wrong) {
				t.Errorf("standard error holds the password: %s", got.stderr)
			}
		})
	}
	if _, err := os.Stat(marker); err == nil {
		t.Error("a command ran without the broker that was required")
	}
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	pending := s.run(t, "migrate", "--dry-run").want(t, exitOK).stdout
	if !strings.HasPrefix(pending, "pending ") {
		t.Errorf("migrate --dry-run of an empty schema says %q", pending)
	}
	if applied := s.run(t, "migrate").want(t, exitOK).stdout; applied != strings.ReplaceAll(pending, "pending", "applied") {
		t.Errorf("migrate says %q after a dry run that said %q", applied, pending)
	}
	if again := s.run(t, "migrate").want(t, exitOK).stdout; !strings.Contains(again, "up to date") {
		t.Errorf("a second migrate says %q", again)
	}

	// A later waymark has been here.
	conn, err := pgx.Connect(t.Context(), s.database.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), `INSERT INTO schema_migrations (version_id, is_applied) VALUES (99999, true)`); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"serve"}, {"migrate"}, {"list"}} {
		if got := s.run(t, args...).want(t, exitUnreachable); !strings.Contains(got.stderr, "upgrade waymark") {
			t.Errorf("waymark %s with a newer database says %q", args, got.stderr)
		}
	}
}

func TestServeWaitsForServers(t *testing.T) {
	t.Parallel()
	env := environment{
		"WAYMARK_BROKER_URL": "amqp://x:s3cret@127.0.0.1:1/", "WAYMARK_DATABASE_URL": "postgres://x:s3cret@127.0.0.1:1/x", "WAYMARK_HTTP_LISTEN": "127.0.0.1:0",
	}
	p := env.start(t, "serve")
	url := p.url(t)
	servicetest.Eventually(t, patience, "readiness names the database", func() error {
		code, body := httpGet(t, url+"/readyz")
		var ready readiness
		decodeJSON(t, body, &ready)
		if code != http.StatusServiceUnavailable || ready.Ready || ready.Database.Error == nil || !strings.Contains(*ready.Database.Error, "refused") {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	if code, _ := httpGet(t, url+"/healthz"); code != http.StatusOK {
		t.Errorf("/healthz says %d while the process lives", code)
	}
	p.stop(t, exitOK)
	if text := p.stderr.String(); strings.Contains(text, "s3cret") || strings.Count(text, "waiting for the database") != 1 {
		t.Errorf("the log holds the password, or the same reason more than once:\n%s", text)
	}
}

func TestServeBrokerAway(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.environment["WAYMARK_BROKER_URL"] = "amqp://127.0.0.1:1/"
	p := s.start(t, "serve")
	url := p.url(t)
	servicetest.Eventually(t, patience, "readiness tells broker and database apart", func() error {
		_, body := httpGet(t, url+"/readyz")
		var ready readiness
		decodeJSON(t, body, &ready)
		if ready.Ready || !ready.Database.OK || ready.Broker.Error == nil || !strings.Contains(*ready.Broker.Error, "refused") {
			return errors.New(body)
		}
		return nil
	})
	p.stop(t, exitOK)
}

func TestServeAddressInUse(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	first := s.serve(t)
	taken := strings.TrimPrefix(first.url(t), "http://")
	got := s.run(t, "serve", "--http-listen", taken).want(t, exitFailed)
	if want := "waymark: http.listen: " + taken + " is in use, maybe by another waymark serve: choose another with --http-listen, or off\n"; got.stderr != want {
		t.Errorf("standard error %q, want %q", got.stderr, want)
	}
}

func TestWatchEveryEnd(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(t)
	ids := map[string]int{}
	var messages strings.Builder
	for status, code := range map[int]int{2: exitOK, 3: exitFailed, 4: exitStopped, 5: exitStopped} {
		id := uuid.NewString()
		ids[id] = code
		fmt.Fprintf(&messages, `{"workflow_uuid": %q, "status": %d, "logs": "", "message": {}}`+"\n", id, status)
	}
	watchers := make(map[string]*process)
	for id := range ids {
		watchers[id] = s.start(t, "watch", "--wait", id)
	}
	active := s.start(t, "watch")
	// It listens once it tells of a run that goes on.
	s.runWith(t.Context(), goodStatus, "publish", "status").want(t, exitOK)
	servicetest.Eventually(t, patience, "watch of everything tells of what runs", func() error {
		if !strings.Contains(active.stdout.String(), goodID[:8]) {
			return errors.New(active.stdout.String())
		}
		return nil
	})
	s.runWith(t.Context(), messages.String(), "publish", "status").want(t, exitOK)
	for id, code := range ids {
		if got := watchers[id].wait(t); got != code {
			t.Errorf("watch ended with %d, want %d: %s%s", got, code, watchers[id].stdout.String(), watchers[id].stderr.String())
		}
		servicetest.Eventually(t, patience, "watch of everything tells of "+id, func() error {
			if !strings.Contains(active.stdout.String(), id[:8]) {
				return errors.New(active.stdout.String())
			}
			return nil
		})
	}
	active.stop(t, exitInterrupted)
}

// A database that goes away in the middle is waited for, by all of us.
func TestWatchSurvivesTheDatabase(t *testing.T) {
	t.Parallel()
	server := servicetest.Postgres(t)
	s := newSite(t)
	s.database = servicetest.DatabaseOf(t, server.URL())
	s.environment["WAYMARK_DATABASE_URL"], s.environment["WAYMARK_DATABASE_SCHEMA"] = s.database.URL, s.database.Schema
	serve := s.serve(t)
	s.runWith(t.Context(), strings.Replace(goodStatus, `"logs": ""`, `"logs": "the beginning"`, 1), "publish", "status").want(t, exitOK)
	s.awaitStatus(t, goodID, "running")
	watching := s.start(t, "watch", goodID)
	following := s.start(t, "logs", goodID, "--follow")
	servicetest.Eventually(t, patience, "watch tells of the run", func() error {
		if !strings.Contains(watching.stdout.String(), "running") {
			return errors.New(watching.stdout.String())
		}
		return nil
	})
	servicetest.Eventually(t, patience, "logs --follow shows the beginning", func() error {
		if got := following.stdout.String(); got != "the beginning\n" {
			return errors.New(got)
		}
		return nil
	})
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	s.runWith(t.Context(), strings.Replace(goodStatus, `"status": 1, "logs": ""`, `"status": 2, "logs": "the end"`, 1), "publish", "status").want(t, exitOK)
	servicetest.Eventually(t, patience, "serve says that the database is away", func() error {
		if code, body := httpGet(t, serve.url(t)+"/readyz"); code != http.StatusServiceUnavailable || strings.Contains(body, `"database":{"ok":true`) {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code := watching.wait(t); code != exitOK {
		t.Errorf("watch ended with %d, want 0: %s", code, watching.stderr.String())
	}
	if code := following.wait(t); code != exitOK || following.stdout.String() != "the beginning\nthe end\n" {
		t.Errorf("logs --follow ended with %d and said %q", code, following.stdout.String())
	}
	if e := s.settled(t, s.status, 2); e.Received != 2 || !e.Balanced {
		t.Errorf("ledger %+v, want 2 received, in balance", e)
	}
}

func TestFollowLogs(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(t)
	id := uuid.NewString()
	say := func(status int, logs string, at time.Time) {
		s.runWith(t.Context(), fmt.Sprintf(`{"workflow_uuid": %q, "status": %d, "logs": %q, "message": {}, "event_time": %q}`, id, status, logs, at.Format(time.RFC3339)),
			"publish", "status").want(t, exitOK)
	}
	noon := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	say(1, "one", noon)
	s.awaitStatus(t, id, "running")
	p := s.start(t, "logs", id, "--follow")
	await := func(want string) {
		t.Helper()
		servicetest.Eventually(t, patience, "the log goes on", func() error {
			if got := p.stdout.String(); got != want {
				return fmt.Errorf("it is %q, want %q", got, want)
			}
			return nil
		})
	}
	await("one\n")
	say(1, "three", noon.Add(time.Minute))
	await("one\nthree\n")
	say(1, "two, late", noon.Add(time.Second))
	await("one\nthree\ntwo, late\n")
	say(2, "four", noon.Add(time.Hour))
	await("one\nthree\ntwo, late\nfour\n")
	if code := p.wait(t); code != exitOK {
		t.Errorf("following a log that has ended: exit code %d", code)
	}
}

func TestRunSerialStopped(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(t)
	marker := filepath.Join(t.TempDir(), "began")
	ctx, stop := context.WithCancelCause(t.Context())
	done := make(chan outcome, 1)
	go func() {
		done <- s.runWith(ctx, "", "run", "serial", "--name", "long", "--workspace", t.TempDir(), "-f", reanaYAML(t, "touch "+marker+"; exec sleep 1000"))
	}()
	servicetest.Eventually(t, patience, "the command runs", func() error {
		_, err := os.Stat(marker)
		return err
	})
	stop(&engines.StopError{Signal: 15})
	select {
	case got := <-done:
		got.want(t, 143)
	case <-time.After(patience):
		t.Fatal("the run does not stop")
	}
	s.awaitStatus(t, "long", "stopped")
	s.run(t, "watch", "long").want(t, exitStopped)
}

// A run is stopped by whatever stops other programs, among it that its terminal
// is closed, and its end is told.
func TestRunSerialStoppedBySignals(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(t)
	for sent, code := range map[syscall.Signal]int{syscall.SIGHUP: 129, syscall.SIGINT: 130, syscall.SIGQUIT: 131, syscall.SIGTERM: 143} {
		marker, id := filepath.Join(t.TempDir(), "began"), uuid.NewString()
		cmd := program(t, s.environment, "run", "serial", "-q", "--id", id, "--workspace", t.TempDir(), "-f", reanaYAML(t, "touch "+marker+"; exec sleep 1000"))
		var said strings.Builder
		cmd.Stderr = &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		servicetest.Eventually(t, patience, "the command runs", func() error {
			_, err := os.Stat(marker)
			return err
		})
		if err := cmd.Process.Signal(sent); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() != code {
			t.Errorf("after %v the run ends with %d (%v), want %d; it said:\n%s", sent, cmd.ProcessState.ExitCode(), err, code, said.String())
			continue
		}
		s.awaitStatus(t, id, "stopped")
	}
}

func TestRunSerialWithoutBroker(t *testing.T) {
	t.Parallel()
	env := environment{"HOME": t.TempDir()}
	workspace := t.TempDir()
	got := env.run(t, "run", "serial", "-q", "--workspace", workspace, "-f", reanaYAML(t, "echo hello > out; echo hello")).want(t, exitOK)
	if got.stdout != "" || !strings.Contains(got.stderr, "the run is not reported") || !strings.Contains(got.stderr, "finished") {
		t.Errorf("a run that nobody hears of says %q and %q", got.stdout, got.stderr)
	}
	for name, args := range map[string][]string{
		"no file": {"-f", "no-such.yaml"}, "no workflow": {"-f", writeFile(t, "reana.yaml", "a: b")},
		"bad parameter": {"-p", "x"}, "bad id": {"--id", "x", "-f", reanaYAML(t, "true")}, "unknown step": {"-o", "FROM=nope", "-f", reanaYAML(t, "true")},
	} {
		if o := env.run(t, append([]string{"run", "serial"}, args...)...); o.code != exitUsage || strings.Count(o.stderr, "\n") != 1 {
			t.Errorf("%s: exit code %d, want %d and one line:\n%s", name, o.code, exitUsage, o.stderr)
		}
	}
}

// dev starts servers of its own, whatever runs on this machine.
func TestDev(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("/tmp", "waymark-dev-") // the servers' users must reach it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	env := environment{"WAYMARK_HTTP_LISTEN": "127.0.0.1:0"}
	script := `echo "$WAYMARK_BROKER_URL $WAYMARK_DATABASE_URL"; exit 7`
	got := env.run(t, "dev", "--data", filepath.Join(dir, "data"), "--", "/bin/sh", "-c", script).want(t, 7)
	if !regexp.MustCompile(`^amqp://\S+ postgres://\S+\n$`).MatchString(got.stdout) {
		t.Errorf("the command saw %q, want the two URLs", got.stdout)
	}

	// Without a command it says what to type elsewhere, which works as it is.
	dev := env.start(t, "dev", "--data", filepath.Join(dir, "data"))
	servicetest.Eventually(t, patience, "dev says what to type", func() error {
		if hints := dev.stdout.String(); !strings.Contains(hints, "Ctrl-C here stops") {
			return fmt.Errorf("it says %q and %q", hints, dev.stderr.String())
		}
		return nil
	})
	var typed strings.Builder
	for line := range strings.Lines(dev.stdout.String()) {
		switch command, hint := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "  "); {
		case !hint, strings.Contains(command, " watch "): // which has no end
		case strings.Contains(command, " status "):
			command, _, _ = strings.Cut(command, "#")
			fmt.Fprintf(&typed, "until %s; do sleep 0.1; done\n", command) // serve may take a moment
		default:
			fmt.Fprintln(&typed, strings.Replace(command, "sleep 10", "sleep 0.1", 1))
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-euc", typed.String())
	cmd.Env, cmd.Dir = append(os.Environ(), programVariable+"=1", "HOME="+t.TempDir()), t.TempDir()
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "hello#1  ") {
		t.Errorf("typing\n%s\n%v\n%s", typed.String(), err, out)
	}
	dev.stop(t, exitOK)
}
