"""The reader of MaLP's dialogue files (MedicalDialogue) as released: one JSON list a file.

A dialogue is a list of exchanges ``{"0": {"Assistant": text, "User": text}}``, ``{"1": ...}``. The
doctor (Assistant) greets first, so what the patient says in exchange i is answered by the doctor in
exchange i + 1. The files carry no patient ids and their profiles cannot be joined to dialogues, so
**one dialogue is one user**, ``dialogue-<index in the file>``, with at most five samples: too few
for a per-user split, so use the by-user regime (or group the dialogues yourself and write
milp_ray's own JSONL). Profiles are *not* read.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from milp_ray.data.readers import ReadResult, Source, register
from milp_ray.data.readers.json_list import JsonList
from milp_ray.data.readers.strict import Fault, check_text
from milp_ray.data.records import Sample, UserRecord
from milp_ray.errors import DataError, Problem

MALFORMED = "malformed dialogue"
NO_SAMPLES = "no samples"

_SHAPE = 'a list of dialogues, each a list of {"0": {"Assistant": text, "User": text}}'
_ROLES = {
    "doctor": "Doctor",
    "assistant": "Doctor",
    "patient": "Patient",
    "user": "Patient",
    "you": "Patient",
}
_TAG = re.compile(r'"?\s*(doctor|assistant|patient|user|you)\s*:\s*', re.IGNORECASE)
_CLOSING_NOTE = re.compile(r"\s*\(end of [^)]*\)\s*$", re.IGNORECASE)
# Turns in which the generator of the data failed, refused, fell out of its role, or wrote both
# roles at once.
_NOISE = re.compile(
    r"\b(?:an ai|ai model|language model|error networking|check your network|problem with your network"
    r"|end of simulation)\b|\n\s*(?:doctor|patient)\s*:",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class _Turn:
    role: str
    text: str
    noise: bool


@register(
    "malp",
    users="one dialogue is one user; the files carry no patient ids",
    licence="MIT",
    citation="Zhang et al., MaLP (github.com/MatthewKKai/MaLP)",
)
def read_malp(source: Source) -> ReadResult:
    """Read a dialogue file. A dialogue that is not of the released shape is skipped and counted.

    Turns that are empty, or in which the data's generator failed or refused, are dropped, and so is
    the greeting before the patient's first words. A sample is a patient's turn and the doctor's
    turn right after it; its ``n_hist`` is the doctor's turn's place in the history.

    Raises:
        DataError: the file cannot be read, or nothing in it has the shape.
    """
    path = source.path
    dialogues = JsonList(path, _SHAPE)
    count = 0
    users: list[UserRecord] = []
    skipped: Counter[str] = Counter()
    for index, dialogue in enumerate(dialogues):
        count += 1
        turns = _turns(dialogue)
        if turns is None:
            skipped[MALFORMED] += 1
            continue
        user = _user(turns, index)
        if user is None:
            skipped[NO_SAMPLES] += 1
        else:
            users.append(user)
    if count and skipped[MALFORMED] == count:
        raise _wrong_shape(path, f"none of its {count} entries is a dialogue")
    return ReadResult(tuple(users), dict(skipped), dialogues.fingerprint)


def _turns(dialogue: object) -> list[_Turn] | None:
    """Who said what, without empty turns; None where the dialogue has not the released shape."""
    if not isinstance(dialogue, list) or not dialogue:
        return None
    turns: list[_Turn] = []
    for number, item in enumerate(dialogue):
        exchange = item.get(str(number)) if isinstance(item, dict) and len(item) == 1 else None
        if not isinstance(exchange, dict) or set(exchange) != {"Assistant", "User"}:
            return None
        for key in ("Assistant", "User"):
            said = exchange[key]
            if not isinstance(said, str):
                return None
            role, text = _clean(said)
            if not text:
                continue
            try:
                check_text(text, "turn")
            except Fault:
                return None
            noise = bool(_NOISE.search(text))
            # After an empty turn the file's two keys change places, so a turn without a tag to be
            # trusted belongs to whoever did not speak last; the key decides for the first one only.
            if role is None or (noise and turns):
                role = _other(turns[-1].role) if turns else _ROLES[key.lower()]
            turns.append(_Turn(role, text, noise))
    return turns


def _user(turns: list[_Turn], index: int) -> UserRecord | None:
    history: list[str] = []
    samples: list[Sample] = []
    previous: _Turn | None = None
    for turn in turns:
        answers = previous is not None and previous.role == "Patient" and not previous.noise
        if not turn.noise and (history or turn.role == "Patient"):
            if turn.role == "Doctor" and answers and previous is not None:
                samples.append(Sample(previous.text, turn.text, n_hist=len(history)))
            history.append(f"{turn.role}: {turn.text}")
        previous = turn
    return UserRecord(f"dialogue-{index}", tuple(history), tuple(samples)) if samples else None


def _clean(said: str) -> tuple[str | None, str]:
    """The role that a tag names, if any, and the words without tag and enclosing quotes."""
    role = None
    text = _unquote(_CLOSING_NOTE.sub("", said).strip())
    if tag := _TAG.match(text):
        role = _ROLES[tag.group(1).lower()]
        text = _unquote(text[tag.end() :].strip())
    return role, text


def _unquote(text: str) -> str:
    """Without the doubled quotes around the whole text; quotes inside it stay."""
    while len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1]:
        text = text[1:-1].strip()
    if text.count('"') == 1:  # only one of the two was written
        text = text.strip('"').strip()
    return text


def _other(role: str) -> str:
    return "Doctor" if role == "Patient" else "Patient"


def _wrong_shape(path: Path, fact: str) -> DataError:
    remedy = "use data.format: jsonl for milp_ray's own format"
    return DataError(str(path), [Problem("", fact, _SHAPE, remedy)])
