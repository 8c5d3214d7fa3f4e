package publisher

import (
	"context"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/publisher/spool"
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

	// class says whether and how it may be kept on disk; empty: it may not.
	class spool.Class
	// orphan: it is kept on disk without having been accepted in memory.
	orphan bool

	// awaited: the caller gets the outcome itself, so Flush need not tell it.
	awaited bool

	// Guarded by Publisher.mu.
	seq        uint64    // order of acceptance, and so of sending
	attempts   int       // how often it was given to a session
	redeclared bool      // returned once; the queues were declared again since
	withdrawn  bool      // not to be tried again
	accepted   time.Time // if its class is kept on disk
	ref        spool.Ref // on disk; 0 if it is not
	dropped    bool      // from the disk, or for want of room there
	unspooled  error     // why it could not be written to disk the last time

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
// message is confirmed, else an error that is [ErrUnroutable], [ErrSpooled],
// [ErrNotConfirmed] or an *[InvalidError]. When ctx ends, the publisher still
// holds the message and goes on: Wait may be called again.
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
		r.p.mu.Lock()
		defer r.p.mu.Unlock()
		if r.ref != 0 {
			return r.p.spooledLocked(r, context.Cause(ctx))
		}
		return r.p.notConfirmedLocked(r, context.Cause(ctx), r.p.fault)
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
