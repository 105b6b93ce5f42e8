// The TU of one instruction set: compiled once a variant, each with its own -D and -m flags. All of
// it is in unnamed namespaces but the table below, and nothing of the STL is included, so no symbol
// of it can be taken for portable code (a test reads the object's symbols).
#include "../common/kernels.h"
#include "attention.h"
#include "dense.h"
#include "reductions.h"
#include "rope.h"

#if defined(SW_AMX)
#define SW_NAME amx
#elif defined(SW_AVX512)
#define SW_NAME avx512
#elif defined(SW_AVX2X16)
#define SW_NAME avx2x16
#elif defined(SW_AVX2)
#define SW_NAME avx2
#else
#define SW_NAME base
#endif
#define SW_STRING_OF(x) #x
#define SW_STRING(x) SW_STRING_OF(x)
#define SW_TABLE_OF(x) kernels_##x
#define SW_TABLE(x) SW_TABLE_OF(x)

namespace servewright {

extern const Kernels SW_TABLE(SW_NAME);
const Kernels SW_TABLE(SW_NAME) = {
    SW_STRING(SW_NAME),
    LANES,
    TILE,
    ROWS,
    UNSIGNED_Q8,
    norm_rows,
    finish_attention,
    qkv,
    rope_append,
    project,
    gate_up,
    attention,
    scan,
    exponentials,
    dense,
    unzip,
    softmax,
};

}  // namespace servewright
