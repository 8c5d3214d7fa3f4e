package spool

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// MaxRecord is the largest record, in bytes: its body, its properties and some
// twenty bytes more. A length beyond it in a file can only be damage.
const MaxRecord = 32 << 20

// Class says what a message is worth when there is no room for all.
type Class string

const (
	// Submission registers a run. Never dropped.
	Submission Class = "submission"
	// Terminal tells how a run ended. Never dropped.
	Terminal Class = "terminal"
	// Progress of a run and its jobs. Dropped oldest first.
	Progress Class = "progress"
	// Logs, and nothing else. Dropped oldest first.
	Logs Class = "logs"
)

// Keep reports whether messages of the class are never dropped. An unknown
// class, of another version of this package, is kept.
func (c Class) Keep() bool { return c != Progress && c != Logs }

// Record is a message as it is kept on disk.
type Record struct {
	Queue       string    `json:"queue"`
	MessageID   string    `json:"id"`
	ContentType string    `json:"content_type,omitempty"`
	Class       Class     `json:"class"`
	Priority    uint8     `json:"priority,omitempty"`
	Timestamp   time.Time `json:"time"`
	Body        []byte    `json:"-"`
}

// Origin says where a segment comes from and where its messages belong.
type Origin struct {
	// Broker they are for, without user and password: "host:5672/vhost".
	Broker string `json:"broker"`
	// Created is when the segment was begun.
	Created time.Time `json:"created"`
	// PID of the process that wrote it, for people who look.
	PID int `json:"pid"`
}

// What a payload is.
const (
	kindOrigin  = 'O'
	kindMessage = 'M'
	kindDone    = 'D'
)

// appendMessage appends the payload of r to b.
func appendMessage(b []byte, r *Record) ([]byte, error) {
	properties, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encoding the properties of message %q: %w", r.MessageID, err)
	}
	if n := 1 + 4 + len(properties) + len(r.Body); n > MaxRecord {
		return nil, fmt.Errorf("message %q takes %d bytes: at most %d are allowed", r.MessageID, n, MaxRecord)
	}
	b = append(b, kindMessage)
	b = binary.BigEndian.AppendUint32(b, uint32(len(properties)))
	b = append(b, properties...)
	return append(b, r.Body...), nil
}

var errPayload = errors.New("a record cannot be read although its checksum is right")

// parseMessage reads what appendMessage wrote. The body is part of payload.
func parseMessage(payload []byte) (Record, error) {
	if len(payload) < 5 || payload[0] != kindMessage {
		return Record{}, errPayload
	}
	n := binary.BigEndian.Uint32(payload[1:])
	rest := payload[5:]
	if uint64(n) > uint64(len(rest)) {
		return Record{}, errPayload
	}
	var r Record
	if err := json.Unmarshal(rest[:n], &r); err != nil {
		return Record{}, fmt.Errorf("%w: %w", errPayload, err)
	}
	r.Body = rest[n:]
	return r, nil
}

// appendDone appends the payload that says that the message at offset is done.
func appendDone(b []byte, offset int64) []byte {
	return binary.BigEndian.AppendUint64(append(b, kindDone), uint64(offset))
}

func parseDone(payload []byte) (offset int64, err error) {
	if len(payload) != 9 || payload[0] != kindDone {
		return 0, errPayload
	}
	return int64(binary.BigEndian.Uint64(payload[1:])), nil
}
