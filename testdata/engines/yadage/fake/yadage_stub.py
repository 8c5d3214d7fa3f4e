"""Stands in for Yadage in tests: stub nodes in a graph, and the way in which Yadage
loads its tracker and calls it.

    python3 yadage_stub.py SCENARIO WORKDIR
"""
import importlib
import logging
import multiprocessing
import os
import subprocess
import sys
import time
import uuid

log = logging.getLogger("adage")


class State(object):
    def __init__(self, workdir):
        self.readwrite = [workdir]
        self.readonly = []

    @property
    def metadir(self):
        return os.path.join(self.readwrite[0], "_packtivity")


class Parameters(object):
    def __init__(self, values):
        self._values = values

    def json(self):
        return self._values


class Task(object):
    def __init__(self, name, stage, offset, index, workdir, cmd, parameters):
        self.metadata = {
            "name": name, "wflow_stage": stage, "wflow_offset": offset, "wflow_stage_node_idx": index,
            "wflow_hints": {"is_purepub": cmd is None},
        }
        self.spec = {"process": {"process_type": "string-interpolated-cmd", "cmd": cmd}} if cmd is not None else {"process": None}
        self.parameters = Parameters(parameters or {})
        self.state = State(workdir)


class Node(object):
    def __init__(self, stage, cmd, index=0, offset="", parameters=None, work="work"):
        name = stage if index == 0 else "%s_%d" % (stage, index)
        self.identifier = str(uuid.uuid4())
        self.name = name
        self.task = Task(name, stage, offset, index, os.path.join(work, offset.strip("/"), name), cmd, parameters)
        self.state = "DEFINED"
        self.define_time = time.time()
        self.submit_time = None
        self.ready_by_time = None
        self.resultproxy = None

    def __repr__(self):
        m = self.task.metadata
        return "<%s/%s:%s|%s|known>" % (m["wflow_offset"], m["wflow_stage"], m["wflow_stage_node_idx"], self.state.lower())


class DAG(object):
    def __init__(self):
        self._nodes, self._edges = {}, []

    def add(self, node, *after):
        self._nodes[node.identifier] = node
        self._edges += [(a.identifier, node.identifier) for a in after]
        log.info("added %s", node)
        return node

    def nodes(self):
        return self._nodes.keys()

    def edges(self):
        return list(self._edges)

    def getNode(self, identifier):
        return self._nodes[identifier]


class Rule(object):
    def __init__(self, name, offset=""):
        self.rule = type("Stage", (), {"name": name})()
        self.offset = offset


class Workflow(object):
    def __init__(self, *stages):
        self.dag = DAG()
        self.rules = [Rule(s) for s in stages]
        self.applied_rules = []

    def apply(self, name):
        rule = next(r for r in self.rules if r.rule.name == name)
        self.rules.remove(rule)
        self.applied_rules.append(rule)


def run_step(argument):
    """Runs in a worker of the pool, as packtivity does it."""
    name, workdir, cmd = argument
    os.makedirs(os.path.join(workdir, "_packtivity"), exist_ok=True)
    done = subprocess.run(["sh", "-c", cmd], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    meta = os.path.join(workdir, "_packtivity", name)
    with open(meta + ".run.log", "wb") as f:
        f.write(done.stdout)
    with open(meta + ".step.log", "w") as f:
        f.write("2026-01-01 00:00:00,000 | pack.%s.step |   INFO | running ['sh', '-c', %r]\n" % (name, cmd))
        if done.returncode:
            f.write("2026-01-01 00:00:01,000 | pack.%s.step |  ERROR | subprocess failed. code: %d,  command %s\n" % (name, done.returncode, cmd))
    return done.returncode


class Engine(object):
    """The loop of adage, with a pool of two workers."""

    def __init__(self, workflow):
        # As Yadage: the pool is there before the tracker.
        self.pool = multiprocessing.get_context("fork").Pool(2)
        self.workflow = workflow
        self.trackers = []
        self.results = {}
        custom = os.environ.get("YADAGE_CUSTOM_TRACKER", None)
        if custom:
            module, name = custom.split(":")
            self.trackers.append(getattr(importlib.import_module(module), name)())

    def call(self, method):
        for t in self.trackers:
            getattr(t, method)(self.workflow)

    def run(self, nodes):
        for n in nodes:
            if n.task.metadata["wflow_hints"]["is_purepub"]:
                n.state, n.submit_time, n.ready_by_time = "SUCCESS", time.time(), time.time()
                continue
            n.state, n.submit_time = "RUNNING", time.time()
            cmd = n.task.spec["process"]["cmd"]
            self.results[n.identifier] = self.pool.apply_async(run_step, ((n.name, n.task.state.readwrite[0], cmd),))
        log.info("submitting nodes [%s]", ", ".join(str(n).replace("running", "defined") for n in nodes))
        waiting = [n for n in nodes if n.identifier in self.results]
        while waiting:
            self.call("track")
            for n in waiting:
                result = self.results[n.identifier]
                if result.ready():
                    n.state = "FAILED" if result.get() else "SUCCESS"
                    n.ready_by_time = time.time()
                    log.info("node ready %s", n)
            waiting = [n for n in waiting if n.ready_by_time is None]
            time.sleep(0.02)
        self.call("track")


def main():
    scenario, work = sys.argv[1], os.path.abspath(sys.argv[2])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s | %(name)20.20s | %(levelname)6s | %(message)s")
    w = Workflow("init", "split", "process", "select", "merge")
    e = Engine(w)
    e.call("initialize")
    code = 0
    try:
        code = globals()["scenario_" + scenario](e, w, work)
    finally:
        e.call("finalize")
    e.pool.terminate()
    if code:
        sys.stderr.write("Error: Workflow failed: workflow finished but failed\n")
    sys.exit(code)


def scenario_ok(e, w, work):
    """Grows at run time, and has a sub-workflow."""
    init = w.dag.add(Node("init", None, work=work))
    split = w.dag.add(Node("split", "echo splitting", work=work, parameters={"n": 2}), init)
    for s in ("init", "split"):
        w.apply(s)
    e.call("track")
    e.run([init, split])
    parts = [w.dag.add(Node("process", "echo part %d" % i, i, work=work), split) for i in range(2)]
    w.apply("process")
    e.run(parts)
    sub = w.dag.add(Node("skim", "echo skimming", offset="/select/0", work=work), parts[0])
    for s in ("select", "merge"):
        w.apply(s)
    merge = w.dag.add(Node("merge", "printf 'merged \\377\\000\\n'", work=work), sub)
    e.run([sub])
    e.run([merge])
    return 0


def scenario_failing(e, w, work):
    good = w.dag.add(Node("good", "sleep 0.1", work=work))
    bad = w.dag.add(Node("bad", "echo cannot open tree events >&2; exit 7", work=work))
    w.dag.add(Node("summary", "true", work=work), good, bad)
    w.rules, w.applied_rules = [], [Rule("all")]
    e.call("track")
    e.run([good, bad])
    return 1


def scenario_noinit(e, w, work):
    """Yadage says that all is well."""
    log.info("workflow completed successfully.")
    return 0


def scenario_slow(e, w, work):
    nodes = [w.dag.add(Node("slow", "echo $$ > %s.%d; exec sleep 60" % (work, i), i, work=work)) for i in range(2)]
    w.rules, w.applied_rules = [], [Rule("slow")]
    e.call("track")
    e.run(nodes)
    return 0


def scenario_hostile(e, w, work):
    """Nodes unlike others, and an output that looks like anything."""
    sys.stderr.flush()
    os.write(2, b"\xff\xfe\x00 no newline <| added </fake:0|defined|unknown>\r" + b"x" * 100000 + b"\n")
    odd = Node("odd \udcff \u0000", "echo ok", work=work, parameters={"nan": float("nan"), "object": object()})
    bare = Node("bare", "true", work=work)
    w.dag.add(odd)
    w.dag.add(bare, odd)
    bare.task.metadata = None
    w.rules, w.applied_rules = [], []
    e.call("track")
    for n in (odd, bare):
        n.state, n.submit_time, n.ready_by_time = "SUCCESS", time.time(), time.time()
    e.call("track")
    return 0


def scenario_log(e, w, work):
    """A pipe where a log should be: nobody writes to it."""
    n = w.dag.add(Node("odd", "true", work=work))
    w.rules = []
    os.makedirs(n.task.state.metadir)
    os.mkfifo(os.path.join(n.task.state.metadir, "odd.step.log"))
    with open(os.path.join(n.task.state.metadir, "odd.run.log"), "wb") as f:
        f.write(b"x" * (1 << 20) + b"the end\n")
    n.state, n.submit_time, n.ready_by_time = "FAILED", time.time(), time.time()
    e.call("track")
    return 1


def scenario_many(e, w, work):
    """Has a large graph looked at as often as can be, and says which share of the
    time that took of the processor, but for the first look."""
    nodes = [w.dag.add(Node("many", "true", i, work=work)) for i in range(5000)]
    w.rules = []
    e.call("track")
    looks, spent, began = 0, 0.0, time.monotonic()
    while time.monotonic() < began + 2:
        n = nodes[looks % len(nodes)]
        if looks % 100 == 0:
            n.state, n.submit_time, n.ready_by_time = "SUCCESS", time.time(), time.time()
        before = time.thread_time()
        e.call("track")
        spent += time.thread_time() - before
        looks += 1
        time.sleep(0.001)
    print(spent / (time.monotonic() - began))
    for n in nodes:
        n.state = "SUCCESS"
    return 0


def scenario_nested(e, w, work):
    """A step that runs Yadage itself."""
    cmd = "%s %s ok %s-inner 2>&1; env | grep -c WAYMARK_YADAGE" % (sys.executable, os.path.abspath(__file__), work)
    n = w.dag.add(Node("outer", cmd + "; true", work=work))
    w.rules = []
    e.run([n])
    return 0


if __name__ == "__main__":
    log = logging.getLogger("adage")
    main()
