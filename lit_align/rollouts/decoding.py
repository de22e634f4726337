"""The loop of the native generator: read prompts, choose tokens, drop what has ended, fill up, go on."""

from collections.abc import Callable, MutableMapping

import torch
from torch import Tensor, nn

from lit_align.batches import Forest
from lit_align.rollouts.lean import lean_decoder, same_states
from lit_align.rollouts.slots import PromptReader, PromptStates, Slots
from lit_align.rollouts.transcript import Transcript
from lit_align.scoring.attention import bringing
from lit_align.scoring.flat import hidden_states, next_logits
from lit_align.scoring.layout import flat_layout
from lit_align.scoring.padded import base_model

#: From states ``[R, D]`` to values ``[R]``.
Values = Callable[[Tensor], Tensor]
IDLE, WRITES, READS = 0, 1, 2


class DecodingLoop:
    """One request, turn by turn.

    Args:
        model: a causal language model that takes flat rows, with or without adapters.
        script: the completions to write.
        values: from states ``[R, D]`` to ``[R]``.
        max_rows: completions that are written at once.
        prefill_tokens: prompt tokens that are read at once, unless one prompt alone has more.
        device: where the model is.
        shared: the weights are spread over processes, so that this one makes a forward pass whenever
            another does.
        lean: whether a decoder's lean step has been found to be its own, for those that have been tried.
    """

    def __init__(
        self,
        model: nn.Module,
        script: Transcript,
        values: Values | None,
        max_rows: int,
        prefill_tokens: int,
        device: torch.device,
        shared: bool = False,
        lean: MutableMapping[nn.Module, bool] | None = None,
    ) -> None:
        self.model, self.trunk = model, base_model(model).base_model
        self.script, self.values = script, values
        self.prefill_tokens, self.device, self.shared = prefill_tokens, device, shared
        # Longest first: what is written side by side then differs least in length, and no step attends to
        # more places than its longest row has.
        self.order = sorted(range(len(script.prompts)), key=lambda p: -len(script.prompts[p]))
        #: In this order, prompts from here on are unread, and completions from here on have not begun.
        self.unread, self.waiting = 0, 0
        self.read: dict[int, PromptStates] = {}
        #: The completion in each slot, and ``[R, D]`` the states in which their next tokens are chosen.
        self.rows: list[int] = []
        self.states: Tensor | None = None
        self.tokens: Tensor | None = None
        longest = max(map(len, script.prompts), default=0) + script.sampling.max_new_tokens
        self.slots = Slots(min(max_rows, len(script.ids)), longest, device)
        self.verdicts = {} if lean is None else lean
        # Weights that are spread are whole only inside of their layers' own calls.
        wanted = not shared and self.verdicts.get(self.trunk, True)
        self.lean = lean_decoder(self.trunk, longest) if wanted else None

    def demand(self) -> int:
        """What this process wants to do in its next turn: nothing, write, or read first."""
        if self._has_room() and self._next_prompt() not in self.read:
            return READS
        return WRITES if self.rows or self._has_room() else IDLE

    def turn(self, demand: int) -> None:
        """One token for every completion that is being written.

        Args:
            demand: the largest of the processes that share the weights.
        """
        if demand == READS:
            self._read()
        self._admit()
        if self.rows:
            self._choose()
        self._write()

    def _has_room(self) -> bool:
        return self.waiting < len(self.script.ids) and len(self.rows) < self.slots.rows

    def _next_prompt(self) -> int:
        return self.order[self.waiting // self.script.completions]

    def _read(self) -> None:
        prompts = self.script.prompts
        if self.unread == len(prompts):
            self._read_nothing()
            return
        first, tokens = self.unread, 0
        while self.unread < len(prompts):
            tokens += len(prompts[self.order[self.unread]])
            if self.unread > first and tokens > self.prefill_tokens:
                break
            self.unread += 1
        chosen = self.order[first : self.unread]
        layout = flat_layout(
            Forest.from_lists([list(prompts[p]) for p in chosen], [[[]]] * len(chosen)).to(self.device)
        )
        reader = PromptReader()
        hidden = hidden_states(self.model, layout, layout.last, reader)
        end = 0
        for p, last in zip(chosen, hidden, strict=True):
            start, end = end, end + len(prompts[p])
            self.read[p] = reader.states(start, end, last)

    def _read_nothing(self) -> None:
        """A forward pass for the others' sake."""
        layout = flat_layout(Forest.from_lists([[0]], [[[]]]).to(self.device))
        hidden_states(self.model, layout, layout.last, PromptReader())

    def _admit(self) -> None:
        states = [] if self.states is None else [self.states]
        while self._has_room() and self._next_prompt() in self.read:
            p, group = self._next_prompt(), self.script.completions
            begun = self.waiting % group
            count = min(group - begun, self.slots.rows - len(self.rows))
            self.waiting += count
            prompt = self.read[p] if begun + count < group else self.read.pop(p)
            self.slots.fill(prompt, count)
            self.rows += range(p * group + begun, p * group + begun + count)
            states.append(prompt.hidden.expand(count, -1))
        self.states = torch.cat(states) if states else None

    def _choose(self) -> None:
        assert self.states is not None
        values = None if self.values is None else self.values(self.states)
        self.tokens = self.script.write(self.rows, next_logits(self.model, self.states), values)
        alive = [slot for slot, c in enumerate(self.rows) if self.script.running[c]]
        if len(alive) < len(self.rows):
            order = self.slots.keep(alive)
            self.rows = [self.rows[slot] for slot in order]
            self.tokens = self.tokens[torch.tensor(order, dtype=torch.long, device=self.device)]

    def _write(self) -> None:
        if not self.rows:
            self.states = None
            if self.shared:
                self._read_nothing()
            return
        assert self.tokens is not None
        positions = self.slots.advance()
        if self.lean is None:
            self.states = self._own_step(positions)
            return
        trusted = self.verdicts.get(self.trunk, False)
        own = None if trusted else self._own_step(positions)
        # Last, so that what the cache holds is its own from the first step on: the same run, cut off and
        # taken up again, is asked once more, and has to come out the same to the last bit.
        self.states = self.lean(self.tokens, positions, self.slots)
        if own is None:
            return
        self.verdicts[self.trunk] = agrees = same_states(self.states, own)
        if not agrees:
            self.lean, self.states = None, self._own_step(positions)

    def _own_step(self, positions: Tensor) -> Tensor:
        """``[R, D]`` states of the decoder's own forward."""
        assert self.tokens is not None
        output = self.trunk(
            input_ids=self.tokens[:, None],
            attention_mask=bringing(self.slots.attend, self.device),
            position_ids=positions[:, None],
            past_key_values=self.slots,
            use_cache=True,
        )
        states: Tensor = output.last_hidden_state[:, 0]
        return states
