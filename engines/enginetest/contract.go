package enginetest

import (
	"bytes"
	"context"
	"io/fs"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"

	"waymark/engines"
	"waymark/workflow"
)

// Config says what [Contract] tests.
type Config struct {
	// New makes a reducer for a run. Required.
	New func(workflowID uuid.UUID) engines.Reducer
	// Recordings are folders or files with recordings of the engine. Required.
	Recordings []string
}

// Recordings finds the recordings below a folder: the folders that have a
// timeline.jsonl or an events.jsonl. It fails the test if there are none.
func Recordings(t testing.TB, folder string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		parent := filepath.Dir(path)
		if name := d.Name(); (name == "timeline.jsonl" || name == "events.jsonl") && (len(found) == 0 || found[len(found)-1] != parent) {
			found = append(found, parent)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("looking for recordings: %v", err)
	}
	if len(found) == 0 {
		t.Fatalf("there is no recording below %s", folder)
	}
	return found
}

// Read reads a recording, or fails the test.
func Read(t testing.TB, path string) *engines.Recording {
	t.Helper()
	r, err := engines.ReadRecording(path)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Contract tests what is asked of every adapter: each recording whole, cut off
// at every event, with events repeated, lost and damaged, and cut into single
// bytes on the way. Its recordings are tested at the same time: New must make
// reducers that share nothing.
func Contract(t *testing.T, c Config) {
	t.Helper()
	if c.New == nil || len(c.Recordings) == 0 {
		t.Fatal("the contract needs a reducer and recordings")
	}
	for _, path := range c.Recordings {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			r := Read(t, path)
			if len(r.Events) == 0 && r.Exit.Code == 0 {
				t.Fatalf("%s has no events", path)
			}
			c.whole(t, r)
			c.published(t, r)
			c.repeated(t, r)
			c.rechunked(t, r)
			c.cut(t, r)
			c.damaged(t, r)
		})
	}
}

func (c Config) tell(events []engines.Event, x engines.Exit) Told {
	return Tell(c.New(WorkflowID), events, x)
}

// sane holds of every story, whatever became of its events.
func sane(t *testing.T, told Told, x engines.Exit) {
	t.Helper()
	if told.Broken != "" {
		t.Errorf("the reducer panicked: %s", told.Broken)
	}
	if !told.Status.Terminal() {
		t.Errorf("the run ended as %v, which is no end", told.Status)
	}
	if x.Code != 0 && !x.Unknown && told.Status == workflow.StatusFinished {
		t.Errorf("the engine ended with %d and the run finished", x.Code)
	}
	if told.Status != workflow.StatusFinished && told.Reason == "" {
		t.Errorf("the run ended as %v, and nobody says why", told.Status)
	}
	if running := told.In(workflow.JobRunning); len(running) > 0 {
		t.Errorf("the run is over and jobs run: %v", running)
	}
	for i, s := range told.Steps {
		if sum := s.Running + s.Finished + s.Failed + s.Stopped; sum > s.Total || min(s.Running, s.Finished, s.Failed, s.Stopped, s.Cached) < 0 {
			t.Errorf("step %d: the counts do not add up: %+v", i, s)
			break
		}
		if i > 0 && s.Total < told.Steps[i-1].Total {
			t.Errorf("step %d: the total shrank from %d to %d; readers keep the larger", i, told.Steps[i-1].Total, s.Total)
			break
		}
	}
	for _, j := range told.Jobs {
		if _, err := uuid.Parse(j.ID); err != nil {
			t.Errorf("job %q has the id %q, which is not of engines.JobID", j.Name, j.ID)
		}
		if j.Name == "" {
			t.Errorf("job %s has no name", j.ID)
		}
	}
}

func (c Config) whole(t *testing.T, r *engines.Recording) {
	t.Helper()
	told := c.tell(r.Events, r.Exit)
	sane(t, told, r.Exit)
	if told.Specific["unreadable_events"] != nil {
		t.Errorf("%v events of a real run could not be read", told.Specific["unreadable_events"])
	}
	if again := c.tell(r.Events, r.Exit); !cmp.Equal(told, again) {
		t.Errorf("the same events tell another story the second time (-first +second):\n%s", cmp.Diff(told, again))
	}
	mine := make(map[string]bool)
	for _, j := range told.Jobs {
		mine[j.ID] = true
	}
	other := Tell(c.New(uuid.MustParse("11111111-2222-4333-8444-555555555555")), r.Events, r.Exit)
	for _, j := range other.Jobs {
		if mine[j.ID] {
			t.Errorf("job %q has the same id %s in two workflows", j.Name, j.ID)
		}
	}
	if len(other.Jobs) != len(told.Jobs) {
		t.Errorf("the run has %d jobs, and %d under another id", len(told.Jobs), len(other.Jobs))
	}
}

// published compares the story with what a consumer makes of its messages.
func (c Config) published(t *testing.T, r *engines.Recording) {
	t.Helper()
	p := &fold{state: workflow.NewState(workflow.Run{ID: WorkflowID, Attempt: 1})}
	reporter := engines.NewReporter(context.Background(), engines.Config{
		Engine: "test", Interval: -1, Publisher: p, WorkflowID: WorkflowID,
	})
	reporter.Begin()
	n := engines.NewNarrator(c.New(WorkflowID), reporter)
	for _, e := range r.Events {
		n.Apply(e)
	}
	end := n.End(r.Exit)
	report := reporter.Finish(context.Background(), end.Status, "")
	if report.Unsent+report.Dropped > 0 {
		t.Errorf("of the messages %d were not sent and %d pieces dropped", report.Unsent, report.Dropped)
	}
	if got := p.state.Run.Status(); got != end.Status {
		t.Errorf("the run is %v for a consumer, and ended as %v", got, end.Status)
	}
	got, want := p.state.Run.Jobs, n.Counts()
	if got.Running != 0 || got.Finished != want.Finished || got.Failed != want.Failed || got.Stopped != want.Stopped || got.Cached != want.Cached {
		t.Errorf("a consumer counts %+v, the story %+v", got, want)
	}
	if total := p.state.Run.Counts().Total; total != want.Total {
		t.Errorf("the total is %d for a consumer, and %d in the story", total, want.Total)
	}
}

// fold is a Publisher that applies the messages to a run.
type fold struct{ state *workflow.State }

func (f *fold) Status(_ context.Context, m *workflow.StatusMessage) error {
	c := *m
	f.state.Apply(&c)
	return nil
}

func (f *fold) Submission(context.Context, *workflow.Submission) error { return nil }

// sameEnd compares what does not depend on how often events came.
func sameEnd(a, b Told) string {
	return cmp.Diff(a, b, cmpopts.IgnoreFields(Told{}, "Steps", "Log", "Specific"), cmpopts.IgnoreFields(Job{}, "Logs"))
}

func (c Config) repeated(t *testing.T, r *engines.Recording) {
	t.Helper()
	var twice []engines.Event
	for _, e := range r.Events {
		twice = append(twice, e)
		if e.Source != engines.Stderr && e.Source != engines.Stdout {
			twice = append(twice, e)
		}
	}
	told := c.tell(twice, r.Exit)
	sane(t, told, r.Exit)
	if diff := sameEnd(c.tell(r.Events, r.Exit), told); diff != "" {
		t.Errorf("events that come twice tell another story (-once +twice):\n%s", diff)
	}
}

// rechunked sends each stream byte by byte through Lines.
func (c Config) rechunked(t *testing.T, r *engines.Recording) {
	t.Helper()
	var events []engines.Event
	for _, e := range r.Events {
		lines := engines.Lines{Emit: func(line []byte) {
			events = append(events, engines.Event{At: e.At, Source: e.Source, Line: bytes.Clone(line)})
		}}
		compact := bytes.ReplaceAll(e.Line, []byte("\n"), []byte(" "))
		for i := range compact {
			_, _ = lines.Write(compact[i : i+1])
		}
		_, _ = lines.Write([]byte("\n"))
	}
	if diff := sameEnd(c.tell(r.Events, r.Exit), c.tell(events, r.Exit)); diff != "" {
		t.Errorf("events that come byte by byte tell another story (-whole +bytes):\n%s", diff)
	}
}

const (
	// most is how many places of a recording are tried.
	most = 400
	// effort is how many events are applied to try each place once, about. Of a
	// recording so long that it would take more, places spread over it are tried,
	// but never less than fewest.
	effort, fewest = 2_000, 16
)

func places(n int) (at []int) {
	tried := min(n, most, max(fewest, effort/max(n, 1)))
	for i := range tried {
		at = append(at, i*n/tried)
	}
	return at
}

// cut kills the engine after each event.
func (c Config) cut(t *testing.T, r *engines.Recording) {
	t.Helper()
	killed := engines.Exit{At: r.Exit.At, Code: 137, Reason: "the engine was killed by SIGKILL"}
	stopped := engines.Exit{At: r.Exit.At, Code: 1, Stop: &engines.StopError{Signal: 15}}
	for _, i := range places(len(r.Events)) {
		told := c.tell(r.Events[:i], killed)
		sane(t, told, killed)
		if told.Status != workflow.StatusFailed {
			t.Errorf("the engine was killed after event %d, and the run ended as %v", i, told.Status)
		}
		if told := c.tell(r.Events[:i], stopped); told.Status != workflow.StatusStopped {
			t.Errorf("the run was stopped after event %d, and ended as %v", i, told.Status)
		}
		if t.Failed() {
			t.Fatalf("after event %d of %d", i, len(r.Events))
		}
	}
}

// damaged loses, halves and garbles one event after the other.
func (c Config) damaged(t *testing.T, r *engines.Recording) {
	t.Helper()
	for _, i := range places(len(r.Events)) {
		line := r.Events[i].Line
		for _, damage := range [][]byte{nil, line[:len(line)/2], bytes.ReplaceAll(line, []byte(":"), []byte("\x00")), []byte("null"), []byte("[]"), []byte(`{"level":7,"msg":{},"args":3,"jobid":[]}`), bytes.Repeat([]byte("["), 20000)} {
			events := append([]engines.Event(nil), r.Events...)
			events[i].Line = damage
			sane(t, c.tell(events, r.Exit), r.Exit)
			if t.Failed() {
				t.Fatalf("with event %d as %.80q", i, damage)
			}
		}
	}
}
