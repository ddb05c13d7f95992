"""Tables and pictures, computed from `results.jsonl` alone.

    coop_jax report PATHS... [--compare] [--markdown] [--csv FILE] [--png FILE]

The few-shot protocol, from base to new classes, cross-dataset transfer and domain generalization,
each with the averages of the papers and, where the same was published, the papers' numbers.
"""

import dataclasses
import io
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from coop_jax.errors import InputError
from coop_jax.printing import console
from coop_jax.report import base_to_new, comparison, few_shot, summary, transfer
from coop_jax.report.comparison import Comparison
from coop_jax.report.sheet import Sheet
from coop_jax.results import Result
from coop_jax.writing import said, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from coop_jax.fonts import Lettering

__all__ = [
    "check_picture_path",
    "comparisons",
    "console",
    "pictures",
    "pictures_of_comparisons",
    "tables",
]

_SHEETS = {
    "base_to_new": base_to_new.sheets,
    "cross_dataset": transfer.sheets,
    "domain_generalization": transfer.sheets,
}
"""The function that makes the tables of a protocol; of any other, `few_shot.sheets`."""


def tables(results: Iterable[Result]) -> list[Sheet]:
    """All tables of these results, in the order in which their protocols first appear.

    Datasets are in the papers' order, after their average. A rich console prints a sheet.

    Raises:
      InputError: there are no results.
    """
    return [
        sheet
        for protocol, chosen in summary.by_protocol(_some(results)).items()
        for sheet in _SHEETS.get(protocol, few_shot.sheets)(protocol, chosen)
    ]


def comparisons(results: Iterable[Result]) -> list[Comparison]:
    """A table for each dataset with a row for each method, and whether differences are significant.

    Raises:
      InputError: there are no results.
    """
    return comparison.compare(_some(results))


def pictures_of_comparisons(results: Iterable[Result], path: str | os.PathLike[str]) -> list[Path]:
    """Saves a picture of each comparison; as `pictures`."""
    from coop_jax.report import forest

    return _save(
        path,
        lambda lettering: [
            (
                (found.first.dataset, found.first.split, found.first.backbone),
                forest.draw(found.lettered(lettering)),
            )
            for found in comparisons(results)
        ],
    )


def pictures(results: Iterable[Result], path: str | os.PathLike[str]) -> list[Path]:
    """Saves the pictures of these results as PNGs and returns their paths; makes the folders.

    Few-shot results of one dataset give a curve of accuracy (%) over shots, those of several the
    panels of the CoOp paper's Figure 3 and the bars of its Figure 4; base-to-new results the
    improvement of one method over another (CoCoOp's Figure 3); transfer gives none. A single
    picture is saved at `path`; of several, each says after the file's stem what it shows. Touches
    no state of matplotlib, so it may run in any thread.

    Raises:
      InputError: there are no results, or `path` does not end in `.png`.
      MachineError: a picture cannot be written.
    """
    return _save(
        path,
        lambda lettering: [
            picture
            for protocol, chosen in summary.by_protocol(_some(results)).items()
            for picture in _draw(protocol, chosen, lettering)
        ],
    )


Pictures = list[tuple[tuple[str, ...], "Figure"]]
"""Pictures, each with the words that tell it from others."""


def _save(path: str | os.PathLike[str], draw: Callable[["Lettering"], Pictures]) -> list[Path]:
    """Draw pictures and save them at or around a path; return where."""
    path = check_picture_path(path)
    from coop_jax import fonts

    lettering = fonts.Lettering()
    drawn = draw(lettering)
    saved: list[Path] = []
    with said("write a picture", path):
        path.parent.mkdir(parents=True, exist_ok=True)
    lettering.apply(*(figure for _, figure in drawn))
    for name, figure in drawn:
        target = path
        if len(drawn) > 1:
            target = path.with_stem("-".join([path.stem, *map(_slug, name)]))
        while target in saved:
            target = target.with_stem(target.stem + "_")
        content = io.BytesIO()
        figure.savefig(content, format="png")
        with said("write a picture", target):
            write_whole(target, content.getvalue())
        saved.append(target)
    return saved


def check_picture_path(path: str | os.PathLike[str]) -> Path:
    """The path.

    Raises:
      InputError: it does not end in `.png`.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(
            f"expected a path that ends in .png, got {path}; pictures are saved as PNG"
        )
    return path


def _some(results: Iterable[Result]) -> list[Result]:
    results = list(results)
    if not results:
        raise InputError("expected lines in results.jsonl, got none; run an evaluation first")
    return results


def _draw(protocol: str, results: list[Result], lettering: "Lettering") -> Pictures:
    from coop_jax.report import bars, curve

    if _SHEETS.get(protocol) is transfer.sheets:
        return []
    is_base_to_new = protocol == "base_to_new"
    panels = base_to_new.panels if is_base_to_new else few_shot.panels
    found = []
    for sheets in panels(protocol, results):
        words, shown = _words(sheets), [_lettered(sheet, lettering) for sheet in sheets]
        if is_base_to_new:
            found.append((words, bars.draw(shown)))
            continue
        found.append((words, curve.draw(shown)))
        if len(sheets) > 1:
            found.append((("gains", *words), bars.draw_over_zero_shot(shown)))
    return [(words, figure) for words, figure in found if figure is not None]


def _lettered(sheet: Sheet, lettering: "Lettering") -> Sheet:
    rows = [dataclasses.replace(row, label=lettering(row.label)) for row in sheet.rows]
    said = {"subject": lettering(sheet.subject), "backbone": lettering(sheet.backbone)}
    return dataclasses.replace(sheet, rows=tuple(rows), **said)


def _words(sheets: list[Sheet]) -> tuple[str, ...]:
    """Return what tells their picture from others: protocol, dataset, split, backbone."""
    first = sheets[0]
    split = next(value.split for row in first.rows for value in row.values if value is not None)
    return (first.protocol, *[first.subject] * (len(sheets) == 1), split, first.backbone)


def _slug(text: str) -> str:
    """The text as part of a file's name."""
    return re.sub(r"\W+", "_", text)[:60]
