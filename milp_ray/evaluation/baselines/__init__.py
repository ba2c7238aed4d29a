"""Other ways to answer like a user, by name, to compare with: the paper's baselines and more.

A method is composed of *what is trained* (:mod:`.sources`: nothing, an adapter per user or for all,
soft tokens, all weights) and *what the prompt holds* (:mod:`.contents`: the query alone, the newest
texts, retrieved ones, MaLP's memory). All methods share one base, one way to choose a learning rate
(:mod:`.rates`) and one decoding (:mod:`milp_ray.evaluation.common_batches`). docs/baselines.md says
what each does, and what was chosen.

To add a method, write one module here with a function ``(bench) -> Method``, decorate it with
``@register("name")`` and name it in ``_MODULES``. ``tests/evaluation/baselines/test_contract.py``
says what a method keeps: above all, that it sees no held-out answer.
"""

from __future__ import annotations

from collections.abc import Callable

from milp_ray.errors import Problem, StudyError
from milp_ray.evaluation.baselines.interface import Bench, Cost, Learned, Method
from milp_ray.registry import Registry

__all__ = ["Bench", "Cost", "Learned", "Method", "make", "method_names", "register"]

Builder = Callable[[Bench], Method]

_MODULES = (
    "none", "tplp", "rag", "rag_dense", "malp", "uelp", "full", "multi_lora", "random_lora", "task_lora",
    "oppu", "milp", "combined",
)  # fmt: skip
_REGISTRY: Registry[Builder] = Registry("method", [f"{__name__}.{name}" for name in _MODULES])
register = _REGISTRY.register
method_names = _REGISTRY.names


def make(name: str, bench: Bench) -> Method:
    """The method called ``name``.

    Raises:
        StudyError: no method has that name.
    """
    builder = _REGISTRY.find(name)
    if builder is None:
        remedy = _REGISTRY.hint(name) or "correct the name"
        problem = Problem("", f"no method is named {name!r}", "one of " + ", ".join(method_names()), remedy)
        raise StudyError("methods", [problem])
    return builder(bench)
