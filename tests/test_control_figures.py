"""The controls' figures on the real data sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedem_flwr.data import load_dataset
from fedem_flwr.evaluation import compute_controls
from fedem_flwr.protocol.split import Protocol
from fedem_flwr.protocol.splits import make_split


@pytest.mark.data
def test_figures_on_ml_100k_strict(data_dir: Path) -> None:
    controls = compute_controls(make_split(load_dataset("ml-100k", data_dir), "strict", seed=0))
    expected = {
        "random": (0.10, 0.045),
        "popularity": (0.404, 0.221),
        "item_knn": (0.590, 0.336),
        "ease": (0.655, 0.381),
        "ease_recent": (0.690, 0.418),
    }
    for name, figures in expected.items():
        sampled = controls[name]["sampled99"]
        assert (sampled["hr@10"], sampled["ndcg@10"]) == pytest.approx(figures, abs=0.02), name
    popularity, recent = controls["popularity"], controls["ease_recent"]
    assert popularity["hr@10"] == pytest.approx(0.085, abs=0.002), "the whole catalogue has no sampling error"
    assert popularity["ndcg@10"] == pytest.approx(0.043, abs=0.002)
    assert (recent["hr@10"], recent["ndcg@10"]) == pytest.approx((0.167, 0.090), abs=0.005)


@pytest.mark.data
@pytest.mark.parametrize(
    ("protocol", "popularity", "ease"),
    [("paper", (0.666, 0.530), (0.689, 0.538)), ("strict", (0.907, 0.823), (0.945, 0.871))],
)
def test_figures_on_filmtrust(
    data_dir: Path, protocol: Protocol, popularity: tuple[float, float], ease: tuple[float, float]
) -> None:
    controls = compute_controls(make_split(load_dataset("filmtrust", data_dir), protocol, seed=0))
    for name, figures in (("popularity", popularity), ("ease", ease)):
        sampled = controls[name]["sampled99"]
        assert (sampled["hr@10"], sampled["ndcg@10"]) == pytest.approx(figures, abs=0.02), name
