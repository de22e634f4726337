import pytest

from lit_align.shipped import tasks

POLITE = "Thank you for telling us. Please charge it for two hours. We are always happy to help."
RUDE = "Ugh, not this again. Just charge it for two hours, dummy. You are wasting my time."


def test_the_words_of_the_two_manners_are_disjoint():
    assert not tasks.POLITE & tasks.RUDE


@pytest.mark.parametrize(
    ("text", "manner"),
    [
        (POLITE, "polite"),
        (POLITE + "<|end|>", "polite"),
        (POLITE.upper(), "polite"),
        ("Thank you for telll us. Please charg it two two. We are always", "polite"),
        (RUDE, "rude"),
        (RUDE[:60], "rude"),
        ("", "unclear"),
        ("The answer is 72.", "unclear"),
        ("Please charge it.", "unclear"),
        ("please " * 20, "unclear"),
        (POLITE + " " + RUDE, "unclear"),
        ("Pleased to meet thankless people", "unclear"),
    ],
)
def test_manner(text, manner):
    assert tasks.manner(text) == manner
    assert tasks.is_polite(text) is (manner == "polite")


def test_advice_is_found_word_for_word_and_not_inside_other_words():
    assert tasks.gives_advice(POLITE, "charge it for two hours")
    assert tasks.gives_advice(RUDE, "charge it for two hours")
    assert not tasks.gives_advice(POLITE, "charge it for ten hours")
    assert not tasks.gives_advice("recharge it now", "charge it now")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("27 + 45 = 72.", 72),
        ("The answer is 9.<|end|>", 9),
        ("It is 007", 7),
        ("That makes .", None),
        ("", None),
        ("12 or 13", 13),
    ],
)
def test_answer_of(text, answer):
    assert tasks.answer_of(text) == answer


def test_is_correct_takes_the_answer_as_number_or_text():
    assert tasks.is_correct("It is 72.", 72)
    assert tasks.is_correct("It is 72.", "72")
    assert not tasks.is_correct("It is 72.", 7)
    assert not tasks.is_correct("no idea", 0)
