"""What was read of a file: its form, and which column was taken for what."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

Form = Literal["rows", "lists", "jsonl", "parquet", "dataframe"]
How = Literal["given", "name", "values", "position"]

SEPARATOR_NAMES: Final = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "pipe", " ": "blanks"}
_FORMS: Final = {
    "rows": "text",
    "lists": "one user a line",
    "jsonl": "JSON lines",
    "parquet": "Parquet",
    "dataframe": "DataFrame",
}
_HOW: Final = {"given": "as given", "name": "by its name", "values": "by its values", "position": "by its position"}
_LISTED: Final = 5  # columns not used that a line names


@dataclass(frozen=True)
class ColumnRead:
    """One column of a file.

    Attributes:
        number: from 0.
        name: in the header; empty without one.
        role: user, item, rating or time; None: it was not used.
        how: what told the role.
        note: what else is to be said of it.
        examples: values of the first rows.
    """

    number: int
    name: str = ""
    role: str | None = None
    how: How | None = None
    note: str = ""
    examples: tuple[str, ...] = ()

    @property
    def called(self) -> str:
        """Its name, or its number where it has none."""
        return f"'{self.name}'" if self.name else f"column {self.number}"

    @property
    def taken_for(self) -> str:
        """What it was taken for, and why, in words."""
        said = f"{self.role} ({_HOW[self.how]})" if self.role is not None and self.how is not None else "not used"
        return f"{said}, {self.note}" if self.note else said


def dates_in(notation: str) -> str:
    """What is said of a column of dates."""
    return f"dates, {notation}"


@dataclass(frozen=True)
class Reading:
    """How a file was read.

    Attributes:
        source: the file's name.
        form: of the file. compression: gzip, bz2, xz, zstd or none.
        encoding, separator, header, comment: of a text; a header is the number of its line, 0 where there is none.
        columns: in the file's order.
        rows: how many interactions were read.
        notes: what else a reader should know.
    """

    source: str
    form: Form
    compression: str = ""
    encoding: str = ""
    separator: str = ""
    header: int = 0
    comment: str = ""
    columns: tuple[ColumnRead, ...] = ()
    rows: int = 0
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> str:
        """The form in a few words: "text (gzip), UTF-8, comma, header in line 1"."""
        said = [_FORMS[self.form] + (f" ({self.compression})" if self.compression else "")]
        if self.encoding:
            said.append(self.encoding)
        if self.separator:
            said.append(SEPARATOR_NAMES.get(self.separator, f"'{self.separator}'"))
        if self.form == "rows":
            said.append(f"header in line {self.header}" if self.header else "no header")
        if self.comment:
            said.append(f"lines that start with '{self.comment}' skipped")
        return ", ".join(said)

    @property
    def sentence(self) -> str:
        """One line for who starts a run."""
        used = ", ".join(f"{each.role} {each.called}" for each in self.columns if each.role)
        unused = [each.called for each in self.columns if not each.role]
        more = f" and {len(unused) - _LISTED} more" if len(unused) > _LISTED else ""
        left = f"; not used: {', '.join(unused[:_LISTED])}{more}" if unused else ""
        notes = "".join(f"; {note}" for note in self.notes)
        return f"{self.source}: {self.shape}; {used}{left}{notes}"

    def with_notation(self, notation: str | None) -> Reading:
        """The same, with the notation that the times turned out to be in."""
        columns = tuple(
            replace(each, note=dates_in(notation)) if each.role == "time" and notation is not None else each
            for each in self.columns
        )
        return replace(self, columns=columns)

    def as_json(self) -> dict[str, Any]:
        """For a file beside a run: without the examples, which are rows of the data."""
        return asdict(replace(self, columns=tuple(replace(each, examples=()) for each in self.columns)))

    @classmethod
    def of_json(cls, record: dict[str, Any]) -> Reading:
        """What `as_json` gave.

        Raises:
            KeyError, TypeError: it is not of that form.
        """
        columns = tuple(ColumnRead(**{**each, "examples": ()}) for each in record["columns"])
        return cls(**{**record, "columns": columns, "notes": tuple(record["notes"])})
