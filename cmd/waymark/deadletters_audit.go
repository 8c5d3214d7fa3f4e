package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"waymark/store"
)

func (a *app) deadLettersAuditCommand() *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Show who did what with dead letters",
		Long: `Show who discarded, edited or replayed which dead letters, the latest first. The
view dead_letter_audit holds the same, for good. What was discarded with
--audit-file is in that file instead.`,
		Example: `  waymark dead-letters audit
  waymark dead-letters audit --limit 1000 --output jsonl`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 || limit > 100_000 {
				return usage("--limit: expected 1 to 100000, found %d", limit)
			}
			o := a.output(cmd)
			return a.withStore(cmd, func(ctx context.Context, _ *config, db *store.DB) error {
				entries, err := db.DeadLetterAudit(ctx, limit)
				if err != nil {
					return err
				}
				return a.showAudit(o, entries)
			})
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 100, "show no more than so many entries, 1 to 100000")
	addOutputFlags(cmd, formatTable, formatJSON, formatJSONL)
	addConfigFlags(cmd, "database", "log")
	return cmd
}

// auditView is one action, as programs read it and as --audit-file keeps it.
type auditView struct {
	At         time.Time `json:"at"`
	Actor      string    `json:"actor"`
	Action     string    `json:"action"`
	Queue      string    `json:"queue"`
	MessageID  *string   `json:"message_id"`
	Reason     string    `json:"reason"`
	Pointer    *string   `json:"pointer"`
	Workflow   *string   `json:"workflow"`
	BodySHA256 string    `json:"body_sha256"`
	BodyBytes  int64     `json:"body_bytes"`
}

func viewAudit(e *store.AuditEntry) auditView {
	return auditView{At: e.At, Actor: e.Actor, Action: string(e.Action), Queue: e.Queue, MessageID: known(e.MessageID), Reason: e.Reason,
		Pointer: known(e.Pointer), Workflow: known(e.Workflow), BodySHA256: e.BodySHA256, BodyBytes: e.BodyBytes}
}

func (a *app) showAudit(o *output, entries []store.AuditEntry) error {
	views := []auditView{}
	var rows [][]string
	for i := range entries {
		e := &entries[i]
		views = append(views, viewAudit(e))
		rows = append(rows, []string{clock(e.At), clip(harmless(e.Actor), 40), string(e.Action), harmless(e.Queue), clip(harmless(e.MessageID), 64),
			clip(harmless(e.Reason), 20), clip(harmless(e.Pointer), 40), clip(harmless(e.Workflow), 36), strconv.FormatInt(e.BodyBytes, 10)})
	}
	switch o.format {
	case formatJSON:
		return o.document(struct {
			Audit []auditView `json:"audit"`
		}{views})
	case formatJSONL:
		for _, v := range views {
			if err := o.line(v); err != nil {
				return err
			}
		}
		return nil
	}
	if len(rows) == 0 {
		fmt.Fprintln(a.stderr, "nothing was done with dead letters")
		return nil
	}
	return o.tableOrCards(columns("TIME", "WHO", "ACTION", "QUEUE", "ID", "REASON", "POINTER", "WORKFLOW", ">BYTES"), rows)
}

// auditEntries are what is to be recorded of an action on letters.
func (a *app) auditEntries(action store.DeadLetterAction, letters []*deadLetter) []store.AuditEntry {
	at, who := a.now().UTC().Truncate(time.Microsecond), actor()
	entries := make([]store.AuditEntry, len(letters))
	for i, l := range letters {
		digest := sha256.Sum256(l.delivery.Body)
		entries[i] = store.AuditEntry{At: at, Actor: who, Action: action, Queue: l.queue, MessageID: l.id, Reason: l.reason, Pointer: l.pointer,
			Workflow: l.workflow, BodySHA256: hex.EncodeToString(digest[:]), BodyBytes: int64(l.size)}
	}
	return entries
}

// actor is who runs the program, as the operating system has it.
func actor() string {
	name := strconv.Itoa(os.Getuid())
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return name + "@" + host
}

// auditTimeout is how long the database may take to record.
const auditTimeout = 30 * time.Second

// record records an action that has been done. It is no error if that is not
// possible: the letters are where they were to go, and only a warning is left.
func (a *app) record(ctx context.Context, db *store.DB, dbErr error, entries []store.AuditEntry) {
	if len(entries) == 0 {
		return
	}
	if dbErr == nil {
		// Who interrupts the waiting has not undone what was done.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditTimeout)
		defer cancel()
		dbErr = db.RecordDeadLetters(ctx, entries)
	}
	if dbErr != nil {
		fmt.Fprintf(a.stderr, "the audit lacks this: %s\n", harmless(oneLine.Replace(dbErr.Error())))
	}
}

// appendAudit adds entries to a file of JSON Lines. When it returns nil they
// are on disk.
func appendAudit(path string, entries []store.AuditEntry) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var lines []byte
	for i := range entries {
		line, err := encode(viewAudit(&entries[i]))
		if err != nil {
			return err
		}
		lines = append(append(lines, line...), '\n')
	}
	if _, err := f.Write(lines); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	// A file that is new is on disk when its folder is.
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}
