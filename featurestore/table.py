"""Tables: rows that show themselves on a terminal, in a notebook and as a DataFrame."""

from __future__ import annotations

import html
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar, overload

if TYPE_CHECKING:
    import pandas
    import rich.table

T = TypeVar("T")
Row = dict[str, Any]
_MEASURE = re.compile(r"[\d.,]+ [A-Za-z]+")  # what `size` returns
# A cell that is cut has at most this many characters, and on a narrow terminal no fewer than these.
LONGEST, SHORTEST = 60, 16
# A table of more than MANY rows shows only its first and last ENDS rows.
MANY, ENDS = 60, 10


@dataclass(frozen=True)
class Grid:
    """The columns that are shown of some rows.

    Parameters
    ----------
    rows : sequence of mapping
    fields : sequence of str
        The fields to show, in order.
    headings : mapping of str to str
        Headings of fields; by default the name with spaces for underscores.
    cut : str, optional
        A field whose cells are cut to fit: ``C=0.1 kernel=…``.
    """

    rows: Sequence[Mapping[str, Any]]
    fields: Sequence[str]
    headings: Mapping[str, str] = field(default_factory=dict)
    cut: str | None = None

    def text(self, *, terminal: bool = False, most: int | None = None) -> str:
        """Return the rows as aligned lines, numbers to the right.

        Of more than ``most`` rows, only the first and last are shown. Without a terminal each row
        is one line, however long. On a terminal that is too narrow, cells fold, and the last
        column, which people copy (keys and ids), moves to a line of its own, its heading too.
        """
        names, cells, right = self._names(), self._cells(most), self._right()
        columns = shutil.get_terminal_size().columns if terminal else sys.maxsize
        if (over := _width(names, cells) - columns) > 0 and self.cut in self.fields:
            column = self.fields.index(self.cut)
            longest = max(len(row[column]) for row in cells)
            _cut(cells, column, max(SHORTEST, longest - over))
        width = _width(names, cells)
        if width <= columns or len(names) == 1:
            return "\n".join(_lines(_rich(names, cells, right), width))
        copied = iter([names[-1], *[row.pop() for row in cells]])
        # A newline at the end of each cell leaves a blank line below each row.
        above, *cells = [[f"{text}\n" for text in row] for row in (names[:-1], *cells)]
        lines = _lines(_rich(above, cells, right), max(columns, 4 * len(names)))
        return "\n".join(line or f"  {next(copied)}" for line in lines)

    def html(self) -> str:
        """Return the rows as an HTML table; of many, the first and last."""
        import pandas

        frame = pandas.DataFrame(self._cells(MANY), columns=self._names())
        with pandas.option_context("display.max_colwidth", None):
            return str(frame.to_html(index=False, border=0))

    def _names(self) -> list[str]:
        return [self.headings.get(name, name.replace("_", " ")) for name in self.fields]

    def _cells(self, most: int | None) -> list[list[str]]:
        many = most is not None and len(self.rows) > most
        left_out = len(self.rows) - 2 * ENDS if many else 0
        rows = [*self.rows[:ENDS], *self.rows[-ENDS:]] if left_out else self.rows
        cells = [[cell(row.get(name)) for name in self.fields] for row in rows]
        if self.cut in self.fields:
            _cut(cells, self.fields.index(self.cut), LONGEST)
        if left_out:
            cells.insert(ENDS, [f"… {left_out:,} more", *[""] * (len(self.fields) - 1)])
        return cells

    def _right(self) -> list[bool]:
        return [all(_is_number(row.get(name)) for row in self.rows) for name in self.fields]


# From rows to what is shown of them: grids, and lines of text between them.
Layout = Callable[[list[Row]], Iterable[Grid | str]]


def simple(rows: list[Row]) -> Iterable[Grid]:
    """Show every field that holds one value, not a list or mapping."""
    names = dict.fromkeys(name for row in rows for name in row)
    flat = [
        name
        for name in names
        if not any(isinstance(row.get(name), list | tuple | Mapping) for row in rows)
    ]
    return [Grid(rows, flat)] if flat else []


class Table(list[T]):
    """A list that shows itself as a table, as the command line prints it.

    Printing it draws the table, a notebook shows it as HTML, and `to_frame` makes a DataFrame of
    it. Of more than 60 rows, both show the first and last 10; `text` has all. A slice of it is a
    table again.

    Parameters
    ----------
    items : iterable of dict or dataclass
    layout : callable, optional
        From rows, as dicts, to what is shown of them.
    as_row : callable, optional
        From an item to its row.

    Examples
    --------
    >>> Table([{"layer": "pool", "score": 0.9142}, {"layer": "top", "score": 0.87}])
    layer  score
    pool   0.914
    top    0.870
    """

    def __init__(
        self,
        items: Iterable[T] = (),
        layout: Layout = simple,
        as_row: Callable[[Any], Row] | None = None,
    ) -> None:
        super().__init__(items)
        self._layout, self._as_row = layout, as_row or _as_row

    def rows(self) -> list[Row]:
        """Return the items as dicts."""
        return [self._as_row(item) for item in self]

    def to_frame(self) -> pandas.DataFrame:
        """Return the items as a pandas DataFrame, a column for each field."""
        import pandas

        return pandas.DataFrame(self.rows())

    def text(self, *, terminal: bool = False, most: int | None = None) -> str:
        """Return the table as text; see `Grid.text`."""
        parts = (
            part if isinstance(part, str) else part.text(terminal=terminal, most=most)
            for part in self._parts()
        )
        return "\n".join(parts)

    def __repr__(self) -> str:
        return self.text(terminal=sys.stdout.isatty(), most=MANY)

    def _repr_html_(self) -> str:
        return _html(self._parts())

    def _parts(self) -> Iterable[Grid | str]:
        return self._layout(self.rows()) if self else ["(no rows)"]

    @overload
    def __getitem__(self, index: SupportsIndex) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Table[T]: ...

    def __getitem__(self, index: SupportsIndex | slice) -> T | Table[T]:
        items = super().__getitem__(index)
        return Table(items, self._layout, self._as_row) if isinstance(index, slice) else items  # type: ignore[arg-type, return-value]


def _as_row(item: Any) -> Row:
    return asdict(item) if is_dataclass(item) else dict(item)  # type: ignore[arg-type]


def show_html(title: str, *parts: Grid | str) -> str:
    """Return an object's line and its tables as HTML, for a notebook."""
    return f"<p><code>{html.escape(title)}</code></p>{_html(filter(None, parts))}"


def _html(parts: Iterable[Grid | str]) -> str:
    return "".join(
        part.html() if isinstance(part, Grid) else f"<p>{html.escape(part)}</p>" for part in parts
    )


def _cut(cells: list[list[str]], column: int, length: int) -> None:
    for row in cells:
        if len(row[column]) > length:
            row[column] = f"{row[column][: length - 1]}…"


def _rich(headings: list[str], cells: list[list[str]], right: list[bool]) -> rich.table.Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="")
    for heading, numbers in zip(headings, right, strict=False):
        table.add_column(Text(heading), justify="right" if numbers else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    return table


def _width(names: list[str], cells: list[list[str]]) -> int:
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) for column in zip(names, *cells, strict=True)]
    return sum(widths) + 2 * (len(widths) - 1)


def _lines(table: rich.table.Table, width: int) -> list[str]:
    from rich.console import Console

    console = Console(width=width, color_system=None, force_jupyter=False)
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]


def _is_number(value: Any) -> bool:
    measure = isinstance(value, str) and _MEASURE.fullmatch(value)
    return bool(measure) or isinstance(value, int | float | None)


def printable(text: str) -> str:
    r"""Escape the characters that could break the line or control the terminal.

    Examples
    --------
    >>> printable("two\nlines")
    'two\\nlines'
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def cell(value: Any) -> str:
    """Format a value for a table."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return " x ".join(map(str, value))
    if isinstance(value, dict):
        return " ".join(f"{name}={_param(item)}" for name, item in value.items()) or "-"
    return printable(str(value))


def _param(value: Any) -> str:
    # As typed after --param: 1e-05 must not become 0.000.
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_param, value))}]"
    if isinstance(value, dict):
        # As `featurestore.heads.identity.canonical` writes what JSON does not have.
        if "dict" in value:
            return f"{{{','.join(f'{_param(key)}:{_param(item)}' for key, item in value['dict'])}}}"
        named = value.get("class") or value.get("import") or value.get("float")
        return printable(str(named).rpartition(".")[2] if named else str(value))
    return f"{value:g}" if isinstance(value, float) else printable(str(value))


def size(count: float, unit: str = "B") -> str:
    """Format a number of bytes, or of another unit.

    Examples
    --------
    >>> size(3_300_000)
    '3.3 MB'
    """
    for prefix in ("", "k", "M", "G"):
        if count < 999.95:
            return f"{count:.1f} {prefix}{unit}" if prefix else f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:,.1f} T{unit}"


def duration(seconds: float) -> str:
    """Format a time.

    Examples
    --------
    >>> duration(0.04), duration(75), duration(90_000)
    ('0.0 s', '1.2 min', '25.0 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"


def plural(count: int, noun: str) -> str:
    """Return ``1 file`` or ``1,234 files``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
