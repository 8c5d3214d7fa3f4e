//go:build faults && unix

package crashpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// plan is what WAYMARK_CRASHPOINT asks for; the zero plan asks for nothing.
type plan struct {
	name   string
	left   atomic.Int64 // hits until it happens
	freeze bool
}

var current = read(os.Getenv("WAYMARK_CRASHPOINT"))

// read panics on what it does not understand: a suite that believes it tests a
// crash, and does not, is worse than none.
func read(text string) *plan {
	p := new(plan)
	if text == "" {
		return p
	}
	fields := strings.Split(text, ":")
	p.name = fields[0]
	p.left.Store(1)
	if len(fields) > 1 {
		n, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil || n < 1 {
			panic(fmt.Sprintf("WAYMARK_CRASHPOINT=%q: expected a hit from 1 after the name", text))
		}
		p.left.Store(n)
	}
	switch {
	case p.name == "", len(fields) > 3, len(fields) == 3 && fields[2] != "freeze":
		panic(fmt.Sprintf("WAYMARK_CRASHPOINT=%q: expected NAME, NAME:N or NAME:N:freeze", text))
	case len(fields) == 3:
		p.freeze = true
	}
	return p
}

// Hit says that the program has come to the point called name. The process
// dies or freezes here if it was told to.
func Hit(name string) {
	if name != current.name || current.left.Add(-1) != 0 {
		return
	}
	signal := syscall.SIGKILL
	if current.freeze {
		signal = syscall.SIGSTOP
	}
	if err := syscall.Kill(os.Getpid(), signal); err != nil {
		panic(fmt.Sprintf("crash point %s: %v", name, err))
	}
	// The kernel may take a moment to reach this thread, which must not get
	// beyond the point meanwhile.
	time.Sleep(50 * time.Millisecond)
	for !current.freeze {
		time.Sleep(time.Second)
	}
}

// steps are what a stepping clock is wrong by, one after the other.
var steps = []time.Duration{0, time.Hour, -time.Hour, 24 * time.Hour, 0, -24 * time.Hour}

var begun, stepping = time.Now(), os.Getenv("WAYMARK_CLOCK") == "steps"

// Now is the time, by a clock that steps every 300 ms if it was told to. As a
// real one that is set, it does so without a trace in what runs monotonically.
func Now() time.Time {
	now := time.Now()
	if !stepping {
		return now
	}
	return now.Round(0).Add(steps[int(now.Sub(begun)/(300*time.Millisecond))%len(steps)])
}
