"""Find a model where people keep theirs, and refuse what may not be opened: pickles, and code of a model's own."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from huggingface_hub import is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from amends.io.errors import InputError

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".h5")


def check_model(source: str | Path) -> None:
    """Check, before long work, that `load` finds a model: its files, an adapter's base; no weights are read.

    Nothing is asked of the network, so a hub id is refused only if it can be none, or if the Hub is switched off and
    the cache does not have it.

    Raises
    ------
    InputError : nothing there, pickled weights, code in the model folder, an adapter whose base is not there.
    """
    name = str(source)
    path = resolve(name)
    if path is None:
        _check_hub_id(name)
    elif path.is_dir() and (path / "adapter_config.json").exists():
        check_model(base_of(name, path))
    elif path.is_dir():
        checked_folder(name, path)
    else:
        check_file(name, path)


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


def check_file(name: str, file: Path) -> None:
    """Refuse a file that is no GGUF by its name."""
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
    path = resolve(name)
    if path is None:
        return name
    if not path.is_dir() or (path / "adapter_config.json").exists():
        raise InputError(f"{name}: not a model folder. Give a hub id, or a folder with config.json and safetensors.")
    return str(checked_folder(name, path))


def resolve(name: str) -> Path | None:
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


def checked_folder(name: str, folder: Path) -> Path:
    """Refuse a model folder with code of its own, pickles, or an index that names anything else."""
    config = folder / "config.json"
    if not config.exists():
        inside = folder / "model"
        hint = f" Give {inside if inside.is_dir() else 'the folder that was saved'}."
        raise InputError(f"{name}: no config.json or adapter_config.json in this folder, so it is not a model.{hint}")
    if "auto_map" in settings(config):
        raise InputError(
            f"{name}: this model brings its own code (auto_map in config.json), which amends does not run."
        )
    refuse_pickles(name, folder, "model*.safetensors")
    index = folder / "model.safetensors.index.json"
    shards = settings(index).get("weight_map") if index.exists() else {}
    if not isinstance(shards, dict):
        raise InputError(f"{index}: has no weight_map. Save the model again with save_pretrained.")
    for shard in {str(shard) for shard in shards.values()}:
        if not shard.endswith(".safetensors") or Path(shard).name != shard or not (folder / shard).is_file():
            raise InputError(f"{index}: names {shard[:200]!r}, which is no safetensors file of this folder.")
        check_safetensors(folder / shard)
    return folder


def base_of(name: str, folder: Path) -> str:
    """Name of the model below an adapter."""
    refuse_pickles(name, folder, "adapter_model*.safetensors")
    base_name = settings(folder / "adapter_config.json").get("base_model_name_or_path")
    if not base_name or not isinstance(base_name, str):
        raise InputError(f"{name}: adapter_config.json does not name its base model (base_model_name_or_path).")
    if Path(base_name, "adapter_config.json").exists():
        raise InputError(
            f"{name}: its base model {base_name} is an adapter too. Merge that one into its own base first."
        )
    return base_name


def settings(file: Path) -> dict[str, Any]:
    """Read a JSON file of a model folder; Infinity is allowed there."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not valid JSON, so it cannot be read ({first_line(error)}).") from None
    if not isinstance(found, dict):
        raise InputError(f"{file}: not an object of settings. Save the model again with save_pretrained.")
    return found


def refuse_pickles(name: str, folder: Path, wanted: str) -> None:
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


def first_line(error: BaseException) -> str:
    """Give the first line of an error's text, with the next ones where it ends in a colon, or its kind."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return (" ".join(map(str.strip, lines)) if lines[0].rstrip().endswith(":") else lines[0])[:300]
