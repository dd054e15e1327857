"""What lies beside this package in a checkout and inside it in an installation: `strategies`, `clients`, the presets.

Site-packages belong to everybody, and so does the path of a program: another project may well have a package called
`clients` or a folder `configs`. So these are `fedem_flwr.strategies`, `fedem_flwr.clients` and `fedem_flwr/presets`. A
wheel holds them there (`package-dir` in pyproject.toml); in a checkout, and in the bundle of `flwr run`, the folders
lie beside the package, and are found there. Their former names, `strategies` and `clients`, go on working wherever
nobody else has these names, and mean the same modules and not copies.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location, spec_from_loader
from pathlib import Path
from types import ModuleType

FORMER = ("strategies", "clients")  # packages that were at the top, beside this one
_HERE = Path(__file__).parent
_PACKAGE = __package__


def presets() -> Path:
    """The folder of the configurations that ship with the package."""
    inside = _HERE / "presets"
    return inside if inside.is_dir() else _HERE.parent / "configs"


def find_rooms() -> None:
    """From now on they can be imported; called once, when this package is."""
    sys.meta_path.insert(0, _Rooms())  # first: a folder that is found under both names would be two packages


def one_module(name: str) -> None:
    """Called by a package of these on its import: under a former name it is the one that has today's."""
    if name in FORMER:
        sys.modules[name] = import_module(f"{_PACKAGE}.{name}")


class _Rooms(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        package, _, name = fullname.rpartition(".")
        if package == _PACKAGE and name in FORMER:
            return self._beside(fullname, _HERE.parent / name)
        top = fullname.partition(".")[0]
        if top in FORMER and self._is_ours(top):
            return spec_from_loader(fullname, _SameModule(f"{_PACKAGE}.{fullname}"))
        return None

    @staticmethod
    def _beside(fullname: str, folder: Path) -> ModuleSpec | None:
        """Of a folder of the checkout; an installed package is found as any other."""
        if (_HERE / folder.name).is_dir():
            return None
        return spec_from_file_location(fullname, folder / "__init__.py", submodule_search_locations=[str(folder)])

    def _is_ours(self, top: str) -> bool:
        """Whether a former name is free, or that of our own folder."""
        if top in sys.modules:
            return sys.modules[top] is sys.modules.get(f"{_PACKAGE}.{top}")
        others = (finder.find_spec(top, None) for finder in sys.meta_path if finder is not self)
        found = next((spec for spec in others if spec is not None), None)
        if found is None:
            return True
        own = _HERE.parent / top / "__init__.py"
        return bool(found.origin) and own.exists() and os.path.samefile(str(found.origin), own)


class _SameModule(Loader):
    """Gives the module of another name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """See `importlib.abc.Loader`."""
        module = import_module(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has been carried out; what the import system has just written over comes back."""
        module.__spec__ = self._spec
