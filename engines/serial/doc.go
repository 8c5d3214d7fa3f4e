// Package serial is Waymark's own engine for REANA's serial workflows: steps
// that run one after the other, each a list of shell commands.
//
// [Load] reads and checks a reana.yaml; [Workflow.Run] runs it on this machine
// and reports it as the other engines' runs are reported.
//
// # What it guarantees
//
// One job per command, in order; the run stops at the first that fails.
// Commands are substituted as REANA does it, to the byte, before anything runs.
// Reporting never slows or fails the run. What a command has started ends with
// it, and all ends if this process is killed. Two runs never share a workspace.
// A run that was interrupted can be resumed: what ended well is not repeated.
//
// # What it does not do
//
// It uses no containers: the environment of a step is recorded, and the
// commands run on this machine with this user's rights, like those of a
// Makefile. Resource requests other than kubernetes_job_timeout have no effect.
// A process that leaves its process group (setsid) is out of reach.
package serial
