package nextflow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"waymark/engines"
)

const (
	// followInterval is how often a trace file is looked at.
	followInterval = 250 * time.Millisecond
	// Bytes of the end of what a task printed.
	failedLog, otherLog = engines.TailSize, 8 << 10
)

// follow is a Source of the lines of a trace file. A file of that name that is
// there already is one of an earlier run, which Nextflow moves away or replaces.
func follow(path string) engines.Source {
	old, _ := os.Stat(path)
	return func(ctx context.Context, emit func(engines.Event)) error {
		var file *os.File
		defer func() {
			if file != nil {
				file.Close()
			}
		}()
		lines := engines.Lines{Max: 1 << 20, Emit: func(line []byte) { emit(engines.Event{Source: Trace, Line: line}) }}
		read := func() error {
			if file == nil {
				info, err := os.Stat(path)
				if errors.Is(err, fs.ErrNotExist) || err == nil && old != nil && os.SameFile(old, info) && info.ModTime().Equal(old.ModTime()) && info.Size() == old.Size() {
					return nil
				}
				if err == nil && !info.Mode().IsRegular() {
					return fmt.Errorf("%s is not a file", path)
				}
				if err == nil {
					file, err = os.Open(path)
				}
				if err != nil {
					return fmt.Errorf("reading the trace file: %w", err)
				}
			}
			if _, err := io.Copy(&lines, file); err != nil {
				return fmt.Errorf("reading the trace file: %w", err)
			}
			return nil
		}
		tick := time.NewTicker(followInterval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				if err := read(); err != nil {
					return err
				}
				return lines.Close()
			case <-tick.C:
				if err := read(); err != nil {
					return err
				}
			}
		}
	}
}

// taskLog reads the end of what a task printed from its work folder, nil if
// there is nothing to be read. The folder is on another machine perhaps, or in a
// bucket.
func taskLog(t *trace) []byte {
	if !filepath.IsAbs(string(t.Workdir)) {
		return nil
	}
	size := int64(otherLog)
	if t.Status == "FAILED" {
		size = failedLog
	}
	text := tail(filepath.Join(string(t.Workdir), ".command.log"), size)
	if text == "" {
		return nil
	}
	line, err := json.Marshal(map[string]string{"task_id": string(t.TaskID), "log": text})
	if err != nil {
		return nil
	}
	return line
}

// tail reads the end of a file, if it is one of this user's own: a post may name
// any folder, and what is read is published.
func tail(path string, size int64) string {
	// A pipe must not hold us up, and a link may lead anywhere.
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return ""
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return ""
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); !ok || int(owner.Uid) != os.Geteuid() {
		return ""
	}
	end := engines.Tail{Size: int(size)}
	from := max(info.Size()-size, 0)
	if _, err := io.Copy(&end, io.NewSectionReader(file, from, size)); err != nil {
		return ""
	}
	return end.String()
}
