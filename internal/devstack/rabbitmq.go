package devstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// RabbitMQ is a private RabbitMQ. Its methods may be called from several
// goroutines, and wait for each other.
type RabbitMQ struct {
	server
	programs struct{ server, ctl, epmd string }
	epmdPort int
	tls      *TLS
	tlsPort  int
}

// rabbitmqUser is the user that clients log in as; guest is known to everybody.
const rabbitmqUser = "waymark"

// rabbitmqNode names the node, and so its data. An address in place of a host
// name needs no name lookup, which fails on many a laptop.
const rabbitmqNode = "waymark@127.0.0.1"

// StartRabbitMQ runs a RabbitMQ alone and returns when a client can log in.
// Of opts it uses Dir, Logger and TLS. See [Start] for the errors.
func StartRabbitMQ(ctx context.Context, opts Options) (*RabbitMQ, error) {
	if opts.Dir != "" {
		return startRabbitMQ(ctx, opts, false)
	}
	dir, err := temporaryFolder()
	if err != nil {
		return nil, err
	}
	opts.Dir = dir
	r, err := startRabbitMQ(ctx, opts, true)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	r.remove = dir
	return r, nil
}

func startRabbitMQ(ctx context.Context, opts Options, temporary bool) (*RabbitMQ, error) {
	r, err := openRabbitMQ(opts, temporary)
	if err != nil {
		return nil, err
	}
	if err := r.begin(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

// openRabbitMQ takes the folder and finds the programs.
func openRabbitMQ(opts Options, temporary bool) (*RabbitMQ, error) {
	servers, epmds := programs(rabbitmqServers), programs(epmds)
	if len(servers) == 0 || len(epmds) == 0 {
		return nil, errMissing("rabbitmq-server")
	}
	f, err := openFolder(filepath.Join(opts.Dir, "rabbitmq"), "rabbitmq", "nobody")
	if err != nil {
		return nil, err
	}
	r := &RabbitMQ{tls: opts.TLS, server: server{
		name:      "RabbitMQ",
		folder:    f,
		logger:    opts.logger(),
		temporary: temporary,
		clean:     syscall.SIGTERM,
		abort:     syscall.SIGKILL,
		failed:    make(chan struct{}),

		choosePort: freePort,
	}}
	r.programs.server, r.programs.epmd = servers[0], epmds[0]
	r.programs.ctl = filepath.Join(filepath.Dir(servers[0]), "rabbitmqctl")
	r.launch, r.ping = r.launchNode, r.pingNode
	return r, nil
}

// URL is where clients connect, as user waymark, who may do everything, on the
// default virtual host. It holds a password and stays the same over restarts.
func (r *RabbitMQ) URL() string {
	// No path: clients disagree on whether "/" is the virtual host "/" or "".
	return (&url.URL{
		Scheme: "amqp",
		User:   url.UserPassword(rabbitmqUser, r.folder.state.Password),
		Host:   net.JoinHostPort("127.0.0.1", strconv.Itoa(r.Port())),
	}).String()
}

// TLSURL is where clients connect with TLS, by the name localhost. Without
// [Options].TLS it is empty.
func (r *RabbitMQ) TLSURL() string {
	if r.tls == nil {
		return ""
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return (&url.URL{
		Scheme: "amqps",
		User:   url.UserPassword(rabbitmqUser, r.folder.state.Password),
		Host:   net.JoinHostPort("localhost", strconv.Itoa(r.tlsPort)),
	}).String()
}

// Command is the name and arguments of rabbitmqctl, and the environment that it
// needs to reach the server: for scripts that call it.
func (r *RabbitMQ) Command() (name string, env []string) { return r.programs.ctl, r.env() }

// Ctl runs rabbitmqctl on the server and returns what it writes, such as
//
//	r.Ctl(ctx, "set_vm_memory_high_watermark", "0.0000001") // a memory alarm
//
// It takes some seconds. The error holds the command's last words.
func (r *RabbitMQ) Ctl(ctx context.Context, args ...string) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.processes) == 0 {
		return "", errors.New("running rabbitmqctl: RabbitMQ does not run")
	}
	return r.folder.run(ctx, r.env(), append([]string{r.programs.ctl}, args...)...)
}

// launchNode starts epmd, Erlang's port mapper, and the server.
func (r *RabbitMQ) launchNode(ctx context.Context) (_ []*process, err error) {
	f := r.folder
	if !f.state.Answered {
		// A first start cut short may have left half a database.
		if err := os.RemoveAll(f.file("data/mnesia")); err != nil {
			return nil, fmt.Errorf("beginning anew: %w", err)
		}
	}
	distPort, err := freePort(0)
	if err != nil {
		return nil, err
	}
	if r.epmdPort, err = freePort(0); err != nil {
		return nil, err
	}
	secure, plugins, err := r.secure()
	if err != nil {
		return nil, err
	}
	for name, content := range map[string]string{
		".erlang.cookie":  f.state.Cookie,
		"enabled_plugins": plugins + ".\n",
		"rabbitmq.conf": fmt.Sprintf(`listeners.tcp.1 = 127.0.0.1:%d
default_user = %s
default_pass = %s
disk_free_limit.absolute = 50MB
`, r.port, rabbitmqUser, f.state.Password) + secure,
	} {
		if err := f.writeConf(name, content); err != nil {
			return nil, err
		}
	}
	log, err := f.openLog()
	if err != nil {
		return nil, err
	}
	defer log.Close()

	// An epmd of our own and in the foreground: left to itself the server
	// starts a daemon that outlives everybody.
	epmd, err := f.start(log, r.env(), syscall.SIGKILL, r.programs.epmd, "-address", "127.0.0.1", "-port", strconv.Itoa(r.epmdPort))
	if err != nil {
		return nil, err
	}
	running := []*process{epmd}
	if err := awaitPort(ctx, epmd, r.epmdPort); err != nil {
		return running, err
	}
	env := append(r.env(), fmt.Sprintf("RABBITMQ_DIST_PORT=%d", distPort))
	node, err := f.start(log, env, syscall.SIGKILL, r.programs.server)
	if err != nil {
		return running, err
	}
	return append(running, node), nil
}

// secure returns the part of the configuration that is about TLS, and the
// plugins to load. A port once chosen stays.
func (r *RabbitMQ) secure() (config, plugins string, err error) {
	if r.tls == nil {
		return "", "[]", nil
	}
	if r.tlsPort, err = freePort(r.tlsPort); err != nil {
		return "", "", err
	}
	authorities, certificate, key, err := r.tls.write(r.folder)
	if err != nil {
		return "", "", err
	}
	config = fmt.Sprintf(`listeners.ssl.1 = 127.0.0.1:%d
ssl_options.cacertfile = %s
ssl_options.certfile = %s
ssl_options.keyfile = %s
`, r.tlsPort, authorities, certificate, key)
	if !r.tls.ClientCertificates {
		return config + "ssl_options.verify = verify_none\nssl_options.fail_if_no_peer_cert = false\n", "[]", nil
	}
	return config + `ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
ssl_cert_login_from = common_name
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = EXTERNAL
`, "[rabbitmq_auth_mechanism_ssl]", nil
}

// env is the environment of the server and of its command line.
func (r *RabbitMQ) env() []string {
	f := r.folder
	return []string{
		"HOME=" + f.file("conf"), // holds the cookie
		"LC_ALL=C.UTF-8",
		"ERL_CRASH_DUMP_SECONDS=0", // a dump may be as large as the memory
		fmt.Sprintf("ERL_EPMD_PORT=%d", r.epmdPort),
		"ERL_EPMD_ADDRESS=127.0.0.1",
		"RABBITMQ_CONF_ENV_FILE=/dev/null", // not the system's settings
		"RABBITMQ_NODENAME=" + rabbitmqNode,
		"RABBITMQ_USE_LONGNAME=true", // the part after @ is an address
		"RABBITMQ_CONFIG_FILE=" + f.file("conf/rabbitmq.conf"),
		"RABBITMQ_ADVANCED_CONFIG_FILE=" + f.file("conf/none"),
		"RABBITMQ_ENABLED_PLUGINS_FILE=" + f.file("conf/enabled_plugins"),
		"RABBITMQ_MNESIA_BASE=" + f.file("data/mnesia"),
		"RABBITMQ_PLUGINS_EXPAND_DIR=" + f.file("data/plugins"),
		"RABBITMQ_PID_FILE=" + f.file("data/pid"),
		"RABBITMQ_LOG_BASE=" + f.file("data/log"),
		"RABBITMQ_LOGS=-", // to our server.log
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
		"RABBITMQ_CTL_ERL_ARGS=-start_epmd false",
		// The script then becomes the server in place of waiting for it: one
		// process, and SIGTERM stops it cleanly.
		"RUNNING_UNDER_SYSTEMD=true",
	}
}

// awaitPort returns when p accepts connections on port.
func awaitPort(ctx context.Context, p *process, port int) error {
	for {
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			conn.Close()
		}
		select {
		case <-p.done:
			return fmt.Errorf("epmd ended at once: %w", p.reason())
		default:
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for epmd: %w", ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// pingNode logs in with our password, so no other RabbitMQ can be taken for ours.
func (r *RabbitMQ) pingNode(ctx context.Context) (string, error) {
	address := fmt.Sprintf("amqp://%s:%s@127.0.0.1:%d", rabbitmqUser, r.folder.state.Password, r.port)
	properties, err := amqpHandshake(ctx, address)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%v %v", properties["product"], properties["version"]), nil
}
