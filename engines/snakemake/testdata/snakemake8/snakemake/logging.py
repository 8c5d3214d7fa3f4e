import time


class Logger:
    def __init__(self):
        self.log_handler = []

    def handler(self, msg):
        msg["timestamp"] = time.time()
        for handler in self.log_handler:
            handler(msg)


logger = Logger()


def say(kind, what):
    if kind in ("info", "error"):
        logger.handler(dict(level=kind, msg=what))
    elif kind == "fatal":
        logger.handler(dict(level="error", msg=what))
    elif kind == "resources":
        logger.handler(dict(level="resources_info", msg=what))
    elif kind == "finished":
        logger.handler(dict(level="job_finished", jobid=what.jobid))
    else:
        msg = dict(jobid=what.jobid, name=what.rule.name, wildcards=what.wildcards_dict, log=what.log, msg=None, aux={}, shellcmd=what.shellcmd)
        logger.handler(dict(msg, level={"job": "job_info"}.get(kind, kind)))
        if kind == "job":
            logger.handler(dict(level="shellcmd", msg=what.shellcmd))
