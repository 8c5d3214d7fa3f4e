package cwl

import (
	"regexp"
	"strings"

	"waymark/engines"
)

var (
	ansi = regexp.MustCompile(`\x1b\[[0-9;]*[A-Za-z]`)
	// leveled finds what cwltool says in a line. What a job wrote may stand
	// before it, without a line end.
	leveled = regexp.MustCompile(`(?:^|\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] )(DEBUG|INFO|WARNING|ERROR|CRITICAL) (.*)$`)
	glued   = regexp.MustCompile(`(INFO|WARNING|ERROR) (\[(?:job|step|workflow) .*|Final process status is \w+)$`)
	// begins is a line that is cwltool's from its beginning.
	begins   = regexp.MustCompile(`^(?:\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] )?(?:INFO|WARNING|ERROR) \[(?:job|step|workflow) [^\]]*\] (?:completed|exited|was|start)`)
	ofJob    = regexp.MustCompile(`^\[job ([^\]]+)\] (.*)$`)
	runsJob  = regexp.MustCompile(`^(/.*?)\$ (.*)$`)
	ofOther  = regexp.MustCompile(`^\[((?:step|workflow) [^\]]*)\] (.*)$`)
	notFound = regexp.MustCompile(`^'(.+)' not found: (.*)$`)
)

// textParser makes records of what cwltool writes to its standard error. The
// jobs write there too, and a job that writes what cwltool would write is
// believed.
type textParser struct {
	// other takes what cwltool did not write, nil if nobody does.
	other    func(line string)
	more     func(line string) bool // takes a line that belongs to the one before
	complete bool                   // no further line does
	pending  *record
}

// uncoloured is a line without colours, of one that is too long the end.
func uncoloured(line []byte) string {
	if len(line) > engines.TailSize {
		line = line[len(line)-engines.TailSize:]
	}
	s := strings.TrimRight(engines.Text(string(line)), "\r")
	if strings.Contains(s, "\x1b[") {
		s = ansi.ReplaceAllString(s, "")
	}
	return s
}

// line takes one line, and tells the records that it completes.
func (t *textParser) line(e engines.Event, tell func(record)) {
	s := uncoloured(e.Line)
	if t.more != nil {
		taken := t.more(s)
		if !taken || t.complete {
			t.flush(tell)
		}
		if taken {
			return
		}
	}
	if !strings.Contains(s, "INFO ") && !strings.Contains(s, "WARNING ") && !strings.Contains(s, "ERROR ") {
		t.pass(s)
		return // jobs may write millions of lines
	}
	m := leveled.FindStringSubmatchIndex(s)
	if m == nil {
		if m = glued.FindStringSubmatchIndex(s); m == nil {
			t.pass(s)
			return
		}
	}
	if m[0] > 0 {
		t.pass(s[:m[0]])
	}
	rec := t.record(s[m[2]:m[3]], s[m[4]:m[5]])
	rec.at = e.At
	if t.more != nil {
		if *rec.Message == msgRuns { // the job runs, whatever its command is
			tell(record{Message: rec.Message, Args: []any{rec.Args[0], rec.Args[1], ""}, level: rec.level, Thread: rec.Thread, at: rec.at})
		}
		t.pending = &rec
		return
	}
	tell(rec)
}

func (t *textParser) pass(s string) {
	if t.other != nil {
		t.other(s)
	}
}

// flush tells what more lines could have belonged to.
func (t *textParser) flush(tell func(record)) {
	t.more, t.complete = nil, false
	if t.pending != nil {
		rec := *t.pending
		t.pending = nil
		tell(rec)
	}
}

func (t *textParser) record(level, s string) record {
	say := func(message string, args ...any) record {
		return record{Message: &message, Args: args, level: level, Thread: "text"}
	}
	if m := ofJob.FindStringSubmatch(s); m != nil {
		job, rest := m[1], m[2]
		if status, ok := strings.CutPrefix(rest, "completed "); ok {
			return say(msgCompleted, job, status)
		}
		if code, ok := strings.CutPrefix(rest, "exited with status: "); ok {
			return say(msgExited, job, atoi(code))
		}
		if signal, ok := strings.CutPrefix(rest, "was terminated by signal: "); ok {
			return say(msgKilled, job, signal)
		}
		if place, ok := strings.CutPrefix(rest, "Using cached output in "); ok {
			return say(msgCached, job, place)
		}
		if rest == "Job error:" {
			rec := say(msgJobError, job, "")
			t.collect(&rec, 1)
			return rec
		}
		if r := runsJob.FindStringSubmatch(rest); r != nil {
			rec := say(msgRuns, job, r[1], r[2])
			t.command(&rec, r[1])
			return rec
		}
	}
	if m := ofOther.FindStringSubmatch(s); m != nil {
		name, rest := m[1], m[2]
		switch {
		case rest == "start":
			return say(msgStart, name)
		case rest == "will be skipped":
			return say(msgSkipped, name)
		case strings.HasPrefix(rest, "starting "):
			return say(msgStarting, name, strings.TrimPrefix(rest, "starting "))
		case strings.HasPrefix(rest, "completed "):
			return say(msgStepDone, name, strings.TrimPrefix(rest, "completed "))
		}
	}
	if m := notFound.FindStringSubmatch(s); m != nil {
		return say(msgNotFound, m[1], m[2])
	}
	if s == msgException {
		return say(msgException)
	}
	if status, ok := strings.CutPrefix(s, "Final process status is "); ok {
		return say(msgFinal, status)
	}
	if versionLine.MatchString(s) {
		return say(s)
	}
	rec := say(generic, s)
	if level == "ERROR" {
		t.collect(&rec, 0)
	}
	return rec
}

// generic is the template of what has no meaning here.
const generic = "%s"

// maxLines is how many lines can belong to one of cwltool's.
const maxLines = 200

// collect adds the lines that follow to an argument, until cwltool says
// something else.
func (t *textParser) collect(rec *record, arg int) {
	text, lines := rec.arg(arg), 0
	t.more = func(line string) bool {
		if lines++; lines > maxLines || leveled.MatchString(line) || glued.MatchString(line) {
			return false
		}
		text = strings.TrimPrefix(text+"\n"+line, "\n")
		rec.Args[arg] = text
		return true
	}
}

// command adds the lines that follow to a command, as long as it is not
// complete, and takes off what its output is redirected to.
func (t *textParser) command(rec *record, outdir string) {
	text, lines := rec.arg(2), 0
	done := func() {
		for _, redirection := range []string{" 2> " + outdir + "/", " > " + outdir + "/"} {
			if i := strings.LastIndex(text, redirection); i >= 0 && !strings.ContainsAny(text[i+len(redirection):], "\n'\"") {
				text = text[:i]
			}
		}
		rec.Args[2] = text
	}
	if !open(text) {
		done()
		return
	}
	t.more = func(line string) bool {
		if lines++; lines > maxLines || len(text) > engines.TailSize || begins.MatchString(line) {
			return false
		}
		text += "\n" + line
		if t.complete = !open(text); t.complete {
			done()
		}
		return true
	}
}

// open reports whether a command of cwltool's log goes on in the next line.
func open(s string) bool {
	var quote byte
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '\'' || c == '"':
			quote = c
		}
	}
	return quote != 0 || strings.HasSuffix(s, " \\")
}

// atoi is a number as JSON would have it.
func atoi(s string) any {
	n := 0.0
	for _, c := range s {
		if c < '0' || c > '9' || n > 1<<20 {
			return s
		}
		n = n*10 + float64(c-'0')
	}
	return n
}

// output finds out which job wrote what on cwltool's standard error, from that
// alone: the one that runs, if no other does. In a run with --parallel it is often
// nobody's.
type output struct {
	running map[string]bool
	shared  bool // by several, until none runs
	tail    *engines.Tail
}

// line takes a line that cwltool did not write.
func (o *output) line(s string) {
	if o.tail != nil && !o.shared {
		_, _ = o.tail.Write([]byte(s + "\n"))
	}
}

// record takes what cwltool wrote, and returns what a job has written once it is
// complete.
func (o *output) record(rec *record) (job, text string) {
	name := rec.arg(0)
	switch *rec.Message {
	case msgRuns:
		if o.running[name] {
			return "", "" // the rest of its command
		}
		if o.running == nil {
			o.running = make(map[string]bool)
		}
		o.running[name] = true
		o.shared = len(o.running) > 1
		if !o.shared {
			o.tail = &engines.Tail{Size: maxFailedOutput}
		}
	case msgCompleted:
		if o.running[name] {
			return o.end(name, rec.arg(1) != "success")
		}
		o.line(rec.level + " " + rec.String())
	case generic:
		if !strings.HasPrefix(rec.arg(0), "[job ") {
			o.line(rec.level + " " + rec.String())
		}
	}
	return "", ""
}

// end ends a job, and returns what it wrote.
func (o *output) end(name string, failed bool) (job, text string) {
	delete(o.running, name)
	if !o.shared && o.tail != nil && o.tail.Written() > 0 {
		job, text = name, o.tail.String()
		if !failed && len(text) > maxOutput {
			end := engines.Tail{Size: maxOutput}
			_, _ = end.Write([]byte(text))
			text = end.String()
		}
	}
	if len(o.running) == 0 {
		o.shared, o.tail = false, nil
	}
	return job, text
}

// last is what the job that runs has written, if it runs alone.
func (o *output) last() (job, text string) {
	for name := range o.running {
		if len(o.running) == 1 {
			return o.end(name, true)
		}
	}
	return "", ""
}
