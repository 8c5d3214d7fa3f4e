package store_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"waymark/internal/servicetest"
	"waymark/store"
)

// verified says how a configuration looks at a server's certificate.
func verified(c *pgx.ConnConfig) string {
	switch {
	case c.TLSConfig == nil:
		return "no TLS"
	case !c.TLSConfig.InsecureSkipVerify:
		for _, f := range c.Fallbacks {
			if f.TLSConfig == nil || f.TLSConfig.InsecureSkipVerify {
				return "not by every host"
			}
		}
		return "fully"
	case c.TLSConfig.VerifyPeerCertificate != nil:
		return "without the host"
	case len(c.Fallbacks) > 0 && c.Fallbacks[0].TLSConfig == nil:
		return "preferred"
	}
	return "not"
}

func TestServersAreVerifiedByDefault(t *testing.T) {
	for _, variable := range []string{"PGSSLMODE", "PGHOST", "PGSSLROOTCERT", "PGSERVICE", "PGPASSWORD"} {
		t.Setenv(variable, "")
		os.Unsetenv(variable)
	}
	t.Setenv("HOME", t.TempDir()) // no ~/.postgresql
	for raw, want := range map[string]string{
		"postgres://u@db.example/d":                          "fully",
		"postgresql://u@db.example/d":                        "fully",
		"postgres://u@192.0.2.1/d":                           "fully",
		"postgres://u@[2001:db8::1]/d":                       "fully",
		"postgres://u@db1.example,db2.example/d":             "fully",
		"postgres://u@localhost,db2.example/d":               "fully",
		"postgres://u@db.example/d?sslmode=":                 "fully",
		"postgres://u@db.example/d?sslnegotiation=direct":    "fully",
		"postgres://u@localhost.example/d":                   "fully",
		"host=db.example user=u":                             "fully",
		"user = u host = 'db.example'":                       "fully",
		"host=db.example password='sslmode=disable' user=u":  "fully",
		`host=db.example password=a\ sslmode=disable user=u`: "fully",
		"postgres://u:sslmode=disable@db.example/d":          "fully",
		"postgres://u@db.example/d?sslmode=disable":          "no TLS",
		"postgres://u@db.example/d?sslmode=prefer":           "preferred",
		"postgres://u@db.example/d?sslmode=require":          "not",
		"postgres://u@db.example/d?ssl=true":                 "not",
		"host=db.example sslmode=disable":                    "no TLS",
		"host=db.example sslmode = 'disable' user=u":         "no TLS",
		"postgres://u@localhost/d":                           "preferred",
		"postgres://u@127.0.0.2/d":                           "preferred",
		"postgres://u@[::1]/d":                               "preferred",
		"host=/var/run/postgresql":                           "no TLS",
	} {
		config, err := store.ParseURL(raw)
		if err != nil {
			t.Errorf("ParseURL(%q): %v", raw, err)
			continue
		}
		if got := verified(config); got != want {
			t.Errorf("ParseURL(%q) verifies the server %s, want %s", raw, got, want)
		}
	}

	t.Setenv("PGSSLMODE", "disable")
	if config, err := store.ParseURL("postgres://u@db.example/d"); err != nil || verified(config) != "no TLS" {
		t.Errorf("PGSSLMODE=disable is not heard (%v)", err)
	}
	os.Unsetenv("PGSSLMODE")
	t.Setenv("PGHOST", "db.example")
	if config, err := store.ParseURL("user=u"); err != nil || verified(config) != "fully" {
		t.Errorf("a host in PGHOST is not verified (%v)", err)
	}
}

// The files that settings name come through whatever is in their names, and
// change nothing else.
func TestWithFilesKeepsTheRest(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		name := filepath.Join(dir, rapid.StringMatching(`[a-zA-Z0-9 '"\\%&=?+#@:ü-]{1,20}`).Draw(t, "name"))
		if err := os.WriteFile(name, []byte("s3 cret'\\\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		raw := rapid.SampledFrom([]string{"postgres://u@localhost:5433/d", "postgres://u@localhost:5433/d?connect_timeout=7", "host=localhost port=5433 user=u dbname=d"}).Draw(t, "url")
		joined, err := store.WithFiles(raw, name, "", "", "")
		if err != nil {
			t.Fatalf("WithFiles(%q, %q): %v", raw, name, err)
		}
		config, err := store.ParseURL(joined)
		if err != nil {
			t.Fatalf("ParseURL(%q): %v", joined, err)
		}
		if config.Password != `s3 cret'\` || config.User != "u" || config.Host != "localhost" || config.Port != 5433 || config.Database != "d" {
			t.Fatalf("ParseURL(%q): user %q, password %q at %s:%d/%s", joined, config.User, config.Password, config.Host, config.Port, config.Database)
		}
		if _, sent := config.RuntimeParams["password_file"]; sent {
			t.Fatalf("the server would be told of password_file")
		}
	})
}

func TestUnusableURLs(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for raw, want := range map[string]string{
		"postgres://u:hidden@h/d?password_file=" + secret:      "remove one of them",
		"host=h password=hidden password_file=" + secret:       "remove one of them",
		"postgres://u@h/d?password_file=/no/such/file":         "/no/such/file",
		"postgres://u:hidden@h:port/d":                         "expected postgres://",
		"postgres://u:hidden@h/d?sslmode=nonsense":             "sslmode is invalid",
		"postgres://u@h/d?sslmode=disable&sslrootcert=ca":      "sslmode=verify-full",
		"postgres://u@h/d?sslmode=allow&sslrootcert=" + secret: "sslmode=verify-full",
		"postgres://u@h/d?sslrootcert=/no/such/ca":             "/no/such/ca",
	} {
		_, err := store.ParseURL(raw)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hidden") {
			t.Errorf("ParseURL(%q): %v, want %q and no password", raw, err, want)
		}
	}
	for _, test := range [][5]string{
		{"postgres://u@h/d?sslrootcert=a", "", "b", "", ""}, {"host=h sslcert=a sslkey=b", "", "", "c", "d"}, {"postgres://u@h/d?password_file=a", "b", "", "", ""},
	} {
		if _, err := store.WithFiles(test[0], test[1], test[2], test[3], test[4]); err == nil || !strings.Contains(err.Error(), "remove one of them") {
			t.Errorf("WithFiles(%q): %v, want it to say that a file is named twice", test, err)
		}
	}
}

// What the URL says of the session counts, but for what would break ours.
func TestURLParametersAreKept(t *testing.T) {
	d := servicetest.Database(t)
	db, err := store.Open(t.Context(), store.Config{URL: d.URL + "&application_name=mine&idle_in_transaction_session_timeout=1234&connect_timeout=9", Schema: d.Schema})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), d.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var sessions int
	if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mine'").Scan(&sessions); err != nil || sessions == 0 {
		t.Errorf("%d sessions have the application name of the URL (%v), want some", sessions, err)
	}
	if _, err := store.Open(t.Context(), store.Config{URL: "postgres://u@localhost/d?search_path=other", Schema: d.Schema}); err == nil || !strings.Contains(err.Error(), "database.schema") {
		t.Errorf("a search path in the URL: %v, want it refused, and told what to set", err)
	}
}
