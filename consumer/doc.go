// Package consumer takes messages from a queue and gives each its effect on
// the store, or puts it into the dead-letter queue with the reason.
//
// # What it guarantees
//
// Nothing is acknowledged before its effect is committed, or before the broker
// has confirmed its dead letter. A delivery that was not acknowledged comes
// again, and the store recognises what it has seen; so every message has its
// effect once, whatever fails in between and however many consumers share the
// queue. A database that is away pauses consumption: the messages wait in the
// broker, at most a prefetch of them here.
//
// # How it works
//
// A session is one connection, one channel, one consume; any fault ends it,
// and after a pause a new one begins. The client library's own recovery is not
// used: it renumbers deliveries, and an ack of an old one then takes another.
//
// Within a session one goroutine gathers deliveries and decodes them, several
// at a time, while another applies the batch before. A batch is what arrived
// while the last transaction ran, so batches are small when there is little to
// do and large when there is much. One ack settles a whole batch.
//
// A batch that the database refuses for its data is split until the one
// message to blame is alone.
//
// # What it does not do
//
// It does not know SQL, and it decides nothing about runs: those are the
// businesses of the store and of package workflow.
package consumer
