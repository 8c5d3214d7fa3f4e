package main

import (
	"os"
	"strings"
	"testing"
)

// residentFile is what /proc says of the resident memory that files back.
func residentFile(t *testing.T) string {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(status), "RssFile:")
	if !ok {
		t.Fatalf("no RssFile in\n%s", status)
	}
	size, _, _ := strings.Cut(rest, "kB")
	return strings.TrimSpace(size)
}

// The program goes on without the pages of its code, and holds fewer of them.
// Other tests, which run the program in this process, bring some back meanwhile.
func TestUnmapCode(t *testing.T) {
	before := residentFile(t)
	unmapCode()
	after := residentFile(t)
	if len(after) > len(before) || (len(after) == len(before) && after >= before) {
		t.Errorf("%s kB of files are resident, %s kB were before", after, before)
	}
}
