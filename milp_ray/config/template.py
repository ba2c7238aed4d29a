"""The study file that `milp-ray init` writes: every value with the reason for it."""

from __future__ import annotations

from pathlib import Path

from milp_ray.errors import StorageError
from milp_ray.storage import atomic_write

TEMPLATE = """\
# A milp_ray study: many users, one base model, one budget.
#
#   milp-ray check study.yaml            # validate; starts nothing
#   milp-ray search study.yaml           # search, choose, train, test
#   milp-ray search study.yaml search.trials=40 name=shorter      # override any value
#
# Every value below is the default, except name, model.path and data.path. "Paper" is MiLP, "Personalized LLM
# Response Generation with Parameterized User Memory Injection".

name: my-study          # the run folder is <storage.path>/<name>
seed: 0                 # initial design, training order and LoRA initialisation derive from it

model:
  path: ./my-model      # a folder, a GGUF file or a hub name; Llama, Mistral, Qwen, GPT-2 or RoBERTa
                        # (RoBERTa as a decoder: whoever loads a memory says is_decoder=True)
  revision: null        # pin a hub revision, so that a run can be repeated
  dtype: auto           # bfloat16 on a GPU, float32 on a CPU, where bfloat16 is slow
  device: auto          # a GPU where there is one
  trust_remote_code: false    # true runs code that the model brings: of a folder, or a pinned commit
  code_revision: null         # the commit of another repository, where the model names code of one

data:
  path: ./users.jsonl   # one user a line: user_id, history, samples (see docs/data.md)
  format: jsonl         # or table, messages, lamp, …: docs/data.md has all
  files: {}             # further files that a format has, as {reviews: ./reviews.json.gz}
  columns:              # of a table or a chat: which column, or key, holds what
    user: null          # null: the names in docs/data.md
    query: null
    response: null
    time: null
    context: null
    text: null
  users: null           # all; a number takes the first ones, a list takes these ids
  alias_key: null       # a new key for each run, and with it other aliases and seeds; or a file of 32 bytes
  min_samples: 10       # fewer cannot be divided 70/10/20
  max_history: null     # all; a number keeps a user's newest texts
  max_samples: null     # all; a number keeps a user's newest samples
  split:
    regime: per_user    # each user's samples in time order: later ones never teach earlier ones; by_user
                        # divides the users, for data with one or two samples a user (docs/data.md)
    train: 0.7          # paper, section 3.4
    validation: 0.1
    test: 0.2
  text_rules: 2         # what words and leaks are (docs/data.md); 1 in runs that older versions began

prompts:
  style: plain          # chat takes the model's own chat template, for models that have one
  history: "History: {text}"                           # stage 1: next-text prediction on what was written
  instruction: "User: {query}\\nResponse: {response}"   # stage 2: the loss is taken on the response only
  context: "{query}\\n{context}"                        # how a sample's further text joins its query
  max_length: 512       # tokens; longer texts keep their newest part
  thinking: template    # chat: as the template has it by default; off where responses come without thinking
  date: null            # chat: for templates that write the date; null takes the day on which the run begins

memory:
  factors: num+size+layer         # what is searched; leave one out and it stays at its default below
  ranks: [8, 16, 32, 64, 96]      # paper, table 6
  max_loras: null                 # the model's number of layers (paper, table 6: 32)
  max_rank: null                  # of a layer: the model's width; servers bound it (docs/serving.md)
  scaling: 1.0                    # alpha / rank; Eq. 1 adds B A x as it is
  dropout: 0.0                    # the paper names none
  defaults:
    num: null                     # one LoRA per active layer
    size: 16                      # a middle rank
    layers: null                  # all layers

objectives: [loss, rouge_l]       # paper, section 2.2.2; chrf counts parts of words; trainable_params: size

optimizer:                        # paper, section 3.4
  learning_rate: 5.0e-4
  weight_decay: 1.0e-4
  warmup: 0.1                     # share of the steps, linear
  batch_size: 8                   # texts per step, over all workers of a trial
  max_grad_norm: 1.0              # a guard: the paper names none

trial:
  stages: [inject]                # the paper measures the injected model; [inject, instruct] adds stage 2
  epochs: 3                       # passes over the history
  instruct_epochs: 1              # passes over the train samples, with [inject, instruct] only
  max_new_tokens: 64              # longest response generated for ROUGE-L and chrF
  eval_batch_size: 16             # validation samples measured at once
  slice_seconds: 2.0              # how often a running trial looks whether it should stop
  save_adapters: true             # those of trials on a user's front; a population's trials keep none

search:
  trials: 200                     # per user, as in the paper; 60 reach most of it (docs/benchmarks.md)
  initial: 20                     # space-filling ones among them; the paper's 100 cost 80 trials for nothing
  points_to_evaluate: []          # of the initial ones, measured first; [{}]: a LoRA in every layer, as
                                  # memory.defaults; [{num: 6, size: 8, layers: [0, 2, 4]}]
  batch: 4                        # proposals from one fit
  surrogate: saas                 # SAAS-GP; gp is faster. What is no surrogate of ours has the key sampler
                                  # instead: random is the yardstick (docs/search.md)
  outcome: standardize            # copula (normal scores of the ranks) is AutoPEFT's
  saas:
    preset: default               # paper: AutoPEFT's 128 warm-up steps, 64 draws, every 4th kept
    warmup: null                  # as the preset
    samples: null
    thinning: null
  unit: auto                      # user: a placement each; population: one for everybody, as by_user needs
  users_per_trial: 8              # of a population: users that a trial injects for; it measures their mean
  cohort: null                    # users per Ray Tune run; as many as make 5,000 trials
  transfer: none                  # seeds: later users try what was good for finished ones; prior: or alike
  transfer_users: 8               # the first users, who run cold for the others to learn from

choose:
  policy: knee                    # or best:loss, best:rouge_l, or budget with a number of parameters
  budget: null

final:
  automatic: true                 # after the search; false: with milp-ray final RUN
  epochs: 3                       # stage 1 on all history before the test samples
  instruct_epochs: 3              # stage 2 on the samples
  train_on: train+validation      # the choice is made: validation samples may teach now
  optimizer: null                 # as above
  checkpoint_steps: 200           # steps after which a long training's state is kept; 0: only when stopped

ray:
  address: null                   # RAY_ADDRESS if set, else a private Ray on this machine for this run
  workers_per_trial: 1            # more where a base does not fit one GPU, with:
  parallelism: none               # ddp, zero1, zero2, zero3 (DeepSpeed) or fsdp; results stay the same
  offload: false                  # ZeRO's parts in the host's memory
  group_timeout: 120              # seconds after which a silent worker counts as hung
  cpus_per_worker: 1.0
  gpus_per_worker: auto           # 1 where there are GPUs, else 0; 0.5: two workers share one
  accelerator_type: null          # only nodes with this GPU, as Ray names it: H100, A100-80G, L4, ...
  custom_resources: {}            # what else a worker takes of what nodes offer, as {licence: 1}
  memory_per_worker: null         # GiB of RAM; a trial that needs more fails by itself, and is said why
  max_concurrent: null            # as many trials as fit
  wait_for_nodes: 0               # seconds an autoscaler has: for the first trial, in the final job for all
  max_failures: 2                 # retries of a trial, or of a user in the final job, whose worker died
  proposers: auto                 # actors that fit models; 0 is a thread of the driver, as on few CPUs
  dashboard: false                # start Ray's dashboard with a private Ray
  rehearse: true                  # try a worker's first steps here, before Ray starts (small bases)

storage:
  path: runs                      # on several machines a shared folder or a URL (s3://bucket/runs, gs://…)
  readable_by: owner              # or group: a new run's folder can be read by the folder's group

tracking: []                      # mlflow, wandb, tensorboard: told of the run while it goes on, each
                                  # an extra (docs/tracking.md)

simulation: null                  # a dry run without a model: seconds, noise, related, failures (see
                                  # docs/simulation.md); try: milp-ray search study.yaml simulation.seconds=1
"""


def write_template(path: Path) -> None:
    """Write the template to a file that is not there yet.

    Raises:
        StorageError: there is a file, or it cannot be written.
    """
    if path.exists():
        raise StorageError(
            "the file exists already",
            where=str(path),
            expected="a name that is free",
            remedy="give another name: milp-ray init other.yaml",
        )
    atomic_write(path, lambda draft: draft.write_text(TEMPLATE, encoding="utf-8"))
