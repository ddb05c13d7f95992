"""The contract of methods: every method keeps it, and a file that does not is found out."""

import re

import pytest
from conftest import make_room
from makers import SMALL
from test_docs import examples

from coop_jax import methods
from coop_jax.errors import InputError
from coop_jax.methods import checks

QUICK = ("coop", "tip_adapter")
"""Methods that are checked at each run of the tests; CI checks all, on more devices."""

check_names = pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.__name__)


@pytest.fixture(scope="module")
def subject(request, tmp_path_factory):
    """A method of the package to be checked, on two devices or eight."""
    name, devices = request.param
    yield checks.Subject(name, SMALL.get(name, {}), tmp_path_factory.mktemp(name), devices)
    make_room()


@check_names
@pytest.mark.parametrize("subject", [(name, 2) for name in QUICK], indirect=True, ids=str)
def test_methods_keep_the_contract(check, subject):
    check(subject)


@pytest.mark.heavy
@check_names
@pytest.mark.parametrize(
    "subject", [(name, 8) for name in methods.available()], indirect=True, ids=str
)
def test_all_methods_keep_the_contract_on_eight_devices(check, subject):
    check(subject)


@pytest.mark.heavy
@check_names
@pytest.mark.parametrize("example", examples())
def test_the_examples_of_the_documentation_keep_the_contract(check, example, tmp_path):
    path = tmp_path / f"{example}.py"
    path.write_text(examples()[example])
    check(checks.Subject(str(path), folder=tmp_path))


BREAKS = {
    "file": ('PAPER = "an example of coop_jax"', 'PAPER = ""', "expected PAPER as a text, got ''"),
    "variables": (
        "self.vector = Learned(",
        "import time; self.vector = Learned(time.time() % 1 + ",
        "expected the same Learned of one seed",
    ),
    "logits": (
        "texts)\n",
        "texts).astype(jnp.bfloat16)\n",
        "logits: expected float32, got bfloat16",
    ),
    "losses": (
        "    def texts(",
        "    def losses(self, clip, texts, batch):\n"
        "        return {'all': self.logits(clip, texts, batch.images).mean()}\n\n    def texts(",
        "losses: expected all without the rows whose weight is zero",
    ),
    "training": (
        "self.shift = Shift(",
        "self.idle = Learned(jnp.zeros(3)); self.shift = Shift(",
        "expected every Learned variable to move, got none for idle",
    ),
    "checkpoints": (
        "    def texts(",
        "    def prepare(self, clip, stage, data):\n"
        "        import time\n"
        "        self.shift.vector[...] = self.shift.vector[...] + time.time() % 1\n"
        "        return data\n\n    def texts(",
        "expected a stopped run to end the same",
    ),
    "devices": (
        "texts)\n",
        "texts) * self.shards\n",
        "expected the same of 2 devices as of one",
    ),
    "runs": (
        "    def texts(",
        "    def prepare(self, clip, stage, data, seen=[]):\n"
        "        seen.append(1)\n"
        "        self.shift.vector[...] = self.shift.vector[...] + len(seen)\n"
        "        return data\n\n    def texts(",
        "expected a run beside another to learn what it learns alone",
    ),
    "classes": (
        "return self.bank[...]",
        "return self.bank[...] + jnp.arange(len(self.bank[...]))[:, None]",
        "expected the same logits of the classes in another order",
    ),
}
"""What is replaced in the example that learns inside a tower, and what the check says then."""


LATER = """
import jax.numpy as jnp
from coop_jax.methods import Learned, Stage, base

NAME, PAPER = "two stages", "nobody, nowhere"


def default_config():
    return {}


class Method(base.Method):
    def __init__(self, given, config):
        self.weight = Learned(jnp.zeros((given.clip.config.embedding, len(given.classes))))
        self.stage = 0

    def stages(self, config):
        return Stage.of(config), Stage.of(config)

    def prepare(self, clip, stage, data):
        self.stage = stage
        return data

    def logits(self, clip, texts, images):
        return images.features @ self.weight[...]

    def losses(self, clip, texts, batch):
        terms = super().losses(clip, texts, batch)
        return terms | {"rows": 1.0 * len(batch.labels)} if self.stage else terms
"""


def test_the_losses_of_a_later_stage_are_checked(tmp_path):
    (tmp_path / "mine.py").write_text(LATER)
    with pytest.raises(checks.ContractError, match="expected rows without the rows whose weight"):
        checks.check_losses(checks.Subject(str(tmp_path / "mine.py"), folder=tmp_path))


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_contract_is_found(name, tmp_path):
    old, new, message = BREAKS[name]
    code = examples()["block_shift"]
    assert old in code
    code = code.replace(old, new).replace(
        "        self.bank =", "        self.shards = given.shards\n        self.bank ="
    )
    path = tmp_path / "mine.py"
    path.write_text(code)
    check = next(check for check in checks.CHECKS if check.__name__ == f"check_{name}")
    with pytest.raises(checks.ContractError, match=re.escape(message)):
        check(checks.Subject(str(path), folder=tmp_path))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('("pixels",)', '("pixel",)', "expected takes as some of features, .*, got pixel"),
        ("takes = (", 'uses = {"labels"}\n    takes = (', "expected uses as some of .* got labels"),
        ("takes = (", "views = 2\n    takes = (", "expected views as Views of .* got 2"),
        ("Learned(jnp", "nnx.Param(jnp", "got shift.vector as Param; say which it is"),
        (
            "tower.layers, tower.width",
            "tower.layers",
            "a method that can be made, got TypeError",
        ),
    ],
)
def test_a_file_that_breaks_the_contract_is_refused_when_it_is_made(old, new, message, tmp_path):
    code = examples()["block_shift"]
    assert old in code
    path = tmp_path / "mine.py"
    path.write_text(code.replace(old, new))
    with pytest.raises(InputError, match=message) as error:
        checks.Subject(str(path), folder=tmp_path).method()
    assert "\n" not in str(error.value)


def test_the_command_says_a_line_for_each_check(tmp_path, capfd):
    path = tmp_path / "mine.py"
    path.write_text(examples()["task_residual"].replace('PAPER = "', 'PAPER = "" and "'))
    assert checks.main([str(path), "--set", "scale=0.25"]) == 2
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "file         failed: expected PAPER as a text, got ''"
    assert [line.split() for line in lines[1:]] == [
        [check.__name__.removeprefix("check_"), "ok"] for check in checks.CHECKS[1:]
    ]


def test_the_command_refuses_settings_that_are_not_there(capfd):
    for setting, message in (
        ("depth=2", "expected settings among n_ctx, .*, got depth; correct them"),
        ("depth", "expected KEY=VALUE, got 'depth'; correct it"),
    ):
        assert checks.main(["coop", "--set", setting]) == 2
        assert re.search(message, capfd.readouterr().err)
