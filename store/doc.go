// Package store keeps the state of runs in Postgres and answers questions
// about it.
//
// # What it guarantees
//
// [DB.Apply] gives a batch of messages its effect in one transaction: it locks
// the runs, in one order for all who do, loads what the fold of package workflow
// needs, folds, and writes rows, logs, history, the ids of the messages, the
// ledger and the change notification together. A message with an id has its
// effect once, however often it is delivered; a batch whose commit was not
// answered is recognised when it is tried again. Any number of stores may apply
// to one database at once.
//
// Readers use the views (workflow_status, job_status, …) or the methods here;
// the tables are nobody's contract.
//
// # What it does not do
//
// It knows nothing of brokers, and decides nothing: the rules are in package
// workflow. It never changes the schema but by [DB.Migrate].
package store
