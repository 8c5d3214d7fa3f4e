package broker

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What REANA declares was observed on the wire; anything else is refused with
// 406 by the broker, to REANA's engines or to us.
func TestDeclarations(t *testing.T) {
	for _, tc := range []struct {
		name      string
		got, want Queue
	}{
		{"durable status", Durable.Status("s"), Queue{Name: "s", Topology: Durable, Durable: true}},
		{"durable submission", Durable.Submission("s"), Queue{Name: "s", Topology: Durable, Durable: true, MaxPriority: 100}},
		{"durable dead letters", Durable.DeadLetter("s"), Queue{Name: "s.dead-letter", Topology: Durable, Durable: true}},
		{"reana status", Reana.Status("s"), Queue{Name: "s", Topology: Reana}},
		{"reana submission", Reana.Submission("s"), Queue{Name: "s", Topology: Reana, Durable: true, MaxPriority: 100}},
		{"reana dead letters", Reana.DeadLetter("s"), Queue{Name: "s.dead-letter", Topology: Reana, Durable: true}},
	} {
		if diff := cmp.Diff(tc.want, tc.got); diff != "" {
			t.Errorf("%s is declared otherwise (-want +got):\n%s", tc.name, diff)
		}
	}
}

func TestParseTopology(t *testing.T) {
	for name, want := range map[string]Topology{"": Durable, "durable": Durable, "reana": Reana} {
		if got, err := ParseTopology(name); err != nil || got != want {
			t.Errorf("ParseTopology(%q) = %q, %v; want %q", name, got, err, want)
		}
	}
	for _, name := range []string{"Durable", "quorum", " reana", "\x00"} {
		if _, err := ParseTopology(name); err == nil || !strings.Contains(err.Error(), `"durable" or "reana"`) {
			t.Errorf("ParseTopology(%q) = %v, want an error that names the topologies", name, err)
		}
	}
}

func TestQueueNames(t *testing.T) {
	if diff := cmp.Diff(Queues{"jobs-status", "workflow-submission"}, Queues{}.WithDefaults()); diff != "" {
		t.Errorf("default names (-want +got):\n%s", diff)
	}
	for _, tc := range []struct {
		name   string
		queues Queues
		want   string // in the error, empty for none
	}{
		{"defaults", Queues{}.WithDefaults(), ""},
		{"longest", Queues{strings.Repeat("x", 243), "b"}, ""},
		{"too long", Queues{strings.Repeat("x", 244), "b"}, "244 bytes long"},
		{"the same", Queues{"a", "a"}, "use two queues"},
		{"missing", Queues{"a", ""}, "no name"},
		{"reserved", Queues{"amq.a", "b"}, "broker's own"},
		{"NUL", Queues{"a\x00", "b"}, "control characters"},
		{"newline", Queues{"a", "b\n"}, "control characters"},
		{"not UTF-8", Queues{"a", "b\xff"}, "not UTF-8"},
	} {
		err := tc.queues.Validate()
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: Validate() = %v, want an error with %q (empty: none)", tc.name, err, tc.want)
		}
	}
}
