package engines

import (
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestTail(t *testing.T) {
	tests := []struct {
		name   string
		size   int
		writes []string
		want   string
	}{
		{"empty", 8, nil, ""},
		{"fits", 8, []string{"ab", "cd"}, "abcd"},
		{"fits exactly", 4, []string{"ab", "cd"}, "abcd"},
		{"wraps", 4, []string{"abc", "def"}, "[2 bytes before this are left out]\ncdef"},
		{"one write larger than the ring", 4, []string{"abcdefgh"}, "[4 bytes before this are left out]\nefgh"},
		{"starts on a line", 12, []string{"first line\n", "2\nthird line"}, "[13 bytes before this are left out]\nthird line"},
		{"never inside a character", 4, []string{"ππ", "a"}, "[2 bytes before this are left out]\nπa"},
		{"the cut inside a character", 4, []string{"aππ", "a"}, "[3 bytes before this are left out]\nπa"},
		{"NUL, bad UTF-8, carriage return", 16, []string{"a\x00b\xff\rc"}, "a\uFFFDb\uFFFD\rc"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tail := &Tail{Size: tt.size}
			for _, w := range tt.writes {
				if n, err := tail.Write([]byte(w)); n != len(w) || err != nil {
					t.Fatalf("Write(%q) = %d, %v", w, n, err)
				}
			}
			if got := tail.String(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestTailKeepsTheEndOfAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tail := &Tail{Size: rapid.IntRange(1, 64).Draw(t, "size")}
		var all []byte
		for _, w := range rapid.SliceOf(rapid.SliceOfN(rapid.Byte(), 0, 100)).Draw(t, "writes") {
			tail.Write(w)
			all = append(all, w...)
		}
		got := tail.String()
		if !utf8.ValidString(got) || strings.Contains(got, "\x00") {
			t.Fatalf("%q is not fit for a message", got)
		}
		if tail.Written() != int64(len(all)) || len(tail.ring) > tail.Size {
			t.Fatalf("counted %d of %d bytes, holding %d of at most %d", tail.Written(), len(all), len(tail.ring), tail.Size)
		}
		if _, end, cut := strings.Cut(got, " left out]\n"); cut && len(all) > tail.Size {
			got = end
		}
		if !strings.HasSuffix(Text(string(all)), got) && !strings.HasPrefix(got, "\uFFFD") {
			t.Fatalf("%q is not the end of %q", got, all)
		}
	})
}

func TestFit(t *testing.T) {
	tests := []struct {
		in   string
		n    int
		want string
	}{
		{"", 3, ""}, {"abc", 3, "abc"}, {"abcd", 3, "ab…"}, {"éèà", 3, "éèà"}, {"éèàù", 3, "éè…"},
		{"a\x00b", 3, "a\uFFFDb"}, {"\xff\xff\xff\xff", 3, "\uFFFD"}, {"abcd", 1, "…"},
	}
	for _, test := range tests {
		if got := fit(test.in, test.n); got != test.want {
			t.Errorf("fit(%q, %d) = %q, want %q", test.in, test.n, got, test.want)
		}
	}
}
