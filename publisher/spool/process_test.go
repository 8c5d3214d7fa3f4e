package spool

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// childVariable makes this test binary do the work of another process.
const (
	childVariable = "WAYMARK_SPOOL_TEST_CHILD"
	dirVariable   = "WAYMARK_SPOOL_TEST_DIR"
)

// roles are what other processes do.
var roles = map[string]func(dir string){"write": childWrite, "drain": childDrain}

func TestMain(m *testing.M) {
	if role, ok := roles[os.Getenv(childVariable)]; ok {
		role(os.Getenv(dirVariable))
		return
	}
	os.Exit(m.Run())
}

// child is this test binary in another role.
func child(t testing.TB, role, dir string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), childVariable+"="+role, dirVariable+"="+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

func check0(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(1)
	}
}

// childWrite writes for ever, in a spool so small that it is compacted again
// and again, and says what is safe and what is about to be done.
func childWrite(dir string) {
	w, err := NewWriter(Config{Dir: dir, MaxBytes: 40_000})
	check0(err)
	var safe []Ref
	names := map[Ref]string{}
	for i := 0; ; i++ {
		_, _, err := w.Append(record(fmt.Sprint("detail", i), Progress, strings.Repeat("d", 3000)))
		check0(err)
		id := fmt.Sprint("end", i)
		ref, _, err := w.Append(record(id, Terminal, strings.Repeat("e", 500)))
		check0(err)
		check0(w.Sync())
		fmt.Println("safe", id)
		safe, names[ref] = append(safe, ref), id
		if len(safe) > 20 {
			fmt.Println("done", names[safe[0]]) // from here on it may be gone
			check0(w.Done(safe[0]))
			safe = safe[1:]
		}
	}
}

// A process is killed at a random moment, again and again, in one folder. What
// it said is safe is there, and no half of anything.
func TestKilledWriter(t *testing.T) {
	t.Parallel()
	const kills = 25
	dir := private(t, t.TempDir())
	expected := map[string]bool{} // of this life
	for life := range kills {
		clear(expected)
		cmd := child(t, "write", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		var kill *time.Timer
		for lines.Scan() {
			if kill == nil {
				kill = time.AfterFunc(time.Duration(rand.Int64N(int64(40*time.Millisecond))), func() { _ = cmd.Process.Kill() })
			}
			verb, id, _ := strings.Cut(lines.Text(), " ")
			expected[id] = verb == "safe"
		}
		err = cmd.Wait()
		if kill == nil {
			t.Fatalf("the writer said nothing: %v", err)
		}
		if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() {
			t.Fatalf("the writer ended by itself: %v", err)
		}
		found := map[string]int{}
		for _, r := range drainAll(t, dir) {
			found[r.MessageID]++
			if want := map[bool]int{true: 500, false: 3000}[r.Class == Terminal]; len(r.Body) != want {
				t.Errorf("life %d: message %s has %d bytes, want %d", life, r.MessageID, len(r.Body), want)
			}
		}
		for id, safe := range expected {
			if safe && found[id] != 1 {
				t.Errorf("life %d: %s was safe, and is there %d times", life, id, found[id])
			}
		}
	}
	Sweep(dir) // finds nothing old enough, and must not mind
}

// childDrain drains until there is nothing, and says what it drained.
func childDrain(dir string) {
	for {
		paths, err := Segments(dir)
		check0(err)
		if len(paths) == 0 {
			return
		}
		for _, path := range paths {
			s, err := Open(path)
			if err != nil {
				continue // another's, or gone
			}
			for {
				at, r, err := s.Next()
				if errors.Is(err, io.EOF) {
					break
				}
				check0(err)
				fmt.Println(r.MessageID)
				check0(s.Done(at))
			}
			check0(s.Close())
		}
	}
}

// Several processes drain one folder: each message is drained once.
func TestDrainedByManyProcesses(t *testing.T) {
	t.Parallel()
	dir := private(t, t.TempDir())
	var want []string
	for i := range 40 {
		w := writer(t, Config{Dir: dir})
		for j := range 5 {
			id := fmt.Sprintf("%02d-%d", i, j)
			put(t, w, record(id, Terminal, "x"))
			want = append(want, id)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	var got []string
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			out, err := child(t, "drain", dir).Output()
			if err != nil {
				t.Errorf("a drainer: %v", err)
			}
			mu.Lock()
			defer mu.Unlock()
			got = append(got, strings.Fields(string(out))...)
		})
	}
	wg.Wait()
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("drained by four were %d messages, want each of %d once", len(got), len(want))
	}
}
