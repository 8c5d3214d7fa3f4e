package yadage

import (
	"context"
	"embed"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"

	"waymark/engines"
)

// Engine is the name of the engine in messages.
const Engine = "yadage"

//go:embed python/sitecustomize.py python/waymark_yadage.py
var python embed.FS

// Adapter implements [engines.Adapter]. The zero value is ready.
type Adapter struct{}

// Engine is the name of the engine in messages.
func (Adapter) Engine() string { return Engine }

// Prepare puts the tracker on the path of Python. A tracker that the user has
// set stays in place, beside ours.
func (Adapter) Prepare(_ context.Context, l *engines.Launch) (engines.Watch, error) {
	if runsNothing(l.Args) {
		return engines.Watch{}, nil
	}
	folder := filepath.Join(l.Temp, "yadage")
	if err := os.Mkdir(folder, 0o700); err != nil {
		return engines.Watch{}, fmt.Errorf("making a folder for the tracker: %w", err)
	}
	for _, name := range []string{"sitecustomize.py", "waymark_yadage.py"} {
		content, err := python.ReadFile("python/" + name)
		if err != nil {
			return engines.Watch{}, fmt.Errorf("reading the tracker: %w", err)
		}
		if err := os.WriteFile(filepath.Join(folder, name), content, 0o600); err != nil {
			return engines.Watch{}, fmt.Errorf("writing the tracker: %w", err)
		}
	}
	l.PrependPath("PYTHONPATH", folder)
	l.Setenv("WAYMARK_SOCKET", l.Socket)
	return engines.Watch{Reducer: NewReducer(l.WorkflowID), Stderr: true}, nil
}

// runsNothing tells command lines that run no workflow.
func runsNothing(args []string) bool {
	for _, a := range args {
		if slices.Contains([]string{"yadage-validate", "yadage-util", "yadage-manual"}, filepath.Base(a)) {
			return true
		}
	}
	return slices.ContainsFunc(args[1:], func(a string) bool { return a == "--help" || strings.HasPrefix(a, "--version") })
}

// NewReducer returns the reducer of a run, for events of the tracker (source
// [engines.Hook]) and lines of standard error.
func NewReducer(workflowID uuid.UUID) engines.Reducer { return newReducer(workflowID) }
