"""Waits in every Python of a run for the one that loads Snakemake, and has it report.

This folder comes first in PYTHONPATH. What the site itself would have imported as
sitecustomize is imported all the same, and sys.path is as it would be without us.
Nothing here may fail, and there is nothing here that a Python without Snakemake
could notice. Python 3.8 and later, standard library only.
"""
import os
import sys

_here = os.path.dirname(os.path.abspath(__file__))

# Snakemake 5 to 9 have their logger in the first, and their scheduler in one of the others.
_WATCHED = ("snakemake.logging", "snakemake.scheduler", "snakemake.scheduling.job_scheduler", "snakemake.executors")


class _Watcher:
    """Leaves finding modules to the other finders, and notes when Snakemake's are loaded."""

    def __init__(self):
        self.report = None

    def find_spec(self, name, path=None, target=None):
        if name not in _WATCHED:
            return None
        spec = None
        for finder in list(sys.meta_path):
            find = getattr(finder, "find_spec", None)
            if finder is self or find is None:
                continue
            spec = find(name, path, target)
            if spec is not None:
                break
        try:
            if spec is not None:
                self._watch(name, spec.loader)
        except Exception:
            pass
        return spec

    def _watch(self, name, loader):
        load = loader.exec_module

        def exec_module(module):
            try:
                del loader.exec_module
            except Exception:
                pass
            load(module)
            try:
                self._loaded(name, module)
            except Exception:
                pass

        loader.exec_module = exec_module

    def _loaded(self, name, module):
        if self.report is None:
            from importlib.util import module_from_spec, spec_from_file_location

            spec = spec_from_file_location("_waymark_snakemake", os.path.join(_here, "waymark_snakemake.py"))
            report = module_from_spec(spec)
            spec.loader.exec_module(report)
            self.report = report.Report(_here)
        self.report.loaded(name, module)


def _begin():
    sys.path[:] = [p for p in sys.path if not isinstance(p, str) or os.path.abspath(p) != _here]
    if os.environ.get("WAYMARK_SOCKET") and sys.version_info >= (3, 5):  # Python 2 knows no find_spec
        sys.meta_path.insert(0, _Watcher())


def _chain():
    """Imports the sitecustomize that would have been found without us. Its errors are its own."""
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    spec = PathFinder.find_spec("sitecustomize", sys.path)
    if spec is None or spec.loader is None:
        return
    module = module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


try:
    _begin()
except Exception:
    pass
_chain()
