"""What a server may ask, and training may come to, that clipping and noise would not cover: each ends in a line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conformance.runs import Whole, noting
from test_ldp import PARTS, a_contribution
from worlds import carry_out_watched, config_of

from fedem_flwr.contract.finding import method_of
from fedem_flwr.engine.clipping import Clipping
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.nodes.policy import NodePolicy

NOISE: dict[str, Any] = {"noise": "gaussian", "clip": 1.0, "multiplier": 0.2}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("order", [1, 2])
def test_an_upload_that_is_not_finite_goes_up_as_if_nothing_had_changed(bad: float, order: int) -> None:
    given = a_contribution(3, 0.1)
    given.rows["items"][1, 0, 2] = bad
    given = replace(given, shrunk={"other": torch.full((3,), 0.5)})
    found = Clipping(PARTS, 100.0, order)(given, 1)
    assert found.factor is not None and found.factor.tolist() == [1.0, 0.0, 1.0] and found.shrunk == {}
    for name, before in given.before.items():
        after = (found.rows | found.values)[name]
        assert torch.equal(after[1].double(), before[1].double()) and bool(after.isfinite().all())
        assert torch.equal(after[0], (given.rows | given.values)[name][0])


@pytest.mark.parametrize(
    ("fault", "word"),
    [("not finite", "is not finite"), ("withheld", "did not send 'items'"), ("others", "do not take part")],
)
def test_what_a_server_may_not_ask(fault: str, word: str, tmp_path: Path) -> None:
    with noting() as noted:
        done, grid = carry_out_watched(tmp_path, config_of("pfedrec", ldp=NOISE, run={"rounds": 2}))
    whole = Whole(done, grid, noted)
    client = whole.client()
    whole.until(client, 2)
    arrays, config = whole.message(client, "train", 2)
    named = dict(zip(client.DOWNLOAD, arrays, strict=True))
    assert client.fit(list(named.values()), config)[0], "as the server has sent it"
    if fault == "not finite":
        named["items"] = named["items"].copy()
        named["items"].reshape(-1)[7] = np.nan
    elif fault == "withheld":
        named["items"] = named["items"][:0]
    else:
        named["participants"], named["uploaders"] = named["participants"][:2], named["participants"][2:4]
    with pytest.raises((FedemError, ValueError), match=word):
        client.fit(list(named.values()), config)


def test_clients_of_another_kind_are_refused() -> None:
    config = config_of("fedmf", ldp=NOISE).changed("method", client="table")
    with pytest.raises(InputError, match="leave either out"):
        method_of(config, 30)


def test_a_node_that_bounds_noise_takes_part_with_noise_only() -> None:
    policy = NodePolicy.networked(bounds=["ldp.multiplier=0.1.."])
    policy.check(config_of("fedmf", ldp=NOISE))
    with pytest.raises(FedemError, match="takes part with noise only"):
        policy.check(config_of("fedmf", ldp={**NOISE, "noise": "none"}))
