package schemas

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	// DefaultMaxBytes is the default of Limits.MaxBytes: 16 MiB.
	DefaultMaxBytes = 16 << 20
	// DefaultMaxDepth is the default of Limits.MaxDepth.
	DefaultMaxDepth = 64
	// DefaultMaxJobs is the default of Limits.MaxJobs.
	DefaultMaxJobs = 200_000
	// DefaultMaxValues is the default of Limits.MaxValues.
	DefaultMaxValues = 2_000_000
)

// maxLayers is how many times a body may be a JSON string that holds JSON.
// REANA's have one layer; a message that was taken from a dead-letter queue
// and published again by such a publisher has two.
const maxLayers = 4

// Limits bounds what one message may cost. A field below 1 means its default.
type Limits struct {
	// MaxBytes is the greatest size of a body. Default DefaultMaxBytes.
	MaxBytes int
	// MaxDepth is how deep objects and arrays may be nested. Default
	// DefaultMaxDepth.
	MaxDepth int
	// MaxJobs is how many job ids and job details, together, one message may
	// hold. Default DefaultMaxJobs.
	MaxJobs int
	// MaxValues is how many JSON values one message may hold, of any kind and
	// wherever. A value of two bytes takes fifty when it is read. Default
	// DefaultMaxValues.
	MaxValues int
}

// WithDefaults returns l with the default for each field below 1.
func (l Limits) WithDefaults() Limits {
	or := func(n, standard int) int {
		if n < 1 {
			return standard
		}
		return n
	}
	return Limits{
		MaxBytes:  or(l.MaxBytes, DefaultMaxBytes),
		MaxDepth:  or(l.MaxDepth, DefaultMaxDepth),
		MaxJobs:   or(l.MaxJobs, DefaultMaxJobs),
		MaxValues: or(l.MaxValues, DefaultMaxValues),
	}
}

// Parse reads the body of a message of kind k: it checks the limits, unwraps,
// decodes, upcasts and validates. The document it returns is in the strict
// form, its numbers are json.Number and its integers plain digits.
//
// Of a property that is given twice the last counts, as in Python. Anything
// but white space after the object is refused, so that no second message is
// overlooked. Every error is an *Error.
func Parse(k Kind, body []byte, lim Limits) (map[string]any, error) {
	return parse(k, body, lim.WithDefaults(), Upcast)
}

// Check reports whether body is fit to be published as a message of kind k:
// a text within the limits whose object is in the strict form as it stands.
// Layers of strings are taken off first, as the original's encoding has one.
// Every error is an *Error.
func Check(k Kind, body []byte, lim Limits) error {
	_, err := parse(k, body, lim.WithDefaults(), func(Kind, map[string]any) {})
	return err
}

func parse(k Kind, body []byte, lim Limits, upcast func(Kind, map[string]any)) (map[string]any, error) {
	if len(body) > lim.MaxBytes {
		return nil, &Error{Reason: ReasonTooLarge, Message: fmt.Sprintf("expected at most %d bytes, found %d: say it in several messages, or allow more where it is read", lim.MaxBytes, len(body))}
	}
	text, err := Unwrap(body)
	if err != nil {
		return nil, err
	}
	if deeperThan(text, lim.MaxDepth) {
		return nil, &Error{Reason: ReasonTooDeep, Message: fmt.Sprintf("expected objects and arrays at most %d deep: put what is deeper into a string", lim.MaxDepth)}
	}
	if MoreValuesThan(text, lim.MaxValues) {
		return nil, &Error{Reason: ReasonTooLarge, Message: fmt.Sprintf("expected at most %d JSON values, found more: say it in several messages", lim.MaxValues)}
	}
	doc, err := decode(text)
	if err != nil {
		return nil, err
	}
	upcast(k, doc)
	if n := jobs(doc); n > lim.MaxJobs {
		return nil, &Error{Reason: ReasonTooLarge, Pointer: "/message", Message: fmt.Sprintf("expected at most %d job ids and job details, found %d: say it in several messages", lim.MaxJobs, n)}
	}
	if err := Validate(k, doc); err != nil {
		return nil, err
	}
	return doc, nil
}

var bom = []byte("\xef\xbb\xbf")

// Unwrap returns the JSON object that body holds, as text. The bodies of
// REANA's publishers are a JSON string that holds JSON; Unwrap takes off up to
// four such layers, and byte order marks and white space around each. The
// content type has no say: publishers state it wrongly.
//
// The object is only looked at, not checked; text may share memory with body.
// The error is an *Error: for what is not UTF-8 (nothing is silently
// replaced), a string that is not JSON, too many layers, or any other JSON value.
func Unwrap(body []byte) (text []byte, err error) {
	if i := invalidUTF8(body); i >= 0 {
		return nil, notJSON("byte %d (0x%02x) is not valid UTF-8", i, body[i])
	}
	text = body
	for layer := 0; ; layer++ {
		text = bytes.Trim(bytes.TrimPrefix(bytes.Trim(text, " \t\r\n"), bom), " \t\r\n")
		if len(text) == 0 {
			return nil, notJSON("expected a JSON object, found nothing")
		}
		switch first := text[0]; {
		case first == '{':
			return text, nil
		case first == '[':
			// Said without reading on: a body of a million brackets costs nothing.
			return nil, &Error{Reason: ReasonSchema, Message: "expected an object, found an array"}
		case first == '"' && layer == maxLayers:
			return nil, &Error{Reason: ReasonTooDeep, Message: fmt.Sprintf("expected an object, found a string within a string, more than %d times", maxLayers)}
		case first == '"':
			var inner string
			if err := json.Unmarshal(text, &inner); err != nil {
				return nil, syntax(err)
			}
			text = []byte(inner)
		case layer == 0 && json.Valid(text):
			return nil, &Error{Reason: ReasonSchema, Message: "expected an object, found " + cut(string(text))}
		case layer > 0:
			// What is text and not JSON within a string is just a string.
			return nil, &Error{Reason: ReasonSchema, Message: "expected an object, found the string " + quoted(string(text))}
		default:
			return nil, notJSON("expected a JSON object, found %s", quoted(string(text)))
		}
	}
}

// invalidUTF8 is the index of the first byte of b that is not part of UTF-8
// text, or -1.
func invalidUTF8(b []byte) int {
	if utf8.Valid(b) {
		return -1
	}
	for i := 0; ; {
		r, size := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && size <= 1 {
			return i
		}
		i += size
	}
}

// deeperThan reports whether the JSON text nests deeper than limit. It stops
// at the first bracket too many and neither allocates nor checks the syntax.
func deeperThan(text []byte, limit int) bool {
	depth := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '{', '[':
			if depth++; depth > limit {
				return true
			}
		case '}', ']':
			depth--
		case '"':
			for i++; i < len(text) && text[i] != '"'; i++ {
				if text[i] == '\\' {
					i++
				}
			}
		}
	}
	return false
}

// MoreValuesThan reports whether a JSON text holds more values than limit, by
// the commas and brackets that are not in strings. It counts a key as part of
// its value, allocates nothing and does not check the syntax.
func MoreValuesThan[T ~string | ~[]byte](text T, limit int) bool {
	if len(text)/2 < limit {
		return false // each takes a byte, and one that separates it
	}
	values := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '{', '[', ',':
			if values++; values > limit {
				return true
			}
		case '"':
			for i++; i < len(text) && text[i] != '"'; i++ {
				if text[i] == '\\' {
					i++
				}
			}
		}
	}
	return false
}

func decode(text []byte) (map[string]any, error) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var doc map[string]any
	if err := decoder.Decode(&doc); err != nil {
		return nil, syntax(err)
	}
	end := decoder.InputOffset()
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, notJSON("unexpected data after the object, at byte %d", end)
	}
	return doc, nil
}

func notJSON(format string, args ...any) *Error {
	return &Error{Reason: ReasonNotJSON, Message: fmt.Sprintf(format, args...)}
}

// syntax words an error of encoding/json. Its messages quote one character of
// the input at most.
func syntax(err error) *Error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return notJSON("the text ends in the middle of a value")
	}
	if at, ok := errors.AsType[*json.SyntaxError](err); ok {
		return notJSON("%v, at byte %d", at, at.Offset)
	}
	return notJSON("%v", err)
}

// sections are the parts of progress that hold job ids.
var sections = [...]string{"total", "running", "finished", "failed", "cached"}

// jobs counts the job ids and job details of a status message.
func jobs(doc map[string]any) int {
	message, _ := doc["message"].(map[string]any)
	details, _ := message["jobs"].([]any)
	n := len(details)
	progress, _ := message["progress"].(map[string]any)
	for _, name := range sections {
		section, _ := progress[name].(map[string]any)
		ids, _ := section["job_ids"].([]any)
		n += len(ids)
	}
	return n
}

// maxDigits bounds the length of a number and its decimal exponent: beyond
// any quantity, within what Postgres stores.
const maxDigits = 1000

// absurdNumber returns the fault of a number in v that is not fit for exact
// arithmetic, or nil. path is that of v.
func absurdNumber(v any, path []string) *Error {
	switch v := v.(type) {
	case json.Number:
		if _, _, exponent, ok := parts(string(v)); !ok || exponent > maxDigits || exponent < -maxDigits {
			return &Error{
				Reason: ReasonSchema, Pointer: pointer(path),
				Message: fmt.Sprintf("expected a number of at most %d digits and an exponent of at most %d, found %s", maxDigits, maxDigits, shown(v)),
			}
		}
	case map[string]any:
		var worst *Error
		for key, value := range v {
			// Of several the first by pointer is named, as maps have no order.
			if fault := absurdNumber(value, append(path, key)); fault != nil && (worst == nil || fault.Pointer < worst.Pointer) {
				worst = fault
			}
		}
		return worst
	case []any:
		for i, value := range v {
			switch value.(type) {
			case string, bool, nil: // spare the path
			default:
				if fault := absurdNumber(value, append(path, strconv.Itoa(i))); fault != nil {
					return fault
				}
			}
		}
	}
	return nil
}

// parts splits a JSON number into the digits before and after its point and
// its exponent. ok is false if it is not a number or longer than maxDigits.
func parts(number string) (whole, fraction string, exponent int, ok bool) {
	if len(number) > maxDigits {
		return "", "", 0, false
	}
	mantissa := strings.TrimPrefix(number, "-")
	if i := strings.IndexAny(mantissa, "eE"); i >= 0 {
		var err error
		if exponent, err = strconv.Atoi(mantissa[i+1:]); err != nil {
			return "", "", 0, false
		}
		mantissa = mantissa[:i]
	}
	whole, fraction, _ = strings.Cut(mantissa, ".")
	isDigit := func(r byte) bool { return r >= '0' && r <= '9' }
	ok = whole != "" && !slices.ContainsFunc([]byte(whole+fraction), func(b byte) bool { return !isDigit(b) })
	return whole, fraction, exponent, ok
}
