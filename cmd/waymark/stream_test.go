package main

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

type piece struct {
	Line int
	Body string
}

func split(t testing.TB, r io.Reader, limit int) (pieces []piece) {
	for doc, err := range documents(r, limit) {
		if err != nil {
			t.Fatalf("documents: %v", err)
		}
		body := string(doc.body)
		if doc.err != nil {
			body = doc.err.Reason
		}
		pieces = append(pieces, piece{doc.line, body})
	}
	return pieces
}

func TestDocuments(t *testing.T) {
	tests := []struct {
		name, in string
		want     []piece
	}{
		{"nothing", " \n\t\r\n", nil},
		{"lines", "{\"a\":1}\n{\"b\":2}\r\n\n{\"c\":3}", []piece{{1, `{"a":1}`}, {2, `{"b":2}`}, {4, `{"c":3}`}}},
		{"spread over lines", "{\n \"a\": [\n  {}\n ]\n}\n{}", []piece{{1, "{\n \"a\": [\n  {}\n ]\n}"}, {6, "{}"}}},
		{"on one line", `{}{} [1]`, []piece{{1, "{}"}, {1, "{}"}, {1, "[1]"}}},
		{"strings, as REANA sends", "\"{\\\"a\\\": 1}\"\n\"{}\"\n", []piece{{1, `"{\"a\": 1}"`}, {2, `"{}"`}}},
		{"brackets and quotes in strings", `{"a":"}\"{\\"}` + "\n{}", []piece{{1, `{"a":"}\"{\\"}`}, {2, "{}"}}},
		{"byte order mark", "\ufeff{}\n", []piece{{1, "{}"}}},
		{"line broken off in a string", "{\"a\": \"xy\n{\"b\":1}\n", []piece{{1, `{"a": "xy`}, {2, `{"b":1}`}}},
		{"line broken off after a key", "{\"a\"\n{\"b\":1}\n", []piece{{1, "{\"a\""}, {2, `{"b":1}`}}},
		{"line broken off after a comma", "{\"a\":1,\n{\"b\":1}\n", []piece{{1, `{"a":1,`}, {2, `{"b":1}`}}},
		{"objects of an array, not indented", "{\"a\":[\n{},\n{}\n]}\n", []piece{{1, "{\"a\":[\n{},\n{}\n]}"}}},
		{"value on a line of its own", "{\"a\":\n{}\n}\n", []piece{{1, "{\"a\":\n{}\n}"}}},
		{"no JSON", "hello\n{}\nnull\n", []piece{{1, "hello"}, {2, "{}"}, {3, "null"}}},
		{"end in the middle", "{\"a\":", []piece{{1, `{"a":`}}},
		{"too large", "{\"a\":\"" + strings.Repeat("x", 100) + "\"}\n{}\n", []piece{{1, "too-large"}, {2, "{}"}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, split(t, strings.NewReader(test.in), 50)); diff != "" {
				t.Errorf("documents of %q (-want, +got):\n%s", test.in, diff)
			}
			if diff := cmp.Diff(test.want, split(t, iotest.OneByteReader(strings.NewReader(test.in)), 50)); diff != "" {
				t.Errorf("documents of %q, byte by byte (-want, +got):\n%s", test.in, diff)
			}
		})
	}
}

// Whatever JSON is written, in whatever layout, comes out again.
func TestDocumentsFindsEveryText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOf(rapid.MapOf(rapid.String(), rapid.Custom(func(t *rapid.T) any {
			return rapid.SampledFrom([]any{nil, "}\n{\"", 1.5, []any{map[string]any{}, map[string]any{"a": "\\"}}, map[string]any{"b": []any{}}}).Draw(t, "value")
		}))).Draw(t, "values")
		var in strings.Builder
		var want []string
		for _, v := range values {
			text, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			if rapid.Bool().Draw(t, "indented") {
				if text, err = json.MarshalIndent(v, rapid.SampledFrom([]string{"", " "}).Draw(t, "prefix"), rapid.SampledFrom([]string{"", "\t"}).Draw(t, "indent")); err != nil {
					t.Fatal(err)
				}
			}
			if rapid.Bool().Draw(t, "encoded twice") {
				if text, err = json.Marshal(string(text)); err != nil {
					t.Fatal(err)
				}
			}
			in.Write(text)
			in.WriteString(rapid.SampledFrom([]string{"\n", "\r\n", "\n\n", " "}).Draw(t, "end"))
			want = append(want, string(text))
		}
		var got []string
		for doc, err := range documents(strings.NewReader(in.String()), 1<<20) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, string(doc.body))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("documents of %q (-want, +got):\n%s", in.String(), diff)
		}
	})
}

// A huge file, and a huge line in it, cost no more memory than a message may.
func TestDocumentsReadsLittle(t *testing.T) {
	line := strings.NewReader("{\"a\":\"")
	huge := io.MultiReader(line, io.LimitReader(endless('['), 256<<20), strings.NewReader("\n{}\n"))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	got := split(t, huge, 1<<20)
	runtime.ReadMemStats(&after)
	if diff := cmp.Diff([]piece{{1, "too-large"}, {2, "{}"}}, got); diff != "" {
		t.Errorf("documents (-want, +got):\n%s", diff)
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > 32<<20 {
		t.Errorf("reading 256 MiB took %d MiB of memory, want less than 32", used>>20)
	}
}

type endless byte

func (e endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(e)
	}
	return len(p), nil
}

func TestDocumentsReportsReadErrors(t *testing.T) {
	broken := io.MultiReader(strings.NewReader("{}\n{"), iotest.ErrReader(fmt.Errorf("disk on fire")))
	var last error
	n := 0
	for _, err := range documents(broken, 100) {
		n++
		last = err
	}
	if n != 2 || last == nil || !strings.Contains(last.Error(), "disk on fire") {
		t.Errorf("%d documents, last error %v; want one document, then the error", n, last)
	}
}

// Whatever the bytes, splitting ends, keeps to the limit and invents nothing.
func FuzzDocuments(f *testing.F) {
	f.Add("{\"a\": [\n{}]}\n\"{}\"\n", 100)
	f.Add("\ufeff{\"a\"\n{\"b\": \"\\\"\n{}", 5)
	f.Fuzz(func(t *testing.T, in string, limit int) {
		limit = min(max(limit, 1), 1<<20)
		rest, line := in, 1
		for doc, err := range documents(strings.NewReader(in), limit) {
			if err != nil {
				t.Fatal(err)
			}
			if len(doc.body) > limit {
				t.Fatalf("a body of %d bytes, the limit is %d", len(doc.body), limit)
			}
			if doc.line < line {
				t.Fatalf("line %d after line %d", doc.line, line)
			}
			line = doc.line
			at := strings.Index(rest, string(doc.body))
			if at < 0 {
				t.Fatalf("body %q is not what is left of the input: %q", doc.body, rest)
			}
			rest = rest[at+len(doc.body):]
		}
	})
}
