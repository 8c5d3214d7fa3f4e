package wire

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
	"pgregory.net/rapid"

	"waymark/schemas"
	"waymark/workflow"
)

const shared = "../../testdata"

// lines decodes each line of a JSON Lines file.
func lines[T any](t testing.TB, path string) []T {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []T
	scanner := bufio.NewScanner(f)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		var v T
		if err := json.Unmarshal(scanner.Bytes(), &v); err != nil {
			t.Fatalf("%s, line %d: %v", path, len(all)+1, err)
		}
		all = append(all, v)
	}
	if err := scanner.Err(); err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		t.Fatalf("%s is empty", path)
	}
	return all
}

func wrap(t testing.TB, body []byte) []byte {
	t.Helper()
	b, err := json.Marshal(string(body))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// refused lists, by note, the recorded messages that cannot be applied, with
// the pointer of the fault.
var refused = map[string]string{
	"workflow_id_or_name was a name: not a UUID, StatementError in the original": "/workflow_uuid",
	"status absent": "/status",
	"status null":   "/status",
}

// TestRecordedMessages decodes every message REANA's producers were seen to
// send, however often it is encoded.
func TestRecordedMessages(t *testing.T) {
	type record struct {
		Queue, Producer, Note string
		Body                  json.RawMessage
	}
	met := make(map[string]bool)
	for i, r := range lines[record](t, filepath.Join(shared, "reana/reana-messages.jsonl")) {
		t.Run(fmt.Sprintf("%d %s %s", i+1, r.Producer, r.Note), func(t *testing.T) {
			var first any
			body := []byte(r.Body)
			for layers := range 4 {
				var got any
				var err error
				if r.Queue == schemas.SubmissionKind.String() {
					got, err = DecodeSubmission(body, schemas.Limits{})
				} else {
					got, err = DecodeStatus(body, schemas.Limits{})
				}
				if pointer, expected := refused[r.Note]; expected {
					met[r.Note] = true
					if reason, at, _ := Describe(err); reason != schemas.ReasonSchema || at != pointer {
						t.Fatalf("decoding with %d layers = %v, expected a fault at %s", layers, err, pointer)
					}
				} else if err != nil {
					t.Fatalf("decoding with %d layers = %v", layers, err)
				}
				if layers == 0 {
					first = got
				} else if diff := cmp.Diff(first, got); diff != "" {
					t.Fatalf("%d layers gave another message than none (-none +layers):\n%s", layers, diff)
				}
				body = wrap(t, body)
			}
		})
	}
	for note := range refused {
		if !met[note] {
			t.Errorf("no recorded message has the note %q", note)
		}
	}
}

// TestRecordedRuns decodes the messages of whole runs of REANA's engines.
func TestRecordedRuns(t *testing.T) {
	type record struct {
		Case     string
		WireBody string `json:"wire_body"`
		Decoded  json.RawMessage
	}
	for _, engine := range []string{"serial", "yadage"} {
		paths, err := filepath.Glob(filepath.Join(shared, "reana", engine, "*.jsonl"))
		if err != nil || len(paths) == 0 {
			t.Fatalf("no recordings of %s: %v", engine, err)
		}
		for _, path := range paths {
			for i, r := range lines[record](t, path) {
				if r.Case != "" {
					continue
				}
				at := fmt.Sprintf("%s, line %d", filepath.Base(path), i+1)
				inner, err := DecodeStatus(r.Decoded, schemas.Limits{})
				if err != nil {
					t.Errorf("%s: decoding the inner object: %v", at, err)
					continue
				}
				if r.WireBody == "" {
					continue
				}
				outer, err := DecodeStatus([]byte(r.WireBody), schemas.Limits{})
				if diff := cmp.Diff(inner, outer); err != nil || diff != "" {
					t.Errorf("%s: the body on the wire, err = %v, differs (-inner +wire):\n%s", at, err, diff)
				}
				text, err := schemas.Unwrap([]byte(r.WireBody))
				if err != nil {
					t.Fatal(err)
				}
				if got := string(Reana(text)); got != r.WireBody {
					t.Errorf("%s: Reana differs from what REANA published\n got %s\nwant %s", at, got, r.WireBody)
				}
			}
		}
	}
}

// TestYadageTotals checks the dialect of Yadage's snapshots on real runs,
// whose number of jobs is known: the graph also holds nodes that never become
// jobs, and total counts only those not yet submitted.
func TestYadageTotals(t *testing.T) {
	type record struct{ Decoded json.RawMessage }
	want := map[string][]int{
		"analysis-ok.jsonl": {10, 10, 10, 10, 10, 10, 10},
		"dynamic.jsonl":     {1, 1, 5, 5}, // its graph grows
		"failing.jsonl":     {3, 3, 3},
	}
	for name, totals := range want {
		var got []int
		var last *workflow.StatusMessage
		for _, r := range lines[record](t, filepath.Join(shared, "reana/yadage", name)) {
			if r.Decoded == nil {
				continue
			}
			m, err := DecodeStatus(r.Decoded, schemas.Limits{})
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if m.Progress.Total != nil {
				got = append(got, m.Progress.Total.Total)
				last = m
			}
		}
		if diff := cmp.Diff(totals, got); diff != "" {
			t.Errorf("%s: totals (-want +got):\n%s", name, diff)
		}
		if last == nil || last.Engine != "yadage" || len(last.Jobs) == 0 || last.Jobs[0].Name == "" {
			t.Errorf("%s: the last snapshot names neither engine nor jobs: %+v", name, last)
		}
	}
}

func full() *workflow.StatusMessage {
	at := time.Date(2026, 1, 2, 3, 4, 5, 123456000, time.UTC)
	return &workflow.StatusMessage{
		WorkflowID: uuid.MustParse("6513270e-269e-4d37-b2a7-4de452e6b438"),
		Status:     workflow.StatusRunning,
		Logs:       "<one> & é\n",
		EventTime:  at,
		Attempt:    2,
		Engine:     "snakemake",
		Progress: workflow.Progress{
			Total:          workflow.Count(3),
			Running:        workflow.JobIDs("a"),
			Finished:       workflow.JobIDs(),
			Cached:         workflow.JobIDs("b", "c"),
			EngineSpecific: json.RawMessage(`{"dag":{"edges":[],"nodes":[]},"n":1e5}`),
		},
		Jobs: []workflow.JobReport{
			{ID: "a", Status: workflow.JobRunning, Name: "align", Path: "main/align", Attempt: 2, Command: "a | b", StartedAt: at},
			{ID: "b", Status: workflow.JobFinished, Cached: true, ExitCode: new(0), FinishedAt: at, Logs: "l", Result: json.RawMessage(`[1]`), Diagnostics: "d"},
			{ID: "c"},
		},
	}
}

func TestEncodeStatus(t *testing.T) {
	got, err := EncodeStatus(full())
	if err != nil {
		t.Fatal(err)
	}
	// The order of the properties matters to people who read a queue.
	want := `{"workflow_uuid":"6513270e-269e-4d37-b2a7-4de452e6b438","logs":"<one> & é\n","status":1,` +
		`"message":{"progress":{"total":{"total":3,"job_ids":[]},"running":{"total":1,"job_ids":["a"]},"finished":{"total":0,"job_ids":[]},"cached":{"total":2,"job_ids":["b","c"]},` +
		`"engine_specific":{"dag":{"edges":[],"nodes":[]},"n":1e5}},` +
		`"jobs":[{"job_id":"a","name":"align","path":"main/align","status":"running","attempt":2,"command":"a | b","started_at":"2026-01-02T03:04:05.123456Z"},` +
		`{"job_id":"b","status":"cached","exit_code":0,"finished_at":"2026-01-02T03:04:05.123456Z","logs":"l","result":[1],"diagnostics":"d"},{"job_id":"c"}]},` +
		`"event_time":"2026-01-02T03:04:05.123456Z","attempt":2,"engine":"snakemake"}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("EncodeStatus (-want +got):\n%s", diff)
	}
	least, err := EncodeStatus(&workflow.StatusMessage{})
	if want := `{"workflow_uuid":"00000000-0000-0000-0000-000000000000","logs":"","status":0}`; err != nil || string(least) != want {
		t.Errorf("EncodeStatus of the zero message = %s, %v; expected %s", least, err, want)
	}
}

func TestDecodeStatus(t *testing.T) {
	body := `{"workflow_uuid":"6513270E-269E-4D37-B2A7-4DE452E6B438","status":"running","event_time":"2026-01-02T04:04:05.123456789+01:00","unknown":1,
		"message":{"progress":{"engine_specific":{"z": "<&>", "a": 1.50}},"jobs":[{"job_id":"a","status":"cached","exit_code":0,"attempt":2.0}]}}`
	got, err := DecodeStatus([]byte(body), schemas.Limits{})
	want := &workflow.StatusMessage{
		WorkflowID: uuid.MustParse("6513270e-269e-4d37-b2a7-4de452e6b438"),
		Status:     workflow.StatusRunning,
		EventTime:  time.Date(2026, 1, 2, 3, 4, 5, 123456000, time.UTC),
		Progress:   workflow.Progress{EngineSpecific: json.RawMessage(`{"a":1.50,"z":"<&>"}`)},
		Jobs:       []workflow.JobReport{{ID: "a", Status: workflow.JobFinished, Cached: true, ExitCode: new(0), Attempt: 2}},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("DecodeStatus, err = %v (-want +got):\n%s", err, diff)
	}
	if got.EventTime.Location() != time.UTC {
		t.Errorf("the event time is in %v, expected UTC", got.EventTime.Location())
	}
}

func TestDecodeSubmission(t *testing.T) {
	got, err := DecodeSubmission([]byte(`{"user":"u","workflow_id_or_name":"w","priority":250,"min_job_memory":1073741824.5}`), schemas.Limits{})
	want := &workflow.Submission{User: "u", Workflow: "w", Parameters: json.RawMessage(`{}`), Priority: 100, MinJobMemory: 1073741824.5}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("DecodeSubmission, err = %v (-want +got):\n%s", err, diff)
	}
}

func TestEncodeSubmission(t *testing.T) {
	got, err := EncodeSubmission(&workflow.Submission{User: "u", Workflow: "w", RetryCount: 1, MinJobMemory: 1 << 30, Labels: map[string]string{"k": "v"}})
	if want := `{"user":"u","workflow_id_or_name":"w","parameters":{},"priority":0,"min_job_memory":1073741824,"retry_count":1,"labels":{"k":"v"}}`; err != nil || string(got) != want {
		t.Errorf("EncodeSubmission = %s, %v; expected %s", got, err, want)
	}
}

func TestEncodeMakesTextFit(t *testing.T) {
	m := full()
	m.Logs = "a\x00b\xffc"
	m.Jobs[1].Logs = "\x00"
	m.Jobs[1].Result = json.RawMessage(` {"b\u0000": "\u0000", "a": "\ud800"} `)
	m.Progress.Total.Total = -1
	m.Progress.EngineSpecific = json.RawMessage(" null")
	m.EventTime = time.Date(2026, 1, 2, 4, 4, 5, 999, time.FixedZone("", 3600))
	body, err := EncodeStatus(m)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeStatus(body, schemas.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	want := full()
	want.Logs = "a\uFFFDb\uFFFDc"
	want.Jobs[1].Logs = "\uFFFD"
	want.Jobs[1].Result = json.RawMessage("{\"a\":\"\uFFFD\",\"b\uFFFD\":\"\uFFFD\"}")
	want.Progress.Total.Total = 0
	want.Progress.EngineSpecific = nil
	want.EventTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("decoded again (-want +got):\n%s", diff)
	}
}

func TestEncodeRefuses(t *testing.T) {
	status := map[string]struct {
		change func(m *workflow.StatusMessage)
		want   string // in the error
	}{
		"status":             {func(m *workflow.StatusMessage) { m.Status = 8 }, "/status: expected an integer of 0 to 7, found 8"},
		"attempt":            {func(m *workflow.StatusMessage) { m.Attempt = -1 }, "/attempt"},
		"engine":             {func(m *workflow.StatusMessage) { m.Engine = strings.Repeat("e", 65) }, "/engine"},
		"empty job id":       {func(m *workflow.StatusMessage) { m.Progress.Running.JobIDs[0] = "" }, "/message/progress/running/job_ids/0"},
		"control in job id":  {func(m *workflow.StatusMessage) { m.Jobs[1].ID = "a\nb" }, "/message/jobs/1/job_id"},
		"NUL in job id":      {func(m *workflow.StatusMessage) { m.Jobs[1].ID = "a\x00b" }, "/message/jobs/1/job_id"},
		"job id not UTF-8":   {func(m *workflow.StatusMessage) { m.Progress.Cached.JobIDs[1] = "\xff" }, `job id "\xff" is not valid UTF-8`},
		"job status":         {func(m *workflow.StatusMessage) { m.Jobs[0].Status = 99 }, "/message/jobs/0/status"},
		"total":              {func(m *workflow.StatusMessage) { m.Progress.Total.Total = math.MaxInt32 + 1 }, "/message/progress/total/total"},
		"year":               {func(m *workflow.StatusMessage) { m.EventTime = m.EventTime.AddDate(8000, 0, 0) }, "/event_time"},
		"broken JSON":        {func(m *workflow.StatusMessage) { m.Progress.EngineSpecific = json.RawMessage(`{"a":`) }, "engine-specific data"},
		"two JSON values":    {func(m *workflow.StatusMessage) { m.Jobs[0].Result = json.RawMessage(`1 2`) }, `result of job "a": more than one JSON value`},
		"absurd number":      {func(m *workflow.StatusMessage) { m.Jobs[0].Result = json.RawMessage(`1e9999`) }, "/message/jobs/0/result"},
		"deep JSON":          {func(m *workflow.StatusMessage) { m.Jobs[0].Result = deep(80) }, schemas.ReasonTooDeep},
		"too large":          {func(m *workflow.StatusMessage) { m.Logs = strings.Repeat("x", schemas.DefaultMaxBytes) }, schemas.ReasonTooLarge},
		"too many jobs":      {func(m *workflow.StatusMessage) { m.Jobs = make([]workflow.JobReport, schemas.DefaultMaxJobs+1) }, schemas.ReasonTooLarge},
		"names the workflow": {func(m *workflow.StatusMessage) { m.Status = -1 }, "workflow 6513270e-269e-4d37-b2a7-4de452e6b438"},
	}
	for name, tt := range status {
		t.Run("status "+name, func(t *testing.T) {
			m := full()
			tt.change(m)
			if body, err := EncodeStatus(m); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("EncodeStatus = %.200s, %v; expected an error with %q", body, err, tt.want)
			}
		})
	}
	submission := map[string]struct {
		change func(s *workflow.Submission)
		want   string
	}{
		"no user":            {func(s *workflow.Submission) { s.User = "" }, "/user"},
		"user not UTF-8":     {func(s *workflow.Submission) { s.User = "\xff" }, "not valid UTF-8"},
		"workflow not UTF-8": {func(s *workflow.Submission) { s.Workflow = "\xff" }, "not valid UTF-8"},
		"NUL in workflow":    {func(s *workflow.Submission) { s.Workflow = "\x00" }, "/workflow_id_or_name"},
		"parameters":         {func(s *workflow.Submission) { s.Parameters = json.RawMessage(`[1]`) }, "/parameters: expected an object"},
		"broken parameters":  {func(s *workflow.Submission) { s.Parameters = json.RawMessage(`{`) }, "parameters"},
		"broken spec":        {func(s *workflow.Submission) { s.Specification = json.RawMessage(`nul`) }, "specification"},
		"priority":           {func(s *workflow.Submission) { s.Priority = 101 }, "/priority: expected an integer of 0 to 100, found 101"},
		"memory":             {func(s *workflow.Submission) { s.MinJobMemory = -1 }, "/min_job_memory"},
		"memory NaN":         {func(s *workflow.Submission) { s.MinJobMemory = math.NaN() }, "NaN"},
		"retries":            {func(s *workflow.Submission) { s.RetryCount = -1 }, "/retry_count"},
		"name":               {func(s *workflow.Submission) { s.Name = strings.Repeat("n", 256) }, "/name"},
	}
	for name, tt := range submission {
		t.Run("submission "+name, func(t *testing.T) {
			s := &workflow.Submission{User: "u", Workflow: "w"}
			tt.change(s)
			if body, err := EncodeSubmission(s); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("EncodeSubmission = %s, %v; expected an error with %q", body, err, tt.want)
			}
		})
	}
}

func deep(n int) json.RawMessage {
	return json.RawMessage(strings.Repeat("[", n) + strings.Repeat("]", n))
}

// Generators of everything the types can say. What they leave out is said at
// the encoders: ids that are unfit, and text that is not.

func texts() *rapid.Generator[string] {
	return rapid.Map(rapid.String(), withoutNUL)
}

func ids() *rapid.Generator[string] {
	return rapid.OneOf(
		rapid.Custom(func(t *rapid.T) string {
			return uuid.UUID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "uuid")).String()
		}),
		rapid.StringMatching(`[^\x00-\x1f\x7f-\x9f]{1,256}`),
	)
}

func times() *rapid.Generator[time.Time] {
	return rapid.Custom(func(t *rapid.T) time.Time {
		if rapid.Bool().Draw(t, "unknown") {
			return time.Time{}
		}
		return time.UnixMicro(rapid.Int64Range(-62135596799999999, 253402300799999999).Draw(t, "µs")).UTC()
	})
}

func values(depth int) *rapid.Generator[any] {
	leaves := []*rapid.Generator[any]{
		rapid.Just[any](nil), rapid.Bool().AsAny(), texts().AsAny(),
		rapid.Map(rapid.Int64(), func(n int64) any { return json.Number(fmt.Sprint(n)) }),
		rapid.Map(rapid.Float64(), func(f float64) any { return f }),
	}
	if depth == 0 {
		return rapid.OneOf(leaves...)
	}
	return rapid.OneOf(append(leaves,
		rapid.SliceOfN(values(depth-1), 0, 3).AsAny(),
		rapid.MapOfN(texts(), values(depth-1), 0, 3).AsAny(),
	)...)
}

// raws yields nil, or JSON text as raw gives it.
func raws() *rapid.Generator[json.RawMessage] {
	return rapid.Map(values(2), raw)
}

func sectionsOf(ids *rapid.Generator[string]) *rapid.Generator[*workflow.Section] {
	return rapid.Custom(func(t *rapid.T) *workflow.Section {
		if rapid.Bool().Draw(t, "absent") {
			return nil
		}
		s := &workflow.Section{Total: rapid.IntRange(0, math.MaxInt32).Draw(t, "total"), JobIDs: rapid.SliceOfN(ids, 0, 5).Draw(t, "ids")}
		if len(s.JobIDs) == 0 {
			s.JobIDs = nil
		}
		return s
	})
}

func reports() *rapid.Generator[workflow.JobReport] {
	return rapid.Custom(func(t *rapid.T) workflow.JobReport {
		r := workflow.JobReport{
			ID:      ids().Draw(t, "id"),
			Status:  rapid.SampledFrom(workflow.JobStatuses()).Draw(t, "status"),
			Attempt: rapid.IntRange(0, 1_000_000).Draw(t, "attempt"),
			Name:    texts().Draw(t, "name"), Path: texts().Draw(t, "path"), Command: texts().Draw(t, "command"),
			StartedAt: times().Draw(t, "started"), FinishedAt: times().Draw(t, "finished"),
			Logs: texts().Draw(t, "logs"), Result: raws().Draw(t, "result"), Diagnostics: texts().Draw(t, "diagnostics"),
		}
		r.Cached = r.Status == workflow.JobFinished && rapid.Bool().Draw(t, "cached")
		if rapid.Bool().Draw(t, "ended") {
			r.ExitCode = new(int(rapid.Int32().Draw(t, "exit code")))
		}
		return r
	})
}

func TestStatusRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := &workflow.StatusMessage{
			WorkflowID: uuid.UUID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "workflow")),
			Status:     rapid.SampledFrom(workflow.Statuses()).Draw(t, "status"),
			Logs:       texts().Draw(t, "logs"),
			EventTime:  times().Draw(t, "event time"),
			Attempt:    rapid.IntRange(0, 1_000_000).Draw(t, "attempt"),
			Engine:     rapid.StringMatching(`[a-zé]{0,64}`).Draw(t, "engine"),
			Progress: workflow.Progress{
				Total: sectionsOf(ids()).Draw(t, "total"), Running: sectionsOf(ids()).Draw(t, "running"), Finished: sectionsOf(ids()).Draw(t, "finished"),
				Failed: sectionsOf(ids()).Draw(t, "failed"), Cached: sectionsOf(ids()).Draw(t, "cached"),
				EngineSpecific: raws().Draw(t, "engine-specific"),
			},
			Jobs: rapid.SliceOfN(reports(), 0, 3).Draw(t, "jobs"),
		}
		body, err := EncodeStatus(want)
		if err != nil {
			t.Fatalf("EncodeStatus = %v", err)
		}
		for _, form := range [][]byte{body, Reana(body)} {
			got, err := DecodeStatus(form, schemas.Limits{})
			if err != nil {
				t.Fatalf("DecodeStatus(%s) = %v", form, err)
			}
			if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Fatalf("DecodeStatus(%s) (-want +got):\n%s", form, diff)
			}
		}
	})
}

func TestSubmissionRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := &workflow.Submission{
			User:          rapid.StringMatching(`[^\x00-\x1f\x7f-\x9f]{1,255}`).Draw(t, "user"),
			Workflow:      rapid.StringMatching(`[^\x00-\x1f\x7f-\x9f]{1,255}`).Draw(t, "workflow"),
			Parameters:    raw(rapid.MapOfN(texts(), values(2), 0, 3).AsAny().Draw(t, "parameters")),
			Priority:      rapid.IntRange(0, 100).Draw(t, "priority"),
			MinJobMemory:  rapid.Float64Range(0, 1e18).Draw(t, "memory"),
			RetryCount:    rapid.IntRange(0, math.MaxInt32).Draw(t, "retries"),
			Name:          rapid.StringMatching(`[^\x00]{0,255}`).Draw(t, "name"),
			Engine:        rapid.StringMatching(`[a-zé]{0,64}`).Draw(t, "engine"),
			Specification: raws().Draw(t, "specification"),
			Labels:        rapid.MapOfN(texts(), texts(), 0, 3).Draw(t, "labels"),
			Attempt:       rapid.IntRange(0, 1_000_000).Draw(t, "attempt"),
			EventTime:     times().Draw(t, "event time"),
		}
		body, err := EncodeSubmission(want)
		if err != nil {
			t.Fatalf("EncodeSubmission = %v", err)
		}
		for _, form := range [][]byte{body, Reana(body)} {
			got, err := DecodeSubmission(form, schemas.Limits{})
			if err != nil {
				t.Fatalf("DecodeSubmission(%s) = %v", form, err)
			}
			if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Fatalf("DecodeSubmission(%s) (-want +got):\n%s", form, diff)
			}
		}
	})
}

// TestReanaIsPlainASCII: a reader that takes the body for Latin-1 or ASCII
// still gets the same text.
func TestReanaIsPlainASCII(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := raw(map[string]any{"logs": rapid.String().Draw(t, "logs")})
		body := Reana(text)
		if i := slices.IndexFunc(body, func(b byte) bool { return b < ' ' || b > '~' }); i >= 0 {
			t.Fatalf("byte %d of %q is not printable ASCII", i, body)
		}
		var inner string
		var got, want map[string]string
		if err := errors.Join(json.Unmarshal(body, &inner), json.Unmarshal([]byte(inner), &got), json.Unmarshal(text, &want)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("decoding %s (-want +got):\n%s", body, diff)
		}
	})
	// As Python 3's json.dumps(json.dumps(v)) writes it.
	const python = `"{\"a\": \"\\u00e9 \\u2603 \\ud834\\udd1e \\u007f \\\" \\\\ \\n \\u0001\"}"`
	if got := string(Reana([]byte("{\"a\": \"é ☃ 𝄞 \x7f \\\" \\\\ \\n \\u0001\"}"))); got != python {
		t.Errorf("Reana = %s\nPython = %s", got, python)
	}
}

// TestWordsAgree keeps the words for statuses of the contract and of the
// nouns together; neither package may import the other.
func TestWordsAgree(t *testing.T) {
	for _, status := range workflow.Statuses() {
		body := fmt.Sprintf(`{"workflow_uuid":"6513270e-269e-4d37-b2a7-4de452e6b438","status":%q}`, strings.ToUpper(status.String()))
		m, err := DecodeStatus([]byte(body), schemas.Limits{})
		if err != nil || m.Status != status {
			t.Errorf("DecodeStatus(%s) = %+v, %v; expected status %v", body, m, err, status)
		}
	}
	for _, status := range workflow.JobStatuses() {
		body := fmt.Sprintf(`{"workflow_uuid":"6513270e-269e-4d37-b2a7-4de452e6b438","status":1,"message":{"jobs":[{"job_id":"a","status":%q}]}}`, status)
		m, err := DecodeStatus([]byte(body), schemas.Limits{})
		if err != nil || m.Jobs[0].Status != status {
			t.Errorf("DecodeStatus(%s) = %+v, %v; expected job status %v", body, m, err, status)
		}
	}
}

func TestDescribe(t *testing.T) {
	_, err := DecodeStatus([]byte(`{"workflow_uuid":"6513270e-269e-4d37-b2a7-4de452e6b438","status":"x"}`), schemas.Limits{})
	for _, tt := range []struct {
		err  error
		want [3]string
	}{
		{nil, [3]string{}},
		{err, [3]string{"schema", "/status", `expected an integer of 0 to 7, found "x"`}},
		{fmt.Errorf("wrapped: %w", err), [3]string{"schema", "/status", `expected an integer of 0 to 7, found "x"`}},
		{errors.New("other"), [3]string{"error", "", "other"}},
	} {
		var got [3]string
		got[0], got[1], got[2] = Describe(tt.err)
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("Describe(%v) (-want +got):\n%s", tt.err, diff)
		}
	}
}

func TestDigest(t *testing.T) {
	// sha256("abc") begins so (FIPS 180-2, appendix B).
	if got := Digest([]byte("abc")).String(); got != "ba7816bf-8f01-cfea-4141-40de5dae2223" {
		t.Errorf("Digest(abc) = %s", got)
	}
	if Digest([]byte("a")) == Digest([]byte("a ")) {
		t.Error("bodies that differ in white space have one digest; the digest is of the bytes")
	}
}

func seeds(f *testing.F) {
	f.Helper()
	var paths []string
	for _, folder := range []string{"valid", "invalid"} {
		all, err := filepath.Glob(filepath.Join(shared, "messages", folder, "*.json"))
		if err != nil || len(all) == 0 {
			f.Fatalf("no seeds in %s: %v", folder, err)
		}
		paths = append(paths, all...)
	}
	for _, path := range paths {
		body, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	for _, r := range lines[struct{ Body json.RawMessage }](f, filepath.Join(shared, "reana/reana-messages.jsonl")) {
		f.Add([]byte(r.Body))
	}
}

// FuzzDecodeStatus: nothing panics; what is accepted is in the strict form,
// and encoding it changes nothing of what it says.
func FuzzDecodeStatus(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		m, err := DecodeStatus(body, schemas.Limits{})
		if err != nil {
			if reason, _, _ := Describe(err); reason == "error" {
				t.Fatalf("DecodeStatus(%q) = %v, not a *schemas.Error", body, err)
			}
			return
		}
		doc, err := schemas.Parse(schemas.StatusKind, body, schemas.Limits{})
		if err != nil {
			t.Fatalf("DecodeStatus accepts %q, Parse does not: %v", body, err)
		}
		if err := schemas.Validate(schemas.StatusKind, doc); err != nil {
			t.Fatalf("what Parse returned for %q is not valid: %v", body, err)
		}
		strict, err := EncodeStatus(m)
		if err != nil {
			t.Fatalf("EncodeStatus of what %q says = %v", body, err)
		}
		again, err := DecodeStatus(strict, schemas.Limits{})
		if err != nil {
			t.Fatalf("DecodeStatus(%s) = %v", strict, err)
		}
		if diff := cmp.Diff(m, again); diff != "" {
			t.Fatalf("%q, encoded as %s, says something else (-first +again):\n%s", body, strict, diff)
		}
	})
}

// FuzzDecodeSubmission is FuzzDecodeStatus for submissions.
func FuzzDecodeSubmission(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		s, err := DecodeSubmission(body, schemas.Limits{})
		if err != nil {
			if reason, _, _ := Describe(err); reason == "error" {
				t.Fatalf("DecodeSubmission(%q) = %v, not a *schemas.Error", body, err)
			}
			return
		}
		strict, err := EncodeSubmission(s)
		if err != nil {
			t.Fatalf("EncodeSubmission of what %q says = %v", body, err)
		}
		again, err := DecodeSubmission(strict, schemas.Limits{})
		if err != nil {
			t.Fatalf("DecodeSubmission(%s) = %v", strict, err)
		}
		if diff := cmp.Diff(s, again); diff != "" {
			t.Fatalf("%q, encoded as %s, says something else (-first +again):\n%s", body, strict, diff)
		}
	})
}

// The benchmarks use a message of about 400 bytes, as a serial engine sends,
// and one of about 4 KB with 100 jobs.

func benchmarkMessage(jobs int, logs string) *workflow.StatusMessage {
	m := &workflow.StatusMessage{
		WorkflowID: uuid.MustParse("6513270e-269e-4d37-b2a7-4de452e6b438"),
		Status:     workflow.StatusRunning,
		Logs:       logs,
		EventTime:  time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Engine:     "serial",
		Progress:   workflow.Progress{Total: workflow.Count(jobs), Running: &workflow.Section{Total: jobs}},
	}
	for i := range jobs {
		m.Progress.Running.JobIDs = append(m.Progress.Running.JobIDs, uuid.NewSHA1(m.WorkflowID, fmt.Append(nil, i)).String())
	}
	return m
}

func benchmarkEach(b *testing.B, run func(b *testing.B, m *workflow.StatusMessage, body []byte)) {
	for name, m := range map[string]*workflow.StatusMessage{
		"400B": benchmarkMessage(1, strings.Repeat("a line of output\n", 8)),
		"4KB":  benchmarkMessage(100, ""),
	} {
		body, err := EncodeStatus(m)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(body)))
			run(b, m, body)
		})
	}
}

func BenchmarkUnwrap(b *testing.B) {
	benchmarkEach(b, func(b *testing.B, _ *workflow.StatusMessage, body []byte) {
		double := Reana(body)
		for b.Loop() {
			if text, err := schemas.Unwrap(double); err != nil || !bytes.Equal(text, body) {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkDecodeStatus(b *testing.B) {
	benchmarkEach(b, func(b *testing.B, _ *workflow.StatusMessage, body []byte) {
		double := Reana(body)
		for b.Loop() {
			if _, err := DecodeStatus(double, schemas.Limits{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkValidate(b *testing.B) {
	benchmarkEach(b, func(b *testing.B, _ *workflow.StatusMessage, body []byte) {
		doc, err := schemas.Parse(schemas.StatusKind, body, schemas.Limits{})
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if err := schemas.Validate(schemas.StatusKind, doc); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkEncodeStatus(b *testing.B) {
	benchmarkEach(b, func(b *testing.B, m *workflow.StatusMessage, _ []byte) {
		for b.Loop() {
			if _, err := EncodeStatus(m); err != nil {
				b.Fatal(err)
			}
		}
	})
}
