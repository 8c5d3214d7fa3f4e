package publisher

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"time"

	"waymark/internal/broker"
	"waymark/schemas"
)

// Topology names a way to declare the queues.
type Topology = broker.Topology

const (
	// Durable queues survive a restart of the broker.
	Durable = broker.Durable
	// Reana declares the queues exactly as REANA's components do.
	Reana = broker.Reana
)

// Queues names the two queues.
type Queues = broker.Queues

// Encoding names a form of the message body.
type Encoding string

const (
	// EncodingJSON: the body is the JSON object.
	EncodingJSON Encoding = "json"
	// EncodingReana: the body is a JSON string that holds the JSON object, as
	// REANA's publishers write it and its Python consumers expect it.
	EncodingReana Encoding = "reana"
)

// Config says where and how to publish. Only URL is required.
type Config struct {
	// ConfirmTimeout is how long the broker may take to confirm a message.
	// Then the connection is given up and what is not confirmed is sent again
	// on a new one, with the same message-ids. Time during which the broker
	// has asked publishers to wait does not count. Default 30 s.
	ConfirmTimeout time.Duration
	// ConnectionName is what the broker shows for the connection.
	// Default "waymark publisher".
	ConnectionName string
	// Encoding of the bodies. Default EncodingJSON.
	Encoding Encoding
	// Logger gets one line for each change of fortune: connected, lost, why
	// not. Default: nothing is logged.
	Logger *slog.Logger
	// MaxMessageBytes is the greatest size of a body, in bytes: larger ones are
	// an *[InvalidError]. It should be no more than the consumer takes, and the
	// broker, which closes the channel on more. Default 16 MiB.
	MaxMessageBytes int
	// Queues to publish to. Default "jobs-status" and "workflow-submission".
	Queues Queues
	// Spool keeps on disk what the broker does not confirm. Default: none.
	Spool Spool
	// TLS settings for an amqps URL; the certificate is verified. Default: the
	// URL's parameters (cacertfile, certfile, keyfile), else the system's
	// authorities.
	TLS *tls.Config
	// Topology the queues are declared with. Default Durable.
	Topology Topology
	// URL of the broker, such as amqp://user:password@host:5672/vhost or
	// amqps://…. Required.
	URL string
	// Window is how many messages may be accepted and not yet confirmed, 1 to
	// 100000. When it is full, sending waits. Default 1000.
	Window int
}

// Spool is a folder that keeps messages while the broker is away, for this
// process and for later ones. Any number of processes may share it.
//
// A submission, or the end of a run, is written there and made durable when the
// broker is known to be away, or has not confirmed it within a second; the
// publisher tries it on all the same, and removes it once it is confirmed.
// Other messages are written when their caller's context ends, or at Close.
// Raw messages are not spooled.
//
// What is left when the process ends is delivered by [Publisher.Drain].
type Spool struct {
	// Dir is the folder, made with mode 0700 if it does not exist. It must not
	// be writable by others. Default: nothing is spooled.
	Dir string
	// MaxBytes bounds what the folder takes. Then progress and logs are dropped,
	// oldest first; see [Report]. Submissions and ends of runs are never dropped:
	// they may take half as much again, at least 64 MiB, and are refused beyond,
	// with [ErrNotConfirmed]. Default 64 MiB.
	MaxBytes int64
}

const (
	defaultConfirmTimeout = 30 * time.Second
	defaultWindow         = 1000
	maxWindow             = 100_000
)

// withDefaults fills in what is missing and says what is wrong.
func (c Config) withDefaults() (Config, error) {
	if err := broker.CheckURL(c.URL); err != nil {
		return c, err
	}
	topology, err := broker.ParseTopology(string(c.Topology))
	if err != nil {
		return c, err
	}
	c.Topology = topology
	c.Queues = c.Queues.WithDefaults()
	if err := c.Queues.Validate(); err != nil {
		return c, err
	}
	switch c.Encoding {
	case "":
		c.Encoding = EncodingJSON
	case EncodingJSON, EncodingReana:
	default:
		return c, fmt.Errorf("unknown encoding %q: expected %q or %q", c.Encoding, EncodingJSON, EncodingReana)
	}
	if c.ConfirmTimeout == 0 {
		c.ConfirmTimeout = defaultConfirmTimeout
	}
	if c.ConfirmTimeout < 0 {
		return c, fmt.Errorf("confirm timeout %s: expected more than 0", c.ConfirmTimeout)
	}
	if c.Window == 0 {
		c.Window = defaultWindow
	}
	if c.Window < 1 || c.Window > maxWindow {
		return c, fmt.Errorf("window of %d messages: expected 1 to %d", c.Window, maxWindow)
	}
	if c.MaxMessageBytes == 0 {
		c.MaxMessageBytes = schemas.DefaultMaxBytes
	}
	if c.MaxMessageBytes < 0 {
		return c, fmt.Errorf("messages of at most %d bytes: expected more than 0", c.MaxMessageBytes)
	}
	if c.Spool.MaxBytes < 0 {
		return c, fmt.Errorf("spool of %d bytes: expected more than 0", c.Spool.MaxBytes)
	}
	if c.ConnectionName == "" {
		c.ConnectionName = "waymark publisher"
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}
