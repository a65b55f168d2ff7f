"""Curves are checked by their values, their scales and their names."""

import numpy as np
import pandas as pd
import pytest

from course_utils import plotting
from tests.plotting.drawn import history_table


def test_histograms_have_common_bins_and_sum_to_one():
    images = {"a": np.linspace(0, 1, 50), "b": np.linspace(-1, 3, 80).reshape(8, 10)}
    (ax,) = plotting.histograms(images, bins=16).axes
    first, second = (patch.get_data() for patch in ax.patches)
    np.testing.assert_array_equal(first.edges, np.linspace(-1, 3, 17))
    np.testing.assert_array_equal(first.edges, second.edges)
    assert first.values.sum() == pytest.approx(1) and second.values.sum() == pytest.approx(1)
    assert ax.get_yscale() == "log"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]


def test_history_draws_each_term_in_its_panel():
    table = history_table()
    axes = {ax.get_title(): ax for ax in plotting.history(table).axes}
    assert list(axes) == ["loss", "similarity", "learning rate", "regularisation", "validation Dice"]
    (line,) = axes["loss"].lines
    np.testing.assert_allclose(line.get_xydata(), table[["step", "loss"]])
    (dice,) = axes["validation Dice"].lines
    np.testing.assert_allclose(dice.get_xydata(), [[10, 0.2], [20, 0.4], [30, 0.6], [40, 0.8]])
    assert [text.get_text() for text in axes["similarity"].get_legend().get_texts()] == ["training", "validation"]
    assert {title: ax.get_yscale() for title, ax in axes.items()} == {
        "loss": "linear",  # negative
        "similarity": "linear",
        "learning rate": "log",
        "regularisation": "linear",  # positive, but not by a factor of ten
        "validation Dice": "linear",
    }


def test_long_histories_keep_every_value_beside_the_running_mean():
    table = pd.DataFrame({"step": np.arange(200), "loss": np.tile([1.0, -1.0], 100)})
    values, mean = plotting.history(table).axes[0].lines
    np.testing.assert_array_equal(values.get_ydata(), table["loss"])
    assert np.abs(mean.get_ydata()[20:-20]).max() < 0.2
