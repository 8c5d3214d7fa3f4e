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
