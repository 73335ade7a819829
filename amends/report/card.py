"""The model card: README.md beside the weights, for who gets the model and not the run folder."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from amends.report._text import last_part, number, visible

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
ROLES = {"before": "before", "after": "after", "reference": "retrained reference"}
METRICS = {
    "forget_rouge_l": "ROUGE-L recall of the answers to forget",
    "forget_probability": "Probability of the answers to forget",
    "forget_quality_p": "Forget quality (p)",
    "retain_rouge_l": "ROUGE-L recall of the answers to keep",
    "retain_refusal_rate": "Share of questions to keep that are declined",
    "general_refusal_rate": "Share of everyday questions that are declined",
    "model_utility_arith": "Model utility (arithmetic)",
    "zero_shot_accuracy": "Multiple-choice accuracy",
    "text_perplexity": "Perplexity of plain text",
    "forget_extraction_strength": "Extraction strength of the answers to forget",
    "privleak": "PrivLeak (0: as if never seen)",
}
HELD = {"retain": "", "neighbours": " on others, answered by the model itself"}
OLD_HOW = {
    "flat": "FLAT moves probability from each answer to forget to a template answer (a refusal).",
    "ga": "Gradient ascent raises the loss on the answers to forget.",
}
PAGE = """{header}

# Unlearned model

This is {base}{adapter} after `amends {command}` (amends {version}).

## What was forgotten

{kept} question-answer pairs. Their texts are not in this card. SHA-256 of the list of their digests:
`{digest}`.{earlier}

## How

{how} Divergence: {divergence}. Rows to keep in training: {retain}. Seed {seed}. Why it stopped: {stopped}.

- Weights before: `{before}`
- Weights after: `{after}`

## What was measured

{metrics}

## Limits

- The loss of the method may be bounded; that is no guarantee about the model. Other questions, other wordings,
  further training or access to the weights may bring answers back.
- The model may decline questions like the forgotten ones that it should answer. See the shares above, if measured.
- This is no legal proof of erasure. It is evidence about the questions that were asked.

## How to load

```python
{load}
```

## How to verify

In the run folder, `run.json` has all settings, `report.html` the full report and `manifest.json` the digest of every
file. `amends verify RUN` checks them.
"""
EARLIER = """

Requests carried out on these weights before: {count}. `ledger.json` lists them, without their texts."""
LOAD_ADAPTER = """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("PATH_TO_THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("PATH_TO_THIS_FOLDER")"""
LOAD_WHOLE = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH_TO_THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("PATH_TO_THIS_FOLDER")"""


def model_card(
    run: Mapping[str, Any], summaries: Mapping[str, Mapping[str, Any]], base_model: str | None, is_adapter: bool
) -> str:
    """Write the card of an unlearned model.

    Parameters
    ----------
    run : dict
        The record in run.json.
    summaries : dict
        Role (before, after, reference) to the summary of its evaluation; may be empty.
    base_model : str or None
        What the weights stand on. Named in the header, which the hub reads, only if it looks like a hub id and no such
        path is here; of a path only its last part is shown, as a card is made to be passed on. None: not known.
    is_adapter : bool
        Whether the folder holds a PEFT adapter or whole weights.

    Returns
    -------
    str : Markdown with a YAML header. None of the texts to forget is in it.
    """
    method = run["command"].removeprefix("unlearn ")
    header = ModelCardData(
        base_model=hub_id(base_model),
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["unlearning", "machine-unlearning", "amends", code_word(method)],
        unlearned_from={"weights_sha256": code_word(run["weights"].get("before", "not recorded"))},
    )
    data, told = run["data"], run.get("method")
    forget, earlier = data.get("forget", {}), data.get("earlier")
    return PAGE.format(
        header=f"---\n{header.to_yaml()}\n---",
        base=plain(shown(base_model)) if base_model else "a model that was given in memory",
        adapter=of_adapter(run["config"].get("model"), base_model, is_adapter),
        command=code_word(run["command"]),
        version=plain(run["amends"]),
        kept=plain(forget.get("kept", "An unknown number of")),
        digest=code_word(forget.get("sha256", "not recorded")),
        earlier=EARLIER.format(count=len(earlier)) if isinstance(earlier, list) and earlier else "",
        how=plain(told.get("how")) if isinstance(told, dict) and told.get("how") else OLD_HOW.get(method, ""),
        divergence=plain(run["config"].get("divergence") or "none"),
        retain=plain(
            " and ".join(f"{data[k].get('kept', '?')}{what}" for k, what in HELD.items() if data.get(k)) or "none"
        ),
        seed=plain(run["seed"]),
        stopped=plain(run["stopped"]),
        before=code_word(run["weights"].get("before", "not recorded")),
        after=code_word(run["weights"].get("after", "not recorded")),
        metrics=metrics_table(summaries),
        load=LOAD_ADAPTER if is_adapter else LOAD_WHOLE,
    )


def hub_id(name: str | None) -> str | None:
    """Give the name of a model if the hub may know it: one of the hub's form, with no such path here."""
    return name if name and HUB_ID.fullmatch(name) and not Path(name).exists() else None


def shown(name: str) -> str:
    """Name of a model as others may read it."""
    return hub_id(name) or last_part(name) or "a model"


def of_adapter(model: object, base_model: str | None, is_adapter: bool) -> str:
    """Say that the run began with an adapter on the base, if it did."""
    if not isinstance(model, str) or not base_model or model == base_model:
        return ""
    return f" with the adapter {plain(shown(model))}{'' if is_adapter else ', merged into it,'}"


def metrics_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown table: a row a metric that somebody has, value and 95 % interval for each model."""
    roles = [role for role in ROLES if role in summaries]
    rows = [
        f"| {title} | {' | '.join(cell(summaries[role].get(name, {})) for role in roles)} |"
        for name, title in METRICS.items()
        if any(summaries[role].get(name, {}).get("value") is not None for role in roles)
    ]
    if not rows:
        return "Nothing: the run was made without an evaluation."
    head = f"| metric (95 % interval) | {' | '.join(ROLES[role] for role in roles)} |\n|{' --- |' * (len(roles) + 1)}"
    return "\n".join([head, *rows])


def cell(entry: Mapping[str, Any]) -> str:
    """Value with its interval."""
    if entry.get("value") is None:
        return "none"
    low, high = entry.get("low"), entry.get("high")
    return number(entry["value"]) + ("" if low is None or high is None else f" ({number(low)} to {number(high)})")


def plain(value: object) -> str:
    """One line of text that Markdown and HTML leave as it is."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$])", r"\\\1", visible(value)).replace("\\<", "&lt;")


def code_word(value: object) -> str:
    """Text to stand between backticks, or as a tag."""
    return visible(value).replace("`", "'")
