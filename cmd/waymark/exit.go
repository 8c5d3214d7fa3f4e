package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"waymark/engines"
	"waymark/internal/broker"
	"waymark/workflow"
)

// The exit codes. They are part of the interface: help exit-codes explains
// them, and a code never changes its meaning.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitUnreachable = 3
	exitNotFound    = 4
	exitStopped     = 5
	exitInterrupted = 130
)

const exitCodesHelp = `Every command ends with one of these:

  0    what was asked for was done
  1    it was not: a message is invalid, a run failed, a dead letter died again
  2    the command line or the configuration is wrong; nothing was done
  3    RabbitMQ or PostgreSQL cannot be reached, or refuses us
  4    no such workflow or message, or a name that fits several
  5    watch: no watched run failed, but one was stopped or deleted
  130  interrupted by Ctrl-C (143: by SIGTERM); serve and dev, which have no
       other end, exit with 0 after a clean stop

"waymark run serial" ends like the workflow: 0 if it finished, else the exit code
of the command that failed (124 if it timed out, 1 if it has none), or 128 plus
the number of the signal that stopped it.

"waymark run ENGINE -- COMMAND" ends with the exit code of COMMAND, 128 plus the
number of the signal if one ended it; 127 if there is no such program, 126 if it
cannot be started. An engine that handles the signal chooses its code: after
Ctrl-C Snakemake ends with 1, cwltool and Toil with 130; after SIGTERM Snakemake
and Toil with 1, cwltool with 15. Whether a run failed or was stopped "waymark
watch" tells apart.

"waymark dev -- COMMAND" ends with the exit code of COMMAND.`

// exitError is an error with an exit code of its own. With a nil err there is
// nothing left to say.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// usage is an error of the command line or the configuration.
func usage(format string, args ...any) error {
	return &exitError{code: exitUsage, err: fmt.Errorf(format, args...)}
}

// unreachable marks err as a server's: out of reach, or refusing us. What the
// server does not know is another matter and stays as it is, as does a full
// disk under our own output.
func unreachable(err error) error {
	if err == nil || errors.Is(err, workflow.ErrNotFound) || errors.Is(err, workflow.ErrAmbiguous) {
		return err
	}
	if _, coded := errors.AsType[*exitError](err); coded {
		return err
	}
	if path, ok := errors.AsType[*os.PathError](err); ok && path.Path == os.Stdout.Name() {
		return err
	}
	if errors.Is(err, workflow.ErrRejected) {
		// A reader that is told so has asked for what no database can hold, such
		// as a name that is not UTF-8.
		return &exitError{code: exitUsage, err: err}
	}
	return &exitError{code: exitUnreachable, err: err}
}

// exit ends the program with code and without another word.
func exit(code int) error {
	if code == exitOK {
		return nil
	}
	return &exitError{code: code}
}

// oneLine makes one line of an error of several.
var oneLine = strings.NewReplacer(":\n", ": ", "\n", "; ")

// exitCode says err in one line on standard error and returns its code.
func (a *app) exitCode(ctx context.Context, err error) int {
	if err == nil {
		return exitOK
	}
	coded, ok := errors.AsType[*exitError](err)
	switch {
	case ok && coded.err == nil:
		return coded.code
	case ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.Cause(ctx))):
		return signalCode(ctx)
	case isBrokenPipe(err):
		// The reader of our output, such as head, has seen enough.
		return exitOK
	}
	fmt.Fprintf(a.stderr, "waymark: %s\n", harmless(oneLine.Replace(err.Error())))
	switch {
	case ok:
		return coded.code
	case errors.Is(err, workflow.ErrNotFound), errors.Is(err, workflow.ErrAmbiguous):
		return exitNotFound
	}
	if _, ok := errors.AsType[*broker.Error](err); ok {
		return exitUnreachable
	}
	return exitFailed
}

// signalCode is the exit code of a program whose context ended.
func signalCode(ctx context.Context) int {
	if stopped, ok := errors.AsType[*engines.StopError](context.Cause(ctx)); ok {
		return stopped.ExitCode()
	}
	return exitInterrupted
}

func isBrokenPipe(err error) bool {
	path, ok := errors.AsType[*os.PathError](err)
	return ok && errors.Is(err, syscall.EPIPE) && path.Path == os.Stdout.Name()
}
