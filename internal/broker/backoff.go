package broker

import (
	"time"

	"github.com/cenkalti/backoff/v5"
)

// NewBackoff returns the delays between attempts to reach the broker: about
// 100 ms at first, doubling up to about 3 s, each varied by half so that
// many clients of a restarted broker do not return at the same moment. The
// owner calls Reset once a session has proved to work. Not for concurrent use.
func NewBackoff() *backoff.ExponentialBackOff {
	b := &backoff.ExponentialBackOff{
		InitialInterval:     100 * time.Millisecond,
		RandomizationFactor: 0.5,
		Multiplier:          2,
		MaxInterval:         3 * time.Second,
	}
	b.Reset()
	return b
}
