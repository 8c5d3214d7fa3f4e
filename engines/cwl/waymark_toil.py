"""What Waymark hears of Toil: sitecustomize loads this where Toil's modules are.

The leader passes the ear on to the workers that it starts on this machine. A worker
tells when the body of a CWLJob begins and how it ends, and of what cwltool logs there
which job it is about, with what the job wrote to its standard error. Toil's bus
knows nothing of jobs that a worker chains to others, nor of commands.

Toil's code runs as it is; the body of a job has no frame of ours, so that its
tracebacks are the same.
"""
import json
import logging
import os
import stat
import time


def loaded(name, module, ear, here):
    if name == "toil.batchSystems.singleMachine":  # the leader
        _pass_on(module.SingleMachineBatchSystem, ear, here)
    else:
        ear.leave_no_trace()  # before the leader keeps its environment for the workers
        cwltool, worker, ends = logging.getLogger("cwltool"), logging.getLogger("toil.worker"), _Ends(ear)
        ear.toil = _Worker(ear, _overhear(cwltool, ear))
        _overhear(worker, ends)
        worker.addHandler(ends)
        module.CWLJob.run = _Begin(module.CWLJob.__dict__["run"], ear.toil)


def _overhear(logger, handler):
    """Has a handler of a logger get what the logger leaves out: Toil may be told to log errors alone.

    Returns what says whether the logger itself writes records of a level.
    """
    enabled, call = logger.isEnabledFor, logger.callHandlers

    def callHandlers(record):
        if enabled(record.levelno):
            call(record)
        else:
            handler.handle(record)

    logger.isEnabledFor = lambda level: level >= logging.INFO or enabled(level)
    logger.callHandlers = callHandlers
    return enabled


def _pass_on(system, ear, here):
    """Have the workers of a batch system listen, but not their jobs."""
    begin, set_env = system.__init__, system.setEnv

    def python_path(users):
        return here + (os.pathsep + users if users else "")

    def __init__(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        try:
            self.environment["PYTHONPATH"] = python_path(os.environ.get("PYTHONPATH"))
            self.environment["WAYMARK_SOCKET"] = ear.path
            self.environment["WAYMARK_WORKER"] = "toil"
        except Exception:
            pass

    def setEnv(self, name, *args, **kwargs):  # for --setEnv
        set_env(self, name, *args, **kwargs)
        try:
            if name == "PYTHONPATH":
                self.environment[name] = python_path(self.environment[name])
        except Exception:
            pass

    system.__init__, system.setEnv = __init__, setEnv


class _Begin:
    """A method that tells who is about to call it."""

    def __init__(self, function, worker):
        self.function, self.worker = function, worker

    def __get__(self, instance, owner=None):
        if instance is not None:
            try:
                self.worker.begin(instance)
            except Exception:
                pass
        return self.function.__get__(instance, owner)


class _Worker:
    def __init__(self, ear, written):
        self.ear = ear
        self.written = written  # whether a level is
        self.job = None
        self.command = ""  # as it is in the log
        self.start = self.end = None  # of what it writes into the log

    def begin(self, job):
        description = job.description
        name = getattr(description, "unitName", None) or description.jobName or description.displayName
        self.job = {"id": str(description.jobStoreID), "name": str(name)}
        self.start = self.end = None
        doc = {"created": time.time(), "msg": "begin", "pid": os.getpid(), "toil": self.job}
        try:
            doc["class"] = str(job.cwltool.tool["class"])
            doc["version"] = _version()
        except Exception:
            pass
        self.ear.send(doc)

    def about(self, record, frame, size):
        """What else is known of a record of cwltool."""
        if self.job is None:
            return {}
        more = {"toil": self.job}
        try:
            if record.msg == "[job %s] %s$ %s%s%s%s":
                self.command = record.getMessage() + "\n" if self.written(record.levelno) else ""
                self.start, self.end = _log_size(), None
            elif self.end is None:
                self.end = _log_size()  # what follows is the engine's
            if record.msg == "[job %s] completed %s":
                v = _locals(frame, "default_stderr")
                text = _piece(v["default_stderr"].fileno(), 0, None, size) if v else self.output(size)
                if text:
                    more["stderr"] = text
                if v and record.args[1] != "success":
                    more["stdout"] = _piece(v["default_stdout"].fileno(), 0, None, size)
        except Exception:  # another version of Toil: what there is must do
            pass
        return more

    def output(self, size):
        """What the job wrote between the lines of the worker's log."""
        if self.start is None or self.end is None:
            return None
        # The file is open for writing alone.
        fd = os.open("/proc/self/fd/2", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if not self.command:
                return _piece(fd, self.start, self.end, size)
            begin = min(self.start + len(self.command.encode("utf-8", "replace")) + 500, self.end)
            head = os.pread(fd, begin - self.start, self.start).decode("utf-8", "replace")
            _, found, rest = head.partition(self.command)
            if not found:
                return None
            return (rest if self.end - begin <= size else "") + (_piece(fd, begin, self.end, size) or "")
        finally:
            os.close(fd)


class _Ends(logging.Handler):
    """Tells how the body of a job ended."""

    def __init__(self, ear):
        super().__init__(logging.INFO)
        self.ear = ear

    def emit(self, record):
        try:
            worker = self.ear.toil
            message = str(record.msg)
            good = message.startswith("Completed body for")
            if worker.job is None or not (good or message.startswith("Exiting the worker because of a failed job")):
                return
            doc = {"created": record.created, "msg": "end", "pid": os.getpid(), "toil": worker.job, "good": good}
            worker.job = None
            self.ear.send(doc)
        except Exception:
            pass


def _version():
    import toil.version

    return str(toil.version.distVersion)


def _locals(frame, name):
    """The variables of the function around a record that has one of this name."""
    for _ in range(200):
        if frame is None:
            return None
        if frame.f_code.co_name == "run" and name in frame.f_locals:
            return frame.f_locals
        frame = frame.f_back


def _log_size():
    """How long the worker's log is, None if standard error is something else."""
    if os.path.basename(os.readlink("/proc/self/fd/2")) != "worker_log.txt":
        return None
    return os.fstat(2).st_size


def _piece(fd, begin, end, size):
    """The end of a piece of a file."""
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        return None
    end = info.st_size if end is None else min(end, info.st_size)
    text = os.pread(fd, min(size, max(end - begin, 0)), max(begin, end - size)).decode("utf-8", "replace")
    return ("[…]" if end - begin > size else "") + text
