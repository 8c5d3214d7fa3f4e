// Package snakemake watches Snakemake 5 to 9.
//
// The user's Snakemake keeps its arguments, its profiles, and its log handlers
// and plugins. A sitecustomize module, found through PYTHONPATH, waits in each
// Python of the run for the one that loads Snakemake's logger and scheduler, and
// sends what the one is told and the other decides to the socket of the run; it
// then takes itself out of the environment, so that jobs have their own. Which
// version it is in shows there and then, at no cost, whatever started it:
// python -m, make, conda run or a shell.
//
// Where no such module is loaded (python -I, a cleared environment) the text on
// standard error is read instead, which says less and believes what jobs print;
// "mode" in engine_specific then is "text". A run that is already going is read
// from its log file in the same way, see [Attach]; its mode is "log".
package snakemake
