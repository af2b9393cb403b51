"""What kind of token a token is: the first one, a delimiter, white space, a digit, or content."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from workbench.models.model import Model

KINDS = ("BOS", "delimiter", "whitespace", "digit", "content")
FEW = 8  # queries; a mean over fewer says little about a key


def kinds_of(model: "Model", tokens: np.ndarray) -> np.ndarray:
    """Index into `KINDS` of every token, int64 as `tokens`; special tokens of a tokenizer count as BOS."""
    special = set(model.tokenizer.all_special_ids) - {model.tokenizer.unk_token_id}
    special |= {model.tokenizer.bos_token_id}
    known = {int(i): _kind(model.tokenizer.decode([int(i)]), int(i) in special) for i in np.unique(tokens)}
    return np.vectorize(known.__getitem__, otypes=[np.int64])(tokens)


def _kind(text: str, special: bool) -> int:
    bare = text.strip()
    if special:
        return 0
    if not bare:
        return 2
    if bare.isdigit():
        return 3
    return 4 if any(letter.isalnum() for letter in bare) else 1
