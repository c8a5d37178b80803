// gRPC for Node (@grpc/grpc-js), as a client of our server: tests/system/foreign_clients.py says what it has to do.
// node grpc_js_client.js HOST:PORT FOLDER COUNT, with NODE_PACKAGES set to the folder of node_modules.
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const { createRequire } = require("node:module");

const [address, folder, count] = process.argv.slice(2);
const load = createRequire(path.join(process.env.NODE_PACKAGES, "package.json"));
const grpc = load("@grpc/grpc-js");

const read = (name) => fs.readFileSync(path.join(folder, name));
const [request, answer, streamRequest, streamAnswer] = ["request", "answer", "stream-request", "stream-answer"].map(read);
const same = (data) => data;
const method = (name, requestStream, responseStream) => ({
  path: name, requestStream, responseStream,
  requestSerialize: same, requestDeserialize: same, responseSerialize: same, responseDeserialize: same,
});
const Client = grpc.makeGenericClientConstructor({
  classify: method("/lenserve.v1.Classifier/Classify", false, false),
  stream: method("/lenserve.v1.Classifier/ClassifyStream", true, true),
  watch: method("/grpc.health.v1.Health/Watch", false, true),
}, "Foreign");
const client = new Client(address, grpc.credentials.createInsecure());
const minute = () => ({ deadline: Date.now() + 60000 });
const code = (error) => `${error.code}: ${error.details}`;

function unary() {
  return new Promise((resolve) => {
    client.classify(request, minute(), (error, got) => {
      resolve(error ? code(error) : answer.equals(got) ? "OK" : "a wrong answer");
    });
  });
}

function counted(outcomes) {
  const counts = {};
  for (const each of outcomes) counts[each] = (counts[each] || 0) + 1;
  return counts;
}

function stream(messages) {
  return new Promise((resolve) => {
    const outcomes = [];
    const call = client.stream(minute());
    call.on("data", (got) => outcomes.push(streamAnswer.equals(got) ? "OK" : "a wrong answer"));
    call.on("error", (error) => { outcomes.push(code(error)); resolve(counted(outcomes)); });
    call.on("end", () => resolve(counted(outcomes)));
    for (let each = 0; each < messages; each++) call.write(streamRequest);
    call.end();
  });
}

function watch(options, afterFirst) {
  return new Promise((resolve) => {
    const call = client.watch(Buffer.alloc(0), options);
    call.on("data", () => afterFirst(call));
    call.on("error", (error) => resolve(code(error)));
    call.on("end", () => resolve("OK"));
  });
}

async function main() {
  const report = {
    version: `@grpc/grpc-js ${load("@grpc/grpc-js/package.json").version}`,
    unary: await unary(),
    stream: await stream(Math.floor(count / 10)),
    late: await watch({ deadline: Date.now() + 300 }, () => {}),
    cancelled: await watch(minute(), (call) => call.cancel()),
    burst: counted(await Promise.all(Array.from({ length: count }, unary))),
    after: await unary(),
  };
  client.close();
  process.stdout.write(JSON.stringify(report));
}

main();
