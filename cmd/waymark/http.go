package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
)

// readiness is the answer of /readyz.
type readiness struct {
	Ready    bool   `json:"ready"`
	Broker   health `json:"broker"`
	Database health `json:"database"`
}

// health of one server, as seen by this process.
type health struct {
	OK    bool    `json:"ok"`
	Error *string `json:"error"`
}

func healthOf(err error) health {
	if err == nil {
		return health{OK: true}
	}
	return health{Error: known(err.Error())}
}

// listenHTTP opens the address of the operator's endpoints; nil if they are off.
func listenHTTP(ctx context.Context, address string) (net.Listener, error) {
	if address == "off" || address == "" {
		return nil, nil
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		// Not a mistake for sure: whoever starts it again may find it free.
		return nil, fmt.Errorf("http.listen: %s is in use, maybe by another waymark serve: choose another with --http-listen, or off", address)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("http.listen: %s is no address of this machine, or not yet", address)
	case err != nil:
		return nil, usage("http.listen: %w", err)
	}
	return l, nil
}

// maxConnections bounds the connections to the endpoints: each costs a file and
// some memory. More wait in the system's queue.
const maxConnections = 256

// limited is a listener that has at most so many connections open.
type limited struct {
	net.Listener
	room chan struct{}
}

func (l limited) Accept() (net.Conn, error) {
	l.room <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.room
		return nil, err
	}
	return &counted{Conn: c, leave: sync.OnceFunc(func() { <-l.room })}, nil
}

// counted is a connection that makes room when it is closed.
type counted struct {
	net.Conn
	leave func()
}

func (c *counted) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// serveHTTP answers on l until ctx ends. weblog is nil if posts are not taken.
func serveHTTP(ctx context.Context, l net.Listener, logger *slog.Logger, registry *prometheus.Registry, ready func() readiness, weblog http.Handler) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintln(w, "ok") // whoever asked and left does not need the answer
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		answer := ready()
		text, err := json.Marshal(answer)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if !answer.Ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_, _ = w.Write(append(text, '\n'))
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{Registry: registry}))
	paths := "/healthz /readyz /metrics"
	if weblog != nil {
		mux.Handle(weblogPath, weblog)
		mux.Handle(weblogPath+"/{$}", weblog)
		paths += " " + weblogPath
	}
	server := &http.Server{
		Handler:           mux,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
	}
	logger.Info("listening", "address", "http://"+l.Addr().String(), "paths", paths)
	if !isLoopback(l.Addr()) {
		logger.Warn("other machines can reach the endpoints, which ask for no password; they tell names of servers, users and queues, and counts, never what a message holds",
			"address", l.Addr().String())
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := server.Serve(limited{l, make(chan struct{}, maxConnections)}); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serving HTTP on %s: %w", l.Addr(), err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		// The requests under way may end though the program is told to.
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if err := server.Shutdown(closing); err != nil {
			return server.Close()
		}
		return nil
	})
	return g.Wait()
}
