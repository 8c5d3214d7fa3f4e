package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"waymark/internal/credential"
	"waymark/workflow"
)

var (
	// ErrSchemaNewer says that a later waymark has migrated the database.
	ErrSchemaNewer = errors.New("the database is newer than this binary: upgrade waymark")
	// ErrSchemaOlder says that the schema is missing or not up to date.
	ErrSchemaOlder = errors.New("the database needs a migration: run `waymark migrate`")
)

// parseError is the error of an unusable URL without the URL, which may hold a
// password.
func parseError(err error) error {
	var parse *pgconn.ParseConfigError
	if errors.As(err, &parse) {
		if cause := errors.Unwrap(parse); cause != nil {
			return fmt.Errorf("%w; expected postgres://user@host:5432/name or key=value words", cause)
		}
		return errors.New("expected postgres://user@host:5432/name or key=value words")
	}
	return err
}

// translate makes an error of the driver one of ours, once, at the edge of the
// package: data that cannot be stored becomes workflow.ErrRejected, and what
// an operator can mend says so in a line.
func translate(err error) error {
	if err == nil {
		return nil
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return translatePg(pg)
	}
	var connect *pgconn.ConnectError
	if errors.As(err, &connect) {
		where := fmt.Sprintf("%s as user %q, database %q", net.JoinHostPort(connect.Config.Host, fmt.Sprint(connect.Config.Port)), connect.Config.User, connect.Config.Database)
		if errors.Is(err, context.Canceled) {
			// Nothing is wrong with the server: the caller has given up.
			return fmt.Errorf("connecting to Postgres at %s: %w", where, context.Canceled)
		}
		return fmt.Errorf("connecting to Postgres at %s: %s", where, lastLine(errors.Unwrap(connect)))
	}
	return err
}

func translatePg(pg *pgconn.PgError) error {
	switch class := pg.Code[:min(2, len(pg.Code))]; {
	case pg.Code == "22P05", // untranslatable character
		pg.Code == "54000", // program limit exceeded: a value too large to index
		class == "22",      // data exception
		class == "23":      // integrity constraint violation
		detail := pg.Message
		if pg.ConstraintName != "" {
			detail += " (constraint " + pg.ConstraintName + ")"
		}
		return fmt.Errorf("%w: %s [%s]", workflow.ErrRejected, detail, pg.Code)
	case pg.Code == "28000" && strings.Contains(pg.Message, "certificate"):
		return advise(pg, "Postgres refuses the login: %s; set database.tls_cert and database.tls_key (sslcert and sslkey in database.url)", pg.Message)
	case pg.Code == "28000" && strings.Contains(pg.Message, "no encryption"):
		return advise(pg, "Postgres refuses the login: %s; it may want TLS: set sslmode=verify-full in database.url", pg.Message)
	case pg.Code == "28P01" || pg.Code == "28000":
		return advise(pg, "Postgres refuses the login: %s; check user and password in database.url, or database.password_file", pg.Message)
	case pg.Code == "3D000":
		return advise(pg, "%s; create it, or name another in database.url", pg.Message)
	case pg.Code == "42501":
		return advise(pg, "%s; deploy/rights/postgres.sql grants what is needed", pg.Message)
	case pg.Code == "42P01" || pg.Code == "3F000":
		return advise(pg, "%s; run `waymark migrate`", pg.Message)
	case pg.Code == "25006":
		return advise(pg, "the database is read-only: a standby, or a failover under way")
	case pg.Code == "53100":
		return advise(pg, "the database's disk is full: %s", pg.Message)
	}
	return advise(pg, "Postgres says: %s [%s]", pg.Message, pg.Code)
}

// advice is an error of the server said in a line of ours.
type advice struct {
	text string
	pg   *pgconn.PgError
}

func advise(pg *pgconn.PgError, format string, args ...any) error {
	return &advice{fmt.Sprintf(format, args...), pg}
}

func (a *advice) Error() string { return a.text }
func (a *advice) Unwrap() error { return a.pg }

// raced are the keys that somebody else may be faster to use: an id of two
// messages for two workflows, and a run or a job that somebody makes who does not
// lock runs as we do.
var raced = []string{"seen_messages_pkey", "workflows_pkey", "jobs_pkey"}

// retryAtOnce reports whether a transaction lost a race that it would most
// likely win the next time: a serialization failure (errMoved is one), a deadlock,
// or a key that somebody else was faster to use.
func retryAtOnce(err error) bool {
	var stated interface{ SQLState() string }
	if !errors.As(err, &stated) {
		return false
	}
	switch stated.SQLState() {
	case "40001", "40P01":
		return true
	case "23505":
		pg, ok := stated.(*pgconn.PgError)
		return ok && slices.Contains(raced, pg.ConstraintName)
	}
	return false
}

// lastLine is the part of a many-line error that says why. pgx lists one line
// for each address it tried.
func lastLine(err error) string {
	if err == nil {
		return "unknown error"
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer in time"
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return translatePg(pg).Error()
	}
	if says, ok := tlsFault(err); ok {
		return says
	}
	lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
	// Our own port is another with each try, and a reason is logged only once.
	return ownAddress.ReplaceAllString(strings.TrimSpace(lines[len(lines)-1]), "")
}

// tlsFault says what is wrong if the server and we do not agree on TLS.
func tlsFault(err error) (says string, ok bool) {
	if why, remedy, unverified := credential.Unverified(err, "database.tls_ca (sslrootcert in database.url)"); unverified {
		return fmt.Sprintf("its certificate does not verify: %s; %s", why, remedy), true
	}
	var alert tls.AlertError
	var notTLS tls.RecordHeaderError
	switch {
	case errors.As(err, &alert):
		return fmt.Sprintf("it refused the TLS handshake: %s; check database.tls_cert and database.tls_key (sslcert and sslkey in database.url)", alert), true
	case strings.Contains(err.Error(), "server refused TLS connection"), errors.As(err, &notTLS):
		return "it does not speak TLS; turn that on there, or set sslmode=disable in database.url if the network is trusted", true
	}
	return "", false
}

// ownAddress is our end of a connection in the errors of package net, which
// name both: "read tcp 127.0.0.1:50316->127.0.0.1:5432: connection reset".
var ownAddress = regexp.MustCompile(`[^ ]+->`)
