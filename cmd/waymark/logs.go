package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"waymark/store"
	"waymark/workflow"
)

func (a *app) logsCommand() *cobra.Command {
	var filter workflow.LogFilter
	var follow, raw bool
	var tail int
	var job, owner string
	cmd := &cobra.Command{
		Use:   "logs WORKFLOW",
		Short: "Show the log of a workflow or of its jobs",
		Long: `Show the log of a workflow, of one of its jobs, or of all together. With
--all-jobs a line says who wrote what follows; of a run that has begun anew a
line says which attempt.

--job takes the id of a job, the beginning of one (at least four characters), or
a name, with its path or without. A name that several jobs have, such as that of
a step with two commands, is refused, with a list of them. What a job wrote in
all attempts is one log.

Logs are what programs wrote, and may hold anything. Characters that control a
terminal are shown as escapes, unless --raw is given. Of a run that wrote more
than consumer.max_run_log_bytes the beginning and the end are there, and a line
says how much was cut between them.

With --follow JSON comes as one object a line.

` + workflowHelp,
		Example: `  waymark logs fit
  waymark logs fit --job gendata
  waymark logs fit --all-jobs --tail 20
  waymark logs fit --follow`,
		Args: func(cmd *cobra.Command, words []string) error {
			if len(words) == 2 {
				return usage("unexpected argument %q after %s: a job is given with --job", words[1], workflowArgument)
			}
			return args(1, 1, workflowArgument)(cmd, words)
		},
		RunE: func(cmd *cobra.Command, refs []string) error {
			if tail < 0 || tail > maxTail {
				return usage("--tail: expected 1 to %d lines, found %d", maxTail, tail)
			}
			if job != "" && filter.AllJobs {
				return usage("--job and --all-jobs: give one of them")
			}
			o := a.output(cmd)
			if follow && o.format == formatJSON {
				o.format = formatJSONL // what has no end yet is no document
			}
			return a.withStore(cmd, func(ctx context.Context, c *config, db *store.DB) error {
				id, err := findRun(ctx, db, refs[0], owner)
				if err != nil {
					return err
				}
				if job != "" {
					if filter.JobID, err = a.findJob(ctx, db, id, job); err != nil {
						return err
					}
				}
				p := newLogPrinter(o, raw, filter.AllJobs)
				p.jobs = func(ids []string) ([]workflow.Job, error) {
					page, err := db.Jobs(ctx, id, workflow.JobFilter{IDs: ids, Limit: len(ids)})
					return page.Items, err
				}
				switch {
				case follow:
					err = p.follow(ctx, db, a.logger(c, true), id, filter, tail)
				case tail > 0:
					err = p.tail(ctx, db, id, filter, tail)
				default:
					err = p.all(ctx, db, id, filter)
				}
				if err == nil && o.format == formatTable && !p.began {
					fmt.Fprintln(a.stderr, "nothing was logged")
				}
				return err
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&job, "job", "", "the log of one `job`: its id, the beginning of it, or its name")
	f.BoolVar(&filter.AllJobs, "all-jobs", false, "the log of the run and of all its jobs, in the order of time")
	f.IntVar(&tail, "tail", 0, "only the last so many `lines`")
	f.BoolVar(&follow, "follow", false, "go on with what comes, until the run ends")
	f.BoolVar(&raw, "raw", false, "show the bytes as they are")
	addOwnerFlag(f, &owner)
	addOutputFlags(cmd, formatTable, formatJSON, formatJSONL)
	addConfigFlags(cmd, "database", "log")
	return cmd
}

// findJob returns the id of the job that a person means. Of a name that several
// have, all of them are shown on standard error.
func (a *app) findJob(ctx context.Context, db *store.DB, id uuid.UUID, ref string) (string, error) {
	job, err := db.FindJob(ctx, id, ref)
	if several, ok := errors.AsType[*store.AmbiguousJobError](err); ok {
		heads := columns("JOB", "STATUS", "STARTED", "~NAME", "~COMMAND")
		named := slices.ContainsFunc(several.Jobs, func(j workflow.Job) bool { return jobName(&j) != ref })
		rows := make([][]string, len(several.Jobs))
		for i := range several.Jobs {
			j := &several.Jobs[i]
			rows[i] = []string{harmless(j.ID), j.Status.String(), clock(j.StartedAt), clip(harmless(jobName(j)), 40), clip(harmless(j.Command), 60)}
			if !named { // all have the name that was given
				rows[i] = slices.Delete(rows[i], 3, 4)
			}
		}
		if !named {
			heads = slices.Delete(heads, 3, 4)
		}
		o := &output{w: a.stderr, width: terminalWidth(a.stderr)}
		if err := o.table(heads, rows, true); err != nil {
			return "", err
		}
		fits := count(len(several.Jobs), "job")
		if several.More {
			fits = "these jobs and others"
		}
		return "", fmt.Errorf("job %q: %w: it fits %s; give --job an id, or the beginning of one", ref, workflow.ErrAmbiguous, fits)
	}
	if err != nil {
		return "", fmt.Errorf("%w; see waymark jobs %s", err, id)
	}
	return job, nil
}

const (
	maxTail = 10_000
	// logRows is how many chunks are read at once, of which the store takes
	// fewer where they are large. Each page of all jobs' logs is sorted anew.
	logRows = 50_000
)

// logPrinter writes log chunks in the form that was asked for.
type logPrinter struct {
	o     *output       // writes to w
	w     *bufio.Writer // logs have very many lines
	raw   bool
	heads bool // a line says whose log follows
	// jobs looks up jobs by their ids.
	jobs  func(ids []string) ([]workflow.Job, error)
	names map[string]string // of jobs, by id
	last  author            // who wrote last
	began bool
	wrote int
}

// author is who wrote a piece of log.
type author struct {
	job     string // its id, empty for the run itself
	attempt int    // of the run
}

func newLogPrinter(o *output, raw, heads bool) *logPrinter {
	buffered := *o
	w := bufio.NewWriterSize(o.w, 64<<10)
	buffered.w = w
	return &logPrinter{o: &buffered, w: w, raw: raw, heads: heads, names: make(map[string]string)}
}

// all writes the whole log.
func (p *logPrinter) all(ctx context.Context, db *store.DB, id uuid.UUID, filter workflow.LogFilter) error {
	if err := eachLog(ctx, db, id, filter, p.writeAll); err != nil {
		_ = p.w.Flush() // what was read is shown all the same
		return err
	}
	return p.end()
}

// tail writes the last lines.
func (p *logPrinter) tail(ctx context.Context, db *store.DB, id uuid.UUID, filter workflow.LogFilter, lines int) error {
	if err := eachOfTail(ctx, db, id, filter, lines, p.writeAll); err != nil {
		_ = p.w.Flush()
		return err
	}
	return p.end()
}

// eachLog calls do with the chunks that filter chooses, a page at a time.
func eachLog(ctx context.Context, db *store.DB, id uuid.UUID, filter workflow.LogFilter, do func([]workflow.LogEntry) error) error {
	filter.Limit = logRows
	for {
		page, err := db.Logs(ctx, id, filter)
		if err != nil {
			return err
		}
		if err := do(page.Items); err != nil {
			return err
		}
		if filter.Cursor = page.Next; page.Next == "" {
			return nil
		}
	}
}

// eachOfTail calls do with the chunks of the last lines, the first of them cut
// to its own last, a page at a time. It holds one page of them in memory: it goes
// back to where they begin, and from there to the end.
func eachOfTail(ctx context.Context, db *store.DB, id uuid.UUID, filter workflow.LogFilter, lines int, do func([]workflow.LogEntry) error) error {
	back := filter
	for {
		back.Tail = lines // a chunk has a line at least, so as many chunks are enough
		page, err := db.Logs(ctx, id, back)
		if err != nil {
			return err
		}
		chunks, missing := cutToTail(page.Items, lines)
		if missing > 0 && page.Next != "" {
			lines, back.Cursor = missing, page.Next
			continue
		}
		if err := do(chunks); err != nil {
			return err
		}
		if back.Cursor == "" {
			return nil // it was the last page
		}
		if n := len(page.Items); n > 0 { // else it was deleted meanwhile, and all that is left is the tail
			filter.Cursor = store.LogCursor(page.Items[n-1])
		}
		return eachLog(ctx, db, id, filter, do)
	}
}

// cutToTail cuts chunks to their last lines, and says how many lines more it
// would take.
func cutToTail(chunks []workflow.LogEntry, lines int) (tail []workflow.LogEntry, missing int) {
	for i, chunk := range slices.Backward(chunks) {
		text := wholeLines(chunk.Text)
		n := strings.Count(text, "\n")
		if n < lines {
			lines -= n
			continue
		}
		all := strings.SplitAfter(text, "\n")
		chunks[i].Text = strings.Join(all[n-lines:], "")
		return chunks[i:], 0
	}
	return chunks, lines
}

// follow writes the log and what comes until the run ends. Chunks come in no
// certain order: one that was delayed has its place among those written long
// ago. What counts is therefore whether a chunk was written, not its place.
func (p *logPrinter) follow(ctx context.Context, db *store.DB, logger *slog.Logger, id uuid.UUID, filter workflow.LogFilter, tail int) error {
	written := make(map[int64]struct{})
	skip := int64(0) // chunks up to this one were there before the tail
	if tail > 0 {
		err := eachOfTail(ctx, db, id, filter, tail, func(chunks []workflow.LogEntry) error {
			for i := range chunks {
				written[chunks[i].Seq] = struct{}{}
				skip = max(skip, chunks[i].Seq)
			}
			return p.writeAll(chunks)
		})
		if err == nil {
			err = p.w.Flush()
		}
		if err != nil {
			return err
		}
	}
	// fresh writes those of the chunks that are new, and says whether any was not.
	fresh := func(chunks []workflow.LogEntry) (old bool, err error) {
		if err := p.lookUp(chunks); err != nil {
			return old, orTryAgain(err)
		}
		for i := range chunks {
			seq := chunks[i].Seq
			if _, known := written[seq]; known || seq <= skip {
				old = true
				continue
			}
			if err := p.write(&chunks[i]); err != nil {
				return old, err
			}
			written[seq] = struct{}{}
		}
		return old, p.w.Flush()
	}
	forward := filter
	forward.Limit = logRows
	everything := func(ctx context.Context) error {
		for f := forward; ; {
			page, err := db.Logs(ctx, id, f)
			if err != nil {
				return orTryAgain(err)
			}
			if _, err := fresh(page.Items); err != nil {
				return err
			}
			if f.Cursor = page.Next; page.Next == "" {
				return nil
			}
		}
	}
	return listen(ctx, db, logger, func(ctx context.Context, all bool, ids []uuid.UUID) error {
		if !all && !slices.Contains(ids, id) {
			return nil
		}
		// The status first: what was logged before the end is then there to be read.
		runs, err := db.Summaries(ctx, []uuid.UUID{id})
		if err != nil {
			return orTryAgain(err)
		}
		ended := len(runs) == 0 || runs[0].Status.Terminal()
		if all || ended {
			if err := everything(ctx); err != nil {
				return err
			}
		} else {
			// The end of the log usually has all the news. If it has nothing
			// but news there may be more before it.
			f := filter
			f.Tail = 200
			page, err := db.Logs(ctx, id, f)
			if err != nil {
				return orTryAgain(err)
			}
			known := func(e workflow.LogEntry) bool { _, is := written[e.Seq]; return is || e.Seq <= skip }
			if page.Next == "" || slices.ContainsFunc(page.Items, known) {
				_, err = fresh(page.Items)
			} else {
				err = everything(ctx)
			}
			if err != nil {
				return err
			}
		}
		if ended {
			if err := p.end(); err != nil {
				return err
			}
			return errDone
		}
		return nil
	})
}

func (p *logPrinter) writeAll(chunks []workflow.LogEntry) error {
	if err := p.lookUp(chunks); err != nil {
		return err
	}
	for i := range chunks {
		if err := p.write(&chunks[i]); err != nil {
			return err
		}
	}
	return nil
}

func (p *logPrinter) write(e *workflow.LogEntry) error {
	switch p.o.format {
	case formatJSONL:
		return p.o.line(viewLog(e))
	case formatJSON:
		text, err := encode(viewLog(e))
		if err != nil {
			return err
		}
		separator := ",\n    "
		if p.wrote == 0 {
			separator = "{\n  \"logs\": [\n    "
		}
		p.wrote++
		_, err = fmt.Fprintf(p.o.w, "%s%s", separator, text)
		return err
	}
	// A mark of what was cut is of no attempt.
	by := author{e.JobID, cmp.Or(e.Attempt, p.last.attempt)}
	again := p.last.attempt != 0 && by.attempt != p.last.attempt
	if p.heads && (!p.began || by.job != p.last.job) || again {
		if _, err := fmt.Fprintln(p.o.w, p.o.bold(p.head(by, again))); err != nil {
			return err
		}
	}
	p.began, p.last = true, by
	if e.Cut > 0 {
		_, err := fmt.Fprintf(p.o.w, "[… %d bytes cut …]\n", e.Cut)
		return err
	}
	text := wholeLines(e.Text)
	if !p.raw {
		text = harmlessLog(text)
	}
	_, err := fmt.Fprint(p.o.w, text)
	return err
}

// head is the line before what somebody wrote.
func (p *logPrinter) head(by author, again bool) string {
	who := "run"
	if by.job != "" {
		who = "job " + harmless(by.job)
		if name := p.names[by.job]; name != "" && name != by.job {
			who = fmt.Sprintf("job %s (%s)", clip(harmless(name), 80), harmless(by.job))
		}
	}
	if again || by.attempt > 1 {
		who += fmt.Sprintf(", attempt %d", by.attempt)
	}
	return "==> " + who + " <=="
}

// lookUp learns the names of the jobs that wrote chunks, if they are to be said.
func (p *logPrinter) lookUp(chunks []workflow.LogEntry) error {
	if !p.heads || p.o.format != formatTable {
		return nil
	}
	if len(p.names) > maxNames {
		clear(p.names)
	}
	asked := make(map[string]struct{})
	for i := range chunks {
		id := chunks[i].JobID
		if id != "" && p.names[id] == "" { // which may come later
			asked[id] = struct{}{}
		}
	}
	for ids := range slices.Chunk(slices.Sorted(maps.Keys(asked)), lookedUp) {
		jobs, err := p.jobs(ids)
		if err != nil {
			return err
		}
		for i := range jobs {
			p.names[jobs[i].ID] = jobName(&jobs[i])
		}
	}
	return nil
}

const (
	maxNames = 100_000 // of jobs that are remembered
	lookedUp = 1000    // at once
)

// end writes what belongs behind the last chunk.
func (p *logPrinter) end() error {
	if p.o.format == formatJSON {
		text := "\n  ]\n}\n"
		if p.wrote == 0 {
			text = "{\n  \"logs\": []\n}\n"
		}
		if _, err := fmt.Fprint(p.o.w, text); err != nil {
			return err
		}
	}
	return p.w.Flush()
}

// wholeLines ends text with a newline: a chunk is never continued by the next.
func wholeLines(text string) string {
	if text == "" || strings.HasSuffix(text, "\n") {
		return text
	}
	return text + "\n"
}
