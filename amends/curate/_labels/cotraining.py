"""Classifiers for a table with wrong labels that train two networks, each with what the other thinks of the rows.

Both are one hidden layer, as in `_robust.py`, started apart; the mean of their probabilities is what is
predicted. In the sources they are deep networks for images.

Shapes: N rows, B rows of a batch, M rows that are mixed, D features, K classes.
"""

from abc import ABC, abstractmethod
from itertools import cycle
from typing import Any

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from amends.curate._labels.robust import Table, TableClassifier, estimated_transition, logits, start
from amends.maths.cotraining import (
    confidence,
    exchange,
    joint,
    keep_share,
    mix,
    mix_share,
    mixed_loss,
    refine,
    small_loss,
)
from amends.maths.robust import cross_entropy
from amends.maths.transition import Transition

Network = list[Tensor]
RAMP = 16
"""Epochs in which DivideMix's weight of rows without a label rises from 0 (their code)."""


class TwoNetworks(TableClassifier, ABC):
    """What the trainers share; each gives `_train`."""

    hidden: int
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float

    def fit(self, X: Any, y: Any) -> "TwoNetworks":
        """Train on features (N, D) and given labels (N,).

        Raises
        ------
        ValueError : one class; an option out of range.
        """
        self._check()
        table = self._read(X, y)
        generator = torch.Generator().manual_seed(table.seed)
        sizes = (table.x_ND.shape[1], self.hidden, len(self.classes_))
        networks = (start(*sizes, generator), start(*sizes, generator))
        self._train(table, networks, generator)
        self.weights_ = [[weight.detach().numpy() for weight in network] for network in networks]
        return self

    def _check(self) -> None:
        for name, least in (("hidden", 1), ("epochs", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {least}.")

    @abstractmethod
    def _train(self, table: Table, networks: tuple[Network, Network], generator: torch.Generator) -> None:
        """Change the networks' weights."""

    def _optimizer(self, *networks: Network) -> torch.optim.Optimizer:
        weights = [weight for network in networks for weight in network]
        return torch.optim.AdamW(weights, lr=self.learning_rate, weight_decay=self.weight_decay)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probability of each true class, (N, K): the mean of both networks."""
        check_is_fitted(self)
        x_ND = self._scaled(validate_data(self, X, dtype=np.float32, reset=False))
        networks = [[torch.from_numpy(weight) for weight in network] for network in self.weights_]
        with torch.inference_mode():
            return np.asarray(mean_probability(x_ND, networks).numpy())


def mean_probability(x_BD: Tensor, networks: Any) -> Tensor:
    """Mean of the networks' probabilities, (B, K)."""
    return torch.stack([logits(x_BD, network).double().softmax(-1) for network in networks]).mean(0)


# Small losses -----------------------------------------------------------------------------------------------------


class CoTeaching(TwoNetworks):
    """Of each batch, each network learns from the rows of which the other has the least loss.

    How many: all at first, and after `ramp` epochs the share that the noise rate leaves. With `noise_rate=0` both learn
    from all rows, apart, by cross-entropy. Source: Han et al. 2018. Deviation: their code divides the loss by the
    number of rows twice. Rare classes have high losses, too, and are left out more often.

    Parameters
    ----------
    noise_rate : float from 0 to less than 1, or "estimate"
        Share of wrong labels. Default "estimate": by the transition matrix, from how often neighbours agree, which
        needs features that cluster by class.
    ramp : int, default 10
        Epochs until the share that is kept is least.
    hidden : int, default 64
        Hidden units of a network.
    epochs, batch_size : int, default 100 and 256
    learning_rate, weight_decay : float, default 0.003 and 0.001
    random_state : int, RandomState or None

    Attributes
    ----------
    classes_, prior_ : array (classes,)
        Labels, and shares of the given ones.
    noise_rate_ : float
        As it was used.
    transition_ : Transition or None
        Where the rate was estimated.
    n_features_in_ : int
    """

    def __init__(
        self,
        noise_rate: float | str = "estimate",
        *,
        ramp: int = 10,
        hidden: int = 64,
        epochs: int = 100,
        batch_size: int = 256,
        learning_rate: float = 0.003,
        weight_decay: float = 0.001,
        random_state: Any = None,
    ) -> None:
        self.noise_rate = noise_rate
        self.ramp = ramp
        self.hidden = hidden
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.random_state = random_state

    def _check(self) -> None:
        super()._check()
        rate = self.noise_rate
        if rate != "estimate" if isinstance(rate, str) else not 0 <= rate < 1:
            raise ValueError(f"noise_rate={rate!r}: expected 0 to less than 1, or 'estimate'.")
        if self.ramp < 1:
            raise ValueError(f"ramp={self.ramp}: expected at least 1.")

    def _rate(self, table: Table) -> float:
        self.transition_: Transition | None = None
        if not isinstance(self.noise_rate, str):
            return float(self.noise_rate)
        self.transition_ = estimated_transition(table, len(self.classes_))
        return float(1 - self.transition_.prior_K @ self.transition_.matrix_KK.diagonal())

    def _train(self, table: Table, networks: tuple[Network, Network], generator: torch.Generator) -> None:
        y_N = torch.from_numpy(table.labels_N)
        self.noise_rate_ = self._rate(table)
        optimizer = self._optimizer(*networks)
        for epoch in range(self.epochs):
            keep = keep_share(epoch, self.noise_rate_, self.ramp)
            for rows_B in torch.randperm(len(y_N), generator=generator).split(self.batch_size):
                optimizer.zero_grad()
                self._loss([logits(table.x_ND[rows_B], network) for network in networks], y_N[rows_B], keep).backward()
                optimizer.step()

    def _loss(self, logits_BK: list[Tensor], labels_B: Tensor, keep: float) -> Tensor:
        """Both networks' losses, added up; the gradient of each reaches its own network alone."""
        losses_B = [cross_entropy(each_BK, labels_B) for each_BK in logits_BK]
        for_a_B, for_b_B = exchange(losses_B[0].detach(), losses_B[1].detach(), keep)
        return losses_B[0][for_a_B].mean() + losses_B[1][for_b_B].mean()


class JoCoR(CoTeaching):
    """Both networks learn from the same rows, those of least joint loss, in which disagreement counts.

    Source: Wei et al. 2020; see `amends.maths.cotraining.joint`. Adam's steps do not follow the size of a loss, so that
    only the ratio of its parts matters.

    Parameters
    ----------
    noise_rate : float from 0 to less than 1, or "estimate"
    agree : float from 0 to 1, default 0.1
        Weight of the divergence between the networks; the labels have 1 - agree.
    ramp, hidden, epochs, batch_size, learning_rate, weight_decay, random_state : as of `CoTeaching`

    Attributes
    ----------
    As of `CoTeaching`.
    """

    def __init__(
        self,
        noise_rate: float | str = "estimate",
        *,
        agree: float = 0.1,
        ramp: int = 10,
        hidden: int = 64,
        epochs: int = 100,
        batch_size: int = 256,
        learning_rate: float = 0.003,
        weight_decay: float = 0.001,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            noise_rate,
            ramp=ramp,
            hidden=hidden,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            random_state=random_state,
        )
        self.agree = agree

    def _loss(self, logits_BK: list[Tensor], labels_B: Tensor, keep: float) -> Tensor:
        loss_B = joint(logits_BK[0], logits_BK[1], labels_B, self.agree)
        return loss_B[small_loss(loss_B.detach(), keep)].mean()


# Mixtures ---------------------------------------------------------------------------------------------------------


class DivideMix(TwoNetworks):
    """Labels that look wrong to the other network are dropped and guessed by both; rows are mixed.

    After a warm-up each epoch begins with a mixture of two normal distributions of each network's losses: the chance
    that a row is of the lower one is the chance that its label is right. Then each network is trained by the chances of
    the other one. Source: Li et al. 2020, and their code. Own choices: a row is seen twice with noise added to its
    features where images are cropped and flipped; the prior is that of the given labels, there uniform; the mixture may
    take 100 rounds, there 10.

    Parameters
    ----------
    threshold : float from 0 to less than 1, default 0.5
        Chance of being right above which a label is kept.
    warm_up : int, default 20
        Epochs of cross-entropy on all rows.
    penalise_confidence : bool, default True
        Add the negative entropy in the warm-up: for noise that depends on the class.
    temperature : float above 0, default 0.5
        Of sharpening.
    alpha : float from 0, default 4
        Of the Beta distribution that rows are mixed by; 0: not mixed.
    unlabelled_weight : float from 0, default 5
        Of the rows without a label, after a ramp of 16 epochs. The source takes 0 where few labels are wrong and 25
        to 150 where most are; where none is, much weight on guesses costs accuracy.
    jitter : float from 0, default 0.1
        Standard deviation of the noise, in standard deviations of a feature.
    hidden, epochs, batch_size, learning_rate, weight_decay, random_state : as of `CoTeaching`

    Attributes
    ----------
    classes_, prior_ : array (classes,)
        Labels, and shares of the given ones.
    right_ : array (rows,)
        Chance that a row's label is right, at the end: the mean of both networks.
    n_features_in_ : int
    """

    def __init__(
        self,
        *,
        threshold: float = 0.5,
        warm_up: int = 20,
        penalise_confidence: bool = True,
        temperature: float = 0.5,
        alpha: float = 4.0,
        unlabelled_weight: float = 5.0,
        jitter: float = 0.1,
        hidden: int = 64,
        epochs: int = 100,
        batch_size: int = 256,
        learning_rate: float = 0.003,
        weight_decay: float = 0.001,
        random_state: Any = None,
    ) -> None:
        self.threshold = threshold
        self.warm_up = warm_up
        self.penalise_confidence = penalise_confidence
        self.temperature = temperature
        self.alpha = alpha
        self.unlabelled_weight = unlabelled_weight
        self.jitter = jitter
        self.hidden = hidden
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.random_state = random_state

    def _check(self) -> None:
        super()._check()
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold={self.threshold}: expected 0 to less than 1.")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}: expected more than 0.")
        if self.warm_up < 1:
            raise ValueError(f"warm_up={self.warm_up}: expected at least 1: losses say nothing of labels before.")
        for name in ("alpha", "unlabelled_weight", "jitter"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 0.")

    def _train(self, table: Table, networks: tuple[Network, Network], generator: torch.Generator) -> None:
        optimizers = [self._optimizer(network) for network in networks]
        rng = np.random.default_rng(table.seed)
        for epoch in range(self.epochs):
            if epoch < self.warm_up:
                for network, optimizer in zip(networks, optimizers, strict=True):
                    self._warm(table, network, optimizer, generator)
                continue
            right_N = [right_chance(table, network) for network in networks]
            for own, other in ((0, 1), (1, 0)):
                pair = (networks[own], networks[other])
                self._divided(table, pair, right_N[other], optimizers[own], epoch, generator, rng)
        self.right_ = np.mean([right_chance(table, network).numpy() for network in networks], axis=0)

    def _warm(
        self, table: Table, network: Network, optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> None:
        y_N = torch.from_numpy(table.labels_N)
        for rows_B in torch.randperm(len(y_N), generator=generator).split(self.batch_size):
            logits_BK = logits(table.x_ND[rows_B], network)
            loss_B = cross_entropy(logits_BK, y_N[rows_B])
            if self.penalise_confidence:
                loss_B = loss_B + confidence(logits_BK)
            optimizer.zero_grad()
            loss_B.mean().backward()
            optimizer.step()

    def _divided(
        self,
        table: Table,
        pair: tuple[Network, Network],
        right_N: Tensor,
        optimizer: torch.optim.Optimizer,
        epoch: int,
        generator: torch.Generator,
        rng: np.random.Generator,
    ) -> None:
        """Train the first network for an epoch, by the other one's chances; each batch has as many without a label."""
        y_N, prior_K = torch.from_numpy(table.labels_N), torch.from_numpy(self.prior_).float()
        order_N = torch.randperm(len(y_N), generator=generator)
        kept_N = right_N > self.threshold
        if not kept_N.any():
            raise ValueError(f"no label has a chance above threshold={self.threshold} of being right. Lower it.")
        batches = order_N[kept_N[order_N]].split(self.batch_size)
        others = cycle(order_N[~kept_N[order_N]].split(self.batch_size))
        for number, (labelled_B, other_B) in enumerate(zip(batches, others, strict=False)):
            rows_B = torch.cat([labelled_B, other_B])
            x_BD = table.x_ND[rows_B]
            views = [x_BD + self.jitter * torch.randn(x_BD.shape, generator=generator) for _ in range(2)]
            with torch.no_grad():
                z_BK = torch.stack([mean_probability(view_BD, pair[:1]) for view_BD in views]).mean(0)
                both_BK = torch.stack([mean_probability(view_BD, pair) for view_BD in views]).mean(0)
                z_BK = torch.where(kept_N[rows_B, None], z_BK, both_BK)
                targets_BK = refine(y_N[rows_B], z_BK, right_N[rows_B] * kept_N[rows_B], self.temperature)
            x_MD, targets_MK = torch.cat(views), targets_BK.repeat(2, 1)
            order_M, share = torch.randperm(len(x_MD), generator=generator), mix_share(self.alpha, rng)
            logits_MK = logits(mix(x_MD, order_M, share), pair[0])
            progress = epoch - self.warm_up + number / len(batches)
            weight = self.unlabelled_weight * min(progress / RAMP, 1.0)
            targets_MK = mix(targets_MK, order_M, share)
            optimizer.zero_grad()
            mixed_loss(logits_MK, targets_MK, kept_N[rows_B].repeat(2), prior_K, weight).backward()
            optimizer.step()


def right_chance(table: Table, network: Network) -> Tensor:
    """Chance that each label is right, (N,), by the network's losses."""
    with torch.no_grad():
        loss_N = cross_entropy(logits(table.x_ND, network), torch.from_numpy(table.labels_N))
    return torch.from_numpy(lower_chance(loss_N.double().numpy(), table.seed))


def lower_chance(loss_N: np.ndarray, seed: int) -> np.ndarray:
    """Chance that each loss is of the lower of two normal distributions, (N,); 1 where all are equal."""
    span = np.ptp(loss_N)
    if not span > 0:
        return np.ones_like(loss_N)
    scaled_N1 = ((loss_N - loss_N.min()) / span)[:, None]
    mixture = GaussianMixture(2, tol=1e-2, reg_covar=5e-4, random_state=seed).fit(scaled_N1)
    return np.asarray(mixture.predict_proba(scaled_N1)[:, mixture.means_.argmin()])
