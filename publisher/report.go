package publisher

// Report counts what became of messages. At any moment
// Accepted = Confirmed + Unroutable + NotConfirmed + InFlight.
type Report struct {
	// Accepted for sending: valid, and there was room in the window.
	Accepted int64
	// Confirmed by the broker, and in a queue.
	Confirmed int64
	// Unroutable: taken by the broker, which had no queue for them.
	Unroutable int64
	// NotConfirmed: given up by their caller or by Close, so that they may or
	// may not have been delivered; or refused for good by the broker.
	NotConfirmed int64
	// InFlight: accepted, and not settled yet.
	InFlight int64
	// Retried counts repeated attempts, not messages.
	Retried int64
	// Invalid: refused before they were accepted.
	Invalid int64
}
