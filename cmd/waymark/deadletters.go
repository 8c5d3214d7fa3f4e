package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/spf13/cobra"

	"waymark/consumer"
	"waymark/internal/broker"
	"waymark/workflow"
)

func (a *app) deadLettersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dead-letters",
		Short: "Look at messages that could not be applied, and try again",
		Long: `Look at the messages that could not be applied, publish them again, or discard
them. They lie in the dead-letter queues of the broker, beside the queues they
came by, with the reason; the database need not be up to look at them.`,
		Example: `  waymark dead-letters list
  waymark dead-letters replay --reason schema`,
		RunE: group,
	}
	cmd.AddCommand(a.deadLettersListCommand(), a.deadLettersShowCommand(), a.deadLettersReplayCommand(), a.deadLettersDiscardCommand())
	return cmd
}

// deadLetter is one message in a dead-letter queue.
type deadLetter struct {
	delivery  amqp.Delivery
	size      int
	id        string
	queue     string // beside which it lies
	reason    string
	pointer   string
	problem   string
	firstSeen time.Time
	lastSeen  time.Time
	count     int64 // how often it has died
}

func readDeadLetter(d amqp.Delivery, queue string) deadLetter {
	word := func(name string) string {
		s, _ := d.Headers[name].(string)
		return s
	}
	l := deadLetter{
		delivery: d, size: len(d.Body), id: d.MessageId, queue: queue,
		reason: cmp.Or(word(consumer.HeaderReason), "unknown"), pointer: word(consumer.HeaderPointer), problem: word(consumer.HeaderError),
		count: 1,
	}
	// Whatever is in the way of a time, it is not worth an error here.
	l.firstSeen, _ = time.Parse(time.RFC3339Nano, word(consumer.HeaderFirstSeen))
	l.lastSeen, _ = time.Parse(time.RFC3339Nano, word(consumer.HeaderLastSeen))
	switch n := d.Headers[consumer.HeaderCount].(type) {
	case int64:
		l.count = n
	case int32:
		l.count = int64(n)
	case string:
		if parsed, err := strconv.ParseInt(n, 10, 64); err == nil {
			l.count = parsed
		}
	}
	return l
}

// deadLetterQueues is an open look into the dead-letter queues. What was taken
// from them stays invisible to others until close, which puts back, in its old
// place, whatever was not settled. That is also why two replays at once do not
// replay a message twice: each letter is in the hands of one of them.
type deadLetterQueues struct {
	conn   *amqp.Connection
	ch     *amqp.Channel
	queues []string // those beside which they lie
	taken  int
	limit  int
}

const (
	defaultLetters = 10_000
	// maxLetterBytes bounds the bodies that are fetched in one go.
	maxLetterBytes = 512 << 20
)

func (a *app) openDeadLetters(ctx context.Context, c *config, queue string, limit int) (*deadLetterQueues, error) {
	if err := c.require("broker.url"); err != nil {
		return nil, err
	}
	if limit < 1 || limit > 1_000_000 {
		return nil, usage("--limit: expected 1 to 1000000, found %d", limit)
	}
	q := c.queues()
	names := []string{q.Status, q.Submission}
	switch queue {
	case "":
	case "status", q.Status:
		names = names[:1]
	case "submission", q.Submission:
		names = names[1:]
	default:
		return nil, usage("--queue: unknown queue %q: expected status or submission", queue)
	}
	conn, err := dial(ctx, c, "waymark dead-letters")
	if err != nil {
		return nil, err
	}
	d := &deadLetterQueues{conn: conn, limit: limit}
	for _, name := range names {
		// A queue that was never declared holds nothing.
		state, err := inspect(conn, broker.DeadLetter(name))
		if err != nil {
			conn.Close()
			return nil, fmt.Errorf("looking at queue %q: %w", broker.DeadLetter(name), err)
		}
		if state != nil {
			d.queues = append(d.queues, name)
		}
	}
	if d.ch, err = conn.Channel(); err != nil {
		conn.Close()
		return nil, broker.Explain(err)
	}
	return d, nil
}

// close puts back what was not settled.
func (d *deadLetterQueues) close() { d.conn.Close() }

// each calls visit with one letter after the other, until there are no more or
// the limit is reached; then more is true.
func (d *deadLetterQueues) each(ctx context.Context, visit func(deadLetter) error) (more bool, err error) {
	bytes := 0
	for _, queue := range d.queues {
		for {
			if ctx.Err() != nil {
				return false, context.Cause(ctx)
			}
			if d.taken >= d.limit || bytes > maxLetterBytes {
				return true, nil
			}
			delivery, ok, err := d.ch.Get(broker.DeadLetter(queue), false)
			if err != nil {
				return false, fmt.Errorf("reading queue %q: %w", broker.DeadLetter(queue), broker.Explain(err))
			}
			if !ok {
				break
			}
			d.taken++
			bytes += len(delivery.Body)
			if err := visit(readDeadLetter(delivery, queue)); err != nil {
				return false, err
			}
		}
	}
	return false, nil
}

// letterView is a dead letter without its body.
type letterView struct {
	ID        string     `json:"id"`
	Queue     string     `json:"queue"`
	Reason    string     `json:"reason"`
	Pointer   *string    `json:"pointer"`
	Error     *string    `json:"error"`
	FirstSeen *time.Time `json:"first_seen"`
	LastSeen  *time.Time `json:"last_seen"`
	Count     int64      `json:"count"`
	Bytes     int        `json:"bytes"`
}

func viewLetter(l *deadLetter) letterView {
	return letterView{ID: l.id, Queue: l.queue, Reason: l.reason, Pointer: known(l.pointer), Error: known(l.problem),
		FirstSeen: moment(l.firstSeen), LastSeen: moment(l.lastSeen), Count: l.count, Bytes: l.size}
}

// letterGroup is the letters of one queue with one reason and pointer.
type letterGroup struct {
	Queue     string     `json:"queue"`
	Reason    string     `json:"reason"`
	Pointer   *string    `json:"pointer"`
	Messages  int        `json:"messages"`
	FirstSeen *time.Time `json:"first_seen"`
	LastSeen  *time.Time `json:"last_seen"`
	// Example is what was wrong with one of them.
	Example *string `json:"example"`
	// ExampleID is the id of that one.
	ExampleID string `json:"example_id"`
}

func (a *app) deadLettersListCommand() *cobra.Command {
	var queue string
	var limit int
	var each bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List dead letters by reason",
		Long: `List the dead letters: how many of each reason and JSON pointer, when the first
and the last of them was seen, and what was wrong with one. --each lists single
messages. While it reads, for a moment, nobody else sees the letters.`,
		Example: `  waymark dead-letters list
  waymark dead-letters list --each --output jsonl`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.config(cmd)
			if err != nil {
				return err
			}
			o := a.output(cmd)
			letters, more, err := a.readLetters(cmd.Context(), c, queue, limit)
			if err != nil {
				return err
			}
			if more {
				fmt.Fprintf(a.stderr, "there are more than these %d: raise --limit\n", len(letters))
			}
			if each {
				return a.showLetters(o, letters)
			}
			return a.showGroups(o, groupLetters(letters))
		},
	}
	cmd.Flags().BoolVar(&each, "each", false, "list single messages")
	addLetterFlags(cmd, &queue, &limit)
	addOutputFlags(cmd, formatTable, formatJSON, formatJSONL)
	return cmd
}

func addLetterFlags(cmd *cobra.Command, queue *string, limit *int) {
	cmd.Flags().StringVar(queue, "queue", "", "only letters that came by this queue: `status` or submission (default both)")
	cmd.Flags().IntVar(limit, "limit", defaultLetters, "look at no more than so many letters")
	addConfigFlags(cmd, "broker", "log")
}

// readLetters returns the letters, without their bodies, and puts them back.
func (a *app) readLetters(ctx context.Context, c *config, queue string, limit int) (letters []deadLetter, more bool, err error) {
	d, err := a.openDeadLetters(ctx, c, queue, limit)
	if err != nil {
		return nil, false, err
	}
	defer d.close()
	more, err = d.each(ctx, func(l deadLetter) error {
		l.delivery = amqp.Delivery{}
		letters = append(letters, l)
		return nil
	})
	return letters, more, err
}

func (a *app) showLetters(o *output, letters []deadLetter) error {
	views := []letterView{}
	var rows [][]string
	for i := range letters {
		l := &letters[i]
		views = append(views, viewLetter(l))
		rows = append(rows, []string{clip(harmless(l.id), 64), harmless(l.queue), clip(harmless(l.reason), 20), clip(harmless(l.pointer), 40), clock(l.lastSeen),
			strconv.FormatInt(l.count, 10), strconv.Itoa(l.size), clip(harmless(l.problem), 80)})
	}
	switch o.format {
	case formatJSON:
		return o.document(struct {
			Letters []letterView `json:"dead_letters"`
		}{views})
	case formatJSONL:
		for _, v := range views {
			if err := o.line(v); err != nil {
				return err
			}
		}
		return nil
	}
	if len(rows) == 0 {
		fmt.Fprintln(a.stderr, "no dead letters")
		return nil
	}
	return o.table(columns("ID", "QUEUE", "REASON", "POINTER", "LAST SEEN", ">TIMES", ">BYTES", "ERROR"), rows, true)
}

func groupLetters(letters []deadLetter) []letterGroup {
	type key struct{ queue, reason, pointer string }
	index := make(map[key]int)
	groups := []letterGroup{}
	for i := range letters {
		l := &letters[i]
		k := key{l.queue, l.reason, l.pointer}
		n, ok := index[k]
		if !ok {
			n = len(groups)
			index[k] = n
			groups = append(groups, letterGroup{Queue: l.queue, Reason: l.reason, Pointer: known(l.pointer), Example: known(l.problem), ExampleID: l.id})
		}
		g := &groups[n]
		g.Messages++
		if first := moment(l.firstSeen); first != nil && (g.FirstSeen == nil || first.Before(*g.FirstSeen)) {
			g.FirstSeen = first
		}
		if last := moment(l.lastSeen); last != nil && (g.LastSeen == nil || last.After(*g.LastSeen)) {
			g.LastSeen = last
		}
	}
	slices.SortStableFunc(groups, func(a, b letterGroup) int { return cmp.Compare(b.Messages, a.Messages) })
	return groups
}

func (a *app) showGroups(o *output, groups []letterGroup) error {
	switch o.format {
	case formatJSON:
		return o.document(struct {
			Groups []letterGroup `json:"groups"`
		}{groups})
	case formatJSONL:
		for _, g := range groups {
			if err := o.line(g); err != nil {
				return err
			}
		}
		return nil
	}
	if len(groups) == 0 {
		fmt.Fprintln(a.stderr, "no dead letters")
		return nil
	}
	text := func(s *string) string {
		if s == nil {
			return ""
		}
		return harmless(*s)
	}
	at := func(t *time.Time) string {
		if t == nil {
			return ""
		}
		return clock(*t)
	}
	var rows [][]string
	for _, g := range groups {
		rows = append(rows, []string{harmless(g.Queue), clip(harmless(g.Reason), 20), clip(text(g.Pointer), 40), strconv.Itoa(g.Messages), at(g.FirstSeen), at(g.LastSeen), clip(text(g.Example), 80)})
	}
	return o.table(columns("QUEUE", "REASON", "POINTER", ">MESSAGES", "FIRST SEEN", "LAST SEEN", "FOR EXAMPLE"), rows, true)
}

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
			d, err := a.openDeadLetters(cmd.Context(), c, queue, limit)
			if err != nil {
				return err
			}
			defer d.close()
			wanted, err := parseIDs(ids)
			if err != nil {
				return err
			}
			var found []deadLetter
			more, err := d.each(cmd.Context(), func(l deadLetter) error {
				if wanted.match(l.id) {
					found = append(found, l)
				}
				return nil
			})
			if err != nil {
				return err
			}
			if err := wanted.check(d.taken, more); err != nil {
				return err
			}
			// The same message may have died twice; the later death counts.
			return a.showLetter(a.output(cmd), &found[len(found)-1], raw)
		},
	}
	cmd.Flags().BoolVar(&raw, "raw", false, "write only the body, byte for byte")
	addLetterFlags(cmd, &queue, &limit)
	addOutputFlags(cmd, formatTable, formatJSON)
	return cmd
}

func (a *app) showLetter(o *output, l *deadLetter, raw bool) error {
	if raw {
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
		}{viewLetter(l), known(l.delivery.ContentType), headers, strings.ToValidUTF8(string(l.delivery.Body), "\ufffd")})
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", o.bold(harmless(l.id)))
	for _, f := range []struct{ name, value string }{
		{"queue", l.queue}, {"reason", l.reason}, {"pointer", l.pointer}, {"error", l.problem},
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
		body = body[:most]
	}
	fmt.Fprintf(&b, "\n%s\n", strings.TrimRight(harmlessLog(string(body)), "\n"))
	if cut {
		fmt.Fprintf(&b, "\n(the first %d of %d bytes; --raw writes all)\n", most, l.size)
	}
	_, err := o.w.Write([]byte(b.String()))
	return err
}

// wantedIDs are the message ids, or beginnings of them, that were asked for.
type wantedIDs struct {
	refs []string
	hits []map[string]struct{} // per ref, the ids that fitted
}

func parseIDs(refs []string) (*wantedIDs, error) {
	w := &wantedIDs{refs: refs}
	for _, ref := range refs {
		if len(ref) < 4 {
			return nil, usage("message id %q: give at least four characters", ref)
		}
		w.hits = append(w.hits, make(map[string]struct{}))
	}
	return w, nil
}

// match notes whether an id was asked for.
func (w *wantedIDs) match(id string) (wanted bool) {
	for i, ref := range w.refs {
		if strings.HasPrefix(id, ref) {
			w.hits[i][id] = struct{}{}
			wanted = true
		}
	}
	return wanted
}

// check says which ids were not found among so many letters, of which there
// may be more, or were not told apart.
func (w *wantedIDs) check(among int, more bool) error {
	for i, ref := range w.refs {
		if _, exact := w.hits[i][ref]; exact {
			continue
		}
		switch len(w.hits[i]) {
		case 0:
			if more {
				return fmt.Errorf("dead letter %q: %w among the first %d; raise --limit", ref, workflow.ErrNotFound, among)
			}
			return fmt.Errorf("dead letter %q: %w; see waymark dead-letters list --each", ref, workflow.ErrNotFound)
		case 1:
		default:
			return fmt.Errorf("dead letter %q: %w: it begins %d ids", ref, workflow.ErrAmbiguous, len(w.hits[i]))
		}
	}
	return nil
}

// resolved reports whether a matched id is one that was asked for beyond doubt.
func (w *wantedIDs) resolved(id string) bool {
	for i, ref := range w.refs {
		if id == ref {
			return true
		}
		if _, exact := w.hits[i][ref]; !exact && strings.HasPrefix(id, ref) {
			return true
		}
	}
	return false
}

// choice says which letters a replay or a discard is about.
type choice struct {
	ids    *wantedIDs
	reason string
	all    bool
}

func parseChoice(ids []string, reason string, all bool) (*choice, error) {
	given := 0
	for _, is := range []bool{len(ids) > 0, reason != "", all} {
		if is {
			given++
		}
	}
	if given != 1 {
		return nil, usage("say which dead letters: by ID, with --reason, or with --all")
	}
	wanted, err := parseIDs(ids)
	return &choice{ids: wanted, reason: reason, all: all}, err
}

// take returns the letters that were chosen, with their bodies, still in hand.
func (ch *choice) take(ctx context.Context, d *deadLetterQueues) (letters []deadLetter, more bool, err error) {
	more, err = d.each(ctx, func(l deadLetter) error {
		if ch.all || (ch.reason != "" && l.reason == ch.reason) || ch.ids.match(l.id) {
			letters = append(letters, l)
		}
		return nil
	})
	if err != nil {
		return nil, false, err
	}
	if len(ch.ids.refs) > 0 {
		if err := ch.ids.check(d.taken, more); err != nil {
			return nil, false, err
		}
		letters = slices.DeleteFunc(letters, func(l deadLetter) bool { return !ch.ids.resolved(l.id) })
	}
	if len(letters) == 0 && ch.reason != "" && more {
		return nil, false, fmt.Errorf("dead letters with reason %q: %w among the first %d; raise --limit", ch.reason, workflow.ErrNotFound, d.taken)
	}
	if len(letters) == 0 && ch.reason != "" {
		return nil, false, fmt.Errorf("dead letters with reason %q: %w; see waymark dead-letters list", ch.reason, workflow.ErrNotFound)
	}
	return letters, more, nil
}

func addChoiceFlags(cmd *cobra.Command, reason *string, all *bool) {
	cmd.Flags().StringVar(reason, "reason", "", "all with this `reason`, as list shows it")
	cmd.Flags().BoolVar(all, "all", false, "all of them")
}

func (a *app) deadLettersDiscardCommand() *cobra.Command {
	var queue, reason string
	var limit int
	var all, yes bool
	cmd := &cobra.Command{
		Use:   "discard [ID...]",
		Short: "Discard dead letters for good",
		Long: `Discard dead letters, by id, by reason, or all. They are gone for good: what they
would have said about their workflows will never be known. Asks first, unless
--yes is given.`,
		Example: `  waymark dead-letters discard 0192f3ab
  waymark dead-letters discard --reason not-json --yes`,
		RunE: func(cmd *cobra.Command, ids []string) error {
			chosen, err := parseChoice(ids, reason, all)
			if err != nil {
				return err
			}
			if !yes && !isTerminal(a.stdin) {
				return usage("discarding is for good: say --yes, as there is no terminal to ask on")
			}
			c, err := a.config(cmd)
			if err != nil {
				return err
			}
			d, err := a.openDeadLetters(cmd.Context(), c, queue, limit)
			if err != nil {
				return err
			}
			defer d.close()
			letters, more, err := chosen.take(cmd.Context(), d)
			if err != nil {
				return err
			}
			if len(letters) > 0 && !yes {
				fmt.Fprintf(a.stderr, "discard %s for good? [y/N] ", count(len(letters), "dead letter"))
				var answer string
				// No answer is a no.
				_, _ = fmt.Fscanln(a.stdin, &answer)
				if answer = strings.ToLower(answer); answer != "y" && answer != "yes" {
					return &exitError{code: exitFailed, err: errors.New("nothing was discarded")}
				}
			}
			for i := range letters {
				if err := letters[i].delivery.Ack(false); err != nil {
					return fmt.Errorf("discarding after %d of %d: %w", i, len(letters), broker.Explain(err))
				}
			}
			// An ack has no answer; the broker's answer to this says that it
			// has read all of them.
			if err := d.ch.Close(); err != nil {
				return fmt.Errorf("discarding %s: %w", count(len(letters), "dead letter"), broker.Explain(err))
			}
			if more {
				fmt.Fprintln(a.stderr, "there may be more: --limit was reached")
			}
			_, err = fmt.Fprintf(a.stdout, "discarded %d\n", len(letters))
			return err
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	addChoiceFlags(cmd, &reason, &all)
	addLetterFlags(cmd, &queue, &limit)
	return cmd
}
