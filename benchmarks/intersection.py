"""What a server learns of single users' histories from the uploads of a few rounds, with and without secret draws.

    FEDEM_DATA=... python -m benchmarks.intersection                 # the attacks, some minutes
    FEDEM_DATA=... python -m benchmarks.intersection --accuracy      # what the setting costs

Three attacks on real messages of the first 200 users of ML-100K, protocol `strict`. Recurrence and direction add up a
score of every row over rounds (was it touched? how far was it pulled, not pushed?) and take the highest, as many as the
node's users have items. Replay takes the rows that the draws of the run's seed do not explain. Precision and recall are
of each user's own training items among the rows taken at its node, means over users.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Message

from fedem_flwr.client_app import build_client_app
from fedem_flwr.config import Config, resolve
from fedem_flwr.data import Interactions
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.samples import draw_negatives
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.messages.wire import unpack_arrays
from fedem_flwr.models.mf import initial_table
from fedem_flwr.nodes.host import NodeHost
from fedem_flwr.privacy.direction import pulls
from fedem_flwr.privacy.intersection import Mask, best_rows, row_changes, score, touched_rows
from fedem_flwr.privacy.replay import replayed_rows
from fedem_flwr.protocol.split import Split
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.inprocess import FIRST_NODE_ID, InProcessGrid, task_identity
from fedem_flwr.runtime.inputs import load_interactions, split_of
from fedem_flwr.runtime.prepared import PreparedRun

USERS = 200
SHOWN = (1, 2, 3, 5, 8, 12)  # rounds
COHORTS = (1, 5, 20, 100)  # users a node
DECOYS = (0.0, 1.0, 4.0)
ACCURACY = {"fedmf": 20, "fedem": 8}  # rounds


@dataclass
class Seen:
    """What a server has seen of one node: a list entry a round."""

    touched: list[Mask] = field(default_factory=list)  # (m,)
    changes: list[np.ndarray] = field(default_factory=list)  # (m, d)
    table: np.ndarray | None = None  # the user's last upload, of fedem


class CuriousServer(InProcessGrid):
    """A grid that looks at what goes through it."""

    def __init__(self, run: PreparedRun) -> None:
        host = NodeHost(run.directory.path.resolve(), run.nodes, run.config.run.threads, resident=True)
        super().__init__(build_client_app(host), nodes=run.nodes, run_config={})
        model = run.config.model
        self.start = initial_table(run.split.items, model.dim, model.init_std, run.config.run.seed).numpy()
        self.seen: defaultdict[int, Seen] = defaultdict(Seen)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Note what changed between what a node was sent and what it sends."""
        sent: dict[int, np.ndarray] = {}

        def noted() -> Iterator[Message]:
            for message in messages:
                if message.metadata.message_type == "train":
                    tables = unpack_arrays(message.content.array_records["arrays"])["items"]
                    sent[message.metadata.dst_node_id] = np.array(tables)
                yield message

        for reply in super().send_and_receive(noted(), timeout=timeout):
            node = reply.metadata.src_node_id
            if node in sent:
                self.look(
                    self.seen[node - FIRST_NODE_ID], sent[node], unpack_arrays(reply.content.array_records["arrays"])
                )
            yield reply

    def look(self, seen: Seen, sent: np.ndarray, upload: dict[str, np.ndarray]) -> None:
        """One upload."""
        if "items-weight" in upload:
            counts = upload["items-weight"][:, None]
            seen.touched.append(counts[:, 0] > 0)
            seen.changes.append(upload["items"] / np.maximum(counts, 1) - sent * (counts > 0))
            return
        before, received = self.start if seen.table is None else seen.table, sent[0] if len(sent) else None
        seen.table = np.array(upload["items"][0])
        seen.touched.append(touched_rows(before, seen.table, received))
        seen.changes.append(row_changes(before, seen.table, received))


def config_of(method: str, **sections: dict[str, Any]) -> Config:
    """A method on ML-100K, evaluated after the last round only."""
    tree = {
        "data": {"dataset": "ml-100k"},
        "method": {"name": method},
        "evaluation": {"every": 10_000, "controls": False, "local_only": False},
        **sections,
    }
    return resolve({}, tree)


def privacy(decoys: float | None) -> dict[str, Any]:
    """The section; None: the setting is off."""
    return {"secret_draws": decoys is not None, "decoys": decoys or 0.0}


def first_users(config: Config, users: int) -> Interactions:
    """The rows of the first users in the data set."""
    interactions = load_interactions(config)
    return interactions.take(interactions.user < users)


def watch(method: str, cohort: int, decoys: float | None) -> tuple[Config, Split, dict[int, Seen]]:
    """Carry out a run and look at it."""
    run_section = {"rounds": max(SHOWN), "users_per_node": cohort, "threads": 1, "checkpoint_every": 10_000}
    config = config_of(method, run=run_section, privacy=privacy(decoys))
    split = split_of(config, first_users(config, USERS))
    with tempfile.TemporaryDirectory() as folder:
        run = PreparedRun.create(RunDirectory(Path(folder) / "run").create(), config, split)
        with task_identity():
            grid = CuriousServer(run)
            run.server(lambda _: None)(grid)
    return config, split, grid.seen


def ranks_of(config: Config, split: Split, user: int, rounds: int) -> list[np.ndarray]:
    """What the run's seed draws for a user in each round; the server knows how many items it has."""
    positives = int(split.train_offsets[user + 1] - split.train_offsets[user])
    allowed, nothing = torch.tensor([split.items - positives]), torch.zeros((1, 0), dtype=torch.int64)
    key = (nothing, allowed, positives, config.local.negatives, Draws(config.run.seed))
    return [draw_negatives(*key, r, torch.tensor([user])).flatten().numpy() for r in range(1, rounds + 1)]


def summed(scores: list[np.ndarray], count: int) -> list[Mask]:
    """The rows that an attack takes after each of the `SHOWN` rounds."""
    return [best_rows(np.sum(scores[:rounds], axis=0), count) for rounds in SHOWN]


def attacks(method: str, cohort: int, decoys: float | None) -> list[str]:
    """Table rows of one run: an attack each."""
    config, split, seen = watch(method, cohort, decoys)
    offsets = np.asarray(split.train_offsets)
    found: dict[str, list[list[tuple[float, ...]]]] = defaultdict(list)
    for user in range(split.users):
        node = user // cohort
        first, end = int(offsets[node * cohort]), int(offsets[min(split.users, (node + 1) * cohort)])
        own, anybodys = (np.asarray(split.train_items[a:b]) for a, b in ((*offsets[user : user + 2],), (first, end)))
        touched, changes, count = seen[node].touched, seen[node].changes, end - first  # count: the server knows it
        taken = {
            "recurrence": summed([mask.astype(float) for mask in touched], count),
            "direction": summed([pulls(*both, count) for both in zip(changes, touched, strict=True)], count),
        }
        if cohort == 1:
            ranks = ranks_of(config, split, user, max(SHOWN))
            taken["replay"] = [replayed_rows(touched[:rounds], ranks[:rounds]) for rounds in SHOWN]
        for name, masks in taken.items():
            got = [(score(mask, own), score(mask, anybodys).precision) for mask in masks]
            found[name].append([(one.precision, one.recall, one.isolated, union) for one, union in got])
    setting = "off" if decoys is None else f"{decoys:g} decoys"
    rows = []
    for name, per_user in found.items():
        means = np.mean(np.array(per_user, dtype=float), axis=0)  # (shown rounds, 4)
        cells = [
            f"{precision:.2f}/{recall:.2f}, " + (f"{isolated:.0%}" if cohort == 1 else f"{union:.2f}")
            for precision, recall, isolated, union in means
        ]
        rows.append(f"| {method} | {cohort} | {setting} | {name} | " + " | ".join(cells) + " |")
    return rows


def accuracy(method: str, rounds: int, users: int, seed: int) -> None:
    """Print table rows: test HR@10 and NDCG@10 of the last round, the first users of ML-100K on one node."""
    for decoys in (None, *DECOYS[1:]):
        config = config_of(method, run={"rounds": rounds, "seed": seed}, privacy=privacy(decoys))
        with tempfile.TemporaryDirectory() as folder:
            directory = RunDirectory(Path(folder) / "run").create()
            run = PreparedRun.create(directory, config, split_of(config, first_users(config, users)))
            carry_out_rounds(run, lambda _: None)
            test = directory.read_metrics()[-1]["test"]
        figures = [f"{part['hr@10']:.3f}/{part['ndcg@10']:.3f}" for part in (test["sampled99"], test["full"])]
        setting = "off" if decoys is None else f"{decoys:g} decoys"
        print(f"| {method} | {rounds} | {setting} | " + " | ".join(figures) + " |", flush=True)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accuracy", action="store_true", help="what decoys cost, instead of the attacks")
    parser.add_argument("--users", type=int, default=943, help="of --accuracy: so many; all by default")
    parser.add_argument("--seed", type=int, default=0, help="of --accuracy")
    args = parser.parse_args()
    if args.accuracy:
        print("| method | rounds | secret draws | HR@10 / NDCG@10, 99 negatives | whole catalogue |")
        print("|---|---|---|---|---|")
        for method, rounds in ACCURACY.items():
            accuracy(method, rounds, args.users, args.seed)
        return
    print("Precision/recall of a user's own items after so many rounds. Then, with one user a node: the share of users")
    print("whose history is found without a fault; with more: the precision for items of any user of the node.\n")
    print("| method | users a node | secret draws | attack | " + " | ".join(map(str, SHOWN)) + " |")
    print("|---|---|---|---|" + "---|" * len(SHOWN))
    runs = [("fedem", 1, decoys) for decoys in (None, *DECOYS)]
    runs += [("fedmf", cohort, decoys) for cohort in COHORTS for decoys in (None, DECOYS[-1])]
    for run in runs:
        print("\n".join(attacks(*run)), flush=True)


if __name__ == "__main__":
    main()
