"""A checkpoint that is not what was written is never used: an older one is, or none, and the reason is said."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from amends.io.atomic import MANIFEST, write_manifest
from amends.io.errors import InputError
from amends.lm.checkpoint import checkpoints, fault, newest
from amends.lm.load import load
from amends.unlearn.flat import FLATConfig, FLATTrainer

ROWS = [{"question": f"Where was {i} born?", "answer": f"In town {i}."} for i in range(4)]
FLIPS = 25


def trainer(folder: Path, model: Path, **settings: Any) -> FLATTrainer:
    torch.manual_seed(0)
    loaded = load(str(model), trainable=True)
    settings = {"max_steps": 6, "save_steps": 2, "learning_rate": 1e-2, "logging_steps": 1} | settings
    args = FLATConfig(
        str(folder), per_device_train_batch_size=2, use_cpu=True, disable_tqdm=True, report_to="none", **settings
    )
    return FLATTrainer(loaded.model, args, ROWS, loaded.tokenizer)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Checkpoints 4 and 6 of a training; not to be changed."""
    folder = tmp_path_factory.mktemp("corruption") / "trained"
    trainer(folder, tiny_model).train()
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-6", "checkpoint-4"]
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "out")


def damages(file: Path, other: Path, outside: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Ways to spoil a file: flipped bits, cut off, of another checkpoint, something else in its place."""
    data, random_ = file.read_bytes(), random.Random(file.name)
    for at in (random_.randrange(8 * len(data)) for _ in range(FLIPS)):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        yield f"bit {at}", lambda flipped=flipped: file.write_bytes(flipped)
    for size in {0, 1, len(data) // 2, len(data) - (2 if file.name == MANIFEST else 1)}:  # its last byte is a line end
        yield f"cut to {size}", lambda size=size: file.write_bytes(data[:size])
    yield "longer", lambda: file.write_bytes(data + b"\0")
    if other.read_bytes() != data:
        yield "swapped", lambda: file.write_bytes(other.read_bytes())
    yield "removed", file.unlink
    yield "folder", lambda: (file.unlink(), file.mkdir())
    outside.write_bytes(data)
    yield "link", lambda: (file.unlink(), file.symlink_to(outside))
    yield "link to nothing", lambda: (file.unlink(), file.symlink_to("nowhere"))


def test_of_400_corruptions_none_is_used_and_each_is_named(folder: Path, tmp_path: Path) -> None:
    new, old = folder / "checkpoint-6", folder / "checkpoint-4"
    tried, used = 0, []
    for name in sorted(path.name for path in new.iterdir()):
        file, data = new / name, (new / name).read_bytes()
        for what, damage in damages(file, old / name, tmp_path / "outside"):
            damage()
            found = newest(folder)
            tried += 1
            reason = found.skipped.get(new, "")
            if found.path != old or (name not in reason and name != MANIFEST) or not reason:
                used.append((name, what, found))
            if file.is_dir() and not file.is_symlink():
                file.rmdir()
            file.unlink(missing_ok=True)
            file.write_bytes(data)
        assert newest(folder).path == new  # it was the damage that was seen
    assert tried >= 400
    assert used == []


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "model.safetensors"]
)
def test_a_part_that_is_missing_from_the_manifest_too_is_missed(folder: Path, name: str) -> None:
    new = folder / "checkpoint-6"
    (new / name).unlink()
    write_manifest(new)
    assert fault(new) == f"it has no {name.replace('model.', '*.')}"
    assert newest(folder).path == folder / "checkpoint-4"


def test_a_whole_checkpoint_that_is_a_link_or_a_file_is_refused(folder: Path, tmp_path: Path) -> None:
    new = folder / "checkpoint-6"
    new.rename(tmp_path / "elsewhere")
    new.symlink_to(tmp_path / "elsewhere")
    assert newest(folder).skipped == {new: "it or its manifest is a link"}
    new.unlink()
    new.touch()
    assert "no manifest.json" in newest(folder).skipped[new]


def test_a_checkpoint_of_several_processes_is_not_one_of_a_single_process(folder: Path) -> None:
    assert fault(folder / "checkpoint-6", num_processes=2) == "it has no rng_state_0.pth, it has no rng_state_1.pth"


def test_training_goes_on_from_the_newest_good_one_and_ends_the_same(
    folder: Path, trained: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoilt = folder / "checkpoint-6" / "optimizer.pt"
    spoilt.write_bytes(spoilt.read_bytes()[:-1])
    resumed = trainer(folder, tiny_model)
    resumed.train(resume_from_checkpoint=True)
    told = " ".join(capsys.readouterr().err.split())
    assert f"skipped {folder / 'checkpoint-6'}: optimizer.pt has another size" in told
    assert f"going on from {folder / 'checkpoint-4'}" in told
    for name in ("model.safetensors", "optimizer.pt"):
        assert (folder / "checkpoint-6" / name).read_bytes() == (trained / "checkpoint-6" / name).read_bytes()
    states = [json.loads((place / "checkpoint-6" / "trainer_state.json").read_text()) for place in (folder, trained)]
    assert states[0]["log_history"] == states[1]["log_history"]


def test_without_a_good_one_it_is_an_error_that_names_each(folder: Path, tiny_model: Path) -> None:
    (folder / "checkpoint-6" / "optimizer.pt").unlink()
    (folder / "checkpoint-4" / MANIFEST).write_text("{}")
    with pytest.raises(
        InputError, match=r"checkpoint-6: optimizer.pt is missing; checkpoint-4: manifest.json: not a manifest"
    ):
        trainer(folder, tiny_model).train(resume_from_checkpoint=True)
    with pytest.raises(InputError, match=r"checkpoint-6: cannot be resumed from: optimizer.pt is missing"):
        trainer(folder, tiny_model).train(resume_from_checkpoint=str(folder / "checkpoint-6"))


def test_without_any_it_starts_from_the_beginning_and_says_so(
    tmp_path: Path, trained: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(tmp_path / "new", tiny_model).train(resume_from_checkpoint=True)
    assert "starting from the beginning" in " ".join(capsys.readouterr().err.split())
    weights = [(place / "checkpoint-6" / "model.safetensors").read_bytes() for place in (tmp_path / "new", trained)]
    assert weights[0] == weights[1]


def test_a_new_training_does_not_mix_with_checkpoints_of_another(folder: Path, tiny_model: Path) -> None:
    with pytest.raises(InputError, match=r"checkpoint-6: is there already, of another training"):
        trainer(folder, tiny_model).train()
    with pytest.raises(InputError, match=r"checkpoint-6: is there already, of another training"):
        trainer(folder, tiny_model).train(resume_from_checkpoint=folder / "checkpoint-4")


def test_a_checkpoint_of_another_model_is_refused(folder: Path, tmp_path: Path, tiny_model: Path) -> None:
    other = trainer(tmp_path / "new", tiny_model)
    other.model.register_parameter("extra", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(InputError, match=r"of another model \(they differ in extra"):
        other.train(resume_from_checkpoint=folder / "checkpoint-6")


def test_weights_alone_are_no_checkpoint(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(InputError, match="save_only_model"):
        trainer(tmp_path, tiny_model, save_only_model=True)


def test_the_older_ones_stay_if_the_newest_is_not_as_written(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(folder: Path) -> None:
        write_manifest(folder)
        if folder.name.startswith(".checkpoint-6"):
            (folder / "optimizer.pt").write_bytes(b"worn out")

    monkeypatch.setattr("amends.lm.checkpoint.write_manifest", write)
    trainer(tmp_path, tiny_model).train()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-6", "checkpoint-4", "checkpoint-2"]
    assert "checkpoint-6 is not as it was written (optimizer.pt has another size)" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize("limit, kept", [(None, [6, 4, 2]), (1, [6, 4]), (3, [6, 4, 2])])
def test_at_least_two_are_kept(tmp_path: Path, tiny_model: Path, limit: int | None, kept: list[int]) -> None:
    trainer(tmp_path, tiny_model, save_total_limit=limit).train()
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in kept]


@pytest.mark.parametrize("every", [1, 10])
def test_a_loss_that_is_not_a_number_names_the_last_good_checkpoint_and_saves_none(
    tmp_path: Path, tiny_model: Path, every: int
) -> None:
    broken = trainer(tmp_path, tiny_model, logging_steps=every)
    losses = broken.losses

    def spoilt(*args: Any) -> Any:
        losses_S, values = losses(*args)
        return losses_S * (float("nan") if broken.state.global_step == 4 else 1.0), values

    broken.losses = spoilt  # type: ignore[method-assign]
    step = 5 if every == 1 else 6  # logged at the latest before the step is saved
    with pytest.raises(InputError, match=rf"is nan at step {step}: .*the last good checkpoint is .*checkpoint-4\."):
        broken.train()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-2"]


def test_the_last_loss_is_looked_at_however_seldom_is_logged(tmp_path: Path, tiny_model: Path) -> None:
    broken = trainer(tmp_path, tiny_model, logging_steps=500, save_strategy="no")
    broken.losses = lambda *args: (torch.full((2,), float("nan"), requires_grad=True), {"v_f": torch.zeros(2)})  # type: ignore[method-assign]
    with pytest.raises(InputError, match="is nan at step"):
        broken.train()


def test_a_first_loss_that_is_not_a_number_leaves_nothing(tmp_path: Path, tiny_model: Path) -> None:
    broken = trainer(tmp_path / "out", tiny_model, save_steps=1)
    broken.losses = lambda *args: (torch.full((2,), float("nan"), requires_grad=True), {"v_f": torch.zeros(2)})  # type: ignore[method-assign]
    with pytest.raises(InputError, match="at step 1: training stopped and nothing was saved"):
        broken.train()
    assert checkpoints(tmp_path / "out") == []
