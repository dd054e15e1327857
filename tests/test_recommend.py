"""Recommendations from a finished run, in Python: against least squares by hand."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from served_world import DIM, FOLD_IN, IALS, by_hand, checkpoint_of, closed_form_run, expected, same, table_of
from worlds import ITEMS, carry_out, config_of

from fedem_flwr import Recommender
from fedem_flwr.config import load_resolved
from fedem_flwr.errors import InputError
from fedem_flwr.methods.fedials_order import order_task
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.checkpoint import Best, served_checkpoint
from fedem_flwr.runtime.prepared import PreparedRun
from fedem_flwr.serving.recommender import UnknownItemsWarning

ROOT = Path(__file__).resolve().parent.parent
ORDER_WEIGHT = 0.7
ORDER = {"map": 0, "rounds": 2, "participants": 1.0, "window": 4, "tune": False, "weight": ORDER_WEIGHT, "lr": 0.05}
Folder = pytest.TempPathFactory


@pytest.fixture(scope="module")
def ials(tmp_path_factory: Folder) -> Path:
    return closed_form_run(tmp_path_factory.mktemp("ials"))


@pytest.fixture(scope="module")
def order(tmp_path_factory: Folder) -> Path:
    """A run of fedials-order whose last round is served, the encoder included."""
    sections = {"model": {"dim": DIM}, "ials": IALS, "fold_in": FOLD_IN, "order": ORDER, "run": {"rounds": 4}}
    path = carry_out(tmp_path_factory.mktemp("order"), config_of("fedials-order", **sections)).run.directory.path
    store, point = checkpoint_of(path)
    store.save(replace(point, best=None))
    return path


@pytest.fixture(scope="module")
def fedmf(tmp_path_factory: Folder) -> Path:
    return carry_out(tmp_path_factory.mktemp("fedmf"), config_of("fedmf", run={"rounds": 2})).run.directory.path


@pytest.fixture(scope="module")
def fedem_run(tmp_path_factory: Folder) -> Path:
    return carry_out(tmp_path_factory.mktemp("fedem"), config_of("fedem", run={"rounds": 2})).run.directory.path


@pytest.fixture(scope="module")
def recommender(ials: Path) -> Recommender:
    return Recommender.load(ials)


@pytest.fixture
def copied(ials: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ials, tmp_path / "copy"))


# ---- what is recommended


@pytest.mark.parametrize("history", [[5], [3, 1, 4, 15, 9, 2, 6], list(range(30, 0, -1))])
def test_an_unseen_history_is_solved_in_closed_form(history: list[int], ials: Path, recommender: Recommender) -> None:
    items, scores = recommender.items, by_hand(table_of(ials), history)
    ids = [items[code] for code in history]
    same(recommender.recommend(ids, top=12), expected(scores, items, history, 12))
    same(recommender.recommend(ids, top=12, exclude_seen=False), expected(scores, items, [], 12))


def test_order_of_a_history_counts(recommender: Recommender) -> None:
    ids = recommender.items[:8]
    assert recommender.recommend(ids) != recommender.recommend(ids[::-1])


def test_the_encoder_is_part_of_the_score(order: Path) -> None:
    recommender, arrays = Recommender.load(order), served_checkpoint(RunDirectory(order)).arrays
    items, history = recommender.items, [7, 3, 11, 20, 2, 14]
    rows, weights = (torch.from_numpy(arrays[name]) for name in ("rows", "weights"))
    task = order_task(load_resolved(order / "config.toml"))
    newest = rows[history[-4:]].unsqueeze(0)  # the window
    hidden = task.encoder.hidden(weights, newest, torch.ones(1, 4, dtype=torch.bool))
    parts = [by_hand(table_of(order), history), (rows @ hidden[0, -1]).numpy().astype(np.float64)]
    parts = [(part - part.mean()) / part.std(ddof=1) for part in parts]
    wanted = expected(parts[0] + ORDER_WEIGHT * parts[1], items, history, 10)
    assert recommender.round == 4
    same(recommender.recommend([items[code] for code in history]), wanted, 1e-3)
    assert [item for item, _ in wanted] != [item for item, _ in expected(parts[0], items, history, 10)]


histories = st.lists(st.integers(0, ITEMS - 3), min_size=1, max_size=25)


@settings(deadline=None, max_examples=25)
@given(given_=st.lists(histories, min_size=1, max_size=4), top=st.integers(1, 70))
def test_lists_are_ordered_unseen_and_the_same_in_a_batch(
    given_: list[list[int]], top: int, recommender: Recommender
) -> None:
    items = recommender.items
    ids = [[items[code % len(items)] for code in history] for history in given_]
    together = recommender.recommend_many(ids, top=top)
    for history, found in zip(ids, together, strict=True):
        scores = [score for _, score in found]
        assert scores == sorted(scores, reverse=True)
        assert not {item for item, _ in found} & set(history)
        assert len({item for item, _ in found}) == len(found) == min(top, len(items) - len(set(history)))
        alone = recommender.recommend(history, top=top)
        assert [score for _, score in alone] == pytest.approx(scores, abs=1e-5)


def test_a_repeated_item_counts_once_where_it_is_newest(recommender: Recommender) -> None:
    a, b, c, d = recommender.items[:4]
    same(recommender.recommend([b, a, c, b, d, b, a]), recommender.recommend([c, d, b, a]), 1e-7)


def test_ids_may_be_numbers(recommender: Recommender) -> None:
    numbers = [int(item) for item in recommender.items[:3]]
    assert recommender.recommend(numbers) == recommender.recommend(recommender.items[:3])
    assert recommender.recommend(np.array(numbers)) == recommender.recommend(numbers)


@pytest.mark.parametrize("user", [0, 17])
def test_a_user_of_the_run_is_its_whole_history(user: int, ials: Path, recommender: Recommender) -> None:
    split = PreparedRun.open(RunDirectory(ials)).split
    codes = split.train_items[split.train_offsets[user] : split.train_offsets[user + 1]].tolist()
    codes += [int(split.validation[user]), int(split.test[user])]
    ids = [recommender.items[code] for code in codes]
    found = recommender.recommend_user(str(split.user_ids[user]), top=20)
    assert found == recommender.recommend(ids, top=20)
    same(found, expected(by_hand(table_of(ials), codes), recommender.items, codes, 20))
    assert set(ids) & {each.item for each in recommender.recommend_user(split.user_ids[user], 60, exclude_seen=False)}


def test_the_best_round_is_served(copied: Path) -> None:
    store, point = checkpoint_of(copied)
    arrays = {**point.arrays, "table": point.arrays["table"][::-1].copy()}
    store.save(replace(point, best=Best(2, 40, 0.9, arrays)))
    recommender = Recommender.load(copied)
    assert recommender.round == 2
    scores = by_hand(arrays["table"].astype(np.float64), [1, 2])
    same(recommender.recommend(recommender.items[1:3]), expected(scores, recommender.items, [1, 2], 10))


@pytest.mark.parametrize("kind", ["ials", "fedmf"])
def test_similar_items_are_cosines(kind: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(kind)
    recommender, table = Recommender.load(path), table_of(path)
    scores = np.array([row @ table[4] / np.linalg.norm(row) / np.linalg.norm(table[4]) for row in table])
    same(recommender.similar_items(recommender.items[4], top=7), expected(scores, recommender.items, [4], 7), 1e-5)
    assert len(recommender.similar_items(recommender.items[4], top=10**6)) == len(recommender.items) - 1


# ---- what cannot be


def test_unknown_items_are_named_and_the_others_used(recommender: Recommender) -> None:
    known = recommender.items[:2]
    with pytest.warns(UnknownItemsWarning, match=r"'nix', '-4'$"):
        found = recommender.recommend([known[0], "nix", -4, known[1], "nix"])
    assert found == recommender.recommend(known)
    assert recommender.unknown(["nix", known[0], -4, "nix"]) == ["nix", "-4"]
    with pytest.warns(UnknownItemsWarning, match="'x0', .*'x9' and 5 more$"):
        recommender.recommend([known[0], *(f"x{at}" for at in range(15))])


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda r: r.recommend([]), "the history is empty"),
        (lambda r: r.recommend(["nix", "nox"]), "no item of synthetic: 'nix', 'nox'; valid: "),
        (lambda r: r.recommend("12"), "one text: give a list"),
        (lambda r: r.recommend(r.items), "nothing is left to recommend: .*--include-seen"),
        (lambda r: r.recommend(r.items[:1], top=0), "top = 0"),
        (lambda r: r.recommend_many([r.items[:1], []]), "history 1 is empty"),
        (lambda r: r.recommend_many([[], r.items], labels=["this", "that"]), "this is empty"),
        (lambda r: r.recommend_user("nobody"), "user 'nobody' is not in synthetic; valid: "),
        (lambda r: r.recommend_user("0", top=-1), "top = -1"),
        (lambda r: r.similar_items("1111111"), "item '1111111' is not in synthetic; "),
        (lambda r: r.similar_items(r.items[0], top=0), "top = 0"),
    ],
)
def test_bad_questions(ask: Callable[[Recommender], object], words: str, recommender: Recommender) -> None:
    with pytest.raises(InputError, match=words) as raised:
        ask(recommender)
    assert "\n" not in str(raised.value)


def test_the_whole_catalogue_can_be_ranked(recommender: Recommender) -> None:
    everything = recommender.recommend(recommender.items, top=1000, exclude_seen=False)
    assert {item for item, _ in everything} == set(recommender.items)
    assert recommender.recommend_many([]) == []


def test_methods_with_private_users(fedmf: Path, fedem_run: Path) -> None:
    recommender = Recommender.load(fedmf)
    some = recommender.items[:4]
    adapted = recommender.recommend(some, top=5)
    assert not {item for item, _ in adapted} & set(some) and adapted == recommender.recommend(some, top=5)
    together = recommender.recommend_many([recommender.items[7:9], some], top=5)[1]
    assert [item for item, _ in together] == [item for item, _ in adapted], "each by itself"
    words = "method 'fedem' keeps a trained table for each user.*never in training: use --user, or a run of fedials"
    with pytest.raises(InputError, match=words):
        Recommender.load(fedem_run).recommend(some)
    found = recommender.recommend_user("7", top=5)
    assert len(found) == 5 and found != recommender.recommend_user("8", top=5)
    assert len(recommender.recommend_user("7", 10**6, exclude_seen=False)) == len(recommender.items)
    with pytest.raises(InputError, match="'fedem' has an item table for each user"):
        Recommender.load(fedem_run).similar_items(recommender.items[0])


def spoil(run: Path, table: Callable[[np.ndarray], np.ndarray]) -> None:
    store, point = checkpoint_of(run)
    store.save(replace(point, best=None, arrays={**point.arrays, "table": table(point.arrays["table"].copy())}))


def with_nan(table: np.ndarray) -> np.ndarray:
    table[3, 1] = np.nan
    return table


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (with_nan, "'table' of the model of round 3 in .* is not finite"),
        (lambda table: table[:-1], r"has \d+ rows for \d+ items"),
    ],
)
def test_damaged_tables(table: Callable[[np.ndarray], np.ndarray], words: str, copied: Path) -> None:
    spoil(copied, table)
    with pytest.raises(InputError, match=words):
        Recommender.load(copied)


def test_a_table_that_overflows(copied: Path) -> None:
    spoil(copied, lambda table: table * 1e30)
    recommender = Recommender.load(copied)
    for ask in (lambda: recommender.recommend(recommender.items[:3]), lambda: recommender.recommend_user("7")):
        with pytest.raises(InputError, match=r"the model of round 3 .*cannot be used"):
            ask()


def test_no_checkpoint(copied: Path, tmp_path: Path) -> None:
    shutil.rmtree(copied / "checkpoint")
    with pytest.raises(InputError, match="no checkpoint yet"):
        Recommender.load(copied)
    with pytest.raises(InputError, match="no directory"):
        Recommender.load(tmp_path / "nothing")


def test_a_checkpoint_of_another_method(copied: Path, fedmf: Path) -> None:
    shutil.rmtree(copied / "checkpoint")
    shutil.copytree(fedmf / "checkpoint", copied / "checkpoint")
    with pytest.raises(InputError, match="of another method: it lacks"):
        Recommender.load(copied)


def test_import_stays_quick() -> None:
    code = "import fedem_flwr, sys; assert 'torch' not in sys.modules; print(fedem_flwr.Recommender.__name__)"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert ended.stdout == "Recommender\n", ended.stderr
