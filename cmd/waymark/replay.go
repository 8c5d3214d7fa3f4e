package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/spf13/cobra"

	"waymark/consumer"
	"waymark/internal/broker"
	"waymark/internal/crashpoint"
	"waymark/publisher"
	"waymark/store"
	"waymark/workflow"
)

func (a *app) deadLettersReplayCommand() *cobra.Command {
	var queue, rate string
	var limit int
	var chosen choice
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "replay [ID...]",
		Short: "Publish dead letters again and say how each ended",
		Long: `Publish dead letters again to the queues they came by: by id, by what they have
in common, or all; with --rate no faster than that. Each keeps its message id,
so that none has its effect twice, and leaves the dead-letter queue only when the
broker has confirmed the new one. Two replays at once share the letters between
them, and each hears of its own.

Then waits until the consumer has dealt with them, and says of each how it
ended: applied, duplicate, stale, dead (again, and why), or waiting if the time
was too short. Without the database the outcomes are unknown.

A letter that is larger than consumer.max_message_bytes would only die again and
stays: raise the setting, of waymark serve too.

Exits with 1 if one died again, was not published, or still waits.`,
		Example: `  waymark dead-letters replay 0192f3ab
  waymark dead-letters replay --reason schema --pointer /status --rate 50/s
  waymark dead-letters replay --reason unknown-workflow --wait 1m`,
		RunE: func(cmd *cobra.Command, ids []string) error {
			if err := chosen.parse(ids); err != nil {
				return err
			}
			interval, err := parseRate(rate)
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
			letters, err := chosen.take(ctx, d)
			if err != nil {
				return err
			}
			if takes := time.Duration(len(letters)) * interval; takes > maxReplayTime {
				return usage("--rate %s: %s would take %s, and the broker takes back what it has waited for too long; choose a rate that needs at most %s, or replay some at a time with --limit",
					rate, count(len(letters), "dead letter"), takes, maxReplayTime)
			}
			r := &replay{letters: letters, action: store.Replayed, interval: interval}
			db, dbErr := a.outcomeStore(ctx, c)
			if dbErr == nil {
				defer db.Close()
			}
			if err := a.replay(cmd, c, d, r, db, dbErr, wait); err != nil {
				return err
			}
			if d.more {
				fmt.Fprintln(a.stderr, "there may be more: --limit was reached")
			}
			return a.showVerdicts(a.output(cmd), r)
		},
	}
	cmd.Flags().StringVar(&rate, "rate", "", "publish at most so many, such as `50/s` or 600/m (default as fast as the broker takes them)")
	addWaitFlag(cmd, &wait)
	addChoiceFlags(cmd, &chosen)
	addLetterFlags(cmd, &queue, &limit)
	addOutputFlags(cmd, formatTable, formatJSON, formatJSONL)
	addReplayFlags(cmd)
	return cmd
}

func addWaitFlag(cmd *cobra.Command, wait *time.Duration) {
	cmd.Flags().DurationVar(wait, "wait", 30*time.Second, "how long to wait for the outcomes")
}

// addReplayFlags gives cmd the settings of a replay beside those of letters.
func addReplayFlags(cmd *cobra.Command) {
	addConfigFlags(cmd, "database", "consumer.max_message_bytes", "publisher.window", "publisher.timeout")
}

// maxReplayTime is well below the time (RabbitMQ's consumer_timeout, 30 minutes)
// after which the broker gives to others what was not acknowledged.
const maxReplayTime = 20 * time.Minute

// parseRate returns the time between two messages; 0 for the empty rate.
func parseRate(rate string) (time.Duration, error) {
	if rate == "" {
		return 0, nil
	}
	number, unit, _ := strings.Cut(rate, "/")
	per, known := map[string]time.Duration{"": time.Second, "s": time.Second, "m": time.Minute, "h": time.Hour}[unit]
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || !known || !(n >= 0.001) || n > 1e6 {
		return 0, usage("--rate: %q is not a rate: expected a number of messages per second, minute or hour, such as 50/s, 600/m or 100/h", rate)
	}
	return time.Duration(float64(per) / n), nil
}

// replay is a set of letters on their way back, and how each ended.
type replay struct {
	letters  []deadLetter
	verdicts []verdict // one for each letter
	// copies, if any, are of the one letter and go with it.
	copies []deadLetter
	action store.DeadLetterAction
	// body, if set, is published instead of that of the one letter.
	body []byte
	// newID: the one letter gets a message id of its own.
	newID bool
	// interval between two, 0 for none.
	interval time.Duration
}

// queues are those to which the letters go back.
func (r *replay) queues() (names []string) {
	for i := range r.letters {
		if !slices.Contains(names, r.letters[i].queue) {
			names = append(names, r.letters[i].queue)
		}
	}
	return names
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

// replay publishes the letters again, records that, and finds out how they
// ended, from db unless dbErr says that there is none.
func (a *app) replay(cmd *cobra.Command, c *config, d *deadLetterQueues, r *replay, db *store.DB, dbErr error, wait time.Duration) error {
	r.verdicts = make([]verdict, len(r.letters))
	if len(r.letters) == 0 {
		return nil
	}
	ctx := cmd.Context()
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
	deaths := new(deathNotices)
	if dbErr == nil {
		var err error
		if deaths, err = awaitDeaths(d.conn); err != nil {
			return err
		}
	}
	published, err := a.republish(ctx, cmd, c, d, r, deaths.queue)
	a.record(ctx, db, dbErr, a.auditEntries(r.action, published))
	crashpoint.Hit("replay.recorded")
	if err != nil {
		return err
	}
	if dbErr != nil {
		fmt.Fprintf(a.stderr, "the outcomes are unknown: %s\n", harmless(oneLine.Replace(dbErr.Error())))
		return nil
	}
	look := func(visit func(deadLetter)) {
		for _, queue := range r.queues() { // others may be none of ours
			again, err := a.openDeadLetters(ctx, c, queue, max(d.limit, defaultLetters))
			if err == nil {
				err = again.each(ctx, func(l deadLetter) error { visit(l); return nil })
				again.close()
			}
			if err != nil {
				fmt.Fprintf(a.stderr, "whether letters died again is not known: %s\n", harmless(oneLine.Replace(err.Error())))
			}
		}
	}
	err = r.await(ctx, db, deaths, look, known, wait)
	if err == nil || ctx.Err() != nil {
		return err
	}
	// They are published, and what is known of them is worth telling.
	for i := range r.verdicts {
		if v := &r.verdicts[i]; v.Outcome == outcomeWaiting {
			v.Outcome = outcomeUnknown
		}
	}
	fmt.Fprintf(a.stderr, "some outcomes are unknown: %s\n", harmless(oneLine.Replace(err.Error())))
	return nil
}

// outcomeStore opens the database that knows the outcomes and keeps the audit.
func (a *app) outcomeStore(ctx context.Context, c *config) (*store.DB, error) {
	if err := c.require("database.url"); err != nil {
		return nil, err
	}
	db, err := c.openStore(ctx, a.logger(c, true))
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

// deathNotices tells which letters of one replay died again. The zero value
// tells nothing.
type deathNotices struct {
	// queue to name in the messages, empty if there is none.
	queue   string
	notices <-chan amqp.Delivery
}

// awaitDeaths opens a queue of ours to hear of deaths. The dead letters lie
// among those of others, and to look for them there would keep them all from
// whoever else looks. A user who may not declare such a queue does without.
func awaitDeaths(conn *amqp.Connection) (*deathNotices, error) {
	ch, err := conn.Channel()
	if err != nil {
		return nil, broker.Explain(err)
	}
	q, err := ch.QueueDeclare("", false, true, true, false, nil)
	if err == nil {
		var notices <-chan amqp.Delivery
		if notices, err = ch.Consume(q.Name, "", true, true, false, false, nil); err == nil {
			return &deathNotices{queue: q.Name, notices: notices}, nil
		}
	}
	if refusal, ok := errors.AsType[*amqp.Error](err); ok && refusal.Code == amqp.AccessRefused {
		return new(deathNotices), nil
	}
	return nil, broker.Explain(err)
}

// republish publishes every letter, takes from the dead-letter queue those that
// the broker has confirmed, and returns them. A crash between the two leaves
// the letter in both places, under one id: a later replay of it is a duplicate.
func (a *app) republish(ctx context.Context, cmd *cobra.Command, c *config, d *deadLetterQueues, r *replay, notices string) (published []*deadLetter, err error) {
	p, err := a.publisher(cmd, c, a.stderr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.Publisher.Timeout+time.Duration(len(r.letters))*r.interval)
	defer cancel()
	defer func() {
		// Each receipt has been awaited, so there is nothing left to report.
		_ = p.Close(ctx)
	}()
	if err := ready(ctx, p, c); err != nil {
		return nil, err
	}
	receipts := make([]*publisher.Receipt, len(r.letters))
	settled := 0
	// settle takes the letters before the last one sent whose fate is known, in
	// order, until one is not known, and waits for that if it is told to.
	settle := func(sent int, wait bool) error {
		for ; settled < sent; settled++ {
			receipt, v := receipts[settled], &r.verdicts[settled]
			if receipt == nil {
				continue
			}
			if !wait {
				select {
				case <-receipt.Done():
				default:
					return nil
				}
			}
			if err := receipt.Wait(ctx); err != nil {
				v.Outcome, v.Error = outcomeNotPublished, known(err.Error())
				continue
			}
			v.ID = receipt.MessageID()
			crashpoint.Hit("replay.confirmed")
			l := &r.letters[settled]
			err := l.delivery.Ack(false)
			for i := 0; i < len(r.copies) && err == nil; i++ {
				err = r.copies[i].delivery.Ack(false)
			}
			if err != nil {
				return fmt.Errorf("taking message %s from the dead-letter queue, now that it is published again: %w", v.ID, broker.Explain(err))
			}
			crashpoint.Hit("replay.acked")
			published = append(published, l)
		}
		return nil
	}
	began := time.Now()
	for i := range r.letters {
		r.verdicts[i] = verdict{ID: r.letters[i].id, Queue: r.letters[i].queue, Outcome: outcomeUnknown}
		err := pace(ctx, began.Add(time.Duration(i)*r.interval))
		if err == nil {
			receipts[i], err = r.send(ctx, p, c, i, notices)
		}
		if err != nil {
			r.verdicts[i].Outcome, r.verdicts[i].Error = outcomeNotPublished, known(err.Error())
		}
		if err := settle(i+1, false); err != nil {
			return published, err
		}
	}
	if err := settle(len(r.letters), true); err != nil {
		return published, err
	}
	return published, d.settle()
}

// pace waits until it is time.
func pace(ctx context.Context, due time.Time) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(time.Until(due)):
		return nil
	}
}

// send hands a letter to the publisher.
func (r *replay) send(ctx context.Context, p *publisher.Publisher, c *config, i int, notices string) (*publisher.Receipt, error) {
	l := &r.letters[i]
	body := l.delivery.Body
	headers := make(map[string]any)
	for name, value := range l.delivery.Headers {
		// How often and since when it dies is its history; the rest is of
		// the death that it is being woken from.
		if !strings.HasPrefix(name, "x-waymark-") || name == consumer.HeaderCount || name == consumer.HeaderFirstSeen {
			headers[name] = value
		}
	}
	if notices != "" {
		headers[consumer.HeaderReplay] = notices
	}
	properties := publisher.Properties{
		ContentType: l.delivery.ContentType, Headers: headers, MessageID: l.id, Priority: l.delivery.Priority, Timestamp: l.delivery.Timestamp,
	}
	if r.body != nil {
		body, properties.ContentType = r.body, "application/json"
		delete(headers, headerCompression)
	}
	if r.newID {
		properties.MessageID = editedID(l, body)
	}
	if most := c.Consumer.MaxMessageBytes; len(body) > most {
		return nil, fmt.Errorf("it would only die again: its body is %d bytes long, and consumer.max_message_bytes is %d; raise it here and for waymark serve", len(body), most)
	}
	return p.SendRaw(ctx, l.queue, body, properties)
}

// editedID is the id of what was made of a letter. The same edit gives the same id,
// so that one that was cut short may be made again.
func editedID(l *deadLetter, body []byte) string {
	space := uuid.NewSHA1(uuid.NewSHA1(uuid.NameSpaceURL, []byte("waymark:edited")), []byte(l.id))
	return uuid.NewSHA1(uuid.NewSHA1(space, l.delivery.Body), body).String()
}

const (
	// poll is the time between two looks for outcomes.
	poll = 100 * time.Millisecond
	// lookEvery is the time between two looks into the dead-letter queues, where
	// nobody tells of deaths.
	lookEvery = 3 * time.Second
)

// await finds out how the letters ended: their ids are known to the database,
// or there is notice of their death. At the end, and from time to time if there
// are no notices, look finds those that are back in the dead-letter queue.
func (r *replay) await(ctx context.Context, db *store.DB, deaths *deathNotices, look func(visit func(deadLetter)),
	before map[string]workflow.Outcome, wait time.Duration) error {
	// A crash may have left a message in the queue twice: several letters of one id.
	pending := make(map[string][]*verdict)
	for i := range r.verdicts {
		if v := &r.verdicts[i]; v.Outcome == outcomeUnknown {
			v.Outcome = outcomeWaiting
			pending[v.ID] = append(pending[v.ID], v)
		}
	}
	dead := func(id, reason, pointer, problem string) {
		if all := pending[id]; len(all) > 0 {
			v := all[0]
			v.Outcome, v.Reason, v.Pointer, v.Error = workflow.Dead.String(), known(reason), known(pointer), known(problem)
			if pending[id] = all[1:]; len(all) == 1 {
				delete(pending, id)
			}
		}
	}
	search := func() { look(func(l deadLetter) { dead(l.id, l.reason, l.pointer, l.problem) }) }
	var looks <-chan time.Time
	if deaths.queue == "" {
		ticker := time.NewTicker(lookEvery)
		defer ticker.Stop()
		looks = ticker.C
	}
	deadline := time.After(wait)
	next := time.NewTimer(0)
	defer next.Stop()
	for len(pending) > 0 {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case n, ok := <-deaths.notices:
			if !ok {
				deaths.notices = nil
				break
			}
			word := func(name string) string {
				s, _ := n.Headers[name].(string)
				return s
			}
			dead(n.MessageId, word(consumer.HeaderReason), word(consumer.HeaderPointer), word(consumer.HeaderError))
		case <-looks:
			search()
		case <-next.C:
			var ids []string
			for id := range pending {
				ids = append(ids, id)
			}
			found, err := outcomes(ctx, db, ids)
			if err != nil {
				return err
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
			next.Reset(poll)
		case <-deadline:
			search()
			return nil
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
		if err := o.tableOrCards(columns("ID", "QUEUE", "OUTCOME", "WHY"), rows); err != nil {
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
