"""Make the model and the data sets that the package carries.

    python scripts/build_shipped.py              # everything, about a quarter of an hour on two cores
    python scripts/build_shipped.py --only data  # seconds

The data are a function of the seed alone: two runs write the same bytes. The model is a function of
the seed, up to the order in which a machine adds numbers.
"""

import argparse
import gzip
import json
import time
from pathlib import Path
from random import Random
from typing import Any

import shipped_manners as manners
import shipped_sums as sums
import shipped_tokenizer

Row = dict[str, Any]

SHIPPED = Path(__file__).parents[1] / "lit_align" / "shipped"
SEED = 0
VOCAB_SIZE = 1024
MAX_LENGTH = 512
ROWS = {"train": 3000, "validation": 400}
SETS = {
    "manners-sft": manners.supervised,
    "manners-pairs": manners.pairs,
    "manners-unpaired": manners.unpaired,
    "manners-prompts": manners.prompts,
    "sums-sft": sums.supervised,
    "sums-prompts": sums.prompts,
    "stories-prompts": sums.stories,
}


def rows_of(name: str, split: str, seed: int) -> list[Row]:
    """The rows of one data set."""
    material: Any = (manners.split_cases if name.startswith("manners") else sums.split_sums)(seed)[split]
    return SETS[name](material, ROWS[split], Random(f"{seed}/{name}/{split}"))


def packed(rows: list[Row]) -> bytes:
    """Rows as gzipped JSONL, without a time or a file name in the header."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return gzip.compress(text.encode(), compresslevel=9, mtime=0)


def write_data(folder: Path, seed: int) -> None:
    """Write every data set and split to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SETS:
        for split in ROWS:
            content = packed(rows_of(name, split, seed))
            (folder / f"{name}.{split}.jsonl.gz").write_bytes(content)
            print(f"{name} {split}: {ROWS[split]} rows, {len(content):,} bytes", flush=True)


def texts(seed: int) -> list[str]:
    """What the tokenizer is trained on: the words of the training pairs and sums."""
    found = []
    for name in ("manners-pairs", "sums-sft"):
        for row in rows_of(name, "train", seed):
            turns = row.get("messages") or row["prompt"] + row["chosen"] + row["rejected"]
            found += [message["content"] for message in turns]
    return found


def write_model(folder: Path, seed: int, steps: int | None) -> None:
    """Train tokenizer and model, measure them, and write both and the model card to ``folder``."""
    import torch
    from shipped_card import card
    from shipped_measure import measure
    from shipped_training import Recipe, train
    from transformers import AutoModelForCausalLM, AutoTokenizer

    started = time.monotonic()
    recipe = Recipe() if steps is None else Recipe(steps=steps)
    shipped_tokenizer.build(texts(seed), VOCAB_SIZE, folder, MAX_LENGTH)
    train(folder, seed, recipe)
    minutes = (time.monotonic() - started) / 60
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    figures = measure(model, tokenizer, {name: rows_of(name, "validation", seed) for name in SETS})
    command = "python scripts/build_shipped.py" + (f" --seed {seed}" if seed != SEED else "")
    text = card(
        figures,
        command=command + (f" --steps {steps}" if steps is not None else ""),
        recipe=recipe,
        parameters=sum(p.numel() for p in model.parameters()),
        minutes=minutes,
        threads=torch.get_num_threads(),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    print(text)


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--only", choices=["data", "model"], help="build one of the two (default: both)")
    parser.add_argument("--steps", type=int, help="train the model for fewer or more steps than the recipe's")
    parser.add_argument(
        "--out", type=Path, default=SHIPPED, help="where model/ and data/ go (default: %(default)s)"
    )
    args = parser.parse_args()
    if args.only != "model":
        write_data(args.out / "data", args.seed)
    if args.only != "data":
        write_model(args.out / "model", args.seed, args.steps)


if __name__ == "__main__":
    main()
