"""What axe-core finds in a page, apart from what only other projects could mend."""

from __future__ import annotations

# ipywidgets gives the handle of a slider no name; pandas writes an empty header above an index.
NOT_OURS = {"aria-input-field-name": "noUi-handle", "empty-table-header": "<th></th>"}


def complaints(page, scope: str | None = None) -> list[str]:
    """Rule and element of every violation within `scope`, or in all of the page."""
    from axe_playwright_python.sync_playwright import Axe

    # What is clipped is not looked at. JupyterLab clips what its window has no room for, and,
    # in the eyes of axe-core, all that reaches over the end of its body, which has no height.
    size = page.viewport_size
    page.set_viewport_size({"width": size["width"], "height": 8000})
    page.evaluate("() => { document.body.style.minHeight = '100vh'; }")
    page.wait_for_timeout(300)
    found = []
    for rule in Axe().run(page, context=scope).response["violations"]:
        nodes = [node["html"] for node in rule["nodes"]]
        known = NOT_OURS.get(rule["id"])
        found += [f"{rule['id']}: {node[:200]}" for node in nodes if not known or known not in node]
    page.set_viewport_size(size)
    return found
