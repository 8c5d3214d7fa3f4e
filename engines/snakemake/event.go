package snakemake

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"waymark/engines"
)

// event is a message of the hook, or of a log handler or plugin like it. Every
// field may be missing, or of another type than it should be.
type event map[string]any

// parseEvent returns nil for what is no event.
func parseEvent(line []byte) event {
	line = bytes.TrimSpace(line)
	if len(line) == 0 || line[0] != '{' {
		return nil
	}
	var e event
	if json.Unmarshal(line, &e) != nil {
		return nil
	}
	return e
}

// kind is what the event is about: the level of Snakemake 5 to 8, the event of 9.
func (e event) kind() string {
	name, ok := e["event"].(string)
	if !ok {
		return e.text("level")
	}
	if name == "None" || name == "" {
		return strings.ToLower(e.text("level"))
	}
	return name
}

func (e event) text(key string) string {
	s, _ := e[key].(string)
	return engines.Text(s)
}

// number returns a field, if it is a number that can be an id or a count.
func (e event) number(key string) (int, bool) {
	f, ok := e[key].(float64)
	if !ok || f != math.Trunc(f) || math.Abs(f) > 1<<31 {
		return 0, false
	}
	return int(f), true
}

func (e event) flag(key string) bool {
	b, _ := e[key].(bool)
	return b
}

// first returns the first of several fields that has text.
func (e event) first(keys ...string) string {
	for _, k := range keys {
		if s := e.text(k); s != "" {
			return s
		}
	}
	return ""
}

func (e event) list(key string) []any {
	l, _ := e[key].([]any)
	return l
}

// objects returns the objects in a list.
func (e event) objects(key string) []event {
	var out []event
	for _, v := range e.list(key) {
		if m, ok := v.(map[string]any); ok {
			out = append(out, event(m))
		}
	}
	return out
}

func (e event) object(key string) event {
	m, _ := e[key].(map[string]any)
	return m
}

// words are the values of an object as text.
func (e event) words() map[string]string {
	out := make(map[string]string, len(e))
	for k, v := range e {
		switch v := v.(type) {
		case string:
			out[k] = engines.Text(v)
		case nil:
		default:
			out[k] = engines.Text(fmt.Sprint(v))
		}
	}
	return out
}

// at is when the event happened by the engine's clock, zero if it does not say.
func (e event) at() time.Time {
	for _, key := range [...]string{"timestamp", "created"} {
		if f, ok := e[key].(float64); ok && f > 1e9 && f < 1e10 {
			return time.UnixMicro(int64(f * 1e6)).UTC()
		}
	}
	return time.Time{}
}

// stableName is what a job is called in every run: its rule and, sorted, its
// wildcards.
func stableName(rule string, wildcards map[string]string) string {
	if len(wildcards) == 0 {
		return rule
	}
	parts := make([]string, 0, len(wildcards))
	for _, k := range slices.Sorted(maps.Keys(wildcards)) {
		parts = append(parts, k+"="+wildcards[k])
	}
	return rule + ":" + strings.Join(parts, ",")
}
