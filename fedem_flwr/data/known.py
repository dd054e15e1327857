"""The known data sets: their layouts, checksums and sources, and what their distributors ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fedem_flwr.data.columns import ABSENT, Columns
from fedem_flwr.errors import InputError, suggest

_MOVIELENS: Final = "https://files.grouplens.org/datasets/movielens"
_MOVIELENS_LICENCE: Final = "research use with citation; no redistribution without permission (GroupLens)"
_MOVIELENS_CITATION: Final = (
    "F. M. Harper and J. A. Konstan. The MovieLens Datasets: History and Context. ACM TiiS 5(4), 2015."
)


@dataclass(frozen=True)
class KnownDataset:
    """One catalogue entry.

    Attributes:
        name, title: short and full name.
        local_columns: layout of ``<folder>/<name>/ratings.dat``.
        urls: addresses of the distributor's archive, tried in order.
        member: the file inside the archive; also recognised as ``<folder>/<name>/<base name of member>``.
        member_columns: layout of that file.
        archive_checksum: "md5:..." or "sha256:...", or None where no published checksum is known.
        known_checksums: checksums of rating files whose content is known to be good.
        has_times: whether rows carry a time.
        users, items, rows: size of the reference ratings.dat, before any filter.
        licence, citation: what the distributor asks for.
        min_paper, min_strict: rows a user must have to be kept, by protocol.
        note: what to know before trusting a figure.
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
    users: int
    items: int
    rows: int
    licence: str
    citation: str
    min_paper: int = 10
    min_strict: int = 10
    note: str = ""

    def min_interactions(self, protocol: str) -> int:
        """Default smallest number of rows a kept user has, under "paper" or "strict"."""
        return {"paper": self.min_paper, "strict": self.min_strict}[protocol]


_ENTRIES: Final = (
    KnownDataset(
        name="filmtrust",
        title="FilmTrust",
        local_columns=Columns(0, 1, 2, ABSENT, " ", False),
        urls=(
            "https://guoguibing.github.io/librec/datasets/filmtrust.zip",
            "https://www.librec.net/datasets/filmtrust.zip",
        ),
        member="ratings.txt",
        member_columns=Columns(0, 1, 2, ABSENT, " ", False),
        archive_checksum=None,
        known_checksums=("sha256:241167424e24d588e8871d68641e94ead98d5b3a4f0db01ef3181a74ad35e7a1",),
        has_times=False,
        users=1508,
        items=2071,
        rows=35497,
        licence="research use with citation",
        citation="G. Guo et al. A Novel Bayesian Similarity Measure for Recommender Systems. IJCAI 2013.",
        note="no times; 3 duplicate pairs",
    ),
    KnownDataset(
        name="ml-100k",
        title="MovieLens 100K",
        local_columns=Columns(0, 1, 2, 3, ",", False),
        urls=(f"{_MOVIELENS}/ml-100k.zip",),
        member="ml-100k/u.data",
        member_columns=Columns(0, 1, 2, 3, "\t", False),
        archive_checksum="md5:0e33842e24a9c977be4e0107933c0723",
        known_checksums=(
            "sha256:807b9ab64929525bfeac2a9045cf91df7017239b301fee472e4b47a69b6d6daf",
            "sha256:06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
        ),
        has_times=True,
        users=943,
        items=1682,
        rows=100_000,
        licence=_MOVIELENS_LICENCE,
        citation=_MOVIELENS_CITATION,
        note="the archive's row order differs from ratings.dat, so that paper may split ties in time differently",
    ),
    KnownDataset(
        name="ml-1m",
        title="MovieLens 1M",
        local_columns=Columns(0, 1, 2, 3, "::", False),
        urls=(f"{_MOVIELENS}/ml-1m.zip",),
        member="ml-1m/ratings.dat",
        member_columns=Columns(0, 1, 2, 3, "::", False),
        archive_checksum="md5:c4d9eecfca2ab87c1945afe126590906",
        known_checksums=(
            "sha256:208dea7fa062ac45161417f2c47fa71ff139f57243874efa8d1c0b016f0ac9af",
            "md5:a89aa3591bc97d6d4e0c89459ff39362",
        ),
        has_times=True,
        users=6040,
        items=3706,
        rows=1_000_209,
        licence=_MOVIELENS_LICENCE,
        citation=_MOVIELENS_CITATION,
    ),
    KnownDataset(
        name="lastfm-2k",
        title="HetRec 2011 Last.fm 2K (tag assignments)",
        # the third column is the tag's number: it must never be read as a rating
        local_columns=Columns(0, 1, ABSENT, 3, ",", False),
        urls=("https://files.grouplens.org/datasets/hetrec2011/hetrec2011-lastfm-2k.zip",),
        member="user_taggedartists-timestamps.dat",
        member_columns=Columns("userID", "artistID", ABSENT, "timestamp", "\t", True),
        archive_checksum="sha256:6738f48195667ff03caaab4d32ca9a3133d8cc026b7c3cdaf6ce1010e913c59c",
        known_checksums=("sha256:be03bb5b2b7275b9b14ba4028df5e6ae12ee5ce90ef8ad6d2908ac8fb5b87615",),
        has_times=True,
        users=1600,
        items=12454,
        rows=185_650,
        licence="non-commercial use; cite HetRec 2011 and Last.fm (https://www.last.fm)",
        citation="I. Cantador et al. 2nd Workshop on Information Heterogeneity (HetRec 2011). RecSys 2011.",
        min_paper=5,
        note="one row per tag, so pairs repeat; the archive holds 186,479 rows, the reference copy 185,650",
    ),
)
KNOWN_DATASETS: Final = {entry.name: entry for entry in _ENTRIES}


def dataset_entry(name: str) -> KnownDataset:
    """The catalogue entry of a name; InputError with the nearest name where there is none."""
    if name not in KNOWN_DATASETS:
        raise InputError(f"unknown data set '{name}'{suggest(name, KNOWN_DATASETS)}")
    return KNOWN_DATASETS[name]
