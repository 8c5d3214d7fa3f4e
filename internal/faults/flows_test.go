//go:build linux

package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"waymark/internal/servicetest"
)

// moment is a crash point and how often it is passed before.
type moment struct {
	words string // for the report
	point string
	hit   int
}

func (m moment) dies() string    { return fmt.Sprintf("WAYMARK_CRASHPOINT=%s:%d", m.point, m.hit) }
func (m moment) freezes() string { return m.dies() + ":freeze" }

// at is the moment when its crash point is passed for the n-th time.
func (m moment) at(n int) moment {
	m.hit = n
	return m
}

// The moments of a consumer.
var (
	decoded       = moment{"after decode", "consumer.decoded", 3}
	beforeApply   = moment{"before apply", "consumer.before-apply", 3}
	locked        = moment{"in the transaction, rows locked", "store.locked", 3}
	written       = moment{"in the transaction, before commit", "store.written", 3}
	committed     = moment{"after commit, before its answer is used", "store.committed", 3}
	afterCommit   = moment{"after commit, before ack", "consumer.after-commit", 3}
	acked         = moment{"after ack", "consumer.acked", 3}
	beforeLetter  = moment{"before the dead-letter publish", "consumer.before-dead-letter", 2}
	letterSent    = moment{"between dead-letter publish and confirm", "consumer.dead-letter-published", 2}
	letterConfirm = moment{"between dead-letter confirm and ledger", "consumer.dead-letter-confirmed", 2}
	split         = moment{"while a refused batch is split", "store.committed", 9}
	draining      = moment{"while draining", "consumer.draining", 1}
)

// fault is something done to a server or a process while a consumer stands at
// a moment, which then goes on.
type fault struct {
	who, what string
	// server: it hits all sites, so nothing else runs meanwhile.
	server bool
	// alone: the consumer of submissions must not be in a transaction, because
	// the fault needs a lock on a table.
	alone bool
	begin func(*site, *process)
	// felt is what the consumer logs when it has met the fault, and lasts how
	// long the fault goes on from then.
	felt  string
	lasts time.Duration
	// end mends it; nil if there is nothing to mend.
	end func(*site, *process)
}

const (
	paused = "consumption is paused"
	ended  = "session with the broker ended"
)

// backlog is the whole trace in the queues, and nobody to take it.
func (w *site) backlog() {
	w.Helper()
	w.migrate()
	w.publish(everything)
}

// strike has a consumer stand at a moment and does something meanwhile.
func (w *site) strike(m moment, f fault, more ...string) *process {
	w.Helper()
	w.migrate()
	if f.alone {
		w.publish(isSubmission)
		before := w.serve()
		servicetest.Eventually(w, patience, "the submissions are applied", w.received)
		before.stop(w)
		w.publish(isStatus)
	} else {
		w.publish(everything)
	}
	p := w.serve(append(more, m.freezes())...)
	p.awaitFrozen(w)
	w.inflict(f, p)
	return p
}

// inflict begins a fault, lets the process go on into it, and mends it.
func (w *site) inflict(f fault, p *process) {
	w.Helper()
	f.begin(w, p)
	p.signal(w, syscall.SIGCONT)
	if f.felt != "" {
		p.awaitSaid(w, f.felt)
	}
	w.last(f.lasts)
	if f.end != nil {
		f.end(w, p)
	}
	w.mended = time.Now()
}

// last lets a fault last. The time is the fault, nothing is waited for.
func (w *site) last(d time.Duration) { <-time.After(d) }

// The faults of the database that are one of its connections', or are made by
// SQL, and hit one site.
var (
	databaseCut = fault{who: "database", what: "connections cut", begin: func(_ *site, p *process) { p.database.cut() }}
	databaseOff = fault{who: "database", what: "unreachable", felt: paused, lasts: time.Second,
		begin: func(_ *site, p *process) { p.database.refuse(true) }, end: func(_ *site, p *process) { p.database.refuse(false) }}
	databaseStalls = fault{who: "database", what: "silent for 2 s", lasts: 2 * time.Second,
		begin: func(_ *site, p *process) { p.database.set(flow{held: true}, toServer, toClient) },
		end:   func(_ *site, p *process) { p.database.set(flow{}, toServer, toClient) }}
	answerLost = fault{who: "database", what: "answer lost, then cut", alone: true, lasts: 300 * time.Millisecond,
		begin: func(_ *site, p *process) { p.database.set(flow{dropped: true}, toClient) },
		end: func(_ *site, p *process) {
			p.database.cut()
			p.database.set(flow{}, toClient)
		}}
	databaseSlow = fault{who: "database", what: "answers at 4 kB/s", lasts: 3 * time.Second,
		begin: func(_ *site, p *process) { p.database.set(flow{rate: 4 << 10}, toClient) },
		end:   func(_ *site, p *process) { p.database.set(flow{}, toClient) }}
	terminated = fault{who: "database", what: "pg_terminate_backend", begin: func(w *site, _ *process) { w.terminate() }}
)

// sqlFault is a fault that SQL makes and mends.
func sqlFault(what string, begin, end []string) fault {
	return fault{who: "database", what: what, alone: true, felt: paused, lasts: time.Second,
		begin: func(w *site, _ *process) { w.sql(begin...) },
		end:   func(w *site, _ *process) { w.sql(end...) }}
}

const terminate = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'ROLE_'"

func (w *site) terminate() {
	w.Helper()
	w.sql(terminate)
}

var sqlFaults = []fault{
	sqlFault("role loses its rights", []string{"REVOKE ALL ON ALL TABLES IN SCHEMA SCHEMA_ FROM ROLE_"}, []string{"GRANT ALL ON ALL TABLES IN SCHEMA SCHEMA_ TO ROLE_"}),
	sqlFault("role loses one right", []string{"REVOKE INSERT ON SCHEMA_.ledger FROM ROLE_"}, []string{"GRANT INSERT ON SCHEMA_.ledger TO ROLE_"}),
	sqlFault("role may not use the schema", []string{"REVOKE USAGE ON SCHEMA SCHEMA_ FROM ROLE_"}, []string{"GRANT USAGE ON SCHEMA SCHEMA_ TO ROLE_"}),
	sqlFault("read-only, as in a failover", []string{"ALTER ROLE ROLE_ SET default_transaction_read_only = on", terminate},
		[]string{"ALTER ROLE ROLE_ RESET default_transaction_read_only", terminate}),
	sqlFault("role may not log in", []string{"ALTER ROLE ROLE_ NOLOGIN", terminate}, []string{"ALTER ROLE ROLE_ LOGIN"}),
	sqlFault("too many connections", []string{"ALTER ROLE ROLE_ CONNECTION LIMIT 0", terminate}, []string{"ALTER ROLE ROLE_ CONNECTION LIMIT -1"}),
	sqlFault("statement timeout", []string{"ALTER ROLE ROLE_ SET statement_timeout = '1ms'", slowTrigger, terminate},
		[]string{"ALTER ROLE ROLE_ RESET statement_timeout", "DROP TRIGGER slow ON SCHEMA_.ledger", terminate}),
	sqlFault("a table is away", []string{"ALTER TABLE SCHEMA_.seen_messages RENAME TO away"}, []string{"ALTER TABLE SCHEMA_.away RENAME TO seen_messages"}),
}

const slowTrigger = `CREATE FUNCTION SCHEMA_.slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.05); RETURN NEW; END $$;
	CREATE TRIGGER slow BEFORE INSERT ON SCHEMA_.ledger FOR EACH ROW EXECUTE FUNCTION SCHEMA_.slow()`

// raises makes the database end the first n transactions with an error: when
// they write the ledger, or only when they commit.
func raises(code, words string, n int, atCommit bool) fault {
	trigger := "CREATE TRIGGER fault BEFORE INSERT OR UPDATE ON SCHEMA_.ledger FOR EACH ROW EXECUTE FUNCTION SCHEMA_.fault()"
	what := fmt.Sprintf("%s, %d times", words, n)
	if atCommit {
		trigger = "CREATE CONSTRAINT TRIGGER fault AFTER INSERT OR UPDATE ON SCHEMA_.ledger DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION SCHEMA_.fault()"
		what += ", at commit"
	}
	return fault{who: "database", what: what, alone: true, begin: func(w *site, _ *process) {
		w.sql("CREATE SEQUENCE SCHEMA_.faults", fmt.Sprintf(`CREATE FUNCTION SCHEMA_.fault() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
			IF nextval('SCHEMA_.faults') <= %d THEN RAISE EXCEPTION 'as the fault suite wishes' USING ERRCODE = '%s'; END IF; RETURN NEW; END $$`, n, code), trigger)
	}, end: func(w *site, _ *process) {
		servicetest.Eventually(w, patience, "the database has raised its errors", func() error {
			raised, err := w.number("SELECT last_value FROM " + w.schema + ".faults")
			if err == nil && raised <= n {
				err = fmt.Errorf("%d of %d", raised, n)
			}
			return err
		})
	}}
}

var raised = []fault{
	raises("40001", "serialization failure", 3, false),
	raises("40001", "serialization failure", 12, true),
	raises("40P01", "deadlock detected", 12, false),
	raises("53100", "disk full", 3, false),
	raises("53200", "out of memory", 3, true),
	raises("55P03", "lock not available", 3, false),
	raises("XX000", "internal error", 3, true),
}

// hold opens a transaction of another, which keeps what the statement locks.
func (w *site) hold(statement string) *pgx.Conn {
	w.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, w.DatabaseURL())
	if err != nil {
		w.Fatalf("connecting to lock something: %v", err)
	}
	w.Cleanup(func() { release(conn) })
	for _, s := range []string{"BEGIN", w.names(statement)} {
		if _, err := conn.Exec(ctx, s); err != nil {
			w.Fatalf("%s: %v", s, err)
		}
	}
	return conn
}

// release ends a transaction of another; doing so again is harmless.
func release(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// awaitBlocked returns when a session of the site waits for a lock.
func (w *site) awaitBlocked(then func()) {
	w.Helper()
	servicetest.Eventually(w, patience, "a transaction waits for a lock", w.blocked)
	then()
}

func (w *site) blocked() error {
	n, err := w.number("SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND wait_event_type = 'Lock'", w.role)
	if err == nil && n == 0 {
		err = errors.New("none does")
	}
	return err
}

// The faults of the broker that are one of its connections'.
var (
	brokerCut = fault{who: "broker", what: "connections cut", felt: ended, begin: func(_ *site, p *process) { p.broker.cut() }}
	brokerOff = fault{who: "broker", what: "unreachable", felt: ended, lasts: time.Second,
		begin: func(_ *site, p *process) { p.broker.refuse(true) }, end: func(_ *site, p *process) { p.broker.refuse(false) }}
	brokerStalls = fault{who: "broker", what: "silent for 2 s", lasts: 2 * time.Second,
		begin: func(_ *site, p *process) { p.broker.set(flow{held: true}, toServer, toClient) },
		end:   func(_ *site, p *process) { p.broker.set(flow{}, toServer, toClient) }}
	acksLost = fault{who: "broker", what: "acks lost, then cut", lasts: 300 * time.Millisecond,
		begin: func(_ *site, p *process) { p.broker.set(flow{dropped: true}, toServer) },
		end: func(_ *site, p *process) {
			p.broker.cut()
			p.broker.set(flow{}, toServer)
		}}
	confirmsLost = fault{who: "broker", what: "answers lost, then cut", lasts: 300 * time.Millisecond,
		begin: func(_ *site, p *process) { p.broker.set(flow{dropped: true}, toClient) },
		end: func(_ *site, p *process) {
			p.broker.cut()
			p.broker.set(flow{}, toClient)
		}}
	brokerSlow = fault{who: "broker", what: "sends 8 kB/s", lasts: 3 * time.Second,
		begin: func(_ *site, p *process) { p.broker.set(flow{rate: 8 << 10}, toClient) },
		end:   func(_ *site, p *process) { p.broker.set(flow{}, toClient) }}
	lettersDeleted = fault{who: "broker", what: "dead-letter queue deleted", begin: func(w *site, _ *process) {
		// What lay in it is gone with it; that is what deleting means.
		for _, id := range w.letters() {
			w.trace = w.trace.without(func(m *message) bool { return m.dead && m.letterID() == id })
		}
		w.deleteQueue(w.status + ".dead-letter")
	}}
)

func (w *site) deleteQueue(name string) {
	w.Helper()
	conn := w.dial()
	defer conn.Close()
	ch, err := conn.Channel()
	if err == nil {
		_, err = ch.QueueDelete(name, false, false, false)
	}
	if err != nil {
		w.Fatalf("deleting queue %s: %v", name, err)
	}
}

// The faults of whole servers.
var (
	postgresRestarts = fault{who: "database", what: "restarted", server: true, felt: "", begin: func(w *site, _ *process) { w.must(w.Postgres().Restart(w.Context())) }}
	postgresStops    = fault{who: "database", what: "stopped for 2 s", server: true, felt: paused, lasts: 2 * time.Second,
		begin: func(w *site, _ *process) { w.must(w.Postgres().Stop(w.Context())) },
		end:   func(w *site, _ *process) { w.must(w.Postgres().Restart(w.Context())) }}
	postgresDies = fault{who: "database", what: "kill -9", server: true, felt: paused, lasts: 500 * time.Millisecond,
		begin: func(w *site, _ *process) { w.must(w.Postgres().Kill()) },
		end:   func(w *site, _ *process) { w.must(w.Postgres().Restart(w.Context())) }}
	postgresFreezes = fault{who: "database", what: "SIGSTOP for 3 s", server: true, lasts: 3 * time.Second,
		begin: func(w *site, _ *process) { w.must(w.Postgres().Pause()) },
		end:   func(w *site, _ *process) { w.must(w.Postgres().Resume()) }}
	rabbitRestarts = fault{who: "broker", what: "restarted", server: true, felt: ended, begin: func(w *site, _ *process) { w.must(w.RabbitMQ().Restart(w.Context())) }}
	rabbitDies     = fault{who: "broker", what: "kill -9", server: true, felt: ended,
		begin: func(w *site, _ *process) { w.killBroker() },
		end:   func(w *site, _ *process) { w.must(w.RabbitMQ().Restart(w.Context())) }}
	rabbitFreezes = fault{who: "broker", what: "SIGSTOP for 3 s", server: true, lasts: 3 * time.Second,
		begin: func(w *site, _ *process) { w.must(w.RabbitMQ().Pause()) },
		end:   func(w *site, _ *process) { w.must(w.RabbitMQ().Resume()) }}
	connectionsClosed = fault{who: "broker", what: "close_all_connections", server: true, felt: ended,
		begin: func(w *site, _ *process) { w.ctl("close_all_connections", "the fault suite") }}
	memoryAlarm = fault{who: "broker", what: "memory alarm", server: true, lasts: 2 * time.Second,
		begin: func(w *site, _ *process) { w.ctl("set_vm_memory_high_watermark", "0.00000001") },
		end:   func(w *site, _ *process) { w.ctl("set_vm_memory_high_watermark", "0.4") }}
	diskAlarm = fault{who: "broker", what: "disk alarm", server: true, lasts: 2 * time.Second,
		begin: func(w *site, _ *process) { w.ctl("set_disk_free_limit", "90000GB") },
		end:   func(w *site, _ *process) { w.ctl("set_disk_free_limit", "50MB") }}
)

// killBroker kills RabbitMQ, once it has on disk which queues there are: it has
// been seen to forget those that were declared a moment before.
func (w *site) killBroker() {
	w.Helper()
	w.ctl("eval", "mnesia:sync_log().")
	w.must(w.RabbitMQ().Kill())
}

func (w *site) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *site) ctl(args ...string) {
	w.Helper()
	if _, err := w.RabbitMQ().Ctl(w.Context(), args...); err != nil {
		w.Fatal(err)
	}
}

// die kills a consumer at a moment, and starts another after it.
func (w *site) die(m moment) {
	w.Helper()
	w.backlog()
	p := w.serve(m.dies())
	p.awaitKilled(w)
	w.mended = time.Now()
	w.serve()
}

// dieBeside kills a consumer at a moment while another works.
func (w *site) dieBeside(m moment) {
	w.Helper()
	w.backlog()
	p := w.serve(m.freezes())
	p.awaitFrozen(w)
	w.serve()
	p.signal(w, syscall.SIGKILL)
	p.awaitKilled(w)
	w.mended = time.Now()
}

// forgetful: a consumer acknowledges a line that nothing but its body makes
// known, and the broker does not hear of it. A while later, in the same session,
// the consumer applies what could make it forget that line, which comes again.
func (w *site) forgetful(meanwhile func()) {
	w.migrate()
	isLine := func(m *message) bool { return withoutID(m) && bytes.Contains(m.body, []byte("started")) }
	first := slices.IndexFunc(w.trace.messages, func(m message) bool { return isLine(&m) })
	line := &w.trace.messages[first]
	hasID := func(m *message) bool { return m.id != "" && isStatus(m) && !m.dead }
	w.publish(func(m *message) bool { return m == line })
	w.publish(hasID)
	p := w.serve(moment{point: afterCommit.point, hit: 1}.freezes())
	p.awaitFrozen(w)
	p.broker.set(flow{dropped: true}, toServer)
	meanwhile()
	p.signal(w, syscall.SIGCONT)
	servicetest.Eventually(w, patience, "what it holds is applied", func() error {
		l, err := w.ledger()
		if err == nil && l.received < prefetch {
			err = fmt.Errorf("of %d messages %d were received", prefetch, l.received)
		}
		return err
	})
	p.broker.cut()
	p.broker.set(flow{}, toServer)
	w.mended = time.Now()
	w.publish(func(m *message) bool { return m != line && !hasID(m) })
}

// haunt freezes a consumer at a moment for so long that the broker gives what
// it holds to another. Then it goes on, and learns of it, or does not: if it is
// partitioned its side of the connection stays open, and silent.
func (w *site) haunt(m moment, partitioned bool) {
	w.Helper()
	w.backlog()
	p := w.serve(m.freezes())
	p.awaitFrozen(w)
	w.supplant(p, partitioned)
}

// supplant has another consumer do what it can of what p, which is frozen,
// believes to be its own.
func (w *site) supplant(p *process, partitioned bool) {
	w.Helper()
	if partitioned {
		p.broker.partition()
	} else {
		p.broker.cut()
	}
	w.serve()
	servicetest.Eventually(w, patience, "the other has done all it can", func() error {
		if w.blocked() == nil {
			return nil
		}
		return w.quiet()
	})
	p.signal(w, syscall.SIGCONT)
	if partitioned {
		w.last(time.Second) // in which it believes that all is well
		p.broker.cut()
	}
	w.mended = time.Now()
	p.awaitSaid(w, ended)
}

// drain asks a consumer to stop at a moment, and starts another after it.
func (w *site) drain(m moment, meanwhile func(*process), more ...string) {
	w.Helper()
	w.backlog()
	p := w.serve(append(more, m.freezes())...)
	p.awaitFrozen(w)
	if meanwhile != nil {
		meanwhile(p)
	}
	p.stop(w)
	w.mended = time.Now()
	w.serve()
}
