//go:build !linux

package serial

import "syscall"

// processAttributes gives a command a process group of its own. Only the guard
// ends it when this process dies.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}

// groupAlive reports whether a process of the group is left.
func groupAlive(group int) bool { return syscall.Kill(-group, 0) != syscall.ESRCH }
