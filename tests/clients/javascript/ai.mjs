// Vercel's ai package: node ai.mjs URL; prints what each of its providers was answered as JSON.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const root = process.argv[2];
const options = { baseURL: `${root}/v1`, apiKey: "none" };
const compatible = createOpenAICompatible({
  ...options,
  name: "ours",
  supportsStructuredOutputs: true,
  includeUsage: true,
});
const openai = createOpenAI(options);
const models = {
  compatible: compatible("scripted"),
  anthropic: createAnthropic(options)("scripted"),
  chat: openai.chat("scripted"),
  responses: openai.responses("scripted"),
};
const prompt = "What is the weather in Paris?";
const schema = z.object({ city: z.literal("Paris"), degrees: z.literal(21) });

async function asked(model) {
  const cities = [];
  const get_weather = tool({
    description: "Look outside.",
    inputSchema: z.object({ city: z.literal("Paris") }),
    execute: async ({ city }) => {
      cities.push(city);
      return "21 degrees";
    },
  });
  // Of thinking, the provider for Responses reads summaries only.
  const providerOptions = { openai: { forceReasoning: true, reasoningSummary: "auto" } };
  const common = { model, prompt, maxRetries: 0, maxOutputTokens: 300, providerOptions };
  const whole = await generateText(common);
  const structured = await generateText({ ...common, output: Output.object({ schema }) });
  const stepped = { ...common, tools: { get_weather }, stopWhen: stepCountIs(3) };
  const stream = streamText({ ...stepped, onError: ({ error }) => { throw error; } });
  const parts = [];
  for await (const part of stream.fullStream) parts.push(part.type);
  return {
    text: whole.text,
    thought: whole.reasoningText,
    tokens: whole.usage.outputTokens > 0,
    structured: structured.output,
    cities,
    parts: [...new Set(parts)],
    final: await stream.text,
    steps: (await stream.steps).length,
  };
}

const answers = {};
for (const [name, model] of Object.entries(models)) {
  try {
    answers[name] = await asked(model);
  } catch (error) {
    answers[name] = { error: `${error} ${error.responseBody ?? ""}` };
  }
}
console.log(JSON.stringify(answers));
