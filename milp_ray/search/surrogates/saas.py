"""``saas``: a fully Bayesian Gaussian process per objective, whose prior is that few layers matter.

SAAS-GP (docs/references.md: Eriksson 2021) by NUTS (Hoffman 2014), as MiLP has it (Zhang 2024). The
sampler is :mod:`milp_ray.search.surrogates.nuts`; its draws are loaded into BoTorch's own model
class.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from milp_ray.errors import SearchError
from milp_ray.search.surrogates import register
from milp_ray.search.surrogates.base import Fitted, SurrogateFailed, check_data

if TYPE_CHECKING:
    from botorch.models.fully_bayesian import SaasFullyBayesianSingleTaskGP
    from torch import Tensor

_ATTEMPTS = 3

PRESETS: Mapping[str, Mapping[str, int | None]] = {
    # Half of AutoPEFT's steps and less: the sampler needs less warm-up than the one they used, see
    # nuts.py.
    "default": {"warmup": 48, "samples": 32, "thinning": 4, "keep": 8, "most": 160},
    "paper": {"warmup": 128, "samples": 64, "thinning": 4, "keep": 16, "most": None},
}


@register("saas")
@dataclass(frozen=True)
class Saas:
    """Settings of the sampler; what is None comes from the preset.

    Attributes:
        preset: ``default``, or ``paper`` (AutoPEFT's settings, Zhou 2024, which MiLP follows).
        warmup: NUTS steps that adapt the step size and are thrown away.
        samples: draws after that.
        thinning: every so-many-th draw is kept.
        keep: S; at most so many of these serve the acquisition, evenly spread; its cost is
            proportional to them.
        most: hyperparameters are inferred from at most so many observations, evenly spread over
            time, as the time of a chain grows with the cube; the posterior always rests on all.
            ``paper`` takes all.
        double: float64 sampling; see :func:`milp_ray.search.surrogates.nuts.sample_saas`.
    """

    preset: str = "default"
    warmup: int | None = None
    samples: int | None = None
    thinning: int | None = None
    keep: int | None = None
    most: int | None = None
    double: bool = True

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise SearchError(
                "surrogate saas: no such preset",
                where="search.saas.preset",
                expected=f"one of {', '.join(PRESETS)}",
            )
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise SearchError(f"surrogate saas: {name} is not a whole number from 1 on")

    def fit(self, X: Tensor, Y: Tensor, seed: int) -> Fitted:
        """See :class:`~milp_ray.search.surrogates.base.ModelSurrogate`.

        After three chains that gave non-finite or unusable draws for an output, ``gp`` fits
        instead, with a note.
        """
        check_data(X, Y)
        from botorch.models import ModelListGP

        models = []
        for index in range(Y.shape[1]):
            model = self._output(X, Y[:, index : index + 1], seed * 31 + index)
            if model is None:
                return self._fallback(X, Y, seed, index)
            models.append(model)
        kept = models[0].num_mcmc_samples
        return Fitted(ModelListGP(*models), components=kept, source="saas")

    def compile_for(self, n: int, d: int) -> None:
        """Compile the sampler, ahead of the first fit, for ``n`` observations of ``d`` features."""
        from milp_ray.search.surrogates import nuts

        rows = nuts.bucket_of(min(n, self.most or n))
        nuts.compile_for(
            rows, d, warmup=self._number("warmup"), samples=self._number("samples"), double=self.double
        )

    def _output(self, X: Tensor, y: Tensor, seed: int) -> SaasFullyBayesianSingleTaskGP | None:
        """The model of one objective, from ``n x d`` and ``n x 1``; None: no usable draws."""
        import torch
        from botorch.models.fully_bayesian import SaasFullyBayesianSingleTaskGP
        from botorch.models.transforms import Standardize
        from gpytorch.utils.errors import NotPSDError

        from milp_ray.search.surrogates import nuts

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a constant outcome, or a single one, is no news to us
            model = SaasFullyBayesianSingleTaskGP(X, y, outcome_transform=Standardize(1))
        # 1) the model standardizes the outcome; the sampler takes it from there
        standardized = model.pyro_model.train_Y.squeeze(-1).numpy()  # n x 1 -> n
        used = self._used(len(X))
        # 2) up to three chains, each with a seed of its own
        for attempt in range(_ATTEMPTS):
            with contextlib.suppress(RuntimeError, ArithmeticError, NotPSDError):
                draws = nuts.sample_saas(
                    X.numpy()[used],
                    standardized[used],
                    seed=seed + 7919 * attempt,
                    warmup=self._number("warmup"),
                    samples=self._number("samples"),
                    double=self.double,
                )
                # 3) the kept draws as the model's hyperparameters: S, and S x d length scales
                loaded = {name: torch.as_tensor(values[self._kept()]) for name, values in draws.items()}
                if _finite(loaded.values()):
                    model.load_mcmc_samples(loaded)
                    model.eval()
                    # 4) finite draws may still give a covariance that nothing can be computed from
                    with torch.no_grad():
                        posterior = model.posterior(X[:1])
                        if _finite((posterior.mean, posterior.variance)):
                            return model
        return None

    def _kept(self) -> list[int]:
        thinned = range(0, self._number("samples"), self._number("thinning"))
        return [thinned[index] for index in _spread(len(thinned), self._number("keep"))]

    def _used(self, n: int) -> list[int]:
        """Observations that hyperparameters are inferred from."""
        return list(range(n)) if self.most is None else _spread(n, self.most)

    def _number(self, name: str) -> int:
        value = getattr(self, name)
        assert isinstance(value, int)  # presets leave only `most` open
        return value

    def _fallback(self, X: Tensor, Y: Tensor, seed: int, index: int) -> Fitted:
        from milp_ray.search.surrogates.gp import Gp

        note = f"saas: no usable draws in {_ATTEMPTS} chains for objective {index + 1}; gp was used instead"
        try:
            fitted = Gp().fit(X, Y, seed)
        except SurrogateFailed as error:
            raise SurrogateFailed(f"{note}; {error}") from error
        return Fitted(fitted.model, fitted.components, fitted.source, (note, *fitted.notes))


def _finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(values.isfinite().all()) for values in tensors)


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` indices below ``count``, evenly spread."""
    wanted = min(most, count)
    return [(2 * index + 1) * count // (2 * wanted) for index in range(wanted)]
