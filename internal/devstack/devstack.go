package devstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"
	"golang.org/x/sync/errgroup"
)

const (
	// startTimeout bounds one server's start. RabbitMQ takes 8 s on a quiet
	// machine and has been seen to take a minute on a busy one.
	startTimeout = 3 * time.Minute
	// closeTimeout bounds a clean stop; afterwards Close kills.
	closeTimeout = 20 * time.Second
	// dialTimeout bounds one attempt to connect.
	dialTimeout = 10 * time.Second
)

// Options says which servers to run and where. The zero value runs both in a
// temporary folder.
type Options struct {
	// AMQPURL of a RabbitMQ to use in place of a private one. If it does not
	// answer, that is an error. Default: a private one.
	AMQPURL string
	// DatabaseURL of a PostgreSQL to use in place of a private one. If it does
	// not answer, that is an error. Default: a private one.
	DatabaseURL string
	// Dir keeps the servers' data from one start to the next. Started by root,
	// the servers' own users must be able to reach it. Default: a new folder
	// below /tmp, removed by Close.
	Dir string
	// Fsync makes PostgreSQL flush its writes to the disk, as in production.
	// Off is faster, and safe against a crash of the server but not of the
	// machine. Default: off.
	Fsync bool
	// Logger receives a line for each start and stop. Default: discard.
	Logger *slog.Logger
	// TLS makes the private servers speak TLS as well. Default: they do not.
	TLS *TLS
}

// TLS is what a server needs to speak it, all as PEM.
type TLS struct {
	// Authorities sign the certificates of clients.
	Authorities []byte
	// Certificate of the server, and its Key.
	Certificate, Key []byte
	// ClientCertificates refuses clients without a certificate; in PostgreSQL
	// it must name the role (clientcert=verify-full). RabbitMQ then also
	// takes it as a login, of the user it names (auth_mechanism=external).
	ClientCertificates bool
}

// write puts the files into the server's folder, and returns their names.
func (t *TLS) write(f *folder) (authorities, certificate, key string, err error) {
	for name, content := range map[string][]byte{"authorities.pem": t.Authorities, "certificate.pem": t.Certificate, "key.pem": t.Key} {
		if err := f.writeConf(name, string(content)); err != nil {
			return "", "", "", err
		}
	}
	return f.file("conf/authorities.pem"), f.file("conf/certificate.pem"), f.file("conf/key.pem"), nil
}

func (o Options) logger() *slog.Logger {
	if o.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Logger
}

// Stack is a RabbitMQ and a PostgreSQL that answer.
type Stack struct {
	amqpURL, databaseURL string
	rabbitmq             *RabbitMQ // nil if it was given by URL
	postgres             *Postgres // nil if it was given by URL
	notes                []string
	remove               string // temporary folder, removed by Close

	closing  sync.Once
	closeErr error
}

// Start runs the servers that opts does not give by URL, both at once, and
// returns when they answer. ctx bounds the start only; Close ends the servers.
//
// The error says which program is missing and what installs it, which given URL
// did not answer (without its password), that the folder is in use by another
// process, or what a server wrote before it ended.
func Start(ctx context.Context, opts Options) (*Stack, error) {
	if err := errMissing(Missing(opts)...); err != nil {
		return nil, err
	}
	s := &Stack{amqpURL: opts.AMQPURL, databaseURL: opts.DatabaseURL}
	rabbitNote, postgresNote, err := ping(ctx, opts)
	if err != nil {
		return nil, err
	}
	if opts.Dir == "" && (opts.AMQPURL == "" || opts.DatabaseURL == "") {
		dir, err := temporaryFolder()
		if err != nil {
			return nil, err
		}
		s.remove, opts.Dir = dir, dir
	}
	temporary := s.remove != ""

	g, gctx := errgroup.WithContext(ctx)
	if opts.AMQPURL == "" {
		g.Go(func() (err error) {
			if s.rabbitmq, err = startRabbitMQ(gctx, opts, temporary); err == nil {
				s.amqpURL, rabbitNote = s.rabbitmq.URL(), s.rabbitmq.Note()
			}
			return err
		})
	}
	if opts.DatabaseURL == "" {
		g.Go(func() (err error) {
			if s.postgres, err = startPostgres(gctx, opts, temporary); err == nil {
				s.databaseURL, postgresNote = s.postgres.URL(), s.postgres.Note()
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.notes = []string{rabbitNote, postgresNote}
	return s, nil
}

// AMQPURL is where RabbitMQ answers. It holds a password.
func (s *Stack) AMQPURL() string { return s.amqpURL }

// DatabaseURL is where PostgreSQL answers. It holds a password.
func (s *Stack) DatabaseURL() string { return s.databaseURL }

// RabbitMQ is the private server, nil where one was given by URL.
func (s *Stack) RabbitMQ() *RabbitMQ { return s.rabbitmq }

// Postgres is the private server, nil where one was given by URL.
func (s *Stack) Postgres() *Postgres { return s.postgres }

// Notes says in one line for each server what it is, where, and how long it
// took to start. The lines hold no passwords.
func (s *Stack) Notes() []string { return s.notes }

// Wait blocks until ctx is done, and then returns nil, or until a private
// server ends without having been told to, and then says which and why.
func (s *Stack) Wait(ctx context.Context) error {
	var rabbitmq, postgres <-chan struct{} // nil blocks for ever
	if s.rabbitmq != nil {
		rabbitmq = s.rabbitmq.failed
	}
	if s.postgres != nil {
		postgres = s.postgres.failed
	}
	select {
	case <-ctx.Done():
		return nil
	case <-rabbitmq:
		return s.rabbitmq.failure()
	case <-postgres:
		return s.postgres.failure()
	}
}

// Close stops the private servers, cleanly if their data is to be kept, removes
// a temporary folder, and returns when both are gone. Calling it again gives
// the same answer.
func (s *Stack) Close() error {
	s.closing.Do(func() {
		var g errgroup.Group
		if s.rabbitmq != nil {
			g.Go(s.rabbitmq.Close)
		}
		if s.postgres != nil {
			g.Go(s.postgres.Close)
		}
		s.closeErr = g.Wait()
		if s.remove != "" {
			if err := os.RemoveAll(s.remove); err != nil {
				s.closeErr = errors.Join(s.closeErr, fmt.Errorf("removing the servers' folder: %w", err))
			}
		}
	})
	return s.closeErr
}

// ping says which servers answer at the URLs that opts gives, before anything is
// started. The error names each that does not.
func ping(ctx context.Context, opts Options) (rabbitmq, postgres string, err error) {
	var errs [2]error
	var g errgroup.Group
	if opts.AMQPURL != "" {
		g.Go(func() error { rabbitmq, errs[0] = pingRabbitMQ(ctx, opts.AMQPURL); return nil })
	}
	if opts.DatabaseURL != "" {
		g.Go(func() error { postgres, errs[1] = pingPostgres(ctx, opts.DatabaseURL); return nil })
	}
	g.Wait()
	return rabbitmq, postgres, errors.Join(errs[:]...)
}

// pingRabbitMQ says which RabbitMQ answers at a given URL.
func pingRabbitMQ(ctx context.Context, rawURL string) (string, error) {
	address, err := publicAddress(rawURL)
	if err != nil {
		return "", fmt.Errorf("reading the given RabbitMQ URL: %w", err)
	}
	properties, err := amqpHandshake(ctx, rawURL)
	if err != nil {
		return "", fmt.Errorf("connecting to the given RabbitMQ at %s: %w", address, err)
	}
	return fmt.Sprintf("%v %v at %s, as given", properties["product"], properties["version"], address), nil
}

// pingPostgres says which PostgreSQL answers at a given URL.
func pingPostgres(ctx context.Context, rawURL string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	config, err := pgx.ParseConfig(rawURL)
	if err != nil {
		return "", fmt.Errorf("reading the given database URL: %w", err) // pgx hides the password
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return "", fmt.Errorf("connecting to the given PostgreSQL: %w", err)
	}
	defer closeConn(conn)
	return fmt.Sprintf("PostgreSQL %s at %s:%d, as given", conn.PgConn().ParameterStatus("server_version"), config.Host, config.Port), nil
}

// publicAddress is the part of a URL that may be shown: scheme, host and path.
func publicAddress(rawURL string) (string, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		// A *url.Error repeats the whole URL, password and all.
		if parse, ok := errors.AsType[*url.Error](err); ok {
			err = parse.Err
		}
		return "", err
	}
	if u.Scheme != "amqp" && u.Scheme != "amqps" {
		return "", errors.New("it must begin with amqp:// or amqps://")
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String(), nil
}

// amqpHandshake connects, authenticates and leaves, and returns what the server
// says of itself.
func amqpHandshake(ctx context.Context, rawURL string) (amqp.Table, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := amqp.DialConfig(rawURL, amqp.Config{
		Dial: func(network, address string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			// The handshake knows no context: a closed connection ends it.
			context.AfterFunc(ctx, func() { conn.Close() })
			return conn, nil
		},
	})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.Properties, nil
}

func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn.Close(ctx)
}
