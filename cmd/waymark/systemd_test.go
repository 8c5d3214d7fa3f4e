package main

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"waymark/internal/servicetest"
)

const unitFile = "../../deploy/systemd/waymark.service"

// unitSettings are the lines of a unit file, by key. A comment begins a line.
func unitSettings(text string) map[string][]string {
	settings := make(map[string][]string)
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if ok && !strings.HasPrefix(key, "#") {
			settings[key] = append(settings[key], value)
		}
	}
	return settings
}

// What the unit starts is a serve that works: with the flags, the variables and
// the credentials that it names, and the file that the manual shows.
func TestUnitServes(t *testing.T) {
	t.Parallel()
	unit := unitSettings(readText(t, unitFile))
	words := strings.Fields(unit["ExecStart"][0])
	if len(unit["ExecStart"]) != 1 || words[0] != "/usr/local/bin/waymark" {
		t.Fatalf("the unit starts %q, want one waymark where the manual installs it", unit["ExecStart"])
	}
	_, manual, _ := strings.Cut(readText(t, operations), "## As a service")
	manual, _, _ = strings.Cut(manual, "\n## ")
	site := newSite(t)
	site.run(t, "migrate").want(t, exitOK)

	// The file of the manual, with the servers of this test in it.
	_, shown, _ := strings.Cut(manual, "```yaml\n")
	shown, _, _ = strings.Cut(shown, "```")
	credentials := t.TempDir()
	for _, line := range unit["LoadCredential"] {
		name, source, _ := strings.Cut(line, ":")
		if !strings.HasPrefix(source, "/etc/waymark/") || !strings.Contains(manual, filepath.Base(source)) {
			t.Errorf("the manual does not say what to put into %s", source)
		}
		server := strings.ToUpper(name)
		u, err := url.Parse(site.environment["WAYMARK_"+server+"_URL"])
		if err != nil || u.User == nil {
			t.Fatalf("the credential %s is of no server", name)
		}
		password, _ := u.User.Password()
		if err := os.WriteFile(filepath.Join(credentials, name), []byte(password+"\n"), 0o400); err != nil {
			t.Fatal(err)
		}
		u.User = url.User(u.User.Username())
		old, ok := valueOf(shown, map[string]string{"BROKER": "amqps://", "DATABASE": "postgres://"}[server])
		if !ok {
			t.Fatalf("the manual's waymark.yaml has no URL for %s:\n%s", name, shown)
		}
		shown = strings.Replace(shown, old, strconv.Quote(u.String()), 1)
		delete(site.environment, "WAYMARK_"+server+"_URL")
	}
	config := writeFile(t, "waymark.yaml", shown)
	for _, line := range unit["Environment"] {
		for word := range strings.FieldsSeq(line) {
			name, value, _ := strings.Cut(word, "=")
			if name != "GOTRACEBACK" && !slices.ContainsFunc(settings, func(s setting) bool { return s.env() == name }) {
				t.Errorf("the unit sets %s, which is no setting", name)
			}
			site.environment[name] = strings.Replace(value, "%d", credentials, 1)
		}
	}
	for i, word := range words {
		words[i] = strings.Replace(word, "/etc/waymark/waymark.yaml", config, 1)
	}
	p := site.start(t, words[1:]...)
	url := p.url(t)
	servicetest.Eventually(t, patience, "the service is ready", func() error {
		if code, body := httpGet(t, url+"/readyz"); code != http.StatusOK {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	p.stop(t, exitOK)
	if log := p.stderr.String(); strings.Contains(log, "everybody") {
		t.Errorf("the service warns:\n%s", log)
	}
}

// valueOf is the word of text that begins so.
func valueOf(text, beginning string) (string, bool) {
	_, rest, ok := strings.Cut(text, beginning)
	word, _, _ := strings.Cut(rest, "\n")
	return beginning + word, ok
}

// systemd waits for the drain, and does not start again what was typed wrongly.
func TestUnitFitsServe(t *testing.T) {
	unit := unitSettings(readText(t, unitFile))
	stop, err := strconv.Atoi(strings.Join(unit["TimeoutStopSec"], ""))
	drain, _ := parseDuration(find("consumer.drain_timeout").preset)
	if err != nil || time.Duration(stop)*time.Second < 2*drain {
		t.Errorf("TimeoutStopSec is %q, want seconds, and twice the drain of %s", unit["TimeoutStopSec"], drain)
	}
	if got := unit["RestartPreventExitStatus"]; !slices.Equal(got, []string{strconv.Itoa(exitUsage)}) {
		t.Errorf("RestartPreventExitStatus is %q, want %d: a wrong configuration", got, exitUsage)
	}
	// Go's own end by a panic is 2, too, but for this.
	if !slices.Contains(unit["Environment"], "GOTRACEBACK=crash") || !slices.Equal(unit["LimitCORE"], []string{"0"}) {
		t.Errorf("Environment is %q and LimitCORE %q: want GOTRACEBACK=crash, so that a panic is restarted, and no core", unit["Environment"], unit["LimitCORE"])
	}
}
