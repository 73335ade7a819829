"""What the configuration of a model says, and which of its layers are trained."""

import re
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from amends.io.errors import InputError
from amends.lm.find import base_of, check_model, first_line, resolve
from amends.lm.quiet import quiet

LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
"""The number of a layer in the name of a weight."""


def count_layers(source: str | Path) -> int:
    """Count the layers of a model by its configuration, as `read_config` finds it."""
    return int(read_config(source).get_text_config().num_hidden_layers)


def read_config(source: str | Path) -> Any:
    """Read the configuration of a model, an adapter's base's, without its weights; of a GGUF file this takes seconds.

    Raises
    ------
    InputError : as `check_model`; a configuration that cannot be read.
    """
    name = str(source)
    check_model(name)
    path = resolve(name)
    if path is not None and (path / "adapter_config.json").exists():
        return read_config(base_of(name, path))
    whole = path is None or path.is_dir()
    where = {} if whole else {"gguf_file": path.name}  # type: ignore[union-attr]
    try:
        with quiet():
            return AutoConfig.from_pretrained(
                name if path is None else str(path if whole else path.parent), trust_remote_code=False, **where
            )
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


def check_layers(layers: str, num_layers: int) -> None:
    """Refuse layers that a model of that many has not.

    Raises
    ------
    InputError
    """
    wanted = layer_numbers(layers)
    if not wanted or wanted[-1] >= num_layers:
        raise InputError(f"--layers {layers}: the model has layers 0 to {num_layers - 1}. Give some of those.")


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
    number = {name: int(found[1]) for name in trained if (found := LAYER.search(name))}
    there = sorted(set(number.values()))
    if not (wanted and there and there[0] <= wanted[0] and wanted[-1] <= there[-1]):
        says = f"the layers that can be trained are {there[0]} to {there[-1]}" if there else "no layers were found"
        raise InputError(f"--layers {layers}: {says}.")
    for name, weight in trained.items():
        weight.requires_grad_(number.get(name) in wanted)
