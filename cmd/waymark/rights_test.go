package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/devstack"
	"waymark/internal/servicetest"
)

// rightsScript is a file of deploy/rights, which operators run.
func rightsScript(t testing.TB, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", "deploy", "rights", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func command(t testing.TB, env []string, stdin, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env, cmd.Stdin = append(os.Environ(), env...), strings.NewReader(stdin)
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", filepath.Base(name), args, err, said)
	}
}

// rightsOf runs deploy/rights/postgres.sql.
func rightsOf(t testing.TB, p *devstack.Postgres, settings ...string) {
	t.Helper()
	args := []string{"-X", "-q", "-d", p.URL(), "-f", rightsScript(t, "postgres.sql")}
	for _, s := range settings {
		args = append(args, "-v", s)
	}
	command(t, nil, "", p.Program("psql"), args...)
}

func as(t testing.TB, raw, user, password string) string {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal("a server's URL cannot be read")
	}
	u.User = url.UserPassword(user, password)
	return u.String()
}

func execute(t testing.TB, conn *pgx.Conn, statements ...string) {
	t.Helper()
	for _, s := range statements {
		if _, err := conn.Exec(t.Context(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

func connectTo(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

// The roles that the script makes can do their work, and nothing that they are
// granted is superfluous.
func TestRightsInPostgres(t *testing.T) {
	t.Parallel()
	p := servicetest.Postgres(t)
	admin := connectTo(t, p.URL())
	rightsOf(t, p)
	rightsOf(t, p) // again changes nothing
	execute(t, admin,
		"ALTER ROLE waymark_owner PASSWORD 'o'", "ALTER ROLE waymark_service PASSWORD 's'",
		"CREATE ROLE ada LOGIN PASSWORD 'a' IN ROLE waymark_reader")
	base := newSite(t).environment
	base["WAYMARK_DATABASE_SCHEMA"] = "waymark"
	owner := base.but("DATABASE_URL=" + as(t, p.URL(), "waymark_owner", "o"))
	service := base.but("DATABASE_URL=" + as(t, p.URL(), "waymark_service", "s"))
	reader := base.but("DATABASE_URL=" + as(t, p.URL(), "ada", "a"))

	service.run(t, "migrate").want(t, exitUnreachable)
	owner.run(t, "migrate").want(t, exitOK)
	rightsOf(t, p) // nor after a migration

	serving := &site{environment: service}
	server := serving.serve(t, "--no-migrate")
	base.runWith(t.Context(), oneStatus, "publish", "status").want(t, exitOK)
	awaitRun(t, service, "11111111", "running")
	for _, args := range [][]string{
		{"list"}, {"status", "11111111"}, {"jobs", "11111111"}, {"logs", "11111111"}, {"history", "11111111"}, {"ledger"},
	} {
		reader.run(t, args...).want(t, exitOK)
	}
	reading := connectTo(t, reader["WAYMARK_DATABASE_URL"])
	for _, view := range []string{"workflow_status", "job_status", "workflow_logs", "status_history", "ledger_balance", "reana_workflow_status"} {
		execute(t, reading, "SELECT * FROM waymark."+view)
	}
	for _, forbidden := range []string{
		"UPDATE waymark.workflows SET name = 'x'", "INSERT INTO waymark.ledger DEFAULT VALUES", "DELETE FROM waymark.jobs",
		"TRUNCATE waymark.workflows", "CREATE TABLE waymark.mine (i integer)", "DROP VIEW waymark.job_status",
	} {
		if _, err := reading.Exec(t.Context(), forbidden); err == nil || !strings.Contains(err.Error(), "42501") {
			t.Errorf("the reader may %s: %v", forbidden, err)
		}
	}
	working := connectTo(t, service["WAYMARK_DATABASE_URL"])
	for _, forbidden := range []string{"CREATE TABLE waymark.mine (i integer)", "DROP TABLE waymark.jobs", "TRUNCATE waymark.workflows", "ALTER TABLE waymark.jobs ADD x integer"} {
		if _, err := working.Exec(t.Context(), forbidden); err == nil || !strings.Contains(err.Error(), "42501") {
			t.Errorf("the service may %s: %v", forbidden, err)
		}
	}
	// A table of a later migration is covered.
	execute(t, admin, "SET ROLE waymark_owner", "CREATE TABLE waymark.later (i integer)", "RESET ROLE")
	execute(t, working, "INSERT INTO waymark.later VALUES (1)", "UPDATE waymark.later SET i = 2", "DELETE FROM waymark.later")
	execute(t, reading, "SELECT * FROM waymark.later")
	server.stop(t, exitOK)

	for right, says := range map[string]string{
		"SELECT ON ALL TABLES": "SELECT on",
		"INSERT ON ALL TABLES": "INSERT on",
		"UPDATE ON ALL TABLES": "UPDATE on",
		"DELETE ON ALL TABLES": "DELETE on ledger, log_chunks, recent_deliveries, seen_batches, seen_messages",
		"USAGE ON":             "permission denied for schema",
	} {
		words := right
		if strings.HasSuffix(right, "TABLES") {
			words += " IN"
		}
		execute(t, admin, "REVOKE "+words+" SCHEMA waymark FROM waymark_service")
		lacking := (&site{environment: service}).start(t, "serve", "--no-migrate")
		servicetest.Eventually(t, patience, "serve without "+right+" says so", func() error {
			if said := lacking.stderr.String(); !strings.Contains(said, says) && !(strings.HasPrefix(right, "SELECT") && strings.Contains(said, "permission denied for table")) ||
				!strings.Contains(said, "deploy/rights/postgres.sql") {
				return fmt.Errorf("it says %s", said)
			}
			return nil
		})
		lacking.stop(t, exitOK)
		execute(t, admin, "GRANT "+words+" SCHEMA waymark TO waymark_service")
	}
	for _, right := range []string{"SELECT ON ALL TABLES IN", "USAGE ON"} {
		execute(t, admin, "REVOKE "+right+" SCHEMA waymark FROM waymark_reader")
		if got := reader.run(t, "list").want(t, exitUnreachable); !strings.Contains(got.stderr, "permission denied") || !strings.Contains(got.stderr, "deploy/rights/postgres.sql") {
			t.Errorf("the reader without %s is told %q", right, got.stderr)
		}
		execute(t, admin, "GRANT "+right+" SCHEMA waymark TO waymark_reader")
	}
}

// Other names, with all that may be in a name, and a database that has been
// migrated before.
func TestRightsInPostgresOfOtherNames(t *testing.T) {
	t.Parallel()
	p := servicetest.Postgres(t)
	names := []string{"schema=runs", `owner=the "owner"`, "service=serve-me", "reader=O'Reader"}
	rightsOf(t, p, names...)
	var roles []string
	rows, err := connectTo(t, p.URL()).Query(t.Context(), `SELECT rolname::text FROM pg_roles WHERE rolname IN ('the "owner"', 'serve-me', 'O''Reader') AND has_schema_privilege(oid, 'runs', 'USAGE')`)
	if err != nil {
		t.Fatal(err)
	}
	if roles, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil || len(roles) != 3 {
		t.Errorf("the roles %q may use the schema, want three (%v)", roles, err)
	}
}

// The users that the script makes can do their work, and nothing that they are
// granted is superfluous.
func TestRightsInRabbitMQ(t *testing.T) {
	t.Parallel()
	r := servicetest.RabbitMQ(t)
	ctl, env := r.Command()
	s := newSite(t)
	s.status, s.submission = "jobs-status", "work.flow" // a dot is any character in a regular expression
	env = append(env, "RABBITMQCTL="+ctl, "WAYMARK_BROKER_SUBMISSION_QUEUE="+s.submission)
	for range 2 { // again changes nothing
		for _, role := range []string{"service", "engine", "operator"} {
			command(t, env, "pass of "+role+"\n", rightsScript(t, "rabbitmq.sh"), role, "the-"+role)
		}
	}
	user := func(role string) environment {
		return s.but("BROKER_URL="+as(t, r.URL(), "the-"+role, "pass of "+role), "BROKER_STATUS_QUEUE="+s.status, "BROKER_SUBMISSION_QUEUE="+s.submission, "PUBLISHER_TIMEOUT=20s")
	}
	service, engine, operator := user("service"), user("engine"), user("operator")

	early := engine.runWith(t.Context(), oneStatus, "publish", "status").want(t, exitUnreachable)
	if !strings.Contains(early.stderr, "configure permission") {
		t.Errorf("an engine before the first start of the service is told %q, want what to do", early.stderr)
	}
	server := (&site{environment: service}).serve(t)
	engine.runWith(t.Context(), oneStatus, "publish", "status").want(t, exitOK)
	awaitRun(t, service, "11111111", "running")
	spoil(t, engine["WAYMARK_BROKER_URL"], s.status)
	servicetest.Eventually(t, patience, "the operator sees a dead letter", func() error {
		if got := operator.run(t, "dead-letters", "list"); got.code != exitOK || !strings.Contains(got.stdout, "not-json") {
			return fmt.Errorf("%d %s%s", got.code, got.stdout, got.stderr)
		}
		return nil
	})
	operator.run(t, "ledger").want(t, exitOK)
	server.stop(t, exitOK)

	for _, test := range []struct {
		user    environment
		what    string
		do      func(*amqp.Channel) error
		allowed bool
	}{
		{service, "declare the submission queue", declare(s.submission, true), true},
		{service, "declare another queue", declare("other", false), false},
		{service, "declare a queue that the dot would let in", declare("workXflow", false), false},
		{service, "read a dead-letter queue", get(s.status + ".dead-letter"), false},
		{engine, "read the status queue", get(s.status), false},
		{engine, "read a dead-letter queue", get(s.status + ".dead-letter"), false},
		{engine, "consume the status queue", consume(s.status), false},
		{engine, "declare a queue", declare("other", false), false},
		{engine, "delete the status queue", remove(s.status), false},
		{engine, "purge the status queue", purge(s.status), false},
		{operator, "read a dead-letter queue", get(s.status + ".dead-letter"), true},
		{operator, "read the status queue", get(s.status), false},
		{operator, "delete a dead-letter queue", remove(s.status + ".dead-letter"), false},
		{operator, "declare a queue", declare("other", false), false},
		{operator, "declare a queue of its own", declare("", false), true},
	} {
		conn, err := amqp.Dial(test.user["WAYMARK_BROKER_URL"])
		if err != nil {
			t.Fatal(err)
		}
		ch, err := conn.Channel()
		if err != nil {
			t.Fatal(err)
		}
		err = test.do(ch)
		refusal, refused := err.(*amqp.Error)
		switch {
		case test.allowed && err != nil:
			t.Errorf("%s: %v, want it allowed", test.what, err)
		case !test.allowed && (!refused || refusal.Code != amqp.AccessRefused):
			t.Errorf("%s: %v, want it refused", test.what, err)
		}
		conn.Close()
	}

	// Without any one of them something fails, and says what.
	none := "^$"
	rights := map[string][3]string{
		"the-service":  {`^(jobs-status|work\.flow)(\.dead-letter)?$`, `^amq\.default$`, `^(jobs-status|work\.flow)$`},
		"the-engine":   {none, `^amq\.default$`, none},
		"the-operator": {`^amq\.gen-.*$`, `^amq\.default$`, `^((jobs-status|work\.flow)\.dead-letter|amq\.gen-.*)$`},
	}
	set := func(who string, three [3]string) {
		t.Helper()
		if _, err := r.Ctl(t.Context(), "set_permissions", who, three[0], three[1], three[2]); err != nil {
			t.Fatal(err)
		}
	}
	without := func(who string, i int) {
		three := rights[who]
		three[i] = none
		set(who, three)
	}
	said, err := r.Ctl(t.Context(), "-q", "list_permissions", "--no-table-headers")
	if err != nil {
		t.Fatal(err)
	}
	for who, three := range rights {
		if line := who + "\t" + strings.Join(three[:], "\t"); !strings.Contains(said, line) {
			t.Errorf("the script granted\n%swant the line\n%s", said, line)
		}
	}
	without("the-engine", 1)
	if got := engine.but("PUBLISHER_TIMEOUT=3s").runWith(t.Context(), oneStatus, "publish", "status").want(t, exitUnreachable); !strings.Contains(got.stderr, "amq.default") {
		t.Errorf("an engine that may not write is told %q", got.stderr)
	}
	without("the-operator", 2)
	if got := operator.run(t, "dead-letters", "list").want(t, exitUnreachable); !strings.Contains(got.stderr, "access to queue 'jobs-status.dead-letter'") {
		t.Errorf("an operator who may not read is told %q", got.stderr)
	}
	for i, says := range []string{"configure permission", "exchange 'amq.default'", "access to queue"} {
		set("the-service", rights["the-service"])
		if i == 0 {
			command(t, env, "", ctl, "-q", "delete_queue", s.submission)
		}
		without("the-service", i)
		server := (&site{environment: service}).start(t, "serve")
		if i == 1 { // a dead letter is what it writes
			spoil(t, r.URL(), s.status)
		}
		servicetest.Eventually(t, patience, "serve without a right says so", func() error {
			if said := server.stderr.String(); !strings.Contains(said, says) {
				return fmt.Errorf("no %q in %s", says, said)
			}
			return nil
		})
		server.cancel()
		server.wait(t)
	}
	t.Run("usage", func(t *testing.T) {
		for _, args := range [][]string{nil, {"owner", "x"}, {"service"}} {
			cmd := exec.CommandContext(t.Context(), rightsScript(t, "rabbitmq.sh"), args...)
			if err := cmd.Run(); err == nil || cmd.ProcessState.ExitCode() != exitUsage {
				t.Errorf("rabbitmq.sh %q ended with %v, want exit status %d", args, err, exitUsage)
			}
		}
	})
}

// What the manual says to type in RabbitMQ makes users that work, in a virtual
// host of Waymark's own.
func TestRightsAsTheManualSays(t *testing.T) {
	t.Parallel()
	r := servicetest.RabbitMQ(t)
	ctl, env := r.Command()
	folder := t.TempDir()
	for _, role := range []string{"service", "engine", "operator"} {
		if err := os.WriteFile(filepath.Join(folder, role+"-password"), []byte("pass of "+role+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, manual, _ := strings.Cut(readText(t, operations), "\n## Rights\n")
	shell := blocks(manual, "sh")[1]
	root := strings.TrimSuffix(rightsScript(t, ""), "/deploy/rights")
	command(t, append(env, "CTL="+ctl, "RABBITMQCTL="+ctl), "", "sh", "-euc",
		`rabbitmqctl() { "$CTL" -q "$@"; }; cd "$0"; ln -s "$1/deploy" deploy; `+shell, folder, root)

	s := newSite(t)
	user := func(role, name string) environment {
		return s.but("BROKER_URL="+as(t, r.URL()+"/waymark", name, "pass of "+role), "BROKER_STATUS_QUEUE=", "BROKER_SUBMISSION_QUEUE=", "PUBLISHER_TIMEOUT=20s")
	}
	(&site{environment: user("service", "waymark-service")}).serve(t)
	user("engine", "waymark-engine").runWith(t.Context(), oneStatus, "publish", "status").want(t, exitOK)
	awaitRun(t, s.environment, "11111111", "running")
	user("operator", "waymark-operator").run(t, "dead-letters", "list").want(t, exitOK)
}

// spoil publishes what cannot be read.
func spoil(t testing.TB, url, queue string) {
	t.Helper()
	conn, err := amqp.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	confirm, err := ch.PublishWithDeferredConfirmWithContext(t.Context(), "", queue, true, false, amqp.Publishing{Body: []byte("no JSON")})
	if err == nil {
		_, err = confirm.WaitContext(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func declare(name string, submission bool) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error {
		var args amqp.Table
		if submission {
			args = amqp.Table{"x-max-priority": int32(100)}
		}
		_, err := ch.QueueDeclare(name, submission, !submission, !submission, false, args)
		return err
	}
}

func get(name string) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error { _, _, err := ch.Get(name, false); return err }
}

func consume(name string) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error {
		_, err := ch.Consume(name, "", false, false, false, false, nil)
		return err
	}
}

func remove(name string) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error { _, err := ch.QueueDelete(name, false, false, false); return err }
}

func purge(name string) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error { _, err := ch.QueuePurge(name, false); return err }
}
