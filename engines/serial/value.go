package serial

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"unicode"

	"waymark/engines"
)

// A value is what a parameter may be: nil, bool, *big.Int, float64, string,
// []value or *mapping. These are the kinds that Python has after REANA's client
// has read the YAML and its server the JSON, and they print as they do there.
type value any

// mapping is a value with keys in the order of the file.
type mapping struct {
	keys   []string
	values map[string]value
}

func newMapping() *mapping { return &mapping{values: make(map[string]value)} }

// set gives key a value; the first mention decides its place, as in Python.
func (m *mapping) set(key string, v value) {
	if _, ok := m.values[key]; !ok {
		m.keys = append(m.keys, key)
	}
	m.values[key] = v
}

// pythonStr is Python's str(v): what a parameter looks like in a command.
func pythonStr(v value) string {
	if s, ok := v.(string); ok {
		return s
	}
	var b strings.Builder
	writeRepr(&b, v)
	return b.String()
}

// writeRepr writes Python's repr(v).
func writeRepr(b *strings.Builder, v value) {
	switch v := v.(type) {
	case nil:
		b.WriteString("None")
	case bool:
		if v {
			b.WriteString("True")
		} else {
			b.WriteString("False")
		}
	case *big.Int:
		b.WriteString(v.String())
	case float64:
		b.WriteString(pythonFloat(v))
	case string:
		writeStringRepr(b, v)
	case []value:
		b.WriteByte('[')
		for i, item := range v {
			if i > 0 {
				b.WriteString(", ")
			}
			writeRepr(b, item)
		}
		b.WriteByte(']')
	case *mapping:
		b.WriteByte('{')
		for i, key := range v.keys {
			if i > 0 {
				b.WriteString(", ")
			}
			writeStringRepr(b, key)
			b.WriteString(": ")
			writeRepr(b, v.values[key])
		}
		b.WriteByte('}')
	default:
		panic(fmt.Sprintf("serial: a parameter of type %T", v))
	}
}

// pythonFloat is Python's repr of a float: the shortest digits that read back
// as f, with an exponent below 1e-4 and from 1e16.
func pythonFloat(f float64) string {
	switch {
	case math.IsNaN(f):
		return "nan"
	case math.IsInf(f, 0):
		return strings.TrimPrefix(strings.ToLower(strconv.FormatFloat(f, 'f', -1, 64)), "+")
	}
	scientific := strconv.FormatFloat(f, 'e', -1, 64)
	_, exponent, _ := strings.Cut(scientific, "e")
	if n, _ := strconv.Atoi(exponent); n < -4 || n >= 16 {
		return scientific
	}
	s := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// writeStringRepr writes s as Python quotes it inside a list or dict.
func writeStringRepr(b *strings.Builder, s string) {
	quote := byte('\'')
	if strings.Contains(s, "'") && !strings.Contains(s, `"`) {
		quote = '"'
	}
	b.WriteByte(quote)
	for _, r := range s {
		switch {
		case r == rune(quote), r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r < 0x100:
			fmt.Fprintf(b, `\x%02x`, r)
		case r < 0x10000:
			fmt.Fprintf(b, `\u%04x`, r)
		default:
			fmt.Fprintf(b, `\U%08x`, r)
		}
	}
	b.WriteByte(quote)
}

// appendJSON appends v as strict JSON, which has no NaN and no infinities: they
// become strings. NUL, which databases refuse, becomes U+FFFD.
func appendJSON(b *bytes.Buffer, v value) {
	switch v := v.(type) {
	case nil:
		b.WriteString("null")
	case bool:
		b.WriteString(strconv.FormatBool(v))
	case *big.Int:
		b.WriteString(v.String())
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			appendJSON(b, pythonFloat(v))
			return
		}
		b.WriteString(pythonFloat(v))
	case string:
		text, _ := json.Marshal(engines.Text(v)) // a string always can be
		b.Write(text)
	case []value:
		b.WriteByte('[')
		for i, item := range v {
			if i > 0 {
				b.WriteByte(',')
			}
			appendJSON(b, item)
		}
		b.WriteByte(']')
	case *mapping:
		b.WriteByte('{')
		for i, key := range v.keys {
			if i > 0 {
				b.WriteByte(',')
			}
			appendJSON(b, key)
			b.WriteByte(':')
			appendJSON(b, v.values[key])
		}
		b.WriteByte('}')
	default:
		panic(fmt.Sprintf("serial: a parameter of type %T", v))
	}
}

func toJSON(v value) json.RawMessage {
	var b bytes.Buffer
	appendJSON(&b, v)
	return b.Bytes()
}
