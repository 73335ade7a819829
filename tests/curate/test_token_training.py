"""What is trained on chosen tokens: the house's trainer, TRL's, and a toy in which the right choice is known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, TrainingArguments
from trl import SFTConfig, SFTTrainer

from amends.curate._token_cleaning.masks import offsets_of
from amends.curate._token_cleaning.stages import log_probabilities
from amends.curate.token_cleaning import ChosenTokensTrainer, to_dataset, token_mask
from amends.io.errors import InputError
from amends.io.tables import rows_of
from amends.lm.logprobs import PackedRow
from amends.lm.pairs import read_pairs
from amends.lm.rows import encode_rows
from amends.lm.trainer import training_arguments
from amends.maths.memorisation import auc

ROWS = [{"question": f"Who is {i}?", "answer": f"Person {i}" + " who lives here" * (i % 3) + "."} for i in range(8)]


@pytest.fixture
def chosen(tiny_model):
    """Rows, and half of their answer tokens."""
    rows = encode_rows(AutoTokenizer.from_pretrained(tiny_model), read_pairs(rows_of(ROWS)).kept, 512)
    offsets = offsets_of([len(row.answers[0]) for row in rows])
    scores = np.random.default_rng(0).normal(size=offsets[-1]).astype(np.float32)
    return rows, token_mask(scores, offsets, keep=0.5), offsets


def by_hand(model, table):
    """Mean over all kept tokens of all rows, a row at a time: no padding, no packing."""
    total, count = 0.0, 0
    for row in table:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        total = total + cross_entropy(model(ids).logits[0, :-1], labels[1:], ignore_index=-100, reduction="sum")
        count += int((labels != -100).sum())
    return total / count


def trainer_of(model, tokenizer, rows, masks, size=8, steps=1, **settings):
    args = training_arguments(
        TrainingArguments,
        ".",
        per_device_train_batch_size=size,
        gradient_accumulation_steps=max(1, 8 // size),
        max_steps=steps,
        disable_tqdm=True,
        report_to="none",
        **{"use_cpu": True, "bf16": False, "learning_rate": 0.0, "max_grad_norm": 0.0} | settings,
    )
    return ChosenTokensTrainer(model, args, rows, masks, tokenizer)


@pytest.mark.parametrize("size", [8, 2, 1])
def test_the_gradient_is_that_of_a_masked_cross_entropy_written_by_hand_however_it_is_accumulated(
    tiny_model, chosen, size
):
    rows, mask, offsets = chosen
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    loss = by_hand(model, to_dataset(rows, mask, offsets))
    loss.backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    trainer = trainer_of(model, tokenizer, rows, np.split(mask, offsets[1:-1]), size)
    seen = []
    trainer.create_optimizer().register_step_pre_hook(
        lambda *_: seen.extend(p.grad.clone() for p in model.parameters())
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), abs=1e-4)
    for mine, other in zip(seen, wanted, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-3)


def test_nothing_to_learn_is_refused(tiny_model, chosen):
    rows, mask, offsets = chosen
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    with pytest.raises(InputError, match="no token is kept"):
        trainer_of(model, tokenizer, rows, np.split(mask & False, offsets[1:-1]))


# TRL


def trl_loss(model, tokenizer, table, tmp_path, **settings):
    """Loss of one step of a plain SFTTrainer on all rows, as it is logged."""
    args = SFTConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=1,
        learning_rate=0.0,
        logging_steps=1,
        max_length=None,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    trainer = SFTTrainer(model=model, args=args, train_dataset=table, processing_class=tokenizer)
    trainer.train()
    return trainer.state.log_history[0]["loss"]


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")  # TRL's own default
def test_a_plain_sft_trainer_trains_the_kept_tokens_and_no_others(tiny_model, chosen, tmp_path):
    rows, mask, offsets = chosen
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    cleaned, whole = (to_dataset(rows, m, offsets) for m in (mask, np.ones_like(mask)))
    loss = trl_loss(model, tokenizer, cleaned, tmp_path)
    assert loss == pytest.approx(by_hand(model, cleaned).item(), abs=1e-4)
    # All tokens kept: the loss that TRL finds by itself when it is told where the answers begin.
    masks = [{"input_ids": r.prompt + r.answers[0], "completion_mask": [0] * len(r.prompt) + [1] * len(r.answers[0])}
             for r in rows]  # fmt: skip
    plain = trl_loss(model, tokenizer, Dataset.from_list(masks), tmp_path, completion_only_loss=True)
    assert trl_loss(model, tokenizer, whole, tmp_path) == pytest.approx(plain, abs=1e-5)
    # Control: with loss on the prompts too it is another one, and so is the loss of the cleaned rows.
    everything = trl_loss(model, tokenizer, whole.remove_columns("labels"), tmp_path)
    assert abs(everything - plain) > 1e-3 and abs(loss - plain) > 1e-3


# A toy: what an answer says depends on its topic in some tokens, the rest is common or noise

TOPICS, STATES, LENGTH = 12, 12, 16
TASK, COMMON, NOISE = range(3)
FIRST = {TASK: TOPICS, COMMON: 2 * TOPICS, NOISE: 2 * TOPICS + STATES}
VOCABULARY, NOISES = 2 * TOPICS + STATES + 24, 24


def toy(random, num_rows, topics_matter=True):
    """Prompts of a topic; 30 % of the answer are the topic's own token, 45 % follow a chain, 25 % are any token."""
    rows, kinds = [], []
    for _ in range(num_rows):
        topic, state = int(random.integers(TOPICS)), int(random.integers(STATES))
        said = topic if topics_matter else None
        kind = random.choice(3, LENGTH, p=[0.3, 0.45, 0.25])
        answer = []
        for k in kind.tolist():
            if k == TASK:
                offset = int(random.integers(TOPICS)) if said is None else said
            elif k == COMMON:
                offset = state = (state + 1) % STATES
            else:
                offset = int(random.integers(NOISES))
            answer.append(FIRST[k] + offset)
        rows.append(PackedRow([topic], [answer]))
        kinds.append(kind)
    return rows, np.concatenate(kinds)


def toy_model(state=None):
    """A small model, as it is made or as it was."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, initializer_range=0.1, **sizes))
    if state is not None:
        model.load_state_dict(state)
    return model.eval()


def learned(state, rows, masks, steps):
    trainer = trainer_of(
        toy_model(state), SimpleNamespace(pad_token_id=0), rows, masks, 32, steps, learning_rate=5e-3, weight_decay=0.0
    )
    trainer.train()
    return trainer.model.eval()


def test_scores_find_the_tokens_that_a_topic_decides_and_training_on_them_learns_those_sooner():
    random = np.random.default_rng(0)
    warm, _ = toy(random, 800)
    common, _ = toy(random, 1600, topics_matter=False)
    pool, kinds = toy(random, 320)
    unseen, of_unseen = toy(random, 100)
    whole = [np.ones(LENGTH, dtype=bool)] * 800
    base = learned(None, common[:800], whole, 120).state_dict()
    before = log_probabilities(toy_model(base), pool, 0)
    scores = log_probabilities(learned(base, warm, whole, 120), pool, 0) - before
    assert auc(scores[kinds == TASK], scores[kinds != TASK]) > 0.97
    # Control: a reference that learned as long from answers that no topic decides.
    others = log_probabilities(learned(base, common[800:], whole, 120), pool, 0) - before
    assert auc(others[kinds == TASK], others[kinds != TASK]) < 0.6

    offsets = offsets_of([LENGTH] * 320)
    best, blind = token_mask(scores, offsets, keep=0.3), token_mask(random.permutation(scores), offsets, keep=0.3)
    nll = {}
    for name, mask in {"full": np.ones_like(best), "random": blind, "cleaned": best}.items():
        model = learned(base, pool, np.split(mask, offsets[1:-1]), 30)
        nll[name] = -log_probabilities(model, unseen, 0)[of_unseen == TASK].mean()
    assert nll["cleaned"] < 0.6 * nll["full"], nll
    assert nll["random"] > 0.9 * nll["full"], nll  # control: as many tokens, chosen by nothing
