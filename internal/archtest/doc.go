// Package archtest holds one test: that packages import each other only as the
// architecture allows. Arrows go down, and the hops of a message, from engine to
// page, never import each other; whoever needs a sideways import needs another
// design. The table in the test is the architecture.
package archtest
