package main

import (
	"errors"
	"strings"
	"unicode/utf8"

	"waymark/schemas"
)

// parseIdentity reads --label, and checks it, --name and --owner against what a
// submission may hold: what is typed can be put right at once, and after the run
// has begun nobody could be told.
func parseIdentity(name, owner string, labelWords []string) (labels map[string]string, err error) {
	labels, err = parsePairs("--label", labelWords)
	if err != nil {
		return nil, err
	}
	submission := map[string]any{"user": "-", "workflow_id_or_name": "-"}
	for _, given := range []struct{ flag, property, text string }{{"--name", "name", name}, {"--owner", "user", owner}} {
		if !utf8.ValidString(given.text) {
			return nil, usage("%s: %q is not valid UTF-8", given.flag, given.text)
		}
		if given.text != "" { // else a default takes its place
			submission[given.property] = given.text
		}
	}
	pairs := make(map[string]any, len(labels))
	for key, value := range labels {
		if !utf8.ValidString(key) || !utf8.ValidString(value) {
			return nil, usage("--label: %q is not valid UTF-8", key+"="+value)
		}
		pairs[key] = value
	}
	submission["labels"] = pairs
	err = schemas.Validate(schemas.SubmissionKind, submission)
	fault, ok := errors.AsType[*schemas.Error](err)
	switch {
	case err == nil:
		return labels, nil
	case !ok:
		return nil, err
	}
	flag := "--label"
	switch {
	case fault.Pointer == "/name":
		flag = "--name"
	case fault.Pointer == "/user":
		flag = "--owner"
	case strings.HasPrefix(fault.Pointer, "/labels/"):
		flag = "--label " + clip(harmless(strings.TrimPrefix(fault.Pointer, "/labels/")), 80)
	}
	return nil, usage("%s: %s", flag, fault.Message)
}
