"""Waymark's ear in cwltool, and in Toil, which has cwltool in it.

Python imports this module at its start because its folder is on PYTHONPATH. It
listens to the logger "cwltool" and sends each record to the Unix socket
$WAYMARK_SOCKET as a line of JSON: the template and its arguments, and what the
engine knows there of the job that the record is about. It changes nothing in the
engine, never raises into it, and gives up for good if nobody takes what it sends.
Python 3.8 and later, standard library only.
"""


def _listen():
    import functools
    import json
    import logging
    import os
    import socket
    import sys
    import threading

    path = os.environ.get("WAYMARK_SOCKET")
    if not path:
        return
    here = os.path.dirname(os.path.abspath(__file__))

    TEXT = 64 << 10  # characters of one argument, and bytes of one tail
    PARTS = 100_000  # pieces of a workflow, or elements of its inputs
    DEPTH = 200

    def short(uri):
        """The last part of an identifier, as cwltool shortens it."""
        uri = str(uri)
        _, mark, fragment = uri.partition("#")
        return (fragment if mark else uri).rsplit("/", 1)[-1]

    def where(callback):
        """The way to a job: [step, scatter index...] for each workflow around it.

        A job's results go up through its callbacks, and so does this.
        """
        way, index = [], []
        for _ in range(DEPTH):
            args = ()
            if isinstance(callback, functools.partial):
                callback, args = callback.func, callback.args
            name, owner = getattr(callback, "__name__", ""), getattr(callback, "__self__", None)
            if name == "receive_output" and hasattr(owner, "steps"):  # WorkflowJob
                way.append([short(args[0].id)] + index)
                index, callback = [], args[2]
            elif name == "receive_output":  # WorkflowStep
                callback = args[0]
            elif name == "receive_scatter_output":
                index.insert(0, int(args[0]))
                callback = owner.output_callback
            elif name == "update_status_output_callback":
                callback = args[0]
            elif name == "loop_callback":  # where the loop is nobody says
                way.append([short(owner.step.id)])
                break
            else:
                break
        way.reverse()
        return way

    class Budget:
        def __init__(self):
            self.left = PARTS

        def take(self):
            self.left -= 1
            if self.left < 0:
                raise OverflowError("the workflow is too large to be described")

    def shape(value, budget):
        """What matters of a value: of arrays how long they are."""
        if not isinstance(value, (list, tuple)):
            return None
        budget.take()
        if not any(isinstance(v, (list, tuple)) for v in value):
            return len(value)
        return [shape(v, budget) for v in value]

    def many(value):
        if value is None:
            return []
        return list(value) if isinstance(value, (list, tuple)) else [value]

    def describe(process, budget):
        """The structure of a process, with names that are unique where they stand."""
        tool = process.tool
        doc = {"class": str(tool.get("class"))}
        if doc["class"] != "Workflow":
            return doc
        names = {}
        for i in tool.get("inputs", ()):
            names[i["id"]] = short(i["id"])
        for step in process.steps:
            for o in step.tool.get("outputs", ()):
                names[o["id"]] = short(step.id) + "/" + short(o["id"])
        sources = lambda v: [names.get(s, "?") for s in many(v)]
        doc["inputs"] = {short(i["id"]): shape(i["default"], budget) for i in tool["inputs"] if "default" in i}
        doc["outputs"] = {short(o["id"]): sources(o.get("outputSource")) for o in tool.get("outputs", ())}
        doc["steps"] = []
        for step in process.steps:
            budget.take()
            s = {"id": short(step.id), "in": []}
            if "when" in step.tool:
                s["when"] = True
            if step.get_requirement("http://commonwl.org/cwltool#Loop")[0]:
                s["loop"] = True
            if "scatter" in step.tool:
                s["scatter"] = [short(v) for v in many(step.tool["scatter"])]
                s["method"] = str(step.tool.get("scatterMethod") or "")
            for i in step.tool.get("inputs", ()):
                budget.take()
                e = {"id": short(i["id"])}
                if i.get("source"):
                    e["source"] = sources(i["source"])
                if "default" in i:
                    e["default"] = shape(i["default"], budget)
                if "valueFrom" in i:
                    e["computed"] = True
                if "linkMerge" in i or "pickValue" in i:
                    e["merged"] = True
                s["in"].append(e)
            s["run"] = describe(step.embedded_tool, budget)
            doc["steps"].append(s)
        return doc

    def tail(file, size):
        """The end of a file that the job wrote."""
        if not file or not os.path.isfile(file):
            return None
        with open(file, "rb") as f:
            end = f.seek(0, os.SEEK_END)
            f.seek(max(end - size, 0))
            text = f.read(size).decode("utf-8", "replace")
        return ("[…]" if end > size else "") + text

    def about(record, frame):
        """What the engine's own variables say beyond the record."""
        more = {}
        try:
            tell(more, record.msg, record, frame.f_locals)
        except Exception:  # another version of the engine: what there is must do
            pass
        return more

    def tell(more, message, record, v):
        if record.funcName == "_execute":
            job = v["self"]
            more["job"] = str(job.name)
            if message == "[job %s] %s$ %s%s%s%s":
                more["path"] = where(job.output_callback)
            elif message == "[job %s] completed %s":
                more["path"] = where(job.output_callback)
                if isinstance(v.get("rcode"), int):
                    more["exit"] = v["rcode"]
                failed = record.args[1] != "success"
                more["stderr"] = tail(v.get("stderr_path"), TEXT if failed else TEXT // 4)
                if failed:
                    more["stdout"] = tail(v.get("stdout_path"), TEXT // 4)
        elif message == "[job %s] Using cached output in %s":
            more["path"] = where(v["output_callbacks"])
        elif record.funcName == "run_job" and "job" in v:
            more["job"], more["path"] = str(v["job"].name), where(v["job"].output_callback)
        elif record.funcName == "try_make_job":
            workflow, step = v["self"], v["step"]
            more["at"], more["step"] = where(v["final_output_callback"]), short(step.id)
            if message == "[%s] starting %s":
                budget = Budget()
                inputs = v["inputobj"]
                more["in"] = {short(k): shape(x, budget) for k, x in inputs.items() if isinstance(x, (list, tuple))}
                if not more["at"] and workflow is not ear.workflow:
                    ear.workflow = workflow
                    given = {}
                    for i in workflow.tool["inputs"]:
                        state = workflow.state.get(i["id"])
                        if state is not None and isinstance(state.value, (list, tuple)):
                            given[short(i["id"])] = shape(state.value, budget)
                    more["workflow"], more["inputs"] = describe(workflow.workflow, budget), given

    def plain(value):
        if value is None or isinstance(value, (bool, int, float)):
            return value
        text = str(value)
        return text if len(text) <= TEXT else text[: TEXT // 2] + " […] " + text[-TEXT // 2 :]

    class Ear(logging.Handler):
        """Sends records. One that cannot be sent is the last one."""

        def __init__(self):
            super().__init__(logging.INFO)
            self.workflow = None
            self.pid = None
            self.sending = None
            self.socket = None
            self.deaf = False
            self.path = path
            self.toil = None

        def emit(self, record):
            try:
                version = str(record.msg).rsplit(" ", 1)[-1]  # with which cwltool begins
                self.send(self.line(record), version if version[:1].isdigit() else None)
            except Exception:
                pass

        def line(self, record):
            args = record.args if isinstance(record.args, tuple) else (record.args,) if record.args else ()
            doc = {
                "created": record.created,
                "level": record.levelname,
                "func": record.funcName,
                "msg": plain(str(record.msg)),
                "args": [plain(a) for a in args],
                "thread": record.threadName,
                "pid": record.process,
            }
            if record.exc_info and record.exc_info[1] is not None:
                doc["error"] = plain("%s: %s" % (type(record.exc_info[1]).__name__, record.exc_info[1]))
            frame = sys._getframe(1)
            for _ in range(DEPTH):
                if frame is None:
                    break
                if frame.f_code.co_name == record.funcName and frame.f_code.co_filename == record.pathname:
                    more = about(record, frame)
                    if self.toil is not None:
                        size = TEXT // 4 if "success" in record.args else TEXT
                        more = {**self.toil.about(record, frame, size), **{k: v for k, v in more.items() if v is not None}}
                    doc.update(more)
                    break
                frame = frame.f_back
            return doc

        def send(self, doc, version=None):
            line = json.dumps(doc).encode("utf-8", "replace") + b"\n"
            pid = os.getpid()
            if self.pid != pid:  # the first record, or the first after a fork
                self.hang_up()  # what was open is the parent's
                self.pid, self.sending = pid, threading.Lock()
                self.leave_no_trace()
            with self.sending:
                if self.deaf:
                    return
                try:
                    if self.socket is None:
                        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                        self.socket.settimeout(2)
                        self.socket.connect(path)
                        hello = {
                            "waymark": 1,
                            "engine": "cwl" if self.toil is None else "toil",
                            "version": version,
                            "pid": pid,
                            "python": sys.version.split()[0],
                        }
                        line = json.dumps(hello).encode() + b"\n" + line
                    self.socket.sendall(line)
                except BaseException as e:
                    # Half a line may be out. Whoever was interrupted goes on
                    # with a new connection.
                    self.deaf = isinstance(e, Exception)
                    self.hang_up()
                    raise

        def hang_up(self):
            if self.socket is not None:
                try:
                    self.socket.close()
                except Exception:
                    pass
            self.socket = None

        def leave_no_trace(self):
            """This is the engine: its jobs get the environment that they had without us."""
            os.environ.pop("WAYMARK_SOCKET", None)
            os.environ.pop("WAYMARK_WORKER", None)
            rest = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.path.abspath(p or ".") != here]
            if rest:
                os.environ["PYTHONPATH"] = os.pathsep.join(rest)
            else:
                os.environ.pop("PYTHONPATH", None)

        def close(self):
            self.hang_up()
            super().close()

    class Watcher:
        """Leaves finding modules to the other finders, and notes when Toil's are loaded."""

        def find_spec(self, name, path=None, target=None):
            if name not in ("toil.cwl.cwltoil", "toil.batchSystems.singleMachine"):
                return None
            spec = None
            for finder in list(sys.meta_path):
                find = getattr(finder, "find_spec", None)
                if finder is not self and find is not None:
                    spec = find(name, path, target)
                if spec is not None:
                    break
            try:
                if spec is not None:
                    self.watch(name, spec.loader)
            except Exception:
                pass
            return spec

        def watch(self, name, loader):
            load = loader.exec_module

            def exec_module(module):
                try:
                    del loader.exec_module
                except Exception:
                    pass
                load(module)
                try:
                    from importlib.util import module_from_spec, spec_from_file_location

                    spec = spec_from_file_location("_waymark_toil", os.path.join(here, "waymark_toil.py"))
                    ours = module_from_spec(spec)
                    spec.loader.exec_module(ours)
                    ours.loaded(name, module, ear, here)
                except Exception:
                    pass

            loader.exec_module = exec_module

    ear = Ear()
    if os.environ.get("WAYMARK_WORKER"):
        ear.leave_no_trace()  # which Toil would give to the jobs
    logging.getLogger("cwltool").addHandler(ear)
    sys.meta_path.insert(0, Watcher())


def _next():
    """Run the sitecustomize that this one hides. What it raises is its own."""
    import importlib.machinery
    import importlib.util
    import os
    import sys

    here = os.path.dirname(os.path.abspath(__file__))
    spec = importlib.machinery.PathFinder.find_spec(
        "sitecustomize", [p for p in sys.path if os.path.abspath(p or ".") != here]
    )
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


try:
    _listen()
except Exception:
    pass
_next()
