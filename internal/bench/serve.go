package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"syscall"
	"time"

	"github.com/prometheus/procfs"

	"waymark/store"
)

// CaseServe is the case of EndToEnd of a "waymark serve" process.
const CaseServe = "waymark serve"

const (
	// idleFor is how long an idle process is watched. It would have to use a
	// hundredth of a second of CPU to be seen: the system counts no finer.
	idleFor = 3 * time.Second
	// pollEvery is how often the ledger is asked how far a process has come.
	// The answer is late by at most this, in a run of seconds.
	pollEvery = 10 * time.Millisecond
	// patience bounds the start and the end of a process.
	patience = 30 * time.Second
)

// serve measures a process of its own, as it is in production: how long it
// takes from its start to /readyz, what it holds and uses while idle, and then,
// in a second process, how fast it empties a prefilled queue and at what cost.
// Memory is the resident set, whose peak the system keeps. Linux only.
func (b *Bench) serve(ctx context.Context, p *place, c *Case, db *store.DB, schema string, l Load) error {
	k := kindOf(b.cfg.Topology)
	queue, err := p.declare(k)
	if err != nil {
		return err
	}
	submissions := p.newQueue()
	idle, err := b.startProcess(ctx, ServePlace{StatusQueue: queue, SubmissionQueue: submissions, Schema: schema})
	if err != nil {
		return err
	}
	err = idle.idle(ctx, c)
	if err = errors.Join(err, idle.stop()); err != nil {
		return err
	}

	total := l.WarmUp + l.Messages + b.tail(1)
	if _, err := p.fill(ctx, queue, k.mode, l, total); err != nil {
		return err
	}
	before, err := received(ctx, db)
	if err != nil {
		return err
	}
	busy, err := b.startProcess(ctx, ServePlace{StatusQueue: queue, SubmissionQueue: submissions, Schema: schema})
	if err != nil {
		return err
	}
	err = busy.drain(ctx, c, db, before, int64(l.WarmUp), int64(l.Messages), int64(total))
	if err = errors.Join(err, busy.stop()); err != nil {
		return err
	}
	return errors.Join(p.deleteQueue(queue), p.deleteQueue(submissions))
}

// process is a running "waymark serve".
type process struct {
	cmd     *exec.Cmd
	proc    procfs.Proc
	url     string
	began   time.Time
	said    bytes.Buffer
	ended   chan struct{}
	failure error
}

func (b *Bench) startProcess(ctx context.Context, at ServePlace) (*process, error) {
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	at.Listen = address
	cmd, err := b.cfg.Serve(at)
	if err != nil {
		return nil, err
	}
	s := &process{cmd: cmd, url: "http://" + address, ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = io.Discard, &s.said
	cmd.SysProcAttr = processAttributes()
	s.began = time.Now()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting waymark serve: %w", err)
	}
	go func() {
		defer close(s.ended)
		s.failure = cmd.Wait()
	}()
	if s.proc, err = procfs.NewProc(cmd.Process.Pid); err != nil {
		return nil, errors.Join(fmt.Errorf("looking at the process of waymark serve: %w", err), s.stop())
	}
	return s, nil
}

// freeAddress is a loopback address that was free a moment ago.
func freeAddress(ctx context.Context) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("finding a free port: %w", err)
	}
	return l.Addr().String(), l.Close()
}

// stop asks the process to end, kills one that does not, and waits for it.
func (s *process) stop() error {
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	timer := time.AfterFunc(patience, func() { _ = s.cmd.Process.Kill() })
	defer timer.Stop()
	<-s.ended
	if s.failure != nil {
		return fmt.Errorf("waymark serve: %w; it said at last: %s", s.failure, lastLine(s.said.Bytes()))
	}
	return nil
}

func lastLine(text []byte) []byte {
	text = bytes.TrimSpace(text)
	return text[bytes.LastIndexByte(text, '\n')+1:]
}

// idle waits until the process is ready and watches it do nothing.
func (s *process) idle(ctx context.Context, c *Case) error {
	if err := s.ready(ctx); err != nil {
		return err
	}
	c.add("ready after", "s", time.Since(s.began).Seconds())
	// Whatever a start leaves behind is over soon.
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	before, err := s.proc.Stat()
	if err != nil {
		return fmt.Errorf("looking at the process of waymark serve: %w", err)
	}
	if err := pause(ctx, idleFor); err != nil {
		return err
	}
	after, err := s.proc.Stat()
	if err != nil {
		return fmt.Errorf("looking at the process of waymark serve: %w", err)
	}
	c.add("idle cpu", "% of a core", 100*(after.CPUTime()-before.CPUTime())/idleFor.Seconds())
	c.add("idle memory", "MB", float64(after.ResidentMemory())/1e6)
	return nil
}

// ready waits for /readyz.
func (s *process) ready(ctx context.Context) error {
	deadline := time.Now().Add(patience)
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/readyz", nil)
		if err != nil {
			return err
		}
		answer, err := http.DefaultClient.Do(request)
		if err == nil {
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(answer.Status)
		}
		select {
		case <-s.ended:
			return errors.New("waymark serve ended before it was ready")
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waymark serve is not ready after %s: %w", patience, err)
		}
		if err := pause(ctx, 2*time.Millisecond); err != nil {
			return err
		}
	}
}

// drain watches the process empty a queue of total messages, of which it
// measures some after the first skip. How far it has come, the ledger says,
// which is written with the effects.
func (s *process) drain(ctx context.Context, c *Case, db *store.DB, before, skip, measured, total int64) error {
	var from procfs.ProcStat
	var began time.Time
	counted, stopped := int64(0), false
	for {
		n, err := received(ctx, db)
		if err != nil {
			return err
		}
		n -= before
		at := time.Now()
		stat, err := s.proc.Stat()
		if err != nil {
			return fmt.Errorf("looking at the process of waymark serve: %w", err)
		}
		if began.IsZero() && n >= max(skip, 1) {
			began, from, counted = at, stat, n
		}
		if !stopped && n >= skip+measured {
			if n == counted {
				return fmt.Errorf("the %d messages were applied at once: measure more of them", measured)
			}
			c.add("rate", "msg/s", float64(n-counted)/at.Sub(began).Seconds())
			c.add("cpu", "µs/msg", (stat.CPUTime()-from.CPUTime())*1e6/float64(n-counted))
			stopped = true
		}
		if n >= total {
			break
		}
		select {
		case <-s.ended:
			return fmt.Errorf("waymark serve ended after %d of %d messages", n, total)
		default:
		}
		if err := pause(ctx, pollEvery); err != nil {
			return err
		}
	}
	// Not the rusage of the ended child: Linux hands a child its parent's peak.
	status, err := s.proc.NewStatus()
	if err != nil {
		return fmt.Errorf("looking at the process of waymark serve: %w", err)
	}
	c.add("peak memory", "MB", float64(status.VmHWM)/1e6)
	return nil
}

// received is how many deliveries the ledger of db holds.
func received(ctx context.Context, db *store.DB) (n int64, err error) {
	entries, err := db.Ledger(ctx)
	for _, e := range entries {
		n += e.Received
	}
	return n, err
}
