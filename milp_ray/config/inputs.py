"""What a study reads: the sections ``model``, ``data`` and ``prompts``."""

from __future__ import annotations

import datetime
import re
import string
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from milp_ray.config.settings import Fraction, Positive, Settings, usable_url

COMMIT_PATTERN = r"[0-9a-f]{40}"
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


class ModelSettings(Settings):
    """Which base model, and in what number format it stays resident (frozen) on a worker."""

    path: str = Field(min_length=1, description="folder, GGUF file or hub name (docs/models.md)")
    revision: str | None = Field(None, description="hub revision; pin it for runs that must repeat")
    # No float16: without loss scaling its small gradients vanish.
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 on a GPU, float32 on a CPU"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one")
    trust_remote_code: bool = Field(
        False,
        description="run Python that the model brings; of a hub model it needs a revision pinned to a commit",
    )
    code_revision: str | None = Field(
        None,
        pattern=f"^{COMMIT_PATTERN}$",
        description="commit of another repository whose code the model names; needs trust_remote_code",
    )

    @model_validator(mode="after")
    def _code_is_pinned(self) -> Self:
        named = HUB_NAME.fullmatch(self.path)  # a folder's code is pinned by the run itself
        if self.trust_remote_code and named and not re.fullmatch(COMMIT_PATTERN, self.revision or ""):
            raise ValueError(
                "trust_remote_code runs the repository's code, so revision must be a commit (40 hex digits); "
                "a folder's path begins with ./ or /"
            )
        if self.code_revision and not self.trust_remote_code:
            raise ValueError("code_revision pins code that only runs with trust_remote_code")
        return self


class SplitSettings(Settings):
    """How samples are divided (paper, section 3.4: 70/10/20)."""

    regime: Literal["per_user", "by_user"] = "per_user"
    train: Fraction = 0.7
    validation: Fraction = 0.1
    test: Fraction = 0.2

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + validation + test is {total:g}, and must be 1")
        return self


class ColumnSettings(Settings):
    """Which column of a table, or key of a chat, holds what; null: the name in docs/data.md."""

    user: str | None = Field(None, min_length=1, description="who wrote it")
    query: str | None = Field(None, min_length=1, description="what was asked")
    response: str | None = Field(None, min_length=1, description="what the user's model should answer")
    time: str | None = Field(None, min_length=1, description="when; ISO 8601, or seconds since 1970")
    context: str | None = Field(None, min_length=1, description="further text that belongs to the query")
    text: str | None = Field(
        None, min_length=1, description="what goes into the history; null: the query and the response"
    )


class DataSettings(Settings):
    """Where the users' texts are, and how much of each user is used."""

    path: str = Field(min_length=1, description="file of users' texts, or its URL")
    format: str = Field("jsonl", description="name of a registered reader")
    files: dict[str, Annotated[str, Field(min_length=1)]] = Field(
        {}, description="further files that a format has, by their names in docs/data.md"
    )
    columns: ColumnSettings = ColumnSettings()
    users: Positive | tuple[str, ...] | None = Field(
        None, description="how many users (the first ones), or their ids; null: all"
    )
    alias_key: str | None = Field(
        None,
        min_length=1,
        description="file with the aliases' key (32 bytes, yours alone), for runs that are to have the same "
        "aliases and seeds; null: a new key for each run",
    )
    min_samples: Positive = Field(10, description="a per-user split needs at least this many samples")
    max_history: Positive | None = Field(None, description="newest history texts kept per user; null: all")
    max_samples: Positive | None = Field(None, description="newest samples kept per user; null: all")
    split: SplitSettings = SplitSettings()
    text_rules: Literal[1, 2] = Field(
        2, description="what words and leaks are; 1: in runs that older versions began (docs/data.md)"
    )

    _is_usable = field_validator("path")(usable_url)

    @field_validator("files")
    @classmethod
    def _are_usable(cls, value: dict[str, str]) -> dict[str, str]:
        return {name: usable_url(path) for name, path in value.items()}


class PromptSettings(Settings):
    """The text phrases of both stages (paper, section 3.1), or the model's own chat template."""

    style: Literal["plain", "chat"] = "plain"
    history: str = "History: {text}"
    instruction: str = "User: {query}\nResponse: {response}"
    context: str = Field("{query}\n{context}", description="how a sample's context joins its query")
    max_length: Annotated[int, Field(ge=16)] = Field(512, description="tokens; longer texts are cut")
    thinking: Literal["template", "off"] = Field(
        "template", description="chat: thinking as the template has it by default, or switched off"
    )
    date: Annotated[datetime.date | None, Field(strict=False)] = Field(
        None, description="chat: what a template that reads the clock gets; null: the day the run begins"
    )
    # How texts become tokens, of which a run keeps the number (run.json); nothing that a study
    # says.
    encoding: Literal[1, 2] = Field(2, exclude=True, repr=False)

    @field_validator("history", "instruction", "context")
    @classmethod
    def _placeholders(cls, value: str, info: object) -> str:
        needed = {"history": ["text"], "instruction": ["query", "response"], "context": ["query", "context"]}
        names = needed[info.field_name]  # type: ignore[attr-defined]
        try:
            found = [name for _, name, _, _ in string.Formatter().parse(value) if name is not None]
        except ValueError as error:
            raise ValueError(f"is not a well-formed phrase: {error}") from None
        if sorted(found) != sorted(names):
            raise ValueError(
                f"needs exactly {', '.join('{' + n + '}' for n in names)}, has {found or 'none'}"
            )
        if "response" in names and not value.endswith("{response}"):
            raise ValueError("must end with {response}: the loss is taken on what follows the prompt")
        return value
