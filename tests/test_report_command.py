import csv
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_results import (
    PROBE,
    TEMPLATE,
    base_to_new,
    few_shot,
    make,
    own_prompt,
    transfer,
    write,
    zero_shot,
)

from coop_jax import report
from coop_jax.__main__ import main as family
from coop_jax.errors import InputError
from coop_jax.report import bars
from coop_jax.report import few_shot as few_shot_sheets

ONE = ("caltech101",)


def main(words: list[str]) -> int:
    """Run the command."""
    return family(["report", *words])


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG on which something is drawn."""
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    return image.size


def test_curve_of_one_dataset(tmp_path: Path):
    path = tmp_path / "new" / "report.png"
    assert report.pictures([*few_shot(ONE), make(method="other$_$")], path) == [path]
    width, height = picture_size(path)
    assert width == 1040
    assert height > 800


def test_panels_and_gains_of_eleven_datasets(tmp_path: Path):
    panels, gains = report.pictures(few_shot(), tmp_path / "report.png")
    assert panels.name == "report-few_shot-test-RN50.png"
    assert picture_size(panels) == (2480, 1800)
    assert gains.name == "report-gains-few_shot-test-RN50.png"
    width, height = picture_size(gains)
    assert width == 960 and height > 1000
    prompts = [one for one in few_shot(("dtd", "eurosat")) if one.prompt is not None]
    assert len(report.pictures(prompts, tmp_path / "report.png")) == 1


def test_bars_of_base_to_new(tmp_path: Path):
    path = tmp_path / "report.png"
    assert report.pictures(base_to_new(), path) == [path]
    tall = picture_size(path)
    assert report.pictures(base_to_new(ONE), path) == [path]
    flat = picture_size(path)
    assert tall[0] == flat[0] == 1800
    assert tall[1] > 2 * flat[1]
    lone = make(protocol="base_to_new", split="base")
    assert report.pictures([lone], path) == []


def test_transfer_has_no_picture(tmp_path: Path):
    assert report.pictures(transfer("cross_dataset", ("dtd",)), tmp_path / "report.png") == []
    assert list(tmp_path.iterdir()) == []


def test_several_pictures_are_named_after_what_they_show(tmp_path: Path):
    written = [*few_shot(ONE), *few_shot(ONE, backbone="RN101"), *base_to_new(("dtd", "eurosat"))]
    saved = report.pictures(written, tmp_path / "report.png")
    assert [path.name for path in saved] == [
        "report-few_shot-caltech101-test-RN50.png",
        "report-few_shot-caltech101-test-RN101.png",
        "report-base_to_new-base-ViT_B_16.png",
    ]
    assert sorted(saved) == sorted(tmp_path.iterdir())


def test_pictures_refuse(tmp_path: Path):
    with pytest.raises(InputError, match=r"\.png"):
        report.pictures(few_shot(ONE), tmp_path / "curve.pdf")
    with pytest.raises(InputError, match="got none"):
        report.pictures([], tmp_path / "curve.png")


def test_pictures_touch_no_state(tmp_path: Path):
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import matplotlib
from report_results import base_to_new, few_shot
from coop_jax import report
from coop_jax.__main__ import main as family
raw = dict.items  # rcParams["backend"] itself would choose a backend
before = dict(raw(matplotlib.rcParams))
written = [*few_shot(("dtd", "eurosat")), *base_to_new(("dtd",))]
assert len(report.pictures(written, {str(tmp_path / "curve.png")!r})) == 3
assert dict(raw(matplotlib.rcParams)) == before
assert "matplotlib.pyplot" not in sys.modules
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_pictures_in_threads_are_the_same(tmp_path: Path):
    paths = [tmp_path / f"{index}.png" for index in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda path: report.pictures(few_shot(ONE), path), paths))
    assert len({path.read_bytes() for path in paths}) == 1


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    written = write(tmp_path / "results.jsonl", few_shot(ONE))
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    (sheet,) = report.tables(written)
    assert sheet.body()[-3][-1] in printed
    png, table = tmp_path / "curve.png", tmp_path / "new" / "numbers.csv"
    files = ["--csv", str(table), "--png", str(png)]
    assert main([str(tmp_path / "results.jsonl"), "--markdown", *files]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == sheet.markdown()
    assert captured.err == f"saved {table}\nsaved {png}\n"
    picture_size(png)
    with table.open() as file:
        assert [dict(line) for line in csv.DictReader(file)] == [
            {key: "" if value is None else str(value) for key, value in record.items()}
            for record in sheet.records()
        ]


def test_command_reads_several_workdirs_and_folders_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write(tmp_path / "one" / "results.jsonl", [make(seed=1, accuracy=80.0)])
    write(tmp_path / "sub" / "two" / "results.jsonl", [make(seed=2, accuracy=90.0)])
    named = [str(tmp_path / "one"), str(tmp_path / "sub" / "two" / "results.jsonl")]
    for paths in (named, [str(tmp_path)], [str(tmp_path), *named]):
        assert main(paths) == 0
        assert "85.0±5.0" in capsys.readouterr().out


def test_rows_that_saw_other_images_are_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plain = {"settings": {}, "accuracy": 90.0}
    written = [
        make(method="tda", uses=["test_images"], **plain),
        make(method="upl", uses=["teacher", "unlabeled"], **plain),
        make(method="linear_probe", uses=["validation"], **plain),
        make(accuracy=90.0),
    ]
    write(tmp_path / "results.jsonl", written)
    assert main([str(tmp_path), "--markdown", "--csv", str(tmp_path / "table.csv")]) == 0
    said = capsys.readouterr().out
    labels = [line.split(" | ")[0] for line in said.splitlines() if "90.0" in line]
    assert [label[-2:] for label in labels] == [" †", " ‡", " §", "nd"], labels
    assert "; † saw the test images; ‡ saw unlabelled training images; § saw labelled vali" in said
    with (tmp_path / "table.csv").open() as file:
        uses = [line["uses"] for line in csv.DictReader(file)]
    assert uses == ["test_images", "teacher, unlabeled", "validation", ""]


def test_command_names_a_line_that_was_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "results.jsonl"
    write(path, [make(seed=1, accuracy=81.25), make(seed=2, accuracy=82.25)])
    path.write_text(path.read_text().replace("82.25", "92.25"))
    assert main([str(tmp_path)]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1
    assert error.startswith(f"error: {path}:2: expected the line that was written (sha256 ")


def test_command_says_that_there_is_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    changes = {"protocol": "cross_dataset", "dataset": "dtd"}
    write(tmp_path / "results.jsonl", [zero_shot(TEMPLATE, 40.0, **changes)])
    assert main([str(tmp_path), "--png", str(tmp_path / "a.png")]) == 0
    assert "no picture" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"", b'{"torn', b"corrupt\n"])
def test_command_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
):
    if content is not None:
        (tmp_path / "results.jsonl").write_bytes(content)
    assert main([str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    *warnings, error = captured.err.splitlines()
    assert error.startswith("error: ") and "expected" in error and "results.jsonl" in error
    assert all("dropped an unfinished last line" in line for line in warnings)


@pytest.mark.parametrize(
    "flag, name", [("--png", "curve.pdf"), ("--png", "folder.png"), ("--csv", "folder.png")]
)
def test_command_refuses_files_that_it_cannot_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, name: str
):
    write(tmp_path / "results.jsonl", [make()])
    (tmp_path / "folder.png").mkdir()
    assert main([str(tmp_path), flag, str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: expected")
    assert error.count("\n") == 1


def test_command_as_a_module(tmp_path: Path):
    finished = subprocess.run(
        [sys.executable, "-m", "coop_jax.report", str(tmp_path)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 2
    assert finished.stderr.count("\n") == 1


def test_gains_are_over_the_first_prompt_at_the_most_shots():
    written = [
        *(
            make(dataset=name, shots=shots, accuracy=50.0 + shots)
            for name in ONE
            for shots in (1, 8)
        ),
        make(dataset="dtd", shots=8, accuracy=60.0),
        make(dataset="dtd", shots=8, accuracy=99.0, **PROBE),
        make(dataset="eurosat", shots=1, accuracy=99.0),
        *(
            zero_shot(own_prompt(name), 56.5, dataset=name)
            for name in ("caltech101", "dtd", "eurosat")
        ),
        zero_shot("7 ImageNet templates", 10.0),
    ]
    (sheets,) = few_shot_sheets.panels("few_shot", written)
    figure = bars.draw_over_zero_shot(sheets)
    assert figure is not None
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["DTD", "Caltech101"]
    assert [bar.get_width() for bar in axes.patches] == [3.5, 1.5]
    assert axes.get_title() == "CoOp, M = 16, end, 8 shots\nover zero-shot CLIP, RN50"
