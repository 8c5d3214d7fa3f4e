package nextflow

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"waymark/engines"
	"waymark/engines/enginetest"
	"waymark/internal/servicetest"
	"waymark/workflow"
)

// consumers are the runs that a receiver reports.
type consumers struct {
	mu   sync.Mutex
	runs map[uuid.UUID]*enginetest.Run
	// broken is what publishing returns, if it is not nil.
	broken error
}

func (c *consumers) of(id uuid.UUID) *enginetest.Run {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.runs == nil {
		c.runs = make(map[uuid.UUID]*enginetest.Run)
	}
	if c.runs[id] == nil {
		c.runs[id] = enginetest.NewRun(id)
	}
	return c.runs[id]
}

func (c *consumers) publisher(id uuid.UUID) (engines.Publisher, error) {
	return &line{c, c.of(id)}, nil
}

func (c *consumers) breakBy(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = err
}

// line is the way to one run.
type line struct {
	all *consumers
	run *enginetest.Run
}

func (l *line) fault() error {
	l.all.mu.Lock()
	defer l.all.mu.Unlock()
	return l.all.broken
}

func (l *line) Status(ctx context.Context, m *workflow.StatusMessage) error {
	if err := l.fault(); err != nil {
		return err
	}
	return l.run.Status(ctx, m)
}

func (l *line) Submission(ctx context.Context, s *workflow.Submission) error {
	if err := l.fault(); err != nil {
		return err
	}
	return l.run.Submission(ctx, s)
}

func receive(t *testing.T, cfg ReceiverConfig) (*Receiver, string) {
	t.Helper()
	r := NewReceiver(cfg)
	server := httptest.NewServer(r)
	t.Cleanup(func() {
		server.Close()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = r.Close(ctx)
	})
	return r, server.URL
}

func send(t *testing.T, url, body string) int {
	t.Helper()
	answer, err := http.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	_, _ = io.Copy(io.Discard, answer.Body)
	return answer.StatusCode
}

// body is a post of the run with a name.
func body(name, rest string) string {
	return fmt.Sprintf(`{"runId": "0b9d9d2e-5a57-4f0b-9f0c-0f4c8a6f9a11", "runName": %q, %s}`, name, rest)
}

func idOf(name string) uuid.UUID { return WorkflowID("0b9d9d2e-5a57-4f0b-9f0c-0f4c8a6f9a11", name) }

// nothingHeld waits until all that was taken is at the broker.
func nothingHeld(t *testing.T, r *Receiver) {
	t.Helper()
	servicetest.Eventually(t, time.Minute, "nothing is held", func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.held > 0 {
			return fmt.Errorf("%d bytes are held", r.held)
		}
		for id, one := range r.runs {
			if one.held != 0 || len(one.owed) > 0 {
				return fmt.Errorf("%d bytes of run %s are held, by job %v", one.held, id, one.owed)
			}
		}
		return nil
	})
}

// Nextflow posts without any wrapper.
func TestReceiver(t *testing.T) {
	t.Parallel()
	all := &consumers{}
	_, url := receive(t, ReceiverConfig{Publisher: all.publisher})
	for _, recording := range []string{"error", "ignored"} {
		engine := exec.Command(enginetest.Path(t, recordings+"/fake/nextflow"), "run", enginetest.Path(t, filepath.Join(recordings, recording)), "-with-weblog", url)
		if out, err := engine.CombinedOutput(); err != nil || strings.Contains(string(out), "WARN") {
			t.Fatalf("the engine ended with %v:\n%s", err, out)
		}
	}
	v := all.of(idOf("mad_lovelace")).Until(t, "failed", func(v enginetest.View) bool { return v.Status() == workflow.StatusFailed })
	if diff := cmp.Diff(workflow.Counts{Total: 2, Finished: 1, Failed: 1}, v.Counts()); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
	s := v.Submission
	if s == nil || s.User != "user" || s.Name != "main.nf" || s.Labels["nextflow.run"] != "mad_lovelace" || !strings.Contains(string(s.Parameters), "ttbar") {
		t.Errorf("the submission is %+v, wanted user, main.nf, a label of the run's name and the parameters", s)
	}
	if !strings.Contains(v.Log, "terminated with an error exit status (7)") {
		t.Errorf("the log is %q, wanted why it failed", v.Log)
	}
	v = all.of(WorkflowID("7f344978-999c-480d-8439-741bc7520f6a", "sad_curie")).Until(t, "finished", func(v enginetest.View) bool { return v.Status() == workflow.StatusFinished })
	if diff := cmp.Diff(workflow.Counts{Total: 3, Finished: 2, Failed: 1}, v.Counts()); diff != "" {
		t.Errorf("counts of a run with an ignored failure (-want +got):\n%s", diff)
	}
}

func TestReceiverRefusesNonsense(t *testing.T) {
	t.Parallel()
	all := &consumers{}
	_, url := receive(t, ReceiverConfig{Publisher: all.publisher})
	for _, tc := range []struct {
		name, method, kind, origin, body string
		want                             int
	}{
		{"GET", "GET", "", "", "", 405},
		{"no JSON", "POST", "application/json", "", "hello", 400},
		{"an array", "POST", "application/json", "", "[]", 400},
		{"half a post", "POST", "application/json", "", body("a", `"event": "started"`)[:40], 400},
		{"no event", "POST", "application/json", "", body("a", `"x": 1`), 400},
		{"unknown event", "POST", "application/json", "", body("a", `"event": "x"`), 400},
		{"no run", "POST", "application/json", "", `{"event": "started"}`, 400},
		{"a form", "POST", "application/x-www-form-urlencoded", "", body("a", `"event": "started"`), 415},
		{"text from a web page", "POST", "text/plain", "https://evil.example", body("a", `"event": "started"`), 415},
		{"from a web page", "POST", "application/json", "https://evil.example", body("a", `"event": "started"`), 415},
		{"huge", "POST", "application/json", "", body("a", `"event": "started", "x": "`+strings.Repeat("y", maxBody)+`"`), 413},
		{"deep", "POST", "application/json", "", `{"runId": "1", "event": "started", "x": ` + strings.Repeat("[", 100_000), 400},
	} {
		request, err := http.NewRequest(tc.method, url, strings.NewReader(tc.body))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", tc.kind)
		if tc.origin != "" {
			request.Header.Set("Origin", tc.origin)
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		answer.Body.Close()
		if answer.StatusCode != tc.want {
			t.Errorf("%s is answered with %d, wanted %d", tc.name, answer.StatusCode, tc.want)
		}
	}
	if len(all.runs) > 0 {
		t.Errorf("nonsense began %d runs", len(all.runs))
	}
}

func TestReceiverManyRuns(t *testing.T) {
	t.Parallel()
	all := &consumers{}
	_, url := receive(t, ReceiverConfig{Publisher: all.publisher})
	const runs = 50
	var group sync.WaitGroup
	for i := range runs {
		group.Go(func() {
			name := fmt.Sprintf("run%d", i)
			for _, p := range []string{
				`"event": "started"`, `"event": "process_submitted", "trace": {"task_id": 1, "name": "a", "status": "SUBMITTED"}`,
				`"event": "process_submitted", "trace": {"task_id": 1, "name": "a", "status": "SUBMITTED"}`, // some are sent twice
				`"event": "process_completed", "trace": {"task_id": 1, "name": "a", "status": "COMPLETED", "exit": 0}`,
				`"event": "completed", "metadata": {"workflow": {"success": true}}`,
				`"event": "completed", "metadata": {"workflow": {"success": false}}`, `"event": "process_submitted", "trace": {"task_id": 2, "name": "late"}`,
			} {
				if got := send(t, url, body(name, p)); got != http.StatusNoContent {
					t.Errorf("the post %s is answered with %d", p, got)
				}
			}
		})
	}
	group.Wait()
	for i := range runs {
		v := all.of(idOf(fmt.Sprintf("run%d", i))).Until(t, "finished", func(v enginetest.View) bool { return v.Status() == workflow.StatusFinished })
		if v.Counts() != (workflow.Counts{Total: 1, Finished: 1}) || v.Ends != 1 {
			t.Errorf("run %d has %+v and %d ends, wanted one finished job and one end", i, v.Counts(), v.Ends)
		}
	}
}

// A receiver that is stopped says what it knows, not that the runs ended; another
// goes on with them.
func TestReceiverRestart(t *testing.T) {
	t.Parallel()
	all := &consumers{}
	first, url := receive(t, ReceiverConfig{Publisher: all.publisher})
	send(t, url, body("a", `"event": "started"`))
	send(t, url, body("a", `"event": "process_started", "trace": {"task_id": 1, "name": "one", "status": "RUNNING"}`))
	send(t, url, body("a", `"event": "process_started", "trace": {"task_id": 2, "name": "two", "status": "RUNNING"}`))
	if err := first.Close(t.Context()); err != nil {
		t.Errorf("closing: %v", err)
	}
	v := all.of(idOf("a")).View()
	if v.Status() != workflow.StatusRunning || v.Counts().Running != 2 {
		t.Errorf("after the first receiver the run is %v with %+v, wanted running with two jobs", v.Status(), v.Counts())
	}
	if got := send(t, url, body("a", `"event": "started"`)); got != http.StatusServiceUnavailable {
		t.Errorf("a post after Close is answered with %d", got)
	}
	_, url = receive(t, ReceiverConfig{Publisher: all.publisher})
	send(t, url, body("a", `"event": "process_completed", "trace": {"task_id": 2, "name": "two", "status": "COMPLETED"}`))
	send(t, url, body("a", `"event": "process_completed", "trace": {"task_id": 1, "name": "one", "status": "COMPLETED"}`))
	send(t, url, body("a", `"event": "completed", "metadata": {"workflow": {"success": true}}`))
	v = all.of(idOf("a")).Until(t, "finished", func(v enginetest.View) bool { return v.Status() == workflow.StatusFinished })
	if v.Counts() != (workflow.Counts{Total: 2, Finished: 2}) {
		t.Errorf("the counts are %+v, wanted two finished of two", v.Counts())
	}
}

// A resumed run has the session of the one before.
func TestReceiverResume(t *testing.T) {
	t.Parallel()
	all := &consumers{}
	_, url := receive(t, ReceiverConfig{Publisher: all.publisher})
	for _, name := range []string{"first_try", "second_try"} {
		send(t, url, body(name, `"event": "started"`))
		send(t, url, body(name, fmt.Sprintf(`"event": "completed", "metadata": {"workflow": {"success": %v}}`, name == "second_try")))
	}
	all.of(idOf("first_try")).Until(t, "failed", func(v enginetest.View) bool { return v.Status() == workflow.StatusFailed })
	all.of(idOf("second_try")).Until(t, "finished", func(v enginetest.View) bool { return v.Status() == workflow.StatusFinished })
}

// While the broker is away what waits is bounded, and nothing that was taken is lost.
func TestReceiverWithoutBroker(t *testing.T) {
	t.Parallel()
	all := &consumers{broken: errors.New("away")}
	r, url := receive(t, ReceiverConfig{Publisher: all.publisher})
	script := strings.Repeat("x", maxBody/2)
	taken := 0
	for i := range 300 {
		status := send(t, url, body("a", fmt.Sprintf(`"event": "process_submitted", "trace": {"task_id": %d, "name": "t%d", "script": %q}`, i+1, i, script)))
		if status == http.StatusServiceUnavailable {
			break
		}
		taken++
	}
	if taken < maxHeld/maxBody || taken == 300 {
		t.Errorf("without the broker %d posts of 512 KiB were taken, wanted about %d", taken, 2*maxHeld/maxBody)
	}
	all.breakBy(nil)
	v := all.of(idOf("a")).Until(t, "complete", func(v enginetest.View) bool { return v.Counts().Queued == taken })
	if v.Counts().Total != taken {
		t.Errorf("the total is %d, wanted %d", v.Counts().Total, taken)
	}
	nothingHeld(t, r)
	if status := send(t, url, body("a", `"event": "started"`)); status != http.StatusNoContent {
		t.Errorf("with the broker back a post is answered with %d", status)
	}
}

// gate lets the messages of one run through one by one.
type gate struct {
	*enginetest.Run
	entered chan *workflow.StatusMessage
	pass    chan struct{}
}

func (g *gate) Status(ctx context.Context, m *workflow.StatusMessage) error {
	select {
	case g.entered <- m:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-g.pass:
	case <-ctx.Done():
		return ctx.Err()
	}
	return g.Run.Status(ctx, m)
}

// What is held is exactly what was posted and is not at the broker: a full
// message frees what it brings, and none what came while it was on its way.
func TestReceiverCountsWhatIsHeld(t *testing.T) {
	t.Parallel()
	line := &gate{enginetest.NewRun(idOf("a")), make(chan *workflow.StatusMessage), make(chan struct{})}
	r, url := receive(t, ReceiverConfig{Publisher: func(uuid.UUID) (engines.Publisher, error) { return line, nil }})
	sizes, held, underWay := make(map[string]int), 0, 0
	post := func(name, rest string) {
		t.Helper()
		p := body("a", rest)
		var line bytes.Buffer
		if err := json.Compact(&line, []byte(p)); err != nil {
			t.Fatal(err)
		}
		if status := send(t, url, p); status != http.StatusNoContent {
			t.Fatalf("a post about %s is answered with %d", name, status)
		}
		sizes[name] += line.Len()
		held += line.Len()
	}
	submitted := func(i int, script string) {
		t.Helper()
		name := fmt.Sprintf("t%d", i)
		post(name, fmt.Sprintf(`"event": "process_submitted", "trace": {"task_id": %d, "name": %q, "script": %q}`, i+1, name, script))
	}
	// on waits for the next message and checks what is held until it is through,
	// which is without the posts about its jobs that came before.
	on := func(when string) *workflow.StatusMessage {
		t.Helper()
		select {
		case m := <-line.entered:
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.held != held {
				t.Errorf("%s %d bytes are held, wanted %d", when, r.held, held)
			}
			for _, j := range m.Jobs {
				underWay += sizes[j.Name]
				sizes[j.Name] = 0
			}
			return m
		case <-time.After(time.Minute):
			t.Fatalf("%s nothing is published within a minute", when)
			return nil
		}
	}
	through := func() {
		held, underWay = held-underWay, 0
		line.pass <- struct{}{}
	}

	submitted(0, "the first")
	on("with the first message under way")
	// More than one message holds, by its jobs and by its text, while it is.
	const jobs = 1500
	for i := 1; i <= jobs; i++ {
		script := "short"
		if i > jobs-100 {
			script = strings.Repeat("x", maxScript)
		}
		submitted(i, script)
	}
	through()
	messages := 0
	for told := 0; told < jobs; messages++ {
		m := on("with a full message under way")
		told += len(m.Jobs)
		through()
	}
	submitted(0, "again")
	on("with a job told again under way")
	// Of a post with nothing to tell nothing is held.
	if status := send(t, url, body("a", `"event": "process_completed"`)); status != http.StatusNoContent {
		t.Errorf("a post without a task is answered with %d", status)
	}
	submitted(0, "and again")
	through()
	on("with what was told meanwhile under way")
	through()
	nothingHeld(t, r)
}

// Nothing that was answered with success is untold when Close returns.
func TestReceiverCloseWaitsForEnds(t *testing.T) {
	t.Parallel()
	for round := range 30 {
		all := &consumers{}
		r, url := receive(t, ReceiverConfig{Publisher: all.publisher})
		const runs = 8
		taken := make([]bool, runs)
		var group sync.WaitGroup
		for i := range runs {
			group.Go(func() {
				taken[i] = send(t, url, body(fmt.Sprint("run", i), `"event": "completed", "metadata": {"workflow": {"success": true}}`)) == http.StatusNoContent
			})
		}
		// Close as soon as the first has ended.
		for deadline, ended := time.Now().Add(time.Minute), 0; ended == 0; runtime.Gosched() {
			r.mu.Lock()
			ended = len(r.ended)
			r.mu.Unlock()
			if time.Now().After(deadline) {
				t.Fatal("after a minute no run has ended")
			}
		}
		err := r.Close(t.Context())
		group.Wait()
		if err != nil {
			t.Fatalf("closing: %v", err)
		}
		for i := range runs {
			if v := all.of(idOf(fmt.Sprint("run", i))).View(); taken[i] && v.Ends != 1 {
				t.Fatalf("round %d: Close returned while the end of run %d was not told: %d ends", round, i, v.Ends)
			}
		}
	}
}

// A run that never completes stays running, and makes room.
func TestReceiverSilence(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	now := time.Now()
	later := func(d time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		now = now.Add(d)
	}
	all := &consumers{}
	r, url := receive(t, ReceiverConfig{Publisher: all.publisher, Runs: 2, Idle: time.Hour, Now: func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}})
	started := func(name string) int { return send(t, url, body(name, `"event": "started"`)) }
	for _, name := range []string{"a", "b"} {
		if got := started(name); got != http.StatusNoContent {
			t.Fatalf("run %s is answered with %d", name, got)
		}
	}
	if got := started("c"); got != http.StatusServiceUnavailable {
		t.Errorf("one run too many is answered with %d, wanted 503", got)
	}
	later(evictable)
	started("b")
	if got := started("c"); got != http.StatusNoContent {
		t.Errorf("when run a is silent, another is answered with %d", got)
	}
	r.mu.Lock()
	_, kept := r.runs[idOf("b")]
	n := len(r.runs)
	r.mu.Unlock()
	if !kept || n != 2 {
		t.Errorf("%d runs are open, run b is among them: %v; wanted b and c", n, kept)
	}
	if v := all.of(idOf("a")).Until(t, "running", func(v enginetest.View) bool { return v.Status() == workflow.StatusRunning }); v.Ends > 0 {
		t.Error("a run that makes room has ended for readers")
	}
	if err := r.Close(t.Context()); err != nil {
		t.Errorf("closing: %v", err)
	}
}

func TestReceiverLeavesIdleRuns(t *testing.T) {
	t.Parallel()
	all := &consumers{}
	r, url := receive(t, ReceiverConfig{Publisher: all.publisher, Idle: time.Millisecond})
	send(t, url, body("a", `"event": "started"`))
	deadline := time.Now().Add(time.Minute)
	for {
		r.mu.Lock()
		n := len(r.runs)
		r.mu.Unlock()
		if n == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("after a minute the silent run is still open")
		}
		<-time.After(time.Millisecond)
	}
	send(t, url, body("a", `"event": "completed", "metadata": {"workflow": {"success": true}}`))
	v := all.of(idOf("a")).Until(t, "finished", func(v enginetest.View) bool { return v.Status() == workflow.StatusFinished })
	if v.Ends != 1 {
		t.Errorf("the run has %d ends, wanted 1", v.Ends)
	}
}

// Close returns in time though the broker is away, and says what is missing.
func TestReceiverCloseWithoutBroker(t *testing.T) {
	t.Parallel()
	all := &consumers{broken: errors.New("away")}
	r, url := receive(t, ReceiverConfig{Publisher: all.publisher})
	send(t, url, body("a", `"event": "started"`))
	send(t, url, body("b", `"event": "completed", "metadata": {"workflow": {"success": true}}`))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	err := r.Close(ctx)
	if err == nil || !strings.Contains(err.Error(), "2 runs") {
		t.Errorf("closing says %v, wanted that of two runs something is missing", err)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("closing took %v", took)
	}
	if err := r.Close(t.Context()); err != nil {
		t.Errorf("closing again: %v", err)
	}
}

// A publisher that hangs beyond the end of a run frees nothing a second time.
func TestReceiverFreesOnce(t *testing.T) {
	t.Parallel()
	r, _ := receive(t, ReceiverConfig{Publisher: (&consumers{}).publisher})
	one := &run{receiver: r, owed: make(map[string]int)}
	r.mu.Lock()
	one.held, r.held = 100, 1000
	r.mu.Unlock()
	one.untold = 60
	one.owe("a")
	one.untold = 30
	one.owe("")
	told := one.told([]workflow.JobReport{{ID: "a"}, {ID: "b"}})
	one.delivered(told, errors.New("away"))
	if one.held != 100 {
		t.Errorf("after a message that was not delivered %d bytes of the run are held, wanted 100", one.held)
	}
	one.release()
	one.delivered(told, nil)
	if one.held != 0 || r.held != 900 {
		t.Errorf("%d bytes of the run are held and %d in all, wanted 0 and 900", one.held, r.held)
	}
	r.held = 0
}
