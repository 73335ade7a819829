"""Learning by two networks where labels are wrong: which rows count, and what they are taught.

Shapes: B rows of a batch, M rows that are mixed, K classes. l_y is cross-entropy, z the softmax of the logits.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from amends.maths.robust import class_losses, cross_entropy

# Small losses -----------------------------------------------------------------------------------------------------


def keep_share(epoch: float, noise_rate: float, ramp: int) -> float:
    """1 - r min(e / E, 1): all rows at first, as many as have right labels after `ramp` epochs.

    Models learn what most rows agree on first and single wrong labels later. Source: Han et al. 2018, R(T).
    """
    return 1 - noise_rate * min(epoch / ramp, 1.0)


def small_loss(loss_B: Tensor, keep: float) -> Tensor:
    """Mark the share `keep` of the rows with least loss, at least one, (B); of equal ones the first."""
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep}: expected more than 0, at most 1.")
    chosen = torch.zeros(len(loss_B), dtype=torch.bool, device=loss_B.device)
    chosen[loss_B.argsort(stable=True)[: max(1, round(keep * len(loss_B)))]] = True
    return chosen


def exchange(loss_a_B: Tensor, loss_b_B: Tensor, keep: float) -> tuple[Tensor, Tensor]:
    """Rows that two models learn from, each those of small loss to the other. Source: Han et al. 2018, co-teaching."""
    return small_loss(loss_b_B, keep), small_loss(loss_a_B, keep)


def joint(logits_a_BK: Tensor, logits_b_BK: Tensor, labels_B: Tensor, agree: float = 0.1) -> Tensor:
    """(1 - a) (l_y of one + l_y of the other) + a (KL(p, q) + KL(q, p)): two models that must agree.

    Source: Wei et al. 2020 (JoCoR) and their code; rows are chosen by it, too. a = 0.1 is its default.
    """
    if not 0 <= agree <= 1:
        raise ValueError(f"agree={agree}: expected 0 to 1.")
    log_p_BK, log_q_BK = -class_losses(logits_a_BK), -class_losses(logits_b_BK)
    apart_B = ((log_p_BK.exp() - log_q_BK.exp()) * (log_p_BK - log_q_BK)).sum(1)
    return (1 - agree) * (cross_entropy(logits_a_BK, labels_B) + cross_entropy(logits_b_BK, labels_B)) + agree * apart_B


# Rows without a label to trust: DivideMix (Li et al. 2020), after MixMatch (Berthelot et al. 2019) ---------------


def sharpen(z_BK: Tensor, temperature: float) -> Tensor:
    """z^(1/T), scaled to sum 1: surer for T < 1, unchanged for T = 1. Source: DivideMix."""
    return (z_BK.log() / temperature).softmax(-1)


def refine(labels_B: Tensor, z_BK: Tensor, clean_B: Tensor, temperature: float) -> Tensor:
    """Sharpen w times the given label plus 1 - w times what the model says; w is the chance that the label is right.

    Source: DivideMix's co-refinement. w = 0 is co-guessing, with z the mean of both networks.
    """
    w_B1 = clean_B[:, None].to(z_BK)
    return sharpen(w_B1 * one_hot(labels_B, z_BK.shape[1]) + (1 - w_B1) * z_BK, temperature)


def mix_share(alpha: float, rng: np.random.Generator) -> float:
    """max(b, 1 - b), b from Beta(alpha, alpha): what stays of a row when it is mixed; 1 for alpha = 0.

    Source: DivideMix.
    """
    share = float(rng.beta(alpha, alpha)) if alpha else 1.0
    return max(share, 1 - share)


def mix(values_M: Tensor, order_M: Tensor, share: float) -> Tensor:
    """Mix rows, or their targets, with those in another order. Source: DivideMix."""
    return share * values_M + (1 - share) * values_M[order_M]


def mixed_loss(
    logits_MK: Tensor, targets_MK: Tensor, is_labelled_M: Tensor, prior_K: Tensor, unlabelled_weight: float
) -> Tensor:
    """Add up cross-entropy of labelled rows, squared error of the others, and a penalty on classes that vanish.

    The first is a mean over rows, the second a mean over rows and classes, the third sum_c p_c log(p_c / mean z_c). A
    part without rows is 0. Source: DivideMix; p is uniform there, here the caller's.
    """
    log_z_MK = -class_losses(logits_MK)
    targets_MK = targets_MK.to(log_z_MK)
    loss = (prior_K * (prior_K / log_z_MK.exp().mean(0)).log()).sum()
    if is_labelled_M.any():
        loss = loss - (targets_MK * log_z_MK)[is_labelled_M].sum(1).mean()
    if not is_labelled_M.all():
        loss = loss + unlabelled_weight * (log_z_MK.exp() - targets_MK)[~is_labelled_M].square().mean()
    return loss


def confidence(logits_BK: Tensor) -> Tensor:
    """sum_c z_c log z_c, a row's negative entropy. Source: DivideMix."""
    log_z_BK = -class_losses(logits_BK)
    return (log_z_BK.exp() * log_z_BK).sum(1)
