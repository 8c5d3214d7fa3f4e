package main

import (
	"bufio"
	"net"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
)

// The Python module with each of its ways to the broker, on each topology.
func TestPythonPublisher(t *testing.T) {
	t.Parallel()
	const script = `
import enum, logging, os, sys, threading
import waymark_publisher as w
second_tries = []
class Tries(logging.Handler):
    def emit(self, record): second_tries.append(record.getMessage())
logging.getLogger("waymark").addHandler(Tries())
class RunStatus(enum.Enum):
    running = 1
uuid, backend = sys.argv[1], sys.argv[2]
s = w.WorkflowSubmissionPublisher(backend=backend)
s.publish_workflow_submission("ada", uuid, {"n": 1}, 7, 1.5, name="from-python", labels={"site": "cern"})
s.close()
with w.WorkflowStatusPublisher(backend=backend, routing_key="jobs-status", durable=False) as p:
    p.publish_workflow_status(uuid, RunStatus.running, logs="NUL \x00 half \ud800\n", message={"progress": {"total": {"total": 6, "job_ids": []}}})
    def job(i):
        p.publish_workflow_status(uuid, 1, message={"progress": {"finished": {"total": 1, "job_ids": ["job-%d" % i]}}}, engine="mine")
    threads = [threading.Thread(target=job, args=(i,)) for i in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    child = os.fork()
    if child == 0:
        try: p.publish_workflow_status(uuid, 1, message={"progress": {"finished": {"total": 1, "job_ids": ["of-a-child"]}}}); os._exit(0)
        except BaseException as e: print("child:", repr(e), file=sys.stderr); os._exit(1)
    assert os.waitpid(child, 0)[1] == 0, "the child could not publish"
    circle = {}
    circle["circle"] = circle
    for bad in [{"status": v} for v in (8, -1, True, 1.5, "1", None)] + [{"workflow_uuid": "x"}, {"message": "text"}, {"message": []},
                {"message": {"x": float("nan")}}, {"message": {"x": b"bytes"}}, {"message": circle}, {"labels": circle}]:
        try: p.publish_workflow_status(**dict({"workflow_uuid": uuid, "status": 1}, **bad))
        except ValueError: continue
        raise SystemExit("a bad message was published: %r" % bad)
    for bad in [{"priority": v} for v in (101, -1, True, 1.5, "7", None)] + [{"parameters": [1]}, {"parameters": "text"},
                {"min_job_memory": -1}, {"min_job_memory": "8 GB"}, {"min_job_memory": float("inf")}]:
        try: s.publish_workflow_submission(**dict({"user_id": "ada", "workflow_id_or_name": uuid, "parameters": {}}, **bad))
        except ValueError: continue
        raise SystemExit("a bad submission was published: %r" % bad)
    for bad in (0, -1, float("nan"), float("inf")):
        try: w.WorkflowStatusPublisher(timeout=bad)
        except ValueError: continue
        raise SystemExit("a timeout of %r was taken" % bad)
    p.close()
    p.publish_workflow_status(uuid, 2, logs=None, message=None)
assert not second_tries, second_tries
away = w.WorkflowStatusPublisher(url="amqp://guest:s3cret@127.0.0.1:1/", timeout=0.3, backend=backend)
try: away.publish_workflow_status(uuid, 1)
except w.PublishError as e: assert "s3cret" not in str(e), e
else: raise SystemExit("published to nobody")
`
	for _, topology := range []string{"durable", "reana"} {
		for _, backend := range []string{"pika", "kombu"} {
			t.Run(topology+" "+backend, func(t *testing.T) {
				s := newSite(t)
				s.environment["WAYMARK_BROKER_TOPOLOGY"] = topology
				s.environment["WAYMARK_CONSUMER_SUBMISSIONS"] = "yes"
				id := uuid.NewString()
				publish := func() {
					t.Helper()
					cmd := python(t, s, script, id, backend)
					if out, err := cmd.CombinedOutput(); err != nil {
						t.Fatalf("the script: %v\n%s", err, out)
					}
				}
				publish() // before there is any queue
				s.serve(t)
				got := s.awaitNamed(t, id, "finished", "from-python")
				if got.Progress.Total != 6 || got.Progress.Finished != 5 {
					t.Errorf("the run is %+v, want from-python with 5 of 6 jobs finished", got)
				}
				if logs := s.run(t, "logs", id).want(t, exitOK).stdout; !strings.Contains(logs, "NUL \uFFFD half ") {
					t.Errorf("the log is %q", logs)
				}
			})
		}
	}
}

// python returns a command that runs a script, with the module, at a site.
func python(t *testing.T, s *site, script string, arguments ...string) *exec.Cmd {
	t.Helper()
	module, err := filepath.Abs("../../publisher/python")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", append([]string{"-W", "error", "-W", "ignore::DeprecationWarning", "-c", script}, arguments...)...)
	cmd.Env = []string{"PYTHONPATH=" + module, "PYTHONDONTWRITEBYTECODE=1", "HOME=" + t.TempDir()}
	for k, v := range s.environment {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	if s.environment["WAYMARK_BROKER_TOPOLOGY"] == "reana" {
		cmd.Env = append(cmd.Env, "WAYMARK_PUBLISHER_ENCODING=reana")
	}
	return cmd
}

// freezer leads to the broker until it is frozen: from then on its connections
// stay open and nothing passes, as at a broker that is stopped or behind a link
// that is cut.
type freezer struct {
	done chan struct{}

	mu     sync.Mutex
	links  []chan struct{} // closed to freeze one
	silent bool            // new connections are frozen from the start
}

// newFreezer returns a freezer, and the URL that leads through it.
func newFreezer(t *testing.T, brokerURL string) (*freezer, string) {
	t.Helper()
	u, err := url.Parse(brokerURL)
	if err != nil {
		t.Fatal("the URL of the test's broker cannot be read")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &freezer{done: make(chan struct{})}
	var wg sync.WaitGroup
	pass := func(to, from net.Conn, frozen chan struct{}) {
		defer to.Close()
		chunk := make([]byte, 4096)
		for {
			n, err := from.Read(chunk)
			select {
			case <-frozen:
				<-f.done
				return
			default:
			}
			if _, errWrite := to.Write(chunk[:n]); err != nil || errWrite != nil {
				return
			}
		}
	}
	backend := u.Host
	wg.Go(func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", backend)
			if err != nil {
				a.Close()
				continue
			}
			frozen := make(chan struct{})
			f.mu.Lock()
			if f.silent {
				close(frozen)
			} else {
				f.links = append(f.links, frozen)
			}
			f.mu.Unlock()
			wg.Go(func() { pass(a, b, frozen) })
			wg.Go(func() { pass(b, a, frozen) })
			wg.Go(func() { <-f.done; a.Close(); b.Close() })
		}
	})
	t.Cleanup(func() {
		l.Close()
		close(f.done)
		wg.Wait()
	})
	u.Host = l.Addr().String()
	return f, u.String()
}

// freeze freezes all connections that there are, and if silent those to come.
func (f *freezer) freeze(silent bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, frozen := range f.links {
		close(frozen)
	}
	f.links, f.silent = nil, silent
}

// A broker that is there and does not answer holds no call longer than its
// timeout, and a child of a fork not at all.
func TestPythonPublisherFrozen(t *testing.T) {
	t.Parallel()
	// The script says what the freezer is to do next, and waits until it has.
	const script = `
import os, sys, threading, time
import waymark_publisher as w
uuid, backend = sys.argv[1], sys.argv[2]
def freezer(word):
    print(word, flush=True)
    sys.stdin.readline()
def elapsed(publisher, **message):
    start = time.monotonic()
    try: publisher.publish_workflow_status(uuid, 1, **message)
    except w.PublishError: return time.monotonic() - start
    raise SystemExit("the broker does not answer, and has confirmed a message")
def check(what, seconds):
    # Half of it is for a machine that is busy.
    assert 0.5 < seconds < 10, "%s: a call with a timeout of 1 s took %.1f s" % (what, seconds)

p = w.WorkflowStatusPublisher(backend=backend, timeout=1)
freezer("silence")
check("silent from the start", elapsed(p))
check("silent from the start, for TLS", elapsed(w.WorkflowStatusPublisher(
    url=os.environ["WAYMARK_BROKER_URL"].replace("amqp:", "amqps:"), backend=backend, timeout=1)))
freezer("thaw")
p._timeout = 30
p.publish_workflow_status(uuid, 1)
freezer("silence")
p._timeout = 1
took = []
threads = [threading.Thread(target=lambda: took.append(elapsed(p))) for _ in range(4)]
for t in threads: t.start()
for t in threads: t.join()
assert len(took) == 4, took
for t in took: check("frozen, one of four threads", t)
freezer("thaw")
p._timeout = 30
p.publish_workflow_status(uuid, 1)
freezer("silence")
p._timeout = 1
check("frozen, with more than the buffers of a connection hold", elapsed(p, logs="x" * (64 << 20)))
freezer("thaw")

p._timeout = 15
p.publish_workflow_status(uuid, 1)
freezer("freeze")  # what is open; a new connection gets through
held = threading.Thread(target=lambda: p.publish_workflow_status(uuid, 1, logs="by a second connection"))
held.start()
while p._lock.acquire(False):
    p._lock.release()
    time.sleep(0.01)
child = os.fork()
if child == 0:
    try: p.publish_workflow_status(uuid, 1, logs="of a child"); os._exit(0)
    except BaseException as e: print("child:", repr(e), file=sys.stderr)
    os._exit(1)
assert os.waitpid(child, 0)[1] == 0, "the child could not publish"
assert held.is_alive(), "nothing was being published at the fork"
held.join()
p.publish_workflow_status(uuid, 2)
p.close()
print("end", flush=True)
`
	for _, backend := range []string{"pika", "kombu"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			f, throughFreezer := newFreezer(t, s.environment["WAYMARK_BROKER_URL"])
			id := uuid.NewString()
			cmd := python(t, s, script, id, backend)
			cmd.Env = append(cmd.Env, "WAYMARK_BROKER_URL="+throughFreezer)
			var stderr strings.Builder
			cmd.Stderr = &stderr
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			hung := time.AfterFunc(3*time.Minute, func() { cmd.Process.Kill() })
			defer hung.Stop()
			last := "nothing"
			for words := bufio.NewScanner(out); words.Scan(); {
				last = words.Text()
				switch last {
				case "silence":
					f.freeze(true)
				case "freeze", "thaw":
					f.freeze(false)
				}
				in.Write([]byte("\n"))
			}
			if err := cmd.Wait(); err != nil || last != "end" {
				t.Fatalf("the script ended after %s: %v\n%s", last, err, stderr.String())
			}
			s.serve(t)
			s.awaitStatus(t, id, "finished")
			logs := s.run(t, "logs", id).want(t, exitOK).stdout
			for _, want := range []string{"by a second connection", "of a child"} {
				if !strings.Contains(logs, want) {
					t.Errorf("the log lacks %q", want)
				}
			}
		})
	}
}
