package bench

import "syscall"

// processAttributes let the process end with this one, also if this one is
// killed: a consumer that nobody knows of would be at work for ever.
//
// It stays in our process group: a second Ctrl-C, which ends this process at
// once, must end that one too.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
}
