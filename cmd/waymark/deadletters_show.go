package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

func (a *app) deadLettersShowCommand() *cobra.Command {
	var queue string
	var limit int
	var raw bool
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Show one dead letter with its body",
		Long: `Show one dead letter: why it died, and its body as it was received. ID is its
message id, or the beginning of it (at least four characters).

With --raw only the bytes of the body are written, as they are, for a file.`,
		Example: `  waymark dead-letters show 0192f3ab
  waymark dead-letters show 0192f3ab --raw > message.json`,
		Args: args(1, 1, "ID"),
		RunE: func(cmd *cobra.Command, ids []string) error {
			c, err := a.config(cmd)
			if err != nil {
				return err
			}
			l, err := a.findLetter(cmd.Context(), c, queue, limit, ids[0])
			if err != nil {
				return err
			}
			return a.showLetter(a.output(cmd), l, raw)
		},
	}
	cmd.Flags().BoolVar(&raw, "raw", false, "write only the body, byte for byte")
	addLetterFlags(cmd, &queue, &limit)
	addOutputFlags(cmd, formatTable, formatJSON)
	return cmd
}

// findLetter returns a copy of the letter that a person means by its id, or the
// beginning of it. The letter itself stays where it is.
func (a *app) findLetter(ctx context.Context, c *config, queue string, limit int, id string) (*deadLetter, error) {
	wanted, err := parseIDs([]string{id})
	if err != nil {
		return nil, err
	}
	d, err := a.openDeadLetters(ctx, c, queue, limit)
	if err != nil {
		return nil, err
	}
	defer d.close()
	var found []deadLetter
	if err := d.each(ctx, func(l deadLetter) error {
		if wanted.match(l.id) {
			found = append(found, l)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	if err := wanted.check(d.taken, d.more); err != nil {
		return nil, err
	}
	found = slices.DeleteFunc(found, func(l deadLetter) bool { return !wanted.resolved(l.id) })
	// The same message may have died twice; the later death counts.
	return &found[len(found)-1], nil
}

func (a *app) showLetter(o *output, l *deadLetter, raw bool) error {
	if raw {
		if o.terminal {
			return usage("--raw: the bytes of somebody else are not for a terminal; write them to a file or a pipe")
		}
		_, err := o.w.Write(l.delivery.Body)
		return err
	}
	if o.format == formatJSON {
		headers := map[string]string{}
		for name, v := range l.delivery.Headers {
			headers[name] = fmt.Sprint(v)
		}
		return o.document(struct {
			letterView
			ContentType *string           `json:"content_type"`
			Headers     map[string]string `json:"headers"`
			// Body as text; what is not UTF-8 in it is replaced.
			Body string `json:"body"`
			// BodyBase64 is the body exactly, where text cannot be.
			BodyBase64 []byte `json:"body_base64,omitempty"`
		}{viewLetter(l), known(l.delivery.ContentType), headers, strings.ToValidUTF8(string(l.delivery.Body), "\ufffd"), binary(l.delivery.Body)})
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", o.bold(harmless(l.id)))
	for _, f := range []struct{ name, value string }{
		{"queue", l.queue}, {"reason", l.reason}, {"pointer", l.pointer}, {"error", l.problem}, {"workflow", l.workflow},
		{"first seen", clock(l.firstSeen)}, {"last seen", clock(l.lastSeen)}, {"times", strconv.FormatInt(l.count, 10)},
		{"type", l.delivery.ContentType}, {"bytes", strconv.Itoa(l.size)},
	} {
		if f.value != "" {
			fmt.Fprintf(&b, "  %-10s %s\n", f.name, harmless(f.value))
		}
	}
	body := l.delivery.Body
	const most = 64 << 10
	cut := len(body) > most
	if cut {
		end := most
		for end > most-utf8.UTFMax && !utf8.RuneStart(body[end]) {
			end--
		}
		body = body[:end]
	}
	fmt.Fprintf(&b, "\n%s\n", strings.TrimRight(harmlessLog(string(body)), "\n"))
	if cut {
		fmt.Fprintf(&b, "\n(the first %d of %d bytes; --raw writes all)\n", len(body), l.size)
	}
	_, err := o.w.Write([]byte(b.String()))
	return err
}

// binary is a body that is not text; nil if it is.
func binary(body []byte) []byte {
	if utf8.Valid(body) {
		return nil
	}
	return body
}
