package publisher_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/servicetest"
	"waymark/publisher"
	"waymark/publisher/spool"
	"waymark/workflow"
)

// nowhere is the URL of a broker that is away.
const nowhere = "amqp://user:secret@127.0.0.1:1/"

func ended(logs string) *workflow.StatusMessage {
	return &workflow.StatusMessage{WorkflowID: uuid.New(), Status: workflow.StatusFinished, Logs: logs}
}

// spoolDir is the folder of a spool, which is made when it is needed.
func spoolDir(t testing.TB) string { return filepath.Join(t.TempDir(), "spool") }

// segments fails the test unless the spool has so many.
func segments(t testing.TB, dir string, want int) {
	t.Helper()
	if paths, err := spool.Segments(dir); err != nil || len(paths) != want {
		t.Errorf("the spool has the segments %q (%v), want %d", paths, err, want)
	}
}

// messageIDs of deliveries, in order.
func messageIDs(deliveries []amqp.Delivery) (ids []string) {
	for _, d := range deliveries {
		ids = append(ids, d.MessageId)
	}
	return ids
}

func TestEndIsSpooledAndDelivered(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	proxy, through := through(t, cfg.URL)
	proxy.close()
	direct := cfg.URL
	cfg.URL, cfg.Spool.Dir = through, spoolDir(t)
	var log logbook
	cfg.Logger = log.logger()
	p := start(t, cfg)

	for what, publish := range map[string]func(context.Context) error{
		"end": func(ctx context.Context) error { return p.Status(ctx, ended("")) },
		"submission": func(ctx context.Context) error {
			return p.Submission(ctx, &workflow.Submission{User: "u", Workflow: "w"})
		},
		"progress": func(ctx context.Context) error { return p.Status(ctx, message("x")) },
	} {
		err := publish(within(t, 50*time.Millisecond))
		if !errors.Is(err, publisher.ErrSpooled) || errors.Is(err, publisher.ErrNotConfirmed) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s = %v, want ErrSpooled, DeadlineExceeded and not ErrNotConfirmed", what, err)
		}
	}
	segments(t, cfg.Spool.Dir, 1)
	if diff := cmp.Diff(publisher.Report{Accepted: 3, Spooled: 3}, p.Report()); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}

	proxy.open()
	if err := p.Flush(soon(t)); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(publisher.Report{Accepted: 3, Confirmed: 3}, p.Report()); diff != "" {
		t.Errorf("report once the broker is back (-want +got):\n%s", diff)
	}
	if err := p.Close(soon(t)); err != nil {
		t.Errorf("Close = %v, want nil: all was delivered in the end", err)
	}
	segments(t, cfg.Spool.Dir, 0)
	ch := admin(t, direct)
	if s, j := depth(t, ch, cfg.Queues.Submission), depth(t, ch, cfg.Queues.Status); s != 1 || j != 2 {
		t.Errorf("%d submissions and %d statuses are in the queues, want 1 and 2", s, j)
	}
	if text := log.String(); strings.Count(text, "kept on disk: ") > 1 || strings.Count(text, "messages are kept on disk\"") != 1 || !strings.Contains(text, "are delivered") {
		t.Errorf("the log should say once that messages are kept, and that they are delivered:\n%s", text)
	}
}

// A broker that is there and says nothing: the end is on disk although nobody
// has given up, and off it when the broker speaks.
func TestWriteAhead(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	proxy, through := through(t, cfg.URL)
	cfg.URL, cfg.Spool.Dir = through, spoolDir(t)
	p := start(t, cfg)
	if err := p.Ready(soon(t)); err != nil {
		t.Fatal(err)
	}
	if err := p.Status(soon(t), ended("quick")); err != nil {
		t.Fatal(err)
	}
	segments(t, cfg.Spool.Dir, 0)
	proxy.ignore()
	began := time.Now()
	r, err := p.SendStatus(soon(t), ended(""))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.SendStatus(soon(t), message("progress is not written ahead")); err != nil {
		t.Fatal(err)
	}
	servicetest.Eventually(t, patience, "the end to be on disk", func() error {
		if report := p.Report(); report.Spooled != 1 || report.InFlight != 1 {
			return fmt.Errorf("report %+v, want 1 spooled and 1 in flight", report)
		}
		return nil
	})
	if took := time.Since(began); took < 500*time.Millisecond || took > 10*time.Second {
		t.Errorf("it took %s, want about a second", took)
	}
	if err := r.Wait(within(t, time.Millisecond)); !errors.Is(err, publisher.ErrSpooled) {
		t.Errorf("Wait = %v, want ErrSpooled for now", err)
	}
	proxy.hear()
	if err := r.Wait(soon(t)); err != nil {
		t.Error(err)
	}
	servicetest.Eventually(t, patience, "the spool to be empty", func() error {
		if paths, _ := spool.Segments(cfg.Spool.Dir); len(paths) > 0 {
			return fmt.Errorf("it holds %q", paths)
		}
		return nil
	})
	balanced(t, p.Report())
}

// What Close cannot deliver, another publisher does, in order and once.
func TestCloseSpoolsAndDrainDelivers(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	direct := cfg.URL
	cfg.URL, cfg.Spool.Dir = nowhere, spoolDir(t)
	var want []string
	for range 3 {
		p := start(t, cfg)
		var receipts []*publisher.Receipt
		for i := range 50 {
			m := message(fmt.Sprint(i))
			if i%10 == 9 {
				m = ended("")
			}
			r, err := p.SendStatus(soon(t), m)
			if err != nil {
				t.Fatal(err)
			}
			receipts, want = append(receipts, r), append(want, r.MessageID())
		}
		raw, err := p.SendRaw(soon(t), cfg.Queues.Status, []byte("raw"), publisher.Properties{})
		if err != nil {
			t.Fatal(err)
		}
		// The ends are written ahead, before the others; their order is theirs.
		err = p.Close(within(t, 10*time.Millisecond))
		if !errors.Is(err, publisher.ErrSpooled) || !errors.Is(err, publisher.ErrNotConfirmed) || !strings.Contains(err.Error(), "1 messages not confirmed, 50 messages kept in the spool") {
			t.Errorf("Close = %v, want 50 spooled and the raw one not confirmed", err)
		}
		if strings.Contains(fmt.Sprint(err), "secret") {
			t.Errorf("the error holds the password: %v", err)
		}
		for _, r := range receipts {
			if err := r.Wait(soon(t)); !errors.Is(err, publisher.ErrSpooled) {
				t.Errorf("Wait = %v, want ErrSpooled", err)
			}
		}
		if err := raw.Wait(soon(t)); !errors.Is(err, publisher.ErrNotConfirmed) || errors.Is(err, publisher.ErrSpooled) {
			t.Errorf("Wait of a raw message = %v, want ErrNotConfirmed", err)
		}
		if diff := cmp.Diff(publisher.Report{Accepted: 51, Spooled: 50, NotConfirmed: 1}, p.Report()); diff != "" {
			t.Errorf("report (-want +got):\n%s", diff)
		}
	}
	segments(t, cfg.Spool.Dir, 3)

	drainer := cfg
	drainer.URL, drainer.Spool = direct, publisher.Spool{}
	p := start(t, drainer)
	// For another broker, as it seems: those who serve themselves leave it.
	report, err := p.Drain(soon(t), publisher.DrainConfig{Dir: cfg.Spool.Dir, Own: true})
	if diff := cmp.Diff(publisher.DrainReport{Elsewhere: 3}, report); err != nil || diff != "" {
		t.Errorf("draining one's own: %v (-want +got):\n%s", err, diff)
	}
	// Two at once share the work.
	reports := make([]publisher.DrainReport, 2)
	var wg sync.WaitGroup
	for i := range reports {
		wg.Go(func() {
			var err error
			if reports[i], err = start(t, drainer).Drain(soon(t), publisher.DrainConfig{Dir: cfg.Spool.Dir}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := reports[0].Confirmed + reports[1].Confirmed; n != 150 || reports[0].Left+reports[1].Left != 0 {
		t.Errorf("drained %+v, want 150 confirmed in all and none left", reports)
	}
	segments(t, cfg.Spool.Dir, 0)
	got := messageIDs(drain(t, admin(t, direct), cfg.Queues.Status))
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ids in the queue, each once (-want +got):\n%s", diff)
	}
	if report, err := p.Drain(soon(t), publisher.DrainConfig{Dir: cfg.Spool.Dir}); err != nil || report.Found != 0 {
		t.Errorf("draining an empty spool: %+v, %v", report, err)
	}
}

// left leaves messages in a spool, each with its body as id.
func left(t testing.TB, dir string, records ...spool.Record) {
	t.Helper()
	w, err := spool.NewWriter(spool.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		r.MessageID, r.Timestamp = string(r.Body), time.Now()
		if _, _, err := w.Append(&r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestDrainLeavesWhatIsRefused(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	p := start(t, cfg)
	dir := spoolDir(t)
	left(t, dir,
		spool.Record{Queue: cfg.Queues.Status, Class: spool.Progress, Body: []byte("a")},
		spool.Record{Queue: cfg.Queues.Status + ".none", Class: spool.Terminal, Body: []byte("no such queue")},
		spool.Record{Queue: strings.Repeat("q", 300), Class: spool.Terminal, Body: []byte("no queue's name")},
		spool.Record{Queue: cfg.Queues.Status, Class: "of a later version", Priority: 3, Body: []byte("b")})
	left(t, dir, spool.Record{Queue: cfg.Queues.Submission, Class: spool.Submission, Priority: 9, Body: []byte("c")})
	if err := os.WriteFile(filepath.Join(dir, "newer.spool"), []byte("waymark\x09…"), 0o600); err != nil {
		t.Fatal(err)
	}
	for round := range 2 {
		report, err := p.Drain(soon(t), publisher.DrainConfig{Dir: dir})
		want := publisher.DrainReport{Found: 5, Confirmed: 3, Left: 2}
		if round == 1 {
			want = publisher.DrainReport{Found: 2, Left: 2}
		}
		if diff := cmp.Diff(want, report); diff != "" {
			t.Errorf("round %d (-want +got):\n%s", round, diff)
		}
		if err == nil || !strings.Contains(err.Error(), "300 bytes") && !errors.Is(err, publisher.ErrUnroutable) {
			t.Errorf("round %d: %v, want why two are left", round, err)
		}
		if _, is := errors.AsType[*spool.VersionError](err); !is {
			t.Errorf("round %d: %v, want that one segment is of another version", round, err)
		}
	}
	ch := admin(t, cfg.URL)
	if diff := cmp.Diff([]string{"a", "b"}, messageIDs(drain(t, ch, cfg.Queues.Status))); diff != "" {
		t.Errorf("statuses (-want +got):\n%s", diff)
	}
	if d := drain(t, ch, cfg.Queues.Submission); len(d) != 1 || d[0].Priority != 9 || string(d[0].Body) != "c" {
		t.Errorf("submissions %v, want one of priority 9", d)
	}
}

func TestDrainWithBrokerAway(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	proxy, through := through(t, cfg.URL)
	direct := cfg.URL
	cfg.URL = through
	dir := spoolDir(t)
	var want []string
	for i := range 3 {
		body := fmt.Sprint(i)
		left(t, dir, spool.Record{Queue: cfg.Queues.Status, Class: spool.Terminal, Body: []byte(body)})
		want = append(want, body)
	}
	proxy.close()
	p := start(t, cfg)
	report, err := p.Drain(soon(t), publisher.DrainConfig{Dir: dir, Patience: 50 * time.Millisecond})
	if !errors.Is(err, publisher.ErrNotConfirmed) || report.Confirmed != 0 || report.Left != 1 {
		t.Errorf("Drain = %+v, %v; want ErrNotConfirmed at the first segment", report, err)
	}
	segments(t, dir, 3)
	proxy.open()
	if report, err := p.Drain(soon(t), publisher.DrainConfig{Dir: dir}); err != nil || report.Confirmed != 3 {
		t.Errorf("Drain = %+v, %v; want 3 confirmed", report, err)
	}
	segments(t, dir, 0)
	// The first was on its way already: it is there twice, with the same id.
	got := messageIDs(drain(t, admin(t, direct), cfg.Queues.Status))
	slices.Sort(got)
	if diff := cmp.Diff(want, slices.Compact(got)); diff != "" {
		t.Errorf("ids in the queue (-want +got):\n%s", diff)
	}
}

func TestSpoolOverflow(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	cfg.URL, cfg.Spool = nowhere, publisher.Spool{Dir: spoolDir(t), MaxBytes: 30_000}
	p := start(t, cfg)
	gaveUp, cancel := context.WithCancel(t.Context())
	cancel()
	for i := range 30 {
		var err error
		switch i % 3 {
		case 0:
			m := message(strings.Repeat("x", 2000))
			m.Progress.Total = workflow.Count(3)
			err = p.Status(gaveUp, m)
		case 1:
			err = p.Status(gaveUp, message(strings.Repeat("x", 2000)))
		case 2:
			err = p.Status(gaveUp, ended(""))
		}
		if !errors.Is(err, publisher.ErrSpooled) {
			t.Fatalf("message %d: %v, want ErrSpooled", i, err)
		}
		balanced(t, p.Report())
	}
	if err := p.Close(gaveUp); !errors.Is(err, publisher.ErrSpooled) {
		t.Errorf("Close = %v, want ErrSpooled", err)
	}
	r := p.Report()
	balanced(t, r)
	if r.Accepted != 30 || r.DroppedProgress == 0 || r.DroppedLogs == 0 || r.Spooled < 10 || r.InFlight != 0 {
		t.Errorf("report %+v, want of 30 some of progress and of logs dropped, and no end", r)
	}
	direct := configure(t)
	direct.Queues = cfg.Queues
	d, err := start(t, direct).Drain(soon(t), publisher.DrainConfig{Dir: cfg.Spool.Dir})
	if err != nil || int64(d.Confirmed) != r.Spooled {
		t.Errorf("drained %+v, %v; want the %d that were spooled", d, err, r.Spooled)
	}
	ends := 0
	for _, m := range drain(t, admin(t, direct.URL), cfg.Queues.Status) {
		if strings.Contains(string(m.Body), `"status":2`) {
			ends++
		}
	}
	if ends != 10 {
		t.Errorf("%d ends were delivered, want all 10", ends)
	}
}

// With no room in memory a message goes to disk alone, and is fetched from
// there when the broker is back.
func TestSpoolBeyondTheWindow(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	proxy, through := through(t, cfg.URL)
	proxy.close()
	direct := cfg.URL
	cfg.URL, cfg.Spool.Dir, cfg.Window = through, spoolDir(t), 5
	p := start(t, cfg)
	gaveUp, cancel := context.WithCancel(t.Context())
	cancel()
	var want []string
	for range 20 {
		r, err := p.SendStatus(gaveUp, ended(""))
		if err != nil {
			t.Fatalf("SendStatus = %v, want it to be kept", err)
		}
		want = append(want, r.MessageID())
	}
	if err := p.Status(gaveUp, ended("")); !errors.Is(err, publisher.ErrSpooled) {
		t.Errorf("Status = %v, want ErrSpooled", err)
	}
	proxy.open()
	servicetest.Eventually(t, patience, "all to be confirmed", func() error {
		balanced(t, p.Report())
		if r := p.Report(); r.Confirmed != 21 || r.Spooled != 0 {
			return fmt.Errorf("report %+v", r)
		}
		return nil
	})
	if err := p.Close(soon(t)); err != nil {
		t.Error(err)
	}
	segments(t, cfg.Spool.Dir, 0)
	if diff := cmp.Diff(want, messageIDs(drain(t, admin(t, direct), cfg.Queues.Status))[:20]); diff != "" {
		t.Errorf("ids in the queue (-want +got):\n%s", diff)
	}
}

func TestSpoolThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := publisher.New(publisher.Config{URL: nowhere, Spool: publisher.Spool{Dir: file}}); err == nil || !strings.Contains(err.Error(), "spool") {
		t.Errorf("New with a file for a spool: %v, want that it says so", err)
	}
	if _, err := publisher.New(publisher.Config{URL: nowhere, Spool: publisher.Spool{MaxBytes: -1}}); err == nil || !strings.Contains(err.Error(), "spool of -1") {
		t.Errorf("New with a negative size: %v", err)
	}
	// It goes away later: the message is then given up as without a spool.
	dir := spoolDir(t)
	var log logbook
	p := start(t, publisher.Config{URL: nowhere, Logger: log.logger(), Spool: publisher.Spool{Dir: dir}})
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err := p.Status(within(t, 20*time.Millisecond), ended(""))
		if !errors.Is(err, publisher.ErrNotConfirmed) || errors.Is(err, publisher.ErrSpooled) || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("Status = %v, want ErrNotConfirmed and what is wrong with the spool", err)
		}
	}
	if diff := cmp.Diff(publisher.Report{Accepted: 2, NotConfirmed: 2}, p.Report()); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	if !strings.Contains(log.String(), "cannot be kept on disk") {
		t.Errorf("the log does not say what is wrong:\n%s", log.String())
	}
}

const killedVariable = "WAYMARK_PUBLISHER_TEST_SPOOL"

// TestKilledChild is the process that TestKilledPublisher kills.
func TestKilledChild(t *testing.T) {
	dir := os.Getenv(killedVariable)
	if dir == "" {
		return // a part of the other test
	}
	p, err := publisher.New(publisher.Config{URL: nowhere, Spool: publisher.Spool{Dir: dir}, Queues: publisher.Queues{Status: os.Getenv(killedVariable + "_QUEUE")}})
	if err != nil {
		t.Fatal(err)
	}
	for {
		m := ended("")
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		if err := p.Status(ctx, m); errors.Is(err, publisher.ErrSpooled) {
			fmt.Println("safe", m.WorkflowID)
		}
		cancel()
	}
}

// The process is killed at a random moment with the broker away: every end that
// it was told is safe reaches the queue.
func TestKilledPublisher(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	p := start(t, cfg)
	ch := admin(t, cfg.URL)
	dir := spoolDir(t)
	for life := range 8 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledChild$")
		cmd.Env = append(os.Environ(), killedVariable+"="+dir, killedVariable+"_QUEUE="+cfg.Queues.Status)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var safe []string
		for lines := bufio.NewScanner(out); lines.Scan(); {
			id, ok := strings.CutPrefix(lines.Text(), "safe ")
			if !ok {
				continue
			}
			if safe == nil {
				time.AfterFunc(time.Duration(rand.Int64N(int64(50*time.Millisecond))), func() { _ = cmd.Process.Kill() })
			}
			safe = append(safe, id)
		}
		_ = cmd.Wait() // it was killed
		if len(safe) == 0 {
			t.Fatalf("life %d: nothing was safe", life)
		}
		if _, err := p.Drain(soon(t), publisher.DrainConfig{Dir: dir}); err != nil {
			t.Fatal(err)
		}
		var bodies strings.Builder
		for _, d := range drain(t, ch, cfg.Queues.Status) {
			bodies.Write(d.Body)
		}
		for _, id := range safe {
			if n := strings.Count(bodies.String(), id); n != 1 {
				t.Errorf("life %d: the end of %s, which was safe, reached the queue %d times, want once", life, id, n)
			}
		}
	}
}
