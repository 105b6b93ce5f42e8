// Passes over a row of logits for the sampler: what is scalar and rare stays in model/sampling.cpp.
#pragma once
#include "simd.h"

namespace {

using servewright::ScanResult;

void scan(const float* x, int n, ScanResult* result) {
  const float nothing = -__builtin_inff();
  F most = all(nothing), not_finite = {};
  I at = {};
  int i = 0;
  for (; i + LANES <= n; i += LANES) {
    const F v = load<F>(x + i);
    at = v > most ? LANE_NUMBERS + i : at;  // the first of equals stays
    most = maximum(v, most);
    not_finite += v * 0.0f;  // NaN once a lane has seen NaN or infinity
  }
  float maxima[LANES], tail[LANES];
  int32_t places[LANES];
  store(maxima, most);
  store(tail, not_finite);
  store(places, at);
  result->max = nothing;
  result->argmax = 0;
  float sum = 0.0f;
  for (int lane = 0; lane < LANES; ++lane) {
    sum += tail[lane];
    const bool is_better = maxima[lane] > result->max ||
                           (maxima[lane] == result->max && places[lane] < result->argmax);
    if (!is_better) continue;
    result->max = maxima[lane];
    result->argmax = places[lane];
  }
  for (; i < n; ++i) {
    sum += x[i] * 0.0f;
    if (!(x[i] > result->max)) continue;
    result->max = x[i];
    result->argmax = i;
  }
  result->finite = sum == 0.0f;
}

void exponentials(double* x, int n, double max, double temperature) {
  constexpr int HALF = LANES / 2;
  int i = 0;
  for (; i + HALF <= n; i += HALF) store(x + i, exponential((load<D>(x + i) - max) / temperature));
  if (i == n) return;
  double rest[HALF] = {};
  for (int j = i; j < n; ++j) rest[j - i] = x[j];
  store(rest, exponential((load<D>(rest) - max) / temperature));
  for (int j = i; j < n; ++j) x[j] = rest[j - i];
}

}  // namespace
