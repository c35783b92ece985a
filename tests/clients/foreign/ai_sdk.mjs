// Vercel's AI SDK: signs and decodes by itself, sends "system": [] and no inferenceConfig.
import { createAmazonBedrock } from "@ai-sdk/amazon-bedrock";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, jsonSchema, streamText, tool } from "ai";
import { report, settings } from "./report.mjs";

const bedrock = createAmazonBedrock({
  baseURL: settings.url,
  region: process.env.AWS_REGION,
  accessKeyId: process.env.AWS_ACCESS_KEY_ID,
  secretAccessKey: process.env.AWS_SECRET_ACCESS_KEY,
});
const model = bedrock(settings.model);
const asked = { model, prompt: "for each record", maxOutputTokens: 6, temperature: 0, maxRetries: 0 };
const city = { type: "object", properties: { city: { type: "string", enum: ["Paris"] } }, required: ["city"], additionalProperties: false };

const compatible = createOpenAICompatible({
  name: "outcrop",
  baseURL: `${settings.url}/v1`,
  apiKey: process.env.OUTCROP_BEARER_KEY,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const plain = { ...asked, model: compatible("roomy") };

// Its default is the Responses API.
const responses = createOpenAI({ baseURL: `${settings.url}/v1`, apiKey: process.env.OUTCROP_BEARER_KEY });
const responding = { ...asked, model: responses("roomy"), maxOutputTokens: 16 };

await report({
  responsesText: async () => {
    const { text, usage, finishReason } = await generateText(responding);
    return { text, tokens: usage.outputTokens, finishReason };
  },
  responsesStream: async () => {
    const result = streamText(responding);
    let text = "";
    for await (const piece of result.textStream) text += piece;
    return { text, tokens: (await result.usage).outputTokens, finishReason: await result.finishReason };
  },
  responsesTool: async () => {
    const tools = { get_weather: tool({ description: "Weather of a city", inputSchema: jsonSchema(city) }) };
    const result = streamText({ ...responding, model: responses("tools"), maxOutputTokens: 200, tools, toolChoice: "required" });
    return (await result.toolCalls).map((call) => ({ name: call.toolName, input: call.input }));
  },
  compatibleText: async () => {
    const { text, usage, finishReason } = await generateText(plain);
    return { text, tokens: usage.outputTokens, finishReason };
  },
  compatibleStream: async () => {
    const result = streamText(plain);
    let text = "";
    for await (const piece of result.textStream) text += piece;
    return { text, tokens: (await result.usage).outputTokens, finishReason: await result.finishReason };
  },
  compatibleObject: async () => (await generateObject({ ...plain, maxOutputTokens: 60, schema: jsonSchema(city) })).object,
  compatibleTool: async () => {
    const tools = { get_weather: tool({ description: "Weather of a city", inputSchema: jsonSchema(city) }) };
    const result = streamText({ ...plain, model: compatible("tools"), maxOutputTokens: 200, tools, toolChoice: "required" });
    return (await result.toolCalls).map((call) => ({ name: call.toolName, input: call.input }));
  },
  compatibleUnknownModel: () => generateText({ ...plain, model: compatible("absent") }),
  text: async () => {
    const { text, usage, finishReason } = await generateText(asked);
    return { text, tokens: usage.outputTokens, finishReason };
  },
  bare: async () => (await generateText({ model, messages: [{ role: "user", content: "for each" }], maxRetries: 0, maxOutputTokens: 2 })).usage.outputTokens,
  stream: async () => {
    let text = "";
    for await (const piece of streamText(asked).textStream) text += piece;
    return text;
  },
  forcedTool: async () => {
    const { toolCalls } = await generateText({
      ...asked,
      model: bedrock(settings.toolModel),
      maxOutputTokens: 200,
      tools: { get_weather: tool({ description: "Weather of a city", inputSchema: jsonSchema(city) }) },
      toolChoice: "required",
    });
    return { name: toolCalls[0].toolName, input: toolCalls[0].input };
  },
  unknownModel: () => generateText({ ...asked, model: bedrock(settings.model.replace(/[^/]+$/, "aaaaaaaaaaaa")) }),
  wrongSecret: () =>
    generateText({
      ...asked,
      model: createAmazonBedrock({
        baseURL: settings.url,
        region: process.env.AWS_REGION,
        accessKeyId: process.env.AWS_ACCESS_KEY_ID,
        secretAccessKey: "wrong",
      })(settings.model),
    }),
});
