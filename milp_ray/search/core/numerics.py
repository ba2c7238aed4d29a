"""Which exceptions say that arithmetic failed on a user's data, not that a program is wrong.

A search survives the first kind: what was to be computed is left out or replaced, and a note says
so (:mod:`milp_ray.search.core.plan`).
"""

from __future__ import annotations

import numpy as np


def is_numerical(error: BaseException) -> bool:
    """Whether a matrix could not be factored, a value is no number, or a fit failed."""
    if isinstance(error, ArithmeticError | np.linalg.LinAlgError):
        return True
    # Only where something has failed: to propose without a model, none of these must be imported.
    from botorch.exceptions.errors import CandidateGenerationError, ModelFittingError
    from gpytorch.utils.errors import NanError, NotPSDError
    from torch.linalg import LinAlgError  # type: ignore[attr-defined]

    kinds = (LinAlgError, NotPSDError, NanError, ModelFittingError, CandidateGenerationError)
    return isinstance(error, kinds)
