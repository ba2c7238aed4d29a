"""What a run keeps of its prompts (``run.json``): all workers, resumes and final jobs share it.

A template that reads the clock gives other tokens on another day and in another time zone; so the
day is kept on which the run begins. Trials are compared with each other; so a run that was begun
before prompts followed ``apply_chat_template`` token for token goes on as it was.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Mapping

from milp_ray.config.models import Study
from milp_ray.data.chat_template import ChatTemplate, today
from milp_ray.data.prompts import Prompts

_ENCODING = 2


def prompt_frame(study: Study) -> dict[str, object]:
    """What is kept of a new run's prompts: the encoding and a chat template's example.

    A template that reads the clock also gets a date, which is kept.

    Raises:
        ModelError: there is no usable tokenizer or chat template.
    """
    found: dict[str, object] = {"encoding": _ENCODING}
    if study.prompts.style == "plain" or study.simulation is not None:
        return found
    from milp_ray.model.pretrained import load_tokenizer

    date = study.prompts.date or today()
    chat = ChatTemplate(load_tokenizer(study.model), study.prompts.thinking, date)
    if chat.reads_clock:
        found["date"] = date.isoformat()
    turns = chat.turns("{query}", "{response}")
    found["prompt"], found["completion"] = (
        "".join(segment.text for segment in part) for part in (turns.prompt, turns.completion)
    )
    return found


def prompt_notes(study: Study) -> list[str]:
    """What there is to know about a study's prompts, a sentence each; nothing about plain ones.

    Raises:
        ModelError: as :func:`prompt_frame`.
    """
    if study.prompts.style == "plain" or study.simulation is not None:
        return []
    from milp_ray.model.pretrained import load_tokenizer

    return Prompts(study.prompts).notes(load_tokenizer(study.model))


def with_frame(study: Study, meta: Mapping[str, object]) -> Study:
    """The study of a run with the prompts that ``run.json`` says it has."""
    frame = meta.get("prompts")
    if isinstance(frame, Mapping):
        encoding, date = frame.get("encoding", _ENCODING), frame.get("date")
    else:  # begun before it was kept; its first trials saw the day on which it began
        encoding, date = 1, str(meta.get("created", ""))[:10]
    changes: dict[str, object] = {"encoding": encoding}
    with contextlib.suppress(TypeError, ValueError):
        changes["date"] = datetime.date.fromisoformat(date)  # type: ignore[arg-type]
    return study.model_copy(update={"prompts": study.prompts.model_copy(update=changes)})
