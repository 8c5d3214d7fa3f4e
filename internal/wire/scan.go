package wire

import (
	"unicode/utf16"
	"unicode/utf8"
)

// scanner reads JSON text once, from left to right, and may abstain: of what it
// is not made to read it says nothing, sets doubt, and reads no further. The
// text may be valid or not; somebody else has to tell. So it never accepts
// what encoding/json refuses, and needs to know no more than is common.
//
// After doubt every method returns at once, with a zero value, so that callers
// need to look for it only at the end.
//
// The text must be valid UTF-8.
type scanner struct {
	text   string
	at     int // of the next byte
	room   int // how many more objects and arrays may be open at once
	blanks int // bytes of white space read
	doubt  bool
	buf    []byte // scratch
}

// Classes of bytes. A byte of no class stands for itself, wherever it is.
const (
	// special bytes mean something in a JSON string, or must not be in one.
	special = 1 << iota
	// unfit bytes must not be in a job id, or might begin a character that
	// must not: 0xc2 begins the control characters U+0080 to U+009F, and
	// some others with them. In valid UTF-8 it does nothing else.
	unfit
	// wide bytes are not ASCII.
	wide
)

var class = func() (class [256]uint8) {
	for b := range class {
		switch {
		case b < ' ', b == '"', b == '\\':
			class[b] = special
		case b == 0x7f:
			class[b] = unfit
		case b == 0xc2:
			class[b] = unfit | wide
		case b >= utf8.RuneSelf:
			class[b] = wide
		}
	}
	return class
}()

func (s *scanner) giveUp() {
	s.doubt = true
	s.at = len(s.text)
}

// peek returns the next byte that is not white space; 0 at the end.
func (s *scanner) peek() byte {
	for ; s.at < len(s.text); s.at++ {
		switch c := s.text[s.at]; c {
		case ' ', '\t', '\n', '\r':
			s.blanks++
		default:
			return c
		}
	}
	return 0
}

func (s *scanner) take(c byte) {
	if s.peek() != c {
		s.giveUp()
		return
	}
	s.at++
}

// end expects nothing but white space.
func (s *scanner) end() {
	s.peek()
	if s.at != len(s.text) {
		s.giveUp()
	}
}

// open takes the bracket that opens an object or an array, to be read as
//
//	s.open('[')
//	for n := 0; s.more(n, ']'); n++ {
func (s *scanner) open(bracket byte) {
	s.take(bracket)
	if s.room--; s.room < 0 {
		s.giveUp()
	}
}

// more reports whether another member follows the n that were read. It takes
// the comma between them, or the bracket at the end.
func (s *scanner) more(n int, bracket byte) bool {
	switch c := s.peek(); {
	case c == bracket:
		s.at++
		s.room++
		return false
	case n == 0:
	case c == ',':
		s.at++
	default:
		s.giveUp()
	}
	return !s.doubt
}

// key takes the name of a property and the colon.
func (s *scanner) key() string {
	name := s.plain(special)
	s.take(':')
	return name
}

// plain takes a string that has none of the classes, and thus no escapes.
func (s *scanner) plain(classes uint8) string {
	s.take('"')
	start, i := s.at, s.at
	for i < len(s.text) && class[s.text[i]]&classes == 0 {
		i++
	}
	if i == len(s.text) || s.text[i] != '"' {
		s.giveUp()
		return ""
	}
	s.at = i + 1
	return s.text[start:i]
}

// string takes a string. It shares memory with the text if it has no escapes.
func (s *scanner) string() string {
	s.take('"')
	start, i := s.at, s.at
	for i < len(s.text) && class[s.text[i]]&special == 0 {
		i++
	}
	if i < len(s.text) && s.text[i] == '"' {
		s.at = i + 1
		return s.text[start:i]
	}
	var n int
	s.buf, n = unescape(append(s.buf[:0], s.text[start:i]...), s.text[i:])
	if n < 0 {
		s.giveUp()
		return ""
	}
	s.at = i + n
	return string(s.buf)
}

// skipString takes a string, checks its form, and returns it as it is written.
func (s *scanner) skipString() string {
	s.take('"')
	start := s.at
	for i := start; i < len(s.text); i++ {
		switch c := s.text[i]; {
		case class[c]&special == 0:
		case c == '"':
			s.at = i + 1
			return s.text[start:i]
		case c != '\\' || i+1 == len(s.text):
			s.giveUp()
			return ""
		default:
			i++
			switch s.text[i] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				if hex4(s.text[i+1:]) < 0 {
					s.giveUp()
					return ""
				}
				i += 4
			default:
				s.giveUp()
				return ""
			}
		}
	}
	s.giveUp()
	return ""
}

// null takes the word null, if that is what comes, and reports whether it was.
func (s *scanner) null() bool {
	if s.peek() != 'n' {
		return false
	}
	s.word("null")
	return true
}

func (s *scanner) word(word string) {
	if rest := s.text[s.at:]; len(rest) < len(word) || rest[:len(word)] != word {
		s.giveUp()
		return
	}
	s.at += len(word)
}

// integer takes a number of plain digits that lies from low to high. A fraction
// or an exponent is left, and thus refused by whatever reads on.
func (s *scanner) integer(low, high int64) int {
	negative := s.peek() == '-'
	if negative {
		s.at++
	}
	start, n := s.at, int64(0)
	// Of more digits than any bound has the rest is left, too.
	for s.at < len(s.text) && isDigit(s.text[s.at]) && s.at-start < 11 {
		n = 10*n + int64(s.text[s.at]-'0')
		s.at++
	}
	digits := s.at - start
	if digits == 0 || s.text[start] == '0' && (digits > 1 || negative) {
		s.giveUp() // no number, or -0
		return 0
	}
	if negative {
		n = -n
	}
	if n < low || n > high {
		s.giveUp()
		return 0
	}
	return int(n)
}

// The longest number and exponent that are known, without counting, to be
// within what package schemas allows.
const (
	maxNumber   = 100
	maxExponent = 2
)

// skipNumber takes a number.
func (s *scanner) skipNumber() {
	start := s.at
	if s.at < len(s.text) && s.text[s.at] == '-' {
		s.at++
	}
	if whole := s.at; s.digits() == 0 || s.text[whole] == '0' && s.at > whole+1 {
		s.giveUp()
		return
	}
	if s.at < len(s.text) && s.text[s.at] == '.' {
		s.at++
		if s.digits() == 0 {
			s.giveUp()
			return
		}
	}
	if s.at < len(s.text) && (s.text[s.at] == 'e' || s.text[s.at] == 'E') {
		s.at++
		if s.at < len(s.text) && (s.text[s.at] == '+' || s.text[s.at] == '-') {
			s.at++
		}
		if n := s.digits(); n == 0 || n > maxExponent {
			s.giveUp()
			return
		}
	}
	if s.at-start > maxNumber {
		s.giveUp()
	}
}

// digits takes digits and returns how many there were.
func (s *scanner) digits() int {
	start := s.at
	for s.at < len(s.text) && isDigit(s.text[s.at]) {
		s.at++
	}
	return s.at - start
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// skip takes any value and checks its form.
func (s *scanner) skip() {
	switch s.peek() {
	case '{':
		s.open('{')
		for n := 0; s.more(n, '}'); n++ {
			s.skipString()
			s.take(':')
			s.skip()
		}
	case '[':
		s.open('[')
		for n := 0; s.more(n, ']'); n++ {
			s.skip()
		}
	case '"':
		s.skipString()
	case 'n':
		s.word("null")
	case 't':
		s.word("true")
	case 'f':
		s.word("false")
	default:
		s.skipNumber()
	}
}

// canonical takes a value that is written as raw would write it, and returns
// it as it is written. It doubts of anything else, and of any escape.
func (s *scanner) canonical() string {
	s.peek()
	start, blanks := s.at, s.blanks
	s.skipCanonical()
	if s.blanks != blanks {
		s.giveUp()
	}
	if s.doubt {
		return ""
	}
	return s.text[start:s.at]
}

// skipCanonical is skip, but that keys must be sorted and strings plain. White
// space is for the caller to find.
func (s *scanner) skipCanonical() {
	switch s.peek() {
	case '{':
		s.open('{')
		previous := ""
		for n := 0; s.more(n, '}'); n++ {
			key := s.plainCanonical()
			if n > 0 && key <= previous {
				s.giveUp()
			}
			previous = key
			s.take(':')
			s.skipCanonical()
		}
	case '[':
		s.open('[')
		for n := 0; s.more(n, ']'); n++ {
			s.skipCanonical()
		}
	case '"':
		s.plainCanonical()
	default:
		s.skip()
	}
}

// plainCanonical takes a string that encoding/json would write as it is
// written. Of what is not ASCII it escapes two characters, U+2028 and U+2029.
func (s *scanner) plainCanonical() string {
	text := s.plain(special)
	for i := 0; i+2 < len(text); i++ {
		if text[i] == 0xe2 && text[i+1] == 0x80 && text[i+2]&^1 == 0xa8 {
			s.giveUp()
			return ""
		}
	}
	return text
}

// unescape appends to dst what the rest of a JSON string says. n is how much of
// text that is, with the quote at its end, or -1 if in doubt: of a string that
// is not valid, that has half a surrogate pair, or an escaped NUL.
func unescape[T string | []byte](dst []byte, text T) (_ []byte, n int) {
	for i, start := 0, 0; i < len(text); {
		c := text[i]
		if class[c]&special == 0 {
			i++
			continue
		}
		dst = append(dst, text[start:i]...)
		if c == '"' {
			return dst, i + 1
		}
		if c != '\\' || i+1 == len(text) {
			return dst, -1
		}
		c = text[i+1]
		i += 2
		switch c {
		case '"', '\\', '/':
			dst = append(dst, c)
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'u':
			r := hex4(text[i:])
			if r <= 0 {
				return dst, -1
			}
			i += 4
			if utf16.IsSurrogate(r) {
				if len(text)-i < 6 || text[i] != '\\' || text[i+1] != 'u' {
					return dst, -1
				}
				if r = utf16.DecodeRune(r, hex4(text[i+2:])); r == utf8.RuneError {
					return dst, -1
				}
				i += 6
			}
			dst = utf8.AppendRune(dst, r)
		default:
			return dst, -1
		}
		start = i
	}
	return dst, -1
}

// hex4 is the number that the first four hexadecimal digits of text make, or
// -1 if there are not as many.
func hex4[T string | []byte](text T) rune {
	if len(text) < 4 {
		return -1
	}
	var r rune
	for i := range 4 {
		c := text[i]
		switch {
		case isDigit(c):
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return -1
		}
		r = r<<4 | rune(c)
	}
	return r
}
