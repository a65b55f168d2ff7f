"""The evaluation table against known maps, SciPy's warp, and methods and pairs that misbehave."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.ndimage
import scipy.stats
import torch
from monai.data import MetaTensor
from torch import nn

from course_utils.data.cohorts import load_cohort
from course_utils.data.recipe import Recipe
from course_utils.data.synthetic import make_cohort
from course_utils.errors import CourseError
from course_utils.evaluation import evaluate, evaluate_checkpoint, paired_comparison, readable, summarise
from course_utils.fields import warp
from tests.checkpoints import checkpoint

COLUMNS = [
    *("pair", "structure", "dice_before", "dice_after", "hd_mm_before", "hd_mm_after"),
    *("hd95_mm_before", "hd95_mm_after", "folding_percent", "ndv_percent", "sdlogj", "seconds"),
]
TRE = ["tre_mm_before", "tre_mm_after"]
LABELS = {1: "shell", 2: "core"}


def answer(displacement):
    return SimpleNamespace(displacement=displacement)


def do_nothing(moving, fixed):
    return answer(torch.zeros(1, moving.ndim - 2, *fixed.shape[2:]))


def shifted_pair(name="a_to_b", shape=(14, 12, 13), shift=(3, 0, -2)):
    """A nested cube, and the same one moved by `shift`: moving(x + shift) = fixed(x)."""
    fixed_label = torch.zeros(1, *shape, dtype=torch.uint8)
    fixed_label[(0, *[slice(4, 10)] * len(shape))] = 1
    fixed_label[(0, *[slice(5, 8)] * len(shape))] = 2
    moving_label = torch.roll(fixed_label, shift, dims=tuple(range(1, len(shape) + 1)))
    truth = torch.tensor(shift, dtype=torch.float32).view(-1, *[1] * len(shape)).expand(-1, *shape)
    return {
        "name": name,
        "fixed": fixed_label.float(),
        "moving": moving_label.float(),
        "fixed_label": fixed_label,
        "moving_label": moving_label,
        "true_displacement": truth,
    }


def without(item, *keys):
    return {key: value for key, value in item.items() if key not in keys}


def test_the_true_displacement_scores_perfectly():
    item = shifted_pair()
    spacing = (1.0, 2.0, 0.5)
    table = evaluate(lambda m, f: answer(item["true_displacement"][None]), [item], LABELS, spacing)
    assert list(table.columns) == COLUMNS + TRE
    assert table["pair"].tolist() == ["a_to_b"] * 2
    assert table["structure"].tolist() == ["shell", "core"]
    assert (table["dice_after"] == 1).all()
    assert (table[["hd_mm_after", "hd95_mm_after", "tre_mm_after", "folding_percent"]] == 0).all(axis=None)
    np.testing.assert_allclose(table["tre_mm_before"], math.sqrt(3**2 + 1**2), rtol=1e-6)
    # The core shifts by 3 of its 3 voxels along the first axis: nothing overlaps; its far corner is 3 and 1 mm away.
    core = table.iloc[1]
    assert core["dice_before"] == 0
    assert core["hd_mm_before"] == pytest.approx(math.hypot(3, 1))


@pytest.mark.parametrize(("shape", "shift"), [((14, 12, 13), (1, 0, -1)), ((14, 12), (1, -1))])
def test_doing_nothing_changes_nothing(shape, shift):
    table = evaluate(do_nothing, [shifted_pair(shape=shape, shift=shift)], LABELS, 1.0)
    for measure in ("dice", "hd_mm", "hd95_mm", "tre_mm"):
        np.testing.assert_array_equal(table[f"{measure}_before"], table[f"{measure}_after"])
    assert table["dice_before"].between(0, 1, inclusive="neither").all()
    assert (table[["folding_percent", "sdlogj"]] == 0).all(axis=None)


def test_labels_move_as_scipy_moves_them_nearest_and_zero_outside():
    item = shifted_pair()
    noise = np.random.default_rng(0).normal(size=(3, 14, 12, 13))
    u = np.stack([scipy.ndimage.gaussian_filter(c, 2) for c in noise])
    u *= 6 / np.abs(u).max()
    table = evaluate(lambda m, f: answer(torch.from_numpy(u)[None]), [item], LABELS, 1.0)  # float64, as SciPy gives
    grid = np.stack(np.meshgrid(*map(np.arange, u.shape[1:]), indexing="ij"))
    moved = scipy.ndimage.map_coordinates(item["moving_label"][0].numpy(), grid + u, order=0, mode="constant", cval=0)
    fixed = item["fixed_label"][0].numpy()
    for value, measured in zip(LABELS, table["dice_after"], strict=True):
        a, b = moved == value, fixed == value
        assert measured == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_zero_comes_from_outside_the_image():
    item = shifted_pair()
    item["moving_label"] = torch.ones_like(item["moving_label"])  # a border rule would repeat it for ever
    item["fixed_label"] = item["moving_label"].clone()
    far = torch.full((1, 3, 14, 12, 13), 100.0)
    row = evaluate(lambda m, f: answer(far), [item], {1: "all"}, 1.0).iloc[0]
    assert (row["dice_before"], row["dice_after"]) == (1, 0)
    assert row["hd_mm_after"] == row["hd95_mm_after"] == math.inf


def test_only_the_call_is_timed_and_the_first_is_not_counted(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("course_utils.evaluation.time", SimpleNamespace(perf_counter=lambda: clock.now))
    durations = iter([100.0, 2.0, 3.0])

    def method(moving, fixed):
        clock.now += next(durations)
        return do_nothing(moving, fixed)

    def slowly_loaded():
        for name in "ab":
            clock.now += 1000.0
            yield shifted_pair(name)

    table = evaluate(method, slowly_loaded(), LABELS, 1.0)
    assert table["seconds"].tolist() == [2.0, 2.0, 3.0, 3.0]
    assert next(durations, None) is None


class Network(nn.Module):
    """Answers with ones through dropout: torn in training mode, smooth in evaluation mode. Notes how it was called."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout(0.5)
        self.calls = []

    def forward(self, moving, fixed):
        self.calls.append((self.training, torch.is_inference_mode_enabled(), moving.shape, moving.dtype))
        ones = torch.ones(1, 3, *fixed.shape[2:])
        return answer(self.dropout(ones) + self.weight)


def test_a_network_is_measured_in_evaluation_mode_and_left_as_it_was():
    network = Network().train()
    table = evaluate(network, [shifted_pair()], LABELS, 1.0)
    assert (table["sdlogj"] == 0).all()  # dropout would have torn the field
    assert network.calls == [(False, True, (1, 1, 14, 12, 13), torch.float32)] * 2
    assert network.training
    assert network.dropout.training
    with pytest.raises(CourseError):
        evaluate(network, [without(shifted_pair(), "fixed")], LABELS, 1.0)
    assert network.training


def test_a_method_that_needs_gradients_can_have_them():
    def descend(moving, fixed):
        with torch.inference_mode(False):
            shift = torch.zeros(1, 3, 1, 1, 1, requires_grad=True)
            optimiser = torch.optim.Adam([shift], lr=0.2)
            for _ in range(40):
                optimiser.zero_grad()
                (warp(moving, shift.expand(-1, -1, *fixed.shape[2:])) - fixed).square().mean().backward()
                optimiser.step()
        return answer(shift.expand(-1, -1, *fixed.shape[2:]))

    table = evaluate(descend, [shifted_pair(shift=(1, 0, 1))], LABELS, 1.0)
    assert (table["dice_after"] > table["dice_before"]).all()
    assert (table["tre_mm_after"] < 0.5 * table["tre_mm_before"]).all()


def test_tre_stands_where_the_truth_is_known_and_is_measured_inside_the_labels():
    known, unknown = shifted_pair("known"), without(shifted_pair("unknown"), "true_displacement")
    wrong_outside = torch.where(known["fixed_label"] > 0, known["true_displacement"], torch.tensor(50.0))
    known["true_displacement"] = wrong_outside
    table = evaluate(do_nothing, [known, unknown], LABELS, 1.0).set_index("pair")
    np.testing.assert_allclose(table.loc["known", "tre_mm_after"], math.sqrt(3**2 + 2**2), rtol=1e-6)
    assert table.loc["unknown", TRE].isna().all(axis=None)
    assert list(evaluate(do_nothing, [unknown], LABELS, 1.0).columns) == COLUMNS


def test_tre_is_left_out_where_the_network_works_on_another_grid_than_the_truth(tmp_path):
    make_cohort(tmp_path / "synthetic", subjects=6, spacing=6)
    cohort = load_cohort("synthetic", tmp_path, download=False)
    pairs = cohort.pairs("train", "random", count=2)
    columns = {
        shape: set(evaluate_checkpoint(checkpoint(Recipe(shape, (6.0, 6.0, 6.0))), pairs))
        for shape in ((32, 48, 32), (32, 40, 32))
    }
    assert columns[32, 48, 32] - columns[32, 40, 32] == set(TRE)


def test_monai_tensors_measure_like_plain_ones():
    plain = shifted_pair()
    meta = {key: MetaTensor(value) if torch.is_tensor(value) else value for key, value in plain.items()}
    tables = [evaluate(do_nothing, [item], LABELS, 1.0).drop(columns="seconds") for item in (plain, meta)]
    assert tables[0].equals(tables[1])


def test_an_absent_structure_is_not_a_number_and_the_others_are_measured():
    table = evaluate(do_nothing, [shifted_pair()], LABELS | {9: "absent"}, 1.0).set_index("structure")
    assert table.loc["absent", COLUMNS[2:8]].isna().all()
    assert table.loc[["shell", "core"], COLUMNS[2:8]].notna().all(axis=None)


def nan_for_bright(moving, fixed):
    displacement = torch.zeros(1, 3, *fixed.shape[2:])
    if fixed.max() > 2:
        displacement[0, 0, 0, 0, 0] = math.nan
    return answer(displacement)


@pytest.mark.parametrize(
    ("method", "items", "words"),
    [
        (do_nothing, [], "no pairs to evaluate"),
        (do_nothing, [without(shifted_pair(), "moving")], "pair a_to_b has no moving image"),
        (do_nothing, [shifted_pair() | {"fixed": None}], "pair a_to_b has no fixed image"),
        (do_nothing, [shifted_pair(), shifted_pair()], "pair a_to_b comes twice"),
        (
            nan_for_bright,
            [shifted_pair(), shifted_pair("bad") | {"fixed": torch.full((1, 14, 12, 13), 3.0)}],
            "pair bad: .*NaN",
        ),
        (lambda m, f: answer(torch.full((1, 3, 14, 12, 13), math.inf)), [shifted_pair()], "pair a_to_b: .*infinity"),
        (lambda m, f: answer(torch.zeros(1, 3, 7, 6, 6)), [shifted_pair()], "pair a_to_b: .*fixed image's grid"),
    ],
)
def test_what_cannot_be_measured_is_named_in_one_line(method, items, words):
    with pytest.raises(CourseError, match=words) as caught:
        evaluate(method, items, LABELS, 1.0)
    assert "\n" not in str(caught.value)


def test_labels_that_no_image_has_are_an_error_not_a_table_of_nan():
    with pytest.raises(CourseError, match="pair a_to_b: none of the labels 17, 53"):
        evaluate(do_nothing, [shifted_pair()], {17: "left", 53: "right"}, 1.0)


def test_pairs_are_read_one_at_a_time():
    log = []

    def pairs():
        for name in "abc":
            log.append(f"load {name}")
            yield shifted_pair(name)

    def method(moving, fixed):
        log.append("register")
        return do_nothing(moving, fixed)

    evaluate(method, pairs(), LABELS, 1.0)
    without_warm_up = [entry for entry, _ in itertools.groupby(log)]
    assert without_warm_up == ["load a", "register", "load b", "register", "load c", "register"]


# --- statistics -------------------------------------------------------------------------------------------------------


def table(rows, **constant):
    columns = ["pair", "structure", "dice_before", "dice_after", "hd_mm_before", "hd_mm_after"]
    return pd.DataFrame(rows, columns=columns).assign(**constant)


SMALL = table(
    [
        ("p", "left", 0.2, 0.4, 8.0, 6.0),
        ("p", "right", 0.4, 0.8, 4.0, 2.0),
        ("q", "left", 0.6, 1.0, 6.0, 0.0),
        ("q", "right", 0.6, 0.6, 2.0, 4.0),
        ("r", "left", 0.5, 0.5, 1.0, 1.0),
    ],
    folding_percent=[1.0, 1.0, 3.0, 3.0, 5.0],
)


def test_summary_averages_structures_within_a_pair_before_pairs():
    summary = summarise(SMALL)
    assert list(summary.index) == ["left", "right", "overall"]
    left, right, overall = (summary.loc[name] for name in summary.index)
    assert left["dice_after", "mean"] == pytest.approx(np.mean([0.4, 1.0, 0.5]))
    assert left["dice_after", "std"] == pytest.approx(np.std([0.4, 1.0, 0.5], ddof=1))
    assert (right["pairs", "count"], overall["pairs", "count"]) == (2, 3)
    of_pairs = [0.6, 0.8, 0.5]  # pair r has one structure and weighs as much as the others
    assert overall["dice_after", "mean"] == pytest.approx(np.mean(of_pairs))
    assert overall["dice_after", "std"] == pytest.approx(np.std(of_pairs, ddof=1))
    assert overall["hd_mm_before", "mean"] == pytest.approx(np.mean([6, 4, 1]))
    assert overall["folding_percent", "mean"] == pytest.approx(3.0)
    assert np.isnan(left["folding_percent", "mean"])


def test_summary_counts_lost_structures_and_compares_the_same_ones_before_and_after():
    lost = SMALL.copy()
    lost.loc[0, "hd_mm_after"] = np.inf  # vanished by registration: its 8 mm before must leave the mean too
    lost.loc[4, ["hd_mm_before", "hd_mm_after"]] = np.inf
    lost.loc[3, ["dice_before", "dice_after", "hd_mm_before", "hd_mm_after"]] = np.nan  # in neither image
    summary = summarise(lost)
    assert summary.loc[["left", "right", "overall"], ("hd_mm_after", "lost")].tolist() == [2, 0, 2]
    assert summary.loc[["left", "right", "overall"], ("hd_mm_before", "lost")].tolist() == [1, 0, 1]
    assert summary.loc["left", ("hd_mm_before", "mean")] == pytest.approx(6.0)
    assert summary.loc["left", ("hd_mm_after", "mean")] == pytest.approx(0.0)
    assert summary.loc["overall", ("hd_mm_before", "mean")] == pytest.approx(np.mean([4.0, 6.0]))
    assert summary.loc["overall", ("hd_mm_after", "mean")] == pytest.approx(np.mean([2.0, 0.0]))
    assert summary.loc["overall", ("dice_after", "mean")] == pytest.approx(np.mean([0.6, 1.0, 0.5]))


def test_summary_of_a_table_read_back_from_csv_is_the_same(tmp_path):
    lost = SMALL.copy()
    lost.loc[0, "hd_mm_after"] = np.inf
    lost.to_csv(tmp_path / "metrics.csv", index=False)
    pd.testing.assert_frame_equal(summarise(pd.read_csv(tmp_path / "metrics.csv")), summarise(lost))


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (SMALL.iloc[:0], "no rows"),
        (SMALL.drop(columns="structure"), "no column structure"),
        (SMALL.drop(columns="hd_mm_before"), "no column hd_mm_before"),
        (pd.concat([SMALL, SMALL.iloc[1:2]]), "pair p, structure right stands twice"),
    ],
)
def test_summary_of_a_broken_table_says_what_is_wrong(broken, words):
    with pytest.raises(CourseError, match=words):
        summarise(broken)


def many(seed, pairs=40, gain=0.0):
    draw = np.random.default_rng(seed)
    difficulty = draw.normal(0.6, 0.1, size=(pairs, 2))
    return pd.DataFrame(
        {
            "pair": np.repeat([f"pair{i}" for i in range(pairs)], 2),
            "structure": ["left", "right"] * pairs,
            "dice_after": (
                difficulty + gain + np.random.default_rng(99).normal(0, 0.005, (pairs, 2)) * bool(gain)
            ).ravel(),
        }
    )


def test_paired_comparison_sees_an_effect_that_the_spread_between_pairs_hides():
    a, b = many(0, gain=0.01), many(0)
    assert scipy.stats.mannwhitneyu(a["dice_after"], b["dice_after"]).pvalue > 0.1
    result = paired_comparison(a, b, "dice_after")
    per_pair = (a["dice_after"] - b["dice_after"]).to_numpy().reshape(-1, 2).mean(1)
    assert (result.n, result.excluded) == (40, 0)
    assert result.mean_difference == pytest.approx(per_pair.mean())
    assert result.p_value == pytest.approx(scipy.stats.wilcoxon(per_pair).pvalue)
    assert result.p_value < 1e-6
    # For so near-normal differences the bootstrap interval is Student's, give or take its random resampling.
    low, high = scipy.stats.t.interval(0.95, 39, per_pair.mean(), scipy.stats.sem(per_pair))
    assert result.low == pytest.approx(low, abs=0.15 * (high - low))
    assert result.high == pytest.approx(high, abs=0.15 * (high - low))


def test_paired_comparison_matches_rows_by_name_and_changes_sign_with_the_order():
    a, b = many(0, gain=0.01), many(0)
    result = paired_comparison(a, b, "dice_after")
    assert paired_comparison(a.sample(frac=1, random_state=1), b.sample(frac=1, random_state=2), "dice_after") == result
    reverse = paired_comparison(b, a, "dice_after")
    assert reverse.mean_difference == pytest.approx(-result.mean_difference)
    assert reverse.p_value == pytest.approx(result.p_value)


def test_paired_comparison_of_a_method_with_itself_finds_nothing():
    result = paired_comparison(many(0), many(0), "dice_after")
    assert (result.mean_difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)


def test_paired_comparison_counts_what_it_leaves_out():
    a, b = many(0, gain=0.01), many(0)
    a.loc[0, "dice_after"] = np.inf  # pair0 left
    b.loc[[2, 3], "dice_after"] = np.nan  # pair1 altogether
    result = paired_comparison(a, b, "dice_after")
    assert (result.n, result.excluded) == (39, 3)
    assert np.isfinite([result.mean_difference, result.low, result.high, result.p_value]).all()


def test_paired_comparison_refuses_what_is_not_paired():
    a = many(0)
    with pytest.raises(CourseError, match="2 rows are in one table only, the first is pair pair0, structure left"):
        paired_comparison(a, a.iloc[2:], "dice_after")
    with pytest.raises(CourseError, match="no column hd_mm_after"):
        paired_comparison(a, a, "hd_mm_after")
    with pytest.raises(CourseError, match="1 pairs have a finite dice_after"):
        paired_comparison(a.iloc[:2], a.iloc[:2], "dice_after")


# --- without labels ---------------------------------------------------------------------------------------------------


def test_without_labels_the_images_the_field_and_its_inverse_are_measured():
    item = without(shifted_pair(), "fixed_label", "moving_label")
    truth = item["true_displacement"][None]
    table = evaluate(lambda m, f: answer(truth), [item], LABELS, (1.0, 2.0, 0.5))
    assert list(table.columns) == [
        *(
            "pair",
            "structure",
            "ncc_before",
            "ncc_after",
            "inverse_error_mm",
            "folding_percent",
            "ndv_percent",
            "sdlogj",
            "seconds",
        ),
    ]
    (row,) = table.to_dict("records")
    assert row["structure"] == "whole image" and row["ncc_after"] > 0.9 > row["ncc_before"] + 0.1
    assert row["inverse_error_mm"] == pytest.approx(0, abs=1e-5)  # of a translation
    assert readable(summarise(table)).splitlines()[1].startswith("ncc_before: ")


def test_the_inverse_error_is_how_far_a_voxel_ends_from_its_place():
    """An answer that claims to be its own inverse: there and there again is twice the way."""
    item = without(shifted_pair(), "fixed_label", "moving_label")
    shift = torch.zeros(1, 3, 14, 12, 13)
    shift[:, 1] = 1.5
    claim = SimpleNamespace(displacement=shift, inverse=lambda: shift)
    table = evaluate(lambda m, f: claim, [item], {}, (1.0, 2.0, 0.5))
    assert table["inverse_error_mm"].item() == pytest.approx(2 * 1.5 * 2.0)


def test_a_pair_that_lacks_one_label_is_measured_without_and_the_others_with():
    items = [shifted_pair("a_to_b"), shifted_pair("a_to_c") | {"fixed_label": None}]
    table = evaluate(do_nothing, items, LABELS, 1.0)
    assert table["structure"].tolist() == ["shell", "core", "whole image"]
    assert table["dice_before"].notna().tolist() == [True, True, False]
    assert summarise(table).loc["overall", ("dice_before", "mean")] == table["dice_before"].iloc[:2].mean()
