package schemas

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/santhosh-tekuri/jsonschema/v5"
)

// Reasons for which a message is refused. They travel in the headers of dead
// letters, so they are never renamed.
const (
	// ReasonNotJSON: the body is not a JSON text in UTF-8.
	ReasonNotJSON = "not-json"
	// ReasonTooLarge: the body has more bytes, or names more jobs, than allowed.
	ReasonTooLarge = "too-large"
	// ReasonTooDeep: the body is nested, or encoded as a string within a
	// string, more often than allowed.
	ReasonTooDeep = "too-deep"
	// ReasonSchema: the body is JSON and does not conform to the schema.
	ReasonSchema = "schema"
)

// Error says why a message was refused.
type Error struct {
	// Reason is one of the Reason constants.
	Reason string
	// Pointer is the RFC 6901 JSON pointer of the value to blame, in the
	// message after Upcast. It points at the place of a property that is
	// missing. Empty means the whole message.
	Pointer string
	// Message says what was expected and what was found, without Pointer.
	// Values in it are cut short, and their control characters escaped.
	Message string
}

// Error returns reason, pointer and message on one line.
func (e *Error) Error() string {
	if e.Pointer == "" {
		return e.Reason + ": " + e.Message
	}
	return e.Reason + ": " + printable(e.Pointer) + ": " + e.Message
}

const (
	maxShown   = 40  // characters of a value in a message
	maxPointer = 512 // bytes of a pointer
)

// explain turns the validator's tree of faults into the one that helps a
// person most: the outermost, as it often causes those within, then the first
// in the order of the pointers, so that the same body always gives the same answer.
func (c *contract) explain(invalid *jsonschema.ValidationError, doc any) *Error {
	leaves := leavesOf(invalid, nil)
	depth := func(e *jsonschema.ValidationError) int {
		n := 2 * strings.Count(e.InstanceLocation, "/")
		if strings.HasSuffix(e.AbsoluteKeywordLocation, "/required") {
			n += 3 // a property that is missing comes after those that are wrong
		}
		return n
	}
	first := slices.MinFunc(leaves, func(a, b *jsonschema.ValidationError) int {
		return cmp.Or(
			cmp.Compare(depth(a), depth(b)),
			cmp.Compare(a.InstanceLocation, b.InstanceLocation),
			cmp.Compare(a.AbsoluteKeywordLocation, b.AbsoluteKeywordLocation),
		)
	})
	path := pathOf(first.InstanceLocation)
	value := valueAt(doc, path)
	schema, keyword := c.schemaAt(first.AbsoluteKeywordLocation)

	e := &Error{Reason: ReasonSchema}
	if keyword == "required" {
		missing := firstMissing(schema, value)
		path = append(path, missing)
		property, _ := schema["properties"].(map[string]any)[missing].(map[string]any)
		e.Message = "expected " + expectation(property) + ", found nothing"
	} else {
		e.Message = "expected " + expectation(schema) + ", found " + shown(value)
		// What is too much is told by how much it is, and what to do.
		switch object, _ := value.(map[string]any); {
		case strings.Contains(first.AbsoluteKeywordLocation, "/propertyNames/") && len(path) > 0:
			e.Message = "expected the key to be " + expectation(schema) + ", found " + shown(path[len(path)-1]) + ": shorten it"
		case keyword == "maxLength":
			e.Message += ": shorten it"
		case keyword == "maxProperties":
			e.Message = fmt.Sprintf("expected %s, found %d: leave some out", expectation(schema), len(object))
		}
	}
	e.Pointer = pointer(path)
	switch more := len(leaves) - 1; {
	case more == 1:
		e.Message += " (and 1 more fault)"
	case more > 1:
		e.Message += fmt.Sprintf(" (and %d more faults)", more)
	}
	return e
}

func leavesOf(e *jsonschema.ValidationError, leaves []*jsonschema.ValidationError) []*jsonschema.ValidationError {
	if len(e.Causes) == 0 {
		return append(leaves, e)
	}
	for _, cause := range e.Causes {
		leaves = leavesOf(cause, leaves)
	}
	return leaves
}

// schemaAt returns the schema that holds the keyword at an absolute location
// such as "mem:///x.schema.json#/properties/status/minimum", and the keyword.
func (c *contract) schemaAt(location string) (schema map[string]any, keyword string) {
	file, fragment, _ := strings.Cut(location, "#")
	path := pathOf(fragment)
	if len(path) == 0 {
		return nil, ""
	}
	last := len(path) - 1
	schema, _ = valueAt(c.text[file[strings.LastIndexByte(file, '/')+1:]], path[:last]).(map[string]any)
	return schema, path[last]
}

func firstMissing(schema map[string]any, value any) string {
	object, _ := value.(map[string]any)
	required, _ := schema["required"].([]any)
	for _, name := range required {
		if _, ok := object[name.(string)]; !ok {
			return name.(string)
		}
	}
	return ""
}

// expectation says in words what a schema accepts, such as "an integer of 0 to 7".
func expectation(schema map[string]any) string {
	if words, ok := schema["enum"].([]any); ok {
		var list []string
		for _, word := range words {
			list = append(list, fmt.Sprint(word))
		}
		return "one of " + strings.Join(list, ", ")
	}
	switch schema["format"] {
	case "uuid":
		return "a UUID"
	case "date-time":
		return "a date and time such as 2026-01-31T12:00:00Z"
	}
	switch schema["type"] {
	case "integer":
		return "an integer" + between(schema["minimum"], schema["maximum"], "")
	case "number":
		return "a number" + between(schema["minimum"], schema["maximum"], "")
	case "string":
		words := "a string" + between(schema["minLength"], schema["maxLength"], " characters")
		if schema["pattern"] == noControl {
			words += " without control characters"
		}
		return words
	case "array":
		return "an array"
	case "object":
		return "an object" + between(schema["minProperties"], schema["maxProperties"], " properties")
	default:
		return "a value that the schema allows"
	}
}

func between(low, high any, unit string) string {
	// A bound this high is one of storage; to name it would only distract.
	const storage = 1 << 31
	from, hasLow := low.(float64)
	to, hasHigh := high.(float64)
	number := func(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }
	switch {
	case hasLow && hasHigh && to < storage-1:
		return " of " + number(from) + " to " + number(to) + unit
	case hasLow && from > -storage:
		return " of at least " + number(from) + unit
	case hasHigh && hasLow:
		return " of " + number(from) + " to " + number(to) + unit
	case hasHigh:
		return " of at most " + number(to) + unit
	default:
		return ""
	}
}

// shown describes a value that was found. Of objects and arrays it only says
// that they are: a message about a body never holds the body.
func shown(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case string:
		return quoted(v)
	case map[string]any:
		return "an object"
	case []any:
		return "an array"
	case json.Number:
		return cut(string(v))
	default:
		return cut(fmt.Sprint(v))
	}
}

func quoted(s string) string {
	short := cut(s)
	if short == s {
		return strconv.Quote(s)
	}
	return fmt.Sprintf("%q… (%d characters)", strings.TrimSuffix(short, "…"), utf8.RuneCountInString(s))
}

// cut shortens s to a length fit for a line of text.
func cut(s string) string {
	n := 0
	for i := range s {
		if n == maxShown {
			return s[:i] + "…"
		}
		n++
	}
	return s
}

// printable escapes the control characters of a pointer.
func printable(s string) string {
	q := strconv.Quote(s)
	return strings.ReplaceAll(strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`), `\\`, `\`)
}

// pathOf splits a pointer of the validator, which escapes tokens for URLs too.
func pathOf(location string) []string {
	if location == "" {
		return nil
	}
	tokens := strings.Split(strings.TrimPrefix(location, "/"), "/")
	for i, token := range tokens {
		if plain, err := url.PathUnescape(token); err == nil {
			token = plain
		}
		tokens[i] = strings.ReplaceAll(strings.ReplaceAll(token, "~1", "/"), "~0", "~")
	}
	return tokens
}

// pointer joins a path to an RFC 6901 pointer. Where a hostile key would make
// it unreasonably long it points at the nearest parent that does not.
func pointer(path []string) string {
	var b strings.Builder
	for _, token := range path {
		if b.Len()+1+len(token) > maxPointer {
			break
		}
		b.WriteByte('/')
		b.WriteString(strings.ReplaceAll(strings.ReplaceAll(token, "~", "~0"), "/", "~1"))
	}
	return b.String()
}

func valueAt(v any, path []string) any {
	for _, token := range path {
		switch parent := v.(type) {
		case map[string]any:
			v = parent[token]
		case []any:
			i, err := strconv.Atoi(token)
			if err != nil || i < 0 || i >= len(parent) {
				return nil
			}
			v = parent[i]
		default:
			return nil
		}
	}
	return v
}
