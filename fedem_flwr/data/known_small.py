"""The known data sets that this project measures on: their layouts, checksums and sources, and what is asked for."""

from __future__ import annotations

from typing import Final

from fedem_flwr.data.columns import ABSENT, Columns
from fedem_flwr.data.known_entry import GROUPLENS, MOVIELENS, MOVIELENS_CITATION, MOVIELENS_LICENCE, KnownDataset

SMALL: Final = (
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
        homepage="https://guoguibing.github.io/librec/datasets.html",
        note="no times; 3 duplicate pairs",
    ),
    KnownDataset(
        name="ml-100k",
        title="MovieLens 100K",
        local_columns=Columns(0, 1, 2, 3, ",", False),
        urls=(f"{MOVIELENS}/ml-100k.zip",),
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
        licence=MOVIELENS_LICENCE,
        citation=MOVIELENS_CITATION,
        homepage=f"{GROUPLENS}/100k/",
        download="5 MB",
        note="the archive's row order differs from ratings.dat, so that paper may split ties in time differently",
    ),
    KnownDataset(
        name="ml-1m",
        title="MovieLens 1M",
        local_columns=Columns(0, 1, 2, 3, "::", False),
        urls=(f"{MOVIELENS}/ml-1m.zip",),
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
        licence=MOVIELENS_LICENCE,
        citation=MOVIELENS_CITATION,
        homepage=f"{GROUPLENS}/1m/",
        download="6 MB",
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
        homepage="https://grouplens.org/datasets/hetrec-2011/",
        citation="I. Cantador et al. 2nd Workshop on Information Heterogeneity (HetRec 2011). RecSys 2011.",
        min_paper=5,
        note="one row per tag, so pairs repeat; the archive holds 186,479 rows, the reference copy 185,650",
    ),
)
