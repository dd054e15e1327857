"""What cannot apply: for a method and a cell, why. The cell must fail there, or the entry is out of date."""

from __future__ import annotations

from typing import Final

_HISTORIES: Final = "clients train no part with the engine: users are solved or scored from their histories"
_SUMS: Final = "it sends sums that clipping changes of trained parts does not bound, and is refused with that reason"
_GROUP: Final = "groups of users are trained in a task of the method's own, and not by the engine"

EXCEPTIONS: Final[dict[tuple[str, str], str]] = {
    ("local-only", "two tastes"): "nothing is shared, so nothing can be found of items that a user has not met",
    ("local-only", "contribution stages"): "nothing goes up that a stage could change",
    ("local-only", "local privacy"): "nothing goes up that noise could guard",
    ("fedfast", "local privacy"): "rows go up weighted by their own change, whose square no clipping of changes bounds",
    ("fedmf-elastic", "local privacy"): _SUMS,
    ("auto", "local privacy"): _SUMS,
    ("fedials-elastic", "local privacy"): _SUMS,
    ("fedials-order", "local privacy"): _SUMS,
    ("fedcia", "local privacy"): _SUMS,
    ("fedcia-released", "local privacy"): _SUMS,
    ("auto", "both back ends"): _HISTORIES,
    ("auto", "gradients"): _HISTORIES,
    ("auto", "several tables"): _HISTORIES,
    ("fedials", "both back ends"): _HISTORIES,
    ("fedials", "gradients"): _HISTORIES,
    ("fedials", "several tables"): _HISTORIES,
    ("fedials-elastic", "both back ends"): _HISTORIES,
    ("fedials-elastic", "gradients"): _HISTORIES,
    ("fedials-elastic", "several tables"): _HISTORIES,
    ("fedials-order", "both back ends"): _HISTORIES,
    ("fedials-order", "gradients"): _HISTORIES,
    ("fedials-order", "several tables"): _HISTORIES,
    ("gpfedrec-released", "two tastes"): "its similarity is a distance: users of the other taste are the neighbours",
    ("fedcia", "both back ends"): _GROUP,
    ("fedcia", "gradients"): _GROUP,
    ("fedcia", "several tables"): _GROUP,
    ("fedcia-released", "spread over nodes"): "a group is a node: other groups are another result",
    ("fedcia-released", "slow twin"): _GROUP,
    ("fedcia-released", "both back ends"): _GROUP,
    ("fedcia-released", "gradients"): _GROUP,
    ("fedcia-released", "several tables"): _GROUP,
}
