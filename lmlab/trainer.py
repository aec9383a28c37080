"""`Trainer`: the training loop. One update is `training_step`; `fit` only iterates.

What is not the step (log, progress, live views) hangs outside it: listeners are told each event of the log.
B batch, T time.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from lmlab import checkpoint, devices, hooks, parallel, ranks, signals
from lmlab.adapters.base import BaseAdapter
from lmlab.adapters.custom import CustomTransformerAdapter
from lmlab.beside import Beside
from lmlab.config import TrainingConfig
from lmlab.data import IGNORED, Batch, DataLoader, own_rows
from lmlab.errors import CheckpointError, ConfigError, DataError, DivergedError, LabError, TokenizerError, UsageError
from lmlab.evaluate import Evaluation, count_bytes, evaluate
from lmlab.events import Event, now
from lmlab.files import dump_json
from lmlab.generate import SamplingSettings, prompt_problem
from lmlab.isolation import on_its_own
from lmlab.loading import load_adapter
from lmlab.optim import (
    create_optimizer,
    learning_rate_at,
    load_optimizer_tensors,
    name_of_other,
    optimizer_tensors,
    set_learning_rate,
    set_precision,
)
from lmlab.places import absolute
from lmlab.progress import Progress
from lmlab.tokenizers import Tokenizer
from lmlab.transformer import Transformer

Listener = Callable[[Event], object]


class Saving(NamedTuple):
    """A checkpoint that is being written. started: by the clock of `time.perf_counter`."""

    step: int
    folder: Path
    started: float


class Trainer:
    """Trains a model; everything it is and does follows from its arguments, the batches and its random stream.

    step: completed updates. position: windows of the training split seen. folder: where a run's checkpoints go, as
    `checkpoints/step-NNNNNNNN`; None saves only where `save_checkpoint` is told to. facts: what is known of the run
    (run id, data, lineage…), kept in every checkpoint as JSON. listeners: called with each event, in order. tokenizer: that
    of the batches, which the model is told of: the documents of a window are parted by its end of text, and samples end
    at it. Raises UsageError, ConfigError and TokenizerError for arguments that do not do.

    Under torchrun every process has a Trainer of its own, is given the same batches, and takes its share of each.
    """

    def __init__(
        self,
        model: BaseAdapter | Transformer,
        optimizer: torch.optim.Optimizer,
        config: TrainingConfig,
        val_dataloader: DataLoader | None = None,
        tokenizer: Tokenizer | None = None,
        *,
        train_dataloader: Iterable[Batch] | None = None,
        folder: Path | str | None = None,
        seed: int = 0,
        facts: dict[str, Any] | None = None,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self.model: BaseAdapter = CustomTransformerAdapter(model) if isinstance(model, Transformer) else model
        self.optimizer, self.config, self.tokenizer = optimizer, config, tokenizer
        if tokenizer is not None:
            self.model.use_tokenizer(tokenizer)
        self.val_dataloader, self.train_dataloader = val_dataloader, train_dataloader
        self.folder = absolute(Path(folder)) if folder is not None else None  # the current folder may change
        self.facts, self.listeners = facts or {}, list(listeners)
        refuse_beyond_json(self.facts)
        self.device = next(self.model.parameters()).device
        devices.align(self.model.parameters())
        self.world = ranks.join()
        self._use_precision(self.world.text(devices.resolve_precision(config.precision, self.device)))
        if self.device.type == "cpu":
            devices.keep_freed_memory()
        self.hooks = hooks.activate(config.hooks)
        hooks.try_on(self.hooks, self.model)
        self.strategy = parallel.strategy_of(self.model, self.world)
        own_seed = parallel.own_seed(seed, self.world)
        self.random = devices.RandomStream(devices.seeded_random_state(own_seed, self.device), self.device)
        self.step, self.position, self.seed = 0, 0, seed
        self.decay_steps = config.lr_decay_steps or config.max_steps
        self.progress = Progress()
        self.before_saving: Callable[[], object] | None = None  # called before a checkpoint of the run is written
        self._restored_at = 0
        self._last: dict[str, int] = {}  # the step of the newest event of each kind
        self._beside, self._saving = Beside(self.world), Saving(0, Path(), 0.0)
        self._n_val_bytes: int | None = None
        self._warned_of_prompt = False
        self._flops_per_token = functools.cache(self.model.flops_per_token)  # every step asks, of the same context
        if config.activation_checkpointing:
            self.model.enable_activation_checkpointing()
        if config.compile:
            devices.require_compiler(self.device)
            self.model.settle()
            # Else a shape compiles to what the shapes before it suggest; where each batch has its own, that is for the best.
            self.model.compile(dynamic=None if self.model.packs is False else False)
        if config.async_checkpoints:
            self._beside.prepare()
        self._replica = parallel.replicate(self.model, self.world)

    def _when_compiled(self) -> contextlib.AbstractContextManager[None]:
        """What compiled code needs about it to give the same numbers each time."""
        return devices.in_one_order(self.device) if self.config.compile else contextlib.nullcontext()

    def _use_precision(self, precision: str) -> None:
        """Multiply in a precision, "fp32" or "bf16", in the model and in the optimizer."""
        self.precision = precision
        set_precision(self.optimizer, precision)

    # --- the step -----------------------------------------------------------------------------------------------

    @on_its_own()
    def training_step(self, batch: Batch) -> float:
        """One update over all windows of `batch`; returns its mean loss in nats per token, before the update.

        The windows are split into micro-batches of `batch_size`, which give the gradient of the whole. Logs the step
        and does what the cadences ask. Raises DivergedError before the update where a number is not finite.
        """
        started = time.perf_counter()
        learning_rate = learning_rate_at(self.step + 1, self.config, self.decay_steps)
        set_learning_rate(self.optimizer, learning_rate)
        with self._steps_kept():  # where memory runs out
            with self.random, self._when_compiled():
                loss = self._gradients(batch)
            gradient_norm = self._clip()
        self._refuse_non_finite(loss, gradient_norm, batch)
        with signals.held():
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            devices.synchronize(self.device)
            self.step += 1
            self.position += len(batch.windows_B)
        speed = batch.inputs_BT.numel() / (time.perf_counter() - started)
        with self._steps_kept():  # whatever a listener raises
            self.tell(
                "step",
                loss=loss,
                learning_rate=learning_rate,
                grad_norm=gradient_norm,
                tokens_per_second=round(speed, 1),
                flops_utilization=self._utilization(speed, batch.inputs_BT.size(1)),
            )
        self._mind_cadences(batch)
        return loss

    def _gradients(self, batch: Batch) -> float:
        """Backward passes over the micro-batches; the gradient is that of the mean over all counted tokens.

        Each rank does its share of every micro-batch; the loss, as the gradient, is the sum over ranks.
        """
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)  # what a step that was interrupted left
        n_tokens = int((batch.targets_BT != IGNORED).sum())
        if n_tokens == 0:
            raise DataError(
                f"no target of the batch of step {self.step + 1} counts: all are {IGNORED}; leave such batches out"
            )
        total = torch.zeros((), device=self.device)
        for first in range(0, len(batch.windows_B), self.config.batch_size):
            rows = slice(first, first + self.config.batch_size)
            inputs_BT, targets_BT = own_rows(batch.inputs_BT[rows], batch.targets_BT[rows], self.world)
            last = rows.stop >= len(batch.windows_B)
            with parallel.accumulating(self._replica, last), devices.autocast(self.precision, self.device):
                loss = self._replica(inputs_BT.to(self.device), targets_BT.to(self.device), "sum") / n_tokens
            loss.backward()
            total += loss.detach()
        return float(self.world.sum(total))

    def _clip(self) -> float:
        """The norm of the whole gradient, which is scaled down to `grad_clip` where that is set."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([devices.row_norms(p.grad) for p in parameters if p.grad is not None])
        length = float(ranks.whole(norm))
        if self.config.grad_clip is not None and length > self.config.grad_clip:
            nn.utils.clip_grads_with_norm_(parameters, self.config.grad_clip, norm)
        return length

    def _refuse_non_finite(self, loss: float, gradient_norm: float, batch: Batch) -> None:
        for name, value in (("loss", loss), ("gradient norm", gradient_norm)):
            if not math.isfinite(value):
                self.optimizer.zero_grad(set_to_none=True)
                windows = batch.windows_B.tolist()
                shown = ", ".join(map(str, windows[:8])) + (", …" if len(windows) > 8 else "")
                again = 0 < self.step == self._restored_at  # with these weights, whatever is set
                advice = "Go back to a checkpoint before this one, then lower" if again else "Lower"
                raise DivergedError(
                    f"the {name} of step {self.step + 1} is {value}, with the windows at tokens {shown}; the update was "
                    f"not made. {advice} learning_rate, or set grad_clip"
                )

    def _utilization(self, tokens_per_second: float, context: int) -> float:
        """The share of the machine's measured peak arithmetic that the step reached."""
        peak = self.world.size * devices.peak_flops(self.device, self.precision, torch.get_num_threads())
        return round(tokens_per_second * self._flops_per_token(context) / peak, 4)

    def _mind_cadences(self, batch: Batch) -> None:
        if self._beside.is_done():
            self._await_saving()
        with self._steps_kept():
            for active in self.hooks:
                if self.step % active.cadence == 0:
                    measured = hooks.measure(active, self.model, batch.inputs_BT.to(self.device))
                    self.tell("hook", name=active.hook.name, **measured)
            if due(self.step, self.config.eval_cadence):
                self.evaluate()
            if due(self.step, self.config.sampling_cadence):
                self.sample()
        if self._is_to_save() and self._unsaved:
            self.begin_checkpoint() if self.config.async_checkpoints else self.save_checkpoint()

    def _is_to_save(self) -> bool:
        """Whether a checkpoint is due: by its cadence, or with early stopping, as this evaluation is the best so far."""
        evaluated = self.config.early_stopping_patience is not None and due(self.step, self.config.eval_cadence)
        return due(self.step, self.config.checkpoint_cadence) or (evaluated and self.progress.is_best(self.step))

    @property
    def _unsaved(self) -> bool:
        """Whether the run keeps checkpoints, and none of this step is there or being written: listeners, too, may save."""
        being_written = self._saving.step if self._beside.busy else None
        return self.folder is not None and self.step not in (self._last.get("checkpoint"), being_written)

    # --- the loop -----------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether `max_steps` are done, or the validation loss stopped falling."""
        patience = self.config.early_stopping_patience
        return self.step >= self.config.max_steps or (
            patience is not None and self.progress.without_improvement >= patience
        )

    def fit(self, train: Iterable[Batch] | None = None, should_stop: Callable[[], bool] = lambda: False) -> str:
        """Train until finished or asked to stop; returns "completed" or "stopped". The end is always saved.

        train: an endless loader, the Trainer's own where it is None; a DataLoader that has dealt nothing yet begins at
        the Trainer's position, any other goes on from where it is. should_stop: asked after every step. Raises
        DivergedError and what the disk raises, after the log says how it ended.
        """
        started, status = time.perf_counter(), "failed"
        batches = iter(self._batches(train))
        try:
            if self.config.eval_cadence is not None and self.step == 0 and self._last.get("eval") != 0:
                self.evaluate()
            if self.step == 0 and ranks.may_restart() and self._unsaved:
                self.save_checkpoint()  # for those that torchrun starts again before the first cadence
            while not (self.finished or should_stop()):
                with self._steps_kept():
                    batch = next(batches, None)
                    if batch is None:
                        raise UsageError(
                            f"the training batches end after step {self.step}; give fit an endless DataLoader"
                        )
                self.training_step(batch)
            status = self._end()
        except DivergedError:
            status = "diverged"
            raise
        finally:
            try:
                self._await_saving()
            except LabError as error:  # where something is still being written, another error came first
                self.tell("warning", message=str(error))
            self._beside.close()
            self.tell("run_end", status=status, seconds=round(time.perf_counter() - started, 3))
        return status

    def _batches(self, train: Iterable[Batch] | None) -> Iterable[Batch]:
        batches = train if train is not None else self.train_dataloader
        if batches is None:
            raise UsageError("there is nothing to train on: give fit a DataLoader, or the Trainer a train_dataloader")
        if self.config.eval_cadence is not None and self.val_dataloader is None:
            raise ConfigError(
                "eval_cadence is set, and there is nothing to evaluate on; give the Trainer a val_dataloader, or set "
                "eval_cadence to null"
            )
        # The own one's is set whatever a look at a batch, or an interrupted step, was dealt.
        if isinstance(batches, DataLoader) and (batches is self.train_dataloader or batches.position == 0):
            batches.position = self.position
        return batches

    def _end(self) -> str:
        """The last evaluation, sample and checkpoint, each where the cadence has not just done it."""
        with self._steps_kept():
            if self.finished and self.config.eval_cadence is not None and self._last.get("eval") != self.step:
                self.evaluate()
            if self.finished and self._last.get("sample") != self.step:
                self.sample()
        if self.folder is not None:
            self._await_saving()
            if self._unsaved:
                self.save_checkpoint()
            elif self.progress.claim_best(self.step) and self.world.leads:  # its cadence saved before this evaluation
                checkpoint.tidy(self.folder / "checkpoints", self.config.keep_checkpoints, best=self.step)
        return "completed" if self.finished else "stopped"

    @contextlib.contextmanager
    def _steps_kept(self) -> Iterator[None]:
        """Save the steps that were made, if any were, before an error of what does not change the weights ends the run."""
        try:
            yield
        except DivergedError:  # the weights are damaged
            raise
        except Exception:  # of a hook, or of too little memory; alone, as the others do not know of it
            if self.world.alone and self.step and self._unsaved:
                try:
                    self.save_checkpoint()
                except LabError as error:  # what came first is what the user is to read
                    self.tell("warning", message=str(error))
            raise

    def tell(self, event: str, *, step: int | None = None, **fields: Any) -> None:
        """Give every listener an event of the log, at the current step where none is given; `run_start` bears no step."""
        self._last[event] = self.step if step is None else step
        record: Event = {"event": event, "run_id": self.facts.get("run_id"), "time": now()}
        if event != "run_start":
            record["step"] = self._last[event]
        record.update(fields)
        for listener in self.listeners:
            listener(record)

    # --- evaluation and samples ---------------------------------------------------------------------------------

    @on_its_own()
    def evaluate(self) -> Evaluation:
        """The loss over the validation split (or its first `eval_batches`), logged.

        Raises UsageError without one, or where it has no end, DivergedError where the loss is not a number.
        """
        if self.val_dataloader is None:
            raise UsageError("there is no validation split to evaluate on; give the Trainer a val_dataloader")
        limit = self.config.eval_batches
        if limit is None and isinstance(self.val_dataloader, DataLoader) and self.val_dataloader.sampler is not None:
            raise UsageError("the val_dataloader has a seed, and so no end; make it without one, or set eval_batches")
        if self._n_val_bytes is None:
            self._n_val_bytes = count_bytes(self.val_dataloader, self.tokenizer, limit)
        with self._when_compiled():
            evaluation = evaluate(
                self.model,
                self.val_dataloader,
                n_bytes=self._n_val_bytes,
                device=self.device,
                precision=self.precision,
                max_batches=limit,
                world=self.world,
            )
        ruined = math.isnan(evaluation.val_loss)
        if not ruined:  # told of it, a listener may save; only what the cadence asks for counts towards early stopping
            self.progress.note(self.step, evaluation.val_loss, counts=due(self.step, self.config.eval_cadence))
        self.tell(
            "eval",
            val_loss=evaluation.val_loss,
            perplexity=evaluation.perplexity,
            bits_per_byte=evaluation.bits_per_byte,
        )
        if ruined:
            raise DivergedError(
                f"the validation loss of step {self.step} is nan: the weights are ruined. Go back to an earlier checkpoint, "
                "or start again, with a lower learning_rate, or set grad_clip"
            )
        floor_total = self.facts.get("floor_total")
        if limit is None and floor_total is not None and evaluation.leaks(floor_total):
            self.tell(
                "warning",
                message=f"the validation loss is {floor_total - evaluation.total:.0f} nats in all below the entropy of "
                "the text: the model has seen the validation text, or later tokens leak into earlier ones",
            )
        return evaluation

    @on_its_own()
    def sample(self) -> str | None:
        """Text that continues `sampling_prompt`, logged; None where there is no tokenizer to say it with."""
        if self.tokenizer is None:
            return None
        prompt, ids = self._prompt(self.tokenizer)
        settings = SamplingSettings.from_config(self.config)
        with devices.autocast(self.precision, self.device):
            begun = torch.from_numpy(self.tokenizer.begun(ids.int().numpy())).long()
            ids_BT = self.model.generate(begun[None].to(self.device), settings)
        text = self.tokenizer.decode(ids_BT[0, len(begun) - len(ids) :].tolist())
        self.tell("sample", prompt=prompt, sample_text=text)
        return text

    def _prompt(self, tokenizer: Tokenizer) -> tuple[str, Tensor]:
        """The configured prompt, or the first token where this vocabulary cannot say it, or it says nothing."""
        prompt = self.config.sampling_prompt
        if not self._warned_of_prompt and (problem := prompt_problem(prompt, tokenizer, self.model.max_positions)):
            self.tell("warning", message=problem)
            self._warned_of_prompt = True
        try:
            ids = torch.from_numpy(tokenizer.encode(prompt)).long()
        except TokenizerError:
            ids = torch.empty(0, dtype=torch.int64)
        if len(ids):
            return prompt, ids
        first = tokenizer.end_of_text_id if tokenizer.end_of_text_id is not None else 0
        return tokenizer.decode([first]), torch.tensor([first])

    # --- checkpoints --------------------------------------------------------------------------------------------

    def state(self, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
        """What `state.json` holds: all that is not a tensor and that a resumed run needs.

        tokenizer: what is saved beside it, the Trainer's own where it is None.
        """
        tokenizer = tokenizer or self.tokenizer
        own = {
            "version": 1,
            "step": self.step,
            "config": self.config.to_dict(),
            "seed": self.seed,
            "threads": torch.get_num_threads(),
            "world_size": self.world.size,
            "device": self.device.type,
            "precision": self.precision,
            "tokenizer": tokenizer.identifier if tokenizer is not None else None,
            "begin_of_text_id": tokenizer.begin_of_text_id if tokenizer is not None else None,
            "end_of_text_id": tokenizer.end_of_text_id if tokenizer is not None else None,
            "other_end_ids": list(tokenizer.other_end_ids) if tokenizer is not None else [],
            "decay_steps": self.decay_steps,
            "optimizer": name_of_other(self.optimizer),
            "frozen": [name for name, p in self.model.model.named_parameters() if not p.requires_grad],
            **self.progress.to_state(),
        }
        assert own.keys() == OWN_STATE, "a new key is to be listed there, too"
        return {**self.facts, **own, "data": {**self.facts.get("data", {}), "position": self.position}}

    def save_checkpoint(self, folder: Path | str | None = None, tokenizer: Tokenizer | None = None) -> Path:
        """Save everything and return the folder: the run's `checkpoints/step-NNNNNNNN` where none is given.

        tokenizer: saved with it, the Trainer's own where it is None. Raises CheckpointError.
        """
        self._await_saving()
        write = self._begin_saving(None if folder is None else Path(folder), tokenizer, copied=False)
        write(self.world)
        own = self._last.get("checkpoint", -1)
        self._tell_saved()
        if folder is not None:  # the run has still to save what it needs
            self._last["checkpoint"] = own
        return self._saving.folder

    def begin_checkpoint(self) -> None:
        """Save as `save_checkpoint` does, by a thread, and wait only while tensors are copied.

        A later step tells that it is on the disk, or raises what the disk refused.
        """
        self._await_saving()
        self._beside.begin(self._begin_saving(None, None, copied=True))

    @on_its_own()
    def _begin_saving(
        self, folder: Path | None, tokenizer: Tokenizer | None, *, copied: bool
    ) -> Callable[[ranks.World], None]:
        """What writes a checkpoint of the Trainer as it is now; as it will be then, unless tensors are `copied`."""
        if folder is None and self.folder is None:
            raise UsageError("this Trainer has no run folder: say where to save, save_checkpoint(folder)")
        started, in_run, step = time.perf_counter(), folder is None, self.step
        checkpoints = (self.folder or Path()) / "checkpoints"
        self._saving = Saving(step, folder or checkpoint.step_folder(checkpoints, step), started)
        if in_run and self.before_saving is not None:
            self.before_saving()
        contents = checkpoint.collect(
            self.model.tensors(),
            optimizer_tensors(self.optimizer, self.model.model),
            parallel.gathered(self.random.state, self.world),
            self.world,
            copied=copied,
        )
        best_before, is_best = self.progress.best_saved, in_run and self.progress.claim_best(step)
        save = functools.partial(
            checkpoint.save,
            self._saving.folder,
            contents,
            architecture=self.model.architecture(),
            state=self.state(tokenizer),
            tokenizer=tokenizer or self.tokenizer,
        )

        def write(world: ranks.World) -> None:
            try:
                save(world=world)
            except BaseException:
                self.progress.best_saved = best_before  # what is not on the disk is not to be beaten
                raise
            if in_run and world.leads:
                checkpoint.tidy(checkpoints, self.config.keep_checkpoints, best=step if is_best else None)

        return write

    def _await_saving(self) -> None:
        """Wait until the checkpoint that is written beside the training is on the disk, if there is one, and tell it."""
        if self._beside.busy:
            self._beside.wait()
            self._tell_saved()

    def _tell_saved(self) -> None:
        step, folder, started = self._saving
        self.tell("checkpoint", step=step, path=str(folder), seconds=round(time.perf_counter() - started, 3))

    @classmethod
    @on_its_own()
    @devices.out_of_memory_as_error(devices.MORE_ROOM)
    def from_checkpoint(
        cls,
        path: checkpoint.Checkpoint | Path | str,
        val_dataloader: DataLoader | None = None,
        *,
        config: TrainingConfig | None = None,
        tokenizer: Tokenizer | None = None,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
        **arguments: Any,
    ) -> Self:
        """The Trainer that `save_checkpoint` saved, bit for bit, in the step after which it was.

        path: the folder, or what `checkpoint.load` made of it. config: replaces the saved one, for what the user changes
        on resume. tokenizer: takes the place of the saved one, where that is of a kind that `Tokenizer.load` does not
        know. optimizer: makes that of the run from the model, where `create_optimizer` does not. Further arguments as for
        the constructor, but for what the checkpoint gives. Sets the number of threads to that of the run, on which the
        order of sums depends, if as many processes train as did. Raises CheckpointError, UsageError where an optimizer of
        one's own is not given again, and OutOfMemory.
        """
        saved = path if isinstance(path, checkpoint.Checkpoint) else checkpoint.load(path)
        state = saved.state
        with taken_from(saved):
            own_config = TrainingConfig.from_dict(state["config"], source=str(saved.folder / "state.json"))
            if ranks.join().size == state.get("world_size", 1):
                devices.set_threads(int(state["threads"]))
            adapter = load_adapter(saved.folder)
            if tokenizer is None and state["tokenizer"] is not None:
                tokenizer = saved.tokenizer()
            parallel.spread(adapter, config or own_config, devices.pick_device())
            made = optimizer(adapter.model) if optimizer else create_optimizer(adapter.model, config or own_config)
            if (other := state.get("optimizer")) not in (None, name_of_other(made)):
                raise UsageError(
                    f"{saved.folder} was trained with {other}, an optimizer of one's own: go on from Python, with "
                    "Trainer.from_checkpoint(folder, optimizer=make), where make(model) returns it"
                )
            load_optimizer_tensors(made, adapter.model, saved.tensors("optimizer"))
            parameters = dict(adapter.model.named_parameters())
            for name in state.get("frozen", ()):  # after the optimizer, which may have state of what froze later
                parameters[name].requires_grad_(False)
            arguments.setdefault("facts", facts_of(state))
            seed = int(state["seed"])
        trainer = cls(adapter, made, config or own_config, val_dataloader, tokenizer, seed=seed, **arguments)
        with taken_from(saved):
            trainer.restore(state, saved.tensors("rng"))
        return trainer

    def restore(self, state: dict[str, Any], rng: Mapping[str, Tensor]) -> None:
        """Take up the counters and the random stream of a saved state."""
        self.random.state = {**self.random.state, **parallel.own_states(rng, self.world)}
        unchanged = self.config.precision == state["config"]["precision"] == "auto"
        if unchanged and state["device"] == self.device.type:
            self._use_precision(state["precision"])  # what it was resolved to, on this machine or another one
        self.step, self.position = int(state["step"]), int(state["data"]["position"])
        self._restored_at = self.step
        self.decay_steps = self.config.lr_decay_steps or int(state["decay_steps"])
        self.progress = Progress.from_state(state)
        self._last = {"eval": self.step, "sample": self.step, "checkpoint": self.step}

    def recall(self, last: dict[str, Any]) -> None:
        """Take up the step of the newest event of each kind in the log: the end then repeats and omits nothing."""
        if last:
            self._last = {**last, "checkpoint": self.step}


# What `Trainer.state` adds to a run's facts on its own.
OWN_STATE = {
    "version", "step", "config", "seed", "threads", "world_size", "device", "precision", "tokenizer", "begin_of_text_id",
    "end_of_text_id", "other_end_ids", "decay_steps", "optimizer", "frozen", "best_val_loss", "best_saved_loss",
    "evaluations_without_improvement",
}  # fmt: skip


@contextlib.contextmanager
def taken_from(saved: checkpoint.Checkpoint) -> Iterator[None]:
    """Turn what the block raises where the state of a checkpoint is not what it has to be into CheckpointError."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{saved.folder} is no checkpoint of this version of lmlab: {error!r}") from error


def facts_of(state: dict[str, Any]) -> dict[str, Any]:
    """The facts of a run in the state of one of its checkpoints."""
    facts = {name: value for name, value in state.items() if name not in OWN_STATE}
    facts["data"] = {name: value for name, value in facts.get("data", {}).items() if name != "position"}
    return facts


def refuse_beyond_json(facts: dict[str, Any]) -> None:
    """Raise UsageError where the first checkpoint, hours later, could not hold the facts."""
    try:
        dump_json(facts)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the Trainer's facts are kept as JSON, which cannot hold them: {error}") from error


def due(step: int, cadence: int | None) -> bool:
    """Whether a cadence acts after update `step`; None never does."""
    return cadence is not None and step % cadence == 0
