"""Where the time went, run by run on one axis: drafting and verifying, block by block."""

import html
from collections.abc import Mapping

from specnb.record import Record
from specnb.views.canvas import EDGE, INK, Picture, draw, words

_WIDTH, _HIGH, _PITCH = 760, 26, 62  # px
_LIGHT, _RIM = "#f9d9c3", "#b84f00"  # drafting


def timeline(records: Mapping[str, Record]) -> Picture:
    """One lane per run; a block is a light piece (drafting) and a full one (the target's call).

    Prefill is left out. All lanes share one axis, in milliseconds. ValueError without a run.
    """
    if not records:
        raise ValueError("records={}: give at least one run by name")
    spans = {name: record.seconds for name, record in records.items()}
    longest = max(spans.values()) or 1e-9
    scale = (_WIDTH - 2 * EDGE) / longest
    foot = 66 + _PITCH * len(records)
    parts = [
        f'<rect x="{EDGE}" y="39" width="22" height="11" fill="{_LIGHT}" stroke="{_RIM}"/>',
        words("drafting", EDGE + 28, 49),
        f'<rect x="{EDGE + 100}" y="39" width="22" height="11" fill="#0072b2" stroke="#00456c"/>',
        words("target call (verifying)", EDGE + 128, 49),
    ]
    for place, (name, record) in enumerate(records.items()):
        y = 84 + place * _PITCH
        ms, n = 1e3 * spans[name], len(record.token_ids)
        each = f", {ms / n:.1f} ms per token" if n else ""
        parts.append(
            words(f"{name}: {n} tokens in {ms:.0f} ms, {len(record.calls)} calls{each}", EDGE, y)
        )
        x = float(EDGE)
        for number, block in enumerate(record.blocks, 1):
            said = (
                f"block {number}: {block.n_drafted} drafted in {1e3 * block.draft_s:.1f} ms, "
                f"verified in {1e3 * block.verify_s:.1f} ms, {block.n_emitted} tokens"
            )
            draft, verify = block.draft_s * scale, block.verify_s * scale
            parts.append(
                f"<g><title>{html.escape(said)}</title>"
                f'<rect x="{x:.2f}" y="{y + 6}" width="{draft:.2f}" height="{_HIGH}" '
                f'fill="{_LIGHT}" stroke="{_RIM}" stroke-width="0.7"/>'
                f'<rect x="{x + draft:.2f}" y="{y + 6}" width="{verify:.2f}" height="{_HIGH}" '
                f'fill="#0072b2"/><path d="M{x:.2f} {y + 4}v{_HIGH + 4}" stroke="{INK}"/></g>'
            )
            x += draft + verify
    step = _step(1e3 * longest)
    for ms in range(0, int(1e3 * longest) + 1, step) if step else ():
        x = EDGE + ms / 1e3 * scale
        anchor = "start" if ms == 0 else "end" if x > _WIDTH - 2 * EDGE else "middle"
        parts.append(
            f'<path d="M{x:g} {foot}v5" stroke="{INK}"/>'
            + words(f"{ms} ms", x, foot + 19, 12, anchor=anchor)
        )
    parts.append(f'<path d="M{EDGE} {foot}H{_WIDTH - EDGE}" stroke="{INK}"/>')
    spans_ms = "; ".join(f"{name}: {1e3 * span:.0f} ms" for name, span in spans.items())
    return draw(
        parts,
        _WIDTH,
        foot + 32,
        "Where the time went, block by block",
        label=f"time without prefill: {spans_ms}",
    )


def _step(span_ms: float) -> int:
    """The distance of the axis marks: 1, 2 or 5 times a power of ten, five to ten of them."""
    steps = (factor * 10**power for power in range(7) for factor in (1, 2, 5))
    return next((step for step in steps if span_ms / step <= 10), 0)
