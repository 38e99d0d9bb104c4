// What tests set: the pretended device, the schedule; and what they get.
#pragma once

#include <vector>

#include "model.h"

namespace fastflow::emulator {

struct Settings {
  DeviceModel device = {90, 2, 232448, 233472};
  int blocks_per_multiprocessor = 2;  // at most: what is resident is interleaved, and costs time
  Schedule schedule;
};

Settings& settings();
std::vector<Statistics>& statistics();  // of the last launches, oldest first

}  // namespace fastflow::emulator
