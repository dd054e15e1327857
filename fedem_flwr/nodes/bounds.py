"""Bounds that a node sets to a run's configuration, whatever its server asks for."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from fedem_flwr.config import Config
from fedem_flwr.errors import InputError, suggest

_UNLIMITED = ("gradients.clip", "ldp.clip", "ldp.epsilon_limit")  # whose lack is no limit at all
_FORM = re.compile(r"([a-z_]+)\.([a-z_.]+)=([^.=]*(?:\.\d+)?)\.\.([^=]*)")


@dataclass(frozen=True)
class Bound:
    """What a setting may be, both ends included.

    Attributes:
        setting: its path in the configuration, such as `local.epochs`.
    """

    setting: str
    least: float = -math.inf
    most: float = math.inf

    @classmethod
    def parse(cls, text: str) -> Bound:
        """Of `SETTING=LEAST..MOST`; either end may be left out.

        Raises:
            InputError: it is of another form, or there is no such setting.
        """
        match = _FORM.fullmatch(text.strip())
        try:
            if match is None:
                raise ValueError
            section, name, least, most = match.groups()
            bound = cls(f"{section}.{name}", float(least or -math.inf), float(most or math.inf))
        except ValueError:
            raise InputError(f"--bound {text}: write SETTING=LEAST..MOST, such as local.epochs=..50") from None
        if section not in Config.model_fields:
            raise InputError(f"--bound {text}: there is no section '{section}'{suggest(section, Config.model_fields)}")
        known = getattr(Config.model_fields[section].annotation, "model_fields", {})
        if section != "method" and name not in known:  # a method's own options are known with the run
            raise InputError(f"--bound {text}: there is no setting '{bound.setting}'{suggest(name, known)}")
        return bound

    def objection(self, config: Config) -> str:
        """What is wrong with a configuration, in words; empty if nothing is, or if it has no such setting."""
        value: object = config
        for name in self.setting.split("."):
            value = getattr(value, name, None)
        if value is None and self.most < math.inf and self.setting in _UNLIMITED:
            return f"no {self.setting}, where this node takes {self.words}"
        if isinstance(value, bool | int | float) and not self.least <= value <= self.most:
            return f"{self.setting} = {value}, where this node takes {self.words}"
        return ""

    @property
    def words(self) -> str:
        """Both ends, in words."""
        ends = [f"{self.least:g} or more"] if self.least > -math.inf else []
        ends += [f"{self.most:g} or less"] if self.most < math.inf else []
        return ", and ".join(ends) or "anything"


DEFAULT = (Bound("local.negatives", least=1),)  # without negatives, the rows that a user touched are its history
