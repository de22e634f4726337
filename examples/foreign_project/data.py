"""Someone else's LightningDataModule: conversations, tokenised and padded in its own way."""

from typing import Any

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader

CONVERSATIONS = [
    (f"My {thing} {problem}.", f"We are sorry about your {thing}. Please {advice}.")
    for thing in ("lamp", "kettle", "printer", "camera")
    for problem, advice in (("is broken", "send it back"), ("makes a noise", "tighten the screws"))
]


class ChatData(L.LightningDataModule):
    """The house's own conversations."""

    def __init__(self, tokenizer: Any, batch_size: int = 4) -> None:
        super().__init__()
        self.tokenizer, self.batch_size = tokenizer, batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(CONVERSATIONS, self.batch_size, shuffle=True, collate_fn=self.collate)  # type: ignore[arg-type]

    def collate(self, rows: list[tuple[str, str]]) -> dict[str, Tensor]:
        texts = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": user}, {"role": "assistant", "content": reply}], tokenize=False
            )
            for user, reply in rows
        ]
        batch = self.tokenizer(texts, return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}
