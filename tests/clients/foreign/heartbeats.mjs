// Streams that are held while a copy starts: their heartbeats must reach no caller. One cold model per scenario.
import {
  BedrockRuntimeClient,
  ConverseStreamCommand,
  InvokeModelCommand,
  InvokeModelWithResponseStreamCommand,
} from "@aws-sdk/client-bedrock-runtime";
import OpenAI from "openai";
import { report, settings } from "./report.mjs";

const models = JSON.parse(process.env.OUTCROP_COLD_MODELS);
const runtime = new BedrockRuntimeClient({ endpoint: settings.url, region: process.env.AWS_REGION });
const openai = new OpenAI({ baseURL: `${settings.url}/v1`, apiKey: process.env.OUTCROP_BEARER_KEY });
const body = JSON.stringify({ prompt: "for each", max_gen_len: 4 });
const messages = [{ role: "user", content: [{ text: "for each" }] }];

async function kinds(answer) {
  const found = [];
  for await (const event of answer.stream ?? answer.body) found.push(Object.keys(event)[0]);
  return found;
}

await report({
  invokeStream: async () =>
    kinds(await runtime.send(new InvokeModelWithResponseStreamCommand({ modelId: models.invokeStream, body }))),
  converseStream: async () =>
    kinds(await runtime.send(new ConverseStreamCommand({ modelId: models.converseStream, messages }))),
  whole: async () => {
    const answer = await runtime.send(new InvokeModelCommand({ modelId: models.whole, body }));
    return JSON.parse(new TextDecoder().decode(answer.body)).generation_token_count;
  },
  openai: async () => {
    const asked = { model: models.openai, messages: [{ role: "user", content: "x" }], max_tokens: 4, stream: true };
    const found = [];
    for await (const chunk of await openai.chat.completions.create(asked)) found.push(chunk.object);
    return found;
  },
});
