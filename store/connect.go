package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"waymark/internal/credential"
)

// passwordFile is the parameter of a database URL that names the file which
// holds the password.
const passwordFile = "password_file"

// ParseURL reads a database URL, or key=value words, as [Open] does: libpq's
// parameters and environment, and beside them password_file. Each call reads
// the files anew that these name. It does not connect.
//
// The certificate of a server on another machine is verified, as with
// sslmode=verify-full, unless the URL or PGSSLMODE says otherwise; the same is
// true of a server on this machine if sslrootcert names its authority.
//
// Errors repeat nothing of the URL, which may hold a password.
func ParseURL(raw string) (*pgx.ConnConfig, error) {
	given, err := parametersOf(raw)
	if err != nil {
		return nil, err
	}
	mode := given["sslmode"]
	if mode == "" {
		mode = os.Getenv("PGSSLMODE")
	}
	_, hasCA := given["sslrootcert"]
	_, hasCert := given["sslcert"]
	if (hasCA && (mode == "disable" || mode == "allow" || mode == "prefer")) || (hasCert && mode == "disable") {
		return nil, fmt.Errorf("there are TLS settings, but sslmode=%s, which does not verify the server: use sslmode=verify-full, or remove the settings", mode)
	}
	config, err := pgx.ParseConfig(raw)
	if err == nil && mode == "" && (hasCA || (!local(config) && preferred(config))) {
		config, err = pgx.ParseConfig(with(raw, "sslmode", "verify-full"))
	}
	if err != nil {
		return nil, parseError(err)
	}
	if name, ok := config.RuntimeParams[passwordFile]; ok {
		delete(config.RuntimeParams, passwordFile)
		if given["password"] != "" {
			return nil, errors.New("there is a password file, and a password in the database URL: remove one of them")
		}
		if config.Password, err = credential.ReadPassword(name); err != nil {
			return nil, fmt.Errorf("%w; check database.password_file (%s in the database URL)", err, passwordFile)
		}
	}
	return config, nil
}

// WithFiles returns the database URL raw with the files that are to be read at
// each connect: the password, the authorities to trust, the certificate to show
// and its key. Empty names add nothing. A URL that names a file of its own for
// the same purpose is an error.
func WithFiles(raw, password, authorities, certificate, key string) (string, error) {
	given, err := parametersOf(raw)
	if err != nil {
		return "", err
	}
	for _, file := range []struct{ parameter, name string }{
		{passwordFile, password}, {"sslrootcert", authorities}, {"sslcert", certificate}, {"sslkey", key},
	} {
		if file.name == "" {
			continue
		}
		if _, twice := given[file.parameter]; twice {
			return "", fmt.Errorf("the database URL has the parameter %s, and the settings name such a file too: remove one of them", file.parameter)
		}
		raw = with(raw, file.parameter, file.name)
	}
	return raw, nil
}

func isURL(raw string) bool {
	return strings.HasPrefix(raw, "postgres://") || strings.HasPrefix(raw, "postgresql://")
}

// parametersOf returns what raw itself says of what concerns us here, without
// the environment and the defaults.
func parametersOf(raw string) (map[string]string, error) {
	given := make(map[string]string)
	if isURL(raw) {
		u, err := url.Parse(raw)
		if err != nil {
			return nil, errors.New("it cannot be read; expected postgres://user@host:5432/name or key=value words")
		}
		for name, values := range u.Query() {
			given[name] = values[len(values)-1]
		}
		if given["ssl"] == "true" && given["sslmode"] == "" {
			given["sslmode"] = "require" // pgx and JDBC take it so
		}
		if password, has := u.User.Password(); has {
			given["password"] = password
		}
		return given, nil
	}
	// pgx keeps its reader of key=value words to itself. Only the names matter
	// here, and of values sslmode's, which nobody quotes with blanks in it.
	for rest := raw; ; {
		name, value, found := strings.Cut(rest, "=")
		if !found {
			return given, nil
		}
		value = strings.TrimLeft(value, " \t\r\n")
		end := wordEnd(value)
		given[strings.TrimSpace(name)] = strings.Trim(value[:end], "'")
		rest = value[end:]
	}
}

// wordEnd is where the first value of key=value words ends.
func wordEnd(s string) int {
	quoted := strings.HasPrefix(s, "'")
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\':
			i++
		case quoted && c == '\'' && i > 0:
			return i + 1
		case !quoted && strings.IndexByte(" \t\r\n", c) >= 0:
			return i
		}
	}
	return len(s)
}

// with returns raw with one more parameter.
func with(raw, name, value string) string {
	if !isURL(raw) {
		return raw + " " + name + "='" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(value) + "'"
	}
	separator := "?"
	if strings.Contains(raw, "?") {
		separator = "&"
	}
	// libpq does not read "+" as a space.
	return raw + separator + name + "=" + strings.ReplaceAll(url.QueryEscape(value), "+", "%20")
}

// local reports whether every host of config is this machine.
func local(config *pgx.ConnConfig) bool {
	hosts := []string{config.Host}
	for _, f := range config.Fallbacks {
		hosts = append(hosts, f.Host)
	}
	for _, host := range hosts {
		ip := net.ParseIP(host)
		if host != "localhost" && !strings.HasPrefix(host, "/") && !strings.HasPrefix(host, "@") && (ip == nil || !ip.IsLoopback()) {
			return false
		}
	}
	return true
}

// preferred reports whether config is what no sslmode gives: a connection
// without verification, and, but where TLS comes first, one in the clear if
// that is refused. A service file may have chosen something else.
func preferred(config *pgx.ConnConfig) bool {
	return config.TLSConfig != nil && config.TLSConfig.InsecureSkipVerify && config.TLSConfig.VerifyPeerCertificate == nil &&
		(config.SSLNegotiation == "direct" || (len(config.Fallbacks) > 0 && config.Fallbacks[0].TLSConfig == nil))
}

// connection is how db connects, with its files as they are now.
func (db *DB) connection() (*pgx.ConnConfig, error) {
	config, err := ParseURL(db.cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("database URL: %w", err)
	}
	switch {
	case db.cfg.ConnectTimeout > 0:
		config.ConnectTimeout = db.cfg.ConnectTimeout
	case config.ConnectTimeout == 0:
		config.ConnectTimeout = 5 * time.Second
	}
	params := config.RuntimeParams
	if path, ok := params["search_path"]; ok && path != db.cfg.Schema {
		return nil, errors.New("database URL: it sets search_path: name the schema in database.schema instead")
	}
	params["search_path"] = db.cfg.Schema
	params["timezone"] = "UTC"
	setDefault := func(name, value string) {
		if params[name] == "" {
			params[name] = value
		}
	}
	setDefault("application_name", db.cfg.ApplicationName)
	// A process of ours that is frozen in the middle of a transaction, or whose
	// machine is gone, must not hold the rows of its runs for long. If it had two
	// transactions, one waiting for the other, it holds them for twice this time.
	// Between statements we take milliseconds, or the 5 s in which the broker has
	// to answer; and what is ended by mistake is tried again.
	setDefault("idle_in_transaction_session_timeout", "15000")
	return config, nil
}

// pool opens a pool of connections whose sessions have params beside the usual
// ones.
func (db *DB) pool(params map[string]string) *sql.DB {
	return stdlib.OpenDB(*db.connect, stdlib.OptionBeforeConnect(func(_ context.Context, config *pgx.ConnConfig) error {
		fresh, err := db.connection()
		if err != nil {
			return err
		}
		maps.Copy(fresh.RuntimeParams, params)
		*config = *fresh
		return nil
	}))
}

// dial opens a connection outside of the pools.
func (db *DB) dial(ctx context.Context) (*pgx.Conn, error) {
	config, err := db.connection()
	if err != nil {
		return nil, err
	}
	return pgx.ConnectConfig(ctx, config)
}
