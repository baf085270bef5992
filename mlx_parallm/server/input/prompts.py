"""Text in: prompts as token ids, and request fields as SamplingParams.

Tokenizing is Rust code that lets other threads run, so long texts go to a thread of their own
and the event loop goes on; short ones are done in place, which is faster than a hop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

from mlx_parallm.engine.grammar import Compiler, Constraint, Gate
from mlx_parallm.engine.sequence import SamplingParams
from mlx_parallm.errors import ContextLengthError, InvalidRequestError, UnsupportedError
from mlx_parallm.models.vision.media import Media
from mlx_parallm.models.vision.prepared import Prepared
from mlx_parallm.server.answer import Dialect
from mlx_parallm.server.input.chat_pictures import ChatPictures
from mlx_parallm.server.input.chat_template import Conversation, conversation_of, render
from mlx_parallm.server.input.custom_roles import refuse_lost_roles
from mlx_parallm.server.input.pictures.limits import PictureLimits
from mlx_parallm.server.input.pictures.messages import pictures_of, text_of
from mlx_parallm.server.input.pictures.pictures import Pictures
from mlx_parallm.server.input.special_text import SpecialText
from mlx_parallm.server.input.structured import Structure, structure_of
from mlx_parallm.server.schemas.chat import ChatCompletionRequest, ChatTemplateFields
from mlx_parallm.server.schemas.completions import CompletionRequest
from mlx_parallm.server.schemas.sampling import MAX_LOGPROBS, ReportFields, SamplingFields
from mlx_parallm.server.schemas.structured import StructuredFields

if TYPE_CHECKING:
    from mlx_parallm.models.loader import LoadedModel

_T = TypeVar("_T")

DEFAULT_MAX_TOKENS = 16

# Texts up to this many characters are tokenized on the event loop: about 1 ms.
_INLINE_CHARACTERS = 4096
# Below this a temperature is greedy: logits divided by it would overflow. vLLM's limit.
_SMALLEST_TEMPERATURE = 1e-5
_SMALLEST_TOP_P = 1e-9
_SEED_MASK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt.

    Attributes:
        text: what `echo` shows; None for token ids that are not echoed.
        media: the pictures among its tokens; each sequence gets a copy.
    """

    ids: list[int]
    text: str | None
    media: Media | None = None


class Prompts:
    """Makes prompts for one loaded model.

    Args:
        loaded: whose tokenizer and limits to use.
        executor: one thread for long texts.
        special_text_is_text: in messages; False lets clients write special tokens there.
        default_max_tokens: the server's own, for requests that give none.
        max_logprobs: alternatives that a request may ask for; -1 is the whole vocabulary.
        logprobs_mode: for requests that give none.
        pictures: how those of requests are had.

    Attributes:
        pictures: in its prompts.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        executor: ThreadPoolExecutor,
        special_text_is_text: bool = True,
        default_max_tokens: int | None = None,
        max_logprobs: int = MAX_LOGPROBS,
        logprobs_mode: str = "raw_logprobs",
        pictures: Pictures | None = None,
    ) -> None:
        self._loaded = loaded
        self._tokenizer = loaded.tokenizer
        self._executor = executor
        self.pictures = ChatPictures(loaded, pictures or Pictures(PictureLimits()))
        self._special = SpecialText(loaded.tokenizer) if special_text_is_text else None
        self._default_max_tokens = default_max_tokens
        self._max_logprobs = loaded.vocab_size if max_logprobs == -1 else max_logprobs
        self._logprobs_mode = logprobs_mode

    @property
    def tokenizer(self) -> Any:
        """mlx-lm's TokenizerWrapper."""
        return self._tokenizer

    @cached_property
    def compiler(self) -> Compiler:
        """Compiles grammars for the model. Reads its vocabulary in a thread."""
        loaded = self._loaded
        return Compiler(self._tokenizer, loaded.vocab_size, loaded.eos_token_ids)

    def close(self) -> None:
        """End the compiler, if there is one."""
        self.pictures.close()
        if "compiler" in self.__dict__:
            self.compiler.close()

    async def structure(self, body: StructuredFields) -> Structure | None:
        """The grammar that a request asks for; None for free text.

        Raises:
            InvalidRequestError: it is too large, or cannot be read.
        """
        size = _INLINE_CHARACTERS + 1 if body.asks_for_grammar else 0
        return await self._maybe_in_thread(size, lambda: structure_of(body, self._tokenizer))

    async def constraint(
        self, structure: Structure | None, gate: Gate | None = None
    ) -> Constraint | None:
        """A constraint for one sequence; its copies are for others. None for free text.

        Args:
            gate: free text that may come before the structure; without one, thinking that ends.

        Raises:
            InvalidRequestError: the grammar is wrong, cannot be enforced or is too expensive.
        """
        if structure is None and gate is None:
            return None
        grammar, param = (structure.grammar, structure.param) if structure else (None, "messages")
        made = self.compiler.constraint(grammar, gate, param=param)
        return await asyncio.wrap_future(made)

    @cached_property
    def dialect(self) -> Dialect:
        """How the model writes thinking and calls."""
        return Dialect(self._tokenizer)

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and answer together at most."""
        return self._loaded.max_model_len

    async def completion(self, body: CompletionRequest) -> list[Prompt]:
        """The prompts of a completion request, in order.

        Raises:
            InvalidRequestError: empty, or a token id that the model does not have.
            ContextLengthError: longer than the context.
        """
        size = sum(len(prompt) for prompt in body.prompt)
        return await self._maybe_in_thread(size, lambda: self._completion(body))

    async def texts(self, texts: Sequence[str]) -> list[Prompt]:
        """A prompt for each text.

        Raises:
            InvalidRequestError: one is empty.
            ContextLengthError: one is too long.
        """

        return await self.inputs(texts, True, "prompt")

    async def inputs(
        self,
        inputs: Sequence[str | list[int]],
        add_special_tokens: bool = True,
        param: str = "input",
    ) -> list[Prompt]:
        """A prompt for each text or list of token ids.

        Raises:
            InvalidRequestError: one is empty, or a token id that the model does not have.
            ContextLengthError: one is too long.
        """

        def encode(value: str | list[int]) -> Prompt:
            if isinstance(value, str):
                ids = self._fitting_ids(value, add_special_tokens, param)
                return Prompt(self._checked(ids, param), value)
            self._check_ids(value, param)
            return Prompt(self._checked(value, param), None)

        size = sum(map(len, inputs))
        return await self._maybe_in_thread(size, lambda: [encode(value) for value in inputs])

    async def chat(
        self,
        body: ChatCompletionRequest,
        before: Sequence[int] = (),
    ) -> Prompt:
        """The one prompt that the chat template makes of the messages.

        Args:
            before: token ids to put before them.

        Raises:
            InvalidRequestError: the template refuses the messages, or there is none; an id
                that is not the model's.
            ContextLengthError: longer than the context.
        """
        if pictures_of(body.messages) and body.truncate_prompt_tokens is not None:
            raise UnsupportedError(
                "A prompt with pictures cannot be cut.", param="truncate_prompt_tokens"
            )
        self._check_ids(before, "context")
        made = await self.conversation(
            body,
            body.shown_tools,
            body.add_special_tokens,
            body.reasoning_effort,
            limited=True,
            before=before,
        )
        ids = self._truncated(made.ids, body)
        return replace(made, ids=self._checked(ids, "messages"))

    async def conversation(
        self,
        body: ChatTemplateFields,
        tools: Sequence[Any],
        add_special_tokens: bool,
        reasoning_effort: str | None = None,
        *,
        limited: bool = False,
        before: Sequence[int] = (),
        prepared: Sequence[Prepared] | None = None,
    ) -> Prompt:
        """What the chat template makes of messages.

        Args:
            tools: those to show.
            limited: refuse what is far too long for the context before the work is done.
            before: token ids to put before it.
            prepared: the pictures of its messages, where they have been prepared.

        Raises:
            UnsupportedError: the model does not see, and there are pictures.
            InvalidRequestError: a picture cannot be had; others as of chat().
        """
        if self._loaded.is_encoder:
            raise UnsupportedError(self._loaded.encoder_endpoints, param="model")
        if prepared is None:
            prepared = await self.pictures.prepare_all(body)
        asked = conversation_of(self._tokenizer, self.dialect, body, tools, reasoning_effort)
        fitted = self.pictures.fitted(asked)
        refuse_lost_roles(self._tokenizer, fitted)
        special = self._special
        if special is not None and not special.may_be_in(asked.said):
            special = None
        # The first such conversation copies the tokenizer, which is not for the event loop.
        at_least = 0 if special is None else _INLINE_CHARACTERS + 1
        size = sum(len(text_of(message.content)) for message in body.messages)
        text = await self._maybe_in_thread(
            max(size, at_least), lambda: render(self._tokenizer, fitted)
        )
        if limited:
            self._refuse_endless(text, "messages")
        ids = await self._maybe_in_thread(
            max(len(text), at_least),
            lambda: self._conversation_ids(asked, text, add_special_tokens, special, prepared),
        )
        ids = [*before, *ids]
        return Prompt(ids, text, self.pictures.media(ids, prepared))

    def _conversation_ids(
        self,
        asked: Conversation,
        text: str,
        add_special_tokens: bool,
        special: SpecialText | None,
        pictures: Sequence[Prepared],
    ) -> list[int]:
        expand = partial(self.pictures.expand, pictures=pictures)
        found = None
        if special is not None:
            masked = self.pictures.fitted(asked.changed(special.masked))
            masked_text = render(self._tokenizer, masked)
            found = special.ids(text, masked_text, add_special_tokens, expand)
        return self._ids_of(expand(text), add_special_tokens) if found is None else found

    async def tokenize(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of a text, which may be longer than the context."""
        return await self._maybe_in_thread(
            len(text), lambda: self._ids_of(text, add_special_tokens)
        )

    async def detokenize(self, ids: list[int]) -> str:
        """The text of token ids, special tokens included.

        Raises:
            InvalidRequestError: an id that the model does not have.
        """
        self._check_ids(ids, "tokens")
        return await self._maybe_in_thread(4 * len(ids), lambda: self.text_of(ids, False))

    def token_strings(self, ids: list[int]) -> list[str]:
        """Each token as it is written in the vocabulary."""
        return [str(token) for token in self._tokenizer.convert_ids_to_tokens(ids)]

    def text_of(self, ids: list[int], skip_special_tokens: bool) -> str:
        """The text of token ids."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def sampling(
        self,
        body: SamplingFields,
        *,
        max_tokens: int,
        logprobs: int | None,
        prompt_logprobs: int | None,
    ) -> SamplingParams:
        """The fields of a request as the engine wants them.

        Raises:
            InvalidRequestError: a token id that the model does not have.
        """
        self._check_ids(list(body.logit_bias), "logit_bias")
        self._check_ids(body.stop_token_ids, "stop_token_ids")
        allowed = body.allowed_token_ids or []
        self._check_ids(allowed, "allowed_token_ids")
        if body.min_tokens > max_tokens:
            raise InvalidRequestError(
                f"min_tokens ({body.min_tokens}) is above max_tokens ({max_tokens}).",
                param="min_tokens",
            )
        greedy = body.temperature < _SMALLEST_TEMPERATURE
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=0.0 if greedy else body.temperature,
            top_p=max(body.top_p, _SMALLEST_TOP_P),
            top_k=min(max(body.top_k, 0), self._loaded.vocab_size),
            min_p=body.min_p,
            repetition_penalty=body.repetition_penalty,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            logit_bias=body.logit_bias,
            seed=None if body.seed is None else body.seed & _SEED_MASK,
            stop_token_ids=frozenset(body.stop_token_ids),
            eos_token_ids=self._loaded.eos_token_ids,
            ignore_eos=body.ignore_eos,
            min_tokens=body.min_tokens,
            allowed_token_ids=tuple(allowed),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            speculative=body.use_speculative,
            **self._reports(body),
        )

    def _reports(self, body: SamplingFields) -> dict[str, Any]:
        """Of which tokens and which distribution log-probabilities are."""
        if not isinstance(body, ReportFields):
            return {}
        self._check_ids(body.logprob_token_ids, "logprob_token_ids")
        return {
            "logprob_token_ids": tuple(dict.fromkeys(body.logprob_token_ids)),
            "logprobs_mode": "raw_logprobs"
            if body.both_logprobs
            else body.logprobs_mode or self._logprobs_mode,
            "processed_logprobs": body.both_logprobs,
        }

    def num_logprobs(self, asked: int | None, param: str) -> int | None:
        """How many alternatives a request means; None where it wants no log-probabilities.

        Raises:
            InvalidRequestError: more than the server gives.
        """
        if asked is None:
            return None
        wanted = self._loaded.vocab_size if asked == -1 else asked
        if wanted > self._max_logprobs:
            raise InvalidRequestError(
                f"{param} asks for {wanted} alternatives; this server gives "
                f"{self._max_logprobs} at most (--max-logprobs).",
                param=param,
            )
        return min(wanted, self._loaded.vocab_size)

    def max_tokens(
        self,
        asked: int | None,
        default: int | None,
        prompt: Prompt,
        context: int | None = None,
        at_most: int | None = None,
    ) -> int:
        """Tokens to generate after this prompt.

        Args:
            asked: what the client said, or None.
            default: used when neither the client nor the server's options say anything, cut to
                what is left; None is all of it.
            context: tokens of prompt and answer together, where it is less than the model's.
            at_most: where the client said a length that is cut to what is left, not refused.

        Raises:
            ContextLengthError: prompt and answer do not fit.
        """
        used, limit = len(prompt.ids), context or self.max_model_len
        default = self._default_max_tokens or default
        left = limit - used
        if at_most is not None and left > 0:
            return min(at_most, left)
        if asked is None and left > 0:
            return left if default is None else min(default, left)
        wanted = (default or 1) if asked is None else asked
        if wanted > left:
            raise ContextLengthError(
                f"This model's maximum context length is {limit} tokens. However, you requested "
                f"{used + wanted} tokens ({used} in the prompt, {wanted} in the answer). "
                "Please shorten the prompt or the answer.",
                param="max_tokens",
            )
        return wanted

    async def _maybe_in_thread(self, size: int, work: Callable[[], _T]) -> _T:
        if size <= _INLINE_CHARACTERS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _completion(self, body: CompletionRequest) -> list[Prompt]:
        return [self._one(prompt, body) for prompt in body.prompt]

    def _one(self, prompt: str | list[int], body: CompletionRequest) -> Prompt:
        if isinstance(prompt, str):
            # A prompt that will be cut may be as long as it likes.
            encode = self._fitting_ids if body.truncate_prompt_tokens is None else self._all_ids
            ids, text = encode(prompt, body.add_special_tokens, "prompt"), prompt
        else:
            self._check_ids(prompt, "prompt")
            ids, text = prompt, None
        kept = self._truncated(ids, body)
        self._checked(kept, "prompt")
        if body.echo and (text is None or len(kept) < len(ids)):
            text = self.text_of(kept, body.skip_special_tokens)
        return Prompt(kept, text)

    def _fitting_ids(self, text: str, add_special_tokens: bool, param: str) -> list[int]:
        """Token ids; a text that is far too long is refused before the work is done."""
        self._refuse_endless(text, param)
        return self._ids_of(text, add_special_tokens)

    def _refuse_endless(self, text: str, param: str) -> None:
        at_least = len(text) // (4 * self._longest_token)
        if at_least > self.max_model_len:
            raise self._too_long(f"over {at_least}", param)

    def _all_ids(self, text: str, add_special_tokens: bool, param: str) -> list[int]:
        return self._ids_of(text, add_special_tokens)

    def _ids_of(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def _truncated(self, ids: list[int], body: SamplingFields) -> list[int]:
        keep = body.truncate_prompt_tokens
        if keep is None:
            return ids
        # -1: what leaves room for one token.
        keep = self.max_model_len - 1 if keep == -1 else keep
        return ids[:keep] if body.truncation_side == "right" else ids[max(len(ids) - keep, 0) :]

    def _checked(self, ids: list[int], param: str) -> list[int]:
        if not ids:
            raise InvalidRequestError("The prompt is empty: it has no tokens.", param=param)
        if len(ids) > self.max_model_len:
            raise self._too_long(str(len(ids)), param)
        return ids

    def _too_long(self, tokens: str, param: str) -> ContextLengthError:
        return ContextLengthError(
            f"This model's maximum context length is {self.max_model_len} tokens. However, your "
            f"prompt has {tokens} tokens. Please shorten it.",
            param=param,
        )

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """Raise InvalidRequestError where an id is not the model's."""
        self._check_ids(ids, param)

    def _check_ids(self, ids: Sequence[int], param: str) -> None:
        size = self._loaded.vocab_size
        if ids and max(ids) >= size:
            raise InvalidRequestError(
                f"Token id {max(ids)} is out of range: the vocabulary has {size} tokens.",
                param=param,
            )

    @cached_property
    def _longest_token(self) -> int:
        """Characters of the longest token in the vocabulary."""
        return max((len(token) for token in self._tokenizer.get_vocab()), default=1)
