"""Models that are asked in turn: named ones, read for their turn alone, or loaded ones with their tokenizer."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedTokenizerBase

from amends.io.console import say
from amends.io.errors import InputError
from amends.lm.find import check_model
from amends.lm.load import Loaded, fitting, inner_of, load, shares_base
from amends.lm.logprobs import naming

Found = TypeVar("Found")


def model_for(model: str | Path | Any, tokenizer: PreTrainedTokenizerBase | None) -> Loaded:
    """Load a model by name, or take one that is loaded already.

    Raises
    ------
    InputError : no tokenizer beside a loaded model, or one that holds an adapter of which it does not know.
    """
    if isinstance(model, str | Path):
        loaded = load(model, trainable=True)
        return loaded if tokenizer is None else loaded._replace(tokenizer=fitting(tokenizer, loaded.model, loaded.name))
    if tokenizer is None:
        raise InputError("processing_class: pass the tokenizer along with a model that is loaded already.")
    if not isinstance(model, PeftModel) and any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise InputError(
            f"{type(model).__name__}: this model holds an adapter, such as an earlier run puts into it. Load it again, "
            "or hand over what holds both (the run's result.model, a PeftModel)."
        )
    inner = inner_of(model)
    name = str(inner.config.name_or_path or type(inner).__name__)
    return Loaded(model, fitting(tokenizer, inner, name), name, name)


def is_same(one: Any, other: Any) -> bool:
    """Whether two models are one: the same object, or the same name."""
    named = isinstance(one, str | Path) and isinstance(other, str | Path)
    return str(one) == str(other) if named else one is other


def measure_each(
    models: Mapping[str, Any],
    measure: Callable[[str, Loaded], Found],
    tokenizer: PreTrainedTokenizerBase | None,
    called: str = "{role}, {name}",
) -> dict[str, Found]:
    """Measure one model after the other; one that is named is in memory for its turn alone.

    Parameters
    ----------
    models : dict
        Role to what `amends.lm.load` takes, or to a model that is loaded already (with `tokenizer`); None where there
        is none. One that is the same as the one before is not read again.
    called : str
        What a model is called that gives no numbers.
    """
    found: dict[str, Found] = {}
    loaded: Loaded | None = None
    last: Any = None
    for role, source in models.items():
        if source is None:
            continue
        if loaded is not None and is_same(last, source):
            pass
        elif isinstance(source, str | Path):
            say(f"{role}: reading {source}")
            instead = loaded if loaded is not None and shares_base(loaded, source) else None
            loaded = None  # so that it is gone before the next one comes
            loaded = load(source, instead_of=instead)
        else:
            loaded = model_for(source, tokenizer)
        last = source
        was_training = loaded.model.training
        loaded.model.eval()
        with naming(called.format(role=role, name=loaded.name)):
            found[role] = measure(role, loaded)
        loaded.model.train(was_training)
    return found


def check_models(models: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Refuse names with no model behind them, and a loaded model without a tokenizer, before anything is read.

    Raises
    ------
    InputError : as said.
    """
    for model in models.values():
        if isinstance(model, str | Path):
            check_model(model)
    if tokenizer is None and any(m is not None and not isinstance(m, str | Path) for m in models.values()):
        raise InputError("processing_class: pass the tokenizer along with models that are loaded already.")
