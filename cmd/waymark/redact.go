package main

import (
	"errors"
	"net/url"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"waymark/internal/broker"
)

const hidden = "***"

// redactBroker returns an AMQP URL without its password.
func redactBroker(raw string) string {
	shown := broker.Redact(raw)
	u, err := url.Parse(strings.TrimSpace(raw))
	if err != nil || u.User == nil {
		return shown
	}
	if _, has := u.User.Password(); has {
		return strings.Replace(shown, "@", ":"+hidden+"@", 1)
	}
	return shown
}

// unreadable stands for a URL that cannot be taken apart with certainty: any
// part of it may be a piece of the password.
const unreadable = "(hidden, as it cannot be read)"

// redactDatabase returns a PostgreSQL URL or connection string without its
// passwords.
func redactDatabase(raw string) string {
	if checkDatabaseURL(raw) != nil {
		return unreadable
	}
	if !isURL(raw) {
		return secretPair.ReplaceAllString(raw, "${1}"+hidden)
	}
	u, err := url.Parse(raw)
	if err != nil {
		return unreadable
	}
	secret := false
	if u.User != nil {
		if _, secret = u.User.Password(); secret {
			u.User = url.User(u.User.Username())
		}
	}
	query := u.Query()
	for name := range query {
		if strings.HasSuffix(strings.ToLower(name), "password") {
			query.Set(name, hidden)
		}
	}
	u.RawQuery = strings.ReplaceAll(query.Encode(), url.QueryEscape(hidden), hidden)
	shown := u.String()
	if secret {
		shown = strings.Replace(shown, "@", ":"+hidden+"@", 1)
	}
	return shown
}

// secretPair finds password=… and sslpassword=… of a connection string, whose
// values may be quoted and hold escapes.
var secretPair = regexp.MustCompile(`(?i)(\b\w*password\s*=\s*)('(?:[^'\\]|\\.)*'|(?:[^\s'\\]|\\.)+)`)

func isURL(raw string) bool {
	return strings.HasPrefix(raw, "postgres://") || strings.HasPrefix(raw, "postgresql://")
}

// checkDatabaseURL says why raw cannot name a database, without repeating any
// of it.
func checkDatabaseURL(raw string) error {
	const form = "expected postgres://USER:PASSWORD@HOST:PORT/DATABASE, with special characters in the password percent-encoded, or host=… user=… dbname=…"
	if scheme, _, ok := strings.Cut(raw, "://"); ok && !isURL(raw) && !strings.ContainsAny(scheme, "= '") {
		return errors.New("the database URL does not begin with postgres:// or postgresql://; " + form)
	}
	if _, err := pgconn.ParseConfig(raw); err != nil || (isURL(raw) && strings.Contains(raw, "#")) {
		return errors.New("the database URL cannot be read (it is not shown, as it may hold a password); " + form)
	}
	return nil
}
