package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"waymark/internal/devstack"
	"waymark/internal/servicetest"
)

// authority signs certificates for one test.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pem         []byte
}

// pair is a certificate and its key, as PEM.
type pair struct{ certificate, key []byte }

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	a := new(authority)
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.certificate, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return a
}

// issue makes a certificate that is valid until end. Hosts that are addresses
// become such.
func (a *authority) issue(t testing.TB, name string, end time.Time, hosts ...string) pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pair{
		certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		key:         pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded}),
	}
}

// secureSite is a pair of servers that speak TLS and want certificates of
// clients, and the files of one who has them.
type secureSite struct {
	environment
	stack                *devstack.Stack
	tls                  *devstack.TLS
	folder               string
	brokerURL, database  string // without passwords
	brokerPass, basePass string
}

// write replaces a file as a person or a secret store would: at once, or never.
func (s *secureSite) write(t testing.TB, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(s.folder, name)
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	return path
}

// trust makes the servers show certificates of a, and the files those of
// clients that a has signed. The servers read them at their next start.
func (s *secureSite) trust(t testing.TB, a *authority) {
	t.Helper()
	later := time.Now().Add(24 * time.Hour)
	server := a.issue(t, "server", later, "localhost", "0.0.0.0")
	s.tls.Authorities, s.tls.Certificate, s.tls.Key = a.pem, server.certificate, server.key
	user, role := a.issue(t, "waymark", later), a.issue(t, "postgres", later)
	s.write(t, "ca.pem", a.pem)
	s.write(t, "user.pem", user.certificate)
	s.write(t, "user.key", user.key)
	s.write(t, "role.pem", role.certificate)
	s.write(t, "role.key", role.key)
}

func withoutPassword(t testing.TB, raw string) (stripped, password string) {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal("a server's URL cannot be read")
	}
	password, _ = u.User.Password()
	u.User, u.RawQuery = url.User(u.User.Username()), ""
	return u.String(), password
}

func newSecureSite(t testing.TB, a *authority) *secureSite {
	t.Helper()
	s := &secureSite{folder: t.TempDir(), tls: &devstack.TLS{ClientCertificates: true}}
	s.trust(t, a)
	var err error
	if s.stack, err = devstack.Start(t.Context(), devstack.Options{TLS: s.tls}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("RabbitMQ:\n%.4000s\nPostgreSQL:\n%.4000s", s.stack.RabbitMQ().Output(), s.stack.Postgres().Output())
		}
		if err := s.stack.Close(); err != nil {
			t.Error(err)
		}
	})
	s.brokerURL, s.brokerPass = withoutPassword(t, s.stack.RabbitMQ().TLSURL())
	s.database, s.basePass = withoutPassword(t, s.stack.Postgres().TLSURL())
	file := func(name string) string { return filepath.Join(s.folder, name) }
	s.environment = environment{
		"WAYMARK_BROKER_URL": s.brokerURL, "WAYMARK_BROKER_PASSWORD_FILE": s.write(t, "broker-password", []byte(s.brokerPass+"\n")),
		"WAYMARK_BROKER_TLS_CA": file("ca.pem"), "WAYMARK_BROKER_TLS_CERT": file("user.pem"), "WAYMARK_BROKER_TLS_KEY": file("user.key"),
		"WAYMARK_DATABASE_URL": s.database, "WAYMARK_DATABASE_PASSWORD_FILE": s.write(t, "database-password", []byte(s.basePass+"\r\n")),
		"WAYMARK_DATABASE_TLS_CA": file("ca.pem"), "WAYMARK_DATABASE_TLS_CERT": file("role.pem"), "WAYMARK_DATABASE_TLS_KEY": file("role.key"),
		"WAYMARK_HTTP_LISTEN": "127.0.0.1:0", "WAYMARK_PUBLISHER_TIMEOUT": "20s",
	}
	return s
}

// but is the environment with some of it changed: NAME=VALUE words.
func (e environment) but(changes ...string) environment {
	changed := make(environment)
	for name, text := range e {
		changed[name] = text
	}
	for _, change := range changes {
		name, text, _ := strings.Cut(change, "=")
		changed["WAYMARK_"+name] = text
	}
	return changed
}

const oneStatus = `{"workflow_uuid": "11111111-2222-4333-8444-555555555555", "status": 1}`

func awaitReady(t testing.TB, url string, wanted int) {
	t.Helper()
	servicetest.Eventually(t, patience, fmt.Sprint("/readyz answers ", wanted), func() error {
		if code, body := httpGet(t, url+"/readyz"); code != wanted {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
}

func TestTLS(t *testing.T) {
	t.Parallel()
	first := newAuthority(t, "first")
	s := newSecureSite(t, first)
	later := time.Now().Add(24 * time.Hour)
	stranger := newAuthority(t, "stranger")
	alien := stranger.issue(t, "waymark", later)
	s.write(t, "stranger.pem", stranger.pem)
	s.write(t, "alien.pem", alien.certificate)
	s.write(t, "alien.key", alien.key)
	s.write(t, "bad.pem", []byte("no certificate"))
	file := func(name string) string { return filepath.Join(s.folder, name) }
	plain := strconv.Itoa(s.stack.RabbitMQ().Port())
	secure := strings.TrimPrefix(s.brokerURL, "amqps://waymark@localhost:")

	t.Run("broker", func(t *testing.T) {
		for _, test := range []struct {
			name string
			env  environment
			code int
			want []string
		}{
			{"as wanted", s.environment, exitOK, nil},
			{"by certificate alone", s.but("BROKER_URL="+s.brokerURL+"/?auth_mechanism=external", "BROKER_PASSWORD_FILE="), exitOK, nil},
			{"files in the URL", s.but("BROKER_URL="+s.brokerURL+"/?cacertfile="+file("ca.pem")+"&certfile="+file("user.pem")+"&keyfile="+file("user.key")+"&password_file="+file("broker-password"),
				"BROKER_PASSWORD_FILE=", "BROKER_TLS_CA=", "BROKER_TLS_CERT=", "BROKER_TLS_KEY="), exitOK, nil},
			{"authority not known", s.but("BROKER_TLS_CA="), exitUnreachable, []string{"does not verify", "not trusted", "broker.tls_ca"}},
			{"another authority", s.but("BROKER_TLS_CA=" + file("stranger.pem")), exitUnreachable, []string{"does not verify", "broker.tls_ca"}},
			{"another host", s.but("BROKER_URL=amqps://waymark@127.0.0.1:" + secure), exitUnreachable, []string{"does not verify", `for localhost, 0.0.0.0, not for "127.0.0.1"`, "host name"}},
			{"no certificate", s.but("BROKER_TLS_CERT=", "BROKER_TLS_KEY="), exitUnreachable, []string{"refused the TLS handshake", "broker.tls_cert"}},
			{"certificate of another authority", s.but("BROKER_TLS_CERT="+file("alien.pem"), "BROKER_TLS_KEY="+file("alien.key")), exitUnreachable, []string{"refused the TLS handshake", "broker.tls_cert"}},
			{"plain to the TLS port", s.but("BROKER_URL=amqp://waymark@localhost:"+secure, "BROKER_TLS_CA=", "BROKER_TLS_CERT=", "BROKER_TLS_KEY=", "PUBLISHER_TIMEOUT=3s"), exitUnreachable, []string{"amqp:// against amqps://"}},
			{"TLS to the plain port", s.but("BROKER_URL=amqps://waymark@localhost:" + plain), exitUnreachable, []string{"does not speak TLS", "5671"}},
			{"settings and a plain URL", s.but("BROKER_URL=amqp://waymark@localhost:" + plain), exitUsage, []string{"TLS settings", "use amqps://"}},
			{"authorities missing", s.but("BROKER_TLS_CA=" + file("nowhere.pem")), exitUsage, []string{file("nowhere.pem"), "broker.tls_ca"}},
			{"authorities of nonsense", s.but("BROKER_TLS_CA=" + file("bad.pem")), exitUsage, []string{file("bad.pem"), "broker.tls_ca"}},
			{"key of another", s.but("BROKER_TLS_KEY=" + file("alien.key")), exitUsage, []string{"private key does not match", "broker.tls_key"}},
			{"password wrong", s.but("BROKER_PASSWORD_FILE=" + file("ca.pem")), exitUsage, []string{file("ca.pem"), "more than one line"}},
			{"password missing", s.but("BROKER_PASSWORD_FILE=" + file("nowhere")), exitUsage, []string{file("nowhere"), "broker.password_file"}},
			{"password a folder", s.but("BROKER_PASSWORD_FILE=" + s.folder), exitUsage, []string{s.folder, "is a folder"}},
			{"password empty", s.but("BROKER_PASSWORD_FILE=" + writeFile(t, "empty", "\n")), exitUsage, []string{"is empty", "broker.password_file"}},
			{"password refused", s.but("BROKER_PASSWORD_FILE=" + writeFile(t, "wrong", "wrong")), exitUnreachable, []string{"refused the login", "password file"}},
			{"two passwords", s.but("BROKER_URL=" + strings.Replace(s.brokerURL, "waymark@", "waymark:secret@", 1)), exitUsage, []string{"password file", "remove one"}},
			{"file named twice", s.but("BROKER_URL=" + s.brokerURL + "/?cacertfile=x"), exitUsage, []string{"cacertfile", "remove one"}},
		} {
			t.Run(test.name, func(t *testing.T) {
				got := test.env.runWith(t.Context(), oneStatus, "publish", "status").want(t, test.code)
				for _, want := range test.want {
					if !strings.Contains(got.stderr, want) {
						t.Errorf("standard error lacks %q:\n%s", want, got.stderr)
					}
				}
			})
		}
	})

	t.Run("database", func(t *testing.T) {
		port := strconv.Itoa(s.stack.Postgres().Port())
		anywhere := "postgres://postgres@0.0.0.0:" + port + "/postgres" // not a loopback address, and yet here
		words := "host=localhost port=" + port + " user=postgres dbname=postgres"
		wholly := s.but("DATABASE_TLS_CA=", "DATABASE_TLS_CERT=", "DATABASE_TLS_KEY=")
		servers := newSite(t)
		unsecured, err := url.Parse(servers.database.URL)
		if err != nil {
			t.Fatal("the database's URL cannot be read")
		}
		unsecured.RawQuery, unsecured.Host = "", "0.0.0.0:"+unsecured.Port()
		for _, test := range []struct {
			name string
			env  environment
			code int
			want []string
		}{
			{"as wanted", s.environment, exitOK, nil},
			{"words", s.but("DATABASE_URL=" + words), exitOK, nil},
			{"another machine", s.but("DATABASE_URL=" + anywhere), exitOK, nil},
			{"files in the URL", wholly.but("DATABASE_URL="+s.database+"?sslrootcert="+file("ca.pem")+"&sslcert="+file("role.pem")+"&sslkey="+file("role.key")+"&password_file="+file("database-password"), "DATABASE_PASSWORD_FILE="), exitOK, nil},
			{"unverified on demand", s.but("DATABASE_TLS_CA=", "DATABASE_URL="+anywhere+"?sslmode=require"), exitOK, nil},
			{"unverified on this machine", s.but("DATABASE_TLS_CA="), exitOK, nil},
			{"another machine, authority not known", s.but("DATABASE_TLS_CA=", "DATABASE_URL="+anywhere), exitUnreachable, []string{"does not verify", "not trusted", "database.tls_ca"}},
			{"another authority", s.but("DATABASE_TLS_CA=" + file("stranger.pem")), exitUnreachable, []string{"does not verify", "database.tls_ca"}},
			{"another host", s.but("DATABASE_URL=" + strings.Replace(s.database, "localhost", "127.0.0.1", 1)), exitUnreachable, []string{"does not verify", `for localhost, 0.0.0.0, not for "127.0.0.1"`}},
			{"no certificate", s.but("DATABASE_TLS_CERT=", "DATABASE_TLS_KEY="), exitUnreachable, []string{"certificate", "database.tls_cert"}},
			{"certificate of another authority", s.but("DATABASE_TLS_CERT="+file("alien.pem"), "DATABASE_TLS_KEY="+file("alien.key")), exitUnreachable, []string{"database.tls_cert"}},
			{"certificate of another role", s.but("DATABASE_TLS_CERT="+file("user.pem"), "DATABASE_TLS_KEY="+file("user.key")), exitUnreachable, []string{"refuses the login"}},
			{"server without TLS", s.but("DATABASE_URL="+unsecured.String(), "DATABASE_PASSWORD_FILE="), exitUnreachable, []string{"does not speak TLS", "sslmode=disable"}},
			{"server without TLS, as is known", environment{"WAYMARK_DATABASE_URL": unsecured.String() + "?sslmode=disable", "WAYMARK_DATABASE_SCHEMA": servers.database.Schema}, exitOK, nil},
			{"settings without verification", s.but("DATABASE_URL=" + s.database + "?sslmode=prefer"), exitUsage, []string{"sslmode=prefer", "verify-full"}},
			{"half a pair", s.but("DATABASE_TLS_KEY="), exitUsage, []string{"database.tls_cert and database.tls_key belong together"}},
			{"authorities missing", s.but("DATABASE_TLS_CA=" + file("nowhere.pem")), exitUsage, []string{file("nowhere.pem")}},
			{"password missing", s.but("DATABASE_PASSWORD_FILE=" + file("nowhere")), exitUsage, []string{file("nowhere"), "database.password_file"}},
			{"password refused", s.but("DATABASE_PASSWORD_FILE=" + writeFile(t, "wrong", "wrong")), exitUnreachable, []string{"refuses the login", "database.password_file"}},
			{"two passwords", s.but("DATABASE_URL=" + strings.Replace(s.database, "postgres@", "postgres:secret@", 1)), exitUsage, []string{"password file", "remove one"}},
			{"another search path", s.but("DATABASE_URL=" + s.database + "?search_path=elsewhere"), exitUsage, []string{"search_path", "database.schema"}},
		} {
			t.Run(test.name, func(t *testing.T) {
				got := test.env.run(t, "migrate").want(t, test.code)
				for _, want := range test.want {
					if !strings.Contains(got.stderr, want) {
						t.Errorf("standard error lacks %q:\n%s", want, got.stderr)
					}
				}
			})
		}
	})

	restart := func(t *testing.T) {
		t.Helper()
		var restarts errgroup.Group
		restarts.Go(func() error { return s.stack.RabbitMQ().Restart(t.Context()) })
		restarts.Go(func() error { return s.stack.Postgres().Restart(t.Context()) })
		if err := restarts.Wait(); err != nil {
			t.Fatalf("restarting the servers with other certificates: %v", err)
		}
	}

	t.Run("expired", func(t *testing.T) {
		old := first.issue(t, "server", time.Now().Add(-time.Hour), "localhost")
		s.tls.Certificate, s.tls.Key = old.certificate, old.key
		restart(t)
		for _, args := range [][]string{{"migrate"}, {"publish", "status"}} {
			got := s.environment.runWith(t.Context(), oneStatus, args...).want(t, exitUnreachable)
			if !strings.Contains(got.stderr, "does not verify: it is valid from ") || !strings.Contains(got.stderr, "renew it") {
				t.Errorf("waymark %q of an expired certificate: %s", args, got.stderr)
			}
		}
		s.trust(t, first)
		restart(t)
	})

	t.Run("end to end", func(t *testing.T) {
		server := s.start(t, "serve")
		awaitReady(t, server.url(t), http.StatusOK)
		s.environment.run(t, "run", "serial", "-f", reanaYAML(t, "echo hello"), "--name", "secure", "--require-broker", "--no-spool", "--workspace", t.TempDir()).want(t, exitOK)
		awaitRun(t, s.environment, "secure", "finished")

		// Both servers get certificates of another authority, and passwords, and
		// the files are replaced beside the running service.
		second := newAuthority(t, "second")
		s.trust(t, second)
		ctx := t.Context()
		restart(t)
		s.write(t, "broker-password", []byte("another-1"))
		s.write(t, "database-password", []byte("another-2"))
		if _, err := s.stack.RabbitMQ().Ctl(ctx, "change_password", "waymark", "another-1"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.stack.RabbitMQ().Ctl(ctx, "close_all_connections", "the test"); err != nil {
			t.Fatal(err)
		}
		base, err := pgx.Connect(ctx, s.stack.DatabaseURL())
		if err != nil {
			t.Fatal(err)
		}
		defer base.Close(ctx)
		if _, err := base.Exec(ctx, "ALTER ROLE postgres PASSWORD 'another-2'"); err != nil {
			t.Fatal(err)
		}
		if _, err := base.Exec(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = 'postgres'"); err != nil {
			t.Fatal(err)
		}
		s.environment.run(t, "run", "serial", "-f", reanaYAML(t, "echo again"), "--name", "rotated", "--require-broker", "--no-spool", "--workspace", t.TempDir()).want(t, exitOK)
		awaitRun(t, s.environment, "rotated", "finished")
		awaitReady(t, server.url(t), http.StatusOK)
		server.stop(t, exitOK)
	})
}

// awaitRun waits until a run has a status.
func awaitRun(t testing.TB, e environment, ref, status string) {
	t.Helper()
	servicetest.Eventually(t, patience, ref+" is "+status, func() error {
		o := e.run(t, "status", ref, "--json")
		if o.code != exitOK || !strings.Contains(o.stdout, `"status": "`+status+`"`) {
			return errors.New(o.stdout + o.stderr)
		}
		return nil
	})
}
