"""Language models for tests, which read the material of a prompt and write by a template; and planted topics."""

import json
import re

import numpy as np

from amends.curate import entp
from amends.lm.chat import Answer, Chat

TASK_OF = {"instruction": '{"instruction": TEXT}', "response": '{"response": TEXT}', "domain": '"compatible"'}


def task_and_material(conversation):
    text = conversation[-1]["content"]
    material, _, task = text.removeprefix("Material: ").rpartition("\n\n")
    return next(name for name, sign in TASK_OF.items() if sign in task), json.loads(material)


class Template:
    """A model that keeps the sentences it is told to keep: those with a term of "keep"."""

    name, identity = "template", "template-1"

    def __init__(self):
        self.asked, self.prompts = [], []

    def answers(self, conversations, seeds, max_new_tokens, temperature):
        for i, conversation in enumerate(conversations):
            task, material = task_and_material(conversation)
            self.asked.append((task, material))
            self.prompts.append(conversation[-1]["content"])
            yield i, Answer(self.say(task, material), tokens=len(conversation[-1]["content"]) // 4)

    def say(self, task, material):
        if task == "domain":
            return json.dumps(self.domain(material))
        return json.dumps({task: self.write(task, material)})

    def domain(self, material):
        return {"domain": "made up", "task_type": "facts", "compatible": True, "reason": ""}

    def write(self, task, material):
        sentences = [s for sample in material["samples"] for s in re.split(r"(?<=[.?]) ", sample[task])]
        kept = [s for s in sentences if any(term.casefold() in s.casefold() for term in material["keep"])]
        return " ".join(dict.fromkeys(kept))


class Broken(Template):
    """A model that refuses for the first so many times that it is asked for a part of each pair."""

    def __init__(self, times, parts=("instruction", "response")):
        super().__init__()
        self.times, self.parts, self.count = times, parts, {}

    def write(self, task, material):
        key = (task, json.dumps(material["samples"]))
        self.count[key] = self.count.get(key, 0) + 1
        if task in self.parts and self.count[key] <= self.times:
            return f"I'm sorry, but I cannot help with that, for the {self.count[key]}th time."
        return super().write(task, material)


class Saying(Template):
    """A model that says the same to everything."""

    def __init__(self, text):
        super().__init__()
        self.text = text

    def say(self, task, material):
        return self.text if task != "domain" else super().say(task, material)


def chat(model, cache=None, most_calls=None):
    return Chat(model, cache, most_calls)


SYLLABLES = ("ba", "do", "ki", "lu", "me", "no", "ra", "su", "ti", "vo", "ze", "pa")
JUNK = (
    "It is always nice to learn something new.",
    "There are many things one could say here.",
    "Please note that this is only general information.",
    "Some people find this interesting and others do not.",
)
WAYS = ("Tell me about {}.", "What is known about {}?")


def word(number, length=4):
    return "".join(SYLLABLES[number // len(SYLLABLES) ** i % len(SYLLABLES)] for i in range(length))


def facts(topic):
    """Six sentences, each with a word and a number that stand nowhere else."""
    return [
        f"The {word(100 + topic * 6 + i)} of {word(topic).title()} holds {1000 + topic * 6 + i} parts."
        for i in range(6)
    ]


def planted(topics, rng, *, wrong=0.2, spread=0.25, features=16):
    """Two half samples of each topic, facts 1-3 and 4-6 with 40 % junk, and half as many good rows about other things.

    The halves are rated 1 and the others 5, apart from a share that has some other rating.
    """

    def rated(right):
        others = [rating for rating in range(6) if rating != right]
        return int(rng.choice(others)) if rng.random() < wrong else right

    rows = []
    for topic in range(topics):
        centre = rng.normal(size=features)
        for half in range(2):
            told = facts(topic)[3 * half : 3 * half + 3]
            junk = [JUNK[i] for i in rng.choice(len(JUNK), 2, replace=False)]
            said = [sentence for i in rng.permutation(5).tolist() for sentence in [[*told, *junk][i]]]
            rows.append(
                {
                    "id": f"{topic}-{half}",
                    "instruction": WAYS[half].format(word(topic).title()),
                    "output": " ".join(said),
                    "curated": rated(1),
                    "embedding": (centre + spread * rng.normal(size=features)).tolist(),
                }
            )
    good = [
        {
            "id": f"good-{i}",
            "instruction": f"What does {word(5000 + i).title()} mean?",
            "output": f"It means {word(7000 + i)}, and that is all.",
            "curated": rated(5),
            "embedding": rng.normal(size=features).tolist(),
        }
        for i in range(topics // 2)
    ]
    mixed = [*rows, *good]
    return [mixed[i] for i in rng.permutation(len(mixed)).tolist()]


def num_facts(topic, text):
    return sum(str(1000 + topic * 6 + i) in text and word(100 + topic * 6 + i) in text for i in range(6))


def topics_of(row):
    """Topic of each source; a good row is a topic of its own, below 0."""
    names = [source.split("-") for source in row["source_ids"]]
    return [-1 - int(second) if first == "good" else int(first) for first, second in names]


def unit_rows(count, features, seed):
    found = np.random.default_rng(seed).normal(size=(count, features)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def entp_run(rows, model=None, **options):
    how = {k: options.pop(k) for k in ("rounds", "control") if k in options}
    mixing = options.pop("mixing", None) or entp.Mixing(**how)
    options = {"embedding": "embedding", "mixing": mixing} | options
    return entp.run(rows, chat(model or Template(), options.pop("cache", None)), **options)


def rated_right(topics):
    return planted(topics, np.random.default_rng(1), wrong=0)
