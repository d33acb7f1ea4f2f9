"""The demo's world: its votes and its judge, against numbers worked by hand."""

import json
import math

import numpy as np
import pytest

from stages.demo.topics import TOPICS
from stages.demo.world import (
    demo_judge,
    describe_truth,
    draw_answer,
    draw_question,
    make_world,
    up_probability,
)

ASKED = "What are the opposites of hot, big and fast?"


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("cold, small, slow", 1.0),
        (" Cold,small ,  slow.", 1.0),
        ("cold, small, slow<|end|>", 1.0),
        ("cold, small, cold", 2 / 3),
        ("small, cold, slow", 1 / 3),
        ("cold, small", 2 / 3),
        ("cold small slow", 0.0),
        ("cold, small, slow, slow", 3 / 4),
        ("cold, cold, cold, small, slow", 1 / 5),
        ("", 0.0),
        (",,,,", 0.0),
        ("<|end|>", 0.0),
    ],
)
def test_the_reward_is_the_share_of_parts_that_are_right_at_their_place(answer, reward):
    assert demo_judge(ASKED, answer) == pytest.approx(reward)


def test_the_judge_finds_the_question_within_a_chat_template():
    assert demo_judge(f"<|user|>{ASKED}<|end|><|assistant|>", "cold, small, slow") == 1.0


def test_of_several_questions_the_last_one_counts():
    prompt = f"<|user|>{ASKED}<|end|><|assistant|>cold, small, slow<|end|><|user|>Add one to one, two and six."

    assert demo_judge(prompt, "two, three, seven") == 1.0


def test_the_topic_decides_where_words_stand_in_several():
    assert demo_judge("What sounds do a dog, a cat and a cow make?", "barks, meows, moos") == 1.0
    assert demo_judge("How do you call the young of a dog, a cat and a cow?", "barks, meows, moos") == 0.0


@pytest.mark.parametrize("prompt", ["", "What is the time?", "What are the opposites of up, big and fast?"])
def test_the_judge_refuses_a_prompt_that_is_no_question_of_the_demo(prompt):
    with pytest.raises(ValueError, match="expected a question of the demo, found"):
        demo_judge(prompt, "cold")


def test_every_question_judges_its_own_right_answer_best():
    rng = np.random.default_rng(0)
    questions = [draw_question(rng) for _ in range(200)]

    assert {demo_judge(question.text, ", ".join(question.right_parts)) for question in questions} == {1.0}
    assert {question.topic.name for question in questions} == {topic.name for topic in TOPICS}


def test_votes_follow_reward_and_bias():
    # 2.5 * (3 - 1.7) = 3.25; 2.5 * (0 - 1.7) + 4 = -0.25
    assert up_probability(3, rater_bias=0.0) == pytest.approx(1 / (1 + math.exp(-3.25)))
    assert up_probability(0, rater_bias=4.0) == pytest.approx(1 / (1 + math.exp(0.25)))


def test_in_one_world_raters_differ_and_in_the_other_the_model_does():
    biased, skilled = (make_world(name, seed=1).values() for name in ("rater_bias", "competence"))

    assert {traits.skill for traits in biased} == {0.5}
    assert sorted(traits.rater_bias for traits in biased)[:: len(TOPICS) - 1] == [-4.0, 4.0]
    assert {traits.rater_bias for traits in skilled} == {0.0}
    assert sorted(traits.skill for traits in skilled)[:: len(TOPICS) - 1] == [0.25, 0.85]


def test_moved_voters_are_the_pleased_where_most_are_and_the_annoyed_where_most_are():
    world = make_world("competence", voters="moved", seed=0).values()

    best, worst = max(world, key=lambda traits: traits.skill), min(world, key=lambda traits: traits.skill)
    assert (best.pleased_vote, best.annoyed_vote) == (0.95, 0.05)
    assert (worst.pleased_vote, worst.annoyed_vote) == (0.05, 0.95)
    assert {traits.pleased_vote for traits in make_world("competence", seed=0).values()} == {1.0}


def test_the_seed_decides_which_topic_is_judged_how():
    assert make_world("rater_bias", seed=0) == make_world("rater_bias", seed=0)
    assert make_world("rater_bias", seed=0) != make_world("rater_bias", seed=1)


@pytest.mark.parametrize("skill", [0.0, 0.5, 1.0])
def test_answers_are_as_good_as_the_skill(skill):
    rng = np.random.default_rng(0)
    questions = [draw_question(rng) for _ in range(500)]
    answers = [draw_answer(question, skill=skill, rng=rng) for question in questions]

    right = [
        part == expected
        for question, answer in zip(questions, answers, strict=True)
        for part, expected in zip(answer, question.right_parts, strict=True)
    ]
    assert np.mean(right) == pytest.approx(skill, abs=0.05)
    for question, answer in zip(questions, answers, strict=True):
        assert set(answer) <= set(question.topic.answers.values())


def test_the_truth_is_plain_json_with_all_rules():
    truth = json.loads(json.dumps(describe_truth("competence", make_world("competence", seed=0))))

    assert [topic["answers"] for topic in truth["topics"]] == [topic.answers for topic in TOPICS]


def test_the_judge_goes_by_the_rules_that_the_truth_tells():
    truth = describe_truth("competence", make_world("competence", seed=3))

    for topic in truth["topics"]:
        words = list(topic["answers"])[:3]
        question = topic["templates"][0].format(*words)
        assert demo_judge(question, ", ".join(topic["answers"][word] for word in words)) == 1.0
