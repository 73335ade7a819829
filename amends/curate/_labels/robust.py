"""A small classifier for a table whose labels are wrong or of unequal classes: softmax, or one hidden layer.

`_cotraining.py` has those that train two of them at once.

Shapes: N rows, B rows of a batch, D features, H hidden units, K classes.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from amends.curate._labels.detectors import checked_agreement, lists_of
from amends.curate._labels.votes import count_triples
from amends.maths.robust import NEED_TRANSITION, Given, adjusted, class_weights, elr_target, ldam, loss_named, reduced
from amends.maths.transition import Transition, fit_transition

IMBALANCE = ("balanced_softmax", "post_hoc", "ldam", "class_weights")


class Table(NamedTuple):
    """What a classifier learns from."""

    X: np.ndarray
    """As it was given, in float32."""
    x_ND: Tensor
    """Each feature with mean 0 and standard deviation 1."""
    labels_N: np.ndarray
    """Places in `classes_`."""
    seed: int


class TableClassifier(ClassifierMixin, BaseEstimator):
    """What the classifiers share: rows that are read and scaled, a seed, the likeliest class."""

    random_state: Any

    def _read(self, X: Any, y: Any) -> Table:
        X, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        self.classes_, labels_N = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("one class in y: there is nothing to tell apart (1 class).")
        self.prior_ = np.bincount(labels_N) / len(labels_N)
        self.mean_, scale = X.mean(axis=0), X.std(axis=0)
        self.scale_ = np.where(scale > 0, scale, 1.0).astype(np.float32)
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        return Table(X, self._scaled(X), labels_N, seed)

    def _scaled(self, X: np.ndarray) -> Tensor:
        return torch.from_numpy((X - self.mean_) / self.scale_)

    def predict(self, X: Any) -> np.ndarray:
        """Likeliest true class, (N,)."""
        probability_NK = self.predict_proba(X)
        return np.asarray(self.classes_[probability_NK.argmax(axis=1)])


class RobustClassifier(TableClassifier):
    """Classifier with a loss for wrong labels and a correction for unequal classes.

    Features are brought to mean 0 and standard deviation 1; a constant one counts for nothing. The weights are those of
    a softmax regression, or of one hidden layer of rectified units, by Adam with decay of the weights.

    There is no `sample_weight`: rows go into batches at random, and shares of labels, counts of neighbours and scales
    are those of the rows, so that a weight of 2 would not be the same as a row that stands there twice.

    Parameters
    ----------
    loss : str, default "cross_entropy"
        Name in `amends.maths.robust.LOSSES`.
    loss_options : dict, optional
        The loss's own options, such as {"q": 0.7}.
    transition : array (classes, classes), "estimate" or None
        T_ij = P(label j | truth i) in the order of `classes_`, for the losses "forward" and "backward". "estimate", or
        None where the loss needs it: from how often neighbours agree, which needs features that cluster by class.
    imbalance : {"balanced_softmax", "post_hoc", "ldam", "class_weights"}, optional
        See `amends.maths.robust`; "post_hoc" is the adjustment at prediction.
    hidden : int, default 0
        Hidden units; 0: none.
    epochs, batch_size : int, default 100 and 256
    learning_rate, weight_decay : float, default 0.01 and 0.001
    random_state : int, RandomState or None

    Attributes
    ----------
    classes_ : array (classes,)
    prior_ : array (classes,)
        Shares of the given labels.
    transition_ : array (classes, classes) or None
        As it was used.
    n_features_in_ : int
    """

    def __init__(
        self,
        loss: str = "cross_entropy",
        *,
        loss_options: dict[str, Any] | None = None,
        transition: Any = None,
        imbalance: str | None = None,
        hidden: int = 0,
        epochs: int = 100,
        batch_size: int = 256,
        learning_rate: float = 0.01,
        weight_decay: float = 0.001,
        random_state: Any = None,
    ) -> None:
        self.loss = loss
        self.loss_options = loss_options
        self.transition = transition
        self.imbalance = imbalance
        self.hidden = hidden
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> "RobustClassifier":
        """Train on features (N, D) and given labels (N,).

        Raises
        ------
        ValueError : one class; an unknown loss or correction; a transition matrix that is none.
        """
        loss = loss_named(self.loss)
        if self.imbalance is not None and self.imbalance not in IMBALANCE:
            raise ValueError(f"imbalance={self.imbalance!r}: unknown. Choose one of {', '.join(IMBALANCE)}.")
        table = self._read(X, y)
        x_ND, y_N, K = table.x_ND, torch.from_numpy(table.labels_N), len(self.classes_)
        self.transition_ = self._transition(table)
        generator = torch.Generator().manual_seed(table.seed)
        weights = start(x_ND.shape[1], self.hidden, K, generator)
        optimizer = torch.optim.AdamW(weights, lr=self.learning_rate, weight_decay=self.weight_decay)
        matrix_KK = None if self.transition_ is None else torch.from_numpy(self.transition_)
        given = Given(matrix_KK, torch.from_numpy(self.prior_), generator)
        counts, target_NK = y_N.bincount(), torch.zeros(len(y_N), K)
        weight_K = class_weights(counts) if self.imbalance == "class_weights" else torch.ones(K)
        for epoch in range(self.epochs):
            for rows_B in torch.randperm(len(y_N), generator=generator).split(self.batch_size):
                logits_BK, labels_B = logits(x_ND[rows_B], weights), y_N[rows_B]
                target_NK[rows_B] = elr_target(target_NK[rows_B], logits_BK)
                if self.imbalance == "balanced_softmax":
                    logits_BK = adjusted(logits_BK, given.prior_K)
                elif self.imbalance == "ldam":
                    logits_BK = ldam(logits_BK, labels_B, counts)
                now = given._replace(progress=epoch / self.epochs, target_BK=target_NK[rows_B])
                loss_B = loss(logits_BK, labels_B, now, **(self.loss_options or {}))
                optimizer.zero_grad()
                reduced(loss_B, "mean", weight_K[labels_B]).backward()
                optimizer.step()
        self.weights_ = [weight.detach().numpy() for weight in weights]
        return self

    def _transition(self, table: Table) -> np.ndarray | None:
        K = len(self.classes_)
        if isinstance(self.transition, str) and self.transition != "estimate":
            raise ValueError(f"transition={self.transition!r}: give a matrix or 'estimate'.")
        if self.loss not in NEED_TRANSITION:
            return None
        if self.transition is None or isinstance(self.transition, str):
            return estimated_transition(table, K).matrix_KK
        T = np.asarray(self.transition, dtype=np.float64)
        if T.shape != (K, K) or not (T >= 0).all() or not np.allclose(T.sum(axis=1), 1):
            raise ValueError(f"transition {T.shape}: expected {K} rows of {K} numbers from 0 that sum to 1.")
        return T

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probability of each true class, (N, K)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float32, reset=False)
        with torch.inference_mode():
            logits_NK = logits(self._scaled(X), [torch.from_numpy(weight) for weight in self.weights_]).double()
            if self.imbalance == "post_hoc":
                logits_NK = adjusted(logits_NK, torch.from_numpy(self.prior_), -1.0)
            return np.asarray(logits_NK.softmax(-1).numpy())


def estimated_transition(table: Table, num_classes: int) -> Transition:
    """Find T_ij = P(label j | truth i) and the prior by how often a row and its two nearest have the same labels."""
    if table.X.shape[1] < 2:
        raise ValueError("n_features = 1: directions need two features or more. Give embeddings.")
    all_N = np.ones(len(table.X), bool)
    counts_KKK = count_triples(lists_of(table.X, 2), table.labels_N, num_classes, all_N).count_KKK
    checked_agreement(counts_KKK)
    return fit_transition(counts_KKK)


def start(num_features: int, hidden: int, num_classes: int, generator: torch.Generator) -> list[Tensor]:
    """Weights before the first step: zeros, behind a hidden layer that is drawn."""
    if not hidden:
        return [torch.zeros(num_features, num_classes).requires_grad_(), torch.zeros(num_classes).requires_grad_()]
    into_DH = torch.randn(num_features, hidden, generator=generator) * (2 / num_features) ** 0.5
    out_HK = torch.randn(hidden, num_classes, generator=generator) / hidden**0.5
    return [weight.requires_grad_() for weight in (into_DH, torch.zeros(hidden), out_HK, torch.zeros(num_classes))]


def logits(x_BD: Tensor, weights: list[Tensor]) -> Tensor:
    """Logits (B, K) of a softmax regression (two weights) or of one hidden layer (four)."""
    if len(weights) == 4:
        x_BD = (x_BD @ weights[0] + weights[1]).relu()
    return x_BD @ weights[-2] + weights[-1]
