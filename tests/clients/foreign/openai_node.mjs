// The OpenAI SDK for Node.
import OpenAI from "openai";
import { report } from "./report.mjs";

const options = { baseURL: `${process.env.OUTCROP_URL}/v1`, apiKey: process.env.OUTCROP_BEARER_KEY, maxRetries: 0 };
const client = new OpenAI(options);
const messages = [{ role: "user", content: "for each record" }];
const greedy = { model: "roomy", messages, max_tokens: 6, temperature: 0 };
const parameters = { type: "object", properties: { city: { type: "string", enum: ["Paris"] } }, required: ["city"] };

await report({
  models: async () => (await client.models.list()).data.map((model) => model.id),
  chat: async () => (await client.chat.completions.create(greedy)).choices[0].message.content,
  chatStream: async () => {
    const stream = await client.chat.completions.create({ ...greedy, stream: true, stream_options: { include_usage: true } });
    let text = "";
    let usage = null;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content ?? "";
      usage = chunk.usage ?? usage;
    }
    return { text, tokens: usage.completion_tokens };
  },
  streamRunner: async () => await client.chat.completions.stream(greedy).finalContent(),
  forcedTool: async () => {
    const answer = await client.chat.completions.create({
      ...greedy,
      model: "tools",
      max_tokens: 200,
      tools: [{ type: "function", function: { name: "get_weather", parameters } }],
      tool_choice: "required",
    });
    return answer.choices[0].message.tool_calls[0].function;
  },
  unknownModel: () => client.chat.completions.create({ ...greedy, model: "absent" }),
  badRequest: () => client.chat.completions.create({ ...greedy, messages: [] }),
  wrongKey: () => new OpenAI({ ...options, apiKey: "wrong" }).models.list(),
});
