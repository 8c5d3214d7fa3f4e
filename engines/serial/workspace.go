package serial

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/google/uuid"
)

// hidden is the folder of Waymark's own files in a workspace.
const hidden = ".waymark"

// workspace is the folder that a run works in, locked for it.
type workspace struct {
	dir  string // absolute
	lock *os.File
	run  identity
}

// identity is what a workspace remembers of its run, in run.json.
type identity struct {
	WorkflowID uuid.UUID `json:"workflow_uuid"`
	// Attempt is that of the latest run in the workspace.
	Attempt int `json:"attempt"`
}

// openWorkspace makes the folder dir ready for one run, and refuses it to a
// second one at the same time. The lock goes with the process, however it ends.
func openWorkspace(dir string) (*workspace, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the workspace: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, hidden, "logs"), 0o755); err != nil {
		return nil, fmt.Errorf("making the workspace %s: %w", dir, err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, hidden, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("locking the workspace %s: %w", dir, err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer lock.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("locking the workspace %s: %w", dir, err)
		}
		owner, _ := io.ReadAll(io.LimitReader(lock, 32))
		return nil, fmt.Errorf("the workspace %s is in use by another run (process %s): wait for it, stop it, or choose another workspace", dir, bytes.TrimSpace(owner))
	}
	ws := &workspace{dir: dir, lock: lock}
	lock.Truncate(0) // who holds it is only for the message above
	fmt.Fprintln(lock, os.Getpid())
	if err := ws.readIdentity(); err != nil {
		ws.close()
		return nil, err
	}
	return ws, nil
}

func (ws *workspace) close() { ws.lock.Close() }

func (ws *workspace) path(elements ...string) string {
	return filepath.Join(append([]string{ws.dir, hidden}, elements...)...)
}

func (ws *workspace) readIdentity() error {
	data, err := os.ReadFile(ws.path("run.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(data, &ws.run)
	}
	if err != nil {
		return fmt.Errorf("reading which run the workspace %s belongs to: %w: remove %s to begin anew", ws.dir, err, ws.path("run.json"))
	}
	return nil
}

func (ws *workspace) writeIdentity(run identity) error {
	data, err := json.Marshal(run)
	if err != nil {
		return fmt.Errorf("encoding the identity of the run: %w", err)
	}
	if err := replaceFile(ws.path("run.json"), append(data, '\n')); err != nil {
		return fmt.Errorf("noting the run in its workspace: %w", err)
	}
	ws.run = run
	return nil
}

// replaceFile writes a file such that after any crash it is the old one or the
// new one.
func replaceFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // no longer there if all went well
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if closing := f.Close(); err == nil {
		err = closing
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// copyInputs brings the declared inputs of w from beside its file into the
// workspace. Where keep is set, what is there already stays: a resumed run may
// have changed it.
func (ws *workspace) copyInputs(ctx context.Context, w *Workflow, keep bool) error {
	base, err := filepath.Abs(filepath.Dir(w.Path))
	if err != nil {
		return fmt.Errorf("finding the inputs: %w", err)
	}
	if same, _ := sameFile(base, ws.dir); same {
		return nil // the workspace is where the inputs are
	}
	for _, name := range w.files {
		info, err := os.Stat(filepath.Join(base, name))
		if err == nil && info.IsDir() {
			err = errors.New("it is a directory: list it below inputs.directories")
		}
		if err == nil {
			err = ws.copyFile(ctx, filepath.Join(base, name), filepath.Join(ws.dir, name), keep)
		}
		if err != nil {
			return inputError("files", name, err)
		}
	}
	for _, name := range w.directories {
		info, err := os.Stat(filepath.Join(base, name))
		if err == nil && !info.IsDir() {
			err = errors.New("it is a file: list it below inputs.files")
		}
		if err == nil {
			err = ws.copyDir(ctx, filepath.Join(base, name), filepath.Join(ws.dir, name), keep)
		}
		if err != nil {
			return inputError("directories", name, err)
		}
	}
	return nil
}

func inputError(list, name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("inputs.%s names %q, which is not there: %w", list, name, err)
	}
	return fmt.Errorf("copying %q of inputs.%s to the workspace: %w", name, list, err)
}

func (ws *workspace) copyDir(ctx context.Context, from, to string, keep bool) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && path != from {
			// Neither the workspace itself, which may lie within, nor others.
			if same, _ := sameFile(path, ws.dir); same || entry.Name() == hidden {
				return filepath.SkipDir
			}
		}
		relative, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, relative)
		switch {
		case entry.IsDir():
			return os.MkdirAll(target, 0o755)
		case entry.Type()&fs.ModeSymlink != 0:
			// The file a link leads to is copied; a link to a directory, or to
			// nothing, stays a link.
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
				break
			}
			if keep {
				if _, err := os.Lstat(target); err == nil {
					return nil
				}
			}
			link, err := os.Readlink(path)
			if err != nil {
				return err
			}
			if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return os.Symlink(link, target)
		}
		return ws.copyFile(ctx, path, target, keep)
	})
}

// copyFile copies one regular file, following links. Its target is made anew,
// so that nothing is written through a link or into the source itself.
func (ws *workspace) copyFile(ctx context.Context, from, to string, keep bool) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() { // reading a pipe would wait for ever
		return fmt.Errorf("%s is neither a file nor a directory", from)
	}
	if same, there := sameFile(from, to); same || there && keep {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	target, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, info.Mode().Perm()|0o200)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, contextReader{ctx, source})
	if closing := target.Close(); err == nil {
		err = closing
	}
	return err
}

// sameFile reports whether two paths lead to one file, and whether the second
// leads anywhere.
func sameFile(a, b string) (same, there bool) {
	x, errA := os.Stat(a)
	y, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(x, y), errB == nil
}

// contextReader ends with the context, so that a large copy can be stopped.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := context.Cause(c.ctx); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// runsIn lists the runs whose workspaces lie in the default place, for the
// error of a resumption that does not say which.
func runsIn(dir string) string {
	entries, _ := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, filepath.Join(dir, e.Name()))
		}
	}
	if len(names) == 0 {
		return "there are none in " + dir
	}
	if len(names) > 5 {
		names = append(names[:5], "…")
	}
	return "for example " + strings.Join(names, ", ")
}
