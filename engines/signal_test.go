package engines

import (
	"context"
	"errors"
	"os"
	"syscall"
	"testing"
	"time"
)

func TestNotifyContext(t *testing.T) {
	ctx, hurry, stop := NotifyContext(t.Context(), syscall.SIGUSR1)
	defer stop()
	signalSelf := func() {
		if err := syscall.Kill(os.Getpid(), syscall.SIGUSR1); err != nil {
			t.Fatalf("signalling the test: %v", err)
		}
	}
	wait := func(what string, c <-chan struct{}) {
		t.Helper()
		select {
		case <-c:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s did not come within 10 s", what)
		}
	}

	signalSelf()
	wait("the end of the context", ctx.Done())
	stopped, ok := errors.AsType[*StopError](context.Cause(ctx))
	if !ok || stopped.Error() != "stopped by SIGUSR1" || stopped.ExitCode() != 128+int(syscall.SIGUSR1) {
		t.Errorf("the cause is %v, want a StopError of SIGUSR1", context.Cause(ctx))
	}
	select {
	case <-hurry:
		t.Error("one signal is not two")
	default:
	}
	signalSelf()
	wait("haste after a second signal", hurry)
}

func TestNotifyContextStop(t *testing.T) {
	ctx, hurry, stop := NotifyContext(t.Context(), syscall.SIGUSR2)
	stop()
	stop() // harmless
	if ctx.Err() == nil || !errors.Is(context.Cause(ctx), context.Canceled) {
		t.Errorf("after stop the context ends with %v", context.Cause(ctx))
	}
	select {
	case <-hurry:
		t.Error("stop is not a second signal")
	default:
	}
}
