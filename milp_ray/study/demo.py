"""The demo's inputs, made on the spot: three people, a tiny base model, a study of both.

Nothing is downloaded. Running the study is :mod:`milp_ray.study.driver`; who the people are is
:mod:`milp_ray.data.personas`; the model is :mod:`milp_ray.model.demo_model`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from milp_ray.config.loading import load_study
from milp_ray.data.persona_words import FACTS
from milp_ray.data.personas import Persona, generate_personas, make_persona, write_jsonl
from milp_ray.data.records import UserRecord
from milp_ray.model.demo_model import FIRST_BACKGROUND, DemoModelSizes, build_demo_model
from milp_ray.storage import atomic_write

USERS = 3
SEED = 0

STUDY = """\
# The demo: three generated people and a tiny Llama that knows people like them, but none of them.
#
#   milp-ray search {path}
#
# A change is best made on the command line, under another name, as `milp-ray demo` writes this file anew:
#
#   milp-ray search {path} name=deeper search.trials=40

name: demo                # the run folder is <storage.path>/demo
seed: 0                   # initial design, training order and LoRA initialisation derive from it

model:
  # 6 layers, width 96, 0.8 M parameters; trained by `milp-ray demo` on 160 other people
  path: {model}
  dtype: float32          # so small that bfloat16 would save nothing

data:
  # 60 samples a person, and 108 history texts, answers included
  path: {data}
  split:
    train: 0.6            # 36 samples. The paper's 70/10/20 would leave 6 to measure a trial on: with twice
    validation: 0.2       # as many the objectives are less noisy. Each part holds whole rounds, in which
    test: 0.2             # every topic comes up once

prompts:
  max_length: 128         # tokens; the longest exchange has 45, the model's context 256

memory:
  ranks: [4, 8, 16, 32, 64]   # the paper's go up to 96, which is this model's width: no longer low-rank
  defaults:
    size: 16                  # only used when a factor is left out

objectives: [loss, rouge_l]

optimizer:
  learning_rate: 6.0e-3   # the paper's 5e-4 moves a model this small hardly at all in 45 steps. Here small
                          # memories learn too little and the largest too much: there is an optimum between

trial:
  stages: [inject, instruct]   # as in the final stage, so that what is measured is what is handed back. The
                               # paper stops after inject; here stage 2 adds half a second or less
  epochs: 3
  instruct_epochs: 3
  max_new_tokens: 40      # answers have about 20 tokens
  eval_batch_size: 16     # all validation samples at once

search:
  trials: 12              # per person; enough for a front within a coffee break
  initial: 6              # half, as in the paper
  batch: 3                # so the model is asked twice, and learns from its first answers
  surrogate: saas
  saas:                   # a quarter of the usual NUTS: 12 points of 7 numbers need no more
    warmup: 32
    samples: 16
    thinning: 4           # keeps 4 posterior samples, as many as the acquisition uses well

choose:
  policy: knee            # the balanced point of the front

final:
  epochs: 3
  instruct_epochs: 3      # both as in the trials
  train_on: train+validation

ray:
  cpus_per_worker: 1.0    # two trials at once on two cores

storage:
  path: {runs}
"""


def prepare_demo(
    folder: Path,
    *,
    threads: int = 1,
    sizes: DemoModelSizes | None = None,
    notify: Callable[[str], object] | None = None,
) -> Path:
    """Write the demo's data and study file, and train its base model unless that is there already.

    Args:
        folder: gets users.jsonl, study.yaml and model-<hash>; runs go to ``folder/runs``.
        threads: CPU threads for training the model. With 1 the model is the same bits on every
            machine of a kind, and a busy machine does no harm; 2 gained a quarter.
        sizes: of the base model; None for the demo's own.
        notify: takes a line of progress now and then.

    Returns:
        The study file, ready for :func:`milp_ray.config.loading.load_study`.

    Raises:
        StorageError: the folder cannot be written.
    """
    folder = folder.expanduser().resolve()
    data, study = folder / "users.jsonl", folder / "study.yaml"
    write_jsonl(demo_users(), data)
    model = build_demo_model(folder, SEED, threads, sizes=sizes, progress=_reporter(notify))
    places = {"path": study, "model": model, "data": data, "runs": folder / "runs"}
    text = STUDY.format(**{name: _quoted(place) for name, place in places.items()})
    atomic_write(study, lambda draft: draft.write_text(text, encoding="utf-8"))
    load_study(study)
    return study


def demo_users() -> list[UserRecord]:
    """The demo's people, none of whom the base model was trained on.

    They are the first of their seed that share no fact and no turn of phrase, so another user's
    memory is of no help.
    """
    chosen: list[Persona] = []
    for number in range(FIRST_BACKGROUND):
        persona = make_persona(number, SEED)
        if not any(_alike(persona, other) for other in chosen):
            chosen.append(persona)
        if len(chosen) == USERS:
            break
    return [user for persona in chosen for user in generate_personas(1, SEED, first=persona.number)]


def next_name(folder: Path) -> str:
    """The first of demo, demo-2, demo-3, … that has no run folder yet."""
    runs, number = folder.expanduser() / "runs", 1
    while (runs / _name(number)).exists():
        number += 1
    return _name(number)


def _alike(one: Persona, other: Persona) -> bool:
    slots = (*FACTS, "opening", "closing", "saying")
    return any(set(one.values[slot]) & set(other.values[slot]) for slot in slots)


def _name(number: int) -> str:
    return "demo" if number == 1 else f"demo-{number}"


def _quoted(path: Path) -> str:
    """A path as a YAML string, whatever characters it has; JSON's quoting is also YAML's."""
    return json.dumps(str(path), ensure_ascii=False)


def _reporter(notify: Callable[[str], object] | None) -> Callable[[int, int, float], None] | None:
    """Turns training steps into five lines."""
    if notify is None:
        return None
    start = time.monotonic()

    def report(step: int, steps: int, loss: float) -> None:
        if step == 1:
            notify("training the demo's base model, once; this takes about a minute")
        if step % max(1, steps // 4) == 0:
            notify(f"  {100 * step // steps} %, loss {loss:.2f}, {time.monotonic() - start:.0f} s")

    return report
