//go:build faults && unix

package crashpoint

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestHit runs itself in a process of its own, which comes to point five times
// and says so.
func TestHit(t *testing.T) {
	if os.Getenv("CRASHPOINT_CHILD") != "" {
		for i := range 5 {
			Hit("elsewhere")
			Hit("point")
			fmt.Println("passed", i+1)
		}
		return
	}
	for _, tc := range []struct {
		plan   string
		passed int
		dies   bool
	}{
		{"", 5, false},
		{"another", 5, false},
		{"point", 0, true},
		{"point:1", 0, true},
		{"point:3", 2, true},
		{"point:6", 5, false},
	} {
		t.Run(tc.plan, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestHit$")
			cmd.Env = append(os.Environ(), "CRASHPOINT_CHILD=y", "WAYMARK_CRASHPOINT="+tc.plan)
			out, err := cmd.Output()
			if got := strings.Count(string(out), "passed"); got != tc.passed {
				t.Errorf("it passed the point %d times, want %d", got, tc.passed)
			}
			exit, _ := errors.AsType[*exec.ExitError](err)
			if died := exit != nil && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL; died != tc.dies {
				t.Errorf("killed: %v (%v), want %v", died, err, tc.dies)
			}
		})
	}
}

func TestHitFreezes(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestHit$")
	cmd.Env = append(os.Environ(), "CRASHPOINT_CHILD=y", "WAYMARK_CRASHPOINT=point:2:freeze")
	var out strings.Builder
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(cmd.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil {
		t.Fatal(err)
	}
	if !status.Stopped() || status.StopSignal() != syscall.SIGSTOP {
		t.Fatalf("the process did not stop: %v", status)
	}
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("the process did not go on: %v", err)
	}
	if got := strings.Count(out.String(), "passed"); got != 5 {
		t.Errorf("it passed the point %d times, want 5; it wrote:\n%s", got, out.String())
	}
}

func TestReadRefuses(t *testing.T) {
	for _, text := range []string{":1", "point:", "point:0", "point:-1", "point:x", "point:1:thaw", "point:1:freeze:now"} {
		t.Run(text, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Errorf("WAYMARK_CRASHPOINT=%q was accepted", text)
				}
			}()
			read(text)
		})
	}
}

func TestClockStepsWhenTold(t *testing.T) {
	if off := time.Since(Now()); off < -time.Minute || off > time.Minute {
		t.Errorf("Now is off by %v, though no steps were asked for", off)
	}
	stepping = true
	t.Cleanup(func() { stepping = false })
	seen := make(map[time.Duration]bool)
	for deadline := time.Now().Add(30 * time.Second); len(seen) < 5 && time.Now().Before(deadline); {
		seen[Now().Sub(time.Now().Round(0)).Round(time.Hour)] = true
	}
	if len(seen) != 5 {
		t.Errorf("a stepping clock was off by %v in 30 s, want five different steps", seen)
	}
}
