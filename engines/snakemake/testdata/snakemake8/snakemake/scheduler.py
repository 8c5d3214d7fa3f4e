from _stub import Workflow, make
from snakemake.logging import say

JobScheduler = make(say)
