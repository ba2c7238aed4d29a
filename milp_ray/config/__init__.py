"""The study file: models, strict reading, overrides and the commented template."""

from milp_ray.config.models import Study

__all__ = ["Study"]
