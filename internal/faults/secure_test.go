//go:build linux

package faults

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"waymark/internal/devstack"
)

// overTLS begins what the scenarios do whose servers speak TLS.
const overTLS = "TLS: "

// secured is a second pair of servers, which speak TLS. The first scenario that
// wants them starts them.
type secured struct {
	once      sync.Once
	suite     *suite
	authority string // file of whom to trust
	err       error
}

// secure returns the servers that speak TLS. They are there until t, which is the
// whole suite's, ends.
func (s *suite) secure(t *testing.T) (*suite, error) {
	s.tls.once.Do(func() {
		dir := t.TempDir()
		authority, certificate, key, err := selfSigned()
		if err != nil {
			s.tls.err = err
			return
		}
		s.tls.authority = filepath.Join(dir, "authority.pem")
		if s.tls.err = os.WriteFile(s.tls.authority, authority, 0o600); s.tls.err != nil {
			return
		}
		stack, err := devstack.Start(context.Background(), devstack.Options{Fsync: true, TLS: &devstack.TLS{Authorities: authority, Certificate: certificate, Key: key}})
		if err != nil {
			s.tls.err = fmt.Errorf("starting servers that speak TLS: %w", err)
			return
		}
		t.Cleanup(func() {
			if err := stack.Close(); err != nil {
				t.Errorf("stopping the servers that speak TLS: %v", err)
			}
		})
		s.tls.suite = &suite{Stack: stack, trace: s.trace, want: s.want, authority: s.tls.authority}
	})
	return s.tls.suite, s.tls.err
}

// selfSigned makes a certificate for this machine that signs itself.
func selfSigned() (authority, certificate, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "fault suite"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		return nil, nil, nil, err
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, nil, err
	}
	certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return certificate, certificate, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded}), nil
}

// servers are the URLs by which the site's processes reach the servers.
func (w *site) servers() (amqpURL, databaseURL string) {
	if w.authority == "" {
		return w.AMQPURL(), w.DatabaseURL()
	}
	return w.RabbitMQ().TLSURL(), w.Postgres().TLSURL()
}

// trusting are the settings by which a process verifies the servers.
func (w *site) trusting() []string {
	if w.authority == "" {
		return nil
	}
	return []string{"WAYMARK_BROKER_TLS_CA=" + w.authority, "WAYMARK_DATABASE_TLS_CA=" + w.authority}
}

// host is where a server listens, by its URL.
func host(rawURL string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		return ""
	}
	return net.JoinHostPort("127.0.0.1", u.Port())
}

// at is a URL with another address.
func at(rawURL, address string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		return ""
	}
	u.Host = address
	return u.String()
}

// handshake is a part of a TLS handshake, and of the login behind it: some of what
// the server says first.
const handshake = 600

// interrupted is a fault of connections that speak TLS: those that are open end,
// and new ones come no further than into the handshake, where they end or, if
// stalls, hear nothing more. The consumer logs what it said of it, if anything.
func interrupted(who, said string, stalls bool, through func(*process) *proxy) fault {
	what := overTLS + "connections cut, and again in the handshake"
	if stalls {
		what = overTLS + "connections cut, then silent in the handshake"
	}
	return fault{who: who, what: what, felt: said, lasts: 2 * time.Second,
		begin: func(_ *site, p *process) {
			through(p).set(flow{limit: handshake, stalls: stalls}, toClient)
			through(p).cut()
		},
		end: func(_ *site, p *process) { through(p).set(flow{}, toClient) },
	}
}

func toBroker(p *process) *proxy   { return p.broker }
func toDatabase(p *process) *proxy { return p.database }

// secureScenarios are those whose servers speak TLS.
func secureScenarios() (all []scenario) {
	strike := func(f fault, moments ...moment) {
		for _, m := range moments {
			all = append(all, scenario{who: f.who, what: f.what, when: m.words, run: func(w *site) { w.strike(m, f) }})
		}
	}
	named := func(f fault) fault {
		f.what = overTLS + f.what
		return f
	}
	strike(interrupted("broker", ended, false, toBroker), written, letterSent)
	strike(interrupted("broker", ended, true, toBroker), written, afterCommit)
	strike(interrupted("database", paused, false, toDatabase), locked, written)
	strike(interrupted("database", "", true, toDatabase), written)
	strike(named(brokerCut), decoded, afterCommit, letterSent)
	strike(named(acksLost), afterCommit)
	strike(named(databaseCut), locked, written)
	strike(named(answerLost), written)
	strike(named(brokerStalls), afterCommit)
	strike(named(databaseStalls), written)
	all = append(all, scenario{who: "all", what: overTLS + "one thing after the other, at random", when: "for 8 s, seed 3", run: func(w *site) { w.storm(3) }})
	return all
}
