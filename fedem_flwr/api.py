"""The program from Python: `run`, `resume`, `load` and the `Result` that they give; `compare`.

import fedem_flwr as fedem
result = fedem.run(dataset="ml-100k", method="fedials", seed=1)
result.metrics["validation.ndcg@10"].plot()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fedem_flwr.arguments import RUN, call_text, class_path, options_of, plain
from fedem_flwr.config import Config, Tree, name_of_class, preset_names
from fedem_flwr.config.registry import find, names
from fedem_flwr.data import KNOWN_DATASETS, SYNTHETIC, read_frame
from fedem_flwr.errors import InputError
from fedem_flwr.experiment import flow
from fedem_flwr.experiment.plan import plan
from fedem_flwr.experiment.remarks import opening
from fedem_flwr.experiment.result import Result
from fedem_flwr.leaderboard.call import compare_finished, compare_tree
from fedem_flwr.leaderboard.grid import Axes
from fedem_flwr.report.progress import progress_console
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.inputs import columns_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Result", "compare", "load", "method_section", "resume", "run"]

Method: TypeAlias = "str | type[Any] | Mapping[str, Any]"

_COMPARE = "fedem_flwr.compare"
_FRAME = "dataframe"  # what a DataFrame is called where nobody names it


def run(
    dataset: str | PathLike[str] | pd.DataFrame | None = None,
    method: Method | None = None,
    *,
    protocol: str | None = None,
    rounds: int | None = None,
    seed: int | None = None,
    out: str | PathLike[str] | None = None,
    against: Method | Sequence[Method] = (),
    name: str | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    **settings: Mapping[str, Any],
) -> Result:
    """Train and evaluate a method, as `fedem run` does; without arguments, on the embedded synthetic data.

    Args:
        dataset: a known name (`fedem data list`), the path of a delimited file, or a DataFrame of user, item[, rating]
            [, time]. Columns are recognised by their names, or given: ``data={"user_column": "who"}``.
        method: a preset's name, ``"package.module:Class"``, the class itself, or a `[method]` section. The default is
            what was best on the data set.
        protocol: strict (the default); paper, the literature's leaky evaluation; or temporal, a model up to an instant.
        rounds: of training.
        seed: of every draw, the split's included.
        out: the run's directory; a new one under runs/ where None.
        against: other methods to run beside it on the same split.
        name: of a DataFrame, in results.
        overwrite: replace a run that `out` holds.
        progress: whether it is shown, on standard error; None: on a terminal or in a notebook.
        settings: dictionaries by section, as in an experiment file: ``model={"dim": 32}, run={"runtime": "ray"}``.

    Raises:
        InputError: something that was given will not do: what, and how to mend it. FedemError: the run failed.
    """
    frame = None if dataset is None or isinstance(dataset, str | PathLike) else _checked_frame(dataset)
    if frame is None and name is not None:
        raise InputError(f"name = {name!r} is what a DataFrame is called in results; leave it out")
    called = _frame_name(name) if frame is not None else dataset
    given = {"dataset": called, "protocol": protocol, "rounds": rounds, "seed": seed}
    rivals: Sequence[Method] = [against] if isinstance(against, str | type | Mapping) else against
    options = options_of(given, None if method is None else method_section(method), settings)
    asked = plan({}, options, [method_section(each) for each in rivals], origin=RUN)
    for config in (asked.config, *asked.others):
        _check_class(config)
    source = None if frame is None else read_frame(frame, columns_of(asked.config), asked.config.data.dataset)
    console = progress_console(progress)
    place = None if out is None else Path(out).expanduser()
    shown = {**given, "method": method, "out": place, "against": rivals or None, **settings}
    command = call_text(shown, framed=frame is not None)
    with flow.prepare(asked, place, overwrite=overwrite, source=source, command=command, console=console) as runs:
        if console is not None:
            console.print(opening(runs.main), soft_wrap=True)
        flow.carry_out(runs, console=console)
    return load(runs.main.directory.path, trust=True)  # it was named just now


def resume(
    run_dir: str | PathLike[str],
    *,
    back_to: int | None = None,
    progress: bool | None = None,
    trust: bool = False,
) -> Result:
    """Continue an interrupted run, and those beside it, to the same result as if nothing had happened.

    Args:
        run_dir: the run's directory.
        back_to: go on from the checkpoint of this round, and forget what came after it; else from the newest.
        progress: as of `run`.
        trust: let a directory that this account has not made here do what its configuration says: import code, write
            elsewhere, start processes.

    Raises:
        InputError: it holds no run, a damaged one, or a stranger's that wants such things.
    """
    with flow.reopen(Path(run_dir).expanduser(), back_to, trusted=trust) as runs:
        flow.carry_out(runs, console=progress_console(progress), resume=True)
    return load(run_dir, trust=trust)


def load(run_dir: str | PathLike[str], *, trust: bool = False) -> Result:
    """The result of a run that was carried out before, from Python or by `fedem run`.

    Args:
        trust: let it import the code that its configuration names, though this account has not made it here.

    Raises:
        InputError: the directory holds no run.
    """
    return Result(RunDirectory(Path(run_dir).expanduser()).open().path.absolute(), trust)


def compare(
    methods: Sequence[str] = (),
    datasets: Sequence[str] = (),
    *,
    protocols: Sequence[str] = (),
    seeds: int | Sequence[int] = 1,
    rounds: int | None = None,
    runs: Sequence[str | PathLike[str]] = (),
    out: str | PathLike[str] | None = None,
    jobs: int | None = None,
    parallel: str = "processes",
    progress: bool | None = None,
    **settings: Mapping[str, Any],
) -> pd.DataFrame:
    """Compare methods over data sets, protocols and seeds, as `fedem compare` does; each cell is a process.

    What has finished is not carried out again, and what was interrupted goes on: the same call continues.

    Args:
        methods: presets, or ``"package.module:Class"``. datasets: known names, or paths.
        protocols: strict (the default), paper, or both.
        seeds: how many, from 0 on, or which.
        rounds: of training, instead of each method's own.
        runs: directories of finished runs, instead of a grid.
        out: the leaderboard's folder.
        jobs: cells at a time, at most; None: one a core, as far as memory goes.
        parallel: what starts the cells: ``"processes"``, this process; ``"ray"``, tasks of Ray on this machine.
        progress: as of `run`.
        settings: dictionaries by section, for all cells.

    Returns:
        a row for each protocol, data set and method or control: means over seeds, and standard deviations.

    Raises:
        InputError: something that was given will not do. FedemError: cells failed; the others are in the folder.
    """
    place = None if out is None else Path(out).expanduser()
    if runs:
        return compare_finished([Path(run).expanduser() for run in runs], place)
    options = options_of({"rounds": rounds}, None, settings, _COMPARE)
    axes = Axes(list(methods), list(datasets), list(protocols), seeds)
    shown = {"methods": axes.methods, "datasets": axes.datasets, "protocols": axes.protocols, "seeds": seeds}
    return compare_tree(
        {},
        options,
        axes,
        origin=_COMPARE,
        out=place,
        jobs=jobs,
        command=call_text({**shown, "rounds": rounds, **settings}, origin=_COMPARE),
        console=progress_console(progress),
        parallel=parallel,
    )


def method_section(method: Method) -> Tree:
    """The `[method]` section of what a call names: a preset, a class or its path, or a section.

    A class that is a preset's strategy is that preset. Any other goes by its own name, in kebab case.

    Raises:
        InputError: neither of these, a class that nobody else can import, or one named like a preset it is not.
    """
    if isinstance(method, Mapping):
        section: Tree = plain(method, "method")
        return section
    if isinstance(method, type):
        presets = [name for name in names("strategies") if name in preset_names("methods")]
        known = [name for name in presets if find("strategies", name) is method]
        if known:
            return {"name": known[0]}
        method = class_path(method)
    if not isinstance(method, str):
        raise InputError(f"method = {method!r}: give a name, 'package.module:Class', a class or a section")
    if ":" not in method:
        return {"name": method}
    name = name_of_class(method)
    if name in preset_names("methods"):
        raise InputError(
            f"method {method} would be called '{name}' in results, as a method that ships is: "
            f"give it another name, method={{'name': ..., 'strategy': '{method}'}}"
        )
    return {"name": name, "strategy": method}


def _check_class(config: Config) -> None:
    """A class of a notebook or script is there in this process alone."""
    if config.method.strategy.startswith("__main__:") and config.run.runtime != "inprocess":
        raise InputError(
            f"method '{config.method.name}': its class is in __main__, which the processes of the runtime "
            f"'{config.run.runtime}' cannot import; put it into a module, or use the runtime 'inprocess'"
        )


def _checked_frame(dataset: object) -> pd.DataFrame:
    import pandas as pd

    if not isinstance(dataset, pd.DataFrame):
        raise InputError(f"dataset is a {type(dataset).__name__}: give a name, a path or a pandas DataFrame")
    return dataset


def _frame_name(name: str | None) -> str:
    """What a DataFrame is called; not as a data set is whose settings and reputation are its own."""
    if name is None:
        return _FRAME
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise InputError(f"name = {name!r}: give a word or two for the results")
    if name in (SYNTHETIC, *KNOWN_DATASETS, *preset_names("datasets")):
        raise InputError(f"name = {name!r}: a known data set is called so; give the DataFrame another name")
    return name
