package nextflow

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"waymark/engines"
)

// Engine is the name of the engine in messages.
const Engine = "nextflow"

// forwardTimeout is how long a user's own receiver may take for a post.
const forwardTimeout = 30 * time.Second

// Adapter implements [engines.Adapter]. The zero value is ready.
type Adapter struct{}

// Engine is the name of the engine in messages.
func (Adapter) Engine() string { return Engine }

// Prepare opens a receiver on a free port of this machine, and has "nextflow run"
// post there. A receiver that the user has set gets every post as well.
//
// With -resume, tasks that the cache answers for are only in the trace file. One
// is asked for if that changes nothing: see [commandLine.mayTrace].
func (Adapter) Prepare(_ context.Context, l *engines.Launch) (engines.Watch, error) {
	c, err := parseCommandLine(l)
	if err != nil || c == nil {
		return engines.Watch{}, err
	}
	if c.background {
		l.Logger.Warn("nextflow -bg goes on alone, and is not reported; leave -bg away, or post to waymark serve with -with-weblog")
		return engines.Watch{}, nil
	}
	if c.offline() && !c.hasPlugin() {
		return engines.Watch{}, errors.New("nextflow is offline, and the plugin nf-weblog is not installed: with -with-weblog it would not start")
	}
	users, err := c.usersReceiver()
	if err != nil {
		return engines.Watch{}, err
	}
	if users != "" && c.elsewhere {
		// On another machine, say, it could not reach us, and its posts would be lost.
		return engines.Watch{}, errors.New("nextflow posts to a receiver already, and is not started directly: its posts stay as they are")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return engines.Watch{}, fmt.Errorf("opening a port for nextflow's posts: %w", err)
	}
	secret := make([]byte, 16)
	_, _ = rand.Read(secret) // never fails
	path := "/" + hex.EncodeToString(secret)
	c.setReceiver("http://" + listener.Addr().String() + path)
	s := &source{listener: listener, path: path, users: users}
	watch := engines.Watch{Reducer: NewReducer(l.WorkflowID), Sources: []engines.Source{s.receive}}
	switch file := c.traceFile(); {
	case file != "":
		watch.Sources = append(watch.Sources, follow(file))
	case c.resume && c.mayTrace():
		file = filepath.Join(l.Temp, "trace.tsv")
		c.insert("-with-trace", file)
		watch.Sources = append(watch.Sources, follow(file))
	}
	l.Args = c.args
	reachable(l)
	return watch, nil
}

// reachable has Java not go through a proxy to this machine. It does not by
// itself, unless it is told of hosts without one.
func reachable(l *engines.Launch) {
	for _, name := range []string{"NO_PROXY", "no_proxy"} {
		if v := l.Getenv(name); v != "" && !slices.Contains(strings.Split(v, ","), "127.0.0.1") {
			l.Setenv(name, v+",127.0.0.1")
		}
	}
}

// source takes the posts of one run.
type source struct {
	listener net.Listener
	path     string // which nobody else on this machine can guess
	users    string // the user's own receiver; empty if there is none
}

// receive is an [engines.Source].
func (s *source) receive(ctx context.Context, emit func(engines.Event)) error {
	client := &http.Client{Timeout: forwardTimeout}
	if s.users != "" {
		defer client.CloseIdleConnections()
	}
	mux := http.NewServeMux()
	mux.Handle(s.path, Handler(func(r *http.Request, body []byte) int {
		emit(engines.Event{Source: Weblog, Line: body})
		if p, err := parsePost(body); err == nil && p.Event == taskCompleted && p.Trace != nil {
			if log := taskLog(p.Trace); log != nil {
				emit(engines.Event{Source: TaskLog, Line: log})
			}
		}
		if s.users != "" {
			// While Nextflow waits, as it would without us: so the order stays,
			// and the last post is through when it ends.
			return forward(r.Context(), client, s.users, r, body)
		}
		return http.StatusNoContent
	}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, MaxHeaderBytes: 64 << 10}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(s.listener) }()
	select {
	case err := <-ended:
		return fmt.Errorf("receiving nextflow's posts: %w", err)
	case <-ctx.Done():
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	err := server.Shutdown(closing)
	if err != nil {
		err = errors.Join(err, server.Close())
	}
	<-ended
	return err
}

// postable reports whether Nextflow could post to an address.
func postable(address string) bool {
	u, err := url.Parse(address)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}
