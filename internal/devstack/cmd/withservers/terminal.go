package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// foregroundGroup is the process group that has the terminal.
func foregroundGroup(tty *os.File) (int, error) {
	return unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
}
