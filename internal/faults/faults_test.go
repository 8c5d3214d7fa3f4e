//go:build linux

package faults

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"waymark/internal/servicetest"
)

var (
	all     = flag.Bool("all", false, "run every scenario, not only the few that tell most")
	report  = flag.String("report", "", "write the table of all results to this `file`")
	lasting = flag.Duration("chaos", 0, "run load and random faults for so long, instead of the scenarios")
	seed    = flag.Uint64("seed", uint64(time.Now().UnixNano())%1_000_000, "of the chance in -chaos")
	only    = flag.String("only", "", "run only the scenarios whose names match this `pattern`")
)

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if built.dir != "" {
		if err := os.RemoveAll(built.dir); err != nil {
			fmt.Fprintln(os.Stderr, "removing what was built:", err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// result is a row of the report.
type result struct {
	scenario
	ledger
	published, lost, doubled int
	recovered                time.Duration
	failed                   bool
}

// TestFaults runs the scenarios. Those that hit a server run one after the
// other, the others a few at a time on the same servers.
func TestFaults(t *testing.T) {
	chosen := scenarios()
	names := make(map[string]bool)
	for _, s := range chosen {
		if names[s.name()] {
			t.Errorf("two scenarios are called %q", s.name())
		}
		names[s.name()] = true
	}
	left := ""
	if *all && !canMount() {
		left = "Left out, because no small disk can be mounted here: database, disk full; engine, disk of the spool full."
		chosen = slices.DeleteFunc(chosen, func(s scenario) bool { return strings.Contains(s.what, "disk") && strings.HasSuffix(s.what, "full") })
	}
	if *lasting > 0 {
		chosen = slices.DeleteFunc(chosen, func(s scenario) bool { return s.what != "chaos" })
	} else if *only != "" {
		pattern, err := regexp.Compile(*only)
		if err != nil {
			t.Fatalf("-only: %v", err)
		}
		chosen = slices.DeleteFunc(chosen, func(s scenario) bool { return !pattern.MatchString(s.name()) })
	} else if !*all {
		chosen = slices.DeleteFunc(chosen, func(s scenario) bool { return !s.quick })
	}
	if len(chosen) == 0 {
		t.Fatal("no scenario is chosen")
	}

	begun := time.Now()
	s := &suite{t: t, trace: newTrace(), Stack: servicetest.Stack(t)}
	t.Run("nothing fails", func(t *testing.T) { s.baseline(t) })
	if slices.ContainsFunc(chosen, scenario.wide) {
		s.wide.trace = newWideTrace()
		t.Run("nothing fails, many runs", func(t *testing.T) { s.wideBaseline(t) })
	}
	if t.Failed() {
		t.Fatal("without its result nothing can be compared")
	}
	for _, server := range []bool{false, true} {
		t.Run(map[bool]string{false: "sites", true: "servers"}[server], func(t *testing.T) {
			for _, one := range chosen {
				if one.server != server {
					continue
				}
				t.Run(one.name(), func(t *testing.T) {
					if !server {
						t.Parallel()
					}
					s.try(t, one)
				})
			}
		})
	}
	table := s.table()
	t.Logf("%d scenarios in %.0f s\n%s%s", s.tried(), time.Since(begun).Seconds(), table, left)
	if *report != "" {
		if err := s.write(*report, table, left, time.Since(begun)); err != nil {
			t.Error(err)
		}
	}
}

// try runs one scenario and notes its result, also if it fails.
func (s *suite) try(t *testing.T, one scenario) {
	servers := s
	if one.secure() {
		var err error
		if servers, err = s.secure(s.t); err != nil {
			t.Fatal(err)
		}
	}
	w := newSite(t, servers)
	if one.wide() {
		w.widen()
	}
	r := result{failed: true}
	defer func() {
		r.scenario, r.failed = one, r.failed || t.Failed()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.results = append(s.results, r)
	}()
	one.run(w)
	if one.settle == nil {
		one.settle = (*site).settle
	}
	r = one.settle(w)
}

// baseline applies the trace without faults, and checks that it gives what was
// published, by other means than all else is checked.
func (s *suite) baseline(t *testing.T) {
	w := newSite(t, s)
	w.backlog()
	s.want = w.first("nothing fails", (*site).settle, map[string]int{
		"SELECT count(*) FROM workflow_status":                                                                              runs + reanaRuns,
		"SELECT count(*) FROM workflow_status WHERE status = 'finished'":                                                    runs - 1 + reanaRuns,
		"SELECT count(*) FROM workflow_status WHERE status = 'deleted'":                                                     1,
		"SELECT count(*) FROM workflow_status WHERE attempt = 2":                                                            1,
		"SELECT count(*) FROM job_status":                                                                                   (runs + reanaRuns) * jobs,
		"SELECT count(*) FROM job_status WHERE status <> 'finished'":                                                        0,
		"SELECT sum(jobs_finished)::bigint FROM workflow_status":                                                            (runs + reanaRuns) * jobs,
		"SELECT count(*) FROM job_status WHERE attempt = 2 AND exit_code IS NULL":                                           runs * (jobs / 5),
		"SELECT count(*) FROM workflow_logs WHERE body LIKE 'line %'":                                                       strings.Count(s.trace.text(), `"logs":"line `),
		"SELECT count(*) FROM workflow_logs WHERE body = E'still alive\\n'":                                                 2 * reanaRuns,
		"SELECT count(*) FROM (SELECT FROM workflow_logs WHERE body LIKE 'line %' GROUP BY body HAVING count(*) > 1) twice": 0,
	})
}

// first has a trace applied by one consumer, and returns what the views show of
// it. That is compared with the answers to queries, and with itself.
func (w *site) first(what string, settle func(*site) result, counts map[string]int) rows {
	w.Helper()
	w.mended = time.Now()
	w.serve()
	servicetest.Eventually(w, patience, "the whole trace is received", w.received)
	var err error
	if w.want, err = w.read(); err != nil {
		w.Fatal(err)
	}
	r := settle(w)
	for query, want := range counts {
		for _, view := range []string{"workflow_status", "job_status", "workflow_logs"} {
			query = strings.ReplaceAll(query, "FROM "+view, "FROM "+w.schema+"."+view)
		}
		if got, err := w.number(query); err != nil || got != want {
			w.Errorf("%s: %d (%v), want %d", query, got, err, want)
		}
	}
	if r.duplicate == 0 || r.stale == 0 || r.dead != len(w.trace.dead) || r.applied+r.stale != w.trace.valid {
		w.Errorf("ledger: %+v; want some duplicate and stale, %d dead, and %d applied or stale", r.ledger, len(w.trace.dead), w.trace.valid)
	}
	r.scenario = scenario{who: nobody, what: what, when: "never"}
	r.failed = w.Failed()
	w.results = append(w.results, r)
	return w.want
}

// nobody is who does something where nothing fails.
const nobody = "nobody"

// text is every distinct body, one after the other.
func (t *trace) text() string {
	var b strings.Builder
	seen := make(map[string]bool)
	for _, m := range t.messages {
		if !m.dead && (m.id == "" || !seen[m.id]) {
			b.Write(m.body)
			seen[m.id] = true
		}
	}
	return b.String()
}

// table is the results in Markdown, in the order of the scenarios.
func (s *suite) table() string {
	order := make(map[string]int)
	for i, one := range scenarios() {
		order[one.name()] = i + 1
	}
	slices.SortStableFunc(s.results, func(a, b result) int { return order[a.name()] - order[b.name()] })
	var b strings.Builder
	b.WriteString("| | who | what | when | published | applied | duplicate | stale | dead | lost | doubled | seconds |\n| --: | --- | --- | --- | --: | --: | --: | --: | --: | --: | --: | --: |\n")
	var n, lost, doubled int
	for _, r := range s.results {
		if r.who != nobody {
			n++
		}
		verdict := ""
		if r.failed {
			verdict = " **failed**"
		}
		fmt.Fprintf(&b, "| %d | %s | %s | %s%s | %d | %d | %d | %d | %d | %d | %d | %.1f |\n",
			n, r.who, r.what, r.when, verdict, r.published, r.applied, r.duplicate, r.stale, r.dead, r.lost, r.doubled, r.recovered.Seconds())
		lost, doubled = lost+r.lost, doubled+r.doubled
	}
	fmt.Fprintf(&b, "| | all | | | | | | | | %d | %d | |\n", lost, doubled)
	return b.String()
}

// tried is how many scenarios have a result.
func (s *suite) tried() (n int) {
	for _, r := range s.results {
		if r.who != nobody {
			n++
		}
	}
	return n
}

// write writes the report: the words that stay, and the table.
func (s *suite) write(file, table, left string, took time.Duration) error {
	const mark = "<!-- table: written by deploy/faults -->\n"
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	head, _, found := strings.Cut(string(text), mark)
	if !found {
		return fmt.Errorf("%s has no line %q to put the table after", file, strings.TrimSpace(mark))
	}
	where := strings.Join(s.Notes(), "; ")
	where = regexp.MustCompile(` on port \d+, private, up in [\d.]+ s`).ReplaceAllString(where, "")
	body := fmt.Sprintf("%s%s\n%d scenarios in %.0f s, on %s, fsync on.\n\n%s", head, mark, s.tried(), took.Seconds(), where, table)
	if left != "" {
		body += "\n" + left + "\n"
	}
	return os.WriteFile(file, []byte(body), 0o644)
}
