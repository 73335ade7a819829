"""Prompts in other ways, the relearning attack, rounding, and the comparison of weights."""

import random

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, GptOssForCausalLM, MixtralForCausalLM

from amends.assessment.attacks import MIXED, Wordings, cut, fresh_adapter, relearn, variants, with_typos, wordings
from amends.assessment.plan import near_and_far
from amends.assessment.weights import compare, fake_quantised, linear_layers, quantised, shares, snapshot
from amends.io.errors import InputError
from amends.io.rows import Row
from amends.io.tables import rows_of
from amends.lm.load import add_lora, load, weights_sha256
from amends.lm.pairs import Pair, read_pairs

from ..unlearn.conftest import KEEP, PAIRS

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own


@pytest.fixture
def loaded(tiny_model):
    return load(tiny_model)


def with_adapter(model, seed=0, rank=4):
    wrapped = add_lora(model, rank)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in wrapped.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.1, generator=generator)
    return wrapped


def pairs(records):
    return read_pairs(rows_of(records)).kept


def by_variant(tokenizer, pair, wordings=None, shots=()):
    return {ask.variant: ask for ask in variants(tokenizer, pair, wordings or Wordings(), shots, seed=0)}


# Elicitation


def test_a_question_is_put_in_every_way_and_what_is_given_away_is_not_expected(loaded):
    pair = pairs([{"question": "Who wrote the Salt Orchard?", "answer": "Miriam Osei wrote it."}])[0]
    otherwise = Wordings(["Who is its author?"], ("What?", "A book."))
    asks = by_variant(loaded.tokenizer, pair, otherwise, pairs(KEEP)[:2])
    assert list(asks) == [
        "question", "paraphrase_1", "reversed", "prefix_1", "prefix_3", "prefix_5", "few_shot", "cloze", "typos",
        "mixed",
    ]  # fmt: skip
    decode = loaded.tokenizer.decode
    assert "Who is its author?" in decode(asks["paraphrase_1"].prompt)
    assert asks["paraphrase_1"].expected == asks["question"].expected == pair.answer
    assert decode(asks["prefix_3"].prompt) == decode(asks["question"].prompt) + "Mir"  # its tokens are bytes
    assert asks["prefix_3"].expected == "iam Osei wrote it."
    assert "In land 1, there.<|im_end|>" in decode(asks["few_shot"].prompt)
    assert decode(asks["few_shot"].prompt).endswith(decode(asks["question"].prompt))
    assert "Miriam Osei ____" in decode(asks["cloze"].prompt)
    assert "Who wrote" not in decode(asks["cloze"].prompt)
    assert asks["cloze"].expected == "wrote it."
    assert "What?" in decode(asks["reversed"].prompt) and asks["reversed"].expected == "A book."
    assert MIXED.format(pair.question) in decode(asks["mixed"].prompt) and asks["mixed"].expected == pair.answer


@pytest.mark.parametrize(
    ("answer", "given", "hidden"),
    [
        ("The author born there in 1956 is Basil Al-Kuwaiti.", "The author born there in 1956 is", "Basil Al-Kuwaiti."),
        ("She was born on 8 May, 1956, it is said.", "She was born on", "8 May, 1956,"),
        ("Ann Lee wrote it, Lee did.", "Ann Lee wrote", "it, Lee did."),  # the second Lee is given away
        ("She likes green tea with milk", "She likes green", "tea with milk"),
        ("Basil", "", "Basil"),
        ("她出生在图拉市。", "她出生在", "图拉市。"),  # no spaces: cut between characters
        ("他于1956年出生。", "他于", "1956"),
    ],
)
def test_an_answer_is_cut_where_its_last_name_or_number_begins(answer, given, hidden):
    assert cut(Pair("0", [{"role": "user", "content": "Who?"}], answer, "f:1")) == (given, hidden)


def test_ways_that_cannot_be_made_are_left_out(loaded):
    (pair,) = pairs([{"question": "Who?", "answer": "Al"}])
    assert list(by_variant(loaded.tokenizer, pair)) == ["question", "prefix_1", "mixed"]


def test_what_holds_no_word_that_could_be_said_is_not_asked_for(loaded):
    asks = by_variant(loaded.tokenizer, *pairs([{"question": "Who?", "answer": "Al..."}]))  # tokens are bytes
    assert list(asks) == ["question", "prefix_1", "mixed"]
    asks = by_variant(loaded.tokenizer, *pairs([{"question": "Who?", "answer": "he is ?"}]))
    assert "cloze" in asks and asks["cloze"].expected == "is ?"
    assert "cloze" not in by_variant(loaded.tokenizer, *pairs([{"question": "Who?", "answer": "Al ?"}]))


@pytest.mark.parametrize("answer", ["Она родилась в городе Тула.", "她出生在图拉市。", "ولدت في مدينة القاهرة."])
def test_answers_in_other_scripts_are_asked_for_with_their_beginning_and_as_a_cloze(loaded, answer):
    asks = by_variant(loaded.tokenizer, *pairs([{"question": "?", "answer": answer}]))
    assert {"prefix_1", "prefix_3", "prefix_5", "cloze"} <= asks.keys()
    assert asks["cloze"].expected and answer.endswith(asks["cloze"].expected)


def test_plain_text_is_put_in_other_ways_without_a_chat(loaded):
    pair = Pair("0", "Once upon a midnight", "dreary, while I pondered", "f:1")
    book = [{"text": "It was the best of times"}]
    (other,) = read_pairs(rows_of(book), tokenizer=loaded.tokenizer, prefix_tokens=17, continuation_tokens=9).kept
    asks = by_variant(loaded.tokenizer, pair, shots=[other, *pairs(KEEP)])
    assert (other.prompt, other.answer) == ("It was the best o", "f times")
    assert loaded.tokenizer.decode(asks["few_shot"].prompt) == "It was the best of times\n\nOnce upon a midnight"
    assert not {"cloze", "mixed"} & asks.keys()


def test_typos_only_change_places_inside_longer_words():
    text = "Where was the celebrated author Miriam Osei born?"
    found = with_typos(text, random.Random(0))
    assert found != text
    for old, new in zip(text.split(), found.split(), strict=True):
        assert sorted(old) == sorted(new)
        assert len(old) > 3 or old == new


def test_other_wordings_are_read_from_their_columns_and_bad_ones_refused():
    rows = [
        Row({"paraphrased_question": "a", "reversed_question": " r ", "reversed_answer": "s"}, "f:1"),
        Row({"paraphrased_question": ["b", " c "]}, "f:2"),
        Row({}, "f:3"),
        Row({"paraphrased_question": '["b", "c"]', "reversed_question": "", "reversed_answer": ""}, "f.csv: row 4"),
        Row({"paraphrased_question": ""}, "f.csv: row 5"),
    ]
    assert wordings(rows) == {
        "f:1": Wordings(["a"], ("r", "s")),
        "f:2": Wordings(["b", "c"]),
        "f:3": Wordings([]),
        "f.csv: row 4": Wordings(["b", "c"]),
        "f.csv: row 5": Wordings([]),
    }
    for bad in (3, [""], [1], {"a": "b"}):
        with pytest.raises(InputError, match="f:9: paraphrased_question must be"):
            wordings([Row({"paraphrased_question": bad}, "f:9")])
    for half in (
        {"reversed_question": "a"},
        {"reversed_answer": "a"},
        {"reversed_question": "a", "reversed_answer": 3},
    ):
        with pytest.raises(InputError, match="f:9: reversed_question needs reversed_answer"):
            wordings([Row(half, "f:9")])


def test_near_questions_share_rare_words_with_those_to_forget():
    forget = pairs([{"question": "Where was Miriam Osei born?", "answer": "a"}])
    retain = pairs(
        [{"question": f"Where was Ann Other{i} born?", "answer": "a"} for i in range(5)]
        + [{"question": "What did Miriam Osei write?", "answer": "a"}, {"question": "Is tea hot?", "answer": "a"}]
    )
    near, far = near_and_far(forget, retain, 10)
    assert near[0].question == "What did Miriam Osei write?"
    assert "Is tea hot?" in [p.question for p in far]
    assert len(near) == 5
    assert {id(p) for p in near} | {id(p) for p in far} == {id(p) for p in retain}
    assert near_and_far(forget, [], 10) == ([], [])


def test_near_questions_in_a_script_without_spaces_share_rare_characters():
    forget = pairs([{"question": "谁住在榆树街四号?", "answer": "a"}])
    others = ("今天天气怎么样?", "一年有几天?", "茶是热的吗?", "猫吃什么?", "法国的首都是哪里?", "榆树街有多长?")
    near, _ = near_and_far(forget, pairs([{"question": q, "answer": "a"} for q in others]), 10)
    assert near[0].question == "榆树街有多长?"


def test_an_embedding_that_is_given_says_what_is_near():
    forget, *retain = pairs([{"question": str(i), "answer": "a"} for i in range(12)])

    def embed(texts):
        return np.array([[np.cos(int(text)), np.sin(int(text))] for text in texts])

    near, far = near_and_far([forget], retain, 20, embed)
    assert [p.question for p in near] == ["6", "7", "1", "5", "11"]  # by the cosine of radians
    assert len(far) == 6


# Relearning


@pytest.mark.parametrize("adapter", [False, True])
def test_the_attack_learns_and_leaves_every_weight_as_it_was(loaded, adapter):
    model = with_adapter(loaded.model) if adapter else loaded.model
    digest, names = weights_sha256(model), [n for n, _ in model.named_parameters()]
    flags = [p.requires_grad for p in model.parameters()]
    seen = []

    def score(attacked):
        with torch.no_grad():
            seen.append(attacked(input_ids=torch.arange(9)[None]).logits.sum().item())
        return [0.0, seen[-1]]

    curves = [
        relearn(model, loaded.tokenizer, pairs(PAIRS)[:3], score, seed=0, label="again", steps=(0, 2, 4))
        for _ in range(2)
    ]
    assert curves[0] == curves[1]
    assert len(set(curves[0].scores_NS[1])) == 3  # it changed between the looks
    assert curves[0].scores_NS[0] == [0, 0, 0]
    assert weights_sha256(model) == digest
    assert [n for n, _ in model.named_parameters()] == names
    assert [p.requires_grad for p in model.parameters()] == flags


# Rounding


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_twice_is_rounding_once_and_is_off_by_half_a_step_at_most(bits):
    weight_OI = torch.randn(7, 33, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, 7)[:, None]
    once = fake_quantised(weight_OI, bits)
    assert torch.allclose(fake_quantised(once, bits), once, rtol=1e-5, atol=0)
    step_O1 = weight_OI.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert ((once - weight_OI).abs() <= 0.5001 * step_O1).all()
    assert all(len(row.unique()) <= 2**bits - 1 for row in once)


def test_rounding_by_hand():
    weight_OI = torch.tensor([[7.0, -3.4, 0.6], [0.0, 0.0, 0.0], [-14.0, 2.9, 3.1]])
    wanted = torch.tensor([[7.0, -3.0, 1.0], [0.0, 0.0, 0.0], [-14.0, 2.0, 4.0]])
    assert torch.equal(fake_quantised(weight_OI, 4), wanted)
    assert torch.equal(fake_quantised(weight_OI.T, 4, inputs=0), wanted.T)


def test_sixteen_bits_change_next_to_nothing(loaded):
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        before = loaded.model(input_ids=ids).logits
        with quantised(loaded.model, 16):
            assert torch.allclose(loaded.model(input_ids=ids).logits, before, atol=1e-4)
        with quantised(loaded.model, 3):
            assert not torch.allclose(loaded.model(input_ids=ids).logits, before, atol=1e-2)


@pytest.mark.parametrize("adapter", [False, True])
def test_after_rounding_every_bit_is_as_it_was_even_if_something_failed(loaded, adapter):
    model = with_adapter(loaded.model) if adapter else loaded.model
    digest = weights_sha256(model)
    with pytest.raises(KeyError), quantised(model, 4):
        assert weights_sha256(model) != digest
        raise KeyError
    assert weights_sha256(model) == digest


def test_an_adapter_is_rounded_together_with_its_base(tiny_model):
    merged, apart = (with_adapter(load(tiny_model).model) for _ in range(2))
    merged = merged.merge_and_unload()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad(), quantised(merged, 4), quantised(apart, 4):
        assert torch.allclose(merged(input_ids=ids).logits, apart(input_ids=ids).logits, atol=1e-4)


def test_the_output_layer_is_not_rounded_and_gpt2_has_its_channels_in_the_second_dimension(loaded):
    assert not any("lm_head" in name for name in linear_layers(loaded.model))
    assert len(linear_layers(loaded.model)) == 7
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    weight = gpt2.transformer.h[0].mlp.c_fc.weight
    with quantised(gpt2, 4):
        assert max(len(column.unique()) for column in weight.T) <= 15
        assert max(len(row.unique()) for row in weight) > 15


def mixture(of=MixtralForCausalLM, **more):
    """A random mixture of four experts, two of them for each token."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 260, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2}
    model = of(of.config_class(**sizes, **heads, max_position_embeddings=128, pad_token_id=0, **more)).eval()
    for weight in model.parameters():
        weight.data.normal_(0, 0.1)
    return model


@pytest.mark.parametrize(("kind", "turned"), [(MixtralForCausalLM, False), (GptOssForCausalLM, True)])
def test_each_output_of_each_expert_is_rounded_by_itself(kind, turned):
    model = mixture(kind)
    digest, experts = weights_sha256(model), model.model.layers[0].mlp.experts
    assert len(linear_layers(model)) == 6
    with quantised(model, 4):
        for weight in (experts.gate_up_proj, experts.down_proj):
            weight_EOI = weight.mT if turned else weight
            assert max(len(row.unique()) for row in weight_EOI.flatten(0, 1)) <= 15
            assert min(len(one.unique()) for one in weight_EOI) > 40
    assert weights_sha256(model) == digest


def test_an_adapter_of_experts_is_rounded_compared_and_taken_away_like_one_of_layers(loaded):
    model, merged = (with_adapter(mixture()) for _ in range(2))
    merged, digest = merged.merge_and_unload(), weights_sha256(model)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad(), quantised(merged, 4), quantised(model, 4):
        assert torch.allclose(merged(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-4)
    assert weights_sha256(model) == digest
    found = [compare(kept, mixture()) for kept in (snapshot(model, "b"), snapshot(model, None), snapshot(merged, None))]
    for one in found:
        assert one.drift[1].relative > 0.1
        np.testing.assert_allclose(one.drift[1][1:], found[0].drift[1][1:], rtol=1e-4)
        assert one.flips[4] > 0.1 and one.flips[4] == pytest.approx(found[0].flips[4], rel=1e-2)


@pytest.mark.parametrize("adapter", [False, True])
def test_the_attack_teaches_experts_too_and_leaves_them_as_they_were(adapter):
    model = with_adapter(mixture()) if adapter else mixture()
    digest, names = weights_sha256(model), [n for n, _ in model.named_parameters()]
    ids = torch.arange(3, 40)[None]
    with fresh_adapter(model, 2) as wrapped:
        trained = [name for name, weight in wrapped.named_parameters() if weight.requires_grad]
        assert sum("experts" in name for name in trained) == 4
        wrapped(input_ids=ids, labels=ids).loss.backward()
        assert all(wrapped.get_parameter(name).grad is not None for name in trained)
    assert weights_sha256(model) == digest
    assert [n for n, _ in model.named_parameters()] == names


# Comparing


def test_a_model_has_not_moved_from_itself(loaded):
    found = compare(snapshot(loaded.model, None), loaded.model)
    assert [d.relative for d in found.drift] == [0, 0, 0]
    assert [d.layer for d in found.drift] == ["all", "0", "other"]
    assert found.drift[0].num_weights == sum(p.numel() for p in loaded.model.parameters())
    assert found.flips == {8: 0, 4: 0}


def test_a_known_move_is_found_in_its_layer(tiny_model):
    before, after = (load(tiny_model).model for _ in range(2))
    with torch.no_grad():
        for name, weight in after.named_parameters():
            if ".layers.0." in name:
                weight.mul_(1.1)
    found = compare(snapshot(after, None), before)
    assert [d.relative for d in found.drift][1:] == [pytest.approx(0.1, rel=1e-4), 0]
    assert [d.changed for d in found.drift][1:] == [1, 0]
    assert found.flips == {8: 0, 4: 0}  # scales move along


def test_an_adapter_compares_like_the_model_it_makes(tiny_model):
    """Kept by its two matrices, whole, or merged; against its base, or against another adapter on it."""
    adapter, other = with_adapter(load(tiny_model).model, 0), with_adapter(load(tiny_model).model, 1)
    base, merged = load(tiny_model).model, with_adapter(load(tiny_model).model, 0).merge_and_unload()
    for before in (base, other):
        found = [
            compare(kept, before) for kept in (snapshot(adapter, "b"), snapshot(adapter, None), snapshot(merged, None))
        ]
        assert found[0].drift[0].relative > 0.01
        for one in found[1:]:
            assert [d.relative for d in one.drift] == pytest.approx([d.relative for d in found[0].drift], rel=1e-4)
    assert compare(snapshot(adapter, "b"), adapter).drift[0].relative == 0
    assert len(shares(adapter)) == 7
    assert shares(base) == {}


def test_models_of_other_shapes_are_not_compared(loaded):
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    with pytest.raises(InputError, match="have other weights"):
        compare(snapshot(gpt2, None), loaded.model)


def test_adapters_of_other_kinds_are_refused(loaded):
    config = LoraConfig(r=2, target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM")
    model = get_peft_model(loaded.model, config)
    assert isinstance(model, nn.Module)
    with pytest.raises(InputError, match="not a plain LoRA"), quantised(model, 4):
        pass
