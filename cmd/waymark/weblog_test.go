package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"waymark/engines/nextflow"
)

const nextflowFiles = "../../testdata/engines/nextflow"

// postRecording has the stand-in of Nextflow post a recording.
func postRecording(t testing.TB, recording, url string) {
	t.Helper()
	engine := exec.Command(filepath.Join(nextflowFiles, "fake", "nextflow"), "run", filepath.Join(nextflowFiles, recording), "-with-weblog", url)
	if out, err := engine.CombinedOutput(); err != nil || strings.Contains(string(out), "WARN") {
		t.Fatalf("posting %s: %v\n%s", recording, err, out)
	}
}

func post(t testing.TB, url, body string) int {
	t.Helper()
	answer, err := http.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	return answer.StatusCode
}

// Nextflow posts to serve, which publishes what it posts and consumes it.
func TestServeTakesPostsOfNextflow(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.serve(t)
	url := p.url(t) + weblogPath
	postRecording(t, "retry", url)
	retry := nextflow.WorkflowID("0b9d9d2e-5a57-4f0b-9f0c-0f4c8a6f9a11", "mad_lovelace").String()
	s.awaitStatus(t, retry, "finished")
	jobs := s.run(t, "jobs", retry, "--json")
	var answer struct {
		Jobs []struct {
			Name    string
			Attempt int
			Status  string
		}
	}
	if err := json.Unmarshal([]byte(jobs.stdout), &answer); err != nil || len(answer.Jobs) != 2 {
		t.Fatalf("the jobs are %s (%v), wanted 2", jobs.stdout, err)
	}
	for _, j := range answer.Jobs {
		if j.Status != "finished" || j.Name == "GENERATE (ttbar)" && j.Attempt != 2 {
			t.Errorf("a job is %+v, wanted it finished, and GENERATE in attempt 2", j)
		}
	}

	// A stop in the middle of a run leaves it running, and the next serve goes on.
	id := uuid.NewString()
	say := func(to, rest string) {
		t.Helper()
		if got := post(t, to, fmt.Sprintf(`{"runId": %q, "runName": "x", %s}`, id, rest)); got != http.StatusNoContent {
			t.Errorf("the post %s is answered with %d", rest, got)
		}
	}
	say(url, `"event": "started", "metadata": {"workflow": {"scriptName": "mine.nf", "userName": "me"}}`)
	say(url, `"event": "process_started", "trace": {"task_id": 1, "name": "a", "status": "RUNNING"}`)
	p.stop(t, 0)
	p = s.serve(t)
	url = p.url(t) + weblogPath
	workflow := nextflow.WorkflowID(id, "x").String()
	s.awaitStatus(t, workflow, "running")
	say(url, `"event": "process_completed", "trace": {"task_id": 1, "name": "a", "status": "COMPLETED", "exit": 0}`)
	say(url, `"event": "completed", "metadata": {"workflow": {"success": true}}`)
	s.awaitStatus(t, workflow, "finished")
	if got := post(t, url, "nonsense"); got != http.StatusBadRequest {
		t.Errorf("nonsense is answered with %d", got)
	}
	p.stop(t, 0)
}

func TestServeTakesPostsWhereItIsTold(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, tc := range []struct {
		listen, weblog string
		want           int
	}{
		{"127.0.0.1:0", "off", http.StatusNotFound},
		{"0.0.0.0:0", "auto", http.StatusNotFound},
		{"0.0.0.0:0", "on", http.StatusBadRequest},
	} {
		p := s.with("WAYMARK_HTTP_LISTEN", tc.listen, "WAYMARK_HTTP_WEBLOG", tc.weblog).start(t, "serve")
		url := strings.Replace(p.url(t), "[::]", "127.0.0.1", 1)
		if got := post(t, url+weblogPath, "nonsense"); got != tc.want {
			t.Errorf("with http.listen %s and http.weblog %s a post is answered with %d, wanted %d", tc.listen, tc.weblog, got, tc.want)
		}
		p.stop(t, 0)
	}
}

// With the wrapper: the receiver is the run's own.
func TestRunNextflow(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(t)
	id := uuid.NewString()
	recording, err := filepath.Abs(filepath.Join(nextflowFiles, "error"))
	if err != nil {
		t.Fatal(err)
	}
	engine, err := filepath.Abs(filepath.Join(nextflowFiles, "fake", "nextflow"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := program(t, s.environment, "run", "nextflow", "--id", id, "--no-spool", "--", engine, "run", recording, "--exit", "7")
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 7 {
		t.Errorf("the run ended with %v, wanted 7:\n%s", err, out)
	}
	s.awaitStatus(t, id, "failed")
	if got := s.run(t, "logs", id); !strings.Contains(got.stdout, "terminated with an error exit status (7)") {
		t.Errorf("the log is %q, wanted what Nextflow says", got.stdout)
	}
	if _, err := os.Stat(filepath.Join(cmd.Dir, "trace.tsv")); err == nil {
		t.Error("a trace file was left in the folder of the run")
	}

	// A file of posts alone is a recording, too.
	id = uuid.NewString()
	ok := filepath.Join(nextflowFiles, "ok", "events.jsonl")
	s.run(t, "replay", "--engine", "nextflow", "--fast", "--no-spool", "--id", id, ok).want(t, exitOK)
	s.awaitStatus(t, id, "finished")
}
