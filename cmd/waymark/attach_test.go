package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
)

// TestAttachSnakemake reports a run that was started without Waymark.
func TestAttachSnakemake(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(t)
	dir, id := t.TempDir(), uuid.NewString()
	s.run(t, "attach", "snakemake", dir).want(t, exitUsage)

	r := &engineRun{t: t, id: id, done: make(chan struct{}), Cmd: exec.Command("snakemake", "-j2")}
	r.Dir = dir
	r.Env = append(os.Environ(), "XDG_CACHE_HOME="+t.TempDir(), "HOME="+t.TempDir())
	r.Stderr = &r.stderr
	if err := os.WriteFile(filepath.Join(dir, "Snakefile"), []byte(snakefile), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		r.Wait()
		close(r.done)
	}()
	t.Cleanup(func() {
		r.letGo()
		<-r.done
	})
	r.await("waiting")
	attached := make(chan outcome)
	go func() { attached <- s.run(t, "attach", "snakemake", dir, "--id", id, "--name", "fit") }()
	s.awaitStatus(t, id, "running")
	r.letGo()
	out := <-attached
	out.want(t, exitOK)
	// Whether "all" runs anything a log does not tell.
	if got := s.awaitNamed(t, id, "finished", "fit"); got.Progress.Finished != 4 || got.Progress.Total != 4 {
		t.Errorf("in the end the run is %+v, want 4 of 4", got)
	} else {
		s.wantBeginning(t, got)
	}
	if !strings.Contains(out.stderr, "4 of 4 jobs finished") {
		t.Errorf("attach said:\n%s", out.stderr)
	}
}
