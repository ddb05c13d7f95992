"""Agreement of every method with numbers recorded from its official code."""

import pytest
import recorded.caches
import recorded.descriptions
import recorded.heads
import recorded.inside
import recorded.learned_texts
import recorded.linear_heads
import recorded.mixture
import recorded.support
import recorded.test_time
import recorded.texts
import recorded.transductive
import recorded.transports
import recorded.unlabeled
import recorded.weights  # noqa: F401
from recorded import Case, known
from reference import cases


@cases("methods/*.npz")
def test_recorded_case(case, openai_tokenizer, one_device):
    recorded = Case(case, openai_tokenizer, one_device)
    check = known(recorded.meta["method"])
    if check is None:
        pytest.skip(f"the method {recorded.meta['method']} is not there yet")
    check(recorded)
