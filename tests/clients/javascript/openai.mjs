// The openai package: node openai.mjs URL; prints what it was answered as JSON.
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const model = "scripted";
const question = "What is the weather in Paris?";
const messages = [{ role: "user", content: question }];
const Weather = z.object({ city: z.literal("Paris"), degrees: z.literal(21) });
const parameters = {
  type: "object",
  properties: { city: { type: "string", enum: ["Paris"] } },
  required: ["city"],
  additionalProperties: false,
};
const described = { name: "get_weather", description: "Look outside.", parameters };

async function chat() {
  const whole = await client.chat.completions.create({ model, messages });
  let streamed = "";
  const usage = { include_usage: true };
  const stream = { model, messages, stream: true, stream_options: usage };
  for await (const chunk of await client.chat.completions.create(stream))
    streamed += chunk.choices[0]?.delta?.content ?? "";
  const response_format = zodResponseFormat(Weather, "weather");
  const parsed = await client.chat.completions.parse({ model, messages, response_format });
  return {
    whole: whole.choices[0].message.content,
    streamed,
    parsed: parsed.choices[0].message.parsed,
  };
}

async function chatTools() {
  const asked = [];
  const called = {
    ...described,
    parse: JSON.parse,
    function: ({ city }) => {
      asked.push(city);
      return "21 degrees";
    },
  };
  const tools = [{ type: "function", function: called }];
  const runner = client.chat.completions.runTools({ model, messages, tools, stream: true });
  return { asked, final: await runner.finalContent() };
}

async function responses() {
  const text = { format: zodTextFormat(Weather, "weather") };
  const parsed = await client.responses.parse({ model, input: question, text });
  const events = [];
  for await (const event of client.responses.stream({ model, input: question }))
    events.push(event.type);
  const tools = [{ type: "function", ...described, strict: true }];
  const stream = client.responses.stream({ model, input: question, tools });
  const called = await stream.finalResponse();
  const call = called.output.find((item) => item.type === "function_call");
  const output = { type: "function_call_output", call_id: call.call_id, output: "21" };
  const next = { model, input: [output], tools, previous_response_id: called.id };
  const after = await client.responses.create(next);
  return {
    parsed: parsed.output_parsed,
    events: [...new Set(events)],
    call: [call.name, JSON.parse(call.arguments)],
    after: after.output_text,
  };
}

async function failure() {
  try {
    await client.chat.completions.create({ model: "other", messages });
  } catch (error) {
    return { name: error.constructor.name, status: error.status, code: error.code };
  }
}

const models = [];
for await (const entry of client.models.list()) models.push(entry.id);
console.log(
  JSON.stringify({
    models,
    chat: await chat(),
    chatTools: await chatTools(),
    responses: await responses(),
    failure: await failure(),
  }),
);
