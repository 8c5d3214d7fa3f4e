package devstack

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestProgramsNewestFirst(t *testing.T) {
	dir := t.TempDir()
	for _, version := range []string{"9.6", "10", "16", "9.5"} {
		if err := os.MkdirAll(filepath.Join(dir, version), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, version, "initdb"), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "10", "initdb"), 0o644); err != nil { // not a program
		t.Fatal(err)
	}
	got := programs([]string{filepath.Join(dir, "none", "initdb"), filepath.Join(dir, "*", "initdb")})
	var want []string
	for _, version := range []string{"16", "9.6", "9.5"} {
		want = append(want, filepath.Join(dir, version, "initdb"))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("programs (-want +got):\n%s", diff)
	}
}

func TestCompareVersions(t *testing.T) {
	sorted := []string{"", "/v/9.5/x", "/v/9.6/x", "/v/9.10/x", "/v/010/x", "/v/16/x", "/v/16/x0", "/v/x/x"}
	for i, a := range sorted {
		for j, b := range sorted {
			if got, want := compareVersions(a, b), max(-1, min(1, i-j)); got != want {
				t.Errorf("compareVersions(%q, %q) = %v, want %v", a, b, got, want)
			}
		}
	}
}

func TestMissingAsksOnlyForWhatIsNeeded(t *testing.T) {
	if got := Missing(Options{AMQPURL: "amqp://h", DatabaseURL: "postgres://h"}); got != nil {
		t.Errorf("with both URLs given, missing are %v", got)
	}
	defer func(r, i []string) { rabbitmqServers, initdbs = r, i }(rabbitmqServers, initdbs)
	rabbitmqServers, initdbs = []string{"/nowhere/rabbitmq-server"}, []string{"/nowhere/*/initdb"}
	if diff := cmp.Diff([]string{"rabbitmq-server", "postgresql"}, Missing(Options{})); diff != "" {
		t.Errorf("with nothing installed (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"postgresql"}, Missing(Options{AMQPURL: "amqp://h"})); diff != "" {
		t.Errorf("with RabbitMQ given (-want +got):\n%s", diff)
	}
	_, err := StartPostgres(t.Context(), Options{Dir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "apt-get install --no-install-recommends postgresql") {
		t.Errorf("StartPostgres with nothing installed: %v, want the command to type", err)
	}
	_, err = StartRabbitMQ(t.Context(), Options{Dir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "apt-get install --no-install-recommends rabbitmq-server") {
		t.Errorf("StartRabbitMQ with nothing installed: %v, want the command to type", err)
	}
}

func TestFreePortIsNotEphemeral(t *testing.T) {
	for range 50 {
		port, err := freePort(0)
		if err != nil {
			t.Fatal(err)
		}
		if port < 1024 || port >= ephemeralStart() && ephemeralStart() > 2000 {
			t.Fatalf("port %d; the kernel gives ports from %d to outgoing connections", port, ephemeralStart())
		}
	}
	port, err := freePort(0)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := freePort(port); err != nil || again != port {
		t.Errorf("freePort(%d) = %d, %v, want the preferred one: it is free", port, again, err)
	}
}

func TestBirthAndDescendants(t *testing.T) {
	// A name with all that a parser of /proc stumbles over.
	program := filepath.Join(t.TempDir(), "a) Z 1 (b\nc")
	shell, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, shell, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-c", "echo ready; read x; exit")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	within(t, 10*time.Second, "the child is listed among ours", func() error {
		for _, d := range descendants([]int{os.Getpid()}) {
			if d == pid {
				return nil
			}
		}
		return os.ErrNotExist
	})
	born := birth(pid)
	if born == "" || born == birth(1) || born != birth(pid) {
		t.Errorf("birth of the child is %q, of process 1 %q: want two different, lasting ones", born, birth(1))
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil && out.Len() == 0 {
		t.Fatal(err)
	}
	if birth(pid) != "" {
		t.Error("an ended process has a birth")
	}
}

func TestReapSparesStrangers(t *testing.T) {
	f := &folder{path: t.TempDir()}
	// Our own number with another birth: the process it meant is long gone. A
	// careless reader would kill this test, or all there is (-1, 0, 1).
	record := strings.Join([]string{
		strconv.Itoa(os.Getpid()) + " another-boot/1", strconv.Itoa(os.Getpid()) + " ", strconv.Itoa(os.Getpid()), "-1 x", "0 x", "1 " + birth(1), "x y", "", "99999999999999999999 1",
	}, "\n")
	if err := os.WriteFile(f.file("processes"), []byte(record), 0o600); err != nil {
		t.Fatal(err)
	}
	// A shell that stands in the folder is a person's.
	shell := exec.Command("/bin/sh", "-c", "read x")
	shell.Dir = f.path
	stdin, err := shell.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	if err := f.reap(); err != nil {
		t.Errorf("reap: %v", err)
	}
	if birth(shell.Process.Pid) == "" {
		t.Error("reap ended a shell that stood in the folder")
	}
	stdin.Close()
	shell.Wait()
	if _, err := os.Stat(f.file("processes")); err == nil {
		t.Error("the record is there after reap")
	}
}

func TestReachable(t *testing.T) {
	dir := testDir(t)
	inner := filepath.Join(dir, "private", "data")
	if err := os.MkdirAll(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	stranger := &folder{path: inner, user: &account{name: "stranger", uid: 12345, gid: 12345}}
	if err := stranger.reachable(); err != nil {
		t.Errorf("a folder open to all: %v", err)
	}
	if err := os.Chmod(filepath.Join(dir, "private"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := stranger.reachable(); err == nil || !strings.Contains(err.Error(), "user stranger, who may not pass through "+filepath.Join(dir, "private")) {
		t.Errorf("a folder below a closed one: %v, want an error that names both", err)
	}
	owner := &folder{path: inner, user: &account{name: "owner", uid: os.Geteuid(), gid: 12345}}
	if err := owner.reachable(); err != nil {
		t.Errorf("the owner: %v", err)
	}
}

func TestSweep(t *testing.T) {
	parent := testDir(t)
	long := time.Now().Add(-time.Hour)
	make := func(name string, mode os.FileMode, at time.Time) string {
		dir := filepath.Join(parent, "waymark-"+name)
		if err := os.MkdirAll(filepath.Join(dir, "postgres", "data"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(dir, at, at); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	stale := make("stale", 0o700, long)
	young := make("young", 0o700, time.Now())
	open := make("open", 0o777, long) // another user may have put anything there
	used := make("used", 0o700, long)
	lock := &folder{path: filepath.Join(used, "postgres")}
	if err := lock.acquire(); err != nil {
		t.Fatal(err)
	}
	defer lock.release()
	if err := os.Symlink(young, filepath.Join(parent, "waymark-link")); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(parent, "other")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}

	sweep(filepath.Join(parent, "waymark-"))
	for dir, want := range map[string]bool{stale: false, young: true, open: true, used: true, other: true} {
		if _, err := os.Stat(dir); (err == nil) != want {
			t.Errorf("after the sweep %s is there: %v, want %v", filepath.Base(dir), err == nil, want)
		}
	}
}

func TestLockKeepsOutAndForgets(t *testing.T) {
	dir := t.TempDir()
	first, second := &folder{path: dir}, &folder{path: dir}
	if err := first.acquire(); err != nil {
		t.Fatal(err)
	}
	if err := second.acquire(); err == nil || !strings.Contains(err.Error(), "in use by process "+strconv.Itoa(os.Getpid())) {
		t.Errorf("locking a locked folder: %v, want an error that names process %d", err, os.Getpid())
	}
	first.release()
	if err := second.acquire(); err != nil {
		t.Errorf("locking a released folder: %v", err)
	}
	second.release()
}

func TestLastWords(t *testing.T) {
	for _, tc := range []struct{ name, said, want string }{
		{"nothing", " \n\r\n", "it wrote nothing"},
		{"few lines", "one\n\n  two\r\n", "one\n  two"},
		{"not UTF-8", "caf\xe9", "caf?"},
		{"one huge line", strings.Repeat("x", 1<<20), strings.Repeat("x", 300) + "…"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, lastWords(tc.said)); diff != "" {
				t.Errorf("lastWords (-want +got):\n%s", diff)
			}
		})
	}
	if got := lastWords(strings.Repeat("line\n", 1000) + "the last"); strings.Count(got, "\n") != 11 || !strings.HasSuffix(got, "the last") {
		t.Errorf("lastWords of 1001 lines = %q, want the last 12", got)
	}
}
