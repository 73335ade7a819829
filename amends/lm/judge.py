"""A text classifier that the user names, to judge what a model says. Loaded by the rules for language models."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from amends.io.errors import InputError
from amends.lm.load import autocast, checked_folder, device, first_line, local_path, quiet, weights_sha256

LONGEST = 512  # tokens of a text that a classifier with no limit of its own is shown


class Judge(NamedTuple):
    """A classifier and the label of it that counts."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    name: str
    label: str
    number: int

    def about(self) -> dict[str, str]:
        """Say which one it is, for a record."""
        return {"name": self.name, "label": self.label, "weights": weights_sha256(self.model)}


def load_judge(name: str, label: str) -> Judge:
    """Load a sequence-classification model: a hub id or a folder with safetensors; no remote code, no pickles.

    Raises
    ------
    InputError : nothing there, not such a model, or it has no such label.
    """
    path = local_path(name)
    if path is not None and not path.is_dir():
        raise InputError(f"--judge {name}: not a model folder. Give one of a sequence classifier, or a hub id.")
    source = name if path is None else str(checked_folder(name, path))
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                source, trust_remote_code=False, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
    except MemoryError:
        raise
    except Exception as error:  # as in `amends.lm.load`
        raise InputError(
            f"--judge {name}: could not be loaded as a sequence classifier: {first_line(error)}"
        ) from error
    if missing := sorted(loading["missing_keys"]):
        raise InputError(
            f"--judge {name}: not a sequence classifier: its weights lack {missing[0]}. Give a model that was trained "
            "to classify texts."
        )
    labels = {str(text): int(i) for i, text in model.config.id2label.items()}
    if label not in labels or len(labels) < 2:
        known = ", ".join(labels)[:300]
        raise InputError(f"--judge-label {label}: {name} has no such label among two or more (it has: {known}).")
    return Judge(model.to(device()).eval(), tokenizer, name, label, labels[label])


def verdicts(judge: Judge, texts: Sequence[str], batch_size: int = 16) -> list[bool]:
    """Whether the classifier gives each text its label; an empty text never gets it.

    The label is the likeliest one, or, where the model's configuration says that several may hold
    (`multi_label_classification`), one that is likelier than not. Texts are cut at the model's longest input.
    """
    several = judge.model.config.problem_type == "multi_label_classification"
    context = getattr(judge.model.config, "max_position_embeddings", None) or LONGEST
    longest = min(judge.tokenizer.model_max_length, context, LONGEST)
    found = [False] * len(texts)
    order = sorted((i for i, text in enumerate(texts) if text.strip()), key=lambda i: len(texts[i]))
    size = batch_size if judge.tokenizer.pad_token_id is not None else 1
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        encoded = judge.tokenizer(
            [texts[i] for i in batch],
            truncation=True,
            max_length=longest,
            padding=size > 1,
            return_tensors="pt",
            split_special_tokens=True,
        )
        with torch.inference_mode(), autocast():
            logits_BK = judge.model(**encoded.to(device())).logits.float()
        chosen_B = logits_BK[:, judge.number] > 0 if several else logits_BK.argmax(1) == judge.number
        for i, chosen in zip(batch, chosen_B.tolist(), strict=True):
            found[i] = bool(chosen)
    return found
