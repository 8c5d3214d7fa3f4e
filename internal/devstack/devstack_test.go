package devstack

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"
)

// childVariable makes the test program start a stack in the folder it names
// ("-" is a temporary one), say where it is, and wait to be killed.
const childVariable = "WAYMARK_DEVSTACK_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childVariable); dir != "" {
		os.Exit(child(dir))
	}
	os.Exit(m.Run())
}

// place is what the child says of its stack.
type place struct {
	AMQP, Database, Dir string
	PIDs                []int
	Err                 string
}

func child(dir string) int {
	opts := Options{Dir: dir}
	if dir == "-" {
		opts.Dir = ""
	}
	var p place
	s, err := Start(context.Background(), opts)
	if err != nil {
		p.Err = err.Error()
	} else {
		p = place{AMQP: s.AMQPURL(), Database: s.DatabaseURL(), Dir: filepath.Dir(s.postgres.folder.path)}
		roots := append(s.rabbitmq.pids(), s.postgres.pids()...)
		p.PIDs = append(roots, descendants(roots)...)
	}
	json.NewEncoder(os.Stdout).Encode(p)
	io.Copy(io.Discard, os.Stdin) // until the parent closes it
	if err == nil && s.Close() != nil {
		return 1
	}
	return 0
}

// startChild runs a stack in a process of its own.
func startChild(t *testing.T, dir string, prepare ...func(*exec.Cmd)) (*exec.Cmd, place, io.Closer) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+dir)
	cmd.Stderr = os.Stderr
	for _, f := range prepare {
		f(cmd)
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting a process with a stack: %v", err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err != nil {
		t.Fatalf("reading where the child's stack is: %v", err)
	}
	var p place
	if err := json.Unmarshal(line, &p); err != nil {
		t.Fatalf("the child said %q: %v", line, err)
	}
	if p.Err != "" {
		t.Fatalf("the child could not start its stack: %s", p.Err)
	}
	return cmd, p, stdin
}

// testDir is a folder that the servers' users can reach.
func testDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "devstack-test-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("removing the test's folder: %v", err)
		}
	})
	return dir
}

// within waits for a condition.
func within(t *testing.T, timeout time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.After(timeout)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within %v: %v", what, timeout, err)
		}
	}
}

func portOf(t *testing.T, rawURL string) int {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatalf("port of a URL: %v", err)
	}
	return port
}

// closed is nil if nobody answers on the port of a URL.
func closed(t *testing.T, rawURL string) error {
	t.Helper()
	port := portOf(t, rawURL)
	conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second)
	if err == nil {
		conn.Close()
		return fmt.Errorf("port %d is open", port)
	}
	return nil
}

func query(ctx context.Context, databaseURL, sql string) (answer string, err error) {
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		return "", err
	}
	defer closeConn(conn)
	rows, err := conn.Query(ctx, sql)
	if err != nil {
		return "", err
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	return strings.Join(all, " "), err
}

func mustQuery(t *testing.T, databaseURL, sql string) string {
	t.Helper()
	answer, err := query(t.Context(), databaseURL, sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return answer
}

// put sends a message that must survive a crash to a durable queue.
func put(t *testing.T, amqpURL, body string) {
	t.Helper()
	withChannel(t, amqpURL, func(ch *amqp.Channel) {
		if _, err := ch.QueueDeclare("kept", true, false, false, false, nil); err != nil {
			t.Fatalf("declaring a queue: %v", err)
		}
		if err := ch.Confirm(false); err != nil {
			t.Fatalf("asking for confirms: %v", err)
		}
		confirm, err := ch.PublishWithDeferredConfirm("", "kept", true, false, amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte(body)})
		if err != nil {
			t.Fatalf("publishing: %v", err)
		}
		if ok, err := confirm.WaitContext(t.Context()); err != nil || !ok {
			t.Fatalf("the message was not confirmed: %v %v", ok, err)
		}
	})
}

// declare declares the queue of put.
func declare(t *testing.T, amqpURL string) {
	t.Helper()
	withChannel(t, amqpURL, func(ch *amqp.Channel) {
		if _, err := ch.QueueDeclare("kept", true, false, false, false, nil); err != nil {
			t.Fatalf("declaring a queue: %v", err)
		}
	})
}

func take(t *testing.T, amqpURL string) (body string) {
	t.Helper()
	withChannel(t, amqpURL, func(ch *amqp.Channel) {
		d, ok, err := ch.Get("kept", true)
		if err != nil || !ok {
			t.Fatalf("taking the message: there %v, error %v", ok, err)
		}
		body = string(d.Body)
	})
	return body
}

func withChannel(t *testing.T, amqpURL string, use func(*amqp.Channel)) {
	t.Helper()
	conn, err := amqp.Dial(amqpURL)
	if err != nil {
		t.Fatalf("dialling RabbitMQ: %v", err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		t.Fatalf("opening a channel: %v", err)
	}
	use(ch)
}

func startStack(t *testing.T, opts Options) *Stack {
	t.Helper()
	s, err := Start(t.Context(), opts)
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func TestTemporaryStackLeavesNothing(t *testing.T) {
	t.Parallel()
	s := startStack(t, Options{})
	if got := mustQuery(t, s.DatabaseURL(), "SELECT string_agg(name || '=' || setting, ' ' ORDER BY name) FROM pg_settings WHERE name IN ('TimeZone', 'fsync', 'max_connections', 'server_encoding', 'lc_collate')"); got != "fsync=off lc_collate=C max_connections=100 server_encoding=UTF8 TimeZone=UTC" &&
		got != "TimeZone=UTC fsync=off lc_collate=C max_connections=100 server_encoding=UTF8" {
		t.Errorf("PostgreSQL is set up as %q", got)
	}
	put(t, s.AMQPURL(), "hello")
	mustAskForPasswords(t, s)
	if notes := strings.Join(s.Notes(), "\n"); !strings.Contains(notes, "RabbitMQ 3.") && !strings.Contains(notes, "RabbitMQ 4.") || !strings.Contains(notes, "PostgreSQL ") ||
		!strings.Contains(notes, strconv.Itoa(s.RabbitMQ().Port())) || strings.Contains(notes, s.rabbitmq.folder.state.Password) {
		t.Errorf("the notes should name products and ports, and no passwords:\n%s", notes)
	}
	roots := append(s.rabbitmq.pids(), s.postgres.pids()...)
	all := append(roots, descendants(roots)...)
	if err := s.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	for _, u := range []string{s.AMQPURL(), s.DatabaseURL()} {
		if err := closed(t, u); err != nil {
			t.Errorf("after Close: %v", err)
		}
	}
	for _, pid := range all {
		if birth(pid) != "" {
			t.Errorf("process %d lives after Close", pid)
		}
	}
	if _, err := os.Stat(s.remove); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the temporary folder is there after Close: %v", err)
	}
}

// mustAskForPasswords checks that whoever lacks them is kept out: any local user
// could otherwise become superuser of the database, and with it whoever runs it.
func mustAskForPasswords(t *testing.T, s *Stack) {
	t.Helper()
	for _, address := range []string{"amqp://guest:guest@127.0.0.1:%d", "amqp://waymark:waymark@127.0.0.1:%d"} {
		if _, err := amqpHandshake(t.Context(), fmt.Sprintf(address, s.RabbitMQ().Port())); !errors.Is(err, amqp.ErrCredentials) {
			t.Errorf("%s: %v, want %v", address, err, amqp.ErrCredentials)
		}
	}
	_, err := query(t.Context(), fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres", s.Postgres().Port()), "SELECT 1::text")
	if err == nil || !strings.Contains(err.Error(), "password") {
		t.Errorf("PostgreSQL without a password: %v, want a refusal", err)
	}
}

func TestRabbitMQFaults(t *testing.T) {
	t.Parallel()
	r, err := StartRabbitMQ(t.Context(), Options{})
	if err != nil {
		t.Fatalf("StartRabbitMQ: %v", err)
	}
	defer r.Close()
	url, pid := r.URL(), r.PID()

	if output, err := r.Ctl(t.Context(), "status"); err != nil || !strings.Contains(output, "127.0.0.1") {
		t.Errorf("Ctl status: %v, output:\n%s", err, output)
	}
	if _, err := r.Ctl(t.Context(), "delete_user", "mallory"); err == nil || !strings.Contains(err.Error(), `"mallory" does not exist`) {
		t.Errorf("Ctl with a command that must fail: %v, want its own words", err)
	}

	put(t, url, "before the pause")
	if err := r.Pause(); err != nil {
		t.Fatalf("Pause: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	if _, err := amqpHandshake(ctx, url); err == nil {
		t.Error("a paused RabbitMQ answered")
	}
	cancel()
	if err := r.Resume(); err != nil {
		t.Fatalf("Resume: %v", err)
	}
	if got := take(t, url); got != "before the pause" {
		t.Errorf("after Resume the message is %q", got)
	}

	put(t, url, "before the kill")
	// The broker writes down that a queue exists a moment after it has said so.
	if output, err := r.Ctl(t.Context(), "eval", "mnesia:sync_log()."); err != nil {
		t.Fatalf("syncing what the broker knows: %v, output:\n%s", err, output)
	}
	if err := r.Kill(); err != nil {
		t.Fatalf("Kill: %v", err)
	}
	if err := closed(t, url); err != nil {
		t.Errorf("after Kill: %v", err)
	}
	if r.PID() != 0 {
		t.Errorf("PID after Kill is %d, want 0", r.PID())
	}
	if _, err := r.Ctl(t.Context(), "status"); err == nil {
		t.Error("Ctl worked on a server that does not run")
	}
	if err := r.Restart(t.Context()); err != nil {
		t.Fatalf("Restart after Kill: %v", err)
	}
	if r.URL() != url || r.PID() == pid {
		t.Errorf("after Restart: same URL %v, want true; same process %v, want false", r.URL() == url, r.PID() == pid)
	}
	if got := take(t, url); got != "before the kill" {
		t.Errorf("after Kill and Restart the message is %q", got)
	}

	put(t, url, "before the stop")
	if err := r.Pause(); err != nil { // Stop must not wait for a server that cannot hear
		t.Fatalf("Pause: %v", err)
	}
	if err := r.Stop(t.Context()); err != nil {
		t.Fatalf("Stop: %v", err)
	}
	if err := closed(t, url); err != nil {
		t.Errorf("after Stop: %v", err)
	}
	if err := r.Stop(t.Context()); err != nil {
		t.Errorf("Stop of a stopped server: %v", err)
	}
	if err := r.Restart(t.Context()); err != nil {
		t.Fatalf("Restart after Stop: %v", err)
	}
	if got := take(t, url); got != "before the stop" {
		t.Errorf("after Stop and Restart the message is %q", got)
	}
	select {
	case <-r.failed:
		t.Errorf("what was done on purpose is reported as a failure: %v", r.failure())
	default:
	}
}

func TestPostgresFaults(t *testing.T) {
	t.Parallel()
	p, err := StartPostgres(t.Context(), Options{Fsync: true})
	if err != nil {
		t.Fatalf("StartPostgres: %v", err)
	}
	defer p.Close()
	url := p.URL()
	if got := mustQuery(t, url, "SELECT setting FROM pg_settings WHERE name = 'fsync'"); got != "on" {
		t.Errorf("fsync is %s, want on", got)
	}
	mustQuery(t, url, "CREATE TABLE kept (what text)")

	held, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer closeConn(held)
	if err := p.Pause(); err != nil {
		t.Fatalf("Pause: %v", err)
	}
	// Sessions are processes of their own, and must stop too.
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	if err := held.Ping(ctx); err == nil {
		t.Error("a session of a paused PostgreSQL answered")
	}
	cancel()
	if err := p.Resume(); err != nil {
		t.Fatalf("Resume: %v", err)
	}
	mustQuery(t, url, "INSERT INTO kept VALUES ('paused')")

	for _, fault := range []struct {
		name string
		do   func() error
	}{
		{"Kill", p.Kill},
		{"Stop", func() error { return p.Stop(t.Context()) }},
	} {
		mustQuery(t, url, "INSERT INTO kept VALUES ('"+fault.name+"')")
		session, err := pgx.Connect(t.Context(), url) // an open session delays neither
		if err != nil {
			t.Fatal(err)
		}
		defer closeConn(session)
		if err := fault.do(); err != nil {
			t.Fatalf("%s: %v", fault.name, err)
		}
		if err := closed(t, url); err != nil {
			t.Errorf("after %s: %v", fault.name, err)
		}
		if err := p.Restart(t.Context()); err != nil {
			t.Fatalf("Restart after %s: %v", fault.name, err)
		}
	}
	if got := mustQuery(t, url, "SELECT what FROM kept"); got != "paused Kill Stop" {
		t.Errorf("the rows are %q, want %q", got, "paused Kill Stop")
	}
}

// The machine's owner presses the big button: nothing of the servers stays, and
// the same folder, with the same data and URLs, serves the next process.
func TestKilledParent(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(testDir(t), "ein Ordner, größer") // paths have spaces and umlauts
	// RabbitMQ may forget a queue that is declared moments before it is killed,
	// and with it the message.
	before := startStack(t, Options{Dir: dir})
	declare(t, before.AMQPURL())
	if err := before.Close(); err != nil {
		t.Fatal(err)
	}
	cmd, p, _ := startChild(t, dir)
	put(t, p.AMQP, "survives")
	mustQuery(t, p.Database, "CREATE TABLE survives (n int)")

	_, err := Start(t.Context(), Options{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "in use by process "+strconv.Itoa(cmd.Process.Pid)) {
		t.Errorf("a second stack on the folder: %v, want an error that names process %d", err, cmd.Process.Pid)
	}

	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	for _, u := range []string{p.AMQP, p.Database} {
		within(t, 10*time.Second, "the servers end with their parent", func() error { return closed(t, u) })
	}
	for _, pid := range p.PIDs {
		within(t, 10*time.Second, "every process ends with the parent", func() error {
			if birth(pid) != "" {
				return fmt.Errorf("process %d lives", pid)
			}
			return nil
		})
	}

	s := startStack(t, Options{Dir: dir})
	if s.AMQPURL() != p.AMQP || s.DatabaseURL() != p.Database {
		t.Error("the URLs changed, though their ports were free")
	}
	if got := take(t, s.AMQPURL()); got != "survives" {
		t.Errorf("the message is %q", got)
	}
	mustQuery(t, s.DatabaseURL(), "SELECT n::text FROM survives")
}

// A server that is stopped, as by Ctrl-Z or a debugger, cannot end with its
// parent. The next process on its folder ends it.
func TestLeftoverServersAreEnded(t *testing.T) {
	t.Parallel()
	dir := testDir(t)
	cmd, p, _ := startChild(t, dir)
	for _, pid := range p.PIDs {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatalf("stopping process %d: %v", pid, err)
		}
	}
	// Of PostgreSQL, which ends by a signal that it must be awake for, all is left.
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	left := slices.DeleteFunc(slices.Clone(p.PIDs), func(pid int) bool { return birth(pid) == "" })
	if len(left) == 0 {
		t.Fatal("no server is left, so this tests nothing")
	}
	if got := inhabitants(dir + "/postgres"); len(got) == 0 {
		t.Error("nobody seems to be left of PostgreSQL")
	}
	s := startStack(t, Options{Dir: dir})
	for _, pid := range left {
		if birth(pid) != "" {
			t.Errorf("process %d of the killed parent lives", pid)
		}
	}
	roots := append(s.rabbitmq.pids(), s.postgres.pids()...)
	for _, pid := range living(dir) {
		if !slices.Contains(append(roots, descendants(roots)...), pid) && birth(pid) != "" {
			t.Errorf("process %d was started in the folder and belongs to nobody", pid)
		}
	}
}

// Tests of ordinary users are this whole package, run by one; when root runs
// it, this stands for them.
func TestOrdinaryUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		s := startStack(t, Options{Dir: testDir(t)})
		mustQuery(t, s.DatabaseURL(), "SELECT 'works'")
		return
	}
	// The test program itself lies where only root can reach it.
	program := filepath.Join(testDir(t), "program")
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, b, 0o755); err != nil {
		t.Fatal(err)
	}
	nobody, err := firstAccount([]string{"nobody"})
	if err != nil {
		t.Fatal(err)
	}
	cmd, p, stdin := startChild(t, "-", func(cmd *exec.Cmd) {
		cmd.Path, cmd.Dir = program, "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(nobody.uid), Gid: uint32(nobody.gid)}}
	})
	mustQuery(t, p.Database, "SELECT 'works'")
	put(t, p.AMQP, "works")
	info, err := os.Stat(p.Dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder of an ordinary user: %v, mode %v, want one that is closed to others", err, info.Mode())
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("closing as an ordinary user: %v", err)
	}
	if _, err := os.Stat(p.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the temporary folder is there after Close: %v", err)
	}
}

func TestWaitReportsAServerThatEnds(t *testing.T) {
	t.Parallel()
	p, err := StartPostgres(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	s := &Stack{postgres: p}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Wait(ctx); err != nil {
		t.Errorf("Wait with a context that is done: %v, want nil", err)
	}
	if err := syscall.Kill(p.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := s.Wait(ctx); err == nil || !strings.Contains(err.Error(), "PostgreSQL ended by itself: signal: killed") {
		t.Errorf("Wait = %v, want that PostgreSQL was killed", err)
	}
}

func TestPortTakenAtStart(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() })
	takenPort := taken.Addr().(*net.TCPAddr).Port
	// choose answers the taken port first, as if it had been free a moment ago.
	choose := func(tries *int) func(int) (int, error) {
		return func(preferred int) (int, error) {
			if *tries++; *tries == 1 {
				return takenPort, nil
			}
			return freePort(preferred)
		}
	}
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		p, err := openPostgres(t.Context(), Options{Dir: testDir(t)}, true)
		if err != nil {
			t.Fatal(err)
		}
		var tries int
		p.choosePort = choose(&tries)
		if err := p.begin(t.Context()); err != nil {
			t.Fatalf("starting on a port that is taken: %v", err)
		}
		defer p.Close()
		mustQuery(t, p.URL(), "SELECT 'works'")
		if tries != 2 {
			t.Errorf("%d ports were tried, want 2", tries)
		}
	})
	t.Run("RabbitMQ", func(t *testing.T) {
		t.Parallel()
		r, err := openRabbitMQ(Options{Dir: testDir(t)}, true)
		if err != nil {
			t.Fatal(err)
		}
		var tries int
		r.choosePort = choose(&tries)
		if err := r.begin(t.Context()); err != nil {
			t.Fatalf("starting on a port that is taken: %v", err)
		}
		defer r.Close()
		put(t, r.URL(), "works")
		if tries != 2 {
			t.Errorf("%d ports were tried, want 2", tries)
		}
	})
}

// living lists the processes of both servers in a folder.
func living(dir string) []int {
	return append(inhabitants(filepath.Join(dir, "rabbitmq")), inhabitants(filepath.Join(dir, "postgres"))...)
}

func TestStartIsCancelled(t *testing.T) {
	t.Parallel()
	dir := testDir(t)
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 1)
	go func() {
		_, err := Start(ctx, Options{Dir: dir})
		errs <- err
	}()
	within(t, time.Minute, "the servers are being started", func() error {
		if len(living(dir)) < 2 {
			return fmt.Errorf("processes: %v", living(dir))
		}
		return nil
	})
	cancel()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled Start: %v, want %v", err, context.Canceled)
	}
	if left := living(dir); len(left) > 0 {
		t.Errorf("processes of a cancelled Start live: %v", left)
	}
	startStack(t, Options{Dir: dir}) // what was half made is no obstacle
}

func TestStartRefuses(t *testing.T) {
	t.Parallel()
	nobody := "127.0.0.1:1" // tcpmux: nobody has it
	write := func(t *testing.T, dir, name, content string) {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o711); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name string
		opts func(t *testing.T) Options
		want string
	}{
		{"a RabbitMQ that does not answer", func(*testing.T) Options {
			return Options{AMQPURL: "amqp://u:secret@" + nobody, DatabaseURL: "postgres://u:secret@" + nobody}
		}, "connecting to the given RabbitMQ at amqp://" + nobody},
		{"no AMQP URL", func(*testing.T) Options {
			return Options{AMQPURL: "http://u:secret@" + nobody, DatabaseURL: "postgres://u:secret@" + nobody}
		}, "must begin with amqp://"},
		{"a broken AMQP URL", func(*testing.T) Options {
			return Options{AMQPURL: "amqp://u:secret@h:port", DatabaseURL: "postgres://u:secret@" + nobody}
		}, "reading the given RabbitMQ URL: invalid port"},
		{"a state that no start wrote", func(t *testing.T) Options {
			dir := testDir(t)
			write(t, dir, "postgres/state.json", `{"port":`)
			return Options{Dir: dir, AMQPURL: "amqp://u:secret@" + nobody}
		}, "state.json"},
		{"data without a state", func(t *testing.T) Options {
			dir := testDir(t)
			write(t, dir, "postgres/data/cluster/PG_VERSION", "15\n")
			return Options{Dir: dir, AMQPURL: "amqp://u:secret@" + nobody}
		}, "state.json is missing"},
		{"data of another version", func(t *testing.T) Options {
			dir := testDir(t)
			write(t, dir, "postgres/state.json", `{}`)
			write(t, dir, "postgres/data/cluster/PG_VERSION", "9.1\n")
			return Options{Dir: dir, AMQPURL: "amqp://u:secret@" + nobody}
		}, "made by PostgreSQL 9.1, which is not installed"},
		{"a folder with a quote in its name", func(t *testing.T) Options {
			return Options{Dir: filepath.Join(testDir(t), "o'brien"), AMQPURL: "amqp://u:secret@" + nobody}
		}, "quotes or control characters"},
		{"a file for a folder", func(t *testing.T) Options {
			dir := testDir(t)
			write(t, dir, "postgres", "")
			return Options{Dir: dir, AMQPURL: "amqp://u:secret@" + nobody}
		}, "is not a folder"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			opts := tc.opts(t)
			var err error
			if strings.Contains(tc.want, "RabbitMQ") || strings.Contains(tc.want, "amqp") {
				_, err = Start(t.Context(), opts)
			} else {
				_, err = StartPostgres(t.Context(), opts)
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("%v, want an error with %q", err, tc.want)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("the error shows a password: %v", err)
			}
		})
	}
}
