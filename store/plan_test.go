package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"waymark/workflow"
)

// grows names the tables that grow with all that Waymark is told. The others stay
// small beside them.
var grows = []string{"workflows", "jobs", "submissions", "engine_documents", "log_chunks", "log_cuts", "status_changes", "seen_messages", "seen_batches"}

// filled is the id of the run number n, from 1, that fill makes.
func filled(n int) (id uuid.UUID) {
	id[0], id[1], id[6], id[8] = byte(n>>8), byte(n), 0x40, 0x80
	return id
}

// filledJob is the id of the job number j, from 1, of the run number n.
func filledJob(n, j int) string { return fmt.Sprintf("%06d", (n*4271+j*7919)%100003) }

// fill makes some thousand runs of a few owners and names, of which nearly all have
// ended and the last has many jobs and a long log, and has Postgres look at them.
func fill(t *testing.T, db *DB) {
	t.Helper()
	for _, statement := range []string{
		`TRUNCATE ` + strings.Join(grows, ", ") + `, run_names`,
		`CREATE FUNCTION id(n integer) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$ SELECT (lpad(to_hex(n), 4, '0') || '000000004000800000000000' || '0000')::uuid $$`,
		`INSERT INTO workflows (id, created_at, updated_at, last_event_at, submitted_at, at_running, at_finished, status, attempt, name, owner, engine, run_number, labels)
		 SELECT id(n), at, at, at, at, at, CASE WHEN n % 100 > 0 THEN at END, CASE WHEN n % 100 > 0 THEN 2 ELSE 1 END, 1 + n % 2,
		        'name-' || n % 150, 'owner-' || n % 20, 'engine-' || n % 30, 1 + n, jsonb_build_object('site', 'site-' || n % 50)
		 FROM generate_series(1, 4000) AS n, LATERAL (SELECT timestamptz '2026-01-01Z' + n * interval '1 minute' AS at) AS t`,
		`INSERT INTO run_names SELECT DISTINCT name FROM workflows`,
		`INSERT INTO submissions (workflow_id, attempt, retry_count, event_time, priority, min_job_memory, "user", workflow, name, engine, labels)
		 SELECT id, 1, 0, created_at, 0, 0, owner, id::text, name, engine, labels FROM workflows`,
		`INSERT INTO engine_documents SELECT id, attempt, created_at, '{}' FROM workflows`,
		`INSERT INTO status_changes SELECT id, created_at, created_at, 1, s FROM workflows, generate_series(0, 2) AS s`,
		`INSERT INTO jobs (workflow_id, job_id, run_attempt, attempt, status, cached, finished_at, name)
		 SELECT id(n), lpad(((n * 4271 + j * 7919) % 100003)::text, 6, '0'), 1 + j % 2, 1, 3 + j % 2, false, now(), 'step-' || j
		 FROM generate_series(1, 4000) AS n, generate_series(1, CASE WHEN n < 4000 THEN 8 ELSE 2000 END) AS j`,
		`INSERT INTO log_chunks (workflow_id, event_time, attempt, beyond, job_id, body)
		 SELECT id, created_at, attempt, false, CASE WHEN j > 0 THEN 'job-' || j ELSE '' END, 'a line' FROM workflows, generate_series(0, 3) AS j`,
		`INSERT INTO log_chunks (workflow_id, event_time, attempt, beyond, job_id, body)
		 SELECT id(4000), timestamptz '2026-01-01Z' + n * interval '1 second', 1 + n % 2, true, 'job-1', 'one of many lines' FROM generate_series(1, 3000) AS n`,
		`INSERT INTO log_cuts SELECT id, 'job-1', 1, 1, created_at, 1, 1 FROM workflows`,
		`INSERT INTO seen_messages SELECT gen_random_uuid(), now(), 1 FROM generate_series(1, 10000)`,
		`INSERT INTO seen_batches SELECT min(id::text)::uuid, max(id::text)::uuid, now(), '' FROM seen_messages GROUP BY left(id::text, 3)`,
		`ANALYZE ` + strings.Join(grows, ", ") + `, run_names`,
	} {
		if _, err := db.reads.ExecContext(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

// statement is one that the store has sent.
type statement struct {
	sql  string
	args []any
}

// recorder keeps the statements that are sent by the connections it traces.
type recorder struct {
	mu   sync.Mutex
	sent []statement
}

func (r *recorder) add(sql string, args []any) {
	for _, verb := range []string{"SELECT", "INSERT", "UPDATE", "DELETE", "WITH"} {
		if strings.HasPrefix(strings.TrimSpace(sql), verb) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.sent = append(r.sent, statement{sql, args})
		}
	}
}

func (r *recorder) take() (sent []statement) {
	r.mu.Lock()
	defer r.mu.Unlock()
	sent, r.sent = r.sent, nil
	return sent
}

func (r *recorder) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	r.add(q.SQL, q.Args)
	return ctx
}
func (r *recorder) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
func (r *recorder) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}
func (r *recorder) TraceBatchQuery(_ context.Context, _ *pgx.Conn, q pgx.TraceBatchQueryData) {
	r.add(q.SQL, q.Args)
}
func (r *recorder) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

// traced replaces pool by one like it whose connections r traces.
func (r *recorder) traced(t *testing.T, pool *sql.DB) *sql.DB {
	t.Helper()
	var config *pgx.ConnConfig
	if err := withPgx(t.Context(), pool, func(conn *pgx.Conn) error { config = conn.Config(); return nil }); err != nil {
		t.Fatal(err)
	}
	config.Tracer = r
	t.Cleanup(func() { pool.Close() })
	return stdlib.OpenDB(*config)
}

// node is a part of a plan as EXPLAIN has it.
type node struct {
	Type      string `json:"Node Type"`
	Table     string `json:"Relation Name"`
	Index     string `json:"Index Name"`
	IndexCond string `json:"Index Cond"`
	TIDCond   string `json:"TID Cond"`
	Filter    string
	Plans     []node
	// What was read, of each loop.
	Rows     float64 `json:"Actual Rows"`
	Filtered float64 `json:"Rows Removed by Filter"`
	Loops    float64 `json:"Actual Loops"`
}

// explain asks for the plan that is kept for a statement, whatever its arguments.
func explain(t *testing.T, pool *sql.DB, s statement) (n node) {
	t.Helper()
	err := withPgx(t.Context(), pool, func(conn *pgx.Conn) error {
		prepared, err := conn.Prepare(t.Context(), "explained", s.sql)
		if err != nil {
			return err
		}
		defer conn.Deallocate(context.WithoutCancel(t.Context()), "explained")
		execute := `EXECUTE explained`
		if n := len(prepared.ParamOIDs); n > 0 {
			execute += `(` + strings.TrimSuffix(strings.Repeat("NULL, ", n), ", ") + `)`
		}
		return n.scan(conn.QueryRow(t.Context(), `EXPLAIN (FORMAT json) `+execute, pgx.QueryExecModeSimpleProtocol))
	})
	if err != nil {
		t.Fatalf("explaining %s: %v", s.sql, err)
	}
	return n
}

// analyze reads what a statement reads, and says how.
func analyze(t *testing.T, pool *sql.DB, s statement) (n node) {
	t.Helper()
	err := withPgx(t.Context(), pool, func(conn *pgx.Conn) error {
		return n.scan(conn.QueryRow(t.Context(), `EXPLAIN (FORMAT json, ANALYZE, TIMING off) `+s.sql, s.args...))
	})
	if err != nil {
		t.Fatalf("explaining %s: %v", s.sql, err)
	}
	return n
}

func (n *node) scan(row pgx.Row) error {
	var text []byte
	if err := row.Scan(&text); err != nil {
		return err
	}
	var answer []struct{ Plan node }
	if err := json.Unmarshal(text, &answer); err != nil {
		return err
	}
	*n = answer[0].Plan
	return nil
}

// each calls do with each node that reads a table, and the table.
func (n *node) each(do func(*node, string)) { n.eachOf(n.Table, do) }

func (n *node) eachOf(table string, do func(*node, string)) {
	if n.Table != "" {
		table = n.Table
	}
	if n.Type != "ModifyTable" && (n.Table != "" || n.Index != "") {
		do(n, table)
	}
	for i := range n.Plans {
		n.Plans[i].eachOf(table, do) // the index of a bitmap is below its table
	}
}

var (
	compared = regexp.MustCompile(`\((\w+) (?:[=<>]|@>)|ROW\((\w+), (\w+)\) [<>]`)
	// TIDs are to be compared again where a row was waited for: Postgres does so by
	// itself only since its releases of November 2025.
	comparedAgain = regexp.MustCompile(`NOT \(ctid IS DISTINCT FROM `)
)

// ways are the ways in which n finds the rows of the tables that grow: by the
// columns of an index, by their place, or by reading all there is.
func (n *node) ways() (ways []string) {
	n.each(func(n *node, table string) {
		if !slices.Contains(grows, table) {
			return
		}
		var columns []string
		for _, m := range compared.FindAllStringSubmatch(n.IndexCond, -1) {
			for _, column := range m[1:] {
				if column != "" && !slices.Contains(columns, column) {
					columns = append(columns, column)
				}
			}
		}
		switch {
		case n.Index != "" && n.IndexCond != "":
			ways = append(ways, fmt.Sprintf("%s(%s)", n.Index, strings.Join(columns, ", ")))
		case n.Index != "":
			ways = append(ways, "all of "+n.Index)
		case n.TIDCond != "" && comparedAgain.MatchString(n.Filter):
			ways = append(ways, "place in "+table+", compared again")
		case n.TIDCond != "":
			ways = append(ways, "place in "+table)
		case n.Type != "Bitmap Heap Scan":
			ways = append(ways, n.Type+" on "+table)
		}
	})
	slices.Sort(ways)
	return slices.Compact(ways)
}

// read is how many rows n has looked at in all tables.
func (n *node) read() (rows float64) {
	n.each(func(n *node, _ string) { rows += (n.Rows + n.Filtered) * n.Loops })
	return rows
}

// The statements of a batch find their rows by a whole key, or by the place where
// they were found, however large the tables are; and so do plans that were made
// when there was little in them and are kept.
func TestApplyFindsItsRows(t *testing.T) {
	t.Parallel()
	db := migrated(t)
	db.cfg.MaxRunLogBytes = 2000
	var r recorder
	db.applies = r.traced(t, db.applies)

	sessions, number := []uuid.UUID{uuid.New(), uuid.New()}, int64(0)
	apply := func(session int, settled int64, deliveries ...workflow.Delivery) {
		t.Helper()
		number++
		b := &workflow.Batch{Queue: "q", Consumer: sessions[0], Number: number, Session: sessions[session], Settled: settled, Deliveries: deliveries}
		if _, err := db.Apply(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	say := func(messageID string, run uuid.UUID, job workflow.JobStatus) workflow.Delivery {
		return workflow.Delivery{MessageID: messageID, Status: &workflow.StatusMessage{WorkflowID: run, Status: workflow.StatusRunning, EventTime: time.Unix(1, 0),
			Logs: strings.Repeat("x", 1500), Jobs: []workflow.JobReport{{ID: "job", Status: job}}, Progress: workflow.Progress{EngineSpecific: []byte(`{}`)}}}
	}
	submit := func(run uuid.UUID) workflow.Delivery {
		return workflow.Delivery{MessageID: uuid.NewString(), Submission: &workflow.Submission{User: "ada", Name: "fit", Workflow: run.String(), EventTime: time.Unix(1, 0)}}
	}
	one, other := uuid.New(), uuid.New()
	apply(0, 0, submit(one), say(uuid.NewString(), one, workflow.JobRunning), say(uuid.NewString(), other, workflow.JobRunning))
	apply(0, 0, submit(other), say(uuid.NewString(), one, workflow.JobFinished))
	bare := say("", one, workflow.JobFinished)
	bare.Digest = uuid.New()
	apply(0, 0, bare)
	bare.Redelivered = true
	apply(1, 0, bare)
	apply(1, number, say("", one, workflow.JobFinished))
	var many []workflow.Delivery
	for range turnFrom {
		many = append(many, say(uuid.Must(uuid.NewV7()).String(), uuid.New(), workflow.JobRunning))
	}
	apply(0, 0, many...)

	sent := make(map[string]statement)
	for _, s := range r.take() {
		sent[s.sql] = s
	}
	want := map[string][]string{
		sqlLoadRuns:         {"workflows_pkey(id)"},
		sqlLoadJobs:         {"jobs_pkey(workflow_id, job_id)"},
		sqlLoadSubmissions:  {"submissions_pkey(workflow_id)"},
		sqlFindSeen:         {"seen_messages_pkey(id)"},
		sqlFindPacked:       {"seen_batches_low(low, high)"},
		sqlInsertRuns:       {"workflows_run(name, owner)"},
		sqlUpdateRuns:       {"place in workflows, compared again"},
		sqlUpdateJobs:       {"place in jobs, compared again"},
		sqlNumberRuns:       {"workflows_pkey(id)", "workflows_run(name, owner)"},
		sqlDescribeRun:      {"workflows_pkey(id)"},
		sqlCutLogs:          {"log_chunks_beyond(workflow_id, seq)", "log_cuts_pkey(workflow_id)", "place in log_chunks", "workflows_pkey(id)"},
		sqlInsertJobs:       nil,
		sqlRemember:         nil,
		sqlPack:             nil,
		sqlUpsertSubmission: nil,
		sqlUpsertDocument:   nil,
		sqlFindRecent:       nil,
		sqlTakeRecent:       nil,
		sqlForgetSettled:    nil,
		sqlLeftSettled:      nil,
	}
	for sql := range want {
		if _, ok := sent[sql]; !ok {
			t.Errorf("no batch sent this statement:%s", sql)
		}
	}
	look := func(when string) {
		for _, s := range sent {
			n := explain(t, db.applies, s)
			if d := cmp.Diff(want[s.sql], n.ways(), cmpopts.EquateEmpty()); d != "" {
				t.Errorf("with %s tables the ways to the rows are (-want, +got):\n%sof%s", when, d, s.sql)
			}
		}
	}
	look("small")
	fill(t, db)
	look("filled")
}

// The places of a page of a log, each of its texts, and the marks.
const (
	logTexts = ", log_chunks_pkey(workflow_id, job_id, event_time, seq), log_cuts_pkey(workflow_id"
	logOfOne = "log_chunks_pkey(workflow_id, job_id)" + logTexts + ", job_id)"
	logOfAll = "log_chunks_pkey(workflow_id)" + logTexts + ")"
	logFrom  = "log_chunks_pkey(workflow_id, job_id, event_time, seq), log_cuts_pkey(workflow_id, job_id)"
)

// What people ask for is found by an index that has it, or stands in the order of
// the list where most of what it holds is wanted: what is read does not grow with
// the tables.
func TestQueriesFindTheirIndex(t *testing.T) {
	t.Parallel()
	db := migrated(t)
	fill(t, db)
	var r recorder
	db.reads = r.traced(t, db.reads)
	db.gorm.ConnPool, db.gorm.Statement.ConnPool = db.reads, db.reads

	minute := func(n int) time.Time { return time.Date(2026, 1, 1, 0, n, 0, 0, time.UTC) }
	large, beyond := filled(4000), cursor(workflowCursor{minute(2000), filled(2000)})
	list := func(f workflow.Filter) func() error {
		return func() error { _, err := db.Workflows(t.Context(), f); return err }
	}
	jobs := func(f workflow.JobFilter) func() error {
		return func() error { _, err := db.Jobs(t.Context(), large, f); return err }
	}
	logs := func(f workflow.LogFilter) func() error {
		return func() error { _, err := db.Logs(t.Context(), large, f); return err }
	}
	find := func(ref, owner string) func() error {
		return func() error {
			if _, err := db.Find(t.Context(), ref, owner); !errors.Is(err, workflow.ErrAmbiguous) {
				return err
			}
			return nil
		}
	}
	findJob := func(ref string) func() error {
		return func() error { _, err := db.FindJob(t.Context(), large, ref); return err }
	}
	running, active := []workflow.Status{workflow.StatusRunning}, []workflow.Status{workflow.StatusCreated, workflow.StatusQueued, workflow.StatusPending, workflow.StatusRunning}
	const wholeRun = 10_000 // rows, as its nature is to read all of one run
	for name, test := range map[string]struct {
		ask  func() error
		want string // nothing if any index will do
		most float64
	}{
		"runs":                         {list(workflow.Filter{}), "all of workflows_newest", 0},
		"runs, a later page":           {list(workflow.Filter{Cursor: beyond}), "workflows_newest(created_at, id)", 0},
		"runs since":                   {list(workflow.Filter{Since: minute(3990)}), "workflows_newest(created_at)", 0},
		"runs until":                   {list(workflow.Filter{Until: minute(10)}), "workflows_newest(created_at)", 0},
		"runs that run":                {list(workflow.Filter{Statuses: running}), "workflows_status()", 0},
		"runs that are active":         {list(workflow.Filter{Statuses: active}), "workflows_status()", 0},
		"runs that run, a later page":  {list(workflow.Filter{Statuses: running, Cursor: beyond}), "workflows_status(created_at, id)", 0},
		"runs that finished, as most":  {list(workflow.Filter{Statuses: []workflow.Status{workflow.StatusFinished}}), "all of workflows_newest", 0},
		"runs that are stale":          {list(workflow.Filter{Statuses: active, QuietSince: minute(10)}), "workflows_status()", 0},
		"runs of an owner":             {list(workflow.Filter{Owner: "owner-3"}), "workflows_owner(owner)", 0},
		"runs of nobody":               {list(workflow.Filter{Owner: "nobody"}), "workflows_owner(owner)", 0},
		"runs of an owner, later page": {list(workflow.Filter{Owner: "owner-3", Cursor: beyond}), "workflows_owner(owner, created_at, id)", 0},
		"runs of an owner that run":    {list(workflow.Filter{Owner: "owner-3", Statuses: running}), "", 0},
		"runs of an engine":            {list(workflow.Filter{Engine: "engine-3"}), "workflows_engine(engine)", 0},
		"runs of a name":               {list(workflow.Filter{Name: "name-3"}), "workflows_name(name)", 0},
		"runs of no name there is":     {list(workflow.Filter{Name: "none"}), "workflows_name(name)", 0},
		"runs by prefix of many":       {list(workflow.Filter{Name: "name-*"}), "all of workflows_newest", 0},
		"runs by prefix of few":        {list(workflow.Filter{Name: "name-33*"}), "workflows_name(name)", 0},
		"runs by part of a name":       {list(workflow.Filter{Name: "*e-33*"}), "workflows_name(name)", 0},
		"runs by the end of a name":    {list(workflow.Filter{Name: "*-33"}), "workflows_name(name)", 0},
		"runs of a label":              {list(workflow.Filter{Labels: map[string]string{"site": "site-3"}}), "workflows_labels(labels)", 0},
		"runs by everything": {list(workflow.Filter{Statuses: active, Owner: "owner-3", Engine: "engine-3", Name: "name-3*", Labels: map[string]string{"site": "site-3"},
			Since: minute(1), Until: minute(3000), QuietSince: minute(10)}), "", 0},
		"runs that have not ended": {func() error { _, err := db.Active(t.Context()); return err }, "workflows_status()", 0},
		"runs by id":               {func() error { _, err := db.Summaries(t.Context(), []uuid.UUID{large, filled(7)}); return err }, "workflows_pkey(id)", 0},
		"a run":                    {func() error { _, err := db.Workflow(t.Context(), large); return err }, "engine_documents_pkey(workflow_id), submissions_pkey(workflow_id), workflows_pkey(id)", 0},
		"a run's history":          {func() error { _, err := db.History(t.Context(), large); return err }, "status_changes_pkey(workflow_id)", 0},
		"a run by its id":          {find(large.String(), ""), "workflows_pkey(id)", 0},
		"a run by some of it":      {find("0fa00000-00", ""), "workflows_pkey(id), workflows_run(name, owner)", 0},
		"a run by name":            {find("name-3", ""), "workflows_run(name, owner)", 0},
		"a run by owner's name":    {find("name-3", "owner-3"), "workflows_run(name, owner)", 0},
		"a run by number":          {find("name-3#154", ""), "workflows_run(name, owner), workflows_run(name, run_number)", 0},
		"messages by id": {func() error {
			_, err := db.Outcomes(t.Context(), []string{"an id", uuid.Must(uuid.NewV7()).String()})
			return err
		}, "seen_batches_low(low, high), seen_messages_pkey(id)", 0},
		"jobs":                      {jobs(workflow.JobFilter{}), "jobs_pkey(workflow_id)", 0},
		"jobs, a later page":        {jobs(workflow.JobFilter{Cursor: cursor(filledJob(4000, 1700))}), "jobs_pkey(workflow_id, job_id)", 0},
		"jobs by id":                {jobs(workflow.JobFilter{IDs: []string{filledJob(4000, 3), filledJob(4000, 1700)}}), "jobs_pkey(workflow_id, job_id)", 0},
		"jobs of an attempt":        {jobs(workflow.JobFilter{RunAttempt: 1}), "jobs_pkey(workflow_id)", 0},
		"jobs that failed":          {jobs(workflow.JobFilter{Statuses: []workflow.JobStatus{workflow.JobFailed}, RunAttempt: 1}), "jobs_pkey(workflow_id)", wholeRun},
		"a job by id":               {findJob(filledJob(4000, 1700)), "jobs_pkey(workflow_id, job_id)", 0},
		"a job by name":             {findJob("step-1700"), "jobs_pkey(workflow_id), jobs_pkey(workflow_id, job_id)", wholeRun},
		"a log":                     {logs(workflow.LogFilter{}), logOfOne, 0},
		"the log of a job":          {logs(workflow.LogFilter{JobID: "job-1", Limit: 100}), logOfOne, 0},
		"its tail":                  {logs(workflow.LogFilter{JobID: "job-1", Tail: 10}), logOfOne, 0},
		"its tail of an attempt":    {logs(workflow.LogFilter{JobID: "job-1", RunAttempt: 1, Tail: 10}), logOfOne, 0},
		"its later pages":           {logs(workflow.LogFilter{JobID: "job-1", Limit: 100, Cursor: LogCursor(workflow.LogEntry{Seq: 1, LogChunk: workflow.LogChunk{At: minute(20)}})}), logFrom, 0},
		"the log of all jobs":       {logs(workflow.LogFilter{AllJobs: true}), logOfAll, wholeRun},
		"all jobs' log, an attempt": {logs(workflow.LogFilter{AllJobs: true, RunAttempt: 2, Tail: 10}), logOfAll, wholeRun},
		"by the view": {func() error {
			_, err := db.reads.ExecContext(t.Context(), `SELECT name FROM workflow_status WHERE status = 'running' ORDER BY created_at DESC LIMIT 20`)
			return err
		}, "workflows_status()", 0},
	} {
		r.take()
		if err := test.ask(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var ways []string
		for _, s := range r.take() {
			n := analyze(t, db.reads, s)
			if most := max(test.most, 500); n.read() > most {
				t.Errorf("%s: %.0f rows were read, want %.0f at most, by\n%s", name, n.read(), most, s.sql)
			}
			ways = append(ways, n.ways()...)
		}
		slices.Sort(ways)
		if got := strings.Join(slices.Compact(ways), ", "); test.want != "" && got != test.want {
			t.Errorf("%s: found by %s, want %s", name, got, test.want)
		} else if strings.Contains(got, "Seq Scan") {
			t.Errorf("%s: a table is read whole: %s", name, got)
		}
	}
}
