package workflow

import (
	"fmt"
	"unicode/utf8"
)

const (
	// DefaultMaxLogBytes is how much of one piece of log is kept unless told
	// otherwise: 1 MiB.
	DefaultMaxLogBytes = 1 << 20
	// MinLogBytes is the least that may be kept of a piece of log: less would
	// hardly be more than the mark.
	MinLogBytes = 1 << 10
)

// CutLog returns text if it has no more than so many bytes, and else its head
// and its tail, with a line between them that says how many bytes are missing.
// cut is that number. What is returned has at most so many bytes (or
// MinLogBytes, if that is more), and no character is cut in two. The same text
// always gives the same.
//
// Errors tend to stand at the end of a log, and what was run at its beginning;
// so both halves are of one size.
func CutLog(text string, most int) (short string, cut int) {
	most = max(most, MinLogBytes)
	if len(text) <= most {
		return text, 0
	}
	// The mark is longest for the greatest number.
	half := (most - len(cutMark(len(text)))) / 2
	head, tail := half, len(text)-half
	for head > 0 && !utf8.RuneStart(text[head]) {
		head--
	}
	for tail < len(text) && !utf8.RuneStart(text[tail]) {
		tail++
	}
	return text[:head] + cutMark(tail-head) + text[tail:], tail - head
}

func cutMark(bytes int) string { return fmt.Sprintf("\n[… %d bytes cut …]\n", bytes) }

// CutLogs shortens every piece of log that m carries by CutLog, and returns how
// many bytes were cut in all.
func (m *StatusMessage) CutLogs(most int) (cut int) {
	shorten := func(text *string) {
		if len(*text) > most { // nearly always not
			var n int
			*text, n = CutLog(*text, most)
			cut += n
		}
	}
	shorten(&m.Logs)
	for i := range m.Jobs {
		shorten(&m.Jobs[i].Logs)
	}
	return cut
}
