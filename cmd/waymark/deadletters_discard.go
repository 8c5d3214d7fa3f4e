package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"waymark/internal/broker"
	"waymark/internal/crashpoint"
	"waymark/store"
)

func (a *app) deadLettersDiscardCommand() *cobra.Command {
	var queue, auditFile string
	var limit int
	var yes bool
	var chosen choice
	cmd := &cobra.Command{
		Use:   "discard [ID...]",
		Short: "Discard dead letters for good",
		Long: `Discard dead letters: by id, by what they have in common, or all. They are gone
for good: what they would have said about their workflows will never be known.
Asks first, unless --yes is given.

Who discarded what is recorded in the database before it is gone, with the
digest of the body; see waymark dead-letters audit. Without the database nothing
is discarded, unless --audit-file names a file for the record.`,
		Example: `  waymark dead-letters discard 0192f3ab
  waymark dead-letters discard --reason not-json --yes
  waymark dead-letters discard --reason not-json --audit-file discarded.jsonl`,
		RunE: func(cmd *cobra.Command, ids []string) error {
			if err := chosen.parse(ids); err != nil {
				return err
			}
			if !yes && !isTerminal(a.stdin) {
				return usage("discarding is for good: say --yes, as there is no terminal to ask on")
			}
			c, err := a.config(cmd)
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			// Whether it can be recorded is found out before anybody is asked.
			var record func([]store.AuditEntry) error
			if auditFile != "" {
				record = func(entries []store.AuditEntry) error { return appendAudit(auditFile, entries) }
				if err := record(nil); err != nil {
					return unrecorded(err)
				}
			} else {
				db, err := a.outcomeStore(ctx, c)
				if err != nil {
					return unrecorded(err)
				}
				defer db.Close()
				record = func(entries []store.AuditEntry) error { return db.RecordDeadLetters(ctx, entries) }
			}
			d, err := a.openDeadLetters(ctx, c, queue, limit)
			if err != nil {
				return err
			}
			defer d.close()
			letters, err := chosen.take(ctx, d)
			if err != nil {
				return err
			}
			if len(letters) > 0 && !yes {
				// The broker takes letters back that are held for longer.
				asking, cancel := context.WithTimeoutCause(ctx, maxReplayTime, errors.New("nobody has answered: nothing was discarded"))
				defer cancel()
				sure, err := a.ask(asking, fmt.Sprintf("discard %s for good? [y/N] ", count(len(letters), "dead letter")), false)
				if err != nil {
					return err
				}
				if !sure {
					return &exitError{code: exitFailed, err: errors.New("nothing was discarded")}
				}
			}
			if err := a.discard(d, letters, record); err != nil {
				return err
			}
			if d.more {
				fmt.Fprintln(a.stderr, "there may be more: --limit was reached")
			}
			_, err = fmt.Fprintf(a.stdout, "discarded %d\n", len(letters))
			return err
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	cmd.Flags().StringVar(&auditFile, "audit-file", "", "record in this `file`, JSON Lines, and not in the database")
	addChoiceFlags(cmd, &chosen)
	addLetterFlags(cmd, &queue, &limit)
	addConfigFlags(cmd, "database")
	return cmd
}

// discard records the letters, and then lets them go.
func (a *app) discard(d *deadLetterQueues, letters []deadLetter, record func([]store.AuditEntry) error) error {
	if len(letters) == 0 {
		return nil
	}
	all := make([]*deadLetter, len(letters))
	for i := range letters {
		all[i] = &letters[i]
	}
	if err := record(a.auditEntries(store.Discarded, all)); err != nil {
		return unrecorded(err)
	}
	crashpoint.Hit("discard.recorded")
	for i, l := range all {
		if err := l.delivery.Ack(false); err != nil {
			return fmt.Errorf("discarding after %d of %d: %w", i, len(all), broker.Explain(err))
		}
		crashpoint.Hit("discard.acked")
	}
	if err := d.settle(); err != nil {
		return fmt.Errorf("discarding %s: %w", count(len(all), "dead letter"), err)
	}
	return nil
}

// unrecorded is the error of a discard that cannot be recorded.
func unrecorded(err error) error {
	if coded, ok := errors.AsType[*exitError](err); ok && coded.code == exitUsage {
		return &exitError{code: exitUsage, err: fmt.Errorf("nothing was discarded, as it cannot be recorded: %w; or give --audit-file", coded.err)}
	}
	if _, file := errors.AsType[*fs.PathError](err); file {
		return fmt.Errorf("nothing was discarded, as it cannot be recorded: %w", err)
	}
	return unreachable(fmt.Errorf("nothing was discarded, as it cannot be recorded: %w; give --audit-file to record it in a file", err))
}

// ask asks a question on the terminal; an empty answer is the one that is
// preset, and no answer a no.
func (a *app) ask(ctx context.Context, question string, preset bool) (yes bool, err error) {
	fmt.Fprint(a.stderr, question)
	answers := make(chan string, 1)
	go func() { // which is stuck until there is an answer, or the program ends
		line, err := bufio.NewReader(a.stdin).ReadString('\n') // a terminal gives one line at a time
		if err != nil && line == "" {
			line = "no"
		}
		answers <- line
	}()
	select {
	case <-ctx.Done():
		return false, context.Cause(ctx)
	case answer := <-answers:
		switch strings.ToLower(strings.TrimSpace(answer)) {
		case "y", "yes":
			return true, nil
		case "":
			return preset, nil
		}
		return false, nil
	}
}
