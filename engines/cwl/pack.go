package cwl

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"

	"waymark/engines"
)

const (
	// packSource is the source of the event that says what cwltool --pack said.
	packSource = "pack"
	// packTimeout is how long cwltool --pack may take.
	packTimeout = 2 * time.Minute
	// packNice is how much it stands back behind the engine.
	packNice = 15
	// maxPack is how much it may say, maxJobOrder how large a file of inputs
	// is read, in bytes.
	maxPack, maxJobOrder = 64 << 20, 16 << 20
)

// plan is what is known of a workflow before it runs.
type plan struct {
	Workflow *process `json:"workflow"`
	Inputs   shapes   `json:"inputs"`
}

// packing is a Source that has cwltool pack the document, once needed is
// closed: when a job runs and nobody knows of how many. It makes one event of
// it. That it cannot be packed harms nothing: then there is no total.
func packing(c commandLine, args, env []string, dir string, needed <-chan struct{}) engines.Source {
	return func(ctx context.Context, emit func(engines.Event)) error {
		select {
		case <-needed:
		case <-ctx.Done():
			return nil
		}
		doc, err := pack(ctx, c, args, env, dir)
		if err != nil {
			return nil
		}
		main, err := unpack(doc)
		if err != nil {
			return nil
		}
		line, err := json.Marshal(plan{Workflow: main, Inputs: given(main, c.rest, dir)})
		if err == nil {
			emit(engines.Event{Source: packSource, Line: line})
		}
		return nil
	}
}

// pack runs cwltool --pack with the words that ran cwltool.
func pack(ctx context.Context, c commandLine, args, env []string, dir string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, packTimeout)
	defer cancel()
	words := append(append([]string(nil), args[:c.program+1]...), "--quiet", "--pack")
	words = append(words, c.loading...)
	if c.document != "" {
		words = append(words, c.document)
	}
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	if !strings.Contains(words[0], "/") {
		if path := lookPath(words[0], env, dir); path != "" {
			cmd.Path, cmd.Err = path, nil
		}
	}
	out := &bounded{max: maxPack}
	cmd.Env, cmd.Dir, cmd.Stdout = env, dir, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	_ = syscall.Setpriority(syscall.PRIO_PGRP, cmd.Process.Pid, packNice)
	if err := cmd.Wait(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// lookPath finds a program in the PATH of an environment.
func lookPath(name string, env []string, dir string) string {
	l := engines.Launch{Env: env}
	for _, folder := range filepath.SplitList(l.Getenv("PATH")) {
		path := filepath.Join(folder, name)
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		if info, err := os.Stat(path); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			return path
		}
	}
	return ""
}

// bounded is a buffer that refuses to grow beyond max.
type bounded struct {
	bytes.Buffer
	max int
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > b.max {
		return 0, fmt.Errorf("more than %d bytes", b.max)
	}
	return b.Buffer.Write(p)
}

// unpack makes the structure of a packed document.
func unpack(doc []byte) (*process, error) {
	var top map[string]any
	if err := json.Unmarshal(doc, &top); err != nil {
		return nil, fmt.Errorf("the packed document: %w", err)
	}
	u := unpacker{byID: make(map[string]map[string]any)}
	main := top
	if all, ok := top["$graph"].([]any); ok {
		main = nil
		for _, one := range all {
			if p, ok := one.(map[string]any); ok {
				u.byID[text(p["id"])] = p
				if main == nil || text(p["id"]) == "#main" {
					main = p
				}
			}
		}
	}
	if main == nil || text(main["class"]) == "" {
		return nil, fmt.Errorf("the packed document has no process")
	}
	return u.process(main, 0), nil
}

// unpacker follows the references of a packed document.
type unpacker struct {
	byID map[string]map[string]any
	size int
}

const maxUnpacked = 100_000

func (u *unpacker) process(doc map[string]any, depth int) *process {
	p := &process{Class: text(doc["class"])}
	if p.Class != "Workflow" || depth > maxDepth {
		return p
	}
	p.Inputs, p.Outputs = make(shapes), make(map[string][]string)
	names := make(map[string]string) // of sources
	for id, in := range each(doc["inputs"]) {
		names[id] = shortName(id)
		if s := shapeOf(in["default"]); s != nil {
			p.Inputs[shortName(id)] = s
		}
	}
	steps := each(doc["steps"])
	for id, s := range steps {
		for _, o := range list(s["out"]) {
			out := text(o)
			if m, ok := o.(map[string]any); ok {
				out = text(m["id"])
			}
			names[out] = shortName(id) + "/" + shortName(out)
		}
	}
	sources := func(v any) (all []string) {
		for _, s := range list(v) {
			if name, ok := names[text(s)]; ok {
				all = append(all, name)
			} else {
				all = append(all, "?")
			}
		}
		return all
	}
	for id, o := range each(doc["outputs"]) {
		p.Outputs[shortName(id)] = sources(o["outputSource"])
	}
	for _, id := range slices.Sorted(maps.Keys(steps)) {
		if u.size++; u.size > maxUnpacked {
			break
		}
		doc := steps[id]
		s := &step{ID: shortName(id), When: doc["when"] != nil, Method: text(doc["scatterMethod"]), Run: &process{}}
		for _, key := range list(doc["scatter"]) {
			s.Scatter = append(s.Scatter, shortName(text(key)))
		}
		for _, r := range each(doc["requirements"]) {
			s.Loop = s.Loop || strings.HasSuffix(text(r["class"]), "Loop")
		}
		for id, in := range each(doc["in"]) {
			s.In = append(s.In, input{
				ID: shortName(id), Source: sources(in["source"]), Default: shapeOf(in["default"]),
				Computed: in["valueFrom"] != nil, Merged: in["linkMerge"] != nil || in["pickValue"] != nil,
			})
		}
		run, ok := doc["run"].(map[string]any)
		if !ok {
			run = u.byID[text(doc["run"])]
		}
		if run != nil {
			s.Run = u.process(run, depth+1)
		}
		p.Steps = append(p.Steps, s)
	}
	return p
}

// given is what the command line says of the inputs: a file of them, or options
// that bear their names. What it leaves open has its default.
func given(main *process, words []string, dir string) shapes {
	known := make(shapes)
	for k, v := range main.Inputs {
		known[k] = v
	}
	options := make(map[string][]any)
	for i := 0; i < len(words); i++ {
		name, value, joined := strings.Cut(words[i], "=")
		option, ok := strings.CutPrefix(name, "--")
		switch {
		case !ok && strings.HasPrefix(name, "-"):
		case !ok:
			for k, v := range jobOrder(words[i], dir) {
				known[k] = shapeOf(v)
			}
		case joined:
			options[option] = append(options[option], value)
		case i+1 < len(words) && !strings.HasPrefix(words[i+1], "--"):
			i++
			options[option] = append(options[option], words[i])
		}
	}
	for k, v := range options {
		known[k] = shapeOf(v) // of one that is no array nobody asks
	}
	return known
}

// jobOrder reads a file of inputs, nil if it cannot be.
func jobOrder(name, dir string) (values map[string]any) {
	name = strings.TrimPrefix(name, "file://")
	if i := strings.LastIndexByte(name, '#'); i >= 0 {
		name = name[:i]
	}
	if !filepath.IsAbs(name) {
		name = filepath.Join(dir, name)
	}
	info, err := os.Stat(name)
	if err != nil || !info.Mode().IsRegular() || info.Size() > maxJobOrder {
		return nil
	}
	doc, err := os.ReadFile(name)
	if err != nil || yaml.Unmarshal(doc, &values) != nil { // of which JSON is a part
		return nil
	}
	return values
}

// shapeOf is what matters of a value.
func shapeOf(v any) *shape {
	all, ok := v.([]any)
	if !ok {
		return nil
	}
	s := &shape{n: len(all)}
	for i, e := range all {
		if inner := shapeOf(e); inner != nil {
			if s.elements == nil {
				s.elements = make([]*shape, len(all))
			}
			s.elements[i] = inner
		}
	}
	return s
}

func text(v any) string {
	s, _ := v.(string)
	return s
}

// list is a value that may be one or many.
func list(v any) []any {
	switch v := v.(type) {
	case nil:
		return nil
	case []any:
		return v
	}
	return []any{v}
}

// each is a list of objects with an id or, where CWL allows it, a map of them.
func each(v any) map[string]map[string]any {
	all := make(map[string]map[string]any)
	switch v := v.(type) {
	case []any:
		for i, e := range v {
			if m, ok := e.(map[string]any); ok {
				id := text(m["id"])
				if id == "" {
					id = fmt.Sprint(i)
				}
				all[id] = m
			}
		}
	case map[string]any:
		for id, e := range v {
			m, ok := e.(map[string]any)
			if !ok {
				m = map[string]any{"source": e}
			}
			all[id] = m
		}
	}
	return all
}

// shortName is the last part of an identifier.
func shortName(id string) string {
	if i := strings.IndexByte(id, '#'); i >= 0 {
		id = id[i+1:]
	}
	if s, err := url.PathUnescape(id); err == nil {
		id = s
	}
	return id[strings.LastIndexByte(id, '/')+1:]
}
