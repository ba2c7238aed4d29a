"""What a judge of responses is: an endpoint, a local model, or the ROUGE proxy."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import ConfigDict, Field, model_validator

from milp_ray.config.inputs import ModelSettings
from milp_ray.config.settings import Positive, Settings

_Seconds = Annotated[float, Field(gt=0, le=3600)]
_Price = Annotated[float, Field(ge=0)]


class EndpointSettings(Settings):
    """A server that speaks OpenAI's chat completions: OpenAI's, vLLM's, Ollama's, …"""

    model_config = ConfigDict(hide_input_in_errors=True)  # a URL may hold a password

    kind: Literal["endpoint"] = "endpoint"
    url: str = Field(description="base of its API, such as https://api.openai.com/v1")
    model: str = Field(min_length=1, description="the model's name there")
    key_variable: str | None = Field(None, min_length=1, description="environment variable with the API key")
    key_file: str | None = Field(None, min_length=1, description="file with the API key, yours alone")
    allow_http: bool = Field(
        False, description="another machine without TLS: texts and key can be read on the way"
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        0.0, description="null: the model's own; models that reason take no other"
    )
    max_tokens: Positive = Field(16, description="of an answer; models that reason need thousands")
    token_limit: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="what the server calls max_tokens; newer models of OpenAI: the latter"
    )
    concurrency: Annotated[int, Field(ge=1, le=64)] = Field(4, description="requests at once")
    timeout: _Seconds = Field(60.0, description="seconds for one answer")
    attempts: Annotated[int, Field(ge=1, le=20)] = Field(4, description="for one answer")
    longest_wait: _Seconds = Field(60.0, description="seconds between two attempts, at most")
    failures_in_a_row: Positive = Field(10, description="after so many the judge is not asked any more")
    tokenizer: str | None = Field(None, min_length=1, description="folder or hub name, to count tokens with")
    input_price: _Price | None = Field(None, description="of a million tokens")
    output_price: _Price | None = Field(None, description="of a million tokens")

    @model_validator(mode="after")
    def _is_usable(self) -> Self:
        try:
            parts = urlsplit(self.url)
            parts.port  # noqa: B018  (which raises)
        except ValueError:
            raise ValueError("url is not a URL") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("url must begin with https://host, or http://127.0.0.1")
        if parts.username is not None or parts.password is not None:
            raise ValueError("url holds a password: name the key with key_variable or key_file")
        if not (self.url.isascii() and self.url.isprintable() and " " not in self.url) or parts.fragment:
            raise ValueError("url holds characters that no address of a server has")
        if parts.scheme == "http" and not self.allow_http and not _is_loopback(parts):
            raise ValueError(
                f"url is http:// on another machine ({parts.hostname}), where texts and key can be read on "
                "the way: use https://, or insist with allow_http"
            )
        if self.key_variable and self.key_file:
            raise ValueError("key_variable and key_file both name a key: keep one")
        if (self.input_price is None) != (self.output_price is None):
            raise ValueError("input_price and output_price belong together")
        return self

    @property
    def is_here(self) -> bool:
        """Whether the server is on this machine's loopback."""
        return _is_loopback(urlsplit(self.url))

    @property
    def host(self) -> str:
        """Scheme, host and port: what errors name."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"


class LocalModelSettings(Settings):
    """A causal language model of transformers, greedy, on this machine."""

    kind: Literal["local_model"] = "local_model"
    model: ModelSettings
    batch_size: Positive = 8
    max_new_tokens: Positive = Field(16, description="of an answer")


class RougeProxySettings(Settings):
    """No judge: ROUGE-L with the gold response, on a judge's scale."""

    kind: Literal["rouge_proxy"] = "rouge_proxy"


JudgeSettings = Annotated[
    EndpointSettings | LocalModelSettings | RougeProxySettings, Field(discriminator="kind")
]


def _is_loopback(parts: SplitResult) -> bool:
    host = parts.hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
