"""Load a causal language model from wherever people keep them, safely: safetensors and GGUF only, no remote code."""

import copy
import hashlib
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from amends.io.atomic import write_json
from amends.io.errors import InputError
from amends.lm.config import LAYER
from amends.lm.find import (
    base_of,
    check_file,
    checked_folder,
    first_line,
    resolve,
    settings,
)
from amends.lm.quiet import quiet
from amends.lm.templates import end_of_text, plain_ids, start_of_text, template_ids, turn_end

Precision = Literal["float32", "bfloat16"]
PROVENANCE = "amends.json"
"""File beside an adapter of ours: which base weights it was trained on."""
LORA_RANK = 16
"""Of a new adapter, where none is asked for."""


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
        return same_model(str(settings(file).get("base_model_name_or_path")), loaded.base)
    except InputError:
        return False  # `load` says it too


def same_model(one: str, other: str) -> bool:
    """Whether two names are of one model: the same name, or the same place."""
    return kept_name(one) == kept_name(other)


def kept_name(base: str) -> str:
    """Name of a base model that holds in every folder: of one that lies on this machine its whole path."""
    path = Path(base).expanduser()
    # The parts above are resolved, so that no ".." is left; the name itself may be a link on purpose.
    return str(path.parent.resolve() / path.name) if base and path.exists() else base


def _load(name: str, trainable: bool, tokenizer_folder: Path | None) -> Loaded:
    path = resolve(name)
    if path is None:
        adapter = _hub_adapter(name)
        return _load_adapter(name, adapter, trainable) if adapter else _load_plain(name, name, tokenizer_folder)
    if path.is_dir() and (path / "adapter_config.json").exists():
        return _load_adapter(name, path, trainable)
    if path.is_dir():
        return _load_plain(name, str(checked_folder(name, path)), tokenizer_folder)
    check_file(name, path)
    return _load_plain(name, str(path.parent), tokenizer_folder, gguf_file=path.name)


def _hub_adapter(name: str) -> Path | None:
    """Fetch an adapter from the Hub; None where the id is not one of an adapter, which is left to transformers."""
    try:
        with quiet():
            hf_hub_download(name, "adapter_config.json")
    except LocalEntryNotFoundError as error:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return None
        # Said here: transformers would ask for two more files, each with retries of half a minute.
        raise InputError(
            f"{name}: no such file or folder here, not in the cache of the Hub, and the Hub could not be reached. Give "
            "a folder, or fetch it first."
        ) from error
    except (OSError, ValueError):  # no adapter, or no such id: transformers, asked for the model, says why
        return None
    # transformers would melt it into its base model, where nothing knows it for an adapter any more.
    try:
        with quiet():
            kinds = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
            return Path(snapshot_download(name, allow_patterns=kinds))
    except OSError as error:
        raise InputError(f"{name}: the adapter could not be fetched: {first_line(error)}") from error


def _load_plain(name: str, source: str, tokenizer_folder: Path | None, **gguf: str) -> Loaded:
    """Load a model; its tokenizer from elsewhere if a folder is named, since reading it from GGUF takes seconds."""
    keeps_bfloat16 = device().type == "cuda" and precision() == "bfloat16" and not gguf
    part = "its tokenizer: "
    try:
        with quiet():
            tokenizer_source, where = (str(tokenizer_folder), {}) if tokenizer_folder else (source, gguf)
            tokenizer = AutoTokenizer.from_pretrained(tokenizer_source, trust_remote_code=False, **where)
            part = ""
            found: Any = AutoModelForCausalLM.from_pretrained(
                source,
                trust_remote_code=False,
                use_safetensors=True,
                dtype="auto" if keeps_bfloat16 else torch.float32,
                output_loading_info=True,
                **gguf,
            )
    except MemoryError:
        raise
    except Exception as error:  # what a damaged folder raises is not documented: TypeError, struct.error, ...
        nowhere = "" if Path(source).exists() else "no such folder here, and as a hub id it "
        raise InputError(
            f"{name}: {nowhere}could not be loaded as a causal language model: {part}{first_line(error)}"
        ) from error
    model, told = found
    _check_complete(name, model, told)
    if gguf:
        # De-quantised now: without this the saved config would send readers back to the GGUF file.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.hf_quantizer = None
        model.is_quantized = False
    if model.dtype == torch.float16:  # float32 holds it exactly, bfloat16 would round it
        model = model.float()
    return Loaded(model.to(device()).eval(), fitting(tokenizer, model, name), name, name)


def _check_complete(name: str, model: PreTrainedModel, told: Mapping[str, Any]) -> None:
    """Refuse weights that transformers would make up, or leave out, without a word.

    Other weights than a language model's may be left out: those of the part of a model that sees, say.
    """
    known = {LAYER.sub(".layer.", weight) for weight in model.state_dict()}
    more = [weight for weight in told["unexpected_keys"] if LAYER.sub(".layer.", weight) in known]
    missing = sorted([*told["missing_keys"], *(entry[0] for entry in told["mismatched_keys"])])
    if missing or more:
        what = f"{missing[0]} is not there, or of another size" if missing else f"{sorted(more)[0]} has no place in it"
        raise InputError(
            f"{name}: its weights are not those of the model that config.json describes: {what} "
            f"({len(missing) + len(more)} in all). Get the folder again, whole."
        )


def fitting(tokenizer: PreTrainedTokenizerBase, model: Any, name: str) -> PreTrainedTokenizerBase:
    """Give a tokenizer whose tokens the model knows, to pad with too.

    A padding token that was added without a row for it in the embedding is replaced, as nothing sees the padding. Other
    tokens without a row may be there if neither a text nor the chat template makes them (Gemma 3's for pictures).

    Raises
    ------
    InputError : there is a token that the model does not know, and that it would be given.
    """
    known = model.get_input_embeddings().weight.shape[0]
    outside = {i: token for token, i in tokenizer.get_vocab().items() if i >= known}
    if tokenizer.pad_token_id in {None, *outside}:
        tokenizer = copy.deepcopy(tokenizer)
        pad = tokenizer.eos_token_id
        tokenizer.pad_token = None if pad in outside else tokenizer.eos_token
    if not outside:
        return tokenizer
    made = {*start_of_text(tokenizer), *end_of_text(tokenizer)}
    made |= {i for token in outside.values() for i in plain_ids(tokenizer, tokenizer.convert_tokens_to_string([token]))}
    if tokenizer.chat_template is not None:
        with suppress(InputError):  # a template that does not take this conversation may take those of the data
            made |= {*template_ids(tokenizer, [{"role": "user", "content": "a"}])[0], *turn_end(tokenizer)}
    if strange := sorted(made & outside.keys()):
        raise InputError(
            f"{name}: its tokenizer makes the token {outside[strange[0]]!r} (number {strange[0]}), of which the model "
            f"knows nothing: it has {known}. Give the tokenizer that belongs to it, or save the model again after "
            "model.resize_token_embeddings(len(tokenizer))."
        )
    return tokenizer


def _load_adapter(name: str, folder: Path, trainable: bool, base: Loaded | None = None) -> Loaded:
    base_name = base_of(name, folder)
    own_tokenizer = folder if (folder / "tokenizer_config.json").exists() else None
    try:
        base = base or _load(base_name, False, own_tokenizer)
    except InputError as error:
        raise InputError(f"{name}: its base model: {error}") from error
    provenance = folder / PROVENANCE
    if provenance.exists():
        expected = settings(provenance).get("base_sha256")
        if expected != weights_sha256(base.model):
            raise InputError(
                f"{name}: this adapter was made for other weights than {base.name} holds now (SHA-256 differs). "
                "Use the base model it was trained on."
            )
    try:
        with quiet(), warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys.*")
            warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys")  # as in add_lora
            model = PeftModel.from_pretrained(base.model, str(folder), is_trainable=trainable)
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise InputError(
            f"{name}: this adapter does not fit its base model {base.name}: {first_line(error)} "
            "It was made for another model."
        ) from None
    return Loaded(model.to(device()).eval(), base.tokenizer, name, base.name)


def add_lora(model: PreTrainedModel, rank: int = 16) -> PeftModel:
    """Wrap a model with a fresh LoRA adapter on all linear layers, alpha = 2 x rank, no dropout.

    That is on the experts of a mixture, too, where peft knows the family (Mixtral, Qwen MoE and others).
    """
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys")  # peft's own, for experts
        wrapped = get_peft_model(model, config)
    assert isinstance(wrapped, PeftModel)
    return wrapped


def rank_to_train(loaded: Loaded, asked: int | None) -> int:
    """Give the LoRA rank of a training, 0 for all weights: what is asked, else the adapter's, else `LORA_RANK`.

    Raises
    ------
    InputError : another rank than that of the adapter that goes on training, one that a folder does not hold under its
        name, or all of weights that are quantised.
    """
    if asked == 0 and getattr(loaded.model, "is_quantized", False):
        raise InputError(f"--lora-rank 0: {loaded.name} is quantised, and such weights are not trained. Leave it out.")
    if not isinstance(loaded.model, PeftModel):
        return LORA_RANK if asked is None else asked
    if asked != 0 and (names := [*loaded.model.peft_config]) != ["default"]:
        raise InputError(
            f"{loaded.name}: holds adapters named {', '.join(names)}; one that goes on training must be the only one "
            "and named default. Load it alone and without adapter_name, or merge it (--lora-rank 0)."
        )
    there = getattr(loaded.model.peft_config[loaded.model.active_adapter], "r", None)  # other kinds have none
    if asked not in (None, 0, there):
        raise InputError(
            f"--lora-rank {asked}: {loaded.name} is an adapter{f' of rank {there}' if there else ''}, which goes on "
            "training. Leave it out, or give 0 to merge the adapter and train all weights."
        )
    return (there or LORA_RANK) if asked is None else asked


def prepare(loaded: Loaded, lora_rank: int) -> Any:
    """Make weights trainable: the adapter that is there, a new one, or (rank 0) all of them, in float32."""
    if lora_rank == 0:
        whole = loaded.model.merge_and_unload() if isinstance(loaded.model, PeftModel) else loaded.model
        return whole.float().requires_grad_(True)
    if not isinstance(loaded.model, PeftModel):
        return add_lora(loaded.model, lora_rank)
    if not any(weight.requires_grad for weight in loaded.model.parameters()):  # as peft loads it by default
        loaded.model.set_adapter(loaded.model.active_adapter)
    return loaded.model


def save_model(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, base: str) -> None:
    """Write what plain `transformers` (full weights) or plain `peft` (adapter) loads: safetensors, config, tokenizer.

    An adapter's folder also says which base weights it belongs to, so that it is never put on others unnoticed. It
    names a base that lies on this machine by its whole path, as it is to load from any folder.
    """
    if isinstance(model, PeftModel):
        base = kept_name(base)
        settings: Any
        for settings in model.peft_config.values():
            settings.base_model_name_or_path = base
            for name in ("target_modules", "target_parameters"):
                if isinstance(places := getattr(settings, name, None), set):
                    setattr(settings, name, sorted(places))  # a set's order changes from run to run
        write_json(folder / PROVENANCE, {"base": base, "base_sha256": base_sha256(model)})
    with quiet():
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))


def inner_of(model: Any) -> Any:
    """Give the model below an adapter, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


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
    state = inner_of(model).state_dict()
    return _tensors_sha256({n.replace(".base_layer", ""): t for n, t in state.items() if ".lora_" not in n})


def _tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, stored in sorted(tensors.items()):
        tensor = stored.float() if stored.dtype in (torch.bfloat16, torch.float16) else stored
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
