"""What the widgets share: faces that show themselves, say what is wrong, and go when their cell is run again.

ipywidgets loads when one is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lmlab.errors import LabError
from lmlab.views.html import element, escape, page
from lmlab.views.live import kernel_here


class Face:
    """Something to click on. A notebook shows it; `widget` is the ipywidget, `message` a line below its buttons."""

    def __init__(self) -> None:
        import ipywidgets

        self.message = ipywidgets.HTML()
        self.widget = self._made()
        remember(self)

    def _made(self) -> Any:
        """The ipywidget that holds everything."""
        raise NotImplementedError

    def close(self) -> None:
        """Take the face off the page and free its widgets; a second call does nothing."""
        for part in list(parts_of(self.widget)):
            part.close()

    def say(self, text: str, css: str = "lm-dim") -> None:
        """Show one line of text, or nothing."""
        self.message.value = page(element("div", escape(text), css)) if text else ""

    def doing(self, action: Callable[[], object]) -> Callable[[object], None]:
        """A click or change that does `action`, and shows what is wrong where it cannot."""

        def act(_: object) -> None:
            self.say("")
            try:
                action()
            except LabError as error:
                self.say(str(error), "lm-bad")
            except Exception as error:
                self.say(f"{type(error).__name__}: {error}", "lm-bad")
                raise

        return act

    def _repr_mimebundle_(self, **arguments: Any) -> Any:
        if self.widget.comm is None:
            return {"text/plain": f"{type(self).__name__}, closed"}
        return self.widget._repr_mimebundle_(**arguments)


_FACES: dict[str, tuple[str, list[Face]]] = {}  # by cell: the execution it made faces in, and the faces


def remember(face: Face) -> None:
    """Note which cell made a face, and close what an earlier execution of that cell made."""
    cell, execution = this_cell()
    if cell is None:
        return
    before, faces = _FACES.get(cell, ("", []))
    if before != execution:
        for old in faces:
            old.close()
        faces = []
    _FACES[cell] = (execution, [*faces, face])


def this_cell() -> tuple[str | None, str]:
    """What names the notebook's cell that is running, and this execution of it; None outside of a kernel."""
    kernel = kernel_here()
    if kernel is None:
        return None, ""
    parent = kernel.get_parent()
    cell = parent.get("metadata", {}).get("cellId") or parent.get("content", {}).get("code")
    return cell, str(parent.get("header", {}).get("msg_id"))


def parts_of(widget: Any) -> Iterator[Any]:
    """A widget and every widget in it: children, layouts, styles."""
    from ipywidgets import Widget

    for name in widget.keys:
        value = getattr(widget, name)
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, Widget):
                yield from parts_of(part)
    yield widget
