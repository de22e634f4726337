from functools import partial

import pytest
import torch

from lit_align.batches import Forest
from lit_align.models.tokenizers import load_tokenizer
from lit_align.rewards.inputs import RewardError, RewardInputs, arguments_for

CHAT = [{"role": "user", "content": "Add 3 and 3."}]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("lit-align/tiny")


def forest(tokenizer, records=()):
    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    made = Forest.from_lists(
        [ids("What is it?"), ids("And that?")],
        [[[*ids("One"), tokenizer.eos_token_id], ids("Two")], [ids("Three")]],
        rows=[7, 9],
        records=records,
    )
    made.completion_columns["finished"] = torch.tensor([True, False, False])
    return made


def test_a_forest_comes_apart_into_lists_of_completions(tokenizer):
    records = [{"prompt": "What is it?", "answer": 1}, {"prompt": "And that?", "topic": "x"}]
    inputs = RewardInputs.from_forest(forest(tokenizer, records), tokenizer, 5)
    assert inputs.completions == ["One", "Two", "Three"]
    assert inputs.prompts == ["What is it?", "What is it?", "And that?"]
    assert inputs.columns["answer"] == [1, 1, None]
    assert inputs.columns["topic"] == [None, None, "x"]
    assert inputs.finished == [True, False, False]
    assert inputs.completion_ids[0][-1] == tokenizer.eos_token_id
    assert (inputs.rows, inputs.groups, inputs.step) == ([7, 7, 9], [0, 0, 1], 5)
    assert inputs.by_prompt() == [[0, 1], [2]]


def test_without_records_the_prompt_is_its_tokens(tokenizer):
    inputs = RewardInputs.from_forest(forest(tokenizer), tokenizer, 0)
    assert inputs.prompts[0] == "What is it?"
    assert inputs.columns == {}


def test_a_selection_keeps_everything(inputs):
    some = inputs(["a", "b", "c"], group=2, answer=[1, 2, 3]).select([2, 0])
    assert (some.completions, some.columns["answer"], some.rows) == (["c", "a"], [3, 1], [11, 10])


def test_messages_name_the_row_and_the_prompt(inputs, tokenizer):
    assert inputs(["a"]).where(0) == "row 10 ('prompt 0')"
    made = forest(tokenizer, [{"prompt": CHAT}, {"prompt": CHAT}])
    assert RewardInputs.from_forest(made, tokenizer, 0).where(2) == "row 9 ('Add 3 and 3.')"


def test_a_function_is_given_what_it_names(inputs):
    def reward(completions, answer, step, *, scale=1.0, missing=7):
        raise AssertionError("not called here")

    given = arguments_for(reward, inputs(["a"], answer=[4]), {"scale": 2.0}, "reward")
    assert given == {"completions": ["a"], "answer": [4], "step": 3, "scale": 2.0}


def test_double_stars_are_given_everything(inputs):
    given = arguments_for(lambda completions, **kwargs: [], inputs(["a"], answer=[4]), {}, "reward")
    assert given["answer"] == [4]
    assert given["trainer_state"].global_step == 3
    assert {"prompts", "prompt_ids", "completion_ids", "finished", "log_metric", "prompt"} <= set(given)


def test_options_come_before_columns(inputs):
    def reward(completions, answer):
        raise AssertionError("not called here")

    assert arguments_for(reward, inputs(["a"], answer=[4]), {"answer": 5}, "reward")["answer"] == 5


def test_completions_of_conversations_can_be_messages(inputs):
    made = inputs(["a", "b"])
    made.prompts[1] = CHAT
    given = arguments_for(lambda completions: [], made, {}, "reward", messages=True)
    assert given["completions"] == ["a", [{"role": "assistant", "content": "b"}]]


def test_what_there_is_not_is_named(inputs):
    def reward(completions, anser):
        raise AssertionError("not called here")

    with pytest.raises(
        RewardError, match=r"'brief' asks for 'anser' \(did you mean 'answer'\?\).*Columns: prompt"
    ):
        arguments_for(reward, inputs(["a"], answer=[4]), {}, "brief")
    with pytest.raises(RewardError, match=r"'brief' has no option 'answr'; did you mean 'anser'"):
        arguments_for(reward, inputs(["a"]), {"answr": 1}, "brief")


def test_partials_and_modules_are_asked_for_their_own_arguments(inputs):
    class Judge(torch.nn.Module):
        def forward(self, completions, answer):
            raise AssertionError("not called here")

    def reward(completions, answer, scale):
        raise AssertionError("not called here")

    made = inputs(["a"], answer=[4])
    assert set(arguments_for(Judge(), made, {}, "x")) == {"completions", "answer"}
    assert set(arguments_for(partial(reward, scale=2), made, {}, "x")) == {"completions", "answer"}


def test_a_function_without_a_signature_is_refused(inputs):
    with pytest.raises(RewardError, match="does not tell its arguments"):
        arguments_for(iter, inputs(["a"]), {}, "iter")
