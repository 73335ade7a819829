"""Losses of a classifier for labels that are wrong or of unequal classes, as functions of logits and given labels.

Each loss gives a number a row; `reduced` is the one place where rows are added up. Shapes: B rows, K classes. z is the
softmax of the logits, y the given label, l_c = -log z_c, and T_ij = P(given = j | true = i).
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from amends.maths.divergence import divergence_named

Reduction = Literal["mean", "sum", "none"]
MOST_CONDITION = 1e3
"""Of T for `backward`: beyond it single rows get losses in the thousands."""
MOST_CORES = -math.log(1e-8)


def reduced(loss_B: Tensor, reduction: Reduction = "mean", weight_B: Tensor | None = None) -> Tensor:
    """Add the rows' losses up; "mean" divides by the sum of the weights, which are 1 by default."""
    weight_B = torch.ones_like(loss_B) if weight_B is None else weight_B.to(loss_B)
    if reduction == "none":
        return weight_B * loss_B
    total = (weight_B * loss_B).sum()
    return total / weight_B.sum() if reduction == "mean" else total


def class_losses(logits_BK: Tensor) -> Tensor:
    """l_c = -log z_c of every class, (B, K), in float32 or better."""
    logits_BK = logits_BK if logits_BK.dtype == torch.float64 else logits_BK.float()
    return -logits_BK.log_softmax(-1)


def _of(values_BK: Tensor, labels_B: Tensor) -> Tensor:
    return values_BK.gather(1, labels_B[:, None])[:, 0]


# Losses for wrong labels ------------------------------------------------------------------------------------------


def cross_entropy(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """l_y."""
    return _of(class_losses(logits_BK), labels_B)


def forward(logits_BK: Tensor, labels_B: Tensor, transition_KK: Tensor) -> Tensor:
    """-log (z'T)_y: the model is right if its classes, sent through the noise, give the labels.

    Source: Patrini et al. 2017, theorem 2. Its minimiser on noisy labels is that of cross-entropy on clean ones.
    """
    log_T_KK = transition_KK.to(logits_BK).clamp_min(torch.finfo(torch.float32).tiny).log()
    loss_B: Tensor = -torch.logsumexp(-class_losses(logits_BK) + log_T_KK.T[labels_B], dim=1)
    return loss_B


def backward(logits_BK: Tensor, labels_B: Tensor, transition_KK: Tensor) -> Tensor:
    """sum_j (T^-1)_yj l_j, whose mean over the noise is the clean loss.

    Source: Patrini et al. 2017, theorem 1. Single rows may have a negative loss.

    Raises
    ------
    ValueError : T has no usable inverse (condition above `MOST_CONDITION`).
    """
    condition = float(torch.linalg.cond(transition_KK.double()))
    if not condition < MOST_CONDITION:
        raise ValueError(f"transition: its condition number is {condition:.3g}, too high to invert. Use forward.")
    inverse_KK: Tensor = torch.linalg.inv(transition_KK.double()).to(logits_BK)
    return (inverse_KK[labels_B] * class_losses(logits_BK)).sum(1)


def label_smoothing(logits_BK: Tensor, labels_B: Tensor, rate: float = 0.1) -> Tensor:
    """(1 - r) l_y + r / K sum_c l_c; negative label smoothing for r < 0, which has no lower bound.

    Source: Szegedy et al. 2016; for noise Lukasik et al. 2020; r < 0: Wei et al. 2022.
    """
    loss_BK = class_losses(logits_BK)
    return (1 - rate) * _of(loss_BK, labels_B) + rate * loss_BK.mean(1)


def gce(logits_BK: Tensor, labels_B: Tensor, q: float = 0.7) -> Tensor:
    """(1 - z_y^q) / q: cross-entropy for q towards 0, 1 - z_y (mean absolute error) for q = 1.

    Source: Zhang and Sabuncu 2018.
    """
    if not 0 < q <= 1:
        raise ValueError(f"q={q}: expected more than 0, at most 1.")
    return -torch.expm1(-q * cross_entropy(logits_BK, labels_B)) / q


def taylor_ce(logits_BK: Tensor, labels_B: Tensor, terms: int = 2) -> Tensor:
    """sum_{k=1..t} (1 - z_y)^k / k: the first terms of cross-entropy's series. Source: Feng et al. 2020."""
    if terms < 1:
        raise ValueError(f"terms={terms}: expected at least 1.")
    miss_B = -torch.expm1(-cross_entropy(logits_BK, labels_B))
    return torch.stack([miss_B**k / k for k in range(1, terms + 1)]).sum(0)


def sce(logits_BK: Tensor, labels_B: Tensor, alpha: float = 0.1, beta: float = 1.0, log_zero: float = -4.0) -> Tensor:
    """Weigh l_y with alpha and r with beta, where r = -sum_c z_c log(1[c = y]) with log 0 := A, which is -A (1 - z_y).

    Source: Wang et al. 2019 (symmetric cross-entropy); their alpha and beta for ten classes, and A.
    """
    loss_B = cross_entropy(logits_BK, labels_B)
    return alpha * loss_B + beta * log_zero * torch.expm1(-loss_B)


def logit_clip(logits_BK: Tensor, labels_B: Tensor, most: float = 5.0) -> Tensor:
    """Cross-entropy of logits whose length is at most `most`, so that no row's loss grows without bound.

    Source: Wei et al. 2023 (LogitClip), with the Euclidean norm. The bound is theirs to choose by data; 5 leaves
    room for a probability of 0.99 among ten classes.
    """
    length_B1 = logits_BK.norm(dim=1, keepdim=True)
    return cross_entropy(logits_BK * (most / length_B1.clamp_min(most)), labels_B)


def peer(logits_BK: Tensor, labels_B: Tensor, generator: torch.Generator, alpha: float = 1.0) -> Tensor:
    """l(x_n, y_n) - alpha l(x_a, y_b), a and b drawn apart: agreement that chance gives earns nothing.

    Source: Liu and Guo 2020. Here a and b are two orders of the batch, so each row and label comes once.
    """
    loss_BK = class_losses(logits_BK)
    rows_B, other_labels_B = _apart(labels_B, generator)
    return _of(loss_BK, labels_B) - alpha * _of(loss_BK[rows_B], other_labels_B)


def f_divergence(logits_BK: Tensor, labels_B: Tensor, generator: torch.Generator, divergence: str = "tv") -> Tensor:
    """-(g*(z_y) of a row and its label) + f*(g*(z_y)) of a row and another's label, by `amends.maths.divergence`.

    It is least where the classifier tells (row, label) from pairs drawn apart best. Source: Wei and Liu 2021.
    """
    chosen = divergence_named(divergence)
    z_BK = (-class_losses(logits_BK)).exp()
    rows_B, other_labels_B = _apart(labels_B, generator)
    return chosen.penalty(_of(z_BK[rows_B], other_labels_B)) - chosen.reward(_of(z_BK, labels_B))


def _apart(labels_B: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows in one order, labels in another one."""
    first, second = (torch.randperm(len(labels_B), generator=generator).to(labels_B.device) for _ in range(2))
    return first, labels_B[second]


def cores(logits_BK: Tensor, labels_B: Tensor, prior_K: Tensor, beta: float = 2.0) -> Tensor:
    """l_y - beta sum_c p_c l_c, p the shares of the given labels: rewards confidence, which noisy labels do not.

    Source: Cheng et al. 2021 (CORES2). Without a bound on l_c it has none below; their code, and this, takes
    `MOST_CORES` for it.
    """
    loss_BK = class_losses(logits_BK)
    return _of(loss_BK, labels_B) - beta * loss_BK.clamp_max(MOST_CORES) @ prior_K.to(loss_BK)


def cores_beta(progress: float, most: float = 2.0) -> float:
    """Beta over a training, progress 0 to 1: 0 at first, then a rise to `most`. Source: their code's 5 % and 20 %."""
    return most * min(max((progress - 0.05) / 0.15, 0.0), 1.0)


def elr(logits_BK: Tensor, labels_B: Tensor, target_BK: Tensor, weight: float = 3.0) -> Tensor:
    """l_y + weight log(1 - <z, t>), t what the model said of the row before: it holds on to that.

    Source: Liu et al. 2020 (ELR), eq. 6. `elr_target` keeps t.
    """
    loss_BK = class_losses(logits_BK)
    agree_B = ((-loss_BK).exp() * target_BK.to(loss_BK)).sum(1)
    return _of(loss_BK, labels_B) + weight * torch.log(1 - agree_B.clamp_max(1 - 1e-4))


def elr_target(target_BK: Tensor, logits_BK: Tensor, momentum: float = 0.7) -> Tensor:
    """Move the average of a row's probabilities on, without a gradient; it starts from zeros."""
    return momentum * target_BK + (1 - momentum) * logits_BK.detach().softmax(-1).to(target_BK)


# Losses for unequal classes ---------------------------------------------------------------------------------------


def adjusted(logits_BK: Tensor, prior_K: Tensor, tau: float = 1.0) -> Tensor:
    """Logits + tau log p, p the share of each class: as they are on data where classes come that often.

    Train on these (balanced softmax: Ren et al. 2020, tau = 1; logit adjustment: Menon et al. 2021, eq. 10). On
    a model that was trained without, tau = -1 at prediction is the post-hoc adjustment (their eq. 9).

    Raises
    ------
    ValueError : a class without rows, which has no share to adjust by.
    """
    if not (prior_K > 0).all():
        raise ValueError("prior: a class has no rows. Leave it out.")
    return logits_BK + tau * prior_K.to(logits_BK).log()


def ldam(logits_BK: Tensor, labels_B: Tensor, counts_K: Tensor, most: float = 0.5) -> Tensor:
    """Logits whose own label is lowered by a margin C / n_y^(1/4), the rarest class by `most` = C / min n^(1/4).

    Source: Cao et al. 2019 (LDAM).
    """
    margin_K = most * (counts_K.min() / counts_K.to(logits_BK)) ** 0.25
    return logits_BK - margin_K[labels_B, None] * one_hot(labels_B, logits_BK.shape[1])


def focal(logits_BK: Tensor, labels_B: Tensor, gamma: float = 2.0) -> Tensor:
    """(1 - z_y)^gamma l_y: rows that are learnt already count less. Source: Lin et al. 2017, eq. 4."""
    loss_B = cross_entropy(logits_BK, labels_B)
    return (-torch.expm1(-loss_B)) ** gamma * loss_B


def class_weights(counts_K: Tensor, beta: float = 0.999) -> Tensor:
    """(1 - b) / (1 - b^n_c), scaled to mean 1: by the effective number of rows.

    b = 0 weighs all alike, b towards 1 by 1 / n. Source: Cui et al. 2019.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta={beta}: expected 0 to less than 1.")
    weight_K = -1 / torch.expm1(counts_K.double() * math.log(beta)) if beta else torch.ones_like(counts_K).double()
    return weight_K / weight_K.mean()


# By name ----------------------------------------------------------------------------------------------------------


class Given(NamedTuple):
    """What losses may need beside logits and labels."""

    transition_KK: Tensor | None
    prior_K: Tensor
    """Shares of the given labels."""
    generator: torch.Generator
    progress: float = 1.0
    """Of the training, 0 to 1."""
    target_BK: Tensor | None = None
    """Of `elr`."""


def _transition(given: Given) -> Tensor:
    if given.transition_KK is None:
        raise ValueError("this loss needs a transition matrix. Give one, or have it estimated.")
    return given.transition_KK


def _target(given: Given) -> Tensor:
    assert given.target_BK is not None
    return given.target_BK


Loss = Callable[..., Tensor]
LOSSES: dict[str, Loss] = {
    "cross_entropy": lambda x, y, given: cross_entropy(x, y),
    "forward": lambda x, y, given: forward(x, y, _transition(given)),
    "backward": lambda x, y, given: backward(x, y, _transition(given)),
    "label_smoothing": lambda x, y, given, **how: label_smoothing(x, y, **how),
    "negative_label_smoothing": lambda x, y, given, rate=-0.5: label_smoothing(x, y, rate),
    "gce": lambda x, y, given, **how: gce(x, y, **how),
    "taylor_ce": lambda x, y, given, **how: taylor_ce(x, y, **how),
    "sce": lambda x, y, given, **how: sce(x, y, **how),
    "logit_clip": lambda x, y, given, **how: logit_clip(x, y, **how),
    "peer": lambda x, y, given, **how: peer(x, y, given.generator, **how),
    "f_divergence": lambda x, y, given, **how: f_divergence(x, y, given.generator, **how),
    "cores": lambda x, y, given, beta=2.0: cores(x, y, given.prior_K, cores_beta(given.progress, beta)),
    "elr": lambda x, y, given, **how: elr(x, y, _target(given), **how),
    "focal": lambda x, y, given, **how: focal(x, y, **how),
}
"""name: (logits, labels, Given, the loss's own options) -> loss a row."""
NEED_TRANSITION = ("forward", "backward")


def loss_named(name: str) -> Loss:
    """Look a loss up by name.

    Raises
    ------
    ValueError : unknown name; the message lists the known ones.
    """
    if name not in LOSSES:
        raise ValueError(f"loss={name!r}: unknown. Choose one of {', '.join(LOSSES)}.")
    return LOSSES[name]
