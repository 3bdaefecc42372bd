// Makes keras_inception.json: every eighth feature and output of the first dense layer of Keras' Inception v3, by
// TensorFlow.js, for the topology that the npm package nsfwjs 4.4.0 has (that of Keras' applications with its own dense
// layers) and weights by formula, as make_encoders.py has them, under pytorch-fid's keys.
//
//     npm install --ignore-scripts nsfwjs@4.4.0 @tensorflow/tfjs-core@4.22.0 @tensorflow/tfjs-layers@4.22.0 \
//         @tensorflow/tfjs-backend-cpu@4.22.0
//     NODE_PATH=node_modules node make_keras_inception.cjs
"use strict";
const fs = require("fs");
const path = require("path");
const tf = require("@tensorflow/tfjs-core");
require("@tensorflow/tfjs-backend-cpu");
const layers = require("@tensorflow/tfjs-layers");
const published = require(process.env.NSFWJS_MODEL || "nsfwjs/dist/models/inception_v3/model.min.js");

const SIDE = 107;
/** Side of what the last block gives for it; the published topology takes the mean of the 8 x 8 pixels of its 299. */
const LAST = 2;

/** Uniform in -1..1, multiples of 2^-23, from the key's hash (FNV-1a) and the index. */
function formula(key, count) {
  let start = 0x811c9dc5;
  for (const byte of Buffer.from(key)) start = Math.imul(start ^ byte, 0x01000193);
  const out = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    let x = (Math.imul(i, 0x9e3779b9) + start) | 0;
    x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
    x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
    x ^= x >>> 16;
    out[i] = Math.fround(Math.fround((x >>> 8) * 2 ** -23) - 1);
  }
  return out;
}

/** A parameter in checkpoint layout. */
function parameter(key, shape) {
  const values = formula(key, shape.reduce((a, b) => a * b, 1));
  const fanIn = shape.slice(1).reduce((a, b) => a * b, 1);
  const scale = Math.fround(Math.SQRT2 * Math.sqrt(3 / fanIn));
  const change =
    shape.length > 1
      ? (v) => v * scale
      : key.endsWith("running_var")
        ? (v) => 1 + v * Math.fround(0.3)
        : (v) => v * Math.fround(0.2);
  return values.map((v) => Math.fround(change(v)));
}

// Places of the convolutions in Keras' order.
const A = ["branch1x1", "branch5x5_1", "branch5x5_2", "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3", "branch_pool"];
const B = ["branch3x3", "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"];
const C = ["branch1x1", "branch7x7_1", "branch7x7_2", "branch7x7_3", "branch7x7dbl_1", "branch7x7dbl_2", "branch7x7dbl_3",
  "branch7x7dbl_4", "branch7x7dbl_5", "branch_pool"];
const D = ["branch3x3_1", "branch3x3_2", "branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4"];
const E = ["branch1x1", "branch3x3_1", "branch3x3_2a", "branch3x3_2b", "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3a",
  "branch3x3dbl_3b", "branch_pool"];
const places = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"];
for (const [block, own] of [["5b", A], ["5c", A], ["5d", A], ["6a", B], ["6b", C], ["6c", C], ["6d", C], ["6e", C],
  ["7a", D], ["7b", E], ["7c", E]]) {
  places.push(...own.map((place) => `Mixed_${block}.${place}`));
}

/** [out, in, rows, columns] as [rows, columns, in, out]. */
function kernel(key, [rows, columns, inputs, outputs]) {
  const own = [outputs, inputs, rows, columns];
  return tf.transpose(tf.tensor(parameter(key, own), own), [2, 3, 1, 0]);
}

function weight(name, shape) {
  const [layer, kind] = name.split("/");
  if (layer.startsWith("dense_")) {
    if (kind === "bias") return tf.tensor(parameter("fc.bias", shape), shape);
    const own = [shape[1], shape[0]];
    return tf.transpose(tf.tensor(parameter("fc.weight", own), own));
  }
  const place = places[Number(layer.match(/_(\d+)$/)[1]) - 1];
  if (kind === "kernel") return kernel(`${place}.conv.weight`, shape);
  const key = { beta: "bias", moving_mean: "running_mean", moving_variance: "running_var" }[kind];
  return tf.tensor(parameter(`${place}.bn.${key}`, shape), shape);
}

const rounded = (values) => Array.from(values, (v) => Number(v.toPrecision(8)));

async function main() {
  await tf.setBackend("cpu");
  const topology = JSON.parse(JSON.stringify(published.default || published)).modelTopology;
  const configs = topology.model_config.config.layers;
  configs[0].config.batch_input_shape = [null, SIDE, SIDE, 3];
  Object.assign(configs.find((layer) => layer.name === "average_pooling2d_10").config, { pool_size: [LAST, LAST], strides: [LAST, LAST] });
  const whole = await layers.models.modelFromJSON(topology);
  const dense = whole.layers.find((layer) => layer.name === "dense_1");
  // Its dense layer has a ReLU, which our `fc` has not.
  // One output a model: the library lets go of what another output is computed of.
  const models = { features: dense.input, relu: dense.output };
  whole.weights
    .filter((variable) => !/^dense_[23]/.test(variable.originalName))
    .forEach((variable) => variable.val.assign(weight(variable.originalName, variable.shape)));
  const channelsFirst = tf.tensor(formula("pixel_values", 3 * SIDE * SIDE), [1, 3, SIDE, SIDE]);
  const picture = tf.transpose(channelsFirst, [0, 2, 3, 1]);
  const cases = { side: SIDE, outputs: {} };
  for (const [name, output] of Object.entries(models)) {
    const found = layers.model({ inputs: whole.inputs, outputs: output }).predict(picture);
    const values = rounded(found.dataSync().filter((_, i) => i % 8 === 0));
    cases.outputs[name] = { shape: [1, values.length], values };
  }
  fs.writeFileSync(path.join(__dirname, "keras_inception.json"), JSON.stringify(cases) + "\n");
}

main();
