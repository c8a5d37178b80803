// Classifies with gRPC for Node (@grpc/grpc-js), whose HTTP/2 is Node's own: node node_client.js HOST:PORT IMAGE PROTO PACKAGES
// Prints one JSON object: what an image, many at once, an unknown model and a late call came to.
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const { createRequire } = require("node:module");

const [address, image, proto, packages] = process.argv.slice(2);
const load = createRequire(path.join(packages, "package.json"));
const grpc = load("@grpc/grpc-js");
const loader = load("@grpc/proto-loader");

const { Classifier } = grpc.loadPackageDefinition(loader.loadSync(proto)).lenserve.v1;
const client = new Classifier(address, grpc.credentials.createInsecure());
const request = { model: "colours", images: [{ encoded: fs.readFileSync(image) }] };

function classify(message, options = {}) {
  return new Promise((resolve) => {
    const metadata = new grpc.Metadata();
    metadata.set("x-request-id", "from-node");
    let trailers = {};
    const call = client.classify(message, metadata, options, (error, answer) => {
      setImmediate(() => resolve(error ? failure(error) : { labels: labels(answer), trailers }));
    });
    call.on("status", (status) => { trailers = status.metadata.getMap(); });
  });
}

function labels(answer) {
  return answer.predictions.map((each) => each.ranking.labels.map(({ label, probability }) => [label, probability]));
}

function failure(error) {
  const { code, details } = error;
  return { code: grpc.status[code], details, has_details: error.metadata.get("grpc-status-details-bin").length === 1 };
}

async function main() {
  const report = {
    one: await classify(request),
    many: await Promise.all(Array.from({ length: 200 }, () => classify(request))),
    large: await classify({ ...request, images: Array(100).fill(request.images[0]) }),
    unknown: await classify({ ...request, model: "shapes" }),
    late: await classify(request, { deadline: Date.now() - 1 }),
  };
  client.close();
  process.stdout.write(JSON.stringify(report));
}

main();
