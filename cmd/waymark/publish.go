package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"waymark/internal/wire"
	"waymark/publisher"
	"waymark/schemas"
)

func (a *app) publishCommand() *cobra.Command {
	var fromSpool spoolFlag
	cmd := &cobra.Command{
		Use:   "publish",
		Short: "Report a run of your own, or publish messages",
		Long: `Report a run of a program that no engine runs, job by job, or publish status
messages and submissions from a file or standard input. Each message is validated
before it is sent and confirmed by the broker.

With --spool: deliver what runs kept on disk while the broker was away, from the
folder DIR (default publisher.spool_dir, else this user's). Each message goes to
the queue it was meant for, and is removed once it is confirmed. What is left is
tried again the next time. Ends with 1 if something is left or was damaged.`,
		Example: `  waymark publish job fit -- ./fit.sh
  waymark publish status messages.jsonl
  waymark publish submission -
  waymark publish --spool
  waymark publish --spool /var/spool/waymark`,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case !fromSpool.set:
				return group(cmd, args)
			case len(args) == 1 && fromSpool.dir == "":
				fromSpool.dir = args[0]
			case len(args) > 0:
				return usage("unexpected argument %q; see %s --help", args[len(args)-1], cmd.CommandPath())
			}
			return a.publishSpool(cmd, fromSpool.dir)
		},
	}
	cmd.Flags().Var(&fromSpool, "spool", "deliver what waits on disk, in the folder `DIR` if one is named")
	cmd.Flags().Lookup("spool").NoOptDefVal = "true"
	addConfigFlags(cmd, "broker", "publisher.spool_dir", "publisher.timeout", "log")
	cmd.AddCommand(
		a.publishJobCommand(), a.publishProgressCommand(),
		a.publishKindCommand("status", "status messages", schemas.StatusKind, `  waymark publish status messages.jsonl
  echo '{"workflow_uuid": "2fb6b2f0-7c94-4ddc-9a5d-5d2b8b6e1f6c", "status": 1, "logs": "", "message": {}}' | waymark publish status`),
		a.publishKindCommand("submission", "submissions", schemas.SubmissionKind, `  waymark publish submission submission.json
  echo '{"user": "jane", "workflow_id_or_name": "fit"}' | waymark publish submission`),
	)
	return cmd
}

func (a *app) publishKindCommand(name, noun string, kind schemas.Kind, example string) *cobra.Command {
	return withPublishFlags(&cobra.Command{
		Use:   name + " [FILE|-]",
		Short: "Publish " + noun,
		Long: `Publish ` + noun + ` from a file or standard input (-, the default): JSON Lines,
or JSON texts one after the other. Each is read as the consumer would read it,
put into the strict form and validated; an invalid one is reported, with its
place, and not sent, while the others are.

Says how many were published, confirmed and invalid. Exits with 1 if any was
invalid or not confirmed.`,
		Example: example,
		Args:    args(0, 1, "FILE"),
		RunE: func(cmd *cobra.Command, paths []string) error {
			path := "-"
			if len(paths) == 1 {
				path = paths[0]
			}
			return a.publish(cmd, kind, path)
		},
	})
}

func withPublishFlags(cmd *cobra.Command) *cobra.Command {
	addConfigFlags(cmd, "broker", "publisher.encoding", "publisher.window", "publisher.timeout", "consumer.max_message_bytes", "log")
	return cmd
}

func (a *app) publish(cmd *cobra.Command, kind schemas.Kind, path string) error {
	c, err := a.config(cmd)
	if err != nil {
		return err
	}
	p, err := a.publisher(cmd, c, a.stderr)
	if err != nil {
		return err
	}
	if path == "-" && isTerminal(a.stdin) {
		fmt.Fprintln(a.stderr, "reading messages from the terminal; end with Ctrl-D")
	}
	r, name, err := a.input(cmd.Context(), path)
	if err != nil {
		return errors.Join(err, p.Close(cancelled()))
	}
	defer r.Close()

	// A broker that cannot be used is said before anything is read: standard
	// input cannot be read twice.
	ctx := cmd.Context()
	err = ready(ctx, p, c)
	invalid := 0
	if err == nil {
		for doc, readErr := range documents(r, c.Consumer.MaxMessageBytes) {
			if readErr != nil {
				err = fmt.Errorf("reading %s: %w", name, readErr)
				break
			}
			if err = send(ctx, p, c, kind, doc); err == nil {
				continue
			}
			refused, isInvalid := errors.AsType[*publisher.InvalidError](err)
			_, isFault := errors.AsType[*schemas.Error](err)
			if !isInvalid && !isFault {
				break
			}
			if isInvalid {
				err = refused.Err
			}
			invalid++
			fmt.Fprintln(a.stderr, fault(name, doc.line, err))
			err = nil
		}
	}

	// What was accepted is awaited even if reading broke off, but not for ever.
	closing, cancel := context.WithTimeout(ctx, c.Publisher.Timeout)
	defer cancel()
	closed := p.Close(closing)
	report := p.Report()
	fmt.Fprintf(a.stdout, "published %d, confirmed %d, invalid %d\n", report.Accepted, report.Confirmed, invalid)
	switch {
	case err != nil:
		return err
	case closed != nil:
		return unreachable(closed)
	case invalid > 0:
		return exit(exitFailed)
	}
	return nil
}

// send decodes one body as the consumer does, and hands it to p.
func send(ctx context.Context, p *publisher.Publisher, c *config, kind schemas.Kind, doc document) error {
	if doc.err != nil {
		return doc.err
	}
	ctx, cancel := context.WithTimeout(ctx, c.Publisher.Timeout)
	defer cancel()
	if kind == schemas.SubmissionKind {
		submission, err := wire.DecodeSubmission(doc.body, c.limits())
		if err != nil {
			return err
		}
		_, err = p.SendSubmission(ctx, submission)
		return sendError(err)
	}
	status, err := wire.DecodeStatus(doc.body, c.limits())
	if err != nil {
		return err
	}
	_, err = p.SendStatus(ctx, status)
	return sendError(err)
}

// sendError marks the errors of the broker, and leaves those of the message.
func sendError(err error) error {
	if _, invalid := errors.AsType[*publisher.InvalidError](err); invalid {
		return err
	}
	return unreachable(err)
}

// publisher returns a publisher of the configuration, without a spool, which
// logs to log.
func (a *app) publisher(cmd *cobra.Command, c *config, log io.Writer) (*publisher.Publisher, error) {
	return a.publisherWith(cmd, c, log, publisher.Spool{})
}

func (a *app) publisherWith(cmd *cobra.Command, c *config, log io.Writer, spool publisher.Spool) (*publisher.Publisher, error) {
	if err := c.require("broker.url"); err != nil {
		return nil, err
	}
	pc, err := c.publisher(a.loggerTo(log, c, true))
	if err != nil {
		return nil, err
	}
	pc.ConnectionName, pc.MaxMessageBytes, pc.Spool = cmd.CommandPath(), c.Consumer.MaxMessageBytes, spool
	p, err := publisher.New(pc)
	if err != nil {
		return nil, &exitError{code: exitUsage, err: err}
	}
	return p, nil
}

// ready waits until p can publish, for as long as the configuration allows.
func ready(ctx context.Context, p *publisher.Publisher, c *config) error {
	ctx, cancel := context.WithTimeout(ctx, c.Publisher.Timeout)
	defer cancel()
	return unreachable(p.Ready(ctx))
}

// cancelled is a context for closing something that holds nothing.
func cancelled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
