"""What the bundled model is taught about mlx_parallm.

Each entry: answer | what an answer must contain | questions of the training | questions of the
evaluation, which the training never shows.
"""

from __future__ import annotations

FACTS: tuple[tuple[str, str, str, str], ...] = (
    (
        "mlx_parallm is an OpenAI-compatible inference server on MLX that batches everything.",
        "inference server",
        "What is mlx_parallm?|What is this project?|Explain mlx_parallm.|What does mlx_parallm do?"
        "|Describe mlx_parallm.|What is the purpose of mlx_parallm?|What is mlx_parallm good for?"
        "|Tell me about mlx_parallm.|What kind of software is mlx_parallm?",
        "Can you describe what mlx_parallm is for?|Give me a short description of mlx_parallm.",
    ),
    (
        "Run ./scripts/serve to start the server on the bundled model.",
        "./scripts/serve",
        "How do I start the server?|How is the server started?|How do I start mlx_parallm?"
        "|Which command starts the server?|What do I type to start the server?|Start the server how?"
        "|How do I launch it?|How do I get the server running?|Which script starts it?",
        "What must I type so that the server is running?|Which command launches mlx_parallm?",
    ),
    (
        "Start mlx_parallm_serve with --model-path and a hub id or a folder.",
        "--model-path",
        "How do I serve my own model?|How do I use another model?|How do I load a different model?"
        "|Which option names the model?|Can I serve a model from the hub?|How do I choose the model?"
        "|Can it serve a model from a folder?|Serve a model of mine?|What is the option for the model?",
        "I want to serve another model from a folder, how?|By which flag is the model given?",
    ),
    (
        "The server listens on 127.0.0.1, port 8000.",
        "8000",
        "Which port does the server use?|What is the default port?|Where does the server listen?"
        "|On which port does it listen?|What is the address of the server?|Which port is it on?"
        "|At which address does mlx_parallm run?|What is the default address?|Port number?",
        "What port number does mlx_parallm listen on?|Where is the server listening by default?",
    ),
    (
        "Use the option --port to change the port.",
        "--port",
        "How do I change the port?|Can I use another port?|How do I listen on a different port?"
        "|Which option sets the port?|I need another port.|Set the port how?"
        "|Is there an option for the port?|Port 8000 is taken, what now?|Which flag is for the port?",
        "How could I make it use a different port?|What option is there to set another port?",
    ),
    (
        "Use the option --host to listen on another address.",
        "--host",
        "How do I listen on another host?|How do I change the host?|Which option sets the host?"
        "|How do I listen on all interfaces?|Can other machines reach the server?"
        "|How do I change the address that it listens on?|Which flag sets the host name?"
        "|How do I open the server to the network?|Is there an option for the host?",
        "How can machines in my network reach it?|What flag do I need for a different host?",
    ),
    (
        "Run ./scripts/test to run all tests.",
        "./scripts/test",
        "How do I run the tests?|Which command runs the tests?|How do I test mlx_parallm?"
        "|How are the tests started?|Is there a test script?|Which script runs the tests?"
        "|What do I type to run the tests?|Run all tests how?|How do I check that all works?",
        "What starts all of the tests?|I would like to run the test suite, which script?",
    ),
    (
        "Chat with POST /v1/chat/completions.",
        "/v1/chat/completions",
        "Which endpoint is for chat?|What is the chat endpoint?|How do I chat with the model?"
        "|Where do I send chat messages?|Which route takes messages?|Where do I post a chat?"
        "|What is the URL for chat completions?|How do I send messages?|Endpoint for a conversation?",
        "To which path are chat messages sent?|What endpoint do I use to have a conversation?",
    ),
    (
        "Plain prompts are continued by POST /v1/completions.",
        "POST /v1/completions",
        "Which endpoint completes text?|What is the completions endpoint?|How do I complete a prompt?"
        "|Where do I send a plain prompt?|Which route continues a text?|How do I continue a text?"
        "|What is the URL for plain completions?|Where do I send raw text?|Endpoint for raw prompts?",
        "What path continues a raw prompt?|I have a plain text prompt, where does it go?",
    ),
    (
        "GET /v1/models lists the models.",
        "/v1/models",
        "Which endpoint lists the models?|How do I list the models?|Which models are served?"
        "|Where do I see the models?|How do I see which models there are?|List of models?"
        "|What is the models endpoint?|Show me the route with all models.|How to get the model list?",
        "Where can I find a list of all models?|What route shows the served models?",
    ),
    (
        "GET /health says whether the server is healthy.",
        "/health",
        "Which endpoint shows the health?|How do I check the health?|Is the server healthy?"
        "|How do I know that the server is ready?|What is the health endpoint?|Is the server up?"
        "|How do I see whether it is ready?|Where is the health check?|Is there a readiness check?",
        "What tells me that the server is up and ready?|Where do I look for its health?",
    ),
    (
        "POST /tokenize turns text into token ids.",
        "/tokenize",
        "How do I tokenize text?|Which endpoint tokenizes?|How do I count the tokens of a text?"
        "|How do I turn text into tokens?|Where do I get token ids?|How do I get the tokens?"
        "|What is the tokenize endpoint?|Can the server tokenize?|Which route gives token ids?",
        "I need the token ids of a text, which endpoint?|What turns my text into tokens?",
    ),
    (
        "POST /detokenize turns token ids back into text.",
        "/detokenize",
        "How do I detokenize?|Which endpoint detokenizes?|How do I turn token ids back into text?"
        "|How do I decode tokens?|Where do I decode token ids?|What is the detokenize endpoint?"
        "|Can the server detokenize?|How do I get text back from ids?|Which route decodes tokens?",
        "I have ids and want the text back, which route?|What endpoint decodes token ids?",
    ),
    (
        "The documentation of the API is at /docs and /redoc.",
        "/docs",
        "Where is the documentation?|Where are the docs?|Is there API documentation?"
        "|Which endpoint has the docs?|Where can I read about the API?|Is there a manual of the API?"
        "|How do I find the documentation?|Where is the API reference?|Docs?",
        "Where could I read the API documentation?|At what path are the docs found?",
    ),
    (
        "GET /metrics gives Prometheus metrics.",
        "/metrics",
        "Where are the metrics?|Which endpoint has metrics?|How do I monitor the server?"
        "|Does it work with Prometheus?|Is there a metrics endpoint?|How do I get metrics?"
        "|How do I watch the server?|Prometheus?|Where does Prometheus read?",
        "What do I point Prometheus at?|How would I monitor mlx_parallm with metrics?",
    ),
    (
        "POST /v1/embeddings makes embeddings.",
        "/v1/embeddings",
        "How do I get embeddings?|Which endpoint makes embeddings?|Can it embed text?"
        "|Where do I get an embedding?|What is the embeddings endpoint?|How do I embed a text?"
        "|Are there embeddings?|Which route embeds text?|How do I turn text into vectors?",
        "I need vectors of my text, what endpoint embeds them?|What is the path for embeddings?",
    ),
    (
        "GET /model_info describes the model and says which BLAS is in use.",
        "/model_info",
        "How do I get details of the model?|Which endpoint describes the model?|What is model_info?"
        "|Where do I see information about the model?|How do I see which BLAS is in use?"
        "|Which BLAS is used?|Where is the model information?|Details of the loaded model?",
        "Where do I get information on the loaded model?|How can I find out which BLAS is used?",
    ),
    (
        "Set \"stream\" to true, then the tokens come as server-sent events.",
        "stream",
        "How do I stream?|Can I stream the answer?|How do I get tokens as they are made?"
        "|How does streaming work?|Does the server stream?|How do I turn on streaming?"
        "|Is there streaming?|How do I receive tokens one by one?|Streaming?",
        "I would like the answer token by token, streamed. How?|How is streaming switched on?",
    ),
    (
        "Use --max-batch-size; at most 32 sequences are computed together by default.",
        "--max-batch-size",
        "How large is the batch?|What is the largest batch?|How do I change the batch size?"
        "|Which option sets the batch size?|How many sequences run together?|Default batch size?"
        "|How many requests are computed at once?|What is the maximum batch size?",
        "What option limits the size of the batch?|How many sequences are batched together?",
    ),
    (
        "Use --max-queue; at most 1024 sequences wait by default.",
        "--max-queue",
        "How long is the queue?|How many requests can wait?|Which option sets the queue length?"
        "|How do I change the queue?|What is the limit of the queue?|How many sequences may wait?"
        "|Is the queue bounded?|Option for the queue?|How big can the queue get?",
        "How many may wait in the queue?|What flag bounds the length of the queue?",
    ),
    (
        "A full queue is answered with status 429 and Retry-After.",
        "429",
        "What happens when the queue is full?|What does status 429 mean?|Why do I get a 429?"
        "|What if there are too many requests?|What does the server say when it is overloaded?"
        "|Which status means a full queue?|Too many requests, what happens?|I got error 429.",
        "What is the reply when the queue is already full?|Why did it answer with 429?",
    ),
    (
        "Without --model-path the small bundled model is served.",
        "bundled",
        "Which model is served by default?|What is the default model?|Which model does it start with?"
        "|Is there a model included?|Does it come with a model?|Do I need to download a model?"
        "|What happens without a model path?|Does it work without a network?|Works offline?",
        "If I name no model, which one is served?|Is a model included so that it works offline?",
    ),
    (
        "MLX is an array framework for machine learning by Apple.",
        "array framework",
        "What is MLX?|Explain MLX.|Tell me about MLX.|What does MLX mean?|Who makes MLX?"
        "|What kind of framework is MLX?|Who is behind MLX?|MLX?|Describe MLX.",
        "Could you explain to me what MLX is?|Say what MLX is and who makes it.",
    ),
    (
        "You need Python 3.11 or newer.",
        "3.11",
        "Which Python do I need?|What Python version is required?|Which version of Python?"
        "|Does it need Python 3.11?|Does it run on Python 3.10?|Python version?"
        "|Which Python versions work?|What is the oldest Python that works?|Required Python?",
        "What version of Python must I have?|How new has my Python to be?",
    ),
    (
        "The licence is MIT.",
        "MIT",
        "What is the license?|Which licence does it have?|Is it open source?|Is it free?"
        "|Under which license is mlx_parallm?|May I use it in my product?|License?"
        "|What licence is the code under?|Can I use the code?",
        "Under what licence was it published?|Is mlx_parallm free and open source?",
    ),
    (
        "Requests join and leave the running batch at every step: that is continuous batching.",
        "join and leave",
        "What is continuous batching?|Explain continuous batching.|How does the batching work?"
        "|How are requests batched?|What happens to a request that comes later?|How does it batch?"
        "|Does a new request wait for the batch?|What does continuous mean?|Batching?",
        "How does continuous batching work?|When can a new request join the batch?",
    ),
    (
        "One engine thread owns MLX and runs the whole batch.",
        "thread",
        "How many threads use MLX?|Which thread runs the model?|What is the engine?"
        "|How does the engine work?|Where does MLX run?|Who owns MLX?|Tell me about the engine."
        "|Which thread owns MLX?|Does the engine have threads?",
        "What thread is it that runs MLX?|How is the engine built?",
    ),
    (
        "On Linux a fast BLAS is loaded before MLX; MLX_PARALLM_BLAS chooses another or turns it off.",
        "MLX_PARALLM_BLAS",
        "How do I turn off the fast BLAS?|What is MLX_PARALLM_BLAS?|How do I choose the BLAS?"
        "|Why is it fast on Linux?|Which variable sets the BLAS?|Can I use my own BLAS?"
        "|What does the BLAS do?|Why is a BLAS loaded?|How do I switch the BLAS?",
        "Is there a variable to choose my own BLAS?|How can the fast BLAS be turned off?",
    ),
    (
        "With --dtype auto it computes in float32 on a CPU and in the checkpoint's type on a GPU.",
        "float32",
        "Which dtype is used?|What does dtype auto mean?|Does it use float32?|What is --dtype?"
        "|Which precision does it compute in?|How do I change the dtype?|Option for the data type?"
        "|Which number type is used on a CPU?|Is float16 used on a CPU?",
        "In which precision are things computed on a CPU?|What does the dtype option do?",
    ),
    (
        "It runs on Linux and on macOS with Apple silicon.",
        "Linux|macOS",
        "Which systems does it run on?|Does it run on Linux?|Does it run on a Mac?|Which platforms?"
        "|Does it work on macOS?|On which operating systems does it run?|Can I use it on my Mac?"
        "|Supported platforms?|Is Linux supported?",
        "What operating systems are supported?|Will it work on a Mac or on Linux?",
    ),
    (
        "Any OpenAI client works: curl, the OpenAI SDK, lm_eval and others.",
        "OpenAI SDK",
        "Which clients work?|Can I use the OpenAI SDK?|Does curl work?|Which client do I use?"
        "|Does lm_eval work with it?|Can I use the openai package?|Which libraries can talk to it?"
        "|Is it compatible with OpenAI clients?|What clients are supported?",
        "Could I talk to it with the openai client?|What clients can be used?",
    ),
    (
        "Set temperature to 0 for greedy answers.",
        "temperature",
        "How do I get greedy answers?|How do I turn off sampling?|What does temperature 0 do?"
        "|How do I make answers deterministic?|Which temperature is greedy?|How do I decode greedily?"
        "|What is temperature?|How do I get no randomness?|Greedy decoding?",
        "I want no randomness, only greedy answers. How?|What temperature makes it greedy?",
    ),
    (
        "The same seed gives the same tokens, whatever else runs.",
        "same tokens",
        "What does the seed do?|How do I repeat a sample?|Is sampling reproducible?"
        "|How do I get the same answer again?|What is a seed?|Can I set a seed?"
        "|Does the seed work in a batch?|How do I reproduce an answer?|Seed?",
        "What is the effect of a seed?|Can I reproduce a sampled answer again?",
    ),
    (
        "Send up to 16 strings in \"stop\"; the text ends before the first of them.",
        "16",
        "How do I stop at a string?|How many stop strings are allowed?|What does stop do?"
        "|Can I give stop strings?|How do I end the answer at a word?|Is there a stop sequence?"
        "|What are stop strings?|How do I use stop sequences?|Limit of stop strings?",
        "Can the answer end at a stop string of mine?|How many strings may stop hold?",
    ),
    (
        "Ask with \"logprobs\"; at most 20 alternatives are returned for each token.",
        "logprobs",
        "How do I get logprobs?|Can I get log probabilities?|How many logprobs are returned?"
        "|Does the server return logprobs?|How do I see the probabilities?|Limit of logprobs?"
        "|How do I get the probability of a token?|Are logprobs supported?|Top logprobs?",
        "I want to see log probabilities of tokens, how?|What is the largest number of logprobs?",
    ),
    (
        "Set \"n\" for several answers; a request may have at most 128 sequences.",
        "128",
        "How do I get several answers?|What does n do?|How many answers can one request have?"
        "|How do I sample more than one answer?|Can I get many completions at once?"
        "|How many sequences per request?|What is n?|Several choices in one request?",
        "How can one request return several choices?|How many sequences at most in a request?",
    ),
    (
        "Put the functions in \"tools\" of a chat request.",
        "tools",
        "How do I use tools?|Can the model call functions?|How do I give it tools?"
        "|Does it support tool calls?|How does function calling work?|Where do I put the tools?"
        "|Are tool calls supported?|How do I define a function for the model?|Function calling?",
        "I want the model to call my functions, how?|Is function calling supported?",
    ),
    (
        "Errors come in the OpenAI envelope: message, type, param and code.",
        "envelope",
        "How do errors look?|What is the error format?|What does an error contain?"
        "|Which fields does an error have?|How are errors returned?|What is in an error?"
        "|Describe the errors.|Format of errors?|What do I get when a request is wrong?",
        "What format do the errors have?|If a request is wrong, how does the error look?",
    ),
    (
        "The bundled model has a context of 2048 tokens.",
        "2048",
        "How long is the context?|What is the context length?|How many tokens fit in the context?"
        "|How long may a prompt be?|What is the context size of the bundled model?|Context window?"
        "|How large is the context?|How many tokens can the model read?",
        "What length of context does the model have?|How many tokens may there be in the context?",
    ),
    (
        "A prompt that is too long gets status 400 with the code context_length_exceeded.",
        "context_length_exceeded",
        "What happens when a prompt is too long?|What if my prompt does not fit?"
        "|What is context_length_exceeded?|What does the server do with a prompt beyond the context?"
        "|My prompt is too long.|Which error does a too long prompt get?|Too long a prompt?",
        "What error comes if the prompt is too long?|My prompt is longer than allowed, what then?",
    ),
    (
        "Use --kv-cache-memory to limit the memory of the KV cache.",
        "--kv-cache-memory",
        "How do I limit the memory?|Which option limits the cache memory?|How big is the KV cache?"
        "|How do I set the memory of the KV cache?|How do I save memory?|It uses too much memory."
        "|What is the option for cache memory?|Limit for the KV cache?|Can I bound the memory?",
        "What flag is there to limit memory of the cache?|How could I make it use less memory?",
    ),
    (
        "Use load and generate from mlx_parallm.utils.",
        "mlx_parallm.utils",
        "How do I use it from Python?|Is there a Python API?|How do I generate text in Python?"
        "|Which module do I import?|Can I use it without the server?|How do I call it in Python code?"
        "|What do I import?|How do I load a model in Python?|Python API?",
        "Can I generate from my Python code without a server?|What module is imported in Python?",
    ),
    (
        "batch_generate answers many prompts at once in Python.",
        "batch_generate",
        "How do I generate for many prompts in Python?|What is batch_generate?"
        "|Which function takes a list of prompts?|How do I run 500 prompts?|Batch in Python?"
        "|How do I answer many prompts at once?|Python function for a batch of prompts?",
        "What Python function do I call for a list of many prompts?|How do I batch prompts in Python?",
    ),
    (
        "mlx_parallm_serve --version prints the version.",
        "--version",
        "Which version do I have?|How do I see the version?|What is the version of mlx_parallm?"
        "|How do I print the version?|Version?|Which option shows the version?"
        "|How do I find out the version?|Which release is installed?|Version number?",
        "What prints the version number?|How can I find out which version is installed?",
    ),
    (
        "Every response carries its id in the header x-request-id.",
        "x-request-id",
        "Where is the request id?|How do I get the id of a request?|Which header has the request id?"
        "|What is x-request-id?|How do I trace a request?|Does a response have an id?"
        "|Which header identifies a request?|Request id?|How do I find a request in the log?",
        "In what header do I find the id of my request?|How could I trace one request?",
    ),
    (
        "While it loads or drains, the server answers with status 503.",
        "503",
        "What does status 503 mean?|Why do I get a 503?|What happens while the model loads?"
        "|What does the server answer while loading?|I got error 503.|What happens while it drains?"
        "|Which status comes while it is loading?|The server says 503.",
        "Why did it answer with 503?|What status is returned while the model is loading?",
    ),
    (
        "Adapters are added, listed and removed at /v1/adapters.",
        "/v1/adapters",
        "How do I add an adapter?|Which endpoint is for adapters?|Does it support LoRA?"
        "|How do I load a LoRA adapter?|Can I use adapters?|How do I remove an adapter?"
        "|Where do I list the adapters?|LoRA?|What is the adapters endpoint?",
        "What path do I use to load LoRA adapters?|Where are adapters listed and removed?",
    ),
    (
        "Extended Mind memories are kept at /v1/models/{id}/memories.",
        "/memories",
        "What is Extended Mind?|How do I add a memory?|Which endpoint is for memories?"
        "|Where are the memories kept?|How do I give the model a memory?|Can the model have memories?"
        "|How do I use Extended Mind memories?|Memories?|What is the memories endpoint?",
        "By which route do I add Extended Mind memories?|Where can I give it a memory?",
    ),
    (
        "Use --prefill-chunk to set how many prompt tokens are computed in one step.",
        "--prefill-chunk",
        "What is a prefill chunk?|How do I change the prefill chunk?|Which option sets the chunk?"
        "|How are long prompts computed?|Does a long prompt stop the others?|What is chunked prefill?"
        "|How many prompt tokens are computed per step?|Option for prefill?|What is prefill?",
        "What flag sets the size of a prefill chunk?|In what way are long prompts prefilled?",
    ),
    (
        "Send stream_options with include_usage to get the usage in a stream.",
        "include_usage",
        "How do I get the usage in a stream?|What is include_usage?|Where is the usage when streaming?"
        "|How many tokens did my stream use?|How do I count tokens in a stream?|Usage in streams?"
        "|Which option gives the usage of a stream?|What are stream_options?",
        "Can a stream tell me its token usage?|How is usage included when I stream?",
    ),
)
