// Package workflow holds the nouns that every part of Waymark shares and the
// one rule that makes it trustworthy: the fold.
//
// A [StatusMessage] is what an engine says about a run; a [Submission] is what
// a platform says when a run is asked for. A [Run] is what is known of one
// workflow, a [Job] what is known of one of its jobs. [State.Apply] and
// [State.Submit] fold a message into them.
//
// # What the fold guarantees
//
// Applying a set of messages gives the same state whatever their order,
// however often each is applied, and however they are split into batches.
// Redelivery, reordering, two consumers on one queue and a replay from the
// dead-letter queue are therefore harmless. It is so because every field of
// the state is a join, an operation in which neither order nor repetition
// matters: the earliest time a status was claimed, the greatest total, the
// highest attempt, the latest claim by event time.
//
// No sequence of messages, however hostile, gives a negative count, more than
// 100 % done, or a status that the messages did not name.
//
// # What it does not do
//
// No I/O: the package imports the standard library and uuid only. Decoding
// bytes is the business of the wire codec, locking and writing rows that of
// the store.
package workflow
