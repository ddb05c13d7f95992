"""Bad inputs of every kind: one line on standard error, an exit code, nothing written, no hang."""

import bad_inputs
import pytest

KINDS = {
    kind: [case for case in bad_inputs.cases() if case.kind == kind] for kind in bad_inputs.KINDS
}
HERE = [case for cases in KINDS.values() for case in cases if not case.environment]
APART = [case for cases in KINDS.values() for case in cases if case.environment]


def test_there_are_enough_of_every_kind():
    assert sum(len(cases) for cases in KINDS.values()) >= 250
    assert all(len(cases) >= 10 for cases in KINDS.values()), {k: len(c) for k, c in KINDS.items()}
    assert len({str(case) for case in HERE + APART}) == len(HERE + APART)


def refuse(cases, tmp_path):
    """See that every one of the inputs is refused as it must be."""
    problems, tried = {}, [case for case in cases if case.can_run]
    for number, case in enumerate(tried):
        folder = tmp_path / str(number)
        folder.mkdir()
        if problem := bad_inputs.problem(case, bad_inputs.run(case, folder)):
            problems[str(case)] = problem
    assert not problems, "\n".join(f"{name!a}: {problem}" for name, problem in problems.items())
    return len(tried)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "environment"])
def test_bad_inputs_are_refused_in_one_line(kind, tmp_path):
    cases = [case for case in KINDS[kind] if not case.environment]
    if refuse(cases, tmp_path) < len(cases):
        pytest.skip(f"some need {', '.join({case.needs for case in cases if not case.can_run})}")


@pytest.mark.heavy
@pytest.mark.parametrize("case", APART, ids=str)
def test_processes_in_bad_surroundings_end_in_one_line(case, tmp_path):
    refuse([case], tmp_path)
