package serial

import "syscall"

// processAttributes gives a command a process group of its own, and its death
// when the thread that started it dies.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
