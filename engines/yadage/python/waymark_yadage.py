"""Waymark's tracker for Yadage: YADAGE_CUSTOM_TRACKER=waymark_yadage:Tracker.

Each change of the graph becomes a line of JSON on the socket in WAYMARK_SOCKET:
nodes that are new or in a new state, edges that are new. Whatever goes wrong
here, Yadage never hears of it; a socket that does not take a line in two
seconds is given up for good. A tracker that the user has set is loaded as
Yadage would, and may do what it likes.

Python 3.8 or later, standard library only.
"""
import atexit
import importlib
import json
import os
import socket
import stat
import threading
import time

TIMEOUT = 2.0  # seconds that the socket may take for a line
SHARE = 0.05  # of the engine's time that looking at the graph may take
LOG_FAILED = 64 * 1024  # bytes of the end of a failed step's logs
LOG_OTHERS = 8 * 1024  # of one that ended well
MAX_SPECIFICATION = 16 * 1024  # bytes of a step's process or parameters as JSON
MAX_LOGS = 8  # files of a step
MAX_NODES = 100  # in a line
ENDED = ("SUCCESS", "FAILED")


class Tracker(object):
    def __init__(self):
        self._users = _users_tracker()  # may raise, as it would without us
        self._lock = threading.Lock()
        self._socket = None
        self._pid = os.getpid()
        self._states = {}  # of the nodes that have not ended, as last told
        self._ended = set()
        self._edges = set()
        self._said = None
        self._next = 0.0
        self._errors = 0
        try:
            self._connect()
        except Exception:
            self._give_up()

    def initialize(self, adageobj):
        self._tell("initialize", adageobj)
        if self._users is not None:
            self._users.initialize(adageobj)

    def track(self, adageobj):
        if time.monotonic() >= self._next:
            self._tell("track", adageobj)
        if self._users is not None:
            self._users.track(adageobj)

    def finalize(self, adageobj):
        self._tell("finalize", adageobj)
        if self._users is not None:
            self._users.finalize(adageobj)

    def _connect(self):
        path = os.environ.get("WAYMARK_SOCKET")
        _leave_environment()
        if not path:
            return
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        atexit.register(self._give_up)  # else Python may warn that it is open
        self._socket.settimeout(TIMEOUT)
        self._socket.connect(path)
        self._send({"waymark": 1, "engine": "yadage", "version": _version(), "pid": self._pid})

    def _give_up(self):
        s, self._socket = self._socket, None
        try:
            if s is not None:
                s.close()
        except Exception:
            pass

    def _send(self, message):
        line = json.dumps(message, default=_text, allow_nan=False).encode("utf-8", "replace") + b"\n"
        with self._lock:
            if self._socket is None:
                return
            try:
                self._socket.sendall(line)
            except Exception:
                self._give_up()

    def _tell(self, event, adageobj):
        """Sends what is new; of a graph in which nothing is, nothing."""
        if self._socket is None or os.getpid() != self._pid:
            return
        began = time.monotonic()
        try:
            self._look(event, adageobj)
        except Exception as error:
            self._errors += 1
            if self._errors <= 3:
                try:
                    self._send({"event": "tracker-error", "pid": self._pid, "error": repr(error)[:1000]})
                except Exception:
                    pass
        now = time.monotonic()
        self._next = now + (now - began) / SHARE

    def _look(self, event, adageobj):
        dag = adageobj.dag
        nodes, states = [], {}
        ended = []
        for identifier in list(dag.nodes()):
            if identifier in self._ended:
                continue
            node = dag.getNode(identifier)
            state = _state(node)
            last = self._states.get(identifier)
            if state != last:
                nodes.append(_node(node, state, last is None))
            if state in ENDED:
                ended.append(identifier)
            else:
                states[identifier] = state
        edges = []
        # Without new nodes there are no new edges.
        if event == "finalize" or any("name" in n for n in nodes):
            edges = sorted(e for e in ((str(a), str(b)) for a, b in dag.edges()) if e not in self._edges)
        rules = list(adageobj.rules)
        said = (len(rules), len(adageobj.applied_rules))
        if event != "track" or nodes or edges or said != self._said:
            summary = {
                "pid": self._pid, "time": time.time(), "rules": said[0], "applied": said[1],
                "open_stages": [_stage(r) for r in rules[:100]],
            }
            while len(nodes) > MAX_NODES:
                self._send(dict(summary, event="track", nodes=nodes[:MAX_NODES]))
                del nodes[:MAX_NODES]
            self._send(dict(summary, event=event, nodes=nodes, edges=edges))
        self._states = states
        self._ended.update(ended)
        self._edges.update(edges)
        self._said = said


def _users_tracker():
    """The tracker that the user has set, loaded as Yadage loads it."""
    users = os.environ.get("WAYMARK_YADAGE_TRACKER")
    if not users:
        return None
    module, name = users.split(":")
    return getattr(importlib.import_module(module), name)()


def _leave_environment():
    """What the steps run is not the engine: a Yadage among it is not watched."""
    users = os.environ.pop("WAYMARK_YADAGE_TRACKER", None)
    if users:
        os.environ["YADAGE_CUSTOM_TRACKER"] = users
    else:
        os.environ.pop("YADAGE_CUSTOM_TRACKER", None)
    os.environ.pop("WAYMARK_SOCKET", None)
    here = os.path.dirname(os.path.abspath(__file__))
    path = os.environ.get("PYTHONPATH")
    if path:
        rest = [p for p in path.split(os.pathsep) if p != here]
        if rest:
            os.environ["PYTHONPATH"] = os.pathsep.join(rest)
        else:
            del os.environ["PYTHONPATH"]


def _version():
    try:
        from importlib.metadata import version

        return version("yadage")
    except Exception:
        return ""


def _text(value):
    """What JSON has no word for, as text."""
    return str(value)[:1000]


def _state(node):
    state = node.state
    if callable(state):
        state = state()
    return str(state).rsplit(".", 1)[-1]


def _stage(rule):
    name = getattr(getattr(rule, "rule", rule), "name", None)
    offset = getattr(rule, "offset", "") or ""
    return ("%s/%s" % (offset, name))[:1000]


def _node(node, state, new):
    try:
        return _described(node, state, new)
    except Exception:  # one that is not as others are must not hide them
        return {"id": str(node.identifier), "name": str(getattr(node, "name", "")), "state": state}


def _described(node, state, new):
    task = node.task
    metadata = getattr(task, "metadata", None) or {}
    told = {
        "id": str(node.identifier), "state": state,
        "submitted": _seconds(getattr(node, "submit_time", None)), "ready": _seconds(getattr(node, "ready_by_time", None)),
    }
    if new:
        told.update({
            "name": str(node.name)[:1000], "stage": metadata.get("wflow_stage"), "offset": metadata.get("wflow_offset"),
            "index": metadata.get("wflow_stage_node_idx"),
            "purepub": bool((metadata.get("wflow_hints") or {}).get("is_purepub", False)),
            "defined": _seconds(getattr(node, "define_time", None)),
            "process": _bounded(lambda: (task.spec or {}).get("process")),
            "parameters": _bounded(lambda: _plain(task.parameters)),
            "workdir": [str(p) for p in _workdirs(task)[:1]],
        })
    if state in ENDED:
        log = _log(node, LOG_FAILED if state == "FAILED" else LOG_OTHERS)
        if log:
            told["log"] = log
    return told


def _seconds(value):
    return float(value) if isinstance(value, (int, float)) and 0 < value < 1e11 else None


def _plain(parameters):
    return parameters.json() if hasattr(parameters, "json") else parameters


def _bounded(value):
    """A value if it can be had, and is small as JSON."""
    try:
        v = value()
        text = json.dumps(v, default=_text, allow_nan=False)
        return json.loads(text) if len(text) <= MAX_SPECIFICATION else None
    except Exception:
        return None


def _workdirs(task):
    try:
        return list(getattr(task.state, "readwrite", None) or [])
    except Exception:
        return []


def _log(node, most):
    """The end of the logs that packtivity wrote for a step: of what it ran last."""
    try:
        folder = getattr(node.task.state, "metadir", None)
        if not folder:
            workdirs = _workdirs(node.task)
            if not workdirs:
                return ""
            folder = os.path.join(str(workdirs[0]), "_packtivity")
        name = str((node.task.metadata or {}).get("name") or node.name)
        found = [f for f in sorted(os.listdir(folder)) if f.startswith(name + ".") and f.endswith(".log")]
        # How the step was run comes last: there the reason of a failure is.
        found.sort(key=lambda f: (f == name + ".step.log", f))
        parts = []
        for f in reversed(found[-MAX_LOGS:]):
            part = _tail(os.path.join(folder, f), most)
            parts.append(part)
            most -= len(part)
            if most <= 0:
                break
        return b"".join(reversed(parts)).decode("utf-8", "replace")
    except Exception:
        return ""


def _tail(path, most):
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe of that name must not hold up the engine
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            return b""
        os.lseek(descriptor, max(info.st_size - most, 0), os.SEEK_SET)
        return os.read(descriptor, most)
    finally:
        os.close(descriptor)
