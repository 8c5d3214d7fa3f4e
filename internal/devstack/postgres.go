package devstack

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"
)

// Postgres is a private PostgreSQL. Its methods may be called from several
// goroutines, and wait for each other.
type Postgres struct {
	server
	bin   string // folder of the programs
	fsync bool
	tls   *TLS
}

// StartPostgres runs a PostgreSQL alone and returns when a client can log in.
// Of opts it uses Dir, Fsync, Logger and TLS. See [Start] for the errors; one more
// is that the data were made by another major version.
func StartPostgres(ctx context.Context, opts Options) (*Postgres, error) {
	if opts.Dir != "" {
		return startPostgres(ctx, opts, false)
	}
	dir, err := temporaryFolder()
	if err != nil {
		return nil, err
	}
	opts.Dir = dir
	p, err := startPostgres(ctx, opts, true)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	p.remove = dir
	return p, nil
}

func startPostgres(ctx context.Context, opts Options, temporary bool) (*Postgres, error) {
	p, err := openPostgres(ctx, opts, temporary)
	if err != nil {
		return nil, err
	}
	if err := p.begin(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

// openPostgres takes the folder and finds the programs.
func openPostgres(ctx context.Context, opts Options, temporary bool) (*Postgres, error) {
	initdbs := programs(initdbs)
	if len(initdbs) == 0 {
		return nil, errMissing("postgresql")
	}
	f, err := openFolder(filepath.Join(opts.Dir, "postgres"), "postgres", "nobody")
	if err != nil {
		return nil, err
	}
	p := &Postgres{fsync: opts.Fsync, tls: opts.TLS, server: server{
		name:      "PostgreSQL",
		folder:    f,
		logger:    opts.logger(),
		temporary: temporary,
		clean:     syscall.SIGINT,  // "fast": ends sessions, then writes all
		abort:     syscall.SIGQUIT, // "immediate"; SIGKILL would leave its shared memory
		failed:    make(chan struct{}),

		choosePort: freePort,
	}}
	p.launch, p.ping = p.launchPostmaster, p.pingPostmaster
	if err := p.choose(ctx, initdbs); err != nil {
		f.release()
		return nil, err
	}
	return p, nil
}

// URL is where clients connect, as the superuser postgres, to the database
// postgres. It holds a password and stays the same over restarts.
func (p *Postgres) URL() string { return p.url(p.Port()) }

// TLSURL is where clients connect with TLS, by the name localhost. Without
// [Options].TLS it is empty.
func (p *Postgres) TLSURL() string {
	if p.tls == nil {
		return ""
	}
	return p.at("localhost", p.Port(), "verify-full")
}

func (p *Postgres) url(port int) string { return p.at("127.0.0.1", port, "disable") }

func (p *Postgres) at(host string, port int, mode string) string {
	return (&url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword("postgres", p.folder.state.Password),
		Host:     net.JoinHostPort(host, strconv.Itoa(port)),
		Path:     "/postgres",
		RawQuery: "sslmode=" + mode,
	}).String()
}

// Program is the path of a program of this version, such as psql.
func (p *Postgres) Program(name string) string { return filepath.Join(p.bin, name) }

// choose picks the programs: of the version that made the data, else the newest.
func (p *Postgres) choose(ctx context.Context, initdbs []string) error {
	b, err := os.ReadFile(p.folder.file("data/cluster/PG_VERSION"))
	if errors.Is(err, fs.ErrNotExist) {
		p.bin = realDir(initdbs[0])
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the version of the data: %w", err)
	}
	want := strings.TrimSpace(string(b))
	for _, initdb := range initdbs {
		// "initdb (PostgreSQL) 15.18 (Debian …)"; "16devel" and "16beta1" exist.
		said, err := exec.CommandContext(ctx, initdb, "--version").Output()
		fields := strings.Fields(string(said))
		if err == nil && len(fields) >= 3 && (fields[2] == want || strings.HasPrefix(fields[2], want+".")) {
			p.bin = realDir(initdb)
			return nil
		}
	}
	return fmt.Errorf("the data in %s were made by PostgreSQL %s, which is not installed: install it (Debian: postgresql-%s), or remove the folder to begin anew",
		p.folder.path, want, want)
}

// realDir is where a program and its companions are, also if PATH has a link.
func realDir(program string) string {
	if resolved, err := filepath.EvalSymlinks(program); err == nil {
		program = resolved
	}
	return filepath.Dir(program)
}

func (p *Postgres) env() []string { return []string{"HOME=" + p.folder.file("data"), "LC_ALL=C"} }

func (p *Postgres) launchPostmaster(ctx context.Context) ([]*process, error) {
	f := p.folder
	if _, err := os.Stat(f.file("data/cluster")); errors.Is(err, fs.ErrNotExist) {
		if err := p.initialise(ctx); err != nil {
			return nil, err
		}
	}
	p.forgetStranger()
	log, err := f.openLog()
	if err != nil {
		return nil, err
	}
	defer log.Close()
	durable := strconv.FormatBool(p.fsync)
	args := []string{filepath.Join(p.bin, "postgres"), "-D", f.file("data/cluster"), "-p", strconv.Itoa(p.port)}
	secure, err := p.secure()
	if err != nil {
		return nil, err
	}
	for _, setting := range append(secure,
		"listen_addresses=127.0.0.1",
		"unix_socket_directories=",
		"max_connections=100",
		"timezone=UTC",
		"log_timezone=UTC",
		"fsync="+durable,
		"full_page_writes="+durable,
		// /dev/shm has 64 MB in a container, too little for a large query.
		"dynamic_shared_memory_type=mmap",
		"log_line_prefix=%m [%p] ",
	) {
		args = append(args, "-c", setting)
	}
	postmaster, err := f.start(log, p.env(), syscall.SIGQUIT, args...)
	if err != nil {
		return nil, err
	}
	return []*process{postmaster}, nil
}

// secure returns the settings that are about TLS. The superuser may always come
// without it, as we do; others may not.
func (p *Postgres) secure() ([]string, error) {
	if p.tls == nil {
		return nil, nil
	}
	authorities, certificate, key, err := p.tls.write(p.folder)
	if err != nil {
		return nil, err
	}
	demand := ""
	if p.tls.ClientCertificates {
		demand = " clientcert=verify-full"
	}
	if err := p.folder.writeConf("pg_hba.conf", "hostssl all all 127.0.0.1/32 scram-sha-256"+demand+"\nhostnossl all postgres 127.0.0.1/32 scram-sha-256\n"); err != nil {
		return nil, err
	}
	return []string{"ssl=on", "ssl_ca_file=" + authorities, "ssl_cert_file=" + certificate, "ssl_key_file=" + key, "hba_file=" + p.folder.file("conf/pg_hba.conf")}, nil
}

// initialise makes an empty cluster: beside its place and then renamed, so that
// it is there whole or not at all.
func (p *Postgres) initialise(ctx context.Context) error {
	f := p.folder
	half := f.file("data/cluster.new")
	if err := os.RemoveAll(half); err != nil {
		return fmt.Errorf("removing half a database: %w", err)
	}
	if err := f.writeConf("password", f.state.Password+"\n"); err != nil {
		return err
	}
	args := []string{filepath.Join(p.bin, "initdb"), "-D", half, "-U", "postgres", "-A", "scram-sha-256",
		"--pwfile=" + f.file("conf/password"), "-E", "UTF8", "--locale=C"}
	if !p.fsync {
		args = append(args, "--no-sync")
	}
	if _, err := f.run(ctx, p.env(), args...); err != nil {
		return fmt.Errorf("making an empty database: %w", err)
	}
	if err := os.Rename(half, f.file("data/cluster")); err != nil {
		return fmt.Errorf("making an empty database: %w", err)
	}
	return nil
}

// forgetStranger removes a postmaster.pid whose number now belongs to another
// program, as it does in a container that was killed and started again, or to a
// zombie, of which a container without an init never gets rid: PostgreSQL would
// take either for a server on the same data. A file whose process is gone is
// PostgreSQL's own affair.
func (p *Postgres) forgetStranger() {
	name := p.folder.file("data/cluster/postmaster.pid")
	b, err := os.ReadFile(name)
	if err != nil {
		return
	}
	line, _, _ := strings.Cut(string(b), "\n")
	if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && !isPostgres(pid) {
		os.Remove(name)
	}
}

// pingPostmaster logs in with our password, so no other server can be taken for ours.
func (p *Postgres) pingPostmaster(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, p.url(p.port))
	if err != nil {
		return "", err
	}
	defer closeConn(conn)
	version, _, _ := strings.Cut(conn.PgConn().ParameterStatus("server_version"), " ")
	return "PostgreSQL " + version, nil
}
