from lit_align.rewards.manners import gives_advice, polite


def test_manners_by_the_rules_of_the_shipped_task():
    assert polite(["Thank you, please charge it.", "Thank you.", "Ugh, you fool."]) == [1.0, 0.0, 0.0]
    assert gives_advice(["Please charge  it.", "Buy it."], ["charge it", "charge it"]) == [1.0, 0.0]
