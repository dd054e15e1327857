"""The picture of `diagnostics.bottleneck`: shares of users by round, and ρ beside what it may be."""

from __future__ import annotations

from collections.abc import Mapping

from fedem_flwr.report.drawing import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    ImageFormat,
    NothingToDrawError,
    image_bytes,
    marker_for,
    numbers,
    panels,
)

CAPTION = (
    "Left: users for whom a step of gradient descent leads away from their local optimum, ⟨∇L(Q), Q − Q*⟩ ≤ 0: at "
    "what they received (Lemma 1 of the FedEM paper), merged with their own (Lemma 2), and at their own. Right: the "
    "weight ρ of what they received, and below what it must be for Lemma 2, A / (A + C), both as means over users."
)


def bottleneck(section: object, *, image_format: ImageFormat = "svg") -> bytes:
    """Draw ``diagnostics["bottleneck"]``."""
    stored = section if isinstance(section, Mapping) else {}
    found = {name: numbers(stored.get(name), name) for name in ("rounds", "global", "merged", "own", "rho", "bound")}
    rounds = found.pop("rounds")
    if any(len(values) != len(rounds) for values in found.values()):
        raise NothingToDrawError("the bottleneck's figures are of different rounds")
    lines = (
        (0, "global", ORANGE, "what they received"),
        (0, "merged", BLUE, "merged"),
        (0, "own", GREEN, "their own"),
        (1, "rho", BLUE, "ρ"),
        (1, "bound", INK, "A / (A + C)"),
    )
    with panels(2) as (figure, axes):
        for place, name, colour, label in lines:
            axes[place].plot(rounds, found[name], color=colour, label=label, marker=marker_for(len(rounds)), ms=3)
        axes[0].set(title="Led away from the local optimum", ylabel="share of users", ylim=(0, 1))
        axes[1].set(title="ρ and its bound", ylabel="mean over users", ylim=(0, 1))
        for axis in axes:
            axis.set_xlabel("round")
            axis.grid(axis="y")
            axis.legend(loc="best")
            axis.locator_params(axis="x", integer=True)
        return image_bytes(figure, image_format)
