"""``uelp``: a user's embedding as soft tokens in front of the prompt.

The paper compares with USER-LLM (docs/references.md: Ning 2024), of which no official code exists.
What it says: an encoder turns a user's past into embeddings; these reach a frozen language model as
a soft prompt (or by cross attention), and encoder and projection are trained on many users. What is
chosen here:

- **What is encoded:** the newest 32 texts before the point in time; each is the mean of the frozen
  base's last hidden states over the text. The paper trains an encoder of its own on events with
  categories, which texts do not have.
- **The encoder:** as in the paper's Perceiver variant, so many learned queries as there are soft
  tokens (``options.soft_tokens``) attend to the texts, one head of at most 256 numbers, with one
  learned key for "nothing", so that a user without texts has an embedding, too. A linear map leads
  to the base's width; layer norm gives the vectors the spread of token embeddings.
- **Training:** the base stays frozen, and no LoRA is added. The encoder is trained on background
  users' samples, loss on the responses; a sample's user is encoded from what was written *before*
  it, so that no response is among the texts. Passes, optimizer and learning-rate choice are those
  of stage 2 of every trained method.
- **In use:** a measured user is encoded once, from the texts that a final training sees. The soft
  tokens stand right after the start token, where the base has one. Nothing is trained per user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from milp_ray.data.records import Sample, UserSplit
from milp_ray.errors import StorageError, TrialFailed
from milp_ray.evaluation.baselines import register
from milp_ray.evaluation.baselines.contents import QueryAlone
from milp_ray.evaluation.baselines.interface import (
    Bench,
    Carried,
    Cost,
    Learned,
    Method,
    own_folder,
    remembered,
)
from milp_ray.evaluation.baselines.rates import choose_rate
from milp_ray.evaluation.baselines.training import run_stages, spread
from milp_ray.model.base import BaseModel
from milp_ray.model.batches import (
    Example,
    RankLoss,
    by_length,
    collate,
    history_examples,
    sample_examples,
    token_logits,
)
from milp_ray.model.row_adapters import Row, SideBySide, SoftTokens
from milp_ray.storage import atomic_write
from milp_ray.training.loop import IsolatedRNG
from milp_ray.trial.stages import Stage

TEXTS = 32  # newest, of a user
WIDTH = 256  # of the attention, at most
ENCODER, SOFT_TOKENS = "encoder.safetensors", "soft_tokens.safetensors"


@register("uelp")
def uelp(bench: Bench) -> Method:
    """See the module."""
    return Method("uelp", bench, UserEmbedding(bench), QueryAlone(bench, bench.options.soft_tokens))


class UserEncoder(nn.Module):
    """Features of a user's texts, ``n x h``, to soft tokens, ``k x h``.

    Args:
        hidden: h, the base's width.
        count: k.
        spread: of the base's token embeddings, which the soft tokens begin with.
    """

    def __init__(self, hidden: int, count: int, spread: float) -> None:
        super().__init__()
        width = min(hidden, WIDTH)
        self.norm = nn.LayerNorm(hidden)
        self.keys, self.values = nn.Linear(hidden, width), nn.Linear(hidden, width)
        self.queries = nn.Parameter(torch.randn(count, width))
        self.nothing = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.out, self.out_norm = nn.Linear(width, hidden), nn.LayerNorm(hidden)
        nn.init.constant_(self.out_norm.weight, spread)

    def forward(self, texts: Tensor) -> Tensor:
        """See the class."""
        normed = self.norm(texts)
        keys = torch.cat([self.nothing[:1], self.keys(normed)])  # (n + 1) x d
        values = torch.cat([self.nothing[1:], self.values(normed)])
        weights = (self.queries @ keys.T / keys.shape[1] ** 0.5).softmax(-1)  # k x (n + 1)
        result: Tensor = self.out_norm(self.out(self.queries + weights @ values))
        return result


class UserEmbedding:
    """An encoder for everybody, and what it makes of each user."""

    name = "uelp"

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._folder = own_folder(bench, self.name)

    @property
    def fitted(self) -> frozenset[Path]:
        """See :class:`~milp_ray.evaluation.baselines.interface.Source`."""
        return frozenset({self._folder})

    def fit(self, background: Sequence[UserSplit]) -> Learned:
        """Train the encoder on background users."""
        return remembered(self._folder, lambda: self._fit(background))

    def learn(self, user: UserSplit) -> Learned:
        """Encode the user; nothing is trained."""
        return remembered(own_folder(self._bench, self.name, user.alias), lambda: self._learn(user))

    def carried(self, user: UserSplit) -> Carried:
        """The user's soft tokens."""
        return Carried(soft_tokens=self._file(user), num_soft=self._bench.options.soft_tokens)

    def _file(self, user: UserSplit) -> Path:
        return own_folder(self._bench, self.name, user.alias) / SOFT_TOKENS

    def _learn(self, user: UserSplit) -> Learned:
        bench, file = self._bench, self._file(user)
        encoder = new_encoder(bench)
        try:
            encoder.load_state_dict(load_file(self._folder / ENCODER))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise StorageError(
                f"the user encoder could not be read ({type(error).__name__})",
                where=f"{self.name}/{ENCODER}",
                expected="one that was trained on background users, for as many soft tokens",
                remedy=f"delete the folder {self.name}, and it is trained again",
            ) from error
        texts = user.final_history[-TEXTS:]
        with torch.no_grad():
            vectors = encoder(text_features(bench, texts)).cpu().contiguous()
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, lambda draft: save_file({"soft_tokens": vectors}, draft))
        cost = Cost(adapter_bytes=file.stat().st_size)
        return Learned(cost, f"{len(vectors)} soft tokens from {len(texts)} texts; nothing is trained")

    def _fit(self, background: Sequence[UserSplit]) -> Learned:
        bench, most = self._bench, self._bench.options.background_samples
        everything = bench.study.final.train_on != "train"
        train = [user_examples(bench, user, user.train) for user in background]
        validation = [user_examples(bench, user, user.validation) for user in background]
        pairs = zip(train, validation, strict=True)
        used = spread([[*first, *second] if everything else first for first, second in pairs], most)
        measured = spread(validation, max(1, most // 4))
        if not used:
            raise TrialFailed("no background user has samples to train on")

        def attempt(rate: float) -> tuple[list[float], int]:
            encoder, tokens = self._trained(spread(train, most), rate)
            return [encoder_loss(bench, encoder, [one]) for one in measured], tokens

        whom = f"the loss on {len(measured)} validation samples of background users"
        able = attempt if measured and any(train) else None
        rate = choose_rate(bench, bench.optimizer.learning_rate, able, whom)
        encoder, tokens = self._trained(used, rate.value)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
        self._folder.mkdir(parents=True, exist_ok=True)
        atomic_write(self._folder / ENCODER, lambda draft: save_file(state, draft))
        return Learned(
            Cost(
                trained_tokens=tokens + rate.tokens,
                trainable_params=sum(parameter.numel() for parameter in encoder.parameters()),
                adapter_bytes=(self._folder / ENCODER).stat().st_size,
            ),
            f"{len(used)} samples of {len(background)} background users, "
            f"{bench.study.final.instruct_epochs} passes; {rate.note}",
        )

    def _trained(self, examples: Sequence[UserExample], rate: float) -> tuple[UserEncoder, int]:
        bench = self._bench
        encoder = new_encoder(bench)
        stage = Stage("instruct", list(examples), bench.study.final.instruct_epochs)
        optimizer = bench.optimizer.model_copy(update={"learning_rate": rate})
        tokens = run_stages(
            bench,
            [stage],
            optimizer,
            bench.seed,
            trained=_Trained(encoder),
            rank_loss=lambda texts, labels: SoftTokenLoss(bench.base, encoder, texts, labels),
        )
        return encoder, tokens


@dataclass(frozen=True, slots=True, eq=False)
class UserExample(Example):
    """A sample of somebody: its tokens, with room for the soft tokens, and what they are made of.

    Attributes:
        texts: features of what the user had written before, ``n x h``.
        start: where the soft tokens stand.
    """

    texts: Tensor
    start: int


class SoftTokenLoss(RankLoss):
    """The loss of a batch whose rows begin with their users' soft tokens.

    Args:
        base: frozen.
        encoder: makes the soft tokens, and gets the gradients.
        examples: each a :class:`UserExample`.
        num_labels: of the whole batch, of all ranks.
    """

    def __init__(
        self, base: BaseModel, encoder: UserEncoder, examples: Sequence[Example], num_labels: float
    ) -> None:
        super().__init__(base, collate(examples, base), num_labels)
        self._encoder, self._examples = encoder, examples

    def __call__(self) -> Tensor:
        """The loss, a scalar with a graph of gradients."""
        rows = []
        for example in self._examples:
            assert isinstance(example, UserExample)
            soft = SoftTokens(self._encoder(example.texts), example.start)
            rows.append(Row(len(example.ids), soft=soft))
        with SideBySide(self._base, rows, left=False).on(self._base):
            return super().__call__()


class _Trained:
    """The encoder, as :class:`milp_ray.training.loop.StageTrainer` steps it; it has no dropout."""

    def __init__(self, encoder: UserEncoder) -> None:
        self._encoder = encoder

    def parameters(self) -> list[nn.Parameter]:
        return list(self._encoder.parameters())

    def train(self, mode: bool) -> None:
        pass


def new_encoder(bench: Bench) -> UserEncoder:
    """An encoder as it is before training, the same for the same seed."""
    base = bench.base
    table: Tensor = base.model.get_input_embeddings().weight  # type: ignore[operator]
    with IsolatedRNG(bench.seed, base.device).active():
        encoder = UserEncoder(
            base.architecture.hidden_size, bench.options.soft_tokens, float(table.float().std())
        )
    return encoder.to(base.device)


def encoder_loss(bench: Bench, encoder: UserEncoder, examples: Sequence[UserExample]) -> float:
    """The mean loss of examples with the soft tokens that an encoder makes, nats per token."""
    nats, labels = 0.0, 0
    for indices in by_length([len(one.ids) for one in examples], bench.study.trial.eval_batch_size):
        batch = [examples[index] for index in indices]
        with torch.no_grad():
            nats += float(SoftTokenLoss(bench.base, encoder, batch, 1)())
        labels += sum(one.num_labels for one in batch)
    return nats / labels


def user_examples(bench: Bench, user: UserSplit, samples: Sequence[Sample]) -> list[UserExample]:
    """A user's samples, each with the features of what was written before it."""
    base, count = bench.base, bench.options.soft_tokens
    if not samples:
        return []
    features = text_features(bench, user.history[: user.final_cut])
    start = 0 if base.tokenizer.bos_token_id is None else 1
    found = []
    for sample in samples:
        for example in sample_examples(base, bench.prompts, [sample]):
            end = user.final_cut if sample.n_hist is None else min(sample.n_hist, user.final_cut)
            ids = (*example.ids[:start], *[base.pad_id] * count, *example.ids[start:])
            texts = features[max(0, end - TEXTS) : end]
            found.append(UserExample(ids, example.prompt_length + count, texts, start))
    return found


def text_features(bench: Bench, texts: Sequence[str]) -> Tensor:
    """The mean of the frozen base's last hidden states over each text, ``n x h``, fp32."""
    base = bench.base
    features = torch.zeros(len(texts), base.architecture.hidden_size, device=base.device)
    # A phrase of no text is a token or more; one of a single token has no example, and stays zero.
    examples = [history_examples(base, bench.prompts, [text]) for text in texts]
    there = [(place, found[0]) for place, found in enumerate(examples) if found]
    for indices in by_length([len(one.ids) for _, one in there], bench.study.trial.eval_batch_size):
        batch = [there[index] for index in indices]
        hidden: list[Tensor] = []

        def keep(states: Tensor, into: list[Tensor] = hidden) -> Tensor:
            into.append(states)
            return states.flatten(0, 1)[:1]

        with base.measuring():
            token_logits(base, collate([one for _, one in batch], base), keep)
        for row, (place, one) in enumerate(batch):
            features[place] = hidden[0][row, : len(one.ids) - 1].float().mean(0)
    return features
