"""The paper's numbers, to stand beside ours: tables as printed, by the name that a recipe gives.

Tasks by their identifiers, metrics in the paper's units; a cell that the paper leaves empty is not there.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sak.errors import UsageError, nearest

PASCAL = ("semseg", "human_parts", "sal", "normals", "edge")
NYUD = ("semseg", "depth", "normals", "edge")


@dataclass(frozen=True)
class PaperTable:
    """One table: what it shows, on which data set, and a row's values by column."""

    title: str
    dataset: str
    rows: Mapping[str, Mapping[str, float]]


def _rows(names: tuple[str, ...], rows: Mapping[str, tuple[float, ...]]) -> dict[str, dict[str, float]]:
    return {row: dict(zip(names, values, strict=False)) for row, values in rows.items()}


_WITH_GAIN = (*PASCAL, "delta_m")
_SIMILAR = ("rep_sim", *_WITH_GAIN)

TABLES: dict[str, PaperTable] = {
    "table2": PaperTable(
        "Table 2: many-to-one distillation against the oracle of the teachers (B)",
        "pascal-context",
        _rows(PASCAL, {
            "oracle of teachers": (81.18, 74.38, 81.48, 16.21, 75.89),
            "many-to-one student": (80.18, 69.13, 82.72, 16.00, 71.16),
        }),
    ),
    "table3": PaperTable(
        "Table 3: the proposed modules (B from B teachers)",
        "pascal-context",
        _rows(_SIMILAR, {
            "without TSAP, without MoR": (0.3344, 80.97, 69.71, 84.64, 14.11, 72.82, -1.21),
            "TSAP, without MoR": (0.8708, 81.26, 69.92, 84.31, 14.45, 71.41, -2.03),
            "TSAP, MoR": (0.8708, 81.65, 72.38, 84.87, 14.05, 73.23, -0.03),
        }),
    ),
    "table4": PaperTable(
        "Table 4: the two stages of training (B from B teachers)",
        "pascal-context",
        _rows(_WITH_GAIN, {
            "neither": (76.76, 65.26, 84.39, 13.98, 70.37, -4.04),
            "stage 2 alone": (77.06, 65.08, 84.67, 13.83, 70.74, -3.63),
            "stage 1 alone": (80.48, 71.16, 85.04, 13.92, 72.60, -0.60),
            "both": (81.65, 72.38, 84.87, 14.05, 73.23, -0.03),
        }),
    ),
    "table5": PaperTable(
        "Table 5: PASCAL-Context, L",
        "pascal-context",
        _rows(_WITH_GAIN, {
            "single-task baseline": (81.61, 72.77, 83.80, 13.87, 75.24, 0.00),
            "multi-task baseline": (79.26, 68.28, 84.16, 14.06, 71.59, -2.97),
            "MLoRE": (81.41, 70.52, 84.90, 13.51, 75.42, 0.16),
            "RADIO": (81.11, 71.50, 85.17, 13.49, 74.80, 0.29),
            "SAK": (84.01, 76.99, 84.65, 13.82, 76.27, 2.30),
        }),
    ),
    "table6": PaperTable(
        "Table 6: NYUD-v2, L",
        "nyud",
        _rows((*NYUD, "delta_m"), {
            "single-task baseline": (54.19, 0.5560, 19.22, 78.09, 0.00),
            "multi-task baseline": (52.42, 0.5413, 19.29, 76.50, -0.76),
            "MLoRE": (55.96, 0.5076, 18.33, 78.43, 4.26),
            "RADIO": (59.32, 0.4698, 17.46, 79.41, 8.95),
            "SAK": (63.18, 0.4313, 16.25, 79.43, 14.05),
        }),
    ),
    "table7": PaperTable(
        "Table 7: subsets of the teachers (B from B teachers)",
        "pascal-context",
        _rows(_WITH_GAIN, {
            "multi-task baseline": (76.76, 65.26, 84.39, 13.98, 70.37, -4.04),
            "DINOv2": (79.05, 69.55, 84.29, 14.07, 71.14, -2.21),
            "CLIP": (80.12, 67.57, 83.81, 14.41, 70.62, -3.26),
            "SAM": (63.47, 63.99, 85.02, 13.95, 73.27, -6.74),
            "DINOv2+CLIP": (81.53, 71.95, 84.49, 14.16, 72.59, -0.60),
            "DINOv2+CLIP+SAM": (81.65, 72.38, 84.87, 14.05, 73.23, -0.03),
        }),
    ),
    "table8": PaperTable(
        "Table 8: sizes of teachers and student",
        "pascal-context",
        _rows(PASCAL, {
            "S from B": (78.66, 68.46, 84.66, 14.33, 70.28),
            "B from B": (81.65, 72.38, 84.87, 14.05, 73.23),
            "B from L": (81.88, 74.30, 84.79, 14.02, 74.09),
            "L from L": (84.01, 76.99, 84.65, 13.82, 76.27),
        }),
    ),
    "table9": PaperTable(
        "Table 9: MLoRE's decoder (B from B teachers)",
        "pascal-context",
        _rows(_WITH_GAIN, {
            "ViT, MLoRE": (79.26, 67.82, 85.31, 13.65, 74.69, -0.83),
            "SAK, simple": (81.65, 72.38, 84.87, 14.05, 73.23, -0.03),
            "SAK, MLoRE": (82.74, 74.28, 84.58, 13.89, 75.96, 1.69),
        }),
    ),
}  # fmt: skip


def paper_table(name: str) -> PaperTable:
    """A table by its name; UsageError names the nearest one."""
    if name not in TABLES:
        raise UsageError(f"the paper's numbers of {name!r} are not known{nearest(name, TABLES)}")
    return TABLES[name]
