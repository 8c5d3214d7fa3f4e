package spool

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// limitVariable is how many bytes the child may have: on a file system of its
// own where it may mount one, else in each file.
const limitVariable = "WAYMARK_SPOOL_TEST_LIMIT"

const fullLimit = 256 << 10

// The disk is full: the error says so, nothing that was there is lost, and once
// there is room the spool works on.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	run := func(limit string, attributes *syscall.SysProcAttr) (string, error) {
		cmd := child(t, "fill", private(t, t.TempDir()))
		cmd.Env = append(cmd.Env, limitVariable+"="+limit)
		cmd.SysProcAttr = attributes
		cmd.Stderr = nil
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	// A mount of its own needs a namespace of its own, which containers often
	// forbid; a limit on the size of files serves there.
	out, err := run("tmpfs", &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	})
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || strings.Contains(out, cannotMount) {
		t.Log("no file system of its own: limiting the size of files instead")
		out, err = run("rlimit", nil)
	}
	if err != nil || !strings.Contains(out, "as it should be") {
		t.Errorf("%v\n%s", err, out)
	}
}

func init() { roles["fill"] = childFill }

const cannotMount = "cannot mount"

func childFill(dir string) {
	want := error(syscall.ENOSPC)
	free := func() {}
	switch os.Getenv(limitVariable) {
	case "tmpfs":
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", fullLimit)); err != nil {
			check0(fmt.Errorf("%s: %w", cannotMount, err))
		}
		ballast := filepath.Join(dir, "ballast")
		check0(os.WriteFile(ballast, make([]byte, fullLimit/4), 0o600))
		free = func() { check0(os.Remove(ballast)) }
	case "rlimit":
		want = syscall.EFBIG
		signal.Ignore(syscall.SIGXFSZ)
		var old syscall.Rlimit
		check0(syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old))
		check0(syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: fullLimit, Max: old.Max}))
		free = func() { check0(syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old)) }
	}
	w, err := NewWriter(Config{Dir: dir})
	check0(err)
	var ids []string
	var refs []Ref
	add := func(id string) error {
		ref, _, err := w.Append(record(id, Terminal, strings.Repeat(id[:1], 9_000)))
		if err == nil {
			err = w.Sync()
		}
		if err == nil {
			ids, refs = append(ids, id), append(refs, ref)
		}
		return err
	}
	var full error
	for i := 0; full == nil && i < 100; i++ {
		full = add(fmt.Sprint("before", i))
	}
	if !errors.Is(full, want) || !strings.Contains(full.Error(), "spool") {
		check0(fmt.Errorf("filling the disk: %v, want one that says the spool and %w", full, want))
	}
	if again := add("again"); !errors.Is(again, want) {
		check0(fmt.Errorf("once more: %v, want %w", again, want))
	}
	for i, ref := range refs {
		if r, err := w.Read(ref); err != nil || r.MessageID != ids[i] {
			check0(fmt.Errorf("reading %s on a full disk: %q, %w", ids[i], r.MessageID, err))
		}
	}
	free()
	check0(w.Done(refs[0])) // shorter than what was cut off
	check0(add("after"))
	check0(w.Close())
	paths, err := Segments(dir)
	check0(err)
	var got []string
	for _, path := range paths {
		s, err := Open(path)
		check0(err)
		for {
			_, r, err := s.Next()
			if err != nil {
				break
			}
			if !bytes.Equal(r.Body, bytes.Repeat([]byte{r.MessageID[0]}, 9_000)) {
				check0(fmt.Errorf("the body of %s is damaged", r.MessageID))
			}
			got = append(got, r.MessageID)
		}
		if s.Damaged() != "" {
			check0(fmt.Errorf("%s was damaged", path))
		}
		check0(s.Close())
	}
	if a, b := strings.Join(got, " "), strings.Join(ids[1:], " "); a != b {
		check0(fmt.Errorf("in the end there are\n%s, want\n%s", a, b))
	}
	fmt.Println("as it should be")
}
