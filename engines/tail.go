package engines

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"
)

// TailSize is how much of the end of an output adapters publish, in bytes.
const TailSize = 64 << 10

// Tail keeps the end of what is written to it, in a fixed amount of memory.
// It takes any bytes. The zero value keeps [TailSize] bytes. A Tail is not
// safe for concurrent use.
type Tail struct {
	// Size is how many bytes are kept. 0 means TailSize.
	Size int

	ring    []byte
	next    int   // where the next byte goes, once the ring is full
	written int64 // all bytes ever written
}

// Write keeps the end of p. It never fails.
func (t *Tail) Write(p []byte) (int, error) {
	size := t.Size
	if size <= 0 {
		size = TailSize
	}
	n := len(p)
	t.written += int64(n)
	p = p[max(len(p)-size, 0):]
	if room := size - len(t.ring); room > 0 { // not full yet: next is 0
		k := min(room, len(p))
		t.ring = append(t.ring, p[:k]...)
		p = p[k:]
	}
	for len(p) > 0 {
		k := copy(t.ring[t.next:], p)
		t.next = (t.next + k) % len(t.ring)
		p = p[k:]
	}
	return n, nil
}

// Written is the number of bytes written so far, kept or not.
func (t *Tail) Written() int64 { return t.written }

// String returns the end of the output as text fit for a message: valid UTF-8
// without NUL. Where the beginning is missing it starts on a new line, if one
// is near, and says how much came before.
func (t *Tail) String() string {
	b := append(append(make([]byte, 0, len(t.ring)), t.ring[t.next:]...), t.ring[:t.next]...)
	lost := t.written - int64(len(b))
	if lost == 0 {
		return Text(string(b))
	}
	// Not in the middle of a line, if one ends soon, nor of a character.
	cut := bytes.IndexByte(b[:len(b)/4], '\n') + 1
	for most := cut + utf8.UTFMax; cut < min(most, len(b)) && !utf8.RuneStart(b[cut]); {
		cut++
	}
	return fmt.Sprintf("[%d bytes before this are left out]\n", lost+int64(cut)) + Text(string(b[cut:]))
}

// Text makes any bytes fit for a message: what is not UTF-8, and NUL, which
// databases refuse, become U+FFFD.
func Text(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// shorten cuts s to its last n bytes, on a character, with a mark where the
// beginning was.
func shorten(s string, n int) string {
	if len(s) <= n {
		return s
	}
	cut := len(s) - n
	for most := cut + utf8.UTFMax; cut < min(most, len(s)) && !utf8.RuneStart(s[cut]); {
		cut++
	}
	return "[…]\n" + s[cut:]
}

// fit cuts s, made fit for a message, to n characters, with a mark where the
// rest was.
func fit(s string, n int) string {
	if len(s) <= n { // bytes are no fewer than characters
		return Text(s)
	}
	s = Text(s)
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	for i := range s {
		if n--; n == 0 {
			return s[:i] + "…"
		}
	}
	return s
}
