// Command waymark is the one program of Waymark: it runs workflows, publishes
// what they report, consumes it into PostgreSQL and tells people what their
// workflows are doing. See waymark --help.
package main

import (
	"context"
	"io"
	"os"
	"syscall"
	"time"

	"waymark/engines"
)

func main() {
	ctx, _, stop := engines.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal asks for a clean end. The second finds the default
	// action restored, and ends the program at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr))
}

// run is the program: main without the process around it, so that tests can
// run it in theirs. It returns the exit code; see exit.go for what they mean.
func run(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{getenv: getenv, stdin: stdin, stdout: stdout, stderr: stderr, now: time.Now}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return a.exitCode(ctx, root.ExecuteContext(ctx))
}

// app is what every command needs of the world outside.
type app struct {
	getenv         func(string) string
	stdin          io.Reader
	stdout, stderr io.Writer
	now            func() time.Time
}
