"""What the words of a command line stand for, and what a plan holds."""

import dataclasses

import pytest

from pipelines.graph import RunPolicy, StageNode
from pipelines.planning import resolve_targets
from pipelines.sweep_plan import _overlap, _touched, spread_out


def stage(name, *, params=(), upstream=()):
    return StageNode(name=name, command=(), deps=(), outs=(), upstream=upstream, params=params)


NODES = [
    *map(stage, ["tokenization", "training@bco", "evaluation@bco", "training@kto", "evaluation@kto"]),
    dataclasses.replace(stage("picture"), outs=("reports/kto.html",)),
]


@pytest.mark.parametrize(
    ("targets", "stages"),
    [
        (["evaluation@bco"], ["evaluation@bco"]),
        (["bco"], ["training@bco", "evaluation@bco"]),
        (["training"], ["training@bco", "training@kto"]),
        (["tokenization", "kto", "training@kto"], ["tokenization", "training@kto", "evaluation@kto", "picture"]),
        ([], []),
    ],
    ids=str,
)
def test_a_target_is_a_stage_a_group_or_a_method(targets, stages):
    assert resolve_targets(targets, NODES) == stages


def test_a_misspelt_target_names_the_nearest():
    with pytest.raises(ValueError, match="evaluatoin is no stage or method of dvc.yaml; did you mean evaluation?"):
        resolve_targets(["evaluatoin"], NODES)


def test_a_target_like_none_lists_them_all():
    with pytest.raises(ValueError, match="there are bco, evaluation, .*training@kto"):
        resolve_targets(["xyz"], NODES)


def test_meta_of_a_stage_is_its_policy():
    policy = RunPolicy.from_meta("a", {"resources": "accelerator", "retries": 2, "timeout_s": 60})

    assert policy == RunPolicy("accelerator", 2, 60)
    assert RunPolicy.from_meta("a", None) == RunPolicy("cpu", 0, 14400)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"retrys": 1}, r"dvc.yaml: a: meta.retrys is unknown; did you mean retries\?"),
        ({"gpu": 1}, "meta.gpu is unknown; known here: resources, retries, timeout_s"),
        ({"resources": "gpu"}, "expected meta.resources cpu or accelerator, found gpu"),
        ({"retries": -1}, "expected meta.retries of 0 or more, found -1"),
        ({"timeout_s": 0}, "expected meta.timeout_s in seconds, found 0"),
    ],
    ids=str,
)
def test_a_wrong_meta_is_refused(meta, message):
    with pytest.raises(ValueError, match=message):
        RunPolicy.from_meta("a", meta)


def test_values_of_a_sweep_are_combined():
    assert spread_out(["a.b=1,2", "c=x,y"]) == [["a.b=1", "c=x"], ["a.b=1", "c=y"], ["a.b=2", "c=x"], ["a.b=2", "c=y"]]


def test_a_list_is_one_value_of_a_sweep():
    assert spread_out(["a=[1,2]"]) == [["a=[1,2]"]]


@pytest.mark.parametrize("overrides", [[], ["a"], ["=1"]], ids=str)
def test_a_sweep_over_nothing_is_refused(overrides):
    with pytest.raises(ValueError, match="--set"):
        spread_out(overrides)


def test_what_reads_from_a_touched_stage_is_touched():
    nodes = [stage("a", params=("x.y",)), stage("b", params=("z",), upstream=("a",)), stage("c", params=("x.yy",))]

    assert _touched(nodes, ["x.y.z"]) == {"a", "b"}


@pytest.mark.parametrize(
    ("one", "other", "overlap"), [("a.b", "a", True), ("a", "a.b", True), ("a.b", "a.b", True), ("a.b", "a.bc", False)]
)
def test_dotted_names_overlap_by_parts(one, other, overlap):
    assert _overlap(one, other) is overlap
