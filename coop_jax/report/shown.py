"""Tables as they are shown: in a terminal and as Markdown."""

from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from coop_jax.printing import cell

_NARROWEST_LABEL = 14


class Shown:
    """A table of texts below a title and above a caption, whose first column labels the rows.

    What follows a row and belongs to it is indented in that column. Printing it on a rich console
    wraps labels, then splits the columns into several tables, to fit the width; `is_wide` leaves
    less room between columns.
    """

    title: str
    is_wide: bool = False

    @property
    def caption(self) -> str:
        """The meaning of what is shown."""
        raise NotImplementedError

    @property
    def header(self) -> tuple[str, ...]:
        """The first line of the table."""
        raise NotImplementedError

    def body(self) -> list[list[str]]:
        """The lines below the header."""
        raise NotImplementedError

    def markdown(self) -> str:
        """The table in Markdown, with its title and caption."""
        alignment = ["---", *["---:"] * (len(self.header) - 1)]
        lines = [
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
            for line in [self.header, alignment, *map(_indented_in_markdown, self.body())]
        ]
        return "\n".join([f"**{self.title}**", "", *lines, "", self.caption])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        def text(shown: str, style: str = "") -> Text:
            return cell(shown, console, style)

        body, header = self.body(), [text(name) for name in self.header]
        gap = 2 if self.is_wide else 3
        lines = [header, *([text(one) for one in line] for line in body)]
        widths = [gap + max(one.cell_len for one in column) for column in zip(*lines, strict=True)]
        del widths[0]
        parts = _fitting(widths, options.max_width - 2 - _NARROWEST_LABEL)
        title, caption = text(self.title, "bold"), text(self.caption, "dim")
        for part in parts:
            table = Table(
                title=title if part is parts[0] else None,
                caption=caption if part is parts[-1] else None,
                box=box.SIMPLE_HEAD,
                pad_edge=False,
                padding=(0, 1, 0, gap - 2),
            )
            room = options.max_width - 2 - sum(widths[index] for index in part)
            beside_title = title.cell_len - sum(widths[index] for index in part)
            labels = max(_NARROWEST_LABEL, min(room, beside_title))
            table.add_column(header[0], justify="left", min_width=labels)
            for index in part:
                table.add_column(
                    header[index + 1],
                    justify="right",
                    no_wrap=True,
                    min_width=widths[index] - gap,
                )
            shown = ([line[0], *(line[index + 1] for index in part)] for line in body)
            _add_rows(table, console, shown)
            yield table


def _indented_in_markdown(line: Sequence[str]) -> list[str]:
    label, *cells = line
    return [f"*{label.strip()}*" if label.startswith("  ") else label, *cells]


def _fitting(widths: Sequence[int], room: int) -> list[range]:
    """Consecutive columns that fit into the room side by side; at least one of them."""
    parts, start = [], 0
    for index in range(len(widths)):
        if index > start and sum(widths[start : index + 1]) > room:
            parts.append(range(start, index))
            start = index
    return [*parts, range(start, len(widths))]


def _add_rows(table: Table, console: Console, lines: Iterable[Sequence[str]]) -> None:
    """Lines that belong to a row are dim; they are left out where all their cells are empty."""
    for line in lines:
        is_detail = line[0].startswith("  ")
        if any(line[1:]) or not is_detail:
            style = "dim" if is_detail else ""
            table.add_row(*(cell(text, console, style) for text in line))
