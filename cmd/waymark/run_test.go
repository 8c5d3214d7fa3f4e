package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"waymark/internal/servicetest"
	"waymark/workflow"
)

// programVariable makes the test program the program under test, where a test
// needs it as a process of its own.
const programVariable = "TEST_IS_THE_PROGRAM"

// program is the program under test as a process.
func program(t testing.TB, env environment, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, envPrefix) {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, programVariable+"=1")
	for k, v := range env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.Dir = t.TempDir()
	return cmd
}

var runLine = regexp.MustCompile(`(?m)^run ([0-9a-f-]{36})$`)

func TestRunScript(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(t)
	id := uuid.NewString()
	cmd := program(t, s.environment, "run", "script", "--id", id, "--name", "nightly", "--label", "site=cern", "--",
		"sh", "-c", `printf 'data\0'; echo "mine=[$WAYMARK_MINE] id=$WAYMARK_WORKFLOW" >&2; exit 3`)
	cmd.Env = append(cmd.Env, "WAYMARK_MINE=here")
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code != 3 {
		t.Fatalf("waymark run ended with %d (%v), want the program's 3\n%s", code, err, &stderr)
	}
	if stdout.String() != "data\x00" {
		t.Errorf("standard output is %q, want that of the program alone", &stdout)
	}
	if want := "run " + id + "\nname nightly; to follow it: waymark watch " + id[:8] + "\n"; !strings.HasPrefix(stderr.String(), want) {
		t.Errorf("standard error does not begin with the run's id and name, and how to follow it:\n%swant\n%s", &stderr, want)
	}
	if !strings.Contains(stderr.String(), "mine=[here] id="+id+"\n") {
		t.Errorf("the program lacks its environment, or its run:\n%s", &stderr)
	}
	wantBalance(t, outcome{stderr: stderr.String()}, false)

	s.awaitNamed(t, id, "failed", "nightly")
	logs := s.run(t, "logs", id).want(t, exitOK).stdout
	for _, want := range []string{"sh -c ", "exit code 3", "id=" + id} {
		if !strings.Contains(logs, want) {
			t.Errorf("the run's log lacks %q:\n%s", want, logs)
		}
	}
}

// What a site has set wrongly keeps nobody's workflow from running.
func TestRunWithBrokenSettings(t *testing.T) {
	for what, env := range map[string]environment{
		"a spool that cannot be made": {"WAYMARK_BROKER_URL": "amqp://127.0.0.1:1/", "WAYMARK_PUBLISHER_SPOOL_DIR": "/proc/none"},
		"a URL that is none":          {"WAYMARK_BROKER_URL": "127.0.0.1"},
		"an authority that is gone":   {"WAYMARK_BROKER_URL": "amqps://127.0.0.1:1/", "WAYMARK_BROKER_TLS_CA": "/none"},
	} {
		got := env.run(t, "run", "script", "--", "sh", "-c", "exit 8").want(t, 8)
		if !strings.Contains(got.stderr, "the run is not reported: ") {
			t.Errorf("with %s standard error is %q", what, got.stderr)
		}
		env.run(t, "run", "script", "--require-broker", "--", "sh", "-c", "exit 8").want(t, exitUsage)
	}
	environment{}.run(t, "run", "script", "--broker-url", "127.0.0.1", "--", "sh", "-c", "exit 8").want(t, exitUsage)
}

// A serial workflow that cannot begin says why where people look for it.
func TestRunSerialThatCannotBegin(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(t)
	for what, test := range map[string]struct {
		file, reason string
		code         int
	}{
		"a file that is not there":  {filepath.Join(t.TempDir(), "reana.yaml"), "there is no file ", exitUsage},
		"a file that is wrong":      {writeFile(t, "reana.yaml", "workflow: {type: cwl}\n"), `workflow.type: "cwl" is not run by this engine`, exitUsage},
		"an input that is missing":  {writeFile(t, "reana.yaml", "inputs: {files: [none.dat]}\nworkflow: {type: serial, specification: {steps: [{commands: [ls]}]}}\n"), `inputs.files names "none.dat", which is not there`, exitFailed},
		"a parameter that is none":  {writeFile(t, "reana.yaml", "workflow: {type: serial, specification: {steps: [{commands: ['echo ${who}']}]}}\n"), "substituting the parameters: step 1, command 1", exitFailed},
		"a command that goes wrong": {reanaYAML(t, "exit 3"), "step 1 (step1), command 1: exit code 3", 3},
	} {
		id := uuid.NewString()
		got := s.run(t, "run", "serial", "-f", test.file, "--id", id, "--name", "early", "--workspace", t.TempDir()).want(t, test.code)
		if !runLine.MatchString(got.stderr) {
			t.Errorf("%s: standard error does not say which run it is:\n%s", what, got.stderr)
		}
		if !strings.Contains(got.stderr, ", spooled 0, dropped 0\n") {
			t.Errorf("%s: not all was published:\n%s", what, got.stderr)
		}
		s.awaitStatus(t, id, "failed")
		_, because, _ := strings.Cut(s.run(t, "status", id).want(t, exitOK).stdout, "  because ")
		if because, _, _ = strings.Cut(because, "\n"); !strings.Contains(because, test.reason) {
			t.Errorf("%s: waymark status says because %q, want %q", what, because, test.reason)
		}
	}
	// Nobody waits long for a broker that is away.
	away := environment{"WAYMARK_BROKER_URL": "amqp://127.0.0.1:1/", "WAYMARK_PUBLISHER_SPOOL_DIR": t.TempDir()}
	began := time.Now()
	o := away.run(t, "run", "serial", "-f", "none.yaml").want(t, exitUsage)
	if took := time.Since(began); took > 20*time.Second || !strings.Contains(o.stderr, ", spooled 2, dropped 0\n") {
		t.Errorf("while the broker is away it takes %v to say\n%s", took, o.stderr)
	}
	// What is typed wrongly begins no run.
	id := uuid.NewString()
	got := s.run(t, "run", "serial", "-f", reanaYAML(t, "true"), "-p", "who=me", "--id", id).want(t, exitUsage)
	if runLine.MatchString(got.stderr) || !strings.Contains(got.stderr, `there is no parameter "who"`) {
		t.Errorf("with a parameter that is none standard error says\n%s", got.stderr)
	}
	// Nothing is reported where there is nobody to report to.
	got = environment{}.run(t, "run", "serial", "-f", "none.yaml").want(t, exitUsage)
	if got.stderr != "waymark: there is no file none.yaml: name the reana.yaml to run\n" {
		t.Errorf("without a broker standard error says %q", got.stderr)
	}
}

// A resumed run says what runs again before it does.
func TestResumeSaysWhatRunsAgain(t *testing.T) {
	file := writeFile(t, "reana.yaml", "inputs: {parameters: {n: 1}}\nworkflow: {type: serial, specification: {steps: [{name: gen, commands: ['echo $n', 'echo again']}]}}\n")
	workspace := t.TempDir()
	env := environment{}
	env.run(t, "run", "serial", "-f", file, "--workspace", workspace, "-p", "n=2").want(t, exitOK)
	got := env.run(t, "run", "serial", "-f", file, "--workspace", workspace, "--resume", "-p", "n=2").want(t, exitOK)
	if strings.Contains(got.stderr, "run again") || got.stdout != "" {
		t.Errorf("resumed as it was it says\n%s%s", got.stdout, got.stderr)
	}
	got = env.run(t, "run", "serial", "-f", file, "--workspace", workspace, "--resume").want(t, exitOK)
	before, _, started := strings.Cut(got.stderr, "gen  started")
	if want := "gen, command 1, is not what it was when it finished: 2 finished commands run again"; !started || !strings.Contains(before, want) || got.stdout != "1\nagain\n" {
		t.Errorf("resumed with another parameter it prints %q and says\n%swant first %q", got.stdout, got.stderr, want)
	}
}

func TestRunProgramThatIsNotThere(t *testing.T) {
	got := environment{"HOME": t.TempDir()}.run(t, "run", "script", "--", filepath.Join(t.TempDir(), "engine"), "-j4")
	got.want(t, 127)
	if !strings.Contains(got.stderr, "engine") || !strings.Contains(got.stderr, "no such file") {
		t.Errorf("the error is %q, want the program's name", got.stderr)
	}
	got = environment{}.run(t, "run", "script").want(t, exitUsage)
	if !strings.Contains(got.stderr, "missing the command line of the engine, after --") {
		t.Errorf("without a command line the error is %q", got.stderr)
	}
}

// fiveLines is how a shell script reports its run.
func fiveLines(t testing.TB, lines string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return writeFile(t, "analysis.sh", "waymark() { "+self+` "$@"; }`+"\n"+lines)
}

func TestReportFromAShell(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(t)
	jobs := `waymark publish job gen -- sh -c 'echo generating; echo warned >&2'
waymark publish job fit --name 'the fit' -- sh -c 'exit 7'
echo fit ended with $?
waymark publish job plot --status finished --cached
`
	tests := []struct {
		name, script, status string
		command              func(id, path string) *exec.Cmd
	}{
		{"within a run", "waymark publish progress --total 4\n" + jobs, "finished", func(id, path string) *exec.Cmd {
			return program(t, s.environment, "run", "script", "--id", id, "--name", "shell", "--", "sh", path)
		}},
		{"on its own", "waymark publish progress --name shell --total 4\n" + jobs + "waymark publish progress --status failed\n", "failed", func(id, path string) *exec.Cmd {
			cmd := program(t, s.environment, "")
			cmd.Path, cmd.Args = "/bin/sh", []string{"sh", path}
			cmd.Env = append(cmd.Env, "WAYMARK_WORKFLOW="+id, "HOME="+cmd.Dir)
			return cmd
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			id := uuid.NewString()
			cmd := test.command(id, fiveLines(t, test.script))
			var stderr strings.Builder
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("the script: %v\n%s", err, &stderr)
			}
			if string(out) != "generating\nfit ended with 7\n" {
				t.Errorf("the script's own output is %q", out)
			}
			if !strings.Contains(stderr.String(), "warned\n") {
				t.Errorf("the jobs' standard error is lost: %q", &stderr)
			}
			got := s.awaitNamed(t, id, test.status, "shell")
			if got.Progress.Total != 4 || got.Progress.Finished != 2 || got.Progress.Failed != 1 {
				t.Errorf("the run is %+v, want shell with 2 of 4 finished and 1 failed", got)
			}
			if len(got.Failed) != 1 || got.Failed[0].Name != "the fit" || got.Failed[0].ExitCode != 7 {
				t.Errorf("the failed jobs are %+v, want the fit with 7", got.Failed)
			}
			if logs := s.run(t, "logs", id, "--all-jobs").want(t, exitOK).stdout; !strings.Contains(logs, "warned") {
				t.Errorf("the job's log is missing:\n%s", logs)
			}
		})
	}
}

// A command leaves things running, is stopped, and fails and is repeated, as it
// would be without the report.
func TestPublishJobLeavesTheCommandAlone(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(t)
	id := uuid.NewString()
	cmd := program(t, s.environment, "run", "script", "--id", id, "--", "sh", fiveLines(t, `
waymark publish job left -- sh -c '(while [ ! -e go ]; do sleep 0.1; done; echo late >&2 && touch late) & exit 0'
until waymark publish job flaky -- sh -c 'test -e once || { touch once; exit 3; }'; do :; done
waymark publish job failed -- false
touch go
while [ ! -e late ]; do sleep 0.1; done
`))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	got := s.awaitStatus(t, id, "finished")
	if got.Progress.Finished != 2 || got.Progress.Failed != 1 || got.Progress.Total != 3 {
		t.Errorf("the run is %+v, want left and flaky finished, failed failed, and the script's end to count", got)
	}
	if !strings.Contains(stderr.String(), "late\n") {
		t.Errorf("what the command left running could not write:\n%s", &stderr)
	}
	if jobs := s.run(t, "jobs", id, "--output", "jsonl").want(t, exitOK).stdout; !regexp.MustCompile(`"name":"flaky",.*"status":"finished",.*"attempt":2`).MatchString(jobs) {
		t.Errorf("the job that was repeated is not finished in attempt 2:\n%s", jobs)
	}
}

// A script that reports itself to the broker is heard whatever it calls its jobs,
// and counts their attempts.
func TestPublishJobOfAnyLength(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(t)
	id := uuid.NewString()
	long := strings.Repeat("é\x00", 50_000)
	for _, args := range [][]string{
		{"progress", "--total", "9999999999"},
		{"job", long, "--path", long, "--command", long, "--diagnostics", long, "--engine", strings.Repeat("é", 64), "--status", "failed", "--exit-code", "-2147483648"},
		{"job", long, "--attempt", "2", "--status", "running"},
	} {
		s.run(t, append([]string{"publish", args[0], "--workflow", id, "--timeout", "30s"}, args[1:]...)...).want(t, exitOK)
	}
	var jobs struct{ Jobs []jobView }
	servicetest.Eventually(t, patience, "the second attempt runs", func() error {
		got := s.run(t, "jobs", id, "--json")
		if got.code != exitOK {
			return errors.New(got.stderr)
		}
		decodeJSON(t, got.stdout, &jobs)
		if len(jobs.Jobs) != 1 || jobs.Jobs[0].Attempt != 2 {
			return fmt.Errorf("the jobs are %.1000s", got.stdout)
		}
		return nil
	})
	if j := jobs.Jobs[0]; j.Status != "running" || j.Name == nil || utf8.RuneCountInString(*j.Name) > workflow.MaxJobName || !strings.HasPrefix(*j.Name, "é") {
		t.Errorf("the job is %.1000v, want it running, its name cut", j)
	}
	if got := s.run(t, "ledger", "--json").want(t, exitOK).stdout; strings.Contains(got, `"dead": 1`) {
		t.Errorf("something was dead-lettered:\n%s", got)
	}
}

func TestPublishJobRefuses(t *testing.T) {
	away := environment{"WAYMARK_BROKER_URL": "amqp://127.0.0.1:1/", "HOME": t.TempDir()}
	tests := []struct {
		args []string
		code int
		want string
	}{
		{[]string{"publish", "job", "fit"}, exitUsage, "say which run: give --workflow"},
		{[]string{"publish", "job", "fit", "--workflow", "x"}, exitUsage, `"x" is not a UUID`},
		{[]string{"publish", "job", "fit", "--status", "done"}, exitUsage, `unknown job status "done"`},
		{[]string{"publish", "job", ""}, exitUsage, "a job needs a name"},
		{[]string{"publish", "job", "fit", "--attempt", "0"}, exitUsage, "--attempt: expected 1 to 1000000, found 0"},
		{[]string{"publish", "job", "fit", "--attempt", "1000001"}, exitUsage, "--attempt: expected 1 to 1000000, found 1000001"},
		{[]string{"publish", "job", "fit", "--exit-code", "2147483648"}, exitUsage, "--exit-code: expected "},
		{[]string{"publish", "job", "fit", "--engine", strings.Repeat("é", 65)}, exitUsage, "--engine: expected a name of 1 to 64 characters"},
		{[]string{"publish", "progress", "--engine", ""}, exitUsage, "--engine: expected a name of 1 to 64 characters"},
		{[]string{"publish", "job", "fit", "plot"}, exitUsage, "put -- before a command"},
		{[]string{"publish", "job", "fit", "--log", "none", "--", "true"}, exitUsage, "--log: the command itself says that"},
		{[]string{"publish", "job", "fit", "--status", "running", "--", "true"}, exitUsage, "--status: the command itself says that"},
		{[]string{"publish", "progress", "--total", "-1", "--workflow", uuid.NewString()}, exitUsage, "less than none"},
		{[]string{"publish", "progress", "--status", "done"}, exitUsage, `unknown status "done"`},
		{[]string{"publish", "progress", "--workflow", uuid.NewString(), "--no-spool", "--timeout", "50ms"}, exitUnreachable, "127.0.0.1:1"},
		{[]string{"publish", "progress", "--workflow", uuid.NewString(), "--timeout", "50ms"}, exitOK, "messages are kept on disk"},
		// The command matters, not the report.
		{[]string{"publish", "job", "fit", "--workflow", uuid.NewString(), "--no-spool", "--timeout", "50ms", "--", "sh", "-c", "exit 9"}, 9, "the job is not reported"},
		{[]string{"publish", "job", "fit", "--workflow", uuid.NewString(), "--timeout", "50ms", "--", "no-such-program"}, 127, "no-such-program"},
	}
	for _, test := range tests {
		got := away.run(t, test.args...).want(t, test.code)
		if !strings.Contains(got.stderr, test.want) {
			t.Errorf("%q says %q, want %q", test.args, got.stderr, test.want)
		}
	}
	for what, env := range map[string]environment{
		"without a run":    away,
		"without a broker": {"WAYMARK_WORKFLOW": uuid.NewString()},
		"with a bad id":    {"WAYMARK_BROKER_URL": "amqp://127.0.0.1:1/", "WAYMARK_WORKFLOW": "x"},
		"with a bad spool": {"WAYMARK_BROKER_URL": "amqp://127.0.0.1:1/", "WAYMARK_WORKFLOW": uuid.NewString(), "WAYMARK_PUBLISHER_SPOOL_DIR": "/proc/none"},
	} {
		if got := env.run(t, "publish", "job", "fit", "--", "sh", "-c", "exit 6").want(t, 6); !strings.Contains(got.stderr, "the job is not reported") {
			t.Errorf("%s the command says %q", what, got.stderr)
		}
	}
	within := environment{"WAYMARK_SOCKET": filepath.Join(t.TempDir(), "gone")}
	if got := within.run(t, "publish", "job", "fit", "--", "sh", "-c", "exit 5").want(t, 5); !strings.Contains(got.stderr, "not reported") {
		t.Errorf("with a run around that has gone the command says %q", got.stderr)
	}
}

func TestReplay(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(t)
	folder := filepath.Join(t.TempDir(), "rec")
	cmd := program(t, s.environment, "run", "script", "--record", folder, "--", "sh", fiveLines(t, "waymark publish progress --total 2\nwaymark publish job gen -- true\nwaymark publish job fit -- false\n"))
	if out, err := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != 1 {
		t.Fatalf("the run to record: %v\n%s", err, out)
	}
	id := uuid.NewString()
	got := s.run(t, "replay", folder, "--id", id, "--engine", "script", "--fast").want(t, 1)
	wantBalance(t, got, false)
	if !strings.Contains(got.stderr, "failed: 1 of 2 jobs finished, 1 failed: exit code 1") {
		t.Errorf("the replay says\n%s", got.stderr)
	}
	if got := s.awaitNamed(t, id, "failed", "rec"); got.Progress.Total != 2 || got.Progress.Failed != 1 {
		t.Errorf("the replayed run is %+v", got)
	}
	if got := s.run(t, "replay", folder).want(t, exitUsage); !strings.Contains(got.stderr, "give --engine, one of") {
		t.Errorf("of a recording whose engine nobody knows the error is %q", got.stderr)
	}
	if got := s.run(t, "replay", writeFile(t, "half.jsonl", "{\"a\": 1}\n{\"b\"\n"), "--engine", "script").want(t, exitUsage); !strings.Contains(got.stderr, "half.jsonl:2:") {
		t.Errorf("of a damaged recording the error is %q, want file and line", got.stderr)
	}
}
