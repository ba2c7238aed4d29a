"""The demo's base model: a tiny Llama and its tokenizer, trained on the spot on generated personas.

The model knows how people of :mod:`milp_ray.data.personas` talk, and nothing about any one of them,
so that a memory has something to add. It is a toy, of no use elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from milp_ray.data.persona_words import ADDRESSES, FACTS, HOW_MANY, TASTES, TOPICS
from milp_ray.data.personas import generate_personas
from milp_ray.storage import write_folder

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

#: Raised whenever a change of code, here or in the personas, makes another model of the same sizes
#: and words.
RECIPE = 1

#: Personas below this number are never trained on: they are the demo's users.
FIRST_BACKGROUND = 1000

PAD, BOS, EOS = "<pad>", "<s>", "</s>"


@dataclass(frozen=True, slots=True)
class DemoModelSizes:
    """Sizes of the model and its training; the defaults take 40 to 50 s on one core."""

    layers: int = 6
    hidden: int = 96
    feed_forward: int = 272
    heads: int = 4
    context: int = 256
    vocabulary: int = 1200
    personas: int = 160
    steps: int = 800
    batch: int = 4
    block: int = 128
    learning_rate: float = 5e-3


def build_demo_model(
    folder: Path,
    seed: int,
    threads: int,
    *,
    sizes: DemoModelSizes | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Path:
    """The demo's base model in ``folder/model-<hash>``, trained if it is not there yet.

    Args:
        folder: of the cache; made if it is missing.
        seed: of the personas, the initial weights and the order of the texts.
        threads: CPU threads to train with. Not part of the hash: another number gives the same
            model, up to the rounding of sums.
        sizes: None for the demo's own.
        progress: called after every optimizer step with (step, steps, loss in nats/token).

    Returns:
        A folder for ``from_pretrained``, complete: model (fp32 safetensors) and tokenizer.

    Raises:
        StorageError: the folder cannot be written.
    """
    sizes = sizes or DemoModelSizes()
    target = folder / f"model-{_fingerprint(sizes, seed)}"
    if (target / "config.json").is_file():
        return target
    with _deterministic(seed, threads):
        texts = background_texts(sizes.personas, seed)
        tokenizer = _train_tokenizer(texts, sizes.vocabulary)
        model = _train_model(tokenizer, texts, sizes, progress)

    def write(draft: Path) -> None:
        from milp_ray.model.quiet import no_progress_bar

        with no_progress_bar(), _no_accelerator_search():
            model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)

    write_folder(target, write)
    return target


@contextmanager
def _no_accelerator_search() -> Iterator[None]:
    """Saving imports DeepSpeed, if installed, which prints accelerators it finds unless told."""
    told = "DS_ACCELERATOR" in os.environ
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        yield
    finally:
        if not told:
            del os.environ["DS_ACCELERATOR"]


def background_texts(personas: int, seed: int) -> list[str]:
    """The texts that the model is trained on, each a document.

    They are in random order, so that no persona's texts are each other's context.
    """
    texts = []
    for user in generate_personas(personas, seed, first=FIRST_BACKGROUND):
        texts += [f"History: {text}" for text in user.history]
        texts += [f"User: {sample.query}\nResponse: {sample.response}" for sample in user.samples]
    random.Random(seed).shuffle(texts)
    return texts


def _fingerprint(sizes: DemoModelSizes, seed: int) -> str:
    words = [FACTS, TASTES, HOW_MANY, ADDRESSES, {name: asdict(topic) for name, topic in TOPICS.items()}]
    made_of = json.dumps({"recipe": RECIPE, "seed": seed, "words": words, **asdict(sizes)})
    return hashlib.sha256(made_of.encode()).hexdigest()[:12]


@contextmanager
def _deterministic(seed: int, threads: int) -> Iterator[None]:
    """Seed torch and set its threads, both put back afterwards."""
    import torch

    threads_before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads_before)


def _train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PAD, bos_token=BOS, eos_token=EOS)


def _train_model(
    tokenizer: PreTrainedTokenizerFast,
    texts: list[str],
    sizes: DemoModelSizes,
    progress: Callable[[int, int, float], None] | None,
) -> LlamaForCausalLM:
    import torch
    from torch.nn.functional import cross_entropy

    model = _new_model(tokenizer, sizes)
    blocks = _packed(tokenizer, texts, sizes.block)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=sizes.learning_rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_factor(step, sizes.steps))
    for step, chosen in enumerate(_batches(len(blocks), sizes)):
        batch = blocks[chosen]
        logits = model(batch[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if progress is not None:
            progress(step + 1, sizes.steps, loss.item())
    return model.eval()


def _new_model(tokenizer: PreTrainedTokenizerFast, sizes: DemoModelSizes) -> LlamaForCausalLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.hidden,
        intermediate_size=sizes.feed_forward,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        max_position_embeddings=sizes.context,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def _packed(tokenizer: PreTrainedTokenizerFast, texts: list[str], block: int) -> torch.Tensor:
    """``blocks x (block + 1)`` token ids: the texts, each in BOS and EOS, one after the other."""
    import torch

    ids: list[int] = []
    for encoded in tokenizer(texts, add_special_tokens=False)["input_ids"]:
        ids += [tokenizer.bos_token_id, *encoded, tokenizer.eos_token_id]
    count = len(ids) // (block + 1)
    return torch.tensor(ids[: count * (block + 1)]).view(count, block + 1)


def _batches(blocks: int, sizes: DemoModelSizes) -> Iterator[list[int]]:
    """Numbers of the blocks of each step; every block once before any comes again."""
    import torch

    order: list[int] = []
    for _ in range(sizes.steps):
        while len(order) < sizes.batch:
            order += torch.randperm(blocks).tolist()
        yield order[: sizes.batch]
        del order[: sizes.batch]


def _lr_factor(step: int, steps: int) -> float:
    """Linear warm-up over 5 % of the steps, then half a cosine down to 5 %."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share))
