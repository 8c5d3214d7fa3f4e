package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/spf13/cobra"

	"waymark/consumer"
	"waymark/schemas"
)

func (a *app) deadLettersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dead-letters",
		Short: "Look at messages that could not be applied, and try again",
		Long: `Look at the messages that could not be applied, put them right, publish them
again, or discard them. They lie in the dead-letter queues of the broker, beside
the queues they came by, with the reason; the database need not be up.`,
		Example: `  waymark dead-letters list
  waymark dead-letters edit 0192f3ab
  waymark dead-letters replay --reason schema`,
		RunE: group,
	}
	cmd.AddCommand(a.deadLettersListCommand(), a.deadLettersShowCommand(), a.deadLettersEditCommand(),
		a.deadLettersReplayCommand(), a.deadLettersDiscardCommand(), a.deadLettersAuditCommand())
	return cmd
}

// deadLetter is one message in a dead-letter queue.
type deadLetter struct {
	delivery  amqp.Delivery
	size      int
	id        string
	queue     string // beside which it lies
	workflow  string // that the body names; empty if it cannot be read
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
		delivery: d, size: len(d.Body), id: d.MessageId, queue: queue, workflow: namedWorkflow(d.Body),
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

// workflowNames finds the key that names the workflow, in a text that need not
// be JSON, or all of JSON.
var workflowNames = regexp.MustCompile(`\\?"workflow_(?:uuid|id_or_name)\\?"\s*:\s*\\?"([^"\\]{1,255})\\?"`)

// namedWorkflow is what a body names as its workflow, as far as can be told: it
// is a dead letter's, and may be anything.
func namedWorkflow(body []byte) string {
	text, err := schemas.Unwrap(body)
	if err != nil {
		text = body
	}
	const most = 64 << 10 // the key stands at the beginning
	if len(text) <= most {
		var keys struct {
			Status     string `json:"workflow_uuid"`
			Submission string `json:"workflow_id_or_name"`
		}
		if json.Unmarshal(text, &keys) == nil {
			return cmp.Or(keys.Status, keys.Submission)
		}
	}
	if m := workflowNames.FindSubmatch(text[:min(len(text), most)]); m != nil {
		return string(m[1])
	}
	return ""
}

// letterView is a dead letter without its body.
type letterView struct {
	ID        string     `json:"id"`
	Queue     string     `json:"queue"`
	Reason    string     `json:"reason"`
	Pointer   *string    `json:"pointer"`
	Error     *string    `json:"error"`
	Workflow  *string    `json:"workflow"`
	FirstSeen *time.Time `json:"first_seen"`
	LastSeen  *time.Time `json:"last_seen"`
	Count     int64      `json:"count"`
	Bytes     int        `json:"bytes"`
}

func viewLetter(l *deadLetter) letterView {
	return letterView{ID: l.id, Queue: l.queue, Reason: l.reason, Pointer: known(l.pointer), Error: known(l.problem), Workflow: known(l.workflow),
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
	var filter letterFilter
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List dead letters by reason",
		Long: `List the dead letters: how many of each reason and JSON pointer, when the first
and the last of them was seen, and what was wrong with one. --each lists single
messages. While it reads, for a moment, nobody else sees the letters.`,
		Example: `  waymark dead-letters list
  waymark dead-letters list --each --reason schema --pointer /status
  waymark dead-letters list --each --output jsonl`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := filter.check(); err != nil {
				return err
			}
			c, err := a.config(cmd)
			if err != nil {
				return err
			}
			o := a.output(cmd)
			d, err := a.openDeadLetters(cmd.Context(), c, queue, limit)
			if err != nil {
				return err
			}
			defer d.close()
			var letters []deadLetter
			if err := d.each(cmd.Context(), func(l deadLetter) error {
				l.delivery = amqp.Delivery{} // with the body
				if filter.match(&l) {
					letters = append(letters, l)
				}
				return nil
			}); err != nil {
				return err
			}
			d.close() // before a pager keeps the letters from others
			if d.more {
				fmt.Fprintf(a.stderr, "there are more than these %d: raise --limit\n", d.taken)
			}
			if each {
				return a.showLetters(o, letters)
			}
			return a.showGroups(o, groupLetters(letters))
		},
	}
	cmd.Flags().BoolVar(&each, "each", false, "list single messages")
	addFilterFlags(cmd, &filter)
	addLetterFlags(cmd, &queue, &limit)
	addOutputFlags(cmd, formatTable, formatJSON, formatJSONL)
	return cmd
}

func addLetterFlags(cmd *cobra.Command, queue *string, limit *int) {
	cmd.Flags().StringVar(queue, "queue", "", "only letters that came by this queue: `status` or submission (default both)")
	cmd.Flags().IntVar(limit, "limit", defaultLetters, "look at no more than so many letters")
	addConfigFlags(cmd, "broker", "log")
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
	return o.tableOrCards(columns("ID", "QUEUE", "REASON", "POINTER", "LAST SEEN", ">TIMES", ">BYTES", "ERROR"), rows)
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
	return o.tableOrCards(columns("QUEUE", "REASON", "POINTER", ">MESSAGES", "FIRST SEEN", "LAST SEEN", "FOR EXAMPLE"), rows)
}
