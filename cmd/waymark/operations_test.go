package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"waymark/engines"
	"waymark/internal/servicetest"
)

const (
	operations = "../../docs/operations.md"
	alerts     = "../../deploy/alerts"
)

func readText(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// metricTable is what the manual should say of the metrics: as many rows as
// /metrics has of ours.
func metricTable(t *testing.T, exposition string) string {
	t.Helper()
	labels := map[string][]string{}
	for line := range strings.Lines(exposition) {
		m := regexp.MustCompile(`^(waymark_[a-z_]+?)(?:_bucket|_sum|_count)?(?:\{(.*)\})? \S+\n$`).FindStringSubmatch(line)
		if m == nil {
			continue
		}
		for _, l := range regexp.MustCompile(`([a-z_]+)="`).FindAllStringSubmatch(m[2], -1) {
			if l[1] != "le" && !slices.Contains(labels[m[1]], l[1]) {
				labels[m[1]] = append(labels[m[1]], l[1])
			}
		}
	}
	kinds := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (waymark_\S+) (\S+)$`).FindAllStringSubmatch(exposition, -1) {
		kinds[m[1]] = m[2]
	}
	var rows []string
	for _, m := range regexp.MustCompile(`(?m)^# HELP (waymark_\S+) (.+)$`).FindAllStringSubmatch(exposition, -1) {
		name := "`" + m[1] + "`"
		slices.Sort(labels[m[1]])
		rows = append(rows, fmt.Sprintf("| %s | %s | %s | %s |", name, kinds[m[1]], strings.Join(labels[m[1]], ", "), m[2]))
	}
	slices.Sort(rows)
	return "| metric | type | labels | what it tells |\n| --- | --- | --- | --- |\n" + strings.Join(rows, "\n") + "\n"
}

// The manual lists every metric that /metrics has, and no other.
func TestMetricsAreDocumented(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.environment["WAYMARK_PUBLISHER_SPOOL_DIR"] = t.TempDir()
	url := s.serve(t).url(t)
	_, exposition := httpGet(t, url+"/metrics")
	want := metricTable(t, exposition)
	_, rest, _ := strings.Cut(readText(t, operations), "<!-- metrics: compared with what /metrics says -->\n")
	got, _, ok := strings.Cut(rest, "<!-- /metrics -->")
	if !ok {
		t.Fatalf("%s has no table of metrics between its marks", operations)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s differs from what /metrics has (-want +got):\n%s\nThe table should be:\n%s", operations, diff, want)
	}
	for _, name := range regexp.MustCompile(`(?m)^# TYPE (waymark_\S+ counter)$`).FindAllStringSubmatch(exposition, -1) {
		if !strings.Contains(name[1], "_total ") {
			t.Errorf("the counter %s does not end in _total", name[1])
		}
	}
	servicetest.Eventually(t, patience, "the broker is asked for the length of the queues", func() error {
		for line := range strings.Lines(exposition) {
			if strings.HasPrefix(line, "waymark_queue_") && strings.HasSuffix(line, " NaN\n") {
				_, exposition = httpGet(t, url+"/metrics")
				return fmt.Errorf("%s", line)
			}
		}
		return nil
	})
}

// What the manual has Prometheus read is a configuration of it, beside the rules.
func TestScrapeConfig(t *testing.T) {
	t.Parallel()
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Fatalf("%v: deploy/install-deps --promtool installs it", err)
	}
	_, config, _ := strings.Cut(readText(t, operations), "```yaml\n# prometheus.yml\n")
	config, _, ok := strings.Cut(config, "```")
	if !ok {
		t.Fatalf("%s has no prometheus.yml", operations)
	}
	dir := t.TempDir()
	for name, text := range map[string]string{"prometheus.yml": config, "waymark.rules.yaml": readText(t, filepath.Join(alerts, "waymark.rules.yaml"))} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.CommandContext(t.Context(), promtool, "check", "config", filepath.Join(dir, "prometheus.yml")).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "1 rule files found") {
		t.Errorf("promtool check config: %v\n%s", err, out)
	}
}

type rule struct {
	Alert       string
	Expr        string
	For         string
	Labels      map[string]string
	Annotations map[string]string
}

// Each alert says what is wrong and what to do, of metrics that there are, and
// has a test; promtool accepts the rules and runs the tests.
func TestAlerts(t *testing.T) {
	t.Parallel()
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Fatalf("%v: deploy/install-deps --promtool installs it", err)
	}
	for _, args := range [][]string{{"check", "rules", "waymark.rules.yaml"}, {"test", "rules", "waymark.test.yaml"}} {
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Dir = alerts
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}

	var file struct{ Groups []struct{ Rules []rule } }
	if err := yaml.Unmarshal([]byte(readText(t, filepath.Join(alerts, "waymark.rules.yaml"))), &file); err != nil {
		t.Fatal(err)
	}
	manual, tests := readText(t, operations), readText(t, filepath.Join(alerts, "waymark.test.yaml"))
	count := 0
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			count++
			for _, what := range []string{"summary", "description", "runbook_url"} {
				if r.Annotations[what] == "" {
					t.Errorf("%s has no %s", r.Alert, what)
				}
			}
			if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) || r.For == "" {
				t.Errorf("%s has severity %q and for %q", r.Alert, r.Labels["severity"], r.For)
			}
			page, anchor, _ := strings.Cut(r.Annotations["runbook_url"], "#")
			if page != "https://waymark.example/docs/operations.md" || !slices.Contains(anchors(manual), anchor) {
				t.Errorf("the runbook of %s is %q, want a heading of docs/operations.md at https://waymark.example", r.Alert, r.Annotations["runbook_url"])
			}
			if !strings.Contains(tests, fmt.Sprintf(`'ALERTS{alertname=%q,alertstate="firing"}'`, r.Alert)) {
				t.Errorf("waymark.test.yaml never makes %s fire", r.Alert)
			}
			for _, metric := range regexp.MustCompile(`waymark_[a-z_]+`).FindAllString(r.Expr, -1) {
				if !strings.Contains(manual, "| `"+metric+"` |") {
					t.Errorf("%s asks for %s, which the manual does not know", r.Alert, metric)
				}
			}
		}
	}
	if count == 0 {
		t.Error("there are no alerts")
	}
	// What the manual links to within itself is there.
	for _, link := range regexp.MustCompile(`\]\(#([^)]+)\)`).FindAllStringSubmatch(manual, -1) {
		if !slices.Contains(anchors(manual), link[1]) {
			t.Errorf("docs/operations.md links to #%s, which is not there", link[1])
		}
	}
}

// anchors are those of the headings of a Markdown text.
func anchors(text string) (all []string) {
	for _, m := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(text, -1) {
		words := regexp.MustCompile(`[^a-z0-9 -]`).ReplaceAllString(strings.ToLower(m[1]), "")
		all = append(all, strings.ReplaceAll(words, " ", "-"))
	}
	return all
}

// Every setting that bounds something is in the table of limits.
func TestLimitsAreDocumented(t *testing.T) {
	t.Parallel()
	_, limits, _ := strings.Cut(readText(t, operations), "## Limits")
	limits, _, _ = strings.Cut(limits, "\n## ")
	for _, s := range settings {
		_, name, _ := strings.Cut(s.key, ".")
		if bounds := strings.HasPrefix(name, "max_") || strings.Contains(name, "_max_"); bounds && !strings.Contains(limits, "`"+s.key+"`") {
			t.Errorf("docs/operations.md does not name the limit %s", s.key)
		}
	}
	for _, row := range []string{
		fmt.Sprintf("| log of one job, as `waymark run` tells it | %d KiB;", engines.TailSize>>10),
		fmt.Sprintf("| lines of `logs --tail` | %d 000 |", maxTail/1000),
	} {
		if !strings.Contains(limits, row) {
			t.Errorf("docs/operations.md has no limit %q", row)
		}
	}
	if tail := fmt.Sprintf("Of what it wrote the last %d KiB go\nto the database", engines.TailSize>>10); !strings.Contains(readText(t, "../../README.md"), tail) {
		t.Errorf("README.md does not say %q", tail)
	}
}
