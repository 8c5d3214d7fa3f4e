package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseIdentity(t *testing.T) {
	many := make([]string, 101)
	for i := range many {
		many[i] = fmt.Sprintf("key%d=v", i)
	}
	long := strings.Repeat("é", 256)
	for _, tc := range []struct {
		what, name, owner string
		labels            []string
		want              string // in the error; empty means none
	}{
		{"nothing", "", "", nil, ""},
		{"as long as may be", long[2:], long[2:], []string{strings.Repeat("k", 256) + "=" + strings.Repeat("v", 4096)}, ""},
		{"a hundred labels", "n", "o", many[:100], ""},
		{"a long name", long, "", nil, "--name: "},
		{"a long owner", "", long, nil, "--owner: "},
		{"an owner of two lines", "", "a\nb", nil, "--owner: "},
		{"an owner in Latin-1", "", "Andr\xe9", nil, "--owner: "},
		{"a name in Latin-1", "Andr\xe9", "", nil, "--name: "},
		{"too many labels", "", "", many, "--label: "},
		{"a long key", "", "", []string{strings.Repeat("k", 257) + "=v"}, "--label"},
		{"a long value", "", "", []string{"k=" + strings.Repeat("v", 4097)}, "--label k: "},
		{"a value in Latin-1", "", "", []string{"k=\xe9"}, "--label: "},
		{"no pair", "", "", []string{"k"}, "--label: "},
	} {
		labels, err := parseIdentity(tc.name, tc.owner, tc.labels)
		if tc.want == "" {
			if err != nil || len(labels) != len(tc.labels) {
				t.Errorf("%s: %d of %d labels, error %v", tc.what, len(labels), len(tc.labels), err)
			}
			continue
		}
		if err == nil || !strings.HasPrefix(err.Error(), tc.want) || !cmp.Equal(exitUsage, exitCodeOf(err)) {
			t.Errorf("%s: the error is %v, want a usage error that begins with %q", tc.what, err, tc.want)
		} else if len(err.Error()) > 400 {
			t.Errorf("%s: the error has %d characters", tc.what, len(err.Error()))
		}
	}
}

// exitCodeOf is the code that err ends the program with, -1 if it has none.
func exitCodeOf(err error) int {
	if e, ok := err.(*exitError); ok {
		return e.code
	}
	return -1
}
