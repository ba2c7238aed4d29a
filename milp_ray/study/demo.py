"""The demos' inputs, made on the spot: a few people, a base model, a study of both.

Nothing is downloaded. Running the study is :mod:`milp_ray.study.driver`; who the people are is
:mod:`milp_ray.data.personas`; the models are :mod:`milp_ray.model.demo_model`'s, trained here, and
a real one that a package ships (:mod:`milp_ray.model.smollm2`); what the studies say is in
:mod:`milp_ray.study.demo_studies`.
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
from milp_ray.model.smollm2 import smollm2_file
from milp_ray.storage import atomic_write
from milp_ray.study.demo_studies import DEMOS, TEMPLATE, TINY, DemoStudy

SEED = 0


def prepare_demo(
    folder: Path,
    *,
    model: str = "tiny",
    threads: int = 1,
    sizes: DemoModelSizes | None = None,
    notify: Callable[[str], object] | None = None,
) -> Path:
    """Write a demo's data and study file, and train its base model unless that is there already.

    Args:
        folder: gets users.jsonl, study.yaml and model-<hash>, the names of the first two with the
            model's where it is not the tiny one; runs go to ``folder/runs``.
        model: ``tiny``, which is trained here, or ``smollm2``, which a package ships.
        threads: CPU threads for training the model. With 1 the model is the same bits on every
            machine of a kind, and a busy machine does no harm; 2 gained a quarter.
        sizes: of the tiny model; None for the demo's own.
        notify: takes a line of progress now and then.

    Returns:
        The study file, ready for :func:`milp_ray.config.loading.load_study`.

    Raises:
        ModelError: the package of ``smollm2`` is not installed.
        StorageError: the folder cannot be written.
    """
    folder = folder.expanduser().resolve()
    demo, ending = DEMOS[model], "" if model == "tiny" else f"-{model}"
    data, study = folder / f"users{ending}.jsonl", folder / f"study{ending}.yaml"
    if model == "tiny":
        base = build_demo_model(folder, SEED, threads, sizes=sizes, progress=_reporter(notify))
    else:
        base = smollm2_file()
    write_jsonl(demo_users(demo), data)
    places = {"path": study, "model": base, "data": data, "runs": folder / "runs"}
    text = TEMPLATE.format(**{name: _quoted(place) for name, place in places.items()}, **demo.parts)
    atomic_write(study, lambda draft: draft.write_text(text, encoding="utf-8"))
    load_study(study)
    return study


def demo_users(demo: DemoStudy = TINY) -> list[UserRecord]:
    """A demo's people, none of whom the base model was trained on.

    They are the first of their seed that share no fact and no turn of phrase, so another user's
    memory is of no help.
    """
    chosen: list[Persona] = []
    for number in range(FIRST_BACKGROUND):
        persona = make_persona(number, SEED)
        if not any(_alike(persona, other) for other in chosen):
            chosen.append(persona)
        if len(chosen) == demo.users:
            break
    return [
        user
        for persona in chosen
        for user in generate_personas(1, SEED, first=persona.number, rounds=demo.rounds, remarks=demo.remarks)
    ]


def next_name(folder: Path, model: str = "tiny") -> str:
    """The first of demo, demo-2, demo-3, … that has no run folder yet; or of smollm2, …"""
    runs, number, first = folder.expanduser() / "runs", 1, str(DEMOS[model].parts["name"])
    while (runs / _name(first, number)).exists():
        number += 1
    return _name(first, number)


def _alike(one: Persona, other: Persona) -> bool:
    slots = (*FACTS, "opening", "closing", "saying")
    return any(set(one.values[slot]) & set(other.values[slot]) for slot in slots)


def _name(first: str, number: int) -> str:
    return first if number == 1 else f"{first}-{number}"


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
