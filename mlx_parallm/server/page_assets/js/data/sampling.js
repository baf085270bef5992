// How answers are drawn: one choice for the whole browser. null leaves it to the server.

const KEY = "sampling";

const DEFAULTS = {
  model: "",
  temperature: null,
  top_p: null,
  top_k: null,
  min_p: null,
  max_tokens: null,
  seed: null,
  repetition_penalty: null,
  presence_penalty: null,
  frequency_penalty: null,
  stop: [],
  alternatives: 5,
};

export function loadSampling() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(KEY) ?? "{}") };
  } catch {
    // Written by hand or by another version: begin anew.
    return { ...DEFAULTS };
  }
}

export function saveSampling(sampling) {
  localStorage.setItem(KEY, JSON.stringify(sampling));
}
