package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"waymark/schemas"
	"waymark/workflow"
)

// agrees fails if the fast path accepts body, and the schema does not or
// understands something else. It returns whether the fast path accepts.
func agrees(t interface {
	Helper()
	Fatalf(format string, args ...any)
}, body []byte, lim schemas.Limits) bool {
	t.Helper()
	kept := bytes.Clone(body)
	fast := readStatus(body, lim)
	if !bytes.Equal(kept, body) {
		t.Fatalf("the fast path changed the body\n from %q\n to   %q", kept, body)
	}
	if fast == nil {
		return false
	}
	slow, err := parseStatus(body, lim)
	if err != nil {
		t.Fatalf("the fast path accepts, with limits %+v, what is refused: %v\n%q", lim, err, body)
	}
	// Not cmp: no difference is allowed, be it nil or empty, or in a location.
	if !reflect.DeepEqual(slow, fast) {
		t.Fatalf("the fast path reads something else (-schema +fast):\n%s\n%q", cmp.Diff(slow, fast), body)
	}
	return true
}

// fixture is a body and where it is from.
type fixture struct {
	name string
	body []byte
}

func statusFixtures(t testing.TB, folder string) []fixture {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(shared, "messages", folder, "status-*.json"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no messages in %s: %v", folder, err)
	}
	var all []fixture
	for _, path := range paths {
		body, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fixture{strings.TrimSuffix(filepath.Base(path), ".json"), body})
	}
	return all
}

// forms lists the ways to encode body that are on the wire, and two that are not.
func forms(t testing.TB, body []byte) [][]byte {
	t.Helper()
	double := wrap(t, body)
	return [][]byte{body, Reana(body), double, wrap(t, double), slices.Concat([]byte(" \t\r\n"), double, []byte("\n "))}
}

// leftToTheSchema lists the valid fixtures that the fast path does not cover:
// forms nobody sends today, and Yadage's snapshots.
var leftToTheSchema = map[string]bool{
	"status-bom-and-space":              true,
	"status-bom-within-string":          true,
	"status-dag-of-named-engine":        true, // not canonical
	"status-duplicate-keys":             true,
	"status-every-property":             true, // not canonical
	"status-float-for-integer":          true,
	"status-job-id-longest":             true, // of more bytes than characters
	"status-lone-surrogates":            true,
	"status-nearly-too-deep":            true, // names no engine
	"status-negative-total":             true, // one of them has twenty digits
	"status-nul-in-text":                true,
	"status-quadruple-string":           true,
	"status-string-message":             true,
	"status-string-message-absent-logs": true,
	"status-string-message-and-logs":    true,
	"status-triple-encoded":             true,
	"status-uuid-braces":                true,
	"status-uuid-braces-undashed":       true,
	"status-uuid-undashed":              true,
	"status-uuid-urn":                   true,
	"status-word-for-status":            true,
	"status-word-for-status-pending":    true,
	"status-yadage-engine-named":        true,
	"status-yadage-jobs-given":          true,
	"status-yadage-odd-nodes":           true,
	"status-yadage-snapshot":            true,
}

func TestFastPathOnTheFixtures(t *testing.T) {
	accepted, met := 0, 0
	valid := statusFixtures(t, "valid")
	for _, f := range valid {
		name := strings.TrimSuffix(f.name, ".strict")
		fast := agrees(t, f.body, schemas.Limits{})
		if fast {
			accepted++
		}
		if name == f.name {
			if fast == leftToTheSchema[name] {
				t.Errorf("%s: the fast path accepts = %t, and it is listed as left to the schema: %t", name, fast, leftToTheSchema[name])
			}
			if leftToTheSchema[name] {
				met++
			}
		}
		for _, form := range forms(t, f.body) {
			agrees(t, form, schemas.Limits{})
		}
	}
	if met != len(leftToTheSchema) {
		t.Errorf("%d of the %d fixtures that are left to the schema exist", met, len(leftToTheSchema))
	}
	t.Logf("the fast path accepts %d of %d valid fixtures", accepted, len(valid))

	for _, f := range statusFixtures(t, "invalid") {
		for _, form := range forms(t, f.body) {
			if !utf8.Valid(f.body) {
				form = f.body // of which encoding would make valid text
			}
			if m := readStatus(form, schemas.Limits{}); m != nil {
				t.Errorf("the fast path accepts the invalid %s: %q", f.name, form)
			}
		}
	}
}

// TestFastPathOnTheRecordings: whatever a producer of REANA's was seen to send
// takes the fast path, but Yadage's snapshots.
func TestFastPathOnTheRecordings(t *testing.T) {
	type record struct {
		Queue, Producer, Note string
		Body                  json.RawMessage
		Case                  string
		WireBody              string `json:"wire_body"`
		Decoded               json.RawMessage
	}
	accepted, all := 0, 0
	check := func(at string, body []byte, exempt bool) {
		t.Helper()
		all++
		fast := agrees(t, body, schemas.Limits{})
		if fast {
			accepted++
		} else if !exempt {
			t.Errorf("%s: the fast path does not take %s", at, body)
		}
	}
	for i, r := range lines[record](t, filepath.Join(shared, "reana/reana-messages.jsonl")) {
		if r.Queue == schemas.SubmissionKind.String() {
			continue
		}
		_, exempt := refused[r.Note]
		exempt = exempt || r.Producer == "abnormal" || r.Producer == "snakemake-patched" || bytes.Contains(r.Body, []byte("engine_specific"))
		for _, form := range [][]byte{Reana(r.Body), r.Body} {
			check(fmt.Sprintf("line %d, %s", i+1, r.Producer), form, exempt)
		}
	}
	for _, engine := range []string{"serial", "yadage"} {
		paths, err := filepath.Glob(filepath.Join(shared, "reana", engine, "*.jsonl"))
		if err != nil || len(paths) == 0 {
			t.Fatalf("no recordings of %s: %v", engine, err)
		}
		for _, path := range paths {
			for i, r := range lines[record](t, path) {
				if r.Case != "" || r.Decoded == nil {
					continue
				}
				body := []byte(r.WireBody)
				if len(body) == 0 {
					body = Reana(r.Decoded)
				}
				check(fmt.Sprintf("%s, line %d", filepath.Base(path), i+1), body, bytes.Contains(body, []byte("engine_specific")))
			}
		}
	}
	t.Logf("the fast path accepts %d of %d recorded bodies", accepted, all)
}

// TestFastPathTakesOurOwn: what EncodeStatus writes takes the fast path, in all
// its properties.
func TestFastPathTakesOurOwn(t *testing.T) {
	for name, m := range map[string]*workflow.StatusMessage{
		"all fields": full(), "one job": benchmarkMessage(1, "a\nb\n"), "10 000 jobs": benchmarkMessage(10_000, ""),
	} {
		body, err := EncodeStatus(m)
		if err != nil {
			t.Fatal(err)
		}
		for i, form := range [][]byte{body, Reana(body)} {
			if !agrees(t, form, schemas.Limits{}) {
				t.Errorf("%s: the fast path does not take the body, layers = %d", name, i)
			}
		}
	}
}

// TestFastPathEdges pins single decisions down, and that the rest of the
// suite does not only see agreement because the fast path is never sure.
func TestFastPathEdges(t *testing.T) {
	const id = `"workflow_uuid":"6513270e-269e-4d37-b2a7-4de452e6b438"`
	status := func(more string) string { return `{` + id + `,"status":1` + more + `}` }
	section := func(s string) string { return status(`,"message":{"progress":{"running":` + s + `}}`) }
	ids := func(s string) string { return section(`{"job_ids":[` + s + `]}`) }
	job := func(s string) string { return status(`,"message":{"jobs":[{"job_id":"a"` + s + `}]}`) }
	specific := func(s string) string {
		return status(`,"engine":"e","message":{"progress":{"engine_specific":` + s + `}}`)
	}
	tests := []struct {
		name, body string
		fast       bool
	}{
		{"least", status(""), true},
		{"upper case id", strings.ToUpper(status("")[:40]) + status("")[40:], false}, // the key too
		{"white space everywhere", " { " + id + "\t,\n\"status\"\r:\n1 } \n", true},
		{"vertical tab", "\v" + status(""), false},
		{"no comma", `{` + id + ` "status":1}`, false},
		{"comma at the end", status(","), false},
		{"comma at the start", `{,` + id + `,"status":1}`, false},
		{"text after the object", status("") + "{}", false},
		{"bracket mismatch", `{` + id + `,"status":1]`, false},
		{"raw NUL at the end", status("") + "\x00", false},
		{"status 7", `{` + id + `,"status":7}`, true},
		{"status 8", `{` + id + `,"status":8}`, false},
		{"status 01", `{` + id + `,"status":01}`, false},
		{"status -0", `{` + id + `,"status":-0}`, false},
		{"status null", `{` + id + `,"status":null}`, false},
		{"key twice", status(`,"status":1`), false},
		{"unknown key twice", status(`,"x":1,"x":2`), true},
		{"key with escape", status(`,"log\u0073":"x"`), false},
		{"unknown values", status(`,"x":[{"y":null,"\u0000":[true,false,-1.5e+07,"\ud800\\"]},[],{}]`), true},
		{"unknown bad word", status(`,"x":nul`), false},
		{"unknown bad number", status(`,"x":1.`), false},
		{"unknown bad exponent", status(`,"x":1e`), false},
		{"unknown leading zero", status(`,"x":-01`), false},
		{"unknown absurd number", status(`,"x":1e1001`), false},
		{"unknown long number", status(`,"x":1` + strings.Repeat("0", 1000)), false},
		{"unknown bad escape", status(`,"x":"\x"`), false},
		{"unknown short escape", status(`,"x":"\u12"`), false},
		{"unknown cut in an escape", `{"x":"\`, false},
		{"unknown cut in a code", `{"x":"\u123`, false},
		{"unknown, unpaired", status(`,"x":"\ud800"`), true},
		{"unknown control", status(",\"x\":\"\x01\""), false},
		{"depth 64", status(`,"x":` + string(deep(63))), true},
		{"depth 65", status(`,"x":` + string(deep(64))), false},
		{"depth 60000", status(`,"x":` + string(deep(60000))), false},
		{"logs with every escape", status(`,"logs":"\"\\\/\b\f\n\r\t\u00e9\ud834\udd1e é"`), true},
		{"logs with half a pair", status(`,"logs":"\ud834x"`), false},
		{"logs with a wrong pair", status(`,"logs":"\ud834\ud834"`), false},
		{"logs with the second half", status(`,"logs":"\udd1e"`), false},
		{"logs with U+FFFD", status(`,"logs":"\ufffd"`), true},
		{"logs with NUL", status(`,"logs":"\u0000"`), false},
		{"logs with a line end", status(",\"logs\":\"\n\""), false},
		{"logs that are a number", status(`,"logs":1`), false},
		{"attempt 1", status(`,"attempt":1`), true},
		{"attempt 0", status(`,"attempt":0`), false},
		{"attempt 1000000", status(`,"attempt":1000000`), true},
		{"attempt 1000001", status(`,"attempt":1000001`), false},
		{"engine of 64", status(`,"engine":"` + strings.Repeat("e", 64) + `"`), true},
		{"engine of 65", status(`,"engine":"` + strings.Repeat("e", 65) + `"`), false},
		{"engine empty", status(`,"engine":""`), false},
		{"time", status(`,"event_time":"2026-01-02T03:04:05Z"`), true},
		{"time of Python", status(`,"event_time":"2026-01-02T03:04:05.123456+00:00"`), true},
		{"time elsewhere", status(`,"event_time":"2026-01-02T03:04:05+01:00"`), false},
		{"time with nanoseconds", status(`,"event_time":"2026-01-02T03:04:05.123456789Z"`), true},
		{"time with 30 digits", status(`,"event_time":"2026-01-02T03:04:05.123456789012345678901234567890Z"`), true},
		{"time with a comma", status(`,"event_time":"2026-01-02T03:04:05,1Z"`), false},
		{"time with a point", status(`,"event_time":"2026-01-02T03:04:05.Z"`), false},
		{"time without a zone", status(`,"event_time":"2026-01-02T03:04:05"`), false},
		{"time of no day", status(`,"event_time":"2026-02-30T03:04:05Z"`), false},
		{"time of a leap second", status(`,"event_time":"2016-12-31T23:59:60Z"`), false},
		{"time of year 0", status(`,"event_time":"0000-01-02T03:04:05Z"`), false},
		{"time null", status(`,"event_time":null`), true},
		{"section empty", section(`{}`), true},
		{"section of nulls", section(`{"total":null,"job_ids":null}`), true},
		{"total -1", section(`{"total":-1}`), true},
		{"total highest", section(`{"total":2147483647}`), true},
		{"total too high", section(`{"total":2147483648}`), false},
		{"total lowest", section(`{"total":-2147483648}`), true},
		{"total of ten nines", section(`{"total":9999999999}`), false},
		{"total beyond words", section(`{"total":99999999999999999999}`), false},
		{"total that wraps around to 1", section(`{"total":18446744073709551617}`), false},
		{"total of a fraction", section(`{"total":1.0}`), false},
		{"total with exponent", section(`{"total":1e0}`), false},
		{"ids null and empty", ids(`null,"","a",null`), true},
		{"ids with commas and brackets", ids(`"a,b","]","c","d"`), true},
		{"id of 256", ids(`"` + strings.Repeat("x", 256) + `"`), true},
		{"id of 257", ids(`"` + strings.Repeat("x", 257) + `"`), false},
		{"id wide", ids(`"é☃"`), true},
		{"id with C1", ids(`"` + "\u0085" + `"`), false},
		{"id with DEL", ids(`"` + "\x7f" + `"`), false},
		{"id with escape", ids(`"\n"`), false},
		{"id a number", ids(`1`), false},
		{"ids in a string", section(`{"job_ids":"a"}`), false},
		{"progress null", status(`,"message":{"progress":null,"jobs":null}`), true},
		{"message text", status(`,"message":"x"`), false},
		{"jobs empty", status(`,"message":{"jobs":[]}`), true},
		{"job null", status(`,"message":{"jobs":[null]}`), false},
		{"job without id", status(`,"message":{"jobs":[{}]}`), false},
		{"job with an empty id", status(`,"message":{"jobs":[{"job_id":""}]}`), false},
		{"job id null", status(`,"message":{"jobs":[{"job_id":null}]}`), false},
		{"job all null", job(`,"name":null,"path":null,"status":null,"attempt":null,"command":null,"exit_code":null,"started_at":null,"finished_at":null,"logs":null,"result":null,"diagnostics":null`), true},
		{"job cached", job(`,"status":"cached"`), true},
		{"job status unknown", job(`,"status":"done"`), false},
		{"job status in upper case", job(`,"status":"Running"`), false},
		{"job status empty", job(`,"status":""`), false},
		{"job name of 1024", job(`,"name":"` + strings.Repeat("n", 1024) + `"`), true},
		{"job name of 1025", job(`,"name":"` + strings.Repeat("n", 1025) + `"`), false},
		{"job name of 1025, half of it escaped", job(`,"name":"` + strings.Repeat("n", 1024) + `\n"`), false},
		{"path of 4096", job(`,"path":"` + strings.Repeat("p", 4096) + `"`), true},
		{"path of 4097", job(`,"path":"` + strings.Repeat("p", 4097) + `"`), false},
		{"command of 1 MiB", job(`,"command":"` + strings.Repeat("c", 1<<20) + `"`), true},
		{"command of 1 MiB and a byte", job(`,"command":"` + strings.Repeat("c", 1<<20+1) + `"`), false},
		{"diagnostics of 1 MiB and a byte", job(`,"diagnostics":"` + strings.Repeat("d", 1<<20+1) + `"`), false},
		{"exit code", job(`,"exit_code":-2147483648`), true},
		{"exit code too low", job(`,"exit_code":-2147483649`), false},
		{"specific, canonical", specific(`{"a":[1,"x",{}],"b":{"c":1.50}}`), true},
		{"specific, unsorted", specific(`{"b":1,"a":1}`), false},
		{"specific, key twice", specific(`{"a":1,"a":1}`), false},
		{"specific, spaced", specific(`{"a": 1}`), false},
		{"specific after a space", specific(` {"a":1}`), true},
		{"specific, escaped", specific(`"\n"`), false},
		{"specific, U+2028", specific("\"\u2028\""), false},
		{"specific, U+2029 in a key", specific("{\"\u2029\":1}"), false},
		{"specific, U+202A", specific("\"\u202a\""), true},
		{"specific, null", specific(`null`), true},
		{"specific without engine", status(`,"message":{"progress":{"engine_specific":{}}}`), false},
		{"result", job(`,"result":[null,true]`), true},
		{"not UTF-8", status(",\"logs\":\"\xff\""), false},
		{"empty", "", false},
		{"half a string", `"{`, false},
		{"text after a string", string(wrapped(status(""))) + "x", false},
		{"string", string(wrapped(status(""))), true},
		{"string with NUL", `"\u0000` + string(wrapped(status("")))[1:], false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if fast := agrees(t, []byte(tt.body), schemas.Limits{}); fast != tt.fast {
				t.Errorf("the fast path accepts = %t, expected %t:\n%.300q", fast, tt.fast, tt.body)
			}
		})
	}
}

// Of a property that is given twice the last counts, wherever it stands and
// however its name is written; the fast path says the same, or nothing.
func TestOfAPropertyGivenTwiceTheLastCounts(t *testing.T) {
	body, err := EncodeStatus(full())
	if err != nil {
		t.Fatal(err)
	}
	want, err := DecodeStatus(body, schemas.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`"(\w)(\w*)":`).FindAllSubmatchIndex(body, -1)
	if len(names) < 40 {
		t.Fatalf("found %d properties, want more of them in %s", len(names), body)
	}
	for _, at := range names {
		var first json.RawMessage
		if err := json.NewDecoder(bytes.NewReader(body[at[1]:])).Decode(&first); err != nil {
			t.Fatal(err)
		}
		for _, value := range []string{"null", "2", `"x"`, "{}", "[]", `{"total":{"total":9}}`, `[{"job_id":"z"}]`} {
			for _, name := range []string{`"` + string(body[at[2]:at[5]]) + `"`, fmt.Sprintf(`"\u%04x%s"`, body[at[2]], body[at[4]:at[5]])} {
				twice := []byte(string(body[:at[0]]) + name + ":" + value + "," + string(body[at[0]:]))
				for _, form := range forms(t, twice) {
					agrees(t, form, schemas.Limits{})
					if got, err := DecodeStatus(form, schemas.Limits{}); err != nil || !reflect.DeepEqual(want, got) {
						t.Fatalf("%v, and (-want +got):\n%s\n%s", err, cmp.Diff(want, got), form)
					}
				}
				// The other way round, of the first nothing may stay, not even what the
				// last says nothing of.
				agrees(t, slices.Concat(body[:at[1]+len(first)], []byte(","+name+":"+value), body[at[1]+len(first):]), schemas.Limits{})
			}
		}
	}
}

func wrapped(text string) []byte {
	b, _ := json.Marshal(text) // of a string: no error
	return b
}

func TestFastPathKeepsTheLimits(t *testing.T) {
	body := []byte(`{"workflow_uuid":"6513270e-269e-4d37-b2a7-4de452e6b438","status":1,"message":{"progress":{"running":{"job_ids":["a","b",null]},"failed":{"job_ids":["c"]}},"jobs":[{"job_id":"d"}]}}`)
	tests := []struct {
		name   string
		limits schemas.Limits
		fast   bool
	}{
		{"bytes, just", schemas.Limits{MaxBytes: len(body)}, true},
		{"bytes, over", schemas.Limits{MaxBytes: len(body) - 1}, false},
		{"depth, just", schemas.Limits{MaxDepth: 5}, true},
		{"depth, over", schemas.Limits{MaxDepth: 4}, false},
		{"jobs, just", schemas.Limits{MaxJobs: 4}, true},
		{"jobs, over", schemas.Limits{MaxJobs: 3}, false},
		{"below one means default", schemas.Limits{MaxBytes: -1, MaxDepth: -1, MaxJobs: -1}, true},
	}
	for _, tt := range tests {
		if fast := agrees(t, body, tt.limits); fast != tt.fast {
			t.Errorf("%s: the fast path accepts = %t, expected %t", tt.name, fast, tt.fast)
		}
	}
	// Deeper than encoding/json goes, whatever the limit.
	deepest := fmt.Appendf(nil, `{"workflow_uuid":"6513270e-269e-4d37-b2a7-4de452e6b438","status":1,"x":%s}`, deep(20_000))
	if agrees(t, deepest, schemas.Limits{MaxDepth: math.MaxInt}) {
		t.Error("the fast path accepts 20 001 levels")
	}
}

// TestFastPathOnMutations changes every byte of every valid message that is
// known, and of its doubly encoded form.
func TestFastPathOnMutations(t *testing.T) {
	seeds := statusFixtures(t, "valid")
	seeds = slices.DeleteFunc(seeds, func(f fixture) bool {
		// A byte rarely makes common what is not, and the strict forms say nothing new.
		return readStatus(f.body, schemas.Limits{}) == nil || strings.HasSuffix(f.name, ".strict")
	})
	if len(seeds) < 20 {
		t.Fatalf("the fast path takes %d fixtures, expected more", len(seeds))
	}
	own, err := EncodeStatus(full())
	if err != nil {
		t.Fatal(err)
	}
	seeds = append(seeds, fixture{"own", own}, fixture{"escapes", []byte(`{"workflow_uuid":"6513270e-269e-4d37-b2a7-4de452e6b438","status":2,"x":{"k\u00e9":["\ud834\udd1e\\",-1.5e+07]},"logs":"\ud834\udd1e\"\\\/\u00e9"}`)})
	// What has a meaning somewhere in JSON or in the schema, and what has none.
	const insertions = "\"\\{}[],:0-1.eEun \n\t\x00\x01\x7f\x80\xc2\x85\xff/Ta"
	for _, seed := range seeds {
		t.Run(seed.name, func(t *testing.T) {
			t.Parallel()
			bodies := [][]byte{seed.body}
			if seed.body[0] == '{' {
				bodies = append(bodies, Reana(seed.body))
			}
			for layers, body := range bodies {
				for i := range body {
					changed := bytes.Clone(body)
					for bit := range 3 { // in the course of three bytes, all eight
						changed[i] = body[i] ^ 1<<((3*i+bit)%8)
						agrees(t, changed, schemas.Limits{})
					}
					agrees(t, slices.Concat(body[:i], body[i+1:]), schemas.Limits{})
					agrees(t, body[:i], schemas.Limits{})
					for n := range 2 {
						c := insertions[(2*i+n+layers)%len(insertions)]
						agrees(t, slices.Insert(bytes.Clone(body), i, c), schemas.Limits{})
						changed[i] = c
						agrees(t, changed, schemas.Limits{})
					}
				}
			}
		})
	}
}

// TestFastPathOnEveryByte puts every byte, and every escape, everywhere.
func TestFastPathOnEveryByte(t *testing.T) {
	const inner = `{"workflow_uuid":"6513270e-269e-4d37-b2a7-4de452e6b438","status":1,"logs":"a\t","event_time":"2026-01-02T03:04:05.6Z","x":[-1.5,"y\n"],"engine":"e",` +
		`"message":{"progress":{"running":{"total":1,"job_ids":["j"]},"engine_specific":{"a":1}},"jobs":[{"job_id":"i","name":"n","status":"failed"}]}}`
	if readStatus([]byte(inner), schemas.Limits{}) == nil {
		t.Fatal("the fast path does not take the body as it is")
	}
	for _, body := range [][]byte{[]byte(inner), Reana([]byte(inner))} {
		t.Run(string(body[:2]), func(t *testing.T) {
			t.Parallel()
			for i := range len(body) + 1 {
				for c := range 256 {
					// Of what is not ASCII the classes are known: half a character, its
					// beginning, and what is never part of one.
					if c >= utf8.RuneSelf && c != 0x80 && c != 0xc2 && c != 0xff {
						continue
					}
					agrees(t, slices.Insert(bytes.Clone(body), i, byte(c)), schemas.Limits{})
					agrees(t, slices.Insert(bytes.Clone(body), i, '\\', byte(c)), schemas.Limits{})
				}
			}
		})
	}
}

// quirky draws the text of a status message: valid for the most part, with
// every property, in any order and layout, and with whatever the contract
// makes an exception for.
type quirky struct{ *rapid.T }

func (q quirky) odd() bool { return odd(q.T) }

// odd is true now and then. A message asks for it a hundred times, and rapid
// draws small numbers more often than others.
func odd(t *rapid.T) bool { return rapid.IntRange(0, 255).Draw(t, "odd") == 137 }

func (q quirky) among(label string, choices ...string) string {
	return rapid.SampledFrom(choices).Draw(q.T, label)
}

func (q quirky) blank() string {
	if q.odd() {
		return q.among("blank", "\n", "\t ", "\r\n", "\v", "\u00a0")
	}
	return q.among("blank", "", " ")
}

func (q quirky) object(property func(name string) string, names ...string) string {
	names = rapid.Permutation(names).Draw(q.T, "order")[:rapid.IntRange(0, len(names)).Draw(q.T, "properties")]
	return q.members(property, names)
}

func (q quirky) members(property func(name string) string, names []string) string {
	if q.odd() && len(names) > 0 {
		names = append(slices.Clone(names), names[0])
	}
	if q.odd() {
		names = append(slices.Clone(names), q.among("unknown", "x", "caching_info", "Status", "job_ids", "é", "a b"))
	}
	var b strings.Builder
	b.WriteString("{" + q.blank())
	for i, name := range names {
		if i > 0 {
			b.WriteString("," + q.blank())
		}
		value := property(name)
		switch {
		case value == "":
			value = q.value(2)
		case q.odd():
			value = "null"
		case q.odd():
			value = q.value(2)
		}
		if q.odd() {
			fmt.Fprintf(&b, `"\u%04x%s"`, name[0], name[1:])
		} else {
			b.WriteString(`"` + name + `"`)
		}
		b.WriteString(q.blank() + ":" + q.blank() + value + q.blank())
	}
	b.WriteString("}")
	return b.String()
}

func (q quirky) array(item func() string) string {
	var items []string
	for range rapid.IntRange(0, 4).Draw(q.T, "items") {
		if q.odd() {
			items = append(items, q.value(1))
		} else {
			items = append(items, item())
		}
	}
	return "[" + q.blank() + strings.Join(items, q.blank()+","+q.blank()) + q.blank() + "]"
}

func (q quirky) text() string {
	if q.odd() {
		return q.among("odd text", `"\ud800"`, `"\ud800\u0041"`, `"\udd1e"`, `"\u0000"`, "\"\x01\"", "\"\xff\"", `"\x"`, `"\u12`, `"`, "\"\u2028\"", `"\u2028"`, "\"\x7f\u0085\"")
	}
	var parts []string
	for range rapid.IntRange(0, 4).Draw(q.T, "parts") {
		parts = append(parts, q.among("part", "a", "line of text", `\n`, `\"`, `\\`, `\/`, `\b\f\r\t`, `\u00e9`, `\u00E9`, "é", "☃", `\ud834\udd1e`, "𝄞", `\u0001`, `\ufffd`, "]", ",", "{", "<&>"))
	}
	return `"` + strings.Join(parts, "") + `"`
}

func (q quirky) jobID() string {
	if q.odd() {
		return q.among("odd id", `""`, `null`, `"\n"`, `"é"`, "\"\u0085\"", "\"\x7f\"", `1`, `"`+strings.Repeat("x", 256)+`"`, `"`+strings.Repeat("x", 257)+`"`, `"`+strings.Repeat("é", 200)+`"`, `"a,b]"`, q.text())
	}
	return q.among("id", `"a"`, `"job-0001"`, `"d23f0824-128b-4f33-8c5c-7fd0a6a3a450"`, `"rule:align/3"`)
}

func (q quirky) number(common ...string) string {
	if q.odd() {
		return q.among("odd number", "-0", "0", "-1", "1.0", "-1.0", "1e0", "1E+2", "1e-1", "7", "8", "01", "-", "1.", ".5", "+1", "1e", "1e1000", "1e1001", "1000000", "1000001", "2147483647", "2147483648", "-2147483648", "-2147483649", "9999999999", "99999999999", "99999999999999999999", "-99999999999999999999", `"1"`, "true")
	}
	return q.among("number", common...)
}

func (q quirky) time() string {
	if q.odd() {
		return q.among("odd time", `""`, `"noon"`, `"2026-01-02"`, `"2026-01-02T03:04:05"`, `"2026-01-02t03:04:05z"`, `"2026-01-02T03:04:05,5Z"`, `"2026-01-02T3:04:05Z"`, `"2026-02-29T03:04:05Z"`, `"2016-12-31T23:59:60Z"`, `"0000-01-01T00:00:00Z"`, `"0001-01-01T00:00:00Z"`, `"0001-01-01T00:00:00.0000001Z"`, `"9999-12-31T23:59:59.9999999Z"`, `"9999-12-31T23:59:59-01:00"`, `"2026-01-02T24:00:00Z"`, `"2026-01-02T03:04:05.Z"`, `"2026-01-02T03:04:05ZZ"`, `"2026-01-02T03:04:05-00:00"`)
	}
	return q.among("time", `"2026-01-02T03:04:05Z"`, `"2026-01-02T03:04:05.123456Z"`, `"2026-01-02T03:04:05.123456789Z"`, `"2026-01-02T03:04:05.123456+00:00"`, `"2026-01-02T03:04:05+05:30"`)
}

// value draws any JSON, some of it canonical.
func (q quirky) value(depth int) string {
	kind := rapid.IntRange(0, 5).Draw(q.T, "kind")
	if depth == 0 {
		kind %= 4
	}
	switch kind {
	case 0:
		return q.among("word", "null", "true", "false")
	case 1:
		return q.number("0", "-1.5e3", "1.50", "12345678901234567890")
	case 2:
		return q.text()
	case 3:
		return q.among("canonical", `{"a":[1,"x",{}],"b":{"c":1.50}}`, `[]`, `"x"`, `{"dag":{"edges":[],"nodes":[{"id":"n","jobid":{"job_id":"j"},"metadata":{"name":"m"}}]}}`, `{"dag":{"nodes":[]},"engine":"e"}`, `{"b":1,"a":1}`)
	case 4:
		return q.array(func() string { return q.value(depth - 1) })
	default:
		return q.object(func(string) string { return q.value(depth - 1) }, "a", "b", "dag", "nodes", "engine")
	}
}

func (q quirky) section() string {
	return q.object(func(name string) string {
		switch name {
		case "total":
			return q.number("0", "1", "3", "-1", "20")
		case "job_ids":
			return q.array(q.jobID)
		}
		return ""
	}, "total", "job_ids")
}

func (q quirky) job(name string) string {
	switch name {
	case "job_id":
		return q.jobID()
	case "name", "path", "command", "logs", "diagnostics":
		return q.text()
	case "status":
		return q.among("job status", `"created"`, `"queued"`, `"running"`, `"finished"`, `"failed"`, `"stopped"`, `"cached"`)
	case "attempt":
		return q.number("1", "2")
	case "exit_code":
		return q.number("0", "1", "-9", "137")
	case "started_at", "finished_at":
		return q.time()
	case "result":
		return q.value(2)
	}
	return ""
}

func (q quirky) message() string {
	return q.object(func(name string) string {
		switch name {
		case "progress":
			return q.object(func(name string) string {
				switch name {
				case "engine_specific":
					return q.value(3)
				case "x":
					return ""
				}
				return q.section()
			}, "total", "running", "finished", "failed", "cached", "engine_specific")
		case "jobs":
			return q.array(func() string {
				optional := []string{"name", "path", "status", "attempt", "command", "exit_code", "started_at", "finished_at", "logs", "result", "diagnostics"}
				optional = rapid.Permutation(optional).Draw(q.T, "order")[:rapid.IntRange(0, 4).Draw(q.T, "details")]
				return q.members(q.job, append(optional, "job_id"))
			})
		}
		return ""
	}, "progress", "jobs")
}

// body draws a message and how it is encoded.
func (q quirky) body() []byte {
	optional := rapid.Permutation([]string{"logs", "message", "event_time", "attempt", "engine"}).Draw(q.T, "order")
	names := append(optional[:rapid.IntRange(0, len(optional)).Draw(q.T, "properties")], "workflow_uuid", "status")
	text := []byte(q.members(func(name string) string {
		switch name {
		case "workflow_uuid":
			if q.odd() {
				return q.among("odd uuid", `"6513270e269e4d37b2a74de452e6b438"`, `"{6513270e-269e-4d37-b2a7-4de452e6b438}"`, `"urn:uuid:6513270e-269e-4d37-b2a7-4de452e6b438"`, `"6513270e-269e-4d37-b2a7-4de452e6b43g"`, `"6513270e-269e-4d37-b2a7-4de452e6b43"`, `"6513270e-269e-4d37-b2a74-de452e6b438"`)
			}
			return q.among("uuid", `"6513270e-269e-4d37-b2a7-4de452e6b438"`, `"6513270E-269E-4D37-B2A7-4DE452E6B438"`)
		case "status":
			return q.number("0", "1", "2", "3", "4", "5", "6", "7")
		case "logs":
			return q.text()
		case "message":
			return q.message()
		case "event_time":
			return q.time()
		case "attempt":
			return q.number("1", "2")
		case "engine":
			return q.among("engine", `"serial"`, `"cwl"`, `"é"`, `"`+strings.Repeat("é", 40)+`"`, `""`, `null`)
		}
		return ""
	}, names))
	for range rapid.IntRange(0, 2).Draw(q.T, "layers") {
		if q.odd() || !json.Valid(text) {
			text = wrapped(string(text))
		} else {
			text = Reana(text)
		}
		text = []byte(q.blank() + string(text) + q.blank())
	}
	return text
}

func TestFastPathOnQuirks(t *testing.T) {
	accepted, all := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		body := quirky{t}.body()
		all++
		if agrees(t, body, schemas.Limits{}) {
			accepted++
		}
		agrees(t, body, schemas.Limits{MaxBytes: 200, MaxDepth: 4, MaxJobs: 2})
	})
	if accepted*10 < all {
		t.Errorf("the fast path accepts %d of %d messages drawn: too few to trust the test", accepted, all)
	}
	t.Logf("the fast path accepts %d of %d messages drawn", accepted, all)
}

// FuzzFastPath: whatever the fast path accepts, the schema accepts, and it
// reads the same.
func FuzzFastPath(f *testing.F) {
	for _, folder := range []string{"valid", "invalid"} {
		for _, seed := range statusFixtures(f, folder) {
			for _, form := range forms(f, seed.body)[:2] {
				f.Add(form)
			}
		}
	}
	for _, r := range lines[struct{ Body json.RawMessage }](f, filepath.Join(shared, "reana/reana-messages.jsonl")) {
		f.Add([]byte(r.Body))
		f.Add(Reana(r.Body))
	}
	for _, m := range []*workflow.StatusMessage{full(), benchmarkMessage(3, "a\n")} {
		body, err := EncodeStatus(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
		f.Add(Reana(body))
	}
	// Of these the inputs that are tried grow the sooner what only undoing, or a
	// look ahead, gets right.
	for _, text := range []string{
		`"message":{"progress":{"running":{"total":2,"job_ids":["a"]}}},"message":{"progress":{"finished":{}}}`,
		`"message":{"jobs":[{"job_id":"a","job_id":"b","logs":"x","logs":null}]}`,
		`"logs":"\ud834\u0041\udd1e"`, `"x":"\ud834","logs":"\ud834\udd1e"`, `"attempt":1e0`, `"attempt":1.5`, `"event_time":"2026-02-29T24:00:00Z"`,
	} {
		f.Add([]byte(`{"workflow_uuid":"6513270e-269e-4d37-b2a7-4de452e6b438","status":1,` + text + `}`))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		agrees(t, body, schemas.Limits{})
		agrees(t, body, schemas.Limits{MaxBytes: 300, MaxDepth: 5, MaxJobs: 2, MaxValues: 12})
		agrees(t, Reana(body), schemas.Limits{})
	})
}

func TestFastPathAllocatesLittle(t *testing.T) {
	body, err := EncodeStatus(benchmarkMessage(1, strings.Repeat("a line of output\n", 8)))
	if err != nil {
		t.Fatal(err)
	}
	double := Reana(body)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := DecodeStatus(double, schemas.Limits{}); err != nil {
			t.Fatal(err)
		}
	}); n > 10 {
		t.Errorf("decoding %d bytes takes %v allocations, expected at most 10", len(double), n)
	}
	m := benchmarkMessage(1, strings.Repeat("a line of output\n", 8))
	if n := testing.AllocsPerRun(100, func() {
		if _, err := EncodeStatus(m); err != nil {
			t.Fatal(err)
		}
	}); n > 4 {
		t.Errorf("encoding %d bytes takes %v allocations, expected at most 4", len(body), n)
	}
}

// writes fails if the fast way to encode m accepts what the schema does not,
// or writes something else. It returns whether it accepts.
func writes(t interface {
	Helper()
	Fatalf(format string, args ...any)
}, m *workflow.StatusMessage) bool {
	t.Helper()
	fast := writeStatus(m)
	if fast == nil {
		return false
	}
	slow, err := composeStatus(m)
	if err != nil {
		t.Fatalf("the fast path writes what is refused: %v\n%s", err, fast)
	}
	if !bytes.Equal(slow, fast) {
		t.Fatalf("the fast path writes something else\nfast   %q\nschema %q", fast, slow)
	}
	return true
}

// anyMessage draws messages, most of them fit to be sent.
func anyMessage() *rapid.Generator[*workflow.StatusMessage] {
	text := rapid.Custom(func(t *rapid.T) string {
		switch {
		case odd(t):
			return string(rapid.SliceOf(rapid.Byte()).Draw(t, "bytes"))
		case odd(t):
			return rapid.SampledFrom([]string{"\u2028\u2029\u202a", "\ufffd", "\x00", "\x00\xff", "\xe2\x80", "\xed\xa0\x80", "\x7f\u0080", "\b\f\n\r\t\x1b", `<a href="x">&</a>\`}).Draw(t, "sample")
		}
		return rapid.String().Draw(t, "text")
	})
	id := rapid.Custom(func(t *rapid.T) string {
		if odd(t) {
			return rapid.SampledFrom([]string{"", "\n", "\u0085", "\u00a0", "\u2028", "\xff", "\x00", "\x7f", `"`, `\`, "é", strings.Repeat("x", 256), strings.Repeat("x", 257), strings.Repeat("é", 256)}).Draw(t, "odd id")
		}
		return ids().Draw(t, "id")
	})
	number := func(t *rapid.T, label string, low, high int) int {
		if odd(t) {
			return rapid.SampledFrom([]int{low - 1, high + 1, math.MinInt, math.MaxInt, -1, 0}).Draw(t, label)
		}
		return rapid.IntRange(low, high).Draw(t, label)
	}
	moments := rapid.Custom(func(t *rapid.T) time.Time {
		if odd(t) {
			return rapid.SampledFrom([]time.Time{
				time.Unix(0, 1), time.Unix(-62135596800, 1), time.Unix(-62135596801, 0), time.Unix(253402300800, 0), time.Unix(253402300799, 999999999),
				time.Date(10000, 1, 1, 0, 0, 0, 0, time.FixedZone("", 3600)), time.Date(1, 1, 1, 0, 0, 0, 0, time.FixedZone("", 3600)), time.Now(),
			}).Draw(t, "odd time")
		}
		return times().Draw(t, "time").Add(time.Duration(rapid.IntRange(0, 999).Draw(t, "ns"))).In(time.FixedZone("", 60*rapid.IntRange(-600, 600).Draw(t, "zone")))
	})
	json := rapid.Custom(func(t *rapid.T) json.RawMessage {
		if odd(t) {
			return json.RawMessage(quirky{t}.value(3))
		}
		return raws().Draw(t, "raw")
	})
	section := rapid.Custom(func(t *rapid.T) *workflow.Section {
		if rapid.Bool().Draw(t, "absent") {
			return nil
		}
		return &workflow.Section{Total: number(t, "total", 0, math.MaxInt32), JobIDs: rapid.SliceOfN(id, 0, 4).Draw(t, "ids")}
	})
	report := rapid.Custom(func(t *rapid.T) workflow.JobReport {
		r := workflow.JobReport{
			ID: id.Draw(t, "id"), Status: workflow.JobStatus(number(t, "status", 0, workflow.NumJobStatuses-1)), Cached: rapid.Bool().Draw(t, "cached"),
			Attempt: number(t, "attempt", 0, 1_000_000), Name: text.Draw(t, "name"), Path: text.Draw(t, "path"), Command: text.Draw(t, "command"),
			StartedAt: moments.Draw(t, "started"), FinishedAt: moments.Draw(t, "finished"), Logs: text.Draw(t, "logs"), Result: json.Draw(t, "result"), Diagnostics: text.Draw(t, "diagnostics"),
		}
		if rapid.Bool().Draw(t, "ended") {
			r.ExitCode = new(number(t, "exit code", math.MinInt32, math.MaxInt32))
		}
		return r
	})
	return rapid.Custom(func(t *rapid.T) *workflow.StatusMessage {
		m := &workflow.StatusMessage{
			Status: workflow.Status(number(t, "status", 0, workflow.NumStatuses-1)), Logs: text.Draw(t, "logs"), EventTime: moments.Draw(t, "event time"),
			Attempt: number(t, "attempt", 0, 1_000_000), Engine: rapid.SampledFrom([]string{"", "serial", "é", strings.Repeat("é", 64), strings.Repeat("e", 65), "\xff\x00"}).Draw(t, "engine"),
			Progress: workflow.Progress{
				Total: section.Draw(t, "total"), Running: section.Draw(t, "running"), Finished: section.Draw(t, "finished"), Failed: section.Draw(t, "failed"), Cached: section.Draw(t, "cached"),
				EngineSpecific: json.Draw(t, "specific"),
			},
			Jobs: rapid.SliceOfN(report, 0, 2).Draw(t, "jobs"),
		}
		copy(m.WorkflowID[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "workflow"))
		return m
	})
}

func TestFastEncode(t *testing.T) {
	accepted, all := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		all++
		if writes(t, anyMessage().Draw(t, "message")) {
			accepted++
		}
	})
	if accepted*10 < all {
		t.Errorf("the fast path writes %d of %d messages drawn: too few to trust the test", accepted, all)
	}
	t.Logf("the fast path writes %d of %d messages drawn", accepted, all)
}

// FuzzFastEncode: whatever the fast path writes, the validator accepts, and
// the way through it gives the same bytes.
func FuzzFastEncode(f *testing.F) {
	f.Add("a line\n", "d23f0824-128b-4f33-8c5c-7fd0a6a3a450", "serial", []byte(`{"dag":{"edges":[["a","b"]],"nodes":[]},"n":-1.50e+07}`), 1, int64(1767323045), int64(123456789))
	f.Add("\x00\xff\u2028\b\"\\</a>", "é", "", []byte(`null`), -1, int64(-62135596800), int64(1))
	f.Add("\ufffd\x7f\u0080", "\u0085", "é", []byte("[\"\u2029\",{}, 1e1001]"), math.MaxInt32, int64(253402300799), int64(999999999))
	f.Fuzz(func(t *testing.T, text, id, engine string, document []byte, number int, seconds, nanoseconds int64) {
		at := time.Unix(seconds, nanoseconds)
		m := full()
		m.Logs, m.Engine, m.EventTime = text, engine, at
		m.Progress.EngineSpecific = document
		m.Progress.Running.JobIDs = []string{"a", id}
		m.Jobs[0].Result, m.Jobs[0].ExitCode, m.Jobs[0].Diagnostics = document, &number, id
		writes(t, m)
		// Alone, so that what makes the one doubtful does not hide the others.
		for _, m := range []*workflow.StatusMessage{
			{Logs: text}, {Engine: engine}, {EventTime: at}, {Status: workflow.Status(number)}, {Attempt: number},
			{Progress: workflow.Progress{EngineSpecific: document}},
			{Progress: workflow.Progress{Cached: &workflow.Section{Total: number, JobIDs: []string{id}}}},
			{Jobs: []workflow.JobReport{{ID: id}}},
			{Jobs: []workflow.JobReport{{ID: "a", Name: strings.Repeat(text, 200), Path: strings.Repeat(id, 200)}}},
			{Jobs: []workflow.JobReport{{ID: "a", Status: workflow.JobStatus(number), Result: document, Name: text}}},
			{Jobs: []workflow.JobReport{{ID: "a", Attempt: number, StartedAt: at}}},
			{Jobs: []workflow.JobReport{{ID: "a", ExitCode: &number, Cached: true, FinishedAt: at}}},
		} {
			writes(t, m)
		}
	})
}

// TestFastEncodeEdges pins single decisions down.
func TestFastEncodeEdges(t *testing.T) {
	tests := map[string]struct {
		change func(m *workflow.StatusMessage)
		fast   bool
	}{
		"full":                   {func(m *workflow.StatusMessage) {}, true},
		"empty":                  {func(m *workflow.StatusMessage) { *m = workflow.StatusMessage{} }, true},
		"empty progress":         {func(m *workflow.StatusMessage) { m.Progress = workflow.Progress{} }, true},
		"empty jobs":             {func(m *workflow.StatusMessage) { m.Jobs = m.Jobs[:0] }, true},
		"text not fit":           {func(m *workflow.StatusMessage) { m.Logs = "a\x00\xff\x01\u2028\b\f\r\x7f" }, true},
		"negative total":         {func(m *workflow.StatusMessage) { m.Progress.Total.Total = math.MinInt }, true},
		"total too high":         {func(m *workflow.StatusMessage) { m.Progress.Total.Total = math.MaxInt32 + 1 }, false},
		"status":                 {func(m *workflow.StatusMessage) { m.Status = 8 }, false},
		"attempt":                {func(m *workflow.StatusMessage) { m.Attempt = 1_000_001 }, false},
		"job attempt":            {func(m *workflow.StatusMessage) { m.Jobs[0].Attempt = -1 }, false},
		"engine of 64":           {func(m *workflow.StatusMessage) { m.Engine = strings.Repeat("é", 64) }, true},
		"engine of 65":           {func(m *workflow.StatusMessage) { m.Engine = strings.Repeat("e", 65) }, false},
		"id wide":                {func(m *workflow.StatusMessage) { m.Jobs[0].ID = "\u2028é" }, true},
		"id empty":               {func(m *workflow.StatusMessage) { m.Jobs[0].ID = "" }, false},
		"id too long":            {func(m *workflow.StatusMessage) { m.Jobs[0].ID = strings.Repeat("x", 257) }, false},
		"id with C1":             {func(m *workflow.StatusMessage) { m.Jobs[0].ID = "\u0085" }, false},
		"id not UTF-8":           {func(m *workflow.StatusMessage) { m.Progress.Running.JobIDs[0] = "\xe9" }, false},
		"job status":             {func(m *workflow.StatusMessage) { m.Jobs[0].Status = 6 }, false},
		"exit code":              {func(m *workflow.StatusMessage) { m.Jobs[0].ExitCode = new(math.MaxInt32 + 1) }, false},
		"exit code too low":      {func(m *workflow.StatusMessage) { m.Jobs[0].ExitCode = new(math.MinInt32 - 1) }, false},
		"nanoseconds":            {func(m *workflow.StatusMessage) { m.EventTime = m.EventTime.Add(999) }, true},
		"another zone":           {func(m *workflow.StatusMessage) { m.EventTime = m.EventTime.In(time.FixedZone("", 3600)) }, true},
		"only nanoseconds":       {func(m *workflow.StatusMessage) { m.EventTime = time.Time{}.Add(1) }, true},
		"year 10000":             {func(m *workflow.StatusMessage) { m.EventTime = time.Unix(253402300800, 0) }, false},
		"year 0":                 {func(m *workflow.StatusMessage) { m.Jobs[0].FinishedAt = time.Unix(-62135596801, 0) }, false},
		"specific null":          {func(m *workflow.StatusMessage) { m.Progress.EngineSpecific = json.RawMessage("null") }, false},
		"specific not canonical": {func(m *workflow.StatusMessage) { m.Progress.EngineSpecific = json.RawMessage(`{"b":1,"a":2}`) }, false},
		"specific twice":         {func(m *workflow.StatusMessage) { m.Progress.EngineSpecific = json.RawMessage(`{}{}`) }, false},
		"specific spaced":        {func(m *workflow.StatusMessage) { m.Progress.EngineSpecific = json.RawMessage(`{} `) }, false},
		"specific not UTF-8":     {func(m *workflow.StatusMessage) { m.Progress.EngineSpecific = json.RawMessage("\"\xff\"") }, false},
		"specific deep":          {func(m *workflow.StatusMessage) { m.Progress.EngineSpecific = deep(60) }, true},
		"specific too deep":      {func(m *workflow.StatusMessage) { m.Progress.EngineSpecific = deep(62) }, false},
		"result deep":            {func(m *workflow.StatusMessage) { m.Jobs[0].Result = deep(60) }, true},
		"result too deep":        {func(m *workflow.StatusMessage) { m.Jobs[0].Result = deep(61) }, false},
		"too many jobs": {func(m *workflow.StatusMessage) {
			m.Progress.Running.JobIDs = slices.Repeat([]string{"a"}, schemas.DefaultMaxJobs)
		}, false},
		"too many of both": {func(m *workflow.StatusMessage) {
			m.Progress = workflow.Progress{Total: workflow.JobIDs(slices.Repeat([]string{"a"}, schemas.DefaultMaxJobs-2)...)}
		}, false},
		"path too long":        {func(m *workflow.StatusMessage) { m.Jobs[0].Path = strings.Repeat("p", maxPath+1) }, false},
		"command too long":     {func(m *workflow.StatusMessage) { m.Jobs[0].Command = strings.Repeat("c", maxText+1) }, false},
		"diagnostics too long": {func(m *workflow.StatusMessage) { m.Jobs[0].Diagnostics = strings.Repeat("d", maxText+1) }, false},
		"too many values": {func(m *workflow.StatusMessage) {
			m.Jobs[0].Result = json.RawMessage("[" + strings.Repeat("0,", schemas.DefaultMaxValues) + "0]")
		}, false},
		"largest":          {func(m *workflow.StatusMessage) { fillTo(t, m, schemas.DefaultMaxBytes) }, true},
		"a byte too large": {func(m *workflow.StatusMessage) { fillTo(t, m, schemas.DefaultMaxBytes+1) }, false},
		"too large":        {func(m *workflow.StatusMessage) { m.Logs = strings.Repeat("\x01", schemas.DefaultMaxBytes/6) }, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m := full()
			tt.change(m)
			if fast := writes(t, m); fast != tt.fast {
				t.Errorf("the fast path writes it = %t, expected %t", fast, tt.fast)
			}
		})
	}
}

// fillTo gives m logs with which its body has so many bytes. They are few, and
// grow when they are written.
func fillTo(t *testing.T, m *workflow.StatusMessage, size int) {
	t.Helper()
	m.Logs = ""
	body, err := EncodeStatus(m)
	if err != nil {
		t.Fatal(err)
	}
	missing := size - len(body)
	m.Logs = strings.Repeat("\x01", missing/len(`\u0001`)) + strings.Repeat("x", missing%len(`\u0001`))
}

// The benchmarks show the fast path beside the way through the schema, which
// has the same result. Sizes are of the inner object; the bodies to decode are
// doubly encoded.

func benchmarkWays(b *testing.B, fast, schema func(m *workflow.StatusMessage, double []byte) error) {
	least := &workflow.StatusMessage{WorkflowID: full().WorkflowID, Status: workflow.StatusRunning, Progress: workflow.Progress{Running: benchmarkMessage(1, "").Progress.Running}}
	for _, size := range []struct {
		name string
		m    *workflow.StatusMessage
	}{
		{"186B", least},
		{"400B", benchmarkMessage(1, strings.Repeat("a line of output\n", 8))},
		{"4KB", benchmarkMessage(100, "")},
		{"390KB", benchmarkMessage(10_000, "")},
	} {
		body, err := EncodeStatus(size.m)
		if err != nil {
			b.Fatal(err)
		}
		double := Reana(body)
		for _, way := range []struct {
			name string
			run  func(*workflow.StatusMessage, []byte) error
		}{{"fast", fast}, {"schema", schema}} {
			b.Run(size.name+"/"+way.name, func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(int64(len(body)))
				for b.Loop() {
					if err := way.run(size.m, double); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

var errInDoubt = errors.New("the fast path is in doubt")

func BenchmarkDecode(b *testing.B) {
	benchmarkWays(b, func(_ *workflow.StatusMessage, double []byte) error {
		if readStatus(double, schemas.Limits{}) == nil {
			return errInDoubt
		}
		return nil
	}, func(_ *workflow.StatusMessage, double []byte) error {
		_, err := parseStatus(double, schemas.Limits{})
		return err
	})
}

func BenchmarkEncode(b *testing.B) {
	benchmarkWays(b, func(m *workflow.StatusMessage, _ []byte) error {
		if writeStatus(m) == nil {
			return errInDoubt
		}
		return nil
	}, func(m *workflow.StatusMessage, _ []byte) error {
		_, err := composeStatus(m)
		return err
	})
}
