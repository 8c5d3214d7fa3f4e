//go:build !linux

package serial

import "syscall"

// processAttributes gives a command a process group of its own. Only the guard
// ends it when this process dies.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
