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
	leveled  = regexp.MustCompile(`(?:^|\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] )(DEBUG|INFO|WARNING|ERROR|CRITICAL) (.*)$`)
	glued    = regexp.MustCompile(`(INFO|WARNING|ERROR) (\[(?:job|step|workflow) .*|Final process status is \w+)$`)
	ofJob    = regexp.MustCompile(`^\[job ([^\]]+)\] (.*)$`)
	runsJob  = regexp.MustCompile(`^(/.*?)\$ (.*)$`)
	ofOther  = regexp.MustCompile(`^\[((?:step|workflow) [^\]]*)\] (.*)$`)
	notFound = regexp.MustCompile(`^'(.+)' not found: (.*)$`)
)

// textParser makes records of what cwltool writes to its standard error. The
// jobs write there too, and a job that writes what cwltool would write is
// believed.
type textParser struct {
	more     func(line string) bool // takes a line that belongs to the one before
	complete bool                   // no further line does
	pending  *record
}

// line takes one line, and tells the records that it completes.
func (t *textParser) line(e engines.Event, tell func(record)) {
	line := e.Line
	if len(line) > engines.TailSize {
		line = line[len(line)-engines.TailSize:]
	}
	s := strings.TrimRight(engines.Text(string(line)), "\r")
	if strings.Contains(s, "\x1b[") {
		s = ansi.ReplaceAllString(s, "")
	}
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
		return // jobs may write millions of lines
	}
	m := leveled.FindStringSubmatch(s)
	if m == nil {
		if m = glued.FindStringSubmatch(s); m == nil {
			return
		}
	}
	rec := t.record(m[1], m[2])
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
	rec := say("%s", s)
	if level == "ERROR" {
		t.collect(&rec, 0)
	}
	return rec
}

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
		if lines++; lines > maxLines || len(text) > engines.TailSize || leveled.MatchString(line) && strings.Contains(line, "] completed ") {
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
