//go:build !linux

package bench

import "syscall"

// processAttributes leave the process as it is. It is measured on Linux alone.
func processAttributes() *syscall.SysProcAttr { return nil }
