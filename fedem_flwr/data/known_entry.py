"""An entry of the catalogue of data sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fedem_flwr.data.columns import Columns

MOVIELENS: Final = "https://files.grouplens.org/datasets/movielens"
GROUPLENS: Final = "https://grouplens.org/datasets/movielens"
MOVIELENS_LICENCE: Final = "research use with citation; no redistribution without permission (GroupLens)"
MOVIELENS_CITATION: Final = (
    "F. M. Harper and J. A. Konstan. The MovieLens Datasets: History and Context. ACM TiiS 5(4), 2015."
)


@dataclass(frozen=True)
class KnownDataset:
    """One catalogue entry.

    Attributes:
        name, title: short and full name.
        local_columns: layout of ``<folder>/<name>/ratings.dat``.
        urls: addresses of the distributor's archive, tried in order; none where its terms do not allow a direct
            download: then `by_hand` says what to do.
        member: the file inside the zip archive, or the file itself where it comes without one; also recognised as
            ``<folder>/<name>/<base name of member>``.
        member_columns: layout of that file.
        archive_checksum: "md5:..." or "sha256:...", or None where no published checksum is known.
        known_checksums: checksums of rating files whose content is known to be good.
        has_times: whether rows carry a time.
        users, items, rows: size of the reference ratings.dat, before any filter; None where the distributor names none.
        licence, citation: what the distributor asks for.
        homepage: where the distributor describes it. download: how large the download is, as the distributor says.
        min_paper, min_strict: rows a user must have to be kept, under `paper`, and under the others.
        note: what to know before trusting a figure.
        zipped: whether the rating file is a member of a zip archive, or is downloaded as it is.
    """

    name: str
    title: str
    local_columns: Columns
    urls: tuple[str, ...]
    member: str
    member_columns: Columns
    archive_checksum: str | None
    known_checksums: tuple[str, ...]
    has_times: bool
    users: int | None
    items: int | None
    rows: int | None
    licence: str
    citation: str
    homepage: str = ""
    download: str = ""
    by_hand: str = ""
    min_paper: int = 10
    min_strict: int = 10
    note: str = ""
    zipped: bool = True

    def min_interactions(self, protocol: str) -> int:
        """Default smallest number of rows a kept user has, under a protocol."""
        return self.min_paper if protocol == "paper" else self.min_strict
