// Small kernels that the emulator's own tests run: one for each thing that the model does or refuses to do.
#pragma once

#include <cstdint>
#include <vector>

namespace fastflow::emulator {

struct ToyArguments {
  void* data[4];        // arrays of the test; each toy says what it wants
  int64_t bytes[4];     // of each
  int32_t numbers[12];  // the same

  template <class T>
  T* array(int i) const {
    return static_cast<T*>(data[i]);
  }
};

struct ToyShape {
  int blocks, threads, shared_bytes, cluster;
};

struct Toy {
  const char* name;
  void (*launch)(const ToyArguments& arguments, const ToyShape& shape);
};

const std::vector<Toy>& toys();

// What the threads of the toy "litmus" can be told to do: a step names an operation by its index here.
const std::vector<const char*>& litmus_operations();

}  // namespace fastflow::emulator
