package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"syscall"
	"unicode"

	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/credential"
)

// Error says why the broker, or a queue of it, cannot be used.
type Error struct {
	// Problem is what is wrong.
	Problem string
	// Remedy is what a person can do.
	Remedy string
	// Permanent: nothing changes until a person does something. Otherwise
	// trying again may help.
	Permanent bool
	// Err is the cause, nil if there is none beside Problem.
	Err error
}

// Error is one line: the problem, then the remedy.
func (e *Error) Error() string {
	if e.Remedy == "" {
		return e.Problem
	}
	return e.Problem + "; " + e.Remedy
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Permanent reports whether err is an *[Error] that only a person can mend,
// such as a wrong password or a queue that is declared otherwise.
func Permanent(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Permanent
}

// Explain turns an error of an open connection or channel into an *[Error].
// Errors that are explained already are returned as they are.
func Explain(err error) error {
	if _, ok := errors.AsType[*Error](err); ok || err == nil {
		return err
	}
	e := &Error{Problem: "the connection to the broker was lost: " + oneLine(err.Error()), Err: err}
	refusal, ok := errors.AsType[*amqp.Error](err)
	if !ok {
		return e
	}
	if !refusal.Server {
		e.Problem = "the connection to the broker was lost: " + oneLine(refusal.Reason)
		if strings.Contains(refusal.Reason, amqp.ErrSyntax.Reason) {
			// It comes again with each session: that is worth more than the
			// library's words for it.
			e.Problem = "the broker sent what cannot be read"
			e.Remedy = "take the message at the head of the queue away (the broker's management page, or rabbitmqctl purge_queue)"
		}
		return e
	}
	e.Problem = "the broker says " + oneLine(refusal.Reason)
	switch refusal.Code {
	case amqp.AccessRefused:
		e.Remedy, e.Permanent = "check the permissions of the user (rabbitmqctl list_user_permissions); deploy/rights/rabbitmq.sh grants what is needed", true
	case amqp.PreconditionFailed, amqp.NotAllowed, amqp.NotImplemented:
		e.Permanent = true
	}
	return e
}

// explainDial turns an error of dialling address into an *Error.
func explainDial(err error, uri amqp.URI, address string) *Error {
	at := "broker at " + address
	e := &Error{Err: err}

	if errors.Is(err, amqp.ErrSASL) {
		e.Problem = at + " offers none of the ways to log in that the URL allows"
		e.Remedy = "check auth_mechanism in the AMQP URL"
		e.Permanent = true
		return e
	}
	if refusal, ok := errors.AsType[*amqp.Error](err); ok && refusal.Server {
		says := oneLine(refusal.Reason)
		switch {
		case refusal.Code == amqp.AccessRefused:
			e.Problem = fmt.Sprintf("%s refused the login of user %q: %s", at, uri.Username, says)
			e.Remedy = "check the user name and the password in the AMQP URL, or the password file"
			if uri.Username == "guest" {
				e.Remedy += ` (user "guest" may only log in from the broker's own machine)`
			}
			e.Permanent = true
		case refusal.Code == amqp.NotAllowed && strings.Contains(refusal.Reason, "limit"):
			e.Problem = fmt.Sprintf("%s has no connection left for user %q: %s", at, uri.Username, says)
			e.Remedy = "close other connections or raise the limit"
		case refusal.Code == amqp.NotAllowed:
			e.Problem = fmt.Sprintf("%s does not let user %q into virtual host %q: %s", at, uri.Username, uri.Vhost, says)
			e.Remedy = "check the end of the AMQP URL, and the user's permissions"
			e.Permanent = true
		default:
			e.Problem = at + " says " + says
		}
		return e
	}
	if broken, ok := errors.AsType[*amqp.Error](err); ok {
		// With TLS 1.3 a server looks at our certificate after we have thought
		// the handshake done, and the library has only its words left.
		if _, alert, refused := strings.Cut(broken.Reason, "remote error: tls: "); refused {
			return e.refusedTLS(at, alert)
		}
		e.Problem = at + " did not complete the login"
		// The library says one of these whenever the connection ends during
		// login without a word from the broker. To repeat it would send people
		// after a wrong password when the broker restarts.
		if broken == amqp.ErrCredentials || broken == amqp.ErrVhost {
			e.Err = nil
		} else {
			e.Problem += ": " + oneLine(broken.Reason)
		}
		e.Remedy = "it may be starting or stopping; else check the port in the AMQP URL, and amqp:// against amqps://"
		return e
	}

	var unknownHost *net.DNSError
	var notTLS tls.RecordHeaderError
	var alert tls.AlertError
	why, remedy, unverified := credential.Unverified(err, "broker.tls_ca (cacertfile in the AMQP URL)")
	switch {
	case errors.As(err, &unknownHost):
		e.Problem = fmt.Sprintf("%s: host %q is not known", at, uri.Host)
		if !unknownHost.IsNotFound {
			e.Problem = fmt.Sprintf("%s: looking up host %q: %s", at, uri.Host, unknownHost.Err)
		}
		e.Remedy = "check the host in the AMQP URL, and name resolution"
	case unverified:
		e.Problem = fmt.Sprintf("%s has a certificate that does not verify: %s", at, oneLine(why))
		e.Remedy = remedy
		e.Permanent = true
	case errors.As(err, &notTLS):
		e.Problem = at + " does not speak TLS"
		e.Remedy = "use the TLS port (5671 by default), or amqp:// if the network is trusted"
		e.Permanent = true
	case errors.As(err, &alert):
		return e.refusedTLS(at, alert.Error())
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Problem = at + " refused the connection: nothing listens there"
		e.Remedy = "start RabbitMQ, or check the host and the port in the AMQP URL"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		e.Problem = at + " did not answer in time"
		e.Remedy = "check the host, the port and the firewall between"
	default:
		e.Problem = at + " could not be reached: " + oneLine(err.Error())
	}
	return e
}

// refusedTLS completes e for a broker that sent an alert.
func (e *Error) refusedTLS(at, alert string) *Error {
	e.Problem = at + " refused the TLS handshake: " + oneLine(alert)
	e.Remedy = "check the client certificate: broker.tls_cert and broker.tls_key (certfile and keyfile in the AMQP URL)"
	e.Permanent = true
	return e
}

// ownAddress is our end of a connection in the errors of package net, which
// name both: "read tcp 127.0.0.1:50316->127.0.0.1:5672: connection reset". It
// is another with each try, and a reason that stays is logged only once.
var ownAddress = regexp.MustCompile(`[^ ]+->`)

// oneLine makes foreign text fit for a line of output: control characters
// become spaces, our own address goes, and what is too long is cut.
func oneLine(s string) string {
	const limit = 300
	s = ownAddress.ReplaceAllString(s, "")
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	if r := []rune(s); len(r) > limit {
		s = string(r[:limit]) + "…"
	}
	return strings.TrimSpace(s)
}
