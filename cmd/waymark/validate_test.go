package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
)

func decodeJSON(t testing.TB, text string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("not JSON: %v\n%s", err, text)
	}
}

const (
	goodID     = "2fb6b2f0-7c94-4ddc-9a5d-5d2b8b6e1f6c"
	goodStatus = `{"workflow_uuid": "` + goodID + `", "status": 1, "logs": "", "message": {}}`
	badStatus  = `{"workflow_uuid": "` + goodID + `", "status": 99, "logs": "", "message": {}}`
)

func TestValidate(t *testing.T) {
	reanas, err := json.Marshal(goodStatus)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, in string
		args     []string
		code     int
		want     string // in standard output
	}{
		{"a good one", goodStatus, nil, 0, ""},
		{"REANA's form", string(reanas) + "\n" + string(reanas), nil, 0, ""},
		{"a submission", `{"user": "jane", "workflow_id_or_name": "fit"}`, nil, 0, ""},
		{"a submission where a status is due", `{"user": "jane", "workflow_id_or_name": "fit"}`, []string{"--kind", "status"}, 1, "standard input:1: /workflow_uuid: "},
		{"the third line", goodStatus + "\n\n" + badStatus + "\n" + goodStatus, nil, 1, "standard input:3: /status: expected an integer of 0 to 7"},
		{"no JSON", goodStatus + "\nnonsense\n", nil, 1, "standard input:2: not-json: "},
		{"hostile", `{"workflow_uuid": "\u001b[2J", "status": 1}`, nil, 1, `standard input:1: /workflow_uuid: expected a UUID, found "\x1b[2J"`},
		{"empty", "", nil, 0, ""},
		{"a dialect", strings.Replace(goodStatus, `"status": 1`, `"status": "running"`, 1), []string{"--strict"}, 1, "standard input:1: /"},
		{"too large", `{"logs": "` + strings.Repeat("x", 2000) + "\"}\n" + goodStatus, []string{"--consumer-max-message-bytes", "1024"}, 1, "standard input:1: too-large: expected at most 1024 bytes"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := environment{}.runWith(t.Context(), test.in, append([]string{"validate", "-"}, test.args...)...).want(t, test.code)
			if !strings.Contains(got.stdout, test.want) || (test.want == "") != (got.stdout == "") {
				t.Errorf("standard output %q, want %q in it", got.stdout, test.want)
			}
			if lines := strings.Count(got.stdout, "\n"); test.want != "" && lines != 1 {
				t.Errorf("%d lines for one fault:\n%s", lines, got.stdout)
			}
		})
	}
}

func TestValidateFixtures(t *testing.T) {
	for folder, code := range map[string]int{"valid": exitOK, "invalid": exitFailed} {
		files, err := filepath.Glob(filepath.Join("../../testdata/messages", folder, "*.json"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no fixtures in %s: %v", folder, err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, ".strict.json") {
				continue
			}
			switch filepath.Base(file) {
			case "status-empty.json", "status-only-space.json", "status-only-bom.json", "status-trailing-data.json":
				continue // in a file, these are no message, and two of them
			}
			kind := "status"
			if strings.HasPrefix(filepath.Base(file), "submission") {
				kind = "submission"
			}
			got := environment{}.run(t, "validate", "--kind", kind, file)
			if got.code != code {
				t.Errorf("validate %s: exit code %d, want %d\n%s", file, got.code, code, got.stdout)
			}
		}
	}
}

func TestValidateNeedsAFile(t *testing.T) {
	got := environment{}.run(t, "validate", "no-such-file.json").want(t, exitUsage)
	if !strings.Contains(got.stderr, "no-such-file.json") {
		t.Errorf("standard error %q does not name the file", got.stderr)
	}
}
