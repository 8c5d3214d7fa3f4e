-- +goose Up

-- The words of the numbers. The numbers are REANA's and never change.
-- +goose StatementBegin
CREATE FUNCTION run_status_word(smallint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT AS
$$ SELECT ('{created,running,finished,failed,deleted,stopped,queued,pending}'::text[])[$1 + 1] $$;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE FUNCTION job_status_word(smallint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT AS
$$ SELECT ('{created,queued,running,finished,failed,stopped}'::text[])[$1 + 1] $$;
-- +goose StatementEnd

-- The hot row of a run. Messages touch it all the time, so it is slim, its
-- pages have room for the next version beside the last (fillfactor), and no
-- column that changes with every message is indexed: updates stay HOT.
-- The times at_* are, for each status, the earliest at which a message of this
-- attempt claimed it; status is derived from them by the fold.
CREATE TABLE workflows (
    id               uuid        PRIMARY KEY,
    created_at       timestamptz NOT NULL,
    attempt          integer     NOT NULL DEFAULT 1 CHECK (attempt > 0),
    planned          integer     NOT NULL DEFAULT 0 CHECK (planned >= 0),
    jobs_created     integer     NOT NULL DEFAULT 0 CHECK (jobs_created >= 0),
    jobs_queued      integer     NOT NULL DEFAULT 0 CHECK (jobs_queued >= 0),
    log_bytes        bigint      NOT NULL DEFAULT 0 CHECK (log_bytes >= 0),
    -- What nearly every message changes stands together: the log of the database
    -- holds an update from the first byte that it changes to the last.
    jobs_running     integer     NOT NULL DEFAULT 0 CHECK (jobs_running >= 0),
    jobs_finished    integer     NOT NULL DEFAULT 0 CHECK (jobs_finished >= 0),
    revision         bigint      NOT NULL DEFAULT 1 CHECK (revision > 0),
    updated_at       timestamptz NOT NULL,
    last_event_at    timestamptz NOT NULL,
    jobs_failed      integer     NOT NULL DEFAULT 0 CHECK (jobs_failed >= 0),
    jobs_stopped     integer     NOT NULL DEFAULT 0 CHECK (jobs_stopped >= 0),
    jobs_cached      integer     NOT NULL DEFAULT 0 CHECK (jobs_cached BETWEEN 0 AND jobs_finished),
    run_number       integer     NOT NULL DEFAULT 0 CHECK (run_number >= 0),
    priority         smallint    NOT NULL DEFAULT 0,
    status           smallint    NOT NULL DEFAULT 0 CHECK (status BETWEEN 0 AND 7),
    at_created       timestamptz,
    at_running       timestamptz,
    at_finished      timestamptz,
    at_failed        timestamptz,
    at_deleted       timestamptz,
    at_stopped       timestamptz,
    at_queued        timestamptz,
    at_pending       timestamptz,
    specified_at     timestamptz,
    submitted_at     timestamptz,
    engine           text        COLLATE "C" NOT NULL DEFAULT '',
    name             text        COLLATE "C" NOT NULL DEFAULT '',
    owner            text        COLLATE "C" NOT NULL DEFAULT '',
    claims           jsonb,
    labels           jsonb       NOT NULL DEFAULT '{}',
    CONSTRAINT deleted_is_a_sink CHECK ((status = 4) = (at_deleted IS NOT NULL)),
    CONSTRAINT ended_has_a_time  CHECK (status NOT IN (2, 3, 5) OR coalesce(at_finished, at_failed, at_stopped) IS NOT NULL)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX workflows_newest ON workflows (created_at DESC, id DESC);
-- By the word, so that it serves those who ask the view for one.
CREATE INDEX workflows_status ON workflows (run_status_word(status), created_at DESC, id DESC);
CREATE INDEX workflows_owner  ON workflows (owner, created_at DESC, id DESC);
CREATE INDEX workflows_engine ON workflows (engine, created_at DESC, id DESC);
CREATE INDEX workflows_name   ON workflows (name, created_at DESC, id DESC);
CREATE UNIQUE INDEX workflows_run ON workflows (name, owner, run_number DESC) WHERE run_number > 0;
CREATE INDEX workflows_labels ON workflows USING gin (labels jsonb_path_ops);

-- Every name that a run has had, once. Searching the names for a part of one
-- reads this table, which is small as runs are repeated, and not that of the runs.
CREATE TABLE run_names (
    name text COLLATE "C" PRIMARY KEY
);

-- One row a job. There is no foreign key to workflows: the apply path holds the
-- lock of the run, and the check would cost as much as the insert.
CREATE TABLE jobs (
    workflow_id uuid     NOT NULL,
    queued_at   timestamptz,
    started_at  timestamptz,
    run_attempt integer  NOT NULL CHECK (run_attempt > 0),
    attempt     integer  NOT NULL CHECK (attempt > 0),
    finished_at timestamptz, -- beside the status, with which it changes
    exit_code   integer,
    status      smallint NOT NULL CHECK (status BETWEEN 0 AND 5),
    cached      boolean  NOT NULL,
    job_id      text     COLLATE "C" NOT NULL CHECK (job_id <> ''),
    name        text     NOT NULL DEFAULT '',
    path        text     NOT NULL DEFAULT '',
    command     text     NOT NULL DEFAULT '',
    diagnostics text     NOT NULL DEFAULT '',
    result      json,
    PRIMARY KEY (workflow_id, job_id),
    CONSTRAINT ended_has_a_time CHECK ((status >= 3) = (finished_at IS NOT NULL)),
    CONSTRAINT started_before_finished CHECK (started_at <= finished_at)
-- Below a half, as the batch that ends the jobs of a page writes longer rows
-- than there are.
) WITH (fillfactor = 45, autovacuum_vacuum_scale_factor = 0.05);

-- What the platform asked for. Cold: written once a run.
CREATE TABLE submissions (
    workflow_id    uuid        PRIMARY KEY,
    attempt        integer     NOT NULL,
    retry_count    integer     NOT NULL,
    event_time     timestamptz NOT NULL,
    priority       integer     NOT NULL,
    min_job_memory double precision NOT NULL,
    "user"         text        NOT NULL,
    workflow       text        NOT NULL,
    name           text        NOT NULL,
    engine         text        NOT NULL,
    labels         jsonb       NOT NULL,
    parameters     json,
    specification  json
);

-- The latest engine-specific document of a run. Large ones are written whole
-- by some engines with every message, hence a table of their own.
CREATE TABLE engine_documents (
    workflow_id uuid        PRIMARY KEY,
    attempt     integer     NOT NULL,
    event_time  timestamptz NOT NULL,
    document    json        NOT NULL
);

-- Logs, append-only. beyond marks what came when the run had used half of what
-- it may store: the oldest of it gives way to what comes later.
CREATE TABLE log_chunks (
    seq         bigint      GENERATED ALWAYS AS IDENTITY,
    workflow_id uuid        NOT NULL,
    event_time  timestamptz NOT NULL,
    attempt     integer     NOT NULL,
    beyond      boolean     NOT NULL DEFAULT false,
    job_id      text        COLLATE "C" NOT NULL DEFAULT '',
    body        text        NOT NULL,
    PRIMARY KEY (workflow_id, job_id, event_time, seq)
);
CREATE INDEX log_chunks_beyond ON log_chunks (workflow_id, seq) WHERE beyond;

-- What was cut from the middle of the logs of a run, by job.
CREATE TABLE log_cuts (
    workflow_id uuid        NOT NULL,
    job_id      text        COLLATE "C" NOT NULL,
    bytes       bigint      NOT NULL CHECK (bytes >= 0),
    chunks      bigint      NOT NULL CHECK (chunks > 0),
    first_at    timestamptz NOT NULL,
    first_seq   bigint      NOT NULL,
    last_seq    bigint      NOT NULL,
    PRIMARY KEY (workflow_id, job_id)
) WITH (fillfactor = 50);

-- The digests of deliveries without a message id, by the session with the broker
-- and the batch they came in, for as long as their acknowledgement may be lost:
-- by them such a message is recognised that is delivered again.
CREATE TABLE recent_deliveries (
    session uuid        NOT NULL,
    batch   bigint      NOT NULL,
    at      timestamptz NOT NULL DEFAULT now(),
    digests bigint[]    NOT NULL,
    PRIMARY KEY (session, batch)
) WITH (autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE recent_deliveries ALTER COLUMN digests SET STORAGE EXTERNAL; -- random, as below

-- For each attempt and status of a run, the earliest claim of it.
CREATE TABLE status_changes (
    workflow_id uuid        NOT NULL,
    event_time  timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL,
    attempt     integer     NOT NULL,
    status      smallint    NOT NULL CHECK (status BETWEEN 0 AND 7),
    PRIMARY KEY (workflow_id, attempt, status)
);

-- What people did with dead letters. Append-only, and kept: nothing here is ever
-- pruned. workflow is text: of a submission it may be a name.
CREATE TABLE dead_letter_actions (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at          timestamptz NOT NULL,
    body_bytes  bigint      NOT NULL CHECK (body_bytes >= 0),
    actor       text        NOT NULL,
    action      text        NOT NULL CHECK (action IN ('discard', 'edit', 'replay')),
    queue       text        NOT NULL,
    message_id  text        NOT NULL,
    reason      text        NOT NULL,
    pointer     text        NOT NULL,
    workflow    text        NOT NULL,
    body_sha256 text        NOT NULL CHECK (length(body_sha256) = 64)
);

-- The ids of messages that had their effect, and what it was.
CREATE TABLE seen_messages (
    id      uuid        PRIMARY KEY,
    seen_at timestamptz NOT NULL,
    outcome smallint    NOT NULL
);
CREATE INDEX seen_messages_age ON seen_messages USING brin (seen_at);

-- The same for the ids of a busy batch, which lie close together: sorted, 16
-- bytes each and one for the outcome.
CREATE TABLE seen_batches (
    low     uuid        NOT NULL,
    high    uuid        NOT NULL,
    seen_at timestamptz NOT NULL,
    ids     bytea       NOT NULL
);
ALTER TABLE seen_batches ALTER COLUMN ids SET STORAGE EXTERNAL; -- random bytes: trying to compress them is in vain
CREATE INDEX seen_batches_low ON seen_batches (low, high);
CREATE INDEX seen_batches_age ON seen_batches USING brin (seen_at);

-- Has no rows: batches of many runs lock it, to take turns.
CREATE TABLE apply_turns ();

-- What became of deliveries, one row a consumer, so that consumers do not wait
-- for one another. batch is the number of the last batch: a commit whose answer
-- was lost is not done twice.
CREATE TABLE ledger (
    queue      text        NOT NULL,
    consumer   uuid        NOT NULL,
    received   bigint      NOT NULL,
    applied    bigint      NOT NULL CHECK (applied >= 0),
    duplicate  bigint      NOT NULL CHECK (duplicate >= 0),
    stale      bigint      NOT NULL CHECK (stale >= 0),
    dead       bigint      NOT NULL CHECK (dead >= 0),
    batch      bigint      NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (queue, consumer),
    CONSTRAINT balanced CHECK (received = applied + duplicate + stale + dead)
) WITH (fillfactor = 50);

-- The views are the contract for those who read the database directly.
CREATE VIEW workflow_status AS
SELECT w.id AS workflow_id,
       w.name,
       nullif(w.run_number, 0) AS run_number,
       w.owner,
       w.engine,
       run_status_word(w.status) AS status,
       w.attempt,
       greatest(w.planned, c.created::bigint + c.queued + c.running + c.finished + c.failed + c.stopped) AS jobs_total,
       c.created  AS jobs_created,
       c.queued   AS jobs_queued,
       c.running  AS jobs_running,
       c.finished AS jobs_finished,
       c.failed   AS jobs_failed,
       c.stopped  AS jobs_stopped,
       c.cached   AS jobs_cached,
       w.priority,
       w.labels,
       w.created_at,
       w.submitted_at,
       CASE WHEN w.at_running IS NOT NULL THEN least(w.at_running, w.at_finished, w.at_failed, w.at_stopped) END AS started_at,
       least(w.at_finished, w.at_failed, w.at_stopped) AS finished_at,
       w.at_deleted AS deleted_at,
       w.last_event_at,
       w.updated_at,
       w.revision
FROM workflows w
CROSS JOIN LATERAL (
    SELECT w.jobs_created AS created, w.jobs_queued AS queued, w.jobs_running AS running, w.jobs_finished AS finished,
           w.jobs_failed AS failed, w.jobs_stopped AS stopped, w.jobs_cached AS cached
    WHERE w.claims IS NULL OR w.jobs_created + w.jobs_queued + w.jobs_running + w.jobs_finished + w.jobs_failed + w.jobs_stopped > 0
    UNION ALL
    SELECT 0, 0, coalesce((w.claims #>> '{running,n}')::integer, 0),
           greatest(coalesce((w.claims #>> '{finished,n}')::integer, 0), coalesce((w.claims #>> '{cached,n}')::integer, 0)),
           coalesce((w.claims #>> '{failed,n}')::integer, 0), 0, coalesce((w.claims #>> '{cached,n}')::integer, 0)
    WHERE w.claims IS NOT NULL AND w.jobs_created + w.jobs_queued + w.jobs_running + w.jobs_finished + w.jobs_failed + w.jobs_stopped = 0
) c;

COMMENT ON VIEW workflow_status IS 'One row a workflow: what it is doing now. Contract, version 1: columns are only ever added.';
COMMENT ON COLUMN workflow_status.workflow_id   IS 'The workflow''s UUID, as in the messages.';
COMMENT ON COLUMN workflow_status.name          IS 'Name from the submission; empty until one arrives.';
COMMENT ON COLUMN workflow_status.run_number    IS 'Which run of this owner and name it is, from 1 in the order of registration; null without a name.';
COMMENT ON COLUMN workflow_status.owner         IS 'User from the submission; empty until one arrives.';
COMMENT ON COLUMN workflow_status.engine        IS 'Engine that runs it, such as serial or cwl; empty if no message said.';
COMMENT ON COLUMN workflow_status.status        IS 'created, queued, pending, running, finished, failed, stopped or deleted.';
COMMENT ON COLUMN workflow_status.attempt       IS 'Attempt of the run, from 1; grows with explicit restarts. All else in the row speaks of this attempt.';
COMMENT ON COLUMN workflow_status.jobs_total    IS 'Jobs of the run: the largest total announced, or the known ones if more. May grow while it runs.';
COMMENT ON COLUMN workflow_status.jobs_created  IS 'Jobs that are known and have not been queued.';
COMMENT ON COLUMN workflow_status.jobs_queued   IS 'Jobs that wait for a machine.';
COMMENT ON COLUMN workflow_status.jobs_running  IS 'Jobs that run now (REANA''s running counts all that ever ran: see reana_workflow_status).';
COMMENT ON COLUMN workflow_status.jobs_finished IS 'Jobs that ended well, cached ones included.';
COMMENT ON COLUMN workflow_status.jobs_failed   IS 'Jobs that ended badly and were not repeated.';
COMMENT ON COLUMN workflow_status.jobs_stopped  IS 'Jobs that were ended by a person or with their run.';
COMMENT ON COLUMN workflow_status.jobs_cached   IS 'Those of jobs_finished whose results came from a cache.';
COMMENT ON COLUMN workflow_status.priority      IS 'Priority of the submission, 0 to 100; higher goes first.';
COMMENT ON COLUMN workflow_status.labels        IS 'Labels of the submission: a JSON object of strings.';
COMMENT ON COLUMN workflow_status.created_at    IS 'When the workflow was first heard of, by the consumer''s clock.';
COMMENT ON COLUMN workflow_status.submitted_at  IS 'Event time of the submission; null if none has arrived.';
COMMENT ON COLUMN workflow_status.started_at    IS 'Earliest event time at which this attempt ran; null if it has not.';
COMMENT ON COLUMN workflow_status.finished_at   IS 'Event time at which this attempt finished, failed or was stopped; null if it has not.';
COMMENT ON COLUMN workflow_status.deleted_at    IS 'Event time of the deletion; null if it was not deleted.';
COMMENT ON COLUMN workflow_status.last_event_at IS 'Latest event time of any message: the last sign of life.';
COMMENT ON COLUMN workflow_status.updated_at    IS 'When the row last changed, by the consumer''s clock.';
COMMENT ON COLUMN workflow_status.revision      IS 'Grows with every change of the row.';

CREATE VIEW job_status AS
SELECT j.workflow_id, j.job_id, j.name, j.path, job_status_word(j.status) AS status, j.cached, j.run_attempt, j.attempt,
       j.command, j.exit_code, j.queued_at, j.started_at, j.finished_at, j.diagnostics, j.result
FROM jobs j;

COMMENT ON VIEW job_status IS 'One row a job. Contract, version 1: columns are only ever added.';
COMMENT ON COLUMN job_status.workflow_id IS 'The workflow the job belongs to.';
COMMENT ON COLUMN job_status.job_id      IS 'The job''s id, unique within the workflow.';
COMMENT ON COLUMN job_status.name        IS 'Step, rule or process; empty if the engine did not say.';
COMMENT ON COLUMN job_status.path        IS 'Place in nested workflows, separated by slashes; empty at the top.';
COMMENT ON COLUMN job_status.status      IS 'created, queued, running, finished, failed or stopped.';
COMMENT ON COLUMN job_status.cached      IS 'Whether a finished job''s result came from a cache.';
COMMENT ON COLUMN job_status.run_attempt IS 'Attempt of the workflow that last spoke of the job. Counts of a workflow include only jobs of its current attempt.';
COMMENT ON COLUMN job_status.attempt     IS 'Repetition of the job by the engine, from 1.';
COMMENT ON COLUMN job_status.command     IS 'Command line; empty if the engine did not say.';
COMMENT ON COLUMN job_status.exit_code   IS 'Exit code of the job''s process; null if unknown.';
COMMENT ON COLUMN job_status.queued_at   IS 'Earliest event time at which the job was queued; null if it never was.';
COMMENT ON COLUMN job_status.started_at  IS 'Earliest event time at which the job ran; null if unknown.';
COMMENT ON COLUMN job_status.finished_at IS 'Event time at which the job ended; null while it has not.';
COMMENT ON COLUMN job_status.diagnostics IS 'Why the job failed, in words.';
COMMENT ON COLUMN job_status.result      IS 'JSON that the job gave back; null if none.';

CREATE VIEW workflow_logs AS
SELECT l.workflow_id, nullif(l.job_id, '') AS job_id, l.attempt, l.event_time, l.seq, l.body FROM log_chunks l;

COMMENT ON VIEW workflow_logs IS 'Pieces of log; order by event_time, seq. Contract, version 1: columns are only ever added.';
COMMENT ON COLUMN workflow_logs.workflow_id IS 'The workflow.';
COMMENT ON COLUMN workflow_logs.job_id      IS 'The job; null for the log of the run itself.';
COMMENT ON COLUMN workflow_logs.attempt     IS 'Attempt of the workflow.';
COMMENT ON COLUMN workflow_logs.event_time  IS 'When the engine said it.';
COMMENT ON COLUMN workflow_logs.seq         IS 'Unique; grows in the order of arrival.';
COMMENT ON COLUMN workflow_logs.body        IS 'The text, often several lines.';

CREATE VIEW workflow_log_cuts AS
SELECT c.workflow_id, nullif(c.job_id, '') AS job_id, c.bytes, c.chunks, c.first_at AS event_time, c.first_seq AS seq FROM log_cuts c;

COMMENT ON VIEW workflow_log_cuts IS 'What was left out of the middle of the logs of a run that wrote more than it may. Contract, version 1: columns are only ever added.';
COMMENT ON COLUMN workflow_log_cuts.workflow_id IS 'The workflow.';
COMMENT ON COLUMN workflow_log_cuts.job_id      IS 'The job; null for the log of the run itself.';
COMMENT ON COLUMN workflow_log_cuts.bytes       IS 'How many bytes of text.';
COMMENT ON COLUMN workflow_log_cuts.chunks      IS 'How many pieces.';
COMMENT ON COLUMN workflow_log_cuts.event_time  IS 'With seq, the place of the first of them in workflow_logs.';
COMMENT ON COLUMN workflow_log_cuts.seq         IS 'See event_time.';

CREATE VIEW status_history AS
SELECT h.workflow_id, h.attempt, run_status_word(h.status) AS status, h.event_time, h.recorded_at FROM status_changes h;

COMMENT ON VIEW status_history IS 'The earliest claim of each status by attempt; order by attempt, event_time. Contract, version 1: columns are only ever added.';
COMMENT ON COLUMN status_history.workflow_id IS 'The workflow.';
COMMENT ON COLUMN status_history.attempt     IS 'Attempt of the workflow.';
COMMENT ON COLUMN status_history.status      IS 'The status that a message claimed, whether or not it had an effect.';
COMMENT ON COLUMN status_history.event_time  IS 'The earliest event time of such a message.';
COMMENT ON COLUMN status_history.recorded_at IS 'When the database first learned of it.';

CREATE VIEW ledger_balance AS
SELECT queue, sum(received)::bigint AS received, sum(applied)::bigint AS applied, sum(duplicate)::bigint AS duplicate,
       sum(stale)::bigint AS stale, sum(dead)::bigint AS dead,
       sum(received) = sum(applied) + sum(duplicate) + sum(stale) + sum(dead) AS balanced
FROM ledger GROUP BY queue;

COMMENT ON VIEW ledger_balance IS 'What became of every delivery of a queue. Contract, version 1: columns are only ever added.';
COMMENT ON COLUMN ledger_balance.queue     IS 'Name of the queue.';
COMMENT ON COLUMN ledger_balance.received  IS 'Deliveries that were dealt with.';
COMMENT ON COLUMN ledger_balance.applied   IS 'Deliveries that changed what is known.';
COMMENT ON COLUMN ledger_balance.duplicate IS 'Deliveries of messages that had been dealt with before.';
COMMENT ON COLUMN ledger_balance.stale     IS 'Valid deliveries that said nothing new.';
COMMENT ON COLUMN ledger_balance.dead      IS 'Deliveries put into the dead-letter queue.';
COMMENT ON COLUMN ledger_balance.balanced  IS 'Whether received is the sum of the other four.';

CREATE VIEW dead_letter_audit AS
SELECT a.id, a.at, a.actor, a.action, a.queue, nullif(a.message_id, '') AS message_id, a.reason, nullif(a.pointer, '') AS pointer,
       nullif(a.workflow, '') AS workflow_id, a.body_sha256, a.body_bytes
FROM dead_letter_actions a;

COMMENT ON VIEW dead_letter_audit IS 'What people did with dead letters; kept for good. Contract, version 1: columns are only ever added.';
COMMENT ON COLUMN dead_letter_audit.id          IS 'Unique; grows in the order of recording.';
COMMENT ON COLUMN dead_letter_audit.at          IS 'When, by the clock of whoever did it.';
COMMENT ON COLUMN dead_letter_audit.actor       IS 'Who: user@host of the operating system.';
COMMENT ON COLUMN dead_letter_audit.action      IS 'discard, edit or replay. Of a discard it is recorded before, of the others after it was done.';
COMMENT ON COLUMN dead_letter_audit.queue       IS 'The queue the message came by.';
COMMENT ON COLUMN dead_letter_audit.message_id  IS 'Message id of the letter; null if it had none.';
COMMENT ON COLUMN dead_letter_audit.reason      IS 'Why it was dead, such as schema.';
COMMENT ON COLUMN dead_letter_audit.pointer     IS 'JSON pointer of the value to blame; null if none was.';
COMMENT ON COLUMN dead_letter_audit.workflow_id IS 'What the body names as its workflow: an id or, in a submission, perhaps a name; null if it cannot be read.';
COMMENT ON COLUMN dead_letter_audit.body_sha256 IS 'SHA-256 of the body, before any edit, in hexadecimal.';
COMMENT ON COLUMN dead_letter_audit.body_bytes  IS 'Size of the body, before any edit.';

-- REANA's shape, for readers of workflow.job_progress: running counts every job
-- that ever ran, and each section lists its job ids.
CREATE VIEW reana_workflow_status AS
SELECT s.workflow_id AS id_, s.name, s.status, s.owner AS owner_id, s.engine AS type_,
       s.started_at AT TIME ZONE 'UTC' AS run_started_at,
       CASE WHEN s.status <> 'stopped' THEN s.finished_at AT TIME ZONE 'UTC' END AS run_finished_at,
       CASE WHEN s.status = 'stopped' THEN s.finished_at AT TIME ZONE 'UTC' END AS run_stopped_at,
       json_build_object(
           'total',    json_build_object('total', s.jobs_total, 'job_ids', '[]'::json),
           'running',  json_build_object('total', coalesce(j.ran, s.jobs_running::bigint + s.jobs_finished + s.jobs_failed), 'job_ids', coalesce(j.ran_ids, '[]'::json)),
           'finished', json_build_object('total', s.jobs_finished, 'job_ids', coalesce(j.finished_ids, '[]'::json)),
           'failed',   json_build_object('total', s.jobs_failed, 'job_ids', coalesce(j.failed_ids, '[]'::json)),
           'cached',   json_build_object('total', s.jobs_cached, 'job_ids', coalesce(j.cached_ids, '[]'::json))) AS job_progress,
       d.document AS engine_specific
FROM workflow_status s
LEFT JOIN engine_documents d ON d.workflow_id = s.workflow_id AND d.attempt = s.attempt
LEFT JOIN LATERAL (
    SELECT count(*) FILTER (WHERE NOT cached AND (started_at IS NOT NULL OR status >= 2)) AS ran,
           json_agg(job_id ORDER BY job_id) FILTER (WHERE NOT cached AND (started_at IS NOT NULL OR status >= 2)) AS ran_ids,
           json_agg(job_id ORDER BY job_id) FILTER (WHERE status = 3) AS finished_ids,
           json_agg(job_id ORDER BY job_id) FILTER (WHERE status = 4) AS failed_ids,
           json_agg(job_id ORDER BY job_id) FILTER (WHERE status = 3 AND cached) AS cached_ids
    FROM jobs WHERE workflow_id = s.workflow_id AND run_attempt = s.attempt HAVING count(*) > 0
) j ON true;

COMMENT ON VIEW reana_workflow_status IS 'Runs in the shape of REANA''s workflow table. Contract, version 1: columns are only ever added.';
COMMENT ON COLUMN reana_workflow_status.id_             IS 'The workflow''s UUID.';
COMMENT ON COLUMN reana_workflow_status.name            IS 'Name from the submission.';
COMMENT ON COLUMN reana_workflow_status.status          IS 'REANA''s word for the status.';
COMMENT ON COLUMN reana_workflow_status.owner_id        IS 'User from the submission.';
COMMENT ON COLUMN reana_workflow_status.type_           IS 'Engine.';
COMMENT ON COLUMN reana_workflow_status.run_started_at  IS 'UTC, without time zone, as REANA has it.';
COMMENT ON COLUMN reana_workflow_status.run_finished_at IS 'UTC; null for stopped runs (REANA sets it for those too).';
COMMENT ON COLUMN reana_workflow_status.run_stopped_at  IS 'UTC; only of stopped runs.';
COMMENT ON COLUMN reana_workflow_status.job_progress    IS 'Sections total, running (every job that ever ran), finished, failed, cached, each {total, job_ids}.';
COMMENT ON COLUMN reana_workflow_status.engine_specific IS 'Latest engine-specific document of this attempt.';

COMMENT ON TABLE workflows        IS 'Internal. Read workflow_status.';
COMMENT ON TABLE run_names        IS 'Internal. Every name of a run, to be searched.';
COMMENT ON TABLE jobs             IS 'Internal. Read job_status.';
COMMENT ON TABLE submissions      IS 'Internal. The submission that registered each workflow.';
COMMENT ON TABLE engine_documents IS 'Internal. The latest engine-specific document of each workflow.';
COMMENT ON TABLE log_chunks       IS 'Internal. Read workflow_logs.';
COMMENT ON TABLE log_cuts         IS 'Internal. Read workflow_log_cuts.';
COMMENT ON TABLE recent_deliveries IS 'Internal. Digests of deliveries without a message id.';
COMMENT ON TABLE status_changes   IS 'Internal. Read status_history.';
COMMENT ON TABLE seen_messages    IS 'Internal. Message ids that had their effect (0 none, 1 applied, 2 duplicate, 3 stale).';
COMMENT ON TABLE seen_batches     IS 'Internal. The same for the ids of large batches, packed.';
COMMENT ON TABLE dead_letter_actions IS 'Internal. Read dead_letter_audit.';
COMMENT ON TABLE ledger           IS 'Internal. Read ledger_balance.';
