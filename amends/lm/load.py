"""Load a causal language model from wherever people keep them, safely: safetensors and GGUF only, no remote code."""

import hashlib
import importlib.util
import io
import json
import re
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from huggingface_hub import is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from amends.io.atomic import write_json
from amends.io.errors import InputError

Precision = Literal["float32", "bfloat16"]
PROVENANCE = "amends.json"
"""File beside an adapter of ours: which base weights it was trained on."""

_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".h5")


class Loaded(NamedTuple):
    """A model ready to use, and what it was made from."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    """As the user named it."""
    base: str
    """The base model of an adapter; the model itself otherwise."""


def load(name: str | Path, *, trainable: bool = False, instead_of: Loaded | None = None) -> Loaded:
    """Load a model and its tokenizer.

    Parameters
    ----------
    name : str or Path
        A hub id, a local folder, a PEFT adapter folder, a GGUF file (de-quantised to float32), or
        `package:PACKAGE/FILE` for a file inside an installed Python package.
    trainable : bool, default False
        Let an adapter's weights require gradients.
    instead_of : Loaded, optional
        An adapter that is no longer needed: another one of the same base takes its place on the base in memory, which
        saves reading and holding it twice. It is ignored where `shares_base` says no.

    Raises
    ------
    InputError : nothing there, pickled weights, code in the model folder, an adapter made for another model.
    """
    if instead_of is not None and shares_base(instead_of, name):
        base: Any = instead_of.model
        bare = Loaded(base.unload(), instead_of.tokenizer, instead_of.base, instead_of.base)
        return _load_adapter(str(name), Path(name), trainable, bare)
    return _load(str(name), trainable, None)


def shares_base(loaded: Loaded, name: str | Path) -> bool:
    """Whether `loaded` is an adapter, and `name` an adapter folder of the same base with no tokenizer of its own."""
    file = Path(name) / "adapter_config.json"
    if not isinstance(loaded.model, PeftModel) or not file.exists() or (file.parent / "tokenizer_config.json").exists():
        return False
    try:
        return bool(_settings(file).get("base_model_name_or_path") == loaded.base)
    except InputError:
        return False  # `load` says it too


def _load(name: str, trainable: bool, tokenizer_folder: Path | None) -> Loaded:
    path = _resolve(name)
    if path is None:
        return _load_plain(name, name, tokenizer_folder)
    if path.is_dir() and (path / "adapter_config.json").exists():
        return _load_adapter(name, path, trainable)
    if path.is_dir():
        return _load_plain(name, str(_checked_folder(name, path)), tokenizer_folder)
    _check_file(name, path)
    return _load_plain(name, str(path.parent), tokenizer_folder, gguf_file=path.name)


def check_model(source: str | Path) -> None:
    """Check, before long work, that `load` finds a model: its files, an adapter's base; no weights are read.

    Nothing is asked of the network, so a hub id is refused only if it can be none, or if the Hub is switched off and
    the cache does not have it.

    Raises
    ------
    InputError : nothing there, pickled weights, code in the model folder, an adapter whose base is not there.
    """
    name = str(source)
    path = _resolve(name)
    if path is None:
        _check_hub_id(name)
    elif path.is_dir() and (path / "adapter_config.json").exists():
        check_model(_base_of(name, path))
    elif path.is_dir():
        _checked_folder(name, path)
    else:
        _check_file(name, path)


def _check_hub_id(name: str) -> None:
    try:
        cached = [try_to_load_from_cache(name, file) for file in ("config.json", "adapter_config.json")]
    except HFValidationError:
        raise InputError(f"{name}: no such file or folder, and no id that the Hub could have.") from None
    if is_offline_mode() and not any(isinstance(file, str) for file in cached):
        raise InputError(
            f"{name}: no such file or folder, and the cache of the Hub, which is switched off (HF_HUB_OFFLINE), does "
            "not have it. Give a folder, or fetch it first."
        )


def _check_file(name: str, file: Path) -> None:
    if file.suffix in _PICKLES:
        raise InputError(
            f"{name}: a pickle can run code when it is opened, so it was not. Convert it to safetensors "
            "(model.save_pretrained does) and give the folder."
        )
    if file.suffix != ".gguf":
        raise InputError(
            f"{name}: not a model. Give a hub id, a model or adapter folder with safetensors, or a .gguf file."
        )


def plain_source(name: str) -> str:
    """Where transformers reads a model that is no adapter and no single file from: a safe folder, or a hub id.

    Raises
    ------
    InputError : nothing there, a file, an adapter, pickled weights, code in the folder.
    """
    path = _resolve(name)
    if path is None:
        return name
    if not path.is_dir() or (path / "adapter_config.json").exists():
        raise InputError(f"{name}: not a model folder. Give a hub id, or a folder with config.json and safetensors.")
    return str(_checked_folder(name, path))


def _resolve(name: str) -> Path | None:
    """Local path of a model, or None for a hub id."""
    if name.startswith("package:"):
        package, _, file = name.removeprefix("package:").partition("/")
        found = importlib.util.find_spec(package) if package.isidentifier() else None
        if found is None or found.origin is None:
            raise InputError(
                f"{name}: the Python package {package!r} is not installed. Install it: pip install {package}"
            )
        path = (Path(found.origin).parent / file).resolve()
        if not path.is_relative_to(Path(found.origin).parent.resolve()) or not path.exists():
            raise InputError(f"{name}: the package {package!r} has no file {file!r}.")
        return path
    path = Path(name).expanduser()
    if path.exists():
        return path
    looks_local = name.startswith((".", "/", "~")) or name.count("/") != 1 or path.suffix in (".gguf", *_PICKLES)
    if looks_local and not (name.count("/") == 0 and path.suffix == ""):
        raise InputError(f"{name}: no such file or folder.")
    return None


def _checked_folder(name: str, folder: Path) -> Path:
    """Refuse a model folder with code of its own, pickles, or an index that names anything else."""
    config = folder / "config.json"
    if not config.exists():
        raise InputError(f"{name}: no config.json or adapter_config.json in this folder, so it is not a model.")
    if "auto_map" in _settings(config):
        raise InputError(
            f"{name}: this model brings its own code (auto_map in config.json), which amends does not run."
        )
    _refuse_pickles(name, folder, "model*.safetensors")
    index = folder / "model.safetensors.index.json"
    shards = _settings(index).get("weight_map") if index.exists() else {}
    if not isinstance(shards, dict):
        raise InputError(f"{index}: has no weight_map. Save the model again with save_pretrained.")
    for shard in {str(shard) for shard in shards.values()}:
        if not shard.endswith(".safetensors") or Path(shard).name != shard or not (folder / shard).is_file():
            raise InputError(f"{index}: names {shard[:200]!r}, which is no safetensors file of this folder.")
        check_safetensors(folder / shard)
    return folder


def _settings(file: Path) -> dict[str, Any]:
    """Read a JSON file of a model folder; Infinity is allowed there."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not valid JSON, so it cannot be read ({first_line(error)}).") from None
    if not isinstance(found, dict):
        raise InputError(f"{file}: not an object of settings. Save the model again with save_pretrained.")
    return found


def _refuse_pickles(name: str, folder: Path, wanted: str) -> None:
    """Refuse a folder without real safetensors: with pickles only, or with a pickle under that name."""
    found = sorted(folder.glob(wanted))
    if not found:
        pickles = [file.name for file in sorted(folder.iterdir()) if file.suffix in _PICKLES]
        there = f" It holds {pickles[0]}, a pickle, which can run code when it is opened." if pickles else ""
        raise InputError(
            f"{name}: no safetensors weights here.{there} Save the model with save_pretrained (safetensors)."
        )
    for file in found:
        check_safetensors(file)


def check_safetensors(file: Path) -> None:
    """Read the header of a safetensors file and nothing else.

    Raises
    ------
    InputError : not a safetensors file (a pickle, a cut download).
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        start = stream.read(1)
    if length > size - 8 or start != b"{":
        raise InputError(
            f"{file}: not a safetensors file (its header does not fit its {size} bytes); a pickle or a cut download. "
            "It was not opened further."
        )


def _load_plain(name: str, source: str, tokenizer_folder: Path | None, **gguf: str) -> Loaded:
    """Load a model; its tokenizer from elsewhere if a folder is named, since reading it from GGUF takes seconds."""
    keeps_bfloat16 = device().type == "cuda" and precision() == "bfloat16" and not gguf
    try:
        with quiet():
            tokenizer_source, where = (str(tokenizer_folder), {}) if tokenizer_folder else (source, gguf)
            tokenizer = AutoTokenizer.from_pretrained(tokenizer_source, trust_remote_code=False, **where)
            model: Any = AutoModelForCausalLM.from_pretrained(
                source,
                trust_remote_code=False,
                use_safetensors=True,
                dtype="auto" if keeps_bfloat16 else torch.float32,
                **gguf,
            )
    except MemoryError:
        raise
    except Exception as error:  # what a damaged folder raises is not documented: TypeError, struct.error, ...
        nowhere = "" if Path(source).exists() else "no such folder here, and as a hub id it "
        raise InputError(
            f"{name}: {nowhere}could not be loaded as a causal language model: {first_line(error)}"
        ) from error
    if gguf:
        # De-quantised now: without this the saved config would send readers back to the GGUF file.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.hf_quantizer = None
        model.is_quantized = False
    if model.dtype == torch.float16:  # float32 holds it exactly, bfloat16 would round it
        model = model.float()
    return Loaded(model.to(device()).eval(), _with_padding(tokenizer), name, name)


def _with_padding(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load_adapter(name: str, folder: Path, trainable: bool, base: Loaded | None = None) -> Loaded:
    base_name = _base_of(name, folder)
    own_tokenizer = folder if (folder / "tokenizer_config.json").exists() else None
    base = base or _load(base_name, False, own_tokenizer)
    provenance = folder / PROVENANCE
    if provenance.exists():
        expected = _settings(provenance).get("base_sha256")
        if expected != weights_sha256(base.model):
            raise InputError(
                f"{name}: this adapter was made for other weights than {base.name} holds now (SHA-256 differs). "
                "Use the base model it was trained on."
            )
    try:
        with quiet(), warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys.*")
            model = PeftModel.from_pretrained(base.model, str(folder), is_trainable=trainable)
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise InputError(
            f"{name}: this adapter does not fit its base model {base.name}: {first_line(error)} "
            "It was made for another model."
        ) from None
    return Loaded(model.to(device()).eval(), base.tokenizer, name, base.name)


def _base_of(name: str, folder: Path) -> str:
    """Name of the model below an adapter."""
    _refuse_pickles(name, folder, "adapter_model*.safetensors")
    base_name = _settings(folder / "adapter_config.json").get("base_model_name_or_path")
    if not base_name or not isinstance(base_name, str):
        raise InputError(f"{name}: adapter_config.json does not name its base model (base_model_name_or_path).")
    if Path(base_name, "adapter_config.json").exists():
        raise InputError(
            f"{name}: its base model {base_name} is an adapter too. Merge that one into its own base first."
        )
    return base_name


def add_lora(model: PreTrainedModel, rank: int = 16) -> PeftModel:
    """Wrap a model with a fresh LoRA adapter on all linear layers, alpha = 2 x rank, no dropout."""
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with quiet():
        wrapped = get_peft_model(model, config)
    assert isinstance(wrapped, PeftModel)
    return wrapped


def prepare(loaded: Loaded, lora_rank: int) -> Any:
    """Make weights trainable: the adapter that is there, a new one, or (rank 0) all of them, in float32."""
    if lora_rank == 0:
        whole = loaded.model.merge_and_unload() if isinstance(loaded.model, PeftModel) else loaded.model
        return whole.float().requires_grad_(True)
    return loaded.model if isinstance(loaded.model, PeftModel) else add_lora(loaded.model, lora_rank)


def count_layers(source: str | Path) -> int:
    """Count the layers of a model by its configuration, without its weights; of a GGUF file this takes seconds.

    Raises
    ------
    InputError : as `check_model`; a configuration that cannot be read.
    """
    name = str(source)
    check_model(name)
    path = _resolve(name)
    if path is not None and (path / "adapter_config.json").exists():
        return count_layers(_base_of(name, path))
    whole = path is None or path.is_dir()
    where = {} if whole else {"gguf_file": path.name}  # type: ignore[union-attr]
    try:
        with quiet():
            config: Any = AutoConfig.from_pretrained(
                name if path is None else str(path if whole else path.parent), trust_remote_code=False, **where
            )
        return int(config.get_text_config().num_hidden_layers)
    except MemoryError:
        raise
    except Exception as error:  # as when a model is loaded
        raise InputError(f"{name}: its configuration could not be read: {first_line(error)}") from error


def layer_numbers(layers: str) -> range:
    """Read "FIRST-LAST" or one number, counted from 0 and both included; empty where the first is behind the last.

    Raises
    ------
    InputError : not of that form.
    """
    asked = re.fullmatch(r"(\d+)(?:-(\d+))?", layers)
    if not asked:
        raise InputError(f"--layers {layers}: write FIRST-LAST, such as 0-14, or one number.")
    return range(int(asked[1]), int(asked[2] or asked[1]) + 1)


def train_only(model: Any, layers: str) -> None:
    """Let only some layers' weights, of those that are trained, require gradients.

    layers : str
        "FIRST-LAST" or one number, counted from 0 and both included.

    Raises
    ------
    InputError : not of that form, or the model has no such layers with trained weights.
    """
    wanted = layer_numbers(layers)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    number = {name: int(found[1]) for name in trained if (found := _LAYER.search(name))}
    there = sorted(set(number.values()))
    if not (wanted and there and there[0] <= wanted[0] and wanted[-1] <= there[-1]):
        says = f"the layers that can be trained are {there[0]} to {there[-1]}" if there else "no layers were found"
        raise InputError(f"--layers {layers}: {says}.")
    for name, weight in trained.items():
        weight.requires_grad_(number.get(name) in wanted)


def save_model(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, base: str) -> None:
    """Write what plain `transformers` (full weights) or plain `peft` (adapter) loads: safetensors, config, tokenizer.

    An adapter's folder also says which base weights it belongs to, so that it is never put on others unnoticed.
    """
    if isinstance(model, PeftModel):
        settings: Any
        for settings in model.peft_config.values():
            settings.base_model_name_or_path = base
            if isinstance(getattr(settings, "target_modules", None), set):
                settings.target_modules = sorted(settings.target_modules)  # a set's order changes from run to run
        write_json(folder / PROVENANCE, {"base": base, "base_sha256": base_sha256(model)})
    with quiet():
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))


def device() -> torch.device:
    """Choose the accelerator if there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def precision() -> Precision:
    """Choose the fastest precision that is safe here: bfloat16 where the hardware multiplies it natively, else float32.

    A CPU without such instructions emulates bfloat16, several times slower than float32.
    """
    if device().type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if native else "float32"


def autocast() -> torch.autocast:
    """Context in which forward passes run at `precision()`."""
    return torch.autocast(device().type, torch.bfloat16, enabled=precision() == "bfloat16")


def weights_sha256(model: torch.nn.Module) -> str:
    """SHA-256 over name, type, shape and bytes of every tensor of a model, in name order, 16-bit floats as float32.

    A tensor shared under two names counts under both; the result depends neither on the device, nor on the file format,
    nor on whether bfloat16 or float16 weights were loaded as float32.
    """
    return _tensors_sha256(model.state_dict())


def base_sha256(model: PeftModel) -> str:
    """`weights_sha256` that the base model below an adapter has without the adapter."""
    state = model.get_base_model().state_dict()
    return _tensors_sha256({n.replace(".base_layer.", "."): t for n, t in state.items() if ".lora_" not in n})


def _tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, stored in sorted(tensors.items()):
        tensor = stored.float() if stored.dtype in (torch.bfloat16, torch.float16) else stored
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def first_line(error: BaseException) -> str:
    """Give the first line of an error's text, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


class quiet:
    """No progress bars of the loader, no log lines, for the time of the block."""

    def __enter__(self) -> None:
        self.verbosity = transformers_logging.get_verbosity()
        self.bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity(transformers_logging.ERROR)
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        # The bar of the GGUF reader listens to none of the above.
        self.stderr = redirect_stderr(io.StringIO())
        self.stderr.__enter__()
        self.filters = warnings.catch_warnings()
        self.filters.__enter__()
        # peft asks transformers by a name that is going to change; nothing that a user can mend.
        # peft sets this by itself for GPT-2's layers.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)

    def __exit__(self, *_: object) -> None:
        self.filters.__exit__(None, None, None)
        self.stderr.__exit__(None, None, None)
        transformers_logging.set_verbosity(self.verbosity)
        if self.bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
