package bench

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/broker"
	"waymark/store"
)

// cleanupTimeout bounds the removal of what a benchmark made. Dropping a schema
// of twenty million rows deletes some files and takes well under a second.
const cleanupTimeout = time.Minute

// place is what a benchmark has on the servers: queues and schemas of its own.
type place struct {
	cfg      Config
	name     string // random letters
	conn     *amqp.Connection
	patience time.Duration // with a broker that takes nothing
	// blocked tells why the broker takes no messages on conn.
	blocked func() error
	sql     *pgx.Conn // for the server's statistics, and to make and drop schemas

	queues  []string
	schemas []string
	dbs     []*store.DB

	// journal of the above, nil if none is kept.
	journal *journal
	// onBroker and onDatabase are the servers' names in the journal.
	onBroker, onDatabase string
}

// open makes a place on the servers asked for, and removes from them what
// benchmarks left that were killed.
func (b *Bench) open(ctx context.Context, onBroker, onDatabase bool) (_ *place, err error) {
	p := &place{cfg: b.cfg, patience: b.patience, name: strings.ToLower(rand.Text())[:16]}
	if b.opened != nil {
		b.opened(p)
	}
	defer func() {
		if err != nil {
			p.close(ctx)
		}
	}()
	if onBroker {
		if p.conn, err = p.dial(ctx, "waymark bench"); err != nil {
			return nil, err
		}
		p.blocked = blocked(p.conn)
		at := p.conn.RemoteAddr().String()
		// As it was given, if it is a form that the library reads: a name may stand
		// for the nodes of a cluster, which have the same queues.
		if uri, err := amqp.ParseURI(strings.TrimSpace(b.cfg.BrokerURL)); err == nil {
			at = net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port))
		}
		p.onBroker = at + "/" + p.conn.Config.Vhost
	}
	if onDatabase {
		// store says better than pgx what is wrong with a URL.
		db, err := store.Open(ctx, store.Config{URL: b.cfg.DatabaseURL})
		if err != nil {
			return nil, err
		}
		_ = db.Close() // it never connected
		if p.sql, err = connect(ctx, b.cfg.DatabaseURL); err != nil {
			return nil, fmt.Errorf("connecting to the database: %w", err)
		}
		server := p.sql.Config()
		p.onDatabase = net.JoinHostPort(server.Host, strconv.Itoa(int(server.Port))) + "/" + server.Database
	}
	if b.cfg.Journals != "" {
		p.sweep(ctx)
		if p.journal, err = newJournal(b.cfg.Journals, p.name); err != nil {
			p.unnoted(err)
		}
	}
	return p, nil
}

// note writes down what is going to be made.
func (p *place) note(t thing) {
	if err := p.journal.add(t); err != nil {
		p.unnoted(err)
	}
}

// unnoted goes on without a journal: it is a courtesy to those who kill.
func (p *place) unnoted(err error) {
	p.cfg.Progress(fmt.Sprintf("if this benchmark is killed, what it made stays: %v", err))
	if p.journal != nil {
		p.journal.broken = true
	}
}

// sweep removes what benchmarks left that were killed, of what is on the
// servers of this one. What cannot be removed is left to the next.
func (p *place) sweep(ctx context.Context) {
	left := leftJournals(p.cfg.Journals)
	if len(left) == 0 {
		return
	}
	if p.sql != nil {
		// A backend of who was killed may be at work still: not to be waited for.
		_, _ = p.sql.Exec(ctx, "SET lock_timeout = '5s'")
		defer p.sql.Exec(ctx, "RESET lock_timeout")
	}
	for _, j := range left {
		all := j.things()
		var left []thing
		for _, t := range all {
			var err error
			switch {
			case t.Kind == kindQueue && t.Server == p.onBroker:
				err = p.deleteQueue(t.Name)
			case t.Kind == kindSchema && t.Server == p.onDatabase:
				err = dropSchema(ctx, p.sql, t.Name)
			default:
				left = append(left, t) // on another server
				continue
			}
			if err != nil {
				left = append(left, t)
				p.cfg.Progress(fmt.Sprintf("clearing up after a benchmark that was killed: %v", err))
			}
		}
		if removed := len(all) - len(left); removed > 0 {
			p.cfg.Progress(fmt.Sprintf("cleared up after a benchmark that was killed (%s)", j.benchmark()))
		}
		if err := j.keep(left); err != nil {
			p.cfg.Progress(fmt.Sprintf("clearing up after a benchmark that was killed: %v", err))
		}
	}
}

func (p *place) dial(ctx context.Context, name string) (*amqp.Connection, error) {
	return broker.Dial(ctx, broker.Config{URL: p.cfg.BrokerURL, TLS: p.cfg.TLS, ConnectionName: name})
}

// newQueue names a queue that does not exist; it is deleted with the place,
// and so is the dead-letter queue that a consumer declares beside it.
func (p *place) newQueue() string {
	name := fmt.Sprintf("%s%s-%d", queuePrefix, p.name, len(p.queues)+1)
	p.note(thing{kindQueue, p.onBroker, name})
	p.queues = append(p.queues, name)
	return name
}

// deleteQueue deletes a queue of this place before its end: tens of thousands
// of messages that nobody wants would slow down the next measurement.
func (p *place) deleteQueue(name string) error {
	for _, q := range []string{name, broker.DeadLetter(name)} {
		if err := deleteQueue(p.conn, q); err != nil {
			return err
		}
	}
	return nil
}

// deleteQueue deletes a queue with all that is in it. RabbitMQ does not mind
// deleting one that is not there.
func deleteQueue(conn *amqp.Connection, name string) error {
	// A refusal closes the channel, so each queue has its own.
	ch, err := conn.Channel()
	if err != nil {
		return fmt.Errorf("deleting queue %q: %w", name, broker.Explain(err))
	}
	if _, err := ch.QueueDelete(name, false, false, false); err != nil {
		return fmt.Errorf("deleting queue %q: %w", name, broker.Explain(err))
	}
	return ch.Close()
}

// database makes a schema and returns a store in it.
func (p *place) database(ctx context.Context) (*store.DB, string, error) {
	schema := fmt.Sprintf("%s%s_%d", schemaPrefix, p.name, len(p.schemas)+1)
	p.note(thing{kindSchema, p.onDatabase, schema})
	p.schemas = append(p.schemas, schema)
	// Not IF NOT EXISTS: what exists is somebody else's.
	if _, err := p.sql.Exec(ctx, "CREATE SCHEMA "+pgx.Identifier{schema}.Sanitize()); err != nil {
		remedy := ""
		refused, ok := errors.AsType[*pgconn.PgError](err)
		if ok {
			p.schemas = p.schemas[:len(p.schemas)-1] // it was not made: not ours to drop
		}
		if ok && refused.Code == pgInsufficientPrivilege {
			remedy = "; a benchmark makes a schema of its own, for which its role needs CREATE on the database (GRANT CREATE ON DATABASE … TO …)"
		}
		return nil, "", fmt.Errorf("creating schema %q: %w%s", schema, err, remedy)
	}
	db, err := p.store(ctx, schema)
	if err != nil {
		return nil, "", err
	}
	if _, err := db.Migrate(ctx); err != nil {
		return nil, "", err
	}
	return db, schema, nil
}

// store opens one more store in a schema of this place.
func (p *place) store(ctx context.Context, schema string) (*store.DB, error) {
	db, err := store.Open(ctx, store.Config{ApplicationName: "waymark bench", Schema: schema, URL: p.cfg.DatabaseURL})
	if err == nil {
		p.dbs = append(p.dbs, db)
	}
	return db, err
}

// pgInsufficientPrivilege is PostgreSQL's code of what a role may not do.
const pgInsufficientPrivilege = "42501"

// close removes everything that this place holds, though ctx may have ended.
// What it cannot remove, as when a server has gone away, it tells, and leaves
// its journal to the next benchmark: a measurement is none the worse for it.
func (p *place) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	// What closing them says is of no use: the measurement is over.
	for _, db := range p.dbs {
		_ = db.Close()
	}
	if p.conn != nil {
		_ = p.conn.Close()
	}
	if p.sql != nil {
		_ = p.sql.Close(ctx)
	}
	// On new connections: a cancelled statement takes the old one with it.
	err := errors.Join(p.dropQueues(ctx), p.dropSchemas(ctx))
	if err != nil {
		later := ""
		if p.journal != nil {
			later = "; the next benchmark will try again"
		}
		p.cfg.Progress(strings.ReplaceAll(err.Error(), "\n", "; ") + later)
	}
	_ = p.journal.close(err == nil) // one that stays is read again, and found done
}

func (p *place) dropQueues(ctx context.Context) error {
	if len(p.queues) == 0 {
		return nil
	}
	conn, err := p.dial(ctx, "waymark bench")
	if err != nil {
		return fmt.Errorf("removing the queues %s%s-…: %w", queuePrefix, p.name, err)
	}
	defer conn.Close()
	p.conn = conn
	for _, q := range p.queues {
		err := p.deleteQueue(q)
		if refusal, ok := errors.AsType[*amqp.Error](err); ok && refusal.Code == amqp.AccessRefused {
			continue // who may not delete it could not make it
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *place) dropSchemas(ctx context.Context) error {
	if len(p.schemas) == 0 {
		return nil
	}
	conn, err := connect(ctx, p.cfg.DatabaseURL)
	if err != nil {
		return fmt.Errorf("removing the schemas %s%s_…: %w", schemaPrefix, p.name, err)
	}
	defer conn.Close(ctx)
	for _, schema := range p.schemas {
		if err := dropSchema(ctx, conn, schema); err != nil {
			return err
		}
	}
	return nil
}

// dropSchema removes a schema, if it is there: it may have been noted and never
// made, or made by a transaction whose answer was lost.
func dropSchema(ctx context.Context, conn *pgx.Conn, name string) error {
	if _, err := conn.Exec(ctx, "DROP SCHEMA IF EXISTS "+pgx.Identifier{name}.Sanitize()+" CASCADE"); err != nil {
		return fmt.Errorf("removing schema %q: %w", name, err)
	}
	return nil
}

// connect opens a connection of the benchmark's own, as the store reads its URL.
func connect(ctx context.Context, databaseURL string) (*pgx.Conn, error) {
	config, err := store.ParseURL(databaseURL)
	if err != nil {
		return nil, err
	}
	return pgx.ConnectConfig(ctx, config)
}
