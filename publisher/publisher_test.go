package publisher_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/servicetest"
	"waymark/internal/wire"
	"waymark/publisher"
	"waymark/schemas"
	"waymark/workflow"
)

func TestStatus(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	p := start(t, cfg)
	want := &workflow.StatusMessage{
		WorkflowID: uuid.New(),
		Status:     workflow.StatusFinished,
		Logs:       "né\n\"quoted\"\n",
		EventTime:  time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC),
		Engine:     "serial",
		Progress:   workflow.Progress{Total: workflow.Count(2), Finished: workflow.JobIDs("a", "b")},
	}
	before := time.Now().Add(-time.Second)
	if err := p.Status(soon(t), want); err != nil {
		t.Fatal(err)
	}
	got := drain(t, admin(t, cfg.URL), cfg.Queues.Status)
	if len(got) != 1 {
		t.Fatalf("%d messages are in the queue, want 1", len(got))
	}
	d := got[0]
	decoded, err := wire.DecodeStatus(d.Body, schemas.Limits{})
	if err != nil {
		t.Fatalf("decoding what was published: %v", err)
	}
	wantBody, err := wire.EncodeStatus(want)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(d.Body, wantBody) || !decoded.EventTime.Equal(want.EventTime) {
		t.Errorf("the body is\n%s\nwant\n%s", d.Body, wantBody)
	}
	type properties struct {
		ContentType, ContentEncoding, AppID string
		DeliveryMode, Priority              uint8
		Headers                             int
	}
	if diff := cmp.Diff(
		properties{"application/json", "utf-8", "waymark", amqp.Persistent, 0, 0},
		properties{d.ContentType, d.ContentEncoding, d.AppId, d.DeliveryMode, d.Priority, len(d.Headers)},
	); diff != "" {
		t.Errorf("properties (-want +got):\n%s", diff)
	}
	if id, err := uuid.Parse(d.MessageId); err != nil || id.Version() != 7 {
		t.Errorf("the message-id is %q, want a version 7 UUID", d.MessageId)
	}
	if d.Timestamp.Before(before) || d.Timestamp.After(time.Now()) {
		t.Errorf("the timestamp is %s, want about now", d.Timestamp)
	}
	if diff := cmp.Diff(publisher.Report{Accepted: 1, Confirmed: 1}, p.Report()); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	if err := p.LastError(); err != nil {
		t.Errorf("LastError() = %v, want nil", err)
	}
}

func TestSubmission(t *testing.T) {
	t.Parallel()
	for _, topology := range []publisher.Topology{publisher.Durable, publisher.Reana} {
		cfg := configure(t)
		cfg.Topology = topology
		p := start(t, cfg)
		for _, priority := range []int{0, 100, 40} {
			err := p.Submission(soon(t), &workflow.Submission{User: "u", Workflow: fmt.Sprint("w", priority), Priority: priority})
			if err != nil {
				t.Fatal(err)
			}
		}
		var got []uint8
		for _, d := range drain(t, admin(t, cfg.URL), cfg.Queues.Submission) {
			got = append(got, d.Priority)
		}
		if diff := cmp.Diff([]uint8{100, 40, 0}, got); diff != "" {
			t.Errorf("topology %s: priorities in the order of delivery (-want +got):\n%s", topology, diff)
		}
	}
}

// REANA's Python consumer decodes the body twice.
func TestEncodingReana(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	cfg.Encoding, cfg.Topology = publisher.EncodingReana, publisher.Reana
	p := start(t, cfg)
	msg := message("né")
	if err := p.Status(soon(t), msg); err != nil {
		t.Fatal(err)
	}
	got := drain(t, admin(t, cfg.URL), cfg.Queues.Status)
	if len(got) != 1 {
		t.Fatalf("%d messages are in the queue, want 1", len(got))
	}
	body := got[0].Body
	if !bytes.HasPrefix(body, []byte(`"{\"workflow_uuid\"`)) || bytes.ContainsFunc(body, func(r rune) bool { return r > 126 }) {
		t.Errorf("the body is %s, want a JSON string in ASCII", body)
	}
	var inner string
	if err := json.Unmarshal(body, &inner); err != nil {
		t.Fatalf("the body is no JSON string: %v", err)
	}
	var outer map[string]any
	if err := json.Unmarshal([]byte(inner), &outer); err != nil || outer["logs"] != "né" {
		t.Errorf("the inner JSON is %s (%v), want logs né", inner, err)
	}
}

func TestPipelined(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	cfg.Window = 50
	p := start(t, cfg)
	const n = 2000
	receipts := make([]*publisher.Receipt, n)
	for i := range n {
		r, err := p.SendStatus(soon(t), message(fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		receipts[i] = r
	}
	if err := p.Flush(soon(t)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(publisher.Report{Accepted: n, Confirmed: n}, p.Report()); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	got := drain(t, admin(t, cfg.URL), cfg.Queues.Status)
	if len(got) != n {
		t.Fatalf("%d messages are in the queue, want %d", len(got), n)
	}
	for i, r := range receipts {
		select {
		case <-r.Done():
		default:
			t.Errorf("the receipt of message %d is not done after Flush", i)
		}
		if err := r.Wait(t.Context()); err != nil {
			t.Errorf("message %d: %v", i, err)
		}
		if r.MessageID() != got[i].MessageId {
			t.Fatalf("message %d in the queue has id %s, want %s: the order of one goroutine is kept", i, got[i].MessageId, r.MessageID())
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	cfg.Window = 20
	p := start(t, cfg)
	const senders, each = 8, 100
	stop := make(chan struct{})
	var watcher, wg sync.WaitGroup
	watcher.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				r := p.Report()
				balanced(t, r)
				if r.InFlight > int64(cfg.Window) {
					t.Errorf("%d messages are in flight, want at most %d", r.InFlight, cfg.Window)
				}
				_ = p.LastError()
			}
		}
	})
	for s := range senders {
		wg.Go(func() {
			for i := range each {
				var err error
				if i%2 == 0 {
					err = p.Status(soon(t), message(fmt.Sprintf("%d %d", s, i)))
				} else {
					_, err = p.SendStatus(soon(t), message(fmt.Sprintf("%d %d", s, i)))
				}
				if err != nil {
					t.Errorf("sender %d, message %d: %v", s, i, err)
				}
				if i%25 == 0 {
					if err := p.Flush(soon(t)); err != nil {
						t.Errorf("sender %d: %v", s, err)
					}
				}
			}
		})
	}
	wg.Wait()
	if err := p.Close(soon(t)); err != nil {
		t.Error(err)
	}
	close(stop)
	watcher.Wait()
	next := make(map[int]int)
	for _, d := range drain(t, admin(t, cfg.URL), cfg.Queues.Status) {
		msg, err := wire.DecodeStatus(d.Body, schemas.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		var s, i int
		if _, err := fmt.Sscan(msg.Logs, &s, &i); err != nil {
			t.Fatal(err)
		}
		if i != next[s] {
			t.Errorf("sender %d: message %d came where %d was due", s, i, next[s])
		}
		next[s] = i + 1
	}
	for s := range senders {
		if next[s] != each {
			t.Errorf("sender %d: %d messages are in the queue, want %d", s, next[s], each)
		}
	}
}

func TestInvalid(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	p := start(t, cfg)
	if err := p.Ready(soon(t)); err != nil {
		t.Fatal(err)
	}
	ctx := soon(t)
	raw := func(body []byte, queue string, props publisher.Properties) func() error {
		return func() error {
			_, err := p.SendRaw(ctx, queue, body, props)
			return err
		}
	}
	for _, tc := range []struct {
		name string
		send func() error
		want string
	}{
		{"no message", func() error { return p.Status(ctx, nil) }, "it is nil"},
		{"no submission", func() error { return p.Submission(ctx, nil) }, "it is nil"},
		{"status out of range", func() error {
			return p.Status(ctx, &workflow.StatusMessage{WorkflowID: uuid.New(), Status: 8})
		}, "/status"},
		{"job id with NUL", func() error {
			m := message("")
			m.Progress.Running = workflow.JobIDs("a\x00")
			_, err := p.SendStatus(ctx, m)
			return err
		}, "/message/progress/running/job_ids/0"},
		{"priority too high", func() error {
			return p.Submission(ctx, &workflow.Submission{User: "u", Workflow: "w", Priority: 256})
		}, "/priority"},
		{"no user", func() error {
			_, err := p.SendSubmission(ctx, &workflow.Submission{Workflow: "w"})
			return err
		}, "/user"},
		{"huge", func() error { return p.Status(ctx, message(strings.Repeat("x", 17<<20))) }, "bytes"},
		{"huge raw body", raw(make([]byte, 16<<20+1), "q", publisher.Properties{}), "16777217 bytes long"},
		{"no queue", raw(nil, "", publisher.Properties{}), "queue name is 0 bytes long"},
		{"long queue name", raw(nil, strings.Repeat("q", 256), publisher.Properties{}), "queue name is 256 bytes long"},
		{"long message-id", raw(nil, "q", publisher.Properties{MessageID: strings.Repeat("é", 128)}), "message-id"},
		{"message-id in no encoding", raw(nil, "q", publisher.Properties{MessageID: "\xff"}), "message-id"},
		{"long content type", raw(nil, "q", publisher.Properties{ContentType: strings.Repeat("x", 256)}), "content type"},
		{"header of no AMQP type", raw(nil, "q", publisher.Properties{Headers: map[string]any{"h": struct{}{}}}), "headers"},
		{"huge header", raw(nil, "q", publisher.Properties{Headers: map[string]any{"h": strings.Repeat("x", 65<<10)}}), "headers take"},
		{"huge nested headers", raw(nil, "q", publisher.Properties{Headers: map[string]any{"h": []any{amqp.Table{"a": make([]byte, 65<<10)}}}}), "headers take"},
		{"long header name", raw(nil, "q", publisher.Properties{Headers: map[string]any{strings.Repeat("x", 256): 1}}), "header name"},
	} {
		before := p.Report()
		err := tc.send()
		if _, ok := errors.AsType[*publisher.InvalidError](err); !ok || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %.300v, want an InvalidError with %q", tc.name, err, tc.want)
		}
		after := p.Report()
		before.Invalid++
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("%s: report (-want +got):\n%s", tc.name, diff)
		}
	}
	if _, ok := errors.AsType[*schemas.Error](p.Status(ctx, &workflow.StatusMessage{WorkflowID: uuid.New(), Status: -1})); !ok {
		t.Error("the schema's error cannot be had from the InvalidError")
	}
	// The publisher is none the worse for it.
	if err := p.Status(ctx, message("fine")); err != nil {
		t.Error(err)
	}
	if n := depth(t, admin(t, cfg.URL), cfg.Queues.Status); n != 1 {
		t.Errorf("%d messages are in the queue, want only the valid one", n)
	}
}

// The limit of size is the caller's to set, in both directions.
func TestMaxMessageBytes(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	cfg.MaxMessageBytes = 17 << 20
	p := start(t, cfg)
	for _, tc := range []struct {
		size  int
		wants string
	}{{17 << 20, ""}, {17<<20 + 1, "17825793 bytes long: at most 17825792 are allowed"}} {
		r, err := p.SendRaw(soon(t), cfg.Queues.Status, make([]byte, tc.size), publisher.Properties{})
		if tc.wants != "" {
			if err == nil || !strings.Contains(err.Error(), tc.wants) {
				t.Errorf("a body of %d bytes: %v, want an error with %q", tc.size, err, tc.wants)
			}
			continue
		}
		if err == nil {
			err = r.Wait(soon(t))
		}
		if err != nil {
			t.Errorf("a body of %d bytes: %v, want it confirmed", tc.size, err)
		}
	}
	cfg.MaxMessageBytes = -1
	if _, err := publisher.New(cfg); err == nil {
		t.Error("a limit below 0 is accepted")
	}
}

func TestSendRaw(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	cfg.Encoding = publisher.EncodingReana // which raw bodies do not care for
	p := start(t, cfg)
	body := []byte("not \xff even JSON\x00")
	props := publisher.Properties{
		ContentType: "text/plain",
		Headers:     map[string]any{"x-waymark-reason": "schema", "count": int64(math.MaxInt64), "nested": []any{amqp.Table{"a": "b"}}},
		MessageID:   "fixed",
		Priority:    7,
		Timestamp:   time.Unix(1_000_000_000, 0),
	}
	r, err := p.SendRaw(soon(t), cfg.Queues.Submission, body, props)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Wait(soon(t)); err != nil {
		t.Fatal(err)
	}
	got := drain(t, admin(t, cfg.URL), cfg.Queues.Submission)
	if len(got) != 1 {
		t.Fatalf("%d messages are in the queue, want 1", len(got))
	}
	if !bytes.Equal(got[0].Body, body) {
		t.Errorf("the body is %q, want %q", got[0].Body, body)
	}
	props.Timestamp = props.Timestamp.UTC()
	if diff := cmp.Diff(props, publisher.Properties{
		ContentType: got[0].ContentType,
		Headers:     got[0].Headers,
		MessageID:   got[0].MessageId,
		Priority:    got[0].Priority,
		Timestamp:   got[0].Timestamp.UTC(),
	}); diff != "" {
		t.Errorf("properties (-want +got):\n%s", diff)
	}
}

// A message near the limit spans many frames, and many writes of a corked link.
func TestLargeMessage(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	p := start(t, cfg)
	bodies := [][]byte{bytes.Repeat([]byte("0123456789abcdef"), 1<<20), {}, []byte("small")}
	for _, body := range bodies {
		if _, err := p.SendRaw(soon(t), cfg.Queues.Status, body, publisher.Properties{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(soon(t)); err != nil {
		t.Fatal(err)
	}
	for i, d := range drain(t, admin(t, cfg.URL), cfg.Queues.Status) {
		if !bytes.Equal(d.Body, bodies[i]) {
			t.Errorf("message %d came with %d bytes, changed; want %d", i, len(d.Body), len(bodies[i]))
		}
	}
}

func TestBadConfig(t *testing.T) {
	t.Parallel()
	good := publisher.Config{URL: "amqp://u:s3cret@127.0.0.1:1/"}
	for _, tc := range []struct {
		name   string
		change func(*publisher.Config)
		want   string
	}{
		{"no URL", func(c *publisher.Config) { c.URL = "" }, "URL is empty"},
		{"bad URL", func(c *publisher.Config) { c.URL = "http://u:s3cret@h" }, "scheme http"},
		{"topology", func(c *publisher.Config) { c.Topology = "quorum" }, `unknown topology "quorum"`},
		{"encoding", func(c *publisher.Config) { c.Encoding = "xml" }, `unknown encoding "xml"`},
		{"queues", func(c *publisher.Config) { c.Queues = publisher.Queues{Status: "a", Submission: "a"} }, "use two queues"},
		{"negative window", func(c *publisher.Config) { c.Window = -1 }, "window of -1"},
		{"huge window", func(c *publisher.Config) { c.Window = 1 << 30 }, "expected 1 to 100000"},
		{"negative timeout", func(c *publisher.Config) { c.ConfirmTimeout = -1 }, "confirm timeout"},
	} {
		cfg := good
		tc.change(&cfg)
		p, err := publisher.New(cfg)
		if err == nil {
			_ = p.Close(t.Context())
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: New = %v, want an error with %q and no password", tc.name, err, tc.want)
		}
	}
}

func TestClosed(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	p := start(t, cfg)
	if _, err := p.SendStatus(soon(t), message("")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := p.Close(soon(t)); err != nil {
			t.Fatal(err)
		}
	}
	if n := depth(t, admin(t, cfg.URL), cfg.Queues.Status); n != 1 {
		t.Errorf("%d messages are in the queue, want the one sent before Close", n)
	}
	if err := p.Status(soon(t), message("")); !errors.Is(err, publisher.ErrClosed) {
		t.Errorf("Status after Close = %v, want ErrClosed", err)
	}
	if _, err := p.SendStatus(soon(t), message("")); !errors.Is(err, publisher.ErrClosed) {
		t.Errorf("SendStatus after Close = %v, want ErrClosed", err)
	}
	if err := p.Flush(soon(t)); err != nil {
		t.Errorf("Flush after Close = %v, want nil", err)
	}
	balanced(t, p.Report())
}

func TestEndedContext(t *testing.T) {
	t.Parallel()
	cfg := configure(t)
	p := start(t, cfg)
	reason := errors.New("the user went home")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(reason)
	err := p.Status(ctx, message(""))
	if !errors.Is(err, publisher.ErrNotConfirmed) || !errors.Is(err, reason) || !strings.Contains(err.Error(), "not sent") {
		t.Errorf("Status = %v, want ErrNotConfirmed, the cause, and that it was not sent", err)
	}
	if r, err := p.SendStatus(ctx, message("")); !errors.Is(err, publisher.ErrNotConfirmed) || r != nil {
		t.Errorf("SendStatus = %v, %v, want no receipt and ErrNotConfirmed", r, err)
	}
	if diff := cmp.Diff(publisher.Report{}, p.Report()); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
}

// Nothing of a publisher may outlive Close: neither its own goroutines nor
// those of the library. Not parallel, so that no other publisher is about.
func TestCloseEndsGoroutines(t *testing.T) {
	for _, state := range []string{"connected", "used", "broker away", "server silent"} {
		cfg := configure(t)
		proxy, url := through(t, cfg.URL)
		cfg.URL = url
		switch state {
		case "broker away":
			proxy.close()
		case "server silent":
			proxy.ignore()
		}
		p := start(t, cfg)
		switch state {
		case "connected", "used":
			if err := p.Ready(soon(t)); err != nil {
				t.Fatal(err)
			}
		}
		if state == "used" {
			if err := p.Status(soon(t), message("")); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Close(soon(t)); err != nil {
			t.Errorf("%s: Close = %v", state, err)
		}
		servicetest.Eventually(t, patience, "the goroutines to end ("+state+")", func() error {
			for _, g := range goroutines() {
				if strings.Contains(g, "waymark/publisher.(") || strings.Contains(g, "amqp091-go.(") {
					return fmt.Errorf("there is still\n%s", g)
				}
			}
			return nil
		})
	}
}
