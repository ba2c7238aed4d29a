"""The ROUGE proxy: no judge, but ROUGE-L with the gold response on a judge's scale.

It costs nothing and repeats exactly, so that a comparison can be tried without a judge. Its scores
say how near a response is to the one that was given, not how good it is, and a win rate by them is
one of ROUGE-L: tables call it ``rouge_proxy``.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from milp_ray.config.judging import RougeProxySettings
from milp_ray.data.words import NEWEST
from milp_ray.evaluation.judges import HIGHEST, LOWEST, Answer, Loss, Request, ScoreRequest, Tokens, register
from milp_ray.evaluation.metrics import rouge


class RougeProxy:
    """1 + 9 × ROUGE-L F1 with the gold response; see :class:`milp_ray.evaluation.judges.Judge`.

    Args:
        rules: of words, see :func:`milp_ray.data.words.text_rules`.
    """

    name = "rouge_proxy"
    compares = False
    prices = (0.0, 0.0)

    def __init__(self, rules: int = NEWEST) -> None:
        self._rules = rules
        self.identity = f"{self.name} {rules}"

    def content(self, request: Request) -> str:
        """The response, and the gold one."""
        assert isinstance(request, ScoreRequest)
        return f"{len(request.response)} {request.response}{request.exchange.reference}"

    def tokens(self, requests: Sequence[Request]) -> Tokens:
        """None."""
        return Tokens(0, 0, exact=True)

    def answers(self, requests: Sequence[Request]) -> Generator[tuple[int, Answer], None, None]:
        """The scores, in order."""
        for index, request in enumerate(requests):
            yield index, self._answer(request)

    def _answer(self, request: Request) -> Answer:
        assert isinstance(request, ScoreRequest)
        if request.exchange.reference is None:
            return Loss.NO_REFERENCE
        share = rouge([request.response], [request.exchange.reference], self._rules)["rouge_l"]
        return LOWEST + (HIGHEST - LOWEST) * share


@register("rouge_proxy")
def _rouge_proxy(settings: RougeProxySettings, base: object = None) -> RougeProxy:
    return RougeProxy()
