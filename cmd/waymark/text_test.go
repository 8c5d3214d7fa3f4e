package main

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestHarmless(t *testing.T) {
	tests := []struct{ name, in, line, log string }{
		{"plain", "fit of 2026", "fit of 2026", "fit of 2026"},
		{"letters of all kinds", "größe 数 👩‍🔬", "größe 数 👩‍🔬", "größe 数 👩‍🔬"},
		{"colour", "\x1b[31mred\x1b[0m", `\x1b[31mred\x1b[0m`, `\x1b[31mred\x1b[0m`},
		{"title of the window", "\x1b]0;pwned\a", `\x1b]0;pwned\x07`, `\x1b]0;pwned\x07`},
		{"C1 control sequence introducer", "a\u009b2Jb", `a\u009b2Jb`, `a\u009b2Jb`},
		{"lines", "one\ntwo\tx\r\nthree", `one\ntwo\tx\r\nthree`, "one\ntwo\tx\nthree"},
		{"line drawn over", "secret\rpublic", `secret\rpublic`, `secret\rpublic`},
		{"NUL and DEL", "a\x00b\x7f", `a\x00b\x7f`, `a\x00b\x7f`},
		{"right to left override", "exe\u202etxt", `exe\u202etxt`, `exe\u202etxt`},
		{"isolates, separators, marks", "\u2066\u2028\u200b\ufeff", `\u2066\u2028\u200b\ufeff`, `\u2066\u2028\u200b\ufeff`},
		{"invisible tags", "a\U000e0041", `a\U000e0041`, `a\U000e0041`},
		{"not UTF-8", "a\xff\xc3", `a\xff\xc3`, `a\xff\xc3`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := harmless(test.in); got != test.line {
				t.Errorf("harmless(%q) = %q, want %q", test.in, got, test.line)
			}
			if got := harmlessLog(test.in); got != test.log {
				t.Errorf("harmlessLog(%q) = %q, want %q", test.in, got, test.log)
			}
		})
	}
}

func TestHarmlessAlways(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := string(rapid.SliceOf(rapid.Byte()).Draw(t, "bytes")) + rapid.String().Draw(t, "text")
		for name, got := range map[string]string{"harmless": harmless(s), "harmlessLog": harmlessLog(s)} {
			if !utf8.ValidString(got) {
				t.Fatalf("%s(%q) = %q is not UTF-8", name, s, got)
			}
			for _, r := range got {
				if controls(r) && (name == "harmless" || (r != '\n' && r != '\t')) {
					t.Fatalf("%s(%q) = %q still holds %U", name, s, got, r)
				}
			}
			if again := harmless(harmless(s)); name == "harmless" && again != got {
				t.Fatalf("harmless twice: %q, once: %q", again, got)
			}
		}
	})
}

func TestHarmlessJSONMeansTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.String().Draw(t, "text") + rapid.SampledFrom([]string{"", "\u009b", "\x7f", "\u202e", "\u2028", "\U000e0041", "\ufeff"}).Draw(t, "control")
		text, err := encode(map[string]string{s: s})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range string(text) {
			if controls(r) {
				t.Fatalf("encode(%q) = %s still holds %U", s, text, r)
			}
		}
		var back map[string]string
		if err := json.Unmarshal(text, &back); err != nil {
			t.Fatalf("encode(%q) = %s is not JSON: %v", s, text, err)
		}
		if diff := cmp.Diff(map[string]string{s: s}, back); diff != "" {
			t.Fatalf("encode and decode (-want, +got):\n%s", diff)
		}
	})
}

func TestShellQuote(t *testing.T) {
	for in, want := range map[string]string{"fit": "fit", "fit*": "'fit*'", "it's": `'it'\''s'`, "": "''", "#x": "'#x'", "a#1": "a#1", "$(rm)": "'$(rm)'"} {
		if got := shellQuote(in); got != want && !(in == "" && got == want) {
			t.Errorf("shellQuote(%q) = %s, want %s", in, got, want)
		}
	}
}

func TestLastLines(t *testing.T) {
	if diff := cmp.Diff([]string{"b", `c\x1b`}, lastLines("a\nb\nc\x1b\n\n", 2)); diff != "" {
		t.Errorf("lastLines (-want, +got):\n%s", diff)
	}
	if got := lastLines(strings.Repeat("\n", 9), 2); got != nil {
		t.Errorf("lastLines of empty lines = %q, want none", got)
	}
}
