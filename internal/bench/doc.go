// Package bench measures Waymark on real servers, for operators who want to know
// what their machine carries and for developers who change the hot paths.
//
// # What a number here means
//
// A wall-clock rate of a shared machine drifts by tens of percent within an
// hour. So whatever is to be compared runs in alternation, run by run, and the
// ratios are taken pair by pair; every result is the median of several runs,
// with the least and the greatest beside it. Each result carries the machine,
// the versions and the settings it was measured with: a rate without them says
// nothing.
//
// The servers are warm when the clock starts: every measurement ignores its
// first messages, which pay for connections, plans and empty caches.
//
// # What it does to the servers
//
// Each benchmark works in queues waymark-bench-<random> and a schema
// waymark_bench_<random>, which did not exist before, and removes them at its
// end, also when its context is cancelled. It reads the server's statistics and
// changes no setting. Everything else on the servers is left alone, though the
// load will be felt: run it where that does not matter.
//
// What it makes it writes down first, if it is given a folder (Config.Journals).
// Of a benchmark that was killed, or whose server went away, the next one with
// the same folder and the same servers removes what is left. A file there is
// locked for as long as its benchmark lives.
//
// A server that is away for ten seconds ends a benchmark: publisher and consumer
// would wait for it, and the number would be of the waiting.
package bench
