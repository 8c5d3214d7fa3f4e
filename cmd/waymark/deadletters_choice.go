package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/spf13/cobra"

	"waymark/internal/crashpoint"
	"waymark/workflow"
)

// wantedIDs are the message ids, or beginnings of them, that were asked for.
type wantedIDs struct {
	refs []string
	hits []map[string]struct{} // per ref, the ids that fitted
}

func parseIDs(refs []string) (*wantedIDs, error) {
	w := &wantedIDs{refs: refs}
	for _, ref := range refs {
		if ref == "" {
			return nil, usage("a message id is empty: letters without one are chosen by what they have in common")
		}
		w.hits = append(w.hits, make(map[string]struct{}))
	}
	return w, nil
}

// leastPrefix is how much of an id stands for it. Shorter ids must be whole.
const leastPrefix = 4

// match notes whether an id was asked for.
func (w *wantedIDs) match(id string) (wanted bool) {
	for i, ref := range w.refs {
		if id == ref || (len(ref) >= leastPrefix && strings.HasPrefix(id, ref)) {
			w.hits[i][id] = struct{}{}
			wanted = true
		}
	}
	return wanted
}

// check says which ids were not found among so many letters, of which there
// may be more, or were not told apart.
func (w *wantedIDs) check(among int, more bool) error {
	for i, ref := range w.refs {
		if _, exact := w.hits[i][ref]; exact {
			continue
		}
		switch len(w.hits[i]) {
		case 0:
			if len(ref) < leastPrefix {
				return usage("no dead letter has the id %q, and as the beginning of one it is too short: give at least four characters", ref)
			}
			if more {
				return fmt.Errorf("dead letter %q: %w among the first %d; raise --limit", ref, workflow.ErrNotFound, among)
			}
			return fmt.Errorf("dead letter %q: %w; see waymark dead-letters list --each", ref, workflow.ErrNotFound)
		case 1:
		default:
			return fmt.Errorf("dead letter %q: %w: it begins %d ids", ref, workflow.ErrAmbiguous, len(w.hits[i]))
		}
	}
	return nil
}

// resolved reports whether a matched id is one that was asked for beyond doubt.
func (w *wantedIDs) resolved(id string) bool {
	for i, ref := range w.refs {
		if id == ref {
			return true
		}
		if _, exact := w.hits[i][ref]; !exact && len(ref) >= leastPrefix && strings.HasPrefix(id, ref) {
			return true
		}
	}
	return false
}

// letterFilter chooses letters by what they have in common. Empty fields
// choose all.
type letterFilter struct {
	reason   string
	pointer  *string
	workflow string
}

func addFilterFlags(cmd *cobra.Command, f *letterFilter) {
	cmd.Flags().StringVar(&f.reason, "reason", "", "only those with this `reason`, as list shows it")
	cmd.Flags().Var(&optionalText{&f.pointer}, "pointer", "only those with this JSON pointer, as list shows it; '' for those without")
	cmd.Flags().StringVar(&f.workflow, "workflow", "", "only those that name this workflow: its `ID`, or the beginning of it, or, of a submission, its name")
}

// optionalText is a flag for which empty is not the same as not given.
type optionalText struct{ text **string }

func (o *optionalText) String() string {
	if o.text == nil || *o.text == nil {
		return ""
	}
	return **o.text
}
func (o *optionalText) Set(s string) error { *o.text = &s; return nil }
func (o *optionalText) Type() string       { return "text" }

func (f *letterFilter) given() bool {
	return f.reason != "" || f.pointer != nil || f.workflow != ""
}

func (f *letterFilter) check() error {
	if f.workflow != "" && len(f.workflow) < 4 {
		return usage("--workflow %q: give at least four characters", f.workflow)
	}
	return nil
}

func (f *letterFilter) match(l *deadLetter) bool {
	return (f.reason == "" || l.reason == f.reason) &&
		(f.pointer == nil || l.pointer == *f.pointer) &&
		(f.workflow == "" || (len(l.workflow) >= len(f.workflow) && strings.EqualFold(l.workflow[:len(f.workflow)], f.workflow)))
}

// String says what it chooses, for errors.
func (f *letterFilter) String() string {
	var words []string
	if f.reason != "" {
		words = append(words, fmt.Sprintf("reason %q", f.reason))
	}
	if f.pointer != nil {
		words = append(words, fmt.Sprintf("pointer %q", *f.pointer))
	}
	if f.workflow != "" {
		words = append(words, fmt.Sprintf("workflow %q", f.workflow))
	}
	return strings.Join(words, ", ")
}

// choice says which letters a command is about: by id, by what they have in
// common, or all.
type choice struct {
	ids    *wantedIDs
	filter letterFilter
	all    bool
}

func addChoiceFlags(cmd *cobra.Command, ch *choice) {
	addFilterFlags(cmd, &ch.filter)
	cmd.Flags().BoolVar(&ch.all, "all", false, "all of them")
}

// parse takes the ids and checks the flags.
func (ch *choice) parse(ids []string) (err error) {
	given := 0
	for _, is := range []bool{len(ids) > 0, ch.filter.given(), ch.all} {
		if is {
			given++
		}
	}
	if given != 1 {
		return usage("say which dead letters: by ID, with --reason, --pointer or --workflow, or with --all")
	}
	if err := ch.filter.check(); err != nil {
		return err
	}
	ch.ids, err = parseIDs(ids)
	return err
}

// take returns the letters that were chosen, with their bodies, still in hand,
// and puts back the others, so that they are there for whoever looks next.
func (ch *choice) take(ctx context.Context, d *deadLetterQueues) (letters []deadLetter, err error) {
	var others []amqp.Delivery
	leave := func(l deadLetter) {
		others = append(others, amqp.Delivery{Acknowledger: l.delivery.Acknowledger, DeliveryTag: l.delivery.DeliveryTag})
	}
	if err := d.each(ctx, func(l deadLetter) error {
		if ch.all || (ch.filter.given() && ch.filter.match(&l)) || ch.ids.match(l.id) {
			letters = append(letters, l)
		} else {
			leave(l)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	if len(ch.ids.refs) > 0 {
		if err := ch.ids.check(d.taken, d.more); err != nil {
			return nil, err
		}
		letters = slices.DeleteFunc(letters, func(l deadLetter) bool {
			wrong := !ch.ids.resolved(l.id)
			if wrong {
				leave(l)
			}
			return wrong
		})
	}
	if len(letters) == 0 && ch.filter.given() {
		if d.more {
			return nil, fmt.Errorf("dead letters with %s: %w among the first %d; raise --limit", &ch.filter, workflow.ErrNotFound, d.taken)
		}
		return nil, fmt.Errorf("dead letters with %s: %w; see waymark dead-letters list", &ch.filter, workflow.ErrNotFound)
	}
	if err := d.release(others); err != nil {
		return nil, fmt.Errorf("putting back %s: %w", count(len(others), "dead letter"), err)
	}
	crashpoint.Hit("letters.taken")
	return letters, nil
}
