"""Has Yadage load Waymark's tracker, in whatever Python it runs.

This runs at the start of each Python below the run. Where it cannot be found,
or Python was told to ignore the environment, Yadage runs as ever: setting
YADAGE_CUSTOM_TRACKER for all would end it there.
"""
import os
import sys

_folder = os.path.dirname(os.path.abspath(__file__))


def _announce():
    ours = "waymark_yadage:Tracker"
    if not os.environ.get("WAYMARK_SOCKET"):
        return
    users = os.environ.get("YADAGE_CUSTOM_TRACKER")
    if users != ours:
        if users:
            os.environ["WAYMARK_YADAGE_TRACKER"] = users
        os.environ["YADAGE_CUSTOM_TRACKER"] = ours


def _hidden():
    """Runs the sitecustomize that this one hides, if there is one."""
    import importlib.machinery
    import importlib.util

    path = [p for p in sys.path if os.path.abspath(p) != _folder]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", path)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


try:
    _announce()
except Exception:
    pass
_hidden()  # what it raises it would have raised without us
