//go:build linux

package faults

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"waymark/internal/servicetest"
	"waymark/internal/wire"
	"waymark/workflow"
)

// ofMany begins what the scenarios do that publish the wide trace: batches of so
// many runs, and with so many new jobs, that they take turns and copy the jobs.
const ofMany = "many runs: "

const (
	wideRuns  = 48 // with ids and times, as our publishers write them
	wideReana = 16 // without either, as REANA's do
	wideJobs  = 8  // of each run

	wideBatch    = 250
	widePrefetch = 2 * wideBatch // one batch that is applied, and one that is gathered

	// turnFrom and copyFrom say which batches take turns, by their runs, and copy,
	// by their new jobs.
	turnFrom = 32
	copyFrom = 64
)

// newWideTrace makes the same trace each time: runs that all go on at the same
// time. No two messages without an id are equal.
func newWideTrace() *trace {
	b := &builder{}
	var adds []func()
	for n := range wideRuns {
		adds = append(adds, func() { b.wideRun(n) })
	}
	for n := range wideReana {
		adds = append(adds, func() { b.wideReana(n) })
	}
	t := &trace{messages: b.mixed(40, adds...), arrival: b.arrival}
	// What cannot be applied comes late: before it each batch is one transaction,
	// and the n-th time at a crash point is the n-th batch.
	b.messages = nil
	b.wideMalformed()
	for i, m := range b.messages {
		t.messages = slices.Insert(t.messages, (14+i)*len(t.messages)/20, m)
	}
	t.count()
	return t
}

// wideCommand is long, so that the new jobs of a batch do not fit into one piece
// of what COPY sends.
func wideCommand(n, job int) string {
	return fmt.Sprintf("root -b -q 'fit.C(%d, %d)'", n, job) + strings.Repeat(" --systematic=scale", 100)
}

func (b *builder) wideRun(n int) {
	id := named("wide run %d", n)
	b.add(message{submission: true, id: named("wide submission %d", n).String(), body: must(wire.EncodeSubmission(&workflow.Submission{
		User: "ada", Workflow: id.String(), Name: fmt.Sprintf("scan-%d", n), Engine: "serial", Priority: n,
		Parameters: json.RawMessage(`{"events":20000}`), EventTime: b.next(),
	}))})
	say := func(status workflow.Status, m workflow.StatusMessage) {
		m.WorkflowID, m.Status, m.Attempt, m.Engine = id, status, 1, "serial"
		b.status(&m)
	}
	job := func(r workflow.JobReport) {
		say(workflow.StatusRunning, workflow.StatusMessage{Jobs: []workflow.JobReport{r}})
	}
	say(workflow.StatusRunning, workflow.StatusMessage{Progress: workflow.Progress{
		Total: workflow.Count(wideJobs), EngineSpecific: json.RawMessage(fmt.Sprintf(`{"scan":%d}`, n))}})
	for j := range wideJobs {
		name := fmt.Sprintf("job-%d", j)
		job(workflow.JobReport{ID: name, Name: "scan", Command: wideCommand(n, j), Status: workflow.JobRunning, Attempt: 1, StartedAt: b.next()})
		switch j {
		case 3: // fails, and is repeated
			code := 7
			job(workflow.JobReport{ID: name, Status: workflow.JobFailed, Attempt: 1, ExitCode: &code, FinishedAt: b.next()})
			job(workflow.JobReport{ID: name, Status: workflow.JobFinished, Attempt: 2, FinishedAt: b.next(), Result: json.RawMessage(`{"chi2":1.5}`)})
		case 5:
			say(workflow.StatusRunning, workflow.StatusMessage{Progress: workflow.Progress{Finished: workflow.JobIDs(name), Cached: workflow.JobIDs(name)}})
		default:
			job(workflow.JobReport{ID: name, Status: workflow.JobFinished, Attempt: 1, FinishedAt: b.next(), Logs: fmt.Sprintf("job log %d of %s\n", j, id)})
		}
		if j == 6 { // says nothing new, under an id of its own
			b.quiet(&workflow.StatusMessage{WorkflowID: id, Status: workflow.StatusRunning, Attempt: 1, Engine: "serial",
				EventTime: epoch.Add(time.Duration(b.tick) * time.Second), Progress: workflow.Progress{Running: workflow.JobIDs(name)}})
		}
	}
	last := workflow.StatusFinished
	if n%8 == 7 {
		last = workflow.StatusFailed
	}
	say(last, workflow.StatusMessage{})
}

func (b *builder) wideReana(n int) {
	id := named("wide REANA run %d", n)
	b.arrival = append(b.arrival, id)
	say := func(status workflow.Status, logs string, p workflow.Progress) {
		logs = fmt.Sprintf("line %s of %s\n", logs, id)
		b.add(message{body: wire.Reana(must(wire.EncodeStatus(&workflow.StatusMessage{WorkflowID: id, Status: status, Logs: logs, Progress: p})))})
	}
	say(workflow.StatusRunning, "one", workflow.Progress{Total: workflow.Count(wideJobs)})
	for j := range wideJobs {
		job := named("wide REANA job %d of %d", j, n).String()
		say(workflow.StatusRunning, "started "+job, workflow.Progress{Running: workflow.JobIDs(job)})
		say(workflow.StatusRunning, "finished "+job, workflow.Progress{Finished: workflow.JobIDs(job)})
	}
	say(workflow.StatusFinished, "last", workflow.Progress{})
}

// wideMalformed adds what nobody can apply, the last of it for what the database
// says.
func (b *builder) wideMalformed() {
	b.add(message{body: []byte(`no JSON`), dead: true})
	b.add(message{id: named("wide malformed").String(), body: []byte(`{"workflow_uuid": "` + named("wide run 0").String() + `", "status": 99, "logs": "", "message": {}}`), dead: true})
	b.add(message{body: []byte("\xff\xfe{\x00}\x00"), dead: true})
	b.add(message{
		id: named("wide poison").String(), dead: true, poison: true,
		body: must(wire.EncodeStatus(&workflow.StatusMessage{WorkflowID: named("wide run 0"), Status: workflow.StatusRunning, EventTime: epoch, Attempt: 1,
			Jobs: []workflow.JobReport{{ID: "poison", Name: poisonName}}, Logs: "never seen\n"})),
	})
}

// widen makes w a site of the wide trace.
func (w *site) widen() {
	w.trace, w.want = w.suite.wide.trace, w.suite.wide.want
	w.settings = append(w.settings, fmt.Sprintf("WAYMARK_CONSUMER_BATCH_SIZE=%d", wideBatch), fmt.Sprintf("WAYMARK_CONSUMER_PREFETCH=%d", widePrefetch),
		"WAYMARK_CONSUMER_LINGER=300ms") // so that batches are full on a slow machine, too
}

// watched makes the tables, and has the database itself write down in each
// transaction which turn it held, and how its jobs came: what a transaction says
// of itself here is there if it was committed, and only then. The sequence counts
// those, too, that were rolled back when all was written.
func (w *site) watched() {
	w.Helper()
	w.migrate()
	w.sql(`CREATE TABLE SCHEMA_.watched_batches (batch xid8, runs integer, turn boolean)`,
		`CREATE TABLE SCHEMA_.watched_jobs (batch xid8, jobs integer, copied boolean)`,
		`CREATE SEQUENCE SCHEMA_.tries MINVALUE 0`,
		`SELECT nextval('SCHEMA_.tries')`, // 0
		`CREATE FUNCTION SCHEMA_.watch_batch() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
			PERFORM nextval('SCHEMA_.tries');
			INSERT INTO SCHEMA_.watched_batches SELECT pg_current_xact_id(),
				(SELECT count(*) FROM SCHEMA_.workflows WHERE xmin = pg_current_xact_id()::xid),
				EXISTS (SELECT FROM pg_locks WHERE pid = pg_backend_pid() AND `+theTurn+` AND granted);
			RETURN NULL; END $$`,
		`CREATE FUNCTION SCHEMA_.watch_jobs() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
			INSERT INTO SCHEMA_.watched_jobs SELECT pg_current_xact_id(), (SELECT count(*) FROM made), current_query() LIKE 'COPY jobs %';
			RETURN NULL; END $$`,
		// The ledger is written once in each transaction, behind all else.
		`CREATE TRIGGER watch AFTER INSERT OR UPDATE ON SCHEMA_.ledger FOR EACH STATEMENT EXECUTE FUNCTION SCHEMA_.watch_batch()`,
		`CREATE TRIGGER watch AFTER INSERT ON SCHEMA_.jobs REFERENCING NEW TABLE AS made FOR EACH STATEMENT EXECUTE FUNCTION SCHEMA_.watch_jobs()`)
}

// theTurn picks out of pg_locks who has the turn, or waits for it.
const theTurn = `locktype = 'relation' AND relation = 'SCHEMA_.apply_turns'::regclass AND mode = 'ExclusiveLock'`

// copies counts the transactions of many runs that held the turn and copied many
// jobs.
func (w *site) copies() (int, error) {
	return w.number(w.names(fmt.Sprintf("SELECT count(*) FROM SCHEMA_.watched_batches JOIN SCHEMA_.watched_jobs USING (batch) WHERE runs >= %d AND turn AND jobs >= %d AND copied", turnFrom, copyFrom)))
}

// settleWide compares what settle does, and how the batches were applied.
func (w *site) settleWide() result {
	w.Helper()
	r := w.settle()
	if n, err := w.number(w.names(fmt.Sprintf("SELECT count(*) FROM SCHEMA_.watched_batches WHERE runs >= %d AND NOT turn", turnFrom))); err != nil || n > 0 {
		w.Errorf("%d transactions (%v) wrote %d runs or more, and had not the turn", n, err, turnFrom)
	}
	if n, err := w.number(w.names(fmt.Sprintf("SELECT count(*) FROM SCHEMA_.watched_jobs WHERE jobs >= %d AND NOT copied", copyFrom))); err != nil || n > 0 {
		w.Errorf("%d times (%v) %d jobs or more were made, and not by COPY", n, err, copyFrom)
	}
	if n, err := w.copies(); err != nil || n < 2 {
		w.Errorf("%d transactions (%v) held the turn and copied jobs: the scenario did not meet what it is for", n, err)
	}
	return r
}

// settleFoldedAgain is settleWide where a batch was to be folded again.
func (w *site) settleFoldedAgain() result {
	w.Helper()
	r := w.settleWide()
	n, err := w.number(w.names("SELECT last_value - (SELECT count(*) FROM SCHEMA_.watched_batches) FROM SCHEMA_.tries"))
	if err != nil || n == 0 {
		w.Errorf("%d transactions (%v) were rolled back when all was written; one was to be, for its rows had changed", n, err)
	}
	return r
}

// wideBaseline is what the wide trace gives when nothing fails.
func (s *suite) wideBaseline(t *testing.T) {
	w := newSite(t, s)
	w.widen()
	w.watched()
	w.publish(everything)
	const all = wideRuns + wideReana
	s.wide.want = w.first(ofMany+"nothing fails", (*site).settleWide, map[string]int{
		"SELECT count(*) FROM workflow_status":                                                                              all,
		"SELECT count(*) FROM workflow_status WHERE status = 'failed'":                                                      wideRuns / 8,
		"SELECT count(*) FROM workflow_status WHERE status = 'finished'":                                                    all - wideRuns/8,
		"SELECT count(*) FROM workflow_status WHERE name LIKE 'scan-%' AND run_number = 1":                                  wideRuns,
		"SELECT count(*) FROM workflow_status WHERE jobs_finished = jobs_total AND jobs_total = " + fmt.Sprint(wideJobs):    all,
		"SELECT count(*) FROM job_status":                                                                                   all * wideJobs,
		"SELECT count(*) FROM job_status WHERE status <> 'finished'":                                                        0,
		"SELECT count(*) FROM job_status WHERE attempt = 2":                                                                 wideRuns,
		"SELECT count(*) FROM job_status WHERE cached":                                                                      wideRuns,
		"SELECT count(*) FROM job_status WHERE length(command) > 1800":                                                      wideRuns * (wideJobs - 1), // not of a repetition
		"SELECT count(*) FROM workflow_logs WHERE body LIKE 'line %'":                                                       strings.Count(w.trace.text(), `"logs":"line `) + wideReana*(2*wideJobs+2),
		"SELECT count(*) FROM workflow_logs WHERE body LIKE 'job log %'":                                                    wideRuns * (wideJobs - 2),
		"SELECT count(*) FROM (SELECT FROM workflow_logs WHERE body LIKE 'line %' GROUP BY body HAVING count(*) > 1) twice": 0,
	})
	if n, err := w.copies(); err != nil || n < 3 {
		t.Errorf("%d transactions (%v) held the turn and copied jobs, want 3 or more", n, err)
	}
}

// copied is a moment of a batch of the wide trace.
var copied = moment{"in the transaction, new jobs copied", "store.copied", 1}

// standWide has a consumer of the wide trace stand at a moment of a full batch;
// m counts the batches, of which the first is of one message. Others, if there are
// any, have a full batch, too, and wait for what the first one has.
func (w *site) standWide(m moment, others ...*process) *process {
	w.Helper()
	p := w.serve(m.freezes())
	all := append(others, p)
	for _, p := range all {
		w.awaitConsuming(p)
	}
	first := w.hold("LOCK TABLE SCHEMA_.ledger IN EXCLUSIVE MODE")
	var few []*message
	for i := range w.trace.messages {
		if m := &w.trace.messages[i]; isStatus(m) && len(few) < len(all) {
			few = append(few, m)
		}
	}
	w.publish(func(m *message) bool { return slices.Contains(few, m) })
	servicetest.Eventually(w, patience, "each consumer has a first batch", func() error {
		n, err := w.number("SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND wait_event_type = 'Lock'", w.role)
		if err == nil && n != len(all) {
			err = fmt.Errorf("%d of %d have", n, len(all))
		}
		return err
	})
	w.publish(func(m *message) bool { return isStatus(m) && !slices.Contains(few, m) })
	servicetest.Eventually(w, patience, "each consumer holds two full batches", func() error {
		n, err := w.waiting()
		if want := w.published - len(all)*widePrefetch; err == nil && n != want {
			err = fmt.Errorf("%d messages wait, want %d", n, want)
		}
		return err
	})
	release(first)
	p.awaitFrozen(w)
	switch m.point {
	case locked.point, copied.point, written.point:
		w.awaitTurn(true, 1)
	default:
		if n, err := w.number(w.names(fmt.Sprintf("SELECT count(*) FROM SCHEMA_.watched_batches WHERE runs >= %d AND turn", turnFrom))); err != nil || n == 0 {
			w.Fatalf("%d batches of many runs (%v) are applied %s", n, err, m.words)
		}
	}
	if len(others) > 0 && m.point != committed.point && m.point != afterCommit.point {
		w.awaitTurn(false, len(others))
	}
	w.publish(isSubmission)
	return p
}

// awaitConsuming returns when a consumer is ready for both queues.
func (w *site) awaitConsuming(p *process) {
	w.Helper()
	servicetest.Eventually(w, patience, "the consumer is ready for both queues", func() error {
		if strings.Count(p.stderr.String(), "msg=consuming") < 2 {
			return errors.New("it says: " + p.stderr.String())
		}
		return nil
	})
}

// awaitTurn returns when n of the site have the turn, or wait for it.
func (w *site) awaitTurn(granted bool, n int) {
	w.Helper()
	what := map[bool]string{false: "wait for the turn", true: "have the turn"}[granted]
	servicetest.Eventually(w, patience, fmt.Sprintf("%d transactions %s", n, what), func() error {
		got, err := w.number(w.names("SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE usename = $1 AND "+theTurn+" AND granted = $2"), w.role, granted)
		if err == nil && got < n {
			err = fmt.Errorf("%d %s", got, what)
		}
		return err
	})
}

// copyPassed is how much of what a consumer sends comes through once COPY is to
// stand still: more than the first piece of it, which has 64 KiB.
const copyPassed = 80 << 10

// standCopying has a consumer stand in the middle of COPY: the database has taken
// some rows, and the next are held on their way.
func (w *site) standCopying(others ...*process) *process {
	w.Helper()
	p := w.standWide(locked.at(2), others...)
	p.database.set(flow{limit: copyPassed, stalls: true}, toServer)
	p.signal(w, syscall.SIGCONT)
	servicetest.Eventually(w, patience, "COPY has taken some rows of many", func() error {
		n, err := w.number(w.names("SELECT coalesce(max(tuples_processed), 0) FROM pg_stat_progress_copy WHERE relid = 'SCHEMA_.jobs'::regclass"))
		if err == nil && n == 0 {
			err = errors.New("it has taken none")
		}
		return err
	})
	return p
}

// inCopy are the words for that moment.
const inCopy = "in the middle of COPY"

// wideScenarios are those of the wide trace.
func wideScenarios() (all []scenario) {
	add := func(who, what, when string, run func(*site)) *scenario {
		all = append(all, scenario{who: who, what: ofMany + what, when: when, settle: (*site).settleWide, run: func(w *site) {
			w.watched()
			run(w)
		}})
		return &all[len(all)-1]
	}
	killed := func(w *site, p *process) {
		kill(w, p)
		p.database.set(flow{}, toServer) // what was held on its way arrives, and then the end
		w.mended = time.Now()
	}
	moments := []moment{locked.at(2), copied, written.at(2), committed.at(2), afterCommit.at(2)}
	for _, m := range moments {
		add("consumer", "kill -9", m.words, func(w *site) {
			killed(w, w.standWide(m))
			w.serve()
		})
		what := "kill -9 beside another that waits for the turn"
		if m.point == committed.point || m.point == afterCommit.point {
			what = "kill -9 beside another"
		}
		add("consumer", what, m.words, func(w *site) { killed(w, w.standWide(m, w.serve())) }).quick = m == copied
		add("consumer", "frozen until another has its messages, then goes on", m.words, func(w *site) { w.supplant(w.standWide(m), false) })
	}
	add("consumer", "kill -9", inCopy, func(w *site) {
		killed(w, w.standCopying())
		w.serve()
	})
	add("consumer", "kill -9 beside another that waits for the turn", inCopy, func(w *site) { killed(w, w.standCopying(w.serve())) })
	add("consumer", "its machine vanishes with the turn, for which another waits", locked.words, func(w *site) {
		w.lose(w.standWide(locked.at(2), w.serve()))
		w.mended = time.Now()
	})
	// The database waits for the rest, and no timeout of its own counts.
	add("consumer", "its machine vanishes with the turn, for which another waits", inCopy, func(w *site) {
		w.lose(w.standCopying(w.serve()))
		w.mended = time.Now()
	})
	add("consumer", "four at once", "all waiting for the turn", fourAtOnce)

	for _, has := range []bool{false, true} {
		what := map[bool]string{false: "pg_terminate_backend of the one that waits for the turn", true: "pg_terminate_backend of the one that has the turn"}[has]
		add("database", what, locked.words, func(w *site) { w.terminateTurn(has) })
	}
	for _, f := range []fault{databaseCut, terminated, postgresDies} {
		add(f.who, f.what, inCopy, func(w *site) {
			inside := f
			inside.begin = func(w *site, p *process) {
				f.begin(w, p)
				p.database.set(flow{}, toServer)
			}
			w.inflict(inside, w.standCopying())
		}).server = f.server
	}
	for _, f := range []fault{databaseCut, answerLost} {
		for _, m := range []moment{copied, written.at(2)} {
			add(f.who, f.what, m.words, func(w *site) { w.inflict(f, w.standWide(m)) })
		}
	}
	add(brokerCut.who, brokerCut.what, copied.words, func(w *site) { w.inflict(brokerCut, w.standWide(copied)) })

	for _, rows := range []struct{ of, change string }{
		{"runs", "UPDATE SCHEMA_.workflows SET updated_at = updated_at"},
		{"jobs", "UPDATE SCHEMA_.jobs SET name = name"},
	} {
		for _, waits := range []bool{false, true} {
			what := "rows of " + rows.of + " are changed by somebody who takes no locks"
			if waits {
				what += ", and for whom it waits"
			}
			one := add("database", what, locked.words, func(w *site) { w.moved(rows.change, waits) })
			one.quick, one.settle = rows.of == "runs" && !waits, (*site).settleFoldedAgain
		}
	}
	return all
}

// fourAtOnce has four consumers wait for their turn, and take it.
func fourAtOnce(w *site) {
	for range 4 {
		w.awaitConsuming(w.serve())
	}
	turn := w.hold("LOCK TABLE SCHEMA_.apply_turns IN EXCLUSIVE MODE")
	w.publish(isStatus)
	w.awaitTurn(false, 4) // one of each, for submissions are still to come
	release(turn)
	w.publish(isSubmission)
	w.mended = time.Now()
	servicetest.Eventually(w, patience, "all is received", w.received)
	if n, err := w.number(w.names("SELECT count(*) FROM SCHEMA_.ledger WHERE queue = $1 AND applied > 0"), w.status); err != nil || n != 4 {
		w.Errorf("%d consumers (%v) have applied something, want 4", n, err)
	}
}

// terminateTurn has the database end the session that has the turn, or those that
// wait for it.
func (w *site) terminateTurn(has bool) {
	w.Helper()
	q := w.serve()
	p := w.standWide(locked.at(2), q)
	w.sql(fmt.Sprintf("SELECT pg_terminate_backend(pid, 5000) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE usename = 'ROLE_' AND %s AND granted = %t", theTurn, has))
	if !has {
		q.awaitSaid(w, paused)
	}
	p.signal(w, syscall.SIGCONT)
	if has {
		p.awaitSaid(w, paused)
	}
	w.mended = time.Now()
}

// moved changes rows that a consumer has loaded and is about to write, by somebody
// who takes no locks: before it writes them, or in a transaction that goes on
// until the consumer waits for it.
func (w *site) moved(change string, waits bool) {
	w.Helper()
	p := w.standWide(locked.at(3)) // of whose runs and jobs there are rows
	var other *pgx.Conn
	if waits {
		other = w.hold(change)
	} else {
		w.sql(change)
	}
	p.signal(w, syscall.SIGCONT)
	if waits {
		servicetest.Eventually(w, patience, "the consumer waits for the rows", func() error {
			n, err := w.number("SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND wait_event = 'transactionid'", w.role)
			if err == nil && n == 0 {
				err = errors.New("it does not")
			}
			return err
		})
		_, err := other.Exec(w.Context(), "COMMIT")
		w.must(err)
	}
	w.mended = time.Now()
}
