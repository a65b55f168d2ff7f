"""What lies on a figure, and the tables that tests draw."""

import numpy as np
import pandas as pd
from matplotlib.contour import ContourSet

SHAPE = (7, 9, 11)
SPACING = (2.0, 1.0, 4.0)


def pictures(figure) -> list:
    """The images of a figure's panels, without those of colour bars."""
    return [image for ax in panels(figure) for image in ax.images]


def panels(figure) -> list:
    return [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]


def contours(ax) -> list[ContourSet]:
    return [child for child in ax.get_children() if isinstance(child, ContourSet)]


def vertices(contour: ContourSet) -> np.ndarray:
    return np.concatenate([path.vertices for path in contour.get_paths()])


def legend_names(figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def history_table() -> pd.DataFrame:
    step = np.arange(1, 41)
    return pd.DataFrame(
        {
            "step": step,
            "loss": -0.3 - 0.01 * step,
            "similarity": -0.2 - 0.01 * step,
            "learning_rate": 1e-3 * 0.8**step,
            "regularisation": 0.5 + 0.01 * step,
            "seconds": 0.1 * step,
            "validation_dice": np.where(step % 10 == 0, step / 50, np.nan),
            "validation_similarity": np.where(step % 10 == 0, -0.4, np.nan),
        }
    )


def evaluation_table(seed: int, pairs: int = 8, structures: tuple[str, ...] = ("anterior", "posterior")):
    rng = np.random.default_rng(seed)
    rows = []
    for pair in range(pairs):
        folding = rng.uniform()
        for structure in structures:
            before, after = rng.uniform(0.4, 0.6), rng.uniform(0.7, 0.9)
            distance = {"hd95_mm_before": 8 * before, "hd95_mm_after": 4 * after}
            dice = {"dice_before": before, "dice_after": after}
            rows.append({"pair": f"p{pair}", "structure": structure, "folding_percent": folding} | dice | distance)
    return pd.DataFrame(rows)
