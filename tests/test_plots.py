"""Plots: drawn from whatever a run left behind, and the same bytes each time."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
from example_runs import Json, every_third, example_diagnostics, example_lists, example_summary, metrics_line
from hypothesis import given
from hypothesis import strategies as st

from fedem_flwr.report import drawing, plots
from fedem_flwr.report.run_directory import plain

PNG = b"\x89PNG\r\n\x1a\n"


class TestPlots:
    def draw_all(self, lines: list[Json], diagnostics: Json, image_format: drawing.ImageFormat) -> list[bytes]:
        curves = [plots.Curve("fedem", lines, 3), plots.Curve("fedmf", lines[:3])]
        return [
            plots.convergence(curves, example_summary()["controls"], image_format=image_format),
            plots.rho_distribution(lines, diagnostics, image_format=image_format),
            plots.aggregation_weights(diagnostics, image_format=image_format),
            plots.sparsity_groups(diagnostics["groups"], image_format=image_format),
            plots.popularity_histogram(example_lists(), image_format=image_format),
        ]

    def test_images_are_not_empty(self) -> None:
        import matplotlib.image

        lines = [metrics_line(number) for number in range(1, 7)]
        for image in self.draw_all(lines, plain(example_diagnostics()), "png"):
            assert image.startswith(PNG)
            assert matplotlib.image.imread(io.BytesIO(image))[..., :3].std() > 0.05  # more than white paper

    def test_svg_depends_on_the_figures_alone(self) -> None:
        lines = [metrics_line(number) for number in range(1, 4)]
        first = self.draw_all(lines, plain(example_diagnostics()), "svg")
        assert all(b"</svg>" in image for image in first)
        assert first == self.draw_all(lines, plain(example_diagnostics()), "svg")

    def test_missing_and_nan_figures_leave_gaps(self) -> None:
        lines = [
            metrics_line(1, train_loss=math.nan, rho=None, validation=None),
            metrics_line(2, test=None, rho={"mean": 0.4, "std": None}),
            {"round": 3},
        ]
        diagnostics = plain(example_diagnostics())
        diagnostics["weights"]["sample"][0][0] = None
        diagnostics["weights"]["own"] = [None, 0.3]
        diagnostics["rho"]["histograms"]["3"] = [0] * 20
        diagnostics["groups"][0]["hr@10"] = None
        assert all(image.startswith(PNG) for image in self.draw_all(lines, diagnostics, "png"))

    @pytest.mark.parametrize(
        "weights",
        [
            {"sample": [[0.5, 0.5], [0.5, 0.5]], "own": [0.5, 0.5], "nonzero": [2, 2]},  # plain averaging
            {"sample": [[0.0, 0.0], [0.0, 0.0]], "own": [0.0], "nonzero": [0]},
            {"sample": [[1.0, 1e-300], [0.0, 1.0]], "own": None, "nonzero": [1, 900]},
        ],
    )
    def test_degenerate_weights(self, weights: Json) -> None:
        assert plots.aggregation_weights({"weights": weights}, image_format="png").startswith(PNG)

    def test_curves_join_evaluated_rounds_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Few points have markers, many have none; the loss is known in every round."""
        drawn: list[Any] = []
        encode = drawing.image_bytes

        def noted(figure: Any, image_format: drawing.ImageFormat) -> bytes:
            drawn.extend(figure.axes)
            return encode(figure, image_format)

        monkeypatch.setattr(plots, "image_bytes", noted)
        lines = every_third(31)
        plots.convergence([plots.Curve("fedem", lines, 30)], {}, image_format="png")
        loss, hits, _ = (axis.lines for axis in drawn)
        assert len(loss[0].get_xdata()) == 31 and loss[0].get_marker() == ""
        assert [*hits[0].get_xdata()] == [*range(3, 31, 3), 31] and hits[0].get_marker() == "o"
        assert [*hits[2].get_xdata()] == [30], "the reported round"
        plots.rho_distribution(lines, {}, image_format="png")
        assert [*drawn[-1].lines[0].get_xdata()] == [*range(3, 31, 3), 31]
        assert drawing.marker_for(drawing.FEW_POINTS) == ""

    @pytest.mark.parametrize(
        "histogram", [None, {}, {"recommended": [0.5, 0.5]}, {"recommended": [1.0], "consumed": [0.5, 0.5]}]
    )
    def test_histograms_that_cannot_be_drawn(self, histogram: object) -> None:
        with pytest.raises(drawing.NothingToDrawError, match=r"not recorded|not numbers|different groups"):
            plots.popularity_histogram({"popularity_histogram": histogram})

    def test_nothing_to_draw_says_why(self) -> None:
        with pytest.raises(drawing.NothingToDrawError, match="no round"):
            plots.convergence([plots.Curve("fedem", [])], {})
        with pytest.raises(drawing.NothingToDrawError, match="adapter"):
            plots.rho_distribution([metrics_line(1, rho=None)], {"rho": None})
        for weights in (None, {}, {"own": [], "sample": "x", "nonzero": [[1]]}):
            with pytest.raises(drawing.NothingToDrawError, match="not recorded"):
                plots.aggregation_weights({"weights": weights})
        absent: tuple[object, ...] = (None, [], "x")
        for groups in absent:
            with pytest.raises(drawing.NothingToDrawError, match="not recorded"):
                plots.sparsity_groups(groups)

    @given(
        wanted=st.lists(st.floats(0, 1), min_size=1, max_size=8),
    )
    def test_labels_stand_apart_inside_the_axis(self, wanted: list[float]) -> None:
        placed = plots._spread(wanted, 0.1, 0.0, 1.0)
        assert all(-1e-9 <= place <= 1 + 1e-9 for place in placed)
        assert all(gap >= 0.1 - 1e-9 for gap in np.diff(sorted(placed)))
