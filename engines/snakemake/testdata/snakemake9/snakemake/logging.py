import enum
import logging

logger = logging.getLogger(__name__)
logger.setLevel(logging.INFO)
logger.addHandler(logging.NullHandler())
logger.propagate = False


class LogEvent(enum.Enum):
    RESOURCES_INFO = "resources_info"
    JOB_INFO = "job_info"
    JOB_ERROR = "job_error"
    JOB_FINISHED = "job_finished"
    SHELLCMD = "shellcmd"
    ERROR = "error"


def say(kind, what):
    # As Snakemake does when it begins.
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.addHandler(logging.NullHandler())
    if kind == "info":
        logger.info(what)
    elif kind == "fatal":
        logger.error(what)
    elif kind == "error":
        logger.error(what, extra=dict(event=LogEvent.ERROR, exception="RuleException"))
    elif kind == "resources":
        logger.info(what, extra=dict(event=LogEvent.RESOURCES_INFO, cores=1))
    elif kind == "finished":
        logger.info("Finished jobid: %d" % what.jobid, extra=dict(event=LogEvent.JOB_FINISHED, job_id=what.jobid))
    else:
        event = LogEvent.JOB_INFO if kind == "job" else LogEvent.JOB_ERROR
        logger.info(
            "a sentence",
            extra=dict(event=event, jobid=what.jobid, rule_name=what.rule.name, wildcards=what.wildcards_dict, log=what.log, aux={}, shellcmd=what.shellcmd),
        )
        logger.info("Shell command: %s" % what.shellcmd, extra=dict(event=LogEvent.SHELLCMD, shellcmd=what.shellcmd))
