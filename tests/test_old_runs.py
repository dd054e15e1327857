"""Folders that an earlier version has left: refused in one line, and nothing in them is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from worlds import carry_out, config_of

from fedem_flwr.cli import main
from fedem_flwr.config import load_resolved
from fedem_flwr.nodes.host import STATE_FOLDER, NodeHost


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("old") / "run"
    carry_out(out, config_of("fedem", run={"rounds": 2, "checkpoint_every": 1}))
    return out


@pytest.fixture
def old(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments])
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    return int(stopped.value.code or 0), error


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_configuration_with_a_key_of_then(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = old / "config.toml"
    config.write_text(config.read_text().replace("[ials]\n", "[ials]\nindividual_uploads = false\n"))
    before = contents(old)
    for command in ("resume", "recommend"):
        code, line = refused(capsys, command, str(old), *(["--user", "1"] if command == "recommend" else []))
        assert code == 2 and "ials.individual_uploads" in line
    assert contents(old) == before


def state_of(run: Path) -> Path:
    return max((run / STATE_FOLDER).glob("*/*.safetensors"))  # of the last round


@pytest.mark.parametrize(
    "change", ["an earlier format", "other names", "another width", "fewer parts"], ids=lambda name: name.split()[0]
)
def test_a_state_that_does_not_fit(old: Path, change: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = state_of(old)
    arrays = {name: np.array(values) for name, values in load_file(path).items()}
    if change == "an earlier format":
        del arrays["format"]
    elif change == "other names":
        arrays["table"] = arrays.pop("items")
    elif change == "another width":
        arrays["adapter"] = arrays["adapter"][:, :-1].copy()
    else:
        del arrays["adapter"]
    save_file(arrays, path)
    with pytest.raises(Exception, match=r"node-000000 holds .*of another method or version; start the run again"):
        NodeHost(old, 1).cohort(0, 2)
    code, line = refused(capsys, "recommend", str(old), "--user", "0")
    assert code == 1 and "node-000000 holds" in line


def test_what_it_stores_is_named_by_parts(finished: Path) -> None:
    arrays = load_file(state_of(finished))
    assert set(arrays) == {"users", "format", "user", "items", "adapter"}
    assert load_resolved(finished / "config.toml").method.strategy == "fedem"
