"""A pool without processes, which would open the real model."""

from streammem.fleet import pool


class InThisProcess:
    """Stands in for ``Pool``: jobs are done one after the other, in this process."""

    def __init__(self, open_worker, num_workers, processes=None, tries=None):
        self._worker = open_worker()

    def run(self, jobs, stop=lambda: False, patience_s=0.0):
        for job in jobs:
            yield pool.Restarted(job, "SIGKILL", 1.0)
            for kind, value in pool.messages(lambda: self._worker, job, stop):
                if kind == "report":
                    yield pool.Reported(job, value)
                elif kind != "open":
                    yield pool.Done(job, value) if kind == "done" else pool.Failed(job, value)
