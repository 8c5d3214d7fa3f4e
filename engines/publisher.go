package engines

import (
	"context"

	"waymark/workflow"
)

// Publisher takes messages to where they are consumed. Each method returns nil
// once the message is safe there (confirmed, not merely sent), and must return
// soon after ctx ends. A method is called by one goroutine at a time, and must
// not change what it is given.
type Publisher interface {
	// Status publishes a jobs-status message.
	Status(ctx context.Context, m *workflow.StatusMessage) error
	// Submission publishes a workflow-submission message.
	Submission(ctx context.Context, s *workflow.Submission) error
}
