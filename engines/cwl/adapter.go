// Package cwl watches CWL workflows: cwltool, the reference runner, and
// Toil's toil-cwl-runner.
//
// cwltool is heard through a handler of its logger "cwltool", which a
// sitecustomize.py on PYTHONPATH adds inside its process. So no text is parsed,
// and --quiet, --parallel, colours and jobs that write what cwltool would write
// change nothing. Where Python does not load it (python -I), what cwltool writes
// to its standard error is read instead, and the run says so: "mode" is "text".
//
// The total is known when the first step starts. The hook describes the
// workflow, and what it does not know yet (a scatter over what another step
// makes, a condition) is counted when it is known: a total never shrinks. Where
// the hook cannot tell, cwltool --pack is run beside the engine.
package cwl

import (
	"context"
	"embed"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"waymark/engines"
)

//go:embed *.py
var hook embed.FS

// Adapter watches cwltool. Given a command line of toil-cwl-runner it does what
// [Toil] does. The zero value is ready.
type Adapter struct{}

// Engine returns "cwl", as REANA calls it.
func (Adapter) Engine() string { return "cwl" }

// Prepare puts the hook on PYTHONPATH. It changes no argument. Of a command
// line that only prints something, such as --validate, nothing is reported.
func (Adapter) Prepare(_ context.Context, l *engines.Launch) (engines.Watch, error) {
	c := parse(l.Args, l.Getenv("CWLTOOL_OPTIONS"))
	switch {
	case c.toil:
		return prepareToil(l, c)
	case c.prints:
		return engines.Watch{}, nil
	}
	bare := slices.Clone(l.Env)
	if err := installHook(l); err != nil {
		return engines.Watch{}, err
	}
	reducer := newReducer(l.WorkflowID)
	watch := engines.Watch{Reducer: reducer, Stderr: true}
	if c.program >= 0 && c.plain && !c.part {
		asking := &asking{reducer: reducer, needed: make(chan struct{})}
		watch.Reducer = asking
		watch.Sources = []engines.Source{packing(c, l.Args, bare, l.Dir, asking.needed)}
	}
	return watch, nil
}

// installHook puts the hook on PYTHONPATH, unless it could not be found there.
func installHook(l *engines.Launch) error {
	folder := filepath.Join(l.Temp, "python")
	if strings.Contains(folder, ":") {
		l.Logger.Warn("the engine is watched without the hook: PYTHONPATH cannot have a folder with a colon", "folder", folder)
		return nil
	}
	if err := os.CopyFS(folder, hook); err != nil {
		return fmt.Errorf("writing the hook: %w", err)
	}
	l.PrependPath("PYTHONPATH", folder)
	l.Setenv("WAYMARK_SOCKET", l.Socket)
	return nil
}

// asking is a reducer that closes needed when jobs run and nobody has said how
// many there are going to be.
type asking struct {
	*reducer
	needed chan struct{}
	once   sync.Once
}

func (a *asking) Apply(e engines.Event, to engines.Story) bool {
	ok := a.reducer.Apply(e, to)
	if a.reducer.needsPlan() {
		a.once.Do(func() { close(a.needed) })
	}
	return ok
}

// Toil watches toil-cwl-runner, by the message bus of its leader and a hook in
// the workers on this machine. The zero value is ready.
type Toil struct{}

// Engine returns "toil".
func (Toil) Engine() string { return "toil" }

// Prepare puts the hook on PYTHONPATH, and adds --writeMessages to the command
// line, unless it is there. A command line that does not name toil-cwl-runner stays
// as it is, and is watched by the hook alone.
func (Toil) Prepare(_ context.Context, l *engines.Launch) (engines.Watch, error) {
	return prepareToil(l, parse(l.Args, ""))
}

func prepareToil(l *engines.Launch, c commandLine) (engines.Watch, error) {
	if c.prints {
		return engines.Watch{}, nil
	}
	if err := installHook(l); err != nil {
		return engines.Watch{}, err
	}
	watch := engines.Watch{Reducer: newReducer(l.WorkflowID)}
	if !c.toil { // in a script; the hook is where Toil is
		return watch, nil
	}
	const option = "--writeMessages"
	file := ""
	words := l.Args[c.program+1:]
	for i, w := range words {
		if w == option && i+1 < len(words) {
			file = words[i+1]
		} else if v, ok := strings.CutPrefix(w, option+"="); ok {
			file = v
		}
	}
	if file == "" {
		file = filepath.Join(l.Temp, "bus.txt")
		l.Args = slices.Insert(slices.Clone(l.Args), c.program+1, option, file)
	} else if !filepath.IsAbs(file) {
		file = filepath.Join(l.Dir, file)
	}
	watch.Sources = []engines.Source{follow(file)}
	return watch, nil
}
