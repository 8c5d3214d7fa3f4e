package serial

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Bounds of a reana.yaml. Real ones have a few kilobytes.
const (
	maxFile   = 1 << 20 // bytes
	maxValues = 100_000 // values, once aliases are expanded
	maxText   = 4 << 20 // bytes of text, once aliases are expanded
	maxDepth  = 100     // of nesting
)

// document is a YAML file with what is wrong with it.
type document struct {
	path     string
	problems []error
	values   int // expanded so far, against maxValues
	text     int // bytes expanded so far, against maxText
	reported bool
}

// readYAML reads the one document of the file at path.
func readYAML(path string) (*document, *yaml.Node, error) {
	data, err := readBounded(path)
	if err != nil {
		return nil, nil, err
	}
	d := &document{path: path}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var root yaml.Node
	switch err := decoder.Decode(&root); {
	case errors.Is(err, io.EOF):
		return nil, nil, fmt.Errorf("%s is empty: a workflow specification was expected", path)
	case err != nil:
		return nil, nil, fmt.Errorf("%s is not YAML: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	var second yaml.Node
	if err := decoder.Decode(&second); !errors.Is(err, io.EOF) {
		return nil, nil, fmt.Errorf("%s:%d: a second YAML document begins here: one was expected", path, max(second.Line, 1))
	}
	return d, root.Content[0], nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("there is no file %s: name the reana.yaml to run", path)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the workflow specification: %w", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.IsDir() {
		return nil, fmt.Errorf("%s is a directory: name the reana.yaml in it", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading the workflow specification: %w", err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s is larger than %d KiB: that is no workflow specification", path, maxFile>>10)
	}
	return data, nil
}

// fault notes a problem at node. field is the path of the key as people write
// it, such as workflow.specification.steps[0].
func (d *document) fault(node *yaml.Node, field, format string, args ...any) {
	if len(d.problems) < 20 { // enough to start with
		d.problems = append(d.problems, fmt.Errorf("%s:%d: %s: %s", filepath.Base(d.path), node.Line, field, fmt.Sprintf(format, args...)))
	}
}

// err is all that is wrong, one problem a line, or nil.
func (d *document) err() error { return errors.Join(d.problems...) }

// resolve follows an alias to what it stands for. An alias cannot stand for
// another alias.
func resolve(node *yaml.Node) *yaml.Node {
	if node != nil && node.Kind == yaml.AliasNode {
		return node.Alias
	}
	return node
}

// isNull reports whether node is absent or null.
func isNull(node *yaml.Node) bool {
	return node == nil || node.Kind == yaml.ScalarNode && node.Style == 0 && slices.Contains(nulls, node.Value)
}

// child is the value of key in a mapping, nil if it is absent or null. The
// last of repeated keys counts, and a key before what "<<" merges in, as in
// REANA's parser. It is a fault if node is not a mapping.
func (d *document) child(node *yaml.Node, field, key string) *yaml.Node {
	node = resolve(node)
	if isNull(node) {
		return nil
	}
	if node.Kind != yaml.MappingNode {
		d.fault(node, field, "a mapping was expected, found %s", describe(node))
		return nil
	}
	var merged *yaml.Node
	for i := len(node.Content) - 2; i >= 0; i -= 2 {
		k, v := node.Content[i], resolve(node.Content[i+1])
		switch {
		case k.Kind == yaml.ScalarNode && k.Value == key:
			if isNull(v) {
				return nil
			}
			return v
		case isMerge(k) && merged == nil:
			for _, source := range mergeSources(v) {
				if merged == nil && source.Kind == yaml.MappingNode && source != node {
					merged = shallowChild(source, key)
				}
			}
		}
	}
	if isNull(merged) {
		return nil
	}
	return merged
}

// shallowChild is child for the source of a merge, whose own merges are not
// followed: a chain of them is as good as never written, and may be a circle.
func shallowChild(node *yaml.Node, key string) *yaml.Node {
	for i := len(node.Content) - 2; i >= 0; i -= 2 {
		if node.Content[i].Value == key {
			return resolve(node.Content[i+1])
		}
	}
	return nil
}

func isMerge(key *yaml.Node) bool {
	return key.Kind == yaml.ScalarNode && key.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) == 0 && key.Value == "<<"
}

func mergeSources(v *yaml.Node) []*yaml.Node {
	if v.Kind != yaml.SequenceNode {
		return []*yaml.Node{v}
	}
	sources := make([]*yaml.Node, len(v.Content))
	for i, item := range v.Content {
		sources[i] = resolve(item)
	}
	return sources
}

// string is the text of node. It is a fault if node is anything else.
func (d *document) string(node *yaml.Node, field string) (string, bool) {
	switch v := d.scalar(node).(type) {
	case string:
		return v, true
	case nil, bool, *big.Int, float64:
		if node.Kind == yaml.ScalarNode {
			d.fault(node, field, "a text was expected, found %s: put it in quotes", describe(node))
			return "", false
		}
	}
	d.fault(node, field, "a text was expected, found %s", describe(node))
	return "", false
}

// strings is a list of strings, nil for an absent one.
func (d *document) strings(node *yaml.Node, field string) (texts []string, nodes []*yaml.Node) {
	if node == nil {
		return nil, nil
	}
	if node.Kind != yaml.SequenceNode {
		d.fault(node, field, "a list was expected, found %s", describe(node))
		return nil, nil
	}
	for i, item := range node.Content {
		item = resolve(item)
		if s, ok := d.string(item, fmt.Sprintf("%s[%d]", field, i)); ok {
			texts, nodes = append(texts, s), append(nodes, item)
		}
	}
	return texts, nodes
}

// describe names what a node is, for error messages.
func describe(node *yaml.Node) string {
	switch node.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	text := node.Value
	if runes := []rune(text); len(runes) > 40 {
		text = string(runes[:40]) + "…"
	}
	if text == "" && node.Style == 0 {
		return "nothing"
	}
	return strconv.Quote(text)
}

// The scalars of YAML 1.1 as PyYAML, which REANA reads with, tells them apart.
// They differ from those of YAML 1.2: yes is true, 010 is 8, 1:30 is 90, and
// 1e3, without a point, is a string.
var (
	nulls = []string{"", "~", "null", "Null", "NULL"}
	bools = map[string]bool{
		"yes": true, "Yes": true, "YES": true, "no": false, "No": false, "NO": false,
		"true": true, "True": true, "TRUE": true, "false": false, "False": false, "FALSE": false,
		"on": true, "On": true, "ON": true, "off": false, "Off": false, "OFF": false,
	}
	intPattern   = regexp.MustCompile(`^(?:[-+]?0b[0-1_]+|[-+]?0[0-7_]+|[-+]?(?:0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+|[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+)$`)
	floatPattern = regexp.MustCompile(`^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$`)
)

// scalar is the value of a scalar node, whatever it is. Dates, which REANA
// cannot submit, stay the text they are.
func (d *document) scalar(node *yaml.Node) value {
	if node.Kind != yaml.ScalarNode {
		return nil
	}
	tag := ""
	if node.Style&yaml.TaggedStyle != 0 {
		tag = node.ShortTag()
	} else if node.Style != 0 {
		return node.Value // quoted, or a block
	}
	text := node.Value
	if tag == "" {
		tag = implicitTag(text)
	}
	switch tag {
	case "!!null":
		return nil
	case "!!bool":
		return bools[text]
	case "!!float":
		if f, ok := parseFloat(text); ok {
			return f
		}
	case "!!int":
		if n, ok := parseInt(text); ok {
			return n
		}
	}
	return text
}

// implicitTag is the type of a scalar that is neither quoted nor tagged.
func implicitTag(text string) string {
	if slices.Contains(nulls, text) {
		return "!!null"
	}
	if _, ok := bools[text]; ok {
		return "!!bool"
	}
	switch {
	case !strings.ContainsRune("+-.0123456789", rune(text[0])): // most are words
	case floatPattern.MatchString(text):
		return "!!float"
	case intPattern.MatchString(text):
		return "!!int"
	}
	return "!!str"
}

// parseInt reads an integer of YAML 1.1, in base 2, 8, 10, 16 or 60.
func parseInt(s string) (*big.Int, bool) {
	s = strings.ReplaceAll(s, "_", "")
	sign := strings.HasPrefix(s, "-")
	s = strings.TrimLeft(s, "+-")
	n := new(big.Int)
	ok := true
	switch {
	case strings.HasPrefix(s, "0b"):
		_, ok = n.SetString(s[2:], 2)
	case strings.HasPrefix(s, "0x"):
		_, ok = n.SetString(s[2:], 16)
	case len(s) > 1 && s[0] == '0':
		_, ok = n.SetString(s[1:], 8)
	default:
		for part := range strings.SplitSeq(s, ":") {
			digits, fine := new(big.Int).SetString(part, 10)
			if !fine {
				return nil, false
			}
			n.Add(n.Mul(n, big.NewInt(60)), digits)
		}
	}
	if sign {
		n.Neg(n)
	}
	return n, ok
}

// parseFloat reads a float of YAML 1.1, in base 10 or 60.
func parseFloat(s string) (float64, bool) {
	s = strings.ToLower(strings.ReplaceAll(s, "_", ""))
	sign := 1.0
	if strings.HasPrefix(s, "-") {
		sign = -1
	}
	s = strings.TrimLeft(s, "+-")
	switch s {
	case ".inf":
		return math.Inf(int(sign)), true
	case ".nan":
		return math.NaN(), true
	}
	f := 0.0
	for part := range strings.SplitSeq(s, ":") {
		digits, err := strconv.ParseFloat(part, 64)
		if err != nil && !errors.Is(err, strconv.ErrRange) {
			return 0, false
		}
		f = f*60 + digits
	}
	return sign * f, true
}

// value is what node stands for, aliases expanded. What expands beyond all
// measure, as a YAML bomb or a value that contains itself does, is a fault.
func (d *document) value(node *yaml.Node, field string) value {
	return d.expand(node, field, 0)
}

func (d *document) expand(node *yaml.Node, field string, depth int) value {
	node = resolve(node)
	d.values++
	d.text += len(node.Value)
	if d.values > maxValues || d.text > maxText || depth > maxDepth {
		if !d.reported {
			d.reported = true
			d.fault(node, field, "its aliases expand to more than %d values, %d KiB or %d levels: that is no workflow specification", maxValues, maxText>>10, maxDepth)
		}
		return nil
	}
	switch node.Kind {
	case yaml.SequenceNode:
		list := make([]value, 0, len(node.Content))
		for _, item := range node.Content {
			list = append(list, d.expand(item, field, depth+1))
		}
		return list
	case yaml.MappingNode:
		m := newMapping()
		d.expandInto(m, node, field, depth)
		return m
	default:
		return d.scalar(node)
	}
}

func (d *document) expandInto(m *mapping, node *yaml.Node, field string, depth int) {
	for i := 0; i < len(node.Content); i += 2 {
		if !isMerge(node.Content[i]) {
			continue
		}
		sources := mergeSources(resolve(node.Content[i+1]))
		for _, source := range slices.Backward(sources) { // the first source wins
			if merged, ok := d.expand(source, field, depth+1).(*mapping); ok {
				for _, key := range merged.keys {
					m.set(key, merged.values[key])
				}
			}
		}
	}
	for i := 0; i < len(node.Content); i += 2 {
		if key := resolve(node.Content[i]); !isMerge(key) {
			m.set(jsonKey(d.expand(key, field, depth+1)), d.expand(node.Content[i+1], field, depth+1))
		}
	}
}

// jsonKey is what becomes of a key on its way through JSON, as REANA sends it.
func jsonKey(v value) string {
	switch v := v.(type) {
	case string:
		return v
	case nil, bool:
		return string(toJSON(v))
	default:
		return pythonStr(v)
	}
}
