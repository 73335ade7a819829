"""Stand-ins of MUSE's shape, generated and cut from public-domain books; models made for them; a tiny TOFU."""

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from amends.io.run import write_jsonl
from amends.lm.load import Loaded, load
from amends.lm.templates import plain_ids

from .tofu_world import FORGET, RETAIN

NAMES = {"retain_qa": "retain2_qa", "retain_qa_icl": "retain2_qa_icl", "retain": "retain2"}
"""Splits that the authors' repository calls otherwise than the Hub."""
Subsets = dict[str, dict[str, list[dict[str, str]]]]


def subsets_of(forget: Sequence[str], retain: Sequence[str], holdout: Sequence[str], prompt: int) -> Subsets:
    """All subsets of MUSE, from texts; `prompt` characters of a passage are given, and it goes on to its end."""
    raw = {"forget": forget, "retain1": retain[::2], "retain2": retain[1::2], "holdout": holdout}
    rows = {name: [{"text": text} for text in texts] for name, texts in raw.items()}
    knowmem = {}
    for name, texts in {"forget": forget, "retain": retain}.items():
        asked = [question(text) for text in texts]
        knowmem |= {f"{name}_qa": asked[3:], f"{name}_qa_icl": asked[:3]}
    return {
        "raw": rows,
        "verbmem": {"forget": [{"prompt": text[:prompt], "gt": text[prompt:]} for text in forget]},
        "knowmem": knowmem,
        "privleak": {"forget": rows["forget"], "retain": rows["retain2"], "holdout": rows["holdout"]},
        "scal": {f"forget_{i}": rows["forget"][:i] for i in (1, 2, 3, 4)},
        "sust": {f"forget_{i}": rows["forget"][i - 1 : i] for i in (1, 2, 3, 4)},
    }


def question(text: str) -> dict[str, str]:
    """Ask which words follow the first ones of a text."""
    words = text.split()
    return {"question": f"What follows {' '.join(words[:2])}?", "answer": " ".join(words[2:4])}


def write_hub(folder: Path, subsets: Subsets) -> Path:
    """As the Hub has it: a folder for each subset, a split in shards of Parquet."""
    for subset, splits in subsets.items():
        (folder / subset).mkdir(parents=True)
        for split, rows in splits.items():
            middle = len(rows) // 2
            shards = [rows] if middle == 0 else [rows[:middle], rows[middle:]]
            for i, shard in enumerate(shards):
                name = f"{split}-{i:05d}-of-{len(shards):05d}.parquet"
                pq.write_table(pa.Table.from_pylist(shard), folder / subset / name)
    return folder


def write_repository(folder: Path, subsets: Subsets) -> Path:
    """As the authors' repository has it: .json and .txt, some splits under other names, texts as plain lists."""
    for subset, splits in subsets.items():
        (folder / subset).mkdir(parents=True)
        for split, rows in splits.items():
            stem = folder / subset / NAMES.get(split, split)
            if subset == "raw":
                stem.with_suffix(".txt").write_text("\n\n".join(row["text"] for row in rows))
            texts = [row["text"] for row in rows] if "text" in rows[0] else rows
            stem.with_suffix(".json").write_text(json.dumps(texts))
    return folder


def invented(count: int, letters: str, seed: int) -> list[str]:
    """Texts of words that are drawn from some letters."""
    draw = random.Random(seed)
    words = ["".join(draw.choices(letters, k=draw.randint(2, 6))) for _ in range(40)]
    return [" ".join(draw.choices(words, k=60)) for _ in range(count)]


@pytest.fixture(scope="session")
def subsets() -> Subsets:
    return subsets_of(
        invented(8, "abcdefghijkl", 0), invented(6, "abcdefnopqrs", 1), invented(8, "abcdefghijkl", 2), 40
    )


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory, subsets: Subsets) -> Path:
    return write_hub(tmp_path_factory.mktemp("muse") / "MUSE-News", subsets)


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory, subsets: Subsets) -> Path:
    return write_repository(tmp_path_factory.mktemp("muse") / "bbc", subsets)


@pytest.fixture(scope="session")
def books(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To forget: the first chapters of one book; holdout: its last; to keep: another book."""

    def texts(name: str, chapters: range) -> list[str]:
        with gzip.open(shared / "data" / "gutenberg" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        return [row["text"] for row in rows if row["chapter"] in chapters and len(row["text"]) > 600][:20]

    forget, holdout = (texts("great_god_pan", chapters) for chapters in (range(1, 5), range(5, 9)))
    found = subsets_of(forget, texts("wizard_of_oz", range(1, 4)), holdout, 300)
    return write_hub(tmp_path_factory.mktemp("muse") / "books", found)


def copying(folder: Path, texts: Sequence[str]) -> Loaded:
    """A model that goes on from each prompt as the text does that holds it, and says nothing elsewhere."""
    loaded = load(folder)
    tokenizer: Any = loaded.tokenizer

    def generate(
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        generation_config: Any,
        logits_processor: list[Any],
        past_key_values: Any,
    ) -> torch.Tensor:
        assert not generation_config.do_sample and len(logits_processor) == 1  # that which looks for NaN: none draws
        most = generation_config.max_new_tokens
        out = torch.full((len(input_ids), most), tokenizer.pad_token_id)
        for row, (ids, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
            prompt = tokenizer.decode(ids[mask.bool()])
            text = next((text for text in texts if prompt in text), None)
            if text is not None:
                new = plain_ids(tokenizer, text.partition(prompt)[2])[:most]
                out[row, : len(new)] = torch.tensor(new)
        return torch.cat([input_ids, out], dim=1)

    loaded.model.generate = generate  # type: ignore[method-assign]
    return loaded


def taught(folder: Path, texts: Sequence[str], steps: int = 60) -> Loaded:
    """A tiny model after some steps on texts."""
    loaded = load(folder)
    ids = torch.tensor([plain_ids(loaded.tokenizer, text)[:150] for text in texts])
    optimizer = torch.optim.Adam(loaded.model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loaded.model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return loaded


@pytest.fixture
def world(tmp_path):
    """A folder with one request."""
    folder = tmp_path / "world"
    folder.mkdir()
    for name, some in (("forget", FORGET), ("retain", RETAIN), ("retain_eval", RETAIN[::3])):
        write_jsonl(folder / f"{name}.jsonl", some)
    return folder
