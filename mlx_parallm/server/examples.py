"""One example of each request body, for the API document."""

from __future__ import annotations

from typing import Any

_MESSAGES = [{"role": "user", "content": "Say hello in French."}]
_PROMPT = "The capital of France is"

# By the name of the schema.
EXAMPLES: dict[str, dict[str, Any]] = {
    "AbortRequests": {"request_ids": ["req-1"]},
    "AddAdapterRequest": {"name": "policy", "path": "/adapters/policy"},
    "LoadLoraRequest": {"lora_name": "policy", "lora_path": "/adapters/policy"},
    "RollBackRequest": {"version": 1},
    "UnloadLoraRequest": {"lora_name": "policy"},
    "AddMemoriesRequest": {"collection": "notes", "text": "The key is under the mat.", "id": "a"},
    "ApplyTemplateRequest": {"messages": _MESSAGES},
    "ChatCompletionRequest": {"messages": _MESSAGES, "max_tokens": 64, "temperature": 0.7},
    "ClassifyRequest": {"input": ["What a fine day.", "What a dull day."]},
    "CompletionRequest": {"prompt": _PROMPT, "max_tokens": 16, "temperature": 0},
    "ConfigureRequest": {"use_speculative_decoding": True, "max_batch_size": 16},
    "DecisionsRequest": {
        "input": "I was charged twice.",
        "questions": [
            {"type": "predicate", "name": "refund", "instructions": "Is a refund due?"},
            {
                "type": "choice",
                "instructions": "Which team?",
                "choices": [{"value": "billing"}, {"value": "support"}],
            },
        ],
    },
    "CountTokensRequest": {"messages": _MESSAGES},
    "DetokenizeRequest": {"tokens": [5, 6, 7]},
    "EmbeddingRequest": {"input": ["a river", "a bank"]},
    "EngineGenerateRequest": {"prompt": _PROMPT, "max_tokens": 16},
    "GenerateBatchRequest": {"prompts": [_PROMPT, "Once upon a time"], "max_tokens": 16},
    "GenerateRequest": {"prompt": _PROMPT, "max_tokens": 16, "top_k": 50, "temperature": 0.8},
    "LlamaCompletionRequest": {"prompt": _PROMPT, "n_predict": 16},
    "LlamaTokenizeRequest": {"content": "Hello"},
    "MessagesRequest": {"messages": _MESSAGES, "max_tokens": 64},
    "OllamaChatRequest": {"model": "bundled", "messages": _MESSAGES, "stream": False},
    "OllamaEmbedRequest": {"model": "bundled", "input": "a river"},
    "OllamaEmbeddingsRequest": {"model": "bundled", "prompt": "a river"},
    "OllamaGenerateRequest": {"model": "bundled", "prompt": _PROMPT, "stream": False},
    "OllamaShowRequest": {"model": "bundled"},
    "PredictRequest": {"inputs": [[0.1, 0.2, 0.3, 0.4]]},
    "RerankRequest": {"query": "Where is the key?", "documents": ["Under the mat.", "It rains."]},
    "ResponsesRequest": {"input": "Say hello in French.", "max_output_tokens": 64},
    "RolloutRequest": {"prompt": _PROMPT, "n": 4, "max_tokens": 16, "temperature": 0.8},
    "ScoreRequest": {"prompt": _PROMPT, "continuations": [" Paris", " Rome"]},
    "SearchMemoriesRequest": {"query": "Where is the key?", "collections": ["notes"]},
    "SequenceLogprobsRequest": {
        "sequences": [[5, 6, 7, 8]],
        "prompt_lengths": [2],
        "top_logprobs": 4,
    },
    "SglangGenerateRequest": {
        "input_ids": [5, 6, 7],
        "sampling_params": {"max_new_tokens": 8},
        "return_logprob": True,
    },
    "SystemOneRequest": {
        "state": {"ticket": "I was charged twice."},
        "questions": {
            "urgent": {"type": "noul", "instructions": "Is it urgent?"},
            "team": {
                "type": "choice",
                "instructions": "Which team?",
                "criteria": {"billing": "Payments", "support": None},
            },
        },
    },
    "TokenGenerateRequest": {
        "token_ids": [5, 6, 7],
        "sampling_params": {"max_tokens": 8, "logprobs": 1},
    },
    "TrlChatRequest": {"messages": [_MESSAGES], "n": 2, "max_tokens": 8},
    "TrlGenerateRequest": {"prompts": [_PROMPT], "n": 2, "max_tokens": 8},
    "VllmGenerateRequest": {
        "prompt": {"prompt_token_ids": [5, 6, 7]},
        "n": 2,
        "max_tokens": 8,
        "logprobs": 0,
    },
    "TokenizeRequest": {"prompt": "Hello"},
    "PutWeightsRequest": {"path": "/checkpoints/step-20"},
    "RollBackWeightsRequest": {"version": 0},
    "InitTransferRequest": {"init_info": {}},
    "StartUpdateRequest": {"is_checkpoint_format": True},
    "UpdateWeightsRequest": {"weight_dir": "/checkpoints/step-20"},
    "FinishUpdateRequest": {"running": "keep"},
}
