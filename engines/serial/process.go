package serial

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"waymark/engines"
)

const (
	// pipeDelay is how long the output of a command may stay open after its
	// shell has ended: a child in the background may hold it for ever.
	pipeDelay = 2 * time.Second
	// leftoverGrace is how long processes that a command left behind may take
	// to end. In a container they would be killed with it at once.
	leftoverGrace = time.Second
	// A process group that is to end is looked at often at first.
	firstPoll, lastPoll = 5 * time.Millisecond, 200 * time.Millisecond
)

// process is a command to run.
type process struct {
	command string
	dir     string
	env     []string
	output  io.Writer // of stdout and stderr, in the order of writing
	timeout time.Duration
	grace   time.Duration
	hurry   <-chan struct{}
	guard   *guard
}

// exit says how a command ended.
type exit struct {
	// code is the shell's exit code, 128 and the number for a signal, 127 if
	// it could not be started.
	code int
	// reason is why it did not end well; empty if it did.
	reason string
	// stopped is set if it was told to end because the run is to.
	stopped  bool
	timedOut bool
}

// run runs the command in a process group of its own and returns when all of
// the group has ended. When ctx ends or the time is over the group gets
// SIGTERM, and what is left of it after the grace SIGKILL.
func (p *process) run(ctx context.Context) exit {
	// If this process is killed, the kernel kills the shell (Pdeathsig). For
	// the kernel the parent is the thread that forked: were it to end, the
	// shell would be killed in the middle of its work. Go ends a thread only
	// when a goroutine that is locked to it ends; locking this goroutine for as
	// long as the command runs keeps any other from doing so.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	cmd := exec.Command("/bin/sh", "-c", p.command)
	cmd.Dir = p.dir
	cmd.Env = p.env
	cmd.Stdout, cmd.Stderr = p.output, p.output // one pipe: nothing changes places
	cmd.WaitDelay = pipeDelay
	cmd.SysProcAttr = processAttributes()
	if err := cmd.Start(); err != nil {
		return exit{code: 127, reason: fmt.Sprintf("starting the command: %v", err)}
	}
	group := cmd.Process.Pid
	p.guard.watch(group)
	defer p.guard.watch(0)

	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var timeout <-chan time.Time
	if p.timeout > 0 {
		timer := time.NewTimer(p.timeout)
		defer timer.Stop()
		timeout = timer.C
	}

	var out exit
	select {
	case err := <-ended:
		return p.leave(cmd, err)
	case <-ctx.Done():
		out.stopped = true
		out.reason = context.Cause(ctx).Error()
	case <-timeout:
		out.timedOut = true
		out.reason = fmt.Sprintf("timed out after %v s", p.timeout.Seconds())
	}
	select {
	case err := <-ended: // at the same moment: it did end by itself
		return p.leave(cmd, err)
	default:
	}
	terminate(group, p.grace, p.hurry)
	out.code, _ = exitOf(cmd, <-ended)
	return out
}

// leave clears up after a command that ended by itself.
func (p *process) leave(cmd *exec.Cmd, err error) (out exit) {
	terminate(cmd.Process.Pid, leftoverGrace, p.hurry)
	out.code, out.reason = exitOf(cmd, err)
	return out
}

// terminate ends a process group: SIGTERM, then SIGKILL for what is left of it
// after the grace, or as soon as there is haste. It returns when the group is
// gone, or has been given up: a process in the kernel's hands may take longer.
func terminate(group int, grace time.Duration, hurry <-chan struct{}) {
	if syscall.Kill(-group, syscall.SIGTERM) != nil {
		return // nobody is left
	}
	syscall.Kill(-group, syscall.SIGCONT) // a stopped process could not react
	if !gone(group, grace, hurry) {
		syscall.Kill(-group, syscall.SIGKILL)
		gone(group, leftoverGrace, nil)
	}
}

// gone waits for a process group to end, for d or until there is haste.
func gone(group int, d time.Duration, hurry <-chan struct{}) bool {
	deadline := time.NewTimer(d)
	defer deadline.Stop()
	for wait := firstPoll; groupAlive(group); wait = min(2*wait, lastPoll) {
		poll := time.NewTimer(wait)
		select {
		case <-poll.C:
		case <-deadline.C:
			return false
		case <-hurry:
			return false
		}
	}
	return true
}

// exitOf says how a command that has been waited for ended.
func exitOf(cmd *exec.Cmd, err error) (code int, reason string) {
	if cmd.ProcessState == nil {
		return 127, fmt.Sprintf("waiting for the command: %v", err)
	}
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ok && status.Signaled() {
		return 128 + int(status.Signal()), "killed by " + engines.SignalName(status.Signal())
	}
	code = cmd.ProcessState.ExitCode()
	switch {
	case code > 128 && code <= 128+64:
		// A shell says so of a child that a signal ended; it may also mean it.
		return code, fmt.Sprintf("exit code %d, as after %s", code, engines.SignalName(syscall.Signal(code-128)))
	case code != 0:
		return code, fmt.Sprintf("exit code %d", code)
	}
	return 0, "" // err can only be that the output was still held open
}

// A guard kills what a command has started if this process dies: Pdeathsig
// reaches the shell but not its children, which would go on working in a
// workspace that a resumed run is about to use. It is a shell that waits for
// the end of a pipe, in a session of its own, where no signal for this process
// reaches it.
type guard struct {
	cmd *exec.Cmd
	in  io.WriteCloser
}

const guardScript = `trap '' HUP INT TERM
group=0
while read -r line; do group=$line; done
if [ "$group" -gt 0 ]; then kill -s KILL -- "-$group"; fi
:`

// startGuard starts a guard. Without one the run goes on, a little less safe.
func startGuard(logger *slog.Logger) *guard {
	cmd := exec.Command("/bin/sh", "-c", guardScript)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Dir = "/"
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		logger.Warn("if this process is killed, its commands' children may live on", "err", err)
		return nil
	}
	return &guard{cmd: cmd, in: in}
}

// watch says which process group runs now; 0 for none.
func (g *guard) watch(group int) {
	if g != nil {
		fmt.Fprintln(g.in, group) // without a guard there is nothing to do about it
	}
}

func (g *guard) close() {
	if g != nil {
		g.in.Close()
		g.cmd.Wait()
	}
}

// capture takes the output of a command: to its log file, to whoever looks on,
// and the end of it to the job's log. It never fails, because the command would
// be killed by what is our trouble.
type capture struct {
	tail engines.Tail
	path string
	file *os.File
	out  io.Writer
	once *onceWarning
}

// onceWarning says each kind of trouble once in a run.
type onceWarning struct {
	logger *slog.Logger
	mu     sync.Mutex
	said   map[string]bool
}

func (o *onceWarning) warn(message string, args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.said[message] {
		o.said[message] = true
		o.logger.Warn(message, args...)
	}
}

func newCapture(path string, out io.Writer, once *onceWarning) *capture {
	c := &capture{path: path, out: out, once: once}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		c.lost(err)
	}
	c.file = file
	return c
}

func (c *capture) Write(p []byte) (int, error) {
	c.tail.Write(p)
	if c.file != nil {
		if _, err := c.file.Write(p); err != nil {
			c.lost(err)
			c.file.Close()
			c.file = nil
		}
	}
	if c.out != nil {
		if _, err := c.out.Write(p); err != nil {
			c.once.warn("the output of commands is no longer shown", "err", err)
			c.out = nil
		}
	}
	return len(p), nil
}

func (c *capture) lost(err error) {
	c.once.warn("the output of commands cannot be written to its log; the run goes on", "path", c.path, "err", err)
}

func (c *capture) close() {
	if c.file != nil {
		if err := c.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			c.lost(err)
		}
	}
}

// lastLines are the last n lines of s.
func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(len(lines)-n, 0):], "\n")
}
