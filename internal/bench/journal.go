package bench

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// journal is a file that says what one benchmark makes on the servers. Each
// thing is written down before it is made, so that a benchmark that was killed,
// or whose server went away, leaves its name to the next one. The file is locked
// for as long as its benchmark lives, and removed with the last thing in it.
type journal struct {
	file *os.File
	// broken: it takes no more. It stays locked, as what is in it is in use.
	broken bool
}

// thing is a queue or a schema that a benchmark makes, and on which server. No
// user and no password is part of it.
type thing struct {
	Kind   string `json:"kind"` // kindQueue or kindSchema
	Server string `json:"server"`
	Name   string `json:"name"`
}

const (
	kindQueue  = "queue"
	kindSchema = "schema"
)

// The names of everything that a benchmark makes begin so.
const (
	queuePrefix  = "waymark-bench-"
	schemaPrefix = "waymark_bench_"
)

// ours reports whether the name is one that a benchmark gives. A journal that
// says otherwise was not written by one.
func (t thing) ours() bool {
	switch t.Kind {
	case kindQueue:
		return strings.HasPrefix(t.Name, queuePrefix)
	case kindSchema:
		return strings.HasPrefix(t.Name, schemaPrefix)
	}
	return false
}

// journalSuffix ends the names of the journals of this machine: a home may be
// several machines', and locks are seen by all of them on few file systems.
func journalSuffix() string {
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	return "." + host + ".journal"
}

// newJournal begins a journal in a folder, which is made if need be.
func newJournal(folder, name string) (*journal, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(folder, name+journalSuffix())
	for {
		file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return nil, err
		}
		locked, err := lock(file, syscall.LOCK_EX)
		if locked {
			return &journal{file: file}, nil
		}
		// Before it was locked, another benchmark found it empty and removed it.
		if err = errors.Join(err, file.Close()); err != nil {
			return nil, err
		}
	}
}

// lock locks an open file. It reports false if the file has been removed
// meanwhile, or, when it is not to wait, if another process has it.
func lock(file *os.File, how int) (bool, error) {
	for {
		err := syscall.Flock(int(file.Fd()), how)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EWOULDBLOCK):
			return false, nil
		case err != nil:
			return false, fmt.Errorf("locking %s: %w", file.Name(), err)
		}
		break
	}
	mine, err := file.Stat()
	if err != nil {
		return false, err
	}
	current, err := os.Lstat(file.Name())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(mine, current), err
}

// add writes down what is going to be made. A nil journal keeps nothing.
func (j *journal) add(t thing) error {
	if j == nil || j.broken {
		return nil
	}
	line, err := json.Marshal(t)
	if err == nil {
		_, err = j.file.Write(append(line, '\n'))
	}
	if err != nil {
		return fmt.Errorf("noting the %s %s in %s: %w", t.Kind, t.Name, j.file.Name(), err)
	}
	return nil
}

// close ends the journal; done says that nothing of what is in it is left.
func (j *journal) close(done bool) error {
	if j == nil {
		return nil
	}
	var err error
	if done {
		err = os.Remove(j.file.Name())
	}
	return errors.Join(err, j.file.Close())
}

// leftJournals opens those journals of a folder whose benchmarks have ended
// without removing what is in them.
func leftJournals(folder string) []*journal {
	paths, _ := filepath.Glob(filepath.Join(folder, "*"+journalSuffix())) // the pattern is good
	var left []*journal
	for _, path := range paths {
		file, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW, 0)
		if err != nil {
			continue // another benchmark has just removed it
		}
		if locked, _ := lock(file, syscall.LOCK_EX|syscall.LOCK_NB); !locked {
			_ = file.Close()
			continue
		}
		left = append(left, &journal{file: file})
	}
	return left
}

// benchmark is the name of the one that kept the journal.
func (j *journal) benchmark() string {
	return strings.TrimSuffix(filepath.Base(j.file.Name()), journalSuffix())
}

// keep ends a journal that was left. Of what is in it, only left is still there.
func (j *journal) keep(left []thing) error {
	if len(left) == 0 {
		return j.close(true)
	}
	var lines []byte
	for _, t := range left {
		line, err := json.Marshal(t)
		if err != nil {
			return errors.Join(err, j.close(false))
		}
		lines = append(append(lines, line...), '\n')
	}
	// In place, as the lock is the file's. A crash between the two leaves things
	// that are there twice, or were there.
	_, err := j.file.WriteAt(lines, 0)
	if err == nil {
		err = j.file.Truncate(int64(len(lines)))
	}
	return errors.Join(err, j.close(false))
}

// things are those written down. A line that was cut off by a crash is of a
// thing that was not made.
func (j *journal) things() (all []thing) {
	lines := bufio.NewScanner(j.file)
	for lines.Scan() {
		var t thing
		if json.Unmarshal(lines.Bytes(), &t) == nil && t.ours() {
			all = append(all, t)
		}
	}
	return all
}
