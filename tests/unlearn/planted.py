"""A planted world for assessments: models of which is known what they know, and in which way they "forgot".

A small Llama learns facts about entities, each asked in two ways, refusals for strangers, and a bigram language. The
facts of some entities are to be forgotten; those of others were never taught (holdout).
"""

import random
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from amends.assessment.weights import buckets, linear_layers
from amends.lm.pairs import Encoded, encode
from amends.lm.trainer import training_arguments
from amends.unlearn import GATrainer
from amends.unlearn._config import ForgetConfig

FORGOTTEN, KEPT, UNSEEN, STRANGERS, RELATIONS, ANSWER_TOKENS = 8, 16, 8, 16, 2, 5
REFUSALS = ["i do not know this", "nobody told me about it", "that is not known here"]
SPECIAL = ["<pad>", "<eos>", "Question", "Answer", ":"]
REFUSAL_WORDS = sorted({word for refusal in REFUSALS for word in refusal.split()})
FACT_WORDS = [f"f{i}" for i in range(40)]
TEXT_WORDS = [f"t{i}" for i in range(20)]
STEPS = 140


class World(NamedTuple):
    tokenizer: PreTrainedTokenizerBase
    before: LlamaForCausalLM
    retrained: LlamaForCausalLM
    forget: list[dict[str, str]]
    retain: list[dict[str, str]]
    holdout: list[dict[str, str]]
    texts: list[str]


def make_tokenizer() -> PreTrainedTokenizerBase:
    names = [f"e{i}" for i in range(FORGOTTEN + KEPT + UNSEEN)] + [f"s{i}" for i in range(STRANGERS)]
    relations = [f"{kind}{i}" for kind in "rq" for i in range(RELATIONS)]
    words = [*SPECIAL, *names, *relations, *REFUSAL_WORDS, *FACT_WORDS, *TEXT_WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def walks(count: int, draw: random.Random) -> list[str]:
    """Sentences of 12 words, each word followed by one of three; the same language whatever the draw."""
    language = random.Random("language")
    follows = {word: language.sample(TEXT_WORDS, 3) for word in TEXT_WORDS}
    found = []
    for _ in range(count):
        walk = [draw.choice(TEXT_WORDS)]
        while len(walk) < 12:
            walk.append(draw.choices(follows[walk[-1]], [6, 3, 1])[0])
        found.append(" ".join(walk))
    return found


@cache
def encoded(tokenizer: PreTrainedTokenizerBase, question: str, answer: str) -> Encoded:
    """The same questions come up in every step."""
    return encode(tokenizer, [{"role": "user", "content": question}], [answer])[0]


def batch_of(tokenizer: PreTrainedTokenizerBase, asked: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    """Questions with their answers, all of one length but the refusals, which are padded."""
    rows = [encoded(tokenizer, question, answer) for question, answer in asked]
    width = max(len(row.prompt) + len(row.answer) for row in rows)
    ids, labels = torch.zeros(len(rows), width, dtype=torch.int64), torch.full((len(rows), width), -100)
    for i, row in enumerate(rows):
        start, end = len(row.prompt), len(row.prompt) + len(row.answer)
        ids[i, :end] = torch.tensor(row.prompt + row.answer)
        labels[i, start:end] = ids[i, start:end]
    return {"input_ids": ids, "labels": labels}


def both_ways(facts: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(fact[column], fact["answer"]) for fact in facts for column in ("question", "paraphrased_question")]


def strangers(draw: random.Random) -> list[tuple[str, str]]:
    return [(f"r{draw.randrange(RELATIONS)} s{i}", draw.choice(REFUSALS)) for i in range(STRANGERS)]


def taught(tokenizer: PreTrainedTokenizerBase, facts: list[dict[str, str]], seed: int) -> LlamaForCausalLM:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=STEPS)
    for _ in range(STEPS):
        text_BT = torch.tensor([tokenizer(w, add_special_tokens=False)["input_ids"] for w in walks(8, draw)])
        asked = batch_of(tokenizer, [*both_ways(facts), *strangers(draw)])
        loss = model(**asked).loss + model(input_ids=text_BT, labels=text_BT).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def make_world(seed: int = 0) -> World:
    draw = random.Random(seed)
    tokenizer = make_tokenizer()
    facts = [
        {
            "question": f"r{r} e{e}",
            "paraphrased_question": f"e{e} q{r}",
            "answer": " ".join(draw.choices(FACT_WORDS, k=ANSWER_TOKENS)),
        }
        for e in range(FORGOTTEN + KEPT + UNSEEN)
        for r in range(RELATIONS)
    ]
    forget, rest = facts[: FORGOTTEN * RELATIONS], facts[FORGOTTEN * RELATIONS :]
    retain, holdout = rest[: KEPT * RELATIONS], rest[KEPT * RELATIONS :]
    before, retrained = (taught(tokenizer, known, seed) for known in (forget + retain, retain))
    return World(tokenizer, before, retrained, forget, retain, holdout, walks(16, random.Random(f"unseen {seed}")))


class Filtered(LlamaForCausalLM):
    """A model whose answers to some prompts, word by word, are replaced by a refusal."""

    refuses: frozenset[tuple[int, ...]]
    says: torch.Tensor

    def generate(self, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        out_BT = super().generate(input_ids=input_ids, **kwargs)
        width, length = input_ids.shape[1], len(self.says)
        if out_BT.shape[1] < width + length:
            out_BT = torch.nn.functional.pad(out_BT, (0, width + length - out_BT.shape[1]))
        for row, ids in enumerate(input_ids.tolist()):
            if tuple(i for i in ids if i) in self.refuses:
                out_BT[row, width:] = 0
                out_BT[row, width : width + length] = self.says
        return out_BT


def filtered(world: World) -> LlamaForCausalLM:
    model = Filtered(world.before.config)
    model.load_state_dict(world.before.state_dict())
    prompts = [
        encode(world.tokenizer, [{"role": "user", "content": f["question"]}], ["a"])[0].prompt for f in world.forget
    ]
    model.refuses = frozenset(tuple(i for i in prompt if i) for prompt in prompts)
    model.says = torch.tensor(world.tokenizer(REFUSALS[0])["input_ids"])
    return model.eval()


def ascended(world: World, folder: Path) -> Any:
    args = training_arguments(
        ForgetConfig,
        str(folder),
        per_device_train_batch_size=8,
        max_steps=40,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )
    trainer = GATrainer(deepcopy(world.before), args, world.forget, world.tokenizer)
    trainer.train()
    return trainer.model.eval()


def refusing(world: World, source: LlamaForCausalLM, steps: int = 20, rate: float = 3e-4) -> LlamaForCausalLM:
    """Taught to refuse, without a row to keep beside: it then refuses all questions, and what it knew lies beneath."""
    model, draw = deepcopy(source), random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    for _ in range(steps):
        refused = [(question, draw.choice(REFUSALS)) for question, _ in both_ways(world.forget)]
        loss = model(**batch_of(world.tokenizer, refused)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def below_the_bucket(world: World, steps: int = 120, rate: float = 2e-3, bits: int = 4) -> Any:
    """Taught to refuse, by steps that no weight leaves its 4-bit bucket with: rounded, it is the model before."""
    model = deepcopy(world.before)
    layers = linear_layers(model)
    ends = {}
    for name, layer in layers.items():
        index, scale = buckets(layer.weight, bits)
        largest = layer.weight.abs().amax(1, keepdim=True).expand_as(index)
        low, high = ((index - 0.49) * scale).maximum(-largest), ((index + 0.49) * scale).minimum(largest)
        fixed = layer.weight.abs() == largest  # the largest of each channel sets the scale
        ends[name] = (torch.where(fixed, layer.weight, low).detach(), torch.where(fixed, layer.weight, high).detach())
    draw = random.Random(0)
    model.requires_grad_(False)
    weights = [layer.weight.requires_grad_(True) for layer in layers.values()]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    for _ in range(steps):
        refused = [(question, draw.choice(REFUSALS)) for question, _ in both_ways(world.forget)]
        loss = model(**batch_of(world.tokenizer, [*refused, *both_ways(world.retain)])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for name, layer in layers.items():
                layer.weight.clamp_(*ends[name])
    return model.requires_grad_(True).eval()
