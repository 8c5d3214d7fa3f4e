package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"waymark/internal/broker"
	"waymark/internal/conformance"
	"waymark/schemas"
)

// conformanceFlags are the flags of "conformance".
type conformanceFlags struct {
	queue, submissions string
	settle, timeout    time.Duration
	strict             bool
}

func (a *app) conformanceCommand() *cobra.Command {
	var f conformanceFlags
	cmd := &cobra.Command{
		Use:   "conformance [flags] [-- COMMAND]",
		Short: "Give a report card of what an adapter publishes",
		Long: `Watch what any engine or adapter publishes during a run, and judge it: schema,
message ids, event times, totals, job ids, order, final status, duplicates.

With a COMMAND, that command publishes to queues made for it, whose names are in
its environment (WAYMARK_BROKER_STATUS_QUEUE, WAYMARK_BROKER_SUBMISSION_QUEUE);
the card is given when it has ended and its messages are in. With --queue, the
messages of that queue are judged until every run has ended and nothing has come
for --settle. They are taken from it: it must be empty, and nobody else may
consume it.

Ends with 0 if nothing failed, with 1 if something did or, with --strict, if
there is a warning.`,
		Example: `  waymark conformance -- waymark run script -- ./analysis.sh
  waymark conformance --queue my-engine-test --timeout 10m --json`,
		Args: func(cmd *cobra.Command, rest []string) error {
			if dash := cmd.ArgsLenAtDash(); len(rest) > 0 && dash != 0 {
				return usage("unexpected argument %q: put -- before a command", rest[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, command []string) error { return a.conformance(cmd, &f, command) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.queue, "queue", "", "take status messages from this `queue`, instead of running a command")
	flags.StringVar(&f.submissions, "submission-queue", "", "take submissions from this `queue` too")
	flags.DurationVar(&f.settle, "settle", 2*time.Second, "how long nothing may come before a run is over")
	flags.DurationVar(&f.timeout, "timeout", 0, "give the card after this time in any case (default never)")
	flags.BoolVar(&f.strict, "strict", false, "end with 1 for warnings too")
	addOutputFlags(cmd, formatTable, formatJSON)
	addConfigFlags(cmd, "broker", "consumer.max_message_bytes", "log")
	return cmd
}

func (a *app) conformance(cmd *cobra.Command, f *conformanceFlags, command []string) error {
	c, err := a.config(cmd)
	if err != nil {
		return err
	}
	if err := c.require("broker.url"); err != nil {
		return err
	}
	if (f.queue == "") == (len(command) == 0) {
		return usage("give either --queue or, after --, a command to watch")
	}
	ctx := cmd.Context()
	if f.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.timeout)
		defer cancel()
	}
	w := &examiner{judge: conformance.Judge{Limits: c.limits()}, settle: f.settle, now: a.now}
	if w.conn, err = dial(ctx, c, "waymark conformance"); err != nil {
		return err
	}
	defer w.conn.Close()

	if len(command) == 0 {
		err = w.watchQueues(ctx, broker.Queues{Status: f.queue, Submission: f.submissions})
	} else {
		err = w.watchCommand(ctx, c.topology(), func(ctx context.Context, variables []string) error {
			return a.runCommandWith(ctx, command, variables)
		})
	}
	switch {
	case err != nil && ctx.Err() == nil:
		return err
	case err != nil && !errors.Is(err, context.Cause(ctx)):
		a.say("waymark: %s", harmless(oneLine.Replace(err.Error())))
	}
	return a.showCard(a.output(cmd), w.judge.Card(), f.strict)
}

// examiner takes the messages of queues and has them judged.
type examiner struct {
	conn   *amqp.Connection
	judge  conformance.Judge
	settle time.Duration
	now    func() time.Time
}

// watchQueues judges the messages of queues that exist, until every run has ended.
func (w *examiner) watchQueues(ctx context.Context, queues broker.Queues) error {
	for _, name := range []string{queues.Status, queues.Submission} {
		if name == "" {
			continue
		}
		switch q, err := inspect(w.conn, name); {
		case err != nil:
			return unreachable(fmt.Errorf("looking at queue %q: %w", name, err))
		case q == nil:
			return &exitError{code: exitNotFound, err: fmt.Errorf("there is no queue %q: declare it, or run the adapter as a command after --", name)}
		case q.Consumers > 0:
			return usage("queue %q has %s: what they take could not be judged, and they would miss what is taken here", name, count(q.Consumers, "consumer"))
		case q.Messages > 0:
			return usage("queue %q holds %s, which would be taken from it: name a queue of the test's own", name, count(q.Messages, "message"))
		}
	}
	never := make(chan struct{})
	return w.watch(ctx, queues, never)
}

// watchCommand judges what a command publishes to queues of its own.
func (w *examiner) watchCommand(ctx context.Context, topology broker.Topology, run func(context.Context, []string) error) error {
	prefix := "waymark-conformance-" + strings.SplitN(uuid.NewString(), "-", 2)[0]
	queues := broker.Queues{Status: prefix + "-status", Submission: prefix + "-submission"}
	if err := broker.Declare(w.conn, topology.Status(queues.Status), topology.Submission(queues.Submission)); err != nil {
		return unreachable(err)
	}
	defer func() {
		for _, name := range []string{queues.Status, queues.Submission} {
			if ch, err := w.conn.Channel(); err == nil {
				_, _ = ch.QueueDelete(name, false, false, false)
				_ = ch.Close()
			}
		}
	}()
	ended := make(chan struct{})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(ended)
		err := run(ctx, []string{
			find("broker.status_queue").env() + "=" + queues.Status,
			find("broker.submission_queue").env() + "=" + queues.Submission,
		})
		if code, ok := errors.AsType[*exitError](err); ok && code.err == nil {
			return nil // how the run ended is in its messages
		}
		return err
	})
	g.Go(func() error { return w.watch(ctx, queues, ended) })
	return g.Wait()
}

// watch judges messages until nothing more is to be expected: whoever published
// has ended, or every run has, and then nothing came for a while.
func (w *examiner) watch(ctx context.Context, queues broker.Queues, ended <-chan struct{}) error {
	ch, err := w.conn.Channel()
	if err != nil {
		return unreachable(broker.Explain(err))
	}
	defer ch.Close()
	if err := ch.Qos(1000, 0, false); err != nil {
		return unreachable(broker.Explain(err))
	}
	consume := func(name string) (<-chan amqp.Delivery, error) {
		if name == "" {
			return nil, nil
		}
		d, err := ch.Consume(name, "", false, true, false, false, nil)
		if err != nil {
			return nil, unreachable(fmt.Errorf("consuming queue %q: %w", name, broker.Explain(err)))
		}
		return d, nil
	}
	statuses, err := consume(queues.Status)
	if err != nil {
		return err
	}
	submissions, err := consume(queues.Submission)
	if err != nil {
		return err
	}
	quiet := time.NewTimer(w.settle)
	defer quiet.Stop()
	over := false
	for {
		var d amqp.Delivery
		var open bool
		kind := schemas.StatusKind
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ended:
			over, ended = true, nil
			quiet.Reset(w.settle)
			continue
		case <-quiet.C:
			if over || w.judge.Ended() {
				return nil
			}
			continue
		case d, open = <-statuses:
		case d, open = <-submissions:
			kind = schemas.SubmissionKind
		}
		if !open {
			return unreachable(errors.New("the broker ended the session; what was seen is judged no further"))
		}
		w.judge.Observe(conformance.Message{
			Kind: kind, Body: d.Body, ID: d.MessageId, ContentType: d.ContentType, Persistent: d.DeliveryMode == amqp.Persistent, At: w.now(),
		})
		if err := d.Ack(false); err != nil {
			return unreachable(broker.Explain(err))
		}
		quiet.Reset(w.settle)
	}
}

func (a *app) showCard(o *output, card conformance.Card, strict bool) error {
	worst := card.Worst()
	code := exitOK
	if worst == conformance.Fail || strict && worst == conformance.Warn {
		code = exitFailed
	}
	if o.format == formatJSON {
		if err := o.document(card); err != nil {
			return err
		}
		return exit(code)
	}
	if len(card.Runs) > 0 {
		var rows [][]string
		for _, r := range card.Runs {
			rows = append(rows, []string{r.WorkflowID.String(), harmless(r.Name), harmless(r.Engine), o.status(r.Status), strconv.Itoa(r.Messages),
				strconv.Itoa(r.Total), strconv.Itoa(r.Finished), strconv.Itoa(r.Failed), strconv.Itoa(r.Stopped)})
		}
		if err := o.tableOrCards(columns("RUN", "NAME", "ENGINE", "STATUS", ">MESSAGES", ">JOBS", ">FINISHED", ">FAILED", ">STOPPED"), rows); err != nil {
			return err
		}
		fmt.Fprintln(o.w)
	}
	paint := map[conformance.Verdict]string{conformance.Pass: "32", conformance.Warn: "33", conformance.Fail: "31"}
	var rows [][]string
	for _, c := range card.Checks {
		detail := harmless(c.Detail)
		if c.Faults > 1 {
			detail += fmt.Sprintf(" (and %d more)", c.Faults-1)
		}
		rows = append(rows, []string{o.paint(paint[c.Verdict], string(c.Verdict)), c.Name, detail})
	}
	if err := o.table(columns("VERDICT", "CHECK", "WHAT WAS SEEN"), rows, true); err != nil {
		return err
	}
	return exit(code)
}
