"""Models that read a text and give numbers for it: a sentence embedding, or the probabilities of classes.

Shapes: N texts, T tokens, D width of the model, K classes.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from amends.io.errors import InputError
from amends.lm.find import first_line, plain_source
from amends.lm.load import autocast, device
from amends.lm.quiet import quiet

TEXTS_AT_ONCE = 32


class Encoder(NamedTuple):
    """An encoder ready to use."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    name: str


def load_encoder(name: str, kind: Literal["embedding", "classes"]) -> Encoder:
    """Load an encoder from a hub id, a local folder or package:NAME/FOLDER; safetensors only, none of its code is run.

    Raises
    ------
    InputError : nothing there, pickled weights, code in the folder, no classes in the model, weights that are missing.
    """
    source = plain_source(name)
    auto: Any = AutoModel if kind == "embedding" else AutoModelForSequenceClassification
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            model, about = auto.from_pretrained(
                source, trust_remote_code=False, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
    except MemoryError:
        raise
    except Exception as error:  # what a damaged folder raises is not documented
        what = "a sentence embedding" if kind == "embedding" else "a classifier of texts"
        raise InputError(f"{name}: could not be loaded as {what}: {first_line(error)}") from error
    if kind == "classes" and about["missing_keys"]:
        raise InputError(
            f"{name}: has no weights for its classes ({sorted(about['missing_keys'])[0]}), so it is no classifier. "
            "Name one that was trained to tell texts apart."
        )
    if absent := sorted(key for key in about["missing_keys"] if not key.startswith("pooler.")):  # no mean is of that
        raise InputError(f"{name}: lacks weights ({absent[0]}), which would be drawn at random. Save the model again.")
    return Encoder(model.to(device()).eval(), tokenizer, name)


def embed(encoder: Encoder, texts: Sequence[str]) -> Tensor:
    """Sentence embeddings (N, D), float32, of length 1: the mean over tokens of the last states.

    That is how all-MiniLM and most of its kind are meant; models with another pooling are not for this. A text without
    a token, which a tokenizer that frames none makes of an empty one, is 0 throughout.
    """
    found = []
    for batch, out in _outputs(encoder, texts):
        mask_NT1 = batch["attention_mask"][..., None].float()
        mean_ND = (out.last_hidden_state.float() * mask_NT1).sum(1) / mask_NT1.sum(1).clamp(min=1)
        found.append(torch.nn.functional.normalize(mean_ND, dim=-1).cpu())
    return torch.cat(found) if found else torch.empty(0, encoder.model.config.get_text_config().hidden_size)


def class_probabilities(encoder: Encoder, texts: Sequence[str]) -> Tensor:
    """Probabilities of the classes (N, K), float32."""
    return _logits(encoder, texts).softmax(-1)


def is_class(encoder: Encoder, number: int, texts: Sequence[str]) -> list[bool]:
    """Whether each text is of a class; an empty text never is.

    It is if that class is the likeliest one, or, where the model's configuration says that several may hold
    (`multi_label_classification`), if it is likelier than not.
    """
    found = [False] * len(texts)
    if order := sorted((i for i, text in enumerate(texts) if text.strip()), key=lambda i: len(texts[i])):
        logits_NK = _logits(encoder, [texts[i] for i in order])
        several = encoder.model.config.problem_type == "multi_label_classification"
        chosen_N = logits_NK[:, number] > 0 if several else logits_NK.argmax(1) == number
        for i, chosen in zip(order, chosen_N.tolist(), strict=True):
            found[i] = chosen
    return found


def class_named(encoder: Encoder, name: str) -> int:
    """Find the number of the class of this name, in whatever case.

    Raises
    ------
    InputError : there is none; the names that there are.
    """
    names = {int(number): str(label) for number, label in encoder.model.config.id2label.items()}
    for number, label in names.items():
        if label.casefold() == name.casefold():
            return number
    raise InputError(f"{encoder.name}: has no class {name!r} (found: {', '.join(names.values())[:200]}).")


def _logits(encoder: Encoder, texts: Sequence[str]) -> Tensor:
    found = [out.logits.float().cpu() for _, out in _outputs(encoder, texts)]
    return torch.cat(found) if found else torch.empty(0, encoder.model.config.num_labels)


def _outputs(encoder: Encoder, texts: Sequence[str]) -> Iterator[tuple[dict[str, Tensor], Any]]:
    context = getattr(encoder.model.config, "max_position_embeddings", None) or 512
    limit = min(context - 2, encoder.tokenizer.model_max_length)  # RoBERTa numbers positions from 2
    where = next(encoder.model.parameters()).device
    size = TEXTS_AT_ONCE if encoder.tokenizer.pad_token_id is not None else 1
    for start in range(0, len(texts), size):
        found = encoder.tokenizer(
            list(texts[start : start + size]),
            padding=size > 1,
            truncation=True,
            max_length=limit,
            return_tensors="pt",
            split_special_tokens=True,  # they are no marks where a text holds them
        )
        if not found["input_ids"].numel():  # no model takes that
            found = {name: torch.zeros((len(tensor), 1), dtype=torch.int64) for name, tensor in found.items()}
        batch = {name: tensor.to(where) for name, tensor in found.items()}
        with torch.inference_mode(), autocast():
            yield batch, encoder.model(**batch)
