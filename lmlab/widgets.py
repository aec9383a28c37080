"""Faces for the notebook, made of ipywidgets: a run picker, a prompt box, a registry browser.

Each is thin over functions that work without it: `compare`, `sampling.write`, `Registry`. The config form is in
`lmlab.forms`. ipywidgets loads when one is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmlab import words
from lmlab.catalogue import as_tree, render_info
from lmlab.checkpoint import mark_of, steps
from lmlab.comparison import distinct
from lmlab.faces import Face
from lmlab.generate import SamplingSettings
from lmlab.history import AXES
from lmlab.lab import Run
from lmlab.places import find_runs_dir
from lmlab.record import Record, find_run, find_runs
from lmlab.registry import Registry
from lmlab.runs_table import LONGEST_TITLE
from lmlab.sampling import load_writer, write
from lmlab.study import Source, compare
from lmlab.views.html import element, escape, head, page, quote
from lmlab.views.live import Pace

FIRST_PICKED = 3  # runs that the picker shows at first


# --- the run picker -------------------------------------------------------------------------------------------------


class RunPicker(Face):
    """Runs to choose from, and their comparison. `chosen` are the runs that are picked, in the order of the list.

    runs: by the names of their folders, since a copied run has the id of the first.
    """

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir = runs_dir
        self.runs: dict[str, Run] = {}
        super().__init__()
        self.refresh()

    def _made(self) -> Any:
        import ipywidgets

        self.list = ipywidgets.SelectMultiple(rows=8, layout={"width": "440px"})
        self.axis = ipywidgets.ToggleButtons(options=AXES, style={"button_width": "76px"})
        self.smoothing = ipywidgets.IntSlider(
            value=10,
            min=1,
            max=200,
            description="Smoothing",
            style={"description_width": "76px"},
            layout={"width": "320px"},
        )
        self.again = ipywidgets.Button(description="Read again", icon="refresh")
        self.view = ipywidgets.HTML()
        self.again.on_click(self.doing(self.refresh))
        for control in (self.list, self.axis, self.smoothing):
            control.observe(self.doing(self.draw), "value")
        controls = ipywidgets.VBox([self.axis, self.smoothing, self.again])
        top = ipywidgets.HBox([self.list, controls], layout={"align_items": "center"})
        return ipywidgets.VBox([top, self.message, self.view])

    @property
    def chosen(self) -> list[Run]:
        """The runs that are picked."""
        return [run for folder, run in self.runs.items() if folder in self.list.value]

    def refresh(self) -> None:
        """Look into the runs folder again, and read what was logged since; what was picked stays so."""
        before = self.list.value
        self.runs = {run.folder.name: run for run in find_runs(self.runs_dir, Run, self.runs.values())}
        self.list.options = list(zip(distinct(map(title_of, self.runs.values())), self.runs, strict=True))
        self.list.value = [folder for folder in self.runs if folder in before] or list(self.runs)[:FIRST_PICKED]
        self.draw()

    def draw(self) -> None:
        """Show the comparison of what is picked."""
        if not self.runs:
            self.view.value = ""
            self.say(f"no runs in {self.runs_dir} yet")
            return
        shown = compare(self.chosen, axis=self.axis.value, smoothing=self.smoothing.value) if self.chosen else None
        self.view.value = "" if shown is None else shown._repr_html_()


def run_picker(runs_dir: str | Path | None = None) -> RunPicker:
    """Runs to pick and compare, with a smoothing slider and the axis to draw along: the face of `compare`."""
    return RunPicker(find_runs_dir(runs_dir))


def title_of(run: Record) -> str:
    """A run in one line of a list."""
    title = words.one_line(run.title, LONGEST_TITLE)
    return f"{title}   {run.status}, step {run.step:,}, loss {words.loss(run.last('loss'))}"


# --- the prompt box -------------------------------------------------------------------------------------------------


class PromptBox(Face):
    """A model to write with: `prompt`, `temperature`, `top_k`, `top_p`, `length`, `seed` and a button. `text` is what it
    wrote last. That of a run is loaded again where the run went on."""

    def __init__(self, source: Source, runs_dir: str | Path | None, models_dir: str | Path | None) -> None:
        self.source, self.runs_dir, self.models_dir = source, runs_dir, models_dir
        self._load(self._newest())
        self.text = ""
        super().__init__()

    def _newest(self) -> tuple[int, bytes] | None:
        """The step and mark of the newest checkpoint of the run that writes; None without one, as of a registered model."""
        folder = self.source if isinstance(self.source, Run) else find_run(self.source, find_runs_dir(self.runs_dir))
        checkpoints = Path(folder, "checkpoints")
        step = max(steps(checkpoints), default=None)
        return None if step is None else (step, mark_of(checkpoints, step))

    def _load(self, newest: tuple[int, bytes] | None) -> None:
        self.__dict__.pop("writer", None)  # first, so that there is one model in memory
        self.writer = load_writer(self.source, runs_dir=self.runs_dir, models_dir=self.models_dir)
        self._loaded = newest

    def _made(self) -> Any:
        import ipywidgets

        config = self.writer.config
        style = {"description_width": "96px"}
        numbers = {"style": style, "layout": {"width": "330px"}, "continuous_update": False}
        self.prompt = ipywidgets.Textarea(value=config.sampling_prompt, rows=5, layout={"width": "auto"})
        self.temperature = ipywidgets.FloatSlider(
            value=min(config.sampling_temperature, 2.0), min=0, max=2, step=0.05, description="Temperature", **numbers
        )
        self.top_k = ipywidgets.IntSlider(
            value=min(config.sampling_top_k or 0, 200), min=0, max=200, description="Top-k (0 off)", **numbers
        )
        self.top_p = ipywidgets.FloatSlider(
            value=max(config.sampling_top_p or 1, 0.05),
            min=0.05,
            max=1,
            step=0.01,
            description="Top-p (1 off)",
            **numbers,
        )
        self.length = ipywidgets.BoundedIntText(
            value=config.sampling_max_length,
            min=1,
            max=100_000,
            description="Tokens",
            style=style,
            layout={"width": "200px"},
        )
        self.seed = ipywidgets.BoundedIntText(
            value=0, min=0, max=2**31, description="Seed", style=style, layout={"width": "200px"}
        )
        self.button = ipywidgets.Button(description="Write", button_style="primary", icon="pencil")
        self.button.on_click(self.doing(self.write))
        self.view = ipywidgets.HTML(layout={"width": "100%"})
        left = ipywidgets.VBox([self.prompt, self.button], layout={"flex": "1 1 auto", "width": "360px"})
        right = ipywidgets.VBox([self.temperature, self.top_k, self.top_p, self.length, self.seed])
        top = ipywidgets.HBox([left, right], layout={"max_width": "920px"})
        return ipywidgets.VBox([top, self.message, self.view])

    def write(self) -> str:
        """What the button does: write from the prompt on, each token shown as it comes. Raises a LabError."""
        newest = self._newest()
        if newest is not None and newest != self._loaded:
            self._load(newest)
            self.say(f"the run went on: this is the model of step {newest[0]:,}")
        adapter, tokenizer, config = self.writer
        config = config.updated(
            sampling_temperature=self.temperature.value,
            sampling_top_k=self.top_k.value or None,
            sampling_top_p=self.top_p.value if self.top_p.value < 1 else None,
            sampling_max_length=self.length.value,
            sampling_seed=self.seed.value,
        )
        prompt, pace, pieces = self.prompt.value, Pace(), []

        def show(piece: str) -> None:
            pieces.append(piece)
            if pace.due():
                self._show(prompt, prompt + "".join(pieces))

        self.button.disabled = True
        try:
            settings = SamplingSettings.from_config(config)
            [self.text] = write(adapter, tokenizer, prompt, 1, settings, precision=config.precision, on_token=show)
        finally:
            self.button.disabled = False
        self._show(prompt, self.text)
        return self.text

    def _show(self, prompt: str, text: str) -> None:
        self.view.value = page(quote(text, prompt))

    def close(self) -> None:
        """Take the box off the page and let the model go."""
        super().close()
        self.__dict__.pop("writer", None)


def prompt_box(run: Source, *, runs_dir: str | Path | None = None, models_dir: str | Path | None = None) -> PromptBox:
    """A prompt, the settings of sampling, and a button that lets a run or a registered model write, token by token.

    run: as for `sampling.load_writer`. Raises what that raises.
    """
    return PromptBox(run, runs_dir, models_dir)


# --- the registry browser -------------------------------------------------------------------------------------------


class RegistryBrowser(Face):
    """The registered models, what there is to know of the one that is selected, and its deletion, asked for twice."""

    def __init__(self, registry: Registry, runs_dir: Path) -> None:
        self.registry, self.runs_dir = registry, runs_dir
        self._asked: str | None = None
        super().__init__()
        self.refresh()

    def _made(self) -> Any:
        import ipywidgets

        self.list = ipywidgets.Select(rows=8, layout={"width": "300px"})
        self.list.observe(self.doing(self.show), "value")
        self.delete_button = ipywidgets.Button(description="Delete…", icon="trash")
        self.sure_button = ipywidgets.Button(description="Delete for good", button_style="danger")
        self.keep_button = ipywidgets.Button(description="Keep it")
        self.again = ipywidgets.Button(description="Read again", icon="refresh")
        self.delete_button.on_click(self.doing(self.ask))
        self.sure_button.on_click(self.doing(self.delete))
        self.keep_button.on_click(self.doing(self.show))
        self.again.on_click(self.doing(self.refresh))
        self.question = ipywidgets.HBox([self.sure_button, self.keep_button])
        self.view = ipywidgets.HTML(layout={"width": "100%"})
        buttons = ipywidgets.HBox([self.delete_button, self.again])
        left = ipywidgets.VBox([self.list, buttons, self.message, self.question], layout={"flex": "0 0 auto"})
        return ipywidgets.HBox([left, self.view])

    def refresh(self) -> None:
        """Read the registry again; what was selected stays so."""
        before = self.list.value
        entries = list(as_tree(self.registry.entries()))
        names = [entry.model_name for _, entry in entries]
        self.list.options = [(branch + entry.model_name, entry.model_name) for branch, entry in entries]
        self.list.value = before if before in names else next(iter(names), None)
        self.show()

    def show(self) -> None:
        """Show the selected model with its lineage; whatever was asked about a deletion is dropped."""
        name = self.list.value
        self._asked = None
        self.question.layout.display = "none"
        self.delete_button.disabled = name is None
        if name is None:
            self.view.value = ""
            self.say("no models yet; lab.import_model('builtin:tiny-qwen') makes a tiny one")
            return
        chain = [*self.registry.ancestors(name), name]
        text = element(
            "div", escape(render_info(self.registry, name, self.runs_dir)), "lm-text lm-mono", style="max-height:340px"
        )
        self.view.value = page(head("Lineage"), element("div", " → ".join(map(escape, chain))), text)

    def ask(self) -> None:
        """What the Delete button does: say what would be lost, and show the button that does it."""
        name = self.list.value
        if name is None:
            return
        children = self.registry.descendants(name)
        loss = f"; {', '.join(children)} would lose where they come from" if children else ""
        self._asked = name
        self.say(f"delete {name} and its files, {words.size(self.registry.get(name).size_bytes)}?{loss}", "lm-warn")
        self.question.layout.display = ""

    def delete(self) -> None:
        """Delete the model that `ask` asked about, whatever comes from it, once. Raises RegistryError."""
        name, self._asked = self._asked, None
        if name is None:  # a second click, which came when the list showed another model already
            return
        freed = self.registry.remove(name, force=True)
        self.refresh()
        self.say(f"{name} is deleted, {words.size(freed)} are free")


def registry_browser(models_dir: str | Path | None = None, *, runs_dir: str | Path | None = None) -> RegistryBrowser:
    """The models of a registry with their lineage and a button that deletes: the face of `Registry`."""
    return RegistryBrowser(Registry(models_dir), find_runs_dir(runs_dir))
