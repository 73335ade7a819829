"""Ratings with a known truth, beside embeddings in which neighbours share it as often as is asked."""

from typing import NamedTuple

import numpy as np

LEVELS = 6
PRIOR = np.array([0.1, 0.15, 0.25, 0.25, 0.15, 0.1])


class Planted(NamedTuple):
    points: np.ndarray
    truth: np.ndarray
    ratings: np.ndarray
    matrix: np.ndarray


def downward(noise: float) -> np.ndarray:
    """Raters that miss by a level or two, more often downwards."""
    gap = np.arange(LEVELS)[:, None] - np.arange(LEVELS)
    weight = np.where(gap == 0, 0, np.where(gap > 0, 2.0, 1.0) * 0.5 ** np.abs(gap))
    return (1 - noise) * np.eye(LEVELS) + noise * weight / weight.sum(axis=1, keepdims=True)


def planted(stray: float, num_rows: int = 6000, noise: float = 0.35, seed: int = 0, clusters: int = 60) -> Planted:
    """Clusters with one true score each, but for a share of strays that has any."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(clusters, 32))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    scores = rng.permutation(np.repeat(np.arange(LEVELS), (clusters * PRIOR).round().astype(int)))
    cluster = rng.integers(0, clusters, num_rows)
    is_stray = rng.random(num_rows) < stray
    truth = np.where(is_stray, rng.choice(LEVELS, num_rows, p=PRIOR), scores[cluster])
    points = (centres[cluster] + 0.12 * rng.normal(size=(num_rows, 32))).astype(np.float32)
    matrix = downward(noise)
    return Planted(points, truth, said(matrix, truth, rng), matrix)


def said(matrix: np.ndarray, truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (matrix[truth].cumsum(axis=1) < rng.random(len(truth))[:, None]).sum(axis=1)
