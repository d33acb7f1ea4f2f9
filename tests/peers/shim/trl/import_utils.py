"""What of TRL's module the suites import."""

from trl import is_peft_available

__all__ = ["is_peft_available"]
