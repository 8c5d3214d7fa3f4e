package store

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"regexp"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// Config says where the database is. Only URL is required.
type Config struct {
	// ApplicationName is shown in pg_stat_activity, unless the URL has one.
	// Default "waymark".
	ApplicationName string
	// ApplyTimeout bounds one try of [DB.Apply]: a database that has gone
	// silent is given up and tried anew. Default 30 s.
	ApplyTimeout time.Duration
	// ConnectTimeout bounds one try to connect. Default the URL's
	// connect_timeout, else 5 s.
	ConnectTimeout time.Duration
	// Logger for what has no caller to tell. Default: nothing is logged.
	Logger *slog.Logger
	// MaxConnections for reading; applying uses one more for each caller of
	// Apply, listening one for each caller of Listen. Default 8.
	MaxConnections int
	// MaxRunLogBytes is about how much of the logs of one run is stored: half of
	// it from their beginning, in the order of arrival, and half from their end.
	// Default 64 MiB.
	MaxRunLogBytes int64
	// Now is the clock. Default time.Now.
	Now func() time.Time
	// Schema holds all tables and views; Migrate creates it. Lower-case
	// letters, digits and underscores. Default "waymark".
	Schema string
	// UnknownWorkflows says what becomes of a status message for a workflow
	// not heard of before. Default CreateUnknown.
	UnknownWorkflows UnknownPolicy
	// URL of the database: postgres://user@host/name or key=value words, as
	// [ParseURL] reads it. libpq's environment (PGHOST, PGPASSWORD, PGPASSFILE,
	// …) fills what it leaves open. It is read anew for each connection, with
	// the files that it names. Required.
	URL string
}

// UnknownPolicy says what becomes of a status message for an unknown workflow.
type UnknownPolicy string

const (
	// CreateUnknown creates the workflow; its submission may come later.
	CreateUnknown UnknownPolicy = "create"
	// DeadLetterUnknown makes Apply name such messages, so that the consumer
	// dead-letters them.
	DeadLetterUnknown UnknownPolicy = "dead-letter"
)

// WithDefaults returns c with its defaults filled in.
func (c Config) WithDefaults() Config {
	if c.ApplicationName == "" {
		c.ApplicationName = "waymark"
	}
	if c.ApplyTimeout == 0 {
		c.ApplyTimeout = 30 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.MaxConnections == 0 {
		c.MaxConnections = 8
	}
	if c.MaxRunLogBytes == 0 {
		c.MaxRunLogBytes = 64 << 20
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Schema == "" {
		c.Schema = "waymark"
	}
	if c.UnknownWorkflows == "" {
		c.UnknownWorkflows = CreateUnknown
	}
	return c
}

// A schema's name is part of SQL text and of the notification channel.
var schemaName = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,49}$`)

// DB is a Waymark database. Its methods may be called at once by many.
type DB struct {
	cfg       Config
	connect   *pgx.ConnConfig // as it was when db was opened
	gorm      *gorm.DB
	reads     *sql.DB
	applies   *sql.DB
	recent    recentSessions
	leftovers leftovers
}

// Open checks cfg, and the files that its URL names, and returns the database.
// It does not connect: a server that is down is found by the first call that
// needs it.
func Open(_ context.Context, cfg Config) (*DB, error) {
	cfg = cfg.WithDefaults()
	if cfg.URL == "" {
		return nil, fmt.Errorf("no database URL: set one, such as postgres://user@host:5432/name")
	}
	if !schemaName.MatchString(cfg.Schema) {
		return nil, fmt.Errorf("schema %q: expected up to 50 lower-case letters, digits and underscores, not beginning with a digit", cfg.Schema)
	}
	if cfg.UnknownWorkflows != CreateUnknown && cfg.UnknownWorkflows != DeadLetterUnknown {
		return nil, fmt.Errorf("policy for unknown workflows %q: expected %q or %q", cfg.UnknownWorkflows, CreateUnknown, DeadLetterUnknown)
	}
	if cfg.MaxConnections < 1 {
		return nil, fmt.Errorf("%d connections to the database: expected at least 1", cfg.MaxConnections)
	}
	db := &DB{cfg: cfg}
	var err error
	if db.connect, err = db.connection(); err != nil {
		return nil, err
	}
	db.reads = db.pool(nil)
	// The statements of Apply look rows up by key, a batch at a time. A plan made
	// while the tables are small and kept while they grow must not be a scan of
	// the whole table, and planning anew costs as much as a small batch.
	db.applies = db.pool(map[string]string{
		"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off", "jit": "off",
		"plan_cache_mode": "force_generic_plan",
	})
	db.reads.SetMaxOpenConns(cfg.MaxConnections)
	db.reads.SetMaxIdleConns(cfg.MaxConnections)
	for _, pool := range []*sql.DB{db.reads, db.applies} {
		pool.SetConnMaxIdleTime(5 * time.Minute)
	}
	db.gorm, err = gorm.Open(postgres.New(postgres.Config{Conn: db.reads}), &gorm.Config{
		DisableAutomaticPing:   true,
		SkipDefaultTransaction: true,
		Logger:                 logger.Discard, // errors are returned; slow queries are the server's to log
		NowFunc:                db.now,
	})
	if err != nil {
		return nil, fmt.Errorf("opening the database: %w", err)
	}
	return db, nil
}

// Close closes every connection. Calls under way end with an error.
func (db *DB) Close() error {
	err := db.reads.Close()
	if e := db.applies.Close(); err == nil {
		err = e
	}
	return err
}

// now is the clock's time as Postgres keeps it: UTC, microseconds.
func (db *DB) now() time.Time { return db.cfg.Now().UTC().Truncate(time.Microsecond) }

// Ping connects if need be and checks that the schema is there and of this
// binary's version. Errors wrap [ErrSchemaOlder] or [ErrSchemaNewer], or say in
// one line what is wrong with the server and what to do.
func (db *DB) Ping(ctx context.Context) error {
	current, err := db.schemaVersion(ctx)
	if err != nil {
		return err
	}
	latest, err := latestMigration()
	switch {
	case err != nil:
		return err
	case current > latest:
		return fmt.Errorf("schema %q is at version %d, this waymark knows %d: %w", db.cfg.Schema, current, latest, ErrSchemaNewer)
	case current < latest:
		return fmt.Errorf("schema %q is at version %d of %d: %w", db.cfg.Schema, current, latest, ErrSchemaOlder)
	}
	return nil
}

// CheckRights returns an error that names the rights that the role lacks, or
// nil. A consumer asks before it takes messages it could not apply, and would
// keep from others that can. What PruneRuns needs it does not ask for.
func (db *DB) CheckRights(ctx context.Context) error {
	var role, lacking *string
	err := db.reads.QueryRowContext(ctx, `
		SELECT current_user, string_agg(right_, ', ')
		FROM (SELECT right_ || ' on ' || string_agg(t, ', ' ORDER BY t) AS right_
		      FROM unnest($1::text[]) AS t, unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) WITH ORDINALITY AS r (right_, n)
		      WHERE NOT has_table_privilege(t, right_) AND (right_ <> 'DELETE' OR t = ANY ($2::text[]))
		      GROUP BY right_, n ORDER BY n) AS lacking`,
		[]string{"workflows", "jobs", "submissions", "engine_documents", "log_chunks", "log_cuts", "recent_deliveries", "run_names", "status_changes", "seen_messages", "seen_batches", "apply_turns", "ledger"},
		[]string{"log_chunks", "recent_deliveries", "seen_messages", "seen_batches", "ledger"}).Scan(&role, &lacking)
	if err != nil {
		return fmt.Errorf("asking for the rights of the role: %w", translate(err))
	}
	if lacking != nil {
		return fmt.Errorf("role %q lacks in schema %q: %s; deploy/rights/postgres.sql grants what is needed", *role, db.cfg.Schema, *lacking)
	}
	return nil
}

// withPgx lends fn a connection of pool as pgx has it. The bulk statements
// take arrays as parameters and several statements a round trip, neither of
// which gorm or database/sql can say.
func withPgx(ctx context.Context, pool *sql.DB, fn func(*pgx.Conn) error) error {
	conn, err := pool.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.Raw(func(driver any) error { return fn(driver.(*stdlib.Conn).Conn()) })
}
