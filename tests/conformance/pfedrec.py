"""PFedRec (Zhang et al., IJCAI 2023): no user vector, a private scoring layer, a personal item table.

Private: (w, b), `head`. Up: the trained item table. Server: its mean over users. Down: the table, from which a client's
own starts. A batch is a step on the head, then one on the items. Users are scored with their own tuned table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field
from torch import Tensor

from fedem_flwr.config.sections import Section
from fedem_flwr.contract import Method, Part, Update


class PFedRecOptions(Section):
    """Of `PFedRec`."""

    lr: float = Field(0.1, gt=0, description="η, of the head")
    factor: float = Field(80.0, gt=0, description="an item row's rate over η, for each item of the catalogue")


class PFedRec(Method):
    """Score z = w · q + b."""

    Options = PFedRecOptions
    EVALUATED = "local"

    def parts(self) -> Mapping[str, Part]:
        """A client keeps both; the head never leaves it."""
        dim, std = self.config.model.dim, self.config.model.init_std
        items = Part("item", dim, up="sum", mean="users", kept=True, std=std)
        return {"head": Part("model", dim + 1, private=True, std=std), "items": items}

    def score(self, parts: Mapping[str, Tensor]) -> Tensor:
        """See the class."""
        head = parts["head"]
        return (parts["items"] @ head[:, :-1, None]).squeeze(-1) + head[:, -1:]

    def updates(self, round_: int) -> Sequence[Update]:
        """The head, then the items."""
        rate = self.options.lr
        return [Update({"head": rate}, "sgd"), Update({"items": rate * self.options.factor * self.items}, "sgd")]
