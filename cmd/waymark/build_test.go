package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// deploy/build has the commit put into the program where git works, and builds
// all the same where it does not, as go build alone would not. It is not parallel: a
// program that another test starts could hold the scripts open for writing.
func TestBuildStamps(t *testing.T) {
	for _, tt := range []struct{ name, git, want string }{
		{"git works", "exit 0", "-buildvcs=auto"},
		{"the folder is somebody else's", "echo 'fatal: detected dubious ownership' >&2; exit 128", "-buildvcs=false"},
		{"there is no commit", "[ $1 != log ]", "-buildvcs=false"},
		{"the folder cannot be compared with the commit", "[ $1 != status ]", "-buildvcs=false"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for path, text := range map[string]string{
				"deploy/build": readText(t, "../../deploy/build"), "path/git": "#!/bin/sh\n" + tt.git, "path/go": "#!/bin/sh\necho \"$@\"\n",
			} {
				path = filepath.Join(dir, path)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.CommandContext(t.Context(), filepath.Join(dir, "deploy/build"), "-tags", "faults")
			cmd.Dir, cmd.Env = "/", append(os.Environ(), "PATH="+filepath.Join(dir, "path")+":"+os.Getenv("PATH"))
			out, err := cmd.CombinedOutput()
			if want := "build " + tt.want + " -tags faults -o bin/waymark ./cmd/waymark"; err != nil || strings.TrimSpace(string(out)) != want {
				t.Errorf("go is called with %q, %v; want %q", out, err, want)
			}
			if _, err := os.Stat(filepath.Join(dir, "bin")); err != nil {
				t.Errorf("there is no folder to build into: %v", err)
			}
		})
	}
}
