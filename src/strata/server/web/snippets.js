// What asks this server the same from a program.

/** What OpenAI's own clients know; the rest goes beside it. */
const OPENAI = ["temperature", "top_p", "max_tokens", "seed", "stop", "presence_penalty", "frequency_penalty"];

const quoted = (value) => JSON.stringify(value);
const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/**
 * A program of a `kind` (a key of SNIPPETS) that says `prompt` to `model` at `origin` with
 * `sampling` and, where it is not null, the `system` prompt.
 */
export function snippet(kind, asked) {
  const messages = [{ role: "user", content: asked.prompt }];
  if (asked.system !== null) messages.unshift({ role: "system", content: asked.system });
  return SNIPPETS[kind].write({ ...asked, messages });
}

export const SNIPPETS = {
  curl: {
    language: "sh",
    write({ origin, model, messages, sampling }) {
      const body = JSON.stringify({ model, messages, ...sampling }, null, 2);
      const lines = [
        `curl ${origin}/v1/chat/completions`,
        `-H "Authorization: Bearer $STRATA_API_KEY"`,
        `-d ${shell(body)}`,
      ];
      return lines.join(" \\\n  ");
    },
  },
  Python: {
    language: "python",
    write({ origin, model, messages, sampling }) {
      const own = Object.entries(sampling).filter(([name]) => OPENAI.includes(name));
      const other = Object.entries(sampling).filter(([name]) => !OPENAI.includes(name));
      const beside = other.map(([name, value]) => `${quoted(name)}: ${quoted(value)}`).join(", ");
      return [
        "import os",
        "",
        "from openai import OpenAI",
        "",
        "client = OpenAI(",
        `    base_url=${quoted(`${origin}/v1`)},`,
        '    api_key=os.environ.get("STRATA_API_KEY", "none"),',
        ")",
        "answer = client.chat.completions.create(",
        `    model=${quoted(model)},`,
        "    messages=[",
        ...messages.map(({ role, content }) => `        {"role": ${quoted(role)}, "content": ${quoted(content)}},`),
        "    ],",
        ...own.map(([name, value]) => `    ${name}=${quoted(value)},`),
        ...(beside ? [`    extra_body={${beside}},`] : []),
        ")",
        "print(answer.choices[0].message.content)",
      ].join("\n");
    },
  },
  JavaScript: {
    language: "js",
    write({ origin, model, messages, sampling }) {
      const body = JSON.stringify({ model, messages, ...sampling }, null, 2);
      return [
        'import OpenAI from "openai";',
        "",
        "const client = new OpenAI({",
        `  baseURL: ${quoted(`${origin}/v1`)},`,
        '  apiKey: process.env.STRATA_API_KEY ?? "none",',
        "});",
        `const answer = await client.chat.completions.create(${body});`,
        "console.log(answer.choices[0].message.content);",
      ].join("\n");
    },
  },
  Ollama: {
    language: "python",
    write({ origin, model, messages, sampling }) {
      const { max_tokens, ...rest } = sampling;
      const options = { ...rest, ...(max_tokens !== undefined && { num_predict: max_tokens }) };
      return [
        "from ollama import Client",
        "",
        `client = Client(host=${quoted(origin)})`,
        "answer = client.chat(",
        `    model=${quoted(model)},`,
        `    messages=${quoted(messages)},`,
        `    options=${quoted(options)},`,
        ")",
        "print(answer.message.content)",
      ].join("\n");
    },
  },
};
