package serial

import (
	"fmt"
	"strings"
)

// placeholderError says why a command cannot be substituted, and where: line
// and column count from 1, in characters, and point at the dollar sign.
type placeholderError struct {
	name         string // of the missing parameter; empty for an invalid placeholder
	line, column int
}

func (e *placeholderError) Error() string {
	where := fmt.Sprintf("at line %d, column %d", e.line, e.column)
	if e.name != "" {
		return fmt.Sprintf("no parameter is named %q (%s): add it to inputs.parameters, or write $$%s for a variable of the shell", e.name, where, e.name)
	}
	return fmt.Sprintf("invalid placeholder %s: write $$ for a dollar sign that the shell should see, ${name} for a parameter", where)
}

// substitute replaces the placeholders $name and ${name} in command by
// parameters and $$ by $, exactly as Python's string.Template.substitute does,
// which REANA uses: names are ASCII letters, digits and underscores, nothing is
// quoted, and the replacement is not looked at again. Any other dollar sign is
// a *placeholderError, as is a parameter that does not exist.
func substitute(command string, parameters *mapping) (string, error) {
	var b strings.Builder
	for rest := command; ; {
		before, after, found := strings.Cut(rest, "$")
		b.WriteString(before)
		if !found {
			return b.String(), nil
		}
		fault := func(name string) error {
			line, column := position(command[:len(command)-len(after)])
			return &placeholderError{name, line, column}
		}
		name, length := "", 0
		switch {
		case strings.HasPrefix(after, "$"):
			b.WriteByte('$')
			rest = after[1:]
			continue
		case strings.HasPrefix(after, "{"):
			name = identifier(after[1:])
			length = len(name) + 2
			if name == "" || !strings.HasPrefix(after[1+len(name):], "}") {
				return "", fault("")
			}
		default:
			if name = identifier(after); name == "" {
				return "", fault("")
			}
			length = len(name)
		}
		v, ok := parameters.values[name]
		if !ok {
			return "", fault(name)
		}
		b.WriteString(pythonStr(v))
		rest = after[length:]
	}
}

// identifier is the longest name at the beginning of s; empty if there is none.
func identifier(s string) string {
	n := 0
	for n < len(s) {
		c := s[n]
		if c != '_' && (c|0x20 < 'a' || c|0x20 > 'z') && (n == 0 || c < '0' || c > '9') {
			break
		}
		n++
	}
	return s[:n]
}

// position is the line and column of the dollar sign that s ends with, with
// lines as Python's str.splitlines sees them.
func position(s string) (line, column int) {
	line = 1
	var previous rune
	for _, r := range s {
		column++
		switch r {
		case '\n', '\r', '\v', '\f', 0x1c, 0x1d, 0x1e, 0x85, 0x2028, 0x2029:
			if r == '\n' && previous == '\r' {
				column = 0 // the second half of one line end
				break
			}
			line, column = line+1, 0
		}
		previous = r
	}
	return line, column
}
