package snakemake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"waymark/engines"
)

// ErrNotRunning is returned by [Attach] when no Snakemake works in a folder.
var ErrNotRunning = errors.New("no Snakemake is running there")

const (
	followInterval = 200 * time.Millisecond
	logSuffix      = ".snakemake.log"
)

// Attached is a run of Snakemake that is already going, and was not started
// under supervision. All that is known of it is its log file: there are no
// commands, exit codes or logs of jobs in it, nothing at all with --quiet, and a
// rule with a message of its own has no name.
type Attached struct {
	// Log is the path of its log file.
	Log string
	// PID is its process; 0 if that is not to be seen, as on another machine.
	PID int

	dir string
}

// Attach finds the run that is going in a working folder. The error is
// ErrNotRunning if there is none.
//
// A run is going while a process holds its log file open or, if no such process
// is to be seen, while the folder is locked. A Snakemake that was killed on
// another machine leaves the lock behind, and seems to run for ever.
func Attach(dir string) (*Attached, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("finding the folder %q: %w", dir, err)
	}
	entries, err := os.ReadDir(filepath.Join(dir, ".snakemake", "log"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("looking for the log of Snakemake: %w", err)
	}
	var logs []string // newest first: their names begin with the time
	for _, e := range slices.Backward(entries) {
		if strings.HasSuffix(e.Name(), logSuffix) {
			logs = append(logs, filepath.Join(dir, ".snakemake", "log", e.Name()))
		}
	}
	if len(logs) == 0 {
		return nil, fmt.Errorf("%s: %w", dir, ErrNotRunning)
	}
	holders := holders(logs)
	for _, log := range logs {
		if pid := holders[log]; pid != 0 {
			return &Attached{Log: log, PID: pid, dir: dir}, nil
		}
	}
	if !locked(dir) {
		return nil, fmt.Errorf("%s: %w", dir, ErrNotRunning)
	}
	return &Attached{Log: logs[0], dir: dir}, nil
}

// Began is when the run began, by the name of its log file and the clock of the
// machine that named it: perhaps long before anybody attached to it.
func (a *Attached) Began() time.Time { return began(a.Log) }

// running reports whether the run is still going.
func (a *Attached) running() bool {
	if a.PID != 0 {
		return holds(a.PID, []string{a.Log}) != ""
	}
	return locked(a.dir)
}

// Reducer returns a Reducer for the run. It judges by the log whether the run
// went well: give it an Exit with the code 0, as nobody knows another.
func (a *Attached) Reducer(workflowID uuid.UUID) engines.Reducer { return newLogReducer(workflowID) }

func newLogReducer(workflowID uuid.UUID) *reducer {
	r := newReducer(workflowID)
	r.mode = modeLog
	return r
}

// Events is an [engines.Source]: it follows the log file until the run is over,
// and returns nil then or when ctx ends.
func (a *Attached) Events(ctx context.Context, emit func(engines.Event)) error {
	file, err := os.Open(a.Log)
	if err != nil {
		return fmt.Errorf("following the log of Snakemake: %w", err)
	}
	defer file.Close()
	start := a.Began()
	at := start
	lines := engines.Lines{Max: 64 << 10, Emit: func(line []byte) {
		if stamp.Match(line) {
			// The log has the time of the machine's clock, in seconds, and its name
			// in microseconds: nothing was before it.
			if t, err := time.ParseInLocation("["+time.ANSIC+"]", strings.TrimSpace(string(line)), time.Local); err == nil {
				at = t.UTC()
				if at.Before(start) {
					at = start
				}
			}
		}
		emit(engines.Event{At: at, Source: Log, Line: line})
	}}
	poll := time.NewTicker(followInterval)
	defer poll.Stop()
	for {
		running := a.running()
		if _, err := io.Copy(&lines, file); err != nil {
			return fmt.Errorf("following the log of Snakemake: %w", err)
		}
		if !running || ctx.Err() != nil {
			_ = lines.Close() // what it counts has no meaning here
			return nil
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
		}
	}
}

// began is when a log was begun, by its name.
func began(log string) time.Time {
	name := strings.TrimSuffix(filepath.Base(log), logSuffix)
	t, err := time.ParseInLocation("2006-01-02T150405.999999", name, time.Local)
	if err != nil {
		return time.Now().UTC()
	}
	return t.UTC()
}

// locked reports whether a Snakemake works in a folder, or died there.
func locked(dir string) bool {
	entries, err := os.ReadDir(filepath.Join(dir, ".snakemake", "locks"))
	return err == nil && len(entries) > 0
}

// holders finds the processes that have one of the files open. It sees those of
// the same user, and none where there is no /proc.
func holders(files []string) map[string]int {
	found := make(map[string]int)
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return found
	}
	for _, p := range processes {
		if pid, err := strconv.Atoi(p.Name()); err == nil {
			if file := holds(pid, files); file != "" {
				found[file] = pid
			}
		}
	}
	return found
}

// holds returns which of the files a process has open.
func holds(pid int, files []string) string {
	folder := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	open, err := os.ReadDir(folder)
	if err != nil {
		return ""
	}
	for _, fd := range open {
		target, err := os.Readlink(filepath.Join(folder, fd.Name()))
		if err != nil {
			continue
		}
		for _, f := range files {
			if same(target, f) {
				return f
			}
		}
	}
	return ""
}

// same compares paths, of which the first has no links.
func same(real, path string) bool {
	if real == path {
		return true
	}
	if filepath.Base(real) != filepath.Base(path) {
		return false
	}
	resolved, err := filepath.EvalSymlinks(path)
	return err == nil && resolved == real
}
