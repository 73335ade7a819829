"""What FLAT keeps without retain data, at the forgetting of a retrained model: make bench NAME=keep.

A cell is a variant and a seed. Training goes on until the model's own answers to the forget questions share no more
words with the truth than the retrained reference's (ROUGE-L, within MARGIN), or, with a floor, for all its epochs; then
the questions to keep are asked.
Every cell is a file in --out: cells that are there are not made again, and what is missing is shown as missing.
"""

import argparse
import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _measure import claim
from transformers import TrainerCallback, set_seed

from amends.evaluation.evaluate import build_suite, evaluate
from amends.evaluation.metrics import rouge_l_recall
from amends.evaluation.refusals import is_refusal, refusals
from amends.io.atomic import read_json, write_json
from amends.io.tables import read_rows
from amends.lm.config import train_only
from amends.lm.generate import generate
from amends.lm.load import Loaded, add_lora, load
from amends.lm.pairs import Pair, encode, read_pairs
from amends.lm.templates import turn_end
from amends.unlearn._neighbours import neighbours
from amends.unlearn._request import Request
from amends.unlearn.flat import FLATConfig, FLATTrainer

TOFU = Path(__file__).resolve().parents[1] / "examples" / "tofu"
MARGIN = 0.03
KEPT = 0.9
"""An answer is as before if it has at least this share of the words of the answer before (ROUGE-L recall)."""


class Variant(NamedTuple):
    """How a cell is trained, by Muon on layers 0 to 14."""

    rate: float
    """Without rows to keep forgetting is fast: at a lower rate it does not run past the level."""
    keep: str | int | None = None
    """A file of rows to keep, or how many neighbours the model is to write."""
    floor: float | None = None
    """With a floor (--floor-v-f) training does not stop at the level, but goes on for all epochs and mends."""
    epochs: int = 20
    rank: int | None = None
    """A new adapter of this rank on the taught model's merged weights, in place of the adapter that was taught (16)."""


VARIANTS = {
    "flat": Variant(2e-3),
    "flat, rank 4": Variant(2e-3, rank=4),
    "flat, rank 1": Variant(2e-3, rank=1),
    "flat, 80 neighbours": Variant(4e-3, 80),
    "flat, retain data": Variant(4e-3, "retain_train"),
    "flat, 80 neighbours, floor .8": Variant(4e-3, 80, 0.8, 12),
    "flat, 160 neighbours, floor .8": Variant(4e-3, 160, 0.8, 12),
    "flat, 160 neighbours, floor .75": Variant(4e-3, 160, 0.75, 12),
    "flat, retain data, floor .75": Variant(4e-3, "retain_train", 0.75, 12),
}


def main() -> None:
    """Fill the cells that are missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/keep"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    missing = [(v, s) for s in options.seeds for v in options.variants if not cell(options.out, v, s).exists()]
    if missing:
        bench = Bench()
        for variant, seed in missing:
            write_json(cell(options.out, variant, seed), bench.run(variant, seed))
    report(options.out, options.seeds)


def cell(out: Path, variant: str, seed: int) -> Path:
    """File of a cell."""
    return out / f"{variant.replace(', ', '-').replace(' ', '-')}-{seed}.json"


class Bench:
    """The taught model, what is asked of it, and what it says before."""

    def __init__(self) -> None:
        self.loaded: Loaded = load(TOFU / "taught", trainable=True)
        self.model = self.loaded.model
        self.adapter = {n: p.detach().clone() for n, p in self.model.named_parameters() if p.requires_grad}
        self.forget, self.asked = self.pairs("forget"), self.pairs("retain_eval")
        self.before = self.answers(self.asked)
        reference = read_json(TOFU / "evaluations" / "reference.json")
        self.level = reference["summary"]["forget_rouge_l"]["value"] + MARGIN

    def pairs(self, name: str) -> list[Pair]:
        """Rows of a file of the example."""
        return read_pairs(read_rows(TOFU / "data" / f"{name}.jsonl")).kept

    def answers(self, pairs: list[Pair]) -> list[str]:
        """Let the model answer, greedily."""
        model, tokenizer = self.model, self.loaded.tokenizer
        was_training = model.training
        model.eval()
        prompts = [encode(tokenizer, pair.prompt, [pair.answer])[0].prompt for pair in pairs]
        texts = generate(model, tokenizer, prompts, stop_ids=turn_end(tokenizer))
        model.train(was_training)
        return texts

    def forget_rouge_l(self) -> float:
        """Mean ROUGE-L recall of the answers to forget; of every third, where that is far from the level already."""
        for pairs, enough in ((self.forget[::3], self.level + 3 * MARGIN), (self.forget, 0.0)):
            found = float(np.mean(rouge_l_recall(self.answers(pairs), [pair.answer for pair in pairs])))
            if found > enough:
                break
        return found

    def lower(self, rank: int) -> Any:
        """Return the taught model with its adapter merged, under a new one of a lower rank."""
        return add_lora(copy.deepcopy(self.loaded.model).merge_and_unload(), rank)

    def run(self, name: str, seed: int) -> dict[str, Any]:
        """One cell: train from the taught adapter to the level, then ask what should be kept."""
        variant = VARIANTS[name]
        tokenizer = self.loaded.tokenizer
        with torch.no_grad():
            for place, weight in self.loaded.model.named_parameters():
                weight.requires_grad_(place in self.adapter)
                if place in self.adapter:
                    weight.copy_(self.adapter[place])
        set_seed(seed)  # of a new adapter
        self.model = model = self.loaded.model if variant.rank is None else self.lower(variant.rank)
        keep: dict[str, Any] = {}
        if isinstance(variant.keep, int):
            keep["neighbours"] = neighbours(model.eval(), tokenizer, self.forget, variant.keep, seed)
        elif variant.keep:
            keep["retain_dataset"] = self.pairs(variant.keep)
        set_seed(seed)
        train_only(model, "0-14")
        request = Request(
            forget=TOFU / "data" / "forget.jsonl",
            optimizer="muon",
            learning_rate=variant.rate,
            epochs=variant.epochs,
            floor_v_f=variant.floor,
        )
        args = replace(request, seed=seed).arguments(FLATConfig)
        reach = [] if variant.floor else [StopAtLevel(self)]
        trainer = FLATTrainer(model, args, self.forget, tokenizer, callbacks=list(reach), **keep)
        trainer.train()
        found = reach[0].found if reach else self.forget_rouge_l()
        suite = build_suite([], {}, refusals(), rows=20)
        suite.questions.clear()
        general = evaluate(model, tokenizer, suite, role="after", name=name)["summary"]
        told = self.answers(self.asked)
        same = np.array(rouge_l_recall(told, self.before))
        return {
            "variant": name,
            "seed": seed,
            "step": trainer.state.global_step,
            "v_f": trainer.forget_means(templates=False)["v_f"],
            "forget_rouge_l": found,
            "reached": found is not None and found <= self.level,
            "kept": float((same >= KEPT).mean()),
            "retain_rouge_l": float(np.mean(rouge_l_recall(told, [pair.answer for pair in self.asked]))),
            "refused": float(np.mean(is_refusal(told, refusals()))),
            "text_perplexity": general["text_perplexity"]["value"],
            "zero_shot_accuracy": general["zero_shot_accuracy"]["value"],
            "rows_to_keep": sum(map(len, keep.values())),
            "keep": [(pair.question, pair.answer) for pair in keep.get("neighbours", [])],
            "answers": [
                {"question": p.question, "before": b, "after": a}
                for p, b, a in zip(self.asked, self.before, told, strict=True)
            ],
        }


class StopAtLevel(TrainerCallback):
    """Stop once the answers to forget are no nearer to the truth than the reference's; asked when v_f has moved."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.found = bench, None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Look at the last batch, which is free, then at the answers."""
        if logs and logs.get("v_f", 1.0) < 0.92:
            self.found = self.bench.forget_rouge_l()
            print(f"step {state.global_step}: v_f {logs['v_f']:.3f}, forget ROUGE-L {self.found:.3f}", flush=True)
            control.should_training_stop = self.found <= self.bench.level


def report(out: Path, seeds: list[int]) -> None:
    """Print the table of the cells that are there, and the claim."""
    columns = ("forget_rouge_l", "kept", "retain_rouge_l", "refused", "text_perplexity", "zero_shot_accuracy", "step")
    print("| variant | seeds | " + " | ".join(columns) + " |\n|---|---|" + "---|" * len(columns))
    kept: dict[str, float] = {}
    for variant in VARIANTS:
        found = [read_json(path) for s in seeds if (path := cell(out, variant, s)).exists()]
        means = [f"{np.mean([f[c] for f in found]):.3f}" if found else "" for c in columns]
        print(f"| {variant} | {len(found)} of {len(seeds)} | " + " | ".join(means) + " |")
        if found and all(f["reached"] for f in found):
            kept[variant] = float(np.mean([f["kept"] for f in found]))
    without_data = {name: value for name, value in kept.items() if "retain data" not in name}
    if without_data:
        best = max(without_data, key=without_data.__getitem__)
        claim(f"retained questions answered as before without retain data ({best})", kept[best], 0.8, "share", "higher")


if __name__ == "__main__":
    main()
