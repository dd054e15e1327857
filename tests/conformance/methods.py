"""The methods under test: all that are registered, all presets, and those that exist for this suite only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedem_flwr.config import Config, merge_trees, preset_names, resolve
from fedem_flwr.config.registry import find, is_method, names
from fedem_flwr.contract import Method
from fedem_flwr.contract.finding import method_of
from fedem_flwr.errors import InputError

USERS, ITEMS = 21, 50
TINY: dict[str, Any] = {
    "data": {"dataset": "synthetic", "synthetic": {"users": USERS, "items": ITEMS, "mean_interactions": 14}},
    "model": {"dim": 4, "init_std": 0.3},
    "local": {"epochs": 2, "batch_size": 40},
    "merge": {"epochs": 2},
    "group_tables": {"clustering": 1, "rounds": 1, "groups": 2, "hold_out": 1},
    "order": {"rounds": 2, "layers": 1, "heads": 2, "window": 6, "negatives": 5, "map": 8, "participants": 1.0},
    "run": {"threads": 1, "device": "cpu", "checkpoint_every": 2, "participants": 1.0},
    "evaluation": {"controls": False, "local_only": False, "every": 1},
}

TEST_ONLY = tuple(f"conformance.{path}" for path in ("biased:Biased",))

# Settings beyond those of the tiny world.
SMALL: dict[str, dict[str, Any]] = {
    "auto": {
        "search": {"weights": [0.3, 0.1], "ridges": [0.01], "rounds": 2, "learn": 1},
        "order": {"rounds": 1, "map": 0},
    },
    "fedrecgel": {"method": {"options": {"hidden": [8, 4]}}},
    "fedcia": {"method": {"options": {"group": "user", "steps": 10}}},
    "fedcia-released": {"method": {"options": {"steps": 10}}},
    "fedfast": {"run": {"participants": 0.6}, "method": {"options": {"clusters": 3}}},
}

FEDRAP = {
    "method": {"options": {"apart": 0.001, "sparse": 0.001, "lr_user": 5.0, "lr_tables": 2.0, "fading": 1.0}},
    "local": {"epochs": 5},
}
FEDNCF = {"method": {"options": {"lr": 0.03}}, "local": {"lr_user": 0.1, "lr_item": 0.1, "epochs": 5}}
GPFEDREC = {"method": {"options": {"factor": 20.0}}, "model": {"init_std": 0.3}}
# Settings beyond those of `conformance.useful` under which a method finds two tastes in 30 rounds.
LEARNING: dict[str, dict[str, Any]] = {
    "fedem-released": {"aggregate": {"fraction": 1.0}},  # with a tenth of 40 users there is little to hear of others
    "pfedrec": {"model": {"init_std": 0.3}, "method": {"options": {"factor": 5.0}}, "local": {"epochs": 4}},
    "fedrap": FEDRAP,
    "fedrap-released": FEDRAP,
    "fedncf": FEDNCF,
    "fedncf-released": FEDNCF,
    "fedmf-visits": {"local": {"lr_user": 1.0, "lr_item": 1.0}},
    "colr": {"local": {"lr_user": 0.5, "lr_item": 0.5}},
    "fedrecgel": {"method": {"options": {"lr_server": 0.05}}, "local": {"lr_user": 0.1}},
    "gpfedrec": GPFEDREC,
    "gpfedrec-released": GPFEDREC,
    "fedcia": {"local": {"epochs": 3, "lr_user": 0.05, "lr_item": 0.05}},
    "fedcia-released": {
        "local": {"epochs": 3, "lr_user": 0.05, "lr_item": 0.05},
        "method": {"options": {"steps": 30, "rate": 0.3}},
        "run": {"users_per_node": 10},
    },
}


@dataclass(frozen=True)
class Subject:
    """A method under test.

    Attributes:
        name: what `method.name` takes: a preset, a registered name, or a dotted path.
        more: settings that it is tested under: section, key, value.
    """

    name: str
    more: tuple[tuple[str, str, Any], ...] = ()

    @property
    def base(self) -> str:
        """The method alone."""
        return self.name.rpartition(":")[2]

    @property
    def short(self) -> str:
        """For ids and lists."""
        return "+".join([self.base, *(str(value) for _, _, value in self.more)])

    def config(self, **sections: Any) -> Config:
        """On the tiny world, with as few rounds as the method's phases need, and at least three."""
        own: dict[str, Any] = merge_trees(*({section: {key: value}} for section, key, value in self.more))
        for rounds in (3, 4, 5, 6):
            named = {"method": {"name": self.name}, "run": {"rounds": rounds}}
            tree = merge_trees(TINY, SMALL.get(self.base, {}), named, own)
            config = resolve({}, merge_trees(tree, sections))
            try:
                method_of(config, ITEMS).phases()
            except InputError as error:
                if "rounds" not in str(error):
                    raise
            else:
                return config
        raise AssertionError(f"{self.name} needs more than 6 rounds")

    @property
    def method(self) -> Method:
        """On the tiny world."""
        return method_of(self.config(), ITEMS)


NOT_FEDERATED = "nothing crosses, and there are no clients: one node holds everybody (tests/test_central.py)"


def centralised(name: str) -> bool:
    """Whether a preset or a registered name is of a control that has all data in one place."""
    kind = find("strategies", resolve({}, {"method": {"name": name}}).method.strategy)
    return bool(getattr(kind, "CENTRALISED", False))


def registered() -> list[str]:
    """Names of methods that are found: files of the room, and entry points of other packages."""
    return [name for name in names("strategies") if is_method(find("strategies", name))]


EVERYTHING = sorted({*registered(), *preset_names("methods")})
LEFT_OUT = {name: NOT_FEDERATED for name in EVERYTHING if centralised(name)}
SUBJECTS = tuple(Subject(name) for name in (*(name for name in EVERYTHING if name not in LEFT_OUT), *TEST_ONLY))

# With fewer bits in messages: the server's rounded tables, and uploads rounded by keyed draws.
NARROW = tuple(
    Subject(name, (("messages", "bits_down", down), ("messages", "bits_up", 8)))
    for name, down in (("fedem", 8), ("fedials-order", 8), ("fedmf", 16))
)

# Noise that is the same wherever it is drawn.
GUARDED = Subject(
    "fedmf", (("ldp", "noise", "gaussian"), ("ldp", "clip", 0.5), ("ldp", "multiplier", 0.3), ("ldp", "seeded", True))
)
