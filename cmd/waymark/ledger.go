package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/spf13/cobra"

	"waymark/internal/broker"
	"waymark/store"
	"waymark/workflow"
)

func (a *app) ledgerCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ledger",
		Short: "Show that no message was lost",
		Long: `Show what became of every delivery of each queue. At every moment

  received = applied + duplicate + stale + dead

as the counters are kept in the transactions that had the effect. Beside it
stands how many messages wait in the queue and in its dead-letter queue now;
those that a consumer holds are in neither. Without the broker these are
unknown, and the rest is shown all the same. Exits with 1 if a queue is not in
balance.`,
		Example: `  waymark ledger
  waymark ledger --json | jq '.queues[].balanced'`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o := a.output(cmd)
			return a.withStore(cmd, func(ctx context.Context, c *config, db *store.DB) error {
				entries, err := db.Ledger(ctx)
				if err != nil {
					return err
				}
				for _, queue := range []string{c.queues().Status, c.queues().Submission} {
					if !slices.ContainsFunc(entries, func(e workflow.LedgerEntry) bool { return e.Queue == queue }) {
						entries = append(entries, workflow.LedgerEntry{Queue: queue})
					}
				}
				depths, brokerErr := queueDepths(ctx, c, entries)
				return a.showLedger(o, entries, depths, brokerErr)
			})
		},
	}
	addOutputFlags(cmd, formatTable, formatJSON)
	addConfigFlags(cmd, "database", "broker", "log")
	return cmd
}

type ledgerView struct {
	Queue     string     `json:"queue"`
	Received  int64      `json:"received"`
	Applied   int64      `json:"applied"`
	Duplicate int64      `json:"duplicate"`
	Stale     int64      `json:"stale"`
	Dead      int64      `json:"dead"`
	Balanced  bool       `json:"balanced"`
	Waiting   *queueView `json:"waiting"`
}

// queueView is the broker's side, null where it is unknown.
type queueView struct {
	Ready       *int `json:"ready"`
	Consumers   *int `json:"consumers"`
	DeadLetters *int `json:"dead_letters"`
}

func (a *app) showLedger(o *output, entries []workflow.LedgerEntry, depths map[string]queueView, brokerErr error) error {
	views := []ledgerView{}
	var rows [][]string
	balanced := true
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	maybe := func(n *int) string {
		if n == nil {
			return ""
		}
		return strconv.Itoa(*n)
	}
	for _, e := range entries {
		v := ledgerView{Queue: e.Queue, Received: e.Received, Applied: e.Applied, Duplicate: e.Duplicate, Stale: e.Stale, Dead: e.Dead,
			Balanced: e.Received == e.Applied+e.Duplicate+e.Stale+e.Dead}
		balanced = balanced && v.Balanced
		var depth queueView
		if d, ok := depths[e.Queue]; ok {
			depth, v.Waiting = d, &d
		}
		yes := "yes"
		if !v.Balanced {
			yes = o.status("failed") + ": no"
		}
		views = append(views, v)
		rows = append(rows, []string{harmless(e.Queue), number(e.Received), number(e.Applied), number(e.Duplicate), number(e.Stale), number(e.Dead),
			yes, maybe(depth.Ready), maybe(depth.Consumers), maybe(depth.DeadLetters)})
	}
	if o.format == formatJSON {
		var fault *string
		if brokerErr != nil {
			fault = known(brokerErr.Error())
		}
		if err := o.document(struct {
			Queues      []ledgerView `json:"queues"`
			Balanced    bool         `json:"balanced"`
			BrokerError *string      `json:"broker_error"`
		}{views, balanced, fault}); err != nil {
			return err
		}
	} else if err := o.tableOrCards(columns("QUEUE", ">RECEIVED", ">APPLIED", ">DUPLICATE", ">STALE", ">DEAD", "BALANCED", ">READY", ">CONSUMERS", ">DEAD-LETTERS"), rows); err != nil {
		return err
	}
	if brokerErr != nil {
		fmt.Fprintf(a.stderr, "queue depths are unknown: %s\n", harmless(brokerErr.Error()))
	}
	if !balanced {
		return exit(exitFailed)
	}
	return nil
}

// queueDepths asks the broker how many messages wait in each queue and in its
// dead-letter queue.
func queueDepths(ctx context.Context, c *config, entries []workflow.LedgerEntry) (map[string]queueView, error) {
	if err := c.require("broker.url"); err != nil {
		return nil, err
	}
	conn, err := dial(ctx, c, "waymark ledger")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	depths := make(map[string]queueView)
	for _, e := range entries {
		var v queueView
		ready, err := inspect(conn, e.Queue)
		if err != nil {
			return depths, fmt.Errorf("asking for the depth of queue %q: %w", e.Queue, err)
		}
		if ready != nil {
			v.Ready, v.Consumers = &ready.Messages, &ready.Consumers
		}
		dead, err := inspect(conn, broker.DeadLetter(e.Queue))
		if err != nil {
			return depths, fmt.Errorf("asking for the depth of queue %q: %w", broker.DeadLetter(e.Queue), err)
		}
		if dead != nil {
			v.DeadLetters = &dead.Messages
		}
		depths[e.Queue] = v
	}
	return depths, nil
}

// inspect returns the state of a queue, nil if there is no such queue.
func inspect(conn *amqp.Connection, name string) (*amqp.Queue, error) {
	// A refusal closes the channel, so each question has its own.
	ch, err := conn.Channel()
	if err != nil {
		return nil, broker.Explain(err)
	}
	// A passive declaration compares the name only.
	q, err := ch.QueueDeclarePassive(name, false, false, false, false, nil)
	if refusal, ok := errors.AsType[*amqp.Error](err); ok && refusal.Code == amqp.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, broker.Explain(err)
	}
	return &q, ch.Close()
}

// dial connects to the configured broker.
func dial(ctx context.Context, c *config, name string) (*amqp.Connection, error) {
	url, err := c.brokerURL()
	if err != nil {
		return nil, err
	}
	conn, err := broker.Dial(ctx, broker.Config{ConnectionName: name, URL: url})
	return conn, unreachable(err)
}
