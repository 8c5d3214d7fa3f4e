package main

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Names, ids, logs and everything else that came in a message was written by
// somebody else. Shown as it is, it could clear the screen, rewrite lines
// above, retitle the window or, with direction marks, read as something other
// than it says. All of it goes through one of these two on its way to a person.

// harmless makes s fit for one line of a terminal: characters that control one
// are shown as escapes such as \x1b, and so is what is not UTF-8.
func harmless(s string) string { return escapeControl(s, "") }

// harmlessLog makes s fit for a terminal and keeps its lines and tabs. A
// carriage return before a newline is dropped.
func harmlessLog(s string) string {
	return escapeControl(strings.ReplaceAll(s, "\r\n", "\n"), "\n\t")
}

func escapeControl(s, keep string) string {
	clean := true
	for i := 0; i < len(s) && clean; i++ {
		clean = s[i] >= ' ' && s[i] < 0x7f
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case !controls(r) || strings.ContainsRune(keep, r):
			b.WriteString(s[i : i+size])
		default:
			b.WriteString(escape(r))
		}
		i += size
	}
	return b.String()
}

func escape(r rune) string {
	switch {
	case r == '\n':
		return `\n`
	case r == '\r':
		return `\r`
	case r == '\t':
		return `\t`
	case r < 0x80:
		return fmt.Sprintf(`\x%02x`, r)
	case r > 0xffff:
		return fmt.Sprintf(`\U%08x`, r)
	}
	return fmt.Sprintf(`\u%04x`, r)
}

// controls reports whether r may do something to a terminal or its reader
// other than stand there: control characters, line and paragraph separators,
// and the invisible characters that reorder or hide text.
func controls(r rune) bool {
	return unicode.IsControl(r) || r == '\u2028' || r == '\u2029' ||
		unicode.Is(unicode.Bidi_Control, r) || r == '\u200b' || r == '\ufeff' || (r >= 0xe0000 && r <= 0xe007f)
}

// harmlessJSON makes a JSON text fit for a terminal without changing what it
// means: what controls a terminal can stand in strings only, where an escape
// says the same. encoding/json has escaped the characters below a space.
func harmlessJSON(text []byte) []byte {
	clean := true
	for _, c := range text {
		if c >= 0x7f {
			clean = false
			break
		}
	}
	if clean {
		return text
	}
	out := make([]byte, 0, len(text)+16)
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRune(text[i:])
		switch {
		case r < ' ' || !controls(r):
			out = append(out, text[i:i+size]...)
		case r > 0xffff:
			r -= 0x10000
			out = fmt.Appendf(out, `\u%04x\u%04x`, 0xd800+(r>>10), 0xdc00+(r&0x3ff))
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		i += size
	}
	return out
}
