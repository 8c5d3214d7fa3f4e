// Package faults shows that nothing is lost and nothing is doubled, whatever
// fails: it holds no code but tests.
//
// A scenario publishes a known trace of messages to a real RabbitMQ, has real
// waymark processes apply it to a real PostgreSQL, and does one thing to one of
// them at one moment. Then it waits until all is quiet, and compares every row
// that the views show, every dead letter and the ledger with what the same
// trace gives when nothing fails.
//
//	go test ./internal/faults             the few that tell most
//	deploy/faults                         all of them, with a report
//	deploy/faults --chaos 5m              load and everything at once, at random
//
// Moments that no signal hits are named crash points (package crashpoint),
// where a process dies, or stands still while something is done to a server.
package faults
