package devstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// server is what RabbitMQ and PostgreSQL have in common.
type server struct {
	name      string // for people
	folder    *folder
	logger    *slog.Logger
	temporary bool   // its data are worth nothing after Close
	remove    string // folder that Close removes
	clean     syscall.Signal
	// abort ends the server at once, and as tidily as that allows.
	abort syscall.Signal
	// choosePort is freePort, given the port of the last time.
	choosePort func(preferred int) (int, error)
	// launch starts the programs on s.port; the last one is the server itself.
	// What it returns is running also if it returns an error.
	launch func(ctx context.Context) ([]*process, error)
	// ping connects as a client and returns product and version.
	ping func(ctx context.Context) (string, error)

	mu        sync.Mutex // held while the processes change
	port      int
	processes []*process // none: stopped
	note      string

	failed    chan struct{} // closed when a process ended that nobody told to
	failOnce  sync.Once
	failedErr error
}

// errPortTaken: somebody took the port between our choice and the server's.
var errPortTaken = errors.New("the port was taken meanwhile")

// begin is the first start. If it fails, the server is closed.
func (s *server) begin(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.start(ctx); err != nil {
		s.folder.release()
		return err
	}
	return nil
}

// start starts the server and returns when it answers. The first start chooses
// a port, later ones keep it. s.mu is held.
func (s *server) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	begun := time.Now()
	choose := s.port == 0
	for attempt := 1; ; attempt++ {
		if choose {
			preferred := s.folder.state.Port
			if attempt > 1 {
				preferred = 0
			}
			port, err := s.choosePort(preferred)
			if err != nil {
				return err
			}
			s.port = port
		}
		product, err := s.try(ctx)
		if err == nil {
			s.note = fmt.Sprintf("%s on port %d, private, up in %.1f s", product, s.port, time.Since(begun).Seconds())
			break
		}
		if !errors.Is(err, errPortTaken) || attempt == 5 {
			return err
		}
		s.logger.Info("server found its port taken; trying again", "server", s.name, "port", s.port)
		if !choose { // whoever has it may be leaving
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
	}
	s.logger.Info("server started", "server", s.note)
	if !s.folder.state.Answered || s.folder.state.Port != s.port {
		s.folder.state.Answered, s.folder.state.Port = true, s.port
		return s.folder.save()
	}
	return nil
}

// try starts the programs once. On error nothing of them is left running.
func (s *server) try(ctx context.Context) (product string, err error) {
	var before int64
	if info, err := os.Stat(s.folder.file("server.log")); err == nil {
		before = info.Size()
	}
	processes, err := s.launch(ctx)
	s.processes = processes
	if err == nil {
		product, err = s.await(ctx)
	}
	if err == nil {
		for _, p := range processes {
			go s.watch(p)
		}
		return product, nil
	}
	if e := s.kill(); e != nil {
		return "", errors.Join(err, e)
	}
	if said := s.output(before); portTaken(said) {
		return "", fmt.Errorf("starting %s on port %d: %w", s.name, s.port, errPortTaken)
	} else {
		return "", fmt.Errorf("starting %s: %w; its last words:\n  %s", s.name, err, lastWords(said))
	}
}

// await pings until the server answers, one of its programs ends, or ctx is done.
func (s *server) await(ctx context.Context) (product string, err error) {
	ended := make(chan *process, len(s.processes))
	stop := make(chan struct{})
	var watchers errgroup.Group
	for _, p := range s.processes {
		watchers.Go(func() error {
			select {
			case <-p.done:
				ended <- p
			case <-stop:
			}
			return nil
		})
	}
	defer func() { close(stop); watchers.Wait() }()
	for {
		product, err = s.ping(ctx)
		select {
		case p := <-ended:
			return "", fmt.Errorf("it ended before it answered: %w", p.reason())
		default:
		}
		if err == nil {
			return product, nil
		}
		select {
		case p := <-ended:
			return "", fmt.Errorf("it ended before it answered: %w", p.reason())
		case <-ctx.Done():
			return "", fmt.Errorf("it did not answer (%w): %w", ctx.Err(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// reason says why a process ended; exit status 0 is one too.
func (p *process) reason() error {
	if p.err != nil {
		return p.err
	}
	return errors.New("exit status 0")
}

func portTaken(said string) bool {
	said = strings.ToLower(said)
	for _, words := range []string{"eaddrinuse", "address already in use", "already an epmd running"} {
		if strings.Contains(said, words) {
			return true
		}
	}
	return false
}

// output is what the server's programs wrote after the first bytes, at most
// the last 64 KiB of it.
func (s *server) output(after int64) string {
	file, err := os.Open(s.folder.file("server.log"))
	if err != nil {
		return ""
	}
	defer file.Close()
	const most = 64 << 10
	if info, err := file.Stat(); err == nil {
		after = max(after, info.Size()-most)
	}
	b, _ := io.ReadAll(io.NewSectionReader(file, after, most))
	return string(b)
}

// watch notes the end of a process that nobody told to end.
func (s *server) watch(p *process) {
	<-p.done
	if p.expected.Load() {
		return
	}
	s.failOnce.Do(func() {
		s.failedErr = fmt.Errorf("%s ended by itself: %w; its last words:\n  %s", s.name, p.reason(), lastWords(s.output(0)))
		close(s.failed)
	})
}

func (s *server) failure() error { return s.failedErr }

// Note says in one line what the server is, where, and how long it took to
// start. It holds no password.
func (s *server) Note() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.note
}

// PID is the process id of the server itself; 0 when it does not run.
func (s *server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.processes) == 0 {
		return 0
	}
	return s.processes[len(s.processes)-1].pid()
}

// Port is the loopback port the server answers on. It stays the same.
func (s *server) Port() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.port
}

// Output is the end of what the server's programs wrote, for a failed test.
func (s *server) Output() string { return s.output(0) }

// pids lists the server's programs. s.mu is held.
func (s *server) pids() []int {
	var all []int
	for _, p := range s.processes {
		if !p.ended() {
			all = append(all, p.pid())
		}
	}
	return all
}

// Pause stops every process of the server where it stands, as a machine that
// hangs: connections stay open and nothing answers.
func (s *server) Pause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := signalTree(s.pids(), syscall.SIGSTOP); err != nil {
		return fmt.Errorf("pausing %s: %w", s.name, err)
	}
	return nil
}

// Resume lets a paused server go on.
func (s *server) Resume() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.resume()
}

func (s *server) resume() error {
	if _, err := signalTree(s.pids(), syscall.SIGCONT); err != nil {
		return fmt.Errorf("resuming %s: %w", s.name, err)
	}
	return nil
}

// Stop ends the server cleanly and returns when all of it is gone, its port
// too. If ctx is done first, the server may still be stopping, and Stop or Kill
// may be called again.
func (s *server) Stop(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stop(ctx, s.clean)
}

func (s *server) stop(ctx context.Context, sig syscall.Signal) error {
	if len(s.processes) == 0 {
		return nil
	}
	begun := time.Now()
	roots := s.pids()
	all := append(roots, descendants(roots)...)
	births := make([]string, len(all))
	for i, pid := range all {
		births[i] = birth(pid)
	}
	for _, p := range s.processes {
		p.expected.Store(true)
	}
	if err := s.resume(); err != nil {
		return err
	}
	main := s.processes[len(s.processes)-1]
	if err := main.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stopping %s: %w", s.name, err)
	}
	select {
	case <-main.done:
	case <-ctx.Done():
		return fmt.Errorf("stopping %s: %w", s.name, ctx.Err())
	}
	for _, p := range s.processes {
		if err := p.kill(); err != nil {
			return fmt.Errorf("stopping %s: %w", s.name, err)
		}
	}
	if err := awaitEnd(all, births); err != nil {
		return fmt.Errorf("stopping %s: %w", s.name, err)
	}
	s.processes = nil
	s.logger.Info("server stopped", "server", s.name, "seconds", time.Since(begun).Round(10*time.Millisecond).Seconds())
	return nil
}

// Kill ends every process of the server at once, as a power cut would, except
// that what was written stays written. It returns when all are gone.
func (s *server) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kill()
}

func (s *server) kill() error {
	for _, p := range s.processes {
		p.expected.Store(true)
	}
	if err := killTree(s.pids()); err != nil {
		return fmt.Errorf("killing %s: %w", s.name, err)
	}
	for _, p := range s.processes {
		<-p.done
	}
	s.processes = nil
	return nil
}

// Restart stops the server if it runs, cleanly, and starts it again on the same
// port with the same data. It returns when the server answers.
func (s *server) Restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.stop(ctx, s.clean); err != nil {
		return err
	}
	return s.start(ctx)
}

// Close ends the server, cleanly if its data are to be kept, and returns when
// it is gone. The server cannot be used afterwards.
func (s *server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	sig := s.clean
	if s.temporary {
		sig = s.abort
	}
	err := s.stop(ctx, sig)
	if err != nil {
		s.logger.Warn("server did not stop; killing it", "server", s.name, "err", err)
		err = s.kill()
	}
	if err == nil && s.folder.lock != nil {
		err = s.folder.reap() // nothing should be left; this is where it would show
	}
	s.folder.release()
	if s.remove != "" {
		if e := os.RemoveAll(s.remove); e != nil {
			err = errors.Join(err, fmt.Errorf("removing the folder of %s: %w", s.name, e))
		}
	}
	return err
}

// openLog opens the file that the server's programs write to. It begins anew
// at a size that nobody reads any more.
func (f *folder) openLog() (*os.File, error) {
	flags := os.O_WRONLY | os.O_CREATE | os.O_APPEND
	if info, err := os.Stat(f.file("server.log")); err == nil && info.Size() > 10<<20 {
		flags |= os.O_TRUNC
	}
	log, err := os.OpenFile(f.file("server.log"), flags, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the server's log: %w", err)
	}
	return log, nil
}
