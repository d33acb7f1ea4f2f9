"""What users wrote, out of messages as a log gives them."""

import json


def user_text(messages: str) -> str:
    """What the user wrote last, as plain text.

    Args:
        messages: the column `messages` of `completions`: JSON with the prompt as given, a text or a list of turns.

    Returns:
        Text of the last turn of the user; a prompt that is no list of turns whole.
    """
    prompt = json.loads(messages)["prompt"]
    if not isinstance(prompt, list):
        return str(prompt)
    turns = [turn for turn in prompt if turn.get("role") == "user"] or prompt
    content = turns[-1].get("content") if turns else ""
    if isinstance(content, list):
        content = "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")
