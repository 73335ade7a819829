"""CE-U lowers the token to forget and keeps the others' proportions; the first token of an answer is left out."""

from pathlib import Path

import pytest
import torch

from amends.io.errors import InputError
from amends.io.tables import rows_of
from amends.lm.load import load
from amends.lm.pairs import read_pairs
from amends.unlearn._config import ForgetConfig
from amends.unlearn.ceu import CEUTrainer, ceu_cross_entropy

from .conftest import trainer_on, with_logits


def test_the_true_logit_falls_and_the_others_keep_their_proportions() -> None:
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.tensor([0, 6, 2, 2])
    ceu_cross_entropy(logits, target).sum().backward()
    p = logits.detach().softmax(-1)
    assert logits.grad is not None
    for row, column in enumerate(target.tolist()):
        # The gradient is p - q, q being p without the target, scaled up.
        assert logits.grad[row, column].item() == pytest.approx(p[row, column].item(), rel=1e-4)
        others = torch.arange(7) != column
        ratio = logits.grad[row, others] / p[row, others]
        torch.testing.assert_close(ratio, ratio[0].expand(6), atol=1e-5, rtol=1e-3)
        assert ratio[0] < 0


def test_the_first_token_of_an_answer_is_left_out(tiny_model: Path, tmp_path: Path) -> None:
    trainer = trainer_on(tiny_model, tmp_path, CEUTrainer, ForgetConfig, keep=None)
    logits = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    losses, _ = trainer.forget_losses(with_logits(logits, [[1, 2, 3]], [[0, 0, 0]]))
    losses.sum().backward()
    assert logits.grad is not None
    assert (logits.grad.abs().amax(-1) > 0).tolist() == [[False, True, True]]


def test_an_answer_of_one_token_is_named(tiny_model: Path, tmp_path: Path) -> None:
    loaded = load(tiny_model)
    text = "a" * 9 + "b"  # bytes are tokens
    pairs = read_pairs(rows_of([{"text": text}]), tokenizer=loaded.tokenizer, prefix_tokens=9, continuation_tokens=1)
    args = ForgetConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(InputError, match=r"data\[0\]: the answer is one token"):
        CEUTrainer(loaded.model, args, pairs.kept, loaded.tokenizer)
    with pytest.raises(InputError, match=r"data\[0\]: the answer is one token"):  # the token that closes it is no word
        CEUTrainer(loaded.model, args, [{"question": "Where?", "answer": "A"}], loaded.tokenizer)
