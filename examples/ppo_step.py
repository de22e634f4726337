"""PPO in a loop of your own: ask the policy, judge its answers with any code, let it learn from them.

    python examples/ppo_step.py

No trainer and no reward function: the numbers come from here. This judge looks for good manners; it could be
a game, a compiler, or somebody at a keyboard. About a minute on two cores.
"""

import gzip
import json

from lit_align import PPO
from lit_align.algorithms.shaping import KLPenalty
from lit_align.rollouts.sampling import Sampling
from lit_align.shipped import find, tasks


def messages(name: str) -> list[list[dict[str, str]]]:
    """The conversations of a shipped data set, each up to where the assistant is to answer."""
    with gzip.open(find(name), "rt", encoding="utf-8") as file:
        return [json.loads(line)["prompt"] for line in file]


def judge(texts: list[str]) -> list[float]:
    """1 for a polite answer, 0 for another."""
    return [float(tasks.is_polite(text)) for text in texts]


def main(rounds: int = 30, batch: int = 32) -> tuple[float, float]:
    """Train for some rounds; returns the share of polite answers to unseen prompts, before and after."""
    module = PPO(
        "lit-align/tiny",
        sampling=Sampling(max_new_tokens=48),
        kl=KLPenalty(coefficient=0.05),
        num_epochs=2,
        num_minibatches=2,
        lr=3e-4,
    )
    prompts = messages("lit-align/manners-prompts")
    unseen = messages("lit-align/manners-prompts:validation")[:100]

    def share() -> float:
        return sum(judge(module.respond(unseen).texts)) / len(unseen)

    before = share()
    for i in range(rounds):
        asked = prompts[batch * i : batch * (i + 1)]
        answers = module.respond(asked, seed=i)
        metrics = module.step(asked, answers.ids, judge(answers.texts))
        if i % 5 == 0:
            print(f"round {i:3}  polite {metrics['reward']:.2f}  KL {metrics['objective/kl']:.2f} nats")
    after = share()
    print(f"polite answers to unseen prompts: {before:.0%} before, {after:.0%} after")
    return before, after


if __name__ == "__main__":
    main()
