package cwl

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"waymark/engines"
)

// TestFollow has a file written in pieces, replaced, and left with half a line.
func TestFollow(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "bus.txt")
	write := func(flag int, text string) {
		t.Helper()
		f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|flag, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	write(0, "of an earlier run\n")
	source := follow(file)
	lines := make(chan string, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- source(ctx, func(e engines.Event) { lines <- e.Source + " " + string(e.Line) })
	}()
	want := func(s string) {
		t.Helper()
		if got := <-lines; got != s {
			t.Fatalf("the line is %q, want %q", got, s)
		}
	}
	write(os.O_APPEND, "one\ntw")
	want("toil one")
	write(os.O_APPEND, "o\nthr")
	want("toil two")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	write(0, "anew\n")
	want("toil anew")
	write(os.O_APPEND, "last\nhalf")
	cancel()
	want("toil last")
	if err := <-done; err != nil {
		t.Errorf("the source ended with %v", err)
	}
	if len(lines) > 0 {
		t.Errorf("half a line came: %q", <-lines)
	}

	if err := follow(filepath.Join(t.TempDir(), "never"))(ctx, nil); err != nil {
		t.Errorf("a file that never comes is an error: %v", err)
	}
}
