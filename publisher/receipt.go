package publisher

import (
	"context"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Receipt stands for one message that the publisher has accepted.
type Receipt struct {
	p    *Publisher
	done chan struct{}
	err  error // readable once done is closed

	// The message; nothing of it changes between attempts.
	queue       string
	id          string
	contentType string
	headers     amqp.Table
	priority    uint8
	timestamp   time.Time
	body        []byte

	// awaited: the caller gets the outcome itself, so Flush need not tell it.
	awaited bool

	// Guarded by Publisher.mu.
	seq        uint64 // order of acceptance, and so of sending
	attempts   int    // how often it was given to a session
	redeclared bool   // returned once; the queues were declared again since
	withdrawn  bool   // not to be tried again

	// Of the current attempt; handed from the writer to the settler.
	confirm *amqp.DeferredConfirmation
	written time.Time
}

// MessageID is the AMQP message-id. It is the same for every attempt to send
// the message.
func (r *Receipt) MessageID() string { return r.id }

// Done is closed when the message is settled: confirmed, unroutable or given up.
func (r *Receipt) Done() <-chan struct{} { return r.done }

// Wait waits until the message is settled, or ctx ends. It returns nil if the
// message is confirmed, else an error that is [ErrUnroutable],
// [ErrNotConfirmed] or an *[InvalidError]. When ctx ends, the publisher still holds the message and
// goes on: Wait may be called again.
func (r *Receipt) Wait(ctx context.Context) error {
	select {
	case <-r.done:
		return r.err
	default:
	}
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return r.p.notConfirmed(r, context.Cause(ctx))
	}
}

// publishing is r as the library wants it.
func (r *Receipt) publishing() amqp.Publishing {
	return amqp.Publishing{
		AppId:           appID,
		Body:            r.body,
		ContentEncoding: "utf-8",
		ContentType:     r.contentType,
		DeliveryMode:    amqp.Persistent,
		Headers:         r.headers,
		MessageId:       r.id,
		Priority:        r.priority,
		Timestamp:       r.timestamp,
	}
}
