// Package broker holds what both ends of a queue must agree on: how queues are
// declared, how RabbitMQ is reached, what its refusals mean, and how long to
// wait before trying again.
//
// [Dial] and [Declare] return errors of one line that say what is wrong and
// what to do; [Permanent] tells those that a person must mend from those that
// time may. No error, and nothing [Redact] returns, ever holds a password.
//
// The package keeps no connection alive: a session (one connection and the
// channels on it) that has a fault is over, and its owner begins a new one
// after a [NewBackoff] delay. The client library's own recovery is not used,
// because it renumbers deliveries and confirms under the feet of its user.
package broker
