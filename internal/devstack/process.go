package devstack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// process is a child. It dies with this process.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // why; valid once done is closed
	// expected is set before the child is told to end.
	expected atomic.Bool
}

// limits lowers what a server would otherwise take to heart: where a million
// or more files may be open, as in some containers, Erlang and epmd make tables
// as large and are busy closing files that were never open. The usual 1024, on
// the other hand, is too little for RabbitMQ.
const limits = `ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -H -n)" 2>/dev/null || :; umask 077; exec "$0" "$@"`

// folderVariable marks every process of a folder, so that the next user of the
// folder knows what an earlier one has left.
const folderVariable = "WAYMARK_DEVSTACK_FOLDER"

// resolved is the one name of a folder that may have several.
func resolved(dir string) string {
	if name, err := filepath.EvalSymlinks(dir); err == nil {
		return name
	}
	return dir
}

// start runs a program in the folder as the server's user, with nothing but env
// in its environment. If this process dies, the kernel sends the child death.
func (f *folder) start(output io.Writer, env []string, death syscall.Signal, args ...string) (*process, error) {
	if !supported {
		return nil, fmt.Errorf("private servers need Linux, this is %s: give the URLs of running ones", runtime.GOOS)
	}
	cmd := exec.Command("/bin/sh", append([]string{"-c", limits}, args...)...)
	cmd.Dir = f.file("data")
	cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH") + ":/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
		"TZ=UTC",
		folderVariable + "=" + resolved(f.path),
	}, env...)
	cmd.Stdout, cmd.Stderr = output, output
	cmd.SysProcAttr = childAttributes(f.user, death)
	cmd.WaitDelay = time.Second // grandchildren may hold the output open

	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// The death signal comes with the end of the thread that started the
		// child, so that thread is kept until the child has ended.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", args[0], err)
	}
	if err := f.remember(p.pid()); err != nil {
		p.kill()
		return nil, err
	}
	return p, nil
}

// run is start, and waits for the end. It returns what the program wrote.
func (f *folder) run(ctx context.Context, env []string, args ...string) (string, error) {
	var output bytes.Buffer
	p, err := f.start(&output, env, syscall.SIGKILL, args...)
	if err != nil {
		return "", err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		p.kill()
		return "", fmt.Errorf("running %s: %w", filepath.Base(args[0]), ctx.Err())
	}
	if p.err != nil {
		return output.String(), fmt.Errorf("running %s: %w: %s", filepath.Base(args[0]), p.err, lastWords(output.String()))
	}
	return output.String(), nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// ended reports whether the child has ended.
func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// kill ends the child and its children at once, and returns when it is gone.
func (p *process) kill() error {
	p.expected.Store(true)
	if p.ended() {
		return nil // the pid may be somebody else's by now
	}
	err := killTree([]int{p.pid()})
	<-p.done
	return err
}

// signalTree sends sig to processes and all their descendants. Repeated until
// there are no new ones, it outruns a server that is just starting a child.
func signalTree(roots []int, sig syscall.Signal) (all []int, err error) {
	for {
		news := 0
		for _, pid := range append(slices.Clone(roots), descendants(append(slices.Clone(roots), all...))...) {
			if slices.Contains(all, pid) {
				continue
			}
			all, news = append(all, pid), news+1
			if e := syscall.Kill(pid, sig); e != nil && !errors.Is(e, syscall.ESRCH) {
				err = errors.Join(err, fmt.Errorf("sending %v to process %d: %w", sig, pid, e))
			}
		}
		if news == 0 {
			return all, err
		}
	}
}

// killTree ends processes and all their descendants, and returns when no port
// and no file is held by any of them.
func killTree(roots []int) error {
	if len(roots) == 0 {
		return nil
	}
	// Stopped first, so that nobody reacts to the death of another.
	all, err := signalTree(roots, syscall.SIGSTOP)
	births := make([]string, len(all))
	for i, pid := range all {
		births[i] = birth(pid)
	}
	for _, pid := range all {
		if e := syscall.Kill(pid, syscall.SIGKILL); e != nil && !errors.Is(e, syscall.ESRCH) {
			err = errors.Join(err, fmt.Errorf("killing process %d: %w", pid, e))
		}
	}
	if err != nil {
		return err
	}
	return awaitEnd(all, births)
}

// awaitEnd returns when none of the processes lives. Most are not children of
// this process, so there is nothing to wait on but /proc.
func awaitEnd(pids []int, births []string) error {
	deadline := time.Now().Add(closeTimeout)
	for i, pid := range pids {
		for births[i] != "" && birth(pid) == births[i] {
			if time.Now().After(deadline) {
				return fmt.Errorf("process %d does not end", pid)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return nil
}

// lastWords is the end of what a program wrote, in few lines.
func lastWords(output string) string {
	lines := strings.FieldsFunc(strings.ToValidUTF8(output, "?"), func(r rune) bool { return r == '\n' || r == '\r' })
	lines = slices.DeleteFunc(lines, func(line string) bool { return strings.TrimSpace(line) == "" })
	const most = 12
	if len(lines) > most {
		lines = lines[len(lines)-most:]
	}
	for i, line := range lines {
		lines[i] = strings.TrimSpace(line)
		if len(lines[i]) > 300 {
			lines[i] = lines[i][:300] + "…"
		}
	}
	if len(lines) == 0 {
		return "it wrote nothing"
	}
	return strings.Join(lines, "\n  ")
}
