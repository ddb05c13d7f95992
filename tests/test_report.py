import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.table import Table

from coop_jax import report, results
from coop_jax.errors import InputError
from coop_jax.results import Hashes, Result

ACCURACIES = {
    1: {1: 87.123, 2: 88.957, 3: 86.0401},
    2: {1: 88.0, 2: 89.55, 3: 87.25},
    8: {1: 90.14, 2: 90.14, 3: 90.18},
    16: {1: 91.8, 2: 92.05, 3: 91.95},
}
TEMPLATE = "a photo of a {}."
DASH = "\N{EN DASH}"


def make(**changes: object) -> Result:
    values: dict[str, object] = {
        "protocol": "few_shot",
        "method": "coop",
        "dataset": "caltech101",
        "split": "test",
        "backbone": "RN50",
        "shots": 16,
        "seed": 1,
        "n_ctx": 16,
        "class_token_position": "end",
        "class_specific": False,
        "epochs": 200,
        "accuracy": 90.0,
        "macro_f1": 88.0,
        "n_classes": 100,
        "n_examples": 2465,
        "seconds": 12.5,
        "commit": "0123abc",
        "hashes": Hashes(
            data="d0", split="a1", class_names="b2", transform="c3", weights="d4", config="e5"
        ),
        "versions": {"jax": "0.10.2"},
        "config": {},
        "trained_on": "caltech101",
    }
    return Result(**(values | changes))  # pyright: ignore[reportArgumentType]


def zero_shot(prompt: str, accuracy: float, **changes: object) -> Result:
    none = dict.fromkeys(
        ["n_ctx", "class_token_position", "class_specific", "epochs", "trained_on"]
    )
    values = {"method": "zero_shot", "shots": 0, "prompt": prompt, "accuracy": accuracy}
    return make(**(none | values | changes))


def experiment(**changes: object) -> list[Result]:
    learned = [
        make(shots=shots, seed=seed, accuracy=accuracy, **changes)
        for shots, seeds in ACCURACIES.items()
        for seed, accuracy in seeds.items()
    ]
    return [
        *learned,
        zero_shot(TEMPLATE, 85.97, **changes),
        zero_shot("ensemble of 7", 86.29, **changes),
    ]


def write(path: Path, written: list[Result]) -> list[Result]:
    for result in written:
        results.append(path, result)
    return results.read(path)


def cells(table: Table) -> list[list[str]]:
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


def test_table_equals_numpy(tmp_path: Path):
    table = report.few_shot_table(write(tmp_path / "results.jsonl", experiment()))
    assert [str(column.header) for column in table.columns] == [
        "shots per class",
        *map(str, (0, 1, 2, 4, 8, 16)),
    ]
    expected = [DASH]
    for shots in (1, 2, 4, 8, 16):
        if shots not in ACCURACIES:
            expected.append(DASH)
            continue
        values = np.array(list(ACCURACIES[shots].values()))
        expected.append(f"{values.mean():.1f}±{values.std(ddof=0):.1f}")
    missing = [DASH] * 5
    assert cells(table) == [
        [f'"{TEMPLATE}"', "86.0", *missing],
        ["ensemble of 7", "86.3", *missing],
        ["CoOp, M = 16, end", *expected],
    ]
    assert "caltech101, RN50" in str(table.title)
    assert "3 seeds" in str(table.caption)


def test_statistics_are_of_unrounded_values(tmp_path: Path):
    rows = report.few_shot_rows(write(tmp_path / "results.jsonl", experiment()))
    for shots, seeds in ACCURACIES.items():
        values = np.array(list(seeds.values()))
        cell = rows[-1].cells[shots]
        np.testing.assert_allclose(
            [cell.mean, cell.deviation], [values.mean(), values.std(ddof=0)], rtol=1e-12, atol=1e-12
        )
        assert cell.seeds == 3


def test_markdown_has_the_numbers_of_the_table():
    learned = [*experiment(), zero_shot("{} | [bold]", 50.0)]
    lines = report.few_shot_markdown(learned).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    header, alignment, *body = (line.removeprefix("| ").removesuffix(" |") for line in rows)
    assert header.split(" | ")[1:] == ["0", "1", "2", "4", "8", "16"]
    assert alignment.split(" | ") == ["---", *["---:"] * 6]
    table = cells(report.few_shot_table(learned))
    assert table[2][0] == '"{} | [bold]"'
    table[2][0] = table[2][0].replace("|", "\\|")
    assert body == [" | ".join(row) for row in table]
    assert lines[0] == f"**{report.few_shot_table(learned).title}**"
    assert lines[-1] == str(report.few_shot_table(learned).caption)


def test_several_methods_keep_their_order():
    written = [
        make(method="cocoop", n_ctx=4, class_specific=None, class_token_position=None),
        make(class_specific=True, class_token_position="middle"),
        make(method="a_new_one", n_ctx=None, class_token_position=None, class_specific=None),
        make(),
        zero_shot("ensemble of 2", 10.0),
        zero_shot(TEMPLATE, 20.0),
    ]
    assert [row.label for row in report.few_shot_rows(written)] == [
        "zero-shot CLIP, ensemble of 2",
        f'zero-shot CLIP, "{TEMPLATE}"',
        "CoCoOp, M = 4",
        "CoOp, M = 16, middle, class-specific",
        "a_new_one",
        "CoOp, M = 16, end",
    ]


def test_one_seed_has_no_deviation_and_fewer_seeds_are_marked():
    one = cells(report.few_shot_table([make(accuracy=90.04)]))
    assert one[0][-1] == "90.0"
    some = report.few_shot_table(
        [make(seed=1, accuracy=90.0), make(seed=2, accuracy=91.0), make(shots=1, accuracy=80.0)]
    )
    assert cells(some)[0][2] == "80.0 (1)"
    assert cells(some)[0][-1] == "90.5±0.5"
    assert "2 seeds" in str(some.caption)


def test_other_numbers_of_shots_get_a_column():
    table = report.few_shot_table([make(shots=3), make(shots=32)])
    assert [str(column.header) for column in table.columns][2:5] == ["1", "2", "3"]
    assert str(table.columns[-1].header) == "32"


def test_a_seed_evaluated_twice_counts_once(caplog: pytest.LogCaptureFixture):
    same = [make(accuracy=90.0), make(accuracy=90.0, seconds=1.0)]
    assert report.few_shot_rows(same)[0].cells[16].seeds == 1
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        row = report.few_shot_rows([make(accuracy=90.0), make(accuracy=91.0)])[0]
    assert row.cells[16] == report.Cell(91.0, 0.0, 1)
    assert "several results" in caplog.text


def test_a_table_per_dataset():
    written = [*experiment(), *experiment(dataset="eurosat", n_classes=10)]
    groups = report.by_setting(written)
    assert [setting.dataset for setting in groups] == ["caltech101", "eurosat"]
    assert [len(group) for group in groups.values()] == [14, 14]
    for function in (report.few_shot_table, report.few_shot_markdown, report.few_shot_rows):
        with pytest.raises(InputError, match="one setting, got caltech101"):
            function(written)
        with pytest.raises(InputError, match="got no results"):
            function([])


def test_zero_shot_joins_every_protocol_with_the_same_classes():
    written = [
        zero_shot(TEMPLATE, 50.0, protocol="zero_shot"),
        zero_shot(TEMPLATE, 60.0, protocol="zero_shot", n_classes=50),
        make(),
        make(protocol="cross_dataset"),
    ]
    groups = {setting[0]: group for setting, group in report.by_setting(written).items()}
    assert groups == {
        "cross_dataset": [written[0], written[3]],
        "few_shot": [written[0], written[2]],
        "zero_shot": [written[1]],
    }


def test_curve_is_a_png(tmp_path: Path):
    path = tmp_path / "new" / "curve.png"
    report.few_shot_curve([*experiment(), make(method="other$_$")], path)
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert image.width > 800
        assert image.height > 600
        pixels = np.asarray(image.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    with pytest.raises(InputError, match=r"\.png"):
        report.few_shot_curve(experiment(), tmp_path / "curve.pdf")
    with pytest.raises(InputError, match="one setting"):
        report.few_shot_curve([], path)


def test_curve_touches_no_state(tmp_path: Path):
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import matplotlib
from test_report import experiment
from coop_jax import report
raw = dict.items  # rcParams["backend"] itself would choose a backend
before = dict(raw(matplotlib.rcParams))
report.few_shot_curve(experiment(), {str(tmp_path / "curve.png")!r})
assert dict(raw(matplotlib.rcParams)) == before
assert "matplotlib.pyplot" not in sys.modules
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_curves_in_threads_are_the_same(tmp_path: Path):
    paths = [tmp_path / f"{index}.png" for index in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda path: report.few_shot_curve(experiment(), path), paths))
    assert len({path.read_bytes() for path in paths}) == 1


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path / "results.jsonl", experiment())
    assert report.main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "91.9±0.1" in printed
    assert f'"{TEMPLATE}"' in printed
    png = tmp_path / "curve.png"
    arguments = [str(tmp_path / "results.jsonl"), "--markdown", "--png", str(png)]
    assert report.main(arguments) == 0
    assert capsys.readouterr().out.strip() == report.few_shot_markdown(experiment())
    assert png.is_file()


def test_command_with_several_files_and_datasets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write(tmp_path / "one" / "results.jsonl", [make(seed=1, accuracy=80.0)])
    write(tmp_path / "two" / "results.jsonl", [make(seed=2, accuracy=90.0), make(dataset="dtd")])
    png = tmp_path / "curve.png"
    assert report.main([str(tmp_path / "one"), str(tmp_path / "two"), "--png", str(png)]) == 0
    assert "85.0±5.0" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        "curve-few_shot-caltech101-test-RN50-100.png",
        "curve-few_shot-dtd-test-RN50-100.png",
    ]


@pytest.mark.parametrize("content", [None, b"", b'{"torn', b"corrupt\n"])
def test_command_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
):
    if content is not None:
        (tmp_path / "results.jsonl").write_bytes(content)
    assert report.main([str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "expected" in captured.err
    assert "results.jsonl" in captured.err


def test_command_as_a_module(tmp_path: Path):
    finished = subprocess.run(
        [sys.executable, "-m", "coop_jax.report", str(tmp_path)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 2
    assert finished.stderr.count("\n") == 1
