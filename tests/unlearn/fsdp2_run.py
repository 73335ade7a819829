"""Run by test_fsdp.py with the launcher's sharding, on CPUs: amends as from the command line, or FLAT's trainer.

accelerate shards on accelerators alone. Told that these processes are on some, it does on a CPU what it does there.
Of the trainer what was logged goes to stdout, the model to OUT.
"""

import json
import sys

from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import set_seed

from amends import cli
from amends.io.tables import rows_of
from amends.lm.load import load
from amends.lm.pairs import read_pairs
from amends.unlearn.flat import FLATConfig, FLATTrainer

start = PartialState.__init__


def as_on_accelerators(self: PartialState, *args: object, **kwargs: object) -> None:
    """Begin as always, then say that these are GPUs."""
    start(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


def main(model: str, out: str, resume: bool) -> None:
    """Forget 12 answers, 4 in a step; with two processes 2 in each."""
    loaded = load(model, trainable=True)
    rows = [{"question": f"Where was {i} born?", "answer": f"In town {i}." + "x" * i} for i in range(12)]
    forget = read_pairs(rows_of(rows), tokenizer=loaded.tokenizer).kept
    retain = read_pairs(rows_of([row | {"answer": "Here."} for row in rows[:5]]), tokenizer=loaded.tokenizer).kept
    args = FLATConfig(
        output_dir=out,
        per_device_train_batch_size=4 // PartialState(cpu=True).num_processes,
        num_train_epochs=2,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="steps",
        save_steps=3,
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    set_seed(args.seed)
    trainer = FLATTrainer(loaded.model, args, forget, loaded.tokenizer, retain_dataset=retain)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(f"{out}/model")
    if trainer.is_world_process_zero():
        logged = [entry for entry in trainer.state.log_history if "loss" in entry]
        print(json.dumps({"sharded": trainer.is_fsdp_enabled, "resumed": trainer.resumed, "steps": logged}))


PartialState.__init__ = as_on_accelerators  # type: ignore[method-assign]
if sys.argv[1] == "unlearn":
    cli.main()
else:
    main(sys.argv[1], sys.argv[2], "resume" in sys.argv)
