"""`milp-ray respond`: what the base answers, and what it answers with users' memories.

The prompt is the one that was trained on, token for token, and all rows share batches, whatever
their memories (:mod:`milp_ray.evaluation.common_batches`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from milp_ray.data.prompts import Prompts
from milp_ray.data.records import Sample
from milp_ray.errors import Problem, RunFolderError, StudyError
from milp_ray.evaluation.common_batches import Request, decode
from milp_ray.evaluation.measure import encode_prompts
from milp_ray.layout import ADAPTER_CONFIG
from milp_ray.memory.adapter_notes import check_content
from milp_ray.model.base import load_base
from milp_ray.model.fingerprint import base_fingerprint, check_base
from milp_ray.serving.memories import users_with_memory
from milp_ray.storage import local_copy, reading
from milp_ray.study.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class Reply:
    """Answers to a query.

    Attributes:
        query: what was asked.
        alias: whose memory answered.
        base: the answer without a memory.
        memory: the answer with it.
    """

    query: str
    alias: str
    base: str
    memory: str

    def __repr__(self) -> str:  # a user's memory may say what the user wrote
        return f"Reply({self.alias})"


def queries_of(words: Sequence[str], file: Path | None, *, all_users: bool) -> tuple[list[str], list[str]]:
    """Users and queries of a command line: USER and query, unless a file or all users are given.

    Raises:
        StudyError: they are too few, or too many, or the file cannot be read.
    """
    words, wanted = list(words), (not all_users) + (file is None)
    if len(words) != wanted:
        names = " ".join([*([] if all_users else ["USER"]), *(['"query"'] if file is None else [])])
        fact = f"{len(words)} words stand after the run"
        raise StudyError("respond", [Problem("", fact, names or "none", "quote a query that has blanks")])
    users = [] if all_users else [words.pop(0)]
    if file is None:
        return users, words
    try:
        return users, file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problem = Problem(str(file), f"cannot be read ({type(error).__name__})", "UTF-8 text, a query a line")
        raise StudyError("respond", [problem]) from error


def respond(
    run: Path | str, queries: Sequence[str], users: Sequence[str] = (), *, max_new_tokens: int | None = None
) -> list[Reply]:
    """Greedy answers to every query with every user's memory, beside the bare model's.

    Args:
        run: the run folder, or its URL.
        queries: at least one.
        users: aliases, or raw ids; none: all who have a memory.
        max_new_tokens: of an answer; None: the study's own.

    Raises:
        RunFolderError: there is no run, or a user has no memory.
        ModelError: the base model is not usable, or is another one than the memories' own.
        StudyError: there is no query.
    """
    if not [query for query in queries if query.strip()]:
        raise StudyError("respond", [Problem("", "there is no query", "a query, or a file with one a line")])
    folder = RunFolder.open(run)
    aliases = users_with_memory(folder, users)
    study = folder.study
    check_base(folder.base, base_fingerprint(study.model))
    base, prompts = load_base(study.model), Prompts(study.prompts)
    most = max_new_tokens or study.trial.max_new_tokens
    asked = [Sample(query, "") for query in queries if query.strip()]
    encoded = encode_prompts(base, asked, prompts, most)
    with ExitStack() as stack:
        folders = {alias: stack.enter_context(local_copy(folder.layout.memory(alias))) for alias in aliases}
        for alias, place in folders.items():
            with reading(place):
                check_content(place, user=alias)
            if not (place / ADAPTER_CONFIG).exists():
                raise RunFolderError(f"the memory of {alias} is gone", where=folder.location)
        bare = [Request(ids) for ids in encoded]
        own = [Request(ids, (folders[alias],)) for ids in encoded for alias in aliases]
        texts = decode(base, [*bare, *own], prompts, most)
    answers = iter(texts[len(bare) :])
    return [
        Reply(sample.query, alias, plain, next(answers))
        for sample, plain in zip(asked, texts, strict=False)
        for alias in aliases
    ]
