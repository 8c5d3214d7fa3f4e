package engines

import (
	"context"
	"errors"

	"waymark/workflow"
)

var (
	// ErrInvalid is what a Publisher returns for a message that nobody would
	// take. Publishing it again cannot help: it has to say less.
	ErrInvalid = errors.New("refused")
	// ErrSpooled is what a Publisher returns for a message that the broker has not
	// confirmed, and that is on disk instead, to be delivered later. It need not be
	// published again.
	ErrSpooled = errors.New("kept on disk until the broker is back")
)

// Publisher takes messages to where they are consumed. Each method returns nil
// once the message is safe there (confirmed, not merely sent), [ErrInvalid] if it
// never can be, and must return soon after ctx ends, with [ErrSpooled] if the
// message is safe on disk. A method is called by one goroutine at a time, and
// must not change what it is given.
type Publisher interface {
	// Status publishes a jobs-status message.
	Status(ctx context.Context, m *workflow.StatusMessage) error
	// Submission publishes a workflow-submission message.
	Submission(ctx context.Context, s *workflow.Submission) error
}

// Spooler is a Publisher that may be able to keep messages on disk.
type Spooler interface {
	Publisher
	// Spools reports whether it does. Whoever has a message that must not be
	// lost then hands it over soon, rather than wait for the broker first.
	Spools() bool
}
