//go:build linux

package faults

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/broker"
	"waymark/internal/servicetest"
	"waymark/internal/wire"
	"waymark/workflow"
)

// applied has the trace applied, and what cannot be lies in the dead-letter queues.
func (w *site) applied() {
	w.Helper()
	w.backlog()
	w.serve()
	servicetest.Eventually(w, patience, "the whole trace is received", w.received)
}

// discard kills a discard of all dead letters, and discards what is left. None
// may be gone without a record.
func (w *site) discard(m moment) {
	w.applied()
	discard := []string{"dead-letters", "discard", "--all", "--yes"}
	w.waymark([]string{m.dies()}, discard...).awaitKilled(w)
	// What the broker has read of the acks it has read before it sees the end of
	// the connection, and puts back the rest.
	w.awaitLook()
	recorded := w.recorded("discard")
	left := w.letterBodies()
	for i := range w.trace.messages {
		if one := &w.trace.messages[i]; one.dead && !left[string(one.body)] && !recorded[string(one.body)] {
			w.Errorf("dead letter %s is gone, and nobody has recorded that it was discarded", one.letterID())
		}
	}
	w.mended = time.Now()
	again := w.waymark(nil, discard...)
	if err := again.wait(w); err != nil {
		w.Errorf("the second discard ended with: %v; standard error:\n%s", err, again.stderr.String())
	}
	recorded = w.recorded("discard")
	for i := range w.trace.messages {
		if one := &w.trace.messages[i]; one.dead && !recorded[string(one.body)] {
			w.Errorf("nobody has recorded that dead letter %s was discarded", one.letterID())
		}
	}
	gone := *w.trace
	gone.dead = nil
	w.trace = &gone
}

// awaitLook returns when the dead letters can be looked at: nobody holds them.
func (w *site) awaitLook() {
	w.Helper()
	p := w.waymark(nil, "dead-letters", "list", "--json")
	if err := p.wait(w); err != nil {
		w.Fatalf("waymark dead-letters list ended with: %v; standard error:\n%s", err, p.stderr.String())
	}
}

// recorded lists the bodies of the trace with which somebody has done something.
func (w *site) recorded(action string) map[string]bool {
	w.Helper()
	var digests []string
	w.must(w.do(func(ctx context.Context, conn *pgx.Conn) error {
		result, err := conn.Query(ctx, "SELECT body_sha256 FROM "+w.schema+".dead_letter_audit WHERE action = $1", action)
		if err == nil {
			digests, err = pgx.CollectRows(result, pgx.RowTo[string])
		}
		return err
	}))
	all := make(map[string]bool)
	for i := range w.trace.messages {
		body := w.trace.messages[i].body
		digest := sha256.Sum256(body)
		all[string(body)] = slices.Contains(digests, hex.EncodeToString(digest[:]))
	}
	return all
}

// letterBodies are those of the dead letters, which stay where they are.
func (w *site) letterBodies() map[string]bool {
	w.Helper()
	conn := w.dial()
	defer conn.Close()
	ch, err := conn.Channel()
	w.must(err)
	all := make(map[string]bool)
	for _, queue := range []string{w.status, w.submission} {
		for {
			d, ok, err := ch.Get(broker.DeadLetter(queue), false)
			w.must(err)
			if !ok {
				break
			}
			all[string(d.Body)] = true
		}
	}
	return all
}

const edited = "edited line\n"

// toEdit has w expect that a dead letter is put right: another line of a run.
// It returns the letter's id and a file with the new body.
func (w *site) toEdit() (id, file string) {
	w.Helper()
	id = named("malformed %d", 2).String()
	at := epoch.Add(30 * time.Second)
	body := must(wire.EncodeStatus(&workflow.StatusMessage{WorkflowID: named("run 0"), Status: workflow.StatusRunning, EventTime: at, Attempt: 1, Logs: edited}))
	file = filepath.Join(w.TempDir(), "edited.json")
	w.must(os.WriteFile(file, body, 0o600))

	more := make(rows)
	for text, n := range w.want {
		more[text] = n
	}
	more[fmt.Sprintf(`workflow_logs {"workflow_id":"%s","job_id":null,"attempt":1,"body":"edited line\n","event_time":"%s"}`, named("run 0"), at.Format("2006-01-02 15:04:05.000000"))] = 1
	w.want = more
	w.trace = w.trace.without(func(m *message) bool { return m.id == id })
	return id, file
}

// edit kills an edit, and edits again, as the person would who does not know how
// far it had come.
func (w *site) edit(m moment, newID bool) {
	w.applied()
	id, file := w.toEdit()
	command := []string{"dead-letters", "edit", id, "--file", file}
	if newID {
		command = append(command, "--new-id")
	}
	w.waymark([]string{m.dies()}, command...).awaitKilled(w)
	w.mended = time.Now()
	w.editAgain(id, command)
}

func (w *site) editAgain(id string, command []string) {
	w.Helper()
	p := w.waymark(nil, command...)
	err := p.wait(w)
	said := p.stderr.String()
	switch {
	case err == nil: // it was to be edited still, or was found to be a copy
	case strings.Contains(said, "not found"): // it had come to its end
	case strings.Contains(said, "discard"): // it is a copy of what was sent
		if p := w.waymark(nil, "dead-letters", "discard", id, "--yes"); p.wait(w) != nil {
			w.Errorf("discarding the copy ended with: %v; standard error:\n%s", p.err, p.stderr.String())
		}
	default:
		w.Errorf("the second edit ended with: %v; standard error:\n%s", err, said)
	}
	if letters := w.lettersOf(id); letters > 0 {
		w.Errorf("letter %s is still there, %d times; the second edit said:\n%s%s", id, letters, p.stdout.String(), said)
	}
}

// lettersOf counts the dead letters with an id.
func (w *site) lettersOf(id string) (n int) {
	w.Helper()
	conn := w.dial()
	defer conn.Close()
	ch, err := conn.Channel()
	w.must(err)
	for {
		var d amqp.Delivery
		d, ok, err := ch.Get(broker.DeadLetter(w.status), false)
		w.must(err)
		if !ok {
			return n
		}
		if d.MessageId == id {
			n++
		}
	}
}

// killedInTheEditor kills an edit while a person writes: the letter is as it was,
// and nobody is kept from it meanwhile.
func killedInTheEditor(w *site) {
	w.applied()
	id, file := w.toEdit()
	// A person writes for as long as the file is there.
	open := filepath.Join(w.TempDir(), "open")
	p := w.waymark([]string{"EDITOR=touch " + open + "; while [ -e " + open + " ]; do sleep 0.1; done; :", "TMPDIR=" + w.TempDir()}, "dead-letters", "edit", id)
	servicetest.Eventually(w, patience, "the editor is open", func() error {
		select {
		case <-p.done:
			w.Fatalf("the edit ended with: %v; standard error:\n%s", p.err, p.stderr.String())
		default:
		}
		_, err := os.Stat(open)
		if errors.Is(err, fs.ErrNotExist) {
			return errors.New("not yet")
		}
		return err
	})
	w.awaitLook()
	p.signal(w, syscall.SIGKILL)
	w.mended = time.Now()
	w.must(os.Remove(open))
	p.awaitKilled(w)
	w.editAgain(id, []string{"dead-letters", "edit", id, "--file", file})
}
