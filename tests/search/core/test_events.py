from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from milp_ray.errors import SearchError, StorageError
from milp_ray.memory.space import MemorySpace
from milp_ray.search import Engine, Objective
from milp_ray.search.core import events
from milp_ray.search.core.events import EventLog, ended_trials, observed_values, values_by_user
from tests.search.problems import LOSS_AND_ROUGE, REFERENCE, measure, run, small_space


def engine(log: Path, **changes: object) -> Engine:
    settings: dict[str, object] = {"initial": 8, "surrogate": "random", "seed": 1, **changes}
    return Engine(small_space(), LOSS_AND_ROUGE, log=log, **settings)  # type: ignore[arg-type]


def test_a_log_is_strict_json_lines(tmp_path: Path) -> None:
    log = tmp_path / "sub" / "u.jsonl"
    made = engine(log, reference=REFERENCE)
    run(made, 3)
    made.fail(made.ask(1)[0].id, "öut of\nmemory \ud800")
    data = log.read_bytes()
    assert data.isascii()
    kinds = [json.loads(line)["event"] for line in data.decode().splitlines()]
    assert kinds == ["created", "reference", *["asked", "told"] * 3, "asked", "failed"]
    assert engine(log).failures[0].reason == "öut of\nmemory \ud800"


def test_a_torn_last_line_is_cut_off_and_reported(tmp_path: Path) -> None:
    log = tmp_path / "u.jsonl"
    run(engine(log), 3)
    whole = log.read_bytes()
    assert engine(log).notes == ()
    # The torn line may even be complete JSON: without its newline it was never acted on.
    for torn in (b'{"event":"to', b"\x00" * 50, b'{"event":"failed","id":0,"reason":"x"}'):
        log.write_bytes(whole + torn)
        resumed = engine(log)
        assert log.read_bytes() == whole
        assert f"{len(torn)} bytes were removed" in resumed.notes[0]
        assert len(resumed.observations) == 3


def test_a_torn_first_line_begins_anew(tmp_path: Path) -> None:
    log = tmp_path / "u.jsonl"
    log.write_bytes(b'{"event":"crea')
    assert engine(log).notes
    assert len(log.read_bytes().splitlines()) == 1


@pytest.mark.parametrize(
    "damage",
    [
        b"{}",
        b"[]",
        b"null",
        b"",
        b"\xff\xfe",
        b'{"event":"told","id":0,"values":{"loss":NaN,"rouge_l":1}}',
        b'{"event":"told","id":0,"values":{"loss":1e999,"rouge_l":1}}',
        b'{"event":"told","id":0,"values":{"loss":1}}',
        b'{"event":"told","id":0,"id":1,"values":{"loss":1,"rouge_l":1}}',
        b'{"event":"told","id":true,"values":{"loss":1,"rouge_l":1}}',
        b'{"event":"told","id":77,"values":{"loss":1,"rouge_l":1}}',
        b'{"event":"told","id":1,"values":{"loss":true,"rouge_l":1}}',
        b'{"event":"created"}',
        b'{"event":"surprise"}',
        b'{"event":"asked","source":"x","proposals":[{"id":9}]}',
        b'{"event":"asked","source":"x","proposals":"no"}',
        b'{"event":"failed","id":1}',
        b'{"event":"failed","id":1,"reason":"","cost":{"node":null}}',
        b'{"event":"reference","values":{"loss":1,"rouge_l":1},"cost":7}',
        b"[" * 100_000,
    ],
    ids=lambda damage: damage[:40].decode("latin1"),
)
def test_damage_in_the_middle_is_an_error_with_the_line(tmp_path: Path, damage: bytes) -> None:
    log = tmp_path / "u.jsonl"
    run(engine(log), 3)
    lines = log.read_bytes().splitlines(keepends=True)
    before = b"".join([*lines[:3], damage + b"\n", *lines[3:]])
    log.write_bytes(before)
    with pytest.raises(StorageError, match="line 4 of the event log"):
        engine(log)
    assert log.read_bytes() == before


def test_what_trials_cost_is_kept_and_changes_no_proposal(tmp_path: Path) -> None:
    cost = {"inject_seconds": 1.5, "node": "0a1b2c3d"}
    told, plain = engine(tmp_path / "told.jsonl"), engine(tmp_path / "plain.jsonl")
    for made, given in ((told, cost), (plain, None)):
        made.set_reference(REFERENCE, given)
        for proposal in made.ask(8):
            made.tell(proposal.id, measure(proposal.placement), given)
        made.fail(made.ask(1)[0].id, "why", given)
    again = engine(tmp_path / "told.jsonl")
    assert dict(again.observations[0].cost) == dict(again.failures[0].cost) == again.reference_cost == cost
    assert not plain.observations[0].cost and not plain.reference_cost
    assert again.observations == plain.observations and again.ask(2) == plain.ask(2)


def test_what_users_of_a_population_measured_is_kept_and_changes_no_proposal(tmp_path: Path) -> None:
    by_user = {"u-a": {"loss": 1.5, "rouge_l": 0.1}, "u-b": {"loss": 2.5, "rouge_l": 0.2}}
    told, plain = engine(tmp_path / "told.jsonl"), engine(tmp_path / "plain.jsonl")
    for made, given in ((told, by_user), (plain, None)):
        made.set_reference(REFERENCE, by_user=given)
        for proposal in made.ask(8):
            made.tell(proposal.id, measure(proposal.placement), by_user=given)
    wanted = [(number, *item) for number in (None, *range(8)) for item in by_user.items()]
    assert values_by_user(tmp_path / "told.jsonl") == wanted
    assert not values_by_user(tmp_path / "plain.jsonl") and not values_by_user(tmp_path / "none.jsonl")
    assert engine(tmp_path / "told.jsonl").ask(2) == engine(tmp_path / "plain.jsonl").ask(2)
    line = json.dumps({"event": "told", "id": 0, "values": {}, "by_user": [1]}) + "\n"
    (tmp_path / "damaged.jsonl").write_text(line, encoding="ascii")
    with pytest.raises(StorageError, match="line 1 of the event log has no valid by_user"):
        values_by_user(tmp_path / "damaged.jsonl")


@pytest.mark.parametrize("key", ['"placement":"', '"gates":"'])
def test_a_proposal_that_does_not_fit_together_is_damage(tmp_path: Path, key: str) -> None:
    log = tmp_path / "u.jsonl"
    run(engine(log), 1)
    text = log.read_text()
    log.write_text(text.replace(key, key + "1", 1))
    with pytest.raises(StorageError, match="line 2 of the event log"):
        engine(log)


def test_the_log_of_another_search_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "u.jsonl"
    run(engine(log), 1)
    before = log.read_bytes()
    with pytest.raises(SearchError, match="another seed") as error:
        engine(log, seed=2)
    assert "remedy" in str(error.value)
    with pytest.raises(SearchError, match="another objectives"):
        Engine(small_space(), LOSS_AND_ROUGE[:1], seed=1, log=log)
    with pytest.raises(SearchError, match="another objectives"):
        Engine(small_space(), (Objective("loss", "max"), LOSS_AND_ROUGE[1]), seed=1, log=log)
    with pytest.raises(SearchError, match="another space"):
        Engine(MemorySpace(4, 4, (8, 16)), LOSS_AND_ROUGE, seed=1, log=log)
    assert log.read_bytes() == before
    engine(log, surrogate="sobol", initial=2, batch=1)  # how it is searched may change


def test_a_full_disk_leaves_the_log_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "u.jsonl"
    made = engine(log)
    proposal = made.ask(1)[0]
    before = log.read_bytes()

    def half_then_full(handle: int, data: bytes) -> int:
        if len(data) > 10:
            return real(handle, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real = os.write
    monkeypatch.setattr(events.os, "write", half_then_full)
    for act in (
        lambda: made.tell(proposal.id, measure(proposal.placement)),
        lambda: made.fail(proposal.id, "x"),
        lambda: made.ask(2),
        lambda: made.set_reference(REFERENCE),
    ):
        with pytest.raises(StorageError, match="No space left"):
            act()
        assert log.read_bytes() == before
    assert [p.id for p in made.pending] == [0]
    assert made.reference is None
    monkeypatch.undo()
    made.tell(proposal.id, measure(proposal.placement))
    assert len(engine(log).observations) == 1


def test_a_remnant_that_could_not_be_cut_off_is_cut_off_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "u.jsonl"
    made = engine(log)

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(events.os, "fsync", broken)
    monkeypatch.setattr(events.os, "ftruncate", broken)
    before = log.read_bytes()
    real = os.write
    monkeypatch.setattr(events.os, "write", lambda handle, data: real(handle, data[:7]) and broken())
    with pytest.raises(StorageError, match="Input/output"):
        made.ask(1)
    assert len(log.read_bytes()) == len(before) + 7
    monkeypatch.undo()
    assert [proposal.id for proposal in made.ask(1)] == [0]
    assert len(log.read_bytes().splitlines()) == 2
    assert [proposal.id for proposal in engine(log).pending] == [0]


def test_another_writer_is_noticed(tmp_path: Path) -> None:
    log = tmp_path / "u.jsonl"
    one, two = engine(log), engine(log)
    one.ask(1)
    with pytest.raises(StorageError, match="another process"):
        two.ask(1)
    assert len(log.read_bytes().splitlines()) == 2
    log.write_bytes(b"")
    with pytest.raises(StorageError, match="another process"):
        one.ask(1)


def test_unwritable_places_say_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="remedy"):
        engine(tmp_path / "file" / "u.jsonl")
    with pytest.raises(StorageError):
        engine(tmp_path)


def test_workers_read_observed_values_while_a_line_is_being_written(tmp_path: Path) -> None:
    log = tmp_path / "u.jsonl"
    assert observed_values(log) == []
    made = run(engine(log), 3)
    with log.open("ab") as file:
        file.write(b'{"event":"told","id":')
    before = log.read_bytes()
    assert observed_values(log) == [(seen.id, dict(seen.values)) for seen in made.observations]
    assert ended_trials(log) == len(made.observations) + len(made.failures)
    assert log.read_bytes() == before


def test_in_memory_logs_need_no_file() -> None:
    log = EventLog()
    log.append({"event": "x", "value": 0.1})
    with pytest.raises(ValueError, match="JSON compliant"):
        log.append({"event": "x", "value": float("nan")})
    assert log.events == [{"event": "x", "value": 0.1}]
