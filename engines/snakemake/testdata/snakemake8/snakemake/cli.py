import snakemake.logging
from snakemake.scheduler import JobScheduler, Workflow


def main():
    return JobScheduler(Workflow(), None, None, None).schedule()
