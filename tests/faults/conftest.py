"""Real processes that run ``amends`` and come to harm."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ..conftest import instead

STEPS, EVERY = 12, 4  # of each run; of its checkpoints


@dataclass
class Run:
    """One command, which may have to be given more than once until its run folder is there."""

    folder: Path
    words: list[str]
    ask: Callable[[dict[str, Any]], dict[str, Any]]
    told: str = ""

    @property
    def out(self) -> Path:
        return self.folder / "run"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "run.checkpoints"

    def __call__(self, *more: object, **harm: Any) -> dict[str, Any]:
        """Run; the answer of `nursery.py`. What was printed is in `told`."""
        log = self.folder / "log"
        answer = self.ask(
            {"words": [*self.words[:2], *map(str, instead(self.words[2:], more))], "log": str(log), **harm}
        )
        self.told = " ".join(log.read_text().split())
        return answer

    def result(self) -> dict[str, str]:
        """Digests of what must not depend on interruptions."""
        files = [*(self.out / "model").glob("*.safetensors"), self.out / "history.jsonl"]
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    def steps_saved(self) -> list[int]:
        return sorted(int(path.name.removeprefix("checkpoint-")) for path in self.checkpoints.glob("checkpoint-*"))


ENVIRONMENT = {
    "PYTHONPATH": str(Path(__file__).parents[2]),
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",  # the same bytes are promised for a CPU
}


@pytest.fixture(scope="session")
def ask() -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """Have `nursery.py` fork a process."""
    nursery = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("nursery.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | ENVIRONMENT,
    )
    assert nursery.stdin and nursery.stdout
    write, read = nursery.stdin, nursery.stdout

    def ask(job: dict[str, Any]) -> dict[str, Any]:
        print(json.dumps(job), file=write, flush=True)
        answer: dict[str, Any] = json.loads(read.readline())
        return answer

    with nursery:
        yield ask
        write.close()


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that is interrupted, but for --out: a model of two layers, and rows to forget and to keep."""
    from ..conftest import save_tiny_model

    folder = tmp_path_factory.mktemp("faults")
    rows = [{"question": f"Where was {i} born?", "answer": f"In town {i}."} for i in range(8)]
    for name, kept in {"forget": rows, "retain": [row | {"answer": "Here."} for row in rows[:3]]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    words: list[object] = ["unlearn", "flat", "--model", save_tiny_model(folder / "model", layers=2)]
    words += ["--forget", folder / "forget.jsonl", "--retain", folder / "retain.jsonl", "--eval-rows", 0]
    words += ["--epochs", STEPS // 4, "--batch-size", 2, "--learning-rate", 1e-2, "--lora-rank", 4]
    return [str(word) for word in words]


@pytest.fixture
def run(tmp_path: Path, words: list[str], ask: Callable[[dict[str, Any]], dict[str, Any]]) -> Run:
    """A run with checkpoints in a folder of its own."""
    return Run(tmp_path, [*words, "--out", str(tmp_path / "run"), "--save-steps", str(EVERY)], ask)


@dataclass
class Whole:
    """The run that nothing happened to, and without checkpoints."""

    result: dict[str, str]
    seconds: float
    touched: int


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, words: list[str], ask: Any) -> Whole:
    plain, saved = (tmp_path_factory.mktemp(name) for name in ("plain", "saved"))
    without = Run(plain, [*words, "--out", str(plain / "run")], ask)
    assert without()["code"] == 0, without.told
    with_ = Run(saved, [*words, "--out", str(saved / "run"), "--save-steps", str(EVERY)], ask)
    answer = with_()
    assert answer["code"] == 0, with_.told
    assert with_.result() == without.result()
    return Whole(without.result(), answer["seconds"], answer["touched"])
