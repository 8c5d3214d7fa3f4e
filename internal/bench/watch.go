package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"waymark/internal/broker"
)

// A publisher and a consumer wait for their servers however long that takes: it
// is what they are for. A measurement does not: what it would find says nothing,
// and whoever started it should hear why nothing moves.
const (
	// faultPatience is how long a fault may last. It is longer than connecting
	// takes on a machine that is busy.
	faultPatience = 10 * time.Second
	faultEvery    = 100 * time.Millisecond
)

// whileWell runs work with a context that ends when fault has told of one for as
// long as patience, or told of one that only a person can mend. The error is
// then that fault.
func whileWell(ctx context.Context, patience time.Duration, fault func() error, work func(context.Context) error) error {
	working, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	var watching sync.WaitGroup
	defer watching.Wait()
	done := make(chan struct{})
	defer close(done)
	watching.Go(func() {
		ticker := time.NewTicker(faultEvery)
		defer ticker.Stop()
		well := time.Now()
		for {
			select {
			case <-done:
				return
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			err := fault()
			switch {
			case err == nil:
				well = time.Now()
			case broker.Permanent(err):
				giveUp(err)
				return
			case time.Since(well) > patience:
				giveUp(fmt.Errorf("nothing moved for %s: %w", patience, err))
				return
			}
		}
	})
	err := work(working)
	if cause := context.Cause(working); err != nil && ctx.Err() == nil && cause != nil && !errors.Is(err, cause) {
		return cause
	}
	return err
}
