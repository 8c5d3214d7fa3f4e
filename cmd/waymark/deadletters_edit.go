package main

import (
	"bytes"
	"compress/zlib"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"waymark/internal/wire"
	"waymark/schemas"
	"waymark/store"
	"waymark/workflow"
)

func (a *app) deadLettersEditCommand() *cobra.Command {
	var queue, file string
	var limit int
	var newID bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "edit ID",
		Short: "Put a dead letter right and publish it again",
		Long: `Open the body of a dead letter in $VISUAL or $EDITOR, and publish what was made of
it to the queue that it came by, once it is what the consumer takes. What is not
is refused, with the place and the reason, and may be edited again. --file takes
the body from a file, or standard input (-), instead of an editor.

It keeps its message id, which has had no effect yet, so that it has its effect
once. If the id has had one (two messages share it), --new-id gives it another.

The dead letter stays as it is until the broker has confirmed the new message:
if the editor fails, nothing was changed, or the letter has gone elsewhere in the
meantime, nothing is sent. What was written and not sent is kept in a file.

Then waits and says how it ended, like waymark dead-letters replay.`,
		Example: `  waymark dead-letters edit 0192f3ab
  waymark dead-letters show 0192f3ab --raw | sed s/runing/running/ > m.json
  waymark dead-letters edit 0192f3ab --file m.json`,
		Args: args(1, 1, "ID"),
		RunE: func(cmd *cobra.Command, ids []string) error {
			c, err := a.config(cmd)
			if err != nil {
				return err
			}
			e := &edit{app: a, cmd: cmd, config: c, newID: newID, wait: wait}
			if file == "" {
				if e.editor, err = a.editor(); err != nil {
					return err
				}
			}
			if e.letter, err = a.findLetter(cmd.Context(), c, queue, limit, ids[0]); err != nil {
				return err
			}
			e.limit = limit
			return e.run(file)
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "take the body from `FILE`, or - for standard input, instead of an editor")
	cmd.Flags().BoolVar(&newID, "new-id", false, "give it a new message id")
	addWaitFlag(cmd, &wait)
	addLetterFlags(cmd, &queue, &limit)
	addOutputFlags(cmd, formatTable, formatJSON, formatJSONL)
	addReplayFlags(cmd)
	return cmd
}

// editor is the command that edits files.
func (a *app) editor() (string, error) {
	for _, name := range []string{"VISUAL", "EDITOR"} {
		if editor := a.getenv(name); strings.TrimSpace(editor) != "" {
			return editor, nil
		}
	}
	if isTerminal(a.stdin) {
		return "vi", nil
	}
	return "", usage("no editor: set VISUAL or EDITOR, or give --file")
}

// edit is the edit of one letter. The letter lies in its queue meanwhile, as
// the broker does not wait for people.
type edit struct {
	*app
	cmd    *cobra.Command
	config *config
	letter *deadLetter
	editor string
	limit  int
	newID  bool
	wait   time.Duration
}

func (e *edit) run(file string) error {
	ctx := e.cmd.Context()
	d := draftOf(e.letter, e.config.Consumer.MaxMessageBytes)
	if file != "" {
		text, err := e.readFile(ctx, file)
		if err != nil {
			return err
		}
		err = e.send(ctx, d, text)
		if file == "-" && unsent(err) {
			if path, keepErr := writeTemporary("waymark-edited-*.json", text); keepErr != nil {
				err = fmt.Errorf("%w; nor could the text be kept: %w", err, keepErr)
			} else {
				e.kept(path)
			}
		}
		return e.ended(err)
	}
	path, err := d.write(e.letter.id)
	if err != nil {
		return fmt.Errorf("writing the body to a file: %w", err)
	}
	err = e.converse(ctx, d, path)
	if text, readErr := os.ReadFile(path); unsent(err) && readErr == nil && !d.same(text) {
		e.kept(path)
	} else if removeErr := os.Remove(path); removeErr != nil && !errors.Is(removeErr, fs.ErrNotExist) {
		fmt.Fprintln(e.stderr, harmless(removeErr.Error()))
	}
	return e.ended(err)
}

func (e *edit) kept(path string) { fmt.Fprintf(e.stderr, "the edited text is in %s\n", harmless(path)) }

// unsent reports whether the error of a send leaves a text that was not sent.
func unsent(err error) bool {
	if coded, ok := errors.AsType[*exitError](err); ok && coded.err == nil {
		return false // it was, and died again
	}
	return err != nil && !errors.Is(err, errUnchanged)
}

// ended says that nothing was changed, if so.
func (e *edit) ended(err error) error {
	if errors.Is(err, errUnchanged) {
		_, err = fmt.Fprintf(e.stdout, "unchanged: nothing was sent\n")
	}
	return err
}

// errUnchanged says that the text is what the letter holds already.
var errUnchanged = errors.New("unchanged")

// converse has a person edit the file until it can be sent, or they give up.
func (e *edit) converse(ctx context.Context, d *draft, path string) error {
	for {
		if err := e.openEditor(ctx, path); err != nil {
			return fmt.Errorf("nothing was sent: editor %q: %w", e.editor, err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("nothing was sent: reading the edited text: %w", err)
		}
		err = e.send(ctx, d, text)
		var invalid *schemas.Error
		if !errors.As(err, &invalid) || !isTerminal(e.stdin) {
			return err
		}
		fmt.Fprintln(e.stderr, harmless(err.Error()))
		again, askErr := e.ask(ctx, "edit again? [Y/n] ", true)
		if askErr != nil {
			return askErr
		}
		if !again {
			return &exitError{code: exitFailed, err: errors.New("nothing was sent")}
		}
	}
}

// openEditor returns when the editor has ended. A Ctrl-C in it is the editor's;
// whoever ends us then finds the letter as it was.
func (e *edit) openEditor(ctx context.Context, path string) error {
	// By way of the shell, like git: an editor may come with flags.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "/bin/sh", "-c", e.editor+` "$@"`, e.editor, path)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = e.stdin, e.stdout, e.stderr
	if err := cmd.Run(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

func (e *edit) readFile(ctx context.Context, file string) ([]byte, error) {
	r, name, err := e.input(ctx, file)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	most := e.config.Consumer.MaxMessageBytes
	text, err := io.ReadAll(io.LimitReader(r, int64(most)+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if len(text) > most {
		return nil, fmt.Errorf("%s is larger than consumer.max_message_bytes, which is %d", name, most)
	}
	return text, nil
}

// send publishes the text in place of the letter, if it is one that the consumer
// takes.
func (e *edit) send(ctx context.Context, d *draft, text []byte) error {
	if d.same(text) {
		return errUnchanged
	}
	body := d.body(text)
	if err := e.validate(body); err != nil {
		return fmt.Errorf("nothing was sent: the edited message is not valid: %w", err)
	}
	db, dbErr := e.outcomeStore(ctx, e.config)
	if dbErr == nil {
		defer db.Close()
		before, err := outcomes(ctx, db, []string{e.letter.id})
		if err != nil {
			dbErr = err
		} else if outcome, had := before[e.letter.id]; had && !e.newID {
			return fmt.Errorf("nothing was sent: a message with the id %s was %s before, and this one would be taken for a copy of it; if that was this letter, sent by an edit or replay that was cut short, discard it; if it was another, give --new-id", e.letter.id, outcome)
		}
	}
	// The letter is looked for again: it may have gone in the meantime, and its
	// place is where it is settled.
	queues, err := e.openDeadLetters(ctx, e.config, e.letter.queue, e.limit)
	if err != nil {
		return err
	}
	defer queues.close()
	mine := choice{}
	if mine.ids, err = parseIDs([]string{e.letter.id}); err != nil {
		return err
	}
	letters, err := mine.take(ctx, queues)
	if err != nil {
		return fmt.Errorf("nothing was sent: %w", err)
	}
	letters = slices.DeleteFunc(letters, func(l deadLetter) bool { return !bytes.Equal(l.delivery.Body, e.letter.delivery.Body) })
	if len(letters) == 0 {
		return fmt.Errorf("nothing was sent: dead letter %q has another body by now: %w", e.letter.id, workflow.ErrNotFound)
	}
	// More than one letter of one message is what a crash may leave.
	r := &replay{letters: letters[:1], copies: letters[1:], action: store.Edited, body: body, newID: e.newID}
	if err := e.replay(e.cmd, e.config, queues, r, db, dbErr, e.wait); err != nil {
		return err
	}
	if v := r.verdicts[0]; v.Outcome == outcomeNotPublished {
		return fmt.Errorf("nothing was sent: %s", *v.Error)
	}
	return e.showVerdicts(e.output(e.cmd), r)
}

// validate judges a body as the consumer of the letter's queue does.
func (e *edit) validate(body []byte) error {
	var err error
	if e.letter.queue == e.config.queues().Submission {
		_, err = wire.DecodeSubmission(body, e.config.limits())
	} else {
		_, err = wire.DecodeStatus(body, e.config.limits())
	}
	return err
}

// writeTemporary writes a file that only its owner may read.
func writeTemporary(pattern string, text []byte) (path string, err error) {
	f, err := os.CreateTemp("", pattern)
	if err != nil {
		return "", err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

// draft is the body of a letter in the form in which it is edited, and the way
// back.
type draft struct {
	text []byte
	// indented: the text is JSON, on more lines than it came.
	indented bool
	// wrapped: it came as JSON within a JSON string, as REANA's consumers want it.
	wrapped bool
}

// headerCompression is where kombu says how it has compressed the body.
const headerCompression = "compression"

func draftOf(l *deadLetter, most int) *draft {
	body := l.delivery.Body
	if compression, _ := l.delivery.Headers[headerCompression].(string); compression != "" {
		if z, err := zlib.NewReader(bytes.NewReader(body)); err == nil {
			// What cannot be read, or is more than could be published, is edited as it is.
			if plain, err := io.ReadAll(io.LimitReader(z, int64(most)+1)); err == nil && len(plain) <= most {
				body = plain
			}
		}
	}
	d := &draft{text: body}
	text, err := schemas.Unwrap(body)
	if err != nil || !json.Valid(text) {
		return d
	}
	var b bytes.Buffer
	if json.Indent(&b, text, "", "  ") != nil {
		return d
	}
	b.WriteByte('\n')
	first := bytes.TrimLeft(body, " \t\r\n\ufeff")
	d.text, d.indented, d.wrapped = b.Bytes(), true, len(first) > 0 && first[0] == '"'
	return d
}

// write puts the text into a new file.
func (d *draft) write(id string) (path string, err error) {
	safe := strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '-' {
			return r
		}
		return '_'
	}, id)
	return writeTemporary("waymark-"+safe[:min(len(safe), 40)]+"-*.json", d.text)
}

// body is what to publish for an edited text: as compact as it came.
func (d *draft) body(text []byte) []byte {
	var b bytes.Buffer
	plain, err := schemas.Unwrap(text)
	if err != nil || !json.Valid(plain) || json.Compact(&b, plain) != nil {
		return text // which validation will refuse
	}
	if d.wrapped {
		return wire.Reana(b.Bytes())
	}
	return b.Bytes()
}

// same reports whether text says what the letter says already.
func (d *draft) same(text []byte) bool {
	return bytes.Equal(text, d.text) || bytes.Equal(d.body(text), d.body(d.text))
}
