package store_test

import (
	"database/sql"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"waymark/internal/servicetest"
	"waymark/store"
	"waymark/workflow"
)

// raw is a plain connection to the schema of a test, to look behind the store.
func raw(t *testing.T, d servicetest.DB) *sql.DB {
	t.Helper()
	cfg, err := pgx.ParseConfig(d.URL)
	if err != nil {
		t.Fatal(err)
	}
	cfg.RuntimeParams["search_path"] = d.Schema
	db := stdlib.OpenDB(*cfg)
	t.Cleanup(func() { db.Close() })
	return db
}

func execute(t *testing.T, db *sql.DB, statement string, args ...any) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	d := servicetest.Database(t)
	db := another(t, d)
	if err := db.Ping(t.Context()); !errors.Is(err, store.ErrSchemaOlder) {
		t.Errorf("Ping of an empty schema: %v, want ErrSchemaOlder", err)
	}
	pending, err := db.Pending(t.Context())
	if err != nil || len(pending) == 0 || pending[0].Version != 1 {
		t.Fatalf("Pending = %v, %v; want all migrations from 1 on", pending, err)
	}
	// Several at once: the work is done once, and all of them succeed.
	var wg sync.WaitGroup
	var mu sync.Mutex
	applied := 0
	for range 4 {
		other := another(t, d)
		wg.Go(func() {
			m, err := other.Migrate(t.Context())
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			applied += len(m)
		})
	}
	wg.Wait()
	if applied != len(pending) {
		t.Errorf("four at once applied %d migrations, want %d", applied, len(pending))
	}
	if pending, err = db.Pending(t.Context()); err != nil || len(pending) != 0 {
		t.Errorf("Pending after Migrate = %v, %v; want none", pending, err)
	}
	if err := db.Ping(t.Context()); err != nil {
		t.Errorf("Ping after Migrate: %v", err)
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	t.Parallel()
	d := servicetest.Database(t)
	db := another(t, d)
	if _, err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	execute(t, raw(t, d), `INSERT INTO schema_migrations (version_id, is_applied) VALUES (9999, true)`)
	if _, err := db.Migrate(t.Context()); !errors.Is(err, store.ErrSchemaNewer) {
		t.Errorf("Migrate: %v, want ErrSchemaNewer", err)
	}
	if _, err := db.Pending(t.Context()); !errors.Is(err, store.ErrSchemaNewer) {
		t.Errorf("Pending: %v, want ErrSchemaNewer", err)
	}
	if err := db.Ping(t.Context()); !errors.Is(err, store.ErrSchemaNewer) || !strings.Contains(err.Error(), "upgrade waymark") {
		t.Errorf("Ping: %v, want ErrSchemaNewer and what to do", err)
	}
}

// A migration that was interrupted leaves nothing, and the next run does it.
func TestInterruptedMigration(t *testing.T) {
	t.Parallel()
	d := servicetest.Database(t)
	db := another(t, d)
	plain := raw(t, d)
	execute(t, plain, `CREATE TABLE jobs (in_the_way int)`)
	if _, err := db.Migrate(t.Context()); err == nil || !strings.Contains(err.Error(), "00001_init.sql") || !strings.Contains(err.Error(), "again") {
		t.Fatalf("Migrate = %v, want an error that names the migration and what to do", err)
	}
	var left int
	if err := plain.QueryRow(`SELECT count(*) FROM pg_tables WHERE schemaname = $1 AND tablename IN ('workflows', 'submissions')`, d.Schema).Scan(&left); err != nil || left != 0 {
		t.Errorf("%d tables are left of the failed migration, %v; want none", left, err)
	}
	execute(t, plain, `DROP TABLE jobs`)
	if _, err := db.Migrate(t.Context()); err != nil {
		t.Errorf("Migrate, once the obstacle is gone: %v", err)
	}
}

// Whoever looks at a view with \d+ is told what each column means.
func TestViewsAreDocumented(t *testing.T) {
	t.Parallel()
	d := servicetest.Database(t)
	if _, err := another(t, d).Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	rows, err := raw(t, d).Query(`
		SELECT c.relname, a.attname, coalesce(col_description(c.oid, a.attnum), ''), coalesce(obj_description(c.oid), '')
		FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
		WHERE c.relnamespace = $1::regnamespace AND c.relkind = 'v'`, d.Schema)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	views := map[string]int{}
	for rows.Next() {
		var view, column, comment, about string
		if err := rows.Scan(&view, &column, &comment, &about); err != nil {
			t.Fatal(err)
		}
		views[view]++
		if comment == "" {
			t.Errorf("column %s.%s has no comment", view, column)
		}
		if !strings.Contains(about, "Contract, version 1") {
			t.Errorf("view %s does not say which version of the contract it is: %q", view, about)
		}
	}
	for _, want := range []string{"workflow_status", "job_status", "workflow_logs", "status_history", "ledger_balance", "dead_letter_audit", "reana_workflow_status"} {
		if views[want] == 0 {
			t.Errorf("there is no view %s", want)
		}
	}
}

// The words that the views show are those of package workflow.
func TestViewWords(t *testing.T) {
	t.Parallel()
	d := servicetest.Database(t)
	if _, err := another(t, d).Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	plain := raw(t, d)
	word := func(function string, number int) (got string) {
		if err := plain.QueryRow(fmt.Sprintf(`SELECT %s($1::smallint)`, function), number).Scan(&got); err != nil {
			t.Fatal(err)
		}
		return got
	}
	for _, s := range workflow.Statuses() {
		if got := word("run_status_word", int(s)); got != s.String() {
			t.Errorf("run status %d is %q in SQL, %q in Go", s, got, s)
		}
	}
	for _, s := range workflow.JobStatuses() {
		if got := word("job_status_word", int(s)); got != s.String() {
			t.Errorf("job status %d is %q in SQL, %q in Go", s, got, s)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	const good = "postgres://u:secret@127.0.0.1:1/x"
	for name, cfg := range map[string]store.Config{
		"no URL":             {},
		"a broker's URL":     {URL: "amqp://u:secret@h/"},
		"a bad port":         {URL: "postgres://u:secret@h:port/x"},
		"an evil schema":     {URL: good, Schema: `x"; DROP`},
		"an unknown policy":  {URL: good, UnknownWorkflows: "ignore"},
		"no connections":     {URL: good, MaxConnections: -1},
		"an upper-case name": {URL: good, Schema: "Waymark"},
	} {
		_, err := store.Open(t.Context(), cfg)
		if err == nil {
			t.Errorf("%s: Open accepted it", name)
		} else if strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: the error has more than a line, or the password: %v", name, err)
		}
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	t.Parallel()
	d := servicetest.Database(t)
	db := another(t, d)
	if _, err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := db.CheckRights(t.Context()); err != nil {
		t.Errorf("CheckRights of the owner: %v", err)
	}
	plain := raw(t, d)
	role := d.Schema + "_reader"
	execute(t, plain, `CREATE ROLE `+role+` LOGIN PASSWORD 'wm'`)
	t.Cleanup(func() { plain.Exec(`DROP OWNED BY ` + role + `; DROP ROLE ` + role) })
	execute(t, plain, `GRANT USAGE ON SCHEMA `+d.Schema+` TO `+role)
	execute(t, plain, `GRANT SELECT ON ALL TABLES IN SCHEMA `+d.Schema+` TO `+role)
	cfg, err := pgx.ParseConfig(d.URL)
	if err != nil {
		t.Fatal(err)
	}
	url := func(user, database string, port uint16) string {
		password := "wm"
		if user == cfg.User {
			password = cfg.Password
		}
		return fmt.Sprintf("postgres://%s:%s@%s:%d/%s?sslmode=disable", user, password, cfg.Host, port, database)
	}
	for name, test := range map[string]struct {
		url  string
		call func(*store.DB) error
		want string
	}{
		"nobody listens":      {url(cfg.User, cfg.Database, 1), func(db *store.DB) error { return db.Ping(t.Context()) }, "refused"},
		"no such database":    {url(cfg.User, "no_such_db", cfg.Port), func(db *store.DB) error { return db.Ping(t.Context()) }, "create it, or name another in database.url"},
		"no such role":        {url("no_such_role", cfg.Database, cfg.Port), func(db *store.DB) error { return db.Ping(t.Context()) }, "no_such_role"},
		"rights looked at":    {url(role, cfg.Database, cfg.Port), func(db *store.DB) error { return db.CheckRights(t.Context()) }, "engine_documents"},
		"no right to write":   {url(role, cfg.Database, cfg.Port), func(db *store.DB) error { return applyTo(t, db) }, "deploy/rights/postgres.sql"},
		"the schema is empty": {d.URL, func(db *store.DB) error { return applyTo(t, db) }, "run `waymark migrate`"},
	} {
		schema := d.Schema
		if name == "the schema is empty" {
			schema = servicetest.Database(t).Schema
		}
		db, err := store.Open(t.Context(), store.Config{URL: test.url, Schema: schema})
		if err != nil {
			t.Fatal(err)
		}
		err = test.call(db)
		db.Close()
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), ":wm@") {
			t.Errorf("%s: %v; want one line with %q and without the password", name, err, test.want)
		}
		if errors.Is(err, workflow.ErrRejected) {
			t.Errorf("%s: %v is said to be the message's fault", name, err)
		}
	}
}

// A role that has been granted what CheckRights says it lacks, and no more, can
// apply whatever comes, and forget.
func TestCheckRightsIsComplete(t *testing.T) {
	t.Parallel()
	d := servicetest.Database(t)
	if _, err := another(t, d).Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	plain, role := raw(t, d), d.Schema+"_service"
	execute(t, plain, `CREATE ROLE `+role+` LOGIN PASSWORD 'wm'`)
	t.Cleanup(func() { plain.Exec(`DROP OWNED BY ` + role + `; DROP ROLE ` + role) })
	execute(t, plain, `GRANT USAGE ON SCHEMA `+d.Schema+` TO `+role)
	cfg, err := pgx.ParseConfig(d.URL)
	if err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(t.Context(), store.Config{Schema: d.Schema, MaxRunLogBytes: 2000,
		URL: fmt.Sprintf("postgres://%s:wm@%s:%d/%s?sslmode=disable", role, cfg.Host, cfg.Port, cfg.Database)})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	lacking := db.CheckRights(t.Context())
	if lacking == nil {
		t.Fatal("CheckRights of a role without rights: nil, want what it lacks")
	}
	for _, m := range regexp.MustCompile(`(SELECT|INSERT|UPDATE|DELETE) on ([a-z_]+(?:, [a-z_]+)*)`).FindAllStringSubmatch(lacking.Error(), -1) {
		execute(t, plain, `GRANT `+m[1]+` ON `+m[2]+` TO `+role)
	}
	if err := db.CheckRights(t.Context()); err != nil {
		t.Errorf("CheckRights after what it asked for: %v", err)
	}

	a, id := newApplier(db), runID()
	a.apply(t, trace(id)...)
	for range 3 {
		b := a.batch(workflow.Delivery{Digest: uuid.New(), Status: &workflow.StatusMessage{
			WorkflowID: id, Status: workflow.StatusRunning, EventTime: at(1), Logs: strings.Repeat("x", 1500)}})
		b.Settled = b.Number - 1
		if _, err := db.Apply(t.Context(), b); err != nil {
			t.Errorf("batch %d: %v", b.Number, err)
		}
	}
	next := load(100, 1)
	var many []workflow.Delivery
	for range 200 {
		many = append(many, next())
	}
	a.apply(t, many...)
	if _, err := db.Prune(t.Context(), time.Now().Add(time.Hour)); err != nil {
		t.Errorf("Prune: %v", err)
	}
}

func applyTo(t *testing.T, db *store.DB) error {
	_, err := db.Apply(t.Context(), newApplier(db).batch(trace(runID())...))
	return err
}
