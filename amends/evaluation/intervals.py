"""Bootstrap intervals, and how a number with its interval stands in a summary.

Shape suffixes: N rows, R resamples, K columns.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from amends.maths.arrays import FloatArray

Items = Sequence[Mapping[str, Any]]
Sets = Mapping[str, Items]
Direction = Literal["higher", "lower", "half", "zero"]
"""Which value is better: the higher or lower one, or the one nearer to 0.5 or to 0."""

LEVEL = 0.95
Z = 1.96
LEAST_ROWS = 2
"""Of one row there is no interval."""
RESAMPLES = 1000
CHUNK = 2**22  # most counts that a bootstrap holds at once: 32 MB


class Interval(NamedTuple):
    """A 95 % interval; both ends are NaN when there was nothing to resample."""

    low: float
    high: float


NOWHERE = Interval(np.nan, np.nan)


def bootstrap_mean(values: ArrayLike, rng: np.random.Generator, resamples: int = RESAMPLES) -> Interval:
    """95 % percentile bootstrap interval of a mean of numbers within 0 and 1; where all are 0, or 1, as `saturated`.

    Parameters
    ----------
    values : array (rows,), each 0 to 1
        NaN means "no value" and is left out; `summarise` reports how many were. The order does not matter.
    rng : numpy.random.Generator
    resamples : int, default 1000

    Returns
    -------
    Interval, of fewer than `LEAST_ROWS` rows none.

    Source: Efron, Annals of Statistics 7 (1979) 1.
    """
    numbers_N = np.sort(numbers(values))
    if numbers_N.size < LEAST_ROWS:
        return NOWHERE
    everywhere = saturated(float(numbers_N.mean()), numbers_N.size)
    return everywhere or interval_of(resampled_means(numbers_N[:, None], rng, resamples)[:, 0])


class Mean(NamedTuple):
    """A metric that is the mean over the items of one set."""

    item_set: str
    values: Callable[[Items], FloatArray]
    better: Direction
    meaning: str
    needs: str


def numbers(values: ArrayLike) -> FloatArray:
    """All values but NaN, flat."""
    flat_N = np.asarray(values, dtype=np.float64).ravel()
    return flat_N[~np.isnan(flat_N)]


def mean_of(values: ArrayLike) -> float:
    """Mean without NaN; NaN when nothing is left."""
    numbers_N = numbers(values)
    return float(numbers_N.mean()) if numbers_N.size else float("nan")


def interval_of(values_R: FloatArray) -> Interval:
    """Take the middle 95 % of bootstrap values."""
    numbers_R = numbers(values_R)
    if not numbers_R.size:
        return NOWHERE
    low, high = np.quantile(numbers_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def saturated(value: float, num_rows: int) -> Interval | None:
    """95 % interval of a share that is 0, or 1, in every row, of which a bootstrap makes a point; None for any other.

    Source: Wilson, JASA 22 (1927) 209; at 0 it reaches z^2 / (n + z^2), about the rule of three. It holds for the mean
    of any numbers within 0 and 1, whose variance is at most that of shares.
    """
    if value not in (0, 1):
        return None
    reach = Z**2 / (num_rows + Z**2)
    return Interval(0.0, reach) if value == 0 else Interval(1 - reach, 1.0)


def counts(num_rows: int, rng: np.random.Generator, resamples: int, step: int) -> Iterator[FloatArray]:
    """How often each row is drawn in each bootstrap sample: arrays (at most `step` samples, rows)."""
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        picks_RN = rng.integers(num_rows, size=(size, num_rows)) + num_rows * np.arange(size)[:, None]
        yield np.bincount(picks_RN.ravel(), minlength=size * num_rows).reshape(size, num_rows).astype(np.float64)


def resampled_means(values_NK: FloatArray, rng: np.random.Generator, resamples: int) -> FloatArray:
    """Column means (without NaN) of bootstrap samples of the rows: array (resamples, columns)."""
    num_rows, num_columns = values_NK.shape
    present_NK = ~np.isnan(values_NK)
    both_NK = np.hstack([np.where(present_NK, values_NK, 0.0), present_NK])
    sums_RK = np.vstack([c_RN @ both_NK for c_RN in counts(num_rows, rng, resamples, max(1, CHUNK // num_rows))])
    with np.errstate(invalid="ignore"):  # 0/0: a sample without a number in a column, left out by interval_of
        return np.asarray(sums_RK[:, :num_columns] / sums_RK[:, num_columns:], dtype=np.float64)


def field(name: str) -> Callable[[Items], FloatArray]:
    """Reader of one field of items, NaN where it is absent or null."""

    def read(items: Items) -> FloatArray:
        values = (item.get(name) for item in items)
        return np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)

    return read


def entry(
    value: float, interval: Interval, n: int, left_out: int, better: Direction, meaning: str, missing: str | None
) -> dict[str, Any]:
    """One metric of a summary, with null for what has no value."""
    three = (value, interval.low, interval.high)
    shown = [float(number) if missing is None and np.isfinite(number) else None for number in three]
    return {
        **dict(zip(("value", "low", "high"), shown, strict=True)),
        "n": n,
        "left_out": left_out,
        "better": better,
        "meaning": meaning,
        "missing": missing,
    }
