package main

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"waymark/store"
	"waymark/workflow"
)

// errDone ends listen from within.
var errDone = errors.New("done")

// tryAgain is trouble with the database in the middle of listening: the reader
// reads everything anew a little later.
type tryAgain struct{ error }

func (e tryAgain) Unwrap() error { return e.error }

// orTryAgain marks an error of the database as one that may pass. What the
// database does not know will not come by asking again.
func orTryAgain(err error) error {
	if err == nil || errors.Is(err, workflow.ErrNotFound) || errors.Is(err, workflow.ErrAmbiguous) {
		return err
	}
	return tryAgain{err}
}

// listen calls changed with the workflows that have changed, until ctx ends or
// changed returns an error; errDone is a clean end. all means that anything may
// have changed. While changed is at work, further changes are gathered: however
// slow the reader, the next call has the news of all of them.
//
// The database may go away and come back: that is logged, and waited for.
func listen(ctx context.Context, db *store.DB, logger *slog.Logger, changed func(ctx context.Context, all bool, ids []uuid.UUID) error) error {
	var mu sync.Mutex
	all, ids := false, make(map[uuid.UUID]struct{})
	wake := make(chan struct{}, 1)

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return db.Listen(ctx, func(_ context.Context, news []uuid.UUID) error {
			mu.Lock()
			all = all || news == nil
			for _, id := range news {
				ids[id] = struct{}{}
			}
			mu.Unlock()
			select {
			case wake <- struct{}{}:
			default:
			}
			return nil
		})
	})
	g.Go(func() error {
		var again <-chan time.Time
		for {
			retry := false
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-wake:
			case <-again:
				retry = true
			}
			mu.Lock()
			everything, some := all || retry || again != nil, slices.Collect(maps.Keys(ids))
			all = false
			clear(ids)
			mu.Unlock()
			err := changed(ctx, everything, some)
			trouble, passing := errors.AsType[tryAgain](err)
			switch {
			case passing && ctx.Err() == nil:
				if again == nil {
					logger.Warn("the database does not answer; waiting for it", "err", trouble.error)
				}
				again = time.After(time.Second)
			case err != nil:
				return err
			default:
				again = nil
			}
		}
	})
	if err := g.Wait(); !errors.Is(err, errDone) {
		return err
	}
	return nil
}
