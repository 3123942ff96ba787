"""The bodies of requests. Fields and defaults are those of OpenAI, with the sampling options of this engine added."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator

from rwkv_engine.portable.sessions import NAME
from rwkv_engine.server.errors import ApiError
from rwkv_engine.server.formats import ResponseFormat, StructuredOutputs
from rwkv_engine.server.other_names import require_own_names
from rwkv_engine.server.tool_schemas import Id, ToolCallList, ToolChoice, Tools

StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
TokenId = Annotated[str, StringConstraints(pattern="^[0-9]{1,9}$")]
# Validation ends at the first wrong value: a list has room for a million of them.
Ids = Annotated[list[int], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]
ManyIds = Annotated[list[Ids], Field(fail_fast=True)]


MOST_BIASES = 1024


def _few(value: Any) -> Any:
    """Refuses a dictionary by its size, before each of its entries gives an error of its own."""
    if isinstance(value, dict) and len(value) > MOST_BIASES:
        raise ValueError(f"got {len(value)} entries, expected at most {MOST_BIASES}")
    return value


class Body(BaseModel):
    """What all bodies have in common: values are not converted, and fields that are not known are kept by name."""

    model_config = ConfigDict(extra="allow", strict=True)
    # Fields of OpenAI's that would change the result, so they must not be ignored: with the values that change nothing.
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {}
    # Fields of OpenAI's that are for its own service, and change no result.
    ignored: ClassVar[tuple[str, ...]] = ("metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")

    model: str | None = Field(None, description="The name of the server's model.")

    @property
    def unknown(self) -> Iterator[str]:
        """The names of fields that this server does not know."""
        return (name for name in self.model_extra or () if name not in (*self.unsupported, *self.ignored))

    def require_supported(self) -> None:
        """Checks that nothing is asked for that this server cannot do.

        Raises:
            ApiError: such a field has a value that would change the result (400).
        """
        for name, harmless in self.unsupported.items():
            got = (self.model_extra or {}).get(name)
            if got is not None and got not in harmless:
                raise ApiError(
                    HTTPStatus.BAD_REQUEST,
                    f"{name}: is not supported by this server; leave it out",
                    name,
                    "unsupported_parameter",
                )


class StreamOptions(BaseModel):
    """Options of a streamed response."""

    model_config = ConfigDict(strict=True)

    include_usage: bool = Field(False, description="Send the numbers of tokens in a last chunk.")


class Sampled(Body):
    """The fields of requests for text; see the documentation of sampling for the options."""

    n: int = Field(1, ge=1, le=128, description="How many texts to generate for each prompt.")
    max_tokens: int | None = Field(None, ge=0, description="The largest number of tokens to generate.")
    max_completion_tokens: int | None = Field(None, ge=0, description="The newer name of max_tokens.")
    temperature: float | None = Field(None, description="Divides the logits; 0 takes the most likely token.")
    top_k: int | None = Field(None, description="Keep only the k most likely tokens; 0 is off.")
    top_p: float | None = Field(None, description="Keep the fewest tokens whose probabilities sum to at least p.")
    min_p: float | None = Field(None, description="Keep tokens at least p times as likely as the most likely one.")
    presence_penalty: float | None = Field(None, description="Subtracted from the logits of generated tokens.")
    frequency_penalty: float | None = Field(None, description="The same for each time that one was generated.")
    penalty_decay: float | None = Field(None, description="Shrinks earlier counts with every further token.")
    logit_bias: Annotated[dict[TokenId, float] | None, BeforeValidator(_few)] = Field(
        None, max_length=MOST_BIASES, description="Added to the logits, by token id."
    )
    seed: int | None = Field(None, description="The same seed generates the same text.")
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = Field(
        None, description="Strings before which the text ends."
    )
    response_format: ResponseFormat | None = Field(None, description="The form of the text, as at OpenAI.")
    structured_outputs: Annotated[StructuredOutputs | None, BeforeValidator(_few)] = Field(
        None, description="The form of the text, as in vLLM."
    )
    stream: bool | None = Field(None, description="Send the text piece by piece.")
    stream_options: StreamOptions | None = Field(None, description="Options of a streamed response.")
    return_state: bool | None = Field(None, description="Return a sealed state with each text, to go on from later.")
    state_dtype: Literal["float32", "float16"] | None = Field(
        None, description="Precision of the returned state; float16 has half the size, and is rounded."
    )
    state: str | None = Field(None, description="A sealed state to go on from; the prompt has only what is new.")
    session: str | None = Field(
        None, pattern=f"^{NAME}$", description="Go on with the session of this name, which the server keeps."
    )
    no_cache: bool | None = Field(None, description="Read the whole prompt, and keep no state of this text.")
    user: str | None = Field(None, description="Has no effect.")

    @property
    def includes_usage(self) -> bool:
        """Whether the numbers of tokens are to be streamed."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def require_supported(self) -> None:
        """See `Body.require_supported`."""
        super().require_supported()
        require_own_names(self.model_extra or {})
        if self.state_dtype and not self.return_state:
            raise ApiError(HTTPStatus.BAD_REQUEST, "state_dtype: needs return_state", "state_dtype")
        if self.session is not None and self.state is not None:
            raise ApiError(HTTPStatus.BAD_REQUEST, "session: has a state, so leave out the field state", "session")
        if self.stream_options and not self.stream:
            raise ApiError(HTTPStatus.BAD_REQUEST, "stream_options: needs stream", "stream_options")


class CompletionRequest(Sampled):
    """The body of `/v1/completions`."""

    unsupported = {"suffix": ("",), "best_of": (1,)}

    prompt: str | Ids | Texts | ManyIds = Field("", description="Texts or token ids to continue.")
    echo: bool | None = Field(None, description="Return the prompt before the text.")
    logprobs: int | None = Field(None, ge=0, le=20, description="Report this many of the most likely tokens.")


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(strict=True)

    type: str
    text: str = ""

    @field_validator("type")
    @classmethod
    def _is_text(cls, got: str) -> str:
        if got != "text":
            raise ValueError("expected text, which is all that this server reads")
        return got


class Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: ToolCallList | None = Field(None, description="The assistant's calls.")
    tool_call_id: Id | None = Field(None, validate_default=True, description="The call whose result a tool returns.")
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = Field(
        None, validate_default=True, description="The text; an assistant that calls tools may have none."
    )

    @field_validator("tool_calls")
    @classmethod
    def _are_of_the_assistant(cls, got: ToolCallList | None, message: ValidationInfo) -> ToolCallList | None:
        if got and message.data.get("role") not in (None, "assistant"):
            raise ValueError("expected in messages of the assistant only")
        return got

    @field_validator("tool_call_id")
    @classmethod
    def _has_call(cls, got: str | None, message: ValidationInfo) -> str | None:
        if got is None and message.data.get("role") == "tool":
            raise ValueError("is missing, expected the id of the call whose result this is")
        return got

    @field_validator("content")
    @classmethod
    def _has_text(cls, got: str | list[TextPart] | None, message: ValidationInfo) -> str | list[TextPart] | None:
        if got is None and not message.data.get("tool_calls"):
            raise ValueError("is missing, expected a text")
        return got

    @property
    def text(self) -> str:
        """What it says."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())


class ChatRequest(Sampled):
    """The body of `/v1/chat/completions`."""

    unsupported = {
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "web_search_options": (),
    }

    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(
        description="The conversation; the last message is the user's. With a state, the new messages; none to go on"
        " with a reply that was cut."
    )
    continue_final_message: bool | None = Field(
        None, description="Continue the last message, which is the assistant's, instead of replying to it."
    )
    tools: Tools | None = Field(None, description="Functions that the model may call, if the template can tell it.")
    tool_choice: ToolChoice | None = Field(
        None, description="Whether it must call one, or which one; by default it decides itself."
    )
    parallel_tool_calls: bool | None = Field(None, description="Whether it may make several calls; true by default.")
    logprobs: bool | None = Field(None, description="Report the log-probabilities of tokens.")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="Report this many of the most likely tokens.")

    def require_supported(self) -> None:
        """See `Body.require_supported`."""
        super().require_supported()
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(HTTPStatus.BAD_REQUEST, "top_logprobs: needs logprobs", "top_logprobs")


class EmbeddingRequest(Body):
    """The body of `/v1/embeddings`."""

    input: str | Ids | Texts | ManyIds = Field(description="Texts or token ids.")
    encoding_format: Literal["float", "base64"] | None = Field(None, description="Base64 is that of float32 numbers.")
    dimensions: int | None = Field(None, description="That of the model, if it is given.")
    pooling: Literal["mean", "last", "state"] = Field("mean", description="How hidden states become a vector.")
    user: str | None = Field(None, description="Has no effect.")


class TokenizeRequest(Body):
    """The body of `/tokenize`."""

    prompt: str = Field(description="A text.")


class DetokenizeRequest(Body):
    """The body of `/detokenize`."""

    tokens: Ids = Field(description="Token ids.")
