package snakemake

import (
	"bytes"
	"errors"
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

// TestLogs reads the log files of runs.
func TestLogs(t *testing.T) {
	logs, err := filepath.Glob(filepath.Join(recordings, "log", "*.log"))
	if err != nil || len(logs) == 0 {
		t.Fatalf("there are no logs (%v)", err)
	}
	for _, log := range logs {
		t.Run(filepath.Base(log), func(t *testing.T) {
			text, err := os.ReadFile(log)
			if err != nil {
				t.Fatal(err)
			}
			whole := tellLog(text)
			compare(t, strings.TrimSuffix(log, ".log")+".expected.json", whole)
			// A log that ends too early is of a run that went away.
			for i := 0; i < len(text)-200; i += 97 {
				told := tellLog(text[:i])
				if told.Broken != "" || told.Status != workflow.StatusFailed || told.Reason == "" {
					t.Fatalf("cut at %d it tells %+v", i, told)
				}
			}
		})
	}
}

func tellLog(text []byte) enginetest.Told {
	var events []engines.Event
	for line := range bytes.Lines(text) {
		events = append(events, engines.Event{At: time.Unix(1e9, 0), Source: Log, Line: bytes.TrimSuffix(line, []byte("\n"))})
	}
	return enginetest.Tell(newLogReducer(enginetest.WorkflowID), events, engines.Exit{At: time.Unix(2e9, 0)})
}

// TestAttach follows a run that somebody else started.
func TestAttach(t *testing.T) {
	l := newLive(t, `
rule all:
    input: "a.txt", "b.txt"
rule job:
    output: "{n}.txt"
    shell: "touch started{wildcards.n}; while ! test -e go; do sleep 0.1; done; touch {output}"
`, "-j2")
	if _, err := Attach(l.dir); !errors.Is(err, ErrNotRunning) {
		t.Errorf("attaching to nothing: %v, want ErrNotRunning", err)
	}
	cmd := exec.Command(l.args[0], l.args[1:]...)
	cmd.Dir, cmd.Env = l.dir, l.environment()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	var once sync.Once
	release := func() { once.Do(func() { l.write("go", "") }) }
	go func() { ended <- cmd.Wait() }()
	defer func() {
		release()
		if err := <-ended; err != nil {
			t.Errorf("Snakemake ended with %v", err)
		}
		if _, err := Attach(l.dir); !errors.Is(err, ErrNotRunning) {
			t.Errorf("attaching to what has ended: %v, want ErrNotRunning", err)
		}
	}()
	l.waitFor("started*")
	a, err := Attach(l.dir)
	if err != nil {
		t.Errorf("attaching: %v", err)
		return
	}
	if a.PID != cmd.Process.Pid {
		t.Errorf("attached to %d, want %d", a.PID, cmd.Process.Pid)
	}
	var events []engines.Event
	err = a.Events(t.Context(), func(e engines.Event) {
		e.Line = bytes.Clone(e.Line)
		events = append(events, e)
		if strings.Contains(string(e.Line), "rule job:") {
			release()
		}
	})
	if err != nil {
		t.Error(err)
	}
	told := enginetest.Tell(a.Reducer(enginetest.WorkflowID), events, engines.Exit{At: time.Now()})
	if told.Status != workflow.StatusFinished || told.Counts.Finished != 3 || told.Counts.Total != 3 || told.Specific["mode"] != "log" {
		t.Errorf("it tells %v, %+v, %v", told.Status, told.Counts, told.Specific)
	}
	if j, ok := told.Job("job:n=a"); !ok || !j.Timed {
		t.Errorf("the job is %+v", j)
	}
	if old := events[len(events)-1].At; time.Since(old) > 10*time.Minute || time.Since(old) < -time.Minute {
		t.Errorf("the last line is of %v", old)
	}
}
