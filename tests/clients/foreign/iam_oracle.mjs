// Decides cases with an IAM simulator that other people wrote: JSON lines in, a line with the verdict for each out.
import { runSimulation } from '@cloud-copilot/iam-simulate'
import { createInterface } from 'node:readline'

for await (const line of createInterface({ input: process.stdin })) {
  const answer = await runSimulation(JSON.parse(line), {})
  const said = answer.resultType === 'error' ? { error: answer.errors.message, more: answer.errors } : { verdict: answer.overallResult }
  process.stdout.write(JSON.stringify(said) + '\n')
}
