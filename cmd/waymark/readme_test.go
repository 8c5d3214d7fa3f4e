package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"waymark/internal/servicetest"
)

// section is the part of the README below a heading.
func section(t *testing.T, heading string) string {
	t.Helper()
	_, text, ok := strings.Cut(readText(t, "../../README.md"), "\n"+heading+"\n")
	if !ok {
		t.Fatalf("README.md has no heading %q", heading)
	}
	text, _, _ = strings.Cut(text, "\n## ")
	return text
}

// blocks are the code blocks of a Markdown text in one language.
func blocks(text, language string) (all []string) {
	for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(text, -1) {
		all = append(all, m[1])
	}
	return all
}

// Whoever types what the README says has a program that publishes.
func TestPublishingFromGo(t *testing.T) {
	t.Parallel()
	text := section(t, "## Publishing from Go")
	shell, program := blocks(text, "sh"), blocks(text, "go")
	if len(shell) != 2 || len(program) != 1 {
		t.Fatalf("the section has %d blocks of shell and %d of Go, want two and one", len(shell), len(program))
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	beside := t.TempDir()
	if err := os.Symlink(root, filepath.Join(beside, "waymark")); err != nil {
		t.Fatal(err)
	}
	// The program uses the queues of everybody: it has a broker of its own.
	rabbit, database := servicetest.RabbitMQ(t), servicetest.Database(t)
	env := environment{"WAYMARK_BROKER_URL": rabbit.URL(), "WAYMARK_DATABASE_URL": database.URL, "WAYMARK_DATABASE_SCHEMA": database.Schema, "WAYMARK_HTTP_LISTEN": "127.0.0.1:0"}
	s := &site{environment: env}
	s.serve(t)

	cmd := exec.CommandContext(t.Context(), "sh", "-ec", shell[0]+"cat >main.go\n"+shell[1])
	cmd.Dir, cmd.Stdin = beside, strings.NewReader(program[0])
	// What this tree needs is here: nothing has to be fetched.
	cmd.Env = append(os.Environ(), "GOPROXY=off", "GOFLAGS=", "GOWORK=off", "WAYMARK_BROKER_URL="+rabbit.URL())
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "3 confirmed: waymark status ") {
		t.Fatalf("what the README says to type: %v\n%s", err, out)
	}
	if got := s.awaitStatus(t, "align", "finished"); got.Progress.Finished != 1 {
		t.Errorf("the run of the README is %+v, want one job finished", got)
	}
	if out, err := exec.CommandContext(t.Context(), "gofmt", "-d", filepath.Join(beside, "align")).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("gofmt of the README's program: %v\n%s", err, out)
	}
}

// Whoever types what the guide for adapters says has runs that are reported.
func TestAdaptersGuide(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(t)
	guide := readText(t, "../../docs/adapters.md")
	shell, script := blocks(guide, "sh"), blocks(guide, "python")
	loop := regexp.MustCompile("`(n=1; until .*; done)`").FindStringSubmatch(guide)
	if len(shell) != 3 || len(script) != 2 || loop == nil {
		t.Fatalf("the guide has %d blocks of shell, %d of Python, and the loop %q; want three, two and one", len(shell), len(script), loop)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	module, err := filepath.Abs("../../publisher/python")
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	for name, text := range map[string]string{
		"waymark":     "#!/bin/sh\n" + programVariable + "=1 exec " + self + " \"$@\"\n",
		"gen.sh":      "#!/bin/sh\necho generated\n",
		"fit.sh":      "#!/bin/sh\necho fitted\n",
		"flaky.sh":    "#!/bin/sh\ntest -e once || { touch once; exit 3; }\n",
		"analysis.sh": shell[0], "slurm.sh": shell[1], "weekly.sh": shell[2],
		"loop.sh":  "waymark publish progress --name loop\n" + strings.ReplaceAll(loop[1], "./fit.sh", "./flaky.sh") + "\nwaymark publish progress --status finished\n",
		"lines.py": script[0], "daily.py": script[1],
		"slurm-17.out": "out of memory\n",
	} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		run, typed      string
		finished, total int
	}{
		{"nightly", "waymark run script --name nightly -- ./analysis.sh", 2, 2},
		{"slurm", "waymark run script --name slurm -- sh -e slurm.sh", 1, 1},
		{"weekly", "sh -e weekly.sh", 2, 2},
		{"loop", "WAYMARK_WORKFLOW=$(cat /proc/sys/kernel/random/uuid); export WAYMARK_WORKFLOW; sh -e loop.sh", 1, 1},
		{"lines", "waymark run script --name lines -- /usr/bin/python3 lines.py", 1, 1},
		{"daily", "/usr/bin/python3 daily.py", 1, 1},
	} {
		cmd := exec.CommandContext(t.Context(), "sh", "-ec", test.typed)
		cmd.Dir = folder
		cmd.Env = []string{"PATH=" + folder + ":" + os.Getenv("PATH"), "HOME=" + folder, "PYTHONPATH=" + module, "PYTHONDONTWRITEBYTECODE=1"}
		for k, v := range s.environment {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: typing %q: %v\n%s", test.run, test.typed, err, out)
			continue
		}
		if got := s.awaitStatus(t, test.run, "finished"); got.Progress.Finished != test.finished || got.Progress.Total != test.total {
			t.Errorf("%s is %+v, want %d of %d jobs finished", test.run, got, test.finished, test.total)
		}
	}
}
