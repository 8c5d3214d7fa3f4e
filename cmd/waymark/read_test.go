package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"waymark/internal/broker"
	"waymark/internal/servicetest"
	"waymark/store"
	"waymark/workflow"
)

// applied is a database to read from, and the means to put something into it.
type applied struct {
	*site
	db     *store.DB
	number int64
}

func newApplied(t *testing.T) *applied {
	t.Helper()
	s := newSite(t)
	s.run(t, "migrate").want(t, exitOK)
	db, err := store.Open(t.Context(), store.Config{URL: s.database.URL, Schema: s.database.Schema, MaxRunLogBytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return &applied{site: s, db: db}
}

func (a *applied) apply(t *testing.T, deliveries ...workflow.Delivery) {
	t.Helper()
	a.number++
	if _, err := a.db.Apply(t.Context(), &workflow.Batch{Queue: a.status, Consumer: uuid.Max, Number: a.number, Session: uuid.Max, Deliveries: deliveries}); err != nil {
		t.Fatal(err)
	}
}

func (a *applied) submit(t *testing.T, id, owner, name string) {
	t.Helper()
	a.number++
	_, err := a.db.Apply(t.Context(), &workflow.Batch{Queue: a.submission, Consumer: uuid.Max, Number: a.number, Session: uuid.Max, Deliveries: []workflow.Delivery{
		{Submission: &workflow.Submission{User: owner, Name: name, Workflow: id, EventTime: time.Unix(a.number, 0)}}}})
	if err != nil {
		t.Fatal(err)
	}
}

func (a *applied) say(t *testing.T, m workflow.StatusMessage) {
	t.Helper()
	if m.EventTime.IsZero() {
		m.EventTime = time.Unix(a.number, 0)
	}
	a.apply(t, workflow.Delivery{Status: &m})
}

// One name of several owners is refused, with a hint, and --owner chooses.
func TestOwnerChooses(t *testing.T) {
	t.Parallel()
	a := newApplied(t)
	ada, bob, eve := uuid.NewString(), uuid.NewString(), uuid.NewString()
	a.submit(t, ada, "ada", "fit")
	a.submit(t, bob, "bob", "fit")
	a.submit(t, eve, "eve", "other")
	for id, status := range map[string]workflow.Status{ada: workflow.StatusFailed, bob: workflow.StatusFinished, eve: workflow.StatusRunning} {
		a.say(t, workflow.StatusMessage{WorkflowID: uuid.MustParse(id), Status: status, Logs: "log of " + id})
	}
	for _, command := range []string{"status", "jobs", "logs", "history", "watch"} {
		for _, ref := range []string{"fit", "fit#1"} {
			got := a.run(t, command, ref).want(t, exitNotFound)
			if !strings.Contains(got.stderr, ada) || !strings.Contains(got.stderr, bob) || !strings.Contains(got.stderr, "--owner") {
				t.Errorf("%s %s says %q, want both ids and --owner", command, ref, got.stderr)
			}
		}
		want := exitOK
		if command == "watch" {
			want = exitFailed
		}
		a.run(t, command, "fit", "--owner", "ada").want(t, want)
		got := a.run(t, command, "fit", "--owner", "eve").want(t, exitNotFound)
		if !strings.Contains(got.stderr, `workflow "fit" of "eve"`) || strings.Contains(got.stderr, ada) {
			t.Errorf("%s of a name that eve has not: %q, want that eve has none, and nothing of others", command, got.stderr)
		}
	}
	if got := a.run(t, "logs", "fit", "--owner", "bob").want(t, exitOK).stdout; got != "log of "+bob+"\n" {
		t.Errorf("logs of bob's run: %q", got)
	}
	a.run(t, "watch", "fit", "--owner", "bob").want(t, exitOK)

	// Watching everything of one owner leaves out the others.
	p := a.start(t, "watch", "--owner", "eve")
	await := func(what string) {
		t.Helper()
		servicetest.Eventually(t, patience, "watch tells of "+what, func() error {
			if !strings.Contains(p.stdout.String(), what) {
				return fmt.Errorf("it says %q", p.stdout.String())
			}
			return nil
		})
	}
	await("other#1")
	later := uuid.NewString()
	a.submit(t, later, "ada", "later")
	a.say(t, workflow.StatusMessage{WorkflowID: uuid.MustParse(later), Status: workflow.StatusRunning})
	a.say(t, workflow.StatusMessage{WorkflowID: uuid.MustParse(eve), Status: workflow.StatusFinished})
	await("finished")
	if strings.Contains(p.stdout.String(), "later") {
		t.Errorf("watch --owner eve tells of ada's run: %q", p.stdout.String())
	}
	p.stop(t, exitInterrupted)
}

// Where a run has begun anew, its jobs tell which attempt they are of.
func TestJobsTellTheAttemptOfTheRun(t *testing.T) {
	t.Parallel()
	a := newApplied(t)
	id := uuid.New()
	a.say(t, workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusFailed, Progress: workflow.Progress{Failed: workflow.JobIDs("first")}})
	head := func(args ...string) (lines []string) {
		for line := range strings.Lines(a.run(t, append([]string{"jobs", id.String()}, args...)...).want(t, exitOK).stdout) {
			lines = append(lines, strings.Join(strings.Fields(line), " "))
		}
		return lines
	}
	if d := cmp.Diff([]string{"JOB NAME STATUS EXIT ATTEMPT STARTED DURATION COMMAND", "first - failed - 1 - - -"}, head()); d != "" {
		t.Errorf("jobs of the first attempt (-want, +got):\n%s", d)
	}
	a.say(t, workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, Attempt: 2, Progress: workflow.Progress{Finished: workflow.JobIDs("second")}})
	if d := cmp.Diff([]string{"JOB NAME RUN STATUS EXIT ATTEMPT STARTED DURATION COMMAND", "first - 1 failed - 1 - - -", "second - 2 finished - 1 - - -"}, head()); d != "" {
		t.Errorf("jobs of two attempts (-want, +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"JOB NAME RUN STATUS EXIT ATTEMPT STARTED DURATION COMMAND", "second - 2 finished - 1 - - -"}, head("--run-attempt", "2")); d != "" {
		t.Errorf("jobs of the second attempt (-want, +got):\n%s", d)
	}
}

// Jobs of all times are shown, to people and to programs.
func TestJobsOfImpossibleTimes(t *testing.T) {
	t.Parallel()
	a := newApplied(t)
	id := uuid.New()
	first, last := time.Date(1, 1, 1, 0, 0, 1, 0, time.UTC), time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	a.say(t, workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, EventTime: first, Jobs: []workflow.JobReport{
		{ID: "longest", Status: workflow.JobFinished, StartedAt: first, FinishedAt: last},
		{ID: "backward", Status: workflow.JobFinished, StartedAt: last, FinishedAt: first}}})
	a.say(t, workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusFinished, EventTime: last})
	for _, command := range []string{"jobs", "status"} {
		text := a.run(t, command, id.String()).want(t, exitOK).stdout
		if !strings.Contains(text, "3652058d23h") {
			t.Errorf("%s does not show 3652058d23h:\n%s", command, text)
		}
	}
	var got struct {
		Jobs []struct {
			ID       string   `json:"id"`
			Duration *float64 `json:"duration_seconds"`
		} `json:"jobs"`
	}
	decodeJSON(t, a.run(t, "jobs", id.String(), "--json").want(t, exitOK).stdout, &got)
	for _, j := range got.Jobs {
		want := map[string]float64{"longest": 315537897598, "backward": 0}[j.ID]
		if j.Duration == nil || *j.Duration != want {
			t.Errorf("duration of job %s is %v, want %v", j.ID, j.Duration, want)
		}
	}
	for _, args := range [][]string{{"--since", "106751d"}, {"--until", "9999-12-31"}, {"--since", "0001-01-01"}, {"--since", "2562047h", "--name", `*\%_*`}, {"--all", "--limit", "1"}} {
		a.run(t, append([]string{"list", "--json"}, args...)...).want(t, exitOK)
	}
	if got := a.run(t, "list", "--until", "0001-01-01").want(t, exitOK); got.stdout != "" {
		t.Errorf("what was heard of before year 1: %q, want nothing", got.stdout)
	}
	for _, cursor := range []string{"%", "e30", "bnVsbA", "e30x", store.LogCursor(workflow.LogEntry{Seq: 1})} {
		if got := a.run(t, "list", "--cursor", cursor).want(t, exitUsage); !strings.Contains(got.stderr, "not a cursor of this list") {
			t.Errorf("list with cursor %q says %q", cursor, got.stderr)
		}
	}
}

// A log says who wrote: the job by its name, and the attempt of a run that has
// begun anew.
func TestLogsSayWhoWrote(t *testing.T) {
	t.Parallel()
	a := newApplied(t)
	id := uuid.New()
	for attempt := 1; attempt <= 2; attempt++ {
		at := time.Unix(int64(attempt*100), 0)
		a.say(t, workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, Attempt: attempt, EventTime: at, Logs: "begun\n", Jobs: []workflow.JobReport{
			{ID: "0000-a", Name: "gen", Path: "outer", Status: workflow.JobFinished, Command: "gen one", Logs: "one\n"}}})
		a.say(t, workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, Attempt: attempt, EventTime: at.Add(time.Second), Jobs: []workflow.JobReport{
			{ID: "0000-b", Name: "\x1b[2Jgen", Status: workflow.JobRunning, Logs: "two\n"}, {ID: "nameless", Status: workflow.JobRunning}}})
		a.say(t, workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, Attempt: attempt, EventTime: at.Add(2 * time.Second), Jobs: []workflow.JobReport{{ID: "nameless", Status: workflow.JobRunning, Logs: "three\n"}}})
	}
	a.say(t, workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusFinished, Attempt: 2, EventTime: time.Unix(1000, 0)})
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--all-jobs"}, `==> run <==
begun
==> job outer/gen (0000-a) <==
one
==> job \x1b[2Jgen (0000-b) <==
two
==> job nameless <==
three
==> run, attempt 2 <==
begun
==> job outer/gen (0000-a), attempt 2 <==
one
==> job \x1b[2Jgen (0000-b), attempt 2 <==
two
==> job nameless, attempt 2 <==
three
`},
		{[]string{"--all-jobs", "--tail", "2", "--follow"}, "==> job \\x1b[2Jgen (0000-b), attempt 2 <==\ntwo\n==> job nameless, attempt 2 <==\nthree\n"},
		{nil, "begun\n==> run, attempt 2 <==\nbegun\n"},
		{[]string{"--job", "0000-a"}, "one\n==> job 0000-a, attempt 2 <==\none\n"},
	} {
		if d := cmp.Diff(test.want, a.run(t, append([]string{"logs", id.String()}, test.args...)...).want(t, exitOK).stdout); d != "" {
			t.Errorf("logs %q (-want, +got):\n%s", test.args, d)
		}
	}
	lines := strings.Split(strings.TrimSpace(a.run(t, "logs", id.String(), "--follow", "--json").want(t, exitOK).stdout), "\n")
	if len(lines) != 2 || !json.Valid([]byte(lines[0])) || !json.Valid([]byte(lines[1])) {
		t.Errorf("logs --follow --json says %q, want two objects, each on a line", lines)
	}
}

// A name that several jobs have is refused, with what tells them apart.
func TestLogsOfAnAmbiguousJob(t *testing.T) {
	t.Parallel()
	a := newApplied(t)
	id := uuid.New()
	a.say(t, workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusFinished, EventTime: time.Unix(100, 0), Jobs: []workflow.JobReport{
		{ID: "0000-a", Name: "gen", Status: workflow.JobFinished, Command: "gen one", StartedAt: time.Unix(60, 0), Logs: "1\n"},
		{ID: "0000-b", Name: "gen", Status: workflow.JobFailed, Command: "gen \x1b[2J", StartedAt: time.Unix(61, 0), Logs: "2\n"},
		{ID: "0000-c", Name: "fit", Status: workflow.JobFailed, Command: "fit"}}})
	got := a.run(t, "logs", id.String(), "--job", "gen").want(t, exitNotFound)
	want := `JOB     STATUS    STARTED               COMMAND
0000-a  finished  1970-01-01T00:01:00Z  gen one
0000-b  failed    1970-01-01T00:01:01Z  gen \x1b[2J
waymark: job "gen": ambiguous: it fits 2 jobs; give --job an id, or the beginning of one
`
	if d := cmp.Diff(want, got.stderr); d != "" || got.stdout != "" {
		t.Errorf("logs of a name that two jobs have says %q and (-want, +got):\n%s", got.stdout, d)
	}
	if got := a.run(t, "logs", id.String(), "--job", "0000").want(t, exitNotFound); !strings.Contains(got.stderr, "it fits 3 jobs") || !strings.Contains(got.stderr, " fit ") {
		t.Errorf("logs of the beginning of three ids says\n%swant their names, too", got.stderr)
	}
	if got := a.run(t, "logs", id.String(), "--job", "0000-b").want(t, exitOK).stdout; got != "2\n" {
		t.Errorf("the log of the second is %q", got)
	}
	if got := a.run(t, "logs", id.String(), "--job", "fit").want(t, exitOK); got.stdout != "" || got.stderr != "nothing was logged\n" {
		t.Errorf("the log of a job that wrote nothing is %q, and %q is said", got.stdout, got.stderr)
	}
}

// Runs that nobody reports any more are found, however they are called.
func TestListStale(t *testing.T) {
	t.Parallel()
	a := newApplied(t)
	old, err := store.Open(t.Context(), store.Config{URL: a.database.URL, Schema: a.database.Schema, Now: func() time.Time { return time.Now().Add(-3 * time.Hour) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { old.Close() })
	now := a.db
	silent, ended, alive := uuid.New(), uuid.New(), uuid.New()
	a.db = old
	a.submit(t, silent.String(), "ada", "fit")
	a.say(t, workflow.StatusMessage{WorkflowID: silent, Status: workflow.StatusRunning})
	a.say(t, workflow.StatusMessage{WorkflowID: alive, Status: workflow.StatusRunning})
	a.say(t, workflow.StatusMessage{WorkflowID: ended, Status: workflow.StatusFailed})
	a.db = now
	a.say(t, workflow.StatusMessage{WorkflowID: alive, Status: workflow.StatusRunning, Logs: "a sign of life\n", EventTime: time.Unix(100, 0)})

	got := a.run(t, "list", "--stale", "1h").want(t, exitOK).stdout
	if lines := strings.Split(got, "\n"); len(lines) != 3 || !strings.HasSuffix(lines[0], "SILENT") || !strings.HasPrefix(lines[1], "fit#1 ") || !strings.HasSuffix(lines[1], " 3h00m") {
		t.Errorf("list --stale 1h:\n%swant fit#1 alone, silent for 3h00m", got)
	}
	// The manual asks the view for the same.
	found := make(map[string]bool)
	for _, manual := range []string{operations, "../../README.md"} {
		queries := blocks(readText(t, manual), "sql")
		if len(queries) == 0 {
			t.Errorf("%s has no SQL", manual)
		}
		for _, query := range queries {
			query = strings.NewReplacer("waymark.", a.database.Schema+".", "12 hours", "1 hour").Replace(query)
			rows, err := connectTo(t, a.database.URL).Query(t.Context(), query)
			if err != nil {
				t.Fatalf("%s\n%v", query, err)
			}
			all, err := pgx.CollectRows(rows, pgx.RowToMap)
			if err != nil {
				t.Errorf("%s\n%v", query, err)
			}
			for _, row := range all {
				if id, ok := row["workflow_id"].([16]byte); ok {
					found[uuid.UUID(id).String()] = true
				}
			}
		}
	}
	if d := cmp.Diff(map[string]bool{silent.String(): true}, found); d != "" {
		t.Errorf("the manual's query finds (-want, +got):\n%s", d)
	}
	for _, args := range [][]string{{"--stale", "4h"}, {"--stale", "1h", "--owner", "bob"}} {
		if got := a.run(t, append([]string{"list"}, args...)...).want(t, exitOK).stdout; got != "" {
			t.Errorf("list %q shows\n%s", args, got)
		}
	}
	if got := a.run(t, "list", "--stale", "1h", "--status", "failed", "--output", "jsonl").want(t, exitOK).stdout; !strings.Contains(got, ended.String()) || strings.Contains(got, silent.String()) {
		t.Errorf("list --stale 1h --status failed shows %q, want the run that failed", got)
	}
	if got := a.run(t, "list", "--stale", "long").want(t, exitUsage).stderr; !strings.Contains(got, "--stale: ") {
		t.Errorf("list --stale long says %q", got)
	}
}

// Of a stream --json is an object a line.
func TestWatchJSON(t *testing.T) {
	t.Parallel()
	a := newApplied(t)
	id := uuid.New()
	a.say(t, workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusFinished})
	got := a.run(t, "watch", id.String(), "--json").want(t, exitOK).stdout
	var w statusAnswer
	if decodeJSON(t, got, &w); w.Status != "finished" || strings.Count(got, "\n") != 1 {
		t.Errorf("watch --json says %q, want one object on a line", got)
	}
	if got := a.run(t, "watch", id.String(), "--json", "--output", "table").want(t, exitUsage).stderr; !strings.Contains(got, "--json and --output table") {
		t.Errorf("two formats at once: %q", got)
	}
	a.run(t, "watch", id.String(), "--json", "--output", "jsonl").want(t, exitOK)
}

// A long log is streamed: what it takes of memory does not grow with it.
func TestLogsTakeLittleMemory(t *testing.T) { // alone, as it measures the whole process
	const chunks, mebi = 64, 1 << 20
	a := newApplied(t)
	id := uuid.New()
	text := strings.Repeat(strings.Repeat("x", 1023)+"\n", mebi/1024)
	for i := range chunks {
		a.say(t, workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, EventTime: time.Unix(int64(i), 0), Logs: text})
	}
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, test := range []struct {
		args []string
		want int64 // bytes of log
	}{
		{nil, chunks * mebi}, {[]string{"--all-jobs"}, chunks*mebi + int64(len("==> run <==\n"))}, {[]string{"--tail", "10000"}, 10_000 * 1024}, {[]string{"--tail", "3"}, 3 * 1024},
	} {
		var w peak
		code := run(t.Context(), append([]string{"logs", id.String()}, test.args...), a.getenv, strings.NewReader(""), &w, &buffer{})
		if code != exitOK || w.n != test.want {
			t.Errorf("logs %q ended with %d after %d bytes, want %d after %d", test.args, code, w.n, exitOK, test.want)
		}
		if grown := int64(w.heap.Load()) - int64(before.HeapAlloc); grown > 40*mebi {
			t.Errorf("logs %q held %d MiB of 64 MiB at once, want less than 40", test.args, grown/mebi)
		}
	}
}

// peak counts what is written, and looks at the live heap now and then.
type peak struct {
	n, looked int64
	heap      atomic.Uint64
}

func (p *peak) Write(b []byte) (int, error) {
	p.n += int64(len(b))
	if p.n-p.looked >= 8<<20 || p.looked == 0 {
		p.looked = p.n
		runtime.GC() // what is left is held
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		p.heap.Store(max(p.heap.Load(), m.HeapAlloc))
	}
	return len(b), nil
}

// The last lines are the same ones, over however many pages they are spread.
func TestTailOverPages(t *testing.T) {
	t.Parallel()
	a := newApplied(t)
	id := uuid.New()
	var all []string
	for i := range 12 { // lines of a mebibyte, two in a chunk
		line := func(k int) string { return fmt.Sprintf("%02d", 2*i+k) + strings.Repeat("x", 1<<20) }
		all = append(all, line(0), line(1))
		a.say(t, workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusFinished, EventTime: time.Unix(int64(i), 0), Logs: line(0) + "\n" + line(1)})
	}
	numbers := func(lines []string) (n []string) {
		for _, l := range lines {
			n = append(n, l[:min(2, len(l))])
		}
		return n
	}
	for _, n := range []int{1, 8, 13, 25} {
		for _, more := range [][]string{nil, {"--follow"}}[:1+n%2] {
			got := a.run(t, append([]string{"logs", id.String(), "--tail", fmt.Sprint(n)}, more...)...).want(t, exitOK).stdout
			lines := strings.Split(strings.TrimSuffix(got, "\n"), "\n")
			if d := cmp.Diff(numbers(all[max(0, len(all)-n):]), numbers(lines)); d != "" {
				t.Errorf("the last %d lines %q (-want, +got):\n%s", n, more, d)
			}
		}
	}
}

// A line in a pipe is new, though what it does not show may have changed.
func TestWatchSaysNothingTwice(t *testing.T) {
	var b bytes.Buffer
	now := time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	id := uuid.MustParse("256b25f4-4cfb-4684-b7a8-73872ef455a1")
	s := &workflow.Summary{ID: id, Name: "fit", RunNumber: 1, Attempt: 1, Status: workflow.StatusRunning, StartedAt: now, UpdatedAt: now}
	w := &watcher{app: &app{now: func() time.Time { return now }}, o: &output{w: &b, format: formatTable},
		runs: map[uuid.UUID]*workflow.Summary{id: s}, order: []uuid.UUID{id}, told: map[uuid.UUID]string{}}
	for _, change := range []func(){
		func() { s.Counts = workflow.Counts{Total: 3} },
		func() { s.Counts.Running = 1 },
		func() { s.Counts.Queued, s.UpdatedAt = 1, now.Add(time.Second) },
		func() { s.Counts.Finished = 1 },
		func() { s.Attempt, s.Counts = 2, workflow.Counts{Total: 3, Finished: 1} },
		func() { s.Status, s.FinishedAt = workflow.StatusFinished, now.Add(42*time.Second) },
		func() { now = now.Add(time.Hour) },
	} {
		change()
		if err := w.show(); err != nil {
			t.Fatal(err)
		}
	}
	want := `2026-03-04T12:00:00Z  fit#1  256b25f4  running  0/3
2026-03-04T12:00:01Z  fit#1  256b25f4  running  1/3
2026-03-04T12:00:01Z  fit#1  256b25f4  running  attempt 2  1/3
2026-03-04T12:00:01Z  fit#1  256b25f4  finished  attempt 2  1/3  after 42s
`
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Errorf("watch (-want, +got):\n%s", d)
	}
	// Programs are told of each change.
	b.Reset()
	w.o.format = formatJSONL
	s.Counts.Running = 1
	if err := w.show(); err != nil {
		t.Fatal(err)
	}
	if !json.Valid(b.Bytes()) {
		t.Errorf("watch --output jsonl after a job began says %q, want an object", b.String())
	}
}

// A queue that somebody else declared in another way is named.
func TestPublishNamesTheQueue(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	conn := dialRaw(t, s.amqp)
	if err := broker.Declare(conn, broker.Reana.Status(s.status)); err != nil {
		t.Fatal(err)
	}
	got := s.runWith(t.Context(), goodStatus, "publish", "status").want(t, exitUnreachable)
	if !strings.Contains(got.stderr, fmt.Sprintf("queue %q", s.status)) || !strings.Contains(got.stderr, `topology "reana"`) {
		t.Errorf("publish to a queue that is declared otherwise says %q, want the queue and the remedy", got.stderr)
	}
}
