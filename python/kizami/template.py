"""Chat templates: a conversation becomes a prompt.

Knows: what a template gets to see, and how its failures are reported.
Does not know: how it is kept within limits (sandbox.py), tokens, or what the markers in the text mean to the
model (tokenizer.py).

Templates see what transformers gives them: `messages`, `bos_token`, `eos_token`, `add_generation_prompt`,
`raise_exception`, `strftime_now`, trimmed blocks, loop controls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import jinja2

from .errors import FormatError, KizamiError, UsageError
from .sandbox import Budget, OverLimit, Refusal, Sandbox, current

MAX_TEMPLATE = (
    1 << 17
)  # characters of source; published ones stay under 20,000, compiling takes 25 us a token


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    return Sandbox().from_string(template)


def _guarded(work: Callable[[], str]) -> str:
    """Runs `work`, turning what Jinja and Python may raise over a bad template into one kind of error."""
    try:
        return work()
    except KizamiError:
        raise
    except Refusal as error:
        raise UsageError(f"the chat template refuses this conversation: {error}") from None
    except jinja2.TemplateSyntaxError as error:
        raise FormatError(f"chat template, line {error.lineno}: {error.message}") from None
    except OverLimit as error:
        raise FormatError(f"chat template: over its limits: {error}") from None
    except RecursionError:
        raise FormatError("chat template: over its limits: nested or recursive without end") from None
    except MemoryError:
        raise FormatError("chat template: over its limits: memory") from None
    except Exception as error:  # any operation of the template on values it did not expect
        raise FormatError(f"chat template: {type(error).__name__}: {error}") from None


def render(
    template: str,
    messages: Sequence[Mapping[str, object]],
    bos_token: str = "",
    eos_token: str = "",
    add_generation_prompt: bool = True,
) -> str:
    """The prompt a chat template makes of a conversation.

    Args:
        template: Jinja source, at most 128 KiB.
        messages: `{"role": ..., "content": ...}` in order.
        bos_token, eos_token: their texts, for templates that write them.
        add_generation_prompt: end with the marker after which the assistant speaks.

    Raises:
        UsageError: a message is malformed, or the template refuses the conversation.
        FormatError: the template does not compile, fails, or exceeds 1,000,000 steps, 8 MiB or 2 seconds.
    """
    if len(template) > MAX_TEMPLATE:
        raise FormatError(f"chat template: {len(template):,} characters, the limit is {MAX_TEMPLATE:,}")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UsageError(f"message {index}: expected an object with a 'role'")
    budget = Budget()

    def work() -> str:
        compiled = _compiled(template)
        return "".join(
            compiled.generate(
                messages=[dict(message) for message in messages],
                bos_token=bos_token,
                eos_token=eos_token,
                add_generation_prompt=add_generation_prompt,
            )
        )

    token = current.set(budget)
    try:
        return _guarded(work)
    finally:
        current.reset(token)
