package publisher_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/broker"
	"waymark/internal/servicetest"
	"waymark/publisher"
	"waymark/workflow"
)

func TestWindow(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	proxy, url := through(t, cfg.URL)
	cfg.URL, cfg.Window = url, 5
	p := start(t, cfg)
	if err := p.Ready(soon(t)); err != nil {
		t.Fatal(err)
	}
	proxy.ignore() // so that nothing is confirmed
	for i := range cfg.Window {
		if _, err := p.SendStatus(soon(t), message(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	_, err := p.SendStatus(within(t, 100*time.Millisecond), message("one too many"))
	if !errors.Is(err, publisher.ErrNotConfirmed) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(fmt.Sprint(err), "not sent") {
		t.Errorf("sending with the window full = %v, want ErrNotConfirmed, DeadlineExceeded and that it was not sent", err)
	}
	if err := p.Flush(within(t, 10*time.Millisecond)); !errors.Is(err, publisher.ErrNotConfirmed) || !strings.Contains(err.Error(), "5 messages") {
		t.Errorf("Flush = %v, want ErrNotConfirmed for 5 messages", err)
	}
	if diff := cmp.Diff(publisher.Report{Accepted: 5, InFlight: 5}, p.Report()); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	// One waits for room, and gets it.
	sent := make(chan error, 1)
	go func() { sent <- p.Status(soon(t), message("waits")) }()
	proxy.hear()
	if err := <-sent; err != nil {
		t.Error(err)
	}
	if err := p.Flush(soon(t)); err != nil {
		t.Error(err)
	}
	if n := depth(t, admin(t, cfg.URL), cfg.Queues.Status); n != 6 {
		t.Errorf("%d messages are in the queue, want 6", n)
	}
}

func TestQueueDeleted(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	p := start(t, cfg)
	if err := p.Status(soon(t), message("before")); err != nil {
		t.Fatal(err)
	}
	ch := admin(t, cfg.URL)
	for range 2 { // each message has one new declaration
		for _, queue := range []string{cfg.Queues.Status, cfg.Queues.Submission} {
			if _, err := ch.QueueDelete(queue, false, false, false); err != nil {
				t.Fatal(err)
			}
		}
		var receipts []*publisher.Receipt
		for i := range 200 {
			r, err := p.SendStatus(soon(t), message(fmt.Sprint("after ", i)))
			if err != nil {
				t.Fatal(err)
			}
			receipts = append(receipts, r)
		}
		if err := p.Submission(soon(t), &workflow.Submission{User: "u", Workflow: "w"}); err != nil {
			t.Error(err)
		}
		if err := p.Flush(soon(t)); err != nil {
			t.Error(err)
		}
		ids := make(map[string]bool)
		for _, d := range drain(t, ch, cfg.Queues.Status) {
			ids[d.MessageId] = true
		}
		for i, r := range receipts {
			if !ids[r.MessageID()] {
				t.Errorf("message %d was confirmed and is not in the queue", i)
			}
		}
		if n := depth(t, ch, cfg.Queues.Submission); n != 1 {
			t.Errorf("%d submissions are in the queue, want 1", n)
		}
	}
	if r := p.Report(); r.Unroutable != 0 || r.Retried == 0 {
		t.Errorf("report %+v, want retries and nothing unroutable", r)
	}
	balanced(t, p.Report())
}

func TestUnroutable(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	p := start(t, cfg)
	nowhere := cfg.Queues.Status + ".nowhere"
	lost, err := p.SendRaw(soon(t), nowhere, []byte("{}"), publisher.Properties{})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Status(soon(t), message("")); err != nil {
		t.Errorf("a message for another queue: %v", err)
	}
	if err := lost.Wait(soon(t)); !errors.Is(err, publisher.ErrUnroutable) || !strings.Contains(err.Error(), nowhere) {
		t.Errorf("Wait = %v, want ErrUnroutable and the queue's name", err)
	}
	if diff := cmp.Diff(publisher.Report{Accepted: 2, Confirmed: 1, Unroutable: 1, Retried: 1}, p.Report()); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	if err := p.Flush(soon(t)); !errors.Is(err, publisher.ErrUnroutable) {
		t.Errorf("Flush = %v, want the failure of the pipelined message", err)
	}
	if err := p.Close(soon(t)); err != nil {
		t.Errorf("Close = %v, want nil: the failure was told", err)
	}
}

// The same id for two messages at once: each return must be put down to the
// message that was returned.
func TestUnroutableWithSharedID(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	p := start(t, cfg)
	nowhere := cfg.Queues.Status + ".nowhere"
	props := publisher.Properties{MessageID: "shared"}
	for range 50 {
		lost, err := p.SendRaw(soon(t), nowhere, nil, props)
		if err != nil {
			t.Fatal(err)
		}
		kept, err := p.SendRaw(soon(t), cfg.Queues.Status, nil, props)
		if err != nil {
			t.Fatal(err)
		}
		if err := lost.Wait(soon(t)); !errors.Is(err, publisher.ErrUnroutable) {
			t.Errorf("the message for no queue: %v, want ErrUnroutable", err)
		}
		if err := kept.Wait(soon(t)); err != nil {
			t.Errorf("the message for a queue: %v", err)
		}
	}
}

// The connection is cut again and again while messages stream.
func TestConnectionCut(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	proxy, through := through(t, cfg.URL)
	direct := cfg.URL
	cfg.URL, cfg.Window = through, 100
	p := start(t, cfg)
	const n, cuts = 3000, 6
	receipts := make([]*publisher.Receipt, n)
	for i := range n {
		r, err := p.SendStatus(soon(t), message(fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		receipts[i] = r
		if i%(n/cuts) == n/cuts/2 {
			servicetest.Eventually(t, patience, "a connection to cut", func() error {
				if proxy.cut() == 0 {
					return errors.New("there is none")
				}
				return nil
			})
		}
	}
	if err := p.Close(soon(t)); err != nil {
		t.Fatal(err)
	}
	report := p.Report()
	balanced(t, report)
	if report.Confirmed != n || report.Retried == 0 {
		t.Errorf("report %+v, want %d confirmed and some retried", report, n)
	}

	bodies := make(map[string][]byte)
	var order []string
	for _, d := range drain(t, admin(t, direct), cfg.Queues.Status) {
		if first, ok := bodies[d.MessageId]; !ok {
			order = append(order, d.MessageId)
		} else if !bytes.Equal(first, d.Body) {
			t.Errorf("two different messages have the id %s", d.MessageId)
		}
		bodies[d.MessageId] = d.Body
	}
	var want []string
	for _, r := range receipts {
		want = append(want, r.MessageID())
	}
	if diff := cmp.Diff(want, order); diff != "" {
		t.Errorf("ids in the order of their first delivery (-want +got):\n%s", diff)
	}
}

func TestBrokerComesLater(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	proxy, through := through(t, cfg.URL)
	proxy.close()
	direct := cfg.URL
	cfg.URL = through
	var log logbook
	cfg.Logger = log.logger()
	p := start(t, cfg)

	early, err := p.SendStatus(soon(t), message("early"))
	if err != nil {
		t.Fatal(err)
	}
	servicetest.Eventually(t, patience, "the reason to be known", func() error {
		if err := p.LastError(); err == nil || !strings.Contains(err.Error(), "nothing listens there") {
			return fmt.Errorf("LastError() = %v", err)
		}
		return nil
	})
	err = p.Ready(within(t, 10*time.Millisecond))
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "nothing listens there") {
		t.Errorf("Ready = %v, want DeadlineExceeded and the reason", err)
	}
	// Given up before it was ever sent: it must not turn up later.
	err = p.Status(within(t, 50*time.Millisecond), message("given up"))
	if !errors.Is(err, publisher.ErrNotConfirmed) || !strings.Contains(err.Error(), "not sent") || !strings.Contains(err.Error(), "nothing listens there") {
		t.Errorf("Status = %v, want ErrNotConfirmed, that it was not sent, and the reason", err)
	}
	if err := early.Wait(within(t, 10*time.Millisecond)); !errors.Is(err, publisher.ErrNotConfirmed) {
		t.Errorf("Wait = %v, want ErrNotConfirmed for now", err)
	}
	if diff := cmp.Diff(publisher.Report{Accepted: 2, NotConfirmed: 1, InFlight: 1}, p.Report()); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}

	proxy.open()
	if err := p.Ready(soon(t)); err != nil {
		t.Fatal(err)
	}
	if err := early.Wait(soon(t)); err != nil {
		t.Error(err)
	}
	if err := p.LastError(); err != nil {
		t.Errorf("LastError() = %v, want nil again", err)
	}
	if n := depth(t, admin(t, direct), cfg.Queues.Status); n != 1 {
		t.Errorf("%d messages are in the queue, want only the one that was not given up", n)
	}
	text := log.String()
	if strings.Count(text, "nothing listens there") != 1 || strings.Count(text, "connected to the broker") != 1 {
		t.Errorf("the log should name each change once:\n%s", text)
	}
	u, _ := url.Parse(direct)
	if password, _ := u.User.Password(); strings.Contains(text, password) {
		t.Error("the log holds the password")
	}
}

func TestCloseWithBrokerAway(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	proxy, through := through(t, cfg.URL)
	cfg.URL = through
	p := start(t, cfg)
	if err := p.Ready(soon(t)); err != nil {
		t.Fatal(err)
	}
	proxy.close()
	servicetest.Eventually(t, patience, "the loss to be noticed", func() error {
		if p.LastError() == nil {
			return errors.New("LastError() = nil")
		}
		return nil
	})
	var receipts []*publisher.Receipt
	for range 7 {
		r, err := p.SendStatus(soon(t), message(""))
		if err != nil {
			t.Fatal(err)
		}
		receipts = append(receipts, r)
	}
	began := time.Now()
	err := p.Close(within(t, 200*time.Millisecond))
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("Close took %s, want about 0.2 s", took)
	}
	if !errors.Is(err, publisher.ErrNotConfirmed) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "7 messages not confirmed") {
		t.Errorf("Close = %v, want ErrNotConfirmed, DeadlineExceeded and the number 7", err)
	}
	for _, r := range receipts {
		if err := r.Wait(t.Context()); !errors.Is(err, publisher.ErrNotConfirmed) || !errors.Is(err, publisher.ErrClosed) {
			t.Errorf("Wait = %v, want ErrNotConfirmed and ErrClosed", err)
		}
	}
	if diff := cmp.Diff(publisher.Report{Accepted: 7, NotConfirmed: 7}, p.Report()); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	if again := p.Close(soon(t)); again == nil || again.Error() != err.Error() {
		t.Errorf("a second Close = %v, want the same as the first", again)
	}
}

// A caller waits for room while the publisher is closed.
func TestCloseWhileWaitingForRoom(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	proxy, through := through(t, cfg.URL)
	proxy.close()
	cfg.URL, cfg.Window = through, 1
	p := start(t, cfg)
	if _, err := p.SendStatus(soon(t), message("")); err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error, 1)
	go func() { waiting <- p.Status(soon(t), message("")) }()
	if err := p.Close(within(t, 50*time.Millisecond)); !errors.Is(err, publisher.ErrNotConfirmed) {
		t.Errorf("Close = %v, want ErrNotConfirmed", err)
	}
	if err := <-waiting; !errors.Is(err, publisher.ErrClosed) {
		t.Errorf("the waiting call = %v, want ErrClosed", err)
	}
	balanced(t, p.Report())
}

func TestWrongPassword(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	u, err := url.Parse(cfg.URL)
	if err != nil {
		t.Fatal("the URL of the test's broker cannot be read")
	}
	u.User = url.UserPassword(u.User.Username(), "s3cr3t")
	cfg.URL = u.String()
	var log logbook
	cfg.Logger = log.logger()
	p := start(t, cfg)
	if err := p.Ready(soon(t)); !broker.Permanent(err) || !strings.Contains(err.Error(), "refused the login") {
		t.Errorf("Ready = %v, want a permanent error about the login", err)
	}
	err = p.Status(within(t, 50*time.Millisecond), message(""))
	if !errors.Is(err, publisher.ErrNotConfirmed) || !broker.Permanent(err) || !strings.Contains(err.Error(), "refused the login") {
		t.Errorf("Status = %v, want ErrNotConfirmed with the reason", err)
	}
	for _, text := range []string{fmt.Sprint(err), log.String()} {
		if strings.Contains(text, "s3cr3t") {
			t.Errorf("%q shows the password", text)
		}
	}
}

func TestQueueDeclaredOtherwise(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	ch := admin(t, cfg.URL)
	if _, err := ch.QueueDeclare(cfg.Queues.Status, false, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	p := start(t, cfg)
	r, err := p.SendStatus(soon(t), message(""))
	if err != nil {
		t.Fatal(err)
	}
	err = p.Ready(soon(t))
	if !broker.Permanent(err) || !strings.Contains(err.Error(), cfg.Queues.Status) || !strings.Contains(err.Error(), `topology "reana"`) {
		t.Errorf("Ready = %v, want a permanent error that names the queue and the other topology", err)
	}
	// Someone does as the error says.
	if _, err := ch.QueueDelete(cfg.Queues.Status, false, false, false); err != nil {
		t.Fatal(err)
	}
	if err := r.Wait(soon(t)); err != nil {
		t.Error(err)
	}
}

// A queue that is full refuses; what was refused is kept, and tried again.
func TestRefused(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	p := start(t, cfg)
	ch := admin(t, cfg.URL)
	if _, err := ch.QueueDeclare(cfg.Queues.Submission+".dead-letter", true, false, false, false, amqp.Table{
		"x-max-length": int32(10), "x-overflow": "reject-publish",
	}); err != nil {
		t.Fatal(err)
	}
	full := cfg.Queues.Submission + ".dead-letter"
	const n = 30
	sent := make(map[string]bool)
	for range n {
		r, err := p.SendRaw(soon(t), full, []byte("{}"), publisher.Properties{})
		if err != nil {
			t.Fatal(err)
		}
		sent[r.MessageID()] = true
	}
	servicetest.Eventually(t, patience, "the refusal to be known", func() error {
		if err := p.LastError(); err == nil || !strings.Contains(err.Error(), "refuses messages") {
			return fmt.Errorf("LastError() = %v", err)
		}
		return nil
	})
	if err := p.Flush(within(t, 50*time.Millisecond)); !errors.Is(err, publisher.ErrNotConfirmed) || !strings.Contains(err.Error(), "refuses messages") {
		t.Errorf("Flush = %v, want ErrNotConfirmed with the reason", err)
	}
	servicetest.Eventually(t, patience, "all to be confirmed while the queue is emptied", func() error {
		for _, d := range drain(t, ch, full) {
			delete(sent, d.MessageId)
		}
		return settled(p, n)()
	})
	for _, d := range drain(t, ch, full) {
		delete(sent, d.MessageId)
	}
	if len(sent) > 0 {
		t.Errorf("%d messages were confirmed and never in the queue", len(sent))
	}
	if r := p.Report(); r.Confirmed != n || r.Retried == 0 || r.Retried > 20*n {
		t.Errorf("report %+v, want %d confirmed after some retries, and not too many", r, n)
	}
	if err := p.LastError(); err != nil {
		t.Errorf("LastError() = %v, want nil again", err)
	}
}

// The broker takes messages and says nothing: F4 of the house's facts.
func TestConfirmTimeout(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	proxy, through := through(t, cfg.URL)
	direct := cfg.URL
	cfg.URL, cfg.ConfirmTimeout = through, 300*time.Millisecond
	p := start(t, cfg)
	if err := p.Ready(soon(t)); err != nil {
		t.Fatal(err)
	}
	proxy.ignore()
	r, err := p.SendStatus(soon(t), message(""))
	if err != nil {
		t.Fatal(err)
	}
	servicetest.Eventually(t, patience, "the timeout to be known", func() error {
		if err := p.LastError(); err == nil || !strings.Contains(err.Error(), "did not confirm a message within 300ms") {
			return fmt.Errorf("LastError() = %v", err)
		}
		return nil
	})
	if err := r.Wait(within(t, time.Millisecond)); !errors.Is(err, publisher.ErrNotConfirmed) || !strings.Contains(err.Error(), "may or may not have been delivered") {
		t.Errorf("Wait = %v, want ErrNotConfirmed and that it may have been delivered", err)
	}
	proxy.hear()
	if err := r.Wait(soon(t)); err != nil {
		t.Fatal(err)
	}
	got := drain(t, admin(t, direct), cfg.Queues.Status)
	if len(got) < 2 {
		t.Errorf("the message is in the queue %d times, want at least 2: it was taken before and again", len(got))
	}
	for _, d := range got {
		if d.MessageId != r.MessageID() {
			t.Errorf("a message has the id %s, want %s each time", d.MessageId, r.MessageID())
		}
	}
}

// A caller gives up on a message that is on its way. It is not tried again.
func TestGivenUpOnTheWay(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	proxy, through := through(t, cfg.URL)
	cfg.URL = through
	p := start(t, cfg)
	if err := p.Ready(soon(t)); err != nil {
		t.Fatal(err)
	}
	proxy.ignore()
	err := p.Status(within(t, 100*time.Millisecond), message(""))
	if !errors.Is(err, publisher.ErrNotConfirmed) || !strings.Contains(err.Error(), "may or may not") {
		t.Errorf("Status = %v, want ErrNotConfirmed and that it may have been delivered", err)
	}
	if diff := cmp.Diff(publisher.Report{Accepted: 1, InFlight: 1}, p.Report()); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	proxy.cut()
	proxy.hear()
	servicetest.Eventually(t, patience, "the message to be settled", settled(p, 1))
	if diff := cmp.Diff(publisher.Report{Accepted: 1, NotConfirmed: 1}, p.Report()); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	if err := p.Flush(soon(t)); err != nil {
		t.Errorf("Flush = %v, want nil: the caller knows", err)
	}
}

// Faults of the server itself, on one of the test's own.
func TestServerFaults(t *testing.T) {
	t.Parallel()
	server := servicetest.RabbitMQ(t)
	ctl := func(args ...string) {
		t.Helper()
		if _, err := server.Ctl(t.Context(), args...); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("no permission to publish", func(t *testing.T) {
		cfg := publisher.Config{URL: server.URL(), Queues: publisher.Queues{Status: "mute-status", Submission: "mute-submission"}}
		ctl("add_user", "mute", "pw")
		ctl("set_permissions", "mute", "mute-.*", "^$", "^$")
		u, err := url.Parse(cfg.URL)
		if err != nil {
			t.Fatal("the server's URL cannot be read")
		}
		u.User = url.UserPassword("mute", "pw")
		cfg.URL = u.String()
		var log logbook
		cfg.Logger = log.logger()
		p := start(t, cfg)
		r, err := p.SendStatus(soon(t), message(""))
		if err != nil {
			t.Fatal(err)
		}
		servicetest.Eventually(t, patience, "the reason to be known", func() error {
			if err := p.LastError(); !broker.Permanent(err) || !strings.Contains(err.Error(), "ACCESS_REFUSED") {
				return fmt.Errorf("LastError() = %v", err)
			}
			return nil
		})
		// It stays known from one attempt to the next, though each connects,
		// and is logged once.
		servicetest.Eventually(t, patience, "some more attempts", func() error {
			if r := p.Report(); r.Retried < 3 {
				return fmt.Errorf("report %+v", r)
			}
			return nil
		})
		if err := p.Ready(soon(t)); !broker.Permanent(err) {
			t.Errorf("Ready = %v, want the permanent error", err)
		}
		if text := log.String(); strings.Count(text, "ACCESS_REFUSED") != 1 || strings.Count(text, "connected to the broker") != 1 {
			t.Errorf("the log should name each change once:\n%s", text)
		}
		ctl("set_permissions", "mute", "mute-.*", ".*", "^$")
		if err := r.Wait(soon(t)); err != nil {
			t.Errorf("with the permission given: %v", err)
		}
		if err := p.Ready(soon(t)); err != nil {
			t.Errorf("Ready = %v, want nil", err)
		}
	})

	t.Run("memory alarm", func(t *testing.T) {
		cfg := publisher.Config{URL: server.URL(), ConfirmTimeout: 200 * time.Millisecond}
		var log logbook
		cfg.Logger = log.logger()
		p := start(t, cfg)
		if err := p.Status(soon(t), message("before")); err != nil {
			t.Fatal(err)
		}
		ctl("set_vm_memory_high_watermark", "0.0000001")
		for range 20 {
			if _, err := p.SendStatus(soon(t), message("during")); err != nil {
				t.Fatal(err)
			}
		}
		servicetest.Eventually(t, patience, "the alarm to be known", func() error {
			if err := p.LastError(); err == nil || !strings.Contains(err.Error(), "takes no messages for now") {
				return fmt.Errorf("LastError() = %v", err)
			}
			return nil
		})
		// Several times the confirm timeout.
		err := p.Status(within(t, time.Second), message("given up"))
		if !errors.Is(err, publisher.ErrNotConfirmed) || !strings.Contains(err.Error(), "not sent") || !strings.Contains(err.Error(), "takes no messages for now") {
			t.Errorf("Status = %v, want ErrNotConfirmed, that it was not sent, and the reason", err)
		}
		if strings.Contains(log.String(), "did not confirm") {
			t.Errorf("the session was ended during the alarm, which helps nobody:\n%s", log.String())
		}
		ctl("set_vm_memory_high_watermark", "0.4")
		if err := p.Flush(soon(t)); err != nil {
			t.Error(err)
		}
		if err := p.LastError(); err != nil {
			t.Errorf("LastError() = %v, want nil again", err)
		}
		balanced(t, p.Report())
	})

	t.Run("closed during an alarm", func(t *testing.T) {
		p := start(t, publisher.Config{URL: server.URL()})
		if err := p.Ready(soon(t)); err != nil {
			t.Fatal(err)
		}
		ctl("set_vm_memory_high_watermark", "0.0000001")
		defer ctl("set_vm_memory_high_watermark", "0.4")
		for range 5 {
			if _, err := p.SendRaw(soon(t), "jobs-status", make([]byte, 4<<20), publisher.Properties{}); err != nil {
				t.Fatal(err)
			}
		}
		began := time.Now()
		if err := p.Close(within(t, 300*time.Millisecond)); !errors.Is(err, publisher.ErrNotConfirmed) {
			t.Errorf("Close = %v, want ErrNotConfirmed", err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("Close took %s, want about 0.3 s", took)
		}
	})

	// The broker's limit is lower than ours. One message over it must not keep
	// back the others for ever.
	t.Run("message over the broker's limit", func(t *testing.T) {
		ctl("eval", "application:set_env(rabbit, max_message_size, 100000).")
		defer ctl("eval", "application:set_env(rabbit, max_message_size, 134217728).")
		p := start(t, publisher.Config{URL: server.URL(), Queues: publisher.Queues{Status: "size-status", Submission: "size-submission"}})
		const n = 200
		tooLarge := map[int]bool{0: true, 70: true, 71: true, n - 1: true}
		var receipts []*publisher.Receipt
		for i := range n {
			body := []byte("{}")
			if tooLarge[i] {
				body = make([]byte, 100_001)
			}
			r, err := p.SendRaw(soon(t), "size-status", body, publisher.Properties{})
			if err != nil {
				t.Fatal(err)
			}
			receipts = append(receipts, r)
		}
		for i, r := range receipts {
			err := r.Wait(soon(t))
			if _, invalid := errors.AsType[*publisher.InvalidError](err); invalid != tooLarge[i] || !invalid && err != nil {
				t.Fatalf("message %d, over the limit %t: %v", i, tooLarge[i], err)
			}
		}
		if err := p.Close(soon(t)); err == nil || !strings.Contains(err.Error(), "4 messages failed") || !strings.Contains(err.Error(), "PRECONDITION_FAILED") {
			t.Errorf("Close = %v, want 4 messages failed and the broker's reason", err)
		}
		r := p.Report()
		balanced(t, r)
		if r.Confirmed != n-4 || r.NotConfirmed != 4 {
			t.Errorf("report %+v, want %d confirmed and 4 refused", r, n-4)
		}
	})

	// What was confirmed must survive a crash of the server.
	t.Run("killed", func(t *testing.T) {
		cfg := publisher.Config{URL: server.URL(), Queues: publisher.Queues{Status: "kill-status", Submission: "kill-submission"}}
		p := start(t, cfg)
		confirmed := make(map[string]bool)
		var receipts []*publisher.Receipt
		send := func(n int) {
			t.Helper()
			for range n {
				r, err := p.SendStatus(soon(t), message(""))
				if err != nil {
					t.Fatal(err)
				}
				receipts = append(receipts, r)
			}
		}
		send(500)
		if err := receipts[250].Wait(soon(t)); err != nil {
			t.Fatal(err)
		}
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		send(100)
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := p.Flush(soon(t)); err != nil {
			t.Fatal(err)
		}
		for _, r := range receipts {
			if err := r.Wait(soon(t)); err != nil {
				t.Error(err)
			}
			confirmed[r.MessageID()] = true
		}
		for _, d := range drain(t, admin(t, server.URL()), cfg.Queues.Status) {
			delete(confirmed, d.MessageId)
		}
		if len(confirmed) > 0 {
			t.Errorf("%d of %d confirmed messages did not survive", len(confirmed), len(receipts))
		}
	})

	// The kernel takes what nobody reads; the heartbeat must notice.
	t.Run("frozen", func(t *testing.T) {
		p := start(t, publisher.Config{URL: server.URL(), ConfirmTimeout: 500 * time.Millisecond})
		if err := p.Ready(soon(t)); err != nil {
			t.Fatal(err)
		}
		if err := server.Pause(); err != nil {
			t.Fatal(err)
		}
		// More than the buffers of both sockets, so that writing blocks.
		for range 10 {
			if _, err := p.SendRaw(soon(t), "jobs-status", make([]byte, 4<<20), publisher.Properties{}); err != nil {
				t.Fatal(err)
			}
		}
		servicetest.Eventually(t, patience, "the silence to be noticed", func() error {
			if p.LastError() == nil {
				return errors.New("LastError() = nil")
			}
			return nil
		})
		if err := server.Resume(); err != nil {
			t.Fatal(err)
		}
		if err := p.Flush(soon(t)); err != nil {
			t.Error(err)
		}
	})
}
