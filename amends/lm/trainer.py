"""The base trainer: samples are prompts with candidate answers; a method is a loss on their log-probabilities."""

import math
import random
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from amends.io.console import console
from amends.io.errors import InputError
from amends.lm.load import device, precision
from amends.lm.logprobs import AnswerLogprobs, PackedRow, answer_logprobs, pack

Arguments = TypeVar("Arguments", bound=TrainingArguments)


class TrainRow(NamedTuple):
    """One packed row and the part it plays in the loss."""

    packed: PackedRow
    is_retain: bool = False


class KeyedRows(Dataset[list[TrainRow]]):
    """Samples whose random draws depend on (seed, epoch, sample) alone: not on batches, order, processes or resume."""

    def __init__(self, num_samples: int, draw: Any, seed: int) -> None:
        self.num_samples, self.draw, self.seed, self.epoch = num_samples, draw, seed, 0

    def __len__(self) -> int:
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Take note of the epoch that starts; `TellEpoch` calls it."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> list[TrainRow]:
        """Draw the sample's rows for the current epoch."""
        rows: list[TrainRow] = self.draw(index, random.Random(f"{self.seed} {self.epoch} {index}"))
        return rows


class Collate:
    """Pack the rows of a batch of samples."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, samples: Sequence[list[TrainRow]]) -> dict[str, Tensor]:
        """Tensors of `amends.lm.logprobs.pack`, and is_retain (B,)."""
        rows = [row for sample in samples for row in sample]
        return pack([row.packed for row in rows], self.pad_id) | {
            "is_retain": torch.tensor([row.is_retain for row in rows])
        }


class AnswerTrainer(Trainer):
    """`transformers.Trainer` on packed answers.

    A subclass says which rows a sample has (`draw`) and what they cost (`losses`). The loss is the sum over samples
    divided by the samples of the whole optimizer step, over accumulation and processes: 8 x 1 = 4 x 2 = 1 x 8.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self, model: Any, args: Any, num_samples: int, processing_class: PreTrainedTokenizerBase, **kwargs: Any
    ):
        # The collator's columns are ours, not the model's.
        args.remove_unused_columns = False
        self._sums: dict[str, list[Tensor]] = {}
        rows = KeyedRows(num_samples, self.draw, args.seed)
        super().__init__(
            model=model,
            args=args,
            train_dataset=rows,
            data_collator=Collate(processing_class.pad_token_id),
            processing_class=processing_class,
            **kwargs,
        )
        self.model_accepts_loss_kwargs = False
        self.add_callback(TellEpoch(rows))
        self.add_callback(StopOnNonFinite())
        if any(isinstance(callback, Bar) for callback in self.callback_handler.callbacks):
            self.remove_callback(PrinterCallback)

    def draw(self, index: int, random_: random.Random) -> list[TrainRow]:
        """Rows of sample `index`; every random choice comes from `random_`."""
        raise TypeError(f"{type(self).__name__} does not say which rows a sample has (draw).")

    def losses(self, out: AnswerLogprobs, is_retain_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of each sample (S,), and values to log as one tensor (S,) each."""
        raise TypeError(f"{type(self).__name__} has no loss (losses).")

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Sum of the samples' losses over the number of samples in the optimizer step."""
        out = answer_logprobs(model, inputs)
        losses_S, values = self.losses(out, inputs["is_retain"])
        for name, values_S in {"mean_loss": losses_S, **values}.items():
            self._sums.setdefault(name, []).append(values_S.detach().float())
        num_samples = losses_S.numel() if num_items_in_batch is None else num_items_in_batch
        # Gradients are averaged over processes, while the loss is divided by the samples of all of them.
        loss = losses_S.sum() / num_samples * self.accelerator.num_processes
        return (loss, out) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """Count the samples in all micro-batches of one optimizer step, on all processes."""
        count = torch.tensor(sum(int((~batch["is_retain"]).sum()) for batch in batch_samples), device=device)
        gathered: Tensor = self.accelerator.gather(count).sum()
        return gathered

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of the method's values since the last log."""
        if "loss" in logs:
            for name, parts in self._sums.items():
                total = torch.stack(
                    [torch.cat(parts).sum(), torch.tensor(float(sum(map(len, parts))), device=parts[0].device)]
                )
                total = self.accelerator.reduce(total, "sum")
                logs[name] = (total[0] / total[1]).item()
            self._sums.clear()
        super().log(logs, start_time)


class TellEpoch(TrainerCallback):
    """Tell the rows which epoch it is: accelerate's data loaders do not on several processes or on resuming."""

    def __init__(self, rows: KeyedRows) -> None:
        self.rows = rows

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Come before the first batch is drawn; a resumed epoch is a fraction here."""
        self.rows.set_epoch(int(state.epoch))


class StopOnNonFinite(TrainerCallback):
    """Stop at a loss or gradient that is not a number, before it reaches a saved model."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Raise InputError with the step."""
        for name in ("mean_loss", "grad_norm"):
            value = (logs or {}).get(name)
            if value is not None and not math.isfinite(float(value)):
                raise InputError(
                    f"{name} is {value} at step {state.global_step}: training stopped and nothing was saved. "
                    "Lower --learning-rate, or train in float32."
                )


def training_arguments(cls: type[Arguments], output_dir: str, **settings: Any) -> Arguments:
    """Arguments with the house's defaults: every step logged, nothing sent anywhere, the best safe precision."""
    defaults: dict[str, Any] = {
        "bf16": precision() == "bfloat16",
        "use_cpu": device().type == "cpu",  # without it several processes on a CPU would not know of each other
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": device().type == "cuda",
        "logging_steps": 1,
        "lr_scheduler_type": "linear",
        "report_to": "none",
        "save_strategy": "no",
        "weight_decay": 0.01,
    }
    return cls(output_dir=output_dir, **(defaults | settings))


class Bar(TrainerCallback):
    """One progress bar of a training, with the last value of one measure beside it; takes the place of printed logs."""

    def __init__(self, label: str, measure: str) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console, transient=True)
        self.label, self.measure = label, measure

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the bar."""
        self.task = self.progress.add_task(self.label, total=state.max_steps)
        self.progress.start()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Advance it."""
        if logs and self.measure in logs:
            text = f"{self.label}, {self.measure} {logs[self.measure]:.3f}"
            self.progress.update(self.task, completed=state.global_step, description=text)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take it away."""
        self.progress.stop()
