package cwl

import (
	"bufio"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// hookPrograms are Pythons to try the hook with: Debian's, and any in PATH.
func hookPrograms(t *testing.T) []string {
	t.Helper()
	programs := []string{"/usr/bin/python3"}
	if p, err := exec.LookPath("python3"); err == nil && p != programs[0] {
		programs = append(programs, p)
	}
	return programs
}

// python runs a script with the hook, under -W error, and returns what it
// printed on both outputs.
func python(t *testing.T, program, socket, script string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, hook); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-W", "error", "-c", script)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "PYTHONPATH=" + dir, "WAYMARK_SOCKET=" + socket}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", program, err, out)
	}
	return string(out)
}

func listen(t *testing.T) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// heard returns the lines of all connections, once each of the texts has come.
func heard(t *testing.T, l *net.UnixListener, texts ...string) <-chan []string {
	t.Helper()
	all := make(chan []string, 1)
	lines := make(chan string)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				s := bufio.NewScanner(c)
				for s.Buffer(nil, 1<<20); s.Scan(); {
					lines <- s.Text()
				}
			}()
		}
	}()
	go func() {
		var got []string
		defer func() { all <- got }()
		deadline := time.After(time.Minute)
		for {
			select {
			case s := <-lines:
				got = append(got, s)
				texts = slices.DeleteFunc(texts, func(text string) bool { return strings.Contains(s, text) })
				if len(texts) == 0 {
					return
				}
			case <-deadline:
				return
			}
		}
	}()
	return all
}

// TestHookSends has a program log what is hard to send: any bytes, from threads
// and forked processes, with a template that does not fit.
func TestHookSends(t *testing.T) {
	t.Parallel()
	for _, program := range hookPrograms(t) {
		l := listen(t)
		all := heard(t, l, "the end", `"child"`)
		out := python(t, program, l.Addr().String(), `
import logging, os, sys, threading
log = logging.getLogger("cwltool")
log.setLevel(logging.INFO)
log.propagate = False
log.info("/usr/bin/cwltool 3.1")
log.info("[job %s] %s$ %s%s%s%s", "a\udcff\x00", "/tmp", "x" * 1000000, "", "", "")
log.info("too %s %s", "few")
log.info("no tuple %(a)s", {"a": 1})
log.info("%s", object)
log.debug("not this")
class Bad:
    def __str__(self): raise ValueError("bad")
log.info("%s", Bad())
threads = [threading.Thread(target=log.info, args=("thread %d", i)) for i in range(20)]
for t in threads: t.start()
for t in threads: t.join()
pid = os.fork()
if pid == 0:
    log.info("child")
    logging.shutdown()
    os._exit(0)
os.waitpid(pid, 0)
try:
    raise KeyError("why")
except KeyError:
    log.exception("Exception while running job")
assert "WAYMARK_SOCKET" not in os.environ and "PYTHONPATH" not in os.environ, os.environ
log.info("the end")
`)
		got := <-all
		if out != "" {
			t.Errorf("%s prints %s", program, out)
		}
		if len(got) == 0 || !strings.HasPrefix(got[0], `{"waymark": 1, "engine": "cwl", "version": "3.1", "pid": `) {
			t.Fatalf("%s does not begin with a hello: %.300q", program, got)
		}
		threads, hellos, children := 0, 0, 0
		for _, s := range got {
			var doc map[string]any
			if err := json.Unmarshal([]byte(s), &doc); err != nil {
				t.Errorf("%s sends %.200q: %v", program, s, err)
			}
			if len(s) > 100<<10 {
				t.Errorf("%s sends a line of %d bytes", program, len(s))
			}
			switch {
			case doc["waymark"] != nil:
				hellos++
			case doc["msg"] == "thread %d":
				threads++
			case doc["msg"] == "child":
				children++
			case doc["msg"] == "Exception while running job" && doc["error"] != "KeyError: 'why'":
				t.Errorf("the exception is told as %v", doc)
			case doc["msg"] == "not this":
				t.Errorf("%s sends what is for debugging", program)
			}
		}
		if threads != 20 || hellos != 2 || children != 1 {
			t.Errorf("%s sends %d of 20 lines of threads, %d of 1 of a child and %d of 2 hellos", program, threads, children, hellos)
		}
	}
}

// TestHookGivesUp has nobody listen, somebody who does not read, and somebody who
// goes away.
func TestHookGivesUp(t *testing.T) {
	t.Parallel()
	script := `
import logging, time
log = logging.getLogger("cwltool")
log.setLevel(logging.INFO)
log.propagate = False
began = time.monotonic()
for i in range(3000):
    log.info("%s", "x" * 1000)
assert time.monotonic() - began < 15, time.monotonic() - began
print("done")
`
	deaf := listen(t) // its backlog accepts, and nobody reads
	gone := listen(t)
	go func() {
		if c, err := gone.Accept(); err == nil {
			buffer := make([]byte, 100)
			_, _ = c.Read(buffer)
			c.Close()
		}
		gone.Close()
	}()
	for name, socket := range map[string]string{
		"nobody": "/nowhere/at/all", "a path that is too long": "/" + strings.Repeat("x", 200), "deaf": deaf.Addr().String(), "gone": gone.Addr().String(),
	} {
		if out := python(t, "/usr/bin/python3", socket, script); out != "done\n" {
			t.Errorf("%s: the program printed %q", name, out)
		}
	}
}

// stubToil writes a package in Toil's place, with these two modules.
func stubToil(t *testing.T, system, jobs string) (folder string) {
	t.Helper()
	folder = t.TempDir()
	for name, text := range map[string]string{
		"toil/__init__.py": "", "toil/batchSystems/__init__.py": "", "toil/cwl/__init__.py": "",
		"toil/batchSystems/singleMachine.py": system, "toil/cwl/cwltoil.py": jobs,
	} {
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

// TestHookInToil has workers of a Toil that logs errors alone, and of one that is
// unlike any other.
func TestHookInToil(t *testing.T) {
	t.Parallel()
	const script = `
import os, sys
sys.path.insert(0, "FOLDER")
import toil.batchSystems.singleMachine as s, toil.cwl.cwltoil as c
assert "WAYMARK_SOCKET" not in os.environ and "PYTHONPATH" not in os.environ, os.environ
`
	t.Run("errors alone", func(t *testing.T) {
		t.Parallel()
		l := listen(t)
		all := heard(t, l, `"good": true`)
		folder := stubToil(t, "class SingleMachineBatchSystem:\n    def __init__(self, *, of): self.environment = {'OF': of}\n    def setEnv(self, name, value=None): self.environment[name] = value\n", `
import logging
class Description:
    unitName, jobName, displayName, jobStoreID = None, "name", "display", "kind-CWLJob/x"
class CWLJob:
    description = Description()
    def run(self, store):
        """What it does."""
        log = logging.getLogger("cwltool")
        log.info("[job %s] %s$ %s%s%s%s", "name", "/tmp", "a command", "", "", "")
        log.error("an error that Toil writes")
        return store + 1
`)
		out := python(t, "/usr/bin/python3", l.Addr().String(), strings.ReplaceAll(script, "FOLDER", folder)+`
import logging
logging.basicConfig(level=logging.ERROR, stream=sys.stdout, format="%(message)s")
assert c.CWLJob.run.__doc__ == "What it does."
print(c.CWLJob().run(1))
logging.getLogger("toil.worker").info("Completed body for %s", "it")
logging.getLogger("toil.worker").info("something else")
logging.getLogger("cwltool").debug("a detail")
system = s.SingleMachineBatchSystem(of="the user")
e = system.environment
print(sorted(e), e["PYTHONPATH"].startswith("/"), e["WAYMARK_SOCKET"].startswith("/"))
ours = e["PYTHONPATH"]
system.setEnv("PYTHONPATH", "/own")
print(e["PYTHONPATH"] == ours + ":/own")
`)
		const want = "an error that Toil writes\n2\n['OF', 'PYTHONPATH', 'WAYMARK_SOCKET', 'WAYMARK_WORKER'] True True\nTrue\n"
		if out != want {
			t.Errorf("the program printed %q, want %q", out, want)
		}
		var messages []string
		for _, s := range <-all {
			var doc struct {
				Waymark int
				Engine  string
				Msg     string
				Toil    *toilName
			}
			if err := json.Unmarshal([]byte(s), &doc); err != nil {
				t.Errorf("the hook sends %.200q: %v", s, err)
			}
			switch {
			case doc.Waymark > 0 && doc.Engine != "toil", doc.Waymark == 0 && (doc.Toil == nil || *doc.Toil != toilName{"kind-CWLJob/x", "name"}):
				t.Errorf("the hook does not say whose this is: %s", s)
			}
			messages = append(messages, doc.Msg)
		}
		if want := []string{"", "begin", msgRuns, "an error that Toil writes", "end"}; !slices.Equal(messages, want) {
			t.Errorf("the hook sends %q, want %q", messages, want)
		}
	})
	for name, modules := range map[string][2]string{
		"nothing is there": {"", ""},
		"all is different": {
			"class SingleMachineBatchSystem:\n    environment = None\n",
			"class CWLJob:\n    description = None\n    @staticmethod\n    def run(store): return store + 1\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out := python(t, "/usr/bin/python3", "/nowhere", strings.ReplaceAll(script, "FOLDER", stubToil(t, modules[0], modules[1]))+`
if hasattr(c, "CWLJob"): print(c.CWLJob().run(1), s.SingleMachineBatchSystem().environment)
print("done")
`)
			if want := strings.TrimPrefix("2 None\ndone\n", map[bool]string{true: "2 None\n"}[modules[0] == ""]); out != want {
				t.Errorf("the program printed %q, want %q", out, want)
			}
		})
	}
}
