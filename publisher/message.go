package publisher

import (
	"context"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/wire"
	"waymark/publisher/spool"
	"waymark/workflow"
)

const (
	appID       = "waymark"
	contentType = "application/json"

	// maxHeaders keeps the headers within one frame (128 KiB by default); the
	// broker closes the connection on more.
	maxHeaders = 64 << 10
	maxShort   = 255 // bytes of an AMQP short string
)

// Status publishes a status message and returns when the broker has confirmed
// it. The error is an *[InvalidError], [ErrUnroutable], [ErrClosed], or, if ctx
// ended first, [ErrSpooled] if there is a spool and the message is in it, else
// [ErrNotConfirmed]; the message is then not tried again.
func (p *Publisher) Status(ctx context.Context, msg *workflow.StatusMessage) error {
	r, err := p.statusReceipt(msg)
	if err != nil {
		return err
	}
	return p.sendAndWait(ctx, r)
}

// Submission publishes a submission and returns when the broker has confirmed
// it, with the errors of [Publisher.Status].
func (p *Publisher) Submission(ctx context.Context, s *workflow.Submission) error {
	r, err := p.submissionReceipt(s)
	if err != nil {
		return err
	}
	return p.sendAndWait(ctx, r)
}

// SendStatus accepts a status message as soon as there is room in the window.
// From then on the publisher holds it until it is settled, whatever becomes of
// ctx. The error is an *[InvalidError], [ErrClosed], or [ErrNotConfirmed] if ctx
// ended before there was room: the message was not accepted. With a spool it is
// kept there instead, and its receipt says [ErrSpooled].
func (p *Publisher) SendStatus(ctx context.Context, msg *workflow.StatusMessage) (*Receipt, error) {
	r, err := p.statusReceipt(msg)
	if err != nil {
		return nil, err
	}
	return p.send(ctx, r)
}

// SendSubmission is to [Publisher.Submission] as SendStatus is to Status.
func (p *Publisher) SendSubmission(ctx context.Context, s *workflow.Submission) (*Receipt, error) {
	r, err := p.submissionReceipt(s)
	if err != nil {
		return nil, err
	}
	return p.send(ctx, r)
}

// Properties of a raw message.
type Properties struct {
	// ContentType of the body. Default "application/json".
	ContentType string
	// Headers with values of the types AMQP has. Default none.
	Headers map[string]any
	// MessageID, at most 255 bytes. Default a new version 7 UUID.
	MessageID string
	// Priority in a queue that has priorities; higher goes first. Default 0.
	Priority uint8
	// Timestamp, to the second. Default now.
	Timestamp time.Time
}

// SendRaw accepts a body as it is, neither validated nor encoded, for any
// queue; only the two configured queues are ever declared. The body and the
// headers must not be changed before the receipt is done. The errors are those
// of [Publisher.SendStatus]; an *[InvalidError] is about size or properties.
func (p *Publisher) SendRaw(ctx context.Context, queue string, body []byte, props Properties) (*Receipt, error) {
	r := &Receipt{
		queue:       queue,
		id:          props.MessageID,
		contentType: props.ContentType,
		headers:     props.Headers,
		priority:    props.Priority,
		timestamp:   props.Timestamp,
		body:        body,
	}
	if r.contentType == "" {
		r.contentType = contentType
	}
	if err := p.complete(r); err != nil {
		return nil, p.invalid("raw message", err)
	}
	return p.send(ctx, r)
}

func (p *Publisher) statusReceipt(msg *workflow.StatusMessage) (*Receipt, error) {
	if msg == nil {
		return nil, p.invalid("status message", errNil)
	}
	body, err := wire.EncodeStatus(msg)
	if err != nil {
		return nil, p.invalid("status message", err)
	}
	r := &Receipt{queue: p.cfg.Queues.Status, body: p.encode(body), contentType: contentType, class: classOf(msg)}
	if err := p.complete(r); err != nil {
		return nil, p.invalid("status message", err)
	}
	return r, nil
}

func (p *Publisher) submissionReceipt(s *workflow.Submission) (*Receipt, error) {
	if s == nil {
		return nil, p.invalid("submission", errNil)
	}
	body, err := wire.EncodeSubmission(s)
	if err != nil {
		return nil, p.invalid("submission", err)
	}
	// The schema keeps the priority within 0 to 100.
	r := &Receipt{queue: p.cfg.Queues.Submission, body: p.encode(body), contentType: contentType, priority: uint8(s.Priority), class: spool.Submission}
	if err := p.complete(r); err != nil {
		return nil, p.invalid("submission", err)
	}
	return r, nil
}

var errNil = errors.New("it is nil")

func (p *Publisher) invalid(message string, err error) error {
	p.mu.Lock()
	p.report.Invalid++
	p.mu.Unlock()
	return &InvalidError{Message: message, Err: err}
}

func (p *Publisher) encode(body []byte) []byte {
	if p.cfg.Encoding == EncodingReana {
		return wire.Reana(body)
	}
	return body
}

// complete fills in what every message has, and refuses what would make the
// broker, or the library, end the session: the message would be tried for
// ever, and everything behind it would wait.
func (p *Publisher) complete(r *Receipt) error {
	r.p = p
	r.done = make(chan struct{})
	if r.timestamp.IsZero() {
		r.timestamp = time.Now()
	}
	if r.id == "" {
		id, err := uuid.NewV7()
		if err != nil {
			return fmt.Errorf("making a message-id: %w", err)
		}
		r.id = id.String()
	}
	switch {
	case len(r.body) > p.cfg.MaxMessageBytes:
		return fmt.Errorf("its body is %d bytes long: at most %d are allowed", len(r.body), p.cfg.MaxMessageBytes)
	case r.queue == "" || len(r.queue) > maxShort:
		return fmt.Errorf("its queue name is %d bytes long: expected 1 to %d", len(r.queue), maxShort)
	case len(r.id) > maxShort || !utf8.ValidString(r.id):
		return fmt.Errorf("its message-id is longer than %d bytes or not UTF-8", maxShort)
	case len(r.contentType) > maxShort:
		return fmt.Errorf("its content type is %d bytes long: at most %d are allowed", len(r.contentType), maxShort)
	}
	if len(r.headers) == 0 {
		return nil
	}
	if err := r.headers.Validate(); err != nil {
		return fmt.Errorf("its headers: %w", err)
	}
	if n := size(r.headers); n > maxHeaders {
		return fmt.Errorf("its headers take %d bytes: at most %d are allowed", n, maxHeaders)
	}
	for name := range r.headers {
		if len(name) > maxShort {
			return fmt.Errorf("header name %.40q… is longer than %d bytes", name, maxShort)
		}
	}
	return nil
}

// size is about what v takes on the wire, and never much less.
func size(v any) int {
	n := 16 // type, length and the largest of the fixed-size values
	switch v := v.(type) {
	case string:
		n += len(v)
	case []byte:
		n += len(v)
	case []any:
		for _, e := range v {
			n += size(e)
		}
	case amqp.Table:
		for k, e := range v {
			n += len(k) + size(e)
		}
	}
	return n
}
