package schemas

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v5"
)

const messages = "../testdata/messages"

// kindOf tells the kind of a fixture by its name.
func kindOf(path string) Kind {
	if strings.HasPrefix(filepath.Base(path), "submission-") {
		return SubmissionKind
	}
	return StatusKind
}

// fixtures lists the messages in a folder of testdata/messages.
func fixtures(t testing.TB, folder string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(messages, folder, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	var bodies []string
	for _, path := range all {
		if !strings.HasSuffix(path, ".strict.json") {
			bodies = append(bodies, path)
		}
	}
	if len(bodies) < 50 {
		t.Fatalf("%d fixtures in %s: expected many more", len(bodies), folder)
	}
	return bodies
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// pretty is v as text to compare: numbers to the digit, keys sorted. Values
// themselves are not compared, as cmp takes exponential time on deep ones.
func pretty(t testing.TB, v any) string {
	t.Helper()
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// independent compiles a schema from its published text, as anyone may who
// has only the files, with the formats of the validator and none of ours.
func independent(t testing.TB, k Kind) *jsonschema.Schema {
	t.Helper()
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat = true
	for _, name := range Names() {
		source, err := Source(name)
		if err != nil {
			t.Fatal(err)
		}
		// As files that lie in one folder.
		stripped := bytes.Replace(source, []byte(`"reana/`), []byte(`"`), 1)
		if err := compiler.AddResource("https://schemas.example/"+name, bytes.NewReader(stripped)); err != nil {
			t.Fatal(err)
		}
	}
	schema, err := compiler.Compile("https://schemas.example/" + k.String() + "-message" + suffix)
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

func TestValid(t *testing.T) {
	for _, path := range fixtures(t, "valid") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			kind := kindOf(path)
			got, err := Parse(kind, read(t, path), Limits{})
			if err != nil {
				t.Fatalf("Parse = %v", err)
			}
			strictBody := read(t, strings.TrimSuffix(path, ".json")+".strict.json")
			want, err := decode(strictBody)
			if err != nil {
				t.Fatalf("the strict form is not JSON: %v", err)
			}
			if diff := cmp.Diff(pretty(t, want), pretty(t, got)); diff != "" {
				t.Errorf("Parse gave another strict form (-want +got):\n%s", diff)
			}
			if err := independent(t, kind).Validate(any(got)); err != nil {
				t.Errorf("the published schema refuses what Parse returned: %#v", err)
			}
			if err := Check(kind, strictBody, Limits{}); err != nil {
				t.Errorf("Check of the strict form = %v", err)
			}
			again, err := Parse(kind, strictBody, Limits{})
			if diff := cmp.Diff(pretty(t, want), pretty(t, again)); err != nil || diff != "" {
				t.Errorf("Parse of the strict form changed it (-want +got), err = %v:\n%s", err, diff)
			}
		})
	}
}

func TestInvalid(t *testing.T) {
	for _, path := range fixtures(t, "invalid") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			reason, at, _ := strings.Cut(strings.TrimSuffix(string(read(t, strings.TrimSuffix(path, ".json")+".want")), "\n"), " ")
			body := read(t, path)
			for range 5 { // maps have no order; the answer must not depend on it
				doc, err := Parse(kindOf(path), body, Limits{})
				refused, ok := errors.AsType[*Error](err)
				if !ok {
					t.Fatalf("Parse = %v, %v; expected an *Error", doc, err)
				}
				if refused.Reason != reason || refused.Pointer != at {
					t.Fatalf("Parse refused for %q at %q, expected %q at %q: %v", refused.Reason, refused.Pointer, reason, at, err)
				}
				if refused.Message == "" || len(err.Error()) > 800 || strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' }) {
					t.Fatalf("the message is empty, long, or holds control characters: %q", err)
				}
			}
		})
	}
}

// TestWords fixes how faults read: they are the product of this package as
// much as its verdicts are.
func TestWords(t *testing.T) {
	const id = `"workflow_uuid":"6513270e-269e-4d37-b2a7-4de452e6b438"`
	tests := []struct {
		name, body, want string
	}{
		{"type", `{` + id + `,"status":1,"message":{"progress":{"running":{"total":"3","job_ids":[]}}}}`,
			`schema: /message/progress/running/total: expected an integer of at least 0, found "3"`},
		{"missing", `{` + id + `}`, `schema: /status: expected an integer of 0 to 7, found nothing`},
		{"range", `{` + id + `,"status":8}`, `schema: /status: expected an integer of 0 to 7, found 8`},
		{"null", `{` + id + `,"status":null}`, `schema: /status: expected an integer of 0 to 7, found null`},
		{"format", `{"workflow_uuid":"roofit.3","status":1}`, `schema: /workflow_uuid: expected a UUID, found "roofit.3"`},
		{"time", `{` + id + `,"status":1,"event_time":"noon"}`, `schema: /event_time: expected a date and time such as 2026-01-31T12:00:00Z, found "noon"`},
		{"enum", `{` + id + `,"status":1,"message":{"jobs":[{"job_id":"a","status":"done"}]}}`,
			`schema: /message/jobs/0/status: expected one of created, queued, running, finished, failed, stopped, cached, found "done"`},
		{"pattern", `{` + id + `,"status":1,"message":{"progress":{"running":{"total":1,"job_ids":["a\u0000b"]}}}}`,
			`schema: /message/progress/running/job_ids/0: expected a string of 1 to 256 characters without control characters, found "a\x00b"`},
		{"long", `{` + id + `,"status":1,"engine":"` + strings.Repeat("é", 100) + `"}`,
			`schema: /engine: expected a string of 1 to 64 characters, found "` + strings.Repeat("é", 40) + `"… (100 characters): shorten it`},
		{"object", `{` + id + `,"status":1,"logs":{"secret":1}}`, `schema: /logs: expected a string, found an object`},
		{"array", `{` + id + `,"status":1,"message":[1]}`, `schema: /message: expected an object, found an array`},
		{"exit code", `{` + id + `,"status":1,"message":{"jobs":[{"job_id":"a","exit_code":9e9}]}}`,
			`schema: /message/jobs/0/exit_code: expected an integer of -2147483648 to 2147483647, found 9000000000`},
		{"several", `{` + id + `,"status":9,"logs":1,"engine":"","message":{"progress":3}}`,
			`schema: /engine: expected a string of 1 to 64 characters, found "" (and 3 more faults)`},
		{"empty", ``, `not-json: expected a JSON object, found nothing`},
		{"text", "oops\x1b[31m", `not-json: expected a JSON object, found "oops\x1b[31m"`},
		{"syntax", `{"a":1,}`, `not-json: invalid character '}' looking for beginning of object key string, at byte 8`},
		{"truncated", `{"a":`, `not-json: the text ends in the middle of a value`},
		{"trailing", `{} {}`, `not-json: unexpected data after the object, at byte 2`},
		{"UTF-8", "{\"a\":\"\xe9\"}", `not-json: byte 6 (0xe9) is not valid UTF-8`},
		{"top-level array", `[1]`, `schema: expected an object, found an array`},
		{"top-level string", `"abc"`, `schema: expected an object, found the string "abc"`},
		{"top-level number", `12`, `schema: expected an object, found 12`},
		{"absurd", `{` + id + `,"status":1e99999}`, `schema: /status: expected a number of at most 1000 digits and an exponent of at most 1000, found 1e99999`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse(StatusKind, []byte(tt.body), Limits{})
			if got := fmt.Sprint(err); got != tt.want {
				t.Errorf("Parse error\n got %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	status := func(message string) []byte {
		return []byte(`{"workflow_uuid":"6513270e-269e-4d37-b2a7-4de452e6b438","status":1,"message":` + message + `}`)
	}
	five := status(`{"progress":{"total":{"total":1,"job_ids":["a"]},"cached":{"total":2,"job_ids":["b","c"]}},"jobs":[{"job_id":"d"},{"job_id":"e"}]}`)
	nested := status(`{"progress":{"engine_specific":[[]]}}`) // five deep
	tests := []struct {
		name   string
		body   []byte
		limits Limits
		reason string // empty: accepted
	}{
		{"bytes, just", five, Limits{MaxBytes: len(five)}, ""},
		{"bytes, over", five, Limits{MaxBytes: len(five) - 1}, ReasonTooLarge},
		{"bytes count before anything is read", []byte("nonsense"), Limits{MaxBytes: 7}, ReasonTooLarge},
		{"depth, just", nested, Limits{MaxDepth: 5}, ""},
		{"depth, over", nested, Limits{MaxDepth: 4}, ReasonTooDeep},
		{"brackets in strings do not count", status(`{"progress":{"engine_specific":"[[[[[[\"[[[[\\"}}`), Limits{MaxDepth: 3}, ""},
		{"jobs, just", five, Limits{MaxJobs: 5}, ""},
		{"jobs, over", five, Limits{MaxJobs: 4}, ReasonTooLarge},
		{"below one means default", five, Limits{MaxBytes: -1, MaxDepth: -1, MaxJobs: -1}, ""},
		{"default bytes", bytes.Repeat([]byte(" "), DefaultMaxBytes+1), Limits{}, ReasonTooLarge},
		{"default jobs", status(`{"progress":{"total":{"job_ids":["a"` + strings.Repeat(`,"a"`, DefaultMaxJobs) + `]}}}`), Limits{}, ReasonTooLarge},
		{"names from a graph count as jobs", status(`{"progress":{"engine_specific":{"dag":{"nodes":[` + strings.Repeat(`{"metadata":{"name":"x"},"jobid":{"job_id":"y"}},`, 3) + `null]}}}}`), Limits{MaxJobs: 2}, ReasonTooLarge},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse(StatusKind, tt.body, tt.limits)
			refused, _ := errors.AsType[*Error](err)
			switch {
			case tt.reason == "" && err != nil:
				t.Errorf("Parse = %v, expected no error", err)
			case tt.reason != "" && (refused == nil || refused.Reason != tt.reason):
				t.Errorf("Parse = %v, expected reason %q", err, tt.reason)
			}
		})
	}
}

// TestHostileBodiesAreCheap bounds allocations rather than time, which a busy
// machine stretches.
func TestHostileBodiesAreCheap(t *testing.T) {
	const size = 1 << 20
	tests := map[string][]byte{
		"arrays":         bytes.Repeat([]byte("["), size),
		"objects":        bytes.Repeat([]byte(`{"a":`), size/5),
		"nested arrays":  append([]byte(`{"a":`), bytes.Repeat([]byte("["), size)...),
		"unclosed quote": append([]byte(`{"`), bytes.Repeat([]byte("["), size)...),
	}
	for name, body := range tests {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := Parse(StatusKind, body, Limits{})
			runtime.ReadMemStats(&after)
			if err == nil {
				t.Fatal("accepted")
			}
			if took := after.TotalAlloc - before.TotalAlloc; took > 8*size {
				t.Errorf("refusing %d bytes of %s took %d bytes of memory", size, name, took)
			}
		})
	}
}

func TestUnwrapReturnsTheInnerText(t *testing.T) {
	const inner = `{"a": [1, "é\u00e9"]}`
	body := []byte(inner)
	for layers := 0; layers <= maxLayers; layers++ {
		got, err := Unwrap(body)
		if err != nil || string(got) != inner {
			t.Fatalf("Unwrap of %d layers = %q, %v; expected %q", layers, got, err, inner)
		}
		next, err := json.Marshal(string(body))
		if err != nil {
			t.Fatal(err)
		}
		body = next
	}
	_, err := Unwrap(body)
	if refused, _ := errors.AsType[*Error](err); refused == nil || refused.Reason != ReasonTooDeep {
		t.Errorf("Unwrap of %d layers = %v, expected %q", maxLayers+1, err, ReasonTooDeep)
	}
}

// TestInteger checks the conversion against exact cases.
func TestInteger(t *testing.T) {
	tests := map[string]string{ // empty: unchanged
		"0": "0", "-0": "-0", "7": "7", "1.0": "1", "-1.0": "-1", "-0.0": "0", "1e2": "100", "1.5e1": "15", "1500e-2": "15",
		"0.0e5": "0", "100e-2": "1", "0e-5": "0", "1E+0": "1", "12345678901234567890.0": "12345678901234567890",
		"1.5": "", "1e-1": "", "15e-2": "", "1.0000000000000000000000000000000001": "", "1e1001": "", "1e99999999999999999999": "", "true": "",
	}
	for in, want := range tests {
		if want == "" {
			want = in
		}
		if got := integer(json.Number(in)); got != json.Number(want) {
			t.Errorf("integer(%s) = %v, expected %s", in, got, want)
		}
	}
	if got := integer(float64(3)); got != json.Number("3") {
		t.Errorf("integer(3.0 as float64) = %v, expected 3", got)
	}
}

func TestValidateTakesPlainDecodedJSON(t *testing.T) {
	var doc any
	if err := json.Unmarshal([]byte(`{"workflow_uuid":"6513270e-269e-4d37-b2a7-4de452e6b438","status":1,"message":{"progress":{"total":{"total":3,"job_ids":["a"]}}}}`), &doc); err != nil {
		t.Fatal(err)
	}
	if err := Validate(StatusKind, doc); err != nil {
		t.Errorf("Validate = %v, expected no error", err)
	}
	for _, doc := range []any{nil, "x", 3.0, []any{}, map[string]any{"status": struct{}{}}} {
		if _, ok := errors.AsType[*Error](Validate(SubmissionKind, doc)); !ok {
			t.Errorf("Validate(%v): expected an *Error", doc)
		}
	}
	if err := Validate(Kind(7), map[string]any{}); err == nil {
		t.Error("Validate of an unknown kind: expected an error")
	}
}

func TestCheckDoesNotUpcast(t *testing.T) {
	for _, body := range []string{
		`{"workflow_uuid":"6513270e-269e-4d37-b2a7-4de452e6b438","status":1,"logs":null}`,
		`{"workflow_uuid":"6513270e-269e-4d37-b2a7-4de452e6b438","status":"running"}`,
	} {
		if err := Check(StatusKind, []byte(body), Limits{}); err == nil {
			t.Errorf("Check(%s): expected an error", body)
		}
	}
	if err := Check(SubmissionKind, []byte(`{"user":"u","workflow_id_or_name":"w","priority":250}`), Limits{}); err == nil {
		t.Error("Check of priority 250: expected an error")
	}
}

func TestSource(t *testing.T) {
	for _, name := range Names() {
		for _, spelling := range []string{name, strings.TrimSuffix(name, suffix)} {
			source, err := Source(spelling)
			if err != nil {
				t.Fatalf("Source(%q) = %v", spelling, err)
			}
			var schema map[string]any
			if err := json.Unmarshal(source, &schema); err != nil {
				t.Fatalf("%s is not JSON: %v", name, err)
			}
			if want := "reana/" + name; schema["$id"] != want {
				t.Errorf("%s has $id %v, expected %s", name, schema["$id"], want)
			}
			undocumented(t, name, schema)
		}
	}
	for _, name := range []string{"", "nonesuch", "../go.mod", "jobs-status-message.schema.json.schema.json"} {
		_, err := Source(name)
		if err == nil || !strings.Contains(err.Error(), sectionFile) {
			t.Errorf("Source(%q) = %v, expected an error that lists the names", name, err)
		}
	}
}

// undocumented fails for each property without title and description, and for
// patterns that the messages have no words for.
func undocumented(t *testing.T, at string, schema map[string]any) {
	t.Helper()
	if schema["title"] == nil || schema["description"] == nil {
		t.Errorf("%s: no title or no description", at)
	}
	if pattern, ok := schema["pattern"]; ok && pattern != noControl {
		t.Errorf("%s: pattern %v is not %s", at, pattern, noControl)
	}
	properties, _ := schema["properties"].(map[string]any)
	for name, property := range properties {
		undocumented(t, at+"/"+name, property.(map[string]any))
	}
	for _, keyword := range []string{"items", "additionalProperties"} {
		if sub, ok := schema[keyword].(map[string]any); ok {
			undocumented(t, at+"/"+keyword, sub)
		}
	}
}

func TestKindNames(t *testing.T) {
	for kind, want := range map[Kind]string{StatusKind: "jobs-status", SubmissionKind: "workflow-submission", 9: "kind(9)"} {
		if got := kind.String(); got != want {
			t.Errorf("Kind(%d).String() = %q, expected %q", int(kind), got, want)
		}
	}
}

func FuzzUnwrap(f *testing.F) {
	for _, folder := range []string{"valid", "invalid"} {
		for _, path := range fixtures(f, folder) {
			f.Add(read(f, path))
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		text, err := Unwrap(body)
		if err != nil {
			if _, ok := errors.AsType[*Error](err); !ok {
				t.Fatalf("Unwrap(%q) = %v, not an *Error", body, err)
			}
			return
		}
		if len(text) == 0 || text[0] != '{' || len(text) > 3*len(body) {
			t.Fatalf("Unwrap(%q) = %q, expected the text of an object", body, text)
		}
		if again, err := Unwrap(text); err != nil || !bytes.Equal(again, text) {
			t.Fatalf("Unwrap twice = %q, %v; expected %q", again, err, text)
		}
		wrapped, err := json.Marshal(string(text))
		if err != nil {
			t.Fatal(err)
		}
		if again, err := Unwrap(wrapped); err != nil || !bytes.Equal(again, text) {
			t.Fatalf("Unwrap of the wrapped text = %q, %v; expected %q", again, err, text)
		}
	})
}
