package devstack

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// supported: on Linux the kernel ends children with their parent.
const supported = true

// childAttributes puts a child into a process group of its own, so that Ctrl-C
// in a terminal reaches this process and not the servers, which would end
// before those who still use them.
func childAttributes(user *account, death syscall.Signal) *syscall.SysProcAttr {
	attributes := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: death}
	if user != nil {
		attributes.Credential = &syscall.Credential{Uid: uint32(user.uid), Gid: uint32(user.gid)}
	}
	return attributes
}

// stat is what /proc/PID/stat says of a process.
type stat struct {
	command string
	state   byte // 'Z' is a zombie
	parent  int
	started string // in clock ticks since boot
}

func readStat(pid int) (stat, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, false
	}
	// The name stands in parentheses and may hold any byte, also parentheses.
	open, shut := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || shut < open {
		return stat{}, false
	}
	fields := strings.Fields(string(b[shut+1:]))
	if len(fields) < 20 || fields[0] == "" {
		return stat{}, false
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return stat{}, false
	}
	return stat{command: string(b[open+1 : shut]), state: fields[0][0], parent: parent, started: fields[19]}, true
}

// birth tells a process from any other that has its number later: the boot and
// the time after it. It is empty when the process has ended.
func birth(pid int) string {
	s, ok := readStat(pid)
	if !ok || s.state == 'Z' || s.state == 'X' {
		return ""
	}
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(boot)) + "/" + s.started
}

// pids lists the processes of this machine.
func pids() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var all []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			all = append(all, pid)
		}
	}
	return all
}

// descendants lists the living children of processes, theirs, and so on.
// Process groups would not do: PostgreSQL's children leave theirs.
func descendants(of []int) []int {
	parents := make(map[int][]int)
	for _, pid := range pids() {
		if s, ok := readStat(pid); ok && s.state != 'Z' {
			parents[s.parent] = append(parents[s.parent], pid)
		}
	}
	var found []int
	seen := make(map[int]bool)
	for _, pid := range of {
		seen[pid] = true
	}
	for next := of; len(next) > 0; next = next[1:] {
		for _, child := range parents[next[0]] {
			if !seen[child] {
				seen[child] = true
				found = append(found, child)
				next = append(next[:len(next):len(next)], child)
			}
		}
	}
	return found
}

// inhabitants lists the processes that were started in a folder, and their
// children, also those whose parents were killed alone. A person's shell that
// stands in the folder is none. Of a process that belongs to another user
// neither sign may be readable; then it is not ours to end.
func inhabitants(dir string) []int {
	dir = resolved(dir)
	mark := []byte("\x00" + folderVariable + "=" + dir + "\x00")
	var found []int
	for _, pid := range pids() {
		s, ok := readStat(pid)
		if !ok || s.state == 'Z' {
			continue
		}
		environment, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if bytes.Contains(append([]byte{0}, environment...), mark) {
			found = append(found, pid)
			continue
		}
		// PostgreSQL writes its title over its environment, but stands in its data.
		cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		if err == nil && s.command == "postgres" && (cwd == dir || strings.HasPrefix(cwd, dir+"/")) {
			found = append(found, pid)
		}
	}
	return found
}

// isPostgres reports whether pid is a living PostgreSQL program.
func isPostgres(pid int) bool {
	s, ok := readStat(pid)
	return ok && s.command == "postgres" && s.state != 'Z' && s.state != 'X'
}
