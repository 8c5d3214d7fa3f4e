package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"waymark/schemas"
)

func (a *app) validateCommand() *cobra.Command {
	var kind string
	var strict bool
	cmd := &cobra.Command{
		Use:   "validate FILE|-...",
		Short: "Check messages against the schemas",
		Long: `Check files or standard input (-) of messages: JSON Lines, or JSON texts one
after the other. Each message is judged as the consumer would: REANA's form (JSON
within a JSON string) and its known dialects are accepted. With --strict it
must be as Waymark publishes it.

Prints a line for each fault, FILE:LINE: /POINTER: MESSAGE, where LINE is the
one in which the message begins. Exits with 1 if there was any.`,
		Example: `  waymark validate messages.jsonl
  some-engine --dump | waymark validate --kind status -`,
		Args: args(1, -1, "FILE (or - for standard input)"),
		RunE: func(cmd *cobra.Command, paths []string) error {
			kindOf, err := parseKind(kind)
			if err != nil {
				return err
			}
			c, err := a.config(cmd)
			if err != nil {
				return err
			}
			limits := c.limits()
			check := func(k schemas.Kind, body []byte) error {
				_, err := schemas.Parse(k, body, limits)
				return err
			}
			if strict {
				check = func(k schemas.Kind, body []byte) error { return schemas.Check(k, body, limits) }
			}
			total, invalid := 0, 0
			for _, path := range paths {
				r, name, err := a.input(cmd.Context(), path)
				if err != nil {
					return err
				}
				for doc, err := range documents(r, limits.MaxBytes) {
					if err != nil {
						r.Close()
						return fmt.Errorf("reading %s: %w", name, err)
					}
					if err := cmd.Context().Err(); err != nil {
						r.Close()
						return err
					}
					total++
					if err := judge(doc, kindOf, check); err != nil {
						invalid++
						if _, err := fmt.Fprintln(a.stdout, fault(name, doc.line, err)); err != nil {
							r.Close()
							return err
						}
					}
				}
				r.Close()
			}
			fmt.Fprintf(a.stderr, "%s, %d invalid\n", count(total, "message"), invalid)
			if invalid > 0 {
				return exit(exitFailed)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&kind, "kind", "auto", "`kind` of the messages: status, submission, or auto to tell each by its keys")
	cmd.Flags().BoolVar(&strict, "strict", false, "accept only the form that Waymark publishes")
	addConfigFlags(cmd, "consumer.max_message_bytes")
	return cmd
}

func judge(doc document, kindOf func([]byte) schemas.Kind, check func(schemas.Kind, []byte) error) error {
	if doc.err != nil {
		return doc.err
	}
	return check(kindOf(doc.body), doc.body)
}

// parseKind returns what tells the kind of a body.
func parseKind(name string) (func(body []byte) schemas.Kind, error) {
	always := func(k schemas.Kind) func([]byte) schemas.Kind {
		return func([]byte) schemas.Kind { return k }
	}
	switch name {
	case "auto":
		return detectKind, nil
	case "status", schemas.StatusKind.String():
		return always(schemas.StatusKind), nil
	case "submission", schemas.SubmissionKind.String():
		return always(schemas.SubmissionKind), nil
	}
	return nil, usage("unknown kind of message %q: expected status, submission or auto", name)
}

// detectKind tells a submission by the key that only it has; whatever else a
// body is, it is judged as a status message.
func detectKind(body []byte) schemas.Kind {
	if text, err := schemas.Unwrap(body); err == nil {
		body = text
	}
	var keys struct {
		Status     json.RawMessage `json:"workflow_uuid"`
		Submission json.RawMessage `json:"workflow_id_or_name"`
	}
	if json.Unmarshal(body, &keys) == nil && keys.Status == nil && keys.Submission != nil {
		return schemas.SubmissionKind
	}
	return schemas.StatusKind
}

// count says n of something: "1 message", "2 messages".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	if stem, ok := strings.CutSuffix(noun, "y"); ok {
		return fmt.Sprintf("%d %sies", n, stem)
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
