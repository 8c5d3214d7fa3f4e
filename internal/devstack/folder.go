package devstack

import (
	"bufio"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
)

// folder is what one server keeps on disk. It is locked for as long as it is
// open, and holds
//
//	lock        locked by the process that uses the folder, and its pid
//	state.json  what the next start needs: port, secrets
//	processes   pid and birth of what was started, for whoever cleans up
//	server.log  what the programs wrote
//	conf/       files for the server to read; ours
//	data/       the server's own
//
// Root writes nothing into a directory that belongs to the server's user.
type folder struct {
	path  string
	user  *account // whom the server runs as; nil is the current user
	lock  *os.File
	state state
}

// state is what one start leaves to the next.
type state struct {
	// Port is tried first, so that URLs noted down stay good.
	Port     int    `json:"port"`
	Password string `json:"password"`
	// Cookie is RabbitMQ's secret between the server and its command line.
	Cookie string `json:"cookie"`
	// Answered is set when the server has answered once. Data older than that
	// may be half made and holds nothing anybody was promised.
	Answered bool `json:"answered"`
}

// account is a user of this machine.
type account struct {
	name     string
	uid, gid int
}

// temporaryPrefix begins the name of every temporary folder. They lie below
// /tmp and not $TMPDIR, which the servers' users may not be able to reach.
const temporaryPrefix = "/tmp/waymark-"

// temporaryFolder makes an empty folder, and removes those that killed
// processes have left.
func temporaryFolder() (string, error) {
	sweep(temporaryPrefix)
	dir, err := os.MkdirTemp(filepath.Dir(temporaryPrefix), filepath.Base(temporaryPrefix))
	if err != nil {
		return "", fmt.Errorf("making a folder for the servers: %w", err)
	}
	if os.Geteuid() == 0 {
		// Other users run the servers and must pass through.
		if err := os.Chmod(dir, 0o711); err != nil {
			return "", errors.Join(fmt.Errorf("opening the servers' folder to their users: %w", err), os.Remove(dir))
		}
	}
	return dir, nil
}

// sweep ends and removes what killed processes of this user have left in
// temporary folders. It never waits and never fails: it is a courtesy.
func sweep(prefix string) {
	dirs, _ := filepath.Glob(prefix + "*")
	for _, dir := range dirs {
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() || info.Mode().Perm()&0o022 != 0 || time.Since(info.ModTime()) < time.Minute {
			continue // not a folder of ours, or so new that it may not be locked yet
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); !ok || int(stat.Uid) != os.Geteuid() {
			continue
		}
		parts, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		var locked []*folder
		for _, part := range parts {
			f := &folder{path: filepath.Join(dir, part.Name())}
			if err = f.acquire(); err != nil {
				break // in use
			}
			locked = append(locked, f)
			if err = f.reap(); err != nil {
				break
			}
		}
		if err == nil {
			os.RemoveAll(dir)
		}
		for _, f := range locked {
			f.release()
		}
	}
}

// openFolder makes the folder at path if need be, locks it, and ends what an
// earlier process left running in it. Started by root, the server will run as
// the first of users that exists.
func openFolder(path string, users ...string) (*folder, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("finding the data folder: %w", err)
	}
	if strings.ContainsFunc(path, func(r rune) bool { return r == '\'' || r == '"' || unicode.IsControl(r) }) {
		// RabbitMQ hangs for minutes, in a shell that waits for the other quote.
		return nil, fmt.Errorf("the data folder %q has quotes or control characters in its name, with which the servers do not start: choose another", path)
	}
	f := &folder{path: path}
	if os.Geteuid() == 0 {
		if f.user, err = firstAccount(users); err != nil {
			return nil, err
		}
	}
	if err := makeFolder(path); err != nil {
		return nil, fmt.Errorf("making the data folder: %w", err)
	}
	if err := f.reachable(); err != nil {
		return nil, err
	}
	if err := f.acquire(); err != nil {
		return nil, err
	}
	err = f.reap()
	if err == nil {
		err = f.load()
	}
	if err == nil {
		err = f.makeParts()
	}
	if err != nil {
		f.release()
		return nil, err
	}
	return f, nil
}

func firstAccount(names []string) (*account, error) {
	for _, name := range names {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		if err1 == nil && err2 == nil && uid != 0 {
			return &account{name: name, uid: uid, gid: gid}, nil
		}
	}
	return nil, fmt.Errorf("the server does not run as root, and there is none of the users %s", strings.Join(names, ", "))
}

// makeFolder is os.MkdirAll whatever the umask: a folder that root keeps to
// itself would keep out the server's user.
func makeFolder(path string) error {
	if info, err := os.Stat(path); err == nil {
		if !info.IsDir() {
			return fmt.Errorf("%s is not a folder", path)
		}
		return nil
	}
	if err := makeFolder(filepath.Dir(path)); err != nil {
		return err
	}
	mode := fs.FileMode(0o700)
	if os.Geteuid() == 0 {
		mode = 0o711
	}
	if err := os.Mkdir(path, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Chmod(path, mode)
}

// reachable says whether the server's user may pass through every folder on
// the way. The server would fail too, but without saying why.
func (f *folder) reachable() error {
	if f.user == nil {
		return nil
	}
	for dir := f.path; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return fmt.Errorf("looking at the data folder: %w", err)
		}
		pass := fs.FileMode(0o001)
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			switch {
			case int(stat.Uid) == f.user.uid:
				pass = 0o100
			case int(stat.Gid) == f.user.gid:
				pass = 0o010
			}
		}
		if info.Mode().Perm()&pass == 0 {
			return fmt.Errorf("the server runs as user %s, who may not pass through %s: choose a data folder below /tmp or /var/lib, or chmod o+x %s", f.user.name, dir, dir)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

// acquire locks the folder, or says who has it.
func (f *folder) acquire() error {
	name := filepath.Join(f.path, "lock")
	lock, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("locking the data folder: %w", err)
	}
	// flock and not a pid file: the kernel forgets it with its process.
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder := "another process"
		if b, err := os.ReadFile(name); err == nil && len(b) > 0 {
			holder = "process " + strings.TrimSpace(string(b))
		}
		lock.Close()
		return fmt.Errorf("the data folder %s is in use by %s: work with those servers, stop them, or choose another folder", f.path, holder)
	}
	f.lock = lock
	if err := lock.Truncate(0); err == nil {
		fmt.Fprintln(lock, os.Getpid())
	}
	return nil
}

// release unlocks the folder. It does not remove the lock file: another process
// may have it open already, and would then hold a lock that nobody else sees.
func (f *folder) release() {
	if f.lock != nil {
		f.lock.Truncate(0)
		f.lock.Close()
		f.lock = nil
	}
}

// load reads the state, or begins a new one. A state cut short by a crash
// cannot be: it is replaced by renaming.
func (f *folder) load() error {
	b, err := os.ReadFile(f.file("state.json"))
	if errors.Is(err, fs.ErrNotExist) {
		if data, err := os.ReadDir(f.file("data")); err == nil && len(data) > 0 {
			return fmt.Errorf("%s is missing, and with it the password to the data beside it: to begin anew, remove %s", f.file("state.json"), f.path)
		}
		f.state = state{Password: rand.Text(), Cookie: rand.Text()}
		return f.save()
	}
	if err != nil {
		return fmt.Errorf("reading the state of the data folder: %w", err)
	}
	if err := json.Unmarshal(b, &f.state); err != nil {
		return fmt.Errorf("reading %s: %w; to begin anew, remove %s", f.file("state.json"), err, f.path)
	}
	return nil
}

func (f *folder) save() error {
	b, err := json.Marshal(f.state)
	if err != nil {
		return err
	}
	next := f.file("state.json.new")
	if err := os.WriteFile(next, b, 0o600); err != nil {
		return fmt.Errorf("writing the state of the data folder: %w", err)
	}
	if err := os.Rename(next, f.file("state.json")); err != nil {
		return fmt.Errorf("replacing the state of the data folder: %w", err)
	}
	return nil
}

// makeParts makes conf and data, and gives data to the server's user.
func (f *folder) makeParts() error {
	if err := makeFolder(f.file("conf")); err != nil {
		return fmt.Errorf("making a folder for the configuration: %w", err)
	}
	if err := os.Mkdir(f.file("data"), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making a folder for the data: %w", err)
	}
	return f.give("data")
}

// give makes one file the server's.
func (f *folder) give(name string) error {
	if f.user == nil {
		return nil
	}
	if err := os.Lchown(f.file(name), f.user.uid, f.user.gid); err != nil {
		return fmt.Errorf("giving %s to user %s: %w", f.file(name), f.user.name, err)
	}
	return nil
}

// writeConf writes a file into conf that the server, and nobody else, may read.
func (f *folder) writeConf(name, content string) error {
	name = filepath.Join("conf", name)
	if err := os.Remove(f.file(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replacing %s: %w", f.file(name), err)
	}
	if err := os.WriteFile(f.file(name), []byte(content), 0o400); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	return f.give(name)
}

func (f *folder) file(name string) string { return filepath.Join(f.path, name) }

// remember notes a process, so that a later one can end it if this is killed.
func (f *folder) remember(pid int) error {
	record, err := os.OpenFile(f.file("processes"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("noting a process: %w", err)
	}
	defer record.Close()
	_, err = fmt.Fprintln(record, pid, birth(pid))
	return err
}

// reap ends what an earlier process has left running: the processes it noted
// that are still the same, their children, and all others that were started in
// the folder. The notes help where a container forbids even root to look into
// other users' processes.
func (f *folder) reap() error {
	var left []int
	if record, err := os.Open(f.file("processes")); err == nil {
		lines := bufio.NewScanner(record)
		for lines.Scan() {
			pid, born, _ := strings.Cut(lines.Text(), " ")
			if n, err := strconv.Atoi(pid); err == nil && n > 1 && born != "" && born == birth(n) {
				left = append(left, n)
			}
		}
		record.Close()
	}
	left = append(left, inhabitants(f.path)...)
	if err := killTree(left); err != nil {
		return fmt.Errorf("ending what an earlier process left in %s: %w", f.path, err)
	}
	if err := os.Remove(f.file("processes")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forgetting ended processes: %w", err)
	}
	return nil
}
