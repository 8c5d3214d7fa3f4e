package serial

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Workflow is a serial workflow, read and checked, ready to run. It does not
// change when it runs, and may run several times.
type Workflow struct {
	// Path of the file it was read from.
	Path string
	// Steps in their order, all of them.
	Steps []Step
	// First and Last are the indexes of the steps to run, Last included: FROM
	// and TARGET chose them. Without steps Last is -1.
	First, Last int

	parameters    *mapping
	options       map[string]string
	specification json.RawMessage // of the whole file, for the submission
	files         []string        // inputs, relative to the file
	directories   []string
}

// Step is one step of a workflow: commands that run one after the other.
type Step struct {
	// Name as the author gave it; may be empty.
	Name string
	// Commands as they stand in the file, not substituted yet. At least one.
	Commands []string
	// Environment is the container image the step asks for.
	Environment string
	// Timeout ends each command of the step that takes longer. 0 means none.
	Timeout time.Duration

	lines []int // of the commands in the file; nil if unknown
}

// Overrides are what the user says on the command line besides the file.
type Overrides struct {
	// Parameters replace those of inputs.parameters. They are texts, as with
	// REANA's client: what is typed is what the command contains. Naming a
	// parameter that the file does not declare is an error.
	Parameters map[string]string
	// Options are operational options, their names in any case: FROM and
	// TARGET name the first and the last step to run, in any case unless that
	// is ambiguous. CACHE is accepted and has no effect: nothing is cached.
	Options map[string]string
}

// OverrideError says that what is wrong are the [Overrides], and not the file.
type OverrideError struct{ Err error }

func (e *OverrideError) Error() string { return e.Err.Error() }
func (e *OverrideError) Unwrap() error { return e.Err }

// Total is the number of commands that a run has, under FROM and TARGET.
func (w *Workflow) Total() (n int) {
	for _, step := range w.Steps[w.First : w.Last+1] {
		n += len(step.Commands)
	}
	return n
}

// Load reads the reana.yaml at path. Unknown keys are ignored, as REANA does.
// The error names file, line and field of everything that is wrong with the
// rest, one problem a line, and what to do about it. What is wrong with the
// overrides is an *[OverrideError].
//
// Parameters that the commands need and nobody gives are no error here: the
// run is reported, and fails before anything has run.
func Load(path string, overrides Overrides) (*Workflow, error) {
	d, root, err := readYAML(path)
	if err != nil {
		return nil, err
	}
	w := &Workflow{Path: path, Last: -1, parameters: newMapping(), options: make(map[string]string)}
	if root.Kind != yaml.MappingNode {
		d.fault(root, "the file", "a mapping with the key workflow was expected, found %s", describe(root))
		return nil, d.err()
	}
	w.readInputs(d, d.child(root, "the file", "inputs"))
	steps := w.readWorkflow(d, root)
	if steps != nil {
		w.readSteps(steps.document, steps.Node)
		if steps.document != d {
			d.problems = append(d.problems, steps.problems...)
		}
	}
	if whole, ok := d.value(root, "the file").(*mapping); ok {
		if steps != nil && steps.document != d {
			// The submission carries the specification, wherever it was written.
			if outer, ok := whole.values["workflow"].(*mapping); ok {
				specification := newMapping()
				specification.set("steps", steps.value(steps.Node, "steps"))
				outer.set("specification", specification)
			}
		}
		w.specification = toJSON(whole)
	}
	if err := d.err(); err != nil {
		return nil, err
	}
	if err := w.override(overrides); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	return w, nil
}

func (w *Workflow) readInputs(d *document, inputs *yaml.Node) {
	if inputs == nil {
		return
	}
	if parameters := d.child(inputs, "inputs", "parameters"); parameters != nil {
		if m, ok := d.value(parameters, "inputs.parameters").(*mapping); ok {
			w.parameters = m
		} else {
			d.fault(parameters, "inputs.parameters", "a mapping of names to values was expected, found %s", describe(parameters))
		}
	}
	if options := d.child(inputs, "inputs", "options"); options != nil {
		m, ok := d.value(options, "inputs.options").(*mapping)
		if !ok {
			d.fault(options, "inputs.options", "a mapping of names to values was expected, found %s", describe(options))
			return
		}
		for _, name := range m.keys {
			if err := w.setOption(name, pythonStr(m.values[name])); err != nil {
				d.fault(options, "inputs.options", "%v", err)
			}
		}
	}
	w.files = w.readPaths(d, inputs, "files")
	w.directories = w.readPaths(d, inputs, "directories")
}

// readPaths reads a list of paths below the folder of the file.
func (w *Workflow) readPaths(d *document, inputs *yaml.Node, key string) (paths []string) {
	field := "inputs." + key
	texts, nodes := d.strings(d.child(inputs, "inputs", key), field)
	for i, path := range texts {
		if !filepath.IsLocal(path) {
			d.fault(nodes[i], field, "%q leads out of the folder of the file: inputs are given relative to it, without ..", path)
			continue
		}
		paths = append(paths, filepath.Clean(path))
	}
	return paths
}

// stepsNode is the list of steps and the document it stands in.
type stepsNode struct {
	*document
	*yaml.Node
}

// readWorkflow finds the steps, in the file or in the one it names. It is nil
// if there are none to be found, which has been noted.
func (w *Workflow) readWorkflow(d *document, root *yaml.Node) *stepsNode {
	flow := d.child(root, "the file", "workflow")
	if flow == nil {
		d.fault(root, "workflow", "the key is missing: say what to run, with type: serial and a specification")
		return nil
	}
	kind := d.child(flow, "workflow", "type")
	if flow.Kind != yaml.MappingNode {
		return nil
	}
	if kind == nil {
		d.fault(flow, "workflow.type", "the key is missing: write type: serial")
		return nil
	}
	if name, ok := d.string(kind, "workflow.type"); !ok || name != "serial" {
		if ok {
			d.fault(kind, "workflow.type", "%q is not run by this engine: it runs workflows of type serial", name)
		}
		return nil
	}

	// As with REANA, a specification goes before a file.
	specification, field := d.child(flow, "workflow", "specification"), "workflow.specification"
	if file := d.child(flow, "workflow", "file"); specification == nil && file != nil {
		name, ok := d.string(file, "workflow.file")
		if !ok {
			return nil
		}
		if !filepath.IsLocal(name) {
			d.fault(file, "workflow.file", "%q leads out of the folder of the file: give it relative to that", name)
			return nil
		}
		inner, node, err := readYAML(filepath.Join(filepath.Dir(d.path), name))
		if err != nil {
			d.fault(file, "workflow.file", "%v", err)
			return nil
		}
		d, specification, field = inner, node, "specification"
	}
	if specification == nil {
		d.fault(flow, "workflow.specification", "the key is missing: list the steps to run below it, or name their file with workflow.file")
		return nil
	}
	steps := d.child(specification, field, "steps")
	switch {
	case specification.Kind != yaml.MappingNode: // noted by child
	case steps == nil:
		d.fault(specification, field+".steps", "the key is missing: list the steps to run")
	case steps.Kind != yaml.SequenceNode:
		d.fault(steps, field+".steps", "a list of steps was expected, found %s", describe(steps))
	default:
		return &stepsNode{d, steps}
	}
	return &stepsNode{d, &yaml.Node{Kind: yaml.SequenceNode, Line: specification.Line}}
}

func (w *Workflow) readSteps(d *document, steps *yaml.Node) {
	for i, node := range steps.Content {
		node = resolve(node)
		field := fmt.Sprintf("step %d", i+1)
		if node.Kind != yaml.MappingNode {
			d.fault(node, field, "a mapping with the key commands was expected, found %s", describe(node))
			continue
		}
		var step Step
		if name := d.child(node, field, "name"); name != nil {
			step.Name, _ = d.string(name, field+".name")
		}
		if step.Name != "" {
			field = fmt.Sprintf("step %d (%s)", i+1, step.Name)
		}
		if environment := d.child(node, field, "environment"); environment != nil {
			step.Environment, _ = d.string(environment, field+".environment")
		}
		if timeout := d.child(node, field, "kubernetes_job_timeout"); timeout != nil {
			step.Timeout = w.readTimeout(d, timeout, field+".kubernetes_job_timeout")
		}
		commands := d.child(node, field, "commands")
		texts, nodes := d.strings(commands, field+".commands")
		if commands == nil || commands.Kind == yaml.SequenceNode && len(commands.Content) == 0 {
			d.fault(node, field+".commands", "there are none: list at least one shell command, or remove the step")
		}
		for n, text := range texts {
			switch {
			case strings.TrimSpace(text) == "":
				d.fault(nodes[n], fmt.Sprintf("%s.commands[%d]", field, n), "it is empty: write a shell command, or remove it")
			case strings.Contains(text, "\x00"):
				d.fault(nodes[n], fmt.Sprintf("%s.commands[%d]", field, n), "it contains a NUL character, which no command can")
			}
			step.lines = append(step.lines, nodes[n].Line)
		}
		step.Commands = texts
		w.Steps = append(w.Steps, step)
	}
	w.Last = len(w.Steps) - 1
}

// readTimeout reads a positive number of seconds.
func (w *Workflow) readTimeout(d *document, node *yaml.Node, field string) time.Duration {
	const most = 366 * 24 * time.Hour
	v := d.scalar(node)
	if s, ok := v.(string); ok { // REANA's own examples quote it now and then
		if n, ok := new(big.Int).SetString(s, 10); ok {
			v = n
		}
	}
	seconds := 0.0
	switch v := v.(type) {
	case *big.Int:
		seconds, _ = new(big.Float).SetInt(v).Float64()
	case float64:
		seconds = v
	}
	if !(seconds > 0 && seconds <= most.Seconds()) {
		d.fault(node, field, "a number of seconds above 0, at most a year, was expected, found %s", describe(node))
		return 0
	}
	return time.Duration(seconds * float64(time.Second))
}

// setOption takes one operational option, its name in any case.
func (w *Workflow) setOption(name, text string) error {
	switch upper := strings.ToUpper(name); upper {
	case "FROM", "TARGET", "CACHE":
		w.options[upper] = text
		return nil
	}
	return fmt.Errorf("there is no option %q: a serial workflow knows FROM, TARGET and CACHE", name)
}

func (w *Workflow) override(overrides Overrides) error {
	merged := newMapping()
	for _, name := range w.parameters.keys {
		merged.set(name, w.parameters.values[name])
	}
	for name, text := range overrides.Parameters {
		if _, ok := merged.values[name]; !ok {
			declared := "it declares none"
			if len(merged.keys) > 0 {
				declared = "it declares " + strings.Join(merged.keys, ", ")
			}
			return &OverrideError{fmt.Errorf("there is no parameter %q to override in inputs.parameters: %s", name, declared)}
		}
		merged.set(name, text)
	}
	w.parameters = merged
	for name, text := range overrides.Options {
		if err := w.setOption(name, text); err != nil {
			return &OverrideError{err}
		}
	}
	err := w.choose()
	if err != nil && len(overrides.Options) > 0 { // else the file's own do not fit
		return &OverrideError{err}
	}
	return err
}

// choose finds the steps that FROM and TARGET name. REANA runs the whole
// workflow when it does not understand them; here it is an error, because
// running what was not asked for costs more than a second try.
func (w *Workflow) choose() (err error) {
	if from, ok := w.options["FROM"]; ok {
		if w.First, err = w.step("FROM", from); err != nil {
			return err
		}
	}
	if target, ok := w.options["TARGET"]; ok {
		if w.Last, err = w.step("TARGET", target); err != nil {
			return err
		}
	}
	if w.First > w.Last && len(w.Steps) > 0 {
		return fmt.Errorf("FROM=%s is step %d and comes after TARGET=%s, which is step %d: swap them", w.options["FROM"], w.First+1, w.options["TARGET"], w.Last+1)
	}
	return nil
}

// step finds a step by name: exactly, else in any case.
func (w *Workflow) step(option, name string) (int, error) {
	for _, same := range []func(a, b string) bool{func(a, b string) bool { return a == b }, strings.EqualFold} {
		var found []int
		for i := range w.Steps {
			if w.Steps[i].Name != "" && same(w.Steps[i].Name, name) {
				found = append(found, i)
			}
		}
		switch len(found) {
		case 0:
		case 1:
			return found[0], nil
		default:
			return 0, fmt.Errorf("%s=%s fits step %d and step %d: give the steps names of their own", option, name, found[0]+1, found[1]+1)
		}
	}
	names := []string{}
	for i := range w.Steps {
		if n := w.Steps[i].Name; n != "" && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	if len(names) == 0 {
		return 0, fmt.Errorf("%s=%s names no step: the steps of this workflow have no names", option, name)
	}
	return 0, fmt.Errorf("%s=%s names no step: the steps are %s", option, name, strings.Join(names, ", "))
}

// submitted is what a submission says under parameters, in REANA's form.
func (w *Workflow) submitted() json.RawMessage {
	options := newMapping()
	for _, name := range []string{"CACHE", "FROM", "TARGET"} {
		if text, ok := w.options[name]; ok {
			options.set(name, text)
		}
	}
	m := newMapping()
	m.set("input_parameters", w.parameters)
	m.set("operational_options", options)
	return toJSON(m)
}

// job is one command of a run.
type job struct {
	step, command int // indexes in the workflow
	name          string
	text          string // substituted
	timeout       time.Duration
}

// jobs are the commands of a run, substituted. With an error, which names every
// command that cannot be, their texts are those of the file.
func (w *Workflow) jobs() (jobs []job, err error) {
	var problems []error
	for s := w.First; s <= w.Last; s++ {
		step := &w.Steps[s]
		for c, command := range step.Commands {
			text, err := substitute(command, w.parameters)
			if err == nil && strings.Contains(text, "\x00") {
				err = errors.New("a parameter puts a NUL character into it, which no command can contain")
			}
			if err != nil {
				where := where(s, step.Name, c)
				if c < len(step.lines) {
					where = fmt.Sprintf("%s (%s:%d)", where, filepath.Base(w.Path), step.lines[c])
				}
				problems = append(problems, fmt.Errorf("%s: %w", where, err))
				text = command
			}
			jobs = append(jobs, job{step: s, command: c, name: step.Name, text: text, timeout: step.Timeout})
		}
	}
	return jobs, errors.Join(problems...)
}

// where names a command for people, who count from 1.
func where(step int, name string, command int) string {
	if name != "" {
		return fmt.Sprintf("step %d (%s), command %d", step+1, name, command+1)
	}
	return fmt.Sprintf("step %d, command %d", step+1, command+1)
}
