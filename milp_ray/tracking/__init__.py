"""Studies as other people's tools see them, by their own clients.

A tracker is told of a run while it goes on (:mod:`milp_ray.tracking.follower`): one file each, by
the interface in :mod:`milp_ray.tracking.interface`. A finished search as plain data is
:mod:`milp_ray.tracking.records`'s.
"""
