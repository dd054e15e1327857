"""Larger known data sets: their layouts, sources and published checksums, and what their distributors ask for."""

from __future__ import annotations

from typing import Final

from fedem_flwr.data.columns import ABSENT, Columns
from fedem_flwr.data.known_entry import GROUPLENS, MOVIELENS, MOVIELENS_CITATION, MOVIELENS_LICENCE, KnownDataset


def _movielens(
    name: str, title: str, checksum: str | None, sizes: tuple[int, int, int], download: str, note: str = ""
) -> KnownDataset:
    """A MovieLens archive with one CSV of ratings in it; ml-10m is older, and has another layout."""
    old = name == "ml-10m"
    named = Columns("userId", "movieId", "rating", "timestamp", ",", True)
    return KnownDataset(
        name=name,
        title=title,
        local_columns=Columns(),
        urls=(f"{MOVIELENS}/{name}.zip",),
        member="ml-10M100K/ratings.dat" if old else f"{name}/ratings.csv",
        member_columns=Columns(0, 1, 2, 3, "::", False) if old else named,
        archive_checksum=checksum and f"md5:{checksum}",
        known_checksums=(),
        has_times=True,
        users=sizes[0],
        items=sizes[1],
        rows=sizes[2],
        licence=MOVIELENS_LICENCE,
        citation=MOVIELENS_CITATION,
        homepage=f"{GROUPLENS}/{'latest' if name.startswith('ml-latest') else name.removeprefix('ml-')}/",
        download=download,
        note=note,
    )


_LARGER: Final = (
    _movielens(
        "ml-latest-small",
        "MovieLens Latest, small",
        None,
        (610, 9724, 100_836),
        "1 MB",
        "GroupLens changes it from time to time: sizes are of 9/2018, and a figure on it cannot be repeated for ever",
    ),
    _movielens("ml-10m", "MovieLens 10M", "ce571fd55effeba0271552578f2648bd", (69_878, 10_677, 10_000_054), "63 MB"),
    _movielens("ml-20m", "MovieLens 20M", "cd245b17a1ae2cc31bb14903e1204af3", (138_493, 26_744, 20_000_263), "190 MB"),
    _movielens("ml-25m", "MovieLens 25M", "6b51fb2759a8657d3bfcbfc42b592ada", (162_541, 59_047, 25_000_095), "250 MB"),
    _movielens("ml-32m", "MovieLens 32M", "d472be332d4daa821edc399621853b57", (200_948, 84_432, 32_000_204), "239 MB"),
    KnownDataset(
        name="gowalla",
        title="Gowalla check-ins (SNAP)",
        local_columns=Columns(),
        urls=("https://snap.stanford.edu/data/loc-gowalla_totalCheckins.txt.gz",),
        member="loc-gowalla_totalCheckins.txt.gz",
        member_columns=Columns(0, 4, ABSENT, 1, "\t", False),
        zipped=False,
        archive_checksum=None,
        known_checksums=(),
        has_times=True,
        users=107_092,
        items=1_280_969,
        rows=6_442_890,
        licence="none known to us: see the homepage; cite the paper",
        citation="E. Cho, S. A. Myers and J. Leskovec. Friendship and Mobility. KDD 2011.",
        homepage="https://snap.stanford.edu/data/loc-gowalla.html",
        note="people come back to places, so pairs repeat",
    ),
    KnownDataset(
        name="steam",
        title="Steam reviews (UCSD, version 2)",
        local_columns=Columns(),
        urls=("https://cseweb.ucsd.edu/~wckang/steam_reviews.json.gz",),
        member="steam_reviews.json.gz",
        member_columns=Columns("username", "product_id", ABSENT, "date", form="jsonl"),
        zipped=False,
        archive_checksum=None,
        known_checksums=(),
        has_times=True,
        users=2_567_538,
        items=15_474,
        rows=7_793_069,
        licence="none known to us: see the homepage; cite the papers",
        citation="W.-C. Kang and J. McAuley. Self-Attentive Sequential Recommendation. ICDM 2018.",
        homepage="https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data",
        download="1.3 GB",
        min_paper=5,
        min_strict=5,
        note="lines are in Python's notation, which takes minutes to read; times are days; names are not unique",
    ),
    KnownDataset(
        name="yelp",
        title="Yelp Open Dataset, reviews",
        local_columns=Columns(),
        urls=(),
        member="yelp_academic_dataset_review.json",
        member_columns=Columns("user_id", "business_id", "stars", "date", form="jsonl"),
        zipped=False,
        archive_checksum=None,
        known_checksums=(),
        has_times=True,
        users=None,
        items=None,
        rows=None,
        licence="Yelp's dataset terms, which each user must accept: academic and non-commercial use, no passing on",
        citation="Yelp Open Dataset, with its date",
        homepage="https://www.yelp.com/dataset",
        by_hand="accept the terms there, download the JSON archive, unpack yelp_academic_dataset_review.json",
    ),
)

_AMAZON_LICENCE: Final = "none known to us: see the homepage; cite the paper"
_OF_2014: Final = """Amazon_Instant_Video Apps_for_Android Automotive Baby Beauty Books CDs_and_Vinyl
    Cell_Phones_and_Accessories Clothing_Shoes_and_Jewelry Digital_Music Electronics Grocery_and_Gourmet_Food
    Health_and_Personal_Care Home_and_Kitchen Kindle_Store Movies_and_TV Musical_Instruments Office_Products
    Patio_Lawn_and_Garden Pet_Supplies Sports_and_Outdoors Tools_and_Home_Improvement Toys_and_Games Video_Games"""
_OF_2018: Final = """AMAZON_FASHION All_Beauty Appliances Arts_Crafts_and_Sewing Automotive Books CDs_and_Vinyl
    Cell_Phones_and_Accessories Clothing_Shoes_and_Jewelry Digital_Music Electronics Gift_Cards
    Grocery_and_Gourmet_Food Home_and_Kitchen Industrial_and_Scientific Kindle_Store Luxury_Beauty
    Magazine_Subscriptions Movies_and_TV Musical_Instruments Office_Products Patio_Lawn_and_Garden Pet_Supplies
    Prime_Pantry Software Sports_and_Outdoors Tools_and_Home_Improvement Toys_and_Games Video_Games"""


def _amazon(year: int, category: str) -> KnownDataset:
    """Amazon reviews of one category, the 5-core: users and items with five reviews or more."""
    if year == 2014:
        file, folder = (
            f"reviews_{category}_5.json.gz",
            "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles",
        )
        homepage = "http://jmcauley.ucsd.edu/data/amazon/links.html"
        citation = "R. He and J. McAuley. Ups and Downs: Modeling the Visual Evolution of Fashion Trends. WWW 2016."
    else:
        file, folder = f"{category}_5.json.gz", "https://jmcauley.ucsd.edu/data/amazon_v2/categoryFilesSmall"
        homepage = "https://nijianmo.github.io/amazon/index.html"
        citation = "J. Ni, J. Li and J. McAuley. Justifying Recommendations using Distantly-Labeled Reviews. EMNLP 2019"
    return KnownDataset(
        name=f"amazon-{year}-{category.lower().replace('_', '-')}",
        title=f"Amazon reviews {year}, {category.replace('_', ' ')}, 5-core",
        local_columns=Columns(),
        urls=(f"{folder}/{file}",),
        member=file,
        member_columns=Columns("reviewerID", "asin", "overall", "unixReviewTime", form="jsonl"),
        zipped=False,
        archive_checksum=None,
        known_checksums=(),
        has_times=True,
        users=None,
        items=None,
        rows=None,
        licence=_AMAZON_LICENCE,
        citation=citation,
        homepage=homepage,
        min_paper=5,
        min_strict=5,
        note="times are days",
    )


_AMAZON: Final = [_amazon(2014, one) for one in _OF_2014.split()] + [_amazon(2018, one) for one in _OF_2018.split()]
LARGE: Final = (*_LARGER, *_AMAZON)
