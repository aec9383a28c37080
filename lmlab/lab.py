"""The composition root: what a notebook and the command line call, and the only place where a run is put together.

Reading `build` from top to bottom is reading the pipeline: text, tokens, windows, batches, model, optimizer, loop.
"""

from __future__ import annotations

import secrets
import shlex
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from lmlab import checkpoint, devices, loading, parallel, provenance, ranks
from lmlab.adapters.base import BaseAdapter
from lmlab.batches import Batches, load_batches
from lmlab.checkpoint import Checkpoint
from lmlab.config import ConfigLike, TrainingConfig, read_config
from lmlab.data import Corpus, LargeCorpus, load_text
from lmlab.entries import Entry
from lmlab.errors import RegistryError, RunError, TokenizerError, UsageError
from lmlab.evaluate import seen_before
from lmlab.events import now
from lmlab.isolation import on_its_own
from lmlab.memory import evaluated_tokens
from lmlab.optim import create_optimizer
from lmlab.places import find_runs_dir
from lmlab.promises import begun_in, promise, promised_in, refuse_taken
from lmlab.record import Record, is_blank
from lmlab.registry import Registry
from lmlab.resuming import (
    altered_tokenizer,
    ended_decay,
    find_together,
    is_of_a_run,
    merge_config,
    named_fields,
    read_checkpoint,
    run_folder_of,
    run_id_of,
    same_corpus,
    saved_config,
)
from lmlab.run_folder import ask_to_stop
from lmlab.session import Ending, train
from lmlab.tokenizers import Tokenizer
from lmlab.trainer import Listener, Trainer, facts_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def build(
    config: ConfigLike = None,
    data: str | Path | None = None,
    *,
    run_name: str | None = None,
    runs_dir: str | Path | None = None,
    models_dir: str | Path | None = None,
    **overrides: Any,
) -> Trainer:
    """A Trainer ready to `fit`, from a config and text. Writes nothing yet.

    Its `fit` leaves checkpoints in the run's folder, and no more: log, config and lock are what `run` adds.
    data: see `load_text`; None is the built-in storybook. overrides: config fields by name. Raises a LabError for
    whatever the user can mend.
    """
    config, world = read_config(config, **overrides), ranks.join()
    seed = choose_seed(config, world)
    folder = Path(world.first(lambda: new_run_folder(runs_dir, run_name)))
    ancestry = loading.ancestry_of(config, models_dir)
    corpus = load_text(data)
    world.agree("text to train on", corpus.sha256)
    tokenizer = loading.load_tokenizer(config, corpus, models_dir)
    batches = load_batches(config, corpus, tokenizer, seed)
    adapter = loading.load_model(config, tokenizer, seed=seed, models_dir=models_dir)
    facts = {
        "kind": "new" if config.model_name is None else "fine-tune",
        "model": {**adapter.describe(), **ancestry.pop("model")},
        **ancestry,
    }
    return new_trainer(adapter, config, tokenizer, batches, folder=folder, seed=seed, facts=facts)


@on_its_own()
@devices.out_of_memory_as_error(devices.MORE_ROOM)
def new_trainer(
    adapter: BaseAdapter,
    config: TrainingConfig,
    tokenizer: Tokenizer,
    batches: Batches,
    *,
    folder: Path,
    seed: int,
    facts: Mapping[str, Any],
) -> Trainer:
    """The Trainer of a new run: the model on its device, its optimizer, and what log and checkpoints say of it."""
    devices.mind_processor_limits()
    parallel.spread(adapter, config, devices.pick_device())
    return Trainer(
        adapter,
        create_optimizer(adapter.model, config),
        config,
        val_dataloader=batches.val,
        tokenizer=tokenizer,
        train_dataloader=batches.train,
        folder=folder,
        seed=seed,
        facts={"run_id": folder.name, **facts, **batches.facts},
    )


def choose_seed(config: TrainingConfig, world: ranks.World) -> int:
    """The seed of a run: the config's, or one drawn for all of its processes."""
    return config.seed if config.seed is not None else int(world.first(lambda: secrets.randbits(31)))


def new_run_folder(runs_dir: str | Path | None, run_name: str | None) -> Path:
    """Where a new run will go; not made yet. Raises UsageError on a bad name, RunError where it exists."""
    run_id = provenance.new_run_id() if run_name is None else provenance.check_run_name(run_name)
    folder = find_runs_dir(runs_dir) / run_id
    if folder.exists() and not is_blank(folder):
        if not is_of_a_run(folder):
            raise RunError(f"{folder} exists already, and no run is in it; choose another --run-name")
        raise RunError(f"the run {folder} exists already; choose another --run-name, or go on with --resume {run_id}")
    return folder


def run(
    config: ConfigLike = None,
    data: str | Path | None = None,
    *,
    run_name: str | None = None,
    runs_dir: str | Path | None = None,
    models_dir: str | Path | None = None,
    listeners: Sequence[Listener] | None = None,
    **overrides: Any,
) -> Run:
    """Train, with a log of all that happens, and return the `Run`; an interrupt saves first and leaves a run to resume.

    Arguments as for `build`. listeners: who is told the events; None shows a live view. Raises a LabError.
    """
    trainer = build(config, data, run_name=run_name, runs_dir=runs_dir, models_dir=models_dir, **overrides)
    return execute(trainer, listeners)


def execute(
    trainer: Trainer,
    listeners: Sequence[Listener] | None = None,
    resumed_from: Path | None = None,
    known_steps: Sequence[int] | None = None,
    warnings: Sequence[str] = (),
    models_dir: str | Path | None = None,
    on_ready: Callable[[Trainer], None] | None = None,
) -> Run:
    """Run a Trainer in its folder and return the `Run`. listeners: None shows a live view.

    known_steps: see `session.train`. on_ready: called with the Trainer, on rank 0, before anything is written. A run that
    is to be registered under a name is, once it completes, whether in one session or in several.
    """
    if on_ready is not None and trainer.world.leads:
        on_ready(trainer)
    if listeners is None and trainer.world.leads:
        from lmlab.views.live import live_listener

        listeners = [live_listener(trainer.config.max_steps, trainer.folder)]
    assert trainer.folder is not None
    if resumed_from is None:
        warnings = [*warnings, *seen_before(trainer.facts, trainer.config, trainer.folder.parent)]
    ending = train(
        trainer, listeners=listeners or (), resumed_from=resumed_from, known_steps=known_steps, warnings=warnings
    )
    finished = Run(trainer.folder, trainer=trainer, ending=ending)
    if trainer.finished:  # every rank knows that, while another's log may take its time over a network
        register_if_promised(finished, trainer, models_dir)
    return finished


def register_if_promised(finished: Run, trainer: Trainer, models_dir: str | Path | None) -> None:
    """Register a run under the name that it was given at its start, unless that was done before."""
    name: str | None = trainer.facts.get("register_as")
    if name is not None:
        where = promised_in(trainer.facts, models_dir, finished.folder)
        begun_with = begun_in(trainer.facts, finished.folder)
        if models_dir is None and begun_with is not None and begun_with != where:
            finished.lost_models_dir = begun_with
        trainer.world.first(lambda: register_once(finished, name, where))


def register_once(finished: Run, name: str, models_dir: Path) -> None:
    """Register a run under a name, unless it has it already. Raises RegistryError where another took it meanwhile."""
    registry = Registry(models_dir)
    if name not in registry.names():
        finished.registered_as = finished.register(name, models_dir).model_name
        finished.registered_in = models_dir
    elif registry.get(name).run_id != finished.run_id:
        raise RegistryError(
            f"the run {finished.run_id} is done and saved, but {name!r} has become another model meanwhile; register it "
            f"with `register-model {shlex.quote(str(finished.folder))} --name NAME`"
        )


@devices.threads_kept()
def resume(
    where: str | Path,
    *,
    config: ConfigLike = None,
    data: str | Path | None = None,
    runs_dir: str | Path | None = None,
    models_dir: str | Path | None = None,
    listeners: Sequence[Listener] | None = None,
    on_ready: Callable[[Trainer], None] | None = None,
    **overrides: Any,
) -> Run:
    """Go on with a run, bit for bit as if it had not been interrupted.

    where: a checkpoint folder, a run folder or a run id; a run means its newest checkpoint that verifies. config and
    overrides: what to change, `max_steps` above all. on_ready: see `execute`. Where nothing is left to train, a run that
    is complete, or went on from the checkpoint, is returned as it is. Raises UsageError where a change contradicts the
    weights or the data, naming both values.
    """
    devices.mind_processor_limits()
    runs, usual = find_runs_dir(runs_dir), torch.get_num_threads()
    saved, warnings = find_together(where, runs, ranks.join())
    merged = merge_config(saved, named_fields(read_config(config), overrides))
    folder = run_folder_of(saved, runs)
    known_steps = checkpoint.steps(folder / "checkpoints")
    trainer = rebuild(saved, merged, same_corpus(saved, data), folder)
    if trainer.finished and (done := left_as_it_is(trainer, folder, models_dir)) is not None:
        return done
    n_val = int(trainer.facts["data"]["n_val"])
    if (
        evaluated_tokens(merged, n_val) != evaluated_tokens(saved_config(saved), n_val)
        and merged.eval_cadence is not None
        and trainer.progress.has_any
    ):
        trainer.progress.begin_anew()
        message = (
            "eval_batches reads another part of the text now: val_loss, and the choice of `best`, compare unlike parts"
        )
        warnings = [*warnings, message]
    warnings = [*warnings, *altered_tokenizer(saved, trainer.tokenizer), *ended_decay(saved, merged)]
    if (threads := torch.get_num_threads()) != usual:
        message = (
            f"goes on with {threads} threads, as it began, for the same sums to the bit; here it would have {usual}"
        )
        warnings = [*warnings, message]
    name = saved.state.get("register_as")
    if name is not None and name in Registry(promised_in(saved.state, models_dir, folder)).names():
        warnings = [*warnings, f"the model {name} stays as it is; give what comes of this session a name of its own"]
    return execute(trainer, listeners, saved.folder, known_steps, warnings, models_dir=models_dir, on_ready=on_ready)


def left_as_it_is(trainer: Trainer, folder: Path, models_dir: str | Path | None) -> Run | None:
    """The run of a Trainer with nothing left to train, where it is complete, or went on from there; else None.

    One that was stopped, or killed, where the Trainer stands has its last words still to log.
    """

    def look() -> str:
        record = Record(folder) if folder.is_dir() else None
        if record is None or record.status == "completed":
            return "new" if record is None else "complete"
        return "gone on" if record.goes_beyond(trainer.step) else "to end"

    found = trainer.world.first(look)
    if found not in ("complete", "gone on"):
        return None
    done = Run(folder, trainer=trainer, was_done=True)
    if found == "complete":
        register_if_promised(done, trainer, models_dir)
    return done


def rebuild(saved: Checkpoint, config: TrainingConfig, corpus: Corpus | LargeCorpus, folder: Path) -> Trainer:
    """The Trainer of a checkpoint with the run's data, at the position where it was.

    Raises CheckpointError, and TokenizerError where the text has become other ids than it was.
    """
    tokenizer, data = saved.tokenizer(), saved.state["data"]
    batches = load_batches(config, corpus, tokenizer, int(saved.state["seed"]), int(data["position"]))
    had, has = data.get("n_tokens"), batches.facts["data"]["n_tokens"]
    if had not in (None, has):
        raise TokenizerError(
            f"{saved.folder / 'tokenizer'} makes {has:,} tokens of the text, of which it made {had:,} when the run began: "
            "go on with the transformers and tokenizers that it began with, or start a new run"
        )
    facts = {**facts_of(saved.state), "loss_floor": batches.facts["loss_floor"]}
    facts["data"] = {**facts["data"], "path": corpus.path}
    return Trainer.from_checkpoint(
        saved, val_dataloader=batches.val, config=config, train_dataloader=batches.train, folder=folder, facts=facts
    )


def branch(
    where: str | Path,
    name: str,
    *,
    config: ConfigLike = None,
    data: str | Path | None = None,
    run_name: str | None = None,
    runs_dir: str | Path | None = None,
    models_dir: str | Path | None = None,
    listeners: Sequence[Listener] | None = None,
    on_ready: Callable[[Trainer], None] | None = None,
    **overrides: Any,
) -> Run:
    """A new run from step 0 with a checkpoint's weights and a fresh optimizer, registered as `name` when it completes.

    The checkpoint's run, and the model it came from, stay as they are. data, config, overrides: other text and settings
    than the checkpoint's are fine here, but for the weights' own. A model name that the run itself bears is no branch:
    it resumes. Raises UsageError where `name` is taken, and what `resume` raises.
    """
    world = ranks.join()
    saved, warnings = find_together(where, find_runs_dir(runs_dir), world)
    run_id_of(saved)  # what has one says all that a branch is told of
    if name in (saved_config(saved).model_name, saved.state.get("register_as")):
        if run_name is not None:
            raise UsageError(
                f"{name!r} is the run's own model, with which it goes on under its own name; leave the run name out, or "
                "give a new model name to branch off"
            )
        arguments: dict[str, Any] = {"runs_dir": runs_dir, "models_dir": models_dir, "on_ready": on_ready, **overrides}
        return resume(where, config=config, data=data, listeners=listeners, **arguments)
    refuse_taken(name, models_dir, "choose a new name for the branch, or leave it out")
    merged = merge_config(saved, named_fields(read_config(config), overrides), branch=name)
    folder = Path(world.first(lambda: new_run_folder(runs_dir, run_name)))
    seed = choose_seed(merged, world)
    corpus = same_corpus(saved, None) if data is None else load_text(data)
    world.agree("text to train on", corpus.sha256)
    tokenizer = saved.tokenizer()
    batches = load_batches(merged, corpus, tokenizer, seed)
    adapter = loading.load_adapter(saved.folder)
    loading.fit(adapter, tokenizer, merged)
    parent, lineage = parent_of(saved, Registry(models_dir))
    facts = {
        "kind": "branch",
        "model": saved.state["model"],
        "fine_tuned_from": parent,
        "fine_tuning_started_at": now(),
        "lineage": lineage,
        **promise(name, models_dir, folder),
    }
    trainer = new_trainer(adapter, merged, tokenizer, batches, folder=folder, seed=seed, facts=facts)
    warnings = [*warnings, *altered_tokenizer(saved, tokenizer)]
    return execute(trainer, listeners, warnings=warnings, models_dir=models_dir, on_ready=on_ready)


def parent_of(saved: Checkpoint, registry: Registry) -> tuple[str | None, list[dict[str, Any]]]:
    """What a branch of a checkpoint comes from, by name, and its whole ancestry.

    That is the model that the checkpoint's run was to become, a branch or a named fine-tune, where the checkpoint is that
    model; else the one that its run began with.
    """
    run_id, name = saved.state["run_id"], saved.state.get("register_as")
    if name in registry.names() and (registry.get(name).run_id, registry.get(name).step) == (run_id, saved.step):
        return name, registry.lineage(name)
    link = {"model_name": saved.state["fine_tuned_from"], "run_id": run_id, "step": saved.step}
    return saved.state["fine_tuned_from"], [*saved.state["lineage"], link]


def finetune(
    model_name: str,
    data: str | Path | None = None,
    name: str | None = None,
    *,
    config: ConfigLike = None,
    models_dir: str | Path | None = None,
    listeners: Sequence[Listener] | None = None,
    **arguments: Any,
) -> Run:
    """Fine-tune a registered model on text, and register the result as `name` when it completes.

    Further arguments as for `run`. Raises ModelNotFound, and UsageError where `name` is taken.
    """
    if name is not None:
        refuse_taken(name, models_dir, "choose another name")
    trainer = build(config, data, models_dir=models_dir, model_name=model_name, **arguments)
    if name is not None:
        assert trainer.folder is not None
        trainer.facts.update(promise(name, models_dir, trainer.folder))
    return execute(trainer, listeners, models_dir=models_dir)


def register(
    where: str | Path, name: str, *, runs_dir: str | Path | None = None, models_dir: str | Path | None = None
) -> Entry:
    """Make a checkpoint (or a run's newest) a model of the registry, with its lineage. Raises a LabError."""
    from lmlab.export import register_checkpoint  # loads transformers for imported models

    runs = find_runs_dir(runs_dir)
    return read_checkpoint(where, runs, lambda saved: register_checkpoint(saved.folder, name, models_dir))


class Run(Record):
    """A run as a notebook holds it: its record (see `Record`), and the model that it trained.

    The model of the run that trained last stays in memory; that of an earlier one comes from its newest checkpoint, so
    that a notebook which keeps many runs (IPython keeps every result of a cell) holds one model.
    stopped_by: the number of the signal that ended the last session, None where it ended by itself. asked_to_stop:
    whether there was one, though perhaps too late for that. was_done: there was nothing left to resume. steps_left:
    from there to `max_steps`, where early stopping ended it. held_step: the step of the model that the last session left,
    or found. registered_as: the model that the last session made of it. registered_in: the models folder that this went
    to. lost_models_dir: the one that it was begun with, where the place of that is gone.
    """

    _holder: ClassVar[weakref.ref[Run] | None] = None  # the run whose model is in memory

    def __init__(
        self,
        folder: Path | str,
        *,
        glance: bool = False,
        trainer: Trainer | None = None,
        ending: Ending | None = None,
        was_done: bool = False,
    ) -> None:
        super().__init__(folder, glance=glance)
        self.stopped_by = ending.stopped_by if ending is not None else None
        self.asked_to_stop = ending is not None and ending.asked
        self.was_done = was_done
        self.steps_left = trainer.config.max_steps - trainer.step if trainer is not None else 0
        self.registered_as: str | None = None
        self.registered_in: Path | None = None
        self.lost_models_dir: Path | None = None
        self._held: tuple[BaseAdapter, Tokenizer] | None = None
        self.held_step = trainer.step if trainer is not None else 0
        self._held_from = checkpoint.mark_of(self.folder / "checkpoints", trainer.step) if trainer is not None else b""
        whole = trainer is not None and trainer.strategy != "fsdp"  # else no process has all of the weights
        if whole and trainer is not None and trainer.tokenizer is not None:
            before = Run._holder() if Run._holder is not None else None
            if before is not None:
                before._held = None
            self._held, Run._holder = (trainer.model.eval(), trainer.tokenizer), weakref.ref(self)

    def load(self, checkpoint_folder: Path | None = None) -> tuple[BaseAdapter, Tokenizer]:
        """The model of the newest checkpoint (or of the one given) and its tokenizer. Raises CheckpointError.

        A model that stayed in memory is given itself, so that a change to it shows in later samples of the run; with
        `run.newest_checkpoint`, the caller gets one of its own.
        """
        if self._held is not None and checkpoint_folder is None:
            checkpoints = self.folder / "checkpoints"
            steps = checkpoint.steps(checkpoints)
            if not steps or checkpoint.mark_of(checkpoints, steps[-1]) == self._held_from:
                return self._held
            self._held = None  # another process, or a session that ended in an error, went on from it
        where = checkpoint_folder or self.folder
        return read_checkpoint(where, self.folder.parent, lambda saved: loading.load_model_and_tokenizer(saved.folder))

    def plot(self, names: str | Sequence[str] = ("loss", "val_loss"), *, smoothing: float | None = None) -> Figure:
        """The run's curves as a figure that can be saved; see `views.plots.curves`."""
        from lmlab.views import plots

        self.refresh()
        return plots.curves(self, names, smoothing=smoothing)

    def watch(self) -> None:
        """Show the live view of a run that another process trains, until it ends or the cell is interrupted."""
        from lmlab.views.live import follow

        follow(self)

    def _repr_html_(self) -> str:
        from lmlab.views.cards import run_card

        self.refresh()
        return run_card(self).html

    def resume(self, **changes: Any) -> Run:
        """Go on from the newest checkpoint; see `lab.resume`."""
        return resume(self.folder, **changes)

    def wait(self, step: int | None = None) -> Run:
        """Wait until another process has trained this run up to a step, or until it ends."""
        while self.is_running() and (step is None or self.step < step):
            time.sleep(0.05)
            self.refresh()
        self.refresh()
        return self

    def stop(self, timeout: float = 60.0) -> Run:
        """Ask the process that trains this run to save and end, and wait until it did.

        timeout: seconds to wait. A run that is not training is returned as it is. Raises RunError.
        """
        deadline = time.monotonic() + timeout
        if self.is_running():
            ask_to_stop(self.folder)
        while self.is_running():
            if time.monotonic() > deadline:
                raise RunError(
                    f"the run {self.folder} has not ended after {timeout:.0f} s: a long step, evaluation or save; call "
                    "stop again to go on waiting"
                )
            time.sleep(0.05)
        self.refresh()
        return self

    def register(self, name: str, models_dir: str | Path | None = None) -> Entry:
        """Make the newest checkpoint a registered model with its lineage; see `register`."""
        return register(self.folder, name, models_dir=models_dir)
