package consumer_test

import (
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"waymark/internal/servicetest"
)

// mute is a way to the broker that can go silent, as a firewall or a frozen
// machine does: connections stay open, and nothing comes or goes.
type mute struct {
	URL  string
	once sync.Once
	quit chan struct{}
}

func newMute(t *testing.T, broker string) *mute {
	t.Helper()
	u, err := url.Parse(broker)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m, address := &mute{quit: make(chan struct{})}, u.Host
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", address)
			if err != nil {
				t.Errorf("reaching the broker: %v", err)
				client.Close()
				return
			}
			mu.Lock()
			open = append(open, client, server)
			mu.Unlock()
			for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
				wg.Go(func() { io.Copy(way[1], muted{way[0], m.quit}) })
			}
		}
	})
	t.Cleanup(func() {
		m.silence()
		l.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	u.Host = l.Addr().String()
	m.URL = u.String()
	return m
}

func (m *mute) silence() { m.once.Do(func() { close(m.quit) }) }

// muted reads nothing more once quit is closed, and does not say so to the
// other side.
type muted struct {
	net.Conn
	quit chan struct{}
}

func (c muted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	select {
	case <-c.quit:
		return 0, io.EOF
	default:
		return n, err
	}
}

// A broker that does not answer the farewell must not keep the process from
// ending.
func TestEndsThoughTheBrokerIsSilent(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.declare()
	way := newMute(t, s.url)
	s.cfg.URL = way.URL
	c, stop := s.start()
	servicetest.Eventually(t, patience, "a session is open", func() error { return c.Health().Broker })
	way.silence()
	began := time.Now()
	stop()
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("Run ended %v after its context, want a few seconds", took)
	}
}
