package schemas

import (
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
)

// Upcast turns the dialects that are known to be on the wire into the strict
// form, in place. It repairs what has one plausible meaning and leaves all
// else for the schema to refuse: an absent status is not invented, an id with a
// control character is not altered. It may be applied twice.
//
// Two dialects need nothing here: encoding/json turns a lone surrogate into
// U+FFFD, and ignores what properties the schema does not name.
func Upcast(k Kind, doc map[string]any) {
	switch k {
	case StatusKind:
		upcastStatus(doc)
	case SubmissionKind:
		upcastSubmission(doc)
	}
}

func upcastStatus(doc map[string]any) {
	replaceNULs(doc, "workflow_uuid", "message")
	if id, ok := doc["workflow_uuid"].(string); ok {
		doc["workflow_uuid"] = canonicalUUID(id)
	}
	// Yadage's tracker sends null logs with every snapshot.
	if logs, ok := doc["logs"]; ok && logs == nil {
		doc["logs"] = ""
	}
	if status, ok := doc["status"]; ok {
		doc["status"] = runStatus(status)
	}
	dropNulls(doc, "message", "event_time", "attempt", "engine")
	integers(doc, "attempt")

	switch message := doc["message"].(type) {
	case string:
		// REANA's Snakemake engine passes a sentence where the object belongs
		// when it cancels its jobs.
		if logs, ok := orEmpty(doc["logs"]).(string); ok {
			if logs != "" && !strings.HasSuffix(logs, "\n") {
				logs += "\n"
			}
			doc["logs"] = logs + withoutNUL(message)
			delete(doc, "message")
		}
	case map[string]any:
		upcastMessage(message)
		upcastSnapshot(doc, message)
	}
}

// orEmpty treats log text that is absent as empty.
func orEmpty(logs any) any {
	if logs == nil {
		return ""
	}
	return logs
}

func upcastMessage(message map[string]any) {
	replaceNULs(message, "progress", "jobs")
	dropNulls(message, "progress", "jobs")
	if progress, ok := message["progress"].(map[string]any); ok {
		replaceNULs(progress, sections[:]...)
		dropNulls(progress, sections[:]...)
		dropNulls(progress, "engine_specific")
		for _, name := range sections {
			if section, ok := progress[name].(map[string]any); ok {
				upcastSection(section)
			}
		}
	}
	details, _ := message["jobs"].([]any)
	for _, detail := range details {
		if job, ok := detail.(map[string]any); ok {
			replaceNULs(job, "job_id")
			dropNulls(job, "name", "path", "status", "attempt", "command", "exit_code", "started_at", "finished_at", "logs", "result", "diagnostics")
			integers(job, "attempt", "exit_code")
		}
	}
}

func upcastSection(section map[string]any) {
	dropNulls(section, "total", "job_ids")
	switch ids := section["job_ids"].(type) {
	case nil:
		// Seen as {"total": {"total": 4}}; the original stores it, and its
		// API then fails on it.
		section["job_ids"] = []any{}
	case []any:
		// Null where the job controller answered without an id, or an older
		// Snakemake engine failed before it had one.
		section["job_ids"] = slices.DeleteFunc(ids, func(id any) bool { return id == nil || id == "" })
	}
	if _, ok := section["total"]; !ok {
		// The original counts the ids and never looks at this total.
		if ids, ok := section["job_ids"].([]any); ok {
			section["total"] = json.Number(strconv.Itoa(len(ids)))
		}
	}
	integers(section, "total")
	// REANA's CWL engine takes the length of $graph less one, and -1 for a
	// document without $graph. In our totals 0 means unknown.
	clamp(section, "total", 0, math.MaxInt)
}

// upcastSnapshot repairs the snapshots of REANA's Yadage tracker, and takes
// from their graph the names of the jobs, which REANA throws away.
//
// There, total counts only the nodes not yet submitted: it falls to 0 while
// the others grow, so the sum of the four is what other engines call total.
// The nodes of the graph are no help: those that only initialise a
// sub-workflow are among them and never become jobs.
//
// A graph that says which engine made it is not of that tracker; neither is a
// message that does, and so the repaired one says it.
func upcastSnapshot(doc, message map[string]any) {
	progress, _ := message["progress"].(map[string]any)
	specific, _ := progress["engine_specific"].(map[string]any)
	dag, _ := specific["dag"].(map[string]any)
	nodes, ok := dag["nodes"].([]any)
	if !ok || specific["engine"] != nil || doc["engine"] != nil {
		return
	}
	sum := 0
	for _, name := range [...]string{"total", "running", "finished", "failed"} {
		section, ok := progress[name].(map[string]any)
		if !ok {
			continue
		}
		number, _ := section["total"].(json.Number)
		n, err := strconv.ParseInt(string(number), 10, 32)
		if err != nil {
			return // not a count: leave the fault where it is
		}
		sum += int(n)
	}
	total, ok := progress["total"].(map[string]any)
	if !ok {
		if progress["total"] != nil {
			return
		}
		total = map[string]any{"job_ids": []any{}}
		progress["total"] = total
	}
	total["total"] = json.Number(strconv.Itoa(min(sum, math.MaxInt32)))
	doc["engine"] = "yadage"

	if _, given := message["jobs"]; given {
		return
	}
	var details []any
	for _, n := range nodes {
		node, _ := n.(map[string]any)
		metadata, _ := node["metadata"].(map[string]any)
		job, _ := node["jobid"].(map[string]any)
		name, _ := metadata["name"].(string)
		id, _ := job["job_id"].(string)
		if name != "" && fitForID(id) {
			details = append(details, map[string]any{"job_id": id, "name": name})
		}
	}
	if details != nil {
		message["jobs"] = details
	}
}

// fitForID reports whether the schema takes s as a job id. What Upcast itself
// adds to a message must not be the reason to refuse it.
func fitForID(s string) bool {
	return s != "" && utf8.RuneCountInString(s) <= 256 && !strings.ContainsFunc(s, unicode.IsControl)
}

func upcastSubmission(doc map[string]any) {
	replaceNULs(doc, "user", "workflow_id_or_name")
	dropNulls(doc, "priority", "min_job_memory", "retry_count", "name", "engine", "specification", "labels", "attempt", "event_time")
	if parameters, ok := doc["parameters"]; ok && parameters == nil {
		doc["parameters"] = map[string]any{}
	}
	integers(doc, "priority", "retry_count", "attempt")
	// RabbitMQ caps the AMQP property of the same value in silence, REANA
	// sends what it was configured with.
	clamp(doc, "priority", 0, 100)
}

// runStatuses are REANA's words for the numbers.
var runStatuses = [...]string{"created", "running", "finished", "failed", "deleted", "stopped", "queued", "pending"}

// runStatus takes the number for a word, and 1 for 1.0: the original does the
// latter, as Python's enumerations do.
func runStatus(v any) any {
	word, ok := v.(string)
	if !ok {
		return integer(v)
	}
	for number, name := range runStatuses {
		if strings.EqualFold(name, word) {
			return json.Number(strconv.Itoa(number))
		}
	}
	return v
}

// canonicalUUID accepts what Python's uuid.UUID does, and thus the original
// consumer: any case, braces, the urn:uuid: prefix, no dashes.
func canonicalUUID(s string) string {
	bare := s
	const urn = "urn:uuid:"
	if len(bare) > len(urn) && strings.EqualFold(bare[:len(urn)], urn) {
		bare = bare[len(urn):]
	}
	if strings.HasPrefix(bare, "{") && strings.HasSuffix(bare, "}") {
		bare = bare[1 : len(bare)-1]
	}
	if len(bare) != 36 && len(bare) != 32 {
		return s
	}
	id, err := uuid.Parse(bare)
	if err != nil {
		return s
	}
	return id.String()
}

// dropNulls removes the named properties where they are null: to a reader
// null says no more than absence, and Python's None becomes null.
func dropNulls(object map[string]any, names ...string) {
	for _, name := range names {
		if v, ok := object[name]; ok && v == nil {
			delete(object, name)
		}
	}
}

// integers writes the named properties as plain digits where they are
// integers by value: Python and JavaScript send 1.0 for 1.
func integers(object map[string]any, names ...string) {
	for _, name := range names {
		if v, ok := object[name]; ok {
			object[name] = integer(v)
		}
	}
}

// integer returns v as a json.Number of plain digits if it is a number of an
// integer value, and else v. The conversion is exact.
func integer(v any) any {
	var text string
	switch n := v.(type) {
	case json.Number:
		text = string(n)
	case float64:
		text = strconv.FormatFloat(n, 'g', -1, 64)
	default:
		return v
	}
	if _, err := strconv.ParseInt(text, 10, 64); err == nil {
		return json.Number(text)
	}
	whole, fraction, exponent, ok := parts(text)
	if !ok || exponent > maxDigits || exponent < -maxDigits {
		return v
	}
	digits := whole + fraction
	point := len(whole) + exponent // where it stands among the digits
	switch {
	case point <= 0:
		whole, fraction = "0", digits
	case point >= len(digits):
		whole, fraction = digits+strings.Repeat("0", point-len(digits)), ""
	default:
		whole, fraction = digits[:point], digits[point:]
	}
	if strings.Trim(fraction, "0") != "" {
		return v
	}
	whole = strings.TrimLeft(whole, "0")
	if whole == "" {
		return json.Number("0")
	}
	if strings.HasPrefix(text, "-") {
		whole = "-" + whole
	}
	return json.Number(whole)
}

// clamp moves the named property to the nearer bound if it is an integer
// outside of them. A high of math.MaxInt bounds nothing.
func clamp(object map[string]any, name string, low, high int) {
	number, ok := object[name].(json.Number)
	if !ok || strings.ContainsAny(string(number), ".eE") {
		return
	}
	n, err := strconv.Atoi(string(number))
	tooBig := err != nil // integers are digits only, so it is a matter of size
	negative := strings.HasPrefix(string(number), "-")
	switch {
	case tooBig && negative, !tooBig && n < low:
		object[name] = json.Number(strconv.Itoa(low))
	case high < math.MaxInt && (tooBig || n > high):
		object[name] = json.Number(strconv.Itoa(high))
	}
}

// replaceNULs replaces the NUL characters in the properties of object, at any
// depth, but for the named ones. Postgres takes no NUL in text, and the
// original applies half of such a message.
func replaceNULs(object map[string]any, except ...string) {
	for name, value := range object {
		if slices.Contains(except, name) {
			continue
		}
		if clean, changed := replaceNUL(value); changed {
			object[name] = clean
		}
	}
}

// ReplaceNUL returns v, a decoded JSON value, with U+FFFD for every NUL
// character in its strings and keys. It may change v.
func ReplaceNUL(v any) any {
	clean, _ := replaceNUL(v)
	return clean
}

func replaceNUL(v any) (clean any, changed bool) {
	switch v := v.(type) {
	case string:
		if strings.IndexByte(v, 0) < 0 {
			return v, false
		}
		return withoutNUL(v), true
	case []any:
		for i, item := range v {
			if clean, changed := replaceNUL(item); changed {
				v[i] = clean
			}
		}
		return v, false
	case map[string]any:
		var dirty []string
		for key, value := range v {
			if clean, changed := replaceNUL(value); changed {
				v[key] = clean
			}
			if strings.IndexByte(key, 0) >= 0 {
				dirty = append(dirty, key)
			}
		}
		slices.Sort(dirty) // two may become one; always keep the same
		for _, key := range dirty {
			if plain := withoutNUL(key); v[plain] == nil {
				v[plain] = v[key]
			}
			delete(v, key)
		}
		return v, false
	default:
		return v, false
	}
}

func withoutNUL(s string) string { return strings.ReplaceAll(s, "\x00", "\uFFFD") }
