// Package crashpoint marks the places in the program where it hurts most to
// die, so that the fault suite can let a process die exactly there: between a
// commit and its ack no signal from outside hits reliably.
//
//	crashpoint.Hit("consumer.after-commit")
//
// Without the build tag "faults", Hit compiles to nothing. With it, the
// environment variable WAYMARK_CRASHPOINT says what happens where:
//
//	NAME          the process is killed when it first comes to the point
//	NAME:N        … when it comes there for the N-th time
//	NAME:N:freeze the process is stopped there, as by SIGSTOP, until SIGCONT
//
// A process dies as by SIGKILL: nothing is flushed, closed or told.
//
// Now is the clock of the program. With the tag and WAYMARK_CLOCK=steps it steps
// to and fro by hours and days; libfaketime would have no effect, as Go asks the
// kernel for the time and not the C library.
package crashpoint
