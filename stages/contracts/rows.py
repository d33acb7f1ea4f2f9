"""Identity of rows and prompts: hashes of content, the same in every run, on every machine, in any order."""

import hashlib
import json
from typing import Any, Literal

Split = Literal["train", "test"]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def content_id(*parts: Any) -> str:
    """Hash of the parts in order; 32 hexadecimal digits of BLAKE2b."""
    return hashlib.blake2b(canonical_json(list(parts)).encode(), digest_size=16).hexdigest()


def split_of(prompt_id: str, *, test_share: float) -> Split:
    """The side of the split on which all rows of a prompt stand; a function of the prompt alone.

    Args:
        prompt_id: `content_id` of the prompt.
        test_share: share of prompts held out, 0 to 1. A larger one moves prompts to "test" and none back.
    """
    place = int(hashlib.blake2b(f"split {prompt_id}".encode(), digest_size=8).hexdigest(), 16) / 2**64
    return "test" if place < test_share else "train"
