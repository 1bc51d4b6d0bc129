"""A run as a strip of tokens: static HTML from a `Record`, without script or network."""

import html
from collections.abc import Sequence
from typing import Any

from specnb.record import EMITTED, Record, TokenRow
from specnb.views.canvas import Html
from specnb.views.style import (
    CARD,
    STYLES,
    by_block,
    columns_of,
    cut,
    number,
    summary,
    visible,
)

# Dark themes of JupyterLab, Colab and VS Code. Not the system's preference: an exported page is
# light whatever the reader's system prefers.
_DARK = ':is([data-jp-theme-light="false"],html[theme="dark"],.vscode-dark) '
HINT = "<em>Point at a token, or step to it with the Tab key: the box below speaks of it.</em>"
_CSS = """
.snb-tokens{position:relative;box-sizing:border-box;max-width:1100px;margin:4px 0;padding:12px;
 border:1px solid;border-radius:6px;font:15px/1.4 system-ui,"DejaVu Sans",sans-serif;
 text-align:left;white-space:normal;direction:ltr;letter-spacing:normal}
.snb-tokens *{box-sizing:border-box}
.snb-title{font-weight:bold;margin-right:1em}
.snb-legend{display:flex;flex-wrap:wrap;gap:4px 14px;margin:8px 0;font-size:13px}
.snb-strip{max-height:26em;overflow:auto;padding:3px;display:flex;flex-wrap:wrap;gap:7px 8px}
.snb-block{display:flex;flex-wrap:wrap;align-items:flex-end;gap:3px;max-width:100%;
 border:1px solid #8a8a8a;border-radius:5px;padding:3px}
.snb-number{font-size:12px;align-self:center;padding:0 3px;font-weight:bold}
.snb-t{display:inline-block;border:1px solid;border-radius:4px;padding:0 4px;cursor:default;
 max-width:100%;overflow-wrap:anywhere}
.snb-stack{display:flex;flex-direction:column;gap:2px;align-items:stretch;max-width:100%;
 border-left:3px solid #8a8a8a;border-radius:4px;padding-left:2px}
.snb-double{border-width:3px;line-height:1.14}
.snb-text{font-family:"DejaVu Sans Mono",Menlo,Consolas,monospace;font-size:14px;
 unicode-bidi:isolate;white-space:pre-wrap}
.snb-sign{font-size:12px;margin-right:3px;font-weight:bold}
s.snb-text{text-decoration:line-through}
.snb-t:hover{box-shadow:0 0 0 1px}
.snb-t:focus{outline:3px solid #0072b2;outline-offset:1px}
.snb-rest,.snb-tip{height:12.4em;margin-top:8px;padding:6px 10px;border-radius:4px;font-size:14px;
 border:1px solid #8a8a8a;line-height:1.4}
.snb-rest{border-style:dashed;overflow:auto}
.snb-tip{display:none;position:absolute;left:12px;right:12px;bottom:12px;overflow:auto}
.snb-t:focus>.snb-tip{display:block;z-index:1}
.snb-t:hover>.snb-tip{display:block;z-index:2}
.snb-laws{display:grid;grid-template-columns:repeat(auto-fit,minmax(215px,1fr));gap:2px 28px;
 margin-top:5px}
.snb-head{font-weight:bold;border-bottom:1px solid #8a8a8a}
.snb-pair{display:flex;justify-content:space-between;gap:8px}
.snb-pair>:first-child{white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.snb-pair>:last-child{font-variant-numeric:tabular-nums}
@media print{.snb-strip{max-height:none}}
"""


def style_sheet(more: str = "") -> str:
    """The style sheet of strips, with rules of a view of its own."""
    rules = [_CSS, more]
    for theme, scope in (("light", ""), ("dark", _DARK)):
        ink, ground, rim = CARD[theme]
        rules.append(f"{scope}.snb-tokens{{color:{ink};background:{ground};border-color:{rim}}}")
        rules.append(f"{scope}.snb-tokens .snb-tip{{color:{ink};background:{ground}}}")
        for verdict, style in STYLES.items():
            ink, ground, rim = getattr(style, theme)
            line = "" if scope else f";border-style:{style.line}"
            rules.append(
                f"{scope}.snb-tokens .snb-{verdict}"
                f"{{color:{ink};background:{ground};border-color:{rim}{line}}}"
            )
    return f"<style>{''.join(rules)}</style>".replace("\n", "")


def tokens(record: Record, *, title: str | None = None) -> Html:
    """The run as tokens with their verdicts, under `title`, as HTML.

    Pointing at a token, or tabbing to it, shows what target and draft thought of it.
    """
    name = html.escape(title or "Decoding, token by token")
    seen = {row.verdict for row in record.tokens}
    legend = "".join(
        f'<div><span class="snb-t snb-{verdict} snb-{style.line}">{style.sign} {verdict}</span> '
        f"{style.meaning}</div>"
        for verdict, style in STYLES.items()
        if verdict in seen
    )
    strip = "".join(_frame(record, frame) for frame in _frames(record))
    return Html(
        f'<div class="snb-tokens" role="group" aria-label="{name}">{style_sheet()}'
        f'<div><span class="snb-title">{name}</span><span>{summary(record)}</span></div>'
        f'<div class="snb-legend">{legend}<div>{HINT}</div></div>'
        f'<div class="snb-strip">{strip}</div>'
        f"{rest(record, record.tokens)}</div>"
    )


def rest(record: Record, rows: Sequence[TokenRow]) -> str:
    """The box below a strip: the first of `rows` that was turned down, until one points at
    another."""
    telling = ("rejected", "correction")
    row = next((row for verdict in telling for row in rows if row.verdict == verdict), None)
    row = row or next(iter(rows), None)
    example = _about(record, row) if row else ""
    return (  # small screens have to scroll in it, and that needs a focus
        '<div class="snb-rest" tabindex="0" role="group" '
        f'aria-label="one token in figures">{example}</div>'
    )


def _frames(record: Record) -> list[list[tuple[int, list[TokenRow]]]]:
    """Blocks as they are framed: each alone, but what was put in by hand in one go together."""
    frames: list[list[tuple[int, list[TokenRow]]]] = []
    before = ""
    for index, rows in by_block(record):
        verdict = rows[0].verdict
        if verdict == before == "forced":
            frames[-1].append((index, rows))
        else:
            frames.append([(index, rows)])
        before = verdict
    return frames


def _frame(record: Record, blocks: list[tuple[int, list[TokenRow]]]) -> str:
    rows = [row for _, found in blocks for row in found]
    kept = sum(row.verdict == "accepted" for row in rows)
    emitted = sum(row.verdict in EMITTED for row in rows)
    drafted = sum(row.node >= 0 for row in rows)
    first, last = blocks[0][0] + 1, blocks[-1][0] + 1
    number = str(first) if first == last else f"{first}–{last}"
    label = f"block {number}: {drafted} drafted, {kept} accepted, {emitted} emitted"
    if rows[0].verdict == "forced":
        label = f"block {number}: {emitted} put here by hand"
    cells = "".join(_place(record, column) for column in columns_of(rows))
    return (
        f'<div class="snb-block" role="group" aria-label="{label}">'
        f'<span class="snb-number" title="{label}">{number}</span>{cells}</div>'
    )


def _place(record: Record, rows: list[TokenRow]) -> str:
    """One place of the text; what was drafted for it beside what stands there lies above it."""
    cells = "".join(token_cell(record, row) for row in rows)
    return cells if len(rows) == 1 else f'<div class="snb-stack">{cells}</div>'


def token_cell(record: Record, row: TokenRow) -> str:
    """One token with its verdict and its panel."""
    style = STYLES[row.verdict]
    words = [f"“{visible(row.text)}” {row.verdict}", f"target {number(row.target_prob)}"]
    if row.draft_prob is not None:
        words.append(f"draft {number(row.draft_prob)}")
    if row.accept_prob is not None:
        words.append(f"accept probability {number(row.accept_prob)}")
    tag = "s" if row.verdict == "rejected" else "span"
    return (
        f'<div class="snb-t snb-{row.verdict} snb-{style.line}" role="img" tabindex="0" '
        f'aria-label="{html.escape(", ".join(words))}">'
        f'<span class="snb-sign">{style.sign}</span>'
        f'<{tag} class="snb-text">{html.escape(cut(row.text))}</{tag}>{_tip(record, row)}</div>'
    )


def _tip(record: Record, row: TokenRow) -> str:
    """The panel of one token. `hidden` keeps it shut where a viewer strips the style sheet."""
    return f'<div class="snb-tip" hidden>{_about(record, row)}</div>'


def _about(record: Record, row: TokenRow) -> str:
    """What target and draft thought of one token."""
    style = STYLES[row.verdict]
    facts = [
        ("target probability", row.target_prob),
        ("draft probability", row.draft_prob),
        ("accept probability", row.accept_prob),
        ("uniform number", row.uniform),
        ("draft entropy (nats)", row.draft_entropy),
    ]
    columns: list[tuple[str, list[Any]]] = [("this token", [*facts])]
    for name, top in (("target", row.target_top), ("draft", row.draft_top)):
        said = [(i, prob) for i, prob in top if prob > 0]  # greedily there is one
        law = [(visible(record.token_texts.get(i, f"#{i}")), prob) for i, prob in said]
        columns.append((f"{name}, top five", law or [("none", None)]))
    laws = "".join(
        f'<div><div class="snb-head">{name}</div>'
        + "".join(
            f'<div class="snb-pair"><bdi>{html.escape(text)}</bdi>'
            f"<span>{number(value)}</span></div>"
            for text, value in lines
        )
        + "</div>"
        for name, lines in columns
    )
    decided = ""
    if row.accept_prob is not None and row.uniform is not None:
        sign = "&lt;" if row.uniform < row.accept_prob else "≥"
        ends = number(row.uniform), number(row.accept_prob)
        if ends[0] == ends[1]:  # never two that look the same
            ends = f"{row.uniform:.8f}", f"{row.accept_prob:.8f}"
        decided = f": {ends[0]} {sign} {ends[1]}"
        if row.verdict == "accepted" and row.uniform >= row.accept_prob:
            decided += ", but a longer part of the block has passed"
    return (
        f'<bdi class="snb-text"><b>{html.escape(visible(row.text))}</b></bdi> '
        f"{style.sign} {row.verdict}, block {row.block + 1}, position {row.depth}: "
        f'{_meaning(row)}{decided}<div class="snb-laws">{laws}</div>'
    )


def _meaning(row: TokenRow) -> str:
    """What a verdict says; a rule that judges whole paths tests what hangs on a lost token, too."""
    if row.verdict == "unexamined" and row.accept_prob is not None:
        return "drafted after a token that was not kept"
    return STYLES[row.verdict].meaning
