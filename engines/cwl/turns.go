package cwl

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"waymark/engines"
)

const (
	// maxOutput is how much of the end of a job's output is told, in bytes, and
	// how much of one that failed.
	maxOutput, maxFailedOutput = 16 << 10, engines.TailSize
	// maxTurn is how much is kept while it is not sure whose it is.
	maxTurn = 4 * maxFailedOutput
	// maxSaid is how much of what cwltool says of a job is known again.
	maxSaid = 100
	// maxTurns is how many turns wait for what cwltool writes of them.
	maxTurns = 100
	// late is how long after a job's end its last words may come. It matters
	// only where cwltool does not write where jobs begin and end: with --quiet.
	late = time.Second
)

// turns finds out which job wrote what on cwltool's standard error, where the hook
// says when each began and ended: the one whose turn it is. The two arrive by
// different ways, each when it can. So a turn begins where cwltool writes that it
// does; with --quiet it does not, and lines are divided by their times. What
// cwltool writes is known to the letter from the hook. So jobs may write what they
// want: none knows the folder of the next, nor writes after its own end. Jobs that
// run at once have no turn.
type turns struct {
	tell    func(j *job, text string)
	all     []*turn // those not told yet; the first may be nobody's
	now     int     // the one in all whose lines come, if marked
	marked  bool    // whether this cwltool writes where turns begin
	engine  *engine // the last one's
	running map[*job]bool
	shared  bool // by several, until none runs
}

// turn is the time of one job.
type turn struct {
	job      *job // nil before the first
	from, to time.Time
	shared   bool
	begins   string // what cwltool writes as it begins, the first line
	rest     int    // how many lines follow it
	said     []string
	ended    int // the index in said of what ended it, if to is known
	lines    []line
	size     int // of the lines
	lost     int // the size of those that came before
}

// line is one that arrived on standard error.
type line struct {
	at   time.Time
	text string
}

// line takes a line of standard error, whoever wrote it.
func (o *turns) line(at time.Time, text string) {
	if len(o.all) == 0 {
		o.all = []*turn{{}}
	}
	for i, t := range o.all {
		if t.begins != "" && strings.HasSuffix(text, t.begins) {
			t.begins = ""
			o.mark(i)
			return
		}
	}
	i := o.now
	if !o.marked {
		for i = len(o.all) - 1; i > 0 && at.Before(o.all[i].from); {
			i--
		}
	}
	if t := o.all[i]; o.marked && t.rest > 0 {
		t.rest--
	} else {
		t.keep(line{at, text})
	}
}

// mark begins a turn where cwltool writes it: what came before is not its own.
func (o *turns) mark(i int) {
	t := o.all[i]
	if i > 0 && !o.marked {
		for _, l := range t.lines {
			o.all[i-1].keep(l)
		}
	}
	t.lines, t.size, t.lost = nil, 0, 0
	o.now, o.marked = i, true
	o.finish(i)
}

func (t *turn) keep(l line) {
	t.lines = append(t.lines, l)
	for t.size += len(l.text) + 1; t.size > maxTurn; t.lines = t.lines[1:] {
		t.lost += len(t.lines[0].text) + 1
		t.size -= len(t.lines[0].text) + 1
	}
}

// begin starts the turn of a job. text is what cwltool writes then, if it does.
func (o *turns) begin(p *engine, j *job, at time.Time, text string) {
	if len(o.running) == 0 {
		o.running, o.shared = make(map[*job]bool), false
	}
	o.running[j] = true
	o.shared = o.shared || len(o.running) > 1
	if o.shared {
		for _, t := range o.all {
			t.shared = t.shared || o.running[t.job]
		}
	}
	first, rest, more := strings.Cut(text, "\n")
	next := &turn{job: j, from: at, shared: o.shared, begins: first}
	if more {
		next.rest = 1 + strings.Count(rest, "\n")
	}
	last := o.now
	if p != o.engine || !o.marked {
		o.engine, o.marked, last = p, false, len(o.all)-1
	}
	o.all = append(o.all, next)
	if last >= 0 { // the hook may come later than what was written after it spoke
		before := o.all[last]
		for i, l := range before.lines {
			if !o.marked && !l.at.Before(at) || strings.HasSuffix(l.text, first) {
				mine := before.lines[i:]
				before.lines = before.lines[:i:i]
				for _, l := range mine {
					before.size -= len(l.text) + 1
					o.line(l.at, l.text)
				}
				break
			}
		}
	}
	o.settle(at)
}

// settle tells the turns of which nothing can be on its way.
func (o *turns) settle(at time.Time) {
	n := len(o.all) - maxTurns
	if !o.marked {
		for n = max(n, 0); n+1 < len(o.all) && at.Sub(o.all[n+1].from) > late; {
			n++
		}
	}
	o.finish(n)
}

// says notes what cwltool says of a job while it runs and as it ends, or with no
// job what it says then.
func (o *turns) says(j *job, text string) {
	for i, t := range o.all {
		if t.job != nil && len(t.said) < maxSaid && (t.job == j || j == nil && i == len(o.all)-1 && !t.to.IsZero()) {
			t.said = append(t.said, text)
		}
	}
}

// end ends a job, of which cwltool says text. What it wrote may still be on its
// way.
func (o *turns) end(j *job, at time.Time, text string) {
	delete(o.running, j)
	for _, t := range o.all {
		if t.job == j {
			t.to, t.ended = at, len(t.said)
			t.said = append(t.said, text)
		}
	}
	o.settle(at)
}

// finish tells the first n turns.
func (o *turns) finish(n int) {
	for ; n > 0 && len(o.all) > 0; n-- {
		t := o.all[0]
		o.all, o.now = o.all[1:], max(o.now-1, 0)
		if text := t.text(); t.job != nil && !t.shared && text != "" {
			o.tell(t.job, text)
		}
	}
}

// text is what the job wrote: without what cwltool said of it, and without what
// came after its end.
func (t *turn) text() string {
	lines := t.lines
	if !t.to.IsZero() {
		var before []string // what stands before the end
		after := t.said[t.ended:]
		for _, s := range t.said[:t.ended] {
			if t.writes(s) {
				before = append(before, s)
			}
		}
		for len(after) > 0 && !t.writes(after[0]) {
			after = after[1:]
		}
		for len(lines) > 0 && len(after) == 0 && lines[len(lines)-1].at.After(t.to.Add(late)) {
			lines = lines[:len(lines)-1]
		}
		for i := len(lines) - 1; i >= 0 && len(after) > 0; i-- {
			if s, ok := cutSaid(lines[i].text, strings.Split(after[0], "\n")[0]); ok {
				lines = withLast(lines[:i], lines[i].at, s)
				break
			}
		}
		for _, s := range slices.Backward(before) {
			lines = withoutSaid(lines, s)
		}
	}
	size := maxOutput
	if t.to.IsZero() || t.job != nil && t.job.failed {
		size = maxFailedOutput
	}
	tail := engines.Tail{Size: size}
	for _, l := range lines {
		_, _ = tail.Write([]byte(l.text + "\n"))
	}
	if t.lost == 0 {
		return tail.String()
	}
	_, text, _ := strings.Cut(tail.String(), "\n") // its own count is too low
	return fmt.Sprintf("[%d bytes before this are left out]\n%s", int64(t.lost)+tail.Written()-int64(len(text)), text)
}

// writes reports whether cwltool writes what it says: with --quiet it writes
// warnings only.
func (t *turn) writes(said string) bool {
	return t.begins == "" || !strings.HasPrefix(said, "INFO ")
}

// withoutSaid takes off what cwltool said, if it is the end.
func withoutSaid(lines []line, said string) []line {
	parts := strings.Split(said, "\n")
	at := len(lines) - len(parts)
	if at < 0 {
		return lines
	}
	before, ok := cutSaid(lines[at].text, parts[0])
	for i, part := range parts[1:] {
		ok = ok && lines[at+1+i].text == part
	}
	if !ok {
		return lines
	}
	return withLast(lines[:at], lines[at].at, before)
}

func withLast(lines []line, at time.Time, text string) []line {
	if text == "" {
		return lines
	}
	return append(lines[:len(lines):len(lines)], line{at, text})
}

var timestamp = regexp.MustCompile(`\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] $`)

// cutSaid takes what cwltool said off the end of a line. A job that ends without
// a line end has it in its last line.
func cutSaid(s, said string) (before string, ok bool) {
	if before, ok = strings.CutSuffix(s, said); ok {
		before = timestamp.ReplaceAllString(before, "")
	}
	return before, ok
}
