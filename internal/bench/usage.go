package bench

import (
	"runtime"
	"runtime/metrics"
	"syscall"
	"time"
)

// moment is what this process had used by a point in time.
type moment struct {
	at          time.Time
	cpu         time.Duration // user and system, of all threads
	allocations uint64
	allocated   uint64 // bytes
}

// now reads the process's counters. The allocation counters do not stop the
// world, so it may be called in the middle of a measurement.
func now() moment {
	m := moment{at: time.Now()}
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) == nil { // it cannot fail with these arguments
		m.cpu = time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	// Of small objects without pointers the first counts only the blocks that
	// several of them share; Go's benchmarks count each.
	samples := []metrics.Sample{{Name: "/gc/heap/allocs:objects"}, {Name: "/gc/heap/tiny/allocs:objects"}, {Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(samples)
	m.allocations, m.allocated = samples[0].Value.Uint64()+samples[1].Value.Uint64(), samples[2].Value.Uint64()
	return m
}

// settle lets the garbage of what came before be nobody's cost.
func settle() { runtime.GC() }

// addRate enters the rate of n messages between two moments.
func (c *Case) addRate(n int, from, to moment) {
	c.add("rate", "msg/s", float64(n)/to.at.Sub(from.at).Seconds())
}

// addUsage enters what this process used for each of n messages. It is all of
// the process: the generator's share, if it has one here, is part of it.
func (c *Case) addUsage(n int, from, to moment) {
	c.add("cpu", "µs/msg", float64((to.cpu-from.cpu).Nanoseconds())/1000/float64(n))
	c.add("allocations", "/msg", float64(to.allocations-from.allocations)/float64(n))
	c.add("allocated", "B/msg", float64(to.allocated-from.allocated)/float64(n))
}
