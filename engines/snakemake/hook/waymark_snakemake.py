"""Reports what Snakemake does: one JSON object a line to the socket in WAYMARK_SOCKET.

It takes two things from Snakemake: what its logger is told, whatever becomes of it
(--quiet, the user's own handlers and plugins), and what its scheduler decides, as the
logger alone does not tell all. Neither is needed by the other, so where a version of
Snakemake looks different the rest remains.

Messages have the fields that Snakemake gives them. Those of ours:

  {"waymark": 1, "engine": "snakemake", "version", "pid"}   always the first
  level "x_run"       a workflow is about to run its jobs: run, version, dryrun, snakefile, workdir, start
                      (where Snakemake began), base (where the command did, empty if it is this Snakemake), depth (above 1 for a subworkflow)
  level "x_dag"       its jobs, at first and when there are more: nodes, edges, total
  level "x_finished"  a job has finished, with its outputs: jobid, name
  level "x_failed"    a job has failed: jobid, name, final (it is not tried again), attempt, logs,
                      stopping (Snakemake was told to end)
  level "x_error"     why a job fails: jobid, msg
  level "x_end"       the scheduler is done: success
  level "x_unpatched" the scheduler is not as expected: error

Nothing here raises into Snakemake, changes what it does, or holds it up: who does not
read for 2 s is not written to again. Python 3.8 and later, standard library only.
"""
import functools
import json
import logging
import os
import socket
import stat
import struct
import sys
import threading
import time

_TIMEOUT = 2  # seconds
_HOLD = 0.05  # seconds that a message may wait for others
_TEXT = 64 << 10  # the most of a text or of the end of a log that is told
_ITEMS = 100  # the most of a list
_NODES = 50000  # a graph with more is told as a number

# What is taken of a message.
_KEYS = (
    "jobid", "job_id", "name", "rule_name", "wildcards", "log", "shellcmd", "is_checkpoint", "local",
    "done", "total", "stats", "groupid", "job_error_info", "aux", "jobs", "threads", "snakefile", "workflow_id", "indent",
)
_LEVELS = frozenset(
    "info warning error run_info resources_info job_info group_info job_error group_error job_finished progress shellcmd".split()
)
_EVENTS = frozenset(
    "None workflow_started run_info resources_info job_info group_info job_started job_error group_error job_finished "
    "progress shellcmd error".split()
)


def _text(v):
    s = str(v)
    return s if len(s) <= _TEXT else s[:_TEXT] + "[...]"


def _plain(v, depth=5):
    """v as JSON can say it."""
    if v is None or isinstance(v, (bool, int, float)):
        return v
    if isinstance(v, str) or depth == 0:
        return _text(v)
    if hasattr(v, "items"):  # a dict, or Snakemake's list with names
        return {_text(k): _plain(x, depth - 1) for k, x in list(v.items())[:_ITEMS]}
    if isinstance(v, (list, tuple, set, frozenset)):
        return [_plain(x, depth - 1) for x in list(v)[:_ITEMS]]
    return _text(v)


_encode = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode


class _Wire:
    """The way to who reads. Gives up for good at the first trouble.

    Between hold and release it gathers what is to be sent: a system call and a
    reader that wakes up cost more than a message.
    """

    def __init__(self, path):
        self.path = path
        self.dead = False
        self._fresh()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._fresh)

    def _fresh(self):
        """A process needs a connection of its own, and a lock that nobody holds."""
        self.lock = threading.RLock()
        self.sock = None
        self.busy = False
        self.torn = False
        self.held = False
        self.since = 0.0
        self.waiting = []
        self.pid = os.getpid()

    def send(self, rec):
        if self.dead:
            return
        rec["pid"] = self.pid
        line = _encode(rec)
        with self.lock:
            if not self.waiting:
                self.since = time.monotonic()
            self.waiting.append(line)
            if not self.held or time.monotonic() - self.since > _HOLD:
                self._flush()

    def hello(self):
        if not self.dead:
            with self.lock:
                self._flush()

    def hold(self):
        self.held = True

    def release(self):
        self.held = False
        if self.waiting and not self.dead:
            with self.lock:
                self._flush()

    def _flush(self):
        if self.busy:  # this is a signal's handler in the middle of another message
            return
        self.busy = True
        try:
            if self.sock is None:
                self._connect()
            while self.waiting:
                lines, self.waiting = self.waiting, []
                # A KeyboardInterrupt may have come in the middle of the last.
                data = ("\n" if self.torn else "") + "\n".join(lines) + "\n"
                self.torn = True
                self.sock.sendall(data.encode("ascii"))
                self.torn = False
        finally:
            self.busy = False

    def _connect(self):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Not settimeout, which asks before each message whether it may be sent.
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _TIMEOUT, 0))
            except Exception:
                sock.settimeout(_TIMEOUT)
            sock.connect(self.path)
        except BaseException:
            sock.close()
            raise
        self.sock = sock
        self.waiting.insert(0, _encode({"waymark": 1, "engine": "snakemake", "version": _version(), "pid": self.pid}))

    def close(self):
        self.dead = True
        try:
            if self.sock is not None:
                self.sock.close()
        except Exception:
            pass


class Report:
    """What this process tells. Its methods do not raise."""

    def __init__(self, folder):
        self.folder = folder
        self.wire = _Wire(os.environ["WAYMARK_SOCKET"])
        self.run = 0
        self.mute = False  # a dry run, or a process that works for another Snakemake
        self.decides = False  # the scheduler tells what becomes of jobs
        self.length = None  # of the graph, when it was last told
        self.done = 0  # jobs of the graph that have finished
        self.base = os.environ.get("WAYMARK_BASE")
        try:
            self.start = os.getcwd()
        except OSError:
            self.start = None

    def loaded(self, name, module):
        """Called when a module of Snakemake has been loaded."""
        if name == "snakemake.logging":
            self._logger(module)
        elif name == "snakemake.executors":
            self._executors(module)
        else:
            self._scheduler(module)

    def send(self, **rec):
        if self.mute:
            return
        try:
            rec.setdefault("timestamp", time.time())
            rec["run"] = self.run
            if threading.current_thread() is not threading.main_thread():
                rec["thread"] = threading.current_thread().name
            self.wire.send(rec)
        except Exception:
            self.wire.close()

    # What the logger is told.

    def _logger(self, module):
        try:
            # Before anything is printed: who reads knows that he need not.
            self.wire.hello()
        except Exception:
            self.wire.close()
        logger = getattr(module, "logger", None)
        if isinstance(logger, logging.Logger):  # 9
            # A filter hears of everything before any handler does, and of
            # Snakemake's handlers and the user's plugins nobody notices.
            logger.addFilter(self._record)
            return
        handler = module.Logger.handler  # 5 to 8

        @functools.wraps(handler)
        def tell(that, msg, *a, **k):
            try:
                if msg["level"] in _LEVELS:
                    self._message(msg)
            except Exception:
                pass
            return handler(that, msg, *a, **k)

        module.Logger.handler = tell

    def _message(self, msg):
        level = msg["level"]
        if self.mute or self._known(level, msg.get("msg")):
            return
        rec = {k: _plain(msg[k]) for k in _KEYS if msg.get(k)}
        for k in ("jobid", "msg"):
            if msg.get(k) is not None:
                rec[k] = _plain(msg[k])
        self.send(level=level, **rec)

    def _known(self, kind, text):
        """Whether the scheduler tells it, or nobody needs it."""
        if not self.decides:
            return False
        if kind in ("info", "None"):
            return not str(text).startswith("Submitted ")
        return kind in ("job_finished", "progress", "resources_info", "run_info", "job_started", "warning")

    def _record(self, record):
        try:
            event = getattr(record, "event", None)
            event = str(getattr(event, "value", event))
            if not self.mute and event in _EVENTS and record.levelno >= logging.INFO:
                error = record.levelno >= logging.ERROR
                if error or not self._known(event, record.msg):
                    # Among its own fields are name and thread, which are not ours.
                    rec = {k: _plain(v) for k, v in record.__dict__.items() if k in _KEYS and k != "name"}
                    rec["msg"] = _text(record.getMessage())
                    self.send(event=event, level=record.levelname, timestamp=record.created, **rec)
        except Exception:
            pass
        return True

    # What the scheduler decides.

    def _scheduler(self, module):
        try:
            cls = module.JobScheduler
            init, schedule = cls.__init__, cls.schedule
            finish, fail, run = cls._finish_jobs, cls._handle_error, cls.run
        except Exception as e:
            self.send(level="x_unpatched", error=_text(e))
            return

        @functools.wraps(init)
        def __init__(that, *a, **k):
            r = init(that, *a, **k)
            self._try(self._began, that)
            return r

        @functools.wraps(schedule)
        def _schedule(that, *a, **k):
            success = False
            try:
                r = schedule(that, *a, **k)
                success = bool(r)
                return r
            finally:
                self._try(self._ended, that, success)

        @functools.wraps(finish)
        def _finish_jobs(that, *a, **k):
            done = self._try(lambda: list(that._tofinish)) or []
            r = finish(that, *a, **k)
            if done:
                self.wire.hold()
                self._try(self._finished, that, done)
                self._release()
            return r

        @functools.wraps(run)
        def _run(that, *a, **k):
            self.wire.hold()
            try:
                return run(that, *a, **k)
            finally:
                self._release()

        @functools.wraps(fail)
        def _handle_error(that, job, *a, **k):
            final = self._try(lambda: not job.restart_times > job.attempt - 1)
            attempt = self._try(lambda: job.attempt)
            r = fail(that, job, *a, **k)
            self._try(self._failed, that, job, final, attempt)
            return r

        cls.__init__, cls.schedule, cls.run = __init__, _schedule, _run
        cls._finish_jobs, cls._handle_error = _finish_jobs, _handle_error

    def _release(self):
        try:
            self.wire.release()
        except Exception:
            self.wire.close()

    def _try(self, do, *a):
        try:
            return do(*a)
        except Exception as e:
            self.decides = False  # what the logger is told is all there is
            self.send(level="x_unpatched", error=_text(repr(e)))
            return None

    def _began(self, scheduler):
        workflow = scheduler.workflow
        mode = getattr(workflow, "exec_mode", getattr(workflow, "mode", None))
        if getattr(mode, "name", mode) in (1, 2, "SUBPROCESS", "REMOTE"):
            self.mute = True
            return
        # Jobs and what they run are no business of ours: they get the
        # environment that they would have had.
        self._leave_environment()
        self.run += 1
        self.length = None
        self.done = 0
        self.mute = False
        self.decides = False
        dryrun = bool(getattr(scheduler, "dryrun", False))
        self.send(
            level="x_run",
            version=_version(),
            dryrun=dryrun,
            snakefile=_plain(getattr(workflow, "main_snakefile", None)),
            workdir=os.getcwd(),
            start=self.start,
            base=self.base,
            depth=_depth(),
        )
        self.mute = dryrun
        self._graph(scheduler)
        self.decides = not self.mute  # until something is not as expected: see _try

    def _leave_environment(self):
        os.environ.pop("WAYMARK_SOCKET", None)
        os.environ.pop("WAYMARK_BASE", None)
        path = os.environ.get("PYTHONPATH")
        if path is not None:
            rest = [p for p in path.split(os.pathsep) if os.path.abspath(p or ".") != self.folder]
            if any(rest):
                os.environ["PYTHONPATH"] = os.pathsep.join(rest)
            else:
                del os.environ["PYTHONPATH"]

    def _graph(self, scheduler):
        if self.mute:
            return
        dag = _dag(scheduler)
        length = len(dag)
        if length == self.length:
            return
        self.length = length
        jobs = list(dag.needrun_jobs())
        rec = {"total": len(jobs) + self.done}  # its length counts what --until leaves out
        if len(jobs) <= _NODES:
            ids = {j: dag.jobid(j) for j in jobs}
            rec["nodes"] = [self._node(ids[j], j) for j in sorted(jobs, key=ids.get)]
            try:
                rec["edges"] = sorted([ids[d], ids[j]] for j in jobs for d in dag.dependencies.get(j, ()) if d in ids)
            except Exception:  # the jobs are worth more
                pass
        else:
            rec["norun"] = sum(1 for j in jobs if _idle(j))
        self.send(level="x_dag", **rec)

    def _node(self, jobid, job):
        node = {"jobid": jobid, "name": job.rule.name, "wildcards": _plain(job.wildcards_dict), "norun": _idle(job)}
        if getattr(job.rule, "is_checkpoint", False):
            node["checkpoint"] = True
        for kind in ("script", "notebook", "wrapper", "cwl"):
            what = getattr(job.rule, kind, None)
            if what:
                node[kind] = _text(what)
        return node

    def _finished(self, scheduler, done):
        if self.mute:
            return
        dag = _dag(scheduler)
        for job in done:
            for j in _members(job):
                if dag.finished(j):
                    self.done += 1
                    self.send(level="x_finished", jobid=dag.jobid(j), name=j.rule.name)
        self._graph(scheduler)

    def _failed(self, scheduler, job, final, attempt):
        stopping = bool(getattr(scheduler, "_user_kill", None))
        for j in _members(job):
            self.send(level="x_failed", jobid=j.jobid, name=j.rule.name, final=final, attempt=attempt, stopping=stopping, logs=_logs(j))

    def _ended(self, scheduler, success):
        self.send(level="x_end", success=success)

    # What the executor knows of a failure.

    def _executors(self, module):
        cls = getattr(module, "CPUExecutor", None)
        callback = getattr(cls, "_callback", None)
        if callback is None:  # 8 and 9 say it themselves
            return

        @functools.wraps(callback)
        def _callback(that, job, done, failed, future, *a, **k):
            try:
                e = future.exception()
                if e is not None:
                    for j in _members(job):
                        self.send(level="x_error", jobid=j.jobid, msg=_text(e))
            except BaseException:  # a future that was cancelled
                pass
            return callback(that, job, done, failed, future, *a, **k)

        cls._callback = _callback


def _version():
    """The version of Snakemake, empty while it is being loaded."""
    return _text(getattr(sys.modules.get("snakemake"), "__version__", None) or "")


def _dag(scheduler):
    """Its graph of jobs. One without any is false."""
    dag = getattr(scheduler, "dag", None)
    return scheduler.workflow.dag if dag is None else dag


def _depth():
    """How many workflows are being executed: a subworkflow is, before the one that needs it."""
    n, frame = 0, sys._getframe()
    while frame is not None:
        n += frame.f_code.co_name == "execute" and frame.f_globals.get("__name__") == "snakemake.workflow"
        frame = frame.f_back
    return n


def _idle(job):
    """Whether a job runs nothing and makes nothing, such as that of rule all; one without a command may touch its output."""
    return bool(getattr(job.rule, "norun", False)) and not list(getattr(job, "output", None) or ())


def _members(job):
    return list(job.jobs) if job.is_group() else [job]


def _logs(job):
    """The end of the files that a job's log directive names."""
    parts, room = [], _TEXT
    for path in list(job.log)[:10]:
        try:
            path = str(path)
            # What is no plain file could hold us up.
            if not stat.S_ISREG(os.stat(path).st_mode) or room <= 0:
                continue
            with open(path, "rb") as f:
                size = f.seek(0, os.SEEK_END)
                f.seek(max(size - room, 0))
                data = f.read(room)
        except Exception:
            continue
        room -= len(data)
        parts.append(data.decode("utf-8", "replace"))
    return "\n".join(p.rstrip("\n") for p in parts if p)
