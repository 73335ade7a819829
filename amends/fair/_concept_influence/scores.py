"""How far a change of a training row moves the gap between groups, by the model's gradient and curvature.

Replacing row z by z' moves the weights by -(1 / N) H^-1 (grad l(z') - grad l(z)), and the smooth gap of the validation
rows by the product of that with its gradient. Negative: the gap falls. Source: Koh and Liang 2017 for H and the
gradients; arXiv 2306.17828 for the difference of a row and its counterpart.

Shapes: N training rows, V validation rows, E features and the intercept, K scores, S of them counted, B bootstraps, C
conditions, G groups, P pairs of groups, n rows of a block.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from amends.fair._concept_influence.concepts import Rows
from amends.maths.arrays import FloatArray
from amends.maths.disparity import Disparity
from amends.maths.influence import Fitted, LinearModel, Move, newton

Surrogate = Literal["probability", "logit"]
BLOCK = 20_000
"""Rows scored at once."""
MOST_NEWTON = 2000
"""Weights up to which the curvature is inverted, for Newton steps; above, scores are of first order."""
MARGIN = 0.05
"""Share of the bootstraps that an interval leaves out, both ends together."""


@dataclass(frozen=True, eq=False)
class Gap:
    """The gap between groups on given rows, as a function of a model's weights."""

    x_VE: FloatArray
    disparity: Disparity
    surrogate: Surrogate
    counted: tuple[int, ...]
    """Scores whose gaps count."""

    def scores(self, model: LinearModel) -> FloatArray:
        """Say what stands for the decision, (V, S): probabilities or logits."""
        score_VK = self.x_VE @ model.weight_KE.T if self.surrogate == "logit" else model.predict(self.x_VE)
        return np.asarray(score_VK[:, list(self.counted)])

    def value(self, model: LinearModel) -> float:
        """Mean size of the gaps over pairs of groups, conditions and scores."""
        return self.disparity.loss(self.scores(model), "absolute")

    def gradient(self, model: LinearModel) -> FloatArray:
        """Gradient of `value` by the weights, (K, E)."""
        slope_VK = np.zeros((len(self.x_VE), len(model.weight_KE)))
        slope_VK[:, list(self.counted)] = self.disparity.gradient(self.scores(model), "absolute")
        return np.asarray(self._by_logit(model, slope_VK).T @ self.x_VE)

    def gradients(self, model: LinearModel, num: int, rng: np.random.Generator) -> FloatArray:
        """Gradients by the weights were other rows drawn, (B, K, E): a bootstrap within each condition and group."""
        score_VS = self.scores(model)
        C, G = self.disparity.size_CG.shape
        S, (K, E) = len(self.counted), model.weight_KE.shape
        mean_BCGS, slope_BCGSKE = np.zeros((num, C, G, S)), np.zeros((num, C, G, S, K, E))
        for cell in range(C * G):
            place, here = divmod(cell, G), np.flatnonzero(self.disparity.cell_N == cell)
            share_Bv = rng.multinomial(len(here), np.full(len(here), 1 / len(here)), size=num) / len(here)
            mean_BCGS[:, *place] = share_Bv @ score_VS[here]
            for s, k in enumerate(self.counted):
                by_logit_vK = self._by_logit(model, np.tile(np.eye(K)[k], (len(here), 1)), here)
                for j in range(K):
                    slope_BCGSKE[:, *place, s, j] = (share_Bv * by_logit_vK[:, j]) @ self.x_VE[here]
        found = np.zeros((num, K, E))
        first, second = self.disparity.pairs
        for one, two in zip(first, second, strict=True):
            sign_BCS = np.sign(mean_BCGS[:, :, one] - mean_BCGS[:, :, two])
            apart_BCSKE = slope_BCGSKE[:, :, one] - slope_BCGSKE[:, :, two]
            found += np.einsum("bcs,bcske->bke", sign_BCS, apart_BCSKE)
        return found / max(1, C * S * len(first))

    def _by_logit(self, model: LinearModel, slope_VK: FloatArray, which: Any = slice(None)) -> FloatArray:
        return slope_VK if self.surrogate == "logit" else model.by_score(self.x_VE[which], slope_VK)


@dataclass(frozen=True, eq=False)
class Scorer:
    """A fitted model with all that is needed to say what a change of its training rows does to the gap."""

    fitted: Fitted
    x_NE: FloatArray
    code_N: NDArray[np.int64]
    """Labels, as numbers from 0."""
    weight_N: FloatArray
    direction_KE: FloatArray
    """H^-1 times the gradient of the gap."""
    directions_BKE: FloatArray
    """The same of bootstraps of the validation rows; B may be 0."""
    inverse: FloatArray | None
    """H^-1, for Newton steps; None: scores are of first order."""
    features: Callable[[Any], FloatArray]
    """Features (n, E) of rows as they were given."""
    codes: Callable[[Any], NDArray[np.int64]]
    weights: Callable[[NDArray[np.int64]], FloatArray]
    """Weights (n,) of labels as numbers."""

    def score(self, rows: Rows, puts: Sequence[Rows], places: NDArray[np.int64] | None = None) -> "Scores":
        """Predict what becomes of the gap if each row is replaced by its counterparts, or left out if there are none.

        Parameters
        ----------
        places : int array (N,), optional
            Which of the scorer's rows these are. Default: they are these rows.
        """
        N = len(rows)
        places = np.arange(N) if places is None else places
        change_N, low_N, high_N = np.empty(N), np.full(N, np.nan), np.full(N, np.nan)
        each_MN = np.empty((len(puts), N))
        for block in _blocks(N):
            out = Move(self.x_NE[places[block]], self._residual(places[block]), self.weight_N[places[block]])
            moves = [self._coming(put, rows, block, out) for put in puts]
            has_Mn = np.array([np.ones(len(out.x_NE)) if p.has is None else p.has[block] for p in puts], dtype=float)
            shared = [out]
            if puts:
                num_n = has_Mn.sum(axis=0)
                share_Mn = np.divide(has_Mn, num_n, out=np.zeros_like(has_Mn), where=num_n > 0)
                shared += [m._replace(share_N=m.share_N * share_Mn[i]) for i, m in enumerate(moves)]
            pushed = self._pushed(shared)
            change_N[block] = self._along(shared, pushed, self.direction_KE)
            if len(self.directions_BKE):
                at_Bn = sum(self._along_all(move.x_NE, q) for move, q in zip(shared, pushed, strict=True))
                low_N[block], high_N[block] = np.quantile(at_Bn, [MARGIN / 2, 1 - MARGIN / 2], axis=0)
            for i, move in enumerate(moves):
                alone = change_N[block] if len(moves) == 1 else None
                if alone is None:
                    alone = self._along([out, move], self._pushed([out, move]), self.direction_KE)
                each_MN[i, block] = np.where(has_Mn[i] > 0, alone, np.nan)
            if puts:
                for found in (change_N, low_N, high_N):
                    found[block][num_n == 0] = np.nan
        return Scores(change_N, low_N, high_N, each_MN)

    def _residual(self, places: NDArray[np.int64]) -> FloatArray:
        return self.fitted.model.residual(self.x_NE[places], self.fitted.targets(self.code_N[places]))

    def _coming(self, put: Rows, rows: Rows, block: slice, out: Move) -> Move:
        x_nE = out.x_NE if put.X is rows.X else self.features(put.take(block).X)
        code_n = self.codes(put.y[block])
        residual_nK = self.fitted.model.residual(x_nE, self.fitted.targets(code_n))
        return Move(x_nE, residual_nK, -self.weights(code_n))

    def _pushed(self, moves: Sequence[Move]) -> list[FloatArray]:
        # Another label with the same features and weight leaves the curvature as it is: nothing is to be corrected.
        same = len(moves) > 1 and all(move.x_NE is moves[0].x_NE for move in moves)
        same = same and np.array_equal(moves[0].share_N, -sum(move.share_N for move in moves[1:]))
        return newton(self.fitted.model, moves, None if same else self.inverse, len(self.x_NE))

    def _along(self, moves: Sequence[Move], pushed: Sequence[FloatArray], direction_KE: FloatArray) -> FloatArray:
        along = self.fitted.model.along
        found_n = sum(along(move.x_NE, q, direction_KE) for move, q in zip(moves, pushed, strict=True))
        return np.asarray(found_n / len(self.x_NE))

    def _along_all(self, x_nE: FloatArray, pushed_nK: FloatArray) -> FloatArray:
        """Product of what one move pushes by with every bootstrap's direction, (B, n)."""
        B, K, E = self.directions_BKE.shape
        at_nBK = (x_nE @ self.directions_BKE.reshape(B * K, E).T).reshape(len(x_nE), B, K)
        return np.asarray(np.einsum("nk,nbk->bn", pushed_nK, at_nBK) / len(self.x_NE))


class Scores(NamedTuple):
    """Predicted change of the gap, row by row; NaN where there is no counterpart."""

    change_N: FloatArray
    low_N: FloatArray
    """Ends of the interval over validation rows; NaN without bootstraps."""
    high_N: FloatArray
    each_MN: FloatArray
    """Of each counterpart alone."""


def by_cell(changes: Mapping[str, FloatArray], rows: Rows, by: Sequence[str], top: float) -> pd.DataFrame:
    """Sum up changes (N,), by concept, over cells of rows; see `ConceptInfluence.summary`."""
    keys = {"group": rows.group, "y": rows.y}
    if not by or (unknown := [name for name in by if name not in keys]):
        raise ValueError(f"by={list(by)}: {unknown[0] if by else 'nothing'!r} is unknown. Choose of group, y.")
    parts = []
    for name, change_N in changes.items():
        falls_N = change_N < 0
        order = np.argsort(np.where(falls_N, change_N, np.inf), kind="stable")
        first_N = np.zeros(len(rows), bool)
        first_N[order[: max(1, round(top * len(rows)))]] = True
        first_N &= falls_N
        frame = pd.DataFrame({key: keys[key] for key in by} | {"change": change_N, "first": first_N})
        frame["falls"] = np.where(np.isnan(change_N), np.nan, falls_N)
        part = (
            frame.groupby(list(by), sort=True)
            .agg(
                rows=("change", "size"),
                mean=("change", "mean"),
                total=("change", lambda of: of.sum(min_count=1)),
                falls=("falls", "mean"),
                lift=("first", "mean"),
            )
            .reset_index()
        )
        part["lift"] /= first_N.mean() if first_N.any() else np.nan
        part.insert(len(by), "concept", name)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _blocks(num: int) -> Iterator[slice]:
    return (slice(first, min(first + BLOCK, num)) for first in range(0, num, BLOCK))
