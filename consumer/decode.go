package consumer

import (
	"bytes"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/wire"
	"waymark/schemas"
	"waymark/workflow"
)

// batch is what one transaction applies and one ack settles.
type batch struct {
	items     []item
	bytes     int   // of the bodies
	weight    int64 // of the deliveries
	lingering bool
}

// reset makes b empty, keeping its room but nothing that was in it.
func (b *batch) reset() {
	clear(b.items)
	*b = batch{items: b.items[:0]}
}

// item is one delivery, decoded or refused.
type item struct {
	tag  uint64
	size int
	workflow.Delivery
	// refused is why the body cannot be read, and raw the delivery, kept for
	// the dead letter. raw is also kept of what decoded: the store may refuse it.
	refused error
	raw     amqp.Delivery
	arrived time.Time
}

// parallelFrom is the number of messages from which it pays to wake others up.
const parallelFrom = 32

// decode appends the chunk to b, in order.
func (c *Consumer) decode(b *batch, chunk []amqp.Delivery) {
	now := c.cfg.Now().UTC().Truncate(time.Microsecond)
	start := len(b.items)
	for i := range chunk {
		b.items = append(b.items, item{tag: chunk[i].DeliveryTag, size: len(chunk[i].Body), raw: chunk[i], arrived: now})
		b.bytes += len(chunk[i].Body)
		b.weight += weigh(&chunk[i])
	}
	items := b.items[start:]
	if len(items) < parallelFrom || c.workers == 1 {
		c.decodeItems(items)
		return
	}
	var wg sync.WaitGroup
	for part := range c.workers {
		from, to := part*len(items)/c.workers, (part+1)*len(items)/c.workers
		wg.Go(func() { c.decodeItems(items[from:to]) })
	}
	wg.Wait()
}

func (c *Consumer) decodeItems(items []item) {
	for i := range items {
		it := &items[i]
		d := &it.raw
		it.MessageID, it.Redelivered = d.MessageId, d.Redelivered
		body, err := inflate(d, c.cfg.Limits)
		if err != nil {
			it.refused = err
			continue
		}
		if c.cfg.Kind == schemas.SubmissionKind {
			it.Submission, it.refused = wire.DecodeSubmission(body, c.cfg.Limits)
			if it.refused == nil && it.Submission.EventTime.IsZero() {
				it.Submission.EventTime = it.arrived
			}
			continue
		}
		it.Status, it.refused = wire.DecodeStatus(body, c.cfg.Limits)
		if it.refused != nil {
			continue
		}
		if cut := it.Status.CutLogs(c.cfg.MaxLogBytes); cut > 0 {
			c.metrics.cutLogs.Add(float64(cut))
		}
		if it.Status.EventTime.IsZero() {
			it.Status.EventTime = it.arrived
		}
		if it.MessageID == "" && carriesLogs(it.Status) {
			it.Digest = wire.Digest(d.Body)
		}
	}
}

// carriesLogs reports whether m would be doubled by being applied twice: all
// else the fold makes harmless.
func carriesLogs(m *workflow.StatusMessage) bool {
	for range m.LogChunks() {
		return true
	}
	return false
}

// inflate returns the body, decompressed where kombu's compression header says
// that it is not as it was.
func inflate(d *amqp.Delivery, limits schemas.Limits) ([]byte, error) {
	compression, _ := d.Headers["compression"].(string)
	if compression == "" {
		return d.Body, nil
	}
	refuse := func(format string, args ...any) error {
		return &schemas.Error{Reason: schemas.ReasonNotJSON, Message: fmt.Sprintf(format, args...)}
	}
	// What kombu calls gzip is zlib.
	if compression != "application/x-gzip" {
		return nil, refuse("compressed as %.60q: expected application/x-gzip, or no compression", compression)
	}
	most := limits.MaxBytes
	if most < 1 {
		most = schemas.DefaultMaxBytes
	}
	z, err := zlib.NewReader(bytes.NewReader(d.Body))
	if err != nil {
		return nil, refuse("compressed body: %v", err)
	}
	// One byte more than allowed, so that the size is found to be too large.
	body, err := io.ReadAll(io.LimitReader(z, int64(most)+1))
	if err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, refuse("compressed body: it is cut short")
		}
		return nil, refuse("compressed body: %v", err)
	}
	return body, nil
}
