"""A planted world: what FLAT and its rivals do to a model of which everything is known.

A small Llama learns facts about entities, refusals for entities it was told nothing of, and a bigram language that
stands for text in general. Some entities are then forgotten. The bars were set before this test was written.
"""

import math
import random
import warnings
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from amends.lm.generate import generate
from amends.lm.pairs import encode
from amends.lm.trainer import training_arguments
from amends.unlearn import FLATConfig, FLATTrainer, GATrainer
from amends.unlearn._config import ForgetConfig
from amends.unlearn.dpo import DPOConfig, DPOTrainer
from amends.unlearn.npo import NPOConfig, NPOTrainer
from amends.unlearn.po import POTrainer
from amends.unlearn.simnpo import SimNPOConfig, SimNPOTrainer

ENTITIES, STRANGERS, RELATIONS, ANSWER_TOKENS, FORGOTTEN = 40, 40, 4, 5, 12
REFUSALS = ["i do not know this", "nobody told me about it", "that is not known here"]
SPECIAL = ["<pad>", "<eos>", "Question", "Answer", ":"]
METHODS: dict[str, tuple[Any, Any]] = {
    "flat": (FLATTrainer, FLATConfig),
    "ga": (GATrainer, ForgetConfig),
    "npo": (NPOTrainer, NPOConfig),
    "simnpo": (SimNPOTrainer, SimNPOConfig),
    "po": (POTrainer, ForgetConfig),
    "dpo": (DPOTrainer, DPOConfig),
}
WORDS = sorted({word for refusal in REFUSALS for word in refusal.split()})
FACT_WORDS = [f"f{i}" for i in range(40)]
TEXT_WORDS = [f"t{i}" for i in range(40)]


class World(NamedTuple):
    tokenizer: PreTrainedTokenizerBase
    model: LlamaForCausalLM
    facts: list[dict[str, str]]
    """Those of one entity stand together, the forgotten entities first."""
    text_BT: torch.Tensor
    """Sentences of the bigram language that were not learnt from."""

    @property
    def forget(self) -> list[dict[str, str]]:
        return self.facts[: FORGOTTEN * RELATIONS]


def make_tokenizer() -> PreTrainedTokenizerBase:
    names = [f"e{i}" for i in range(ENTITIES)] + [f"s{i}" for i in range(STRANGERS)]
    words = [*SPECIAL, *names, *(f"r{i}" for i in range(RELATIONS)), *WORDS, *FACT_WORDS, *TEXT_WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def sentences(tokenizer: PreTrainedTokenizerBase, count: int, draw: random.Random) -> torch.Tensor:
    """Walks of 16 words, each followed by one of four; the same language whatever the draw."""
    language = random.Random("language")
    follows = {word: language.sample(TEXT_WORDS, 4) for word in TEXT_WORDS}
    walks = []
    for _ in range(count):
        walk = [draw.choice(TEXT_WORDS)]
        while len(walk) < 16:
            walk.append(draw.choices(follows[walk[-1]], [8, 4, 2, 1])[0])
        walks.append(tokenizer.convert_tokens_to_ids(walk))
    return torch.tensor(walks)


def ids_of(tokenizer: PreTrainedTokenizerBase, record: dict[str, str]) -> tuple[list[int], list[int]]:
    prompt = [{"role": "user", "content": record["question"]}]
    return tuple(encode(tokenizer, prompt, [record["answer"]])[0])


def make_world(seed: int) -> World:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    facts = [
        {"question": f"r{r} e{e}", "answer": " ".join(draw.choices(FACT_WORDS, k=ANSWER_TOKENS))}
        for e in range(ENTITIES)
        for r in range(RELATIONS)
    ]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=350)
    for _ in range(350):
        strangers = [
            {"question": f"r{draw.randrange(RELATIONS)} s{draw.randrange(STRANGERS)}", "answer": draw.choice(REFUSALS)}
            for _ in range(16)
        ]
        asked = [ids_of(tokenizer, record) for record in [*draw.sample(facts, 64), *strangers]]
        asked_BT = torch.tensor([prompt + answer for prompt, answer in asked])
        labels_BT = asked_BT.clone()
        labels_BT[:, : len(asked[0][0])] = -100
        text_BT = sentences(tokenizer, 16, draw)
        loss = model(input_ids=asked_BT, labels=labels_BT).loss + model(input_ids=text_BT, labels=text_BT).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return World(tokenizer, model.eval(), facts, sentences(tokenizer, 64, random.Random(f"unseen {seed}")))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield make_world(0)
    torch.set_num_threads(threads)


def replies(world: World, model: Any, records: list[dict[str, str]]) -> list[str]:
    prompts = [ids_of(world.tokenizer, record)[0] for record in records]
    return generate(model, world.tokenizer, prompts, stop_ids=[1], max_new_tokens=8, batch_size=256)


def exact_match(world: World, model: Any, records: list[dict[str, str]]) -> float:
    found = zip(replies(world, model, records), records, strict=True)
    return sum(reply == record["answer"] for reply, record in found) / len(records)


def refused(world: World, model: Any, records: list[dict[str, str]]) -> float:
    return sum(reply in REFUSALS for reply in replies(world, model, records)) / len(records)


def perplexity(world: World, model: Any) -> float:
    with torch.no_grad():
        return math.exp(min(700.0, model(input_ids=world.text_BT, labels=world.text_BT).loss.item()))


def forget(world: World, method: str, folder: Path, **own: Any) -> Any:
    """Sixty steps of batch 8 at a learning rate of 1e-3."""
    settings = {
        "per_device_train_batch_size": 8,
        "max_steps": 60,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    } | own
    model = deepcopy(world.model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="v_f starts at")
        trainer_class, config = METHODS[method]
        args = training_arguments(config, str(folder), **settings)
        templates = REFUSALS if trainer_class.takes_templates else None
        trainer = trainer_class(model, args, world.forget, world.tokenizer, templates=templates)
        trainer.train()
    return trainer.model.eval()


def test_the_world_is_learnt(world: World) -> None:
    assert exact_match(world, world.model, world.facts) >= 0.99
    strangers = [{"question": f"r1 s{i}", "answer": ""} for i in range(STRANGERS)]
    assert refused(world, world.model, [s | {"answer": REFUSALS[0]} for s in strangers]) == 1
    assert perplexity(world, world.model) < 4  # four words may follow each, most often two


def test_flat_forgets_and_refuses_while_gradient_ascent_ruins_the_model(world: World, tmp_path: Path) -> None:
    start = perplexity(world, world.model)
    flat, ascent = forget(world, "flat", tmp_path), forget(world, "ga", tmp_path)
    assert exact_match(world, flat, world.forget) <= 0.05
    assert exact_match(world, ascent, world.forget) <= 0.05
    assert refused(world, flat, world.forget) >= 0.9
    assert perplexity(world, flat) / start < 3
    assert perplexity(world, ascent) / start > 50


def test_the_rivals_ruin_and_refuse_in_the_order_that_is_known(world: World, tmp_path: Path) -> None:
    """On a larger world of this kind, perplexity grew x372 by GA, x43 by NPO, x1.2 by SimNPO (seed 0, same steps)."""
    start = perplexity(world, world.model)
    models_ = {method: forget(world, method, tmp_path) for method in ("npo", "simnpo", "po", "dpo")}
    for model in models_.values():
        assert exact_match(world, model, world.forget) <= 0.05
    ratio = {method: perplexity(world, model) / start for method, model in models_.items()}
    assert 5 < ratio["npo"] < 50  # gradient ascent is beyond, see above
    assert ratio["simnpo"] < 2
    assert [refused(world, models_[method], world.forget) >= 0.9 for method in models_] == [False, False, True, True]
