package engines

import (
	"bytes"
	"fmt"
)

// maxLine is the longest line that is an event, in bytes. A hook's line that
// says all of a large graph is long; one without end is an accident.
const maxLine = 32 << 20

// Lines cuts a stream into lines, however it is cut into pieces. The zero value
// with Emit set is ready. Lines is not safe for concurrent use.
type Lines struct {
	// Emit is called with each line, without its end. The line is only valid
	// during the call.
	Emit func(line []byte)
	// Max is the longest line in bytes; what is longer is left out, and counted
	// by Oversized. 0 means 32 MiB.
	Max int

	// Oversized counts the lines that were too long.
	Oversized int

	part []byte
	skip bool // the rest of a line that was too long
}

// Write cuts p. It never fails.
func (l *Lines) Write(p []byte) (int, error) {
	n, limit := len(p), l.limit()
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		piece := p
		if end >= 0 {
			piece, p = p[:end], p[end+1:]
		} else {
			p = nil
		}
		switch {
		case l.skip:
		case len(l.part)+len(piece) > limit:
			l.Oversized++
			l.part, l.skip = nil, true
		case end >= 0 && len(l.part) == 0:
			l.Emit(piece)
		default:
			l.part = append(l.part, piece...)
			if end >= 0 {
				l.Emit(l.part)
				l.part = l.part[:0]
			}
		}
		if end >= 0 {
			l.skip = false
		}
	}
	return n, nil
}

// Close emits the last line, if the stream did not end with a line end.
func (l *Lines) Close() error {
	if len(l.part) > 0 {
		l.Emit(l.part)
		l.part = nil
	}
	if l.Oversized > 0 {
		return fmt.Errorf("%d lines of more than %d bytes were left out", l.Oversized, l.limit())
	}
	return nil
}

func (l *Lines) limit() int {
	if l.Max <= 0 {
		return maxLine
	}
	return l.Max
}
