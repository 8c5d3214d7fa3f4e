package workflow_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"waymark/workflow"
)

func TestCutLogKeepsWhatFits(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, workflow.MinLogBytes} {
		text := strings.Repeat("x", n)
		if got, cut := workflow.CutLog(text, workflow.MinLogBytes); got != text || cut != 0 {
			t.Errorf("of %d bytes %d are left and %d are said to be cut, want all and none", n, len(got), cut)
		}
	}
}

func TestCutLogKeepsHeadAndTail(t *testing.T) {
	t.Parallel()
	got, cut := workflow.CutLog("first line\n"+strings.Repeat("noise\n", 1_000_000)+"last line\n", 2000)
	if !strings.HasPrefix(got, "first line\n") || !strings.HasSuffix(got, "last line\n") {
		t.Errorf("head or tail is missing: it begins with %q and ends with %q", got[:20], got[len(got)-20:])
	}
	if !strings.Contains(got, "\n[… 5998051 bytes cut …]\n") || cut != 5998051 {
		t.Errorf("the mark is missing or wrong; %d bytes are said to be cut; the middle is %q", cut, got[len(got)/2-40:len(got)/2+40])
	}
}

// The bound holds, no character is cut in two, nothing but the middle is
// missing, and the number in the mark is true.
func TestCutLogProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		text := strings.Repeat(rapid.StringN(1, 40, -1).Draw(t, "piece"), rapid.IntRange(1, 400).Draw(t, "times"))
		most := rapid.IntRange(-1, 4000).Draw(t, "most")
		got, cut := workflow.CutLog(text, most)
		if limit := max(most, workflow.MinLogBytes); len(got) > limit {
			t.Fatalf("%d bytes are left, want at most %d", len(got), limit)
		}
		if utf8.ValidString(text) && !utf8.ValidString(got) {
			t.Fatalf("a character was cut in two: %q", got)
		}
		if cut == 0 {
			if got != text {
				t.Fatalf("nothing is said to be cut, and yet %q became %q", text, got)
			}
			return
		}
		if again, n := workflow.CutLog(text, most); again != got || n != cut {
			t.Fatalf("the second time it gave %q, %d, the first %q, %d", again, n, got, cut)
		}
		head, tail, ok := strings.Cut(got, "\n[… ")
		if !ok || !strings.HasPrefix(text, head) || !strings.Contains(tail, " bytes cut …]\n") {
			t.Fatalf("%q does not begin as the text does", head)
		}
		_, tail, _ = strings.Cut(tail, " bytes cut …]\n")
		if !strings.HasSuffix(text, tail) || len(head)+cut+len(tail) != len(text) {
			t.Fatalf("head %d, cut %d and tail %d bytes are not the text's %d, or the tail is not its end", len(head), cut, len(tail), len(text))
		}
	})
}
