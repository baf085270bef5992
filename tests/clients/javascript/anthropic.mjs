// The @anthropic-ai/sdk package: node anthropic.mjs URL; prints what it was answered as JSON.
import Anthropic from "@anthropic-ai/sdk";
import { betaTool } from "@anthropic-ai/sdk/helpers/beta/json-schema";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { z } from "zod";

const client = new Anthropic({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What is the weather in Paris?" }];
const asked = { model: "scripted", max_tokens: 200, messages };
const Weather = z.object({ city: z.literal("Paris"), degrees: z.literal(21) });
const blocks = (message) => message.content.map((block) => block.text ?? block.thinking);

async function message() {
  const whole = await client.messages.create(asked);
  const stream = client.messages.stream(asked);
  const kinds = [];
  for await (const event of stream) kinds.push(event.type);
  const counted = await client.messages.countTokens({ model: asked.model, messages });
  return {
    whole: blocks(whole),
    streamed: blocks(await stream.finalMessage()),
    kinds: [...new Set(kinds)],
    isCounted: counted.input_tokens === whole.usage.input_tokens + whole.usage.cache_read_input_tokens,
  };
}

async function parsed() {
  const output_config = { format: zodOutputFormat(Weather) };
  return (await client.messages.parse({ ...asked, output_config })).parsed_output;
}

async function tools() {
  const cities = [];
  const tool = betaTool({
    name: "get_weather",
    description: "Look outside.",
    inputSchema: {
      type: "object",
      properties: { city: { type: "string", enum: ["Paris"] } },
      required: ["city"],
      additionalProperties: false,
    },
    run: ({ city }) => {
      cities.push(city);
      return "21 degrees";
    },
  });
  const runner = client.beta.messages.toolRunner({ ...asked, tools: [tool], stream: true });
  let final;
  for await (const stream of runner) final = await stream.finalMessage();
  return { cities, final: blocks(final).at(-1) };
}

async function failure() {
  try {
    await client.messages.create({ ...asked, model: "other" });
  } catch (error) {
    return { name: error.constructor.name, status: error.status };
  }
}

console.log(
  JSON.stringify({
    message: await message(),
    parsed: await parsed(),
    tools: await tools(),
    failure: await failure(),
  }),
);
