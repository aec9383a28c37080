"""What one does with runs in a notebook: list, compare, let them write side by side, look inside.

L layers, H heads, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lmlab import lab, planning
from lmlab.comparison import distinct, smallest_difference
from lmlab.config import ConfigLike, read_config
from lmlab.entries import Entry
from lmlab.errors import ConfigError, DivergedError, LabError, OutOfMemory, UsageError, warn_caller
from lmlab.evaluate import text_losses
from lmlab.generate import SamplingSettings
from lmlab.hub import import_model
from lmlab.isolation import on_its_own
from lmlab.lab import Run
from lmlab.launching import attach
from lmlab.modes import in_mode
from lmlab.places import find_runs_dir
from lmlab.record import find_runs
from lmlab.registry import Registry
from lmlab.sampling import Writer, load_registered, load_writer, sampled_with, write
from lmlab.session import Ending
from lmlab.sources import origin_of
from lmlab.tokenizers import Tokenizer
from lmlab.views import cards, plots
from lmlab.views.figure import figure_html
from lmlab.views.html import View, element, escape, page
from lmlab.views.live import Display, LiveView, in_notebook
from lmlab.views.microscope import microscope as microscope_view

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUN_ARGUMENTS = {
    "config",
    "data",
    "run_name",
    "runs_dir",
    "models_dir",
    "listeners",
}  # of `lab.run`; the others are fields
# Fields by which a run may end at its beginning, with given text and models.
BEGINNING = (
    "hooks", "model_name", "tokenizer_override", "resize_embeddings", "max_seq_len", "train_ratio", "eval_cadence",
    "compile", "activation_checkpointing",
)  # fmt: skip
MOST_LOOKED_AT = 64  # tokens that the pictures of `look` can hold

Given = Run | str | Path  # a run, itself or by its id or folder
Source = Given  # who writes and is looked at: a run, or a registered model by its name


def runs(runs_dir: str | Path | None = None) -> cards.Runs:
    """All runs, newest first, as a list that shows itself as a table."""
    return cards.Runs(find_runs(find_runs_dir(runs_dir), Run))


def models(models_dir: str | Path | None = None) -> cards.Models:
    """All registered models as a list that shows itself as a table."""
    registry = Registry(models_dir)
    return cards.Models(registry.entries(), registry.damaged())


def get_model(source: str, name: str, *, models_dir: str | Path | None = None) -> Entry:
    """The registered model of that name, imported from `source` if there is none yet, so that a cell can run twice.

    source: as for `hub.import_model`, whose errors this raises. Raises UsageError where the name belongs to another.
    """
    registry = Registry(models_dir)
    if name not in registry.names():
        imported = import_model(source, name, models_dir=models_dir)
        assert imported is not None
        return imported
    entry, origin = registry.get(name), origin_of(source, None)
    is_from_there = (entry.source, entry.model_id) == (origin.source, origin.model_id)
    if not is_from_there:  # a fine-tune keeps the id of what it comes from
        known = "that was trained here" if entry.run_id is not None else f"from {entry.model_id}"
        raise UsageError(f"{name!r} is a model {known} already; choose another name for {source}")
    return entry


def free_name(name: str, *, models_dir: str | Path | None = None) -> str:
    """`name`, or where a registered model bears it, the first of `name`-v2, `name`-v3, … that is free."""
    taken = Registry(models_dir).names()
    return next(n for n in (name, *(f"{name[:58]}-v{count}" for count in range(2, len(taken) + 3))) if n not in taken)


def read_now(run: Given) -> Run:
    """A run as it stands now. Raises RunError where there is none of that id or folder."""
    found = run if isinstance(run, Run) else attach(run)
    found.refresh()
    return found


def diff(a: Given, b: Given) -> cards.ShownDifference:
    """How two runs differ: config, data, code, environment, the first step at which their losses part, and the end."""
    return cards.ShownDifference.between(read_now(a), read_now(b))


class Comparison:
    """Runs compared: `figure` has their curves, `table` their differences and final losses. Shows both."""

    def __init__(self, figure: Figure, table: View) -> None:
        self.figure, self.table = figure, table

    def _repr_html_(self) -> str:
        return figure_html(self.figure) + self.table.html

    def __repr__(self) -> str:
        return repr(self.table)


def compare(
    runs: Given | Sequence[Given],
    names: str | Sequence[str] = ("loss", "val_loss"),
    *,
    axis: str = "step",
    smoothing: float | None = None,
    noise: float | None = None,
    labels: Sequence[Any] | None = None,
) -> Comparison:
    """Curves of several runs by `step`, `tokens` or `seconds`, with a table of config differences and final losses.

    noise: from `noise`, drawn as a band around each validation curve. labels: what figure and table call the runs, text
    or numbers in place of their ids. The storybook's floor is a line.
    """
    read = [read_now(run) for run in ([runs] if isinstance(runs, Given) else runs)]
    figure = plots.compare(read, names, axis=axis, smoothing=smoothing, noise=noise, labels=labels)
    return Comparison(figure, cards.comparison_table(read, noise, labels))


def sweep(
    config: ConfigLike, changes: Iterable[Mapping[str, Any]], data: str | Path | None = None, **arguments: Any
) -> list[Run]:
    """One run for each of some changes to a config, in order; a notebook shows them in one place.

    changes: config fields by name, or other arguments of `lab.run`, such as `run_name`. Further arguments as for
    `lab.run`, the same for all. A run that diverges, or that memory was too small for, is among them; an interrupt ends
    the sweep with the run that it stops, the last one returned, and between two runs with those that were made; so does
    an error after the first run, with a warning. Fields, hooks, models and text of all changes are checked before the first
    run, text of more than 16 MB only for being there. Raises a LabError.
    """
    runs, error = _swept(config, changes, data, arguments)
    if error is not None:
        what = error if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
        warn_caller([f"the sweep ends after {len(runs)} runs: {what}"])
    return runs


def _swept(
    config: ConfigLike, changes: Iterable[Mapping[str, Any]], data: str | Path | None, arguments: Mapping[str, Any]
) -> tuple[list[Run], Exception | None]:
    """The runs of a sweep, and the error that ended it after some, such as of a full disk or in a user's hook."""
    changes = changes if isinstance(changes, Mapping) else list(changes)
    refuse_changes(config, changes, data, arguments)
    place = Display() if in_notebook() else None
    runs: list[Run] = []
    for change in changes:
        listeners = None if place is None else [LiveView(show=place)]
        given = {"config": config, "data": data, "listeners": listeners, **arguments, **change}
        try:
            runs.append(_trial(**given))
        except KeyboardInterrupt:
            if not runs:
                raise
            break
        except Exception as error:
            if not runs:
                raise
            return runs, error
        if runs[-1].asked_to_stop:
            break
    return runs, None


def refuse_changes(config: ConfigLike, changes: Any, data: str | Path | None, arguments: Mapping[str, Any]) -> None:
    """Raise before hours of training the LabError that the last of a sweep's changes would begin with."""
    if isinstance(changes, Mapping) or not all(isinstance(change, Mapping) for change in changes):
        raise UsageError("changes are a list of mappings, one for each run: [{'seed': 0}, {'seed': 1}]")
    folders, found_good = set(), set()
    for change in changes:
        given = {"config": config, "data": data, **arguments, **change}
        fields = {name: each for name, each in given.items() if name not in RUN_ARGUMENTS}
        resolved, places = read_config(given["config"], **fields), (given["data"], given.get("models_dir"))
        kind = (*map(str, places), *(getattr(resolved, name) for name in BEGINNING))
        if kind not in found_good:
            planning.refuse(resolved, *places)
            found_good.add(kind)
        if (name := given.get("run_name")) is not None:
            folder = lab.new_run_folder(given.get("runs_dir"), name).resolve()
            if folder in folders:
                raise UsageError(
                    f"two runs of the sweep would have the name {name!r}; give each its own run_name, or none"
                )
            folders.add(folder)


def _trial(*, listeners: Any, **arguments: Any) -> Run:
    """`lab.run`, which here returns a run that diverged, or whose steps did not fit into memory, too."""
    trainer = lab.build(**arguments)
    assert trainer.folder is not None
    try:
        return lab.execute(trainer, listeners)
    except DivergedError as error:
        return Run(trainer.folder, ending=Ending(None, error.asked_to_stop))
    except OutOfMemory as error:
        warn_caller([f"{trainer.folder.name}: {error}"])
        return Run(trainer.folder, ending=Ending(None, asked=False))


def whole_sweep(
    config: ConfigLike, changes: Sequence[Mapping[str, Any]], data: str | Path | None = None, **arguments: Any
) -> list[Run]:
    """A `sweep` whose final validation losses are needed, each one: evaluated at the end at least.

    Raises UsageError where it was stopped before its last run, and what a run raises.
    """
    resolved = read_config(config)
    if resolved.eval_cadence is None and "eval_cadence" not in arguments:
        arguments["eval_cadence"] = resolved.max_steps
    runs, error = _swept(resolved, changes, data, arguments)
    if error is not None:
        raise error
    if len(runs) < len(changes):
        raise UsageError(
            f"stopped in run {len(runs)} of {len(changes)}, {runs[-1].title}; all of them are needed: call it again"
        )
    return runs


def noise(config: ConfigLike = None, seeds: int = 3, data: str | Path | None = None, **arguments: Any) -> float:
    """The smallest difference in validation loss worth believing between two single runs of a config, in nats.

    Trains the config with `seeds` seeds (0, 1, …); see `comparison.smallest_difference` for what is computed. Further
    arguments as for `lab.run`. Raises UsageError for fewer than 2 seeds, and where a run does not complete.
    """
    if seeds < 2:
        raise UsageError(f"{seeds} seed says nothing of the noise; give 2 or more")
    return smallest_difference(whole_sweep(config, [{"seed": seed} for seed in range(seeds)], data, **arguments))


class Samples(View):
    """Texts side by side. texts: a run's label to its texts, one for each prompt, None where there is none."""

    def __init__(self, prompts: Sequence[str], texts: Mapping[str, Sequence[str | None]]) -> None:
        view = cards.samples_table(prompts, texts)
        super().__init__(view.html, view.text)
        self.prompts, self.texts = list(prompts), {label: list(said) for label, said in texts.items()}


def by_label(sources: Source | Sequence[Source] | Mapping[str, Source]) -> dict[str, Source]:
    """Runs and models by the labels that they are given, else by run id or name, each told apart from the others."""
    if isinstance(sources, Mapping):
        return dict(sources)
    listed = [sources] if isinstance(sources, Source) else sources
    runs = {source.title for source in listed if isinstance(source, Run)}
    labels = [s.title if isinstance(s, Run) else f"{s} (model)" if s in runs else str(s) for s in listed]
    return dict(zip(distinct(labels), listed, strict=True))


def load_source(source: Source, models_dir: str | Path | None = None) -> Writer:
    """Who writes or is looked at; a name is a registered model's, also where a run bears it. Raises a LabError."""
    registry = Registry(models_dir)
    if isinstance(source, str) and source in registry.names():
        return load_registered(source, registry)
    return load_writer(source, models_dir=models_dir)


def samples(
    runs: Source | Sequence[Source] | Mapping[str, Source],
    prompts: str | Sequence[str] = ("The",),
    *,
    models_dir: str | Path | None = None,
    **overrides: Any,
) -> Samples:
    """What runs and registered models write from the same prompts, side by side, with each run's sampling settings.

    runs: runs or model names, or a mapping of labels to them. overrides: `sampling_…` fields, for all alike.
    """
    texts, prompts = {}, [prompts] if isinstance(prompts, str) else prompts
    for label, source in by_label(runs).items():
        adapter, tokenizer, config = load_source(source, models_dir)
        config = sampled_with(config, overrides)
        settings = SamplingSettings.from_config(config)
        texts[label] = [
            write(adapter, tokenizer, prompt, 1, settings, precision=config.precision)[0] for prompt in prompts
        ]
    return Samples(prompts, texts)


def samples_by_step(run: Given) -> Samples:
    """All samples that a run wrote while it trained, prompt by prompt, oldest first: how it learned to write."""
    by_step: dict[str, dict[str, str]] = {}
    for sample in (written := read_now(run).samples()):
        by_step.setdefault(f"step {sample.step:,}", {})[sample.prompt] = sample.text
    prompts = list(dict.fromkeys(sample.prompt for sample in written))
    return Samples(prompts, {label: [said.get(prompt) for prompt in prompts] for label, said in by_step.items()})


def microscope(
    run: Source | Sequence[Source] | Mapping[str, Source],
    text: str,
    *,
    before: bool = False,
    models_dir: str | Path | None = None,
) -> View:
    """A text with every token coloured by the loss it costs a model; ids and boundaries on hover.

    run: a run or a registered model's name, or several that share a tokenizer, side by side. before: show a run's
    oldest checkpoint, too. Raises UsageError where there is none, as of a registered model.
    """
    readings: dict[str, list[float | None]] = {}
    tokenizer: Tokenizer | None = None
    ids: list[int] = []
    for label, source in by_label(run).items():
        models = {label: load_source(source, models_dir)[:2]}
        if before:
            trained, oldest = oldest_checkpoint(source, models_dir)
            models = {f"{label}, {oldest.name}": trained.load(oldest), f"{label}, newest": models[label]}
        for title, (adapter, own) in models.items():
            if tokenizer is not None and own.identifier != tokenizer.identifier:
                raise UsageError(
                    f"the tokenizers {tokenizer.identifier} and {own.identifier} cut text differently; look at one model "
                    "at a time"
                )
            tokenizer, ids = own, own.begun(own.encode(text)).tolist()
            readings[title] = losses_of(adapter, ids)
    if tokenizer is None:
        raise UsageError("there is no run to look through; give one or more")
    return microscope_view(tokenizer.pieces(ids), ids, readings)


def oldest_checkpoint(source: Source, models_dir: str | Path | None) -> tuple[Run, Path]:
    """The run that a source is, and its oldest checkpoint. Raises UsageError where there is none."""
    if isinstance(source, Run) or str(source) not in Registry(models_dir).names():
        run = read_now(source)
        if checkpoints := run.checkpoints():
            return run, checkpoints[0]
        source = run.title
    raise UsageError(
        f"{source} has no checkpoint to show the model before; give a run that saved one, or leave before out"
    )


def losses_of(adapter: Any, ids: Sequence[int]) -> list[float | None]:
    """The loss of every token of a text in nats; None for the first, which nothing comes before. Raises UsageError."""
    if len(ids) < 2:
        raise UsageError(f"{len(ids)} tokens are too few to look at; give a longer text")
    if adapter.max_positions is not None and len(ids) > adapter.max_positions:
        raise UsageError(
            f"the text has {len(ids):,} tokens, and the model takes {adapter.max_positions:,} in all; shorten it"
        )
    return [None, *text_losses(adapter, torch.tensor(ids, device=next(adapter.parameters()).device)).tolist()]


class Look:
    """The inside of a model as it reads a text. probabilities_LHTT: attention, fp32. hidden_L: the residual stream, BTD
    each, in the model's own precision."""

    def __init__(self, run: Source, text: str, models_dir: str | Path | None = None) -> None:
        self._adapter, self._tokenizer, _ = load_source(run, models_dir)
        ids = self._tokenizer.begun(self._tokenizer.encode(text)).tolist()
        if not 1 < len(ids) <= MOST_LOOKED_AT:
            raise UsageError(f"{len(ids)} tokens: look at 2 to {MOST_LOOKED_AT}; choose a shorter or longer text")
        self.ids, self.tokens = ids, self._tokenizer.pieces(ids)
        ids_BT = torch.tensor([ids], device=next(self._adapter.parameters()).device)
        with on_its_own(), torch.no_grad(), in_mode(self._adapter, training=False):
            self.probabilities_LHTT = torch.stack([p[0].float().cpu() for p in self._adapter.attentions(ids_BT)])
            self.hidden_L = self._adapter.hidden_states(ids_BT)

    @property
    def logits_LTV(self) -> Tensor:
        """What the model would say after each layer. Raises ConfigError where its final norm or head are not known."""
        return torch.stack([*self._logits()])

    def _logits(self) -> Iterator[Tensor]:
        """The same a layer at a time, logits_TV: of a large vocabulary, all of them are gigabytes."""
        for x_BTD in self.hidden_L:
            with on_its_own(), torch.no_grad():
                logits_TV = self._adapter.unembed(x_BTD)[0].float().cpu()
            yield logits_TV

    def attention(self, layers: Sequence[int] | None = None, heads: Sequence[int] | None = None) -> Figure:
        """Attention maps, a row for each layer and a column for each head; see `views.plots.attention_figure`."""
        return plots.attention_figure(self.probabilities_LHTT.numpy(), self.tokens, layers=layers, heads=heads)

    def lens(self) -> Figure:
        """The logit lens (nostalgebraist 2020): what the model would say next if it stopped after each layer."""
        best = [logits_TV.softmax(dim=-1).max(dim=-1) for logits_TV in self._logits()]
        shares_LT, ids_LT = (torch.stack(each) for each in zip(*best, strict=True))
        guesses = [self._tokenizer.pieces(row) for row in ids_LT.tolist()]
        hits_LT = (ids_LT[:, :-1] == torch.tensor(self.ids[1:])).numpy()  # texts of other tokens may look alike
        return plots.lens_figure(guesses, shares_LT.numpy(), self.tokens, hits_LT=hits_LT)

    def __repr__(self) -> str:
        return f"Look at {' '.join(self.tokens)!r}: .attention(), .lens()"

    def _repr_html_(self) -> str:
        n_layers, n_heads = self.probabilities_LHTT.shape[:2]
        if n_layers * n_heads > plots.MOST_PANELS:
            maps = _line(
                f"{n_layers} layers × {n_heads} heads are too many for one figure: look.attention(layers=[…], heads=[…])"
            )
        else:
            maps = figure_html(self.attention())
        try:
            return maps + figure_html(self.lens())
        except ConfigError as error:  # of a model whose last parts are not known
            return maps + _line(str(error))


def _line(text: str) -> str:
    return page(element("div", escape(text), "lm-dim"))


def look(run: Source, text: str, *, models_dir: str | Path | None = None) -> Look:
    """Attention maps and the logit lens of a model, of a run or registered by name, on a short text."""
    return Look(run, text, models_dir)


def plot_hook(run: Given, name: str) -> Figure:
    """What a research hook measured over the steps of a run; see `views.plots.hook_figure`."""
    return plots.hook_figure(read_now(run), name)
