package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"waymark/internal/servicetest"
	"waymark/publisher/spool"
)

// relay is an address at which the broker is there or not, as a test wants.
type relay struct {
	t       testing.TB
	backend string
	address string

	listener net.Listener
	wg       sync.WaitGroup

	mu   sync.Mutex
	open []net.Conn
}

// off cuts all connections and lets none through.
func (r *relay) off() {
	r.listener.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.open {
		c.Close()
	}
	r.open = nil
}

// newRelay returns a relay that is off, and the URL that leads through it.
func newRelay(t testing.TB, brokerURL string) (*relay, string) {
	t.Helper()
	u, err := url.Parse(brokerURL)
	if err != nil {
		t.Fatal("the URL of the test's broker cannot be read")
	}
	r := &relay{t: t, backend: u.Host, address: "127.0.0.1:0"}
	r.on()
	r.listener.Close()
	u.Host = r.address
	t.Cleanup(func() {
		r.listener.Close()
		r.wg.Wait()
	})
	return r, u.String()
}

// on lets connections through.
func (r *relay) on() {
	r.t.Helper()
	l, err := net.Listen("tcp", r.address)
	if err != nil {
		r.t.Fatal(err)
	}
	r.listener, r.address = l, l.Addr().String()
	r.wg.Go(func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			r.wg.Go(func() {
				defer a.Close()
				b, err := net.Dial("tcp", r.backend)
				if err != nil {
					return
				}
				defer b.Close()
				r.mu.Lock()
				r.open = append(r.open, a, b)
				r.mu.Unlock()
				r.wg.Go(func() { io.Copy(b, a); b.Close() })
				io.Copy(a, b)
			})
		}
	})
}

var balance = regexp.MustCompile(`published (\d+), confirmed (\d+), spooled (\d+), dropped (\d+)\n`)

// wantBalance fails the test unless a run said how it was reported, and that
// adds up.
func wantBalance(t testing.TB, o outcome, spooled bool) {
	t.Helper()
	var published, confirmed, onDisk, dropped int
	m := balance.FindString(o.stderr)
	if _, err := fmt.Sscanf(m, "published %d, confirmed %d, spooled %d, dropped %d", &published, &confirmed, &onDisk, &dropped); err != nil {
		t.Fatalf("no balance (%v) in\n%s", err, o.stderr)
	}
	if published < 3 || published != confirmed+onDisk+dropped || dropped != 0 || spooled && confirmed != 0 || !spooled && onDisk != 0 {
		t.Errorf("the run says %q; want all spooled (%v), else confirmed", m, spooled)
	}
}

func wantSegments(t testing.TB, dir string, want int) {
	t.Helper()
	if paths, err := spool.Segments(dir); err != nil || len(paths) != want {
		t.Errorf("the spool %s holds %q (%v), want %d segments", dir, paths, err, want)
	}
}

// The broker is away for the whole run, and each of those who may deliver its
// messages later does.
func TestBrokerAwayForTheWholeRun(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(t)
	switchable, url := newRelay(t, s.amqp)
	state := t.TempDir()
	s.environment["XDG_STATE_HOME"] = state
	s.environment["WAYMARK_BROKER_URL"] = url
	mine := filepath.Join(state, "waymark", "spool")
	run := func(id, command string, more ...string) outcome {
		t.Helper()
		return s.run(t, append([]string{"run", "serial", "-q", "--id", id, "--final-timeout", "100ms", "--workspace", t.TempDir(), "-f", reanaYAML(t, command)}, more...)...)
	}

	// By hand, from the user's folder and from another.
	first, second := uuid.NewString(), uuid.NewString()
	got := run(first, "echo hello").want(t, exitOK)
	wantBalance(t, got, true)
	if !strings.Contains(got.stderr, "kept in "+mine) {
		t.Errorf("the run does not say where its messages are:\n%s", got.stderr)
	}
	other := filepath.Join(t.TempDir(), "other")
	wantBalance(t, run(second, "exit 7", "--publisher-spool-dir", other).want(t, 7), true)
	wantSegments(t, mine, 1)
	wantSegments(t, other, 1)
	s.run(t, "publish", "--spool", "--publisher-timeout", "100ms").want(t, exitUnreachable)
	s.run(t, "publish", "--spool", "--publisher-timeout", "100ms", filepath.Join(other, "none")).want(t, exitUsage)

	switchable.on()
	for _, args := range [][]string{{"publish", "--spool"}, {"publish", "--spool", other}} {
		if o := s.run(t, args...).want(t, exitOK); !regexp.MustCompile(`found (\d+), confirmed (\d+), left 0\n`).MatchString(o.stdout) {
			t.Errorf("%q says %q", args, o.stdout)
		}
	}
	if o := s.run(t, "publish", "--spool="+other).want(t, exitOK); !strings.HasPrefix(o.stdout, "nothing is in the spool") {
		t.Errorf("publishing an empty spool says %q", o.stdout)
	}
	wantSegments(t, mine, 0)
	s.wantBeginning(t, s.awaitStatus(t, first, "finished"))
	if got := s.awaitStatus(t, second, "failed"); len(got.Failed) != 1 || got.Failed[0].ExitCode != 7 {
		t.Errorf("the failed run is %+v, want its job with exit code 7", got)
	}

	// By the next run.
	switchable.listener.Close()
	third, fourth := uuid.NewString(), uuid.NewString()
	wantBalance(t, run(third, "echo hello").want(t, exitOK), true)
	switchable.on()
	elsewhere := uuid.NewString()
	wantBalance(t, run(elsewhere, "true", "--broker-url", "amqp://127.0.0.1:1/", "--publisher-spool-dir", mine).want(t, exitOK), true)
	wantBalance(t, run(fourth, "sleep 1", "--final-timeout", "30s").want(t, exitOK), false)
	s.awaitStatus(t, third, "finished")
	s.awaitStatus(t, fourth, "finished")
	wantSegments(t, mine, 1) // which is for another broker

	// By a server that is told the folder, and delivers all that is there.
	s.serve(t, "--publisher-spool-dir", mine)
	s.awaitStatus(t, elsewhere, "finished")
	servicetest.Eventually(t, patience, "the spool to be empty", func() error {
		if paths, _ := spool.Segments(mine); len(paths) != 0 {
			return errors.New(strings.Join(paths, " "))
		}
		return nil
	})
}

// wantBeginning checks that a run is said to have begun when it did: shortly
// before the first of its jobs.
func (s *site) wantBeginning(t testing.TB, run statusAnswer) {
	t.Helper()
	var list struct {
		Jobs []struct {
			Started time.Time `json:"started_at"`
		}
	}
	s.json(t, &list, "jobs", run.ID)
	if len(list.Jobs) == 0 {
		t.Fatalf("run %s has no jobs", run.ID)
	}
	first := list.Jobs[0].Started
	for _, j := range list.Jobs {
		if j.Started.Before(first) {
			first = j.Started
		}
	}
	if run.Started.IsZero() || run.Started.After(first) || first.Sub(run.Started) > 5*time.Second {
		t.Errorf("run %s began at %v, and its first job at %v: want the run at most 5 s before it", run.ID, run.Started, first)
	}
}

func TestRunWithoutSpool(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		env  environment
		args []string
		code int
		want string
	}{
		{"not wanted", environment{"HOME": t.TempDir()}, []string{"--no-spool"}, exitOK, "nobody was told how the run ended"},
		{"no home", environment{}, nil, exitOK, "nobody was told how the run ended"},
		{"a home that cannot be written", environment{"HOME": writeFile(t, "home", "")}, nil, exitOK, "nothing is kept on disk"},
		{"a folder that cannot be made", environment{}, []string{"--publisher-spool-dir", filepath.Join(writeFile(t, "file", ""), "spool")}, exitUsage, "spool"},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.env["WAYMARK_BROKER_URL"] = "amqp://127.0.0.1:1/"
			o := test.env.run(t, append([]string{"run", "serial", "-q", "--final-timeout", "50ms", "--workspace", t.TempDir(), "-f", reanaYAML(t, "true")}, test.args...)...).want(t, test.code)
			if !strings.Contains(o.stderr, test.want) {
				t.Errorf("standard error does not say %q:\n%s", test.want, o.stderr)
			}
			if home := test.env["HOME"]; test.name == "not wanted" {
				if entries, err := os.ReadDir(home); err != nil || len(entries) != 0 {
					t.Errorf("the home holds %v (%v), want nothing", entries, err)
				}
			}
		})
	}
}
