"""A scheduler in the shape of Snakemake 8 and 9; see README.md."""
import enum


class Rule:
    is_checkpoint = False

    def __init__(self, name, norun=False):
        self.name, self.norun = name, norun


class Job:
    def __init__(self, jobid, name, wildcards={}, retries=0, shellcmd="true", norun=False):
        self.rule, self.jobid, self.wildcards_dict = Rule(name, norun), jobid, wildcards
        self.restart_times, self.attempt, self.shellcmd, self.log = retries, 1, shellcmd, ["missing.log"]

    def is_group(self):
        return False


class Dag:
    def __init__(self):
        self.all = Job(0, "all", norun=True)
        self.ok = Job(1, "ok")
        self.flaky = Job(2, "flaky", retries=1)
        self.broken = Job(3, "broken", {"n": "1"}, shellcmd="exit 7")
        self.never = Job(4, "never")
        self.jobs = [self.all, self.ok, self.flaky, self.broken, self.never]
        self.dependencies = {self.all: {self.ok: {}, self.flaky: {}, self.never: {}}, self.never: {self.broken: {}}}
        self.done = set()

    def __len__(self):
        return len(self.jobs)

    def needrun_jobs(self):
        return iter(j for j in self.jobs if j not in self.done)

    def jobid(self, job):
        return job.jobid

    def finished(self, job):
        return job in self.done


class Mode(enum.Enum):
    DEFAULT = 0
    SUBPROCESS = 1
    REMOTE = 2


class Workflow:
    exec_mode = Mode.DEFAULT
    main_snakefile = "/srv/wf/Snakefile"

    def __init__(self):
        self.dag = Dag()


def make(say):
    """The class, with what tells the logger."""

    class JobScheduler:
        def __init__(self, workflow, executor_plugin, *more):
            self.workflow = workflow
            self.dryrun = False
            self._user_kill = None
            self._tofinish = []
            say("resources", "Provided cores: 1")

        def schedule(self):
            dag = self.workflow.dag
            say("info", "Select jobs to execute...")
            for job in (dag.ok, dag.flaky, dag.broken, dag.flaky):
                self.run([job])
                if job is dag.broken or (job is dag.flaky and job.attempt == 1):
                    say("error", "RuleException:\nCommand 'set -euo pipefail;  %s' returned non-zero exit status 7." % job.shellcmd)
                    say("job_error", job)
                    self._handle_error(job)
                    continue
                self._tofinish.append(job)
                self._finish_jobs()
            say("fatal", "Exiting because a job execution failed. Look below for error messages")
            say("job_error", dag.broken)
            return False

        def run(self, jobs, executor=None):
            for job in jobs:
                say("job", job)

        def _finish_jobs(self):
            for job in self._tofinish:
                say("finished", job)
                self.workflow.dag.done.add(job)
            self._tofinish.clear()

        def _handle_error(self, job, postprocess_job=True):
            if job.restart_times > job.attempt - 1:
                say("info", "Trying to restart job %d." % job.jobid)
                job.attempt += 1

    return JobScheduler
