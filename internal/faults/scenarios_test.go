//go:build linux

package faults

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"waymark/internal/servicetest"
)

// scenario is one thing that happens to one of those involved at one moment.
type scenario struct {
	who, what, when string
	// quick ones are part of every test run.
	quick bool
	// server: it hits a server that all use, so nothing else runs meanwhile.
	server bool
	// run does it, and returns when it is over.
	run func(*site)
	// settle compares, if not as usual.
	settle func(*site) result
}

// secure reports whether its servers speak TLS.
func (s scenario) secure() bool { return strings.HasPrefix(s.what, overTLS) }

// wide reports whether it publishes the wide trace.
func (s scenario) wide() bool { return strings.HasPrefix(s.what, ofMany) }

func (s scenario) name() string { return s.who + ", " + s.what + ", " + s.when }

// scenarios are all of them.
func scenarios() (all []scenario) {
	add := func(s scenario) { all = append(all, s) }
	strike := func(f fault, quick bool, moments ...moment) {
		for i, m := range moments {
			add(scenario{f.who, f.what, m.words, quick && i == 0, f.server, func(w *site) { w.strike(m, f) }, nil})
		}
	}

	// The consumer dies, alone and beside another.
	for _, m := range []moment{decoded, beforeApply, locked, written, committed, afterCommit, acked, beforeLetter, letterSent, letterConfirm, split} {
		add(scenario{"consumer", "kill -9", m.words, m == afterCommit || m == letterConfirm, false, func(w *site) { w.die(m) }, nil})
	}
	for _, m := range []moment{decoded, written, afterCommit, letterConfirm} {
		add(scenario{"consumer", "kill -9 beside another", m.words, false, false, func(w *site) { w.dieBeside(m) }, nil})
	}
	// It is taken for dead, and is not.
	for _, m := range []moment{decoded, beforeApply, locked, written, committed, afterCommit, beforeLetter, letterSent, letterConfirm} {
		add(scenario{"consumer", "frozen until another has its messages, then goes on", m.words, false, false, func(w *site) { w.haunt(m, false) }, nil})
	}
	for _, m := range []moment{decoded, beforeApply, locked, written, afterCommit, letterSent} {
		add(scenario{"consumer", "partitioned from the broker until another has its messages", m.words, m == beforeApply, false, func(w *site) { w.haunt(m, true) }, nil})
	}
	add(scenario{"consumer", "its machine vanishes", locked.words, false, false, vanish, nil})
	add(scenario{"consumer", "frozen until the database ends its transaction, beside another", locked.words, false, false, frozenInTransaction, nil})
	// It is asked to stop.
	for _, m := range []moment{decoded, locked, written, afterCommit, letterSent} {
		add(scenario{"consumer", "SIGTERM", m.words, false, false, func(w *site) { w.drain(m, nil) }, nil})
	}
	add(scenario{"consumer", "SIGTERM while the database is away", beforeApply.words, false, false, func(w *site) {
		w.drain(beforeApply, func(p *process) { p.database.refuse(true) }, "WAYMARK_CONSUMER_DRAIN_TIMEOUT=1s")
	}, nil})
	add(scenario{"consumer", "SIGTERM while the broker is away", afterCommit.words, false, false, func(w *site) {
		w.drain(afterCommit, func(p *process) { p.broker.refuse(true) })
	}, nil})
	add(scenario{"consumer", "kill -9", draining.words, false, false, dieDraining, nil})
	add(scenario{"consumer", "its clock steps by hours and days, to and fro, and kill -9", "four times, beside another", false, false, clockSteps, nil})
	add(scenario{"consumer", "rolling restart of two, three times", "under load", false, false, rollingRestart, nil})

	// The database.
	strike(databaseCut, false, beforeApply, locked, written)
	strike(databaseOff, true, locked, written)
	strike(databaseOff, false, letterConfirm)
	strike(databaseStalls, false, written)
	// Of several transactions: only some hold what is not recognised otherwise.
	strike(answerLost, true, moment{"in the 5th transaction, before commit", written.point, 5}, moment{"in the 7th transaction, before commit", written.point, 7}, written)
	strike(answerLost, false, locked)
	strike(databaseSlow, false, beforeApply)
	strike(terminated, false, beforeApply, locked, written)
	for _, f := range sqlFaults {
		strike(f, false, beforeApply)
	}
	for i, f := range raised {
		strike(f, i == 1, beforeApply)
	}
	add(scenario{"database", "a table is locked for 2 s", beforeApply.words, false, false, lockedTable, nil})
	add(scenario{"database", "pg_cancel_backend", "waiting for a lock", false, false, cancelledQuery, nil})
	add(scenario{"database", "a real deadlock, the consumer the victim", locked.words, false, false, deadlock, nil})
	add(scenario{"database", "disk full", beforeApply.words, false, false, diskFull, nil})
	strike(postgresRestarts, false, locked, committed)
	strike(postgresStops, false, written)
	strike(postgresDies, true, written)
	strike(postgresDies, false, committed, letterConfirm)
	strike(postgresFreezes, false, written)

	// The broker.
	strike(brokerCut, false, decoded, locked, written, afterCommit, acked, beforeLetter, letterSent, letterConfirm)
	strike(brokerOff, false, written)
	strike(brokerStalls, false, afterCommit)
	strike(acksLost, false, afterCommit)
	add(scenario{"broker", "acks lost for 3 s, other messages applied, then cut", "after commit of a line without an id, before ack", false, false, func(w *site) {
		w.forgetful(func() { w.last(3 * time.Second) }) // longer than the store remembers what is settled
	}, nil})
	strike(confirmsLost, false, beforeLetter)
	strike(brokerSlow, false, decoded)
	strike(lettersDeleted, false, beforeLetter)
	strike(rabbitRestarts, false, written, afterCommit, letterSent)
	strike(rabbitDies, true, afterCommit)
	strike(rabbitFreezes, false, afterCommit)
	strike(connectionsClosed, false, locked)
	strike(memoryAlarm, false, beforeLetter)

	// The publisher, with two consumers at work.
	for _, m := range []moment{{"on the way", "publisher.published", 2}, {"between confirm and report", "publisher.confirmed", 77}} {
		add(scenario{"publisher", "kill -9, and another goes on", m.words, m.point == "publisher.confirmed", false, func(w *site) { w.publishKilled(m) }, nil})
		for _, f := range []fault{brokerCut, brokerOff, brokerStalls, confirmsLost} {
			f.felt = "" // the publisher has other words
			add(scenario{"publisher", "broker: " + f.what, m.words, false, false, func(w *site) { w.publishThrough(m, f) }, nil})
		}
	}
	onTheWay := moment{"on the way", "publisher.published", 2}
	for _, f := range []fault{rabbitRestarts, rabbitDies, rabbitFreezes, memoryAlarm, diskAlarm} {
		f.felt = ""
		add(scenario{"publisher", "broker: " + f.what, onTheWay.words, false, true, func(w *site) { w.publishThrough(onTheWay, f) }, nil})
	}
	add(scenario{"publisher", "the queue is deleted", "before it publishes", false, false, queueDeleted, nil})

	add(scenario{"publisher", "three thousand malformed messages in a row", "before the good ones", false, false, func(w *site) { w.crowd(3000, 0) }, nil})
	add(scenario{"publisher", "huge messages", "among the others", false, false, func(w *site) { w.crowd(24, 2<<20) }, nil})

	// The migration.
	add(scenario{"migration", "kill -9", "in the middle", false, false, func(w *site) { w.migrateInterrupted(kill) }, nil})
	add(scenario{"migration", "pg_terminate_backend", "in the middle", false, false, func(w *site) {
		w.migrateInterrupted(func(w *site, _ *process) { w.terminate() })
	}, nil})
	add(scenario{"migration", "database unreachable", "in the middle", false, false, func(w *site) {
		w.migrateInterrupted(func(w *site, p *process) {
			p.database.refuse(true)
			p.awaitSaid(w, "waiting for the database")
			p.database.refuse(false)
		})
	}, nil})
	for _, m := range []moment{{"before the first step", "store.schema-created", 1}, {"after the last step", "store.migrated", 1}} {
		add(scenario{"migration", "kill -9", m.words, false, false, func(w *site) { w.migrateKilled(m) }, nil})
	}
	add(scenario{"migration", "three at once", "from the start", false, false, migrateAtOnce, nil})

	add(scenario{"migration", "to the next version, then replicas one after the other", "under load", false, false, rollingUpgrade, nil})
	add(scenario{"migration", "kill -9, then two at once", "at each statement, under load", false, false, upgradeKilled, nil})
	add(scenario{"migration", "another reads for a long time", "under load", false, false, upgradeBlocked, nil})
	add(scenario{"migration", "the database is newer", "from the start", true, false, newerRefused, nil})

	// The replay of dead letters.
	for _, m := range []moment{{"with the letters in hand", "letters.taken", 1}, {"before the confirms", "publisher.published", 1}, {"between publish and ack", "replay.confirmed", 40},
		{"between ack and record", "replay.acked", 200}, {"after the record", "replay.recorded", 1}} {
		add(scenario{"replay", "kill -9, and again", m.words, false, false, func(w *site) {
			w.replay(func(p *process) { p.signal(w, syscall.SIGKILL) }, m)
		}, nil})
		add(scenario{"replay", "broker: connections cut, and again", m.words, false, false, func(w *site) {
			w.replay(func(p *process) { p.broker.cut() }, m)
		}, nil})
	}

	// Other things done with dead letters.
	for i, m := range []moment{{"with the letters in hand", "letters.taken", 1}, {"between record and ack", "discard.recorded", 1}, {"between the acks", "discard.acked", 4}} {
		add(scenario{"discard", "kill -9, and again", m.words, i == 2, false, func(w *site) { w.discard(m) }, nil})
	}
	for _, m := range []moment{{"with the letter in hand", "letters.taken", 1}, {"before the confirm", "publisher.published", 1}, {"between publish and ack", "replay.confirmed", 1},
		{"between ack and record", "replay.acked", 1}, {"after the record", "replay.recorded", 1}} {
		add(scenario{"edit", "kill -9, and again", m.words, m.point == "replay.confirmed", false, func(w *site) { w.edit(m, false) }, nil})
		add(scenario{"edit", "kill -9, and again, with a new id", m.words, false, false, func(w *site) { w.edit(m, true) }, nil})
	}
	add(scenario{"edit", "kill -9, and again", "in the editor", false, false, killedInTheEditor, nil})

	// The engine.
	for _, e := range engineFaults {
		add(scenario{"engine", e.what, "in the middle of a run", e.quick, e.server, func(w *site) { w.engine(e) }, (*site).settleEngine})
	}

	all = append(all, secureScenarios()...)
	all = append(all, othersScenarios()...)
	all = append(all, wideScenarios()...)

	// The spool of a run whose broker is away until after its end.
	all = append(all, spoolScenarios()...)

	for seed := range uint64(3) {
		add(scenario{"all", "one thing after the other, at random", fmt.Sprintf("for 8 s, seed %d", seed), false, false, func(w *site) { w.storm(seed) }, nil})
	}
	for i, lasts := range []time.Duration{15 * time.Second, 30 * time.Second} {
		c := &chaos{seed: uint64(i + 1), lasts: lasts, servers: i == 1}
		words := map[bool]string{false: "processes and connections", true: "processes, connections and servers"}[c.servers]
		add(scenario{"all", "load, malformed bodies, several faults at once: " + words, fmt.Sprintf("for %v, seed %d", c.lasts, c.seed), i == 0, c.servers, c.run, c.settle})
	}
	if *lasting > 0 {
		c := &chaos{seed: *seed, lasts: *lasting, servers: true}
		add(scenario{"all", "chaos", fmt.Sprintf("for %v, seed %d", c.lasts, c.seed), false, true, c.run, c.settle})
	}
	return all
}

func kill(w *site, p *process) {
	p.signal(w, syscall.SIGKILL)
	p.awaitKilled(w)
}

// frozenInTransaction: the rows that a frozen consumer has locked are free again
// when the database ends its transaction, which takes 15 s.
func frozenInTransaction(w *site) {
	w.backlog()
	p := w.serve(locked.freezes())
	p.awaitFrozen(w)
	w.serve()
	w.awaitBlocked(func() {})
	servicetest.Eventually(w, patience, "the database ends the idle transaction", func() error {
		n, err := w.number("SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND state = 'idle in transaction'", w.role)
		if err == nil && n > 0 {
			err = fmt.Errorf("%d are idle in a transaction", n)
		}
		return err
	})
	w.mended = time.Now()
	p.signal(w, syscall.SIGCONT)
}

// vanish: a machine that loses its power takes leave of nobody. The rows that it
// has locked are free when the database ends its transaction.
func vanish(w *site) {
	w.backlog()
	p := w.serve(locked.freezes())
	p.awaitFrozen(w)
	w.lose(p)
	w.serve()
	w.mended = time.Now()
}

// lose has the machine of p vanish.
func (w *site) lose(p *process) {
	w.Helper()
	for _, proxy := range []*proxy{p.broker, p.database} {
		proxy.set(flow{held: true}, toServer, toClient)
	}
	kill(w, p)
}

// dieDraining: a consumer that was asked to stop is killed before it has
// finished.
func dieDraining(w *site) {
	w.backlog()
	p := w.serve(draining.freezes())
	servicetest.Eventually(w, patience, "it has begun", func() error {
		l, err := w.ledger()
		if err == nil && l.received == 0 {
			err = errors.New("nothing is received")
		}
		return err
	})
	p.signal(w, syscall.SIGTERM)
	p.awaitFrozen(w)
	kill(w, p)
	w.mended = time.Now()
	w.serve()
}

func rollingRestart(w *site) {
	w.migrate()
	w.publish(withoutID)
	old := []*process{w.serve(), w.serve()}
	source := w.publisher(nil)
	source.broker.set(flow{rate: 15 << 10}, toServer)
	for range 3 {
		for i := range old {
			next := w.serve()
			next.awaitSaid(w, "consuming")
			old[i].stop(w)
			old[i] = next
		}
	}
	source.broker.set(flow{}, toServer)
	w.mended = time.Now()
	w.awaitPublished(source, nil)
}

func lockedTable(w *site) {
	var holder func()
	w.strike(beforeApply, fault{
		alone: true,
		begin: func(w *site, _ *process) {
			conn := w.hold("LOCK TABLE SCHEMA_.jobs IN ACCESS EXCLUSIVE MODE")
			holder = func() { release(conn) }
		},
		lasts: 2 * time.Second,
		end: func(w *site, _ *process) {
			w.awaitBlocked(holder)
		},
	})
}

func cancelledQuery(w *site) {
	var conn *pgx.Conn
	w.strike(beforeApply, fault{
		alone: true,
		begin: func(w *site, _ *process) { conn = w.hold("LOCK TABLE SCHEMA_.status_changes IN ACCESS EXCLUSIVE MODE") },
		end: func(w *site, p *process) {
			w.awaitBlocked(func() {
				w.sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE usename = 'ROLE_' AND wait_event_type = 'Lock'")
			})
			p.awaitSaid(w, paused)
			release(conn)
		},
	})
}

// deadlock: the consumer has read the runs and wants to write logs; another has
// locked the logs and wants the runs for itself.
func deadlock(w *site) {
	w.strike(locked, fault{alone: true, begin: func(w *site, p *process) { w.deadlock(p) }})
}

func (w *site) deadlock(p *process) {
	conn := w.hold("LOCK TABLE SCHEMA_.log_chunks IN ACCESS EXCLUSIVE MODE")
	// Whose patience ends first is the victim.
	if _, err := conn.Exec(w.Context(), "SET LOCAL deadlock_timeout = '1min'"); err != nil {
		w.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() {
		_, err := conn.Exec(w.Context(), w.names("LOCK TABLE SCHEMA_.workflows IN ACCESS EXCLUSIVE MODE"))
		answered <- err
	}()
	servicetest.Eventually(w, patience, "the other waits for the runs", func() error {
		n, err := w.number("SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND wait_event_type = 'Lock'", conn.PgConn().PID())
		if err == nil && n == 0 {
			err = errors.New("it does not")
		}
		return err
	})
	p.signal(w, syscall.SIGCONT)
	if err := <-answered; err != nil {
		w.Fatalf("the other was to get the runs, because the consumer was to be the victim of the deadlock: %v", err)
	}
	release(conn)
}

// diskFull puts the tables of the site on a disk of a few megabytes.
func diskFull(w *site) {
	dir := w.smallDisk(6 << 20)
	space := "small_" + w.role
	w.sql(fmt.Sprintf("CREATE TABLESPACE %s LOCATION '%s'", space, dir), "GRANT CREATE ON TABLESPACE "+space+" TO ROLE_", "ALTER ROLE ROLE_ SET default_tablespace = "+space)
	w.Cleanup(func() {
		w.sql("ALTER ROLE ROLE_ RESET default_tablespace", "DROP SCHEMA SCHEMA_ CASCADE", "DROP TABLESPACE "+space, "CREATE SCHEMA SCHEMA_")
	})
	ballast := filepath.Join(dir, "ballast")
	w.strike(beforeApply, fault{
		begin: func(w *site, _ *process) { w.fill(ballast) },
		felt:  "the database's disk is full",
		lasts: time.Second,
		end:   func(w *site, _ *process) { w.must(os.Remove(ballast)) },
	})
}

// smallDisk mounts a disk in memory, for the database's user.
func (w *site) smallDisk(bytes int) string {
	w.Helper()
	dir := w.disk(bytes)
	info, err := os.Stat(fmt.Sprintf("/proc/%d", w.Postgres().PID()))
	w.must(err)
	owner := info.Sys().(*syscall.Stat_t)
	place := filepath.Join(dir, "space")
	w.must(os.Mkdir(place, 0o700))
	w.must(os.Chown(place, int(owner.Uid), int(owner.Gid)))
	return place
}

// disk mounts a disk in memory.
func (w *site) disk(bytes int) string {
	w.Helper()
	dir, err := os.MkdirTemp("/tmp", "waymark-disk-")
	w.must(err)
	w.Cleanup(func() { w.must(os.Remove(dir)) })
	if err := syscall.Mount("none", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=755", bytes)); err != nil {
		w.Fatalf("mounting a small disk: %v", err)
	}
	w.Cleanup(func() { w.must(syscall.Unmount(dir, 0)) })
	return dir
}

// fill writes a file that leaves no room on its disk.
func (w *site) fill(ballast string) {
	w.Helper()
	f, err := os.Create(ballast)
	w.must(err)
	defer f.Close()
	for _, size := range []int{64 << 10, 512} {
		for block := make([]byte, size); err == nil; _, err = f.Write(block) {
		}
		if !errors.Is(err, syscall.ENOSPC) {
			w.Fatalf("filling the disk: %v", err)
		}
		err = nil
	}
}

// canMount reports whether a small disk can be had here.
func canMount() bool {
	dir, err := os.MkdirTemp("/tmp", "waymark-disk-")
	if err != nil {
		return false
	}
	defer os.Remove(dir)
	if syscall.Mount("none", dir, "tmpfs", 0, "size=65536") != nil {
		return false
	}
	return syscall.Unmount(dir, 0) == nil
}

// publishKilled kills a publisher; another publishes what the first has not
// said to be confirmed.
func (w *site) publishKilled(m moment) {
	w.migrate()
	w.publish(withoutID)
	w.serve()
	w.serve()
	p := w.publisher(nil, m.dies())
	p.awaitKilled(w)
	w.mended = time.Now()
	confirmed := make(map[string]bool)
	ids(p, confirmed)
	w.awaitPublished(w.publisher(confirmed), confirmed)
}

// publishThrough has a publisher go through a fault of the broker.
func (w *site) publishThrough(m moment, f fault) {
	w.migrate()
	w.publish(withoutID)
	w.serve()
	w.serve()
	p := w.publisher(nil, m.freezes())
	p.awaitFrozen(w)
	w.inflict(f, p)
	w.awaitPublished(p, nil)
}

// awaitPublished returns when a publisher has had everything confirmed.
func (w *site) awaitPublished(p *process, confirmed map[string]bool) {
	w.Helper()
	if err := p.wait(w); err != nil {
		w.Fatalf("the publisher ended with: %v; standard error:\n%s", err, p.stderr.String())
	}
	if confirmed == nil {
		confirmed = make(map[string]bool)
	}
	ids(p, confirmed)
	for i := range w.trace.messages {
		if m := &w.trace.messages[i]; m.id != "" && !confirmed[m.id] {
			w.Errorf("message %s was not confirmed, and the publisher did not say so", m.id)
		}
	}
	w.published += len(confirmed)
}

func queueDeleted(w *site) {
	w.migrate()
	w.publish(withoutID)
	w.serve()
	w.serve()
	servicetest.Eventually(w, patience, "all is received", w.received)
	// Acks follow their commit; the queue may be deleted when none is left.
	servicetest.Eventually(w, patience, "the broker has all acks", func() error { return w.unacked() })
	w.deleteQueue(w.status)
	w.mended = time.Now()
	w.awaitPublished(w.publisher(nil), nil)
}

// crowd puts messages that cannot be read into the queue: before all others, or
// among them if they are huge.
func (w *site) crowd(n, size int) {
	w.settings = append(w.settings, "WAYMARK_CONSUMER_MAX_MESSAGE_BYTES=1000000", "WAYMARK_CONSUMER_MAX_HELD_BYTES=16777216")
	more := make([]message, n)
	for i := range more {
		more[i] = message{id: named("crowd %d", i).String(), dead: true, body: append(fmt.Appendf(nil, "no JSON, %d ", i), make([]byte, size)...)}
	}
	all := w.trace.without(func(*message) bool { return false })
	if size == 0 {
		all.messages = append(more, all.messages...)
	} else {
		for i, m := range more {
			all.messages = slices.Insert(all.messages, (i+1)*len(w.trace.messages)/(n+1), m)
		}
	}
	all.count()
	w.trace = all
	w.backlog()
	w.mended = time.Now()
	w.serve()
}

// unacked says whether consumers of the site hold messages.
func (w *site) unacked() error {
	out, err := w.RabbitMQ().Ctl(w.Context(), "--silent", "list_queues", "name", "messages")
	if err != nil {
		return err
	}
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		if len(fields) == 2 && (fields[0] == w.status || fields[0] == w.submission) && fields[1] != "0" {
			return errors.New(line)
		}
	}
	return nil
}

// migrateInterrupted: a migration waits in its middle, because another has made
// a table of the same name and has not committed it.
func (w *site) migrateInterrupted(what func(*site, *process)) {
	w.withoutPoison()
	w.publish(everything)
	holder := w.hold("CREATE TABLE SCHEMA_.ledger ()")
	p := w.serve()
	w.awaitBlocked(func() {
		go func() {
			// The session on the server waits on, whatever becomes of its client.
			<-time.After(time.Second)
			release(holder)
		}()
		what(w, p)
	})
	w.mended = time.Now()
	select {
	case <-p.done:
		w.serve()
	default:
	}
}

func (w *site) migrateKilled(m moment) {
	w.withoutPoison()
	w.publish(everything)
	w.serve(m.dies()).awaitKilled(w)
	w.mended = time.Now()
	w.serve()
}

func migrateAtOnce(w *site) {
	w.withoutPoison()
	w.publish(everything)
	for range 3 {
		w.serve()
	}
}

// withoutPoison: only a database that the suite has prepared refuses poison.
func (w *site) withoutPoison() {
	w.trace = w.trace.without(func(m *message) bool { return m.poison })
}

// withIDs leaves out what has no id, and poison.
func (w *site) withIDs() {
	w.trace = w.trace.without(func(m *message) bool { return m.id == "" || m.poison })
	less := make(rows)
	for text, n := range w.want {
		if !strings.Contains(text, named("REANA run 0").String()) && !strings.Contains(text, named("REANA run 1").String()) {
			less[text] = n
		}
	}
	w.want = less
}

// replay has every status message die because its run is not known, and
// replays them when it is; something happens to the first replay.
func (w *site) replay(what func(*process), m moment) {
	// Of messages without ids equal ones are one when they are replayed.
	w.withIDs()
	w.settings = append(w.settings, "WAYMARK_CONSUMER_UNKNOWN_WORKFLOWS=dead-letter")
	w.migrate()
	w.publish(isStatus)
	w.serve()
	servicetest.Eventually(w, patience, "every status message has died", w.received)
	w.publish(isSubmission)
	servicetest.Eventually(w, patience, "the submissions are known", w.received)

	command := []string{"dead-letters", "replay", "--reason", "unknown-workflow"}
	p := w.waymark([]string{m.freezes()}, command...)
	p.awaitFrozen(w)
	what(p)
	p.signal(w, syscall.SIGCONT)
	_ = p.wait(w) // which may have ended in any way
	w.mended = time.Now()
	p = w.waymark(nil, command...)
	// The first may have come to its end, and have left nothing.
	if err := p.wait(w); err != nil && !strings.Contains(p.stderr.String(), "not found") {
		w.Fatalf("the second replay ended with: %v; standard output:\n%s\nstandard error:\n%s", err, p.stdout.String(), p.stderr.String())
	}
}

// engineFault happens while a run of the serial engine stands in its middle,
// and ends when the run has.
type engineFault struct {
	what          string
	quick, server bool
	begin, end    func(w *site, engine, consumer *process)
}

var engineFaults = []engineFault{
	{what: "broker: connections cut", begin: func(_ *site, engine, consumer *process) { engine.broker.cut(); consumer.broker.cut() }},
	{what: "broker: unreachable until after its end",
		begin: func(_ *site, engine, _ *process) { engine.broker.refuse(true) },
		end:   func(_ *site, engine, _ *process) { engine.broker.refuse(false) }},
	{what: "broker: answers lost, then cut",
		begin: func(_ *site, engine, _ *process) { engine.broker.set(flow{dropped: true}, toClient) },
		end: func(_ *site, engine, _ *process) {
			engine.broker.cut()
			engine.broker.set(flow{}, toClient)
		}},
	{what: "broker: silent until after its end",
		begin: func(_ *site, engine, _ *process) { engine.broker.set(flow{held: true}, toServer, toClient) },
		end:   func(_ *site, engine, _ *process) { engine.broker.set(flow{}, toServer, toClient) }},
	{what: "database: unreachable until after its end",
		begin: func(_ *site, _, consumer *process) { consumer.database.refuse(true) },
		end:   func(_ *site, _, consumer *process) { consumer.database.refuse(false) }},
	{what: "consumer: kill -9, another after its end",
		begin: func(w *site, _, consumer *process) { kill(w, consumer) },
		end:   func(w *site, _, _ *process) { w.serve() }},
	{what: "engine: frozen for 2 s", begin: func(w *site, engine, _ *process) {
		engine.signal(w, syscall.SIGSTOP)
		w.last(2 * time.Second)
		engine.signal(w, syscall.SIGCONT)
	}},
	{what: "broker: kill -9", server: true,
		begin: func(w *site, _, _ *process) { w.killBroker() },
		end:   func(w *site, _, _ *process) { w.must(w.RabbitMQ().Restart(w.Context())) }},
}

const engineSteps = 6

// engine runs a workflow that waits in its middle until the fault has begun.
func (w *site) engine(f engineFault) {
	w.migrate()
	consumer := w.serve()
	p, goOn := w.halfway(nil, nil, "--final-timeout", "2m")
	f.begin(w, p, consumer)
	goOn()
	if f.end != nil {
		w.last(500 * time.Millisecond)
		f.end(w, p, consumer)
	}
	w.mended = time.Now()
	if err := p.wait(w); err != nil {
		w.Fatalf("the run ended with: %v; standard error:\n%s", err, p.stderr.String())
	}
}

// halfway starts a run of the serial engine and returns when it stands in its
// middle. With goOn it comes to the end of its last command, before which it
// runs some more.
func (w *site) halfway(settings, more []string, args ...string) (p *process, goOn func()) {
	w.Helper()
	dir := w.TempDir()
	var spec strings.Builder
	spec.WriteString("workflow:\n  type: serial\n  specification:\n    steps:\n")
	for i := range engineSteps {
		command := fmt.Sprintf("echo line-%d", i)
		if i == engineSteps/2 {
			command += "; touch waiting; while [ ! -e go ]; do sleep 0.02; done"
		}
		if i == engineSteps-1 {
			for _, one := range more {
				fmt.Fprintf(&spec, "      - environment: any\n        commands: ['%s']\n", one)
			}
			command += "; touch over"
		}
		fmt.Fprintf(&spec, "      - name: step%d\n        environment: any\n        commands: ['%s']\n", i, command)
	}
	file, workspace := filepath.Join(dir, "reana.yaml"), filepath.Join(dir, "workspace")
	w.must(os.WriteFile(file, []byte(spec.String()), 0o600))
	p = w.waymark(settings, slices.Concat([]string{"run", "serial", "-f", file, "-w", workspace, "--id", w.engineRun().String(), "-n", "faults"}, args)...)
	exists := func(name string) {
		w.Helper()
		servicetest.Eventually(w, patience, "the run has come to "+name, func() error {
			if _, err := os.Stat(filepath.Join(workspace, name)); !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			select {
			case <-p.done:
				w.Fatalf("the run ended with: %v; standard error:\n%s", p.err, p.stderr.String())
			default:
			}
			return errors.New("not yet")
		})
	}
	exists("waiting")
	return p, func() {
		w.Helper()
		w.must(os.WriteFile(filepath.Join(workspace, "go"), nil, 0o600))
		exists("over")
	}
}

func (w *site) engineRun() uuid.UUID { return named("engine run of %s", w.schema) }

// settleEngine compares what is known of the run with what it did.
func (w *site) settleEngine() (r result) {
	const id = "'%[2]s'"
	counts := map[string]int{
		"SELECT count(*) FROM %[1]s.workflow_status WHERE workflow_id = " + id + " AND status = 'finished'": 1,
		"SELECT count(*) FROM %[1]s.workflow_status":                                                        1,
		"SELECT coalesce(sum(jobs_finished), 0) FROM %[1]s.workflow_status":                                 engineSteps,
		"SELECT coalesce(sum(jobs_total), 0) FROM %[1]s.workflow_status":                                    engineSteps,
		"SELECT count(*) FROM %[1]s.job_status WHERE status = 'finished'":                                   engineSteps,
		"SELECT count(*) FROM %[1]s.status_history WHERE status = 'finished' AND workflow_id = " + id:       1,
		"SELECT count(*) FROM %[1]s.status_history WHERE status = 'running' AND workflow_id = " + id:        1,
	}
	for i := range engineSteps {
		counts[fmt.Sprintf("SELECT coalesce(sum((length(body) - length(replace(body, E'line-%[1]d\\n', ''))) / length(E'line-%[1]d\\n')), 0) FROM ", i)+"%[1]s.workflow_logs WHERE job_id IS NOT NULL"] = 1
	}
	var missing, extra int
	compare := func() error {
		missing, extra = 0, 0
		var all []error
		for query, want := range counts {
			query = strings.NewReplacer("%[1]s", w.schema, "%[2]s", w.engineRun().String()).Replace(query)
			got, err := w.number(query)
			if err != nil {
				return err
			}
			missing, extra = missing+max(want-got, 0), extra+max(got-want, 0)
			if got != want {
				all = append(all, fmt.Errorf("%s: %d, want %d", query, got, want))
			}
		}
		return errors.Join(all...)
	}
	servicetest.Eventually(w, patience, "the run is known as it was", compare)
	r.recovered = time.Since(w.mended)
	for _, p := range w.processes {
		select {
		case <-p.done:
		default:
			p.stop(w)
		}
	}
	if err := compare(); err != nil {
		w.Error(err)
	}
	if letters := w.letters(); len(letters) > 0 {
		w.Errorf("the engine's messages %v are in the dead-letter queue", letters)
		missing += len(letters)
	}
	l, err := w.ledger()
	if err != nil || !l.balanced {
		w.Errorf("the ledger does not balance: %+v, %v", l, err)
	}
	r.ledger, r.lost, r.doubled = l, missing, extra
	r.published = l.applied + l.stale
	return r
}

// storm does one thing after the other to two consumers and a publisher.
func (w *site) storm(seed uint64) {
	random := rand.New(rand.NewPCG(seed, 1))
	w.migrate()
	w.publish(withoutID)
	consumers := []*process{w.serve(), w.serve()}
	source := w.publisher(nil)
	source.broker.set(flow{rate: 12 << 10}, toServer) // so that it outlasts the storm
	deeds := []func(i int){
		func(i int) {
			kill(w, consumers[i])
			consumers[i] = w.serve()
		},
		func(i int) { consumers[i].broker.cut() },
		func(i int) { consumers[i].database.cut() },
		func(i int) {
			consumers[i].signal(w, syscall.SIGSTOP)
			consumers[i].broker.cut()
			w.last(time.Duration(random.IntN(300)) * time.Millisecond)
			consumers[i].signal(w, syscall.SIGCONT)
		},
		func(i int) {
			consumers[i].database.set(flow{dropped: true}, toClient)
			w.last(time.Duration(random.IntN(100)) * time.Millisecond)
			consumers[i].database.cut()
			consumers[i].database.set(flow{}, toClient)
		},
		func(i int) {
			consumers[i].broker.set(flow{dropped: true}, toServer)
			w.last(time.Duration(random.IntN(100)) * time.Millisecond)
			consumers[i].broker.cut()
			consumers[i].broker.set(flow{}, toServer)
		},
		func(int) { w.terminate() },
		func(int) { source.broker.cut() },
	}
	for end := time.Now().Add(8 * time.Second); time.Now().Before(end); {
		deeds[random.IntN(len(deeds))](random.IntN(len(consumers)))
		w.last(time.Duration(random.IntN(400)) * time.Millisecond)
	}
	source.broker.set(flow{}, toServer)
	w.mended = time.Now()
	w.awaitPublished(source, nil)
}
