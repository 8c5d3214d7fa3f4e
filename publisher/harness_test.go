package publisher_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/broker"
	"waymark/internal/servicetest"
	"waymark/publisher"
	"waymark/workflow"
)

func TestMain(m *testing.M) { servicetest.Main(m) }

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

// soon is a context that ends after patience.
func soon(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// within is a context that ends after d, with a recognisable cause.
func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// configure returns a configuration with queues of the test's own.
func configure(t testing.TB) publisher.Config {
	t.Helper()
	status, submission := servicetest.Queues(t)
	return publisher.Config{
		Queues: publisher.Queues{Status: status, Submission: submission},
		URL:    servicetest.AMQP(t),
	}
}

// start makes a publisher and sees to it that it is closed.
func start(t testing.TB, cfg publisher.Config) *publisher.Publisher {
	t.Helper()
	p, err := publisher.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // whoever wants to wait has done so
		_ = p.Close(ctx)
	})
	return p
}

func message(logs string) *workflow.StatusMessage {
	return &workflow.StatusMessage{WorkflowID: uuid.New(), Status: workflow.StatusRunning, Logs: logs}
}

// admin is a channel of the test's own to the broker.
func admin(t testing.TB, url string) *amqp.Channel {
	t.Helper()
	conn, err := broker.Dial(t.Context(), broker.Config{URL: url, ConnectionName: "waymark test"})
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

// drain takes everything that is in a queue.
func drain(t testing.TB, ch *amqp.Channel, queue string) []amqp.Delivery {
	t.Helper()
	var all []amqp.Delivery
	for {
		d, ok, err := ch.Get(queue, true)
		if err != nil {
			t.Fatalf("reading queue %q: %v", queue, err)
		}
		if !ok {
			return all
		}
		all = append(all, d)
	}
}

func depth(t testing.TB, ch *amqp.Channel, queue string) int {
	t.Helper()
	q, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
	if err != nil {
		t.Fatalf("looking at queue %q: %v", queue, err)
	}
	return q.Messages
}

// balanced fails the test if the report does not add up.
func balanced(t testing.TB, r publisher.Report) {
	t.Helper()
	if r.Accepted != r.Confirmed+r.Spooled+r.DroppedProgress+r.DroppedLogs+r.Unroutable+r.NotConfirmed+r.InFlight {
		t.Errorf("the report does not add up: %+v", r)
	}
}

// proxy stands between a publisher and the broker and does what networks do.
type proxy struct {
	t       testing.TB
	backend string
	address string

	mu       sync.Mutex
	listener net.Listener
	links    map[net.Conn]net.Conn // accepted → backend
	deaf     chan struct{}         // while not nil, nothing comes back from the broker
	wg       sync.WaitGroup
}

// through starts a proxy and returns it with the URL that leads through it.
func through(t testing.TB, brokerURL string) (*proxy, string) {
	t.Helper()
	u, err := url.Parse(brokerURL)
	if err != nil {
		t.Fatal("the URL of the test's broker cannot be read")
	}
	p := &proxy{t: t, backend: u.Host, links: make(map[net.Conn]net.Conn)}
	p.open()
	t.Cleanup(func() {
		p.hear()
		p.close()
		p.wg.Wait()
	})
	u.Host = p.address
	return p, u.String()
}

// open accepts connections, on the same port each time.
func (p *proxy) open() {
	p.t.Helper()
	address := p.address
	if address == "" {
		address = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		p.t.Fatal(err)
	}
	p.mu.Lock()
	p.listener, p.address = l, l.Addr().String()
	p.mu.Unlock()
	p.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.serve(c) })
		}
	})
}

// close refuses connections and cuts those there are.
func (p *proxy) close() {
	p.mu.Lock()
	_ = p.listener.Close()
	p.mu.Unlock()
	p.cut()
}

// cut breaks the connections there are and says how many.
func (p *proxy) cut() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.links)
	for a, b := range p.links {
		_ = a.(*net.TCPConn).SetLinger(0) // a reset, as when a machine goes down
		_ = a.Close()
		_ = b.Close()
	}
	return n
}

// ignore holds back what the broker says; it still gets what it is sent.
func (p *proxy) ignore() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deaf = make(chan struct{})
}

// hear passes on what was held back, and what follows.
func (p *proxy) hear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.deaf != nil {
		close(p.deaf)
		p.deaf = nil
	}
}

func (p *proxy) serve(a net.Conn) {
	b, err := net.Dial("tcp", p.backend)
	if err != nil {
		_ = a.Close()
		return
	}
	p.mu.Lock()
	p.links[a] = b
	p.mu.Unlock()
	p.wg.Go(func() {
		_, _ = io.Copy(b, a)
		_ = b.Close()
	})
	buf := make([]byte, 64<<10)
	for {
		n, err := b.Read(buf)
		p.mu.Lock()
		deaf := p.deaf
		p.mu.Unlock()
		if deaf != nil {
			<-deaf
		}
		if n > 0 {
			if _, err := a.Write(buf[:n]); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	_ = a.Close()
	_ = b.Close()
	p.mu.Lock()
	delete(p.links, a)
	p.mu.Unlock()
}

// logbook collects what a publisher logs.
type logbook struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logbook) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logbook) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// settled returns nil once n messages are settled.
func settled(p *publisher.Publisher, n int64) func() error {
	return func() error {
		if r := p.Report(); r.Accepted-r.InFlight != n {
			return fmt.Errorf("%d messages are settled, want %d: %+v, last error %v", r.Accepted-r.InFlight, n, r, p.LastError())
		}
		return nil
	}
}

// goroutines are the stacks of all goroutines.
func goroutines() []string {
	buf := make([]byte, 1<<20)
	return strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n")
}
