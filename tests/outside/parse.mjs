// Parses the diagrams whose texts are a JSON list on standard input; writes a list of what became of each.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const from = createRequire(process.argv[2] + "/");
const { JSDOM } = from("jsdom");
const { window } = new JSDOM("");
Object.assign(globalThis, { window, document: window.document });
const { default: mermaid } = await import(pathToFileURL(process.argv[2] + "/mermaid/dist/mermaid.core.mjs"));

let text = "";
for await (const part of process.stdin) text += part;
const found = [];
for (const diagram of JSON.parse(text)) {
  try {
    const kind = await mermaid.parse(diagram);
    const { db } = await mermaid.mermaidAPI.getDiagramFromText(diagram);
    const states = db.getData ? db.getData() : null;
    found.push({ kind: kind.diagramType, nodes: states?.nodes.length, edges: states?.edges.length });
  } catch (error) {
    found.push({ error: String(error) });
  }
}
console.log(JSON.stringify(found));
