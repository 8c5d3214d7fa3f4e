package workflow

import (
	"context"
	"errors"

	"github.com/google/uuid"
)

// Delivery is one message as it reached the consumer, decoded, with what the
// store must know to give it its effect exactly once.
type Delivery struct {
	// MessageID is the publisher's AMQP message-id; empty for REANA's
	// messages, which carry none.
	MessageID string
	// Digest of the body. It recognises a redelivered message that has no id.
	Digest uuid.UUID
	// Redelivered is the broker's word that it may have delivered this before.
	Redelivered bool
	// Exactly one of Status and Submission is set.
	Status     *StatusMessage
	Submission *Submission
}

// WorkflowID is the run that d speaks of.
func (d *Delivery) WorkflowID() uuid.UUID {
	if d.Status != nil {
		return d.Status.WorkflowID
	}
	return d.Submission.ID()
}

// Outcome is what became of a delivery. Every delivery ends as exactly one of
// them, and the ledger counts which.
type Outcome int8

const (
	// Applied: the message changed what is known of the run.
	Applied Outcome = iota + 1
	// Duplicate: the message had been applied before, by its id or, for a
	// redelivery without one, by its digest. It changed nothing.
	Duplicate
	// Stale: the message is valid and said nothing that was not known or
	// superseded already. It changed nothing.
	Stale
	// Dead: the message lies in the dead-letter queue.
	Dead
	// Unknown: the run is not known and the store was told to accept only
	// known ones. Nothing was written or counted; the consumer dead-letters it.
	Unknown
)

// String returns the word for o, such as "applied".
func (o Outcome) String() string {
	switch o {
	case Applied:
		return "applied"
	case Duplicate:
		return "duplicate"
	case Stale:
		return "stale"
	case Dead:
		return "dead"
	case Unknown:
		return "unknown"
	default:
		return "none"
	}
}

var (
	// ErrNotFound says that no such workflow, job or message is known.
	ErrNotFound = errors.New("not found")
	// ErrAmbiguous says that a name or a shortened id fits more than one workflow.
	ErrAmbiguous = errors.New("ambiguous")
	// ErrUnknownWorkflow says that a batch holds status messages for workflows
	// that are not known, and that the store was told to accept only known
	// ones. Nothing was written.
	ErrUnknownWorkflow = errors.New("unknown workflow")
	// ErrRejected says that the data of a message cannot be stored, now or
	// later: trying again will not help. The consumer looks for the one
	// message to blame and dead-letters it.
	ErrRejected = errors.New("rejected by the database")
)

// Batch is what a consumer hands to the store at once.
type Batch struct {
	// Queue the deliveries came from; the ledger counts by it.
	Queue string
	// Consumer is the consumer's id, new with each start of the process, and
	// Number counts its batches, from 1. Tried again after an answer was lost,
	// a batch keeps its number, so that a commit that did happen is recognised.
	Consumer uuid.UUID
	Number   int64
	// Session is new with each connection to the broker. A redelivery always
	// comes in another session than the delivery it repeats.
	Session uuid.UUID
	// Settled is the number of the last batch of this session of which the broker
	// knows, and will not forget, that it is acknowledged, 0 for none.
	Settled int64
	// Deliveries in the order in which they arrived.
	Deliveries []Delivery
	// Held reports, as an error, that the deliveries are the consumer's no
	// longer, because the session is over. The store asks once it has locked the
	// runs and before it writes, if the batch holds messages that only a digest
	// recognises: another consumer that gets them then waits for the lock, and
	// sees what was written. Else a consumer that has lost its session, and
	// does not know yet, would give them their effect after the other had.
	// Nil means that they are held.
	Held func(context.Context) error
	// Dead counts deliveries that were put into the dead-letter queue and are
	// to be entered in the ledger.
	Dead int
}
