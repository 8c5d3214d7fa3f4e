package broker

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/servicetest"
)

func TestMain(m *testing.M) { servicetest.Main(m) }

const secret = "s3cr3t-p4ssw0rd"

// edited returns the URL of the test's broker with a change.
func edited(t *testing.T, change func(*url.URL)) string {
	t.Helper()
	u, err := url.Parse(servicetest.AMQP(t))
	if err != nil {
		t.Fatal("the URL of the test's broker cannot be read")
	}
	change(u)
	return u.String()
}

// listen serves each connection with serve until the test ends.
func listen(t *testing.T, serve func(net.Conn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
	return l.Addr().String()
}

// certificate makes a self-signed one for 127.0.0.1 and name.
func certificate(t *testing.T, name string) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: name},
		DNSNames:              []string{name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, file
}

func speakTLS(cert tls.Certificate, then func(net.Conn)) func(net.Conn) {
	return func(c net.Conn) {
		s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
		if s.Handshake() == nil {
			then(s)
		}
	}
}

func silent(c net.Conn) { _, _ = io.Copy(io.Discard, c) }

func TestDial(t *testing.T) {
	t.Parallel()
	for name, url := range map[string]string{
		"as given":       servicetest.AMQP(t),
		"REANA's":        edited(t, func(u *url.URL) { u.Path = "//" }),
		"with a newline": servicetest.AMQP(t) + "\n",
	} {
		conn, err := Dial(t.Context(), Config{ConnectionName: "waymark test", URL: url})
		if err != nil {
			t.Errorf("dialling the URL %s: %v", name, err)
			continue
		}
		if got := conn.Config.Heartbeat; got != heartbeat {
			t.Errorf("the URL %s: heartbeat is %s, want %s", name, got, heartbeat)
		}
		if got := conn.Config.Properties["connection_name"]; got != "waymark test" {
			t.Errorf("the URL %s: connection name is %v, want %q", name, got, "waymark test")
		}
		if err := conn.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
	}
}

func TestDialRefused(t *testing.T) {
	t.Parallel()
	cert, _ := certificate(t, "broker.example")
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closedPort := nobody.Addr().String()
	nobody.Close()
	at := func(address string) string { return "amqp://user:" + secret + "@" + address + "/" }
	tlsAt := func(address string) string { return "amqps://user:" + secret + "@" + address + "/" }

	for _, tc := range []struct {
		name      string
		cfg       Config
		want      []string
		permanent bool
	}{
		{"wrong password", Config{URL: edited(t, func(u *url.URL) { u.User = url.UserPassword(u.User.Username(), secret) })},
			[]string{"refused the login of user", "check the user name and the password"}, true},
		{"unknown user", Config{URL: edited(t, func(u *url.URL) { u.User = url.UserPassword("nobody\r\nelse", secret) })},
			[]string{`refused the login of user "nobody\r\nelse"`}, true},
		{"unknown virtual host", Config{URL: edited(t, func(u *url.URL) { u.Path = "/no-such-vhost" })},
			[]string{`virtual host "no-such-vhost"`, "check the end of the AMQP URL"}, true},
		{"nothing listens", Config{URL: at(closedPort)}, []string{"nothing listens there", closedPort}, false},
		{"unknown host", Config{URL: at("no-such-host.invalid"), Timeout: 5 * time.Second},
			[]string{`"no-such-host.invalid"`, "check the host"}, false},
		{"hangs up", Config{URL: at(listen(t, func(c net.Conn) {}))}, []string{"did not complete the login", "starting or stopping"}, false},
		{"hangs up when asked", Config{URL: at(listen(t, func(c net.Conn) { _, _ = c.Read(make([]byte, 8)) }))}, []string{"did not complete the login"}, false},
		{"a web server", Config{URL: at(listen(t, func(c net.Conn) {
			_, _ = c.Read(make([]byte, 8))
			_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
		}))}, []string{"did not complete the login", "check the port"}, false},
		{"says nothing", Config{URL: at(listen(t, silent)), Timeout: 50 * time.Millisecond}, []string{"did not answer in time"}, false},
		{"says nothing, timeout in the URL", Config{URL: at(listen(t, silent)) + "?connection_timeout=50"}, []string{"did not answer in time"}, false},
		{"says nothing in TLS", Config{URL: tlsAt(listen(t, silent)), Timeout: 50 * time.Millisecond}, []string{"did not answer in time"}, false},
		{"no TLS there", Config{URL: edited(t, func(u *url.URL) { u.Scheme = "amqps" })}, []string{"does not speak TLS", "amqp://"}, true},
		{"TLS there", Config{URL: at(listen(t, speakTLS(cert, silent)))}, []string{"amqp:// against amqps://"}, false},
		{"certificate of nobody", Config{URL: tlsAt(listen(t, speakTLS(cert, silent)))}, []string{"does not verify", "not for \"127.0.0.1\"", "host name"}, true},
		{"authority's file missing", Config{URL: tlsAt(listen(t, speakTLS(cert, silent))) + "?cacertfile=/no/such/file"}, []string{"/no/such/file"}, false},
		{"TLS settings for a plain URL", Config{URL: at(closedPort), TLS: &tls.Config{}}, []string{"use amqps://"}, true},
		{"bad URL", Config{URL: "amqp://user:" + secret + "@host:port/"}, []string{"cannot be read"}, true},
		{"login mechanism the broker lacks", Config{URL: edited(t, func(u *url.URL) { u.RawQuery = "auth_mechanism=external" })}, []string{"none of the ways to log in"}, true},
		{"unknown login mechanism", Config{URL: at(closedPort) + "?auth_mechanism=telepathy"}, []string{"expected plain, amqplain or external"}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			conn, err := Dial(t.Context(), tc.cfg)
			if err == nil {
				conn.Close()
				t.Fatalf("Dial succeeded, want an error with %q", tc.want)
			}
			if _, ok := errors.AsType[*Error](err); !ok {
				t.Errorf("Dial = %q of type %T, want an *Error", err, err)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("Dial = %q, want it to hold %q", err, want)
				}
			}
			if Permanent(err) != tc.permanent {
				t.Errorf("Permanent(%q) = %t, want %t", err, !tc.permanent, tc.permanent)
			}
			for e := err; e != nil; e = errors.Unwrap(e) {
				if strings.Contains(e.Error(), secret) {
					t.Errorf("%q shows the password", e)
				}
			}
			if strings.ContainsAny(err.Error(), "\r\n") {
				t.Errorf("%q is more than one line", err)
			}
		})
	}
}

// A broker that is told how to verify must be verified: the right authority and
// name get through the handshake, the wrong name does not.
func TestDialVerifies(t *testing.T) {
	t.Parallel()
	cert, authority := certificate(t, "broker.example")
	handshakes := make(chan struct{}, 1)
	address := listen(t, speakTLS(cert, func(c net.Conn) { handshakes <- struct{}{} }))
	base := "amqps://user:" + secret + "@" + address + "/?cacertfile=" + url.QueryEscape(authority)

	if _, err := Dial(t.Context(), Config{URL: base}); err == nil || !strings.Contains(err.Error(), "does not verify") {
		t.Errorf("dialling by an address the certificate is not for: %v, want that it does not verify", err)
	}
	if _, err := Dial(t.Context(), Config{URL: base + "&server_name_indication=broker.example"}); err == nil || !strings.Contains(err.Error(), "did not complete the login") {
		t.Errorf("dialling with the certificate's name: %v, want to get as far as the login", err)
	}
	select {
	case <-handshakes:
	default:
		t.Error("the server saw no complete handshake")
	}
}

func TestDialHonoursContext(t *testing.T) {
	t.Parallel()
	reason := errors.New("changed my mind")
	ctx, cancel := context.WithCancelCause(t.Context())
	hungUp := make(chan struct{})
	address := listen(t, func(c net.Conn) {
		_, _ = c.Read(make([]byte, 8))
		cancel(reason)
		silent(c)
		close(hungUp)
	})
	_, err := Dial(ctx, Config{URL: "amqp://u:p@" + address + "/"})
	if !errors.Is(err, reason) {
		t.Errorf("Dial = %v, want the cause of the context's end", err)
	}
	select {
	case <-hungUp:
	case <-time.After(10 * time.Second):
		t.Error("the connection was left open")
	}
}

// The library leaves the connection open when no login mechanism suits.
func TestDialLeavesNothingOpen(t *testing.T) {
	t.Parallel()
	u, err := url.Parse(servicetest.AMQP(t))
	if err != nil {
		t.Fatal("the URL of the test's broker cannot be read")
	}
	hungUp := make(chan struct{})
	address := listen(t, func(c net.Conn) {
		server, err := net.Dial("tcp", u.Host)
		if err != nil {
			return
		}
		defer server.Close()
		go func() { _, _ = io.Copy(c, server) }()
		_, _ = io.Copy(server, c)
		close(hungUp)
	})
	if _, err := Dial(t.Context(), Config{URL: "amqp://" + address + "/?auth_mechanism=external"}); err == nil {
		t.Error("Dial succeeded, want an error")
	}
	select {
	case <-hungUp:
	case <-time.After(5 * time.Second):
		t.Error("the connection was left open")
	}
}

func connect(t *testing.T, url string) *amqp.Connection {
	t.Helper()
	conn, err := Dial(t.Context(), Config{URL: url})
	if err != nil {
		t.Fatalf("dialling the test's broker: %v", err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestDeclare(t *testing.T) {
	t.Parallel()
	for _, topology := range []Topology{Durable, Reana} {
		t.Run(string(topology), func(t *testing.T) {
			conn := connect(t, servicetest.AMQP(t))
			status, submission := servicetest.Queues(t)
			all := []Queue{topology.Status(status), topology.Submission(submission), topology.DeadLetter(status), topology.DeadLetter(submission)}
			for range 2 { // the second time they exist
				if err := Declare(conn, all...); err != nil {
					t.Fatal(err)
				}
			}
			// REANA's own declarations, by hand.
			err := onChannel(conn, func(ch *amqp.Channel) error {
				_, err := ch.QueueDeclare(submission, true, false, false, false, amqp.Table{"x-max-priority": int32(100)})
				return err
			})
			if err != nil {
				t.Errorf("declaring the submission queue as REANA does: %v", err)
			}
			err = onChannel(conn, func(ch *amqp.Channel) error {
				_, err := ch.QueueDeclare(status, false, false, false, false, nil)
				return err
			})
			if (err == nil) != (topology == Reana) {
				t.Errorf("declaring the status queue as REANA does: %v", err)
			}
		})
	}
}

func TestDeclaredOtherwise(t *testing.T) {
	t.Parallel()
	conn := connect(t, servicetest.AMQP(t))
	status, _ := servicetest.Queues(t)
	if err := Declare(conn, Reana.Status(status)); err != nil {
		t.Fatal(err)
	}
	err := Declare(conn, Durable.Status(status))
	if !Permanent(err) {
		t.Errorf("Permanent(%v) = false, want true", err)
	}
	for _, want := range []string{status, "PRECONDITION_FAILED", "received 'true' but current is 'false'", `topology "reana"`, "delete the queue"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Declare = %v, want it to hold %q", err, want)
		}
	}
	if err := Declare(conn, Reana.Status(status)); err != nil {
		t.Errorf("the connection is of no use after a refusal: %v", err)
	}
}

// Sites restrict what an account may create. Queues that exist will do.
func TestDeclareWithoutPermission(t *testing.T) {
	t.Parallel()
	server := servicetest.RabbitMQ(t)
	for _, args := range [][]string{
		{"add_user", "publisher", "pw"},
		{"set_permissions", "publisher", "^$", ".*", "^$"},
	} {
		if _, err := server.Ctl(t.Context(), args...); err != nil {
			t.Fatal(err)
		}
	}
	if err := Declare(connect(t, server.URL()), Durable.Status("present")); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(server.URL())
	if err != nil {
		t.Fatal("the server's URL cannot be read")
	}
	u.User = url.UserPassword("publisher", "pw")
	restricted := connect(t, u.String())
	if err := Declare(restricted, Durable.Status("present")); err != nil {
		t.Errorf("declaring a queue that exists: %v, want no error", err)
	}
	err = Declare(restricted, Durable.Status("absent"))
	if !Permanent(err) || !strings.Contains(err.Error(), "may not create it") {
		t.Errorf("declaring a queue that does not exist: %v, want a permanent error that says so", err)
	}
}

func TestBackoff(t *testing.T) {
	b := NewBackoff()
	for i := range 20 {
		d := b.NextBackOff()
		if d < 50*time.Millisecond || d > 5*time.Second {
			t.Errorf("delay %d is %s, want 50ms to 5s: a server that is back must be found soon", i, d)
		}
	}
	if d := b.NextBackOff(); d < time.Second {
		t.Errorf("after 20 attempts the delay is %s, want at least 1s", d)
	}
	b.Reset()
	if d := b.NextBackOff(); d > 150*time.Millisecond {
		t.Errorf("after a reset the delay is %s, want at most 150ms", d)
	}
}

func TestOneLine(t *testing.T) {
	if got, want := oneLine(" a\r\nb\x00c\xff "), "a  b c\uFFFD"; got != want {
		t.Errorf("oneLine = %q, want %q", got, want)
	}
	if got, want := oneLine("read tcp [::1]:50316->[::1]:5672: reset"), "read tcp [::1]:5672: reset"; got != want {
		t.Errorf("oneLine = %q, want %q, which is the same with each try", got, want)
	}
	if got := oneLine(strings.Repeat("é", 5000)); len([]rune(got)) != 301 {
		t.Errorf("oneLine of a long text has %d characters, want 301", len([]rune(got)))
	}
}
