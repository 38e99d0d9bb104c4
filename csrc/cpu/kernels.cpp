// Picks the kernels for the processor that the library runs on.
#include "kernels.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fastflow {

namespace baseline {
template <class T>
const Kernels<T>& table();
}
#ifdef FASTFLOW_X86
namespace avx2 {
template <class T>
const Kernels<T>& table();
}
namespace avx512 {
template <class T>
const Kernels<T>& table();
}
namespace avx512_bf16 {
template <class T>
const Kernels<T>& table();
}
#endif

namespace {

template <class T>
const Kernels<T>& choose() {
  const char* variable = std::getenv("FASTFLOW_CPU_ISA");
  const std::string asked = variable ? variable : "";
  std::string usable = "baseline";
#ifdef FASTFLOW_X86
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  const bool has_avx512_bf16 = has_avx512 && __builtin_cpu_supports("avx512bf16");
  if (has_avx512_bf16 && (asked.empty() || asked == "avx512_bf16")) return avx512_bf16::table<T>();
  if (has_avx512 && (asked.empty() || asked == "avx512")) return avx512::table<T>();
  if (has_avx2 && (asked.empty() || asked == "avx2")) return avx2::table<T>();
  if (has_avx2) usable += ", avx2";
  if (has_avx512) usable += ", avx512";
  if (has_avx512_bf16) usable += ", avx512_bf16";
#endif
  if (asked.empty() || asked == "baseline") return baseline::table<T>();
  throw std::invalid_argument("`FASTFLOW_CPU_ISA` must be one of " + usable + " on this processor; got " + asked);
}

}  // namespace

template <class T>
const Kernels<T>& kernels() {
  static const Kernels<T>& chosen = choose<T>();
  return chosen;
}

template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();
template const Kernels<bfloat16>& kernels<bfloat16>();

}  // namespace fastflow
