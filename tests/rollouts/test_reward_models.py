import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from lit_align.batches import Forest
from lit_align.models.build import build_causal_lm, build_reward_model
from lit_align.models.tokenizers import load_tokenizer
from lit_align.rewards.inputs import RewardError
from lit_align.rollouts.reward_set import RewardConfig, RewardSet
from lit_align.scoring.policy import Policy, RewardScorer

ARCHITECTURE = {
    "model_type": "llama",
    "vocab_size": 1024,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}
PROMPTS = ["The lamp is", "My kettle does not"]
REPLIES = [["on.", "not on, sorry"], ["boil.", "work"]]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("lit-align/tiny")


@pytest.fixture(scope="module")
def other():
    """The same kind of tokenizer with other ids."""
    tokenizer = load_tokenizer("lit-align/tiny")
    tokenizer.add_tokens(["zzz"])
    return tokenizer


@pytest.fixture(scope="module")
def forest(tokenizer):
    return _forest(tokenizer, [{"prompt": prompt} for prompt in PROMPTS])


def _forest(tokenizer, records):
    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    completions = [[[*ids(f" {reply}"), tokenizer.eos_token_id] for reply in group] for group in REPLIES]
    forest = Forest.from_lists([ids(p) for p in PROMPTS], completions, records=records)
    forest.completion_columns["finished"] = torch.ones(4, dtype=torch.bool)
    return forest


def saved(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def reward_model(tokenizer, tmp_path_factory):
    return saved(build_reward_model(ARCHITECTURE), tokenizer, tmp_path_factory.mktemp("reward") / "judge")


def attached(spec, tokenizer, policy=None):
    rewards = RewardSet.build(spec)
    rewards.attach(policy or torch.nn.Identity(), tokenizer)
    return rewards


def alone(model, ids):
    """transformers' own score of one sequence."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


def test_a_reward_model_reads_the_tokens_of_the_policy(reward_model, tokenizer, forest):
    theirs = AutoModelForSequenceClassification.from_pretrained(reward_model).eval()
    expected = torch.stack([alone(theirs, p + c)[0] for p, c, _ in forest.sequences()])
    result = attached(reward_model, tokenizer)(forest, tokenizer)
    torch.testing.assert_close(result.table[:, 0], expected, rtol=1e-5, atol=1e-6)
    assert result.names == ("judge",)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_the_batch_size_changes_nothing(reward_model, tokenizer, forest, batch_size):
    whole = attached(reward_model, tokenizer)(forest, tokenizer)
    parts = attached(RewardConfig(model=reward_model, batch_size=batch_size), tokenizer)(forest, tokenizer)
    torch.testing.assert_close(parts.table, whole.table, rtol=1e-5, atol=1e-6)


def test_with_another_vocabulary_the_text_is_read(other, tokenizer, forest, tmp_path):
    model = build_reward_model({**ARCHITECTURE, "vocab_size": 1100}).eval()
    path = saved(model, other, tmp_path / "judge")
    texts = [p + " " + r for p, group in zip(PROMPTS, REPLIES, strict=True) for r in group]
    # A text that has ended ends with EOS, as in training.
    expected = [alone(model, [*other(text)["input_ids"], other.eos_token_id])[0] for text in texts]
    result = attached(path, tokenizer)(forest, tokenizer)
    torch.testing.assert_close(result.table[:, 0], torch.stack(expected), rtol=1e-5, atol=1e-6)


def test_a_prompt_that_was_cut_is_judged_as_the_policy_saw_it(bert, tokenizer, forest):
    longer = _forest(tokenizer, [{"prompt": "Something else before. " + prompt} for prompt in PROMPTS])
    options = {"label": "positive"}
    same = classified(bert, tokenizer, forest, **options), classified(bert, tokenizer, longer, **options)
    torch.testing.assert_close(*same)


def test_conversations_go_through_the_other_templates_own_words(other, tokenizer, tmp_path):
    model = build_reward_model({**ARCHITECTURE, "vocab_size": 1100}).eval()
    path = saved(model, other, tmp_path / "judge")
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    forest = _forest(tokenizer, [{"prompt": chat} for chat in chats])
    text = other.apply_chat_template([*chats[0], {"role": "assistant", "content": " on."}], tokenize=False)
    expected = alone(model, other(text, add_special_tokens=False)["input_ids"])[0]
    result = attached(path, tokenizer)(forest, tokenizer)
    torch.testing.assert_close(result.table[0, 0], expected, rtol=1e-5, atol=1e-6)


def test_a_language_model_is_no_reward_model(tokenizer, tmp_path):
    path = saved(build_causal_lm(ARCHITECTURE), tokenizer, tmp_path / "lm")
    with pytest.raises(ValueError, match=r"no reward head \(score.weight\): it is no reward model"):
        attached(path, tokenizer)


def test_a_reward_model_takes_no_options(reward_model, tokenizer):
    with pytest.raises(RewardError, match="takes no options"):
        attached(RewardConfig(model=reward_model, options={"label": 1}), tokenizer)


def test_a_model_in_memory_is_frozen_and_moves_with_the_set(tokenizer, forest):
    model = build_reward_model(ARCHITECTURE)
    rewards = attached(RewardConfig(model=model, name="mine"), tokenizer)
    outer = torch.nn.ModuleDict({"rewards": rewards, "other": torch.nn.Linear(1, 1)}).train()
    assert not model.training
    assert {n for n, p in outer.named_parameters() if p.requires_grad} == {"other.weight", "other.bias"}
    expected = RewardScorer(model)(forest)
    torch.testing.assert_close(rewards(forest, tokenizer).table[:, 0], expected)
    assert next(outer.to(torch.float64)["rewards"].parameters()).dtype is torch.float64


@pytest.fixture(scope="module")
def bert(tokenizer, tmp_path_factory):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1024,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        num_labels=3,
        id2label={0: "NEGATIVE", 1: "neutral", 2: "POSITIVE"},
        label2id={"NEGATIVE": 0, "neutral": 1, "POSITIVE": 2},
        pad_token_id=tokenizer.pad_token_id,
    )
    return saved(
        BertForSequenceClassification(config).eval(), tokenizer, tmp_path_factory.mktemp("c") / "bert"
    )


def classified(bert, tokenizer, forest, **options):
    config = RewardConfig(classifier=bert, options=options, batch_size=3)
    return attached(config, tokenizer)(forest, tokenizer).table[:, 0]


def test_a_classifier_judges_texts(bert, tokenizer, forest):
    model = AutoModelForSequenceClassification.from_pretrained(bert).eval()
    whole = [p + " " + r for p, group in zip(PROMPTS, REPLIES, strict=True) for r in group]
    logits = torch.stack([alone(model, tokenizer(text)["input_ids"]) for text in whole])
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(classified(bert, tokenizer, forest, label="positive"), logits[:, 2], **close)
    torch.testing.assert_close(
        classified(bert, tokenizer, forest, label=0, output="probability"), logits.softmax(-1)[:, 0], **close
    )
    torch.testing.assert_close(
        classified(bert, tokenizer, forest, label="neutral", output="log_odds"),
        torch.log(logits.softmax(-1)[:, 1] / (1 - logits.softmax(-1)[:, 1])),
        **close,
    )
    replies = torch.stack([alone(model, tokenizer(f" {r}")["input_ids"]) for g in REPLIES for r in g])
    torch.testing.assert_close(
        classified(bert, tokenizer, forest, label=2, part="completion"), replies[:, 2], **close
    )


def test_long_texts_keep_their_end(bert, tokenizer, forest):
    rewards = attached(RewardConfig(classifier=bert, options={"label": 2}), tokenizer)
    judge = rewards.models["0"]
    long = "never " * 200 + "the end of it"
    ids = tokenizer(long)["input_ids"][-64:]
    torch.testing.assert_close(judge.score_texts([long])[0], alone(judge.model, ids)[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, "no label is given; .* NEGATIVE, neutral, POSITIVE"),
        ({"label": "good"}, "'good' is none of its labels"),
        ({"label": 7}, "7 is none of its labels"),
        ({"labl": 1}, "no option 'labl'; did you mean 'label'"),
        ({"label": 1, "output": "odds"}, "output is 'odds'; choose logit"),
    ],
)
def test_options_of_a_classifier(bert, tokenizer, options, error):
    with pytest.raises(RewardError, match=error):
        attached(RewardConfig(classifier=bert, options=options), tokenizer)


def test_a_classifier_with_one_output_is_a_reward_model(reward_model, tokenizer):
    with pytest.raises(RewardError, match=r"one output; give it as model"):
        attached(RewardConfig(classifier=reward_model, options={"label": 0}), tokenizer)


def test_an_adapter_shares_the_base_of_the_policy(tokenizer, forest, tmp_path):
    lora = {"r": 4, "extra": {"init_lora_weights": False}}
    judge = build_reward_model({"architecture": ARCHITECTURE, "lora": lora})
    judge.save_pretrained(tmp_path / "judge")
    policy = Policy(build_causal_lm({"architecture": ARCHITECTURE, "lora": {"r": 2}}))
    rewards = attached({"adapter": str(tmp_path / "judge")}, tokenizer, policy)
    expected = RewardScorer(judge.eval())(forest)
    torch.testing.assert_close(rewards(forest, tokenizer).table[:, 0], expected, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in rewards.parameters()) == ARCHITECTURE["hidden_size"]
