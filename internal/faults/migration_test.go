//go:build linux

package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"waymark/internal/servicetest"
)

// nextVersion is a migration that the suite puts behind the embedded ones, to
// have a waymark of the next version. Each statement needs a lock that
// consumers are in the way of, and the first two lock in the order in which a
// consumer does not.
const nextVersion = `-- +goose Up
ALTER TABLE jobs ADD COLUMN next_version text;
ALTER TABLE workflows ADD COLUMN next_version text NOT NULL DEFAULT 'none';
CREATE INDEX log_chunks_next ON log_chunks (event_time);
CREATE TABLE next_things (id bigint PRIMARY KEY);
ALTER TABLE ledger ADD COLUMN next_version bigint;

-- +goose Down
DROP TABLE next_things;
`

// nextTables are those that the statements of nextVersion need, in order.
var nextTables = []string{"jobs", "workflows", "log_chunks", "ledger"}

// buildNext builds a waymark with one more migration.
func buildNext(dir, output string) error {
	here, err := os.Getwd()
	if err != nil {
		return err
	}
	migrations := filepath.Join(here, "../../store/migrations")
	source := filepath.Join(dir, "next.sql")
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(migrations, "00999_next.sql"): source}})
	if err != nil {
		return err
	}
	config := filepath.Join(dir, "overlay.json")
	if err := errors.Join(os.WriteFile(source, []byte(nextVersion), 0o600), os.WriteFile(config, overlay, 0o600)); err != nil {
		return err
	}
	out, err := exec.Command("go", "build", "-tags", "faults", "-buildvcs=false", "-overlay", config, "-o", output, "waymark/cmd/waymark").CombinedOutput()
	if err != nil {
		return fmt.Errorf("building the next version: %w\n%s", err, out)
	}
	return nil
}

// next starts a program of the next version.
func (w *site) next(args ...string) *process {
	w.Helper()
	return w.another("waymark-next", args...)
}

// another starts a program of another build.
func (w *site) another(name string, args ...string) *process {
	w.Helper()
	b, d := newProxy(w, host(w.AMQPURL())), newProxy(w, host(w.DatabaseURL()))
	p := start(w, name, w.environment(b.address(), d.address()), "", args...)
	p.broker, p.database = b, d
	if args[0] == "serve" {
		w.processes = append(w.processes, p)
	}
	return p
}

// upgraded says whether the schema is that of the next version, all of it.
func (w *site) upgraded() bool {
	w.Helper()
	n, err := w.number(`SELECT count(*) FROM information_schema.columns WHERE table_schema = $1 AND column_name = 'next_version'`, w.schema)
	w.must(err)
	if n != 0 && n != 3 {
		w.Errorf("%d of 3 columns of the next version are there: half a migration was committed", n)
	}
	return n == 3
}

// underLoad has two consumers of this version at work, and a publisher.
func (w *site) underLoad() (consumers []*process, source *process) {
	w.Helper()
	w.migrate()
	w.publish(withoutID)
	consumers = []*process{w.serve(), w.serve()}
	source = w.publisher(nil)
	source.broker.set(flow{rate: 15 << 10}, toServer)
	servicetest.Eventually(w, patience, "the consumers are at work", func() error {
		l, err := w.ledger()
		if err == nil && l.received < 40 {
			err = fmt.Errorf("%d messages are received", l.received)
		}
		return err
	})
	return consumers, source
}

// rollingUpgrade migrates while the version before consumes, and then replaces
// one consumer after the other.
func rollingUpgrade(w *site) {
	old, source := w.underLoad()
	p := w.next("migrate")
	if err := p.wait(w); err != nil {
		w.Fatalf("migrating under load: %v; standard error:\n%s", err, p.stderr.String())
	}
	if !w.upgraded() {
		w.Errorf("waymark migrate succeeded, and the schema is not that of the next version; standard error:\n%s", p.stderr.String())
	}
	w.progresses("after the migration, with consumers of the version before")
	for _, one := range old {
		p := w.next("serve")
		p.awaitSaid(w, "consuming")
		one.stop(w)
	}
	w.progresses("with consumers of the next version")
	source.broker.set(flow{}, toServer)
	w.mended = time.Now()
	w.awaitPublished(source, nil)
}

// progresses waits until more messages are received than are now.
func (w *site) progresses(when string) {
	w.Helper()
	before, err := w.ledger()
	w.must(err)
	servicetest.Eventually(w, patience, "messages are received "+when, func() error {
		l, err := w.ledger()
		if err == nil && l.received == before.received {
			err = fmt.Errorf("no more than %d are received", l.received)
		}
		return err
	})
}

// upgradeKilled kills a migration at each of its statements, under load.
func upgradeKilled(w *site) {
	_, source := w.underLoad()
	for _, table := range nextTables {
		// Shared with what only reads and writes rows, and not with the migration.
		holder := w.hold("LOCK TABLE SCHEMA_." + table + " IN ROW EXCLUSIVE MODE")
		p := w.next("migrate")
		servicetest.Eventually(w, patience, "the migration waits for table "+table, func() error {
			n, err := w.number(`SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace s ON s.oid = c.relnamespace
				WHERE NOT l.granted AND s.nspname = $1 AND c.relname = $2 AND l.mode IN ('AccessExclusiveLock', 'ShareLock')`, w.schema, table)
			if err == nil && n == 0 {
				err = errors.New("it does not")
			}
			return err
		})
		kill(w, p)
		release(holder)
		if w.upgraded() {
			w.Errorf("a migration that was killed while it waited for table %s is there", table)
		}
		w.progresses("after a migration was killed at table " + table)
	}
	var both []*process
	for range 2 {
		both = append(both, w.next("migrate"))
	}
	for _, p := range both {
		if err := p.wait(w); err != nil {
			w.Errorf("one of two migrations at once: %v; standard error:\n%s", err, p.stderr.String())
		}
	}
	if !w.upgraded() {
		w.Errorf("two have migrated, and the schema is not that of the next version")
	}
	source.broker.set(flow{}, toServer)
	w.mended = time.Now()
	w.awaitPublished(source, nil)
}

// upgradeBlocked has a migration wait for somebody who reads for a long time:
// the consumers must go on meanwhile.
func upgradeBlocked(w *site) {
	_, source := w.underLoad()
	holder := w.hold("SELECT count(*) FROM SCHEMA_.workflow_status")
	p := w.next("migrate")
	p.awaitSaid(w, "the migration waits for others")
	w.progresses("while a migration waits for a reader")
	if w.upgraded() {
		w.Errorf("the migration is there although a reader holds its tables")
	}
	release(holder)
	if err := p.wait(w); err != nil {
		w.Fatalf("migrating once the reader has gone: %v; standard error:\n%s", err, p.stderr.String())
	}
	source.broker.set(flow{}, toServer)
	w.mended = time.Now()
	w.awaitPublished(source, nil)
}

// newerRefused starts this version on a database of the next one.
func newerRefused(w *site) {
	w.migrate()
	w.publish(everything)
	if p := w.next("migrate"); p.wait(w) != nil {
		w.Fatalf("migrating: %v; standard error:\n%s", p.err, p.stderr.String())
	}
	before := w.catalogue()
	for _, args := range [][]string{{"serve"}, {"serve", "--no-migrate"}, {"migrate"}} {
		p := w.waymark(nil, args...)
		err := p.wait(w)
		exit, _ := errors.AsType[*exec.ExitError](err)
		if exit == nil || exit.Sys().(syscall.WaitStatus).Signaled() {
			w.Errorf("waymark %s on a newer database ended with: %v; want an exit code above 0", strings.Join(args, " "), err)
		}
		if said := p.stderr.String(); !strings.Contains(said, "the database is newer than this binary: upgrade waymark") {
			w.Errorf("waymark %s on a newer database does not say so; standard error:\n%s", strings.Join(args, " "), said)
		}
	}
	if after := w.catalogue(); after != before {
		w.Errorf("the schema was touched:\n%s\nafter:\n%s", before, after)
	}
	if l, err := w.ledger(); err != nil || l.received > 0 {
		w.Errorf("this version has received %d messages on a newer database, %v", l.received, err)
	}
	w.mended = time.Now()
	w.next("serve")
}

// catalogue is what is in the schema, and by which transaction.
func (w *site) catalogue() (text string) {
	w.Helper()
	w.must(w.do(func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `SELECT string_agg(c.relname || ' ' || c.xmin, E'\n' ORDER BY c.relname)
			FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace WHERE s.nspname = $1`, w.schema).Scan(&text)
	}))
	return text
}
