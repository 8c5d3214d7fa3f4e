package serial

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// writeFiles makes files in a new folder and returns the path of reana.yaml.
func writeFiles(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "reana.yaml")
}

func writeSpec(t *testing.T, text string) string {
	t.Helper()
	return writeFiles(t, map[string]string{"reana.yaml": text})
}

// bomb is a YAML document whose aliases expand to 10^9 values.
func bomb() string {
	var b strings.Builder
	b.WriteString("a: &a [x,x,x,x,x,x,x,x,x,x]\n")
	for c := 'b'; c <= 'i'; c++ {
		p := string(c - 1)
		b.WriteString(string(c) + ": &" + string(c) + " [" + strings.TrimSuffix(strings.Repeat("*"+p+",", 10), ",") + "]\n")
	}
	b.WriteString("inputs: {parameters: {p: *i}}\n")
	b.WriteString("workflow: {type: serial, specification: {steps: [{commands: [echo]}]}}\n")
	return b.String()
}

func TestLoadFaults(t *testing.T) {
	const tail = "workflow: {type: serial, specification: {steps: [{commands: [echo]}]}}\n"
	tests := []struct {
		name, text string
		want       []string // each must be in the error
	}{
		{"empty", "", []string{"reana.yaml is empty"}},
		{"only a comment", "# nothing\n", []string{"reana.yaml is empty"}},
		{"not YAML", "workflow: [unclosed", []string{"reana.yaml is not YAML", "line 1"}},
		{"binary", "\x00\x01\x02", []string{"reana.yaml is not YAML"}},
		{"wrong encoding", "name: \xe9t\xe9", []string{"reana.yaml is not YAML", "UTF-8"}},
		{"two documents", tail + "---\n" + tail, []string{"reana.yaml:", "a second YAML document"}},
		{"a list", "- a\n", []string{"reana.yaml:1: the file: a mapping with the key workflow was expected, found a list"}},
		{"a text", "hello\n", []string{`found "hello"`}},
		{"no workflow", "version: 1\n", []string{"reana.yaml:1: workflow: the key is missing"}},
		{"workflow is a text", "\nworkflow: serial\n", []string{`reana.yaml:2: workflow: a mapping was expected, found "serial"`}},
		{"no type", "workflow:\n  specification: {}\n", []string{"reana.yaml:2: workflow.type: the key is missing: write type: serial"}},
		{"other type", "workflow:\n  type: cwl\n", []string{`reana.yaml:2: workflow.type: "cwl" is not run by this engine`}},
		{"type is a number", "workflow: {type: 3}", []string{`workflow.type: a text was expected, found "3": put it in quotes`}},
		{"no specification", "workflow: {type: serial}", []string{"workflow.specification: the key is missing"}},
		{"specification is a list", "workflow: {type: serial, specification: []}", []string{"workflow.specification: a mapping was expected, found a list"}},
		{"no steps", "workflow: {type: serial, specification: {}}", []string{"workflow.specification.steps: the key is missing"}},
		{"steps is a mapping", "workflow: {type: serial, specification: {steps: {}}}", []string{"steps: a list of steps was expected, found a mapping"}},
		{"step is a text", "workflow: {type: serial, specification: {steps: [run it]}}", []string{`step 1: a mapping with the key commands was expected, found "run it"`}},
		{"no commands", "workflow:\n  type: serial\n  specification:\n    steps:\n    - name: fit\n", []string{"reana.yaml:5: step 1 (fit).commands: there are none"}},
		{"empty commands", "workflow: {type: serial, specification: {steps: [{commands: []}]}}", []string{"step 1.commands: there are none"}},
		{"commands is a text", "workflow: {type: serial, specification: {steps: [{commands: ls}]}}", []string{`step 1.commands: a list was expected, found "ls"`}},
		{"blank command", "workflow: {type: serial, specification: {steps: [{commands: [ls, ' ']}]}}", []string{"step 1.commands[1]: it is empty"}},
		{"command is a boolean", "workflow: {type: serial, specification: {steps: [{commands: [true]}]}}", []string{`step 1.commands[0]: a text was expected, found "true": put it in quotes`}},
		{"command is a mapping", "workflow: {type: serial, specification: {steps: [{commands: [{run: ls}]}]}}", []string{"step 1.commands[0]: a text was expected, found a mapping"}},
		{"command with NUL", `workflow: {type: serial, specification: {steps: [{commands: ["a\0b"]}]}}`, []string{"step 1.commands[0]: it contains a NUL character"}},
		{"name is a list", "workflow: {type: serial, specification: {steps: [{name: [a], commands: [ls]}]}}", []string{"step 1.name: a text was expected, found a list"}},
		{"timeout is a word", "workflow: {type: serial, specification: {steps: [{kubernetes_job_timeout: soon, commands: [ls]}]}}", []string{"kubernetes_job_timeout: a number of seconds", `found "soon"`}},
		{"timeout below 0", "workflow: {type: serial, specification: {steps: [{kubernetes_job_timeout: -1, commands: [ls]}]}}", []string{"kubernetes_job_timeout: a number of seconds"}},
		{"timeout beyond measure", "workflow: {type: serial, specification: {steps: [{kubernetes_job_timeout: 1.0e+300, commands: [ls]}]}}", []string{"kubernetes_job_timeout: a number of seconds"}},
		{"parameters is a list", "inputs: {parameters: [a]}\n" + tail, []string{"reana.yaml:1: inputs.parameters: a mapping of names to values was expected, found a list"}},
		{"inputs is a text", "inputs: none\n" + tail, []string{`inputs: a mapping was expected, found "none"`}},
		{"files is a text", "inputs: {files: a.txt}\n" + tail, []string{`inputs.files: a list was expected, found "a.txt"`}},
		{"file outside", "inputs:\n  files:\n  - ../secret\n" + tail, []string{`reana.yaml:3: inputs.files: "../secret" leads out of the folder`}},
		{"directory outside", "inputs: {directories: [/etc]}\n" + tail, []string{`inputs.directories: "/etc" leads out of the folder`}},
		{"unknown option", "inputs: {options: {FORM: a}}\n" + tail, []string{`inputs.options: there is no option "FORM": a serial workflow knows FROM, TARGET and CACHE`}},
		{"bomb", bomb(), []string{"aliases expand to more than"}},
		{"itself", "inputs: {parameters: &a {p: *a}}\n" + tail, []string{"aliases expand to more than"}},
		{"deep", "inputs: {parameters: {p: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + "}}\n" + tail, []string{"levels"}},
		{"very deep", strings.Repeat("[", 500_000), []string{"reana.yaml is not YAML"}},
		{"huge", tail + "# " + strings.Repeat("x", maxFile), []string{"reana.yaml is larger than 1024 KiB"}},
		{"workflow.file missing", "workflow: {type: serial, file: steps.yaml}\n", []string{"workflow.file: there is no file", "steps.yaml"}},
		{"workflow.file outside", "workflow: {type: serial, file: /etc/passwd}\n", []string{`workflow.file: "/etc/passwd" leads out`}},
		{"all at once", "inputs: {files: 1}\nworkflow:\n  type: serial\n  specification:\n    steps:\n    - commands: []\n    - name: b\n", []string{
			"reana.yaml:1: inputs.files", "reana.yaml:6: step 1.commands", "reana.yaml:7: step 2 (b).commands"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w, err := Load(writeSpec(t, tt.text), Overrides{})
			if err == nil {
				t.Fatalf("accepted, as %+v", w)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q:\n%v", want, err)
				}
			}
			if len(err.Error()) > 2000 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
}

func TestLoadFaultsOfFiles(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{
		filepath.Join(dir, "nothing.yaml"): "there is no file",
		dir:                                "is a directory: name the reana.yaml in it",
	} {
		if _, err := Load(path, Overrides{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Load(%s): %v, want %q", path, err, want)
		}
	}
}

func TestLoad(t *testing.T) {
	w, err := Load(writeSpec(t, `
version: 0.9.0
unknown: {key: [1, 2]}
defaults: &defaults
  environment: debian:12
  kubernetes_job_timeout: '90'
inputs:
  parameters: &p {n: 3, word: yes, n: 4}
  options: {cache: off}
workflow:
  type: serial
  specification:
    steps:
    - <<: *defaults
      name: first
      commands: ["echo ${n} $word", &again 'true']
      surprise: me
    - {name: second, kubernetes_job_timeout: 1.5, commands: [*again]}
`), Overrides{})
	if err != nil {
		t.Fatal(err)
	}
	want := []Step{
		{Name: "first", Environment: "debian:12", Timeout: 90 * time.Second, Commands: []string{"echo ${n} $word", "true"}, lines: []int{16, 16}},
		{Name: "second", Timeout: 1500 * time.Millisecond, Commands: []string{"true"}, lines: []int{16}},
	}
	if diff := cmp.Diff(want, w.Steps, cmp.AllowUnexported(Step{})); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
	jobs, err := w.jobs()
	if err != nil || jobs[0].text != "echo 4 True" || w.Total() != 3 {
		t.Errorf("%d commands, the first is %q, error %v; want 3, echo 4 True", w.Total(), jobs[0].text, err)
	}
	if got, want := string(w.submitted()), `{"input_parameters":{"n":4,"word":true},"operational_options":{"CACHE":"False"}}`; got != want {
		t.Errorf("the submission's parameters are %s, want %s", got, want)
	}
	if !json.Valid(w.specification) || !strings.Contains(string(w.specification), `"surprise":"me"`) {
		t.Errorf("the submission's specification is %s", w.specification)
	}
}

func TestLoadSpecificationFromFile(t *testing.T) {
	path := writeFiles(t, map[string]string{
		"reana.yaml":      "workflow: {type: serial, file: flow/steps.json}\n",
		"flow/steps.json": `{"steps": [{"name": "a", "commands": ["echo"]}]}`,
	})
	w, err := Load(path, Overrides{})
	if err != nil || w.Total() != 1 || w.Steps[0].Name != "a" {
		t.Fatalf("got %+v, error %v", w, err)
	}
	if !strings.Contains(string(w.specification), `"steps":[{"name":"a"`) {
		t.Errorf("the submission lacks the steps: %s", w.specification)
	}

	path = writeFiles(t, map[string]string{
		"reana.yaml":      "workflow: {type: serial, file: flow/steps.json}\n",
		"flow/steps.json": `{"steps": [{"name": "a"}]}`,
	})
	if _, err := Load(path, Overrides{}); err == nil || !strings.Contains(err.Error(), "steps.json:1: step 1 (a).commands: there are none") {
		t.Errorf("error %v does not point into the named file", err)
	}
}

func TestLoadOverrides(t *testing.T) {
	path := writeSpec(t, `
inputs: {parameters: {n: 3, plot: a.png}}
workflow:
  type: serial
  specification:
    steps:
    - {name: gen, commands: [echo $n, 'true']}
    - {name: Fit, commands: ['true']}
    - {name: fit, commands: ['true']}
    - {commands: ['true']}
    - {name: plot, commands: ['true']}
`)
	tests := []struct {
		name        string
		overrides   Overrides
		first, last int
		want        string // of the error, or the first command
	}{
		{"none", Overrides{}, 0, 4, "echo 3"},
		{"a parameter is what was typed", Overrides{Parameters: map[string]string{"n": "007 yes"}}, 0, 4, "echo 007 yes"},
		{"unknown parameter", Overrides{Parameters: map[string]string{"m": "1"}}, 0, 0, `reana.yaml: there is no parameter "m" to override in inputs.parameters: it declares n, plot`},
		{"target", Overrides{Options: map[string]string{"target": "GEN"}}, 0, 0, "echo 3"},
		{"from", Overrides{Options: map[string]string{"FROM": "Plot"}}, 4, 4, "true"},
		{"from and target", Overrides{Options: map[string]string{"FROM": "Fit", "TARGET": "fit"}}, 1, 2, "true"},
		{"ambiguous", Overrides{Options: map[string]string{"FROM": "FIT"}}, 0, 0, "FROM=FIT fits step 2 and step 3"},
		{"unknown target", Overrides{Options: map[string]string{"TARGET": "nosuch"}}, 0, 0, "TARGET=nosuch names no step: the steps are gen, Fit, fit, plot"},
		{"nothing named", Overrides{Options: map[string]string{"TARGET": ""}}, 0, 0, "names no step"},
		{"from after target", Overrides{Options: map[string]string{"FROM": "plot", "TARGET": "gen"}}, 0, 0, "FROM=plot is step 5 and comes after TARGET=gen, which is step 1: swap them"},
		{"unknown option", Overrides{Options: map[string]string{"UNTIL": "gen"}}, 0, 0, `there is no option "UNTIL"`},
		{"cache", Overrides{Options: map[string]string{"CACHE": "off"}}, 0, 4, "echo 3"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w, err := Load(path, tt.overrides)
			if err != nil {
				if !strings.Contains(err.Error(), tt.want) {
					t.Errorf("error %q, want %q", err, tt.want)
				}
				return
			}
			jobs, err := w.jobs()
			if err != nil || w.First != tt.first || w.Last != tt.last || jobs[0].text != tt.want {
				t.Errorf("steps %d to %d from %q, error %v; want %d to %d from %q", w.First, w.Last, jobs[0].text, err, tt.first, tt.last, tt.want)
			}
		})
	}
}

func FuzzLoad(f *testing.F) {
	for _, name := range []string{"analysis", "failing", "hello", "missing-parameter"} {
		data, err := os.ReadFile(filepath.Join(testdata, "specs", name+".yaml"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(bomb()))
	f.Add([]byte("a: &a\n  <<: *a\nworkflow: *a\n"))
	f.Add([]byte("workflow: {type: serial, specification: {steps: [{<<: [{commands: [a]}, 3], <<: 4}]}}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "reana.yaml")
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		w, err := Load(path, Overrides{})
		if err != nil {
			return
		}
		if !json.Valid(w.specification) || !json.Valid(w.submitted()) {
			t.Errorf("the submission would be no JSON: %s, %s", w.specification, w.submitted())
		}
		if jobs, _ := w.jobs(); len(jobs) != w.Total() {
			t.Errorf("%d jobs of %d commands", len(jobs), w.Total())
		}
	})
}
