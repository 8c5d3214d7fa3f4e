package bench

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Result is what one benchmark found.
type Result struct {
	// Benchmark is its name, such as "end-to-end".
	Benchmark string `json:"benchmark"`
	// At is when it ended.
	At          time.Time   `json:"at"`
	Environment Environment `json:"environment"`
	// Settings it ran with, in the order in which they matter.
	Settings []Setting `json:"settings"`
	Cases    []*Case   `json:"cases"`
	// Notes say what the numbers mean and do not mean.
	Notes []string `json:"notes"`
}

// Setting is one parameter of a benchmark.
type Setting struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Case is one thing measured, such as a batch size.
type Case struct {
	Name    string    `json:"name"`
	Metrics []*Metric `json:"metrics"`
}

// Metric is one number of a case, measured in several runs.
type Metric struct {
	Name string `json:"name"`
	// Unit of the values, such as "msg/s"; empty for ratios.
	Unit string `json:"unit"`
	// Median of the values. Of an even number it is the mean of the middle two.
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	// Values of the single runs, in their order.
	Values []float64 `json:"values"`
}

// check returns an error if r holds what is no number, as of something that took
// no time at all.
func (r *Result) check() error {
	for _, c := range r.Cases {
		for _, m := range c.Metrics {
			for _, v := range m.Values {
				if math.IsNaN(v) || math.IsInf(v, 0) {
					return fmt.Errorf("the measurement is void: %s of %s is %v: measure more messages", m.Name, c.Name, v)
				}
			}
		}
	}
	return nil
}

func (r *Result) set(name string, value any) {
	r.Settings = append(r.Settings, Setting{Name: name, Value: fmt.Sprint(value)})
}

func (r *Result) note(text string) { r.Notes = append(r.Notes, text) }

// of returns the case of that name, made if it is new.
func (r *Result) of(name string) *Case {
	if c := r.Case(name); c != nil {
		return c
	}
	c := &Case{Name: name}
	r.Cases = append(r.Cases, c)
	return c
}

// Case returns the case of that name, nil if there is none.
func (r *Result) Case(name string) *Case {
	if i := slices.IndexFunc(r.Cases, func(c *Case) bool { return c.Name == name }); i >= 0 {
		return r.Cases[i]
	}
	return nil
}

// Metric returns the metric of that name, nil if there is none.
func (c *Case) Metric(name string) *Metric {
	if c == nil {
		return nil
	}
	if i := slices.IndexFunc(c.Metrics, func(m *Metric) bool { return m.Name == name }); i >= 0 {
		return c.Metrics[i]
	}
	return nil
}

// add enters the value of one more run.
func (c *Case) add(name, unit string, value float64) {
	m := c.Metric(name)
	if m == nil {
		m = &Metric{Name: name, Unit: unit}
		c.Metrics = append(c.Metrics, m)
	}
	m.Values = append(m.Values, value)
	sorted := slices.Sorted(slices.Values(m.Values))
	m.Min, m.Max = sorted[0], sorted[len(sorted)-1]
	m.Median = median(sorted)
}

// addRatio enters, for the last run of both cases, a value of c divided by that
// of other: the two ran shortly after each other, so what slowed one down did so
// to the other.
func (c *Case) addRatio(name string, metric string, other *Case) {
	mine, theirs := c.Metric(metric), other.Metric(metric)
	if mine == nil || theirs == nil {
		return
	}
	if d := theirs.Values[len(theirs.Values)-1]; d != 0 {
		c.add(name, "", mine.Values[len(mine.Values)-1]/d)
	}
}

func median(sorted []float64) float64 {
	n := len(sorted)
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}

// percentile is the least of the sorted values that p percent of them do not
// exceed: a value that occurred, never one between two.
func percentile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[max(int(math.Ceil(p/100*float64(len(sorted))))-1, 0)]
}

// addLatencies enters the percentiles of one run's times, which it sorts.
func (c *Case) addLatencies(times []time.Duration) {
	slices.Sort(times)
	for _, p := range []struct {
		name string
		at   float64
	}{{"p50", 50}, {"p90", 90}, {"p99", 99}, {"max", 100}} {
		c.add(p.name, "ms", percentile(times, p.at).Seconds()*1000)
	}
}

// Number writes a value with three or four significant digits and, where it is
// large, with commas between the thousands.
func Number(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v) || math.IsInf(v, 0):
		return "–"
	case v == 0:
		return "0"
	case a >= 999.5:
		return thousands(strconv.FormatFloat(v, 'f', 0, 64))
	case a >= 99.95:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 9.995:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case a >= 0.0995:
		return strconv.FormatFloat(v, 'f', 2, 64)
	default:
		return strconv.FormatFloat(v, 'g', 2, 64)
	}
}

func thousands(digits string) string {
	sign := ""
	if rest, negative := strings.CutPrefix(digits, "-"); negative {
		sign, digits = "-", rest
	}
	var b strings.Builder
	for i, d := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(d)
	}
	return sign + b.String()
}
