package serial

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"
)

// entry is a line of the journal: a command that ended well.
type entry struct {
	Step       int       `json:"step"` // indexes in the workflow, from 0
	Command    int       `json:"command"`
	SHA256     string    `json:"sha256"` // of the substituted command
	StartedAt  time.Time `json:"started_at"`
	FinishedAt time.Time `json:"finished_at"`
}

// before orders entries by the place of their commands in the workflow.
func (e *entry) before(step, command int) bool {
	return e.Step < step || e.Step == step && e.Command < command
}

func digest(command string) string {
	sum := sha256.Sum256([]byte(command))
	return hex.EncodeToString(sum[:])
}

// journal remembers, in <workspace>/.waymark/journal.jsonl, which commands have
// ended well. A line counts once it is on the disk. It tells what commands did,
// not what became of their outputs: whoever removes those must not resume.
type journal struct {
	file *os.File
	// forgotten is how many of the commands had ended well and run again, as
	// the first of them has changed.
	forgotten int
}

// openJournal opens the journal at path for the commands in jobs, and returns
// the entries of those that need not run again, by their index in jobs: all up
// to the first that has not ended well or has changed. What follows that is
// forgotten. Without resume everything is.
func openJournal(path string, jobs []job, resume bool) (*journal, map[int]entry, error) {
	var entries []entry
	if resume {
		var err error
		if entries, err = readJournal(path); err != nil {
			return nil, nil, err
		}
	}
	latest := make(map[[2]int]entry, len(entries))
	for _, e := range entries {
		latest[[2]int{e.Step, e.Command}] = e
	}
	done := make(map[int]entry)
	rerun := job{step: int(^uint(0) >> 1)} // beyond all
	forgotten := 0
	for i, j := range jobs {
		e, ok := latest[[2]int{j.step, j.command}]
		if ok && e.SHA256 == digest(j.text) {
			done[i] = e
			continue
		}
		rerun = j
		for _, again := range jobs[i:] {
			if _, ended := latest[[2]int{again.step, again.command}]; ended && ok {
				forgotten++
			}
		}
		break
	}
	var kept bytes.Buffer
	for _, e := range entries {
		if e.before(rerun.step, rerun.command) && e == latest[[2]int{e.Step, e.Command}] {
			kept.Write(e.line())
		}
	}
	if err := replaceFile(path, kept.Bytes()); err != nil {
		return nil, nil, fmt.Errorf("beginning the journal: %w", err)
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("opening the journal: %w", err)
	}
	return &journal{file: file, forgotten: forgotten}, done, nil
}

// readJournal reads the entries of a journal. It ends at the first line that
// is none: the process may have died while it wrote, and what cannot be read
// has not happened.
func readJournal(path string) (entries []entry, err error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the journal: %w", err)
	}
	for {
		line, rest, complete := bytes.Cut(data, []byte("\n"))
		var e entry
		if !complete || json.Unmarshal(line, &e) != nil || len(e.SHA256) != 2*sha256.Size {
			return entries, nil
		}
		entries = append(entries, e)
		data = rest
	}
}

func (e *entry) line() []byte {
	line, _ := json.Marshal(e) // numbers, a digest and times: cannot fail
	return append(line, '\n')
}

// add notes that a command ended well, and returns when that is on the disk.
func (j *journal) add(e entry) error {
	if _, err := j.file.Write(e.line()); err != nil {
		return fmt.Errorf("writing the journal: %w", err)
	}
	if err := j.file.Sync(); err != nil {
		return fmt.Errorf("writing the journal to disk: %w", err)
	}
	return nil
}

func (j *journal) close() { j.file.Close() }
