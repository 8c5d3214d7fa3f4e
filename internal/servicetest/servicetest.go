// Package servicetest gives a test a real RabbitMQ and a real PostgreSQL, and in
// them a corner of its own: queues and a schema that nobody else uses and that
// are gone afterwards. Tests may therefore run in parallel, and several test
// processes on the same servers.
//
// A package that uses it says so in one line, which stops what was started:
//
//	func TestMain(m *testing.M) { servicetest.Main(m) }
//
// The servers are those that WAYMARK_TEST_AMQP_URL and
// WAYMARK_TEST_DATABASE_URL name. Where a variable is not set, the first test
// that asks starts a private server for the whole test process. A server that is
// named and does not answer, or is not installed, fails the test: nothing is
// skipped.
//
// A test that stops, kills or pauses a server asks for one of its own: [Stack],
// [RabbitMQ], [Postgres].
package servicetest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/devstack"
)

const (
	amqpVariable     = "WAYMARK_TEST_AMQP_URL"
	databaseVariable = "WAYMARK_TEST_DATABASE_URL"
)

// cleanupTimeout bounds the removal of what one test used.
const cleanupTimeout = 30 * time.Second

// shared is one server for all tests of the process.
type shared struct {
	once  sync.Once
	url   string
	err   error
	close func() error
}

var (
	sharedRabbitMQ, sharedPostgres shared
	// mainRuns: without Main nobody would stop the servers.
	mainRuns atomic.Bool
)

// Main runs the tests, stops the servers that they made it start, and exits.
func Main(m *testing.M) {
	mainRuns.Store(true)
	code := m.Run()
	for _, s := range []*shared{&sharedRabbitMQ, &sharedPostgres} {
		if s.close == nil {
			continue
		}
		if err := s.close(); err != nil {
			fmt.Fprintf(os.Stderr, "servicetest: stopping a server: %v\n", err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// start returns the server's URL, and starts it at the first call.
func (s *shared) start(t testing.TB, variable string, private func(context.Context) (url string, close func() error, err error)) string {
	t.Helper()
	s.once.Do(func() {
		if s.url = os.Getenv(variable); s.url != "" {
			return
		}
		if !mainRuns.Load() {
			s.err = errors.New("add to this package: func TestMain(m *testing.M) { servicetest.Main(m) }")
			return
		}
		// Not the test's context: the server outlives the test.
		s.url, s.close, s.err = private(context.Background())
	})
	if s.err != nil {
		t.Fatalf("servicetest: %v\n(or set %s to a running server)", s.err, variable)
	}
	return s.url
}

// AMQP is the URL of a RabbitMQ that all tests share. Use [Queues] in it.
func AMQP(t testing.TB) string {
	t.Helper()
	return sharedRabbitMQ.start(t, amqpVariable, func(ctx context.Context) (string, func() error, error) {
		r, err := devstack.StartRabbitMQ(ctx, devstack.Options{})
		if err != nil {
			return "", nil, err
		}
		return r.URL(), r.Close, nil
	})
}

// databaseURL is the URL of a PostgreSQL that all tests share.
func databaseURL(t testing.TB) string {
	t.Helper()
	return sharedPostgres.start(t, databaseVariable, func(ctx context.Context) (string, func() error, error) {
		p, err := devstack.StartPostgres(ctx, devstack.Options{})
		if err != nil {
			return "", nil, err
		}
		return p.URL(), p.Close, nil
	})
}

// DB is a schema of a test's own.
type DB struct {
	// URL names the server, and Schema as the search path of its sessions.
	URL string
	// Schema exists, is empty, and is dropped after the test.
	Schema string
}

// Database makes an empty schema, wm_test_ and random letters, and drops it
// after the test with all that is in it. The role of the URL needs no more than
// the right to create schemas in its database.
func Database(t testing.TB) DB {
	t.Helper()
	return databaseIn(t, databaseURL(t))
}

func databaseIn(t testing.TB, server string) DB {
	t.Helper()
	place := DB{Schema: "wm_test_" + randomLetters()}
	var err error
	if place.URL, err = withSearchPath(server, place.Schema); err != nil {
		t.Fatalf("servicetest: reading %s: %v", databaseVariable, err)
	}
	schema := pgx.Identifier{place.Schema}.Sanitize()
	if err := execute(server, "CREATE SCHEMA "+schema); err != nil {
		hint := ""
		if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "42501" { // insufficient_privilege
			hint = "\nthe role must be allowed to: GRANT CREATE ON DATABASE … TO …"
		}
		t.Fatalf("servicetest: making a schema for the test: %v%s", err, hint)
	}
	t.Cleanup(func() {
		// A session that the test forgot to close may hold a lock for ever.
		err := execute(server, "SET lock_timeout = '10s'", "DROP SCHEMA "+schema+" CASCADE")
		if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "55P03" { // lock_not_available
			t.Errorf("servicetest: schema %s is still locked after the test: a connection was left open in a transaction", place.Schema)
		} else if err != nil {
			t.Errorf("servicetest: dropping the schema of the test: %v", err)
		}
	})
	return place
}

// execute runs statements in a session of their own.
func execute(server string, statements ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		return fmt.Errorf("connecting: %w", err)
	}
	defer conn.Close(ctx)
	for _, statement := range statements {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// withSearchPath adds a search path to a database URL, in the way that both pgx
// and libpq, and so psql, understand.
func withSearchPath(server, schema string) (string, error) {
	u, err := url.Parse(server)
	if err != nil {
		if parse, ok := errors.AsType[*url.Error](err); ok {
			err = parse.Err // the whole would show the password
		}
		return "", err
	}
	if u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return "", errors.New("it must begin with postgres:// or postgresql://")
	}
	query := u.Query()
	query.Set("options", strings.TrimSpace(query.Get("options")+" -c search_path="+schema))
	// libpq does not read "+" as a space.
	u.RawQuery = strings.ReplaceAll(query.Encode(), "+", "%20")
	return u.String(), nil
}

// Queues names two queues for a test: neither exists, and both, and their
// dead-letter queues, are deleted after the test if it declared them.
func Queues(t testing.TB) (status, submission string) {
	t.Helper()
	return queuesIn(t, AMQP(t))
}

func queuesIn(t testing.TB, server string) (status, submission string) {
	t.Helper()
	prefix := "wm-test-" + randomLetters()
	status, submission = prefix+"-status", prefix+"-submission"
	t.Cleanup(func() {
		if err := deleteQueues(server, status, submission, status+".dead-letter", submission+".dead-letter"); err != nil {
			t.Errorf("servicetest: deleting the queues of the test: %v", err)
		}
	})
	return status, submission
}

// deleteQueues deletes queues with all that is in them. RabbitMQ does not mind
// deleting one that is not there.
func deleteQueues(server string, names ...string) error {
	conn, err := amqp.DialConfig(server, amqp.Config{Dial: amqp.DefaultDial(cleanupTimeout)})
	if err != nil {
		return fmt.Errorf("connecting: %w", err)
	}
	defer conn.Close()
	for _, name := range names {
		// An error closes the channel, so each queue has its own.
		channel, err := conn.Channel()
		if err != nil {
			return fmt.Errorf("opening a channel: %w", err)
		}
		if _, err := channel.QueueDelete(name, false, false, false); err != nil {
			return fmt.Errorf("deleting queue %q: %w", name, err)
		}
		channel.Close()
	}
	return nil
}

// randomLetters are good in the name of a schema and of a queue.
func randomLetters() string { return strings.ToLower(rand.Text())[:16] }

// Eventually calls check until it returns nil, and fails the test when it has
// not within timeout. What names what is waited for; the failure shows it with
// the last error of check. Call it from the test's own goroutine.
func Eventually(t testing.TB, timeout time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().Add(pause).After(deadline) {
			t.Fatalf("%s: not within %v; at last: %v", what, timeout, err)
		}
		time.Sleep(pause)
	}
}

// Stack starts a RabbitMQ and a PostgreSQL for this test alone, whatever the
// environment says, and stops them after it. It takes some seconds. Fsync is
// on: a test that kills servers wants to see what a crash leaves.
func Stack(t testing.TB) *devstack.Stack {
	t.Helper()
	s, err := devstack.Start(t.Context(), devstack.Options{Fsync: true})
	if err != nil {
		t.Fatalf("servicetest: %v", err)
	}
	closeAfter(t, s.Close, s.RabbitMQ().Output, s.Postgres().Output)
	return s
}

// RabbitMQ starts a RabbitMQ for this test alone; see [Stack].
func RabbitMQ(t testing.TB) *devstack.RabbitMQ {
	t.Helper()
	r, err := devstack.StartRabbitMQ(t.Context(), devstack.Options{})
	if err != nil {
		t.Fatalf("servicetest: %v", err)
	}
	closeAfter(t, r.Close, r.Output)
	return r
}

// Postgres starts a PostgreSQL for this test alone; see [Stack].
func Postgres(t testing.TB) *devstack.Postgres {
	t.Helper()
	p, err := devstack.StartPostgres(t.Context(), devstack.Options{Fsync: true})
	if err != nil {
		t.Fatalf("servicetest: %v", err)
	}
	closeAfter(t, p.Close, p.Output)
	return p
}

// closeAfter closes a server after the test, and shows what it wrote if the
// test failed.
func closeAfter(t testing.TB, close func() error, outputs ...func() string) {
	t.Cleanup(func() {
		if t.Failed() {
			for _, output := range outputs {
				said := output()
				t.Logf("the server wrote at last:\n%s", said[max(0, len(said)-4000):])
			}
		}
		if err := close(); err != nil {
			t.Errorf("servicetest: stopping a server: %v", err)
		}
	})
}

// DatabaseOf is [Database] on a server of the test's own.
func DatabaseOf(t testing.TB, server string) DB {
	t.Helper()
	return databaseIn(t, server)
}
