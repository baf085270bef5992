"""POST /tokenize and /detokenize, vLLM's shapes."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mlx_parallm.server.schemas.base import RequestModel, wrong
from mlx_parallm.server.schemas.chat import ChatMessage, ChatTemplateFields
from mlx_parallm.server.schemas.sampling import TokenId


class TokenizeRequest(ChatTemplateFields):
    """A text (`prompt`) or a conversation (`messages`), one of them."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["prompt"]}, {"required": ["messages"]}]}
    )

    model: str = ""
    prompt: str | None = None
    messages: list[ChatMessage] = Field(default_factory=list)
    add_special_tokens: bool | None = Field(  # type: ignore[assignment]
        None, description="Default: true for a prompt, false for messages."
    )
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeRequest:
        if (self.prompt is None) == (not self.messages):
            raise wrong("exactly one of prompt and messages is needed", "prompt")
        return self


class TokenizeResponse(BaseModel):
    """Token ids of the text."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(RequestModel):
    """Token ids whose text is wanted."""

    model: str = ""
    tokens: list[TokenId]


class DetokenizeResponse(BaseModel):
    """Their text, by vLLM's name and by llama.cpp's; special tokens are shown."""

    prompt: str
    content: str
