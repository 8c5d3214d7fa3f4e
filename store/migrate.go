package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"waymark/internal/crashpoint"
)

//go:embed migrations/*.sql
var embedded embed.FS

// versionTable records which migrations have been applied.
const versionTable = "schema_migrations"

const (
	// migrateLockTimeout is how long a migration waits for a lock on a table.
	// Whoever comes after it waits behind it, so a reader that takes an hour would
	// stop every consumer for an hour.
	migrateLockTimeout = 3 * time.Second
	// migratePatience is how long it tries to get its locks in all.
	migratePatience = 10 * time.Minute
)

// Migration is one numbered step of the schema.
type Migration struct {
	Version int64
	Name    string
}

// Migrate creates the schema if need be and applies every migration that it
// lacks, in order, each in a transaction, under an advisory lock: of several
// at once one does the work and the others wait. Consumers of the version
// before may be at work meanwhile: a migration that does not get its locks on
// tables within [migrateLockTimeout] steps back and tries again, for up to ten
// minutes. It returns those it applied. The error wraps ErrSchemaNewer if a
// later waymark has been here.
func (db *DB) Migrate(ctx context.Context) ([]Migration, error) {
	current, err := db.schemaVersion(ctx)
	if err != nil {
		return nil, err
	}
	if latest, err := latestMigration(); err != nil {
		return nil, err
	} else if current > latest {
		return nil, fmt.Errorf("schema %q is at version %d, this waymark knows %d: %w", db.cfg.Schema, current, latest, ErrSchemaNewer)
	}
	if err := db.createSchema(ctx); err != nil {
		return nil, fmt.Errorf("creating schema %q: %w", db.cfg.Schema, translate(err))
	}
	crashpoint.Hit("store.schema-created")
	provider, pool, err := db.provider()
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	var applied []Migration
	up := func() (struct{}, error) {
		results, err := provider.Up(ctx)
		var partial *goose.PartialError
		if errors.As(err, &partial) {
			results = partial.Applied
		}
		for _, r := range results {
			applied = append(applied, Migration{Version: r.Source.Version, Name: r.Source.Path})
		}
		if err != nil && !lostRace(err) {
			return struct{}{}, backoff.Permanent(err)
		}
		return struct{}{}, err
	}
	pause := backoff.NewExponentialBackOff()
	pause.MaxInterval = migrateLockTimeout // as long for the others as for us
	_, err = backoff.Retry(ctx, up, backoff.WithBackOff(pause), backoff.WithMaxElapsedTime(migratePatience), backoff.WithNotify(func(err error, wait time.Duration) {
		db.cfg.Logger.Warn("the migration waits for others who use the tables", "schema", db.cfg.Schema, "err", translate(err), "retry_in", wait)
	}))
	crashpoint.Hit("store.migrated")
	if err != nil {
		var partial *goose.PartialError
		if errors.As(err, &partial) {
			return applied, fmt.Errorf("migration %s: %w; it was rolled back, mend the cause and run `waymark migrate` again", partial.Failed.Source.Path, translate(partial.Err))
		}
		return applied, fmt.Errorf("migrating schema %q: %w", db.cfg.Schema, translate(err))
	}
	return applied, nil
}

// lostRace reports whether a migration was rolled back because others used the
// tables: it did not get a lock in time, or was the victim of a deadlock.
func lostRace(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "55P03" || pg.Code == "40P01")
}

// Pending lists the migrations that Migrate would apply, in order.
func (db *DB) Pending(ctx context.Context) ([]Migration, error) {
	current, err := db.schemaVersion(ctx)
	if err != nil {
		return nil, err
	}
	all, err := migrations()
	if err != nil {
		return nil, err
	}
	if latest := all[len(all)-1].Version; current > latest {
		return nil, fmt.Errorf("schema %q is at version %d, this waymark knows %d: %w", db.cfg.Schema, current, latest, ErrSchemaNewer)
	}
	var pending []Migration
	for _, m := range all {
		if m.Version > current {
			pending = append(pending, m)
		}
	}
	return pending, nil
}

// createSchema creates the schema unless it is there: CREATE SCHEMA IF NOT
// EXISTS asks for the right to create one even where there is nothing to do.
func (db *DB) createSchema(ctx context.Context) error {
	var there bool
	if err := db.reads.QueryRowContext(ctx, "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", db.cfg.Schema).Scan(&there); err != nil || there {
		return err
	}
	_, err := db.reads.ExecContext(ctx, "CREATE SCHEMA IF NOT EXISTS "+pgx.Identifier{db.cfg.Schema}.Sanitize())
	var pg *pgconn.PgError
	if errors.As(err, &pg) && (pg.Code == "23505" || pg.Code == "42P06") {
		return nil // another migration created it in this moment
	}
	return err
}

// schemaVersion is the number of the last migration applied, 0 if none was.
func (db *DB) schemaVersion(ctx context.Context) (int64, error) {
	var there bool
	err := db.reads.QueryRowContext(ctx, "SELECT to_regclass($1) IS NOT NULL", db.cfg.Schema+"."+versionTable).Scan(&there)
	if err != nil || !there {
		return 0, translate(err)
	}
	var version sql.NullInt64
	err = db.reads.QueryRowContext(ctx, "SELECT max(version_id) FROM "+versionTable+" WHERE is_applied").Scan(&version)
	return version.Int64, translate(err)
}

func (db *DB) provider() (*goose.Provider, *sql.DB, error) {
	files, err := fs.Sub(embedded, "migrations")
	if err != nil {
		return nil, nil, err
	}
	// One lock for each schema; waiting up to ten minutes for another's migration.
	id := fnv.New64a()
	id.Write([]byte("waymark migrations of " + db.cfg.Schema))
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockID(int64(id.Sum64()>>1)), lock.WithLockTimeout(1, 600))
	if err != nil {
		return nil, nil, err
	}
	// A pool of its own: building an index may take longer than the statements of others may.
	pool := db.pool(map[string]string{"lock_timeout": fmt.Sprint(migrateLockTimeout.Milliseconds())})
	provider, err := goose.NewProvider(goose.DialectPostgres, pool, files,
		goose.WithTableName(versionTable), goose.WithSessionLocker(locker), goose.WithDisableGlobalRegistry(true), goose.WithSlog(db.cfg.Logger))
	if err != nil {
		pool.Close()
		return nil, nil, fmt.Errorf("reading the embedded migrations: %w", err)
	}
	return provider, pool, nil
}

// migrations lists the embedded migrations in order.
func migrations() ([]Migration, error) {
	entries, err := fs.ReadDir(embedded, "migrations")
	if err != nil {
		return nil, err
	}
	var all []Migration
	for _, e := range entries {
		version, err := goose.NumericComponent(e.Name())
		if err != nil {
			return nil, fmt.Errorf("migration %s: %w", e.Name(), err)
		}
		all = append(all, Migration{Version: version, Name: e.Name()})
	}
	return all, nil
}

func latestMigration() (int64, error) {
	all, err := migrations()
	if err != nil {
		return 0, err
	}
	return all[len(all)-1].Version, nil
}
