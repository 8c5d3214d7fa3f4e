package main

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"waymark/internal/servicetest"
)

// mainVariable makes the test program behave as withservers itself.
const mainVariable = "WAYMARK_WITHSERVERS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(mainVariable) != "" {
		main()
	}
	servicetest.Main(m)
}

// withservers prepares a run on the servers of this test process.
func withservers(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), mainVariable+"=y",
		amqpVariable+"="+servicetest.AMQP(t), databaseVariable+"="+servicetest.Database(t).URL)
	return cmd
}

func exitStatus(t *testing.T, err error) int {
	t.Helper()
	if err == nil {
		return 0
	}
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		t.Fatalf("running withservers: %v", err)
	}
	return exit.ExitCode()
}

func TestExitStatusAndOutput(t *testing.T) {
	nobody := "127.0.0.1:1" // tcpmux: nobody has it
	for _, tc := range []struct {
		name           string
		args, env      []string
		status         int
		stdout, stderr string
	}{
		{name: "success", args: []string{"sh", "-c", "read x; echo $x; echo also >&2"}, stdout: "typed\n", stderr: "also"},
		{name: "failure", args: []string{"sh", "-c", "exit 7"}, status: 7},
		{name: "killed", args: []string{"sh", "-c", "kill -KILL $$"}, status: 137},
		{name: "URLs as given", args: []string{"sh", "-c", `test -n "$` + amqpVariable + `" && test -n "$` + databaseVariable + `"`}, stderr: "as given"},
		{name: "no command", status: 2, stderr: "usage:"},
		{name: "no such command", args: []string{"no-such-command"}, status: 127, stderr: "no-such-command"},
		{name: "RabbitMQ does not answer", args: []string{"true"}, env: []string{amqpVariable + "=amqp://u:secret@" + nobody}, status: 125, stderr: "given RabbitMQ at amqp://" + nobody},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd := withservers(t, tc.args...)
			cmd.Env = append(cmd.Env, tc.env...)
			cmd.Stdin = strings.NewReader("typed\n")
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			if got := exitStatus(t, cmd.Run()); got != tc.status {
				t.Errorf("exit status %d, want %d; it wrote:\n%s", got, tc.status, stderr.String())
			}
			if stdout.String() != tc.stdout {
				t.Errorf("standard output %q, want %q", stdout.String(), tc.stdout)
			}
			if !strings.Contains(stderr.String(), tc.stderr) {
				t.Errorf("standard error does not say %q:\n%s", tc.stderr, stderr.String())
			}
			if strings.Contains(stderr.String(), "secret") {
				t.Errorf("standard error shows a password:\n%s", stderr.String())
			}
		})
	}
}

func TestSignalsArePassedOn(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		t.Run(sig.String(), func(t *testing.T) {
			cmd := withservers(t, "sh", "-c", `
				trap 'echo TERM; exit 3' TERM
				trap 'echo INT; exit 3' INT
				trap 'echo HUP; exit 3' HUP
				echo ready
				while :; do sleep 0.02; done`)
			// No terminal, so that Ctrl-C is nobody else's to deliver.
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(stdout)
			if !lines.Scan() || lines.Text() != "ready" {
				t.Fatalf("the command said %q, want ready", lines.Text())
			}
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			lines.Scan()
			want := map[syscall.Signal]string{syscall.SIGTERM: "TERM", syscall.SIGINT: "INT", syscall.SIGHUP: "HUP"}[sig]
			if lines.Text() != want {
				t.Errorf("the command saw %q, want %q", lines.Text(), want)
			}
			if got := exitStatus(t, cmd.Wait()); got != 3 {
				t.Errorf("exit status %d, want the command's, 3", got)
			}
		})
	}
}
