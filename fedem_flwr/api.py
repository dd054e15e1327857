"""The program from Python: `run`, `resume`, `load`, and the `Result` that they give.

import fedem_flwr as fedem
result = fedem.run(dataset="ml-100k", method="fedials", seed=1)
result.metrics["validation.ndcg@10"].plot()
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fedem_flwr.config import Config, Tree, name_of_class, preset_names, renamed
from fedem_flwr.config.registry import find, names
from fedem_flwr.data import KNOWN_DATASETS, SYNTHETIC, read_frame
from fedem_flwr.errors import InputError, suggest
from fedem_flwr.experiment import flow
from fedem_flwr.experiment.plan import plan
from fedem_flwr.experiment.remarks import opening
from fedem_flwr.experiment.result import Result
from fedem_flwr.report.progress import progress_console
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.inputs import columns_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Result", "load", "method_section", "resume", "run"]

Method: TypeAlias = "str | type[Any] | Mapping[str, Any]"

_ORIGIN = "fedem_flwr.run"
_FRAME = "dataframe"  # what a DataFrame is called where nobody names it
_PLACES = {  # of the arguments that stand for a setting
    "dataset": ("data", "dataset"),
    "protocol": ("data", "protocol"),
    "rounds": ("run", "rounds"),
    "seed": ("run", "seed"),
}
_ARGUMENTS = (*_PLACES, "method", "out", "against", "name", "overwrite", "progress")


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
        protocol: strict (the default), or paper, the literature's leaky evaluation.
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
    options = _options(given, method, settings)
    asked = plan({}, options, [method_section(each) for each in rivals], origin=_ORIGIN)
    for config in (asked.config, *asked.others):
        _check_class(config)
    source = None if frame is None else read_frame(frame, columns_of(asked.config), asked.config.data.dataset)
    console = progress_console(progress)
    place = None if out is None else Path(out).expanduser()
    shown = {**given, "method": method, "out": place, "against": rivals or None, **settings}
    command = _call(shown, framed=frame is not None)
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


def method_section(method: Method) -> Tree:
    """The `[method]` section of what a call names: a preset, a class or its path, or a section.

    A class that is a preset's strategy is that preset. Any other goes by its own name, in kebab case.

    Raises:
        InputError: neither of these, a class that nobody else can import, or one named like a preset it is not.
    """
    if isinstance(method, Mapping):
        section: Tree = _plain(method, "method")
        return section
    if isinstance(method, type):
        presets = [name for name in names("strategies") if name in preset_names("methods")]
        known = [name for name in presets if find("strategies", name) is method]
        if known:
            return {"name": known[0]}
        method = _class_path(method)
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


def _class_path(kind: type[Any]) -> str:
    """Where a class is found again: "package.module:Class"."""
    if "<locals>" in kind.__qualname__:
        raise InputError(f"class {kind.__qualname__} is inside a function, where it cannot be found again; move it out")
    return f"{kind.__module__}:{kind.__qualname__}"


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


def _options(given: Mapping[str, Any], method: Method | None, settings: Mapping[str, Any]) -> Tree:
    """The arguments as a configuration tree.

    Raises:
        InputError: an unknown argument, a section that is none, or something that is said twice.
    """
    tree: Tree = {}
    for section, keys in renamed(settings).items():
        if section not in Config.model_fields:
            raise InputError(f"{_ORIGIN}: unknown argument '{section}'{suggest(section, _valid_arguments())}")
        if not isinstance(keys, Mapping):
            raise InputError(f"{_ORIGIN}: {section} = {keys!r}: a section's settings are a dictionary")
        tree[section] = _plain(keys, section)
    for argument, value in given.items():
        section, key = _PLACES[argument]
        if value is None:
            continue
        if key in tree.get(section, {}):
            raise InputError(f"{_ORIGIN}: {argument} is given twice, as {argument}= and in {section}=; leave one out")
        tree.setdefault(section, {})[key] = _plain(value, argument)
    return tree if method is None else {**tree, "method": method_section(method)}


def _valid_arguments() -> list[str]:
    return [*_ARGUMENTS, *(section for section in Config.model_fields if section not in _ARGUMENTS)]


def _plain(value: Any, where: str) -> Any:
    """A value as TOML has it: NumPy's numbers, paths and classes in plain form.

    Raises:
        InputError: it has no such form.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): _plain(each, f"{where}.{key}") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, where) for each in value]
    if isinstance(value, type):
        return _class_path(value)
    if isinstance(value, PathLike):
        return os.fspath(value)
    if isinstance(value, str | bool | int | float) or (value is None and where.count(".") < 2):
        return value  # None is a field that is not set; inside a field TOML could not say it
    kind = type(value).__name__
    raise InputError(f"{where} is a {kind}: a setting is text, a number, true or false, a list or a dictionary")


def _call(arguments: Mapping[str, Any], *, framed: bool) -> str:
    """The call as the report shows it."""
    texts = {name: repr(_plain(value, name)) for name, value in arguments.items() if value is not None}
    if framed:
        texts["dataset"] = f"<DataFrame {texts['dataset']}>"
    return f"{_ORIGIN}({', '.join(f'{name}={text}' for name, text in texts.items())})"
