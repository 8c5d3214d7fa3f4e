package serial

import (
	"encoding/json"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"pgregory.net/rapid"
)

const testdata = "../../testdata/engines/serial"

func readJSON(t *testing.T, name string, into any) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(testdata, name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// fromJSON turns a document into values, telling 2.0 from 2 as Python does.
func fromJSON(t *testing.T, node *yaml.Node) value {
	t.Helper()
	switch node.Kind {
	case yaml.SequenceNode:
		list := []value{}
		for _, item := range node.Content {
			list = append(list, fromJSON(t, item))
		}
		return list
	case yaml.MappingNode:
		m := newMapping()
		for i := 0; i < len(node.Content); i += 2 {
			m.set(node.Content[i].Value, fromJSON(t, node.Content[i+1]))
		}
		return m
	}
	switch {
	case node.Style != 0:
		return node.Value
	case node.Value == "null":
		return nil
	case node.Value == "true", node.Value == "false":
		return node.Value == "true"
	case strings.ContainsAny(node.Value, ".e"):
		f, ok := parseFloat(node.Value)
		if !ok {
			t.Fatalf("%q is not a float", node.Value)
		}
		return f
	}
	n, ok := new(big.Int).SetString(node.Value, 10)
	if !ok {
		t.Fatalf("%q is not an integer", node.Value)
	}
	return n
}

func TestSubstituteGolden(t *testing.T) {
	var golden struct {
		Parameters json.RawMessage
		Cases      []struct{ Command, Output, Error, Message string }
	}
	readJSON(t, "template-golden.json", &golden)
	var node yaml.Node // keeps the order of keys, and 2.0
	if err := yaml.Unmarshal(golden.Parameters, &node); err != nil {
		t.Fatal(err)
	}
	parameters := fromJSON(t, node.Content[0]).(*mapping)
	if len(golden.Cases) != 36 {
		t.Fatalf("%d golden cases, want 36", len(golden.Cases))
	}
	for _, tt := range golden.Cases {
		t.Run(tt.Command, func(t *testing.T) {
			got, err := substitute(tt.Command, parameters)
			fault, _ := errors.AsType[*placeholderError](err)
			switch {
			case tt.Error == "" && (err != nil || got != tt.Output):
				t.Errorf("got %q, error %v; Python gives %q", got, err, tt.Output)
			case tt.Error == "KeyError" && (fault == nil || "'"+fault.name+"'" != tt.Message):
				t.Errorf("got %q, error %v; Python misses the key %s", got, err, tt.Message)
			case tt.Error == "ValueError":
				if fault == nil || fault.name != "" {
					t.Fatalf("got %q, error %v; Python says %s", got, err, tt.Message)
				}
				at := strings.NewReplacer("line ", "at line ", ", col ", ", column ").Replace(tt.Message[strings.Index(tt.Message, "line"):])
				if !strings.Contains(err.Error(), at+":") {
					t.Errorf("error %q does not say %q, where Python has it", err, at)
				}
			}
		})
	}
}

// Positions that Python 3.11's string.Template gave.
func TestSubstitutePosition(t *testing.T) {
	tests := []struct {
		command      string
		line, column int
	}{
		{"a\n$", 2, 1},
		{"a\r\n b $ ", 2, 4},
		{"x\u2028$1", 2, 1},
		{"x\u0085y$(", 2, 2},
		{"$\u212a", 1, 1}, // the Kelvin sign is no k
		{"éé $1", 1, 4},
		{"\n$", 2, 1},
		{"a\x0b\x1c$", 3, 1},
	}
	for _, tt := range tests {
		_, err := substitute(tt.command, newMapping())
		fault, ok := errors.AsType[*placeholderError](err)
		if !ok || fault.line != tt.line || fault.column != tt.column {
			t.Errorf("substitute(%q): %v, want line %d, column %d", tt.command, err, tt.line, tt.column)
		}
	}
}

func TestSubstituteUndoesEscaping(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.String().Draw(t, "text")
		got, err := substitute(strings.ReplaceAll(text, "$", "$$"), newMapping())
		if err != nil || got != text {
			t.Fatalf("%q came back as %q, error %v", text, got, err)
		}
		m := newMapping()
		m.set("p", text)
		if got, err := substitute("<${p}>", m); err != nil || got != "<"+text+">" {
			t.Fatalf("parameter %q gave %q, error %v: it must not be looked at again", text, got, err)
		}
	})
}

// What PyYAML reads and Python prints.
func TestScalarsGolden(t *testing.T) {
	var golden struct {
		Cases []struct{ YAML, Str string }
	}
	readJSON(t, "scalars-golden.json", &golden)
	if len(golden.Cases) < 80 {
		t.Fatalf("only %d golden cases", len(golden.Cases))
	}
	for _, tt := range golden.Cases {
		t.Run(tt.YAML, func(t *testing.T) {
			var node yaml.Node
			if err := yaml.Unmarshal([]byte("v: "+tt.YAML), &node); err != nil {
				t.Fatal(err)
			}
			d := &document{path: "test.yaml"}
			v := d.value(node.Content[0], "v").(*mapping).values["v"]
			if d.err() != nil {
				t.Fatal(d.err())
			}
			if got := pythonStr(v); got != tt.Str {
				t.Errorf("got %s, Python has %s", got, tt.Str)
			}
			var back any
			if err := json.Unmarshal(toJSON(v), &back); err != nil {
				t.Errorf("as JSON it is %s: %v", toJSON(v), err)
			}
		})
	}
}
