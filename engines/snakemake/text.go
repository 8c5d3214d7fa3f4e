package snakemake

import (
	"regexp"
	"strconv"
	"strings"

	"waymark/engines"
	"waymark/workflow"
)

// Log marks lines of Snakemake's own log file; see [Attach].
const Log = "log"

// ofText is the run that text is about.
var ofText = runKey{pid: -1}

// textParser reads what Snakemake prints for people. On standard error that is
// mixed with what jobs print, and believes them if they print the same.
type textParser struct {
	block   *textBlock
	done    bool // all steps, or nothing to do
	failed  bool
	hinted  bool // where its log is, which is the last it says
	stopped bool
}

// textBlock is a description of a job, over several lines.
type textBlock struct {
	kind      string // rule or error
	rule      string
	number    int // -1 if not said yet
	wildcards map[string]string
}

var (
	colour     = regexp.MustCompile("\x1b\\[[0-9;]*m")
	ruleLine   = regexp.MustCompile(`^\s*(?:local)?(?:rule|checkpoint) (\S+):$`)
	jobLine    = regexp.MustCompile(`^\s*Job (\d+): `)
	errorLine  = regexp.MustCompile(`^\s*Error in rule (\S+)[:,]`)
	doneLine   = regexp.MustCompile(`^\s*Finished job(?:id:)? (\d+)\b`)
	stepsLine  = regexp.MustCompile(`^(\d+) of (\d+) steps \(\S+%\) done`)
	totalLine  = regexp.MustCompile(`^total\s+(\d+)\b`)
	versionOf9 = regexp.MustCompile(`^\s*Snakemake version: (\S+)`)
	stamp      = regexp.MustCompile(`^\[\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}\]`)
)

// line takes a line of text.
func (r *reducer) line(line, mode string, to engines.Story) {
	line = strings.TrimRight(colour.ReplaceAllString(engines.Text(line), ""), "\r ")
	t := &r.parser
	if t.block != nil && t.block.take(line) {
		return
	}
	t.flush(r, to)
	p := r.run(ofText)
	if line == "" {
		return
	}
	if stamp.MatchString(line) {
		return
	}
	switch {
	case line == "Building DAG of jobs...":
		r.setMode(mode, to)
		return
	case r.mode == "" && mode == modeLog:
		r.setMode(mode, to)
	case r.mode == "":
		if found := versionOf9.FindStringSubmatch(line); found != nil {
			r.setVersion(found[1], to)
		}
		return
	}
	if found := ruleLine.FindStringSubmatch(line); found != nil {
		t.block = &textBlock{kind: "rule", rule: found[1], number: -1}
		return
	}
	if found := errorLine.FindStringSubmatch(line); found != nil {
		t.block = &textBlock{kind: "error", rule: found[1], number: -1}
		return
	}
	if found := jobLine.FindStringSubmatch(line); found != nil {
		// A rule with a message of its own says no more than this.
		if n, err := strconv.Atoi(found[1]); err == nil && p.live {
			r.begin(p, r.define(p, n, "job "+found[1], nil), to)
		}
		return
	}
	if found := doneLine.FindStringSubmatch(line); found != nil {
		if j := p.numbered(found[1]); j != nil {
			r.finished(j, to)
		}
		return
	}
	if found := stepsLine.FindStringSubmatch(line); found != nil {
		n, err := strconv.Atoi(found[2])
		if err == nil && n < 1<<31 {
			p.live = true
			r.stepped(p, n, to)
			t.done = found[1] == found[2]
		}
		return
	}
	if found := totalLine.FindStringSubmatch(line); found != nil {
		if n, ok := statedTotal(line); ok {
			r.list(p, n, to)
		}
		return
	}
	switch {
	case strings.HasPrefix(line, "Nothing to be done"):
		t.done = true
	case strings.HasPrefix(line, "Complete log"):
		t.hinted = true
	case strings.HasPrefix(line, "Will exit after finishing"), strings.HasPrefix(line, "Terminating processes on user request"):
		t.stopped = true
	case strings.HasPrefix(line, "Exiting because a job execution failed"):
		t.failed = true
		r.failure(p, line, "", to)
	case strings.HasPrefix(line, "Provided c"), strings.HasPrefix(line, "Provided remote"):
		p.live = true
	case missing.MatchString(line):
		r.failure(p, line, "", to)
	case strings.Contains(line, "Exception in ") || strings.HasSuffix(line, "Exception:") || strings.HasSuffix(line, "WorkflowError:"):
		if len(r.errors) < maxErrors {
			r.errors = append(r.errors, line)
		}
	default:
		r.remark(p, line, to)
	}
}

// take takes a line of a block, if it belongs to it.
func (b *textBlock) take(line string) bool {
	key, value, ok := strings.Cut(strings.TrimLeft(line, " "), ": ")
	if !strings.HasPrefix(line, " ") || !ok {
		return false
	}
	switch key {
	case "jobid":
		if n, err := strconv.Atoi(value); err == nil && b.number < 0 && n >= 0 && n < 1<<31 {
			b.number = n
		}
	case "wildcards":
		b.wildcards = make(map[string]string)
		last := ""
		for pair := range strings.SplitSeq(value, ", ") {
			if k, v, ok := strings.Cut(pair, "="); ok {
				b.wildcards[k], last = v, k
			} else if last != "" { // a value with a comma
				b.wildcards[last] += ", " + pair
			}
		}
	}
	return true
}

// flush takes a block that is complete.
func (t *textParser) flush(r *reducer, to engines.Story) {
	b := t.block
	t.block = nil
	if b == nil || b.number < 0 {
		return
	}
	p := r.run(ofText)
	if b.kind == "rule" {
		if p.live {
			r.begin(p, r.define(p, b.number, b.rule, b.wildcards), to)
		}
		return
	}
	j := p.jobs[b.number]
	if j == nil || (j.rule != b.rule && !strings.HasPrefix(j.rule, "job ")) {
		// What runs a block of Python for Snakemake calls its job 0.
		j = nil
		for _, other := range p.jobs {
			if other.rule != b.rule || other.status != workflow.JobRunning {
				continue
			}
			if j != nil {
				return
			}
			j = other
		}
	}
	if j != nil && !j.status.Terminal() {
		r.fail(p, j)
	}
}

// status judges a run by its log alone, once it is over.
func (t *textParser) status() workflow.Status {
	switch {
	case t.failed || t.stopped || !t.done:
		return workflow.StatusFailed
	}
	return workflow.StatusFinished
}
