// Runs scenarios one after the other and prints what each gave, as one JSON object on standard output.
export const settings = {
  url: process.env.OUTCROP_URL,
  model: process.env.OUTCROP_MODEL_ARN,
  toolModel: process.env.OUTCROP_TOOL_MODEL_ARN,
  source: process.env.OUTCROP_SOURCE,
  role: process.env.OUTCROP_ROLE_ARN,
};

export async function report(scenarios) {
  const found = {};
  for (const [name, run] of Object.entries(scenarios)) {
    try {
      found[name] = { value: await run() };
    } catch (error) {
      const status = error.$metadata?.httpStatusCode ?? error.statusCode ?? error.status;
      found[name] = { error: { name: error.name, message: String(error.message), status } };
    }
  }
  process.stdout.write(JSON.stringify(found));
}
