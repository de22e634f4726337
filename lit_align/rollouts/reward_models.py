"""Models that judge completions: reward models, reward adapters, and classifiers of texts."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from lit_align.batches import Forest
from lit_align.models.config import ModelConfig, nearest
from lit_align.rewards.inputs import RewardError, RewardInputs
from lit_align.rollouts.reward_config import RewardConfig
from lit_align.runtime.chat_template import apply_template
from lit_align.scoring.policy import RewardScorer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Output = Literal["logit", "probability", "log_odds"]
Part = Literal["text", "completion"]
_CLASSIFIER_OPTIONS = ("label", "output", "part")


def build_model(config: RewardConfig, policy: Any, tokenizer: Any) -> nn.Module:
    """The judge that a description of a model describes, with weights.

    Args:
        config: with ``model``, ``classifier`` or ``adapter``.
        policy: the scorer in training, whose base an adapter shares.
        tokenizer: the policy's.

    Raises:
        RewardError: the model has no trained head, options are unknown, or the label is none of its.
    """
    if config.kind == "classifier":
        return _classifier(config)
    if config.options:
        raise RewardError(f"reward {config.shown_name!r}: a reward model takes no options")
    if config.kind == "adapter":
        return _adapter(config, policy)
    return _reward_model(config, tokenizer)


class RewardModelJudge(nn.Module):
    """A reward model that judges completions with their prompts.

    A model with the policy's vocabulary reads the very tokens that the policy wrote. Another one reads
    the text: a conversation through its own chat template where it has one, else what the tokens of
    prompt and completion say.

    Args:
        scorer: from a forest to rewards ``[C]``.
        tokenizer: its own, where the vocabulary is not the policy's.
        batch_size: completions judged at once.
    """

    def __init__(self, scorer: nn.Module, tokenizer: Any | None, batch_size: int = 16) -> None:
        super().__init__()
        self.scorer = scorer
        self.tokenizer = tokenizer
        self.batch_size = batch_size

    def forward(self, forest: Forest, tokenizer: Any) -> Tensor:
        """Rewards ``[C]``.

        Args:
            forest: completions.
            tokenizer: the policy's.
        """
        if self.tokenizer is not None:
            forest = self._translated(forest, tokenizer).to(forest.device)
        per_prompt = max(1, forest.num_completions // max(1, forest.num_prompts))
        size = max(1, self.batch_size // per_prompt)
        parts = [
            self.scorer(forest.select(range(start, min(start + size, forest.num_prompts))))
            for start in range(0, forest.num_prompts, size)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, device=forest.device)

    def _translated(self, forest: Forest, tokenizer: Any) -> Forest:
        """The same texts in the model's own tokens, each a completion without a prompt."""
        assert self.tokenizer is not None
        inputs = RewardInputs.from_forest(forest, tokenizer, 0)
        finished = inputs.finished or [False] * len(inputs)
        ids = [
            self._encode(prompt, reply, text, ended)
            for prompt, reply, text, ended in zip(
                inputs.prompts, inputs.completions, _texts(inputs, tokenizer), finished, strict=True
            )
        ]
        return Forest.from_lists([[] for _ in ids], [[one] for one in ids])

    def _encode(self, prompt: Any, reply: str, text: str, finished: bool) -> list[int]:
        own: Any = self.tokenizer
        longest = _longest(self.scorer, own)
        cut: dict[str, Any] = {"truncation": longest is not None, "max_length": longest}
        if not isinstance(prompt, str) and own.chat_template:
            messages = [*prompt, {"role": "assistant", "content": reply}]
            rendered = apply_template(own, messages, "a completion to be judged")
            # The template has written the special tokens already.
            return list(own(rendered, add_special_tokens=False, **cut)["input_ids"])
        ids = list(own(text, **cut)["input_ids"])
        if finished and own.eos_token_id is not None and ids[-1:] != [own.eos_token_id]:
            # As in training, where a text that has ended ends with it.
            ids = [*ids, own.eos_token_id][-(longest or len(ids) + 1) :]
        return ids


class ClassifierJudge(nn.Module):
    """What a text classifier says of one of its labels.

    Args:
        model: ``AutoModelForSequenceClassification``.
        tokenizer: its own.
        label: index of the label.
        output: its ``logit``; its ``probability``; or ``log_odds``, the logit less the log-sum-exp of the
            other labels' logits.
        part: judge the ``completion`` alone, or the whole ``text``: prompt and completion.
        batch_size: texts judged at once.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: "PreTrainedTokenizerBase",
        label: int,
        output: Output = "logit",
        part: Part = "text",
        batch_size: int = 16,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.label = label
        self.output = output
        self.part = part
        self.batch_size = batch_size

    def forward(self, forest: Forest, tokenizer: Any) -> Tensor:
        """Rewards ``[C]``.

        Args:
            forest: completions.
            tokenizer: the policy's.
        """
        inputs = RewardInputs.from_forest(forest, tokenizer, 0)
        return self.score_texts(_texts(inputs, tokenizer) if self.part == "text" else inputs.completions)

    def score_texts(self, texts: list[str]) -> Tensor:
        """Rewards ``[C]`` of texts."""
        device = next(self.model.parameters()).device
        longest = _longest(self.model, self.tokenizer)
        parts = []
        for start in range(0, len(texts), self.batch_size):
            rows = self.tokenizer(
                texts[start : start + self.batch_size],
                padding=True,
                truncation=True,
                max_length=longest,
                return_tensors="pt",
            )
            logits = self.model(**rows.to(device)).logits.float()
            parts.append(self._of_label(logits))
        return torch.cat(parts) if parts else torch.zeros(0, device=device)

    def _of_label(self, logits: Tensor) -> Tensor:
        own = logits[:, self.label]
        if self.output == "logit":
            return own
        if self.output == "probability":
            return logits.softmax(-1)[:, self.label]
        others = torch.arange(logits.shape[1], device=logits.device) != self.label
        return own - logits[:, others].logsumexp(-1)


def _reward_model(config: RewardConfig, tokenizer: Any) -> RewardModelJudge:
    from lit_align.models.build import build_reward_model

    given = config.model
    if isinstance(given, nn.Module):
        # In memory, so it was made for this policy's tokens.
        scorer = given if isinstance(given, RewardScorer) else RewardScorer(given)
        return RewardModelJudge(scorer, None, config.batch_size)
    described = ModelConfig.coerce(given)
    scorer = RewardScorer(build_reward_model(described, fresh_head=False))
    own = _reader(described) if described.path else None
    if own is not None and own.get_vocab() == tokenizer.get_vocab():
        own = None
    return RewardModelJudge(scorer, own, config.batch_size)


def _adapter(config: RewardConfig, policy: Any) -> RewardModelJudge:
    from lit_align.scoring.reward_adapter import RewardAdapter

    # A name of its own on the policy's model, without the dots that module names cannot have.
    name = "reward_" + re.sub(r"\W", "_", config.shown_name)
    adapter = RewardAdapter(str(config.adapter), name=name)
    adapter.attach(policy)
    # Trained on the policy's own base, so on its tokens.
    return RewardModelJudge(adapter, None, config.batch_size)


def _reader(described: ModelConfig) -> Any:
    """A model's own tokenizer, which leaves out the beginning of what is too long."""
    from lit_align.models.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(described)
    tokenizer.truncation_side = "left"
    return tokenizer


def _classifier(config: RewardConfig) -> ClassifierJudge:
    from transformers import AutoModelForSequenceClassification

    from lit_align.models.loading import quiet_loading
    from lit_align.models.sources import check_loaded, locate

    described = ModelConfig.coerce(config.classifier)
    path = locate(described, needs_weights=True)
    with quiet_loading():
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path,
            dtype="auto",
            output_loading_info=True,
            trust_remote_code=described.trust_remote_code,
            **({} if described.revision is None else {"revision": described.revision}),
        )
    check_loaded(report, path, type(model).__name__, ())
    options = _checked(config)
    label = _label(config, options.pop("label", None), model.config.id2label)
    return ClassifierJudge(model, _reader(described), label, batch_size=config.batch_size, **options)


def _checked(config: RewardConfig) -> dict[str, Any]:
    options = dict(config.options)
    for name in options:
        if name not in _CLASSIFIER_OPTIONS:
            hint = nearest(name, list(_CLASSIFIER_OPTIONS))
            raise RewardError(
                f"reward {config.shown_name!r} has no option {name!r}{hint}; a classifier takes "
                f"{', '.join(_CLASSIFIER_OPTIONS)}"
            )
    for name, allowed in (("output", ("logit", "probability", "log_odds")), ("part", ("text", "completion"))):
        if name in options and options[name] not in allowed:
            raise RewardError(
                f"reward {config.shown_name!r}: {name} is {options[name]!r}; choose {', '.join(allowed)}"
            )
    return options


def _label(config: RewardConfig, label: Any, labels: Mapping[int, str]) -> int:
    """The index of a label, given by name or index."""
    names = {str(name).lower(): int(index) for index, name in labels.items()}
    if len(names) == 1:
        raise RewardError(
            f"reward {config.shown_name!r}: this classifier has one output; give it as model: "
            f"{config.classifier}"
        )
    if isinstance(label, int) and label in names.values():
        return label
    if isinstance(label, str) and label.lower() in names:
        return names[label.lower()]
    found = "no label is given" if label is None else f"{label!r} is none of its labels"
    raise RewardError(
        f"reward {config.shown_name!r}: {found}; options: {{label: ...}} is one of "
        f"{', '.join(map(str, labels.values()))}"
    )


def _texts(inputs: RewardInputs, tokenizer: Any) -> list[str]:
    """Prompts with their completions, as the policy saw them; of conversations what is said, line by line.

    From the tokens together: the data's prompt may have been cut to its beginning or its end, and some
    tokenizers forget the space between two texts that are decoded apart.
    """
    pairs = zip(inputs.prompt_ids, inputs.completion_ids, strict=True)
    whole = tokenizer.batch_decode([p + c for p, c in pairs], skip_special_tokens=True)
    return [
        text if isinstance(prompt, str) else "".join(f"{m.get('content', '')}\n" for m in prompt) + reply
        for prompt, reply, text in zip(inputs.prompts, inputs.completions, whole, strict=True)
    ]


def _longest(model: Any, tokenizer: Any) -> int | None:
    """Tokens that a model and its tokenizer can take, ``None`` where neither says."""
    config = getattr(getattr(model, "model", model), "config", None)
    limits = [getattr(config, "max_position_embeddings", None), tokenizer.model_max_length]
    # Tokenizers without a limit say 10^30.
    known = [int(limit) for limit in limits if limit and limit < 10**9]
    return min(known, default=None)
