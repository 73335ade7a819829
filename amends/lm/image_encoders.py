"""Models that look at a picture and give a vector for it: CLIP and its kind, vision transformers, convolutional nets.

Shapes: N pictures, D width of the vector.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel

from amends.io.errors import InputError
from amends.lm.find import first_line, plain_source
from amends.lm.load import autocast, device
from amends.lm.quiet import quiet

PICTURES_AT_ONCE = 32


class ImageEncoder(NamedTuple):
    """An encoder ready to use."""

    model: Any
    processor: Any
    name: str
    has_pooler: bool
    """Whether the weights of the layer that makes one vector of the states are in the file."""


def load_image_encoder(name: str) -> ImageEncoder:
    """Load an encoder from a hub id, a local folder or package:NAME/FOLDER; safetensors only, none of its code is run.

    Raises
    ------
    InputError : nothing there, pickled weights, code in the folder, or no encoder of pictures.
    """
    source = plain_source(name)
    auto: Any = AutoImageProcessor
    try:
        with quiet():
            processor = auto.from_pretrained(source, trust_remote_code=False, backend="pil")
            model, about = AutoModel.from_pretrained(
                source, trust_remote_code=False, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
    except MemoryError:
        raise
    except Exception as error:  # what a damaged folder raises is not documented
        raise InputError(f"{name}: could not be loaded as an encoder of pictures: {first_line(error)}") from error
    absent = sorted(about["missing_keys"])
    if strange := [key for key in absent if not key.startswith("pooler.")]:
        raise InputError(f"{name}: lacks weights ({strange[0]}), which would be drawn at random. Save the model again.")
    return ImageEncoder(model.to(device()).eval(), processor, name, not absent)


def embed_images(encoder: ImageEncoder, pictures: Iterable[Any]) -> Tensor:
    """Embed pictures (N, D), float32, of length 1.

    Of CLIP and its kind what is compared with texts; else the model's own summary of its states, or, where it has none,
    the state of the first patch token.

    Parameters
    ----------
    pictures : iterable of PIL.Image.Image, in RGB, at least one; few are held at a time.
    """
    left, found = iter(pictures), []
    while batch := list(islice(left, PICTURES_AT_ONCE)):  # itertools.batched is of Python 3.12
        found.append(_vectors(encoder, batch))
    return torch.cat(found)


def _vectors(encoder: ImageEncoder, pictures: list[Any]) -> Tensor:
    where = next(encoder.model.parameters()).device
    pixels = encoder.processor(images=pictures, return_tensors="pt")["pixel_values"].to(where)
    with torch.inference_mode(), autocast():
        if hasattr(encoder.model, "get_image_features"):
            out = encoder.model.get_image_features(pixel_values=pixels)
        else:
            out = encoder.model(pixel_values=pixels)
    if not isinstance(out, Tensor):
        pooled = getattr(out, "pooler_output", None) if encoder.has_pooler else None
        out = out.last_hidden_state[:, 0] if pooled is None else pooled
    return torch.nn.functional.normalize(out.float().flatten(1), dim=-1).cpu()
