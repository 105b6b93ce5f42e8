// The numbers that decide a draw, for the CPU and for kernels: one definition of both.
//
// A token's weight w = exp((x - max) / temperature) is a double in 0..1. Its mass is w in units of
// 2^-45, rounded to nearest, an integer. Filters and draws add masses, so every sum is exact and no
// order of summation, no number of threads and no tile can change a token. The price: a sum of n
// weights is off by at most n 2^-46 of the largest weight (4e-9 for 262,144 tokens of which each is
// rounded the same way; about 4e-12 where roundings cancel), and a token less likely than 2^-46 of
// the likeliest is never drawn. Sums fit 64 bits up to 2^18 tokens.
#pragma once
#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)
#define SW_BOTH __host__ __device__ inline
#else
#define SW_BOTH inline
#endif

namespace servewright {

constexpr int MASS_BITS = 45;
constexpr int MAX_DRAW_VOCAB = 1 << 18;

__extension__ typedef unsigned __int128 uint128_t;

SW_BOTH uint64_t bits_of(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

// Doubles in [128, 256) are 2^-45 apart: one addition rounds w and leaves the integer in the bits.
SW_BOTH uint64_t mass_of(double weight) { return bits_of(weight + 128.0) - bits_of(128.0); }

// 53 random bits. Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
// (SC11); key = seed, counter = (draw, 0), low words first. The number in [0, 1) is 2^-53 of it.
SW_BOTH uint64_t random_bits(uint64_t seed, uint64_t draw) {
  uint32_t c0 = static_cast<uint32_t>(draw), c1 = static_cast<uint32_t>(draw >> 32);
  uint32_t c2 = 0, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c0, b = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(b);
    c3 = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return (c0 | uint64_t{c1} << 32) >> 11;
}

// Where a draw falls in `total` > 0 masses: the token is the first, by id, up to which the kept
// masses sum to more than this. floor(u * total), exact.
SW_BOTH uint64_t place_of(uint64_t random53, uint64_t total) {
  return static_cast<uint64_t>((uint128_t{random53} * total) >> 53);
}

// What a prefix must sum to before top_p is satisfied: ceil(top_p * total), exact, for
// 0 < top_p < 1; at least 1, so that one token stays.
SW_BOTH uint64_t wanted_of(float top_p, uint64_t total) {
  uint32_t bits;
  memcpy(&bits, &top_p, sizeof bits);
  const uint32_t exponent = bits >> 23 & 255u, fraction = bits & 0x7fffffu;
  const uint32_t mantissa = exponent ? fraction | 1u << 23 : fraction;  // top_p 2^shift
  const int shift = 150 - static_cast<int>(exponent ? exponent : 1);
  if (shift >= 88) return 1;  // the product has 88 bits
  const uint128_t product = uint128_t{mantissa} * total;
  const uint64_t wanted = static_cast<uint64_t>((product + ((uint128_t{1} << shift) - 1)) >> shift);
  return wanted ? wanted : 1;
}

}  // namespace servewright
