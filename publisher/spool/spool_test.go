package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func record(id string, class Class, body string) *Record {
	return &Record{
		Queue: "jobs-status", MessageID: id, ContentType: "application/json", Class: class, Priority: 7,
		Timestamp: time.Date(2026, 3, 4, 12, 0, 0, 5, time.UTC), Body: []byte(body),
	}
}

func writer(t testing.TB, cfg Config) *Writer {
	t.Helper()
	w, err := NewWriter(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w
}

// put appends a record that must be taken.
func put(t testing.TB, w *Writer, r *Record) Ref {
	t.Helper()
	ref, dropped, err := w.Append(r)
	if err != nil || len(dropped) > 0 {
		t.Fatalf("appending %s: %v, dropping %v; want it taken and nothing dropped", r.MessageID, err, dropped)
	}
	return ref
}

// rest reads what a folder holds, and leaves it there.
func rest(t testing.TB, dir string) (all []Record) {
	t.Helper()
	paths, err := Segments(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		s, err := Open(path)
		if err != nil {
			t.Fatalf("opening %s: %v", path, err)
		}
		all = append(all, read(t, s)...)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func read(t testing.TB, s *Segment) (all []Record) {
	t.Helper()
	for {
		_, r, err := s.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
}

func ids(records []Record) string {
	var all []string
	for _, r := range records {
		all = append(all, r.MessageID)
	}
	return strings.Join(all, " ")
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state", "spool")
	w := writer(t, Config{Broker: "host:5672/", Dir: dir})
	if paths, err := Segments(dir); err != nil || len(paths) != 0 {
		t.Errorf("before the first message there are %q (%v), want no segments", paths, err)
	}
	want := []Record{
		*record("a", Submission, `{"user": "ada"}`),
		*record("b", Progress, strings.Repeat("x", 1<<20)),
		*record("c", Logs, "\x00\xff not UTF-8, \n\n"),
		*record("d", Terminal, ""),
	}
	want[3].Body = []byte{}
	var refs []Ref
	for i := range want {
		refs = append(refs, put(t, w, &want[i]))
	}
	if err := w.Sync(); err != nil {
		t.Fatal(err)
	}
	got, err := w.Read(refs[1])
	if diff := cmp.Diff(want[1], got); err != nil || diff != "" {
		t.Errorf("Read: %v (-want +got):\n%s", err, diff)
	}

	paths, _ := Segments(dir)
	if len(paths) != 1 {
		t.Fatalf("segments %q, want one", paths)
	}
	if _, err := Open(paths[0]); !errors.Is(err, ErrBusy) {
		t.Errorf("opening the segment of a writer that lives: %v, want ErrBusy", err)
	}
	for path, mode := range map[string]fs.FileMode{dir: 0o700, filepath.Dir(dir): 0o700, paths[0]: 0o600} {
		if state, err := os.Stat(path); err != nil || state.Mode().Perm() != mode {
			t.Errorf("%s has mode %v (%v), want %v", path, state.Mode().Perm(), err, mode)
		}
	}

	if err := w.Done(refs[0], 99); err != nil {
		t.Error(err)
	}
	if _, err := w.Read(refs[0]); !errors.Is(err, ErrUnknown) {
		t.Errorf("reading what is done: %v, want ErrUnknown", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Append(record("late", Terminal, "")); !errors.Is(err, ErrClosed) {
		t.Errorf("appending after Close: %v, want ErrClosed", err)
	}
	if diff := cmp.Diff(want[1:], rest(t, dir)); diff != "" {
		t.Errorf("what is left (-want +got):\n%s", diff)
	}

	s, err := Open(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	if o := s.Origin(); o.Broker != "host:5672/" || o.PID != os.Getpid() || s.Left() != 3 || s.Damaged() != "" {
		t.Errorf("origin %+v, %d left, damaged %q; want the broker, this process, 3 and nothing", o, s.Left(), s.Damaged())
	}
	if _, err := Open(paths[0]); !errors.Is(err, ErrBusy) {
		t.Errorf("opening a segment twice: %v, want ErrBusy", err)
	}
	at, _, _ := s.Next()
	if err := errors.Join(s.Done(at), s.Done(at), s.Close()); err != nil {
		t.Fatal(err)
	}
	if got := ids(rest(t, dir)); got != "c d" {
		t.Errorf("after draining one, %q are left, want c d", got)
	}
	drainAll(t, dir)
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("a drained spool holds %v, want nothing", entries)
	}
}

// drainAll takes everything out of a folder.
func drainAll(t testing.TB, dir string) (all []Record) {
	t.Helper()
	paths, err := Segments(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		s, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		for {
			at, r, err := s.Next()
			if err != nil {
				break
			}
			all = append(all, r)
			if err := s.Done(at); err != nil {
				t.Error(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	return all
}

func TestSegmentEndsWithItsMessages(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w := writer(t, Config{Dir: private(t, dir)})
	for range 3 {
		a, b := put(t, w, record("a", Terminal, "1")), put(t, w, record("b", Progress, "2"))
		if err := errors.Join(w.Sync(), w.Done(b), w.Done(a)); err != nil {
			t.Fatal(err)
		}
		if paths, _ := Segments(dir); len(paths) != 0 {
			t.Fatalf("when all is done there are still %q", paths)
		}
	}
}

// private makes a folder of a test private, as the spool wants it.
func private(t testing.TB, dir string) string {
	t.Helper()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// segment is a segment of n messages, and the offsets at which each ends.
func segment(t testing.TB, n int) (content []byte, ends []int) {
	t.Helper()
	dir := private(t, t.TempDir())
	w := writer(t, Config{Dir: dir})
	var path string
	for i := range n {
		put(t, w, record(fmt.Sprint("m", i), Terminal, strings.Repeat("body", i+1)))
		if path == "" {
			paths, _ := Segments(dir)
			path = paths[0]
		}
		state, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, int(state.Size()))
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content, ends
}

// lay writes a segment as somebody left it.
func lay(t testing.TB, content []byte) (dir, path string) {
	t.Helper()
	dir = private(t, t.TempDir())
	path = filepath.Join(dir, "left.spool")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, path
}

// A write that was interrupted anywhere costs that one message and no other.
func TestTornAtEveryByte(t *testing.T) {
	t.Parallel()
	content, ends := segment(t, 3)
	for length := range content {
		want := 0
		for _, end := range ends {
			if end <= length {
				want++
			}
		}
		for _, torn := range []struct {
			how  string
			tail []byte
		}{{"cut", nil}, {"followed by zeros", make([]byte, 500)}} {
			if length < headerSize && torn.tail != nil {
				continue // zeros where the header belongs are no segment
			}
			if torn.tail != nil && slices.Contains(content[length:min(length+1, len(content))], 0) {
				continue // the same bytes as a longer prefix
			}
			dir, path := lay(t, append(slices.Clone(content[:length]), torn.tail...))
			s, err := Open(path)
			if err != nil {
				t.Fatalf("%s at byte %d: %v", torn.how, length, err)
			}
			got := read(t, s)
			if len(got) != want || s.Left() != want {
				t.Errorf("%s at byte %d: %d messages (%q), %d said to be left; want %d", torn.how, length, len(got), ids(got), s.Left(), want)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			// It can be drained, and noted so, as if nothing had been.
			if got := drainAll(t, dir); len(got) != want {
				t.Errorf("%s at byte %d: drained %q, want %d", torn.how, length, ids(got), want)
			}
			if paths, _ := Segments(dir); len(paths) != 0 {
				t.Errorf("%s at byte %d: %q is left of a drained spool", torn.how, length, paths)
			}
		}
	}
}

// Damage costs what is behind it, and nothing is deleted for it.
func TestDamageAtEveryByte(t *testing.T) {
	t.Parallel()
	content, ends := segment(t, 3)
	for at := headerSize; at < len(content); at++ {
		damaged := slices.Clone(content)
		damaged[at] ^= 0x40
		dir, path := lay(t, damaged)
		s, err := Open(path)
		if err != nil {
			t.Fatalf("byte %d: %v", at, err)
		}
		want := 0
		for want < len(ends) && ends[want] <= at {
			want++
		}
		if got := read(t, s); len(got) != want {
			t.Errorf("byte %d: %d messages (%q), want the %d before the damage", at, len(got), ids(got), want)
		}
		aside := s.Damaged()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if aside == "" {
			// A length that points behind the end looks like a torn write.
			if got := binary.BigEndian.Uint32(damaged[frameAt(content, at):]); int(got) <= len(content)-frameAt(content, at)-frameSize {
				t.Errorf("byte %d: the damage is not told", at)
			}
			continue
		}
		kept, err := os.ReadFile(aside)
		if err != nil || !bytes.Equal(kept, damaged[len(damaged)-len(kept):]) || len(kept) < len(content)-at {
			t.Errorf("byte %d: put aside are %d bytes (%v), want all from the damaged frame on", at, len(kept), err)
		}
		if got := drainAll(t, dir); len(got) != want {
			t.Errorf("byte %d: drained %q, want %d", at, ids(got), want)
		}
	}
}

// frameAt is where the frame begins in which a byte lies.
func frameAt(content []byte, at int) int {
	offset := headerSize
	for {
		next := offset + frameSize + int(binary.BigEndian.Uint32(content[offset:]))
		if at < next {
			return offset
		}
		offset = next
	}
}

func TestLeftAlone(t *testing.T) {
	t.Parallel()
	content, _ := segment(t, 1)
	newer := slices.Clone(content)
	newer[len(magic)] = 2
	for _, test := range []struct {
		name    string
		content []byte
		want    string
	}{
		{"a newer version", newer, "has format 2 and this version of Waymark knows 1"},
		{"another file", []byte("#!/bin/sh\necho hello\n"), "not a segment"},
		{"a short other file", []byte("hi"), "not a segment"},
		{"zeros", make([]byte, 100), "not a segment"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, path := lay(t, test.content)
			_, err := Open(path)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Open = %v, want an error with %q", err, test.want)
			}
			if _, is := errors.AsType[*VersionError](err); is != (test.name == "a newer version") {
				t.Errorf("Open = %T, a *VersionError only for a newer version", err)
			}
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, test.content) {
				t.Errorf("the file is now %q (%v), want it untouched", got, err)
			}
		})
	}

	t.Run("a link", func(t *testing.T) {
		dir, target := lay(t, content)
		link := filepath.Join(dir, "link.spool")
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(link); err == nil {
			t.Error("a link was followed")
		}
	})
	t.Run("a pipe", func(t *testing.T) {
		path := filepath.Join(private(t, t.TempDir()), "pipe.spool")
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "not a file") {
			t.Errorf("Open = %v, want that it is not a file", err)
		}
	})
	t.Run("gone", func(t *testing.T) {
		if _, err := Open(filepath.Join(private(t, t.TempDir()), "gone.spool")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open = %v, want ErrNotExist", err)
		}
	})
}

// Two find the same segment, and one drains it before the other has locked it.
func TestLockOfWhatIsGone(t *testing.T) {
	t.Parallel()
	content, _ := segment(t, 1)
	for name, take := range map[string]func(path string) error{
		"removed":  os.Remove,
		"replaced": func(path string) error { return os.Rename(path+".other", path) },
	} {
		_, path := lay(t, content)
		if err := os.WriteFile(path+".other", content, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := take(path); err != nil {
			t.Fatal(err)
		}
		if err := lock(f); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("locking a segment that was %s: %v, want ErrNotExist", name, err)
		}
	}
}

func TestFolder(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(t.TempDir(), "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, dir, want string }{
		{"none", "", "no folder"},
		{"a file", file, "not a directory"},
		{"below a file", filepath.Join(file, "spool"), "not a directory"},
		{"writable by others", open, "may be written by others (mode 0777)"},
		{"a name with NUL", "a\x00b", "invalid argument"},
	} {
		if _, err := NewWriter(Config{Dir: test.dir}); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: NewWriter = %v, want an error with %q", test.name, err, test.want)
		}
	}
	if _, err := Open(filepath.Join(open, "x.spool")); err == nil || !strings.Contains(err.Error(), "may be written by others") {
		t.Errorf("draining a folder that others may write: %v, want a refusal", err)
	}
	if paths, err := Segments(filepath.Join(t.TempDir(), "none")); err != nil || paths != nil {
		t.Errorf("a folder that does not exist: %q, %v; want none and no error", paths, err)
	}
	// One that vanishes while in use costs the message, and is made no secret of.
	dir := filepath.Join(t.TempDir(), "spool")
	w := writer(t, Config{Dir: dir})
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Append(record("a", Terminal, "")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("appending to a folder that has vanished: %v, want ErrNotExist", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	put(t, w, record("b", Terminal, ""))
}

func TestTooLarge(t *testing.T) {
	t.Parallel()
	w := writer(t, Config{Dir: private(t, t.TempDir())})
	if _, _, err := w.Append(record("huge", Terminal, strings.Repeat("x", MaxRecord))); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("appending a record over the limit: %v, want a refusal", err)
	}
	put(t, w, record("a", Terminal, ""))

	// In a file, a length beyond the limit is damage, whatever the size.
	content, ends := segment(t, 1)
	content = binary.BigEndian.AppendUint32(content, MaxRecord+1)
	content = append(content, make([]byte, 100)...)
	_, path := lay(t, content)
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got := read(t, s); len(got) != 1 || s.Damaged() == "" || s.end != int64(ends[0]) {
		t.Errorf("%d messages, damaged %q; want 1 and the rest put aside", len(got), s.Damaged())
	}
}

func TestFullDropsTheOldestDetails(t *testing.T) {
	t.Parallel()
	dir := private(t, t.TempDir())
	const bound = 60_000
	w := writer(t, Config{Dir: dir, MaxBytes: bound})
	body := strings.Repeat("x", 1000)
	kept := map[string]bool{}
	refs := map[Ref]string{}
	var dropped []string
	for i := range 71 { // of which those that are kept fit
		class := []Class{Progress, Logs, Progress, Terminal, Submission}[i%5]
		id := fmt.Sprintf("%03d", i)
		ref, gone, err := w.Append(record(id, class, body))
		if err != nil {
			t.Fatalf("message %s of class %s: %v", id, class, err)
		}
		refs[ref], kept[id] = id, true
		for _, ref := range gone {
			dropped = append(dropped, refs[ref])
			delete(kept, refs[ref])
			if _, err := w.Read(ref); !errors.Is(err, ErrUnknown) {
				t.Errorf("reading what was dropped: %v, want ErrUnknown", err)
			}
		}
		if used := size(dir, ""); used > bound {
			t.Fatalf("after %d messages the spool takes %d bytes, at most %d are allowed", i+1, used, bound)
		}
	}
	if len(dropped) == 0 || !slices.IsSorted(dropped) {
		t.Errorf("dropped %q, want some, oldest first", dropped)
	}
	for _, id := range dropped {
		if i, err := strconv.Atoi(id); err != nil || i%5 >= 3 {
			t.Errorf("message %s was dropped, which is of a class that is kept", id)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var want []string
	for id := range kept {
		want = append(want, id)
	}
	slices.Sort(want)
	if got := ids(rest(t, dir)); got != strings.Join(want, " ") {
		t.Errorf("on disk are\n%s, want in this order\n%s", got, want)
	}
}

func TestFullOfWhatIsKept(t *testing.T) {
	t.Parallel()
	dir := private(t, t.TempDir())
	w := writer(t, Config{Dir: dir, MaxBytes: 1 << 20})
	body := strings.Repeat("x", 8<<20)
	n := 0
	var err error
	for ; err == nil && n < 20; n++ {
		_, _, err = w.Append(record(fmt.Sprint(n), Terminal, body))
	}
	// 1 MiB, and the reserve of 64.
	if n != 9 || !errors.Is(err, ErrFull) {
		t.Errorf("message %d: %v; want the ninth of 8 MiB to be refused with ErrFull", n, err)
	}
	if _, _, err := w.Append(record("detail", Progress, "")); !errors.Is(err, ErrFull) {
		t.Errorf("a detail for which there is no room: %v, want ErrFull", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got := ids(rest(t, dir)); got != "0 1 2 3 4 5 6 7" {
		t.Errorf("on disk are %q, want what was taken", got)
	}

	// Others' segments count, and what is full for details is not for an end.
	other := writer(t, Config{Dir: dir, MaxBytes: 1 << 20})
	if _, _, err := other.Append(record("detail", Logs, "")); !errors.Is(err, ErrFull) {
		t.Errorf("a detail in a full folder: %v, want ErrFull", err)
	}
	put(t, other, record("end", Terminal, ""))
}

// Room that done messages take is used again.
func TestDoneMakesRoom(t *testing.T) {
	t.Parallel()
	dir := private(t, t.TempDir())
	w := writer(t, Config{Dir: dir, MaxBytes: 50_000})
	first := put(t, w, record("first", Terminal, ""))
	for i := range 500 {
		ref := put(t, w, record(fmt.Sprint(i), Progress, strings.Repeat("x", 1000)))
		if err := w.Done(ref); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Read(first); err != nil {
		t.Errorf("reading the one that is not done: %v", err)
	}
	if used := size(dir, ""); used > 50_000 {
		t.Errorf("the spool takes %d bytes", used)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got := ids(rest(t, dir)); got != "first" {
		t.Errorf("left are %q, want first", got)
	}
}

func TestSweep(t *testing.T) {
	t.Parallel()
	dir := private(t, t.TempDir())
	old, fresh, other := filepath.Join(dir, "old.spool.new"), filepath.Join(dir, "fresh.spool.new"), filepath.Join(dir, "old.txt")
	for _, path := range []string{old, fresh, other} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	past := time.Now().Add(-time.Hour)
	if err := errors.Join(os.Chtimes(old, past, past), os.Chtimes(other, past, past)); err != nil {
		t.Fatal(err)
	}
	Sweep(dir)
	for path, want := range map[string]bool{old: false, fresh: true, other: true} {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s: %v; want it there: %v", path, err, want)
		}
	}
}

// Whatever is appended, delivered and reopened in whatever order, exactly what
// is neither done nor dropped is found, in order.
func TestModel(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		dir := filepath.Join(root, fmt.Sprint(run))
		maxBytes := rapid.Int64Range(2_000, 20_000).Draw(rt, "max")
		open := func() *Writer {
			w, err := NewWriter(Config{Dir: dir, MaxBytes: maxBytes})
			if err != nil {
				rt.Fatal(err)
			}
			return w
		}
		type entry struct {
			id    string
			class Class
		}
		w := open()
		defer func() { _ = w.Close() }()
		current := map[Ref]entry{} // of this writer
		var earlier []string       // of those before
		next := 0
		sorted := func() (all []string) {
			var refs []Ref
			for ref := range current {
				refs = append(refs, ref)
			}
			slices.Sort(refs)
			for _, ref := range refs {
				all = append(all, current[ref].id)
			}
			return all
		}
		rt.Repeat(map[string]func(*rapid.T){
			"append": func(rt *rapid.T) {
				class := rapid.SampledFrom([]Class{Submission, Terminal, Progress, Logs}).Draw(rt, "class")
				id := fmt.Sprintf("%04d", next)
				next++
				ref, dropped, err := w.Append(record(id, class, strings.Repeat("b", rapid.IntRange(0, 3000).Draw(rt, "size"))))
				for _, gone := range dropped {
					if current[gone].class.Keep() {
						rt.Fatalf("%s of class %s was dropped", current[gone].id, current[gone].class)
					}
					delete(current, gone)
				}
				switch {
				case err == nil:
					current[ref] = entry{id, class}
				case !errors.Is(err, ErrFull) || class.Keep():
					rt.Fatalf("appending %s of class %s: %v", id, class, err)
				}
			},
			"done": func(rt *rapid.T) {
				for ref := range current {
					if rapid.Bool().Draw(rt, "this") {
						if err := w.Done(ref); err != nil {
							rt.Fatal(err)
						}
						delete(current, ref)
					}
				}
			},
			"reopen": func(rt *rapid.T) {
				earlier = append(earlier, sorted()...)
				if err := w.Close(); err != nil {
					rt.Fatal(err)
				}
				clear(current)
				w = open()
			},
			"drain": func(rt *rapid.T) {
				var got []string
				paths, _ := Segments(dir)
				for _, path := range paths {
					s, err := Open(path)
					if errors.Is(err, ErrBusy) {
						continue
					}
					if err != nil {
						rt.Fatal(err)
					}
					for {
						at, r, err := s.Next()
						if err != nil {
							break
						}
						got = append(got, r.MessageID)
						if err := s.Done(at); err != nil {
							rt.Fatal(err)
						}
					}
					if err := s.Close(); err != nil {
						rt.Fatal(err)
					}
				}
				if diff := cmp.Diff(earlier, got); diff != "" {
					rt.Fatalf("drained (-want +got):\n%s", diff)
				}
				earlier = nil
			},
			"": func(rt *rapid.T) {
				for ref, e := range current {
					if r, err := w.Read(ref); err != nil || r.MessageID != e.id {
						rt.Fatalf("reading %s: %q, %v", e.id, r.MessageID, err)
					}
				}
			},
		})
	})
}

// Any bytes: no panic, no more memory than the file has, and what is right
// before the damage is found.
func FuzzSegment(f *testing.F) {
	content, _ := segment(f, 2)
	for _, seed := range [][]byte{nil, content, content[:len(content)-3], content[headerSize:], make([]byte, 40), []byte("waymark\x02"), {0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 'M'}} {
		f.Add(seed)
	}
	good, ends := segment(f, 2)
	f.Fuzz(func(t *testing.T, garbage []byte) {
		for _, test := range []struct {
			content []byte
			least   int
		}{{garbage, 0}, {append(slices.Clone(good), garbage...), 2}} {
			read := 0
			largest := 0
			end, _, err := survey(bytes.NewReader(test.content), int64(len(test.content)), func(at int64, payload []byte) {
				largest = max(largest, cap(payload))
				if r, err := parseMessage(payload); err == nil {
					if len(r.Body) > len(test.content) {
						t.Errorf("a body of %d bytes in a file of %d", len(r.Body), len(test.content))
					}
					read++
				}
				if _, err := parseDone(payload); err == nil && len(payload) != 9 {
					t.Error("a note of a wrong size was read")
				}
			})
			if read < test.least || end < 0 || end > int64(len(test.content)) || test.least > 0 && end < int64(ends[1]) {
				t.Errorf("%d messages, up to byte %d of %d (%v), want at least %d", read, end, len(test.content), err, test.least)
			}
			if largest > len(test.content) {
				t.Errorf("%d bytes were allocated for a file of %d", largest, len(test.content))
			}
		}
	})
}
