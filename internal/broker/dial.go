package broker

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	defaultDialTimeout = 15 * time.Second
	// heartbeat finds a dead peer within about twice this time.
	heartbeat = 10 * time.Second
)

// Config says how to reach the broker.
type Config struct {
	// ConnectionName is what the broker shows for the connection, in its
	// management page and logs. Default "waymark".
	ConnectionName string
	// TLS settings for amqps URLs. Default: those in the URL's parameters
	// (cacertfile, certfile, keyfile, server_name_indication), whose files are
	// read anew at each call, else the system's authorities. The certificate is
	// verified, with TLS 1.2 or newer.
	TLS *tls.Config
	// Timeout for reaching the broker and logging in, all together. Default
	// the URL's connection_timeout, else 15 s.
	Timeout time.Duration
	// URL such as amqp://user:password@host:5672/vhost, or with the parameter
	// password_file=PATH in place of the password. Required.
	URL string
	// Wrap, if set, gets the network connection before anything is sent, and
	// returns the one to use. Default nil.
	Wrap func(net.Conn) net.Conn
}

// Dial connects and logs in. It returns an *[Error], or ctx's cause if ctx
// ended first; then nothing is left open.
func Dial(ctx context.Context, cfg Config) (*amqp.Connection, error) {
	uri, files, err := parse(cfg.URL)
	if err != nil {
		return nil, err
	}
	address := net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port))
	if cfg.TLS != nil && uri.Scheme != "amqps" {
		return nil, &Error{
			Problem:   "there are TLS settings, but the AMQP URL of " + address + " begins with amqp://",
			Remedy:    "use amqps:// so that nothing is sent in the clear, or remove the settings",
			Permanent: true,
		}
	}
	timeout := cfg.Timeout
	if timeout == 0 && uri.ConnectionTimeout > 0 {
		timeout = time.Duration(uri.ConnectionTimeout) * time.Millisecond
	}
	if timeout <= 0 {
		timeout = defaultDialTimeout
	}
	name := cfg.ConnectionName
	if name == "" {
		name = "waymark"
	}

	dialCtx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	if err := files.login(&uri); err != nil {
		return nil, err
	}
	secure := cfg.TLS.Clone()
	if secure == nil && uri.Scheme == "amqps" {
		if secure, err = files.tls(uri.ServerName); err != nil {
			return nil, err
		}
	}

	properties := amqp.NewConnectionProperties()
	properties.SetClientConnectionName(name)
	logins, err := credentials(uri, properties)
	if err != nil {
		return nil, err
	}
	var link net.Conn
	var unwatch func() bool
	config := amqp.Config{
		Heartbeat:  heartbeat,
		Properties: properties,
		SASL:       logins,
		Dial: func(network, _ string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(dialCtx, network, address)
			if err != nil {
				return nil, err
			}
			// The handshake has no context. A deadline in the past ends it.
			unwatch = context.AfterFunc(dialCtx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
			link = c
			if cfg.Wrap != nil {
				link = cfg.Wrap(c)
			}
			if secure != nil {
				if secure.ServerName == "" {
					secure.ServerName = uri.Host
				}
				client := tls.Client(link, secure)
				if err := client.HandshakeContext(dialCtx); err != nil {
					return nil, err
				}
				link = client
			}
			return newReadable(link), nil
		},
	}
	// TLS is done by then: the library would do it on top of what we read.
	_, rest, _ := strings.Cut(strings.TrimSpace(cfg.URL), "://")
	conn, err := amqp.DialConfig("amqp://"+rest, config)
	late := unwatch != nil && !unwatch()
	if err == nil && !late {
		return conn, nil
	}
	if link != nil {
		_ = link.Close() // the library leaves it open when the login fails
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("connecting to broker at %s: %w", address, context.Cause(ctx))
	}
	if dialCtx.Err() != nil {
		err = dialCtx.Err()
	}
	return nil, explainDial(err, uri, address)
}

// credentials are the ways to log in that the URL allows.
func credentials(uri amqp.URI, properties amqp.Table) ([]amqp.Authentication, error) {
	if len(uri.AuthMechanism) == 0 {
		return []amqp.Authentication{frank{uri.PlainAuth(), properties}}, nil
	}
	var all []amqp.Authentication
	for _, mechanism := range uri.AuthMechanism {
		switch strings.ToUpper(mechanism) {
		case "PLAIN":
			all = append(all, frank{uri.PlainAuth(), properties})
		case "AMQPLAIN":
			all = append(all, frank{uri.AMQPlainAuth(), properties})
		case "EXTERNAL":
			all = append(all, frank{&amqp.ExternalAuth{}, properties})
		default:
			return nil, &Error{
				Problem:   "the AMQP URL has an unknown auth_mechanism",
				Remedy:    "expected plain, amqplain or external",
				Permanent: true,
			}
		}
	}
	return all, nil
}

// frank asks the broker to be frank about a wrong password. RabbitMQ says 403
// at once to clients that have this capability; others it makes wait three
// seconds and drops without a word. The library fills in the capabilities
// itself and leaves this one out, after which it asks for the response.
type frank struct {
	amqp.Authentication
	properties amqp.Table
}

// Response is that of the mechanism.
func (f frank) Response() string {
	if capabilities, ok := f.properties["capabilities"].(amqp.Table); ok {
		capabilities["authentication_failure_close"] = true
	}
	return f.Authentication.Response()
}
