package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/servicetest"
)

// What must be in no log and no error: passwords, and all that a message holds.
// Each is a word of its own, so that a leak says where it came from.
const (
	brokerSecret   = "broker-s3cret"
	databaseSecret = "database-s3cret"
	bodySecret     = "body-s3cret"
	logSecret      = "log-s3cret"
	headerSecret   = "header-s3cret"
	labelSecret    = "label-s3cret"
)

var allSecrets = []string{brokerSecret, databaseSecret, bodySecret, logSecret, headerSecret, labelSecret}

// leaks says which secrets a text holds.
func leaks(text string) (found []string) {
	for _, secret := range allSecrets {
		if i := strings.Index(text, secret); i >= 0 {
			found = append(found, fmt.Sprintf("%s in …%q…", secret, text[max(0, i-100):min(len(text), i+60)]))
		}
	}
	return found
}

func edited(t testing.TB, raw string, edit func(*url.URL)) string {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal("a server's URL cannot be read")
	}
	edit(u)
	return u.String()
}

// Whatever fails, at the most talkative level, in both forms of the log.
func TestNoSecretIsLogged(t *testing.T) {
	t.Parallel()
	for _, form := range []string{"text", "json"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.environment = s.but("LOG_LEVEL=debug", "LOG_FORMAT="+form, "PUBLISHER_TIMEOUT=3s", "CONSUMER_MAX_MESSAGE_BYTES=100000")
			admin := connectTo(t, s.database.URL)
			role := strings.ReplaceAll(s.database.Schema, "wm_test", "wm_role")
			execute(t, admin, fmt.Sprintf("CREATE ROLE %s LOGIN SUPERUSER PASSWORD '%s'", role, databaseSecret))
			t.Cleanup(func() {
				if conn, err := pgx.Connect(context.WithoutCancel(t.Context()), s.database.URL); err == nil {
					_, _ = conn.Exec(context.WithoutCancel(t.Context()), "DROP ROLE "+role)
					conn.Close(context.WithoutCancel(t.Context()))
				}
			})
			database := as(t, s.database.URL, role, databaseSecret)
			s.environment = s.but("DATABASE_URL=" + database)

			var said strings.Builder
			hear := func(what, output string) {
				fmt.Fprintf(&said, "%s\n", output)
				for _, leak := range leaks(output) {
					t.Errorf("%s leaks %s", what, leak)
				}
			}
			say := func(e environment, stdin string, args ...string) outcome {
				t.Helper()
				got := e.runWith(t.Context(), stdin, args...)
				hear(fmt.Sprintf("the standard error of waymark %q", args), got.stderr)
				return got
			}

			server := s.serve(t)
			id := uuid.NewString()
			submission := fmt.Sprintf(`{"user": "u", "workflow_id_or_name": %q, "name": "n", "labels": {"k": %q}, "parameters": {"input_parameters": {"p": %q}}}`, id, labelSecret, bodySecret)
			status := fmt.Sprintf(`{"workflow_uuid": %q, "status": 1, "logs": %q, "message": {"progress": {"running": {"total": 1, "job_ids": ["j"]}}, "jobs": [{"job_id": "j", "status": "running", "command": %q}]}}`, id, logSecret, bodySecret)
			if got := say(s.environment, submission, "publish", "submission"); got.code != exitOK {
				t.Fatal(got.stderr)
			}
			if got := say(s.environment, status, "publish", "status"); got.code != exitOK {
				t.Fatal(got.stderr)
			}
			awaitRun(t, s.environment, id, "running")

			// Messages that die of every cause, or that the database refuses.
			conn, err := amqp.Dial(s.amqp)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			ch, err := conn.Channel()
			if err != nil {
				t.Fatal(err)
			}
			execute(t, admin, fmt.Sprintf(`ALTER TABLE %s.log_chunks ADD CONSTRAINT no_poison CHECK (body NOT LIKE '%%poison%%')`, s.database.Schema))
			deep := strings.Repeat(`{"a":`, 3000) + `"` + bodySecret + `"` + strings.Repeat("}", 3000)
			bodies := []string{
				bodySecret, `{"` + bodySecret, `{"workflow_uuid": 5, "status": 1, "logs": "` + logSecret + `"}`,
				`{"workflow_uuid": "` + id + `", "status": 1, "message": {"jobs": [{"job_id": "j", "status": "nonsense", "command": "` + bodySecret + `"}]}}`,
				`{"workflow_uuid": "` + id + `", "status": 1, "message": {"engine_specific": ` + deep + `}}`,
				strings.Repeat(bodySecret, 10_000), "\xff\xfe" + bodySecret,
				`{"workflow_uuid": "` + id + `", "status": 1, "logs": "poison ` + logSecret + `"}`,
			}
			for _, body := range bodies {
				if err := ch.PublishWithContext(t.Context(), "", s.status, false, false, amqp.Publishing{Body: []byte(body), Headers: amqp.Table{"authorization": headerSecret}}); err != nil {
					t.Fatal(err)
				}
			}
			servicetest.Eventually(t, patience, "all of them are dead", func() error {
				got := s.run(t, "dead-letters", "list", "--each", "--json")
				if n := strings.Count(got.stdout, `"reason"`); got.code != exitOK || n < len(bodies) {
					return fmt.Errorf("%d of %d: %s", n, len(bodies), got.stderr)
				}
				return nil
			})
			say(s.environment, "", "dead-letters", "list")
			say(s.environment, "", "dead-letters", "replay", "--all")
			// Whoever publishes a message is told which value of it is wrong: that is
			// an answer to them, and no log.
			for _, body := range bodies {
				got := s.runWith(t.Context(), body, "publish", "status")
				if strings.Contains(got.stderr, databaseSecret) || len(got.stderr) > 1000 {
					t.Errorf("the fault of a message is told as %q", got.stderr)
				}
			}
			for _, args := range [][]string{{"list"}, {"status", id}, {"jobs", id}, {"logs", id}, {"history", id}, {"watch", id, "--timeout", "1ms"}, {"ledger"}} {
				say(s.environment, "", args...)
			}

			// The database: a wrong password, no such database, a revoked right, a
			// broken statement, a session that is killed.
			wrong := s.but("DATABASE_URL=" + edited(t, database, func(u *url.URL) { u.User = url.UserPassword(role+"x", databaseSecret) }))
			nowhere := s.but("DATABASE_URL=" + edited(t, database, func(u *url.URL) { u.Host = "127.0.0.1:1" }))
			missing := s.but("DATABASE_URL=" + edited(t, database, func(u *url.URL) { u.Path = "/no-such" }))
			secure := s.but("DATABASE_URL=" + edited(t, database, func(u *url.URL) { u.RawQuery = "sslmode=verify-full" }))
			for _, e := range []environment{wrong, nowhere, missing, secure} {
				for _, args := range [][]string{{"list"}, {"migrate"}, {"ledger"}} {
					if got := say(e, "", args...); got.code == exitOK {
						t.Errorf("waymark %q works without a database", args)
					}
				}
			}
			execute(t, admin, fmt.Sprintf(`ALTER TABLE %s.jobs RENAME TO jobs_away`, s.database.Schema))
			say(s.environment, status, "publish", "status")
			servicetest.Eventually(t, patience, "serve tells of the missing table", func() error {
				if out := server.stderr.String(); !strings.Contains(out, "jobs") || !strings.Contains(out, "does not exist") {
					return errors.New(out)
				}
				return nil
			})
			say(s.environment, "", "jobs", id)
			execute(t, admin, fmt.Sprintf(`ALTER TABLE %s.jobs_away RENAME TO jobs`, s.database.Schema),
				fmt.Sprintf(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '%s'`, role))
			awaitReady(t, server.url(t), 200)

			// The broker: a wrong password, nobody there, another virtual host, no TLS.
			broker := edited(t, s.amqp, func(u *url.URL) { u.User = url.UserPassword("waymark", brokerSecret) })
			for _, raw := range []string{
				broker,
				edited(t, broker, func(u *url.URL) { u.Host = "127.0.0.1:1" }),
				edited(t, broker, func(u *url.URL) { u.Host = "no-such-host.invalid" }),
				edited(t, broker, func(u *url.URL) { u.Scheme = "amqps" }),
				edited(t, broker, func(u *url.URL) { u.Path = "/" + "no-such" }),
				strings.Replace(broker, "@", "#@", 1), strings.Replace(broker, "@", "/x@", 1), strings.Replace(broker, "amqp:", "postgres:", 1), "amqp:" + brokerSecret,
			} {
				e := s.but("BROKER_URL="+raw, "PUBLISHER_TIMEOUT=500ms")
				if got := say(e, status, "publish", "status"); got.code == exitOK {
					t.Errorf("publish works without a broker")
				}
				say(e, "", "dead-letters", "list")
				say(e, "", "config", "print", "--json")
				hear("config print", e.run(t, "config", "print").stdout)
				e["WAYMARK_PUBLISHER_SPOOL_DIR"] = t.TempDir()
				say(e, "", "run", "serial", "-f", reanaYAML(t, "true"), "--final-timeout", "10ms", "--workspace", t.TempDir(), "--label", "k="+labelSecret)
			}
			for _, raw := range []string{"postgres://u:" + databaseSecret + "#x@h/d", "postgres://u:" + databaseSecret + "@h:notaport/d", "host=h password=" + databaseSecret + " sslmode=nonsense", "host=h 'password=" + databaseSecret} {
				e := s.but("DATABASE_URL=" + raw)
				say(e, "", "list")
				hear("config print", e.run(t, "config", "print").stdout)
			}
			doomed := s.but("BROKER_URL="+broker, "DATABASE_URL="+wrong["WAYMARK_DATABASE_URL"]).start(t, "serve")
			ready := doomed.url(t) + "/readyz"
			servicetest.Eventually(t, patience, "a service without servers says why", func() error {
				_, body := httpGet(t, ready)
				hear("/readyz", body)
				if !strings.Contains(body, "refuses the login") {
					return errors.New(body)
				}
				return nil
			})
			doomed.stop(t, exitOK)
			hear("serve without servers", doomed.stderr.String())

			_, metrics := httpGet(t, server.url(t)+"/metrics")
			hear("/metrics", metrics)
			server.stop(t, exitOK)
			hear("serve", server.stderr.String())
			if said.Len() < 10_000 {
				t.Errorf("only %d bytes were looked at: the failures did not happen", said.Len())
			}
		})
	}
}

// What others on the machine can see is warned of, and not shown.
func TestExposedSecrets(t *testing.T) {
	open := func(name, content string) string {
		t.Helper()
		path := "/tmp/" + name + "-" + uuid.NewString() // every user may pass through /tmp
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(path) })
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	password := open("password", databaseSecret)
	file := open("waymark.yaml", "broker:\n  url: amqp://u:"+brokerSecret+"@h\n")
	harmless := open("other.yaml", "broker:\n  url: amqp://u@h\n")
	for _, test := range []struct {
		name string
		env  environment
		args []string
		want string // empty: nothing is said
	}{
		{"flag", environment{}, []string{"--broker-url", "amqp://u:" + brokerSecret + "@h"}, "WAYMARK_BROKER_URL or broker.password_file"},
		{"flag of words", environment{}, []string{"--database-url", "host=h password=" + databaseSecret}, "WAYMARK_DATABASE_URL or database.password_file"},
		{"flag without a password", environment{}, []string{"--broker-url", "amqp://u@h", "--database-url", "postgres://u@h/d"}, ""},
		{"environment", environment{"WAYMARK_BROKER_URL": "amqp://u:" + brokerSecret + "@h"}, nil, ""},
		{"password file that all can read", environment{"WAYMARK_DATABASE_PASSWORD_FILE": password}, nil, "chmod o-r"},
		{"password file of one's own", environment{"WAYMARK_DATABASE_PASSWORD_FILE": writeFile(t, "password", databaseSecret)}, nil, ""},
		{"password file in a folder of one's own", environment{"WAYMARK_DATABASE_PASSWORD_FILE": closed(t, databaseSecret)}, nil, ""},
		{"configuration that all can read", environment{}, []string{"--config", file}, "chmod o-r"},
		{"configuration without a secret", environment{}, []string{"--config", harmless}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := test.env.run(t, append([]string{"config", "print"}, test.args...)...).want(t, exitOK)
			if !strings.Contains(got.stderr, test.want) || (test.want == "") != (got.stderr == "") {
				t.Errorf("standard error is %q, want %q in it", got.stderr, test.want)
			}
			for _, leak := range leaks(got.stderr + got.stdout) {
				t.Errorf("it leaks %s", leak)
			}
		})
	}
}

// closed is a file that its own rights would let everybody read, in a folder
// that they may not enter.
func closed(t testing.TB, content string) string {
	t.Helper()
	path := writeFile(t, "password", content)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path[:strings.LastIndexByte(path, '/')], 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// Endpoints that others can reach are warned of.
func TestListeningElsewhere(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for listen, want := range map[string]bool{"127.0.0.1:0": false, "localhost:0": false, "0.0.0.0:0": true, ":0": true} {
		p := s.but("HTTP_LISTEN="+listen).start(t, "serve")
		p.url(t)
		p.stop(t, exitOK)
		if got := strings.Contains(p.stderr.String(), "other machines can reach the endpoints"); got != want {
			t.Errorf("listening on %s: warned is %v, want %v; standard error:\n%s", listen, got, want, p.stderr.String())
		}
	}
}
