package publisher

import "errors"

var (
	// ErrClosed says that the publisher was closed before the message was
	// accepted: it was not sent.
	ErrClosed = errors.New("publisher is closed")
	// ErrNotConfirmed says that waiting for the broker's confirm was given up.
	// The text says whether the message was never sent or may have been
	// delivered, and what was last wrong with the connection. The error also
	// wraps the cause of giving up, such as context.DeadlineExceeded, and that
	// last fault.
	ErrNotConfirmed = errors.New("not confirmed")
	// ErrSpooled says that the message is not confirmed yet, and is kept on
	// disk: see [Spool]. It need not be sent again. Whoever drains the spool
	// delivers it. The error also wraps why waiting ended.
	ErrSpooled = errors.New("kept in the spool")
	// ErrUnroutable says that the broker took the message and had no queue to
	// put it in, even after the queues were declared again. It is lost.
	ErrUnroutable = errors.New("unroutable")
)

// InvalidError says that a message was refused, nearly always before anything
// was sent; the broker may also have refused it as too large for its own limit.
// Trying again with the same message cannot help.
type InvalidError struct {
	// Message says what was refused, such as "status message".
	Message string
	// Err is what is wrong with it.
	Err error
}

// Error names the message and what is wrong with it.
func (e *InvalidError) Error() string { return "invalid " + e.Message + ": " + e.Err.Error() }

// Unwrap returns what is wrong with the message.
func (e *InvalidError) Unwrap() error { return e.Err }
