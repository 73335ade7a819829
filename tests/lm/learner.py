"""A small model that learns things by heart in seconds, and things to learn."""

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from amends.io.tables import rows_of
from amends.lm.callbacks import Bar
from amends.lm.memorisation import record_row
from amends.lm.pairs import read_pairs
from amends.lm.trainer import training_arguments
from amends.verbs.teach import TeachTrainer


def learner(tokenizer, seed=0):
    """A small model that can learn things by heart in seconds."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def teach(model, tokenizer, pairs, *, epochs, callbacks=(), learning_rate=3e-3, folder="."):
    args = training_arguments(
        TrainingArguments,
        str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=8,
        learning_rate=learning_rate,
        disable_tqdm=True,
    )
    trainer = TeachTrainer(model, args, pairs, tokenizer, callbacks=[Bar("teaching", "probability"), *callbacks])
    trainer.train()
    return model.eval()


def rows_of_pairs(tokenizer, pairs):
    return [record_row(tokenizer, pair.prompt, [pair.answer]) for pair in pairs]


def facts(count, seed=0):
    rng = np.random.default_rng(seed)
    names = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 5)) for _ in range(2 * count)]
    both = zip(names[::2], names[1::2], strict=True)
    found = rows_of({"question": f"Where is {name}?", "answer": f"In {place}."} for name, place in both)
    return read_pairs(found).kept
