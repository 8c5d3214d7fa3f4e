// Package nextflow watches Nextflow by what it posts with -with-weblog, and reads
// of its trace file (-with-trace) which tasks came from the cache: those it does
// not post.
//
// [Adapter] does so for a run that Waymark starts. [Receiver] takes the posts of
// any number of runs that nobody started through Waymark.
//
// It is written after the documentation and the source of Nextflow and of its
// nf-weblog plugin, and has not been tried with the program itself.
package nextflow
