//go:build linux

package faults

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"waymark/internal/broker"
	"waymark/internal/servicetest"
	"waymark/internal/wire"
	"waymark/workflow"
)

// chaos is load from publishers of every kind, and faults of every kind at
// random moments, several at a time. Each publisher keeps account of what it
// was told, and that alone is what the database is compared with.
type chaos struct {
	*site
	seed    uint64
	lasts   time.Duration
	servers bool // whole servers are hit, too
	equal   bool // some messages without an id are equal
	spool   string

	over    chan struct{} // publishers begin nothing new
	begun   time.Time
	serving [3]*process
	engines []*process // runs under way, and past ones

	mu      sync.Mutex
	proxies []*proxy
	runs    map[uuid.UUID]*account
	crowd   map[string]*letterAccount // by what makes a malformed message known
	told    int                       // messages that were confirmed
}

// account is what is known of a run by its publisher.
type account struct {
	kind  string
	jobs  int
	total int
	ended bool
	lines map[string]claim
}

// claim is how often a line was confirmed, and how often it was sent without
// an answer, so that it may be there or not.
type claim struct{ sure, perhaps int }

// letterAccount is the same of a malformed message.
type letterAccount struct {
	claim
	body []byte
}

func (c *chaos) account(kind string, id uuid.UUID) *account {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := &account{kind: kind, lines: make(map[string]claim)}
	c.runs[id] = a
	return a
}

// generator is a source of chance of one actor's own: what it decides does not
// depend on when the others do.
func (c *chaos) generator(actor uint64) *rand.Rand { return rand.New(rand.NewPCG(c.seed, actor)) }

func (c *chaos) ended() bool {
	select {
	case <-c.over:
		return true
	default:
		return false
	}
}

// through is a proxy to RabbitMQ that is open to faults.
func (c *chaos) through(address string) *proxy {
	p := newProxy(c, address)
	c.expose(p)
	return p
}

func (c *chaos) expose(p ...*proxy) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.proxies = append(c.proxies, p...)
}

func (c *chaos) run(w *site) {
	c.site, c.runs, c.crowd, c.over = w, make(map[uuid.UUID]*account), make(map[string]*letterAccount), make(chan struct{})
	c.Logf("chaos for %v with seed %d", c.lasts, c.seed)
	w.settings = append(w.settings, "WAYMARK_CONSUMER_MAX_MESSAGE_BYTES=300000", "WAYMARK_CONSUMER_PREFETCH=300", "WAYMARK_CONSUMER_BATCH_SIZE=50")
	w.migrate()
	w.publish(func(*message) bool { return false }) // declares the queues
	c.spool = c.TempDir()
	for i := range c.serving {
		c.replace(i)
	}
	c.begun = time.Now()

	var publishing, breaking sync.WaitGroup
	publishing.Go(func() { c.reana(1) })
	publishing.Go(func() { c.reana(2) })
	publishing.Go(func() { c.malformed(3) })
	stop := make(chan struct{})
	breaking.Go(func() { c.breakLinks(4, stop) })

	// Processes are started and servers hit by the test's own goroutine, which
	// alone may end the test.
	c.breakProcesses(5)

	close(c.over)
	close(stop)
	breaking.Wait()
	for _, p := range c.proxies {
		p.refuse(false)
		p.set(flow{}, toServer, toClient)
		p.cut() // what was parted would stay so
	}
	c.mended = time.Now()
	publishing.Wait()
	for _, p := range c.engines {
		if err := p.wait(w); err != nil {
			w.Errorf("a run ended with: %v; standard error:\n%s", err, p.stderr.String())
		}
	}
	servicetest.Eventually(w, patience, "the spool is empty", func() error {
		p := w.waymark(nil, "publish", "--spool", c.spool)
		if err := p.wait(w); err != nil {
			return fmt.Errorf("%w: %s", err, p.stderr.String())
		}
		return nil
	})
}

// replace starts a consumer in place i.
func (c *chaos) replace(i int) {
	more := []string{}
	if i == 0 {
		more = append(more, "WAYMARK_PUBLISHER_SPOOL_DIR="+c.spool)
	}
	p := c.serve(more...)
	c.expose(p.broker, p.database)
	c.serving[i] = p
}

// breakLinks does what networks do to one connection or another.
func (c *chaos) breakLinks(actor uint64, stop <-chan struct{}) {
	random := c.generator(actor)
	wait := func(most time.Duration) {
		select {
		case <-stop:
		case <-time.After(time.Duration(random.Int64N(int64(most)))):
		}
	}
	var lasting sync.WaitGroup
	defer lasting.Wait()
	for {
		select {
		case <-stop:
			return
		default:
		}
		c.mu.Lock()
		// The last are those that live.
		alive := c.proxies[max(0, len(c.proxies)-14):]
		p := alive[random.IntN(len(alive))]
		c.mu.Unlock()
		d := direction(random.IntN(2))
		var how flow
		parted := false
		switch random.IntN(9) {
		case 0, 1:
			p.cut()
		case 2:
			p.partition()
			parted = true
		case 3:
			how = flow{held: true}
		case 4:
			how = flow{dropped: true}
		case 5:
			how = flow{rate: 2000 + random.IntN(30000)}
		case 6:
			how = flow{delay: time.Duration(random.IntN(300)) * time.Millisecond}
		case 7:
			how = flow{limit: 1 + random.IntN(20000)}
		case 8:
			p.refuse(true)
		}
		lasts := time.Duration(random.IntN(3000)) * time.Millisecond
		p.set(how, d)
		lasting.Go(func() {
			select {
			case <-stop:
			case <-time.After(lasts):
			}
			if how.dropped || parted {
				p.cut() // what has lost some bytes must not go on
			}
			p.refuse(false)
			p.set(flow{}, d)
		})
		wait(600 * time.Millisecond)
	}
}

// breakProcesses kills, freezes and restarts, and keeps the publishers that are
// processes going, until the time is over.
func (c *chaos) breakProcesses(actor uint64) {
	random := c.generator(actor)
	pause := func(most int) { c.last(time.Duration(random.IntN(most)) * time.Millisecond) }
	var source *wave
	var next time.Time
	for n := 0; time.Since(c.begun) < c.lasts; {
		if source == nil || source.ended() {
			if source != nil {
				source.collect()
			}
			source = c.wave(random, n)
			n++
		}
		if time.Now().After(next) {
			c.engine(n)
			next = time.Now().Add(4 * time.Second)
		}
		i := random.IntN(len(c.serving))
		kind := random.IntN(12)
		if c.servers {
			kind = random.IntN(22)
		}
		switch kind {
		case 0, 1:
			kill(c.site, c.serving[i])
			pause(1000)
			c.replace(i)
		case 2:
			c.serving[i].signal(c, syscall.SIGSTOP)
			pause(4000)
			c.serving[i].signal(c, syscall.SIGCONT)
		case 3:
			old := c.serving[i]
			c.replace(i)
			c.end(old)
		case 4:
			source.kill()
		case 5:
			c.try(terminate)
		case 6:
			c.try("ALTER ROLE ROLE_ NOLOGIN", terminate)
			pause(1500)
			c.insist("ALTER ROLE ROLE_ LOGIN")
		case 7:
			c.try("ALTER ROLE ROLE_ SET default_transaction_read_only = on", terminate)
			pause(1500)
			c.insist("ALTER ROLE ROLE_ RESET default_transaction_read_only")
			c.insist(terminate)
		case 8:
			c.lock([]string{"jobs", "workflows", "log_chunks", "ledger", "seen_messages"}[random.IntN(5)], func() { pause(1500) })
		case 9:
			c.try("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE usename = 'ROLE_'")
		case 10:
			c.try("REVOKE INSERT ON SCHEMA_.log_chunks FROM ROLE_")
			pause(1500)
			c.insist("GRANT INSERT ON SCHEMA_.log_chunks TO ROLE_")
		case 11:
			pause(2000)
		case 12:
			c.must(c.Postgres().Restart(c.Context()))
		case 13:
			c.must(c.Postgres().Stop(c.Context()))
			pause(2000)
			c.must(c.Postgres().Restart(c.Context()))
		case 14, 15:
			c.must(c.Postgres().Kill())
			pause(1000)
			c.must(c.Postgres().Restart(c.Context()))
		case 16:
			c.must(c.Postgres().Pause())
			pause(4000)
			c.must(c.Postgres().Resume())
		case 17:
			c.must(c.RabbitMQ().Restart(c.Context()))
		case 18, 19:
			c.must(c.RabbitMQ().Kill())
			pause(1000)
			c.must(c.RabbitMQ().Restart(c.Context()))
		case 20:
			c.must(c.RabbitMQ().Pause())
			pause(4000)
			c.must(c.RabbitMQ().Resume())
		case 21:
			alarm := []fault{memoryAlarm, diskAlarm, connectionsClosed}[random.IntN(3)]
			alarm.begin(c.site, nil)
			pause(2000)
			if alarm.end != nil {
				alarm.end(c.site, nil)
			}
		}
		pause(700)
	}
	if source != nil {
		source.collect()
	}
}

// end asks a consumer to stop. That it may not reach its servers is no fault.
func (c *chaos) end(p *process) {
	p.signal(c, syscall.SIGTERM)
	_ = p.wait(c)
}

// try runs statements that a fault of the moment may keep from running.
func (c *chaos) try(statements ...string) (err error) {
	for _, statement := range statements {
		for range 3 {
			if err = c.do(func(ctx context.Context, conn *pgx.Conn) error {
				_, err := conn.Exec(ctx, c.names(statement))
				return err
			}); err == nil {
				break
			}
		}
	}
	return err
}

// insist runs a statement until it works.
func (c *chaos) insist(statement string) {
	c.Helper()
	servicetest.Eventually(c, patience, statement, func() error { return c.try(statement) })
}

// lock keeps a table locked meanwhile, if the lock can be had.
func (c *chaos) lock(table string, meanwhile func()) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, c.DatabaseURL())
	if err != nil {
		return
	}
	defer release(conn)
	if _, err := conn.Exec(ctx, c.names("BEGIN; SET LOCAL lock_timeout = '3s'; LOCK TABLE SCHEMA_."+table+" IN ACCESS EXCLUSIVE MODE")); err == nil {
		meanwhile()
	}
}

// wave is a publisher process with a run to report. If it is killed another
// goes on with what was not confirmed, under the same ids.
type wave struct {
	*chaos
	lines     []waveLine
	confirmed map[string]bool
	process   *process
}

type waveLine struct {
	id   string
	text string
}

func (c *chaos) wave(random *rand.Rand, n int) *wave {
	v := &wave{chaos: c, confirmed: make(map[string]bool)}
	id := named("chaos %d wave %d of %s", c.seed, n, c.schema)
	a := c.account("publisher", id)
	a.jobs, a.total, a.ended = 12, 12, true
	number := 0
	add := func(m workflow.StatusMessage) {
		number++
		m.WorkflowID, m.EventTime, m.Attempt, m.Engine = id, epoch.Add(time.Duration(number)*time.Second), 1, "chaos"
		m.Logs = fmt.Sprintf("wave %d line %d\n", n, number)
		a.lines[m.Logs] = claim{sure: 1}
		message := named("message %d of %s", number, id).String()
		text, err := json.Marshal(map[string]string{"queue": c.status, "id": message, "body": base64.StdEncoding.EncodeToString(must(wire.EncodeStatus(&m)))})
		c.must(err)
		v.lines = append(v.lines, waveLine{message, string(text)})
	}
	add(workflow.StatusMessage{Status: workflow.StatusRunning, Progress: workflow.Progress{Total: workflow.Count(a.total)}})
	for j := range a.jobs {
		job := fmt.Sprintf("job-%d", j)
		add(workflow.StatusMessage{Status: workflow.StatusRunning, Progress: workflow.Progress{Running: workflow.JobIDs(job)}})
		for range 5 {
			add(workflow.StatusMessage{Status: workflow.StatusRunning, Progress: workflow.Progress{Running: workflow.JobIDs(job)}})
		}
		add(workflow.StatusMessage{Status: workflow.StatusRunning, Progress: workflow.Progress{Finished: workflow.JobIDs(job)}})
	}
	add(workflow.StatusMessage{Status: workflow.StatusFinished})
	// Late, early and repeated.
	for i := range v.lines {
		if j := min(i+random.IntN(5), len(v.lines)-1); random.IntN(3) == 0 {
			v.lines[i], v.lines[j] = v.lines[j], v.lines[i]
		}
	}
	for range 5 {
		v.lines = append(v.lines, v.lines[random.IntN(len(v.lines))])
	}
	v.start()
	return v
}

func (v *wave) start() {
	var b strings.Builder
	for _, line := range v.lines {
		if !v.confirmed[line.id] {
			fmt.Fprintln(&b, line.text)
		}
	}
	p := v.through(host(v.AMQPURL()))
	v.process = start(v.site, "publishtrace", v.environment(p.address(), ""), b.String(), v.status, v.submission)
	v.process.broker = p
}

func (v *wave) ended() bool {
	select {
	case <-v.process.done:
		return true
	default:
		return false
	}
}

// kill kills the process; another goes on.
func (v *wave) kill() {
	v.process.signal(v, syscall.SIGKILL)
	<-v.process.done
	ids(v.process, v.confirmed)
	v.start()
}

// collect waits for the end, which must be a good one.
func (v *wave) collect() {
	if !v.ended() {
		v.process.broker.refuse(false)
		v.process.broker.set(flow{}, toServer, toClient)
		v.process.broker.cut()
	}
	if err := v.process.wait(v); err != nil {
		v.Errorf("a publisher ended with: %v; standard error:\n%s", err, v.process.stderr.String())
	}
	ids(v.process, v.confirmed)
	for _, line := range v.lines {
		if !v.confirmed[line.id] {
			v.Errorf("message %s was not confirmed, and the publisher did not say so", line.id)
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.told += len(v.lines)
}

// engine starts a run of the serial engine.
func (c *chaos) engine(n int) {
	id := named("chaos %d engine %d of %s", c.seed, len(c.engines), c.schema)
	a := c.account("engine", id)
	const steps = 3
	a.jobs, a.total, a.ended = steps, steps, true
	var spec strings.Builder
	spec.WriteString("workflow:\n  type: serial\n  specification:\n    steps:\n")
	for i := range steps {
		fmt.Fprintf(&spec, "      - name: step%d\n        environment: any\n        commands: ['echo line-%d; sleep 0.3']\n", i, i)
		a.lines[fmt.Sprintf("line-%d\n", i)] = claim{sure: 1}
	}
	dir := c.TempDir()
	file := filepath.Join(dir, "reana.yaml")
	c.must(os.WriteFile(file, []byte(spec.String()), 0o600))
	p := c.waymark([]string{"WAYMARK_PUBLISHER_SPOOL_DIR=" + c.spool}, "run", "serial", "-f", file, "-w", filepath.Join(dir, "workspace"), "--id", id.String(), "-n", fmt.Sprintf("chaos-%d", n), "--final-timeout", "3s")
	c.expose(p.broker)
	c.engines = append(c.engines, p)
}

// sender publishes with the bare client library, as those do who are not ours,
// and knows of each message whether it was confirmed.
type sender struct {
	*chaos
	proxy *proxy
	conn  *amqp.Connection
	ch    *amqp.Channel
}

// send publishes messages and says of each whether it was confirmed. What was
// not may be in the queue, or not.
func (s *sender) send(messages []amqp.Publishing) []bool {
	sure := make([]bool, len(messages))
	if s.ch == nil || s.ch.IsClosed() {
		if s.conn != nil {
			s.conn.CloseDeadline(time.Now())
		}
		url, err := amqp.ParseURI(s.AMQPURL())
		if err != nil {
			return sure
		}
		url.Host, url.Port = "127.0.0.1", s.proxy.listener.Addr().(*net.TCPAddr).Port
		if s.conn, err = amqp.DialConfig(url.String(), amqp.Config{Heartbeat: 5 * time.Second, Dial: amqp.DefaultDial(3 * time.Second)}); err != nil {
			return sure
		}
		if s.ch, err = s.conn.Channel(); err != nil {
			s.ch = nil
			return sure
		}
		if err = s.ch.Confirm(false); err != nil {
			s.ch = nil
			return sure
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
	defer cancel()
	conn := s.conn
	defer context.AfterFunc(ctx, func() { conn.CloseDeadline(time.Now()) })() // a write may be blocked
	confirms := make([]*amqp.DeferredConfirmation, len(messages))
	for i, m := range messages {
		confirms[i], _ = s.ch.PublishWithDeferredConfirm("", s.status, true, false, m)
	}
	lost := false
	for i, confirm := range confirms {
		if confirm == nil {
			lost = true
			continue
		}
		ok, err := confirm.WaitContext(ctx)
		sure[i] = ok && err == nil
		lost = lost || !sure[i]
	}
	if lost {
		s.conn.CloseDeadline(time.Now())
		s.ch = nil
	}
	return sure
}

// reana reports one run after the other as REANA's engines do, but for asking
// for confirms: no ids, no times, JSON in JSON. What is not confirmed is said
// again, in other words, so that each message sent is one of its own.
func (c *chaos) reana(actor uint64) {
	random := c.generator(actor)
	s := &sender{chaos: c, proxy: c.through(host(c.AMQPURL()))}
	const same = "the same line as often before\n" // whose messages are equal to the last byte
	for n := 0; !c.ended(); n++ {
		id := named("chaos %d REANA %d of %d of %s", c.seed, n, actor, c.schema)
		a := c.account("REANA", id)
		a.jobs, a.total = 10, 10
		var todo []workflow.StatusMessage
		todo = append(todo, workflow.StatusMessage{Status: workflow.StatusRunning, Progress: workflow.Progress{Total: workflow.Count(a.total)}})
		for j := range a.jobs {
			job := fmt.Sprintf("job-%d", j)
			todo = append(todo, workflow.StatusMessage{Status: workflow.StatusRunning, Progress: workflow.Progress{Running: workflow.JobIDs(job)}})
			for range 4 {
				todo = append(todo, workflow.StatusMessage{Status: workflow.StatusRunning})
			}
			if c.equal {
				todo = append(todo, workflow.StatusMessage{Status: workflow.StatusRunning, Logs: same})
			}
			todo = append(todo, workflow.StatusMessage{Status: workflow.StatusRunning, Progress: workflow.Progress{Finished: workflow.JobIDs(job)}})
		}
		todo = append(todo, workflow.StatusMessage{Status: workflow.StatusFinished})
		for attempt := 0; len(todo) > 0; attempt++ {
			part := todo[:min(len(todo), 1+random.IntN(30))]
			messages := make([]amqp.Publishing, len(part))
			lines := make([]string, len(part))
			for i := range part {
				m := part[i]
				m.WorkflowID = id
				if m.Logs == "" {
					m.Logs = fmt.Sprintf("REANA line %d.%d of %s\n", attempt, i, id)
				}
				lines[i] = m.Logs
				messages[i] = odd(random, amqp.Publishing{Body: wire.Reana(must(wire.EncodeStatus(&m)))})
			}
			var again []workflow.StatusMessage
			sure := s.send(messages)
			c.mu.Lock()
			for i, ok := range sure {
				said := a.lines[lines[i]]
				if ok {
					c.told++
					said.sure++
				} else {
					said.perhaps++
					again = append(again, part[i])
				}
				a.lines[lines[i]] = said
			}
			c.mu.Unlock()
			todo = append(again, todo[len(part):]...)
			c.last(time.Duration(random.IntN(100)) * time.Millisecond)
		}
		c.mu.Lock()
		a.ended = true
		c.mu.Unlock()
	}
	if s.conn != nil {
		s.conn.CloseDeadline(time.Now().Add(time.Second))
	}
}

// odd gives a message properties that must not matter.
func odd(random *rand.Rand, m amqp.Publishing) amqp.Publishing {
	m.DeliveryMode = amqp.Persistent
	switch random.IntN(8) {
	case 0:
		m.ContentType, m.ContentEncoding = "image/png", "klingon"
	case 1:
		m.Priority = 9
	case 2:
		m.Expiration = "86400000"
	case 3:
		m.ReplyTo, m.CorrelationId, m.Type, m.AppId = "nobody", strings.Repeat("x", 255), "\x00\xff", "chaos"
	case 4:
		m.Timestamp = time.Unix(1<<40, 0)
	case 5:
		m.Headers = amqp.Table{"nothing": nil, "bytes": []byte{0, 255}, "list": []any{int64(1), "two", amqp.Table{"three": true}},
			"when": time.Unix(0, 0), "decimal": amqp.Decimal{Scale: 2, Value: 314}, "float": 1.5, "small": int8(-1), "x-death": "no list"}
	case 6:
		m.Headers = amqp.Table{"large": strings.Repeat("h", random.IntN(100_000)), "x-waymark-count": "seven", "x-waymark-reason": int32(7)}
	}
	return m
}

// malformed sends what nobody can apply, each message of a body or an id of
// its own.
func (c *chaos) malformed(actor uint64) {
	random := c.generator(actor)
	s := &sender{chaos: c, proxy: c.through(host(c.AMQPURL()))}
	run := named("chaos %d: nobody's run", c.seed)
	for n := 0; !c.ended(); {
		var messages []amqp.Publishing
		for range 1 + random.IntN(20) {
			n++
			var body string
			withID := n%2 == 0
			switch random.IntN(14) {
			case 0:
				body = fmt.Sprintf("no JSON, %d", n)
			case 1:
				withID = true // it has no body to be known by
			case 2:
				body = fmt.Sprintf(`{"workflow_uuid": "%s", "status": 1, "logs": "cut off, %d`, run, n)
			case 3:
				body = fmt.Sprintf(`{"workflow_uuid": "%s", "status": %d, "logs": "", "message": {}}`, run, 8+n)
			case 4:
				body = fmt.Sprintf(`{"workflow_uuid": "%s", "status": 1, "logs": "%d %s", "message": {}}`, run, n, strings.Repeat("huge", 80_000))
			case 5:
				body = strings.Repeat("[", 300+n)
			case 6:
				body = fmt.Sprintf("\x00\xff\xfe\x00%d", n)
			case 7:
				body = fmt.Sprintf(`{"status": 1, "logs": "%d", "message": {}}`, n)
			case 8:
				body = fmt.Sprintf(`{"workflow_uuid": "%s", "status": 1, "logs": "", "message": {"progress": {"running": {"total": 1, "job_ids": "%d"}}}}`, run, n)
			case 9:
				body = fmt.Sprint(n)
			case 10:
				body = fmt.Sprintf(`"\"%d\""`, n)
			case 11:
				body = fmt.Sprintf(`{"workflow_uuid": "'; DROP TABLE jobs; -- %d", "status": 1, "logs": "", "message": {}}`, n)
			case 12:
				body = fmt.Sprintf(`{"workflow_uuid": "%s", "status": 1, "logs": "", "message": {}} {"more": %d}`, run, n)
			case 13:
				body = fmt.Sprintf(`{"workflow_uuid": "%s", "status": 1e%d, "logs": "", "message": {}}`, run, 400+n)
			}
			m := odd(random, amqp.Publishing{Body: []byte(body)})
			if withID {
				m.MessageId = fmt.Sprintf("malformed %d", n)
			}
			messages = append(messages, m)
		}
		sure := s.send(messages)
		c.mu.Lock()
		for i, m := range messages {
			id := (&message{id: m.MessageId, body: m.Body}).letterID()
			a := c.crowd[id]
			if a == nil {
				a = &letterAccount{body: m.Body}
				c.crowd[id] = a
			}
			if sure[i] {
				a.sure++
				c.told++
			} else {
				a.perhaps++
			}
		}
		c.mu.Unlock()
		c.last(time.Duration(random.IntN(300)) * time.Millisecond)
	}
	if s.conn != nil {
		s.conn.CloseDeadline(time.Now().Add(time.Second))
	}
}

// compare compares the runs with what their publishers know of them.
func (c *chaos) compare() (missing, extra []string, err error) {
	type seen struct {
		status                string
		finished, total, jobs int
		lines                 map[string]int
	}
	got := make(map[uuid.UUID]*seen)
	err = c.do(func(ctx context.Context, conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, fmt.Sprintf(`SELECT workflow_id, status, jobs_finished, jobs_total,
			(SELECT count(*) FROM %[1]s.job_status j WHERE j.workflow_id = w.workflow_id) FROM %[1]s.workflow_status w`, c.schema))
		if err != nil {
			return err
		}
		var id uuid.UUID
		var one seen
		if _, err := pgx.ForEachRow(rows, []any{&id, &one.status, &one.finished, &one.total, &one.jobs}, func() error {
			s := one
			s.lines = make(map[string]int)
			got[id] = &s
			return nil
		}); err != nil {
			return err
		}
		if rows, err = conn.Query(ctx, "SELECT workflow_id, body FROM "+c.schema+".workflow_logs WHERE job_id IS NOT NULL OR body LIKE '%line %'"); err != nil {
			return err
		}
		var body string
		_, err = pgx.ForEachRow(rows, []any{&id, &body}, func() error {
			if got[id] == nil {
				return nil // it came between the two queries
			}
			for line := range strings.Lines(body) {
				got[id].lines[line]++
			}
			return nil
		})
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	for id, a := range c.runs {
		s := got[id]
		if s == nil {
			missing = append(missing, fmt.Sprintf("%s run %s", a.kind, id))
			continue
		}
		delete(got, id)
		if a.ended && (s.status != "finished" || s.finished != a.jobs) {
			missing = append(missing, fmt.Sprintf("%s run %s is %s with %d of %d jobs finished", a.kind, id, s.status, s.finished, a.jobs))
		}
		if s.jobs > a.jobs || s.total > a.total {
			extra = append(extra, fmt.Sprintf("%s run %s has %d jobs of %d, not %d", a.kind, id, s.jobs, s.total, a.jobs))
		}
		for line, claim := range a.lines {
			switch n := s.lines[line]; {
			case n < claim.sure:
				missing = append(missing, fmt.Sprintf("%s line %q of %s: %d times, confirmed %d times", a.kind, line, id, n, claim.sure))
			case n > claim.sure+claim.perhaps:
				extra = append(extra, fmt.Sprintf("%s line %q of %s: %d times, confirmed %d times and sent %d times more", a.kind, line, id, n, claim.sure, claim.perhaps))
			}
			delete(s.lines, line)
		}
		for line := range s.lines {
			extra = append(extra, fmt.Sprintf("%s line %q of %s, which nobody sent", a.kind, line, id))
		}
	}
	for id := range got {
		extra = append(extra, fmt.Sprintf("run %s, which nobody reported", id))
	}
	slices.Sort(missing)
	slices.Sort(extra)
	return missing, extra, nil
}

// settle waits until nothing is missing, and compares everything.
func (c *chaos) settle(w *site) (r result) {
	quiet := func() error {
		if n, err := w.waiting(); err != nil || n > 0 {
			return fmt.Errorf("%d messages wait (%v)", n, err)
		}
		missing, _, err := c.compare()
		if err == nil && len(missing) > 0 {
			err = errors.New(difference(missing, nil))
		}
		return err
	}
	deadline := time.Now().Add(patience)
	for err := quiet(); err != nil; err = quiet() {
		if time.Now().After(deadline) {
			w.Errorf("not quiet within %v: %v", patience, err)
			break
		}
		time.Sleep(100 * time.Millisecond) // as Eventually does, which would end the test without telling the numbers
	}
	r.recovered = time.Since(w.mended)
	for _, p := range c.serving {
		p.stop(w)
	}
	w.takeRest()
	missing, extra, err := c.compare()
	if err != nil {
		w.Errorf("reading the views: %v", err)
	}
	letters := w.bodies()
	again := 0
	for id, a := range c.crowd {
		all := letters[id]
		delete(letters, id)
		if len(all) < min(a.sure, 1) {
			missing = append(missing, fmt.Sprintf("dead letter %s: %.80q", id, a.body))
		}
		again += max(0, len(all)-a.sure-a.perhaps)
		for _, body := range all {
			if string(body) != string(a.body) {
				extra = append(extra, fmt.Sprintf("dead letter %s has another body: %.80q, not %.80q", id, body, a.body))
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(letters)) {
		extra = append(extra, fmt.Sprintf("dead letter %s, which should have been applied: %.200q", id, letters[id][0]))
	}
	if len(missing)+len(extra) > 0 {
		w.Errorf("what the database knows differs from what the publishers know (- missing, + too many):\n%s", difference(missing, extra))
	}
	l, err := w.ledger()
	if err != nil || !l.balanced || l.received != l.applied+l.duplicate+l.stale+l.dead || l.received < c.told {
		w.Errorf("the ledger does not balance, or knows of fewer than the %d confirmed messages: %+v, %v", c.told, l, err)
	}
	w.Logf("chaos with seed %d: %d runs, %d malformed; %d confirmed; ledger %+v; %d dead letters are there twice; received − duplicate − confirmed = %d",
		c.seed, len(c.runs), len(c.crowd), c.told, l, again, l.received-l.duplicate-c.told)
	r.published, r.ledger, r.lost, r.doubled = c.told, l, len(missing), len(extra)
	return r
}

// bodies takes all dead letters, by id.
func (w *site) bodies() map[string][][]byte {
	w.Helper()
	all := make(map[string][][]byte)
	conn := w.dial()
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		w.Fatalf("opening a channel: %v", err)
	}
	for {
		d, ok, err := ch.Get(broker.DeadLetter(w.status), true)
		if err != nil {
			w.Fatalf("reading the dead letters: %v", err)
		}
		if !ok {
			return all
		}
		all[d.MessageId] = append(all[d.MessageId], d.Body)
	}
}
