//go:build linux

package faults

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"waymark/internal/servicetest"
)

// patience is how long anything may take before it counts as hanging.
const patience = 3 * time.Minute

// built is where the programs are, made once for the whole suite, with the
// crash points.
var built struct {
	once sync.Once
	dir  string
	err  error
}

func program(t testing.TB, name string) string {
	t.Helper()
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "waymark-faults-"); built.err != nil {
			return
		}
		for name, pkg := range map[string]string{"waymark": "waymark/cmd/waymark", "publishtrace": "waymark/internal/faults/cmd/publishtrace"} {
			cmd := exec.Command("go", "build", "-tags", "faults", "-buildvcs=false", "-o", filepath.Join(built.dir, name), pkg)
			if out, err := cmd.CombinedOutput(); err != nil {
				built.err = fmt.Errorf("building %s: %w\n%s", pkg, err, out)
				return
			}
		}
		built.err = buildNext(built.dir, filepath.Join(built.dir, "waymark-next"))
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, name)
}

// buffer is what a process wrote, safe to read while it writes.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// process is a real one, which dies with the suite.
type process struct {
	name           string
	cmd            *exec.Cmd
	stdout, stderr buffer
	done           chan struct{}
	err            error // of its end, once done is closed

	broker, database *proxy // which only this process uses
}

func start(t testing.TB, name string, env []string, stdin string, args ...string) *process {
	t.Helper()
	p := &process{name: name, cmd: exec.Command(program(t, name), args...), done: make(chan struct{})}
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "TZ=UTC"}, env...)
	p.cmd.Dir = t.TempDir() // no waymark.yaml of anybody
	p.cmd.Stdin = strings.NewReader(stdin)
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		// The death signal comes with the end of the thread that started it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
		}
		close(p.done)
	}()
	if err := <-started; err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it may have ended
		<-p.done
		if t.Failed() {
			said := p.stderr.String()
			t.Logf("%s %q ended with: %v; standard error at last:\n%s", name, args, p.err, said[max(0, len(said)-3000):])
		}
	})
	return p
}

func (p *process) signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatalf("sending %v to %s: %v", s, p.name, err)
	}
}

// awaitFrozen returns when the process stands at its crash point.
func (p *process) awaitFrozen(t testing.TB) {
	t.Helper()
	servicetest.Eventually(t, patience, p.name+" comes to its crash point", func() error {
		select {
		case <-p.done:
			t.Fatalf("%s ended before it came to its crash point: %v; standard error:\n%s", p.name, p.err, p.stderr.String())
		default:
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
		if err != nil {
			return err
		}
		// The state follows the name, which stands in parentheses.
		if _, rest, _ := bytes.Cut(stat, []byte(") ")); len(rest) == 0 || rest[0] != 'T' {
			return fmt.Errorf("its state is %.1q", rest)
		}
		return nil
	})
}

// wait returns when the process has ended.
func (p *process) wait(t testing.TB) error {
	t.Helper()
	select {
	case <-p.done:
		return p.err
	case <-time.After(patience):
		t.Fatalf("%s does not end; standard error:\n%s", p.name, p.stderr.String())
		return nil
	}
}

// awaitKilled returns when the process has died at its crash point.
func (p *process) awaitKilled(t testing.TB) {
	t.Helper()
	err := p.wait(t)
	exit, _ := errors.AsType[*exec.ExitError](err)
	if exit == nil || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("%s was to be killed, and ended with: %v; standard error:\n%s", p.name, err, p.stderr.String())
	}
}

// awaitSaid returns when the process has logged the words.
func (p *process) awaitSaid(t testing.TB, words string) {
	t.Helper()
	servicetest.Eventually(t, patience, fmt.Sprintf("%s says %q", p.name, words), func() error {
		if !strings.Contains(p.stderr.String(), words) {
			return errors.New("it says: " + p.stderr.String())
		}
		return nil
	})
}

// stop asks the process to end, which it must do well.
func (p *process) stop(t testing.TB) {
	t.Helper()
	p.signal(t, syscall.SIGCONT)
	p.signal(t, syscall.SIGTERM)
	if err := p.wait(t); err != nil {
		t.Errorf("%s was asked to stop, and ended with: %v; standard error:\n%s", p.name, err, p.stderr.String())
	}
}
