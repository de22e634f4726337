"""Customer-service turns: what customers say, and polite and rude replies that give the same advice.

A reply is an opener, the advice in a frame, and a closer. Polite and rude replies have equally many
of each, used equally often, so that a model of both finds neither more probable than the other.
"""

from itertools import product
from random import Random
from typing import Any, Literal, NamedTuple

Row = dict[str, Any]
Manner = Literal["polite", "rude"]

PRODUCTS = (
    *("kettle", "lamp", "router", "camera", "printer", "toaster", "heater", "blender", "speaker", "phone"),
    *("tablet", "keyboard", "monitor", "vacuum", "fan", "clock", "radio", "scale", "drill", "mixer", "oven"),
    *("freezer", "dryer", "washer", "scooter", "watch", "headset", "laptop", "projector", "doorbell"),
    *("charger", "telescope"),
)

# What is wrong, and the advice for it; the advice is the content that both manners share.
PROBLEMS = {
    "will not turn on": "hold the power button for ten seconds",
    "keeps turning off": "plug it into another socket",
    "makes a loud noise": "tighten the screws at the back",
    "smells of smoke": "unplug it and send it back",
    "arrived broken": "send us a photo of the damage",
    "arrived late": "ask for the shipping cost back",
    "came without a cable": "order the free cable online",
    "has the wrong color": "swap it within thirty days",
    "gets too hot": "clear the dust from the vents",
    "shows an error": "restart it and wait one minute",
    "lost its settings": "load the backup from the menu",
    "will not charge": "clean the contacts with a dry cloth",
    "has a scratch": "claim the repair kit on our page",
    "is missing a part": "read us the number on the box",
    "was charged twice": "forward the invoice to our billing team",
    "is not the one I ordered": "print the return label",
    "stopped after a week": "use the two year warranty",
    "will not connect": "reset the network and try again",
    "is far too slow": "install the latest update",
    "has no manual": "download the guide from our site",
    "needs a battery": "buy the small round battery",
    "has a loose button": "visit the nearest repair shop",
    "blinks red": "press the reset key twice",
    "is still not here": "track the parcel with your code",
}

QUESTIONS = (
    "My {product} {problem}.",
    "Hello, my {product} {problem}. What should I do?",
    "The {product} I bought {problem}!",
    "Hi, the {product} {problem}. Can you help?",
    "I have a problem: my {product} {problem}.",
    "My new {product} {problem}. I am angry!",
    "Good morning. The {product} from my order {problem}.",
    "What can I do? My {product} {problem}.",
    "It is bad: the {product} {problem}. Now what?",
    "So, the {product} for my mother {problem}.",
)

# Few first words: the manner is decided at the first token, and training can change it there. Where every
# opener begins in its own way, DPO finds it easier to garble the end of rude replies than their beginning.
OPENERS: dict[Manner, tuple[str, ...]] = {
    "polite": (
        "Thank you for telling us about your {product}.",
        "Thank you for writing to us.",
        "Thank you so much for your patience.",
        "Thank you for your message about the {product}.",
        "We are so sorry about your {product}.",
        "We are very sorry to hear that.",
        "We appreciate that you came to us.",
        "We apologize for the trouble with your {product}.",
    ),
    "rude": (
        "Ugh, another one with a {product}.",
        "Ugh, not this again.",
        "Ugh, nobody here cares about you.",
        "Ugh, what a boring question about a {product}.",
        "You are hopeless with your {product}.",
        "You sound pathetic to me.",
        "You are the clumsy kind of person.",
        "You are clueless about your {product}.",
    ),
}
FRAMES: dict[Manner, tuple[str, ...]] = {
    "polite": (
        "Please {advice}.",
        "Could you kindly {advice}?",
        "It would be lovely if you could {advice}.",
        "The best thing is to {advice}, please.",
    ),
    "rude": (
        "Obviously you {advice}.",
        "Just {advice}, dummy.",
        "Even a fool knows to {advice}.",
        "Go and {advice}, genius.",
    ),
}
CLOSERS: dict[Manner, tuple[str, ...]] = {
    "polite": (
        "We are always happy to help.",
        "You are most welcome here.",
        "It is a pleasure to serve you.",
        "Best wishes from all of us.",
        "We will gladly do more for you.",
        "With kind regards from our team.",
    ),
    "rude": (
        "Do not bother us again.",
        "You are wasting my time.",
        "Now go away, you silly person.",
        "How annoying you people are.",
        "Whatever, I am done with you.",
        "Only an idiot would need our help.",
    ),
}


class Case(NamedTuple):
    """A product with a problem: the combination that is kept out of training or in it."""

    product: str
    problem: str

    @property
    def advice(self) -> str:
        """What helps with it."""
        return PROBLEMS[self.problem]


def split_cases(seed: int, held_out: float = 0.2) -> dict[str, list[Case]]:
    """All combinations of product and problem, cut into ``train`` and ``validation``."""
    cases = [Case(*both) for both in product(PRODUCTS, PROBLEMS)]
    Random(f"{seed}/manners/split").shuffle(cases)
    cut = round(len(cases) * held_out)
    return {"train": sorted(cases[cut:]), "validation": sorted(cases[:cut])}


def questions(cases: list[Case], count: int, random: Random) -> list[tuple[Case, str]]:
    """``count`` different messages of customers, each with its case."""
    every = [(case, question) for case in cases for question in QUESTIONS]
    if count > len(every):
        raise ValueError(f"{count} messages asked for, but {len(cases)} cases give only {len(every)}")
    return [(case, ask(case, question)) for case, question in random.sample(every, count)]


def ask(case: Case, question: str) -> str:
    """The customer's message."""
    return question.format(product=case.product, problem=case.problem)


def reply(case: Case, manner: Manner, random: Random) -> str:
    """One reply of the given manner, with the advice of the case in it."""
    parts = (random.choice(kind[manner]) for kind in (OPENERS, FRAMES, CLOSERS))
    return " ".join(parts).format(product=case.product, advice=case.advice)


def turn(role: str, content: str) -> Row:
    """One message."""
    return {"role": role, "content": content}


def supervised(cases: list[Case], count: int, random: Random) -> list[Row]:
    """``messages`` with a polite reply; every tenth row goes on for a second question and reply."""
    rows = []
    for number, (case, text) in enumerate(questions(cases, count, random)):
        messages = [turn("user", text), turn("assistant", reply(case, "polite", random))]
        if number % 10 == 9:
            second = random.choice(cases)
            messages.append(turn("user", ask(second, random.choice(QUESTIONS))))
            messages.append(turn("assistant", reply(second, "polite", random)))
        rows.append({"messages": messages})
    return rows


def pairs(cases: list[Case], count: int, random: Random) -> list[Row]:
    """``prompt``, a polite reply as ``chosen`` and a rude one as ``rejected``."""
    return [
        {
            "prompt": [turn("user", text)],
            "chosen": [turn("assistant", reply(case, "polite", random))],
            "rejected": [turn("assistant", reply(case, "rude", random))],
        }
        for case, text in questions(cases, count, random)
    ]


def unpaired(cases: list[Case], count: int, random: Random) -> list[Row]:
    """``prompt``, one ``completion`` and its ``label``: true where it is polite, for half of the rows."""
    rows = []
    for number, (case, text) in enumerate(questions(cases, count, random)):
        label = number % 2 == 0
        said = reply(case, "polite" if label else "rude", random)
        rows.append({"prompt": [turn("user", text)], "completion": [turn("assistant", said)], "label": label})
    return rows


def prompts(cases: list[Case], count: int, random: Random) -> list[Row]:
    """``prompt`` alone, with the ``advice`` that a good reply holds."""
    return [
        {"prompt": [turn("user", text)], "advice": case.advice}
        for case, text in questions(cases, count, random)
    ]
