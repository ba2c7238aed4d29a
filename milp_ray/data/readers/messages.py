"""The reader of chats: JSON lines of OpenAI's form, or of ShareGPT's, with a user id in each line.

``{"user_id", "messages": [{"role", "content"}, …], "time"?}`` or ``{"user_id", "conversations":
[{"from", "value"}, …], "time"?}``; ``data.columns`` renames ``user_id`` (``user``) and ``time``. A
line is a conversation, a user all lines with the same id: in the order of ``time``, or of the file.

The history is what was said, as "User: …" and "Assistant: …". A sample is what a user said, in one
message or several, and the assistant's answer right after it; it knows all that was said before the
answer. Messages of other roles (system, developer, tool, function) and parts that are no text
(images, calls) are passed over. What both sides say before the user's first words is no sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from milp_ray.data.readers import ReadResult, Source, register
from milp_ray.data.readers.lines import MAX_LINE_BYTES, ValueLines
from milp_ray.data.readers.rows import cell_text
from milp_ray.data.readers.strict import Fault, Faults, LineFile, check_text, kind_of, parse
from milp_ray.data.readers.timelines import Moment, Timelines, seconds
from milp_ray.data.records import Sample
from milp_ray.errors import Problem

NO_MESSAGES = "conversations without a message of the user"

USER, ASSISTANT = "User", "Assistant"
_ROLES = {
    "user": USER,
    "human": USER,
    "prompter": USER,
    "assistant": ASSISTANT,
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "bing": ASSISTANT,
    "bard": ASSISTANT,
    "model": ASSISTANT,
    "bot": ASSISTANT,
    "system": "",
    "developer": "",
    "tool": "",
    "function": "",
    "function_call": "",
    "observation": "",
}
_LINE = "an object with a user id and messages (or conversations)"


@register("messages", users="whoever a line's `user_id` names", licence="your own", columns=("user", "time"))
def read_messages(source: Source) -> ReadResult:
    """Read conversations.

    Raises:
        DataError: it cannot be read, or with the problems of its lines.
    """
    named = source.settings.columns
    user_key, time_key = named.user or "user_id", named.time or "time"
    faults = Faults(str(source.path))
    file = LineFile(source.path, MAX_LINE_BYTES, "text")
    timelines = Timelines()
    dropped: Counter[str] = Counter()
    times: set[bool] = set()
    remedy = f"write {_LINE} a line: docs/data.md has the keys"
    for line in ValueLines(file, _conversation, faults, _LINE, remedy):
        try:
            user_id = cell_text(line.value.get(user_key), "the user id", single_line=True)
            if user_id is None:
                raise Fault("no user id", f"a text under {user_key!r}", "name its key in data.columns.user")
            time = seconds(line.value.get(time_key), "time")
            moment = _moment(time, list(turns(line.value)))
        except Fault as fault:
            faults.add(fault.at(line.where))
            continue
        if not any(text.startswith(f"{USER}: ") for text in moment.texts):
            dropped[NO_MESSAGES] += 1
            continue
        times.add(time is not None)
        if len(times) > 1:
            expected = "a time in each line, or in none"
            faults.add(Problem(line.where, "time stands in some lines, not in all", expected, "fill it in"))
            times.clear()
        timelines.add(user_id, moment)
    faults.raise_if_any()
    users, skipped = timelines.users()
    return ReadResult(users, skipped, file.fingerprint, dict(dropped))


def turns(conversation: dict[str, object]) -> Iterator[tuple[str, str]]:
    """Who said what: (:data:`USER` or :data:`ASSISTANT`, text).

    Raises:
        Fault: a message of another shape, or of a role that nobody knows.
    """
    key, role_key, text_key = _shape(conversation)
    messages = conversation[key]
    if not isinstance(messages, list):
        raise Fault(f"{key} is {kind_of(messages)}", "a list of messages")
    for i, message in enumerate(messages):
        place = f"{key}[{i}]"
        if not isinstance(message, dict):
            raise Fault(f"{place} is {kind_of(message)}", f"an object with {role_key} and {text_key}")
        name = message.get(role_key)
        role = _ROLES.get(name.lower()) if isinstance(name, str) else None
        if role is None:
            expected = "one of " + ", ".join(_ROLES)
            raise Fault(f"{place}.{role_key} is no known role", expected, "rename it, or take it out")
        text = _text(message.get(text_key), f"{place}.{text_key}")
        if role and text is not None:
            yield role, text


def exchanges(said: list[tuple[str, str]]) -> list[Sample]:
    """A user's words and the answer right after them, with the answer's place as ``n_hist``."""
    samples: list[Sample] = []
    asked: list[str] = []
    for place, (role, text) in enumerate(said):
        if role == USER:
            asked.append(text)
        else:
            if asked:
                samples.append(Sample("\n".join(asked), text, n_hist=place))
            asked = []
    return samples


def _conversation(raw: bytes) -> dict[str, object]:
    value = parse(raw)
    if not isinstance(value, dict):
        raise Fault(f"the line is {kind_of(value)}", _LINE)
    _shape(value)
    return value


def _shape(conversation: dict[str, object]) -> tuple[str, str, str]:
    if "messages" in conversation:
        return "messages", "role", "content"
    if "conversations" in conversation:
        return "conversations", "from", "value"
    raise Fault("the object has neither messages nor conversations", _LINE)


def _text(content: object, name: str) -> str | None:
    """A message's text, None where it has none; of a list of parts the texts."""
    if isinstance(content, list):
        parts = [
            part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"
        ]
        content = "\n".join(part for part in parts if isinstance(part, str))
    if content is None or (isinstance(content, str) and not content.strip()):
        return None
    return check_text(content, name)


def _moment(time: float | None, said: list[tuple[str, str]]) -> Moment:
    return Moment(time, tuple(f"{role}: {text}" for role, text in said), tuple(exchanges(said)))
