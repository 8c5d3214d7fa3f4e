package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"waymark/internal/servicetest"
)

// A serve that starts deletes the runs that ended too long ago, and counts them;
// so it does the times that it could not, with the reason in its log.
func TestServePrunesAndTells(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.serve(t)
	ended, running := uuid.NewString(), uuid.NewString()
	s.runWith(t.Context(), fmt.Sprintf(`{"workflow_uuid": %q, "status": 2}`+"\n"+`{"workflow_uuid": %q, "status": 1}`, ended, running),
		"publish", "status").want(t, exitOK)
	s.awaitStatus(t, ended, "finished")
	s.awaitStatus(t, running, "running")
	p.stop(t, exitOK)

	db, err := pgx.Connect(t.Context(), s.database.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(t.Context())
	execute := func(statement string) {
		t.Helper()
		if _, err := db.Exec(t.Context(), strings.ReplaceAll(statement, "SCHEMA", s.database.Schema)); err != nil {
			t.Fatal(err)
		}
	}
	execute(`CREATE FUNCTION SCHEMA.keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'the law forbids it'; END $$`)
	execute(`CREATE TRIGGER keep BEFORE DELETE ON SCHEMA.workflows FOR EACH ROW EXECUTE FUNCTION SCHEMA.keep()`)
	// counts starts a serve that keeps nothing, and waits until it has counted.
	counts := func(pruned, failures float64) (log string) {
		t.Helper()
		p := s.serve(t, "--database-keep-runs", "1ms")
		servicetest.Eventually(t, patience, "the start has pruned", func() error {
			m := scrape(t, p.url(t))
			if m["waymark_pruned_runs_total"] != pruned || m["waymark_prune_failures_total"] != failures {
				return fmt.Errorf("%v runs deleted and %v failures, want %v and %v", m["waymark_pruned_runs_total"], m["waymark_prune_failures_total"], pruned, failures)
			}
			return nil
		})
		p.stop(t, exitOK)
		return p.stderr.String()
	}
	if log := counts(0, 1); !strings.Contains(log, "old runs were not deleted") || !strings.Contains(log, "the law forbids it") {
		t.Errorf("the log does not say why no run was deleted:\n%s", log)
	}
	execute(`DROP TRIGGER keep ON SCHEMA.workflows`)
	if log := counts(1, 0); !strings.Contains(log, `msg="deleted old runs" count=1`) {
		t.Errorf("the log does not say that a run was deleted:\n%s", log)
	}
	s.run(t, "status", ended).want(t, exitNotFound)
	s.run(t, "status", running).want(t, exitOK)
}
