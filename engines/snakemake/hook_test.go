package snakemake

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"waymark/engines"
	"waymark/engines/enginetest"
	"waymark/workflow"
)

// python is the one of the system, with warnings as errors.
var python = []string{"/usr/bin/python3", "-W", "error"}

// hooked runs a Python program with the hook and the stubs of a Snakemake that
// cannot be installed everywhere, and returns what it printed and the lines that
// came through the socket. With deaf nobody reads them.
func hooked(t *testing.T, stub, program string, deaf bool) (output string, lines []string) {
	t.Helper()
	t.Parallel()
	dir := t.TempDir()
	folder := filepath.Join(dir, "hook")
	if err := writeHook(folder); err != nil {
		t.Fatal(err)
	}
	socketDir, err := os.MkdirTemp("", "wm") // a path that fits
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(socketDir) })
	listener, err := net.Listen("unix", filepath.Join(socketDir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	var (
		mu  sync.Mutex
		all sync.WaitGroup
	)
	all.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			if deaf {
				defer c.Close()
				continue
			}
			all.Go(func() {
				defer c.Close()
				for s := bufio.NewScanner(c); s.Scan(); {
					mu.Lock()
					lines = append(lines, s.Text())
					mu.Unlock()
				}
			})
		}
	})
	cmd := exec.Command(python[0], append(python[1:], "-c", program)...)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "PYTHONDONTWRITEBYTECODE=1", "WAYMARK_SOCKET=" + listener.Addr().String(), "WAYMARK_BASE=",
		"PYTHONPATH=" + folder + ":" + filepath.Join("testdata", stub) + ":testdata",
	}
	b, err := cmd.CombinedOutput()
	// Who connected before the end is still to be accepted.
	_ = listener.(*net.UnixListener).SetDeadline(time.Now().Add(100 * time.Millisecond))
	all.Wait()
	if err != nil {
		t.Errorf("the program ended with %v", err)
	}
	return string(b), lines
}

func tellLines(lines []string, code int) enginetest.Told {
	var events []engines.Event
	for _, l := range lines {
		events = append(events, engines.Event{Source: engines.Hook, Line: []byte(l)})
	}
	return enginetest.Tell(newReducer(enginetest.WorkflowID), events, engines.Exit{Code: code})
}

// program schedules the stub's workflow, as Snakemake would.
const stubRun = `
import os, sys
import snakemake.cli
sys.stdout.write("success %s\n" % snakemake.cli.main())
sys.stdout.write("environment %s %s\n" % (os.environ.get("WAYMARK_SOCKET", os.environ.get("WAYMARK_BASE")), os.environ.get("PYTHONPATH")))
sys.stdout.write("path %s\n" % [p for p in sys.path if "hook" in p])
`

// TestHookInStubs runs the hook in what has the shape of Snakemake 8 and 9.
func TestHookInStubs(t *testing.T) {
	for _, stub := range []string{"snakemake8", "snakemake9", "snakemake9old"} {
		t.Run(stub, func(t *testing.T) {
			output, lines := hooked(t, stub, stubRun, false)
			want := "success False\nenvironment None " + filepath.Join("testdata", stub) + ":testdata\npath []\n"
			if !strings.HasSuffix(output, want) {
				t.Errorf("the program printed %q, want at the end %q", output, want)
			}
			if len(lines) == 0 || !strings.HasPrefix(lines[0], `{"waymark":1,"engine":"snakemake","version":"`+stub[9:10]) {
				t.Fatalf("the hook said %q", lines)
			}
			told := tellLines(lines, 1)
			if told.Counts.Total != 4 || told.Counts.Finished != 2 || told.Counts.Failed != 1 || told.Status != workflow.StatusFailed {
				t.Errorf("of 2 finished, 1 failed and 1 that never ran it tells %+v, %v", told.Counts, told.Status)
			}
			if j, _ := told.Job("flaky"); j.Attempt != 2 || j.Status != workflow.JobFinished {
				t.Errorf("the job that is tried again is %+v", j)
			}
			if j, _ := told.Job("broken:n=1"); j.ExitCode != 7 || j.Status != workflow.JobFailed || j.Command != "exit 7" {
				t.Errorf("the job that failed is %+v", j)
			}
			if told.Specific["unreadable_events"] != nil || told.Specific["hook_error"] != nil {
				t.Errorf("the hook made a mistake: %v\n%s", told.Specific, strings.Join(lines, "\n"))
			}
		})
	}
}

// TestHookInStranger has the scheduler be unlike anything known: what the logger
// is told remains.
func TestHookInStranger(t *testing.T) {
	output, lines := hooked(t, "snakemake9", `
import snakemake.logging
class JobScheduler: pass
import types, sys
strange = types.ModuleType("strange")
strange.JobScheduler = JobScheduler
for finder in sys.meta_path:
    if type(finder).__name__ == "_Watcher":
        finder.report.loaded("snakemake.scheduler", strange)
snakemake.logging.logger.info("Provided cores: 1", extra=dict(event="resources_info"))
snakemake.logging.logger.info("", extra=dict(event="job_info", rule_name="one", jobid=1, wildcards={}, log=[], shellcmd=object()))
snakemake.logging.logger.info("", extra=dict(event="job_finished", job_id=1))
`, false)
	told := tellLines(lines, 0)
	if told.Counts.Finished != 1 || told.Specific["hook_error"] == nil || output != "" {
		t.Errorf("it tells %+v and %v, and prints %q", told.Counts, told.Specific, output)
	}
}

// TestHookInSubprocess keeps silent in a Snakemake that works for another.
func TestHookInSubprocess(t *testing.T) {
	output, lines := hooked(t, "snakemake9", `
import _stub
_stub.Workflow.exec_mode = _stub.Mode.SUBPROCESS
`+stubRun, false)
	told := tellLines(lines, 1)
	if len(told.Jobs) > 0 || !strings.Contains(output, "success False") {
		t.Errorf("it tells %+v, and prints %q", told.Jobs, output)
	}
}

// TestHookIsForked has children of Snakemake speak, too: each for itself.
func TestHookIsForked(t *testing.T) {
	_, lines := hooked(t, "snakemake9", `
import os
from snakemake.logging import logger
logger.info("parent", extra=dict(event=None))
for n in range(3):
    child = os.fork()
    if child == 0:
        logger.info("child", extra=dict(event=None))
        os._exit(0)
    os.waitpid(child, 0)
logger.info("parent", extra=dict(event=None))
`, false)
	hello := 0
	for _, l := range lines {
		if parseEvent([]byte(l)) == nil {
			t.Errorf("the line %q is torn", l)
		}
		if strings.Contains(l, `"waymark":1`) {
			hello++
		}
	}
	if hello != 4 || len(lines) != 9 {
		t.Errorf("four processes said %d hellos in %d lines:\n%s", hello, len(lines), strings.Join(lines, "\n"))
	}
}

// TestHookIsNotHeldUp writes to somebody who does not read.
func TestHookIsNotHeldUp(t *testing.T) {
	began := time.Now()
	output, _ := hooked(t, "snakemake9", `
import time
from snakemake.logging import logger
began = time.monotonic()
for n in range(2000):
    logger.info("x" * 1000, extra=dict(event=None))
print("done", time.monotonic() - began < 30)
`, true)
	if !strings.HasSuffix(output, "done True\n") {
		t.Errorf("after %v it printed %q", time.Since(began), output)
	}
}

// TestHookElsewhere runs Pythons that have nothing to do with Snakemake.
func TestHookElsewhere(t *testing.T) {
	for name, program := range map[string]string{
		"nothing":       "import sys; print([p for p in sys.path if 'hook' in p], 'json' in sys.modules, 'socket' in sys.modules)",
		"another":       "import types, sys; sys.modules['snakemake'] = types.ModuleType('snakemake'); print([], False, False)",
		"no such thing": "\ntry:\n    import snakemake_of_nobody.scheduler\nexcept ImportError as e:\n    print([], False, False)",
	} {
		t.Run(name, func(t *testing.T) {
			output, lines := hooked(t, "empty", program, false)
			if output != "[] False False\n" || len(lines) > 0 {
				t.Errorf("it printed %q, and the hook said %q", output, lines)
			}
		})
	}
}
