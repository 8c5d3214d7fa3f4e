package broker

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/credential"
)

// files are those that the URL names. Each connect reads them anew, so that a
// certificate or a password that was replaced on disk counts from then on.
type files struct {
	// password of the user, in place of one in the URL; without it, the URL's.
	password string
	// authorities to trust, certificate to show and its key, for amqps.
	authorities, certificate, key string
}

func filesOf(query url.Values) files {
	return files{
		password:    query.Get("password_file"),
		authorities: query.Get("cacertfile"),
		certificate: query.Get("certfile"),
		key:         query.Get("keyfile"),
	}
}

// WithFiles returns the AMQP URL raw with the files that [Dial] is to read at
// each connect. Empty names add nothing. A URL that names a file of its own
// for the same purpose, or holds the password that a file is to hold, is an
// *[Error].
func WithFiles(raw, password, authorities, certificate, key string) (string, error) {
	if _, err := parseURL(raw); err != nil {
		return "", err
	}
	u, err := url.Parse(strings.TrimSpace(raw))
	if err != nil {
		return "", &Error{Problem: "the AMQP URL cannot be read", Remedy: urlForm, Permanent: true}
	}
	query := u.Query()
	for _, file := range []struct{ parameter, name string }{
		{"password_file", password}, {"cacertfile", authorities}, {"certfile", certificate}, {"keyfile", key},
	} {
		if file.name == "" {
			continue
		}
		if query.Has(file.parameter) {
			return "", &Error{Problem: "the AMQP URL has the parameter " + file.parameter + ", and the settings name such a file too", Remedy: "remove one of them", Permanent: true}
		}
		query.Set(file.parameter, file.name)
	}
	u.RawQuery = query.Encode()
	joined := u.String()
	_, err = parseURL(joined)
	return joined, err
}

// login puts the password of f into uri.
func (f files) login(uri *amqp.URI) error {
	if f.password == "" {
		return nil
	}
	password, err := credential.ReadPassword(f.password)
	if err != nil {
		// Not permanent: a secret that is replaced may be away for a moment.
		return &Error{Problem: err.Error(), Remedy: "check broker.password_file (password_file in the AMQP URL)", Err: err}
	}
	uri.Password = password
	return nil
}

// tls returns the settings for an amqps URL.
func (f files) tls(serverName string) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: serverName}
	if f.authorities != "" {
		pem, err := os.ReadFile(f.authorities)
		if err == nil {
			t.RootCAs = x509.NewCertPool()
			if !t.RootCAs.AppendCertsFromPEM(pem) {
				err = fmt.Errorf("no certificate in %s: expected PEM", f.authorities)
			}
		}
		if err != nil {
			return nil, &Error{Problem: "certificate authorities: " + oneLine(err.Error()), Remedy: "check broker.tls_ca (cacertfile in the AMQP URL)", Err: err}
		}
	}
	if f.certificate != "" {
		pair, err := tls.LoadX509KeyPair(f.certificate, f.key)
		if err != nil {
			problem := "client certificate " + f.certificate + " with key " + f.key + ": " + oneLine(err.Error())
			if _, missing := errors.AsType[*fs.PathError](err); missing {
				problem = "client certificate: " + oneLine(err.Error()) // which names the file
			}
			return nil, &Error{Problem: problem, Remedy: "check broker.tls_cert and broker.tls_key (certfile and keyfile in the AMQP URL)", Err: err}
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}

// CheckFiles says in an *[Error] which file of the URL cannot be used now, or
// returns nil. A program that has just been started asks, so that a mistake is
// told at once rather than tried for ever.
func CheckFiles(raw string) error {
	uri, f, err := parse(raw)
	if err != nil {
		return err
	}
	if err := f.login(&uri); err != nil {
		return err
	}
	_, err = f.tls("")
	return err
}
