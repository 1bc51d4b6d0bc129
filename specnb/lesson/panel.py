"""A prompt, its picture and the tokens of a run on it, side by side."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specnb.views import Html


def panel(item: Any, record: Any, title: str | None = None) -> Html:
    """The prompt, its picture (where there is one) and the strip of a run on it."""
    from specnb import views
    from specnb.scenes import render

    picture = ""
    if item.image is not None:
        scene = getattr(item, "scene", None)
        # A scene can be drawn anew, larger than the models see it; a photograph is only shrunk.
        shown = item.image.copy() if scene is None else render(scene, 384)
        if max(shown.size) > 480:
            shown.thumbnail((480, 480))
        file = io.BytesIO()
        shown.save(file, "PNG")
        data = base64.b64encode(file.getvalue()).decode("ascii")
        picture = (
            '<img alt="the picture that the prompt is about" width="192" style="flex:0 0 192px;'
            "border:1px solid #8a8a8a;border-radius:6px;margin-top:4px;"
            f'align-self:flex-start" src="data:image/png;base64,{data}">'
        )
    asked = html.escape(item.prompt).replace("\n", "<br>")
    strip = views.tokens(record, title=title)._repr_html_()
    return views.Html(
        f'<div style="margin:6px 0"><div style="margin-bottom:2px"><b>Prompt:</b> {asked}</div>'
        '<div style="display:flex;gap:12px;flex-wrap:wrap">'
        f'{picture}<div style="flex:1 1 420px;min-width:0">{strip}</div></div></div>'
    )
