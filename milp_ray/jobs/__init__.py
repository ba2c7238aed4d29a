"""Jobs: what runs on a cluster, and the client that submits it.

`ray job submit` runs :mod:`milp_ray.jobs.entry`; the client is :mod:`milp_ray.jobs.client`. What a
job does is :mod:`milp_ray.study.driver`'s.
"""
