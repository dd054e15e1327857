"""Markdown tables from the lines that `benchmarks.methods_table` writes: accuracy by protocol and list, and costs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

CONTROLS = "controls"  # a cell that is no method's
DATA = ("filmtrust", "ml-100k", "ml-1m", "lastfm-2k")
PUBLISHED = {  # FedEM (AAAI 2026), Table 1, HR@10/NDCG@10 of these data sets
    "fedmf-sr": (".6577/.5290", ".4889/.2721", ".4871/.2733", ".5934/.3963"),
    "fedncf": (".6597/.5337", ".4252/.2290", ".4230/.2285", ".4996/.3307"),
    "fedfast": (".6637/.4951", ".4687/.2702", ".4137/.2333", ".5225/.3239"),
    "pfedrec": (".6756/.5398", ".6882/.3913", ".6730/.3898", ".7833/.6822"),
    "colr": (".6377/.5105", ".4952/.2772", ".4533/.2475", ".5335/.3580"),
    "gpfedrec": (".6836/.5425", ".7010/.4069", ".6776/.3973", ".7975/.6690"),
    "fedrap": (".8024/.5455", ".8897/.7950", ".8619/.7661", ".6210/.5923"),
    "fedcia": (".8543/.6992", ".9512/.7741", ".9012/.7890", ".7108/.6601"),
    "fedem": (".8932/.7701", ".9958/.9427", ".9507/.8392", ".7935/.7151"),
}


def tables(lines: Iterable[dict[str, Any]]) -> str:
    """Markdown: accuracy for each protocol and list, then costs."""
    lines, texts = list(lines), list[str]()
    data = list(dict.fromkeys(line["data"] for line in lines))
    for protocol in dict.fromkeys(line["protocol"] for line in lines):
        inside = [line for line in lines if line["protocol"] == protocol]
        ways = [("sampled99", "99 negatives"), *([("full", "whole catalogue")] if protocol == "strict" else [])]
        for way, told in ways:
            rule = "best test round" if protocol == "paper" else "best validation round"
            texts.append(f"### `{protocol}`, {told}, {rule}: HR@10 / NDCG@10\n\n{accuracy(inside, data, way)}")
    costs = [line for line in lines if "seconds" in line]
    if costs:
        texts.append(f"### Seconds a round, KB up and down a user and round, peak memory\n\n{cost(costs, data)}")
    return "\n\n".join(texts)


def accuracy(lines: Sequence[dict[str, Any]], data: Sequence[str], way: str) -> str:
    """A row a method, a column a data set."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for line in lines:
        rows = line["controls"] if line["method"] == CONTROLS else {line["method"]: line["reported"]}
        for name, result in rows.items():
            if result and way in result:
                found.setdefault(name, {}).setdefault(line["data"], []).append({**result[way], "of": line})
    published = way == "sampled99" and any(line["protocol"] == "paper" for line in lines)
    head = ["method", *(f"{name}{' (published)' * published}" for name in data)]
    body = [
        [name, *(_cell(cells.get(d, []), _published(name, d) if published else "") for d in data)]
        for name, cells in found.items()
    ]
    return markdown(head, body)


def _published(method: str, data: str) -> str:
    return dict(zip(DATA, PUBLISHED.get(method, ()), strict=False)).get(data, "")


def _cell(results: Sequence[dict[str, Any]], published: str) -> str:
    if not results:
        return "–"
    shown = []
    for metric in ("hr@10", "ndcg@10"):
        values = [result[metric] for result in results]
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        shown.append(f"{statistics.mean(values):.4f}{spread}")
    short = {str(result["of"]["rounds"]) for result in results if result["of"]["rounds"] is not None}
    asked = any(result["of"]["settings"] for result in results)
    told = f" ({published})" if published else ""
    runs = f"{len(results)} seed{'s' * (len(results) > 1)}"
    remark = f" [{'/'.join(sorted(short)) + ' rounds, ' if short else ''}{'with settings, ' * asked}{runs}]"
    return " / ".join(shown) + told + remark


def cost(lines: Sequence[dict[str, Any]], data: Sequence[str]) -> str:
    """A row a method, a column a data set; medians over its runs."""
    body = []
    for method in dict.fromkeys(line["method"] for line in lines):
        row = [method]
        for name in data:
            own = [line for line in lines if (line["method"], line["data"]) == (method, name)]
            middle = {
                key: statistics.median(line[key] for line in own)
                for key in ("seconds", "bytes_up", "bytes_down", "peak_rss_bytes")
                if own
            }
            row.append(
                f"{middle['seconds']:.2f} s, {middle['bytes_up'] / 1e3:,.0f} / {middle['bytes_down'] / 1e3:,.0f} KB, "
                f"{middle['peak_rss_bytes'] / 1e9:.1f} GB"
                if own
                else "–"
            )
        body.append(row)
    return markdown(["method", *data], body)


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table."""
    rows = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
