"""A packed row says of each answer what a pass over that answer alone says."""

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex
from transformers.integrations import flex_attention

from amends.io.errors import InputError
from amends.lm import logprobs
from amends.lm.load import add_lora
from amends.lm.logprobs import (
    PADDING,
    AnswerLogprobs,
    PackedRow,
    answer_logprobs,
    block_mask,
    forward_kl,
    layer_list,
    masked_mean,
    note,
    output_layer,
    pack,
    pack_notes,
)
from amends.lm.pairs import Encoded

from .conftest import FAMILIES, VOCAB, tiny


def some_rows(seed: int = 0, count: int = 4, system: Sequence[int] = (7, 1, 5)) -> list[PackedRow]:
    """Rows with prompts that begin alike, 3 to 9 tokens more, and one to three answers of 1 to 8."""
    draw = random.Random(seed)

    def tokens(low: int, high: int) -> list[int]:
        return [draw.randrange(1, VOCAB) for _ in range(draw.randint(low, high))]

    return [
        PackedRow([*system, *tokens(3, 9)], [tokens(1, 8) for _ in range(draw.randint(1, 3))]) for _ in range(count)
    ]


def alone(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """Log-probabilities of one answer from a plain, unpadded pass."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
    return logits.log_softmax(-1)[range(len(prompt) - 1, len(prompt) + len(answer) - 1), answer]


def causal(end: Tensor) -> Tensor:
    """A mask that parts nothing."""
    return torch.ones(end.shape[1], end.shape[1], dtype=torch.bool).tril().expand(len(end), 1, -1, -1)


def packed(model: Any, rows: list[PackedRow]) -> AnswerLogprobs:
    with torch.no_grad():
        out = answer_logprobs(model, pack(rows, pad_id=0))
        assert out.logp_BA is out.logp_BA  # computed here, without gradients, and once
        return out


def largest_difference(model: Any, rows: list[PackedRow]) -> float:
    out = packed(model, rows)
    pairs = [
        (out.logp_BA[i][out.mask(k)[i]], alone(model, row.prompt, answer))
        for i, row in enumerate(rows)
        for k, answer in enumerate(row.answers)
    ]
    return max((here - there).abs().max().item() for here, there in pairs)


@pytest.mark.parametrize("attention", [None, "eager"])
@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("system", [(), (7, 1, 5)])
def test_a_packed_row_equals_separate_passes(family: str, attention: str | None, system: tuple[int, ...]) -> None:
    assert largest_difference(tiny(family, attention), some_rows(system=system)) < 1e-5


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention as plain operations: compiling takes half a minute, and compiled it has no backward pass on a CPU.

    The two checks that refuse a CPU's gradients guard the compiled kernel; the plain operations have them.
    """

    def plain(*args: Any, training: bool = False, **kwargs: Any) -> Any:
        return flex_attention.flex_attention(*args, **kwargs)

    def options(*args: Any) -> Any:
        return apply(*args) | {"OUTPUT_LOGSUMEXP": torch.is_grad_enabled()}

    apply = torch_flex._apply_kernel_options
    monkeypatch.setattr(flex_attention, "compile_friendly_flex_attention", plain)
    monkeypatch.setattr(torch_flex, "_apply_kernel_options", options)
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("gpt2", "mixtral")])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # of the compiler
@pytest.mark.usefixtures("uncompiled")
def test_flex_attention_says_and_learns_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = pack(some_rows(count=40), 0)  # several blocks of 128 tokens

    def said(attention: str) -> tuple[Tensor, list[Tensor]]:
        model = tiny(family, attention)
        logp_BA = answer_logprobs(model, batch).logp_BA
        return logp_BA, list(torch.autograd.grad(logp_BA.mean(), list(model.parameters())))

    expected, gradients = said("eager")
    logp_BA, flex = said("flex_attention")
    torch.testing.assert_close(logp_BA, expected, atol=1e-5, rtol=0)
    for ours, theirs in zip(flex, gradients, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()
    monkeypatch.setattr(logprobs, "block_mask", causal)
    logp_BA, flex = said("flex_attention")
    assert (logp_BA - expected).abs().max() > 1e-2
    assert any((ours - theirs).norm() > 1e-2 * theirs.norm() for ours, theirs in zip(flex, gradients, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compiled, FlexAttention has no backward pass on a CPU")
def test_compiled_flex_attention_has_the_same_gradients() -> None:
    batch = {name: tensor.cuda() for name, tensor in pack(some_rows(count=40), 0).items()}
    grads = []
    for attention in ("eager", "flex_attention"):
        model = tiny("llama", attention).cuda()
        answer_logprobs(model, batch).logp_BA.sum().backward()
        grads.append([weight.grad for weight in model.parameters()])
    for eager, flex in zip(*grads, strict=True):
        torch.testing.assert_close(flex, eager, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_without_the_block_mask_the_same_comparison_fails(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "block_mask", causal)
    assert largest_difference(tiny(family), some_rows()) > 1e-2


def test_logits_some_at_a_time_are_the_same_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")

    def grads() -> list[Tensor]:
        model.zero_grad()
        out = answer_logprobs(model, pack(some_rows(), 0))
        out.logp_BA.sum().backward()
        return [out.logp_BA.detach(), *(p.grad.clone() for p in model.parameters())]

    at_once = grads()
    monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", 3 * VOCAB)
    for some, all_ in zip(grads(), at_once, strict=True):
        torch.testing.assert_close(some, all_, atol=1e-5, rtol=1e-4)


def single_rows(count: int = 4) -> list[PackedRow]:
    """Rows with one answer each, as rows to keep are."""
    return [PackedRow(row.prompt, row.answers[:1]) for row in some_rows(count=count)]


def states(out: AnswerLogprobs) -> Tensor:
    return out.hidden_BAD


def noted_batch(rows: list[PackedRow], said: list[Any]) -> dict[str, Tensor]:
    batch = pack(rows, 0)
    return batch | pack_notes(said, batch["answer"].shape[1])


def kl(model: Any, reference: Any, rows: list[PackedRow]) -> Tensor:
    """Forward KL, (B, A), from a reference whose states are noted."""
    before = output_layer(reference)
    out = answer_logprobs(model, noted_batch(rows, note(reference, rows, 0, states)))
    assert out.notes_BAK is not None
    return out.score(lambda logits, _, said: forward_kl(logits, before(said)), None, out.notes_BAK)


def test_the_divergence_from_what_was_said_is_that_of_two_plain_passes() -> None:
    before, after, rows = tiny("llama"), tiny("llama"), single_rows(20)  # more than are noted at once
    with torch.no_grad():
        for weight in after.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        found = kl(after, before, rows)
    for row, here in zip(rows, found, strict=True):
        tokens_T, start = torch.tensor([row.prompt + row.answers[0]]), len(row.prompt) - 1
        with torch.no_grad():
            p, q = (model(input_ids=tokens_T).logits[0, start:-1].softmax(-1) for model in (before, after))
        expected = (p * (p / q).log()).sum(-1)
        torch.testing.assert_close(here[: len(expected)], expected, atol=1e-5, rtol=1e-3)
        assert (here[: len(expected)] > 1e-3).all()
        assert not here[len(expected) :].any()


def test_a_model_held_to_what_it_says_is_not_moved() -> None:
    model, rows = tiny("llama"), single_rows()
    found = kl(model, model, rows)
    assert found.abs().max() < 1e-6
    found.sum().backward()
    assert max(p.grad.abs().max() for p in model.parameters() if p.grad is not None) < 1e-5


def test_the_output_layer_that_is_kept_does_not_move_with_one_that_is_trained() -> None:
    model = tiny("llama")
    before, states_ND = output_layer(model), torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    there = before(states_ND)
    with torch.no_grad():
        model.get_output_embeddings().weight += 1
    torch.testing.assert_close(before(states_ND), there)
    frozen = add_lora(tiny("llama"), rank=2)
    assert output_layer(frozen)(states_ND).shape == there.shape


def test_some_rows_have_notes_and_each_its_own() -> None:
    rows = single_rows()
    said = note(tiny("llama"), rows, 0, lambda out: out.logp_BA)
    out = answer_logprobs(tiny("llama"), noted_batch(rows, [None, said[1], None, said[3]]))
    assert out.notes_BAK is not None and out.has_notes_B is not None
    assert out.has_notes_B.tolist() == [False, True, False, True]
    torch.testing.assert_close(out.notes_BAK[..., 0], out.logp_BA * out.has_notes_B[:, None])
    chosen = out.of(out.has_notes_B)
    assert chosen.notes_BAK is not None
    torch.testing.assert_close(chosen.notes_BAK[..., 0], chosen.logp_BA)


def test_what_is_scored_some_at_a_time_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tiny("llama"), single_rows()

    def grads() -> list[Tensor]:
        model.zero_grad()
        found = kl(model, tiny("gpt2"), rows)
        found.sum().backward()
        return [found.detach(), *(p.grad.clone() for p in model.parameters())]

    at_once = grads()
    monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", 3 * VOCAB)
    for some, all_ in zip(grads(), at_once, strict=True):
        torch.testing.assert_close(some, all_, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_layer_says_what_it_says_in_a_plain_pass_and_the_others_do_not_run(family: str) -> None:
    model, rows = tiny(family), single_rows()
    with torch.no_grad():
        out = answer_logprobs(model, pack(rows, 0), layer=0)
        for here, row in zip(out.hidden_BAD, rows, strict=True):
            ids, start = row.prompt + row.answers[0], len(row.prompt) - 1
            plain = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0, start:-1]
            torch.testing.assert_close(here[: len(plain)], plain, atol=1e-5, rtol=0)
        owner, name = layer_list(model)
        assert len(getattr(owner, name)) == 2  # all are back
        for weight in getattr(owner, name)[1].parameters():
            weight.fill_(torch.nan)
        again = answer_logprobs(model, pack(rows, 0), layer=0)
    assert torch.isfinite(again.hidden_BAD).all()


def test_no_tensor_of_all_tokens_times_the_vocabulary_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            for tensor in made if isinstance(made, list | tuple) else [made]:
                if (
                    isinstance(tensor, Tensor)
                    and tensor.shape[-1:] == (VOCAB,)
                    and tensor.data_ptr() != head.data_ptr()
                ):
                    self.numel = max(self.numel, tensor.numel())
            return made

    monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", 3 * VOCAB)
    model, rows = add_lora(tiny("llama"), rank=2), some_rows(count=12)
    head = model.get_output_embeddings().weight
    packed(model, rows)  # the first pass checks the output layer on a column of its own
    with Largest() as largest:
        answer_logprobs(model, pack(rows, 0)).logp_BA.sum().backward()
    assert largest.numel == 3 * VOCAB


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_an_output_layer_that_amends_does_not_know_is_refused(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(family)
    forward = model.forward

    def doubled(**inputs: Any) -> Any:
        out = forward(**inputs)
        out.logits = out.logits * 2
        return out

    monkeypatch.setattr(model, "forward", doubled)
    with pytest.raises(InputError, match=f"{family}: this model changes what its output layer gives"):
        packed(model, some_rows())


def test_an_attention_that_takes_no_mask_is_refused() -> None:
    model = tiny("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match="'flash_attention_2', which takes no mask of who sees whom"):
        packed(model, some_rows())


def assert_gradients_agree(model: torch.nn.Module) -> None:
    """Compare the gradients of one packed pass with those of a pass for each row, for all weights that are trained."""
    rows = some_rows()
    out = answer_logprobs(model, pack(rows, 0))
    masked_mean(out.logp_BA, out.mask(0)).sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    here = [p.grad.clone() for p in trained]
    model.zero_grad()
    for row in rows:
        ids = row.prompt + row.answers[0]
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        start, end = len(row.prompt) - 1, len(ids) - 1
        logits.log_softmax(-1)[range(start, end), row.answers[0]].mean().backward()
    assert any(p.grad.abs().max() > 1e-3 for p in trained)
    for mine, parameter in zip(here, trained, strict=True):
        torch.testing.assert_close(mine, parameter.grad, atol=2e-5, rtol=1e-4)


@pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing_enable`:FutureWarning"
)  # the name that TrainingArguments has
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2"])
def test_gradients_of_an_adapter_agree_with_separate_passes(family: str, checkpointing: bool) -> None:
    model = add_lora(tiny(family), rank=2)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    assert_gradients_agree(model)


def test_with_an_adapter_a_packed_row_equals_separate_passes() -> None:
    model = add_lora(tiny("llama"), rank=2).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1)
    assert largest_difference(model, some_rows()) < 1e-5


def test_gradients_agree_with_separate_passes() -> None:
    assert_gradients_agree(tiny("llama"))


LLAMA = tiny("llama")
TOKENS = st.integers(1, VOCAB - 1)
ROW = st.builds(
    PackedRow,
    st.lists(TOKENS, min_size=1, max_size=10),
    st.lists(st.lists(TOKENS, min_size=1, max_size=8), min_size=1, max_size=3),
)


def values(out: AnswerLogprobs, row: int) -> Tensor:
    return out.logp_BA[row][out.answer_BA[row] != PADDING]


@given(st.lists(ROW, min_size=2, max_size=5))
@settings(max_examples=25)
def test_what_else_is_in_the_batch_never_changes_a_value(rows: list[PackedRow]) -> None:
    together = packed(LLAMA, rows)
    for i, row in enumerate(rows):
        torch.testing.assert_close(values(together, i), values(packed(LLAMA, [row]), 0), atol=1e-5, rtol=0)


@given(ROW, st.integers(0, 20), st.integers(0, 20), st.integers(0, VOCAB - 1))
@settings(max_examples=25)
def test_padding_of_any_length_and_token_never_changes_a_value(row: PackedRow, left: int, right: int, pad: int) -> None:
    wide = PackedRow([1] * (len(row.prompt) + left), [[1] * (sum(map(len, row.answers)) + right)])
    with torch.no_grad():
        padded = answer_logprobs(LLAMA, pack([row, wide], pad))
    torch.testing.assert_close(values(padded, 0), values(packed(LLAMA, [row]), 0), atol=1e-5, rtol=0)


@given(ROW)
@settings(max_examples=25)
def test_mean_probability_lies_between_the_geometric_mean_and_one(row: PackedRow) -> None:
    out = packed(LLAMA, [row])
    for k in range(len(row.answers)):
        v = masked_mean(out.logp_BA.exp(), out.mask(k)).item()
        assert math.exp(masked_mean(out.logp_BA, out.mask(k)).item()) <= v + 1e-6
        assert v <= 1 + 1e-6


def test_a_uniform_model_gives_one_over_the_vocabulary() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    out = packed(model, some_rows())
    v_B = masked_mean(out.logp_BA.exp(), out.mask(0))
    torch.testing.assert_close(v_B, torch.full_like(v_B, 1 / VOCAB))


def test_pack_lays_rows_out_as_written_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "LINE_TOKENS", 6)
    batch = pack(
        [PackedRow([1, 2], [[4]]), PackedRow([5, 6], [[7, 8], [9, 3]]), PackedRow([3], [[3, 2]] * 3)], pad_id=0
    )
    assert {name: values.tolist() for name, values in batch.items()} == {
        "input_ids": [[5, 6, 7, 9], [1, 2, 3, 3]],
        "position_ids": [[0, 1, 2, 2], [0, 1, 0, 1]],
        "end": [[4, 4, 3, 4], [2, 2, 4, 4]],
        "answer": [[0, *[PADDING] * 5], [0, 0, 1, 1, PADDING, PADDING], [0, 0, 1, 1, 2, 2]],
        "target": [[4, 0, 0, 0, 0, 0], [7, 8, 9, 3, 0, 0], [3, 2, 3, 2, 3, 2]],
        "source": [[5, 0, 0, 0, 0, 0], [1, 2, 1, 3, 0, 0], [6, 7, 6, 7, 6, 7]],
    }


def test_what_is_alike_stands_once_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "LINE_TOKENS", 8)
    rows = [PackedRow([1, 2, 3], [[4]]), PackedRow([1, 2, 5], [[7, 8], [7, 9, 6]]), PackedRow([1, 2, 3, 6], [[3]])]
    batch = pack(rows, pad_id=0)
    assert {name: values.tolist() for name, values in batch.items()} == {
        "input_ids": [[1, 2, 3, 6, 5, 7, 9]],
        "position_ids": [[0, 1, 2, 3, 2, 3, 4]],
        "end": [[7, 7, 4, 4, 7, 7, 7]],
        "answer": [[0, *[PADDING] * 4], [0, 0, 1, 1, 1], [0, *[PADDING] * 4]],
        "target": [[4, 0, 0, 0, 0], [7, 8, 7, 9, 6], [3, 0, 0, 0, 0]],
        "source": [[2, 0, 0, 0, 0], [4, 5, 4, 5, 6], [3, 0, 0, 0, 0]],
    }
    assert sum(row.num_tokens for row in rows) == 3 + 5 + 4


def test_rows_that_are_alike_and_answers_that_go_on_from_others_are_told_apart() -> None:
    rows = [PackedRow([1, 2], [[4], [4, 5], [4, 5, 6]]), PackedRow([1, 2], [[4, 5]]), PackedRow([1, 2, 4], [[5], [5]])]
    assert pack(rows, 0)["input_ids"].tolist() == [[1, 2, 4, 5]]
    assert largest_difference(LLAMA, rows) < 1e-5


@given(st.lists(st.integers(1, 400), min_size=1, max_size=30))
def test_every_row_stands_in_one_line_that_holds_it(lengths: list[int]) -> None:
    lines = logprobs._lines(lengths, 300)
    assert sorted(i for line in lines for i in line) == list(range(len(lengths)))
    filled = [sum(lengths[i] for i in line) for line in lines]
    assert max(filled) <= max(300, *lengths)
    assert max(filled) - min(filled) <= max(lengths)


def test_the_mask_lets_a_token_see_what_is_on_its_way_and_itself() -> None:
    end = torch.tensor(
        [[7, 5, 4, 4, 5, 7, 7, 8]]
    )  # 0 is common, 1 a prompt with answers 2-3 and 4, 5-6 another, 7 padding
    assert block_mask(end)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 0],
        [1, 0, 0, 0, 0, 1, 0, 0],
        [1, 0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 1],
    ]


def test_padding_gets_log_probability_zero_and_belongs_to_no_answer() -> None:
    out = packed(LLAMA, [PackedRow([1], [[2]]), PackedRow([1], [[2, 3, 4]])])
    assert out.logp_BA[0, 1:].tolist() == [0, 0]
    assert out.answer_BA[0].tolist() == [0, PADDING, PADDING]


def test_an_empty_prompt_is_refused_with_its_row() -> None:
    with pytest.raises(ValueError, match=r"rows \[1\] have an empty prompt"):
        pack([PackedRow([1], [[2]]), PackedRow([], [[2]])], 0)


def test_masked_mean_divides_by_the_marked_tokens_and_names_rows_without() -> None:
    numbers = torch.tensor([[1.0, 3.0, 100.0], [5.0, 100.0, 100.0]])
    marks = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(numbers, marks).tolist() == [2, 5]
    with pytest.raises(ValueError, match=r"rows \[0\] have no answer token"):
        masked_mean(numbers, torch.tensor([[False] * 3, [True] * 3]))


def test_packed_row_takes_the_prompt_of_the_first_encoding() -> None:
    assert logprobs.packed_row([Encoded([1, 2], [3]), Encoded([1, 2], [4, 5])]) == PackedRow([1, 2], [[3], [4, 5]])


def test_layers_that_no_mask_can_part_are_refused() -> None:
    model = tiny("qwen2")
    model.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(InputError, match="qwen2: its layers of the kind linear_attention"):
        packed(model, some_rows())
