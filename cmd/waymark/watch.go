package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"waymark/store"
	"waymark/workflow"
)

func (a *app) watchCommand() *cobra.Command {
	var wait bool
	var owner string
	cmd := &cobra.Command{
		Use:   "watch [WORKFLOW...]",
		Short: "Follow workflows live",
		Long: `Follow workflows live, until all of them have ended; without arguments all that
have not ended, and those that begin, until Ctrl-C. The database tells of each
change; nothing is polled.

A terminal shows a table that changes in place. Elsewhere each change is one
line or, with --json, one object.

Exits with 0 if all finished, 1 if one failed, 5 if none failed but one was
stopped or deleted.

` + workflowHelp,
		Example: `  waymark watch
  waymark watch fit && echo done
  waymark watch fit --wait --json`,
		Args: args(0, -1, workflowArgument),
		RunE: func(cmd *cobra.Command, refs []string) error {
			if wait && len(refs) == 0 {
				return usage("--wait: name the workflows to wait for")
			}
			return a.withStore(cmd, func(ctx context.Context, c *config, db *store.DB) error {
				w := &watcher{app: a, db: db, logger: a.logger(c, true), o: a.output(cmd), everything: len(refs) == 0, owner: owner, wait: wait, missing: refs,
					runs: make(map[uuid.UUID]*workflow.Summary), told: make(map[uuid.UUID]string)}
				return w.watch(ctx)
			})
		},
	}
	addOwnerFlag(cmd.Flags(), &owner)
	cmd.Flags().BoolVar(&wait, "wait", false, "wait for workflows that are not known yet")
	addOutputFlags(cmd, formatTable, formatJSONL)
	addConfigFlags(cmd, "database", "log")
	return cmd
}

// watcher follows workflows.
type watcher struct {
	*app
	db         *store.DB
	logger     *slog.Logger
	o          *output
	everything bool     // all that have not ended, rather than chosen ones
	owner      string   // whose, if not everybody's
	wait       bool     // for those of missing
	missing    []string // chosen ones that are not known yet

	mu    sync.Mutex // guards what follows, and missing
	runs  map[uuid.UUID]*workflow.Summary
	order []uuid.UUID
	told  map[uuid.UUID]string // what was last said of each, in a pipe
	lines int                  // on the screen, to be drawn over
}

func (w *watcher) watch(ctx context.Context) error {
	if !w.wait {
		// A name that is not known is said before anything is shown.
		if err := w.resolve(ctx); err != nil {
			return err
		}
	}
	g, watching := errgroup.WithContext(ctx)
	watching, stop := context.WithCancel(watching)
	defer stop()
	g.Go(func() error {
		defer stop()
		return listen(watching, w.db, w.logger, w.changed)
	})
	if w.inPlace() {
		g.Go(func() error { return w.tick(watching) })
	}
	if err := g.Wait(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	return exit(w.result())
}

// inPlace reports whether changes are shown in place.
func (w *watcher) inPlace() bool { return w.o.terminal && w.o.format == formatTable }

// tick draws anew every second, so that durations go on.
func (w *watcher) tick(ctx context.Context) error {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		w.mu.Lock()
		err := w.draw()
		w.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// changed shows what is new; errDone once all have ended.
func (w *watcher) changed(ctx context.Context, all bool, ids []uuid.UUID) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.update(ctx, all, ids); err != nil {
		return orTryAgain(err)
	}
	if err := w.show(); err != nil {
		return err
	}
	if !w.everything && len(w.missing) == 0 && w.ended() {
		return errDone
	}
	return nil
}

// resolve looks for the workflows that are missing. Unless they are waited
// for, one that is not known is an error.
func (w *watcher) resolve(ctx context.Context) error {
	var still []string
	for _, ref := range w.missing {
		id, err := findRun(ctx, w.db, ref, w.owner)
		switch {
		case err == nil:
			w.add(id)
		case w.wait && errors.Is(err, workflow.ErrNotFound):
			still = append(still, ref)
		case errors.Is(err, workflow.ErrNotFound):
			return fmt.Errorf("%w, or --wait for it", err)
		default:
			return err
		}
	}
	w.missing = still
	return nil
}

func (w *watcher) add(id uuid.UUID) {
	if _, known := w.runs[id]; !known {
		w.runs[id] = nil
		w.order = append(w.order, id)
	}
}

// maxWatched bounds what is followed without names.
const maxWatched = 1000

// update reads what may have changed.
func (w *watcher) update(ctx context.Context, all bool, ids []uuid.UUID) error {
	if err := w.resolve(ctx); err != nil {
		return err
	}
	switch {
	case w.everything && all:
		page, err := w.db.Workflows(ctx, workflow.Filter{Statuses: activeStatuses, Owner: w.owner, Limit: maxWatched})
		if err != nil {
			return err
		}
		// Those shown may have ended while the connection was away.
		ids = slices.Collect(maps.Keys(w.runs))
		for i, s := range slices.Backward(page.Items) {
			w.add(s.ID)
			w.runs[s.ID] = &page.Items[i]
		}
	case w.everything:
	case all:
		ids = slices.Clone(w.order)
	default:
		ids = slices.DeleteFunc(ids, func(id uuid.UUID) bool { _, watched := w.runs[id]; return !watched })
		for _, id := range w.order {
			if w.runs[id] == nil {
				ids = append(ids, id)
			}
		}
	}
	for chunk := range slices.Chunk(ids, maxWatched) {
		summaries, err := w.db.Summaries(ctx, chunk)
		if err != nil {
			return err
		}
		for i := range summaries {
			s := &summaries[i]
			if old := w.runs[s.ID]; old != nil && old.Revision > s.Revision {
				continue
			}
			if w.everything && w.owner != "" && s.Owner != w.owner {
				continue
			}
			w.add(s.ID)
			w.runs[s.ID] = s
		}
	}
	return nil
}

var activeStatuses = []workflow.Status{workflow.StatusCreated, workflow.StatusQueued, workflow.StatusPending, workflow.StatusRunning}

func (w *watcher) ended() bool {
	for _, s := range w.runs {
		if s == nil || !s.Status.Terminal() {
			return false
		}
	}
	return true
}

// result is the exit code for how the runs ended.
func (w *watcher) result() int {
	code := exitOK
	for _, s := range w.runs {
		switch s.Status {
		case workflow.StatusFailed:
			return exitFailed
		case workflow.StatusStopped, workflow.StatusDeleted:
			code = exitStopped
		}
	}
	return code
}

// show shows what has changed.
func (w *watcher) show() error {
	if w.inPlace() {
		return w.draw()
	}
	for _, id := range w.order {
		s := w.runs[id]
		if s == nil {
			continue
		}
		// What is shown counts: a line says less than an object.
		say := w.sentence(s)
		if w.o.format == formatJSONL {
			say = fmt.Sprintf("%d %s %+v", s.Attempt, s.Status, s.Counts)
		}
		if w.told[id] == say {
			continue
		}
		w.told[id] = say
		var err error
		if w.o.format == formatJSONL {
			err = w.o.line(viewWorkflow(s, w.now()))
		} else {
			_, err = fmt.Fprintf(w.o.w, "%s  %s\n", clock(s.UpdatedAt), say)
		}
		if err != nil {
			return err
		}
	}
	w.forget()
	return nil
}

// forget drops runs that have ended and been shown, so that watching
// everything for days takes no more memory than what runs.
func (w *watcher) forget() {
	if !w.everything {
		return
	}
	w.order = slices.DeleteFunc(w.order, func(id uuid.UUID) bool {
		s := w.runs[id]
		if s != nil && s.Status.Terminal() {
			delete(w.runs, id)
			delete(w.told, id)
			return true
		}
		return false
	})
}

// sentence is how a run is, on one line.
func (w *watcher) sentence(s *workflow.Summary) string {
	words := []string{shortID(s.ID), s.Status.String()}
	if s.Name != "" {
		words = slices.Insert(words, 0, displayName(s))
	}
	if s.Attempt > 1 {
		words = append(words, fmt.Sprintf("attempt %d", s.Attempt))
	}
	if p := progressText(s.Counts); p != "" {
		words = append(words, p)
	}
	if run := runTime(s, w.now()); run != "" && s.Status.Terminal() {
		words = append(words, "after "+run)
	}
	return strings.Join(words, "  ")
}

// screenRows is how many runs a terminal shows at once when all are watched.
const screenRows = 30

// draw draws the table over the one before.
func (w *watcher) draw() error {
	var b strings.Builder
	if w.lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", w.lines)
	}
	var rows [][]string
	for _, id := range w.order[max(0, len(w.order)-screenRows):] {
		if s := w.runs[id]; s != nil {
			rows = append(rows, []string{clip(runName(s), 40), shortID(s.ID), w.o.status(s.Status.String()), bar(s.Counts, 20), progressText(s.Counts), runTime(s, w.now())})
		}
	}
	body := *w.o
	body.w, body.width, body.cut = &b, terminalWidth(w.o.w), true
	switch {
	case len(rows) > 0:
		if err := body.table(columns("~NAME", "ID", "STATUS", "", "PROGRESS", ">DURATION"), rows, true); err != nil {
			return err
		}
	case len(w.missing) == 0:
		b.WriteString("nothing runs; waiting for news (Ctrl-C ends)\n")
	}
	if len(w.missing) > 0 {
		fmt.Fprintf(&b, "waiting for %s\n", harmless(strings.Join(w.missing, ", ")))
	}
	text := b.String()
	w.lines = strings.Count(text, "\n")
	_, err := w.o.w.Write([]byte(text))
	// What ended stays on the screen until something else happens.
	if len(w.order) > screenRows {
		w.forget()
	}
	return err
}
