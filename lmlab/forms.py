"""The config form: every setting with its limits and meaning, and buttons that run it and stop.

A thin face over `launch` and `Run.stop`. ipywidgets loads when a form is made.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmlab import words
from lmlab.config import GROUPS, ConfigLike, TrainingConfig, read_config
from lmlab.errors import LabError, RegistryError, UsageError
from lmlab.faces import Face
from lmlab.lab import Run
from lmlab.launching import launch
from lmlab.record import Record
from lmlab.registry import Registry
from lmlab.settings import Setting, settings
from lmlab.views.html import element, escape
from lmlab.views.live import live_view, rest_after

LOOK_SECONDS = 0.3  # between two looks at the log of a run


class ConfigForm(Face):
    """The settings of a run to fill in. `config` is what the form says now, `run` the run it started last.

    controls: by a setting's name, the widget with its value, and the one that switches it on (None where it is never
    off). Running goes on in a process of its own, so that the notebook stays free.
    """

    def __init__(self, base: TrainingConfig, arguments: Mapping[str, Any]) -> None:
        self.base, self.arguments = base, dict(arguments)
        self.run: Run | None = None
        self.controls: dict[str, tuple[Any, Any]] = {}
        self._closed = threading.Event()
        self._turn = threading.Lock()  # of whoever sets the buttons
        super().__init__()
        self._check(None)

    def _made(self) -> Any:
        import ipywidgets

        rows: dict[str, list[Any]] = {group: [] for group in GROUPS}
        try:
            models = Registry(self.arguments.get("models_dir")).names()
        except RegistryError:  # a form for a model from scratch needs none, and Run says what is wrong with it
            models = []
        for setting in settings(self.base):
            rows[setting.group].append(self._row(setting, models))
        titles = [group.partition(" and ")[0] for group in rows]  # a tab has no room for more
        tabs = ipywidgets.Tab([ipywidgets.VBox(group) for group in rows.values()], titles=titles)
        self.run_button = ipywidgets.Button(description="Run", button_style="primary", icon="play")
        self.stop_button = ipywidgets.Button(description="Stop", icon="stop", disabled=True)
        self.run_button.on_click(self.doing(self.start))
        self.stop_button.on_click(self.doing(self.stop))
        self.view = ipywidgets.HTML()
        buttons = ipywidgets.HBox([self.run_button, self.stop_button])
        return ipywidgets.VBox([tabs, buttons, self.message, self.view])

    def _row(self, setting: Setting, models: list[str]) -> Any:
        import ipywidgets

        control = control_for(setting, models)
        control.layout.width, control.layout.flex = "190px", "0 0 auto"
        switch = None
        if setting.optional and setting.kind in ("int", "float"):
            switch = ipywidgets.Checkbox(value=setting.value is not None, indent=False, description="on")
            switch.layout.width, switch.layout.flex = "54px", "0 0 auto"
            control.disabled = not switch.value
            switch.observe(lambda change: setattr(control, "disabled", not change["new"]), "value")
            switch.observe(self._check, "value")
        control.observe(self._check, "value")
        self.controls[setting.name] = control, switch
        gap = ipywidgets.HTML(layout={"width": "54px", "flex": "0 0 auto"}) if switch is None else switch
        label = ipywidgets.Label(setting.name, layout={"width": "190px", "flex": "0 0 auto"})
        return ipywidgets.HBox(
            [label, gap, control, ipywidgets.HTML(meaning_of(setting))], layout={"align_items": "center"}
        )

    def values(self) -> dict[str, Any]:
        """What the form says, by setting; None is off."""
        values = {}
        for name, (control, switch) in self.controls.items():
            value = list(control.value) if isinstance(control.value, tuple) else control.value
            off = (switch is not None and not switch.value) or (value == "" and name == "tokenizer_override")
            values[name] = None if off else value
        return values

    @property
    def config(self) -> TrainingConfig:
        """The config that the form says. Raises ConfigError where its values do not fit together."""
        return TrainingConfig.from_dict(self.values(), source="form")

    def _check(self, _: object) -> None:
        if set(self.controls) != set(TrainingConfig.model_fields):
            return  # still being made
        try:
            config, before = self.config.to_dict(), self.base.to_dict()
        except LabError as error:
            self.run_button.disabled = True
            self.say(str(error), "lm-bad")
            return
        self.run_button.disabled = self.run is not None and self.run.is_running()
        changed = [f"{name}={words.plain(config[name])}" for name in config if config[name] != before[name]]
        self.say(f"changed: {', '.join(changed)}" if changed else "")

    def start(self) -> Run:
        """What the Run button does: launch a run of this config and follow it below.

        Raises UsageError while its last run goes on, and what `launch` raises.
        """
        config = self.config
        with self._turn:
            if self.run is not None and self.run.is_running():  # a second click, made before the button was off
                raise UsageError(f"the run {self.run.run_id} goes on; stop it first, or wait until it ends")
            self.run_button.disabled = True
            try:
                run = self.run = launch(config, **self.arguments)
            finally:
                self._set_buttons()
        threading.Thread(target=self._follow, args=(run,), daemon=True).start()
        return run

    def stop(self) -> None:
        """What the Stop button does: ask the run to save and end, and wait until it did. Raises RunError."""
        if self.run is not None:
            self.stop_button.disabled = True
            try:
                self.run.stop()
            finally:
                self._set_buttons()

    def _set_buttons(self) -> None:
        """Let a run be started where none goes on, and be stopped where one does."""
        goes_on = self.run is not None and self.run.is_running()
        self.run_button.disabled, self.stop_button.disabled = goes_on, not goes_on

    def close(self) -> None:
        """Take the form off the page; a run that it started goes on."""
        self._closed.set()
        super().close()

    def _follow(self, run: Run) -> None:
        """Draw a run of another process until it ends, or the form follows the next one. Runs in a thread."""
        record, alive, rest = Record(run.folder), True, 0.0

        def draw() -> None:
            self.view.value = live_view(record).html

        while alive and not self._closed.wait(max(LOOK_SECONDS, rest)) and self.run is run:
            alive = record.is_running()  # asked before the last look, so that nothing is missed
            rest = rest_after(draw) if record.refresh() or not alive else 0.0
        with self._turn:
            if self.run is run and not self._closed.is_set():
                self.run_button.disabled, self.stop_button.disabled = False, True


def config_form(
    config: ConfigLike = None,
    data: str | Path | None = None,
    *,
    runs_dir: str | Path | None = None,
    models_dir: str | Path | None = None,
    **overrides: Any,
) -> ConfigForm:
    """A form of every setting with its limits and meaning, and buttons to run it and to stop.

    Arguments as for `launch`, which the Run button calls. Raises ConfigError.
    """
    return ConfigForm(read_config(config, **overrides), {"data": data, "runs_dir": runs_dir, "models_dir": models_dir})


def control_for(setting: Setting, model_names: list[str]) -> Any:
    """The ipywidget that asks for a setting's value."""
    import ipywidgets

    if setting.name == "model_name":
        known = [*model_names, *([setting.value] if setting.value not in (None, *model_names) else [])]
        options = [("the custom Transformer", None), *((name, name) for name in known)]
        return ipywidgets.Dropdown(options=options, index=[None, *known].index(setting.value))
    if setting.kind in ("int", "float"):
        kind = ipywidgets.BoundedIntText if setting.kind == "int" else ipywidgets.BoundedFloatText
        limits = {"min": setting.least, "max": setting.most}
        return kind(value=setting.suggested, step=1 if setting.kind == "int" else None, **limits)
    if setting.kind == "bool":
        return ipywidgets.Checkbox(value=setting.value, indent=False, description="yes")
    if setting.kind == "choice":
        return ipywidgets.Dropdown(options=setting.choices, value=setting.value)
    if setting.name == "hooks":
        from lmlab.hooks import HOOKS

        offered = list(dict.fromkeys([*setting.value, *HOOKS]))
        return ipywidgets.SelectMultiple(options=offered, value=tuple(setting.value), rows=len(offered))
    return ipywidgets.Text(value=setting.value or "", continuous_update=False)


def meaning_of(setting: Setting) -> str:
    """What a setting means, with how it acts together with others on hover."""
    text = f"{escape(setting.meaning)} {element('i', escape(setting.reasonable_range))}"
    text = re.sub("`([^`]*)`", r"<code>\1</code>", text)
    return element("div", text, title=setting.interactions, style="font-size:12px;line-height:1.35;opacity:.75")
