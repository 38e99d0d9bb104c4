// Matrix fragments and products of one warp (sm_80).
//
// Fragments are the same in bytes for all types. With g = lane / 4 and q = lane % 4, a product takes 32 bytes of K:
//   a[0], a[1]: rows g, g + 8, word q of the first 16 bytes; a[2], a[3]: the same rows, second 16 bytes
//   b[0], b[1]: column g, word q of the first and of the second 16 bytes
//   d[0], d[1]: row g, columns 2q, 2q + 1; d[2], d[3]: row g + 8
#pragma once

#include <arch/memory.cuh>

namespace fastflow::arch {

#ifdef __CUDACC__

// Four matrices of 8 rows of 16 bytes. Lane 8i + j gives the address of row j of matrix i and gets word q of row g of
// matrix i in r[i].
__device__ __forceinline__ void load_matrix_x4(uint32_t (&r)[4], shared_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

// The same for matrices of 8 x 8 numbers of 16 bits, transposed: a lane gets the numbers of rows 2q and 2q + 1 in
// column g.
__device__ __forceinline__ void load_matrix_x4_trans(uint32_t (&r)[4], shared_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

// d [16, 8] += a [16, 32 bytes] * b [8, 32 bytes]^T, in float32.
template <class T>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if FASTFLOW_SM80
  if constexpr (std::is_same_v<T, bfloat16>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else if constexpr (std::is_same_v<T, half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    static_assert(std::is_same_v<T, float>);
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#else
  __trap();
#endif
}

// The bits of a float32, rounded to nearest to what the tf32 product keeps.
__device__ __forceinline__ uint32_t round_tf32(uint32_t v) {
#if FASTFLOW_SM80
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(__uint_as_float(v)));
  return r;
#else
  __trap();
  return v;
#endif
}

#endif  // __CUDACC__

}  // namespace fastflow::arch
