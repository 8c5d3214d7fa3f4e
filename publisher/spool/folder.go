package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// suffix of the names of segments.
const suffix = ".spool"

// ErrBusy says that a segment is somebody else's at the moment: written by a
// process that lives, or being drained.
var ErrBusy = errors.New("in use by another process")

// Segments lists the paths of the segments in a folder, oldest first, whoever
// owns them. A folder that does not exist holds none.
func Segments(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing the spool: %w", err)
	}
	var paths []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), suffix) {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	slices.Sort(paths)
	return paths, nil
}

// Prepare makes the folder of a spool, if need be, and says what is wrong with
// it: messages hold what users run and print, and whoever can write there can
// have messages published in their name.
func Prepare(dir string) error {
	var made []string
	for d := filepath.Clean(dir); ; d = filepath.Dir(d) {
		if _, err := os.Stat(d); !errors.Is(err, fs.ErrNotExist) || d == filepath.Dir(d) {
			break
		}
		made = append(made, d)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the spool: %w", err)
	}
	for _, d := range made { // a folder whose name is lost with the power holds nothing
		if err := syncDir(filepath.Dir(d)); err != nil {
			return err
		}
	}
	return check(dir)
}

// check says what is wrong with a folder that exists.
func check(dir string) error {
	state, err := os.Stat(dir)
	switch {
	case err != nil:
		return fmt.Errorf("looking at the spool: %w", err)
	case !state.IsDir():
		return fmt.Errorf("the spool %s is not a folder", dir)
	case state.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("the spool %s may be written by others (mode %04o): make it private with chmod 700", dir, state.Mode().Perm())
	}
	return nil
}

// size is how many bytes the segments of a folder take, but for one.
func size(dir, but string) int64 {
	paths, _ := Segments(dir) // what cannot be seen cannot be counted
	var total int64
	for _, path := range paths {
		if path == but {
			continue
		}
		if state, err := os.Lstat(path); err == nil {
			total += state.Size()
		}
	}
	return total
}

// lock takes the segment f for this process. The error is ErrBusy if somebody
// else has it, and fs.ErrNotExist if somebody else has just removed it.
func lock(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EWOULDBLOCK):
			return ErrBusy
		case err != nil:
			return fmt.Errorf("locking %s: %w", f.Name(), err)
		}
		break
	}
	// It may have been removed, or replaced, before it was locked.
	var mine, current syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &mine); err != nil {
		return fmt.Errorf("looking at %s: %w", f.Name(), err)
	}
	if err := syscall.Lstat(f.Name(), &current); err != nil || mine.Ino != current.Ino || mine.Dev != current.Dev {
		return fmt.Errorf("locking %s: %w", f.Name(), fs.ErrNotExist)
	}
	return nil
}

// release gives a segment back and closes it. Closing alone would do so later if
// this process is just starting another one, which then still has the file.
func release(f *os.File) error {
	_ = syscall.Flock(int(f.Fd()), syscall.LOCK_UN)
	return f.Close()
}

// syncDir makes the names in a folder durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("opening the spool: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("writing the spool's folder to disk: %w", err)
	}
	return nil
}
