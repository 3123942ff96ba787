"""From prompts and options to requests, and many of them through a scheduler."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, cast

from rwkv_engine.checks import require_known, require_text, shown
from rwkv_engine.core.state import State
from rwkv_engine.errors import RequestError
from rwkv_engine.generation.params import SamplingOptions, SamplingParams, TextOptions
from rwkv_engine.generation.sampling import Sampler
from rwkv_engine.generation.scheduler import Scheduler
from rwkv_engine.generation.special_stops import with_special_stops
from rwkv_engine.generation.text_request import TextRequest
from rwkv_engine.ops.linear import MOST_ROWS_ON_CPU
from rwkv_engine.structured import Format, compiled
from rwkv_engine.text import Tokenizer, end_as_trained

Prompt = str | Mapping[str, Any]
# The requests that are given to the scheduler at a time: those that run, and as many to follow them.
AHEAD = 2 * MOST_ROWS_ON_CPU


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The token ids of a prompt, see `RWKV.encode_prompt`."""
    require_text("prompt", prompt)
    if ids := tokenizer.encode(prompt):
        return end_as_trained(tokenizer, ids)
    if tokenizer.end_of_text is None:
        raise RequestError("the prompt is empty, and this tokenizer has no end-of-text token to begin from")
    return [tokenizer.end_of_text]


def sampler_of(tokenizer: Tokenizer, options: TextOptions) -> Sampler:
    """The sampler of a text, see `RWKV.stream`; the options may be those of a whole text."""
    known = SamplingOptions.__annotations__
    require_known(options, ("prompt", "max_new_tokens", "state", "sample", "owner", *known))
    own = {name: value for name, value in options.items() if name in known}
    if isinstance(form := options.get("allowed_tokens"), Format):
        own["allowed_tokens"] = compiled(tokenizer, form)  # type: ignore[arg-type]  # it has a hash
    if tokenizer.end_of_text is not None:
        own.setdefault("stop_tokens", (tokenizer.end_of_text,))
    params = with_special_stops(SamplingParams(**cast(SamplingOptions, own)), tokenizer.special_tokens)
    uncounted = _blank_or_digit(tokenizer) if params.compat == "rwkv" else ()  # type: ignore[arg-type]  # it has a hash
    return Sampler(params, uncounted)


@lru_cache(maxsize=4)
def _blank_or_digit(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that the rwkv package's frequency penalty does not count: digits, blanks, tokens without text."""
    return frozenset(i for i in range(tokenizer.n_vocab) if tokenizer.token_bytes(i) in b" \t0123456789")


def request_of(
    tokenizer: Tokenizer,
    index: int,
    prompt: str,
    max_new_tokens: int,
    state: State | None,
    sample: int,
    options: TextOptions,
) -> TextRequest:
    """The request for one prompt, the `index`th of many, see `RWKV.stream`."""
    sampler = sampler_of(tokenizer, options)
    ids, owner = encode_prompt(tokenizer, prompt), options.get("owner", "")
    return TextRequest(index, tokenizer, ids, sampler, max_new_tokens, state, sample, owner)


def requests_of(
    tokenizer: Tokenizer,
    prompts: Iterable[Prompt],
    max_new_tokens: int,
    state: State | None,
    options: TextOptions,
) -> Iterator[TextRequest]:
    """A request for each prompt, see `RWKV.generate_many`."""
    if isinstance(prompts, (str, Mapping)) or not isinstance(prompts, Iterable):
        raise RequestError(f"prompts: got {shown(prompts)}, expected several: a list of texts or of dictionaries")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str) and not (isinstance(prompt, Mapping) and "prompt" in prompt):
            raise RequestError(f"prompts[{index}]: got {shown(prompt)}, expected a text, or a dictionary with a prompt")
        own: dict[str, Any] = {"prompt": prompt} if isinstance(prompt, str) else dict(prompt)
        try:
            text, limit = own.pop("prompt"), own.pop("max_new_tokens", max_new_tokens)
            begin, sample = own.pop("state", state), own.pop("sample", 0)
            yield request_of(tokenizer, index, text, limit, begin, sample, cast(TextOptions, {**options, **own}))
        except RequestError as error:
            raise RequestError(f"prompts[{index}]: {error}") from error


def advancing(scheduler: Scheduler, requests: Iterable[TextRequest], pieces: bool = False) -> Iterator[TextRequest]:
    """Runs requests, and yields each one when it has ended; with `pieces` also whenever it has pieces to be taken.

    Raises:
        RequestError: a request does not fit the model, or the model failed; the others are aborted.
    """
    source, live = iter(requests), list[TextRequest]()
    try:
        while True:
            while len(live) < AHEAD and (request := next(source, None)):
                request.is_watched = pieces
                scheduler.add(request)
                live.append(request)
            if not live:
                return
            scheduler.wait(lambda: any(request.finish_reason or (pieces and request.pieces) for request in live))
            for request in list(live):
                if ended := request.finish_reason is not None:  # before its pieces are looked at
                    live.remove(request)
                if request.error:
                    raise request.error
                if ended or (pieces and request.pieces):
                    yield request
    finally:
        for request in live:
            scheduler.abort(request)
