package consumer

import (
	"bytes"
	"math"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/schemas"
)

// FuzzLetter makes dead letters of deliveries with any body, properties and
// headers, again and again as replays do: what is published can be sent over
// AMQP in a frame, keeps body and id, says why, and counts.
func FuzzLetter(f *testing.F) {
	f.Add([]byte(`{"status": 99}`), "id", "schema", "/status", "expected", "x-custom", []byte("v"), 1, int64(3), "2026-01-01T00:00:00Z")
	f.Add([]byte("\x00\xff"), "", "not-json", "", "\xff\x00", HeaderPointer, []byte("nonsense"), 10, int64(-9), "when")
	f.Add([]byte("[[["), "i", "too-deep", "é/", "", HeaderQueue, []byte("ten bytes."), 7000, int64(math.MaxInt64), "")
	f.Add([]byte("x\x9c"), "a", "too-large", "/", "e", "compression", []byte("application/x-gzip"), 1, int64(0), "")
	c := &Consumer{cfg: Config{Limits: schemas.Limits{MaxBytes: 1 << 16}}.withDefaults(), metrics: newMetrics(nil, "q", newIntake(1<<20, 10)), workers: 1}
	f.Fuzz(func(t *testing.T, body []byte, id, reason, pointer, problem, header string, piece []byte, times int, count int64, first string) {
		if len(id) > 255 || len(header) > 254 || len(reason) > 255 || header == HeaderCount || header == HeaderFirstSeen {
			return // AMQP has no such id or name; a reason is a word of ours; the others are set below
		}
		// Long values need no long input.
		value := bytes.Repeat(piece, min(max(times, 0), 100_000/max(1, len(piece))))
		problem, pointer = strings.Repeat(problem, min(max(times, 0), 3000/max(1, len(problem)))), strings.Repeat(pointer, min(max(times, 0), 3000/max(1, len(pointer))))
		d := amqp.Delivery{Body: body, MessageId: id, Headers: amqp.Table{
			header: string(value), header + "'": amqp.Table{"in": []any{value, int64(1), nil}}, HeaderCount: count, HeaderFirstSeen: first,
		}}
		var b batch
		c.decode(&b, []amqp.Delivery{d})
		it := &b.items[0]
		it.arrived = time.Unix(0, 0).UTC()
		for round := range int64(3) {
			l := letter{item: it, reason: reason, pointer: pointer, message: problem}
			const frame = 128 << 10
			p := l.publishing("queue", frame)
			if err := p.Headers.Validate(); err != nil {
				t.Fatalf("the headers cannot be sent: %v", err)
			}
			if size := fieldSize(p.Headers); size > frame-1024 {
				t.Fatalf("the headers take %d bytes, which no frame of %d holds", size, frame)
			}
			if !bytes.Equal(p.Body, body) || (id != "" && p.MessageId != id) || p.MessageId == "" {
				t.Fatalf("body or id have changed: id %q of %q", p.MessageId, id)
			}
			if p.Headers[HeaderReason] != reason || p.Headers[HeaderQueue] != "queue" {
				t.Fatalf("the reason or the queue is missing: %v", p.Headers)
			}
			if got, ok := p.Headers[HeaderCount].(int64); !ok || got < 1 || (round > 0 && count >= 0 && count < math.MaxInt64-3 && got != count+round+1) {
				t.Fatalf("round %d counts %v, after %d", round, p.Headers[HeaderCount], count)
			}
			if seen, ok := p.Headers[HeaderFirstSeen].(string); !ok || seen == "" || (round == 0 && first != "" && seen != first && len(first) < 1000) {
				t.Fatalf("first seen is %q, want the first time, %q", p.Headers[HeaderFirstSeen], first)
			}
			it.raw.Headers, it.raw.MessageId = p.Headers, p.MessageId
			id = p.MessageId
		}
	})
}
