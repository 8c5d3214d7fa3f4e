package bench

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/broker"
	"waymark/store"
)

// cleanupTimeout bounds the removal of what a benchmark made. Dropping a schema
// of twenty million rows deletes some files and takes well under a second.
const cleanupTimeout = time.Minute

// place is what a benchmark has on the servers: queues and schemas of its own.
type place struct {
	cfg  Config
	name string // random letters
	conn *amqp.Connection
	sql  *pgx.Conn // for the server's statistics, and to make and drop schemas

	queues  []string
	schemas []string
	dbs     []*store.DB
}

// open makes a place on the servers asked for.
func (b *Bench) open(ctx context.Context, onBroker, onDatabase bool) (_ *place, err error) {
	p := &place{cfg: b.cfg, name: strings.ToLower(rand.Text())[:16]}
	if b.opened != nil {
		b.opened(p)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close(ctx))
		}
	}()
	if onBroker {
		if p.conn, err = p.dial(ctx, "waymark bench"); err != nil {
			return nil, err
		}
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
	}
	return p, nil
}

func (p *place) dial(ctx context.Context, name string) (*amqp.Connection, error) {
	return broker.Dial(ctx, broker.Config{URL: p.cfg.BrokerURL, TLS: p.cfg.TLS, ConnectionName: name})
}

// newQueue names a queue that does not exist; it is deleted with the place,
// and so is the dead-letter queue that a consumer declares beside it.
func (p *place) newQueue() string {
	name := fmt.Sprintf("waymark-bench-%s-%d", p.name, len(p.queues)+1)
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
	schema := fmt.Sprintf("waymark_bench_%s_%d", p.name, len(p.schemas)+1)
	// Not IF NOT EXISTS: what exists is somebody else's.
	if _, err := p.sql.Exec(ctx, "CREATE SCHEMA "+pgx.Identifier{schema}.Sanitize()); err != nil {
		return nil, "", fmt.Errorf("creating schema %q: %w", schema, err)
	}
	p.schemas = append(p.schemas, schema)
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

// close removes everything that this place holds, though ctx may have ended.
func (p *place) close(ctx context.Context) error {
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
	return errors.Join(p.dropQueues(ctx), p.dropSchemas(ctx))
}

func (p *place) dropQueues(ctx context.Context) error {
	if len(p.queues) == 0 {
		return nil
	}
	conn, err := p.dial(ctx, "waymark bench")
	if err != nil {
		return fmt.Errorf("removing the queues waymark-bench-%s-…: %w", p.name, err)
	}
	defer conn.Close()
	p.conn = conn
	for _, q := range p.queues {
		if err := p.deleteQueue(q); err != nil {
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
		return fmt.Errorf("removing the schemas waymark_bench_%s_…: %w", p.name, err)
	}
	defer conn.Close(ctx)
	for _, schema := range p.schemas {
		if _, err := conn.Exec(ctx, "DROP SCHEMA "+pgx.Identifier{schema}.Sanitize()+" CASCADE"); err != nil {
			return fmt.Errorf("removing schema %q: %w", schema, err)
		}
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
