package publisher

// Report counts what became of messages, each once. At any moment
// Accepted = Confirmed + Spooled + DroppedProgress + DroppedLogs + Unroutable +
// NotConfirmed + InFlight.
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
	// Spooled: on disk at this moment, and not known to be confirmed. While the
	// publisher is open it tries them on, so the number may fall again.
	Spooled int64
	// DroppedProgress and DroppedLogs: left out of a spool that was full, oldest
	// first, and not confirmed either. The latter carried logs and nothing else.
	// Submissions and the ends of runs are never dropped.
	DroppedProgress, DroppedLogs int64
	// InFlight: accepted, and neither settled nor on disk yet.
	InFlight int64
	// Retried counts repeated attempts, not messages.
	Retried int64
	// Invalid: refused before they were accepted.
	Invalid int64
}
