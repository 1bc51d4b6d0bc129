"""What axe-core finds in a page, apart from what only other projects could mend."""

from __future__ import annotations

# By rule, the elements that may break it.
HANDLES = {"aria-input-field-name": ".noUi-handle"}  # of a slider: ipywidgets gives it no name
CORNERS = {"empty-table-header": ".dataframe th"}  # pandas leaves the header of an index empty
MATCHES = "([one, known]) => document.querySelector(one).matches(known)"


def complaints(page, scope: str | None = None, known: dict[str, str] = HANDLES) -> list[str]:
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
        for node in rule["nodes"]:
            apart = known.get(rule["id"])
            if not apart or not page.evaluate(MATCHES, [node["target"][0], apart]):
                found.append(f"{rule['id']}: {node['html'][:200]}")
    page.set_viewport_size(size)
    return found
