package schemas

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v5"
)

// Kind is a kind of message; each has a queue and a schema of its own.
type Kind int

const (
	// StatusKind is a jobs-status message: what an engine says about a run.
	StatusKind Kind = iota
	// SubmissionKind is a workflow-submission message: a platform asks for a run.
	SubmissionKind
)

// String returns the name of the queue that messages of kind k travel by,
// such as "jobs-status".
func (k Kind) String() string {
	switch k {
	case StatusKind:
		return "jobs-status"
	case SubmissionKind:
		return "workflow-submission"
	default:
		return fmt.Sprintf("kind(%d)", int(k))
	}
}

const (
	statusFile     = "jobs-status-message.schema.json"
	sectionFile    = "jobs-status-message-progress-status.schema.json"
	submissionFile = "workflow-submission-message.schema.json"

	suffix = ".schema.json"
	// noControl is the pattern of ids. Go and ECMA 262, the dialect of JSON
	// Schema, both read it.
	noControl = `^[^\x00-\x1f\x7f-\x9f]*$`
)

//go:embed *.schema.json
var files embed.FS

// Names lists the schema files.
func Names() []string { return []string{statusFile, sectionFile, submissionFile} }

// Source returns the text of a schema file. The name may lack its suffix
// ".schema.json". The error lists the names there are.
func Source(name string) ([]byte, error) {
	file := strings.TrimSuffix(name, suffix) + suffix
	if !slices.Contains(Names(), file) {
		return nil, fmt.Errorf("no schema %q: expected one of %s", name, strings.Join(Names(), ", "))
	}
	return files.ReadFile(file)
}

// Validate reports whether doc is the strict form of a message of kind k: what
// is published, and what remains after Upcast. doc is what encoding/json
// decodes into an any; numbers may be json.Number, and are then judged
// exactly. The error is an *Error with ReasonSchema.
func Validate(k Kind, doc any) error {
	// The validator computes with unbounded rationals. An absurd number must
	// not reach it, and no database column would take it.
	if fault := absurdNumber(doc, nil); fault != nil {
		return fault
	}
	c := load()
	var schema *jsonschema.Schema
	switch k {
	case StatusKind:
		schema = c.status
	case SubmissionKind:
		schema = c.submission
	default:
		return fmt.Errorf("no schema for messages of %v", k)
	}
	err := schema.Validate(doc)
	if err == nil {
		return nil
	}
	if invalid, ok := errors.AsType[*jsonschema.ValidationError](err); ok {
		return c.explain(invalid, doc)
	}
	return &Error{Reason: ReasonSchema, Message: fmt.Sprintf("expected a decoded JSON value: %v", err)}
}

// contract holds the compiled schemas, and their text to explain faults with.
type contract struct {
	status, submission *jsonschema.Schema
	text               map[string]map[string]any // by file name
}

// load compiles the embedded files, once. They cannot fail to compile but by
// a mistake in the files, which the tests would see.
var load = sync.OnceValue(func() *contract {
	const base = "mem:///"
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat = true
	compiler.Formats["date-time"] = isTime
	compiler.LoadURL = func(url string) (io.ReadCloser, error) {
		return nil, fmt.Errorf("schema %q is not embedded", url)
	}
	c := &contract{text: make(map[string]map[string]any)}
	for _, file := range Names() {
		text, err := files.ReadFile(file)
		if err != nil {
			panic(fmt.Sprintf("schemas: reading %s: %v", file, err))
		}
		// A $ref resolves against the $id, which lies one folder down from base.
		for _, url := range []string{base + file, base + "reana/" + file} {
			if err := compiler.AddResource(url, bytes.NewReader(text)); err != nil {
				panic(fmt.Sprintf("schemas: adding %s: %v", file, err))
			}
		}
		var schema map[string]any
		if err := json.Unmarshal(text, &schema); err != nil {
			panic(fmt.Sprintf("schemas: decoding %s: %v", file, err))
		}
		c.text[file] = schema
	}
	c.status = compiler.MustCompile(base + statusFile)
	c.submission = compiler.MustCompile(base + submissionFile)
	return c
})

// isTime is the format date-time, less what Go and Postgres cannot hold as a
// time: leap seconds, and years outside 1 to 9999 in UTC.
func isTime(v any) bool {
	s, ok := v.(string)
	if !ok {
		return true
	}
	// time.Parse alone is too kind: it takes a comma, and hours of one digit.
	if !jsonschema.Formats["date-time"](s) {
		return false
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return false
	}
	year := t.UTC().Year()
	return year >= 1 && year <= 9999
}
