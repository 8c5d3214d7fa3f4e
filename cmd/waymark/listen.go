package main

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"waymark/store"
)

// errDone ends listen from within.
var errDone = errors.New("done")

// listen calls changed with the workflows that have changed, until ctx ends or
// changed returns an error; errDone is a clean end. all means that anything may
// have changed. While changed is at work, further changes are gathered: however
// slow the reader, the next call has the news of all of them.
func listen(ctx context.Context, db *store.DB, changed func(ctx context.Context, all bool, ids []uuid.UUID) error) error {
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
		for {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-wake:
			}
			mu.Lock()
			everything, some := all, slices.Collect(maps.Keys(ids))
			all = false
			clear(ids)
			mu.Unlock()
			if err := changed(ctx, everything, some); err != nil {
				return err
			}
		}
	})
	if err := g.Wait(); !errors.Is(err, errDone) {
		return err
	}
	return nil
}
