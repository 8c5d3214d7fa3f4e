package engines

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/term"
)

// relayPatience is how long a Relay waits for a reader of its copy. A reader
// that takes nothing for that long is stopped, and gets what fits.
const relayPatience = time.Second

// Relay is the other half of [Supervision.Relay]: it copies standard input to
// standard output unchanged, and to the descriptor 3 for this package's
// Supervise. It ends with its input, and with nothing else: neither an output
// that is gone nor a copy that nobody reads holds up or ends the engine that
// writes to it.
//
// It is a process of its own because the engine must be able to write to its
// standard error after the process that supervises it was killed.
func Relay() {
	// The signals of the terminal and of a platform are for others.
	ignoreSignals()
	_ = syscall.SetNonblock(3, true)
	tap := os.NewFile(3, "copy")
	_, _ = tap.Write([]byte{relayHello})
	relay(os.Stdin, os.Stdout, tap)
}

// relayHello is the first byte of the copy. On a busy machine an engine may
// have ended before its relay has begun.
const relayHello = 0x06

// deadliner is what relay needs of its copy.
type deadliner interface {
	io.Writer
	SetWriteDeadline(time.Time) error
}

func relay(in io.Reader, out io.Writer, tap deadliner) {
	buffer := make([]byte, 64<<10)
	patience := relayPatience
	for {
		n, err := in.Read(buffer)
		if n > 0 {
			if out != nil {
				if _, e := out.Write(buffer[:n]); e != nil {
					out = nil
				}
			}
			if tap != nil {
				_ = tap.SetWriteDeadline(time.Now().Add(patience))
				switch _, e := tap.Write(buffer[:n]); {
				case e == nil:
					patience = relayPatience
				case errors.Is(e, os.ErrDeadlineExceeded):
					patience = time.Millisecond
				default: // the reader is gone
					tap = nil
				}
			}
		}
		if err != nil {
			return
		}
	}
}

// errorTap is the way of an engine's standard error: through a relay to where
// it goes without us, and in copy to the tail and, line by line, to the events.
// Without a relay it goes there directly. Where that is a terminal the engine
// gets one too, or it would do without colours.
type errorTap struct {
	direct  *os.File
	write   *os.File   // the engine's end
	read    *os.File   // our end of the copy
	spare   []*os.File // ends that are others' after the start
	screen  *os.File   // our side of the engine's terminal, if it has one
	relay   *exec.Cmd
	resized func()        // ends follow
	began   chan struct{} // closed once the relay works, or never will
	done    sync.WaitGroup
}

// newErrorTap starts a relay that passes on to stderr, and calls each with the
// copy, piece by piece, from another goroutine.
func newErrorTap(relay []string, stderr *os.File, each func([]byte)) (*errorTap, error) {
	t := &errorTap{direct: stderr}
	if err := t.start(relay, stderr); err != nil {
		return t, err
	}
	t.began = make(chan struct{})
	t.done.Go(func() {
		hello := make([]byte, 1)
		_, err := t.read.Read(hello)
		close(t.began)
		buffer := make([]byte, 32<<10)
		for err == nil {
			var n int
			n, err = t.read.Read(buffer)
			each(buffer[:n])
		}
	})
	return t, nil
}

// A Tap takes a copy of the end of a program's standard error on its way.
type Tap struct {
	tap  *errorTap
	tail Tail
}

// NewTap starts a relay, a program that calls [Relay], which passes on to stderr.
func NewTap(relay []string, stderr *os.File) (*Tap, error) {
	t := &Tap{}
	var err error
	t.tap, err = newErrorTap(relay, stderr, func(b []byte) { _, _ = t.tail.Write(b) })
	return t, err
}

// Stderr is what to give the program as its standard error.
func (t *Tap) Stderr() *os.File { return t.tap.engine() }

// Started is to be called once the program has been started, or could not be.
func (t *Tap) Started() { t.tap.started() }

// End returns the end of what the program wrote, once it has ended. What it left
// running goes on writing to where standard error goes without us.
func (t *Tap) End() string {
	t.tap.wait(drainDelay)
	return t.tail.String()
}

func (t *errorTap) start(command []string, stderr *os.File) (err error) {
	var all [4]*os.File
	defer func() {
		if err != nil {
			for _, f := range all {
				if f != nil {
					f.Close()
				}
			}
		}
	}()
	if isTerminal(stderr) {
		all[0], all[1], err = openTerminal(stderr)
	} else {
		all[0], all[1], err = os.Pipe()
	}
	if err != nil {
		return err
	}
	if all[2], all[3], err = os.Pipe(); err != nil {
		return err
	}
	t.relay = exec.Command(command[0], command[1:]...)
	t.relay.Stdin, t.relay.Stdout, t.relay.ExtraFiles = all[0], stderr, []*os.File{all[3]}
	t.relay.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err = t.relay.Start(); err != nil {
		return err
	}
	t.write, t.read, t.spare = all[1], all[2], []*os.File{all[0], all[3]}
	if isTerminal(stderr) {
		t.screen, t.spare = all[0], t.spare[1:]
		t.follow(stderr)
	}
	return nil
}

// openTerminal makes a terminal that looks like another and changes nothing of
// what is written to it: the other will do that.
func openTerminal(like *os.File) (ours, theirs *os.File, err error) {
	ours, theirs, err = pty.Open()
	if err != nil {
		return nil, nil, fmt.Errorf("making a terminal for the engine: %w", err)
	}
	if _, err = term.MakeRaw(int(theirs.Fd())); err == nil {
		err = pty.InheritSize(like, ours)
	}
	if err != nil {
		ours.Close()
		theirs.Close()
		return nil, nil, fmt.Errorf("making a terminal for the engine: %w", err)
	}
	return ours, theirs, nil
}

// follow gives the engine's terminal the size of the real one until the end of
// the copy.
func (t *errorTap) follow(real *os.File) {
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	t.resized = func() { signal.Stop(resized); close(resized) }
	go func() {
		for range resized {
			_ = pty.InheritSize(real, t.screen)
		}
	}()
}

// engine is the engine's standard error.
func (t *errorTap) engine() *os.File {
	if t.write == nil {
		return t.direct
	}
	return t.write
}

// started gives up the ends that are the engine's and the relay's alone.
func (t *errorTap) started() {
	if t.write == nil {
		return
	}
	t.write.Close()
	for _, f := range t.spare {
		f.Close()
	}
}

// wait waits for the end of the copy, and d at most: what the engine left
// running may hold it open, and goes on writing to the relay.
func (t *errorTap) wait(d time.Duration) {
	if t.write == nil {
		return
	}
	select {
	case <-t.began:
	case <-time.After(10 * d):
	}
	_ = t.read.SetReadDeadline(time.Now().Add(d))
	t.done.Wait()
	t.read.Close()
	if t.screen != nil {
		t.resized()
		t.screen.Close()
	}
	go func() { _ = t.relay.Wait() }() // it ends with the last that writes to it
}
