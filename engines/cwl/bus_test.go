package cwl

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"waymark/engines"
	"waymark/engines/enginetest"
)

// TestFollow has a file written in pieces, replaced, and left with half a line.
func TestFollow(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "bus.txt")
	write := func(flag int, text string) {
		t.Helper()
		f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|flag, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	write(0, "of an earlier run\n")
	source := follow(file)
	lines := make(chan string, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- source(ctx, func(e engines.Event) { lines <- e.Source + " " + string(e.Line) })
	}()
	want := func(s string) {
		t.Helper()
		if got := <-lines; got != s {
			t.Fatalf("the line is %q, want %q", got, s)
		}
	}
	write(os.O_APPEND, "one\ntw")
	want("toil one")
	write(os.O_APPEND, "o\nthr")
	want("toil two")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	write(0, "anew\n")
	want("toil anew")
	write(os.O_APPEND, "last\nhalf")
	cancel()
	want("toil last")
	if err := <-done; err != nil {
		t.Errorf("the source ended with %v", err)
	}
	if len(lines) > 0 {
		t.Errorf("half a line came: %q", <-lines)
	}

	if err := follow(filepath.Join(t.TempDir(), "never"))(ctx, nil); err != nil {
		t.Errorf("a file that never comes is an error: %v", err)
	}
}

// TestLateBus has the bus tell everything later than it did, by any time: what
// becomes of the jobs is the same.
func TestLateBus(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"chained", "analysis-hook"} {
		recording := enginetest.Read(t, filepath.Join(recordings, "toil", name))
		ends := func(events []engines.Event) []string {
			var all []string
			for _, j := range enginetest.Tell(newReducer(enginetest.WorkflowID), events, recording.Exit).Jobs {
				all = append(all, fmt.Sprintf("%s %s %v %d %d %q %q", j.ID, j.Name, j.Status, j.Attempt, j.ExitCode, j.Command, j.Diagnostics))
			}
			return all
		}
		want := ends(recording.Events)
		rapid.Check(t, func(r *rapid.T) {
			var events, late []engines.Event
			patience := 0 // for how many more events of the hook the bus waits
			for _, e := range recording.Events {
				if e.Source == busSource {
					late = append(late, e)
					continue
				}
				events = append(events, e)
				if patience--; patience < 0 {
					n := rapid.IntRange(0, len(late)).Draw(r, "told")
					events, late = append(events, late[:n]...), late[n:]
					patience = rapid.IntRange(0, 30).Draw(r, "patience")
				}
			}
			if diff := cmp.Diff(want, ends(append(events, late...))); diff != "" {
				r.Errorf("%s: with a late bus the jobs end otherwise (-want +got):\n%s", name, diff)
			}
		})
	}
}

// TestNamesakes has a worker do two jobs of one name, and another worker the
// second of them once more.
func TestNamesakes(t *testing.T) {
	t.Parallel()
	var events []engines.Event
	tell := func(pid int, message, more string) {
		events = append(events, engines.Event{Source: engines.Hook, Line: fmt.Appendf(nil,
			`{"msg": %q, "pid": %d, "created": %d, "toil": {"id": "kind-CWLJob/a", "name": "same"}%s}`, message, pid, 1000+len(events), more)})
	}
	for range 2 {
		tell(1, "begin", "")
		tell(1, "end", `, "good": true`)
	}
	tell(2, "begin", "")
	tell(2, msgExited, `, "args": ["same", 4]`)
	tell(2, "end", "")
	told := enginetest.Tell(newReducer(enginetest.WorkflowID), events, engines.Exit{Code: 1, Reason: "exit code 1"})
	got := make(map[string]string)
	for _, j := range told.Jobs {
		got[j.ID] = fmt.Sprintf("%s %v %d %d %s", j.Name, j.Status, j.Attempt, j.ExitCode, j.Diagnostics)
	}
	want := map[string]string{
		engines.JobID(enginetest.WorkflowID, "toil", "kind-CWLJob/a"):        "same finished 1 0 ",
		engines.JobID(enginetest.WorkflowID, "toil", "kind-CWLJob/a/same#2"): "same failed 2 4 exited with status: 4",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the jobs (-want +got):\n%s", diff)
	}
	if want := "job same failed: exited with status: 4"; told.Reason != want {
		t.Errorf("the reason is %q, want %q", told.Reason, want)
	}
}
