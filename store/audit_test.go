package store_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"waymark/store"
)

func TestDeadLetterAudit(t *testing.T) {
	t.Parallel()
	db := open(t, func(c *store.Config) { c.Now = func() time.Time { return noon } })
	entry := store.AuditEntry{
		At: noon.Add(1500 * time.Microsecond), Actor: "ada@desk", Action: store.Discarded, Queue: "jobs-status", MessageID: "0192", Reason: "schema",
		Pointer: "/status", Workflow: "2fb6b2f0", BodySHA256: strings.Repeat("ab", 32), BodyBytes: 12,
	}
	// A letter may come without anything, and with what Postgres cannot hold.
	bare := store.AuditEntry{Action: store.Replayed, BodySHA256: strings.Repeat("0", 64)}
	odd := entry
	odd.Action, odd.MessageID, odd.Workflow = store.Edited, "a\x00b\xff", "'; DROP TABLE ledger; --"
	if err := db.RecordDeadLetters(t.Context(), []store.AuditEntry{entry, bare, odd}); err != nil {
		t.Fatal(err)
	}
	bare.At = noon
	odd.MessageID = "a\ufffdb\ufffd"
	got, err := db.DeadLetterAudit(t.Context(), 100)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]store.AuditEntry{odd, bare, entry}, got); diff != "" {
		t.Errorf("the audit, the latest first (-want, +got):\n%s", diff)
	}

	// All or none: the last of many breaks a constraint.
	many := make([]store.AuditEntry, 6000)
	for i := range many {
		many[i] = entry
		many[i].MessageID = fmt.Sprint(i)
	}
	many[len(many)-1].Action = "eat"
	if err := db.RecordDeadLetters(t.Context(), many); err == nil {
		t.Error("an unknown action was recorded")
	}
	if got, err = db.DeadLetterAudit(t.Context(), 100); err != nil || len(got) != 3 {
		t.Errorf("after a record that failed the audit holds %d entries, %v; want the 3 of before", len(got), err)
	}
	many[len(many)-1].Action = store.Discarded
	if err := db.RecordDeadLetters(t.Context(), many); err != nil {
		t.Fatal(err)
	}
	if got, err = db.DeadLetterAudit(t.Context(), 10); err != nil || len(got) != 10 || got[0].MessageID != "5999" {
		t.Errorf("the latest 10 of the audit: %v, %v; want them to begin with 5999", got, err)
	}
	for _, limit := range []int{0, 100_001} {
		if _, err := db.DeadLetterAudit(t.Context(), limit); err == nil {
			t.Errorf("a limit of %d is accepted", limit)
		}
	}
}
