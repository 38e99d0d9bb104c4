// The Python module `fastflow_emulator`. Importing it registers the operations of csrc/cuda for tensors on the CPU.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>

#include "control.h"
#include "toys.h"

namespace py = pybind11;

namespace fastflow::emulator {
namespace {

// What devices of that capability have: shared memory of a block and of a multiprocessor, in bytes.
void set_device(int capability, int multiprocessors, int blocks_per_multiprocessor) {
  static const std::map<int, std::pair<int, int>> shared = {
      {75, {64 << 10, 64 << 10}},   {80, {163 << 10, 164 << 10}}, {86, {99 << 10, 100 << 10}},
      {89, {99 << 10, 100 << 10}},  {90, {227 << 10, 228 << 10}}, {100, {227 << 10, 228 << 10}},
      {120, {99 << 10, 100 << 10}},
  };
  const auto found = shared.find(capability);
  if (found == shared.end()) throw std::invalid_argument("no device of that capability is known");
  if (multiprocessors < 1 || blocks_per_multiprocessor < 1)
    throw std::invalid_argument("a device needs room for a block");
  settings().device = {capability, multiprocessors, found->second.first, found->second.second};
  settings().blocks_per_multiprocessor = blocks_per_multiprocessor;
}

void set_schedule(const std::string& name, uint64_t seed, const std::string& delivery) {
  static const std::map<std::string, Order> orders = {
      {"in order", Order::kForward},   {"reverse", Order::kReverse}, {"one warp first", Order::kFirst},
      {"one warp last", Order::kLast}, {"random", Order::kRandom},
  };
  static const std::map<std::string, Timing> timings = {
      {"early", Timing::kEarly}, {"late", Timing::kLate}, {"random", Timing::kRandom}};
  const auto order = orders.find(name);
  const auto timing = timings.find(delivery);
  if (order == orders.end()) throw std::invalid_argument("no such schedule: " + name);
  if (timing == timings.end()) throw std::invalid_argument("no such delivery: " + delivery);
  settings().schedule = {order->second, timing->second, seed};
}

py::list list_sites() {
  py::list all;
  for (const Site& site : sites.all()) {
    const KindInfo& kind = info(site.kind);
    py::list operands;
    std::string names = kind.operands;
    while (!names.empty()) {
      const size_t comma = names.find(',');
      operands.append(names.substr(0, comma));
      names = comma == std::string::npos ? "" : names.substr(comma + 1);
    }
    py::dict entry;
    entry["index"] = site.index;
    entry["file"] = site.file;
    entry["line"] = site.line;
    entry["column"] = site.column;
    entry["kind"] = kind.name;
    entry["synchronises"] = kind.synchronises;
    entry["operands"] = operands;
    entry["calls"] = site.calls;
    entry["bytes"] = site.bytes;
    all.append(entry);
  }
  return all;
}

py::list list_statistics() {
  py::list all;
  for (const Statistics& one : statistics()) {
    py::dict entry;
    entry["kernel"] = one.kernel;
    entry["blocks"] = one.blocks;
    entry["threads"] = one.threads;
    entry["switches"] = one.switches;
    entry["calls"] = one.calls;
    entry["barriers"] = one.barriers;
    entry["mma"] = one.mma;
    entry["wgmma"] = one.wgmma;
    entry["shared_read"] = one.shared_read;
    entry["shared_written"] = one.shared_written;
    entry["global_read"] = one.global_read;
    entry["global_written"] = one.global_written;
    entry["copied"] = one.copied;
    entry["boxes"] = one.boxes;
    all.append(entry);
  }
  return all;
}

void run_toy(
    const std::string& name, const std::vector<py::buffer>& arrays, const std::vector<int>& numbers, int blocks,
    int threads, int shared_bytes, int cluster) {
  for (const Toy& toy : toys()) {
    if (name != toy.name) continue;
    ToyArguments arguments = {};
    if (arrays.size() > 4 || numbers.size() > 12) throw std::invalid_argument("too many arguments for a toy");
    for (size_t i = 0; i < arrays.size(); ++i) {
      const py::buffer_info info = arrays[i].request(true);
      arguments.data[i] = info.ptr;
      arguments.bytes[i] = info.size * info.itemsize;
      declare_memory(info.ptr, arguments.bytes[i]);
    }
    for (size_t i = 0; i < numbers.size(); ++i) arguments.numbers[i] = numbers[i];
    toy.launch(arguments, {blocks, threads, shared_bytes, cluster});
    return;
  }
  throw std::invalid_argument("no such toy: " + name);
}

}  // namespace
}  // namespace fastflow::emulator

PYBIND11_MODULE(fastflow_emulator, m) {
  using namespace fastflow::emulator;
  m.doc() = "Runs the kernels of csrc/cuda on the CPU and watches them; see csrc/emulator/README.md.";
  py::register_exception<EmulationError>(m, "EmulationError", PyExc_RuntimeError);
  m.def(
      "device", &set_device, py::kw_only(), py::arg("capability") = 90, py::arg("multiprocessors") = 2,
      py::arg("blocks_per_multiprocessor") = 2, "Pretend to be this device from now on.");
  m.def(
      "schedule", &set_schedule, py::arg("name") = "in order", py::arg("seed") = 0, py::kw_only(),
      py::arg("delivery") = "random",
      "In which order threads run: in order, reverse, one warp first, one warp last, random; and when copies and "
      "products happen that run by themselves: early, late, random.");
  m.def("sites", &list_sites, "The places where the kernels that have run call wrappers.");
  m.def("forget_sites", [] { sites.forget(); }, "Forget all sites, and with them their faults.");
  m.def("skip", [](size_t site) { sites.at(site).skipped = true; }, py::arg("site"), "Make a call do nothing.");
  m.def(
      "shift",
      [](size_t site, int64_t by, size_t operand) {
        if (operand >= kMostOperands) throw std::invalid_argument("no such operand");
        sites.at(site).shift[operand] = by;
      },
      py::arg("site"), py::arg("by"), py::arg("operand") = 0, "Add to an address, a coordinate or a count of a call.");
  m.def(
      "heal",
      [] {
        for (Site& site : sites.all()) {
          site.skipped = false;
          for (int64_t& shift : site.shift) shift = 0;
        }
      },
      "Take all faults back.");
  m.def(
      "statistics",
      [] {
        const py::list all = list_statistics();
        statistics().clear();
        return all;
      },
      "What the launches since the last call did.");
  m.def(
      "toy", &run_toy, py::arg("name"), py::arg("arrays"), py::arg("numbers") = std::vector<int>{}, py::kw_only(),
      py::arg("blocks") = 1, py::arg("threads") = 32, py::arg("shared_bytes") = 0, py::arg("cluster") = 1,
      "Run one of the small kernels of csrc/emulator/toys.cu.");
  m.def("litmus_operations", &litmus_operations, "What threads of the toy 'litmus' can be told to do, by index.");
}
