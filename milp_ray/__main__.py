"""``python -m milp_ray``: the command, without the folder that Python puts in front."""

import os

from milp_ray.tune.cluster.import_path import forget

if __name__ == "__main__":
    forget(os.curdir)
    from milp_ray.cli import main

    main()
