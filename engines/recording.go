package engines

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Recording is a run of an engine as it was seen: for tests, for demonstrations,
// and for people who write an adapter.
//
// On disk it is a folder with meta.json, {"cmd": [the engine's command line],
// "returncode": its exit code, negative for a signal}, and timeline.jsonl with a
// line for each thing seen: {"t": seconds since the start, "src": source, and
// "msg": the event's line as JSON, or "data": text of an output as it came, in
// pieces of any size}. The source "fd3" is an old name of "hook"; "rec" and
// "http" are remarks. A bus.txt beside it holds the lines of Toil's message bus,
// which have no time and are spread over the run, with the source "toil". Or it is a single file with the lines of a hook alone,
// of which nobody knows when they came.
type Recording struct {
	// Command is the engine's command line, nil if unknown.
	Command []string
	// Events in the order in which they arrived, with At since the zero time.
	// The lines are the recording's.
	Events []Event
	// Exit says how the engine ended. At is the time of the last event.
	Exit Exit
}

// recordedMeta is meta.json.
type recordedMeta struct {
	Command  []string `json:"cmd"`
	ExitCode *int     `json:"returncode"`
}

// recordedLine is a line of timeline.jsonl.
type recordedLine struct {
	T    float64         `json:"t"`
	Src  string          `json:"src"`
	Msg  json.RawMessage `json:"msg,omitempty"`
	Data *string         `json:"data,omitempty"`
}

// ReadRecording reads a recording from a folder or a file. Errors name the file
// and the line.
func ReadRecording(path string) (*Recording, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading the recording: %w", err)
	}
	if !info.IsDir() {
		return readRecording(path, recordedMeta{})
	}
	var meta recordedMeta
	switch doc, err := os.ReadFile(filepath.Join(path, "meta.json")); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("reading the recording: %w", err)
	default:
		if err := json.Unmarshal(doc, &meta); err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(path, "meta.json"), err)
		}
	}
	for _, name := range []string{"timeline.jsonl", "events.jsonl"} {
		file := filepath.Join(path, name)
		if _, err := os.Stat(file); err == nil {
			return readRecording(file, meta)
		}
	}
	return nil, fmt.Errorf("there is no recording in %s: it would have timeline.jsonl or events.jsonl", path)
}

func readRecording(path string, meta recordedMeta) (*Recording, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the recording: %w", err)
	}
	rec := &Recording{Command: meta.Command}
	streams := make(map[string]*Lines)
	var at time.Time
	line := 0
	reader := Lines{Emit: func(b []byte) {
		line++
		if err != nil || len(bytes.TrimSpace(b)) == 0 {
			return
		}
		var l recordedLine
		if e := json.Unmarshal(b, &l); e != nil {
			err = fmt.Errorf("%s:%d: %w", path, line, e)
			return
		}
		if l.Src == "" { // the hook's own line
			rec.Events = append(rec.Events, Event{Source: Hook, Line: bytes.Clone(b)})
			return
		}
		at = time.Time{}.Add(time.Duration(l.T * float64(time.Second)))
		source := l.Src
		if source == "fd3" {
			source = Hook
		}
		switch {
		case len(l.Msg) > 0:
			rec.Events = append(rec.Events, Event{At: at, Source: source, Line: l.Msg})
		case l.Data != nil:
			s := streams[source]
			if s == nil {
				s = &Lines{Emit: func(b []byte) {
					rec.Events = append(rec.Events, Event{At: at, Source: source, Line: bytes.Clone(b)})
				}}
				streams[source] = s
			}
			_, _ = io.WriteString(s, *l.Data)
		}
	}}
	_, _ = reader.Write(content)
	if e := reader.Close(); err == nil && e != nil {
		err = fmt.Errorf("%s: %w", path, e)
	}
	if err != nil {
		return nil, err
	}
	for _, source := range slices.Sorted(maps.Keys(streams)) {
		_ = streams[source].Close()
	}
	if err := rec.addBus(filepath.Join(filepath.Dir(path), "bus.txt"), at); err != nil {
		return nil, err
	}
	rec.Exit = recordedExit(meta, at)
	rec.Exit.Stderr = rec.tail(Stderr)
	return rec, nil
}

// addBus adds the lines of Toil's message bus, if they are there and the
// recording does not have them with their time.
func (r *Recording) addBus(path string, end time.Time) error {
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || slices.ContainsFunc(r.Events, func(e Event) bool { return e.Source == "toil" }) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the recording: %w", err)
	}
	lines := bytes.Split(bytes.TrimRight(content, "\n"), []byte("\n"))
	for i, line := range lines {
		at := time.Time{}.Add(time.Duration(float64(end.Sub(time.Time{})) * float64(i+1) / float64(len(lines)+1)))
		r.Events = append(r.Events, Event{At: at, Source: "toil", Line: line})
	}
	slices.SortStableFunc(r.Events, func(a, b Event) int { return a.At.Compare(b.At) })
	return nil
}

// recordedExit is how the engine ended; of one that nobody knows, that it went away.
func recordedExit(meta recordedMeta, at time.Time) Exit {
	x := Exit{At: at}
	switch {
	case meta.ExitCode == nil:
		x.Code, x.Reason, x.Unknown = 1, "the recording does not say how the engine ended", true
	case *meta.ExitCode < 0:
		x = exitOfSignal(-*meta.ExitCode)
		x.At = at
	case *meta.ExitCode > 0:
		x.Code, x.Reason = *meta.ExitCode, fmt.Sprintf("exit code %d", *meta.ExitCode)
	}
	return x
}

// tail is the end of an output.
func (r *Recording) tail(source string) string {
	var t Tail
	for _, e := range r.Events {
		if e.Source == source {
			_, _ = t.Write(e.Line)
			_, _ = t.Write([]byte("\n"))
		}
	}
	return t.String()
}

// Program is the base name of the engine's program, empty if unknown.
func (r *Recording) Program() string {
	if len(r.Command) == 0 {
		return ""
	}
	return strings.ToLower(filepath.Base(r.Command[0]))
}
