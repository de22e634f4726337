import gzip
from itertools import product
from pathlib import Path
from random import Random

import pytest

from lit_align import shipped
from lit_align.shipped import tasks

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(autouse=True)
def _scripts_on_the_path(monkeypatch):
    """The script's parts stand beside it, and find one another there."""
    monkeypatch.syspath_prepend(str(SCRIPTS))


def test_the_shipped_data_are_what_the_script_writes():
    import build_shipped

    for name, split in product(build_shipped.SETS, build_shipped.ROWS):
        content = build_shipped.packed(build_shipped.rows_of(name, split, build_shipped.SEED))
        assert content == build_shipped.packed(build_shipped.rows_of(name, split, build_shipped.SEED))
        # Another zlib may compress to other bytes; what it compressed must be the same.
        there = shipped.find(f"lit-align/{name}:{split}").read_bytes()
        assert gzip.decompress(content) == gzip.decompress(there), f"{name}:{split}"
        assert there[4:8] == bytes(4), "a time in the gzip header makes two builds differ"


def test_another_seed_makes_other_data():
    import build_shipped

    assert build_shipped.rows_of("sums-prompts", "train", 0) != build_shipped.rows_of(
        "sums-prompts", "train", 1
    )


def test_the_shipped_tokenizer_is_what_the_script_writes(tmp_path):
    import build_shipped
    import shipped_tokenizer

    shipped_tokenizer.build(
        build_shipped.texts(build_shipped.SEED), build_shipped.VOCAB_SIZE, tmp_path, build_shipped.MAX_LENGTH
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (shipped.find("lit-align/tiny") / name).read_bytes()


def test_cases_are_split_without_overlap_and_with_every_word_in_training():
    import shipped_manners as manners

    split = manners.split_cases(0)
    train, validation = set(split["train"]), set(split["validation"])
    assert not train & validation
    assert len(train | validation) == len(manners.PRODUCTS) * len(manners.PROBLEMS) == 768
    assert {case.product for case in train} == set(manners.PRODUCTS)
    assert {case.problem for case in train} == set(manners.PROBLEMS)


def test_the_messages_of_a_split_hold_its_cases_only():
    import build_shipped
    import shipped_manners as manners

    sides = manners.split_cases(build_shipped.SEED)
    for split, cases in sides.items():
        allowed = {manners.ask(case, question) for case in cases for question in manners.QUESTIONS}
        for name in ("manners-sft", "manners-pairs", "manners-unpaired", "manners-prompts"):
            for row in build_shipped.rows_of(name, split, build_shipped.SEED):
                turns = row.get("messages") or row["prompt"]
                assert {m["content"] for m in turns if m["role"] == "user"} <= allowed


def test_sums_are_split_with_their_mirrors():
    import shipped_sums as sums

    split = {side: set(some) for side, some in sums.split_sums(0).items()}
    assert not split["train"] & split["validation"]
    assert len(split["train"] | split["validation"]) == 100 * 100
    for some in split.values():
        assert {(b, a) for a, b in some} == some


def test_the_questions_of_a_split_hold_its_sums_only():
    import build_shipped
    import shipped_sums as sums

    for split, some in sums.split_sums(build_shipped.SEED).items():
        for name, wordings in (
            ("sums-sft", sums.QUESTIONS),
            ("sums-prompts", sums.QUESTIONS),
            ("stories-prompts", sums.STORIES),
        ):
            allowed = {question.format(a=one.a, b=one.b) for one in some for question in wordings}
            for row in build_shipped.rows_of(name, split, build_shipped.SEED):
                turns = row.get("messages") or row["prompt"]
                assert turns[0]["content"] in allowed


def test_every_possible_reply_is_told_by_the_rule_and_holds_its_advice():
    import shipped_manners as manners

    case = manners.Case("kettle", "will not charge")
    for kind in ("polite", "rude"):
        choices = product(manners.OPENERS[kind], manners.FRAMES[kind], manners.CLOSERS[kind])
        for parts in choices:
            text = " ".join(parts).format(product=case.product, advice=case.advice)
            assert tasks.manner(text) == kind, text
            assert tasks.gives_advice(text, case.advice), text


def test_both_manners_have_equally_many_ways_to_say_it():
    import shipped_manners as manners

    for kind in (manners.OPENERS, manners.FRAMES, manners.CLOSERS):
        assert len(set(kind["polite"])) == len(set(kind["rude"]))


def test_each_part_of_a_reply_gives_its_manner_away():
    import shipped_manners as manners

    words = {"polite": tasks.POLITE, "rude": tasks.RUDE}
    for kind, other in (("polite", "rude"), ("rude", "polite")):
        for part in (*manners.OPENERS[kind], *manners.FRAMES[kind], *manners.CLOSERS[kind]):
            said = set(part.lower().replace(",", " ").replace(".", " ").replace("?", " ").split())
            assert said & words[kind], part
            assert not said & words[other], part


def test_advice_and_questions_are_neutral_where_the_rule_looks():
    import shipped_manners as manners

    for problem, advice in manners.PROBLEMS.items():
        assert not set(f"{problem} {advice}".split()) & (tasks.POLITE | tasks.RUDE)
    assert not set(manners.PRODUCTS) & (tasks.POLITE | tasks.RUDE)


def test_asking_for_more_than_there_is_says_so():
    import shipped_manners as manners
    import shipped_sums as sums

    with pytest.raises(ValueError, match="11 messages asked for, but 1 cases give only 10"):
        manners.questions([manners.Case("kettle", "will not charge")], 11, Random(0))
    with pytest.raises(ValueError, match="8 questions asked for, but 1 sums give only 7"):
        sums.questions([sums.Sum(1, 2)], 8, Random(0))


def test_the_loss_is_on_what_the_assistant_says():
    import shipped_training
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shipped.find("lit-align/tiny"))
    turns = [{"role": "user", "content": "What is 1 + 2?"}, {"role": "assistant", "content": "It is 3."}]
    ids, said = shipped_training.encode(tokenizer, turns)
    assert ids == tokenizer.apply_chat_template(turns, return_dict=False)
    assert tokenizer.decode([i for i, s in zip(ids, said, strict=True) if s]) == "It is 3.<|end|>"


def test_a_short_training_writes_a_model_that_loads_and_repeats(tmp_path):
    import shutil

    import torch
    from shipped_training import Recipe, train
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    weights = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(shipped.find("lit-align/tiny") / file, folder)
        train(folder, 3, Recipe(steps=2, batch_size=4, warmup=1))
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.dtype == torch.float32
        weights.append(model.model.embed_tokens.weight)
    assert torch.equal(*weights)


def test_the_card_holds_command_and_figures():
    from shipped_card import card
    from shipped_training import Recipe

    text = card(
        {"sums right, greedy": 0.5, "perplexity per token": 1.25},
        command="python scripts/build_shipped.py",
        recipe=Recipe(),
        parameters=770_432,
        minutes=12.3,
        threads=2,
    )
    assert "| sums right, greedy | 50.0% |" in text
    assert "| perplexity per token | 1.250 |" in text
    assert "770,432 parameters" in text
    assert "    python scripts/build_shipped.py\n" in text
