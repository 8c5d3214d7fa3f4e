package snakemake

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"waymark/engines"
	"waymark/engines/enginetest"
	"waymark/workflow"
)

const recordings = "../../testdata/engines/snakemake"

var update = flag.Bool("update", false, "write what the recordings tell into their expected.json")

func TestContract(t *testing.T) {
	enginetest.Contract(t, enginetest.Config{
		New:        func(id uuid.UUID) engines.Reducer { return newReducer(id) },
		Recordings: enginetest.Recordings(t, recordings),
	})
}

// expected is expected.json.
type expected struct {
	Status   string            `json:"status"`
	Reason   string            `json:"reason,omitempty"`
	Total    int               `json:"total"`
	Finished []string          `json:"finished"`
	Failed   []string          `json:"failed"`
	Stopped  []string          `json:"stopped,omitempty"`
	IDs      map[string]string `json:"ids"`
	Attempts map[string]int    `json:"attempts,omitempty"`
	Exits    map[string]int    `json:"exit_codes,omitempty"`
	Mode     any               `json:"mode"`
}

func summary(told enginetest.Told) expected {
	e := expected{
		Status: told.Status.String(), Reason: told.Reason, Total: told.Counts.Total, Mode: told.Specific["mode"],
		Finished: told.In(workflow.JobFinished), Failed: told.In(workflow.JobFailed), Stopped: told.In(workflow.JobStopped),
		IDs: make(map[string]string), Attempts: make(map[string]int), Exits: make(map[string]int),
	}
	for _, j := range told.Jobs {
		e.IDs[j.Name] = j.ID
		if j.Attempt > 1 {
			e.Attempts[j.Name] = j.Attempt
		}
		if j.ExitCode > 0 {
			e.Exits[j.Name] = j.ExitCode
		}
	}
	return e
}

func compare(t *testing.T, file string, told enginetest.Told) {
	t.Helper()
	got, err := json.MarshalIndent(summary(told), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

func TestRecordings(t *testing.T) {
	for _, path := range enginetest.Recordings(t, recordings) {
		t.Run(strings.TrimPrefix(path, recordings+"/"), func(t *testing.T) {
			r := enginetest.Read(t, path)
			compare(t, filepath.Join(path, "expected.json"), enginetest.Tell(NewReducer(enginetest.WorkflowID), r.Events, r.Exit))
		})
	}
}

// TestGraph has the graph of a checkpoint's run: what each job needs.
func TestGraph(t *testing.T) {
	r := enginetest.Read(t, filepath.Join(recordings, "hook/nasty"))
	told := enginetest.Tell(NewReducer(enginetest.WorkflowID), r.Events, r.Exit)
	graph, _ := told.Specific["dag"].(map[string]any)
	nodes, _ := graph["nodes"].([]any)
	names := make(map[string]string)
	var norun int
	for _, n := range nodes {
		node := n.(map[string]any)
		names[node["id"].(string)] = node["metadata"].(map[string]any)["name"].(string)
		if node["norun"] == true {
			norun++
			if node["jobid"] != nil {
				t.Errorf("a node that runs nothing has a job: %v", node)
			}
		}
	}
	var edges []string
	for _, e := range graph["edges"].([]any) {
		pair := e.([]any)
		edges = append(edges, names[pair[0].(string)]+" > "+names[pair[1].(string)])
	}
	slices.Sort(edges)
	want := []string{
		"broken > all", "broken > never", "flaky > all", "late:n=1,a=2 > all", "late:n=x y > all", "liar > all",
		"ok > all", "ok > late:n=1,a=2", "ok > late:n=x y", "raises > all", "scripted > all",
	}
	if diff := cmp.Diff(want, edges); diff != "" || norun != 1 {
		t.Errorf("%d nodes run nothing, want 1; the edges (-want +got):\n%s", norun, diff)
	}
}

func tell(code int, lines ...string) enginetest.Told {
	return tellLines(lines, code)
}

// TestSubworkflow has two workflows with jobs of the same names in one run.
func TestSubworkflow(t *testing.T) {
	told := tell(0,
		`{"level":"x_run","pid":1,"run":1,"snakefile":"/w/sub/Snakefile","workdir":"/w/sub","start":"/w","depth":2}`,
		`{"level":"x_dag","pid":1,"run":1,"nodes":[{"jobid":0,"name":"all","norun":true},{"jobid":1,"name":"make"}],"edges":[[1,0]],"total":2}`,
		`{"level":"job_info","pid":1,"run":1,"jobid":1,"name":"make"}`,
		`{"level":"x_finished","pid":1,"run":1,"jobid":1}`,
		`{"level":"x_run","pid":1,"run":2,"snakefile":"/w/Snakefile","workdir":"/w","start":"/w","depth":1}`,
		`{"level":"x_dag","pid":1,"run":2,"nodes":[{"jobid":0,"name":"all","norun":true},{"jobid":1,"name":"make"}],"edges":[[1,0]],"total":2}`,
		`{"level":"job_info","pid":1,"run":2,"jobid":1,"name":"make"}`,
		`{"level":"x_finished","pid":1,"run":2,"jobid":1}`,
	)
	var names []string
	for _, j := range told.Jobs {
		names = append(names, j.Path+"|"+j.Name)
	}
	if diff := cmp.Diff([]string{"sub|sub/make", "|make"}, slices.Sorted(slices.Values(names))); diff != "" || told.Counts.Finished != 2 || told.Counts.Total != 2 {
		t.Errorf("the counts are %+v, the jobs (-want +got):\n%s", told.Counts, diff)
	}
}

// calls are the events of Snakemakes with one job of the same name each.
func calls(runs ...string) []string {
	var lines []string
	for i, run := range runs {
		lines = append(lines, fmt.Sprintf(`{"level":"x_run","pid":%d,"run":1,"depth":1,%s}`, i, run))
	}
	for i := range runs {
		lines = append(lines,
			fmt.Sprintf(`{"level":"x_dag","pid":%d,"run":1,"nodes":[{"jobid":0,"name":"all","norun":true},{"jobid":1,"name":"a"}],"edges":[[1,0]],"total":2}`, i),
			fmt.Sprintf(`{"level":"job_info","pid":%d,"run":1,"jobid":1,"name":"a"}`, i),
			fmt.Sprintf(`{"level":"x_finished","pid":%d,"run":1,"jobid":1}`, i))
	}
	return lines
}

func at(base, start, workdir, snakefile string) string {
	return fmt.Sprintf(`"base":%q,"start":%q,"workdir":%q,"snakefile":%q`, base, start, workdir, snakefile)
}

// TestPlaces has several workflows in one command. Their jobs are kept apart.
func TestPlaces(t *testing.T) {
	for name, test := range map[string]struct {
		runs    []string
		want    []string
		ordered bool // it matters which is heard first
	}{
		"folders": {
			runs: []string{at("/w", "/w/p1", "/w/p1", "/w/p1/Snakefile"), at("/w", "/w/p2", "/w/p2", "/w/p2/workflow/Snakefile"), at("/w", "/w", "/w", "/w/Snakefile")},
			want: []string{"a", "p1/a", "p2/a"},
		},
		"one Snakefile": {
			runs: []string{at("/w", "/w", "/w/p1", "/w/Snakefile"), at("/w", "/w", "/w/p2", "/w/Snakefile"), at("/w", "/w", "/w/p1", "/w/Snakefile")},
			want: []string{"p1/a", "p2/a"},
		},
		"one folder": {
			runs: []string{at("/w", "/w", "/w", "/w/x.smk"), at("/w", "/w", "/w", "/w/y/Snakefile"), at("/w", "/w", "/w", "https://host/Snakefile")},
			want: []string{"https://host/Snakefile/a", "x.smk/a", "y/Snakefile/a"},
		},
		"of one base name": {
			runs: []string{at("/w", "/x/wf", "/x/wf", "/x/wf/Snakefile"), at("/w", "/y/wf", "/y/wf", "/y/wf/s.smk"), at("/w", "/w", "/w/o", "/y/wf/s.smk")},
			want: []string{"/x/wf/a", "/y/wf/s.smk/a", "o/y/wf/s.smk/a"},
		},
		"that look the same": {
			runs: []string{at("/w", "/w", "/w/p", "/w/Snakefile"), at("/w", "/w/p", "/w/p", "/w/p/Snakefile"), at("/w", "/w/p", "/w/p", "/w/p/workflow/Snakefile")},
			want: []string{"p/Snakefile#2/a", "p/Snakefile/a", "p/a"}, ordered: true,
		},
		"a single Snakemake elsewhere": {
			runs: []string{at("", "/w", "/w/out", "/w/rules/x.smk")},
			want: []string{"a"},
		},
		"an unknown beginning": {
			runs: []string{at("", "/w/p1", "/w/p1", "/w/p1/Snakefile"), at("", "/w/p2", "/w/p2", "/w/p2/Snakefile"), at("", "/w/p3", "/w/p3", "/w/p3/Snakefile")},
			want: []string{"../p2/a", "../p3/a", "a"}, ordered: true,
		},
		"nothing said": {runs: []string{at("", "", "", ""), at("", "", "", "")}, want: []string{"a"}},
	} {
		t.Run(name, func(t *testing.T) {
			check := func(runs []string) {
				told := tell(0, calls(runs...)...)
				if diff := cmp.Diff(test.want, told.In(workflow.JobFinished)); diff != "" || told.Counts.Total != len(test.want) {
					t.Errorf("of %q it counts %+v, and tells (-want +got):\n%s", runs, told.Counts, diff)
				}
				for _, j := range told.Jobs {
					if j.ID != engines.JobID(enginetest.WorkflowID, Engine, j.Name) || strings.TrimPrefix(j.Path+"/a", "/") != j.Name && j.Path+"/a" != j.Name {
						t.Errorf("the job %q has the path %q and the id %q", j.Name, j.Path, j.ID)
					}
				}
			}
			check(test.runs)
			if !test.ordered {
				slices.Reverse(test.runs)
				check(test.runs)
			}
		})
	}
}

// TestTotal has Snakemake count what it left out, before and after the graph
// grows, and more jobs than a graph is told of.
func TestTotal(t *testing.T) {
	const run = `{"level":"x_run","pid":1,"run":1,"depth":1,"workdir":"/w","snakefile":"/w/Snakefile","start":"/w"}`
	for name, test := range map[string]struct {
		lines []string
		want  int
	}{
		"graph": {[]string{run, `{"level":"x_dag","run":1,"pid":1,"total":9,"nodes":[{"jobid":1,"name":"a"},{"jobid":0,"name":"all","norun":true}]}`,
			`{"level":"progress","run":1,"pid":1,"total":9}`, `{"level":"run_info","run":1,"pid":1,"msg":"total 9"}`, `{"level":"info","run":1,"pid":1,"msg":""}`}, 1},
		"graph that grows": {[]string{run, `{"level":"x_dag","run":1,"pid":1,"total":2,"nodes":[{"jobid":1,"name":"a"},{"jobid":0,"name":"all","norun":true}]}`,
			`{"level":"x_dag","run":1,"pid":1,"total":4,"nodes":[{"jobid":2,"name":"b"},{"jobid":3,"name":"c"}]}`}, 3},
		"huge graph": {[]string{run, `{"level":"x_dag","run":1,"pid":1,"total":60000,"norun":2}`}, 59998},
		"no graph": {[]string{`{"level":"resources_info"}`, `{"level":"run_info","msg":"total 4"}`, `{"level":"progress","total":9}`,
			`{"level":"progress","total":12}`}, 7},
		"no table": {[]string{`{"level":"progress","total":9}`, `{"level":"run_info","msg":"total 4"}`}, 9},
	} {
		t.Run(name, func(t *testing.T) {
			if told := tell(0, test.lines...); told.Counts.Total != test.want {
				t.Errorf("the total is %d, want %d", told.Counts.Total, test.want)
			}
		})
	}
}

// TestHookIsHeardLate has text come before the first event of the hook.
func TestHookIsHeardLate(t *testing.T) {
	text := []string{
		"Building DAG of jobs...", "Provided cores: 1", "total 3", "rule first:", "    jobid: 2", "", "Error in rule first:", "    jobid: 2", "",
	}
	hook := []string{
		`{"waymark":1,"version":"7.21.0","pid":1}`,
		`{"level":"x_run","pid":1,"run":1,"snakefile":"/w/Snakefile","workdir":"/w","start":"/w","depth":1}`,
		`{"level":"x_dag","pid":1,"run":1,"nodes":[{"jobid":0,"name":"all","norun":true},{"jobid":1,"name":"second"},{"jobid":2,"name":"first"}],"total":3}`,
		`{"level":"job_info","pid":1,"run":1,"jobid":2,"name":"first"}`,
		`{"level":"x_failed","pid":1,"run":1,"jobid":2,"final":false}`,
		`{"level":"job_info","pid":1,"run":1,"jobid":2,"name":"first"}`,
		`{"level":"x_finished","pid":1,"run":1,"jobid":2}`,
		`{"level":"job_info","pid":1,"run":1,"jobid":1,"name":"second"}`,
		`{"level":"x_finished","pid":1,"run":1,"jobid":1}`,
	}
	var events []engines.Event
	for _, l := range text {
		events = append(events, engines.Event{Source: engines.Stderr, Line: []byte(l)})
	}
	for _, l := range hook {
		events = append(events, engines.Event{Source: engines.Hook, Line: []byte(l)})
	}
	told := enginetest.Tell(newReducer(enginetest.WorkflowID), events, engines.Exit{})
	if diff := cmp.Diff([]string{"first", "second"}, told.In(workflow.JobFinished)); diff != "" || len(told.Jobs) != 2 || told.Specific["mode"] != modeHook {
		t.Errorf("it tells %+v in mode %v", told.Jobs, told.Specific["mode"])
	}
}

// TestForgottenJob has Snakemake not try a job again that it was to try, as 7.32
// does if a checkpoint grows the graph just then.
func TestForgottenJob(t *testing.T) {
	told := tell(1,
		`{"level":"x_dag","nodes":[{"jobid":0,"name":"all","norun":true},{"jobid":1,"name":"flaky"}],"total":2}`,
		`{"level":"job_info","jobid":1,"name":"flaky"}`,
		`{"level":"error","msg":"Error submitting jobscript (exit code 1):"}`,
		`{"level":"x_failed","jobid":1,"final":false,"attempt":1}`,
		`{"level":"error","msg":"BUG: Out of jobs ready to be started, but not all files built yet."}`,
		`{"level":"error","msg":"Remaining jobs:\n - all: \n - flaky: flaky.txt"}`,
		`{"level":"x_end","success":false}`,
	)
	if want := "BUG: Out of jobs ready to be started, but not all files built yet."; told.Reason != want {
		t.Errorf("the reason is %q, want %q", told.Reason, want)
	}
	if j, _ := told.Job("flaky"); j.Status != workflow.JobQueued || j.Attempt != 2 || told.Counts.Failed != 0 {
		t.Errorf("the job is %+v of %+v, want it to wait for attempt 2", j, told.Counts)
	}
}

// TestHostileEvents has fields of wrong kinds, huge and negative numbers.
func TestHostileEvents(t *testing.T) {
	told := tell(0,
		`{"level":"x_dag","nodes":[{"jobid":-1,"name":"a"},{"jobid":1e300,"name":"b"},{"jobid":1,"name":7},5,null],"edges":[[1],[1,"x"],[{},{}],7],"total":-4}`,
		`{"level":"progress","total":1e18,"done":-1}`,
		`{"level":"run_info","stats":{"total":-5},"msg":"total 99999999999999999999"}`,
		`{"level":"job_info","jobid":3,"name":"c","wildcards":{"x":null,"y":[1],"z":{"a":1}},"log":7}`,
		`{"level":"x_failed","jobid":3,"final":"yes","logs":[1]}`,
		`{"level":"x_failed","jobid":3,"final":true,"logs":"a\u0000b\ud800"}`,
		`{"level":"group_error","job_error_info":[{"jobid":9,"name":"d"},7]}`,
		`{"level":"error","msg":"Command '' returned non-zero exit status 99999999999999."}`,
		`{"waymark":[]}`, `{"level":"x_run","pid":{}}`, `7`, `{`, ``,
	)
	if told.Broken != "" || told.Counts.Failed != 2 {
		t.Errorf("it broke with %q, and counts %+v", told.Broken, told.Counts)
	}
	if told.Specific["unreadable_events"] != float64(3) {
		t.Errorf("%v events were unreadable, want 3", told.Specific["unreadable_events"])
	}
	if j, _ := told.Job("c:y=[1],z=map[a:1]"); j.Status != workflow.JobFailed || !strings.HasPrefix(j.Logs, "a\uFFFDb") {
		t.Errorf("the job is %+v", j)
	}
}

func TestRunsNothing(t *testing.T) {
	for line, want := range map[string]bool{
		"snakemake":                                      false,
		"snakemake -j4 -p all":                           false,
		"snakemake -n":                                   true,
		"/opt/bin/snakemake -np":                         true,
		"snakemake -j4 --dry-run":                        true,
		"snakemake -j4n":                                 false,
		"snakemake -j 4 --config -n":                     false,
		"snakemake --summary":                            true,
		"snakemake --report=out.html":                    true,
		"snakemake --report out.html --report-after-run": false,
		"snakemake --unlock":                             true,
		"snakemake --touch":                              false,
		"snakemake -j1 -- -n":                            false,
		"snakemake --dag":                                true,
		"python3 -W error -m snakemake --version":        true,
		"python3 -m snakemake -c1":                       false,
		"conda run -n snakemake snakemake -j1":           false,
		"conda run -n snakemake snakemake -n":            true,
		"env A=b snakemake --help":                       true,
		"make -n":                                        false,
		"sh -c|snakemake -n":                             true,
		"sh -c|snakemake -n; snakemake":                  false,
		"bash -ec|exec snakemake -l":                     true,
		"sh -c":                                          false,
		"sh":                                             false,
	} {
		args := strings.Fields(line)
		if command, script, ok := strings.Cut(line, "|"); ok {
			args = append(strings.Fields(command), script)
		}
		if got := runsNothing(args); got != want {
			t.Errorf("%q runs nothing: %v, want %v", args, got, want)
		}
	}
}

// TestBase has the folder behind a link, which Snakemake does not see.
func TestBase(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]string{"make": dir, "python3 -m snakemake": "", "sh -c|cd a; snakemake": dir, "sh -c|snakemake -d a": ""} {
		args := strings.Fields(line)
		if command, script, ok := strings.Cut(line, "|"); ok {
			args = append(strings.Fields(command), script)
		}
		if got := base(&engines.Launch{Args: args, Dir: link}); got != want {
			t.Errorf("%q is seen from %q, want %q", args, got, want)
		}
	}
}

func TestStableName(t *testing.T) {
	words := map[string]string{"b": "2", "a": "x/y"}
	if got := stableName("fit", words); got != "fit:a=x/y,b=2" {
		t.Errorf("the name is %q", got)
	}
	maps.DeleteFunc(words, func(string, string) bool { return true })
	if got := stableName("fit", words); got != "fit" {
		t.Errorf("the name is %q", got)
	}
}
