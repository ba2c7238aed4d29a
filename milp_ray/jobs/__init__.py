"""Jobs: what `ray job submit` runs on a cluster (:mod:`milp_ray.jobs.entry`), and the client that submits it
(:mod:`milp_ray.jobs.client`). What a job does is :mod:`milp_ray.study.driver`'s."""
