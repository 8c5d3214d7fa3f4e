package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"waymark/internal/servicetest"
	"waymark/store"
)

// gate is a way to the server that can be shut for a while.
type gate struct {
	net.Listener
	mu     sync.Mutex
	refuse int // so many connections
	conns  []net.Conn
}

func newGate(t *testing.T, server string) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{Listener: l}
	var copies sync.WaitGroup
	copies.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", server)
			if err != nil {
				in.Close()
				continue
			}
			g.mu.Lock()
			if g.conns = append(g.conns, in, out); g.refuse > 0 {
				g.refuse--
				in.Close()
			}
			g.mu.Unlock()
			for _, c := range [][2]net.Conn{{in, out}, {out, in}} {
				copies.Go(func() {
					_, _ = io.Copy(c[0], c[1]) // ends when either is closed
					c[0].Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		l.Close()
		g.shut(0)
		copies.Wait()
	})
	return g
}

// shut cuts all connections and refuses the next ones.
func (g *gate) shut(next int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refuse = next
	for _, c := range g.conns {
		c.Close()
	}
	g.conns = nil
}

// Each try of an outage fails from another port of ours, and with one of
// several words for it. That is one reason, and one line.
func TestListenTellsOfAnOutageOnce(t *testing.T) {
	t.Parallel()
	d := servicetest.Database(t)
	server, err := pgx.ParseConfig(d.URL)
	if err != nil {
		t.Fatal(err)
	}
	g := newGate(t, net.JoinHostPort(server.Host, fmt.Sprint(server.Port)))
	_, port, _ := net.SplitHostPort(g.Addr().String())
	var log bytes.Buffer
	db, err := store.Open(t.Context(), store.Config{
		URL:    fmt.Sprintf("host=127.0.0.1 port=%s user=%s password=%s dbname=%s sslmode=disable", port, server.User, server.Password, server.Database),
		Schema: d.Schema, Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	enough := errors.New("enough")
	connects := 0
	err = db.Listen(ctx, func(context.Context, []uuid.UUID) error {
		if connects++; connects == 3 {
			return enough
		}
		g.shut(4)
		return nil
	})
	if !errors.Is(err, enough) {
		t.Fatalf("Listen = %v, want the callback's error after the third connect", err)
	}
	if n := strings.Count(log.String(), "\n"); n != 2 {
		t.Errorf("two outages were logged %d times, want once each:\n%s", n, &log)
	}
}

// What an outage is called does not change from one try to the next.
func TestOutageHasOneName(t *testing.T) {
	t.Parallel()
	g := newGate(t, "127.0.0.1:1") // where nothing listens
	db, err := store.Open(t.Context(), store.Config{URL: "postgres://u:secret@" + g.Addr().String() + "/db?sslmode=disable"})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for range 20 {
		if err := db.Ping(t.Context()); err == nil || strings.Contains(err.Error(), "->") || strings.Contains(err.Error(), "secret") {
			t.Fatalf("Ping = %v, want an error without our own port or the password", err)
		}
	}
}

// A caller that gives up while a silent server is being connected to is told
// so, and not that the server is to blame.
func TestGivingUpIsNoFaultOfTheServer(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		if c, err := silent.Accept(); err == nil {
			cancel()
			_, _ = io.Copy(io.Discard, c) // until the other end is closed
			c.Close()
		}
	}()
	db, err := store.Open(t.Context(), store.Config{URL: "postgres://u:secret@" + silent.Addr().String() + "/db?sslmode=disable"})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Ping(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Ping = %v, want one that is context.Canceled", err)
	}
}
