package bench

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"waymark/publisher"
)

// ReportLoad scales a Report.
type ReportLoad struct {
	// Messages of a run.
	Messages int
	// Runs of each case.
	Runs int
	// Duration of a run that measures latency.
	Duration time.Duration
	// Workflows in the full tables, of 20 jobs each.
	Workflows int
	// Serve measures a "waymark serve" process as well.
	Serve bool
}

// validate returns a *LoadError if l cannot be measured: before the first
// benchmark, and not minutes later by the one that it is for.
func (l ReportLoad) validate() error {
	return cmp.Or(
		within("messages", l.Messages, 1, mostMessages/(longer+1)),
		within("runs", l.Runs, 1, mostRuns),
		l.latency(100, 50_000).validate(), // the latter more than half of the rate
		l.read().validate(),
	)
}

func (l ReportLoad) latency(rates ...float64) LatencyLoad {
	return LatencyLoad{Rates: rates, Duration: l.Duration, Runs: l.Runs, Jobs: 20, Workflows: 1000}
}

func (l ReportLoad) read() ReadLoad {
	return ReadLoad{Workflows: l.Workflows, Jobs: 20, Queries: 100, Runs: l.Runs, Rate: 1000, Messages: l.Messages}
}

// longer is how many times as many messages, and a half, several consumers are
// measured with: they come later to their stride than one, as each connects,
// fills its prefetch and prepares its statements.
const longer = 7

// Report is every benchmark, and what the goals were.
type Report struct {
	Goals   []Goal    `json:"goals"`
	Results []*Result `json:"results"`
}

// Goal is what Waymark promises, and what was measured of it.
type Goal struct {
	// Group puts goals together, such as "End to end".
	Group string `json:"group"`
	// Name says what was measured.
	Name string `json:"name"`
	// Limit is the least, or with AtMost the greatest, value that meets it.
	Limit  float64 `json:"limit"`
	AtMost bool    `json:"at_most"`
	Unit   string  `json:"unit"`
	// Measured is the median, nil if it was not measured. Min and Max are of
	// the single runs.
	Measured *float64 `json:"measured"`
	Min      *float64 `json:"min"`
	Max      *float64 `json:"max"`
	// How it was measured, in a few words.
	How string `json:"how"`
}

// Met reports whether the median meets the goal.
func (g *Goal) Met() bool {
	return g.Measured != nil && (g.AtMost && *g.Measured <= g.Limit || !g.AtMost && *g.Measured >= g.Limit)
}

// Ratio is the median as a part of the limit; 0 if it was not measured.
func (g *Goal) Ratio() float64 {
	if g.Measured == nil || g.Limit == 0 {
		return 0
	}
	return *g.Measured / g.Limit
}

// originalRate is what REANA's own consumer does on two cores when nothing else
// runs there: 141 to 155 messages a second, with its calls of Kubernetes taken
// out, which cost it more. It is not measured here: it is not our program.
const originalRate = 155

const (
	largeBody = 400 // bytes
	smallBody = 208 // bytes: what REANA's engines send on average
)

// Report runs every benchmark. Bodies have REANA's encoding where the consumer
// reads them, as that is the costlier one.
func (b *Bench) Report(ctx context.Context, l ReportLoad) (*Report, error) {
	load := Load{Messages: l.Messages, WarmUp: l.Messages / 10, Runs: l.Runs, Size: largeBody, Jobs: 20, Workflows: 1000}
	if err := cmp.Or(l.validate(), b.moreThanABatch(load)); err != nil {
		return nil, err
	}
	report := &Report{}
	reana := *b
	reana.cfg.Encoding = publisher.EncodingReana
	run := func(r *Result, err error) (*Result, error) {
		if err == nil {
			report.Results = append(report.Results, r)
		}
		return r, err
	}

	publish, err := run(b.Publish(ctx, load))
	if err != nil {
		return nil, err
	}
	if _, err := run(reana.Drain(ctx, load)); err != nil {
		return nil, err
	}
	if _, err = run(b.Apply(ctx, load, []int{1, 100, 500, 2000})); err != nil {
		return nil, err
	}
	long := load
	long.Messages, long.WarmUp = longer*load.Messages+load.Messages/2, 4*load.WarmUp
	large, err := run(reana.EndToEnd(ctx, long, []int{1, 2, 4}, false))
	if err != nil {
		return nil, err
	}
	small := load
	small.Size = smallBody
	if _, err := run(reana.EndToEnd(ctx, small, []int{1}, false)); err != nil {
		return nil, err
	}
	serve := &Result{}
	if l.Serve {
		if serve, err = run(reana.EndToEnd(ctx, load, nil, true)); err != nil {
			return nil, err
		}
	}
	half := float64(int(large.Case(CaseConsumers(1)).Metric("rate").Median / 2))
	rates := []float64{100, 1000}
	if !slices.Contains(rates, half) {
		rates = append(rates, half)
	}
	latency, err := run(b.Latency(ctx, l.latency(rates...)))
	if err != nil {
		return nil, err
	}
	wide, err := run(b.Wide(ctx, load, []int{20, 1000, 100_000}))
	if err != nil {
		return nil, err
	}
	read, err := run(b.Read(ctx, l.read()))
	if err != nil {
		return nil, err
	}

	goal := func(group, name string, m *Metric, scale float64, limit float64, atMost bool, unit, how string) {
		g := Goal{Group: group, Name: name, Limit: limit, AtMost: atMost, Unit: unit, How: how}
		if m != nil {
			median, least, greatest := m.Median*scale, m.Min*scale, m.Max*scale
			g.Measured, g.Min, g.Max = &median, &least, &greatest
		}
		report.Goals = append(report.Goals, g)
	}
	atLeast := func(group, name string, m *Metric, limit float64, unit, how string) {
		goal(group, name, m, 1, limit, false, unit, how)
	}
	atMost := func(group, name string, m *Metric, limit float64, unit, how string) {
		goal(group, name, m, 1, limit, true, unit, how)
	}

	one := large.Case(CaseConsumers(1))
	atLeast("End to end", "rate", one.Metric("rate"), 12_000, "msg/s", "prefilled durable queue → committed rows; 400-byte bodies, 20 jobs a workflow, 1000 workflows alternating, each message validated")
	atLeast("End to end", "rate, of the raw drain", one.Metric("of the raw drain"), 0.5, "", "the same messages from the same kind of queue in the same run, taken and acknowledged only")
	goal("End to end", "rate, of REANA's consumer", one.Metric("rate"), 1.0/originalRate, 100, false, "×", fmt.Sprintf("over its %d msg/s on two quiet cores, which were measured apart from this", originalRate))
	atMost("End to end", "WAL", one.Metric("wal"), 400, "B/msg", "position of the write-ahead log before and after; the whole server's")
	atMost("End to end", "commits", one.Metric("commits"), 0.01, "/msg", "transactions that applied batches")
	atLeast("Several consumers", "rate of 2, of 1", large.Case(CaseConsumers(2)).Metric("of "+CaseConsumers(1)), 1, "", "on one queue, in one process")
	atLeast("Several consumers", "rate of 4, of 1", large.Case(CaseConsumers(4)).Metric("of "+CaseConsumers(1)), 1, "", "on one queue, in one process")
	w := wide.Case(CaseJobs(100_000))
	atMost("Flat", "cost at 100,000 jobs, of 20", w.Metric("cost of "+CaseJobs(20)), 1.5, "", "the store alone; the last messages of the large workflow")
	atMost("Flat", "cost in full tables, of empty", read.Case(CaseFullTables).Metric("cost of empty tables"), 1.5, "",
		fmt.Sprintf("the store alone; %s workflows, %s jobs there", Number(float64(l.Workflows)), Number(float64(20*l.Workflows))))
	atMost("Latency", "p50 at 1,000 msg/s", latency.Case(CaseRate(1000)).Metric("p50"), 10, "ms", "due to be published → row read by another connection, open loop")
	atMost("Latency", "p99 at 1,000 msg/s", latency.Case(CaseRate(1000)).Metric("p99"), 50, "ms", "the same")
	atMost("Latency", "p99 at half of the rate", latency.Case(CaseRate(half)).Metric("p99"), 150, "ms", "the same, at "+CaseRate(half)+"; generator and publisher use the same CPUs")
	ours := publish.Case(CasePublisher)
	atLeast("Publisher", "rate, of a bare loop", ours.Metric("of the bare loop"), 0.9, "", "confirmed; against the client library alone with the same window and no validation")
	atMost("Publisher", "CPU", ours.Metric("cpu"), 15, "µs/msg", "of the process: encoding, validation, publishing, confirms")
	s := serve.Case(CaseServe)
	atMost("serve", "memory under load", s.Metric("peak memory"), 64, "MB", "peak of the resident set, full load, default prefetch")
	atMost("serve", "memory idle", s.Metric("idle memory"), 25, "MB", "resident set of a process that has had nothing to do")
	atMost("serve", "CPU idle", s.Metric("idle cpu"), 0.5, "% of a core", "over three seconds")
	atMost("serve", "ready", s.Metric("ready after"), 1, "s", "from its start to /readyz")
	there := fmt.Sprintf("%s workflows, %s jobs there, 1,000 msg/s applied meanwhile", Number(float64(l.Workflows)), Number(float64(20*l.Workflows)))
	for _, q := range []struct {
		query string
		limit float64
	}{{"status by id", 5}, {"50 of an owner", 20}, {"running of an owner", 20}, {"finished of an owner and engine", 20}, {"50 with a label", 20}, {"page of jobs", 20}, {"name, beginning", 100}, {"name, part", 100}} {
		atMost("Reads", "p99 of "+q.query, read.Case(CaseQuery(q.query, true)).Metric("p99"), q.limit, "ms", there)
	}
	return report, nil
}

// Markdown writes the report as a page.
func (r *Report) Markdown(w io.Writer) error {
	var b strings.Builder
	b.WriteString("# Performance\n\n")
	b.WriteString("Written by `make bench`, which runs `waymark bench report` on private servers. Every value is the median of several runs with\n")
	b.WriteString("the least and the greatest beside it; what is compared ran in alternation, and ratios were taken pair by pair. On another\n")
	b.WriteString("machine, or a busy one, the rates differ; the ratios, bytes and counts should not by much. What is said here of many workflows\n")
	b.WriteString("was measured of a million of them, with 20,000,000 jobs, as well: see [scale.md](scale.md).\n\n")
	if len(r.Results) > 0 {
		for _, line := range r.environment().Lines() {
			fmt.Fprintf(&b, "- %s\n", line)
		}
	}
	b.WriteString("\n## Goals\n\n| | goal | measured | min – max | measured ÷ goal | | how |\n| --- | --- | ---: | ---: | ---: | --- | --- |\n")
	for i := range r.Goals {
		g := &r.Goals[i]
		sign, measured, spread, ratio, verdict := "≥", "not measured", "", "", ""
		if g.AtMost {
			sign = "≤"
		}
		if g.Measured != nil {
			measured, spread, ratio, verdict = Number(*g.Measured), Number(*g.Min)+" – "+Number(*g.Max), Number(g.Ratio()), "**missed**"
			if g.Met() {
				verdict = "met"
			}
		}
		fmt.Fprintf(&b, "| %s: %s | %s %s %s | %s | %s | %s | %s | %s |\n", g.Group, g.Name, sign, Number(g.Limit), g.Unit, measured, spread, ratio, verdict, g.How)
	}
	for _, result := range r.Results {
		fmt.Fprintf(&b, "\n## waymark bench %s\n\n`%s`\n\n", result.Benchmark, join(result.Settings))
		for _, note := range result.Notes {
			fmt.Fprintf(&b, "- %s\n", note)
		}
		b.WriteString("\n| case | | median | min | max | unit |\n| --- | --- | ---: | ---: | ---: | --- |\n")
		for _, row := range result.Rows() {
			fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// environment of all results: that of the first, with the servers of the others.
func (r *Report) environment() *Environment {
	e := r.Results[0].Environment
	for _, other := range r.Results[1:] {
		if e.RabbitMQ == "" {
			e.RabbitMQ = other.Environment.RabbitMQ
		}
		if e.PostgreSQL == "" {
			e.PostgreSQL, e.PostgreSQLSettings = other.Environment.PostgreSQL, other.Environment.PostgreSQLSettings
		}
	}
	return &e
}

// Rows are the cells of a table of r: case (on its first row only), metric,
// median, least, greatest, unit.
func (r *Result) Rows() [][]string {
	var rows [][]string
	for _, c := range r.Cases {
		name := c.Name
		for _, m := range c.Metrics {
			rows = append(rows, []string{name, m.Name, Number(m.Median), Number(m.Min), Number(m.Max), m.Unit})
			name = ""
		}
	}
	return rows
}
