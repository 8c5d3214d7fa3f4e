package store

import (
	"context"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Listen calls changed with the ids of workflows whose rows or logs have
// changed, in the order of the commits, until ctx ends (then it returns nil)
// or changed returns an error (then it returns that).
//
// Notifications that came while the connection was away are lost. So Listen
// calls changed with nil after each connect, the first included: the reader
// then reads anew whatever it shows. It connects for ever, with backoff, and
// logs why once for each outage. The first connect is tried once: its error is
// returned, so that a caller with a wrong URL is told.
func (db *DB) Listen(ctx context.Context, changed func(ctx context.Context, ids []uuid.UUID) error) error {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 100*time.Millisecond, 3*time.Second
	connected, told := false, false
	for {
		conn, err := db.dial(ctx)
		if err == nil {
			connected, told = true, false
			wait.Reset()
			err = db.listen(ctx, conn, changed)
			closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second) // the server is told good-bye though ctx has ended
			_ = conn.Close(closing)
			cancel()
			if done, ok := err.(doneError); ok && ctx.Err() == nil { // made in listen, never wrapped
				return done.error
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		if !connected {
			return translate(err)
		}
		pause := wait.NextBackOff()
		if !told {
			db.cfg.Logger.Warn("listening for changes was interrupted", "err", translate(err), "retry_in", pause)
			told = true
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// doneError carries the error of the callback through the loop.
type doneError struct{ error }

func (db *DB) listen(ctx context.Context, conn *pgx.Conn, changed func(context.Context, []uuid.UUID) error) error {
	if _, err := conn.Exec(ctx, "LISTEN "+pgx.Identifier{db.channel()}.Sanitize()); err != nil {
		return err
	}
	if err := changed(ctx, nil); err != nil {
		return doneError{err}
	}
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		ids := parseIDs(n.Payload)
		if len(ids) == 0 {
			continue // not one of ours: anybody may notify on a channel
		}
		if err := changed(ctx, ids); err != nil {
			return doneError{err}
		}
	}
}

func parseIDs(payload string) (ids []uuid.UUID) {
	for text := range strings.SplitSeq(payload, ",") {
		if id, err := uuid.Parse(text); err == nil {
			ids = append(ids, id)
		}
	}
	return ids
}
