"""The base trainer: samples are prompts with candidate answers; a method is a loss on their log-probabilities."""

import errno
import random
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, TrainerState
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from amends.io.atomic import write_json
from amends.io.console import say
from amends.io.errors import InputError, NoResult, Stopped
from amends.lm.callbacks import Bar, StopOnNonFinite, StopOnSignal, TellEpoch
from amends.lm.checkpoint import (
    REQUEST,
    SHARDED,
    STATE,
    WHOLE,
    alone_in,
    checkpoints,
    fault,
    new_checkpoint,
    newest,
    remove_older,
    step_of,
)
from amends.lm.load import device, precision
from amends.lm.logprobs import AnswerLogprobs, answer_logprobs
from amends.lm.quiet import quiet
from amends.lm.samples import Collate, KeyedRows, TrainRow, num_samples_in
from amends.lm.shards import gathered, without_weights

Arguments = TypeVar("Arguments", bound=TrainingArguments)


REFUSED = {
    "save_only_model": "nothing can be resumed from weights alone",
    "dataloader_persistent_workers": "workers that stay do not hear of the next epoch and would draw as in the first",
} | dict.fromkeys(
    ("compute_metrics", "compute_loss_func", "label_smoothing_factor", "load_best_model_at_end"),
    "it has no part in a loss on answers",
)
"""Arguments of a `Trainer` and its settings that cannot be had, and why."""


class AnswerTrainer(Trainer):
    """`transformers.Trainer` on packed answers.

    A subclass says which rows a sample has (`draw`) and what they cost (`losses`, `retain_losses`). The loss is the sum
    over samples divided by the samples of the whole optimizer step, over accumulation and processes: 8 x 1 = 4 x 2 =
    1 x 8. The parts of a batch (`Collate`) go through the model one after the other, each with its backward pass, so
    that only one part's activations are in memory.

    Checkpoints (`amends.lm.checkpoint`) appear whole, and are resumed from only if they verify. Of the older ones
    `args.save_total_limit` are kept, at least two, or all if it is None.
    """

    loss_is_scaled_for_ga = True
    request: Mapping[str, Any] | None = None
    """What the training was asked to do, if anyone says; kept in checkpoints, and none is used with another."""
    own_request: Mapping[str, Any] = {}
    """What a method adds to it: digests of what it reads itself."""
    layer: int | None = None
    """Run no further than this layer in training; the losses see its output (`answer_logprobs`)."""

    def __init__(
        self, model: Any, args: Any, num_samples: int, processing_class: PreTrainedTokenizerBase, **kwargs: Any
    ):
        if kwargs.get("eval_dataset") is not None or args.eval_strategy != IntervalStrategy.NO:
            raise InputError("eval_dataset, eval_strategy: nothing is evaluated during a training. Leave them out.")
        for name, why in REFUSED.items():
            if kwargs.get(name) or getattr(args, name, None):
                raise InputError(f"{name}: {why}. Leave it out.")
        if args.dataloader_drop_last and num_samples < (full := args.train_batch_size * args.world_size):
            raise InputError(f"dataloader_drop_last: {num_samples} rows fill no batch of {full}. Leave it out.")
        if not any(weight.requires_grad for weight in model.parameters()):
            raise InputError("model: all its weights are frozen. Call requires_grad_, or load an adapter is_trainable.")
        # The collator's columns are ours, not the model's.
        args.remove_unused_columns = False
        self.resumed: list[str] = []  # what a run that went on from a checkpoint should say of itself
        self._sums: dict[str, list[Tensor]] = {}
        self._staging: Path | None = None
        rows = KeyedRows(num_samples, self.draw, args.seed)
        super().__init__(
            model=model,
            args=args,
            train_dataset=rows,
            data_collator=(collate := Collate(processing_class.pad_token_id)),
            processing_class=processing_class,
            **kwargs,
        )
        # Several processes must have as many parts each: FSDP gathers weights in every one.
        collate.by_line = args.device.type == "cpu" and args.world_size == 1 and not self.couples_samples
        self.model_accepts_loss_kwargs = False
        self.add_callback(TellEpoch(rows))
        if self.is_fsdp_enabled and not self.accelerator.is_fsdp2:
            raise InputError(
                "FSDP: amends trains with its second version alone. Set fsdp_version: 2 (examples/launch/fsdp2.yaml)."
            )
        self._empty = without_weights(self.accelerator.unwrap_model(self.model)) if self.is_fsdp_enabled else None
        self._state = SHARDED if self.is_fsdp_enabled else WHOLE
        self.add_callback(StopOnNonFinite(self._state))
        self._stop = StopOnSignal(self)
        self.add_callback(self._stop)
        if self._bars():
            self.remove_callback(PrinterCallback)

    def get_eval_dataloader(self, *_: Any) -> Any:
        """Refuse `evaluate` and `predict`, which need one."""
        raise InputError("evaluate, predict: a trainer only trains. Ask the model itself, as amends assess does.")

    get_test_dataloader: Any = get_eval_dataloader

    @property
    def couples_samples(self) -> bool:
        """Whether the loss of a sample depends on the others of its batch, which then stay in one part."""
        return False

    def draw(self, index: int, random_: random.Random) -> list[TrainRow]:
        """Rows of sample `index`; every random choice comes from `random_`."""
        raise TypeError(f"{type(self).__name__} does not say which rows a sample has (draw).")

    def losses(self, out: AnswerLogprobs) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of each sample (S,) without its row to keep, and values to log as one tensor (S,) each."""
        raise TypeError(f"{type(self).__name__} has no loss (losses).")

    def retain_losses(self, out: AnswerLogprobs) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of each row to keep (S,), which is added, and values to log as one tensor (S,) each."""
        raise TypeError(f"{type(self).__name__} has no loss for rows to keep (retain_losses).")

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Sum of the samples' losses over the number of samples in the optimizer step."""
        out = answer_logprobs(model, inputs, self.layer)
        losses_S, values = self.retain_losses(out) if inputs["is_retain"] else self.losses(out)
        for name, values_S in values.items():
            self._note_sum(name, values_S, len(values_S))
        self._note_sum("mean_loss", losses_S, 0 if inputs["is_retain"] else len(losses_S))  # a sample counts once
        num_samples = num_samples_in(inputs) if num_items_in_batch is None else num_items_in_batch
        # Gradients are averaged over processes, while the loss is divided by the samples of all of them.
        loss = losses_S.sum() / num_samples * self.accelerator.num_processes
        for part in inputs.get("more", ()):
            loss = loss + self.compute_loss(model, part, num_items_in_batch=num_samples)
        return (loss, out) if return_outputs else loss

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Go forward and back with one part of the batch after the other; processes exchange gradients once."""
        if num_items_in_batch is None:
            num_items_in_batch = num_samples_in(inputs)
        parts: list[dict[str, Any]] = [inputs, *inputs.pop("more", ())]
        loss = torch.zeros((), device=self.args.device)
        for part in parts[:-1]:
            with self.accelerator.no_sync(model):
                loss = loss + super().training_step(model, part, num_items_in_batch)
        return loss + super().training_step(model, parts[-1], num_items_in_batch)

    def _note_sum(self, name: str, values_S: Tensor, count: int) -> None:
        total = values_S.detach().float().sum()
        self._sums.setdefault(name, []).append(torch.stack([total, torch.full_like(total, count)]))

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """Count the samples in all micro-batches of one optimizer step, on all processes."""
        count = torch.tensor(sum(map(num_samples_in, batch_samples)), device=device)
        gathered: Tensor = self.accelerator.gather(count).sum()
        return gathered

    def train(
        self,
        resume_from_checkpoint: str | Path | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Train, from a checkpoint if one is named, or (True) from the newest in `args.output_dir` that verifies.

        Raises
        ------
        InputError : the named checkpoint, or each of those there are, cannot be resumed from, with the reasons; another
            process writes there; checkpoints of another training are in the way; a loss is not a number.
        Stopped : SIGTERM or Ctrl-C, after the step that was under way and, where `args.save_strategy` is not "no", its
            checkpoint. A second signal stops at once. An application's own handlers are left alone.
        """
        folder = Path(str(self.args.output_dir))
        with alone_in(folder) if self._saves and self.args.should_save else nullcontext():
            start = self._start_from(resume_from_checkpoint)
            try:
                with self._stop.listening():
                    done = super().train(str(start) if start else None, trial, ignore_keys_for_eval)
            finally:
                for bar in self._bars():
                    bar.take_away()
        self.check_finite()
        if self._stop.signal:
            there = checkpoints(folder) if self._saves else []
            what = f"resume from {there[0]}" if there else "nothing was saved"
            raise Stopped(
                f"stopped at step {self.state.global_step} of {self.state.max_steps}; {what}.", self._stop.signal
            )
        return done

    def trained_model(self) -> Any:
        """Give the model as it is, in evaluation mode, whole in every process; under FSDP that is a copy."""
        model = self.accelerator.unwrap_model(self.model)
        return (gathered(model, self._empty) if self._empty is not None else model).eval()

    def check_finite(self) -> None:
        """Refuse trained weights that are not numbers: losses show it a step later than it happens.

        Raises
        ------
        NoResult
        """
        model: torch.nn.Module = self.accelerator.unwrap_model(self.model)
        for name, weight in model.named_parameters():
            if weight.requires_grad and not torch.isfinite(weight).all():
                raise NoResult(
                    f"{name} holds values that are not numbers after step {self.state.global_step}: the model is "
                    "ruined and was not saved. Lower --learning-rate, or train in float32."
                )

    def _bars(self) -> list[Bar]:
        return [callback for callback in self.callback_handler.callbacks if isinstance(callback, Bar)]

    @property
    def _saves(self) -> bool:
        return bool(self.args.save_strategy != SaveStrategy.NO)

    def _start_from(self, asked: str | Path | bool | None) -> Path | None:
        """Choose the checkpoint to go on from, verified, or None to begin; later ones must not be in the way."""
        folder, start = Path(str(self.args.output_dir)), None
        skipped: dict[Path, str] = {}
        if asked is True:
            start, skipped = newest(folder, self.args.world_size, self.request, self._state)
            for path, reason in skipped.items():
                say(f"skipped {path}: {reason}")
            say(f"going on from {start}" if start else f"no checkpoint in {folder}: starting from the beginning")
            self.resumed = [f"Skipped {path.name} when going on: {reason}" for path, reason in skipped.items()]
            if start:
                self.resumed.append(f"The run was interrupted and went on from {start.name}.")
        elif asked:
            start = Path(asked)
            if reason := fault(start, self.args.world_size, self.request, self._state):
                raise InputError(f"{start}: cannot be resumed from: {reason}. Name another checkpoint.")
        step = TrainerState.load_from_json(str(start / STATE)).global_step if start else 0
        later = [path for path in checkpoints(folder) if step_of(path) > step and path not in skipped]
        if self._saves and later:
            raise InputError(
                f"{later[0]}: is there already, of another training. Go on with it (resume_from_checkpoint=True), "
                "remove it, or give another output_dir."
            )
        return start

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Save and log as often as is asked now, where transformers would go on as often as the checkpoint says."""
        # It warns of the difference. Where the request was compared, nothing that matters differs.
        with quiet() if self.request is not None else nullcontext():
            done: tuple[int, int] = super()._init_training_state(max_steps, *args, **kwargs)
        self.state.compute_steps(self.args, max_steps)  # type: ignore[no-untyped-call]
        return done

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse weights of another model; a tensor that is loaded under its other name is not missing."""
        model: torch.nn.Module = self.accelerator.unwrap_model(self.model)
        state = model.state_dict()
        loaded = {state[name].data_ptr() for name in state.keys() - set(load_result.missing_keys)}
        missing = [name for name in load_result.missing_keys if state[name].data_ptr() not in loaded]
        if missing or load_result.unexpected_keys:
            names = ", ".join([*missing, *load_result.unexpected_keys][:3])
            raise InputError(f"the checkpoint is of another model (they differ in {names}, ...). Name another.")

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint that appears whole, then remove the oldest."""
        self.check_finite()
        place = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        try:
            with new_checkpoint(place, self.accelerator) as self._staging, quiet():
                super()._save_checkpoint(model, trial)  # into a folder of that name in the temporary one
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    for file in (self._staging / place.name).iterdir():
                        file.rename(self._staging / file.name)
                    (self._staging / place.name).rmdir()
                    if self.request is not None:
                        write_json(self._staging / REQUEST, self.request)
        except (OSError, RuntimeError, SafetensorError) as error:  # each of them may be a full disk
            free = shutil.disk_usage(place.parent).free
            raise OSError(
                getattr(error, "errno", None) or errno.EIO,
                f"{place} was not written: it needs about {self._checkpoint_bytes():,} bytes, the disk has {free:,} ("
                f"{error}). Checkpoints before it are as they were",
            ) from error
        finally:
            self._staging = None
        if (
            self.args.should_save
            and self.args.save_total_limit
            and (wrong := remove_older(place, self.args.save_total_limit))
        ):
            say(f"warning: {place} is not as it was written ({wrong}): older checkpoints are kept")

    def _checkpoint_bytes(self) -> int:
        """Size of the tensors in a checkpoint: of an adapter, of all weights, of the optimizer's state."""
        model: torch.nn.Module = self.accelerator.unwrap_model(self.model)
        tensors = [p for p in model.parameters() if p.requires_grad or not isinstance(model, PeftModel)]
        states = self.optimizer.state.values() if self.optimizer else []
        moments = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        return sum(tensor.nbytes for tensor in [*tensors, *moments])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of the method's values since the last log."""
        if "loss" in logs:
            for name, parts in self._sums.items():
                total = self.accelerator.reduce(torch.stack(parts).sum(0), "sum")
                logs[name] = (total[0] / total[1]).item()
            self._sums.clear()
        super().log(logs, start_time)


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
