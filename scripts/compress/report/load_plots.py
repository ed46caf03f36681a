"""Figures of the load benchmark."""

from itertools import cycle

from compress.config.budgets import ABLATIONS, BESIDE_PEERS, CALM, FIVE
from compress.report import canvas, load_facts
from compress.results.reading import by_variant
from compress.results.rows import ServingRow

SERVER_MARKERS = "osD^v<>phd"
LIMIT_TEXT = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "fontsize": 7, "color": "0.3"}
LIMIT_TEXT |= {"va": "center", "annotation_clip": False}  # at the right of the axes, where no point is


def user_servers(rows: list[ServingRow], ablated: str | None) -> list[ServingRow]:
    """Our servers as users run them, without those of the ablation."""
    changed = {row.variant for row in ablation_servers(rows, ablated)} - {ablated}
    return [row for row in rows if not load_facts.runs_with_peers(row.variant) and row.variant not in changed]


def ablation_servers(rows: list[ServingRow], ablated: str | None) -> list[ServingRow]:
    """One server, and the same server with one thing changed; empty if nothing was changed."""
    own = [row for row in rows if ablated and not load_facts.runs_with_peers(row.variant)]
    names = {ablated, *(f"{ablated}-{change}" for change in ABLATIONS)}
    chosen = [row for row in own if row.variant in names]
    return chosen if len({row.variant for row in chosen}) > 1 else []


def peer_servers(rows: list[ServingRow], ablated: str | None) -> list[ServingRow]:
    """The peers that serve one model, and our server in their turns."""
    peers = [row for row in rows if load_facts.runs_with_peers(row.variant)]
    return [row for row in peers if not row.variant.endswith(FIVE)]


def load_curves(rows: list[ServingRow], limit_ms: float):
    """p99 and goodput over the offered load, one line per server, and the limit of p99."""
    figure, panels = canvas.new_panels(1, 2, 7.4, 4.2)
    axes, goodput = panels[0]
    opened = by_variant(load_facts.open_rows(rows))
    names = [name for name in by_variant(rows) if name in opened]
    for name, marker in zip(names, cycle(SERVER_MARKERS), strict=False):
        of_server = opened[name]
        offered = [row.offered_rps for row in of_server]
        style = {"marker": marker, "ms": 5, "lw": 1, "label": shown_name(name)}
        (line,) = axes.plot(offered, [row.latency_ms_p99 for row in of_server], **style)
        draw_intervals(axes, of_server, line.get_color())
        failed = [row for row in of_server if not load_facts.passes(row, limit_ms)]
        hollow = {"marker": marker, "ms": 5, "ls": "", "mfc": "white", "color": line.get_color(), "zorder": 3}
        axes.plot([row.offered_rps for row in failed], [row.latency_ms_p99 for row in failed], **hollow)
        goodput.plot(offered, [row.goodput_rps for row in of_server], **style)
    axes.axhline(limit_ms, color="0.3", lw=1, ls="--", zorder=0)
    axes.annotate(f"limit\n{limit_ms:g} ms", (1, limit_ms), (3, 0), **LIMIT_TEXT)
    labels = ("p99 latency of answered requests, ms", "requests per second answered in time")
    for panel, label in zip(panels[0], labels, strict=True):
        canvas.log_scale(panel, "xy")
        canvas.label_axes(panel, "offered requests per second", label)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=7, frameon=False)
    return figure


def shown_name(server: str) -> str:
    return "our server" if server.endswith(BESIDE_PEERS) else server


def draw_intervals(axes, rows: list[ServingRow], color: str) -> None:
    """p99's intervals, where they are known; with an arrow where there is no upper end."""
    style = {"color": color, "lw": 0.8}
    for row in (row for row in rows if row.latency_ms_p99_low is not None):
        no_end = row.latency_ms_p99_high is None
        top = 1.4 * row.latency_ms_p99 if no_end else row.latency_ms_p99_high
        axes.plot([row.offered_rps] * 2, [row.latency_ms_p99_low, top], marker="_", ms=3, **style)
        if no_end:
            axes.plot(row.offered_rps, top, marker="^", ms=3, **style)


def peer_bars(rows: list[ServingRow], limit_ms: float):
    """Each server's rate at saturation, the range of its rounds, and p99 at 0.7 of that rate.

    A tick stands for a setting that was tried for a peer.
    """
    facts = load_facts.server_facts(rows, limit_ms, peers=True)
    ordered = sorted(facts.values(), key=lambda server: server.saturated)
    of_server = by_variant(rows)
    figure, axes = canvas.new_axes(7.2, 0.9 + 0.4 * len(ordered))
    for place, server in enumerate(ordered):
        axes.barh(place, server.saturated, color="0.6" if server.is_peer else canvas.BLUE, height=0.6)
        tried = [rate for _, rate in load_facts.settings_tried(of_server[server.variant])]
        axes.plot(tried, [place] * len(tried), "k|", ms=9)
        rounds = [rate for rate in (server.full.achieved_rps_low, server.full.achieved_rps_high) if rate is not None]
        axes.plot(rounds, [place] * len(rounds), "k-", lw=2)
        text = f"  {server.saturated:.0f}/s"
        if server.calm and server.calm.latency_ms_p99 is not None:
            text += f", p99 {server.calm.latency_ms_p99:.0f} ms at {CALM:g} of it"
        axes.text(max([server.most, *rounds]), place, text, va="center", fontsize=7)
    axes.set_yticks(range(len(ordered)), [shown_name(server.variant) for server in ordered], fontsize=8)
    axes.set_xlim(0, 1.45 * ordered[-1].saturated)
    axes.set_xlabel("requests per second at saturation; line: all rounds, ticks: settings tried")
    return figure
