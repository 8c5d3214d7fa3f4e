package consumer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/broker"
	"waymark/internal/crashpoint"
	"waymark/internal/wire"
)

// Headers of a dead letter. They are a contract with those who read the queue.
const (
	// HeaderReason is a word such as "schema" or "rejected".
	HeaderReason = "x-waymark-reason"
	// HeaderPointer is the JSON pointer of the value to blame, if one is.
	HeaderPointer = "x-waymark-pointer"
	// HeaderError says in words what is wrong.
	HeaderError = "x-waymark-error"
	// HeaderFirstSeen is when the message was first dead-lettered, in RFC 3339.
	HeaderFirstSeen = "x-waymark-first-seen"
	// HeaderLastSeen is when it was last dead-lettered, in RFC 3339.
	HeaderLastSeen = "x-waymark-last-seen"
	// HeaderQueue is the queue it came from, and goes back to when replayed.
	HeaderQueue = "x-waymark-queue"
	// HeaderCount says how often it has been dead-lettered.
	HeaderCount = "x-waymark-count"
	// HeaderReplay, on a message that is tried again, names the queue where
	// whoever replayed it wants to hear if it dies again: a server-named one,
	// which only its owner reads. It is not kept.
	HeaderReplay = "x-waymark-replay"
)

// replayQueues begins the names that the broker gives to queues. No other is
// told of anything: a message must not choose whom we write to.
const replayQueues = "amq.gen-"

// letter is a message to be dead-lettered, and why.
type letter struct {
	*item
	reason, pointer, message string
}

// deadLetters publishes to the dead-letter queue, over a connection of its own
// that it opens when there is something to publish. RabbitMQ under a memory or
// disk alarm stops reading from connections that publish: on the consuming one
// it would no longer hear the acks that relieve it.
type deadLetters struct {
	dial  broker.Config
	queue broker.Queue
	conn  *amqp.Connection // nil, or closed, if there is none
}

// connect makes sure of a connection.
func (d *deadLetters) connect(ctx context.Context) error {
	if d.conn != nil && !d.conn.IsClosed() {
		return nil
	}
	conn, err := broker.Dial(ctx, d.dial)
	if err != nil {
		return err
	}
	d.conn = conn
	return nil
}

// close gives the connection up, if there is one.
func (d *deadLetters) close() {
	if d.conn != nil {
		_ = d.conn.CloseDeadline(time.Now().Add(farewellTimeout))
		d.conn = nil
	}
}

// confirmTimeout is how long the broker may take to confirm dead letters.
const confirmTimeout = 30 * time.Second

// publish returns once the broker has taken responsibility for every letter.
// After an error it may be called again: letters may then be there twice.
func (d *deadLetters) publish(ctx context.Context, from string, letters []letter) (err error) {
	ctx, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	if err := d.connect(ctx); err != nil {
		return err
	}
	// The library's calls that have no context end with the connection.
	conn := d.conn
	defer context.AfterFunc(ctx, func() { _ = conn.CloseDeadline(time.Now().Add(farewellTimeout)) })()
	defer func() {
		if err != nil {
			d.close() // a connection that may be blocked is of no more use
		}
	}()
	for again := false; ; again = true {
		returned, err := d.publishOnce(ctx, from, letters)
		if err != nil || !returned {
			return err
		}
		if again {
			return fmt.Errorf("queue %q takes no messages although it was declared", d.queue.Name)
		}
		// Somebody deleted the queue: the broker has confirmed, and thrown away.
		if err := broker.Declare(d.conn, d.queue); err != nil {
			return err
		}
	}
}

// publishOnce publishes every letter once and reports whether any came back.
// It does so on a channel of its own: confirms and returns belong to a channel,
// and dead letters are rare.
func (d *deadLetters) publishOnce(ctx context.Context, from string, letters []letter) (returned bool, err error) {
	ch, err := d.conn.Channel()
	if err != nil {
		return false, broker.Explain(err)
	}
	defer ch.Close()
	if err := ch.Confirm(false); err != nil {
		return false, broker.Explain(err)
	}
	closed := ch.NotifyClose(make(chan *amqp.Error, 1))
	// A Return comes before its confirm, and with room for all none waits.
	returns := ch.NotifyReturn(make(chan amqp.Return, len(letters)))
	confirms := make([]*amqp.DeferredConfirmation, len(letters))
	var notices []notice
	for i := range letters {
		p := letters[i].publishing(from, d.conn.Config.FrameSize)
		if to, _ := letters[i].raw.Headers[HeaderReplay].(string); strings.HasPrefix(to, replayQueues) && len(to) <= 255 {
			notices = append(notices, notice{to, p})
		}
		confirms[i], err = ch.PublishWithDeferredConfirmWithContext(ctx, "", d.queue.Name, true, false, p)
		if err != nil {
			return false, broker.Explain(err)
		}
	}
	crashpoint.Hit("consumer.dead-letter-published")
	for _, confirm := range confirms {
		ok, err := confirm.WaitContext(ctx)
		if err != nil {
			return false, fmt.Errorf("waiting for the confirm: %w", err)
		}
		if !ok {
			// The library calls refused what a channel that ends leaves open.
			select {
			case reason := <-closed:
				if reason != nil {
					return false, broker.Explain(reason)
				}
			default:
			}
			return false, errors.New("the broker refused the message")
		}
	}
	select {
	case _, returned = <-returns:
	default:
	}
	for i := 0; i < len(notices) && !returned; i++ {
		// Nothing hangs on it: whoever waits in vain looks into the queue.
		if notices[i].publish(ctx, ch) != nil {
			break
		}
	}
	return returned, nil
}

// notice tells whoever replayed a letter that it is dead again.
type notice struct {
	to     string
	letter amqp.Publishing
}

func (n *notice) publish(ctx context.Context, ch *amqp.Channel) error {
	headers := amqp.Table{}
	for _, name := range []string{HeaderReason, HeaderPointer, HeaderError} {
		headers[name] = n.letter.Headers[name]
	}
	return ch.PublishWithContext(ctx, "", n.to, false, false, amqp.Publishing{MessageId: n.letter.MessageId, Headers: headers})
}

// letterSpace is the namespace of the ids of dead letters that had none.
var letterSpace = uuid.NewSHA1(uuid.NameSpaceURL, []byte("waymark:dead-letter"))

// publishing is the message as it was, with the reason in its headers. frame
// is the greatest size of a frame, in bytes.
func (l *letter) publishing(from string, frame int) amqp.Publishing {
	d := &l.raw
	headers := fitting(d.Headers, min(frame-ownRoom, headerRoom))
	problem := short(l.message)
	if dropped := len(d.Headers) - len(headers); dropped > 0 {
		problem += fmt.Sprintf(" (too large to keep beside this: %d of its headers)", dropped)
	}
	delete(headers, HeaderReplay)
	now := l.arrived.Format(time.RFC3339Nano)
	count, _ := headers[HeaderCount].(int64)
	headers[HeaderCount] = min(max(count, 0), math.MaxInt64-1) + 1
	if first, ok := headers[HeaderFirstSeen].(string); !ok || first == "" {
		headers[HeaderFirstSeen] = now
	}
	headers[HeaderLastSeen] = now
	headers[HeaderReason] = l.reason
	headers[HeaderPointer] = short(l.pointer)
	headers[HeaderError] = problem
	headers[HeaderQueue] = from
	id := d.MessageId
	if id == "" {
		// The same for a message that is dead-lettered twice because its ack was
		// lost: whoever looks can tell, and a replay counts it once.
		digest := wire.Digest(d.Body)
		id = uuid.NewSHA1(letterSpace, digest[:]).String()
	}
	return amqp.Publishing{
		Headers: headers, Body: d.Body, MessageId: id, DeliveryMode: amqp.Persistent,
		ContentType: d.ContentType, ContentEncoding: d.ContentEncoding, CorrelationId: d.CorrelationId, ReplyTo: d.ReplyTo,
		Timestamp: d.Timestamp, Type: d.Type, AppId: d.AppId, Priority: d.Priority,
		// Not Expiration: a dead letter stays until somebody has looked at it. Not
		// UserId: the broker checks it against our own login.
	}
}

// headerRoom is what a message may have of headers to be published again: the
// publisher takes 64 KiB with the properties.
const headerRoom = 60 << 10

// ownRoom is what a frame must hold besides the headers of others: ours, and
// the properties, each of at most 255 bytes.
const ownRoom = 8 << 10

// fitting returns the headers that have room in so many bytes, the small ones
// first. A message's headers may fill its frame to the last byte. With ours
// beside them they would not fit, and the broker would end the session, and
// the next one, at the same message.
func fitting(headers amqp.Table, room int) amqp.Table {
	names := slices.SortedFunc(maps.Keys(headers), func(a, b string) int {
		return cmp.Or(cmp.Compare(fieldSize(headers[a]), fieldSize(headers[b])), cmp.Compare(a, b))
	})
	kept := amqp.Table{}
	for _, name := range names {
		if room -= len(name) + fieldSize(headers[name]); room < 0 {
			break
		}
		kept[name] = headers[name]
	}
	return kept
}

// fieldSize is about the number of bytes of a value on the wire, and never less.
func fieldSize(v any) int {
	size := 16 // the length of its name, its type, and a number or a length
	switch v := v.(type) {
	case string:
		size += len(v)
	case []byte:
		size += len(v)
	case []any:
		for _, element := range v {
			size += fieldSize(element)
		}
	case amqp.Table:
		for name, value := range v {
			size += len(name) + fieldSize(value)
		}
	}
	return size
}

// short keeps headers within what a frame carries.
func short(s string) string {
	const most = 1000
	if len(s) <= most {
		return s
	}
	cut := s[:most]
	for !utf8.ValidString(cut) {
		cut = cut[:len(cut)-1]
	}
	return strings.TrimSpace(cut) + "…"
}
