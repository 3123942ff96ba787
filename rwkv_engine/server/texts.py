"""From the body of a request to the texts that a scheduler generates."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from http import HTTPStatus
from typing import cast

from rwkv_engine.core.snapshot import Snapshot
from rwkv_engine.core.state import State
from rwkv_engine.errors import RequestError
from rwkv_engine.generation.logprob import Logprob
from rwkv_engine.generation.many import sampler_of
from rwkv_engine.generation.params import TextOptions
from rwkv_engine.generation.sampling import Sampler
from rwkv_engine.generation.text_request import TextRequest
from rwkv_engine.server.errors import ApiError, of_request
from rwkv_engine.server.formats import format_of
from rwkv_engine.server.schemas import Sampled
from rwkv_engine.server.service import Service
from rwkv_engine.server.states import Origin, beginning
from rwkv_engine.structured import CompiledFormat, Format, StructuredOutputError, compiled
from rwkv_engine.text import Tokenizer

OPTIONS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "penalty_decay",
    "seed",
)


class ServedText(TextRequest):
    """A text whose log-probabilities can be read together with its pieces, while other threads generate it."""

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        sampler: Sampler,
        n: int,
        sample: int,
        owner: str,
        state: State | None = None,
        begun: Snapshot | None = None,
    ):
        """`n` is the largest number of tokens; the other arguments are those of `TextRequest`."""
        super().__init__(index, tokenizer, prompt, sampler, n, state, sample, owner, begun)
        self._ends: deque[int] = deque()  # for each piece that was not read yet, the number of tokens up to its end
        self._n_read = 0
        self._has_logprobs = sampler.params.logprobs is not None

    def _keep(self, piece: str) -> None:
        if piece and self._has_logprobs:
            self._ends.append(len(self.generated.logprobs))  # first, because `pieces` are taken in other threads
        super()._keep(piece)

    def read_logprobs(self, n_pieces: int, ended: bool) -> list[Logprob]:
        """Those of the tokens that end in the next pieces, or of all that are left if the text has ended."""
        if not self._has_logprobs:
            return []
        ends = [self._ends.popleft() for _ in range(n_pieces)]
        if ended:
            ends.append(len(self.generated.logprobs))
        begin, self._n_read = self._n_read, max([self._n_read, *ends])
        return self.logprobs[begin : self._n_read]


def texts_of(
    service: Service,
    body: Sampled,
    owner: str,
    origin: Origin,
    prompts: Sequence[str | list[int]],
    stop: Sequence[str] = (),
    logprobs: int | None = None,
    default_tokens: int | None = None,
    form: CompiledFormat | None = None,
) -> list[ServedText]:
    """The texts that a request asks for: `n` samples of the first prompt, then those of the next one.

    Args:
        service: the server.
        body: the request.
        owner: whose request it is; states that a cache keeps are used for requests of the same owner only.
        origin: where it begins.
        prompts: texts or token ids.
        stop: stop strings in addition to those of the request.
        logprobs: how many of the most likely tokens to report, None for no log-probabilities.
        default_tokens: the largest number of tokens if the request has none; None for that of the server.
        form: the format of the texts, if the request names none itself.

    Raises:
        ApiError: a value is wrong, or too much is asked for (400, 413).
    """
    limit = _limit(service, body, default_tokens)
    if not prompts or len(prompts) * body.n > service.places.most:
        raise ApiError(
            HTTPStatus.BAD_REQUEST,
            f"n: got {len(prompts)} prompts times {body.n}, expected from 1 to {service.places.most} texts",
            "n",
        )
    if origin.session and len(prompts) * body.n > 1:
        raise ApiError(HTTPStatus.BAD_REQUEST, "session: got more than one text, expected one", "session")
    own = [body.stop] if isinstance(body.stop, str) else body.stop or []
    given = {name: value for name in OPTIONS if (value := getattr(body, name)) is not None}
    named = format_of(body.response_format, body.structured_outputs)
    # A format says itself where a text ends; a stop string could end it before.
    options = cast(TextOptions, given | {"stop": own if named else (*stop, *own), "logprobs": logprobs})
    if body.logit_bias:
        options["logit_bias"] = {int(token): bias for token, bias in body.logit_bias.items()}
    tokenizer = service.model.tokenizer
    if allowed := _compiled(body, tokenizer, named) if named else form:
        options["allowed_tokens"] = allowed
    texts = list[ServedText]()
    try:
        for prompt in prompts:
            ids, state, begun = beginning(service.model, prompt, origin.snapshot)
            if allowed and begun:
                raise _wrong_format(body, "is not possible for the rest of a text, which would begin the format again")
            require_short(service, ids, "prompt")
            for sample in range(body.n):
                sampler = sampler_of(tokenizer, options)
                text = ServedText(len(texts), tokenizer, ids, sampler, limit, sample, owner, state, begun)
                text.uses_cache, text.wants_state = not body.no_cache, bool(body.return_state or origin.session)
                service.scheduler.check(text)
                texts.append(text)
    except RequestError as error:
        raise of_request(error, list(type(body).model_fields)) from error
    return texts


def _compiled(body: Sampled, tokenizer: Tokenizer, form: Format) -> CompiledFormat:
    """Compiles the format of a request."""
    try:
        return compiled(tokenizer, form)  # type: ignore[arg-type]  # it has a hash
    except StructuredOutputError as error:
        raise ApiError(HTTPStatus.NOT_IMPLEMENTED, str(error), code="not_installed") from error
    except RequestError as error:
        raise _wrong_format(body, str(error)) from error


def _wrong_format(body: Sampled, problem: str) -> ApiError:
    param = "structured_outputs" if body.structured_outputs else "response_format"
    return ApiError(HTTPStatus.BAD_REQUEST, f"{param}: {problem}", param, "invalid_format")


def require_short(service: Service, ids: Sequence[int], param: str) -> None:
    """Checks the length of a prompt.

    Raises:
        ApiError: it has too many tokens (400).
    """
    most = service.settings.most_prompt_tokens
    if len(ids) > most:
        raise ApiError(
            HTTPStatus.BAD_REQUEST,
            f"{param}: got {len(ids)} tokens, expected at most {most}",
            param,
            "context_length_exceeded",
        )


def _limit(service: Service, body: Sampled, default: int | None) -> int:
    most = service.settings.most_new_tokens
    for name in ("max_completion_tokens", "max_tokens"):
        limit = getattr(body, name)
        if limit is not None and limit > most:
            raise ApiError(HTTPStatus.BAD_REQUEST, f"{name}: got {limit}, expected at most {most}", name)
        if limit is not None:
            return int(limit)
    return most if default is None else min(default, most)
