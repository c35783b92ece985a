// Every Bedrock call of the AWS SDK for JavaScript that an imported model answers, against the server in OUTCROP_URL.
// Prints one JSON object: scenario -> {value} or {error}.
import {
  BedrockClient,
  CreateModelImportJobCommand,
  DeleteImportedModelCommand,
  GetImportedModelCommand,
  GetModelImportJobCommand,
  paginateListImportedModels,
} from "@aws-sdk/client-bedrock";
import {
  BedrockRuntimeClient,
  ConverseCommand,
  ConverseStreamCommand,
  InvokeModelCommand,
  InvokeModelWithResponseStreamCommand,
} from "@aws-sdk/client-bedrock-runtime";
import { report, settings } from "./report.mjs";

const { url, model, toolModel, source, role } = settings;
const options = { endpoint: url, region: process.env.AWS_REGION, maxAttempts: 1 };
const bedrock = new BedrockClient(options);
const runtime = new BedrockRuntimeClient(options);
const user = (text) => [{ role: "user", content: [{ text }] }];
const greedy = (maxTokens) => ({ maxTokens, temperature: 0 });
const weather = {
  toolSpec: {
    name: "get_weather",
    description: "Weather of a city",
    inputSchema: { json: { type: "object", properties: { city: { type: "string", enum: ["Paris"] } }, required: ["city"] } },
  },
};
const decode = (bytes) => JSON.parse(new TextDecoder().decode(bytes));
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function invoke(body, modelId = model) {
  const answer = await runtime.send(new InvokeModelCommand({ modelId, body: JSON.stringify(body) }));
  return decode(answer.body);
}

async function events(command) {
  const answer = await runtime.send(command);
  const found = [];
  for await (const event of answer.stream ?? answer.body) found.push(event);
  return found;
}

await report({
  invoke: () => invoke({ prompt: "for each", max_gen_len: 5, temperature: 0 }),
  invokeChat: () => invoke({ messages: [{ role: "user", content: "for each" }], max_tokens: 5, temperature: 0 }),
  invokeStream: async () => {
    const body = JSON.stringify({ prompt: "for each", max_gen_len: 5, temperature: 0 });
    return (await events(new InvokeModelWithResponseStreamCommand({ modelId: model, body }))).map((event) => decode(event.chunk.bytes));
  },
  converse: async () => {
    const { $metadata, ...answer } = await runtime.send(
      new ConverseCommand({ modelId: model, system: [], messages: user("for each"), inferenceConfig: greedy(6) }),
    );
    return { ...answer, status: $metadata.httpStatusCode, requestId: $metadata.requestId };
  },
  converseStream: () => events(new ConverseStreamCommand({ modelId: model, messages: user("for each"), inferenceConfig: greedy(6) })),
  forcedTool: async () => {
    const toolConfig = { tools: [weather], toolChoice: { tool: { name: "get_weather" } } };
    return await runtime.send(
      new ConverseCommand({ modelId: toolModel, messages: user("Paris?"), inferenceConfig: greedy(200), toolConfig }),
    );
  },
  forcedToolStream: () => {
    const toolConfig = { tools: [weather], toolChoice: { any: {} } };
    return events(
      new ConverseStreamCommand({ modelId: toolModel, messages: user("Paris?"), inferenceConfig: greedy(200), toolConfig }),
    );
  },
  toolResult: async () => {
    const messages = [
      ...user("Paris?"),
      { role: "assistant", content: [{ toolUse: { toolUseId: "t1", name: "get_weather", input: { city: "Paris" } } }] },
      { role: "user", content: [{ toolResult: { toolUseId: "t1", content: [{ json: { sky: "clear" } }] } }] },
    ];
    const { usage } = await runtime.send(
      new ConverseCommand({ modelId: toolModel, messages, inferenceConfig: greedy(1), toolConfig: { tools: [weather] } }),
    );
    return usage;
  },
  unknownModel: () => invoke({ prompt: "x" }, model.replace(/[^/]+$/, "aaaaaaaaaaaa")),
  badBody: () => invoke({ prompt: 7 }),
  tooLong: () => invoke({ prompt: "for each record ".repeat(3000) }),
  wrongSecret: () => {
    const credentials = { accessKeyId: process.env.AWS_ACCESS_KEY_ID, secretAccessKey: "wrong" };
    return new BedrockRuntimeClient({ ...options, credentials }).send(
      new ConverseCommand({ modelId: model, messages: user("x") }),
    );
  },
  abortedStream: async () => {
    const abort = new AbortController();
    const body = JSON.stringify({ messages: [{ role: "user", content: "x" }], max_tokens: 1900, ignore_eos: true });
    const answer = await runtime.send(new InvokeModelWithResponseStreamCommand({ modelId: model, body }), {
      abortSignal: abort.signal,
    });
    for await (const event of answer.body) {
      abort.abort();
      return event.chunk !== undefined;
    }
  },
  manySessions: async () => {
    let count = 0;
    for (let round = 0; round < 10; round += 1) {
      const answers = await Promise.all(Array.from({ length: 10 }, () => invoke({ prompt: "for", max_gen_len: 1 })));
      count += answers.filter((answer) => answer.generation_token_count === 1).length;
    }
    return count;
  },
  importAndDelete: async () => {
    const { jobArn } = await bedrock.send(
      new CreateModelImportJobCommand({
        jobName: "from-javascript",
        importedModelName: "javascript",
        roleArn: role,
        modelDataSource: { s3DataSource: { s3Uri: source } },
      }),
    );
    let job;
    do {
      await sleep(100);
      job = await bedrock.send(new GetModelImportJobCommand({ jobIdentifier: jobArn }));
    } while (job.status === "InProgress");
    const names = [];
    for await (const page of paginateListImportedModels({ client: bedrock, pageSize: 1 }, {}))
      names.push(...page.modelSummaries.map((summary) => summary.modelName));
    const described = await bedrock.send(new GetImportedModelCommand({ modelIdentifier: "javascript" }));
    await bedrock.send(new DeleteImportedModelCommand({ modelIdentifier: "javascript" }));
    return { status: job.status, failure: job.failureMessage, names, created: described.creationTime instanceof Date };
  },
  deletedModel: () => bedrock.send(new GetImportedModelCommand({ modelIdentifier: "javascript" })),
});
