package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"waymark/internal/servicetest"
)

// snakefile is a workflow of three jobs, of which the second waits until the
// test lets it go on.
const snakefile = `
rule all:
    input: "c"
rule first:
    output: "a"
    shell: "touch a"
rule second:
    input: "a"
    output: "b"
    shell: "touch waiting; while [ ! -e go ]; do sleep 0.1; done; echo second says >&2; touch b"
rule third:
    input: "b"
    output: "c"
    shell: "touch c"
`

// engineRun is a real engine under "waymark run", as a process.
type engineRun struct {
	*exec.Cmd
	t      testing.TB
	id     string
	stderr bytes.Buffer
	done   chan struct{}
}

func startSnakemake(t testing.TB, env environment, more ...string) *engineRun {
	t.Helper()
	r := &engineRun{t: t, id: uuid.NewString(), done: make(chan struct{})}
	args := append([]string{"run", "snakemake", "--id", r.id}, more...)
	r.Cmd = program(t, env, append(args, "--", "snakemake", "-j2", "--nocolor")...)
	if err := os.WriteFile(filepath.Join(r.Dir, "Snakefile"), []byte(snakefile), 0o600); err != nil {
		t.Fatal(err)
	}
	r.Env = append(r.Env, "XDG_CACHE_HOME="+t.TempDir(), "HOME="+t.TempDir())
	r.Stderr = &r.stderr
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		r.Wait()
		close(r.done)
	}()
	t.Cleanup(func() {
		r.letGo()
		r.Process.Kill()
		<-r.done
	})
	return r
}

func (r *engineRun) has(file string) bool {
	_, err := os.Stat(filepath.Join(r.Dir, file))
	return err == nil
}

func (r *engineRun) await(file string) {
	r.t.Helper()
	servicetest.Eventually(r.t, patience, "the engine makes "+file, func() error {
		if !r.has(file) {
			return fmt.Errorf("it has not; standard error of run %s:\n%s", r.id, "(see below)")
		}
		return nil
	})
}

func (r *engineRun) letGo() {
	_ = os.WriteFile(filepath.Join(r.Dir, "go"), nil, 0o600)
}

func (r *engineRun) wait(code int) outcome {
	r.t.Helper()
	<-r.done
	if got := r.ProcessState.ExitCode(); got != code {
		r.t.Fatalf("waymark run ended with %d, want %d:\n%s", got, code, &r.stderr)
	}
	return outcome{code: code, stderr: r.stderr.String()}
}

func TestRunSnakemakeLive(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(t)
	r := startSnakemake(t, s.environment, "--name", "live")
	r.await("waiting")
	var got statusAnswer
	servicetest.Eventually(t, patience, "the second job runs, for everybody", func() error {
		o := s.run(t, "status", r.id, "--json")
		if o.code != exitOK {
			return fmt.Errorf("%s", o.stderr)
		}
		got = statusAnswer{}
		decodeJSON(t, o.stdout, &got)
		if got.Progress.Running != 1 || got.Progress.Finished != 1 || got.Progress.Total != 3 {
			return fmt.Errorf("it is %+v", got)
		}
		return nil
	})
	r.letGo()
	wantBalance(t, r.wait(0), false)
	if got := s.awaitNamed(t, r.id, "finished", "live"); got.Progress.Finished != 3 || got.Progress.Total != 3 {
		t.Errorf("in the end the run is %+v, want 3 of 3", got)
	}
	if !strings.Contains(r.stderr.String(), "second says\n") || !strings.Contains(r.stderr.String(), "4 of 4 steps (100%) done") {
		t.Errorf("Snakemake's own words did not come through:\n%s", &r.stderr)
	}
}

func TestRunSnakemakeBrokerAway(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(t)
	switchable, url := newRelay(t, s.amqp)
	s.environment["WAYMARK_BROKER_URL"] = url
	s.environment["WAYMARK_PUBLISHER_SPOOL_DIR"] = filepath.Join(t.TempDir(), "spool")

	// From the start to the end.
	dead := startSnakemake(t, s.environment, "--final-timeout", "200ms")
	dead.letGo()
	wantBalance(t, dead.wait(0), true)

	// From the middle on. The connection is cut with the relay.
	switchable.on()
	dying := startSnakemake(t, s.environment, "--final-timeout", "200ms")
	dying.await("waiting")
	s.awaitStatus(t, dead.id, "finished") // delivered by the second run
	servicetest.Eventually(t, patience, "the second run is known", func() error {
		if o := s.run(t, "status", dying.id); o.code != exitOK {
			return fmt.Errorf("%s", o.stderr)
		}
		return nil
	})
	switchable.off()
	dying.letGo()
	out := dying.wait(0)
	if !strings.Contains(out.stderr, "kept in ") {
		t.Errorf("the run whose broker died does not say where its end is:\n%s", out.stderr)
	}
	switchable.on()
	s.run(t, "publish", "--spool").want(t, exitOK)
	for _, id := range []string{dead.id, dying.id} {
		if got := s.awaitStatus(t, id, "finished"); got.Progress.Finished != 3 {
			t.Errorf("run %s is %+v, want 3 jobs finished", id, got)
		}
	}
}

// Whoever watches may be killed, and the engine ends as it would have.
func TestEngineSurvivesWaymark(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	r := startSnakemake(t, s.environment)
	r.await("waiting")
	r.Process.Kill()
	r.letGo()
	r.await("c")
}

func TestRunSnakemakeStopped(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(t)
	r := startSnakemake(t, s.environment)
	r.await("waiting")
	servicetest.Eventually(t, patience, "the second job is told", func() error {
		o := s.run(t, "jobs", r.id, "--status", "running", "--json")
		if !strings.Contains(o.stdout, "second") {
			return fmt.Errorf("%s%s", o.stdout, o.stderr)
		}
		return nil
	})
	if err := r.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-r.done
	if code := r.ProcessState.ExitCode(); code != 1 {
		t.Errorf("a stopped run ended with %d, want Snakemake's 1, as help exit-codes says:\n%s", code, &r.stderr)
	}
	got := s.awaitStatus(t, r.id, "stopped")
	if got.Progress.Running != 0 || got.Progress.Finished != 1 {
		t.Errorf("the stopped run is %+v, want one finished job and none running", got)
	}
	if logs := s.run(t, "logs", r.id).want(t, exitOK).stdout; !strings.Contains(logs, "stopped by SIGTERM") {
		t.Errorf("the log does not say by what the run was stopped:\n%s", logs)
	}
}

// Without a broker and without a spool nobody hears of the run, which ends as it
// would have and says so.
func TestRunSnakemakeUnheard(t *testing.T) {
	t.Parallel()
	r := startSnakemake(t, environment{"WAYMARK_BROKER_URL": "amqp://127.0.0.1:1/"}, "--final-timeout", "200ms", "--no-spool")
	r.letGo()
	if out := r.wait(0); !strings.Contains(out.stderr, "nobody was told how the run ended") {
		t.Errorf("that nobody knows the end is not said:\n%s", out.stderr)
	}
}
