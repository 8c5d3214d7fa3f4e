//go:build linux

package faults

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/servicetest"
)

// What others do to the servers that are Waymark's, too: operators, the kernel,
// and the servers themselves.
func othersScenarios() (all []scenario) {
	add := func(who, what, when string, server bool, run func(*site)) {
		all = append(all, scenario{who: who, what: what, when: when, server: server, run: run})
	}
	strike := func(f fault, moments ...moment) {
		for _, m := range moments {
			add(f.who, f.what, m.words, f.server, func(w *site) { w.strike(m, f) })
		}
	}
	strike(backendDies, locked, written)
	strike(postgresAborts, written, committed)
	strike(oddDefaults, beforeApply)
	add("database", "its clock steps by hours, acks lost, other messages applied, then cut", "after commit of a line without an id, before ack", false,
		func(w *site) {
			w.forgetful(func() { w.sql("UPDATE SCHEMA_.recent_deliveries SET at = at - interval '25 hours'") })
		})
	all[len(all)-1].quick = true
	add("broker", "a queue is purged, and all is published again", written.words, false, purged)
	add("broker", "a queue is deleted and declared again, and all is published again", written.words, false, redeclared)
	add("broker", "a queue is deleted and declared otherwise, until somebody deletes it", written.words, false, declaredOtherwise)
	add("broker", "closes the channel, for acks take too long", afterCommit.words, true, func(w *site) {
		p := w.impatient(afterCommit, fault{begin: func(w *site, _ *process) { w.last(4 * time.Second) }, felt: ended}, 1)
		p.awaitSaid(w, tookTooLong)
		servicetest.Eventually(w, patience, "what was committed and taken back comes again", func() error {
			l, err := w.ledger()
			if err == nil && l.received <= w.published {
				err = fmt.Errorf("of %d messages %d deliveries were received", w.published, l.received)
			}
			return err
		})
	})
	add("broker", "closes the channel again and again, for the database is away for 8 s", written.words, true, func(w *site) {
		p := w.impatient(written, fault{
			begin: func(_ *site, p *process) { p.database.refuse(true) }, felt: ended, lasts: 8 * time.Second,
			end: func(_ *site, p *process) { p.database.refuse(false) },
		}, 2)
		if n := strings.Count(p.stderr.String(), tookTooLong); n < 2 {
			w.Errorf("the consumer said %d times why its session ended, want 2 or more; it said:\n%s", n, p.stderr.String())
		}
	})
	add("consumer", "SIGTERM while a memory alarm blocks the connection", beforeLetter.words, true, func(w *site) {
		w.drain(beforeLetter, func(*process) { memoryAlarm.begin(w, nil) }, "WAYMARK_CONSUMER_DRAIN_TIMEOUT=1s")
		memoryAlarm.end(w, nil)
		w.mended = time.Now()
	})
	add("consumer", "SIGTERM", "in the middle of the commit", false, func(w *site) { w.stopInCommit(false) })
	add("consumer", "SIGTERM, and again", "in the middle of the commit", false, func(w *site) { w.stopInCommit(true) })
	add("consumer", "three with batches of 1, 7 and 500, the broker cut for each in turn", "under load", false, unlike)
	return all
}

// backendDies kills the process of the database that serves the consumer, upon
// which the database ends all others and recovers.
var backendDies = fault{who: "database", what: "kill -9 of the consumer's backend, which resets all", server: true, felt: paused,
	begin: func(w *site, _ *process) {
		pid, err := w.number("SELECT pid FROM pg_stat_activity WHERE usename = $1 AND state = 'idle in transaction' LIMIT 1", w.role)
		w.must(err)
		w.must(syscall.Kill(pid, syscall.SIGKILL))
	}}

// postgresAborts is a stop that leaves the rest to recovery.
var postgresAborts = fault{who: "database", what: "stopped with immediate", server: true, felt: paused, lasts: time.Second,
	begin: func(w *site, _ *process) { w.must(syscall.Kill(w.Postgres().PID(), syscall.SIGQUIT)) },
	end:   func(w *site, _ *process) { w.must(w.Postgres().Restart(w.Context())) }}

// oddDefaults are settings that a role or a database may have, and nobody notices.
var oddDefaults = fault{who: "database", what: "the role's defaults are odd: serializable, other times and dates, other strings", alone: true,
	begin: func(w *site, _ *process) {
		for _, setting := range []string{
			"default_transaction_isolation = 'serializable'", "timezone = 'Asia/Kathmandu'", "datestyle = 'German, DMY'", "intervalstyle = 'sql_standard'",
			"standard_conforming_strings = off", "bytea_output = 'escape'", "extra_float_digits = 0", "lc_messages = 'C'", "enable_indexscan = off",
			"array_nulls = off", "search_path = 'pg_temp'",
		} {
			w.sql("ALTER ROLE ROLE_ SET " + setting)
		}
		w.terminate()
	}}

// purged: an operator empties a queue. What a consumer holds is not in it.
func purged(w *site) {
	w.withIDs()
	w.backlog()
	p := w.serve(written.freezes())
	p.awaitFrozen(w)
	conn := w.dial()
	defer conn.Close()
	ch, err := conn.Channel()
	w.must(err)
	gone := 0
	for _, queue := range []string{w.status, w.submission} {
		n, err := ch.QueuePurge(queue, false)
		w.must(err)
		gone += n
	}
	if gone == 0 {
		w.Fatal("there was nothing to purge")
	}
	p.signal(w, syscall.SIGCONT)
	w.published -= gone
	servicetest.Eventually(w, patience, "what was not purged is received", w.received)
	w.mended = time.Now()
	w.publish(everything)
}

// withoutQueue has the queue of status messages vanish under a consumer.
func (w *site) withoutQueue() (p *process, ch *amqp.Channel) {
	w.withIDs()
	w.backlog()
	p = w.serve(written.freezes())
	p.awaitFrozen(w)
	conn := w.dial()
	w.Cleanup(func() { conn.Close() })
	ch, err := conn.Channel()
	w.must(err)
	_, err = ch.QueueDelete(w.status, false, false, false)
	w.must(err)
	return p, ch
}

func redeclared(w *site) {
	p, ch := w.withoutQueue()
	_, err := ch.QueueDeclare(w.status, true, false, false, false, nil)
	w.must(err)
	p.signal(w, syscall.SIGCONT)
	p.awaitSaid(w, ended)
	w.again()
}

// again publishes the trace once more: what was deleted is gone, and nobody
// knows how much.
func (w *site) again() {
	w.Helper()
	w.mended = time.Now()
	w.published = 0
	w.publish(everything)
}

// declaredOtherwise: a consumer says what is wrong, waits, and goes on.
func declaredOtherwise(w *site) {
	p, ch := w.withoutQueue()
	_, err := ch.QueueDeclare(w.status, false, false, false, false, amqp.Table{"x-max-length": 5})
	w.must(err)
	p.signal(w, syscall.SIGCONT)
	p.awaitSaid(w, "is declared otherwise")
	_, err = ch.QueueDelete(w.status, false, false, false)
	w.must(err)
	w.again()
}

// tookTooLong is in what the broker says when it closes a channel for want of
// acks.
const tookTooLong = "delivery acknowledgement on channel"

// impatient has the broker take messages back that are not acknowledged within
// two seconds; its own patience is half an hour. It must do so, by what it logs,
// in at least so many sessions of the consumer of status messages.
func (w *site) impatient(m moment, f fault, sessions int) *process {
	w.Helper()
	ask := func(timeout, interval int) {
		w.ctl("eval", fmt.Sprintf("application:set_env(rabbit, consumer_timeout, %d), application:set_env(rabbit, channel_tick_interval, %d).", timeout, interval))
	}
	ask(2000, 500)
	defer ask(30*60*1000, 60*1000)
	p := w.strike(m, f)
	servicetest.Eventually(w, patience, "the broker says that it took messages back", func() error {
		said := w.RabbitMQ().Output()
		n := 0
		for _, connection := range regexp.MustCompile(`connection (<[0-9.]+>) .* has a client-provided name: waymark serve `+w.status+`\n`).FindAllStringSubmatch(said, -1) {
			if regexp.MustCompile(`Channel error on connection ` + regexp.QuoteMeta(connection[1]) + ` .*\n.*` + tookTooLong).MatchString(said) {
				n++
			}
		}
		if n < sessions {
			return fmt.Errorf("of %d sessions; it says:\n%s", n, said)
		}
		return nil
	})
	return p
}

// stopInCommit asks a consumer to stop, once or until it gives up, while the database is
// committing, which takes a while.
func (w *site) stopInCommit(insisting bool) {
	w.backlog()
	w.sql(`CREATE FUNCTION SCHEMA_.slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$`,
		`CREATE CONSTRAINT TRIGGER slow AFTER INSERT OR UPDATE ON SCHEMA_.ledger DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION SCHEMA_.slow()`)
	p := w.serve()
	servicetest.Eventually(w, patience, "a commit is under way", func() error {
		n, err := w.number("SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND state = 'active' AND query = 'COMMIT'", w.role)
		if err == nil && n == 0 {
			err = errors.New("none is")
		}
		return err
	})
	if !insisting {
		p.stop(w)
	} else {
		servicetest.Eventually(w, patience, "it ends, whatever it is about", func() error {
			p.signal(w, syscall.SIGTERM)
			select {
			case <-p.done:
				return nil
			default:
				return errors.New("it has not ended")
			}
		})
	}
	w.sql("DROP TRIGGER slow ON SCHEMA_.ledger")
	w.mended = time.Now()
	w.serve()
}

// unlike has consumers with other settings share the queues.
func unlike(w *site) {
	w.migrate()
	w.publish(withoutID)
	var consumers []*process
	for _, setting := range []struct{ batch, prefetch int }{{1, 1}, {7, 13}, {500, 2000}} {
		consumers = append(consumers, w.serve(fmt.Sprintf("WAYMARK_CONSUMER_BATCH_SIZE=%d", setting.batch), fmt.Sprintf("WAYMARK_CONSUMER_PREFETCH=%d", setting.prefetch)))
	}
	source := w.publisher(nil)
	source.broker.set(flow{rate: 20 << 10}, toServer)
	for range 3 {
		for _, p := range consumers {
			p.broker.cut()
			w.progresses("with consumers of other settings")
		}
	}
	source.broker.set(flow{}, toServer)
	w.mended = time.Now()
	w.awaitPublished(source, nil)
}

// spoolShared: a run goes on publishing when the broker is back, while a serve
// delivers what lies in the same folder.
func spoolShared(w *site) {
	w.migrate()
	dir := w.TempDir()
	w.serve("WAYMARK_PUBLISHER_SPOOL_DIR=" + dir)
	p, goOn := w.halfway([]string{"WAYMARK_PUBLISHER_SPOOL_DIR=" + dir}, nil, "--final-timeout", "5m")
	w.awaitRunning()
	p.broker.refuse(true)
	goOn()
	w.awaitSpooled(dir)
	w.last(time.Second)
	p.broker.refuse(false)
	w.mended = time.Now()
	if err := p.wait(w); err != nil {
		w.Fatalf("the run ended with: %v; standard error:\n%s", err, p.stderr.String())
	}
	w.awaitDelivered(dir)
}

// publisherDiesDrained: a run is killed, a serve delivers what it has left and is
// killed in the middle of it, and another delivers the rest.
func publisherDiesDrained(w *site) {
	w.migrate()
	dir := w.TempDir()
	first := w.serve("WAYMARK_PUBLISHER_SPOOL_DIR="+dir, "WAYMARK_CRASHPOINT=publisher.published:1:freeze")
	p, goOn := w.halfway([]string{"WAYMARK_PUBLISHER_SPOOL_DIR=" + dir}, nil, "--final-timeout", "5m")
	w.awaitRunning()
	p.broker.refuse(true)
	goOn()
	w.awaitSpooled(dir)
	kill(w, p)
	first.awaitFrozen(w)
	second := w.serve("WAYMARK_PUBLISHER_SPOOL_DIR=" + dir) // beside the one that stands still
	second.awaitSaid(w, "consuming")
	kill(w, first)
	w.mended = time.Now()
	w.awaitDelivered(dir)
}

// awaitSpooled returns when something of a run is on disk.
func (w *site) awaitSpooled(dir string) {
	w.Helper()
	servicetest.Eventually(w, patience, "the end of the run is on disk", func() error {
		for _, name := range w.segments(dir) {
			if info, err := os.Stat(name); err == nil && info.Size() > 100 {
				return nil
			}
		}
		return errors.New("the spool is empty")
	})
}

// awaitDelivered returns when the spool is empty.
func (w *site) awaitDelivered(dir string) {
	w.Helper()
	servicetest.Eventually(w, patience, "the spool is empty", func() error {
		if left, _ := filepath.Glob(filepath.Join(dir, "*.spool")); len(left) > 0 {
			return fmt.Errorf("%q are left", left)
		}
		return nil
	})
}
