package snakemake

import (
	"context"
	"embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"

	"waymark/engines"
)

// Engine is the name of the engine in messages.
const Engine = "snakemake"

//go:embed hook/*.py
var hook embed.FS

// Adapter watches Snakemake; see the package. The zero value is ready to use.
type Adapter struct{}

// Engine returns "snakemake".
func (Adapter) Engine() string { return Engine }

// Prepare has the engine load the hook. A command line that runs no job, such as
// a dry run, is not watched.
func (Adapter) Prepare(_ context.Context, l *engines.Launch) (engines.Watch, error) {
	if runsNothing(l.Args) {
		return engines.Watch{}, nil
	}
	folder := filepath.Join(l.Temp, "snakemake")
	if err := writeHook(folder); err != nil {
		return engines.Watch{}, err
	}
	if strings.Contains(folder, string(os.PathListSeparator)) {
		l.Logger.Warn("Python takes no module from the folder of temporary files; reading standard error instead", "folder", l.Temp)
	} else {
		l.PrependPath("PYTHONPATH", folder)
		l.Setenv("WAYMARK_SOCKET", l.Socket)
		l.Setenv("WAYMARK_BASE", base(l))
	}
	return engines.Watch{Reducer: newReducer(l.WorkflowID), Stderr: true}, nil
}

// base is the folder from which the hook's workflows are seen: none for a single
// Snakemake.
func base(l *engines.Launch) string {
	if _, single := snakemakeWords(l.Args); single {
		return ""
	}
	if resolved, err := filepath.EvalSymlinks(l.Dir); err == nil {
		return resolved // as Snakemake says it
	}
	return l.Dir
}

// NewReducer returns a Reducer for one run, for recordings.
func NewReducer(workflowID uuid.UUID) engines.Reducer { return newReducer(workflowID) }

func writeHook(folder string) error {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return fmt.Errorf("making the hook's folder: %w", err)
	}
	files, err := hook.ReadDir("hook")
	if err != nil {
		return fmt.Errorf("reading the hook: %w", err)
	}
	for _, f := range files {
		text, err := hook.ReadFile("hook/" + f.Name())
		if err == nil {
			err = os.WriteFile(filepath.Join(folder, f.Name()), text, 0o600)
		}
		if err != nil {
			return fmt.Errorf("writing the hook: %w", err)
		}
	}
	return nil
}
