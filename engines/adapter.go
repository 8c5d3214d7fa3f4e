package engines

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"

	"waymark/workflow"
)

// An Adapter knows one kind of engine: how to have it watched without the user
// installing anything into it or changing an argument, and what its events
// mean. [Supervise] does the rest, and package enginetest holds the tests that
// every adapter has to pass.
type Adapter interface {
	// Engine is the name of the engine in messages, such as "snakemake".
	Engine() string
	// Prepare is called once, before the engine is started, and says how the
	// run is watched. It may change the environment of l, put files into its
	// Temp folder, and, if the engine leaves no other way, change its
	// arguments. An error means that the engine runs unwatched, so nothing in l
	// may be half changed then.
	Prepare(ctx context.Context, l *Launch) (Watch, error)
}

// Launch is an engine about to be started.
type Launch struct {
	// Args is the engine's own command line, program first.
	Args []string
	// Env is its environment, as in os.Environ.
	Env []string
	// Dir is the folder that it will work in, absolute.
	Dir string
	// Temp is a folder for the adapter's files. Only this user can read it, and
	// it is removed when the run is over.
	Temp string
	// Socket is the path of a Unix stream socket. Each line that a process of
	// the engine writes there becomes an [Event] with the source [Hook]. Unlike
	// a descriptor it is reached through sh, make and conda.
	Socket string
	// WorkflowID names the run; see [JobID].
	WorkflowID uuid.UUID
	// Logger takes warnings for the user. Never nil.
	Logger *slog.Logger
}

// Getenv returns the value of a variable of l.Env, empty if it is not there.
func (l *Launch) Getenv(key string) string {
	value := ""
	for _, v := range l.Env {
		if k, rest, ok := strings.Cut(v, "="); ok && k == key {
			value = rest // of two the last counts, as in os/exec
		}
	}
	return value
}

// Setenv sets a variable of l.Env.
func (l *Launch) Setenv(key, value string) {
	l.Env = slices.DeleteFunc(slices.Clone(l.Env), func(v string) bool { return strings.HasPrefix(v, key+"=") })
	l.Env = append(l.Env, key+"="+value)
}

// PrependPath puts folder before the others in a variable such as PYTHONPATH.
func (l *Launch) PrependPath(key, folder string) {
	if old := l.Getenv(key); old != "" {
		folder += ":" + old
	}
	l.Setenv(key, folder)
}

// Watch is how a run is watched.
type Watch struct {
	// Reducer makes a story of the events. With nil nothing is reported: the
	// command line runs no workflow, such as a dry run.
	Reducer Reducer
	// Stderr asks for the lines of the engine's standard error as events, with
	// the source [Stderr].
	Stderr bool
	// Sources bring further events, each in a goroutine of its own.
	Sources []Source
	// Parameters describe the run in its submission. Default none.
	Parameters map[string]any
}

// A Source brings events from where no hook reaches: a file that grows, an HTTP
// receiver. It calls emit, which never blocks for long, until the engine has
// ended, which ends ctx. Then it brings what is left and returns; it is given a
// second for that. Its error is a warning for the user.
type Source func(ctx context.Context, emit func(Event)) error

// The sources of events that Supervise itself provides. Sources of an adapter
// choose names of their own.
const (
	// Hook marks lines that came over [Launch.Socket].
	Hook = "hook"
	// Stderr and Stdout mark lines of the engine's output. Stdout is never
	// captured by Supervise: it is the user's data. Recordings have it.
	Stderr = "stderr"
	Stdout = "stdout"
)

// Event is one line of what an engine, or a hook in it, says.
type Event struct {
	// At is when it arrived or, where the source knows better, happened.
	At time.Time
	// Source is where it came from: [Hook], [Stderr], or a name of the adapter's.
	Source string
	// Line has no line end, and may hold any bytes at all. It is only valid
	// during the call it is given to.
	Line []byte
}

// A Reducer makes a story of an engine's events. It is pure: no clock, no file,
// no goroutine, so that a recording tells the same story as the run did. Its
// methods are called one after the other.
//
// Events may be cut off at any point, repeated, and damaged; a Reducer keeps
// states rather than counts events, and takes what it cannot read for nothing.
type Reducer interface {
	// Apply takes one event. It reports whether the event could be read: what
	// could not is counted and shown in engine_specific.
	Apply(e Event, to Story) bool
	// End is called once, when the engine has ended and all events are in. It
	// tells what the end itself tells, and may judge how the run ended. Jobs
	// that still run need not be ended: see [Narrator.End].
	End(x Exit, to Story) Ending
}

// Story is what a Reducer tells.
type Story interface {
	// Total announces how many jobs the run has by now. Say nothing while it is
	// not known.
	Total(n int)
	// Job says what is new of a job. See [Reporter.Job]. A job that failed and
	// will be repeated has not failed: report it queued, or say nothing.
	Job(news workflow.JobReport)
	// Log appends text to the log of the run.
	Log(text string)
	// Graph replaces the graph of jobs, which the story owns from then on.
	Graph(g *Graph)
	// Detail sets a key of engine_specific to what encoding/json makes of v.
	Detail(key string, v any)
}

// Exit says how an engine's process ended.
type Exit struct {
	At time.Time
	// Code is its exit code, 128 and the number of the signal that ended it.
	Code int
	// Signal is the signal that ended it, 0 if none did.
	Signal syscall.Signal
	// Reason is Code in words, empty for 0.
	Reason string
	// Unknown is true if nobody saw how it ended, as in a recording without an
	// exit code. Code is 1 then; a Reducer that knows better is believed.
	Unknown bool
	// Stop is what this run was stopped by, nil if nobody stopped it.
	Stop error
	// Stderr is the end of its standard error, fit for a message.
	Stderr string
}

// Ending is a Reducer's judgement of a run.
type Ending struct {
	// Status is finished, failed or stopped; the zero value leaves it to the
	// exit code and the jobs. A run whose engine ended badly never finished,
	// whatever is said here, unless that is only assumed: see [Exit].
	Status workflow.Status
	// Reason is one line on why the run did not finish.
	Reason string
	// Logs is what the engine said of it, for the end of the run's log.
	Logs string
}

// JobID is the id of a job: the same whenever the workflow runs again, and
// unique across workflows. name is what the engine calls the job in every run,
// such as a rule with its wildcards; it must be unique within the run.
func JobID(workflowID uuid.UUID, engine, name string) string {
	return uuid.NewSHA1(workflowID, []byte(engine+":"+name)).String()
}
