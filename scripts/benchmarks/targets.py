"""What the project wants to reach, beside what was measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.memory import WHOLE
from benchmarks.scaling import LINEAR

Rows = Mapping[str, Sequence[dict]]  # by the names of the tables
FULL = "1024+1024, T 500"


@dataclass(frozen=True)
class Target:
    """One aim. `figure` gives the measured figure from the rows, or None where they have it not."""

    what: str
    limit: float
    figure: Callable[[Rows], float | None]
    form: str
    at_least: bool = False
    kinds: tuple[str, ...] = ("CPU", "GPU")

    def row(self, rows: Rows) -> tuple[str, str, str, str]:
        """What, limit, measured, verdict."""
        sign, limit = "at least" if self.at_least else "at most", self.form.format(self.limit)
        figure = self.figure(rows)
        if figure is None:
            return self.what, f"{sign} {limit}", "-", "not measured here"
        met = figure >= self.limit if self.at_least else figure <= self.limit
        return self.what, f"{sign} {limit}", self.form.format(figure), "met" if met else "NOT met"


def target_rows(kind: str, rows: Rows) -> list[tuple[str, str, str, str]]:
    """All aims for a `CPU` or a `GPU`."""
    return [target.row(rows) for target in TARGETS if kind in target.kinds]


def _value(table: str, key: str, **chosen: object) -> Callable[[Rows], float | None]:
    """The figure of the first row that has the chosen values."""

    def figure(rows: Rows) -> float | None:
        return next((row.get(key) for row in rows.get(table, ()) if chosen.items() <= row.items()), None)

    return figure


def _ratio(
    above: Callable[[Rows], float | None], below: Callable[[Rows], float | None]
) -> Callable[[Rows], float | None]:
    def figure(rows: Rows) -> float | None:
        one, other = above(rows), below(rows)
        return None if one is None or other is None else one / other

    return figure


def _largest_exponent(rows: Rows) -> float | None:
    return max((row["exponent"] for row in rows.get("scaling", ())), default=None)


def _whole_training(rows: Rows) -> float | None:
    """Seconds from the first step on."""
    row = next((row for row in rows.get("memory", ()) if row["iterations"] == WHOLE and row["ended"] == "ok"), None)
    return None if row is None else row["seconds"] - row["start_seconds"]


def _peak_of(videos: int) -> Callable[[Rows], float | None]:
    return _value("memory", "peak_mb", data="narrow", videos=videos)


_FLOAT32, _BF16 = {"size": FULL, "precision": "float32"}, {"size": FULL, "precision": "bf16"}
_NO_CACHE = {"data": "THUMOS14's size", "cache": "none"}
TARGETS = (
    Target("float32 step, share of mm", 0.75, _value("train", "share_of_mm", **_FLOAT32), "{:.0%}", True, ("CPU",)),
    Target("bf16 step, share of mm", 0.45, _value("train", "share_of_mm", **_BF16), "{:.0%}", True, ("CPU",)),
    Target(
        "bf16 step, times as fast as the plain float32 step",
        4,
        _ratio(_value("train", "plain_seconds", **_FLOAT32), _value("train", "seconds", **_BF16)),
        "{:.1f}",
        True,
        ("CPU",),
    ),
    Target("bf16 step, seconds", 0.005, _value("train", "seconds", **_BF16, mode="compiled"), "{:.4f}", kinds=("GPU",)),
    Target("peak memory of a bf16 step, MB", 6000, _value("train", "peak_mb", **_BF16), "{:,.0f}", kinds=("GPU",)),
    Target("5,000 iterations with 25 evaluations, seconds", 60, _whole_training, "{:.0f}", kinds=("GPU",)),
    Target("a batch from memory, ms", 2, _value("data", "ms", source="memory"), "{:.2f}"),
    Target("test pass of 212 videos beyond the forward passes, s", 2, _value("infer", "beyond_seconds"), "{:.2f}"),
    *(
        Target(
            f"main.py, THUMOS14's size without a cache, {precision}, peak MB",
            1500,
            _value("memory", "peak_mb", **_NO_CACHE, precision=precision),
            "{:,.0f}",
        )
        for precision in ("float32", "bf16")
    ),
    Target("peak at 40,000 videos over that at 400", 1.1, _ratio(_peak_of(40_000), _peak_of(400)), "{:.2f}"),
    Target("largest exponent of growth (scaling)", LINEAR, _largest_exponent, "{:.2f}"),
)
