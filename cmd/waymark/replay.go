package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"waymark/consumer"
	"waymark/internal/crashpoint"
	"waymark/publisher"
	"waymark/store"
	"waymark/workflow"
)

func (a *app) deadLettersReplayCommand() *cobra.Command {
	var queue, reason string
	var limit int
	var all bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "replay [ID...]",
		Short: "Publish dead letters again and say how each ended",
		Long: `Publish dead letters again to the queues they came by: by id, by reason, or all.
Each keeps its message id, so that none has its effect twice, and leaves the
dead-letter queue only when the broker has confirmed the new one. Two replays at
once share the letters between them.

Then waits until the consumer has dealt with them, and says of each how it
ended: applied, duplicate, stale, dead (again, and why), or waiting if the time
was too short. Without the database the outcomes are unknown.

Exits with 1 if one died again, was not published, or still waits.`,
		Example: `  waymark dead-letters replay 0192f3ab
  waymark dead-letters replay --reason unknown-workflow --wait 1m`,
		RunE: func(cmd *cobra.Command, ids []string) error {
			chosen, err := parseChoice(ids, reason, all)
			if err != nil {
				return err
			}
			c, err := a.config(cmd)
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			d, err := a.openDeadLetters(ctx, c, queue, limit)
			if err != nil {
				return err
			}
			defer d.close()
			letters, more, err := chosen.take(ctx, d)
			if err != nil {
				return err
			}
			r := &replay{letters: letters, verdicts: make([]verdict, len(letters))}
			if err := a.replay(cmd, c, d, r, wait); err != nil {
				return err
			}
			if more {
				fmt.Fprintln(a.stderr, "there may be more: --limit was reached")
			}
			return a.showVerdicts(a.output(cmd), r)
		},
	}
	cmd.Flags().DurationVar(&wait, "wait", 30*time.Second, "how long to wait for the outcomes")
	addChoiceFlags(cmd, &reason, &all)
	addLetterFlags(cmd, &queue, &limit)
	addOutputFlags(cmd, formatTable, formatJSON, formatJSONL)
	addConfigFlags(cmd, "database", "publisher.window", "publisher.timeout")
	return cmd
}

// replay is a set of letters on their way back, and how each ended.
type replay struct {
	letters  []deadLetter
	verdicts []verdict
}

// verdict is how the replay of one letter ended.
type verdict struct {
	ID    string `json:"id"`
	Queue string `json:"queue"`
	// Outcome is applied, duplicate, stale, dead, waiting, unknown or not-published.
	Outcome string  `json:"outcome"`
	Reason  *string `json:"reason"`
	Pointer *string `json:"pointer"`
	Error   *string `json:"error"`
}

const (
	outcomeWaiting      = "waiting"
	outcomeUnknown      = "unknown"
	outcomeNotPublished = "not-published"
)

func (a *app) replay(cmd *cobra.Command, c *config, d *deadLetterQueues, r *replay, wait time.Duration) error {
	if len(r.letters) == 0 {
		return nil
	}
	ctx := cmd.Context()
	db, dbErr := a.outcomeStore(ctx, c)
	if dbErr == nil {
		defer db.Close()
	}
	// What had its effect before is a duplicate now.
	known := make(map[string]workflow.Outcome)
	if dbErr == nil {
		var ids []string
		for i := range r.letters {
			if r.letters[i].id != "" {
				ids = append(ids, r.letters[i].id)
			}
		}
		known, dbErr = outcomes(ctx, db, ids)
	}
	if err := a.republish(ctx, cmd, c, r); err != nil {
		return err
	}
	if dbErr != nil {
		fmt.Fprintf(a.stderr, "the outcomes are unknown: %s\n", harmless(dbErr.Error()))
		return nil
	}
	return r.await(ctx, db, d, known, wait)
}

// outcomeStore opens the database that knows the outcomes.
func (a *app) outcomeStore(ctx context.Context, c *config) (*store.DB, error) {
	if err := c.require("database.url"); err != nil {
		return nil, err
	}
	db, err := store.Open(ctx, c.store(a.logger(c, true)))
	if err != nil {
		return nil, err
	}
	if err := db.Ping(ctx); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

func outcomes(ctx context.Context, db *store.DB, ids []string) (map[string]workflow.Outcome, error) {
	all := make(map[string]workflow.Outcome)
	for chunk := range slices.Chunk(ids, 1000) {
		some, err := db.Outcomes(ctx, chunk)
		if err != nil {
			return nil, err
		}
		for id, o := range some {
			all[id] = o
		}
	}
	return all, nil
}

// republish publishes every letter and takes from the dead-letter queue those
// that the broker has confirmed. A crash between the two leaves the letter in
// both places, under one id: a later replay of it is a duplicate.
func (a *app) republish(ctx context.Context, cmd *cobra.Command, c *config, r *replay) (err error) {
	p, err := a.publisher(cmd, c, a.stderr)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.Publisher.Timeout)
	defer cancel()
	defer func() {
		// Each receipt has been awaited, so there is nothing left to report.
		_ = p.Close(ctx)
	}()
	if err := ready(ctx, p, c); err != nil {
		return err
	}
	receipts := make([]*publisher.Receipt, len(r.letters))
	for i := range r.letters {
		l := &r.letters[i]
		r.verdicts[i] = verdict{ID: l.id, Queue: l.queue, Outcome: outcomeUnknown}
		headers := make(map[string]any)
		for name, value := range l.delivery.Headers {
			// How often and since when it dies is its history; the rest is of
			// the death that it is being woken from.
			if !strings.HasPrefix(name, "x-waymark-") || name == consumer.HeaderCount || name == consumer.HeaderFirstSeen {
				headers[name] = value
			}
		}
		receipts[i], err = p.SendRaw(ctx, l.queue, l.delivery.Body, publisher.Properties{
			ContentType: l.delivery.ContentType, Headers: headers, MessageID: l.id, Priority: l.delivery.Priority, Timestamp: l.delivery.Timestamp,
		})
		if err != nil {
			r.verdicts[i].Outcome, r.verdicts[i].Error = outcomeNotPublished, known(err.Error())
			receipts[i] = nil
		}
	}
	for i, receipt := range receipts {
		if receipt == nil {
			continue
		}
		if err := receipt.Wait(ctx); err != nil {
			r.verdicts[i].Outcome, r.verdicts[i].Error = outcomeNotPublished, known(err.Error())
			continue
		}
		r.verdicts[i].ID = receipt.MessageID()
		crashpoint.Hit("replay.confirmed")
		if err := r.letters[i].delivery.Ack(false); err != nil {
			return fmt.Errorf("taking message %s from the dead-letter queue, now that it is published again: %w", receipt.MessageID(), err)
		}
	}
	return nil
}

// poll is the time between two looks for outcomes.
const poll = 100 * time.Millisecond

// await finds out how the letters ended: their ids are known to the database,
// or they are back in the dead-letter queue.
func (r *replay) await(ctx context.Context, db *store.DB, d *deadLetterQueues, before map[string]workflow.Outcome, wait time.Duration) error {
	// A crash may have left a message in the queue twice: several letters of one id.
	pending := make(map[string][]*verdict)
	for i := range r.verdicts {
		if v := &r.verdicts[i]; v.Outcome == outcomeUnknown {
			v.Outcome = outcomeWaiting
			pending[v.ID] = append(pending[v.ID], v)
		}
	}
	deadline := time.After(wait)
	for len(pending) > 0 {
		var ids []string
		for id := range pending {
			ids = append(ids, id)
		}
		found, err := outcomes(ctx, db, ids)
		if err != nil {
			return unreachable(err)
		}
		for id, outcome := range found {
			if _, twice := before[id]; twice {
				outcome = workflow.Duplicate
			}
			for _, v := range pending[id] {
				v.Outcome = outcome.String()
				outcome = workflow.Duplicate // as are the others of its id
			}
			delete(pending, id)
		}
		d.limit = d.taken + defaultLetters
		if _, err := d.each(ctx, func(l deadLetter) error {
			if all := pending[l.id]; len(all) > 0 {
				v := all[0]
				v.Outcome, v.Reason, v.Pointer, v.Error = workflow.Dead.String(), known(l.reason), known(l.pointer), known(l.problem)
				if pending[l.id] = all[1:]; len(all) == 1 {
					delete(pending, l.id)
				}
			}
			return nil
		}); err != nil {
			return err
		}
		if len(pending) == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-deadline:
			return nil
		case <-time.After(poll):
		}
	}
	return nil
}

func (a *app) showVerdicts(o *output, r *replay) error {
	tally := make(map[string]int)
	var rows [][]string
	for i := range r.verdicts {
		v := &r.verdicts[i]
		tally[v.Outcome]++
		var why []string
		for _, s := range []*string{v.Reason, v.Pointer, v.Error} {
			if s != nil {
				why = append(why, harmless(*s))
			}
		}
		rows = append(rows, []string{clip(harmless(v.ID), 64), harmless(v.Queue), v.Outcome, clip(strings.Join(why, ": "), 120)})
	}
	switch {
	case o.format == formatJSON:
		if err := o.document(struct {
			Replayed []verdict      `json:"replayed"`
			Tally    map[string]int `json:"tally"`
		}{r.verdicts, tally}); err != nil {
			return err
		}
	case o.format == formatJSONL:
		for _, v := range r.verdicts {
			if err := o.line(v); err != nil {
				return err
			}
		}
	case len(rows) == 0:
		fmt.Fprintln(a.stderr, "no dead letters")
	default:
		if err := o.table(columns("ID", "QUEUE", "OUTCOME", "WHY"), rows, true); err != nil {
			return err
		}
		var words []string
		for _, outcome := range []string{"applied", "duplicate", "stale", "dead", outcomeWaiting, outcomeUnknown, outcomeNotPublished} {
			if n := tally[outcome]; n > 0 {
				words = append(words, fmt.Sprintf("%d %s", n, outcome))
			}
		}
		if _, err := fmt.Fprintf(o.w, "\nreplayed %d: %s\n", len(rows), strings.Join(words, ", ")); err != nil {
			return err
		}
	}
	if tally[workflow.Dead.String()]+tally[outcomeWaiting]+tally[outcomeNotPublished] > 0 {
		return exit(exitFailed)
	}
	return nil
}
