// Command withservers runs another command with a private RabbitMQ and a
// private PostgreSQL, and stops them when it ends:
//
//	withservers COMMAND [ARGUMENT…]
//
// The command finds their URLs in WAYMARK_TEST_AMQP_URL and
// WAYMARK_TEST_DATABASE_URL. A variable that is set already names a server to
// use instead; it must answer.
//
// SIGINT, SIGTERM and SIGHUP are passed on to the command. The exit status is
// the command's, 128 + the signal's number if one ended it, 125 if the servers
// could not be started, 127 if the command could not.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"waymark/internal/devstack"
)

const (
	amqpVariable     = "WAYMARK_TEST_AMQP_URL"
	databaseVariable = "WAYMARK_TEST_DATABASE_URL"
)

const (
	exitUsage   = 2
	exitServers = 125
	exitCommand = 127
)

func main() { os.Exit(run(os.Args[1:], os.Stderr)) }

func run(args []string, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprintln(stderr, "usage: withservers COMMAND [ARGUMENT…]")
		return exitUsage
	}
	if _, err := exec.LookPath(args[0]); err != nil {
		fmt.Fprintf(stderr, "withservers: %v\n", err) // before any server is started
		return exitCommand
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)

	stack, err := start(signals)
	if err != nil {
		fmt.Fprintf(stderr, "withservers: %v\n", err)
		return exitServers
	}
	for _, note := range stack.Notes() {
		fmt.Fprintf(stderr, "withservers: %s\n", note)
	}
	code, err := command(args, stack, signals)
	if err != nil {
		fmt.Fprintf(stderr, "withservers: %v\n", err)
	}
	if err := stack.Close(); err != nil {
		fmt.Fprintf(stderr, "withservers: stopping the servers: %v\n", err)
	}
	return code
}

// start starts the servers, and gives up at the first signal.
func start(signals <-chan os.Signal) (*devstack.Stack, error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan struct{})
	interrupted := make(chan struct{})
	go func() {
		defer close(interrupted)
		select {
		case sig := <-signals:
			cancel(fmt.Errorf("interrupted by signal: %v", sig))
		case <-done:
		}
	}()
	stack, err := devstack.Start(ctx, devstack.Options{
		AMQPURL:     os.Getenv(amqpVariable),
		DatabaseURL: os.Getenv(databaseVariable),
	})
	close(done)
	<-interrupted
	if cause := context.Cause(ctx); cause != nil {
		if err == nil {
			err = stack.Close()
		}
		return nil, errors.Join(cause, ignoreCanceled(err))
	}
	cancel(nil)
	return stack, err
}

func ignoreCanceled(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// command runs the command and returns its exit status.
func command(args []string, stack *devstack.Stack, signals <-chan os.Signal) (int, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), amqpVariable+"="+stack.AMQPURL(), databaseVariable+"="+stack.DatabaseURL())
	if err := cmd.Start(); err != nil {
		return exitCommand, err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case sig := <-signals:
			// A terminal sends Ctrl-C to the command as well; a second one
			// would mean "at once" to many programs.
			if sig != syscall.SIGINT || !inForeground() {
				cmd.Process.Signal(sig) // an ended process is no fault
			}
		case err := <-done:
			exit, failed := errors.AsType[*exec.ExitError](err)
			if !failed {
				return 0, err
			}
			if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
				return 128 + int(status.Signal()), nil
			}
			return exit.ExitCode(), nil
		}
	}
}

// inForeground reports whether a terminal sends Ctrl-C to this process group.
func inForeground() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := foregroundGroup(tty)
	return err == nil && group == syscall.Getpgrp()
}
