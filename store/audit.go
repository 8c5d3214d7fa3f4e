package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// DeadLetterAction is what a person did with a dead letter.
type DeadLetterAction string

const (
	// Discarded: it is gone for good. Recorded before it goes.
	Discarded DeadLetterAction = "discard"
	// Edited: it was published again with another body. Recorded after.
	Edited DeadLetterAction = "edit"
	// Replayed: it was published again as it was. Recorded after.
	Replayed DeadLetterAction = "replay"
)

// AuditEntry is one action on one dead letter.
type AuditEntry struct {
	// At is when, to the microsecond. Default now.
	At time.Time
	// Actor is who, as user@host.
	Actor  string
	Action DeadLetterAction
	// Queue it came by.
	Queue string
	// MessageID, empty if it had none.
	MessageID string
	// Reason why it was dead, and Pointer to the value to blame, if any.
	Reason, Pointer string
	// Workflow that the body names, empty if it cannot be read.
	Workflow string
	// BodySHA256 of the body before any edit, in hexadecimal.
	BodySHA256 string
	// BodyBytes is the size of the body before any edit.
	BodyBytes int64
}

// auditChunk is how many entries one statement writes.
const auditChunk = 5000

// RecordDeadLetters adds entries to the audit of dead letters, all of them or
// none. Text that Postgres cannot hold is put right first: that a letter is odd
// must not keep it from being recorded.
func (db *DB) RecordDeadLetters(ctx context.Context, entries []AuditEntry) error {
	err := withPgx(ctx, db.reads, func(conn *pgx.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			for chunk := range slices.Chunk(entries, auditChunk) {
				if err := db.record(ctx, tx, chunk); err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("recording what was done with %d dead letters: %w", len(entries), translate(err))
	}
	return nil
}

func (db *DB) record(ctx context.Context, tx pgx.Tx, entries []AuditEntry) error {
	var at []time.Time
	var size []int64
	texts := make([][]string, 8)
	for _, e := range entries {
		if e.At.IsZero() {
			e.At = db.now()
		}
		at, size = append(at, e.At), append(size, e.BodyBytes)
		for i, s := range []string{e.Actor, string(e.Action), e.Queue, e.MessageID, e.Reason, e.Pointer, e.Workflow, e.BodySHA256} {
			texts[i] = append(texts[i], storable(s))
		}
	}
	args := []any{at, size}
	for _, column := range texts {
		args = append(args, column)
	}
	_, err := tx.Exec(ctx, `
		INSERT INTO dead_letter_actions (at, body_bytes, actor, action, queue, message_id, reason, pointer, workflow, body_sha256)
		SELECT * FROM unnest($1::timestamptz[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[])`,
		args...)
	return err
}

// storable is s without what a text of Postgres cannot hold.
func storable(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\ufffd"), "\x00", "\ufffd")
}

// DeadLetterAudit returns what was done with dead letters, the latest first: up
// to limit entries, 1 to 100000.
func (db *DB) DeadLetterAudit(ctx context.Context, limit int) ([]AuditEntry, error) {
	if limit < 1 || limit > 100_000 {
		return nil, fmt.Errorf("reading the audit of dead letters: limit %d: expected 1 to 100000", limit)
	}
	var entries []AuditEntry
	err := db.gorm.WithContext(ctx).Raw(`
		SELECT at, actor, action, queue, coalesce(message_id, '') AS message_id, reason, coalesce(pointer, '') AS pointer,
			coalesce(workflow_id, '') AS workflow, body_sha256, body_bytes
		FROM dead_letter_audit ORDER BY id DESC LIMIT ?`, limit).Scan(&entries).Error
	if err != nil {
		return nil, fmt.Errorf("reading the audit of dead letters: %w", translate(err))
	}
	for i := range entries {
		entries[i].At = entries[i].At.UTC()
	}
	return entries, nil
}
