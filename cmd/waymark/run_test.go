package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/uuid"
)

// programVariable makes the test program the program under test, where a test
// needs it as a process of its own.
const programVariable = "WAYMARK_IS_THE_PROGRAM"

// program is the program under test as a process.
func program(t testing.TB, env environment, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, envPrefix) {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, programVariable+"=1")
	for k, v := range env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.Dir = t.TempDir()
	return cmd
}

var runLine = regexp.MustCompile(`(?m)^run ([0-9a-f-]{36})$`)

func TestRunScript(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(t)
	id := uuid.NewString()
	cmd := program(t, s.environment, "run", "script", "--id", id, "--name", "nightly", "--label", "site=cern", "--",
		"sh", "-c", `printf 'data\0'; echo "url=[$WAYMARK_BROKER_URL] id=$WAYMARK_WORKFLOW" >&2; exit 3`)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code != 3 {
		t.Fatalf("waymark run ended with %d (%v), want the program's 3\n%s", code, err, &stderr)
	}
	if stdout.String() != "data\x00" {
		t.Errorf("standard output is %q, want that of the program alone", &stdout)
	}
	if m := runLine.FindStringSubmatch(stderr.String()); m == nil || m[1] != id || !strings.HasPrefix(stderr.String(), "run ") {
		t.Errorf("standard error does not begin with the run's id:\n%s", &stderr)
	}
	if !strings.Contains(stderr.String(), "url=[] id="+id+"\n") {
		t.Errorf("the program sees our settings, or not its run:\n%s", &stderr)
	}
	wantBalance(t, outcome{stderr: stderr.String()}, false)

	if got := s.awaitStatus(t, id, "failed"); got.Name != "nightly" {
		t.Errorf("the run is %+v, want it under the name nightly", got)
	}
	logs := s.run(t, "logs", id).want(t, exitOK).stdout
	for _, want := range []string{"sh -c ", "exit code 3", "id=" + id} {
		if !strings.Contains(logs, want) {
			t.Errorf("the run's log lacks %q:\n%s", want, logs)
		}
	}
}

func TestRunProgramThatIsNotThere(t *testing.T) {
	got := environment{"HOME": t.TempDir()}.run(t, "run", "script", "--", filepath.Join(t.TempDir(), "engine"), "-j4")
	got.want(t, 127)
	if !strings.Contains(got.stderr, "engine") || !strings.Contains(got.stderr, "no such file") {
		t.Errorf("the error is %q, want the program's name", got.stderr)
	}
	got = environment{}.run(t, "run", "script").want(t, exitUsage)
	if !strings.Contains(got.stderr, "missing the command line of the engine, after --") {
		t.Errorf("without a command line the error is %q", got.stderr)
	}
}
