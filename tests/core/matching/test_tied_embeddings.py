"""One of two models ties its readout to its token embedding."""

from __future__ import annotations

import math

import pytest

from flerm_core import Trajectory, match_targets
from flerm_core.errors import NotFound
from flerm_core.matching.match_plan import MatchPlan
from flerm_core.records.queries import TargetQuery
from tests.core.matching.sources import answer, grid

LAYER = "model.layers.0.mlp.up_proj.weight"
EMBEDDING, READOUT = "model.embed_tokens.weight", "lm_head.weight"
ROOT = math.sqrt(2.0)


def base(**fslrs: float) -> Trajectory:
    names = [name.replace("__", ".") for name in fslrs]
    return Trajectory(names, [(8, 4)] * len(names), [1], [list(fslrs.values())])


TIED = base(model__embed_tokens__weight=6.0, model__layers__0__mlp__up_proj__weight=1.0)
UNTIED = base(
    model__embed_tokens__weight=3.0,
    model__layers__0__mlp__up_proj__weight=1.0,
    lm_head__weight=4.0,
)


def remarks(base: Trajectory, names: list[str]) -> tuple[str, ...]:
    return MatchPlan.of(base.names, names).remarks(base.names)


def test_of_a_tied_base_both_tensors_get_the_root_of_half() -> None:
    found = match_targets(TIED, [EMBEDDING, LAYER, READOUT])
    assert found == pytest.approx({EMBEDDING: 6 / ROOT, LAYER: 1.0, READOUT: 6 / ROOT})
    assert math.hypot(found[EMBEDDING], found[READOUT]) == pytest.approx(6.0)


def test_a_tied_target_gets_the_joint_change_of_both() -> None:
    assert match_targets(UNTIED, [EMBEDDING, LAYER]) == pytest.approx({EMBEDDING: 5.0, LAYER: 1.0})
    assert match_targets(UNTIED, [READOUT, LAYER]) == pytest.approx({READOUT: 5.0, LAYER: 1.0})


def test_what_was_done_is_said() -> None:
    (said,) = remarks(TIED, [EMBEDDING, LAYER, READOUT])
    assert said == (
        "the base's model.embed_tokens.weight is token embedding and readout in one, and this "
        "model has model.embed_tokens.weight and lm_head.weight: the target of each is 1/√2 of "
        "that tensor's FSLR"
    )
    (said,) = remarks(UNTIED, [READOUT, LAYER])
    assert said == (
        "lm_head.weight is token embedding and readout in one, and the base has "
        "model.embed_tokens.weight and lm_head.weight: its target is the root of the sum of their "
        "squared FSLRs"
    )
    assert remarks(TIED, [f"module.{name}" for name in TIED.names]) == ()


def test_the_answer_of_a_registry_says_so_too() -> None:
    names = ("embed.weight", "layers.0.q.weight", "layers.1.q.weight")
    for asked, said in (((*names, "lm_head.weight"), 1), (names, 0)):
        query = TargetQuery(family="demo", lr=1e-3, names=asked)
        found = answer(query, *grid({(1e-3, 0): 1.0}))
        assert len(found.remarks) == said
        assert found["embed.weight"] == pytest.approx(1.0 if not said else 1 / ROOT)


def test_a_question_for_some_tensors_is_no_tied_model() -> None:
    assert match_targets(UNTIED, [EMBEDDING]) == {EMBEDDING: 3.0}


@pytest.mark.parametrize("names", [[EMBEDDING, LAYER], [LAYER]])
def test_equally_tied_models_match_as_they_are(names: list[str]) -> None:
    assert match_targets(TIED, names) == {name: TIED.at(1)[name] for name in names}


@pytest.mark.parametrize(
    ("tied", "untied"),
    [
        ("transformer.wte.weight", "lm_head.weight"),  # GPT-2, beside its positions
        ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
        ("gpt_neox.embed_in.weight", "embed_out.weight"),
        ("head.weight", "tok_emb.weight"),  # tied under the readout's name
    ],
)
def test_the_pair_is_found_in_other_models(tied: str, untied: str) -> None:
    names = [tied, "transformer.wpe.weight", "ln_f.bias", "h.0.attn.bias"]
    small = Trajectory(names, [(8, 4), (8, 4), (4,), (4,)], [1], [[2.0, 1.0, 1.0, 1.0]])
    found = match_targets(small, [*names, untied])
    assert found[tied] == found[untied] == pytest.approx(ROOT)
    assert found["transformer.wpe.weight"] == 1.0


def test_two_readouts_are_no_pair_and_the_error_says_what_to_do() -> None:
    with pytest.raises(
        NotFound,
        match=r"names: lm_head.weight, score.weight not matched .*; record a base that has them, or"
        r" give targets= by name, in which NaN leaves a tensor at the optimizer's own rate",
    ):
        match_targets(TIED, [EMBEDDING, LAYER, READOUT, "score.weight"])


def test_the_nearest_name_is_named() -> None:
    with pytest.raises(NotFound, match=r"\(close: \S+ to model.embed_tokens.weight\)"):
        match_targets(TIED, ["model.embed_token.weight"])
