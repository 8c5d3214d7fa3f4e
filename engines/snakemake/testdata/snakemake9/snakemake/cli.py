import snakemake.logging
from snakemake.scheduling.job_scheduler import JobScheduler, Workflow


def main():
    return JobScheduler(Workflow(), None, None, None).schedule()
