package workflow

import "math"

// The most characters that messages may hold in a field. The schemas say the
// same, and more is refused; whoever publishes cuts what engines make up, rather
// than lose the message.
const (
	MaxJobID   = 256
	MaxJobName = 1024
	MaxJobPath = 4096
	MaxName    = 255 // of a run, and of its owner
	MaxEngine  = 64
)

// The greatest numbers that messages may hold.
const (
	MaxAttempt = 1_000_000 // of a run, and of a job
	MaxTotal   = math.MaxInt32
)
