// Package engines holds what the adapters of all workflow engines share: the
// way from "this job ended" to messages on a queue.
//
// A [Reporter] is told what happens and publishes it through a [Publisher]. It
// guarantees that reporting never harms the run it reports: no method that an
// engine calls while it runs waits for the broker, memory is bounded whatever
// the broker does, and only [Reporter.Finish], when the run is over, waits, for
// a time that the caller chooses.
//
// What an observer sees is in order: the submission, then the news of jobs as
// deltas, then one terminal message with the whole picture, always last.
//
// The package runs no engine and knows no broker. Each engine has a package
// below this one; *publisher.Publisher is the Publisher of a real program.
package engines
