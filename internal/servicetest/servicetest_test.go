package servicetest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"
)

func TestMain(m *testing.M) { Main(m) }

func connect(t *testing.T, server string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), server)
	if err != nil {
		t.Fatalf("connecting to the test's database: %v", err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func exec1(t *testing.T, conn *pgx.Conn, statement string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func schemaExists(t *testing.T, conn *pgx.Conn, schema string) (there bool) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", schema).Scan(&there); err != nil {
		t.Fatalf("looking for schema %s: %v", schema, err)
	}
	return there
}

func TestDatabaseIsPrivateAndDropped(t *testing.T) {
	t.Parallel()
	var places [2]DB
	t.Run("use", func(t *testing.T) {
		for i := range places {
			places[i] = Database(t)
			conn := connect(t, places[i].URL)
			exec1(t, conn, "CREATE TABLE same_name (n int)") // would clash in one schema
			var at string
			if err := conn.QueryRow(t.Context(), "SELECT schemaname FROM pg_tables WHERE tablename = 'same_name' AND schemaname = current_schema()").Scan(&at); err != nil {
				t.Fatalf("finding the table just made: %v", err)
			}
			if at != places[i].Schema {
				t.Errorf("a table made through URL lies in schema %s, want %s", at, places[i].Schema)
			}
		}
	})
	conn := connect(t, databaseURL(t))
	for _, place := range places {
		if schemaExists(t, conn, place.Schema) {
			t.Errorf("schema %s is there after its test", place.Schema)
		}
	}
}

// An ordinary role that may create schemas is enough.
func TestDatabaseAsAnotherRole(t *testing.T) {
	t.Parallel()
	admin := connect(t, databaseURL(t))
	role := "wm_test_role_" + randomLetters()
	exec1(t, admin, "CREATE ROLE "+role+" LOGIN PASSWORD 'p@ss w/rd'")
	t.Cleanup(func() {
		if err := execute(databaseURL(t), "DROP OWNED BY "+role, "DROP ROLE "+role); err != nil {
			t.Errorf("dropping role %s: %v", role, err)
		}
	})
	var database string
	if err := admin.QueryRow(t.Context(), "SELECT current_database()").Scan(&database); err != nil {
		t.Fatalf("asking for the database's name: %v", err)
	}
	exec1(t, admin, "GRANT CREATE ON DATABASE "+pgx.Identifier{database}.Sanitize()+" TO "+role)
	u, err := url.Parse(databaseURL(t))
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, "p@ss w/rd")
	var schema string
	t.Run("use", func(t *testing.T) {
		place := DatabaseOf(t, u.String())
		schema = place.Schema
		exec1(t, connect(t, place.URL), "CREATE TABLE mine (n int)")
	})
	if schemaExists(t, admin, schema) {
		t.Errorf("schema %s is there after its test", schema)
	}
}

func TestQueuesAreDeleted(t *testing.T) {
	t.Parallel()
	conn, err := amqp.Dial(AMQP(t))
	if err != nil {
		t.Fatalf("dialling: %v", err)
	}
	defer conn.Close()
	var declared []string
	t.Run("use", func(t *testing.T) {
		channel, err := conn.Channel()
		if err != nil {
			t.Fatalf("opening a channel: %v", err)
		}
		defer channel.Close()
		status, submission := Queues(t)
		// submission.dead-letter is left undeclared.
		declared = []string{status, submission, status + ".dead-letter"}
		for _, name := range declared {
			if _, err := channel.QueueDeclare(name, true, false, false, false, nil); err != nil {
				t.Fatalf("declaring queue %q: %v", name, err)
			}
		}
		if err := channel.PublishWithContext(t.Context(), "", status, false, false, amqp.Publishing{Body: []byte("left over")}); err != nil {
			t.Fatalf("publishing: %v", err)
		}
	})
	for _, name := range declared {
		channel, err := conn.Channel()
		if err != nil {
			t.Fatalf("opening a channel: %v", err)
		}
		if _, err := channel.QueueDeclarePassive(name, true, false, false, false, nil); err == nil {
			t.Errorf("queue %q is there after its test", name)
		}
	}
}

func TestSearchPath(t *testing.T) {
	for _, tc := range []struct{ name, url, want, wantErr string }{
		{name: "plain", url: "postgres://u:p@h/d", want: "postgres://u:p@h/d?options=-c%20search_path%3Ds"},
		{name: "with options", url: "postgresql://h/d?options=-c%20a%3Db&sslmode=disable", want: "postgresql://h/d?options=-c%20a%3Db%20-c%20search_path%3Ds&sslmode=disable"},
		{name: "not a URL", url: "host=h dbname=d", wantErr: "must begin with postgres://"},
		{name: "bad port", url: "postgres://u:secret@h:x/d", wantErr: "invalid port"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := withSearchPath(tc.url, "s")
			switch {
			case tc.wantErr != "":
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Errorf("withSearchPath(%q) = %v, want an error with %q", tc.url, err, tc.wantErr)
				} else if strings.Contains(err.Error(), "secret") {
					t.Errorf("the error shows the password: %v", err)
				}
			case err != nil || got != tc.want:
				t.Errorf("withSearchPath(%q) = %q, %v, want %q", tc.url, got, err, tc.want)
			}
		})
	}
}

// childVariable makes TestInChild do what must fail, in a process of its own.
const childVariable = "WAYMARK_SERVICETEST_CHILD"

var misuses = map[string]func(*testing.T){
	"ask for queues":   func(t *testing.T) { Queues(t) },
	"ask for a schema": func(t *testing.T) { Database(t) },
	"leave a session open": func(t *testing.T) {
		conn, err := pgx.Connect(t.Context(), Database(t).URL)
		if err != nil {
			t.Fatal(err)
		}
		for _, statement := range []string{"CREATE TABLE locked (n int)", "BEGIN", "INSERT INTO locked VALUES (1)"} {
			exec1(t, conn, statement)
		}
	},
	"wait for ever": func(t *testing.T) {
		Eventually(t, 30*time.Millisecond, "the moon", func() error { return errors.New("it is made of stone") })
	},
}

func TestInChild(t *testing.T) {
	if name := os.Getenv(childVariable); name != "" {
		misuses[name](t)
		return
	}
	t.Parallel()
	nobody := "127.0.0.1:1" // tcpmux: nobody has it
	for _, tc := range []struct {
		name, misuse, env string
		want              []string
	}{
		{"named RabbitMQ does not answer", "ask for queues", amqpVariable + "=amqp://u:secret@" + nobody, []string{"deleting the queues", "connection refused"}},
		{"named PostgreSQL does not answer", "ask for a schema", databaseVariable + "=postgres://u:secret@" + nobody + "/d", []string{"making a schema", "connection refused"}},
		{"session left open", "leave a session open", databaseVariable + "=" + databaseURL(t), []string{"still locked", "connection was left open"}},
		{"never true", "wait for ever", "", []string{"the moon: not within 30ms; at last: it is made of stone"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestInChild$")
			cmd.Env = append(os.Environ(), childVariable+"="+tc.misuse, tc.env)
			output, err := cmd.CombinedOutput()
			if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 {
				t.Fatalf("the test process: %v, want exit status 1; it wrote:\n%s", err, output)
			}
			for _, want := range tc.want {
				if !strings.Contains(string(output), want) {
					t.Errorf("the failure does not say %q:\n%s", want, output)
				}
			}
			if strings.Contains(string(output), "secret") {
				t.Errorf("the failure shows a password:\n%s", output)
			}
		})
	}
}

func TestEventually(t *testing.T) {
	calls := 0
	Eventually(t, time.Minute, "the third call", func() error {
		if calls++; calls < 3 {
			return fmt.Errorf("call %d", calls)
		}
		return nil
	})
	if calls != 3 {
		t.Errorf("check was called %d times, want 3: until it is content and no more", calls)
	}
}
