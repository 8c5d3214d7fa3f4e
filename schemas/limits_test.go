package schemas_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"waymark/schemas"
)

// Every limit of a message: at the limit it is taken, and one beyond it is
// refused with an error that names the field, the limit, and what to do.
func TestLimits(t *testing.T) {
	t.Parallel()
	const id = "256b25f4-4cfb-4684-b7a8-73872ef455a1"
	status := func(more string) string {
		return fmt.Sprintf(`{"workflow_uuid": %q, "status": 1, %s}`, id, more)
	}
	job := func(field string) func(int) string {
		return func(n int) string {
			return status(fmt.Sprintf(`"message": {"jobs": [{"job_id": "a", %q: %q}]}`, field, strings.Repeat("é", n)))
		}
	}
	labels := func(n, key, value int) string {
		var all []string
		for i := range n {
			all = append(all, fmt.Sprintf(`"%d%s": %q`, i%10, strings.Repeat(string(rune('a'+i/10)), key-1), strings.Repeat("v", value)))
		}
		return fmt.Sprintf(`{"user": "ada", "workflow_id_or_name": %q, "labels": {%s}}`, id, strings.Join(all, ","))
	}
	lim := schemas.Limits{MaxBytes: 4 << 20, MaxDepth: 10, MaxJobs: 20, MaxValues: 200}
	for _, tc := range []struct {
		name             string
		kind             schemas.Kind
		body             func(n int) string // n is what is limited
		limit            int
		reason, pointer  string
		expected, advice string
	}{
		{"bytes", schemas.StatusKind, func(n int) string {
			body := status(`"logs": ""`)
			return body + strings.Repeat(" ", n-len(body))
		}, 4 << 20, "too-large", "", "at most 4194304 bytes, found 4194305", "say it in several messages"},
		{"depth", schemas.StatusKind, func(n int) string {
			return status(`"x": ` + strings.Repeat("[", n-1) + strings.Repeat("]", n-1))
		}, 10, "too-deep", "", "at most 10 deep", "put what is deeper into a string"},
		{"values", schemas.StatusKind, func(n int) string {
			return status(`"x": [` + strings.Repeat("1,", n-4) + "1]") // the object, its other values, the array
		}, 200, "too-large", "", "at most 200 JSON values", "say it in several messages"},
		{"job ids", schemas.StatusKind, func(n int) string {
			return status(`"message": {"progress": {"running": {"total": 1, "job_ids": [` + strings.TrimSuffix(strings.Repeat(`"a",`, n), ",") + `]}}}`)
		}, 20, "too-large", "/message", "at most 20 job ids and job details, found 21", "say it in several messages"},
		{"job details", schemas.StatusKind, func(n int) string {
			return status(`"message": {"jobs": [` + strings.TrimSuffix(strings.Repeat(`{"job_id": "a"},`, n), ",") + `]}`)
		}, 20, "too-large", "/message", "at most 20 job ids and job details, found 21", "say it in several messages"},
		{"name of a job", schemas.StatusKind, job("name"), 1024, "schema", "/message/jobs/0/name", "at most 1024 characters", "(1025 characters): shorten it"},
		{"path of a job", schemas.StatusKind, job("path"), 4096, "schema", "/message/jobs/0/path", "at most 4096 characters", "(4097 characters): shorten it"},
		{"command of a job", schemas.StatusKind, job("command"), 1 << 20, "schema", "/message/jobs/0/command", "at most 1048576 characters", "(1048577 characters): shorten it"},
		{"diagnostics of a job", schemas.StatusKind, job("diagnostics"), 1 << 20, "schema", "/message/jobs/0/diagnostics", "at most 1048576 characters", "(1048577 characters): shorten it"},
		{"id of a job", schemas.StatusKind, func(n int) string {
			return status(fmt.Sprintf(`"message": {"jobs": [{"job_id": %q}]}`, strings.Repeat("j", n)))
		}, 256, "schema", "/message/jobs/0/job_id", "1 to 256 characters", "(257 characters): shorten it"},
		{"labels", schemas.SubmissionKind, func(n int) string { return labels(n, 3, 3) }, 100, "schema", "/labels", "at most 100 properties, found 101", "leave some out"},
		{"key of a label", schemas.SubmissionKind, func(n int) string { return labels(1, n, 1) }, 256, "schema", "/labels/0" + strings.Repeat("a", 256), "at most 256 characters", "(257 characters): shorten it"},
		{"value of a label", schemas.SubmissionKind, func(n int) string { return labels(1, 1, n) }, 4096, "schema", "/labels/0", "at most 4096 characters", "(4097 characters): shorten it"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			lim := lim
			if tc.name == "labels" {
				lim.MaxValues = 0
			}
			if _, err := schemas.Parse(tc.kind, []byte(tc.body(tc.limit)), lim); err != nil {
				t.Errorf("at the limit of %d: %v, want it taken", tc.limit, err)
			}
			_, err := schemas.Parse(tc.kind, []byte(tc.body(tc.limit+1)), lim)
			refusal, ok := errors.AsType[*schemas.Error](err)
			if !ok {
				t.Fatalf("beyond the limit of %d: %v, want a *schemas.Error", tc.limit, err)
			}
			if refusal.Reason != tc.reason || refusal.Pointer != tc.pointer || !strings.Contains(refusal.Message, tc.expected) || !strings.Contains(refusal.Message, tc.advice) {
				t.Errorf("beyond the limit of %d it says %q,\nwant reason %q, pointer %q, %q and %q", tc.limit, refusal, tc.reason, tc.pointer, tc.expected, tc.advice)
			}
			if len(refusal.Message) > 300 {
				t.Errorf("the message is %d bytes long", len(refusal.Message))
			}
		})
	}
}

func TestMoreValuesThan(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		text string
		n    int // values, by the count's own rule
	}{
		{`{}`, 1}, {`[1,2,3]`, 3}, {`{"a":1,"b":[1,{"c":2}]}`, 5}, {`["a,b,[c","\\",",\","]`, 3},
	} {
		if schemas.MoreValuesThan(tc.text, tc.n) || !schemas.MoreValuesThan(tc.text+strings.Repeat(" ", 100), tc.n-1) {
			t.Errorf("%s does not count as %d values", tc.text, tc.n)
		}
	}
}
