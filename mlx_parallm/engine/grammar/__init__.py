"""Grammars: which tokens a sequence may say next. No mlx in this room.

    compiler = Compiler(tokenizer, vocab_size, end_token_ids)    # one for a model
    grammar = Grammar.json_schema(schema, strict=True)           # or json_object, regex,
                                                                 # choice, lark, gbnf
    constraint = compiler.constraint(grammar, gate, param="response_format").result()
    sequence = Sequence(prompt, params, constraint=constraint)   # constraint.copy() for each of n

`Compiler.constraint(grammar: Grammar | None, gate: Gate | None = None, *, param: str)
-> concurrent.futures.Future[Constraint]` raises, by its future, InvalidRequestError with that
`param` where a grammar is wrong, cannot be enforced or is too expensive. On an event loop:
`await asyncio.wrap_future(...)`; a grammar that was seen before is there at once.

`Gate(marker=(id,), opener=id, may_end=False, budget=None)` lets free text come before what the
grammar holds: until the marker's tokens were said. Without a grammar it only ends thinking after
`budget` tokens. Where a marker is text of several tokens, `grammar.after_text(marker)`.

For several structures between free text (tool calls under "auto"), write Lark:
https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md; `<[123]>` is a token by its
id, `<|name|>` by its name, `%json {...}` a schema within.

What is where: grammar (what is asked for), limits (of schemas), compiler (tokenizer, cache,
pool), trial (a process that may be ended), gate, constraint (one sequence's state), masks (of
one step).
"""

from mlx_parallm.engine.grammar.compiler import Compiler
from mlx_parallm.engine.grammar.constraint import Constraint
from mlx_parallm.engine.grammar.gate import Gate
from mlx_parallm.engine.grammar.grammar import Grammar

__all__ = ["Compiler", "Constraint", "Gate", "Grammar"]
