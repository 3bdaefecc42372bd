// The Inception v3 of the npm package nsfwjs 4.4.0, whose weights are 8-bit numbers inside of JavaScript.
//
//     node nsfw_inception.cjs weights package/dist/models/inception_v3 OUT.safetensors
//         its weights in f32, under Keras' names
//     node nsfw_inception.cjs features package/dist/models/inception_v3 PIXELS WIDTH HEIGHT OUT
//         (with TensorFlow.js in NODE_PATH) the prepared picture [299, 299, 3], then its 2048 features, as little-endian f32;
//         PIXELS are bytes [HEIGHT, WIDTH, 3]
"use strict";
const fs = require("fs");
const path = require("path");

const SIDE = 299;
const [action, folder, ...rest] = process.argv.slice(2);
const content = (name) => {
  const held = require(path.resolve(folder, name));
  return held.default || held;
};
const model = content("model.min.js");

/** [name, shape, values] of every weight. */
function weights() {
  const [group] = model.weightsManifest;
  const bytes = Buffer.concat(group.paths.map((shard) => Buffer.from(content(`${shard}.min.js`), "base64")));
  let at = 0;
  const all = group.weights.map(({ name, shape, quantization }) => {
    if (!quantization || quantization.dtype !== "uint8") throw new Error(`${name} is not stored in 8 bits`);
    const count = shape.reduce((a, b) => a * b, 1);
    const levels = bytes.subarray(at, at + count);
    if (levels.length !== count) throw new Error(`${name} is cut off`);
    at += count;
    return [name, shape, Float32Array.from(levels, (level) => level * quantization.scale + quantization.min)];
  });
  if (at !== bytes.length) throw new Error(`${bytes.length - at} bytes belong to no weight`);
  return all;
}

function writeWeights(out) {
  const header = {};
  let offset = 0;
  const all = weights();
  for (const [name, shape, values] of all) {
    header[name] = { dtype: "F32", shape, data_offsets: [offset, offset + values.byteLength] };
    offset += values.byteLength;
  }
  let text = JSON.stringify(header);
  text += " ".repeat((8 - (Buffer.byteLength(text) % 8)) % 8);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(Buffer.byteLength(text)));
  const data = all.map(([, , values]) => Buffer.from(values.buffer, values.byteOffset, values.byteLength));
  fs.writeFileSync(out, Buffer.concat([length, Buffer.from(text), ...data]));
}

async function writeFeatures(pixels, width, height, out) {
  const tf = require("@tensorflow/tfjs-core");
  require("@tensorflow/tfjs-backend-cpu");
  const layers = require("@tensorflow/tfjs-layers");
  await tf.setBackend("cpu");
  const whole = await layers.models.modelFromJSON(JSON.parse(JSON.stringify(model)).modelTopology);
  const values = new Map(weights().map(([name, shape, values]) => [name, tf.tensor(values, shape)]));
  whole.weights.forEach((variable) => variable.val.assign(values.get(variable.originalName)));
  const dense = whole.layers.find((layer) => layer.name === "dense_1");
  // What nsfwjs does with a picture (src/index.ts, `infer`).
  const levels = tf.tensor(new Uint8Array(fs.readFileSync(pixels)), [height, width, 3], "int32");
  const unit = tf.div(tf.cast(levels, "float32"), tf.scalar(255));
  const prepared = tf.image.resizeBilinear(unit, [SIDE, SIDE], true);
  const features = layers.model({ inputs: whole.inputs, outputs: dense.input }).predict(tf.expandDims(prepared));
  const bytes = (tensor) => Buffer.from(Float32Array.from(tensor.dataSync()).buffer);
  fs.writeFileSync(out, Buffer.concat([bytes(prepared), bytes(features)]));
}

if (action === "weights") writeWeights(rest[0]);
else if (action === "features") writeFeatures(rest[0], Number(rest[1]), Number(rest[2]), rest[3]);
else throw new Error(`${action} is neither weights nor features`);
