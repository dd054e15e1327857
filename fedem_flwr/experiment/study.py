"""A study: trials of a method's settings on one split, each a run that is scored on validation.

All of it lies in one folder: what is looked for (`study.json`), the split, Optuna's journal of the trials, and what
came of it. Several processes may work on the same study, and go on with it after a kill.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from fedem_flwr.config import Config, Tree, merge_trees, resolve
from fedem_flwr.config.search import Range, paths, space_of, tree_of
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.evaluation.control_cache import split_hash
from fedem_flwr.experiment.plan import check_search
from fedem_flwr.experiment.rounds import carry_out_rounds, check_run
from fedem_flwr.files import own_folder, write_atomically
from fedem_flwr.locking import born, in_turn
from fedem_flwr.nodes.host import SPLIT_FOLDER
from fedem_flwr.protocol.split import Split
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.report.selection import best_line
from fedem_flwr.runtime.inputs import adapted, check_method, split_into
from fedem_flwr.runtime.lines import Line
from fedem_flwr.runtime.prepared import PreparedRun

COMPARED = 4  # trials with different settings and a value, below which importances would be made up
RECORD, JOURNAL, LOCK = "study.json", "trials.journal", "lock"
WHO, REASON, ROUND, SECONDS = "process", "reason", "round", "seconds"
_QUICK = {"evaluation": {"controls": False, "local_only": False}, "run": {"checkpoint_every": 10**6}}


@dataclass(frozen=True)
class Trial:
    """What is known of one trial.

    Attributes:
        params: settings by path. value: validation NDCG@10 of the best round; None: it has none, for the `reason`.
        lost: whether its process died; it counts for nothing.
    """

    number: int
    params: Mapping[str, float]
    value: float | None
    round: int | None
    seconds: float | None
    reason: str
    finished: bool
    lost: bool


@dataclass(frozen=True)
class Study:
    """An opened study.

    Attributes:
        tree: what was asked for, without what is looked for. config: of the preset under it.
        space: what is looked for. split: shared by all trials.
    """

    folder: Path
    tree: Tree
    config: Config
    space: list[Range]
    split: Split

    @classmethod
    def open(cls, folder: Path, tree: Tree) -> Study:
        """A new study, or one that is there, of the same question.

        Raises:
            InputError: Optuna is missing, nothing is to be looked for, or the folder holds another study.
        """
        _optuna()
        config = resolve({}, tree, "options")
        if config.data.protocol != "strict":
            raise InputError(
                f"data.protocol = '{config.data.protocol}': fedem tune measures under strict; paper's figures are of a "
                "leak, and a run under temporal trains twice"
            )
        if config.run.runtime != "inprocess" or config.network.superlink:
            raise InputError("fedem tune runs its trials in this process: leave --runtime and --superlink out")
        space_of(config, tree)  # before anything is read
        check_search([config], frozenset(paths(tree)))
        check_run(config)
        _check_folder(folder)
        own_folder(folder, "the study")
        with in_turn(folder / LOCK):
            split, config = _opened(folder, config, tree)
        check_method(config, split.items)
        return cls(folder, tree, config, space_of(config, tree), split)

    def trials(self) -> list[Trial]:
        """All, in their order."""
        return [_trial(each, self.space) for each in self._study().get_trials(deepcopy=False)]

    def best(self) -> Trial:
        """The first of the highest value.

        Raises:
            InputError: no trial has one.
        """
        trials = self.trials()
        scored = [trial for trial in trials if trial.value is not None]
        if not scored:
            reasons = [trial.reason for trial in trials if trial.reason and not trial.lost]
            why = f": {reasons[-1]}" if reasons else ""
            raise InputError(f"none of {len(trials)} trials has a finite NDCG@10{why}")
        return max(scored, key=lambda trial: (trial.value or 0.0, -trial.number))

    def one_more(self, trials: int | None, on_line: Callable[[Line], None]) -> Trial | None:
        """Carry out a trial; None where so many are done, or under way in other processes.

        Args:
            on_line: told every line of its metrics.
        """
        study = self._study()
        with in_turn(self.folder / LOCK):
            self._give_up_lost(study)
            before = [trial for trial in self.trials() if not trial.lost]
            if trials is not None and len(before) >= trials:
                return None
            study.sampler = self._sampler(len(before))
            if not before:  # what is known already comes first
                study.enqueue_trial({each.path: _typed(each, each.preset) for each in self.space})
            asked = study.ask({each.path: _distribution(each) for each in self.space})
            asked.set_user_attr(WHO, _me())
        began = time.monotonic()
        try:
            value, round_ = self.measure(asked.params, on_line)
            asked.set_user_attr(ROUND, round_)
        except (FedemError, ArithmeticError, ValueError) as error:
            value = math.nan
            asked.set_user_attr(REASON, " ".join(str(error).split()))
        asked.set_user_attr(SECONDS, time.monotonic() - began)
        if math.isfinite(value):
            study.tell(asked, value)
        else:
            if REASON not in asked.study.trials[asked.number].user_attrs:
                asked.set_user_attr(REASON, "its NDCG@10 is no number")
            study.tell(asked, state=_optuna().trial.TrialState.FAIL)
        done: Trial = self.trials()[asked.number]
        return done

    def measure(self, params: Mapping[str, float], on_line: Callable[[Line], None]) -> tuple[float, int]:
        """Validation NDCG@10 of the best round under these settings, and that round."""
        config = resolve({}, merge_trees(self.experiment(params), _QUICK), "a trial")
        config = adapted(config, self.split, frozenset(paths(self.tree)))
        check_method(config, self.split.items)
        with tempfile.TemporaryDirectory(prefix=f".trial-{os.getpid()}-", dir=self.folder) as place:
            directory = RunDirectory(Path(place) / "run").create()
            (directory.path / SPLIT_FOLDER).symlink_to((self.folder / SPLIT_FOLDER).resolve())
            carry_out_rounds(PreparedRun.create(directory, config, self.split, saved=True), on_line)
            line = best_line(directory.read_metrics(), "best_validation")
        return float(line["validation"]["ndcg@10"]), int(line["round"])

    def experiment(self, params: Mapping[str, float]) -> Tree:
        """What `fedem run` takes to do the same as a trial."""
        return merge_trees(self.tree, {"method": {"name": self.config.method.name}}, tree_of(params))

    def importances(self) -> dict[str, float]:
        """How much of what trials differ by is each setting's (PED-ANOVA); empty below `COMPARED` different trials."""
        scored = [trial for trial in self.trials() if trial.value is not None]
        if len({tuple(trial.params.values()) for trial in scored}) < COMPARED or len({t.value for t in scored}) < 2:
            return {}
        try:
            evaluator = _optuna().importance.PedAnovaImportanceEvaluator()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that few trials say little: the report says so, too
                found = _optuna().importance.get_param_importances(self._study(), evaluator=evaluator)
        except (ValueError, RuntimeError):  # none that PED-ANOVA can compare
            return {}
        return {name: float(share) for name, share in found.items() if math.isfinite(share)}

    def _study(self) -> Any:
        optuna = _optuna()
        backend = optuna.storages.journal.JournalFileBackend(str(self.folder / JOURNAL))
        storage = optuna.storages.JournalStorage(backend)
        return optuna.create_study(storage=storage, study_name="fedem", direction="maximize", load_if_exists=True)

    def _sampler(self, done: int) -> Any:
        """Keyed by the seed and how many trials there are, so that a study goes on as if it had not been killed."""
        seed = (self.config.run.seed * 1_000_003 + done) % 2**32
        return _optuna().samplers.TPESampler(seed=seed, constant_liar=True, n_startup_trials=8)

    def _give_up_lost(self, study: Any) -> None:
        """Trials whose process is not there any more count as never begun."""
        states = _optuna().trial.TrialState
        for trial in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            host, number, since = [*str(trial.user_attrs.get(WHO, "")).split("/"), "", ""][:3]
            if host == socket.gethostname() and since and born(int(number)) != since:
                study.tell(trial.number, state=states.FAIL)  # without a reason: see `_trial`
                for place in self.folder.glob(f".trial-{number}-*"):
                    shutil.rmtree(place, ignore_errors=True)


def _check_folder(folder: Path) -> None:
    """Find out before a folder is touched whether it may become a study's: it is new, or empty, or one's already.

    Raises:
        InputError: it holds something else.
    """
    if not folder.exists() or (folder / RECORD).is_file():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: choose another --out")
    names, making = {entry.name for entry in folder.iterdir()}, (f".{SPLIT_FOLDER}-", f".{RECORD}.")  # just now
    others = [name for name in names - {LOCK, SPLIT_FOLDER} if not name.startswith(making)]
    if others or (names and LOCK not in names):
        raise InputError(f"{folder} is not empty, and holds no study: choose another --out")


def _opened(folder: Path, config: Config, tree: Tree) -> tuple[Split, Config]:
    """The split, and the configuration that fits it; made, with the record of what is asked, where there is none."""
    record, asked = folder / RECORD, {"settings": json.loads(json.dumps(tree))}
    if not record.exists():
        _check_folder(folder)
        split_into(folder / SPLIT_FOLDER, config)
        split = Split.load(folder / SPLIT_FOLDER)
        config, space = _fitted(config, split, tree)
        write_atomically(record, json.dumps({**asked, "space": space, "split": split_hash(split)}, indent=2) + "\n")
        return split, config
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(f"{record} is damaged: choose another --out") from None
    for section in {**known["settings"], **asked["settings"]}:
        there, here = (one["settings"].get(section, {}) for one in (known, asked))
        for key in {**there, **here}:
            if there.get(key) != here.get(key):
                raise InputError(
                    f"{folder} holds a study with {section}.{key} = {there.get(key, 'its default')!r}, not "
                    f"{here.get(key, 'its default')!r}: choose another --out, or ask for the same"
                )
    split = Split.load(folder / SPLIT_FOLDER)
    if known["split"] != split_hash(split):
        raise InputError(f"{folder / SPLIT_FOLDER} is not the split that the study began with: choose another --out")
    config, space = _fitted(config, split, tree)
    if known["space"] != space:
        raise InputError(f"{folder} holds a study of other ranges, of another version: choose another --out")
    return split, config


def _fitted(config: Config, split: Split, tree: Tree) -> tuple[Config, list[dict[str, Any]]]:
    """A configuration that fits the data, and what is looked for there, as it is written down."""
    config = adapted(config, split, frozenset(paths(tree)))
    return config, json.loads(json.dumps([asdict(each) for each in space_of(config, tree)]))


def _me() -> str:
    return f"{socket.gethostname()}/{os.getpid()}/{born(os.getpid()) or ''}"


def _trial(found: Any, space: list[Range]) -> Trial:
    told = found.user_attrs
    params = {each.path: found.params[each.path] for each in space if each.path in found.params}
    value = float(found.value) if found.state.name == "COMPLETE" else None
    lost = found.state.name == "FAIL" and REASON not in told
    return Trial(
        found.number,
        params,
        value,
        told.get(ROUND),
        told.get(SECONDS),
        "its process died" if lost else told.get(REASON, ""),
        found.state.is_finished(),
        lost,
    )


def _typed(one: Range, value: float) -> float | int:
    return int(value) if one.whole else value


def _distribution(one: Range) -> Any:
    kinds = _optuna().distributions
    if one.whole:
        return kinds.IntDistribution(int(one.low), int(one.high), log=one.log)
    return kinds.FloatDistribution(one.low, one.high, log=one.log)


def _optuna() -> Any:
    try:
        optuna = import_module("optuna")
    except ImportError:
        raise InputError("fedem tune needs Optuna: pip install 'fedem-flwr[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
