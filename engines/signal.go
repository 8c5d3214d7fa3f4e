package engines

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// StopError is the cause of the end of a context that a signal ended. Engines
// look for it to say by what a run was stopped.
type StopError struct {
	Signal syscall.Signal
}

// Error returns, for example, "stopped by SIGTERM".
func (e *StopError) Error() string { return "stopped by " + SignalName(e.Signal) }

// ExitCode is what a shell would report of a program that the signal ended:
// 128 and the signal's number.
func (e *StopError) ExitCode() int { return 128 + int(e.Signal) }

// NotifyContext returns a context that ends when one of the signals comes, with
// a *[StopError] as its cause, and a channel that is closed when a second one
// does: the person at the keyboard has lost patience, and what is left should
// be cut short. stop releases the signals; call it when the run is over.
func NotifyContext(parent context.Context, signals ...os.Signal) (ctx context.Context, hurry <-chan struct{}, stop context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	arrived := make(chan os.Signal, 2)
	signal.Notify(arrived, signals...)
	second, quit, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for n := 1; n <= 2; n++ {
			select {
			case s := <-arrived:
				if n == 2 {
					close(second)
					return
				}
				number, _ := s.(syscall.Signal)
				cancel(&StopError{Signal: number})
			case <-quit:
				return
			}
		}
	}()
	var once sync.Once
	return ctx, second, func() {
		once.Do(func() {
			signal.Stop(arrived)
			close(quit)
			<-ended
			cancel(context.Canceled)
		})
	}
}

var signalNames = map[syscall.Signal]string{
	syscall.SIGABRT: "SIGABRT", syscall.SIGALRM: "SIGALRM", syscall.SIGBUS: "SIGBUS",
	syscall.SIGFPE: "SIGFPE", syscall.SIGHUP: "SIGHUP", syscall.SIGILL: "SIGILL",
	syscall.SIGINT: "SIGINT", syscall.SIGKILL: "SIGKILL", syscall.SIGPIPE: "SIGPIPE",
	syscall.SIGQUIT: "SIGQUIT", syscall.SIGSEGV: "SIGSEGV", syscall.SIGSYS: "SIGSYS",
	syscall.SIGTERM: "SIGTERM", syscall.SIGTRAP: "SIGTRAP", syscall.SIGUSR1: "SIGUSR1",
	syscall.SIGUSR2: "SIGUSR2", syscall.SIGXCPU: "SIGXCPU", syscall.SIGXFSZ: "SIGXFSZ",
}

// SignalName is the name people know s by, such as "SIGTERM"; "signal 34" for
// one without.
func SignalName(s syscall.Signal) string {
	if name, ok := signalNames[s]; ok {
		return name
	}
	return fmt.Sprintf("signal %d", int(s))
}
