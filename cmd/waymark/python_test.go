package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
)

// The Python module with each of its ways to the broker, on each topology.
func TestPythonPublisher(t *testing.T) {
	t.Parallel()
	module, err := filepath.Abs("../../publisher/python")
	if err != nil {
		t.Fatal(err)
	}
	const script = `
import enum, os, sys, threading
import waymark_publisher as w
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
    for bad in (lambda: p.publish_workflow_status("x", 1), lambda: p.publish_workflow_status(uuid, 8), lambda: p.publish_workflow_status(uuid, True),
                lambda: p.publish_workflow_status(uuid, 1, message="text"), lambda: p.publish_workflow_status(uuid, 1, message={"x": float("nan")})):
        try: bad()
        except ValueError: continue
        raise SystemExit("a bad message was published")
    p.close()
    p.publish_workflow_status(uuid, 2, logs=None, message=None)
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
					cmd := exec.Command("/usr/bin/python3", "-W", "error", "-W", "ignore::DeprecationWarning", "-c", script, id, backend)
					cmd.Env = []string{"PYTHONPATH=" + module, "PYTHONDONTWRITEBYTECODE=1", "HOME=" + t.TempDir(), "WAYMARK_PUBLISHER_ENCODING=" + map[string]string{"reana": "reana", "durable": "json"}[topology]}
					for k, v := range s.environment {
						cmd.Env = append(cmd.Env, k+"="+v)
					}
					if out, err := cmd.CombinedOutput(); err != nil {
						t.Fatalf("the script: %v\n%s", err, out)
					}
				}
				publish() // before there is any queue
				s.serve(t)
				got := s.awaitStatus(t, id, "finished")
				if got.Name != "from-python" || got.Progress.Total != 6 || got.Progress.Finished != 5 {
					t.Errorf("the run is %+v, want from-python with 5 of 6 jobs finished", got)
				}
				if logs := s.run(t, "logs", id).want(t, exitOK).stdout; !strings.Contains(logs, "NUL \uFFFD half ") {
					t.Errorf("the log is %q", logs)
				}
			})
		}
	}
}
