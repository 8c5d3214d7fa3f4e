package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/servicetest"
	"waymark/workflow"
)

// answers asks /readyz until it tells what is wanted of broker and database. No
// answer may take longer than a probe waits, and /healthz never changes.
func answers(t *testing.T, url, what string, broker, database bool) (last readiness) {
	t.Helper()
	client := &http.Client{Timeout: patience}
	servicetest.Eventually(t, patience, what, func() error {
		began := time.Now()
		answer, err := client.Get(url + "/readyz")
		took := time.Since(began)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		if err != nil {
			return err
		}
		last = readiness{}
		decodeJSON(t, string(body), &last)
		// 1.5 s by design; the rest is for a machine with much to do.
		if took > 4*time.Second {
			t.Errorf("%s: /readyz took %v: %s", what, took, body)
		}
		if code, _ := httpGet(t, url+"/healthz"); code != http.StatusOK {
			t.Errorf("%s: /healthz says %d: a process that waits would be restarted", what, code)
		}
		wanted := http.StatusServiceUnavailable
		if broker && database {
			wanted = http.StatusOK
		}
		if answer.StatusCode != wanted || last.Broker.OK != broker || last.Database.OK != database {
			return fmt.Errorf("%d %s", answer.StatusCode, body)
		}
		return nil
	})
	return last
}

// A server that is frozen keeps its connections and says nothing. /readyz
// finds out, says which it is, and does not freeze itself.
func TestReadyTellsWhichServerHangs(t *testing.T) {
	t.Parallel()
	stack := servicetest.Stack(t)
	s := newSite(t)
	s.environment["WAYMARK_BROKER_URL"], s.environment["WAYMARK_DATABASE_URL"] = stack.RabbitMQ().URL(), stack.Postgres().URL()
	serve := s.serve(t)
	url := serve.url(t)
	gauges := func(what string, broker, database, ready float64) {
		t.Helper()
		servicetest.Eventually(t, patience, what+": the metrics say so", func() error {
			m := scrape(t, url)
			for name, want := range map[string]float64{"waymark_broker_up": broker, "waymark_database_up": database, "waymark_ready": ready} {
				if m[name] != want {
					return fmt.Errorf("%s is %v, want %v", name, m[name], want)
				}
			}
			return nil
		})
	}
	gauges("both answer", 1, 1, 1)

	if err := stack.Postgres().Pause(); err != nil {
		t.Fatal(err)
	}
	if got := answers(t, url, "the database hangs", true, false); got.Database.Error == nil || *got.Database.Error == "" {
		t.Errorf("no reason is given: %+v", got)
	}
	gauges("the database hangs", 1, 0, 0)
	if err := stack.Postgres().Resume(); err != nil {
		t.Fatal(err)
	}
	answers(t, url, "the database goes on", true, true)

	if err := stack.RabbitMQ().Pause(); err != nil {
		t.Fatal(err)
	}
	if got := answers(t, url, "the broker hangs", false, true); got.Broker.Error == nil || !strings.Contains(*got.Broker.Error, "does not answer") {
		t.Errorf("the reason is not that it does not answer: %+v", got.Broker)
	}
	gauges("the broker hangs", 0, 1, 0)
	if err := stack.RabbitMQ().Resume(); err != nil {
		t.Fatal(err)
	}
	answers(t, url, "the broker goes on", true, true)
	if code, _ := httpGet(t, url+"/healthz"); code != http.StatusOK {
		t.Errorf("/healthz says %d at the end", code)
	}
}

// Under an alarm the broker takes nothing from those who publish. Consuming
// goes on: nobody is to be woken for what does not stand still.
func TestReadyUnderAnAlarm(t *testing.T) {
	t.Parallel()
	broker := servicetest.RabbitMQ(t)
	s := newSite(t)
	s.environment["WAYMARK_BROKER_URL"] = broker.URL()
	serve := s.serve(t)
	url := serve.url(t)
	if out, err := broker.Ctl(t.Context(), "set_vm_memory_high_watermark", "0"); err != nil {
		t.Fatalf("raising the alarm: %v\n%s", err, out)
	}
	answers(t, url, "an alarm stops publishers only", true, true)
	if out, err := broker.Ctl(t.Context(), "set_vm_memory_high_watermark", "0.4"); err != nil {
		t.Fatalf("ending the alarm: %v\n%s", err, out)
	}
	answers(t, url, "the alarm is over", true, true)
}

// Who watches sees how many runs there are that have not ended, and for how long
// nothing was heard of one, as long as the database can be asked.
func TestActiveRunsAreTold(t *testing.T) {
	t.Parallel()
	database := servicetest.Postgres(t)
	s := newSite(t)
	s.environment["WAYMARK_DATABASE_URL"] = database.URL()
	_, url := serveProcess(t, s)
	ch := s.channel(t)
	began := time.Now()
	for i, status := range []workflow.Status{workflow.StatusRunning, workflow.StatusRunning, workflow.StatusQueued, workflow.StatusFinished} {
		id := uuid.New()
		sendRaw(t, ch, s.status, uuid.NewString(), fmt.Appendf(nil, `{"workflow_uuid": %q, "status": %d, "logs": "run %d"}`, id, status, i))
		s.awaitStatus(t, id.String(), status.String())
	}
	var m map[string]float64
	servicetest.Eventually(t, patience, "the runs are counted", func() error {
		// On a machine with much to do counting may take longer than it may.
		if m = told(t, url); math.IsNaN(m[`waymark_active_runs{status="running"}`]) {
			return errors.New("they are not")
		}
		return nil
	})
	for status, want := range map[string]float64{"running": 2, "queued": 1, "created": 0, "pending": 0} {
		if got := m[`waymark_active_runs{status="`+status+`"}`]; got != want {
			t.Errorf("%v runs are said to be %s, want %v", got, status, want)
		}
		silent, most := m[`waymark_longest_silent_run_seconds{status="`+status+`"}`], time.Since(began).Seconds()
		if want == 0 {
			most = 0
		}
		if silent < 0 || silent > most || (silent == 0) != (want == 0) {
			t.Errorf("a run that is %s is said to be silent for %v s, want more than none and at most %v", status, silent, most)
		}
	}
	if _, found := m[`waymark_active_runs{status="finished"}`]; found {
		t.Error("runs that have ended are counted")
	}

	if err := database.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	servicetest.Eventually(t, patience, "no number is told that nobody knows", func() error {
		m := told(t, url)
		for _, name := range []string{"waymark_active_runs", "waymark_longest_silent_run_seconds"} {
			for _, status := range []string{"running", "queued", "created", "pending"} {
				if got, found := m[name+`{status="`+status+`"}`]; !found || !math.IsNaN(got) {
					return fmt.Errorf("%s of %s is %v", name, status, got)
				}
			}
		}
		return nil
	})
}

// told returns the samples of /metrics, each by its name and labels.
func told(t *testing.T, url string) map[string]float64 {
	t.Helper()
	samples := map[string]float64{}
	for _, m := range exposition(t, url) {
		samples[m.name+m.labels] = m.value
	}
	return samples
}

// scrape returns the samples of /metrics, summed over their labels.
func scrape(t *testing.T, url string) map[string]float64 {
	t.Helper()
	sums := map[string]float64{}
	for _, m := range exposition(t, url) {
		sums[m.name] += m.value
	}
	return sums
}

// sample is a line of /metrics.
type sample struct {
	name, labels string
	value        float64
}

var sampleLine = regexp.MustCompile(`^([a-z_]+)(\{.*\})? (\S+)\n$`)

// exposition returns all that /metrics says.
func exposition(t *testing.T, url string) (samples []sample) {
	t.Helper()
	code, body := httpGet(t, url+"/metrics")
	if code != http.StatusOK {
		t.Fatalf("/metrics says %d: %s", code, body)
	}
	for line := range strings.Lines(body) {
		m := sampleLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		value, err := strconv.ParseFloat(m[3], 64)
		if err != nil {
			t.Fatalf("/metrics has the line %q: %v", line, err)
		}
		samples = append(samples, sample{m[1], m[2], value})
	}
	return samples
}

// A database that is away costs no processor time, and is found soon after it
// is back.
func TestWaitingForTheDatabaseCostsNothing(t *testing.T) {
	t.Parallel()
	database := servicetest.Postgres(t)
	s := newSite(t)
	s.environment["WAYMARK_DATABASE_URL"] = database.URL()
	cmd, url := serveProcess(t, s)
	if err := database.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	const count = 200
	ch := s.channel(t)
	for range count {
		sendRaw(t, ch, s.status, uuid.NewString(), fmt.Appendf(nil, `{"workflow_uuid": %q, "status": 1, "logs": "waiting"}`, uuid.New()))
	}
	failures := func() float64 { return scrape(t, url)["waymark_apply_failures_total"] }
	servicetest.Eventually(t, patience, "the outage is noticed", func() error {
		if failures() < 3 {
			return fmt.Errorf("%v tries", failures())
		}
		return nil
	})

	// From here on nobody asks anything until it has been a while.
	began, before, tries := time.Now(), processTime(t, cmd.Process.Pid), failures()
	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second)
	defer cancel()
	<-ctx.Done()
	spent, passed, tried := processTime(t, cmd.Process.Pid)-before, time.Since(began), failures()-tries
	if tried < 2 {
		t.Errorf("%v tries within %v, want one every few seconds", tried, passed)
	}
	if share := spent.Seconds() / passed.Seconds(); share > 0.02 {
		t.Errorf("waiting took %v of processor time in %v, with %v tries: %.1f %%, want no more than 2 %%", spent, passed, tried, 100*share)
	}

	if err := database.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	servicetest.Eventually(t, patience, "the messages are applied", func() error {
		if n := scrape(t, url)[`waymark_deliveries_total`]; n != count {
			return fmt.Errorf("%v of %d", n, count)
		}
		return nil
	})
	// Backoff ends at 4.5 s.
	if took := time.Since(back); took > 15*time.Second {
		t.Errorf("the database was back for %v before the messages were applied, want some 5 s", took)
	}
}

// serveProcess starts "waymark serve" as a process of its own, and waits until
// it is ready.
func serveProcess(t *testing.T, s *site) (cmd *exec.Cmd, url string) {
	t.Helper()
	p := &process{}
	cmd = program(t, s.environment, "serve")
	cmd.Stderr = &p.stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("serve wrote:\n%s", p.stderr.String())
		}
	})
	url = p.url(t)
	answers(t, url, "serve is ready", true, true)
	return cmd, url
}

// processTime is the processor time that a process has used.
func processTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	// The name of the program, in parentheses, may hold anything.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	ticks := 0
	for _, field := range fields[11:13] { // utime and stime
		n, err := strconv.Atoi(field)
		if err != nil {
			t.Fatalf("/proc/%d/stat is %q: %v", pid, text, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond // of Linux, for programs
}

// Bodies as large as the broker carries them must not fill the memory of
// serve, however long the database is away.
func TestLargeMessagesLeaveTheMemoryFlat(t *testing.T) {
	t.Parallel()
	database := servicetest.Postgres(t)
	s := newSite(t)
	s.environment["WAYMARK_DATABASE_URL"] = database.URL()
	s.environment["WAYMARK_CONSUMER_MAX_HELD_BYTES"] = strconv.Itoa(8 << 20)
	s.environment["WAYMARK_CONSUMER_DRAIN_TIMEOUT"] = "1s"
	_, url := serveProcess(t, s)
	if err := database.Pause(); err != nil {
		t.Fatal(err)
	}
	ch := s.channel(t)
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	const count, size = 150, 2 << 20
	text := strings.Repeat("x", size)
	for range count {
		confirm, err := ch.PublishWithDeferredConfirm("", s.status, true, false, amqp.Publishing{MessageId: uuid.NewString(),
			Body: fmt.Appendf(nil, `{"workflow_uuid": %q, "status": 1, "logs": %q}`, uuid.New(), text)})
		if err != nil {
			t.Fatal(err)
		}
		if ok, err := confirm.WaitContext(t.Context()); err != nil || !ok {
			t.Fatalf("publishing: %v, %v", ok, err)
		}
	}
	held, heap := 0.0, 0.0
	look := func() map[string]float64 {
		m := scrape(t, url)
		held, heap = max(held, m["waymark_held_bytes"]), max(heap, m["go_memstats_heap_inuse_bytes"])
		return m
	}
	servicetest.Eventually(t, patience, "serve holds what it may, and the queue the rest", func() error {
		if m := look(); m["waymark_queue_messages"] < count/2 || m["waymark_held_messages"] == 0 {
			return fmt.Errorf("%v messages wait in the queue, and %v are held", m["waymark_queue_messages"], m["waymark_held_messages"])
		}
		return nil
	})
	if err := database.Resume(); err != nil {
		t.Fatal(err)
	}
	servicetest.Eventually(t, patience, "it goes on", func() error {
		if n := look()["waymark_deliveries_total"]; n < 10 {
			return fmt.Errorf("%v are applied", n)
		}
		return nil
	})
	if limit := float64(2*(8<<20) + 2*size); held > limit {
		t.Errorf("%.0f bytes were held, want at most %.0f", held, limit)
	}
	// The limit that serve sets itself; the messages alone would take twice that.
	if limit := float64(serveBaseBytes + 2*serveHeldTimes*(8<<20)); heap > limit {
		t.Errorf("the heap took %.0f bytes, want at most %.0f", heap, limit)
	}
	t.Logf("at most %.0f bytes held, heap %.0f", held, heap)
}
