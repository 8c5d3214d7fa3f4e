//go:build !faults

package crashpoint

import (
	"os"
	"os/exec"
	"testing"
)

// A released program must not die by an environment variable.
func TestHitDoesNothing(t *testing.T) {
	const point = "somewhere"
	if os.Getenv("WAYMARK_CRASHPOINT") != "" {
		Hit(point)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestHitDoesNothing$", "-test.v")
	cmd.Env = append(os.Environ(), "WAYMARK_CRASHPOINT="+point)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("a process without the build tag that came to its crash point: %v\n%s", err, out)
	}
}
