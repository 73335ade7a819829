"""Models come from safetensors alone; what is saved opens with plain transformers and peft."""

import json
import pickle
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM

from amends.io.errors import InputError
from amends.lm import turns
from amends.lm.config import count_layers, train_only
from amends.lm.find import check_model, check_safetensors
from amends.lm.load import (
    add_lora,
    base_sha256,
    kept_name,
    load,
    prepare,
    rank_to_train,
    same_model,
    save_model,
    weights_sha256,
)
from amends.lm.quiet import quiet

from ..conftest import save_tiny_model
from .conftest import tiny

IDS = torch.tensor([[5, 6, 7, 8]])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    """A model folder that a test may change."""
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def adapter_of(model: Path, folder: Path, seed: int = 7) -> Any:
    """Save an adapter with random weights on a model, and return it."""
    loaded = load(model)
    torch.manual_seed(seed)
    adapter = add_lora(loaded.model, rank=2).eval()
    with torch.no_grad():
        for name, weight in adapter.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.5)
    save_model(adapter, loaded.tokenizer, folder, str(model))
    return adapter


def test_a_folder_loads_ready_to_use(tiny_model: Path) -> None:
    loaded = load(tiny_model)
    assert not loaded.model.training
    assert loaded.tokenizer.pad_token_id is not None
    assert (loaded.name, loaded.base) == (str(tiny_model), str(tiny_model))


def test_the_canary_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Canary(tmp_path / "sung")))
    assert (tmp_path / "sung").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "model.pt"])
def test_a_pickle_in_a_model_folder_is_refused_unopened(name: str, copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / name).write_bytes(pickle.dumps(Canary(tmp_path / "sung")))
    with pytest.raises(InputError, match=r"no safetensors weights here.* a pickle|not a safetensors file"):
        load(copy)
    assert not (tmp_path / "sung").exists()


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.pkl"])
def test_a_pickle_by_itself_is_refused_unopened(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Canary(tmp_path / "sung")))
    with pytest.raises(InputError, match="a pickle can run code"):
        load(tmp_path / name)
    assert not (tmp_path / "sung").exists()


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors"])
def test_a_pickled_adapter_is_refused_unopened(name: str, tiny_model: Path, tmp_path: Path) -> None:
    adapter_of(tiny_model, tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter" / name).write_bytes(pickle.dumps(Canary(tmp_path / "sung")))
    with pytest.raises(InputError, match=r"a pickle"):
        load(tmp_path / "adapter")
    assert not (tmp_path / "sung").exists()


@pytest.mark.parametrize(
    "content", [b"", b"1234567", (10**12).to_bytes(8, "little") + b"{}", b"\x02" + b"\0" * 7 + b"[]"]
)
def test_a_fake_safetensors_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="not a safetensors file"):
        check_safetensors(tmp_path / "model.safetensors")


@pytest.mark.parametrize("kept", [20, 2000])
def test_a_cut_download_is_refused(kept: int, copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"not a safetensors file|could not be loaded"):
        load(copy)


@pytest.mark.parametrize(("stored", "described"), [(1, 2), (2, 1)])
def test_weights_of_another_number_of_layers_are_refused(stored: int, described: int, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", layers=stored)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": described}))
    with pytest.raises(InputError, match=r"model\.layers\.1\..* \(9 in all\)\. Get the folder again"):
        load(folder)


def test_a_cut_adapter_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    adapter_of(tiny_model, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(InputError, match="does not fit its base model"):
        load(tmp_path / "adapter")


def test_code_in_a_model_folder_is_refused_unrun(copy: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model"}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'sung')!r}, 'w')\nclass Model: pass\n")
    with pytest.raises(InputError, match="brings its own code"):
        load(copy)
    assert not (tmp_path / "sung").exists()


def test_a_config_that_is_not_json_is_refused(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: not valid JSON"):
        load(copy)


@pytest.mark.parametrize("name", ["./gone", "/gone/model", "a/b/c", "gone.gguf", "~/gone-model"])
def test_a_missing_folder_is_refused_without_asking_the_hub(name: str) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        load(name)


def test_a_model_is_found_without_its_weights_being_read(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter_of(tiny_model, tmp_path / "adapter")
    (tmp_path / "model.gguf").touch()
    monkeypatch.setattr("amends.lm.load.AutoModelForCausalLM", None)
    for name in (tiny_model, tmp_path / "adapter", str(tmp_path / "model.gguf")):
        check_model(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./gone", "no such file or folder"),
        ("package:json/x.gguf", "has no file"),
        ("no-model/of-this-name", "HF_HUB_OFFLINE"),
        ("a b", "no id that the Hub could have"),
        (".", "it is not a model"),
        ("notes.txt", "not a model"),
        ("model.bin", "a pickle can run code"),
        ("pickled", "no safetensors weights"),
        ("orphan", "base: no such file or folder"),
        ("unnamed", "does not name its base"),
    ],
)
def test_what_is_no_model_is_known_before_it_is_loaded(
    name: str, message: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").touch()
    Path("model.bin").touch()
    Path("pickled").mkdir()
    shutil.copy(tiny_model / "config.json", "pickled")
    adapter_of(tiny_model, Path("orphan"))
    shutil.copytree("orphan", "unnamed")
    for folder, settings in (("orphan", {"base_model_name_or_path": "/gone/base"}), ("unnamed", {})):
        Path(folder, "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=message):
        check_model(name)


def test_a_hub_id_is_left_to_the_loader_where_the_hub_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amends.lm.find.is_offline_mode", lambda: False)
    check_model("no-model/of-this-name")


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it is not a model"):
        load(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="not a model"):
        load(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package:no_such_package_/x.gguf", "is not installed"),
        ("package:os.path/x.gguf", "is not installed"),
        ("package:json/x.gguf", "has no file"),
        ("package:json/../os.py", "has no file"),
    ],
)
def test_a_package_gives_only_files_of_its_own(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(name)


def test_a_hub_that_cannot_be_reached_is_asked_for_one_file(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with monkeypatch.context() as patch:
        patch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: pytest.fail("asked for more"))
        with pytest.raises(InputError, match=r"org/model: no such file or folder here, .* could not be reached"):
            load("org/model")
    kept = tmp_path / "hub" / "models--org--model"
    shutil.copytree(tiny_model, kept / "snapshots" / "abc")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    assert torch.equal(logits(load("org/model").model), logits(load(tiny_model).model))


def test_an_adapter_of_the_hub_is_one_as_in_a_folder(
    tiny_model: Path, other_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "hub" / "models--org--adapter" / "snapshots" / "abc"
    expected = logits(adapter_of(tiny_model, snapshot))
    (tmp_path / "hub" / "models--org--adapter" / "refs").mkdir()
    (tmp_path / "hub" / "models--org--adapter" / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    check_model("org/adapter")
    loaded = load("org/adapter")
    assert isinstance(loaded.model, PeftModel)
    assert (loaded.name, loaded.base) == ("org/adapter", str(tiny_model))
    assert torch.allclose(logits(loaded.model), expected, atol=1e-5)
    assert rank_to_train(loaded, None) == 2
    trained = prepare(loaded, 2)
    assert torch.allclose(logits(trained), expected, atol=1e-5)
    assert any(weight.requires_grad for weight in trained.parameters())
    save_model(prepare(load("org/adapter"), 0), loaded.tokenizer, tmp_path / "whole", "org/adapter")
    assert torch.allclose(logits(load(tmp_path / "whole").model), expected, atol=1e-4)
    (snapshot / "amends.json").write_text(json.dumps({"base_sha256": weights_sha256(load(other_model).model)}))
    with pytest.raises(InputError, match="made for other weights"):
        load("org/adapter")
    for file in snapshot.glob("adapter_model*"):
        file.rename(snapshot / "adapter_model.bin")
    with pytest.raises(InputError, match="a pickle"):
        load("org/adapter")


def test_full_weights_saved_open_with_plain_transformers(tiny_model: Path, tmp_path: Path) -> None:
    loaded = load(tiny_model)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "saved", str(tiny_model))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(plain), logits(loaded.model))
    text = "Who? <|im_end|>"
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")(text)["input_ids"] == loaded.tokenizer(text)["input_ids"]
    assert weights_sha256(plain) == weights_sha256(loaded.model) == weights_sha256(load(tmp_path / "saved").model)


def test_an_adapter_takes_the_place_of_another_on_the_same_base(tiny_model: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "other")):
        adapter_of(tiny_model, tmp_path / name, seed)
        (tmp_path / name / "tokenizer_config.json").unlink()
    one, apart = load(tmp_path / "one"), load(tmp_path / "other")
    base = one.model.get_base_model().model.layers[0].mlp.down_proj.base_layer.weight
    other = load(tmp_path / "other", instead_of=one, trainable=True)
    assert other.model.get_base_model().model.layers[0].mlp.down_proj.base_layer.weight is base
    assert weights_sha256(other.model) == weights_sha256(apart.model) != weights_sha256(load(tmp_path / "one").model)
    assert torch.equal(logits(other.model), logits(apart.model))
    assert any(parameter.requires_grad for parameter in other.model.parameters())
    assert load(tiny_model, instead_of=other).model is not other.model  # not an adapter: loaded on its own


def test_an_adapter_saved_opens_with_plain_peft(tiny_model: Path, tmp_path: Path) -> None:
    adapter = adapter_of(tiny_model, tmp_path / "adapter")
    with quiet():
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(tmp_path / "adapter"))
    assert torch.equal(logits(plain.eval()), logits(adapter))
    loaded = load(tmp_path / "adapter")
    assert torch.equal(logits(loaded.model), logits(adapter))
    assert loaded.base == str(tiny_model)
    assert weights_sha256(loaded.model) == weights_sha256(adapter)
    assert not torch.equal(logits(adapter), logits(load(tiny_model).model))


def test_an_adapter_on_a_relative_path_loads_from_every_folder(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    (home / "work").mkdir(parents=True)
    away.mkdir()
    shutil.copytree(tiny_model, home / "m" / "base")
    monkeypatch.chdir(home / "work")
    adapter_of(Path("../m/base"), Path("adapter"))
    named = [json.loads(Path("adapter", file).read_text()) for file in ("adapter_config.json", "amends.json")]
    whole = str((home / "m" / "base").resolve())
    assert (named[0]["base_model_name_or_path"], named[1]["base"]) == (whole, whole)
    here = load("../m/base")
    assert same_model("../m/base", whole) and not same_model("../m/base", str(home))
    monkeypatch.chdir(away)
    loaded = load(home / "work" / "adapter")
    with quiet():
        plain = AutoPeftModelForCausalLM.from_pretrained(home / "work" / "adapter")
    assert torch.equal(logits(plain.eval()), logits(loaded.model))
    assert not torch.equal(logits(loaded.model), logits(here.model))


def test_a_base_of_a_package_or_the_hub_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for base in ("package:some/x.gguf", "somebody/small-lm", "/gone/base", ""):
        assert kept_name(base) == base
    (tmp_path / "base").mkdir()
    Path("link").symlink_to("base")
    assert [kept_name(base) for base in ("base", "./base/", "link", ".")] == [
        str(tmp_path.resolve() / name) for name in ("base", "base", "link", "")
    ]


def test_an_adapter_of_experts_is_saved_and_loaded(tiny_model: Path, tmp_path: Path) -> None:
    small = load(tiny_model)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 8}
    kinds = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 4}
    torch.manual_seed(0)
    mixture = MixtralForCausalLM(MixtralConfig(vocab_size=small.model.config.vocab_size, **sizes, **kinds))
    save_model(mixture, small.tokenizer, tmp_path / "mixture", "")
    adapter = adapter_of(tmp_path / "mixture", tmp_path / "adapter")
    told = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert told["target_parameters"] == ["down_proj", "gate.weight", "gate_up_proj"]
    loaded = load(tmp_path / "adapter")
    assert torch.equal(logits(loaded.model), logits(adapter))
    assert not torch.allclose(logits(loaded.model), logits(mixture.eval()), atol=1e-4)


def test_an_adapter_is_trainable_only_when_asked(tiny_model: Path, tmp_path: Path) -> None:
    adapter_of(tiny_model, tmp_path / "adapter")

    def trainable(model: Any) -> set[str]:
        return {name for name, weight in model.named_parameters() if weight.requires_grad}

    assert not trainable(load(tmp_path / "adapter").model)
    names = trainable(load(tmp_path / "adapter", trainable=True).model)
    assert names
    assert all("lora_" in name for name in names)


def test_the_base_below_an_adapter_keeps_its_digest(tiny_model: Path, tmp_path: Path) -> None:
    adapter = adapter_of(tiny_model, tmp_path / "adapter")
    assert base_sha256(adapter) == weights_sha256(load(tiny_model).model)


def test_an_adapter_of_other_weights_is_refused(tiny_model: Path, other_model: Path, tmp_path: Path) -> None:
    adapter_of(tiny_model, tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(other_model)}))
    with pytest.raises(InputError, match="made for other weights"):
        load(tmp_path / "adapter")


def test_an_adapter_of_another_shape_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    adapter_of(tiny_model, tmp_path / "adapter")
    (tmp_path / "adapter" / "amends.json").unlink()
    model = load(tiny_model)
    config = type(model.model.config)(**model.model.config.to_dict() | {"hidden_size": 8, "head_dim": 4})
    type(model.model)(config).save_pretrained(tmp_path / "wider")
    model.tokenizer.save_pretrained(tmp_path / "wider")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "wider")}))
    with pytest.raises(InputError, match="does not fit its base model"):
        load(tmp_path / "adapter")


@pytest.mark.parametrize(("content", "message"), [("{", "cannot be read"), ('{"peft_type": "LORA"}', "does not name")])
def test_an_adapter_config_that_is_broken_is_refused(
    content: str, message: str, tiny_model: Path, tmp_path: Path
) -> None:
    adapter_of(tiny_model, tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text(content)
    with pytest.raises(InputError, match=message):
        load(tmp_path / "adapter")


def test_the_digest_sees_names_shapes_types_and_bytes() -> None:
    class Box(torch.nn.Module):
        def __init__(self, name: str, tensor: torch.Tensor) -> None:
            super().__init__()
            self.register_buffer(name, tensor)

    digests = {
        weights_sha256(Box(name, tensor))
        for name, tensor in [
            ("a", torch.zeros(2, 3)),
            ("b", torch.zeros(2, 3)),
            ("a", torch.zeros(3, 2)),
            ("a", torch.zeros(2, 3, dtype=torch.int32)),
            ("a", torch.full((2, 3), 1e-30)),
        ]
    }
    assert len(digests) == 5
    assert weights_sha256(Box("a", torch.zeros(2, 3))) in digests


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_the_digest_is_of_the_stored_values_whatever_they_are_loaded_as(
    tiny_model: Path, tmp_path: Path, stored: torch.dtype
) -> None:
    half = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=stored)
    half.save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "half")
    assert weights_sha256(half) == weights_sha256(load(tmp_path / "half").model)
    assert weights_sha256(half) != weights_sha256(load(tiny_model).model)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("layers", "kept"), [("0", {"0"}), ("1-1", {"1"}), ("0-1", {"0", "1"})])
@pytest.mark.parametrize("adapter", [True, False])
def test_only_the_layers_asked_for_are_trained(family: str, layers: str, kept: set[str], adapter: bool) -> None:
    model = add_lora(tiny(family), rank=2) if adapter else tiny(family)
    train_only(model, layers)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert {name.partition(".layers." if family == "llama" else ".h.")[2].split(".")[0] for name in trained} == kept
    assert not adapter or all(".lora_" in name for name in trained)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_layers_are_counted_below_an_adapter_and_without_weights(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(family).save_pretrained(tmp_path / "model")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path / "model")})
    )
    shutil.copy(tmp_path / "model" / "model.safetensors", tmp_path / "adapter" / "adapter_model.safetensors")
    monkeypatch.setattr("amends.lm.load.AutoModelForCausalLM", None)
    assert count_layers(tmp_path / "model") == count_layers(str(tmp_path / "adapter")) == 2
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="its configuration could not be read"):
        count_layers(tmp_path / "adapter")


@pytest.mark.parametrize("layers", ["", "a", "1-", "-1", "2-1", "0-2", "7", "0,1"])
def test_layers_that_are_not_there_are_refused(layers: str) -> None:
    with pytest.raises(InputError, match="--layers"):
        train_only(tiny("llama"), layers)


def test_threads_that_load_at_once_leave_the_streams_as_they_were() -> None:
    before, left = sys.stderr, threading.Event()

    def second() -> None:
        with quiet():
            left.wait()

    with quiet():
        (other := threading.Thread(target=second)).start()
        other.join(0.1)  # time to go in
    left.set()
    other.join()
    assert sys.stderr is before


def test_a_model_that_comes_twice_in_a_row_is_read_once(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(turns, "load", lambda source, **how: read.append(str(source)) or load(source, **how))
    models = {"after": str(tiny_model), "reference": tiny_model, "before": None}
    found = turns.measure_each(models, lambda role, loaded: (role, id(loaded.model)), None)
    assert [role for role, _ in found.values()] == ["after", "reference"]
    assert len(read) == len({place for _, place in found.values()}) == 1
