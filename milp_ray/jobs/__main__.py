"""``python -m milp_ray.jobs search study.yaml``: a job without a checkout of this repository."""

import os
import sys

from milp_ray.tune.cluster.import_path import forget

if __name__ == "__main__":
    forget(os.curdir)  # the folder that travels with the job is for files; its workers forget it, too
    from milp_ray.jobs.entry import JOBS
    from milp_ray.terminal import err, leave

    if len(sys.argv) < 2 or sys.argv[1] not in JOBS:
        usage = f"usage: python -m milp_ray.jobs {{{','.join(JOBS)}}} FILE [section.key=value ...]"
        err.print(usage, markup=False)
        leave(2)
    JOBS[sys.argv[1]](sys.argv[2:])
