package broker

import (
	"net/url"
	"slices"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"
)

const urlForm = "expected amqp://USER:PASSWORD@HOST:PORT/VHOST (or amqps://), with @ : / ? # % in the user name and password percent-encoded"

// parameters a URL may have. Others are refused: a misspelled one would
// silently do nothing, and what looks like one may be the rest of a password
// that holds a question mark.
var parameters = map[string]bool{
	"auth_mechanism": true, "cacertfile": true, "certfile": true, "channel_max": true, "connection_timeout": true,
	"heartbeat": true, "keyfile": true, "password_file": true, "server_name_indication": true,
}

// secureOnly are the parameters that mean something for amqps alone.
var secureOnly = []string{"cacertfile", "certfile", "keyfile", "server_name_indication"}

// CheckURL says in an *[Error] why raw cannot name a broker, or returns nil.
// It does no I/O.
func CheckURL(raw string) error {
	_, err := parseURL(raw)
	return err
}

// parseURL reads an AMQP URL. An empty virtual host means "/", and so does
// REANA's second slash (amqp://user:password@host//).
//
// No error repeats a part of the URL but its scheme: with a reserved character
// left unencoded in the password, any part may be a piece of it.
func parseURL(raw string) (amqp.URI, error) {
	uri, _, err := parse(raw)
	return uri, err
}

// parse is parseURL, and returns the files that the URL names, too.
func parse(raw string) (amqp.URI, files, error) {
	invalid := func(problem string) (amqp.URI, files, error) {
		return amqp.URI{}, files{}, &Error{Problem: problem, Remedy: urlForm, Permanent: true}
	}
	raw = strings.TrimSpace(raw) // a URL read from a file ends with a newline
	if raw == "" {
		return invalid("the AMQP URL is empty")
	}
	u, err := url.Parse(raw)
	if err != nil {
		return invalid("the AMQP URL cannot be read (it is not shown, as it may hold a password)")
	}
	switch u.Scheme {
	case "amqp", "amqps":
	case "":
		return invalid("the AMQP URL has no scheme")
	case "http", "https", "postgres", "postgresql", "redis":
		return invalid("the AMQP URL has the scheme " + u.Scheme + "://")
	default:
		return invalid("the AMQP URL does not begin with amqp:// or amqps://")
	}
	switch {
	case u.Opaque != "":
		return invalid("the AMQP URL lacks the // after its scheme")
	case u.Fragment != "" || strings.Contains(raw, "#"):
		return invalid("the AMQP URL holds an unencoded #")
	case strings.Contains(u.EscapedPath()+u.RawQuery, "@"):
		return invalid("the AMQP URL has an @ behind the host: there is an unencoded / or ? in front of it")
	case u.Hostname() == "":
		return invalid("the AMQP URL names no host")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return invalid("the parameters of the AMQP URL cannot be read")
	}
	for name := range query {
		if !parameters[name] {
			return invalid("the AMQP URL has an unknown parameter, or an unencoded ? in its password")
		}
	}
	if u.Scheme == "amqp" && slices.ContainsFunc(secureOnly, query.Has) {
		return amqp.URI{}, files{}, &Error{
			Problem:   "there are TLS settings, but the AMQP URL begins with amqp://",
			Remedy:    "use amqps:// so that nothing is sent in the clear, or remove the settings",
			Permanent: true,
		}
	}
	if query.Has("certfile") != query.Has("keyfile") {
		return invalid("the AMQP URL has one of certfile and keyfile without the other")
	}
	if _, has := u.User.Password(); has && query.Has("password_file") {
		return amqp.URI{}, files{}, &Error{
			Problem:   "there is a password file, and a password in the AMQP URL",
			Remedy:    "remove one of them",
			Permanent: true,
		}
	}
	uri, err := amqp.ParseURI(raw)
	if err != nil {
		return invalid("the AMQP URL has a port or a parameter that is not a number in range")
	}
	if uri.Port < 1 || uri.Port > 65535 {
		return invalid("the AMQP URL has a port that is not in 1 to 65535")
	}
	return uri, filesOf(query), nil
}

// Redact returns the URL fit to be shown: without its password, or, if it
// cannot be read with certainty, without anything.
func Redact(raw string) string {
	if CheckURL(raw) != nil {
		return "(invalid AMQP URL)"
	}
	u, err := url.Parse(strings.TrimSpace(raw))
	if err != nil {
		return "(invalid AMQP URL)"
	}
	if u.User != nil {
		u.User = url.User(u.User.Username())
	}
	return u.String()
}
